//! The client's own terminal while a job has one: its size, and raw mode.
//!
//! Whoever leaves, and however, puts the modes back: by `Drop` also while a
//! panic unwinds. Signals that end a client are caught while it is raw (`signals`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

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
    fd: OwnedFd,
    before: Option<Termios>,
}

impl RawMode {
    /// `None` where stdin is no terminal, and so has no modes.
    ///
    /// # Errors
    /// As dup(2).
    pub(super) fn new() -> io::Result<Option<Self>> {
        Self::of(stdin())
    }

    fn of(fd: impl AsFd) -> io::Result<Option<Self>> {
        if !isatty(&fd) {
            return Ok(None);
        }
        let fd = fd.as_fd().try_clone_to_owned()?;
        Ok(Some(Self { fd, before: None }))
    }

    /// Every key is the program's from here on.
    pub(super) fn enter(&mut self) {
        if self.before.is_some() {
            return;
        }
        let Ok(before) = tcgetattr(&self.fd) else {
            return;
        };
        if self.set_raw(&before) {
            self.before = Some(before);
        }
    }

    /// The same once more: whoever stopped and continued us may have set other modes.
    pub(super) fn again(&mut self) {
        if let Some(before) = &self.before {
            self.set_raw(before);
        }
    }

    fn set_raw(&self, before: &Termios) -> bool {
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&self.fd, OptionalActions::Now, &raw).is_ok()
    }

    /// The terminal is as it was. Nothing is waited for: it may be held by Ctrl-S.
    pub(super) fn leave(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = tcsetattr(&self.fd, OptionalActions::Now, &before);
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

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    #[test]
    fn the_modes_come_back_when_a_panic_unwinds() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let modes = || format!("{:?}", tcgetattr(&terminal).unwrap());
        let before = modes();
        let unwound = std::panic::catch_unwind(|| {
            let mut raw = RawMode::of(&terminal).unwrap().unwrap();
            raw.enter();
            assert_ne!(modes(), before);
            // As the shell that a stop brought back.
            tcsetattr(
                &terminal,
                OptionalActions::Now,
                raw.before.as_ref().unwrap(),
            )
            .unwrap();
            raw.again();
            assert_ne!(modes(), before);
            std::panic::resume_unwind(Box::new("a bug"));
        });
        assert_eq!(*unwound.unwrap_err().downcast::<&str>().unwrap(), "a bug");
        assert_eq!(modes(), before);
        // What is no terminal has no modes.
        assert!(RawMode::of(std::io::pipe().unwrap().0).unwrap().is_none());
    }
}
