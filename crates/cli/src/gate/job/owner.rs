//! The one task that owns a job: from the record to the outcome, and as long after
//! that as somebody may want it.
//!
//! ```text
//! Recording ─► Asked ─► Running ─► (Ended by the keeper) ─► output drained ─► Over ─► released
//!      └─────────┴──► not started, refused ─────────────────────────────────────┘
//! ```
//!
//! It alone has the pipes, so it lives on one worker: the one that asked the keeper to
//! start the job, or the first one for jobs of an earlier gate. What is half done is in it; one
//! turn looks at everything once, and turns go on until nothing moves.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bowline_proto::frame::Stream;
use bowline_proto::outcome::{Happened, Outcome};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::begin::Given;
use super::detached::Detached;
use super::outcome::{self, Note};
use super::pipes::{InputPipe, OutputPipe, Pumped};
use super::terminal::Terminal;
use super::{Job, Memfds, OUTPUT, not_started, remember};
use crate::clock::unix_ms;
use crate::gate::Worker;
use crate::gate::connection::{KEEPER_GONE, refusal};
use crate::gate::estate::Streams;
use crate::gate::link::{Letter, Mail};
use crate::ipc::{
    Cause, End, Exited, JobSnapshot, JobSpec, Stream as KeeperStream, ToGate, ToKeeper, Tree,
};

/// Turns before other tasks of the worker get theirs.
const TURNS_MAX: u32 = 32;
/// Nobody came back.
const NOBODY: Note = (
    "disconnected",
    "nobody came back for the job, and what it still had to say is lost",
);

/// A job of an earlier gate, with its descriptors.
#[derive(Debug)]
pub(in crate::gate) struct Adoption {
    pub(in crate::gate) job: Arc<Job>,
    pub(in crate::gate) snapshot: JobSnapshot,
    pub(in crate::gate) fds: Vec<OwnedFd>,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// The record is being written; the spec waits.
    Recording(oneshot::Receiver<bool>, Box<JobSpec>),
    /// The keeper was asked, or knows it from before.
    Known,
    /// The outcome is recorded and told.
    Over,
}

/// The owner.
#[derive(Debug)]
pub(in crate::gate) struct Owner {
    pub(super) worker: Rc<Worker>,
    mailbox: u64,
    pub(super) mail: Rc<Mail>,
    pub(super) job: Arc<Job>,
    pub(super) phase: Phase,
    pub(super) stdin: Option<InputPipe>,
    pub(super) output: [Option<OutputPipe>; 2],
    pub(super) terminal: Option<Terminal>,
    /// Of a detached job: the way from the rings to the disk.
    pub(super) detached: Option<Detached>,
    pub(super) end: Option<End>,
    /// When the pipes are closed although somebody holds them still.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    pub(super) sealed: bool,
    /// Until when somebody may come back.
    grace: Option<Pin<Box<Sleep>>>,
    /// Nobody wants it any more: its end was asked for, and its pipes are closed.
    pub(super) abandoned: bool,
    pub(super) draining: bool,
    /// No keeper is there to be told anything, and what the job comes to nobody can know.
    orphaned: bool,
    pub(super) note: Option<Note>,
    /// What it came to is on its way to the record. Until it is there the keeper knows it.
    pub(super) written: Option<oneshot::Receiver<()>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.worker.link.forget_box(self.mailbox);
        self.worker.link.unfollow(self.job.id);
    }
}

impl Owner {
    /// Begins with a job whose record is being written.
    pub(in crate::gate) fn new(
        worker: Rc<Worker>,
        job: Arc<Job>,
        recording: oneshot::Receiver<bool>,
        spec: JobSpec,
    ) -> Self {
        Self::with(worker, job, Phase::Recording(recording, Box::new(spec)))
    }

    /// Takes over a job of an earlier gate.
    pub(in crate::gate) fn adopt(worker: Rc<Worker>, adoption: Adoption) -> Self {
        let Adoption { job, snapshot, fds } = adoption;
        let mut owner = Self::with(worker, job, Phase::Known);
        owner.worker.link.follow(owner.job.id, &owner.mail);
        tracing::info!(job = %owner.job.id, "a job of an earlier gate is taken over");
        let given = Given {
            open: snapshot.open,
            spools: snapshot.spools,
        };
        if given.spools.is_empty() {
            // The gate of an earlier keeper has not handed them on.
            owner.close_pipes();
        } else if let Err(error) = owner.take(&given, fds) {
            owner.lose_streams(&error);
        }
        if let Some(end) = snapshot.ended {
            owner.ended(end);
        }
        owner.ended_before();
        owner
    }

