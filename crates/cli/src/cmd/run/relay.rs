//! The loop of `bowline run`: between one job on a connection and the client's
//! own streams and signals.
//!
//! Waiting chooses one thing that happened; a plain function then acts on it.

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bowline::client::{ClientError, Connection, Happening};
use bowline_proto::frame::Stream;
use bowline_proto::id::Channel;
use bowline_proto::message::{Exit, Signal};
use bowline_proto::outcome::{Happened, Outcome};
use bowline_proto::session::PutError;
use bytes::Bytes;

use super::escapes::{Asked, HELP};
use super::json::Encoder;
use super::signals::{self, Signals};
use super::sink::{Sink, Written};
use super::stdin::{READS_MAX, Stdin};
use super::tty::{self, RawMode};

/// How long one who leaves waits for the line to take the last word.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// The client's side of a job, over all attempts to start it.
#[derive(Debug)]
pub(super) struct Relay {
    stdin: Option<Stdin>,
    stdout: Output,
    stderr: Output,
    written: Arc<Written>,
    json: bool,
    started: bool,
    interrupts: u32,
    exit: Option<Exit>,
    /// The job has a terminal.
    pty: bool,
    /// Our own, where stdin is one and the job's keys come from it.
    raw: Option<RawMode>,
}

/// One of the job's output streams.
#[derive(Debug)]
struct Output {
    sink: Sink,
    json: Option<Encoder>,
    received: u64,
    ended: bool,
    closed: bool,
}

/// What there is to act on.
enum Next {
    Server(Result<Happening, ClientError>),
    Signal(i32),
    Stdin,
    Written,
}

impl Relay {
    /// # Errors
    /// As dup(2), for stdin.
    pub(super) fn new(with_stdin: bool, json: bool, pty: bool) -> io::Result<Self> {
        let written = Arc::new(Written::default());
        let stdout = rustix::stdio::stdout();
        let stderr = if json {
            stdout
        } else {
            rustix::stdio::stderr()
        };
        let output = |fd, stream| Output {
            sink: Sink::new(fd, written.clone()),
            json: json.then(|| Encoder::new(stream)),
            received: 0,
            ended: false,
            closed: false,
        };
        Ok(Self {
            stdin: if with_stdin {
                Some(Stdin::open()?)
            } else {
                None
            },
            stdout: output(stdout, Stream::Stdout),
            stderr: output(stderr, Stream::Stderr),
            written,
            json,
            started: false,
            interrupts: 0,
            exit: None,
            pty,
            raw: match pty && with_stdin {
                true => RawMode::new()?,
                false => None,
            },
        })
    }

    /// Whether the server has said that the program runs, so that a start must
    /// not be tried again.
    pub(super) fn started(&self) -> bool {
        self.started
    }

