//! What the owner of a detached job does beside what every owner does: it has the output
//! moved from the rings to the disk, and the outcome written down behind it.
//!
//! The disk may be slow, or full. So nothing is written on the worker's own thread: one stream has one
//! [`spill`] at a time under way on a thread for such things, of [`SPILL_BYTES_MAX`] at most, while the
//! ring takes what comes. A file's length says how much of the stream is safe, and only that may be
//! written over in the ring: a gate that is killed has lost nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bowline_proto::outcome::Outcome;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::outcome::Note;
use super::owner::{Owner, Phase};
use super::pipes::Pumped;
use super::spooled::{Spilled, spill};
use super::{OUTPUT, Stage};
use crate::gate::spool::Ended;
use crate::ipc::{Cause, End, SpoolPolicy};

/// What is moved to the disk at once.
const SPILL_BYTES_MAX: u64 = 1024 * 1024;
/// A disk that could not be written to is tried again after this time: nobody says when it can.
const DISK_PAUSE: Duration = Duration::from_secs(1);

const SPOOL_FULL: Note = (
    "spool_full",
    "the output had no room left, and what did not fit is lost",
);
const DISK_FULL: Note = (
    "disk_full",
    "the server's disk was full, and the end of the output is lost",
);
const SPOOL_FAILED: Note = (
    "spool_failed",
    "the server could not write the output to its disk, and the end of it is lost",
);

/// The way from the rings to the disk.
#[derive(Debug, Default)]
pub(super) struct Detached {
    spilling: [Option<JoinHandle<Spilled>>; 2],
    /// The disk cannot be written to: why, and when it is tried again.
    trouble: Option<(Note, Pin<Box<Sleep>>)>,
    /// The outcome that is being written down.
    sealing: Option<JoinHandle<io::Result<()>>>,
    /// It is written down.
    sealed: bool,
}

impl Detached {
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed
    }
}

impl Owner {
    /// A job of an earlier gate may have been over already, and only the keeper not told.
    pub(super) fn ended_before(&mut self) {
        let state = self.job.state();
        let (Stage::Over(exit), Some(detached)) = (&state.stage, &mut self.detached) else {
            return;
        };
        detached.sealed = true;
        let recorder = &self.worker.shared.recorder;
        recorder.ended(self.job.id, state.pid, exit);
        self.phase = Phase::Over;
    }

    /// How many bytes of each stream may be kept.
    pub(super) fn kept_max(&self) -> u64 {
        let max = self.worker.config().spool.stream_bytes_max;
        let asked = self.job.terms.spool.and_then(|spool| spool.bytes);
        asked.map_or(max, |asked| asked.min(max))
    }

    /// Moves on what is in the rings. Says whether anything moved.
    pub(super) fn pump_spool(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(detached) = &mut self.detached else {
            return false;
        };
        let mut progress = false;
        if let Some((_, pause)) = &mut detached.trouble
            && pause.as_mut().poll(cx).is_ready()
        {
            detached.trouble = None;
            progress = true;
        }
        for index in 0..OUTPUT.len() {
            progress |= self.pump_stream(cx, index);
        }
        progress | self.seal_again(cx)
    }

    fn pump_stream(&mut self, cx: &mut Context<'_>, index: usize) -> bool {
        let Some(detached) = &mut self.detached else {
            return false;
        };
        if let Some(task) = &mut detached.spilling[index] {
            let Poll::Ready(done) = Pin::new(task).poll(cx) else {
                return false;
            };
            detached.spilling[index] = None;
            match done {
                Ok(spilled) => self.spilled(index, spilled),
                Err(error) => tracing::error!(%error, "output is not moved to the disk"),
            }
            return true;
        }
        let unspooled = self.job.state().output[index].unspooled();
        let (Some((at, end)), None) = (unspooled, &detached.trouble) else {
            return false;
        };
        let end = end.min(at.saturating_add(SPILL_BYTES_MAX));
        let (job, shared) = (self.job.clone(), self.worker.shared.clone());
        let stream = OUTPUT[index];
        let copy = move || spill(&job, &shared.spools, stream, at, end);
        detached.spilling[index] = Some(tokio::task::spawn_blocking(copy));
        true
    }

    fn spilled(&mut self, index: usize, spilled: Spilled) {
        let mut state = self.job.state();
        state.output[index].spooled(spilled.end);
        state.wake_readers();
        drop(state);
        if let Some(error) = spilled.error {
            self.disk_fails(&error);
        }
    }

