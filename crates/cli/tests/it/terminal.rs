//! `bowline` on a terminal: a pseudo-terminal that is the controlling one of a
//! session of its own, as a person's is.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

/// How long anything may take to show up on a terminal.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program on a terminal, and the person in front of it.
pub(crate) struct Terminal {
    child: Child,
    master: File,
    seen: Vec<u8>,
    /// What was expected already, in bytes of `seen`.
    passed: usize,
}

impl Terminal {
    /// Starts a command on a new terminal, which is its stdin, stdout and stderr.
    pub(crate) fn start(command: &Command) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let stdio = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let mut on_terminal = Command::new("setsid");
        on_terminal
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(name, value),
                None => on_terminal.env_remove(name),
            };
        }
        let child = on_terminal
            .stdin(stdio(&slave))
            .stdout(stdio(&slave))
            .stderr(stdio(&slave))
            .spawn()
            .unwrap();
        Terminal {
            child,
            master: File::from(master),
            seen: Vec::new(),
            passed: 0,
        }
    }

    /// Waits until a text is shown, behind what was expected before, and gives
    /// what stood in front of it.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rest = &self.seen[self.passed..];
            let found = rest
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let before = String::from_utf8_lossy(&rest[..at]).into_owned();
                self.passed += at + text.len();
                return before;
            }
            let more = self.read(deadline);
            assert!(more, "no {text:?} in {:?}", self.shown());
        }
    }

    /// Types, as if at the keyboard.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Whether what is typed is shown.
    pub(crate) fn echoes(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.master).unwrap();
        modes
            .local_modes
            .contains(rustix::termios::LocalModes::ECHO)
    }

    /// Waits for the end; gives the status and all that was shown.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        while self.read(deadline) {}
        assert!(
            Instant::now() < deadline,
            "still something on the terminal: {:?}",
            self.shown()
        );
        let status = self.child.wait().unwrap();
        (status, self.shown())
    }

    /// Everything that was shown, with plain newlines.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.seen).replace("\r\n", "\n")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads what there is; `false` at the end, when nobody has the terminal
    /// open any more, and at the deadline.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&left)).unwrap() == 0 {
            return false;
        }
        let mut bytes = [0; 4096];
        match self.master.read(&mut bytes) {
            // EIO is how a pseudo-terminal says that nobody is left.
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.seen.extend_from_slice(&bytes[..read]);
                true
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
