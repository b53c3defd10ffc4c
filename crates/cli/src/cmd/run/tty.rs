//! The client's own terminal while a job has one: its size, and raw mode.
//!
//! Whoever leaves, and however, puts the modes back: by `Drop` also while a
//! panic unwinds. Signals that end a client are caught while it is raw (`signals`).

use std::os::fd::BorrowedFd;

use bowline_proto::message::Resize;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// The size of the terminal that this process is at, where it is at one.
pub(super) fn size() -> Option<Resize> {
    let size = [stdin(), stdout(), stderr()]
        .into_iter()
        .find_map(|fd| tcgetwinsize(fd).ok())?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(Resize {
        cols: size.ws_col,
        rows: size.ws_row,
    })
}

/// The terminal on stdin, and its modes from before.
#[derive(Debug)]
pub(super) struct RawMode {
    fd: BorrowedFd<'static>,
    before: Option<Termios>,
}

impl RawMode {
    /// `None` where stdin is no terminal, and so has no modes.
    pub(super) fn new() -> Option<Self> {
        let fd = stdin();
        isatty(fd).then_some(Self { fd, before: None })
    }

    /// Every key is the program's from here on.
    pub(super) fn enter(&mut self) {
        if self.before.is_some() {
            return;
        }
        let Ok(before) = tcgetattr(self.fd) else {
            return;
        };
        let mut raw = before.clone();
        raw.make_raw();
        if tcsetattr(self.fd, OptionalActions::Now, &raw).is_ok() {
            self.before = Some(before);
        }
    }

    /// The terminal is as it was. Nothing is waited for: it may be held by Ctrl-S.
    pub(super) fn leave(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = tcsetattr(self.fd, OptionalActions::Now, &before);
        }
    }

    /// Stops this process as a shell's Ctrl-Z would, until it is continued.
    pub(super) fn suspend(&mut self) {
        let raw = self.before.is_some();
        self.leave();
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
        if raw {
            // In the background this stops us again, until we are in front.
            self.enter();
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.leave();
    }
}