    /// Makes ready for another attempt.
    pub(super) fn rewind(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.rewind();
        }
    }

    /// Stays with the job on `channel` until its outcome is known and its
    /// output is written.
    ///
    /// # Errors
    /// [`ClientError`] where the connection ended before the outcome came.
    pub(super) async fn follow(
        &mut self,
        connection: &mut Connection,
        channel: Channel,
        signals: &mut Signals,
    ) -> Result<Exit, ClientError> {
        loop {
            if let Some(exit) = self.done() {
                return Ok(exit);
            }
            let next = self.next(connection, channel, signals).await;
            if let Some(exit) = self.apply(connection, channel, next)? {
                // Who leaves does not wait for a line that is dead.
                let _ = tokio::time::timeout(LEAVE_TIME, connection.flush()).await;
                return Ok(exit);
            }
        }
    }

    async fn next(
        &mut self,
        connection: &mut Connection,
        channel: Channel,
        signals: &mut Signals,
    ) -> Next {
        let over = self.exit.is_some();
        // What is typed ahead waits in the terminal until it is raw.
        let typed_ahead = self.raw.is_some() && !self.started;
        let stdin = match &self.stdin {
            Some(stdin)
                if !over && !typed_ahead && stdin.is_open() && connection.room(channel) > 0 =>
            {
                Some(stdin)
            }
            _ => None,
        };
        tokio::select! {
            signal = signals.next() => Next::Signal(signal),
            () = self.written.changed() => Next::Written,
            () = self.stdout.sink.writable(), if self.stdout.sink.is_waiting() => Next::Written,
            () = self.stderr.sink.writable(), if self.stderr.sink.is_waiting() => Next::Written,
            happening = connection.next(), if !over => Next::Server(happening),
            () = readable(stdin), if stdin.is_some() => Next::Stdin,
        }
    }

    /// Acts on one thing. Gives an outcome where the client leaves at once.
    fn apply(
        &mut self,
        connection: &mut Connection,
        channel: Channel,
        next: Next,
    ) -> Result<Option<Exit>, ClientError> {
        match next {
            Next::Server(happening) => self.happened(connection, channel, happening?)?,
            Next::Signal(signal) => {
                if let Some(exit) = self.signal(connection, channel, signal) {
                    return Ok(Some(exit));
                }
            }
            Next::Stdin => {
                self.send_stdin(connection, channel);
                if let Some(exit) = self.asked(connection, channel) {
                    return Ok(Some(exit));
                }
            }
            Next::Written => {
                self.stdout.sink.pump();
                self.stderr.sink.pump();
            }
        }
        self.account(connection, channel);
        Ok(None)
    }

    fn happened(
        &mut self,
        connection: &mut Connection,
        channel: Channel,
        happening: Happening,
    ) -> Result<(), ClientError> {
        match happening {
            Happening::Started(at, started) if at == channel => {
                tracing::info!(pid = started.pid, "started");
                self.started = true;
                if let Some(stdin) = &mut self.stdin {
                    stdin.started();
                    if self.raw.is_some() {
                        stdin.watch_for_escapes();
                    }
                }
                if let Some(raw) = &mut self.raw {
                    raw.enter();
                }
                if self.pty {
                    // The window may have changed since the start was asked for.
                    resize(connection, channel);
                }
            }
            Happening::Output {
                channel: at,
                stream,
                bytes,
                end,
            } if at == channel => self.output(stream, bytes, end),
            Happening::Room(at) if at == channel && connection.stdin_is_closed(channel) => {
                self.close_stdin();
            }
            Happening::Exit(at, exit) if at == channel => {
                self.exit = Some(self.checked(exit));
                connection.close(channel);
            }
            Happening::Refused(at, refused) if at == channel => {
                return Err(ClientError::Refused(refused));
            }
            Happening::Bye(bye) => {
                tracing::info!(
                    code = bye.code,
                    message = bye.message,
                    "the server says goodbye"
                );
            }
            _ => {}
        }
        Ok(())
    }

    fn output(&mut self, stream: Stream, bytes: Bytes, end: bool) {
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
            Stream::Stdin => return,
        };
        let counts = bytes.len() as u64;
        output.received = output.received.saturating_add(counts);
        output.ended |= end;
        let text = match &mut output.json {
            None => bytes,
            Some(json) => json.piece(&bytes, end),
        };
        if !text.is_empty() || counts > 0 {
            output.sink.put(text, counts);
        }
    }

    /// An outcome that does not fit the output that came is not believed.
    fn checked(&self, exit: Exit) -> Exit {
        let came = (self.stdout.received, self.stderr.received);
        let has_output = !matches!(
            exit.outcome.outcome,
            Happened::NotStarted | Happened::Refused
        );
        if has_output && came != (exit.stdout, exit.stderr) {
            return Exit {
                outcome: Outcome::failed(
                    Happened::Unreachable,
                    "output_incomplete",
                    format!(
                        "the job wrote {} bytes to stdout and {} to stderr, but {} and {} came",
                        exit.stdout, exit.stderr, came.0, came.1
                    ),
                ),
                ..exit
            };
        }
        exit
    }

    fn signal(
        &mut self,
        connection: &mut Connection,
        channel: Channel,
        signal: i32,
    ) -> Option<Exit> {
        match signal {
            libc::SIGWINCH if self.pty => {
                resize(connection, channel);
                return None;
            }
            libc::SIGTSTP => {
                self.suspend(connection, channel);
                return None;
            }
            libc::SIGCONT => {
                if let Some(raw) = &mut self.raw {
                    raw.again();
                }
                resize(connection, channel);
                return None;
            }
            // What ends the client hangs up the job.
            _ if self.pty && signals::ends(signal) => {
                return Some(self.leave(connection, channel, Some(signal), None));
            }
            _ => {}
        }
        if signal == libc::SIGINT {
            self.interrupts += 1;
        }
        let leave = self.interrupts > 1;
        let message = Signal {
            signal,
            tree: leave,
            job: None,
        };
        if self.exit.is_none() {
            connection.signal(channel, &message);
        }
        leave.then(|| Exit {
            outcome: Outcome {
                outcome: Happened::Cancelled,
                ..Outcome::default()
            },
            stdout: self.stdout.received,
            stderr: self.stderr.received,
            ..Exit::default()
        })
    }

    /// Acts on what was typed for us. Gives an outcome where we are to leave.
    fn asked(&mut self, connection: &mut Connection, channel: Channel) -> Option<Exit> {
        match self.stdin.as_mut()?.take_asked()? {
            Asked::Leave => {
                let left = ("left", "left by ~. and hung up");
                return Some(self.leave(connection, channel, None, Some(left)));
            }
            Asked::Suspend => self.suspend(connection, channel),
            Asked::Help => {
                let _ = write!(io::stderr(), "~?\r\n{HELP}");
            }
        }
        None
    }

    fn suspend(&mut self, connection: &mut Connection, channel: Channel) {
        match &mut self.raw {
            Some(raw) => raw.suspend(),
            None => _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP),
        }
        resize(connection, channel);
    }

    /// Hangs up the job and gives the outcome to leave with.
    fn leave(
        &mut self,
        connection: &mut Connection,
        channel: Channel,
        signal: Option<i32>,
        why: Option<(&str, &str)>,
    ) -> Exit {
        if self.exit.is_none() {
            let hang_up = Signal {
                signal: libc::SIGHUP,
                tree: true,
                job: None,
            };
            connection.signal(channel, &hang_up);
        }
        Exit {
            outcome: Outcome {
                outcome: Happened::Cancelled,
                signal,
                error: why.map(|(code, _)| code.to_owned()),
                message: why.map(|(_, message)| message.to_owned()),
                ..Outcome::default()
            },
            stdout: self.stdout.received,
            stderr: self.stderr.received,
            ..Exit::default()
        }
    }

    /// Whoever writes to us is told as by the program itself, at its next write. A raw terminal
    /// stays ours: its keys are also for us.
    fn close_stdin(&mut self) {
        if self.raw.is_none() && self.stdin.take().is_some() {
            close_own(0);
        }
    }

    fn send_stdin(&mut self, connection: &mut Connection, channel: Channel) {
        let Some(stdin) = &mut self.stdin else {
            return;
        };
        for _ in 0..READS_MAX {
            if !stdin.is_open() || connection.room(channel) == 0 {
                return;
            }
            match connection.put_with(channel, |space| stdin.read(space)) {
                Ok((_, false)) => {}
                Ok((_, true)) | Err(PutError::Closed) => return,
                Err(PutError::Source(error)) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(PutError::Source(error)) => {
                    eprintln!("bowline: stdin cannot be read: {error} [stdin_failed]");
                    let _ = connection.put_with(channel, |_| Ok::<_, ()>((0, true)));
                    return;
                }
            }
        }
    }

    /// Tells the server what has arrived; ends the job where nobody reads it any more.
    fn account(&mut self, connection: &mut Connection, channel: Channel) {
        for (output, stream, fd) in [
            (&mut self.stdout, Stream::Stdout, 1),
            (&mut self.stderr, Stream::Stderr, 2),
        ] {
            let arrived = output.sink.arrived();
            if arrived > 0 {
                connection.consumed(channel, stream, arrived);
            }
            if output.sink.failure().is_some() && !output.closed {
                output.closed = true;
                if self.exit.is_none() {
                    // As a local program would get SIGPIPE.
                    let signal = Signal {
                        signal: libc::SIGPIPE,
                        tree: true,
                        job: None,
                    };
                    connection.signal(channel, &signal);
                }
            }
            let lost = output.sink.failure().is_some();
            if lost {
                // What still comes is dropped, and the window stays open for it.
                let rest = output.received.saturating_sub(
                    connection
                        .consumed_so_far(channel, stream)
                        .unwrap_or(output.received),
                );
                if rest > 0 {
                    connection.consumed(channel, stream, rest);
                }
            }
            if output.ended && output.sink.is_empty() && !output.closed && !self.json {
                // Our reader sees the end as soon as the program's stream has it.
                output.closed = true;
                output.sink.close();
                close_own(fd);
            }
        }
    }

    /// The outcome, once everything that came is written.
    fn done(&mut self) -> Option<Exit> {
        if !self.stdout.sink.is_empty() || !self.stderr.sink.is_empty() {
            return None;
        }
        let exit = self.exit.take()?;
        for output in [&mut self.stdout, &mut self.stderr] {
            if output.sink.failure().is_none() {
                output.sink.close();
            }
        }
        Some(exit)
    }
}

/// Tells the job the size of our terminal, where we are at one.
fn resize(connection: &mut Connection, channel: Channel) {
    if let Some(size) = tty::size() {
        connection.resize(channel, &size);
    }
}

async fn readable(stdin: Option<&Stdin>) {
    match stdin {
        Some(stdin) => stdin.readable().await,
        None => std::future::pending().await,
    }
}

/// Puts /dev/null in the place of one of our own streams. Stderr stays: it is
/// where we say what happened.
fn close_own(fd: i32) {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null");
    let Ok(null) = null else { return };
    let _ = match fd {
        0 => rustix::stdio::dup2_stdin(null.as_fd()),
        1 => rustix::stdio::dup2_stdout(null.as_fd()),
        _ => Ok(()),
    };
}
