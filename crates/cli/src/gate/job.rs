//! One job of one connection: its pipes, how far they are, and when it is over.
//!
//! ```text
//! Recording ─► Starting ─► Running ─► (Ended by the keeper) ─► output drained ─► outcome
//!      └─────────────┴──► refused, not started
//! ```
//!
//! Bytes go straight between the pipes and the session's frames. Where a window
//! is used up its pipe is not read, so the program waits.

mod outcome;

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
use bowline_proto::outcome::{Happened, Outcome};
use bowline_proto::session::{PutError, Session};
use bytes::{Buf, Bytes};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::Sleep;

pub(super) use self::outcome::{Reaped, not_started};
use crate::ipc::{Exited, JobSpec, Pty, Stream as KeeperStream, Tree};

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

    /// A terminal's master; EIO is how it says that nobody has the terminal any more.
    fn open_master(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.pipe = Some(pipe::Receiver::from_owned_fd_unchecked(fd)?);
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
    /// The program has closed its end, and the client is to be told.
    refused: bool,
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
                // The program has closed its stdin, or is gone.
                self.refused = true;
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
    /// It has a terminal: stdin and stdout are its master.
    pty: Option<Pty>,
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
                refused: false,
            },
            pty: spec.pty.clone(),
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
            self.stdin.pipe = Some(match self.pty {
                Some(_) => pipe::Sender::from_owned_fd_unchecked(fd)?,
                None => pipe::Sender::from_owned_fd(fd)?,
            });
        }
        if let Some(pty) = self.pty.clone() {
            self.stdout.open_master(fds.next().ok_or_else(missing)?)?;
            // It may have changed while the program was being started.
            self.resize(pty.cols, pty.rows);
            if !pty.stderr_pipe {
                return Ok(());
            }
        } else {
            self.stdout.open(fds.next().ok_or_else(missing)?)?;
        }
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

    /// The client's terminal has a new size. One that comes before the program
    /// runs is its first.
    pub(super) fn resize(&mut self, cols: u16, rows: u16) {
        let Some(pty) = &mut self.pty else { return };
        (pty.cols, pty.rows) = (cols, rows);
        // No size at all means that the client does not know.
        if let Some(master) = &self.stdout.pipe
            && cols > 0
            && rows > 0
        {
            let size = rustix::termios::Winsize {
                ws_row: rows,
                ws_col: cols,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let _ = rustix::termios::tcsetwinsize(master.as_fd(), size);
        }
    }

    /// Whether what the program writes to stderr goes to its terminal.
    pub(super) fn has_no_stderr(&self) -> bool {
        self.pty.as_ref().is_some_and(|pty| !pty.stderr_pipe)
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
        if std::mem::take(&mut self.stdin.refused) {
            session.close_stdin(channel);
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
    /// writes is delivered, for `wait` or else to its end; whether it goes on,
    /// nobody here can tell.
    pub(super) fn orphan(&mut self, unix_ms: u64, wait: Option<Duration>) {
        if self.reaped.is_none() {
            self.wait_output = wait.is_none();
            let lost = Reaped::new(Exited::Lost, None, Tree::LeftAlone, unix_ms);
            self.reaped(lost, wait.unwrap_or_default());
        }
    }

    /// Copies of the ends of its streams that are open.
    ///
    /// # Errors
    /// As dup(2).
    pub(super) fn streams(&self) -> io::Result<Vec<(KeeperStream, OwnedFd)>> {
        let stdin = self.stdin.pipe.as_ref().map(AsFd::as_fd);
        let all = [
            (KeeperStream::Stdin, stdin),
            (
                KeeperStream::Stdout,
                self.stdout.pipe.as_ref().map(AsFd::as_fd),
            ),
            (
                KeeperStream::Stderr,
                self.stderr.pipe.as_ref().map(AsFd::as_fd),
            ),
        ];
        let open = all.into_iter();
        open.filter_map(|(stream, fd)| Some((stream, fd?)))
            .map(|(stream, fd)| Ok((stream, fd.try_clone_to_owned()?)))
            .collect()
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
