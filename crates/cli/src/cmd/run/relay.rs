//! The loop of `bowline run`: between one job and the client's own streams and
//! signals, over all lines that the job is followed on.
//!
//! Waiting chooses one thing that happened; a plain function then acts on it.

mod guest;

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bowline::client::{ClientError, Happening};
use bowline_proto::frame::Stream;
use bowline_proto::message::{Exit, Resize, Started};
use bowline_proto::outcome::{Happened, Outcome};
use bowline_proto::session::PutError;
use rustix::termios::isatty;
use tokio::time::Sleep;

use super::escapes::{self, Asked};
use super::line::Line;
use super::outage::Outage;
use super::output::{Output, Unwritten};
use super::signals::{self, Forwarding, Signals};
use super::sink::{Written, close_own};
use super::stdin::{READS_MAX, Stdin};
use super::tty::{self, RawMode};
use super::wiring::Wiring;
use crate::stderr::{say, tell};

/// How long a terminal keeps the wrong size, so that the program sees it change twice.
const REDRAW_TIME: Duration = Duration::from_millis(100);

/// The client's side of a job.
#[derive(Debug)]
pub(in crate::cmd) struct Relay {
    wiring: Wiring,
    stdin: Option<Stdin>,
    stdout: Output,
    stderr: Output,
    written: Arc<Written>,
    started: bool,
    interrupts: u32,
    forwarding: Forwarding,
    exit: Option<Exit>,
    over: bool,
    /// Our own terminal, where stdin is one and the job's keys come from it.
    raw: Option<RawMode>,
    /// When the job's terminal gets its right size again.
    redraw: Option<Pin<Box<Sleep>>>,
}

/// What there is to act on.
enum Next {
    Server(Result<Happening, ClientError>),
    Signal(i32),
    Stdin,
    Written,
    Redraw,
}

impl Relay {
    /// # Errors
    /// As dup(2), for stdin.
    pub(in crate::cmd) fn new(wiring: Wiring) -> io::Result<Self> {
        let written = Arc::new(Written::default());
        let Wiring { json, .. } = wiring;
        let [stdout, stderr] = [rustix::stdio::stdout(), rustix::stdio::stderr()];
        let stderr = if json { stdout } else { stderr };
        let output = |stream, fd| Output::new(stream, fd, json, written.clone());
        let [stdout_until, stderr_until] = wiring.until.unwrap_or([u64::MAX; 2]);
        Ok(Self {
            stdin: match wiring.stdin {
                true => Some(Stdin::open()?),
                false => None,
            },
            stdout: output(Stream::Stdout, stdout).until(stdout_until),
            stderr: output(Stream::Stderr, stderr).until(stderr_until),
            written,
            started: false,
            interrupts: 0,
            forwarding: Forwarding::default(),
            exit: None,
            over: false,
            raw: match wiring.pty && wiring.stdin {
                true => RawMode::new()?,
                false => None,
            },
            redraw: None,
            wiring,
        })
    }

    /// Whether the server has said that the program runs, so that it is to be attached to and
    /// not started again.
    pub(super) fn started(&self) -> bool {
        self.started
    }

    /// What of the job's output is lost here.
    pub(in crate::cmd) fn unwritten(&mut self) -> Option<Unwritten> {
        let stdout = self.stdout.unwritten();
        stdout.or_else(|| self.stderr.unwritten())
    }

    /// The offsets behind the last bytes of stdout and stderr that came.
    pub(super) fn received(&self) -> [u64; 2] {
        [self.stdout.received(), self.stderr.received()]
    }

    /// Whether the outcome came, and its output is written.
    pub(super) fn is_at_its_end(&self) -> bool {
        self.over
    }

    /// Whether our own terminal is the program's, and nobody's lines begin at its left.
    pub(super) fn is_raw(&self) -> bool {
        self.raw.is_some() && self.started
    }

    /// Makes ready for a line on which the job is about to be asked for.
    ///
    /// # Errors
    /// [`ClientError::InputLost`].
    pub(super) fn begin_line(&mut self, line: &Line) -> Result<(), ClientError> {
        self.stdout.begin_line();
        self.stderr.begin_line();
        self.forwarding.line_lost();
        match &mut self.stdin {
            // How far it has come is told by `started`; a start begins anew.
            Some(stdin) if !line.attached => Ok(stdin.go_on_at(0)?),
            _ => Ok(()),
        }
    }

