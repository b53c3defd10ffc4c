//! A job, as a gate sees it, and the attachments to it; what is not here is the keeper's.

use std::collections::BTreeMap;

use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::message::{Exit, Started};
use bowline_proto::session::{RecvFlow, SendFlow, Session};

use super::{OUTPUT, refused};
use crate::keeper::{self, RING_BYTES, byte_at};
use crate::world::{Defect, Violation, ensure};

/// An attachment: a channel of a connection.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) job: JobId,
    pub(super) id: u64,
    pub(super) from: [Option<u64>; 2],
    pub(super) holder: bool,
    pub(super) by_start: bool,
    pub(super) told: bool,
}

/// A job.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) floor: [u64; 2],
    pub(super) readers: BTreeMap<u64, [Option<u64>; 2]>,
    pub(super) next_reader: u64,
    pub(super) holder: Option<u64>,
    pub(super) pinned: bool,
    pub(super) stdin_ended: bool,
    /// Of a defect: input that is nowhere else, and where it belongs.
    pub(super) held: (u64, Vec<u8>),
    pub(super) grace_until: Option<u64>,
    pub(super) over: Option<Exit>,
    pub(super) forgotten: bool,
}

pub(super) fn oldest(taken: u64) -> u64 {
    taken.saturating_sub(RING_BYTES)
}

impl Job {
    pub(super) fn new() -> Self {
        Self {
            floor: [0; 2],
            readers: BTreeMap::new(),
            next_reader: 0,
            holder: None,
            pinned: false,
            stdin_ended: false,
            held: (0, Vec::new()),
            grace_until: None,
            over: None,
            forgotten: false,
        }
    }

    pub(super) fn enter(
        &mut self,
        id: JobId,
        from: [Option<u64>; 2],
        holder: bool,
        by_start: bool,
    ) -> Attached {
        let reader = self.next_reader;
        self.next_reader += 1;
        if holder {
            if let Some(before) = self.holder.replace(reader) {
                self.readers.remove(&before);
            }
            self.pinned = false;
        }
        self.readers.insert(reader, from);
        for (floor, from) in self.floor.iter_mut().zip(from) {
            *floor = (*floor).min(from.unwrap_or(u64::MAX));
        }
        self.raise_floors();
        Attached {
            job: id,
            id: reader,
            from,
            holder,
            by_start,
            told: false,
        }
    }

    pub(super) fn leave(&mut self, attached: &Attached) {
        if self.readers.remove(&attached.id).is_some() {
            if self.holder == Some(attached.id) {
                self.holder = None;
                self.pinned = true;
            }
            self.raise_floors();
        }
    }

    pub(super) fn raise_floors(&mut self) {
        for (at, floor) in self.floor.iter_mut().enumerate().filter(|_| !self.pinned) {
            let lowest = self.readers.values().filter_map(|acked| acked[at]).min();
            *floor = (*floor).max(lowest.unwrap_or(0));
        }
    }
}

impl Attached {
    /// Moves what can be moved. Says whether anything was, and whether that was all.
    pub(super) fn pump(
        &mut self,
        session: &mut Session,
        channel: Channel,
        job: &mut Job,
        kept: &keeper::Job,
        defect: Defect,
        room: bool,
    ) -> Result<(bool, bool), Violation> {
        if !job.readers.contains_key(&self.id) {
            session.refuse(channel, &refused("attached_elsewhere"));
            return Ok((true, true));
        }
        if kept.starts == 0 {
            let over = job.over.clone();
            over.iter().for_each(|exit| session.exit(channel, exit));
            return Ok((over.is_some(), over.is_some()));
        }
        let mut moved = !self.told;
        if !std::mem::replace(&mut self.told, true) {
            session.started(channel, &self.started(kept));
        }
        self.acknowledged(session, channel, job, defect);
        let consumed = session
            .receiving(channel, Stream::Stdin)
            .map_or(u64::MAX, RecvFlow::consumed);
        let arrived = match defect {
            Defect::AcknowledgesEarly => u64::MAX,
            _ => kept.stdin_taken,
        };
        if self.holder && arrived > consumed {
            session.consumed(channel, Stream::Stdin, arrived - consumed);
        }
        let mut all = true;
        for (at, stream) in OUTPUT
            .into_iter()
            .enumerate()
            .filter(|&(at, _)| self.from[at].is_some())
        {
            let closed = job.over.is_some();
            let (progress, ended) = match room {
                true => send(session, channel, stream, kept, at, closed)?,
                false => (false, false),
            };
            moved |= progress;
            all &= ended;
        }
        if let (true, Some(exit)) = (all, &job.over) {
            session.exit(channel, exit);
            return Ok((true, true));
        }
        Ok((moved, false))
    }

    fn started(&self, kept: &keeper::Job) -> Started {
        let [stdout, stderr] = self.from;
        let told = |from: Option<u64>| from.filter(|&from| !self.by_start || from > 0);
        Started {
            pid: 1,
            unix_ms: 1,
            stdin: if self.by_start {
                0
            } else {
                kept.stdin.len() as u64
            },
            stdin_closed: !self.by_start && (!self.holder || kept.stdin_closed),
            stdout: told(stdout),
            stderr: told(stderr),
            pty: false,
        }
    }

    fn acknowledged(&self, session: &Session, channel: Channel, job: &mut Job, defect: Defect) {
        let Some(acked) = job.readers.get_mut(&self.id) else {
            return;
        };
        for (acked, stream) in acked.iter_mut().zip(OUTPUT) {
            let flow = session.sending(channel, stream);
            let now = match defect {
                Defect::SentIsArrived => flow.map(SendFlow::sent),
                _ => flow.map(SendFlow::acked),
            };
            if acked.is_some() && now > *acked {
                *acked = now;
            }
        }
        job.raise_floors();
    }
}

/// One frame of a stream. Says whether anything moved, and whether its end was sent.
fn send(
    session: &mut Session,
    channel: Channel,
    stream: Stream,
    kept: &keeper::Job,
    at: usize,
    closed: bool,
) -> Result<(bool, bool), Violation> {
    let flow = session.sending(channel, stream);
    let (sent, ended) = flow.map_or((0, true), |flow| (flow.sent(), flow.ended()));
    let there = kept.taken[at].saturating_sub(sent);
    if ended || (there == 0 && !closed) {
        return Ok((false, ended));
    }
    if there == 0 {
        let _ = session.put_end(channel, stream);
        return Ok((true, true));
    }
    ensure!(
        sent >= oldest(kept.taken[at]),
        "byte {sent} of {stream:?} is read from the ring after it was written over"
    );
    let put = session.put_with(channel, stream, |space| {
        let len = space.len().min(usize::try_from(there).unwrap());
        for (place, offset) in space[..len].iter_mut().zip(sent..) {
            *place = byte_at(kept.plan.number, stream, offset);
        }
        Ok::<_, std::convert::Infallible>((len, closed && len as u64 == there))
    });
    let (len, end) = put.map_err(|error| Violation(format!("{error:?}")))?;
    Ok((len > 0, end))
}
