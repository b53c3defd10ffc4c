//! What the owner of a detached job does beside what every owner does: it has the output
//! moved from the rings to the disk, and the outcome written down behind it.
//!
//! The disk may be slow, or full. So nothing is written on the worker's own thread: one stream has one
//! [`Spill`] at a time under way on a thread for such things, of [`SPILL_BYTES_MAX`] at most, while the
//! ring takes what comes. A file's length says how much of the stream is safe, and only that may be
//! written over in the ring: a gate that is killed has lost nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bowline_proto::outcome::Outcome;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::outcome::Note;
use super::owner::{Owner, Phase};
use super::pipes::Pumped;
use super::spooled::{Spill, Spilled, is_full};
use super::{Job, OUTPUT, Output, Stage};
use crate::gate::spool::{Account, Ended};
use crate::ipc::{Cause, End, SpoolPolicy};

/// What is moved to the disk at once.
const SPILL_BYTES_MAX: u64 = 1024 * 1024;
/// How much of the disk a stream is given at once.
const SHARE_BYTES: u64 = 256 * 1024;
/// What somebody has read goes in parts of the room, so many of them.
const READ_PARTS: u64 = 8;
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

const CROWDED: Note = (
    "disk_full",
    "the server's disk was full, and older output was dropped earlier than it had to be",
);

/// The way from the rings to the disk.
#[derive(Debug)]
pub(super) struct Detached {
    spilling: [Option<JoinHandle<Spilled>>; 2],
    /// What each stream may have of all that detached jobs may.
    share: Share,
    /// A pipe holds something, and no more may be kept.
    full: [bool; 2],
    /// The disk was full, and older output was dropped for that.
    crowded: bool,
    /// The disk cannot be written to: why, and when it is tried again.
    trouble: Option<(Note, Pin<Box<Sleep>>)>,
    /// The outcome that is being written down.
    sealing: Option<JoinHandle<io::Result<()>>>,
    /// It is written down.
    sealed: bool,
}

/// Part of an account; given back with this value.
#[derive(Debug)]
struct Share {
    account: Arc<Account>,
    bytes: [u64; 2],
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.give_back(self.bytes.iter().sum());
    }
}