    fn with(worker: Rc<Worker>, job: Arc<Job>, phase: Phase) -> Self {
        let mailbox = worker.shared.connection_id();
        let account = &worker.shared.spools.account;
        let detached = job.is_detached().then(|| Detached::new(&job, account));
        Self {
            mail: worker.link.open_box(mailbox),
            mailbox,
            worker,
            phase,
            stdin: None,
            output: [None, None],
            terminal: None,
            detached,
            end: None,
            deadline: None,
            sealed: false,
            grace: None,
            abandoned: false,
            draining: false,
            orphaned: false,
            note: None,
            written: None,
            job,
        }
    }

    /// Serves the job until nobody can want it any more.
    pub(in crate::gate) async fn serve(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        remember(&mut self.job.state().owner, cx);
        for _ in 0..TURNS_MAX {
            let progress = self.turn(cx);
            if self.is_released() {
                self.release();
                return Poll::Ready(());
            }
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks at everything once. Says whether anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = self.letters(cx);
        progress |= self.recorded(cx);
        progress |= self.absence(cx);
        progress |= self.pump_input(cx);
        self.seal(cx);
        progress |= self.pump_terminal(cx);
        for index in 0..OUTPUT.len() {
            progress |= self.pump_output(cx, index);
        }
        progress |= self.pump_spool(cx);
        progress |= self.finish(cx);
        progress | self.poll_written(cx)
    }

    fn letters(&mut self, cx: &Context<'_>) -> bool {
        let mut any = false;
        while let Some(letter) = self.mail.take(cx) {
            any = true;
            match letter {
                Letter::Keeper(message, fds) => self.keeper_says(message, fds),
                Letter::Drain => self.draining = true,
                Letter::KeeperGone(noting) => {
                    self.orphan();
                    drop(noting);
                }
            }
        }
        any
    }

    fn keeper_says(&mut self, message: ToGate, fds: Vec<OwnedFd>) {
        match message {
            ToGate::Started {
                pid,
                unix_ms,
                open,
                spools,
                ..
            } => self.started(pid, unix_ms, &Given { open, spools }, fds),
            ToGate::NotStarted { why, .. } => self.over(not_started(&why)),
            ToGate::Refused { code, .. } => {
                let (code, message) = refusal(code);
                self.refuse(code, message);
            }
            ToGate::Ended { end, .. } => self.ended(end),
            // The link keeps what concerns no job.
            _ => {}
        }
    }

    pub(super) fn end(&self, cause: Cause, first: i32) {
        let job = self.job.id;
        self.worker.link.send(&ToKeeper::End { job, cause, first });
    }

    // ---- while it runs ----------------------------------------------------

    /// What happens while nobody is attached.
    fn absence(&mut self, cx: &mut Context<'_>) -> bool {
        let (nobody, pinned, broken, cut) = {
            let state = self.job.state();
            let nobody = state.attachments.is_empty();
            (nobody, state.pinned, state.broken, state.cut)
        };
        if broken && self.note.is_none() {
            self.lose_streams(&io::ErrorKind::StorageFull.into());
        }
        if !matches!(self.phase, Phase::Known) && !matches!(self.phase, Phase::Over) {
            return false;
        }
        if self.detached.is_some() {
            return false;
        }
        if self.orphaned && matches!(self.phase, Phase::Known) {
            // Nobody could end it: it waits for the next keeper.
            return false;
        }
        if nobody && !self.job.terms.keep && !cut {
            return self.abandon();
        }
        if !nobody && !pinned {
            self.grace = None;
            return false;
        }
        let config = self.worker.config();
        let grace = self.job.terms.grace_ms.unwrap_or(config.grace_ms);
        let grace = Duration::from_millis(grace.min(config.grace_max_ms));
        let timer = self
            .grace
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(grace)));
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.grace = None;
        if nobody {
            return self.abandon();
        }
        // Others read on; whoever held stdin does not come back.
        let mut state = self.job.state();
        state.pinned = false;
        state.raise_floors();
        true
    }

    /// Nobody wants it any more. Says whether that was news.
    fn abandon(&mut self) -> bool {
        if std::mem::replace(&mut self.abandoned, true) {
            return false;
        }
        if matches!(self.phase, Phase::Known) {
            if self.end.is_some() {
                // It ended by itself, and what it said nobody has heard to the end.
                self.note = self.note.or(self.output_waits().then_some(NOBODY));
            } else {
                tracing::info!(job = %self.job.id, "nobody is attached any more; the job is ended");
                self.end(Cause::Disconnected, libc::SIGHUP);
            }
            self.close_pipes();
        }
        true
    }

    pub(super) fn output_waits(&self) -> bool {
        self.output.iter().any(Option::is_some)
    }

    pub(super) fn close_pipes(&mut self) {
        self.stdin = None;
        self.output = [None, None];
        self.terminal = None;
        let mut state = self.job.state();
        state.stdin.closed = true;
        for output in &mut state.output {
            output.closed = true;
        }
        state.wake_readers();
    }

    fn pump_input(&mut self, cx: &mut Context<'_>) -> bool {
        let (Some(pipe), Some(memfd)) = (&mut self.stdin, self.job.memfd(Stream::Stdin)) else {
            return false;
        };
        let (end, ended) = {
            let state = self.job.state();
            (state.stdin.end, state.stdin.ended)
        };
        let pumped = pipe.pump(cx, memfd, end);
        let taken = pipe.position();
        let done = (ended && taken == end) || pumped == Pumped::End;
        if pumped == Pumped::Nothing && !done {
            return false;
        }
        let mut state = self.job.state();
        state.stdin.taken = taken;
        state.stdin.closed |= done;
        state.stdin.refused |= pumped == Pumped::End;
        state.wake_readers();
        if done {
            self.stdin = None;
            self.worker
                .shared
                .estate
                .close(self.job.id, KeeperStream::Stdin);
            // Where the program has closed its end this is no news to it.
            self.worker.link.send(&ToKeeper::CloseStream {
                job: self.job.id,
                stream: KeeperStream::Stdin,
            });
        }
        true
    }

    fn pump_terminal(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(terminal) = &mut self.terminal else {
            return false;
        };
        let written = terminal.pump_input(cx);
        let read = terminal.pump_output(cx);
        if read == Pumped::End {
            // The keeper holds this end of the pipe too, so it has no other end.
            self.output
                .iter_mut()
                .take(1)
                .flatten()
                .for_each(OutputPipe::seal);
        }
        written || read != Pumped::Nothing
    }

    fn pump_output(&mut self, cx: &mut Context<'_>, index: usize) -> bool {
        let kept_max = self.taken_max(index);
        let stream = OUTPUT[index];
        let (Some(pipe), Some(memfd)) = (&mut self.output[index], self.job.memfd(stream)) else {
            return false;
        };
        let (room, full) = {
            let output = &mut self.job.state().output[index];
            if let Some(layout) = pipe.acknowledged(memfd, output.floor) {
                output.layout = layout;
            }
            let room = output.room(kept_max);
            output.starved = room == 0;
            output.reserved = output.end.saturating_add(room);
            (room, output.is_full(kept_max))
        };
        let end = pipe.end();
        let pumped = match room {
            0 if full => match pipe.look(cx) {
                Pumped::Some => self.overflow(cx, index),
                nothing => nothing,
            },
            0 => match pipe.starve(cx, memfd) {
                Some(layout) => {
                    self.job.state().output[index].layout = layout;
                    Pumped::Some
                }
                None => Pumped::Nothing,
            },
            room => {
                let pumped = pipe.pump(cx, memfd, room);
                self.fits(index);
                pumped
            }
        };
        let end = self.output[index].as_ref().map_or(end, OutputPipe::end);
        if pumped == Pumped::End {
            self.output[index] = None;
        }
        let mut state = self.job.state();
        let output = &mut state.output[index];
        let news = output.end != end || pumped == Pumped::End;
        output.end = end;
        output.reserved = end;
        output.closed |= pumped == Pumped::End;
        if news {
            state.wake_readers();
        }
        pumped != Pumped::Nothing
    }

    // ---- the end ----------------------------------------------------------

    /// The main process was reaped.
    fn ended(&mut self, end: End) {
        // A job that was made to end has its whole tree ended too, also where the keeper was asked too late.
        let made_to = end.cause.is_some() || self.note.is_some();
        if !self.job.terms.wait_output || made_to || end.exited == Exited::Lost {
            self.wait_a_moment();
        }
        self.end = Some(end);
    }

    /// Whoever holds the pipes still is not waited for longer than this.
    pub(super) fn wait_a_moment(&mut self) {
        let wait = Duration::from_millis(self.worker.config().output_wait_ms);
        self.deadline = Some(Box::pin(tokio::time::sleep(wait)));
    }

    /// The keeper is gone: the status can never be known. Where the gate stays, the program is heard
    /// to the end of its output, and the streams wait for the next keeper; else for a moment.
    /// Whether it goes on then, nobody here can tell.
    fn orphan(&mut self) {
        self.orphaned = true;
        let stays = self.worker.shared.estate.stays();
        self.draining |= !stays;
        match self.phase {
            Phase::Recording(..) => return self.refuse("keeper_gone", KEEPER_GONE),
            Phase::Known if self.end.is_none() => {
                self.end = Some(End {
                    exited: Exited::Lost,
                    cause: None,
                    tree: Tree::LeftAlone,
                    unix_ms: unix_ms(),
                });
                if !stays {
                    self.wait_a_moment();
                }
            }
            Phase::Known | Phase::Over => {}
        }
        match self.streams() {
            Ok(streams) => self.worker.shared.estate.hold(self.job.id, streams),
            Err(error) => {
                tracing::error!(job = %self.job.id, %error, "its streams are not kept");
            }
        }
    }

    /// Copies of what the next keeper needs of its streams.
    fn streams(&self) -> io::Result<Streams> {
        let stdin = self
            .stdin
            .as_ref()
            .map(|pipe| (KeeperStream::Stdin, pipe.as_fd()));
        let output = [KeeperStream::Stdout, KeeperStream::Stderr].into_iter();
        let output = output.zip(&self.output);
        let output = output.filter_map(|(stream, pipe)| Some((stream, pipe.as_ref()?.as_fd())));
        let copy = |(stream, fd): (KeeperStream, BorrowedFd<'_>)| {
            Ok::<_, io::Error>((stream, fd.try_clone_to_owned()?))
        };
        let memfds = self.job.memfds.get().map(Memfds::all).unwrap_or_default();
        Ok(Streams {
            pipes: stdin
                .into_iter()
                .chain(output)
                .map(copy)
                .collect::<io::Result<_>>()?,
            memfds: memfds.into_iter().map(copy).collect::<io::Result<_>>()?,
            terminal: self
                .terminal
                .as_ref()
                .map_or(Ok(Vec::new()), Terminal::copies)?,
        })
    }

    fn seal(&mut self, cx: &mut Context<'_>) {
        if !self.sealed
            && let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.sealed = true;
            let [stdout, stderr] = &mut self.output;
            match &mut self.terminal {
                // Its pipe is sealed once it is empty.
                Some(terminal) if terminal.is_read() => terminal.seal(),
                _ => stdout.iter_mut().for_each(OutputPipe::seal),
            }
            stderr.iter_mut().for_each(OutputPipe::seal);
        }
    }

    /// The outcome, once the main process is reaped and its output is in the rings.
    fn finish(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(end) = self.end else {
            return false;
        };
        if !matches!(self.phase, Phase::Known) || self.output_waits() || self.spool_waits(&end) {
            return false;
        }
        let started = {
            let state = self.job.state();
            (state.pid != 0).then_some(state.unix_ms)
        };
        let outcome = self.add_trouble(outcome::outcome(&end, started, self.note));
        if self.detached.is_some() {
            return self.seal_spool(cx, outcome);
        }
        self.over(outcome);
        true
    }

    pub(super) fn refuse(&mut self, code: &str, message: &str) {
        self.over(Outcome::failed(Happened::Refused, code, message));
    }

    /// The outcome is known: it is recorded and told.
    pub(super) fn over(&mut self, outcome: Outcome) {
        self.phase = Phase::Over;
        self.stdin = None;
        let recorder = &self.worker.shared.recorder;
        let mut state = self.job.state();
        let written = state.over(self.job.id, outcome, recorder);
        // Of what never ran the keeper knows nothing either.
        self.written = (state.pid != 0).then_some(written);
    }

    fn poll_written(&mut self, cx: &mut Context<'_>) -> bool {
        let written = self.written.as_mut();
        let done = written.is_some_and(|written| Pin::new(written).poll(cx).is_ready());
        if done {
            self.written = None;
        }
        done
    }

    /// Whether nothing needs to be kept for anybody.
    fn is_released(&self) -> bool {
        if !matches!(self.phase, Phase::Over) {
            return false;
        }
        let state = self.job.state();
        let ran = state.pid != 0;
        let wanted = match &self.detached {
            // Once its outcome is on the disk, nothing else is needed.
            Some(detached) => !detached.is_sealed(),
            None => self.job.terms.keep,
        };
        let wanted = wanted && ran && !state.forgotten;
        self.draining || (self.written.is_none() && (!wanted || self.abandoned))
    }

    fn release(&self) {
        self.worker.shared.leave(&self.job);
        let released = ToKeeper::Released { job: self.job.id };
        self.worker.link.send(&released);
        // Behind that: who is told of it again would write its output again.
        self.leave_files();
    }
}