    fn disk_fails(&mut self, error: &io::Error) {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        let note = match full.contains(&error.kind()) {
            true => DISK_FULL,
            false => SPOOL_FAILED,
        };
        tracing::error!(job = %self.job.id, %error, "output cannot be written to the disk");
        if self.policy() == SpoolPolicy::Kill {
            self.kill(note);
        }
        if let Some(detached) = &mut self.detached {
            detached.trouble = Some((note, Box::pin(tokio::time::sleep(DISK_PAUSE))));
        }
    }

    fn policy(&self) -> SpoolPolicy {
        let spool = self.job.terms.spool;
        spool.map_or(SpoolPolicy::Block, |spool| spool.policy)
    }

    fn kill(&mut self, note: Note) {
        if self.note.is_none() {
            self.note = Some(note);
            let signal = libc::SIGTERM;
            self.end(Cause::Cancelled(signal), signal);
        }
    }

    /// Whether what finds no room now never will.
    fn is_hopeless(&self, end: Option<&End>) -> bool {
        let made_to = end.is_some_and(|end| end.cause.is_some());
        made_to || (end.is_some() && (self.note.is_some() || self.draining))
    }

    /// A pipe holds something, and no more may be kept.
    pub(super) fn overflow(&mut self) -> Pumped {
        if self.policy() == SpoolPolicy::Kill {
            self.kill(SPOOL_FULL);
        }
        if !self.is_hopeless(self.end.as_ref()) || !self.sealed {
            return Pumped::Nothing;
        }
        self.note = self.note.or(Some(SPOOL_FULL));
        Pumped::End
    }

    /// Whether output is on its way to the disk that can still arrive there.
    pub(super) fn spool_waits(&mut self, end: &End) -> bool {
        let hopeless = self.is_hopeless(Some(end));
        let Some(detached) = &self.detached else {
            return false;
        };
        if detached.spilling.iter().any(Option::is_some) {
            return true;
        }
        let mut state = self.job.state();
        if state.output.iter().all(|it| it.unspooled().is_none()) {
            return false;
        }
        match &detached.trouble {
            Some((note, _)) if hopeless => {
                self.note = self.note.or(Some(*note));
                for output in &mut state.output {
                    output.give_up();
                }
                false
            }
            _ => true,
        }
    }

    /// Writes the outcome down behind the output, and then tells it.
    pub(super) fn seal_spool(&mut self, cx: &mut Context<'_>, outcome: Outcome) -> bool {
        let exit = self.job.state().exit(outcome);
        let Some(written) = self.poll_seal(cx, exit.clone()) else {
            return false;
        };
        // Where it cannot be written the keeper still knows it, and it is tried again.
        self.sealed_or_not(written);
        self.over(exit.outcome);
        true
    }

    /// Tries again to write down an outcome that is told already.
    fn seal_again(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(detached) = &self.detached else {
            return false;
        };
        if detached.sealed || detached.trouble.is_some() {
            return false;
        }
        let state = self.job.state();
        let exit = match &state.stage {
            Stage::Over(exit) if state.pid != 0 => exit.as_ref().clone(),
            _ => return false,
        };
        drop(state);
        let Some(written) = self.poll_seal(cx, exit) else {
            return false;
        };
        self.sealed_or_not(written);
        true
    }

    fn poll_seal(
        &mut self,
        cx: &mut Context<'_>,
        exit: bowline_proto::message::Exit,
    ) -> Option<io::Result<()>> {
        let detached = self.detached.as_mut()?;
        let task = detached.sealing.get_or_insert_with(|| {
            let job = self.job.clone();
            let mut ended = Ended::new(&job.user, job.uid, job.fingerprint);
            ended.pty = job.pty;
            let state = job.state();
            (ended.pid, ended.unix_ms, ended.exit) = (state.pid, state.unix_ms, exit);
            drop(state);
            let shared = self.worker.shared.clone();
            tokio::task::spawn_blocking(move || shared.spools.end(job.id, &ended))
        });
        let Poll::Ready(done) = Pin::new(task).poll(cx) else {
            return None;
        };
        detached.sealing = None;
        Some(done.unwrap_or_else(|error| Err(io::Error::other(error))))
    }

    fn sealed_or_not(&mut self, written: io::Result<()>) {
        let Some(detached) = &mut self.detached else {
            return;
        };
        match written {
            Ok(()) => detached.sealed = true,
            Err(error) => {
                tracing::error!(job = %self.job.id, %error, "an outcome cannot be written to the disk");
                let pause = Box::pin(tokio::time::sleep(DISK_PAUSE));
                detached.trouble = Some((SPOOL_FAILED, pause));
            }
        }
    }
}
