//! The beginning of a job, as its owner sees it: the record is written, the keeper is
//! asked, the descriptors come. A job of an earlier gate begins with its descriptors.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use bowline_proto::outcome::{Happened, Outcome};

use super::outcome::Note;
use super::owner::{Owner, Phase};
use super::pipes::{InputPipe, OutputPipe};
use super::ring::Ring;
use super::terminal::{self, Terminal};
use super::{Job, Memfds, Stage, input};
use crate::gate::connection::{order, refusal};
use crate::gate::spec;
use crate::ipc::{Cause, RefuseCode, Stream, ToKeeper};

/// The server has lost what a job needs to go on.
const LOST_STREAMS: Note = (
    "out_of_resources",
    "the server has no descriptors or memory left for the job's streams, and ended it",
);

impl Job {
    /// Takes the memfds, and reads from them how far the streams are: before anybody attaches.
    ///
    /// # Errors
    /// As fstat(2), lseek(2) and pwrite(2), and where one is not what it should be.
    pub(super) fn know(&self, memfds: Memfds) -> io::Result<()> {
        let mut state = self.state();
        if self.memfds.set(memfds).is_err() {
            return Ok(());
        }
        let Some(memfds) = self.memfds.get() else {
            return Ok(());
        };
        if let Some(memfd) = &memfds.stdin {
            let memfd = memfd.as_fd();
            let end = input::end(memfd)?;
            let early = std::mem::take(&mut state.stdin.early);
            input::take(memfd, end, &early)?;
            state.stdin.end = end.saturating_add(u64::try_from(early.len()).unwrap_or(u64::MAX));
            state.stdin.taken = input::Input::open(memfd)?.position();
        }
        for (memfd, output) in memfds.output.iter().zip(&mut state.output) {
            let ring = Ring::open(memfd.as_fd())?;
            output.layout = ring.layout();
            (output.end, output.reserved) = (ring.end(), ring.end());
            // Whoever comes back says what it has; until then all of the ring is kept.
            output.floor = output.oldest();
        }
        Ok(())
    }
}

/// Which pipes and memfds come beside a message.
pub(super) struct Given {
    pub(super) open: Vec<Stream>,
    pub(super) spools: Vec<Stream>,
}

impl Owner {
    /// Asks the keeper for a job whose record is written.
    pub(super) fn recorded(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Recording(recording, _) = &mut self.phase else {
            return false;
        };
        let Poll::Ready(written) = Pin::new(recording).poll(cx) else {
            return false;
        };
        let Phase::Recording(_, mut spec) = std::mem::replace(&mut self.phase, Phase::Known) else {
            return false;
        };
        if written != Ok(true) {
            self.refuse(
                "record_failed",
                "the server cannot write its record, and starts nothing without it",
            );
            return true;
        }
        let mut state = self.job.state();
        let grant = state.grant.filter(|_| !state.attachments.is_empty());
        let Some((connection, grant)) = grant else {
            // Within one hold of the lock: whoever comes now starts it anew.
            let outcome = Outcome::failed(Happened::Cancelled, "disconnected", "never started");
            drop(state.over(self.job.id, outcome, &self.worker.shared.recorder));
            self.phase = Phase::Over;
            return true;
        };
        drop(state);
        spec.connection = connection;
        match spec::place(*spec) {
            Ok((place, memfd)) => {
                let link = &self.worker.link;
                link.follow(self.job.id, &self.mail);
                let start = ToKeeper::Start {
                    request: link.request(&self.mail),
                    grant,
                    job: self.job.id,
                    spec: place,
                };
                link.send_with(&start, memfd.as_ref().map(AsFd::as_fd));
                let mut state = self.job.state();
                state.known = true;
                for signal in std::mem::take(&mut state.early) {
                    link.send(&order(self.job.id, &signal));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a spec cannot be passed on");
                let (code, message) = refusal(RefuseCode::OutOfResources);
                self.refuse(code, message);
            }
        }
        true
    }

    pub(super) fn started(&mut self, pid: i32, unix_ms: u64, given: &Given, fds: Vec<OwnedFd>) {
        let adopted = self.job.memfds.get().is_some();
        if !adopted && let Err(error) = self.take(given, fds) {
            self.lose_streams(&error);
        }
        if self.abandoned {
            // Its end was asked for before it began.
            self.close_pipes();
        }
        let mut state = self.job.state();
        (state.pid, state.unix_ms) = (pid, unix_ms);
        state.stage = Stage::Running;
        state.wake_readers();
    }

    /// Takes a job's descriptors: pipes, then memfds, then what belongs to its terminal.
    pub(super) fn take(&mut self, given: &Given, mut fds: Vec<OwnedFd>) -> io::Result<()> {
        let Given { open, spools } = given;
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        if fds.len() < open.len() + spools.len() {
            return Err(missing());
        }
        self.terminal = Terminal::open(fds.split_off(open.len() + spools.len()))?;
        let memfds = Memfds::from(spools, fds.split_off(open.len())).ok_or_else(missing)?;
        self.job.know(memfds)?;
        let memfds = self.job.memfds.get().ok_or_else(missing)?;
        let mut pipes: Vec<_> = open.iter().copied().zip(fds).collect();
        let mut pipe = |stream| {
            let at = pipes.iter().position(|(of, _)| *of == stream);
            at.map(|at| pipes.swap_remove(at).1)
        };
        let master = self.terminal.as_ref().map(Terminal::master);
        let master = master
            .map(|master| master.try_clone_to_owned())
            .transpose()?;
        let mut state = self.job.state();
        if let Some(master) = master {
            let master = self.job.master.get_or_init(|| master);
            // It may have changed while the program was being started.
            if let Some(size) = state.size {
                terminal::resize(master.as_fd(), size);
            }
        }
        if let (Some(memfd), Some(pipe)) = (&memfds.stdin, pipe(Stream::Stdin)) {
            self.stdin = Some(InputPipe::open(pipe, memfd.as_fd())?);
        }
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            match pipe(stream) {
                Some(pipe) => {
                    let memfd = memfds.output[index].as_fd();
                    self.output[index] = Some(OutputPipe::open(pipe, memfd)?);
                }
                None => state.output[index].closed = true,
            }
        }
        Ok(())
    }

    /// The streams cannot be moved: the job cannot go on in truth.
    pub(super) fn lose_streams(&mut self, error: &io::Error) {
        tracing::error!(%error, job = %self.job.id, "the job's descriptors cannot be used");
        self.note = Some(LOST_STREAMS);
        self.close_pipes();
        let signal = libc::SIGKILL;
        self.end(Cause::Cancelled(signal), signal);
    }
}
