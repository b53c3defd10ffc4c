//! One job of one connection: its pipes, how far they are, and when it is over.
//!
//! ```text
//! Recording ─► Starting ─► Running ─► (Ended by the keeper) ─► output drained ─► outcome
//!      └─────────────┴──► refused, not started
//! ```
//!
//! Bytes go straight between the pipes and the session's frames. Where a window
//! is used up its pipe is not read, so the program waits.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::limits::PAYLOAD_BYTES_MAX;
use bowline_proto::message::{Exit, Signal};
use bowline_proto::outcome::{Happened, Kill, Outcome};
use bowline_proto::session::{PutError, Session};
use bytes::{Buf, Bytes};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::ipc::{Cause, Exited, JobSpec, NotStarted, Tree};

/// Full frames of output in a row after which a pipe is made larger.
const FULL_READS_TO_GROW: u32 = 4;
/// What a pipe is grown to, in bytes; Linux's default limit for users (pipe(7)).
const PIPE_BYTES: usize = 1024 * 1024;

/// How far a job has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// The record is being written; the spec waits.
    Recording(oneshot::Receiver<bool>, Box<JobSpec>),
    /// The keeper was asked.
    Starting,
    /// The program runs, or its output is still being read.
    Running,
}

/// What the keeper said when the main process was reaped.
#[derive(Debug)]
pub(super) struct Reaped {
    exited: Exited,
    cause: Option<Cause>,
    tree: Tree,
    unix_ms: u64,
}

impl Reaped {
    pub(super) fn new(exited: Exited, cause: Option<Cause>, tree: Tree, unix_ms: u64) -> Self {
        Self {
            exited,
            cause,
            tree,
            unix_ms,
        }
    }

    /// What became of the job, by what the keeper saw.
    pub(super) fn outcome(&self, started_ms: Option<u64>) -> Outcome {
        let (happened, code, signal, core_dumped) = match self.exited {
            Exited::Lost => (Happened::Lost, None, None, false),
            Exited::Code(code) => (made(self.cause, Happened::Exited), Some(code), None, false),
            Exited::Signal {
                signal,
                core_dumped,
            } => (
                made(self.cause, Happened::Signaled),
                None,
                Some(signal),
                core_dumped,
            ),
        };
        let signal = match self.cause {
            // What was asked for says more than the SIGKILL that may have come of it.
            Some(Cause::Cancelled(asked)) => Some(asked),
            _ => signal,
        };
        Outcome {
            outcome: happened,
            code,
            signal,
            core_dumped,
            kill: match self.tree {
                Tree::LeftAlone => None,
                Tree::Exact => Some(Kill::Exact),
                Tree::BestEffort => Some(Kill::BestEffort),
            },
            started_ms,
            ended_ms: Some(self.unix_ms),
            error: self.cause.and_then(error_of).map(str::to_owned),
            message: None,
        }
    }
}

/// The end of a pipe that a program writes to.
#[derive(Debug)]
struct Output {
    pipe: Option<pipe::Receiver>,
    full_reads: u32,
    /// Once the time for the pipe's end has passed: what was in it then.
    left: Option<u64>,
}

impl Output {
    fn closed() -> Self {
        Self {
            pipe: None,
            full_reads: 0,
            left: None,
        }
    }

    fn open(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.pipe = Some(pipe::Receiver::from_owned_fd(fd)?);
        Ok(())
    }

    /// Nothing is read beyond what the pipe holds now.
    fn seal(&mut self) {
        if let Some(pipe) = &self.pipe
            && self.left.is_none()
        {
            let held = rustix::io::ioctl_fionread(pipe.as_fd()).unwrap_or(0);
            self.left = Some(held);
        }
    }

