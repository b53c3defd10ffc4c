//! One attachment to a job: a channel of a connection, with offsets of its own.

use std::io;
use std::sync::Arc;
use std::task::Context;

use bowline_proto::frame::Stream;
use bowline_proto::id::Channel;
use bowline_proto::message::{Exit, Gap, Started};
use bowline_proto::outcome::Happened;
use bowline_proto::session::{PutError, RecvFlow, SendFlow, Session};

use super::{Job, OUTPUT, Output, Stage, remember};

/// An attachment; dropped, it is no more.
#[derive(Debug)]
pub(in crate::gate) struct Attachment {
    job: Arc<Job>,
    id: u64,
    /// Where the streams that are wanted begin.
    from: [Option<u64>; 2],
    holder: bool,
    by_start: bool,
    /// `started` was said.
    told: bool,
    /// That nobody reads stdin any more was said.
    refused: bool,
}

/// Why a channel is over.
#[derive(Debug)]
pub(in crate::gate) enum Done {
    /// All of the output was sent, and this is what the job came to.
    Exit(Arc<Exit>),
    /// Another attachment has taken its place.
    Displaced,
    /// The output cannot be read.
    Failed,
    /// Some of it was dropped, and the client cannot be told so.
    Lost,
}

/// What a look at the job showed.
struct Seen {
    stage: Stage,
    pid: i32,
    unix_ms: u64,
    output: [Output; 2],
    stdin_end: u64,
    stdin_taken: u64,
    stdin_closed: bool,
    stdin_refused: bool,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let keep = self.job.terms.keep;
        self.job.state().leave(self.id, keep);
    }
}

impl Attachment {
    pub(super) fn new(
        job: Arc<Job>,
        id: u64,
        from: [Option<u64>; 2],
        holder: bool,
        by_start: bool,
    ) -> Self {
        Self {
            job,
            id,
            from,
            holder,
            by_start,
            told: false,
            refused: false,
        }
    }

    pub(in crate::gate) fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// Takes what the client has sent for stdin, at its offset.
    pub(in crate::gate) fn input(&self, offset: u64, bytes: &[u8], end: bool) {
        self.job.input(self.id, offset, bytes, end);
    }