    /// Stays with the job on a line until its outcome is known and its output is written.
    ///
    /// # Errors
    /// [`ClientError`] where the line ended before the outcome came.
    pub(super) async fn follow(
        &mut self,
        line: &mut Line,
        signals: &mut Signals,
        outage: &mut Outage,
    ) -> Result<Exit, ClientError> {
        loop {
            if let Some(exit) = self.done() {
                return Ok(exit);
            }
            if let Some(exit) = self.unread() {
                return Ok(exit);
            }
            let next = self.next(line, signals).await;
            if let Some(exit) = self.apply(line, outage, next)? {
                return Ok(exit);
            }
        }
    }

    async fn next(&mut self, line: &mut Line, signals: &mut Signals) -> Next {
        let over = self.exit.is_some();
        // What is typed ahead waits in the terminal until it is raw.
        let typed_ahead = (self.raw.is_some() || self.wiring.guest) && !self.started;
        let stdin = self.stdin.as_ref();
        let stdin = stdin.filter(|stdin| !over && !typed_ahead && stdin.is_open());
        let stdin = stdin.filter(|_| line.room() > 0);
        let redraw = self.redraw.as_mut().map(Pin::as_mut);
        let drawing = redraw.is_some();
        tokio::select! {
            signal = signals.next() => Next::Signal(signal),
            () = self.written.changed() => Next::Written,
            () = self.stdout.sink.writable(), if self.stdout.sink.is_waiting() => Next::Written,
            () = self.stderr.sink.writable(), if self.stderr.sink.is_waiting() => Next::Written,
            happening = line.next(), if !over => Next::Server(happening),
            () = or_never(stdin.map(Stdin::readable)), if stdin.is_some() => Next::Stdin,
            () = or_never(redraw), if drawing => Next::Redraw,
        }
    }

    /// Does some work while there is no line that the job is followed on, and looks after our
    /// own streams meanwhile. Gives an outcome instead where the client leaves.
    pub(super) async fn meanwhile<T>(
        &mut self,
        signals: &mut Signals,
        work: impl Future<Output = T>,
    ) -> Result<T, Exit> {
        let mut work = pin!(work);
        loop {
            let keys = self.stdin.as_ref().filter(|stdin| stdin.listens());
            let next = tokio::select! {
                done = &mut work => return Ok(done),
                signal = signals.next() => Next::Signal(signal),
                () = self.written.changed() => Next::Written,
                () = self.stdout.sink.writable(), if self.stdout.sink.is_waiting() => Next::Written,
                () = self.stderr.sink.writable(), if self.stderr.sink.is_waiting() => Next::Written,
                () = or_never(keys.map(Stdin::typed)), if keys.is_some() => Next::Stdin,
            };
            if let Some(exit) = self.apply_alone(&next) {
                return Err(exit);
            }
        }
    }

    fn apply_alone(&mut self, next: &Next) -> Option<Exit> {
        match next {
            Next::Signal(signal) => self.signal(None, *signal),
            Next::Stdin => {
                if !self.stdin.as_mut()?.listen() {
                    // A key too many for what a terminal holds.
                    say(b"\x07");
                }
                self.asked(None)
            }
            Next::Written => {
                self.pump();
                self.unread()
            }
            Next::Server(_) | Next::Redraw => None,
        }
    }

    /// Acts on one thing. Gives an outcome where the client leaves at once.
    fn apply(
        &mut self,
        line: &mut Line,
        outage: &mut Outage,
        next: Next,
    ) -> Result<Option<Exit>, ClientError> {
        match next {
            Next::Server(happening) => self.happened(line, outage, happening?)?,
            Next::Signal(signal) => {
                if let Some(exit) = self.signal(Some(line), signal) {
                    return Ok(Some(exit));
                }
            }
            Next::Stdin => {
                self.send_stdin(line);
                if let Some(exit) = self.asked(Some(line)) {
                    return Ok(Some(exit));
                }
            }
            Next::Written => self.pump(),
            Next::Redraw => {
                self.redraw = None;
                resize(line);
            }
        }
        self.account(line);
        Ok(None)
    }

    fn pump(&mut self) {
        self.stdout.sink.pump();
        self.stderr.sink.pump();
    }