    /// One read from the pipe into a frame. Says whether anything moved.
    fn pump(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        channel: Channel,
        stream: Stream,
    ) -> bool {
        let Some(pipe) = &self.pipe else {
            return false;
        };
        let room = session.room(channel, stream);
        if room == 0 {
            return false;
        }
        let mut left = self.left;
        if left.is_none() && pipe.poll_read_ready(cx).is_pending() {
            return false;
        }
        let put = session.put_with(channel, stream, |space| {
            let limit = left.map_or(space.len(), |left| {
                usize::try_from(left).unwrap_or(usize::MAX).min(space.len())
            });
            let space = space.get_mut(..limit).unwrap_or_default();
            if space.is_empty() {
                return Ok((0, true));
            }
            let len = match left {
                None => pipe.try_read(space)?,
                // Readiness may not have been told yet for what FIONREAD counted.
                Some(_) => rustix::io::read(pipe.as_fd(), &mut *space)?,
            };
            if let Some(left) = &mut left {
                *left = left.saturating_sub(u64::try_from(len).unwrap_or(u64::MAX));
            }
            Ok((len, len == 0 || left == Some(0)))
        });
        self.left = left;
        match put {
            Ok((len, end)) => {
                if end {
                    self.pipe = None;
                } else {
                    self.grow(len);
                }
                true
            }
            Err(PutError::Source(error)) => {
                let again: &io::Error = &error;
                if again.kind() != io::ErrorKind::WouldBlock {
                    // A pipe that fails to be read is at its end (EIO and its kind).
                    self.pipe = None;
                    let _ = session.put_end(channel, stream);
                    return true;
                }
                if self.left.is_some() {
                    self.left = Some(0);
                }
                // Readiness was out of date: the next turn asks for it again, and is woken by it.
                true
            }
            Err(PutError::Closed) => {
                self.pipe = None;
                true
            }
        }
    }

    /// A pipe that is full whenever it is read gets more space: fewer wake-ups.
    fn grow(&mut self, len: usize) {
        if len < PAYLOAD_BYTES_MAX {
            return;
        }
        self.full_reads = self.full_reads.saturating_add(1);
        if self.full_reads == FULL_READS_TO_GROW
            && let Some(pipe) = &self.pipe
        {
            // Over the user's limit it stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(pipe.as_fd(), PIPE_BYTES);
        }
    }
}

/// The end of a pipe that a program reads from.
#[derive(Debug)]
struct Input {
    pipe: Option<pipe::Sender>,
    /// Data that the pipe did not take yet; bounded by the stream's window.
    queue: VecDeque<Bytes>,
    /// Nothing more comes from the client.
    ended: bool,
    /// The pipe has yet to come from the keeper.
    awaited: bool,
    /// What reached the pipe.
    written: u64,
    large: bool,
}

impl Input {
    /// Takes data from the client. Gives how much of it is dealt with.
    fn take(&mut self, mut bytes: &[u8], end: bool) -> u64 {
        self.ended |= end;
        let mut written = 0;
        if self.queue.is_empty() {
            written = self.write(bytes);
            bytes = bytes
                .get(usize::try_from(written).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
        }
        if !bytes.is_empty() && (self.pipe.is_some() || self.awaited) {
            self.queue.push_back(Bytes::copy_from_slice(bytes));
        }
        written
    }

    /// One write; what the pipe takes is counted.
    fn write(&mut self, bytes: &[u8]) -> u64 {
        let Some(pipe) = &self.pipe else {
            return 0;
        };
        if bytes.is_empty() {
            return 0;
        }
        if bytes.len() == PAYLOAD_BYTES_MAX && !self.large {
            self.large = true;
            let _ = rustix::pipe::fcntl_setpipe_size(pipe.as_fd(), PIPE_BYTES);
        }
        match pipe.try_write(bytes) {
            Ok(len) => {
                let len = u64::try_from(len).unwrap_or(0);
                self.written = self.written.saturating_add(len);
                len
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                // The program has closed its stdin. The window stays as it is, so the client stops.
                self.pipe = None;
                self.queue.clear();
                0
            }
        }
    }

    /// Writes what waits. Gives how much of it the pipe took.
    fn pump(&mut self, cx: &mut Context<'_>) -> u64 {
        let mut written: u64 = 0;
        while let Some(bytes) = self.queue.front().cloned() {
            let Some(pipe) = &self.pipe else {
                break;
            };
            if pipe.poll_write_ready(cx).is_pending() {
                break;
            }
            let len = self.write(&bytes);
            written = written.saturating_add(len);
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len >= bytes.len() {
                self.queue.pop_front();
            } else if let Some(front) = self.queue.front_mut() {
                front.advance(len);
            }
        }
        written
    }

    /// Whether the pipe is to be closed now: all is written and nothing comes.
    fn close_if_done(&mut self) -> bool {
        let done = self.ended && self.queue.is_empty() && self.pipe.is_some();
        if done {
            self.pipe = None;
        }
        done
    }
}

/// A job.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) stage: Stage,
    pub(super) pid: i32,
    started_ms: Option<u64>,
    stdin: Input,
    stdout: Output,
    stderr: Output,
    reaped: Option<Reaped>,
    wait_output: bool,
    /// When the pipes are closed although somebody holds them still.
    deadline: Option<Pin<Box<Sleep>>>,
    sealed: bool,
    /// Signals that came before the keeper could be asked for anything.
    pub(super) early: Vec<Signal>,
    /// Why the server itself ended it, where it did: a code and a sentence.
    pub(super) note: Option<(&'static str, &'static str)>,
}