    /// Moves what can be moved between the job and the session. Says whether anything did, and whether that was all.
    pub(in crate::gate) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        channel: Channel,
    ) -> (bool, Option<Done>) {
        let Some(seen) = self.look(cx, session, channel) else {
            return (true, Some(Done::Displaced));
        };
        if seen.pid == 0 {
            // It may be over without having run.
            let done = match &seen.stage {
                Stage::Over(exit) => Some(Done::Exit(exit.clone())),
                _ => None,
            };
            return (done.is_some(), done);
        }
        let mut progress = !self.told;
        if !self.told {
            self.told = true;
            session.started(channel, &self.started(&seen));
        }
        progress |= self.acknowledge(&seen, session, channel);
        let mut sent = true;
        for ((stream, output), from) in OUTPUT.into_iter().zip(&seen.output).zip(self.from) {
            if from.is_none() {
                continue;
            }
            match self.send(session, channel, stream, output) {
                Ok((moved, ended)) => {
                    progress |= moved;
                    sent &= ended;
                }
                Err(done) => return (true, Some(done)),
            }
        }
        match seen.stage {
            Stage::Over(exit) if sent => (true, Some(Done::Exit(exit))),
            _ => (progress, None),
        }
    }

    /// Tells the job what was acknowledged, and sees how far it is. `None` where another one has
    /// taken this one's place.
    fn look(&self, cx: &Context<'_>, session: &Session, channel: Channel) -> Option<Seen> {
        let mut state = self.job.state();
        let state = &mut *state;
        let reader = state.attachments.get_mut(&self.id)?;
        remember(&mut reader.waker, cx);
        let mut news = false;
        if self.told {
            for (acked, stream) in reader.acked.iter_mut().zip(OUTPUT) {
                let now = session.sending(channel, stream).map(SendFlow::acked);
                if acked.is_some() && now > *acked {
                    *acked = now;
                    news = true;
                }
            }
        }
        if news {
            if reader.counts {
                for (read, acked) in state.read.iter_mut().zip(reader.acked) {
                    *read = acked.map_or(*read, |acked| acked.max(*read));
                }
            }
            state.raise_floors();
        }
        Some(Seen {
            stage: state.stage.clone(),
            pid: state.pid,
            unix_ms: state.unix_ms,
            output: state.output,
            stdin_end: state.stdin.end,
            stdin_taken: state.stdin.taken,
            stdin_closed: state.stdin.closed,
            stdin_refused: state.stdin.refused,
        })
    }

    fn started(&self, seen: &Seen) -> Started {
        let [stdout, stderr] = self.from;
        // What a start has asked for begins at 0, and its stdin may be on its way already.
        let told = |from: Option<u64>| from.filter(|&from| !self.by_start || from > 0);
        Started {
            pid: seen.pid,
            unix_ms: seen.unix_ms,
            stdin: if self.by_start { 0 } else { seen.stdin_end },
            stdin_closed: !self.by_start && (!self.holder || seen.stdin_closed),
            stdout: told(stdout),
            stderr: told(stderr),
            pty: self.job.pty,
        }
    }

    /// What has reached the program's pipe of what came on this channel, and that the program reads
    /// no more. Says whether that was news.
    fn acknowledge(&mut self, seen: &Seen, session: &mut Session, channel: Channel) -> bool {
        let consumed = session.receiving(channel, Stream::Stdin);
        let consumed = consumed.map_or(u64::MAX, RecvFlow::consumed);
        let news = seen.stdin_taken.saturating_sub(consumed);
        if news > 0 && self.holder {
            session.consumed(channel, Stream::Stdin, news);
        }
        let refused =
            seen.stdin_refused && !std::mem::replace(&mut self.refused, seen.stdin_refused);
        if refused {
            session.close_stdin(channel);
        }
        refused
    }

    /// One frame of a stream. Says whether anything moved, and whether the end was sent.
    fn send(
        &self,
        session: &mut Session,
        channel: Channel,
        stream: Stream,
        output: &Output,
    ) -> Result<(bool, bool), Done> {
        let flow = session.sending(channel, stream);
        let (sent, ended) = flow.map_or((0, true), |flow| (flow.sent(), flow.ended()));
        let there = output.readable().saturating_sub(sent);
        let complete = output.is_complete();
        if ended || (there == 0 && !complete) {
            return Ok((false, ended));
        }
        if there == 0 {
            let _ = session.put_end(channel, stream);
            return Ok((true, true));
        }
        let offset = output.oldest();
        if sent < offset {
            return match session.gap(channel, &Gap { stream, offset }) {
                true => Ok((true, false)),
                false => Err(Done::Lost),
            };
        }
        let mut dropped = false;
        let put = session.put_with(channel, stream, |space| {
            let max = usize::try_from(there).unwrap_or(usize::MAX);
            let len = space.len().min(max);
            let space = space.get_mut(..len).unwrap_or_default();
            let len = self.job.read((stream, output), sent, space)?;
            // What was dropped meanwhile is a hole.
            dropped = self.job.is_dropped(stream, sent);
            if dropped {
                return Ok((0, false));
            }
            let behind = u64::try_from(len).unwrap_or(u64::MAX);
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            Ok((len, complete && behind == there))
        });
        match put {
            Ok((len, end)) => Ok((len > 0 || dropped, end)),
            Err(PutError::Source(error)) => {
                tracing::error!(%error, job = %self.job.id, "output cannot be read");
                Err(Done::Failed)
            }
            Err(PutError::Closed) => Ok((false, true)),
        }
    }
}

/// Of what is asked for, or was still to come, something was dropped.
pub(in crate::gate) const OUTPUT_LOST: (&str, &str) = (
    "output_lost",
    "the output at this offset is not kept any more",
);

impl Done {
    /// What the client is told, as a refusal: a code and a sentence.
    pub(in crate::gate) fn refusal(&self) -> Option<(String, String)> {
        let owned = |code: &str, message: &str| Some((code.to_owned(), message.to_owned()));
        match self {
            Done::Displaced => owned(
                "attached_elsewhere",
                "another attachment has taken over the input of this job",
            ),
            Done::Lost => owned(OUTPUT_LOST.0, OUTPUT_LOST.1),
            Done::Failed => owned("out_of_resources", "the output of this job cannot be read"),
            Done::Exit(exit) if exit.outcome.outcome == Happened::Refused => owned(
                exit.outcome.error.as_deref().unwrap_or_default(),
                exit.outcome.message.as_deref().unwrap_or_default(),
            ),
            Done::Exit(_) => None,
        }
    }
}