    fn happened(
        &mut self,
        line: &mut Line,
        outage: &mut Outage,
        happening: Happening,
    ) -> Result<(), ClientError> {
        match happening {
            Happening::Started(at, started) if line.is_of(at) => {
                tracing::info!(pid = started.pid, stdin = started.stdin, "started");
                self.begun(line, &started)?;
                outage.is_over(self.is_raw());
            }
            Happening::Output {
                channel: at,
                stream,
                bytes,
                end,
            } if line.is_of(at) => {
                if let Some(output) = self.output(stream) {
                    output.take(bytes, end);
                }
            }
            Happening::Gap(at, gap) if line.is_of(at) => {
                self.go_on_at(gap.stream, gap.offset, self.wiring.gaps, true)?;
            }
            Happening::Room(at) if line.is_of(at) => self.room(line),
            Happening::Exit(at, exit) if line.is_of(at) => {
                self.exit = Some(self.checked(exit));
                line.close();
            }
            Happening::Refused(at, refused) if line.is_of(at) => {
                return Err(ClientError::Refused(refused));
            }
            Happening::Pong(pong) => self.forwarding.confirmed(pong.id),
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

    /// The program runs, and the job's streams go on where `started` says.
    fn begun(&mut self, line: &mut Line, started: &Started) -> Result<(), ClientError> {
        line.answered = true;
        // Who attaches to a job of somebody else takes it as it is.
        let first = line.attached && !self.started;
        self.started = true;
        for (stream, offset) in [
            (Stream::Stdout, started.stdout),
            (Stream::Stderr, started.stderr),
        ] {
            if let Some(offset) = offset {
                let gaps = self.wiring.gaps || first;
                self.go_on_at(stream, offset, gaps, !first || self.wiring.whole)?;
            }
        }
        self.wiring.pty |= started.pty;
        if started.pty && self.raw.is_none() && self.stdin.is_some() {
            self.raw = RawMode::new().unwrap_or_default();
        }
        if let Some(stdin) = &mut self.stdin {
            match (line.attached, started.stdin_closed) {
                (_, true) => stdin.stop(),
                (true, false) if first => stdin.begin_at(started.stdin),
                (true, false) => stdin.go_on_at(started.stdin)?,
                (false, false) => {}
            }
            stdin.started(line.kept);
            // Also where the job has no terminal: there must be a way to leave it alone.
            let person = self.wiring.guest && isatty(rustix::stdio::stdin());
            if self.raw.is_some() || person {
                stdin.watch_for_escapes();
            }
        }
        if let Some(raw) = &mut self.raw {
            raw.enter();
        }
        if !self.shows_size() {
            // Its window is another client's.
        } else if line.attached {
            self.draw_anew(line);
        } else {
            // The window may have changed since the start was asked for.
            resize(line);
        }
        self.forwarding.send(line);
        Ok(())
    }

    /// Has the program draw its screen anew: the window changes and changes back.
    fn draw_anew(&mut self, line: &mut Line) {
        let Some(size) = tty::size() else { return };
        if size.rows > 1 {
            let other = Resize {
                rows: size.rows - 1,
                ..size
            };
            line.resize(&other);
            self.redraw = Some(Box::pin(tokio::time::sleep(REDRAW_TIME)));
        }
    }

    fn output(&mut self, stream: Stream) -> Option<&mut Output> {
        match stream {
            Stream::Stdout => Some(&mut self.stdout),
            Stream::Stderr => Some(&mut self.stderr),
            Stream::Stdin => None,
        }
    }

    /// Some of stdin has arrived, or the program reads no more of it.
    fn room(&mut self, line: &Line) {
        if line.stdin_is_closed() {
            self.close_stdin();
        } else if let (Some(stdin), Some(acked)) = (&mut self.stdin, line.stdin_acked()) {
            stdin.acked(acked);
        }
    }

    /// An outcome that does not fit the output that came is not believed.
    fn checked(&self, exit: Exit) -> Exit {
        let [stdout, stderr] = self.received();
        let has_output = !matches!(
            exit.outcome.outcome,
            Happened::NotStarted | Happened::Refused
        );
        let [no_stdout, no_stderr] = self.wiring.unwanted;
        let whole = (no_stdout || stdout == exit.stdout) && (no_stderr || stderr == exit.stderr);
        if has_output && !whole {
            return Exit {
                outcome: Outcome::failed(
                    Happened::Unreachable,
                    "output_incomplete",
                    format!(
                        "the job wrote {} bytes to stdout and {} to stderr, but {stdout} and {stderr} came",
                        exit.stdout, exit.stderr
                    ),
                ),
                ..exit
            };
        }
        exit
    }

    fn signal(&mut self, line: Option<&mut Line>, signal: i32) -> Option<Exit> {
        match signal {
            libc::SIGWINCH if self.shows_size() => {
                line.into_iter().for_each(resize);
                return None;
            }
            libc::SIGTSTP => {
                self.suspend(line);
                return None;
            }
            libc::SIGCONT => {
                if let Some(raw) = &mut self.raw {
                    raw.again();
                }
                line.into_iter().for_each(resize);
                return None;
            }
            // What ends the client hangs up the job, unless that is somebody else's.
            _ if (self.wiring.pty || self.wiring.guest) && signals::ends(signal) => {
                return Some(self.leave(line, libc::SIGHUP, Some(signal), None));
            }
            libc::SIGINT => self.interrupts += 1,
            _ => {}
        }
        if self.interrupts > 1 {
            return Some(self.leave(line, signal, None, None));
        }
        if self.exit.is_none() {
            self.forwarding.add(signal);
        }
        if let Some(line) = line
            && line.answered
            && self.exit.is_none()
        {
            self.forwarding.send(line);
        }
        None
    }

    /// Acts on what was typed for us. Gives an outcome where we are to leave.
    fn asked(&mut self, line: Option<&mut Line>) -> Option<Exit> {
        match self.stdin.as_mut()?.take_asked()? {
            Asked::Leave => {
                let left = ("left", "left by ~. and hung up");
                return Some(self.leave(line, libc::SIGHUP, None, Some(left)));
            }
            Asked::Suspend => self.suspend(line),
            Asked::Help => {
                let help = escapes::help(self.wiring.guest);
                say(format!("~?\r\n{help}").as_bytes());
            }
        }
        None
    }

    fn suspend(&mut self, line: Option<&mut Line>) {
        match &mut self.raw {
            Some(raw) => raw.suspend(),
            None => _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP),
        }
        line.into_iter().for_each(resize);
    }

    /// Ends the job's tree and gives the outcome to leave with. Where there is no line the server
    /// cannot be told.
    fn leave(
        &mut self,
        line: Option<&mut Line>,
        first: i32,
        signal: Option<i32>,
        why: Option<(&str, &str)>,
    ) -> Exit {
        if self.wiring.guest {
            return self.left("detached", "left; the job runs on");
        }
        let unheard = (
            "left",
            "left while there was no connection; the server ends the job when its grace time is over",
        );
        let why = match &line {
            None if self.exit.is_none() => Some(unheard),
            _ => why,
        };
        if let Some(line) = line
            && self.exit.is_none()
        {
            line.end_tree(first);
        }
        Exit {
            outcome: Outcome {
                outcome: Happened::Cancelled,
                signal,
                error: why.map(|(code, _)| code.to_owned()),
                message: why.map(|(_, message)| message.to_owned()),
                ..Outcome::default()
            },
            stdout: self.stdout.received(),
            stderr: self.stderr.received(),
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

    fn send_stdin(&mut self, line: &mut Line) {
        let Some(stdin) = &mut self.stdin else {
            return;
        };
        for _ in 0..READS_MAX {
            if !stdin.is_open() || line.room() == 0 {
                return;
            }
            match line.put_with(|space| stdin.read(space)) {
                Ok((_, false)) => {}
                Ok((_, true)) | Err(PutError::Closed) => return,
                Err(PutError::Source(error)) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What was read before it is sent, and then its end.
                Err(PutError::Source(error)) => {
                    tell!("bowline: stdin cannot be read: {error} [stdin_failed]");
                }
            }
        }
    }

    /// Tells the server what has arrived; ends the job where nobody reads it any more.
    fn account(&mut self, line: &mut Line) {
        for (output, fd) in [(&mut self.stdout, 1), (&mut self.stderr, 2)] {
            output.account(line);
            if output.sink.failure().is_some() && !output.closed {
                output.closed = true;
                if self.exit.is_none() && !self.wiring.guest {
                    // As a local program would get SIGPIPE.
                    line.end_tree(libc::SIGPIPE);
                }
            }
            if output.ended && output.sink.is_empty() && !output.closed && !self.wiring.json {
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
        let exit = match self.exit.take() {
            Some(exit) => exit,
            None if self.is_enough() => Exit::default(),
            None => return None,
        };
        self.over = true;
        for output in [&mut self.stdout, &mut self.stderr] {
            if output.sink.failure().is_none() {
                output.sink.close();
            }
        }
        Some(exit)
    }
}

/// Tells the job the size of our terminal, where we are at one.
fn resize(line: &mut Line) {
    if let Some(size) = tty::size() {
        line.resize(&size);
    }
}

/// Waits for what there may be.
async fn or_never(work: Option<impl Future<Output = ()>>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