/// What a turn of a job's pipes came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// Something moved.
    pub(super) progress: bool,
    /// The keeper is to close its end of stdin.
    pub(super) close_stdin: bool,
}

impl Job {
    pub(super) fn new(
        id: JobId,
        recording: oneshot::Receiver<bool>,
        spec: JobSpec,
        wait_output: bool,
    ) -> Self {
        Self {
            id,
            stdin: Input {
                pipe: None,
                queue: VecDeque::new(),
                ended: false,
                awaited: spec.stdin == crate::ipc::Stdin::Pipe,
                written: 0,
                large: false,
            },
            stage: Stage::Recording(recording, Box::new(spec)),
            pid: 0,
            started_ms: None,
            stdout: Output::closed(),
            stderr: Output::closed(),
            reaped: None,
            wait_output,
            deadline: None,
            sealed: false,
            early: Vec::new(),
            note: None,
        }
    }

    /// Whether the keeper was asked to start it, so that it may run.
    pub(super) fn is_known_to_keeper(&self) -> bool {
        !matches!(self.stage, Stage::Recording(..))
    }

    /// The program runs, and nobody wants its pipes.
    pub(super) fn runs(&mut self, pid: i32, unix_ms: u64) {
        self.pid = pid;
        self.started_ms = Some(unix_ms);
        self.stage = Stage::Running;
    }

    /// The program runs; takes its pipes.
    ///
    /// # Errors
    /// Where a descriptor is missing or is no pipe: the keeper broke the protocol.
    pub(super) fn started(&mut self, pid: i32, unix_ms: u64, fds: Vec<OwnedFd>) -> io::Result<()> {
        let mut fds = fds.into_iter();
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        self.runs(pid, unix_ms);
        if self.stdin.awaited {
            self.stdin.awaited = false;
            let fd = fds.next().ok_or_else(missing)?;
            self.stdin.pipe = Some(pipe::Sender::from_owned_fd(fd)?);
        }
        self.stdout.open(fds.next().ok_or_else(missing)?)?;
        self.stderr.open(fds.next().ok_or_else(missing)?)
    }

    /// The main process was reaped. `wait` is how long the pipes may stay open.
    pub(super) fn reaped(&mut self, reaped: Reaped, wait: Duration) {
        // A job that was made to end has its whole tree ended too.
        if !self.wait_output || reaped.cause.is_some() {
            self.deadline = Some(Box::pin(tokio::time::sleep(wait)));
        }
        self.reaped = Some(reaped);
    }

    /// Takes stdin data. Gives how much of it is dealt with.
    pub(super) fn stdin(&mut self, bytes: &[u8], end: bool) -> u64 {
        self.stdin.take(bytes, end)
    }

    /// Moves what can be moved between the pipes and the session.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        channel: Channel,
    ) -> Turn {
        let mut turn = Turn::default();
        let written = self.stdin.pump(cx);
        if written > 0 {
            session.consumed(channel, Stream::Stdin, written);
            turn.progress = true;
        }
        turn.close_stdin = self.stdin.close_if_done();
        if !self.sealed
            && let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.sealed = true;
            self.stdout.seal();
            self.stderr.seal();
        }
        turn.progress |= self.stdout.pump(cx, session, channel, Stream::Stdout);
        turn.progress |= self.stderr.pump(cx, session, channel, Stream::Stderr);
        turn
    }

    /// The connection is gone: nothing is to be moved any more.
    pub(super) fn abandon(&mut self) {
        self.stdin.pipe = None;
        self.stdin.queue.clear();
        self.stdin.awaited = false;
        self.stdout.pipe = None;
        self.stderr.pipe = None;
    }

    /// The keeper is gone: the status can never be known. What the program still
    /// writes within `wait` is delivered; whether it goes on, nobody here can tell.
    pub(super) fn orphan(&mut self, unix_ms: u64, wait: Duration) {
        if self.reaped.is_none() {
            self.wait_output = false;
            let lost = Reaped::new(Exited::Lost, None, Tree::LeftAlone, unix_ms);
            self.reaped(lost, wait);
        }
    }

    /// The outcome, once the main process is reaped and its output is read.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        let reaped = self.reaped.as_ref()?;
        if self.stdout.pipe.is_some() || self.stderr.pipe.is_some() {
            return None;
        }
        let mut outcome = reaped.outcome(self.started_ms);
        if let Some((code, message)) = self.note {
            // Streams that the server lost make a job one that it ended, however fast the program was.
            if reaped.cause.is_none() && outcome.outcome != Happened::Lost {
                outcome.outcome = Happened::Cancelled;
            }
            outcome.error = Some(code.to_owned());
            outcome.message = Some(message.to_owned());
        }
        Some(outcome)
    }

    /// The outcome with the offsets of the streams.
    pub(super) fn exit(&self, outcome: Outcome, session: Option<&Session>, at: Channel) -> Exit {
        let sent = |stream| {
            session
                .and_then(|session| session.sending(at, stream))
                .map_or(0, bowline_proto::session::SendFlow::sent)
        };
        Exit {
            outcome,
            stdin: self.stdin.written,
            stdout: sent(Stream::Stdout),
            stderr: sent(Stream::Stderr),
        }
    }
}