impl Detached {
    /// Begins with what is on the disk already.
    pub(super) fn new(job: &Job, account: &Arc<Account>) -> Self {
        let kept = |output: Output| output.disk.map_or(0, |disk| disk.kept());
        let bytes = job.state().output.map(kept);
        account.note(bytes.iter().sum());
        Self {
            spilling: [None, None],
            share: Share {
                account: account.clone(),
                bytes,
            },
            full: [false; 2],
            crowded: false,
            trouble: None,
            sealing: None,
            sealed: false,
        }
    }

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
        self.written = Some(recorder.ended(self.job.id, state.pid, exit));
        self.phase = Phase::Over;
    }

    /// From here on the files are all that there is of the job.
    pub(super) fn leave_files(&self) {
        let Some(detached) = &self.detached else {
            return;
        };
        let spools = &self.worker.shared.spools;
        match self.job.state().forgotten {
            true => spools.remove(self.job.id),
            false if detached.sealed => spools.leave(self.job.id),
            false => {}
        }
    }

    /// How many bytes of each stream may be kept at most.
    fn stream_bytes_max(&self) -> u64 {
        let max = self.worker.config().spool.stream_bytes_max;
        let asked = self.job.terms.spool.and_then(|spool| spool.bytes);
        asked.map_or(max, |asked| asked.min(max))
    }

    /// How many bytes of a stream may be kept now.
    fn kept_max(&self, index: usize) -> u64 {
        let share = self.detached.as_ref().map_or(0, |it| it.share.bytes[index]);
        share.min(self.stream_bytes_max())
    }

    /// How much of a stream may be kept in ring and file together.
    pub(super) fn taken_max(&self, index: usize) -> u64 {
        match self.policy() {
            // What is too much goes from the other end.
            SpoolPolicy::DropOldest => u64::MAX,
            SpoolPolicy::Block | SpoolPolicy::Kill => self.kept_max(index),
        }
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
        self.tell_what_it_waits_for();
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
                Ok(spilled) => self.spilled(spilled),
                Err(error) => tracing::error!(%error, "output is not moved to the disk"),
            }
            return true;
        }
        if detached.trouble.is_some() {
            return false;
        }
        let Some(spill) = self.next_spill(cx, index) else {
            return false;
        };
        let (job, shared) = (self.job.clone(), self.worker.shared.clone());
        let run = move || spill.run(&job, &shared.spools);
        if let Some(detached) = &mut self.detached {
            detached.spilling[index] = Some(tokio::task::spawn_blocking(run));
        }
        true
    }

    /// What is to be done to a stream's file now.
    fn next_spill(&mut self, cx: &Context<'_>, index: usize) -> Option<Spill> {
        if self.policy() == SpoolPolicy::DropOldest {
            self.ask_for_more(cx, index);
        }
        let max = self.kept_max(index);
        let (output, read) = {
            let state = self.job.state();
            (state.output[index], state.read_by_all(index))
        };
        let disk = output.disk?;
        let wanted = self.detached.as_ref().is_some_and(|it| it.full[index]);
        let mut spill = Spill {
            stream: OUTPUT[index],
            drop_before: disk.from,
            at: disk.end,
            end: output.end.min(disk.end.saturating_add(SPILL_BYTES_MAX)),
            layout: output.layout,
            kept_max: None,
        };
        match self.policy() {
            SpoolPolicy::DropOldest => spill.kept_max = Some(max),
            // Only as much as is needed: whoever comes later finds the rest.
            SpoolPolicy::Block if wanted => {
                let part = (max / READ_PARTS).max(1);
                spill.drop_before = disk.from.saturating_add(part).min(read).max(disk.from);
            }
            SpoolPolicy::Block | SpoolPolicy::Kill => {}
        }
        let anything = spill.at < spill.end || spill.drop_before > disk.from;
        anything.then_some(spill)
    }

    fn spilled(&mut self, spilled: Spilled) {
        if let Some(detached) = &mut self.detached
            && spilled.crowded
        {
            detached.crowded = true;
        }
        if let Some(error) = spilled.error {
            self.disk_fails(&error);
        }
    }

    fn disk_fails(&mut self, error: &io::Error) {
        let note = match is_full(error) {
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

    /// Says to those who list jobs what the output waits for.
    fn tell_what_it_waits_for(&mut self) {
        let Some(detached) = &self.detached else {
            return;
        };
        let full = detached.full.contains(&true);
        let waits = match &detached.trouble {
            Some(((code, _), _)) => Some(*code),
            None => full.then_some(SPOOL_FULL.0),
        };
        self.job.state().waits = waits;
    }

    /// What is told of a job whose output was kept as it wanted it, though not as it could have been.
    pub(super) fn add_trouble(&self, mut outcome: Outcome) -> Outcome {
        let crowded = self.detached.as_ref().is_some_and(|it| it.crowded);
        if crowded && outcome.error.is_none() {
            let (code, message) = CROWDED;
            outcome.error = Some(code.to_owned());
            outcome.message = Some(message.to_owned());
        }
        outcome
    }

    /// Whether a stream's share of the disk is more than before.
    fn ask_for_more(&mut self, cx: &Context<'_>, index: usize) -> bool {
        let max = self.stream_bytes_max();
        let Some(detached) = &mut self.detached else {
            return false;
        };
        let share = &mut detached.share.bytes[index];
        let output = self.job.state().output[index];
        let kept = output.end.saturating_sub(output.oldest());
        if kept < *share || *share >= max {
            return false;
        }
        // Of what is dropped on the way to the disk nobody would know that there was room.
        let want = (kept - *share)
            .saturating_add(SHARE_BYTES)
            .min(max - *share);
        let taken = detached.share.account.take(want, cx.waker());
        *share += taken;
        taken > 0
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
            // To the keeper that is no news, and whoever else holds the pipes has no more to say.
            if self.end.is_some() && self.deadline.is_none() {
                self.wait_a_moment();
            }
        }
    }

    /// Whether what finds no room now never will.
    fn is_hopeless(&self, end: Option<&End>) -> bool {
        let made_to = end.is_some_and(|end| end.cause.is_some());
        made_to || (end.is_some() && (self.note.is_some() || self.draining))
    }

    /// A stream finds room again.
    pub(super) fn fits(&mut self, index: usize) {
        if let Some(detached) = &mut self.detached {
            detached.full[index] = false;
        }
    }

    /// A pipe holds something, and no more may be kept.
    pub(super) fn overflow(&mut self, cx: &Context<'_>, index: usize) -> Pumped {
        if self.ask_for_more(cx, index) {
            return Pumped::Some;
        }
        if self.policy() == SpoolPolicy::Kill {
            self.kill(SPOOL_FULL);
        }
        if !self.is_hopeless(self.end.as_ref()) || !self.sealed {
            if let Some(detached) = &mut self.detached {
                detached.full[index] = true;
            }
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