/// What a job that was made to end has come to.
fn made(cause: Option<Cause>, otherwise: Happened) -> Happened {
    match cause {
        None => otherwise,
        Some(Cause::TimedOut) => Happened::TimedOut,
        Some(Cause::Cancelled(_) | Cause::Disconnected | Cause::Draining) => Happened::Cancelled,
    }
}

fn error_of(cause: Cause) -> Option<&'static str> {
    match cause {
        Cause::TimedOut | Cause::Cancelled(_) => None,
        Cause::Disconnected => Some("disconnected"),
        Cause::Draining => Some("draining"),
    }
}

/// The outcome of a job that could not be started.
pub(super) fn not_started(why: &NotStarted) -> Outcome {
    let (status, code, message) = match why {
        NotStarted::NotFound => (127, "not_found", "the program was not found".to_owned()),
        NotStarted::NotExecutable { errno } => (
            126,
            "not_executable",
            format!("the program cannot be executed: {}", said(*errno)),
        ),
        NotStarted::Directory { errno } => (
            125,
            "bad_directory",
            format!("the working directory cannot be used: {}", said(*errno)),
        ),
        NotStarted::User { errno } => (
            125,
            "bad_user",
            format!("the account cannot be used: {}", said(*errno)),
        ),
        NotStarted::Resources { errno } => (
            125,
            "out_of_resources",
            format!("the server cannot start another program: {}", said(*errno)),
        ),
        NotStarted::TooLong => (
            126,
            "too_long",
            "the arguments and the environment are too long together".to_owned(),
        ),
    };
    Outcome {
        code: Some(status),
        ..Outcome::failed(Happened::NotStarted, code, message)
    }
}

/// strerror(3), without the number that the standard library adds.
fn said(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_keeper_saw_is_the_outcome() {
        let of = |exited, cause| Reaped::new(exited, cause, Tree::Exact, 7).outcome(Some(3));
        let killed = Exited::Signal {
            signal: libc::SIGKILL,
            core_dumped: false,
        };
        assert_eq!(of(Exited::Code(4), None).outcome, Happened::Exited);
        assert_eq!(of(killed, None).outcome, Happened::Signaled);
        // Its time was up, whoever was there to see it.
        let timed_out = of(killed, Some(Cause::TimedOut));
        assert_eq!(timed_out.outcome, Happened::TimedOut);
        assert_eq!(timed_out.error, None);
        let dropped = of(killed, Some(Cause::Disconnected));
        assert_eq!(dropped.outcome, Happened::Cancelled);
        assert_eq!(dropped.error.as_deref(), Some("disconnected"));
        let asked = of(killed, Some(Cause::Cancelled(libc::SIGTERM)));
        assert_eq!(asked.signal, Some(libc::SIGTERM));
        // A status that nobody saw is none, whatever was asked for.
        for cause in [None, Some(Cause::TimedOut), Some(Cause::Draining)] {
            let lost = of(Exited::Lost, cause);
            assert_eq!((lost.outcome, lost.code), (Happened::Lost, None));
        }
        assert_eq!(asked.kill, Some(Kill::Exact));
        assert_eq!((asked.started_ms, asked.ended_ms), (Some(3), Some(7)));
    }
}
