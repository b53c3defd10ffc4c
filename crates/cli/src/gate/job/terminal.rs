//! The master of a job's terminal, and the far ends of the job's pipes that it is joined to.
//!
//! ```text
//! program ──► slave ═ master ──splice──► pipe ──► as any other job's stdout
//! program ◄── slave ═ master ◄─splice─── pipe ◄── as any other job's stdin
//! ```
//!
//! A terminal cannot be spliced into a memfd, only into a pipe. The keeper holds the pipes too, so
//! what is in them when a gate is killed is there for the next one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use rustix::pipe::SpliceFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::pipes::{Pumped, watched};

/// The most that one splice moves: what an empty pipe takes.
const SPLICE_BYTES_MAX: u64 = 64 * 1024;
/// More than a terminal holds: its line discipline's 4 KiB, and what may wait in front of that,
/// which FIONREAD does not count (`TTYB_DEFAULT_MEM_LIMIT` of Linux).
const HELD_BYTES_MAX: u64 = 128 * 1024;

#[derive(Debug)]
pub(super) struct Terminal {
    master: AsyncFd<OwnedFd>,
    /// What the master is emptied into, until the terminal is at its end.
    output: Option<OwnedFd>,
    /// What it is filled from.
    input: Option<OwnedFd>,
    /// Once the time for its end has passed: the most that was in it then.
    left: Option<u64>,
}

impl Terminal {
    /// Takes what the keeper passes; `None` where there is no terminal.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(super) fn open(fds: Vec<OwnedFd>) -> io::Result<Option<Self>> {
        let mut fds = fds.into_iter();
        let Some(master) = fds.next() else {
            return Ok(None);
        };
        Ok(Some(Self {
            master: watched(master, Interest::READABLE | Interest::WRITABLE)?,
            output: fds.next(),
            input: fds.next(),
            left: None,
        }))
    }

    pub(super) fn master(&self) -> BorrowedFd<'_> {
        self.master.get_ref().as_fd()
    }

    /// Copies of all of it.
    ///
    /// # Errors
    /// As dup(2).
    pub(super) fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        let ends = self.output.iter().chain(&self.input);
        let all = std::iter::once(self.master()).chain(ends.map(AsFd::as_fd));
        all.map(|fd| fd.try_clone_to_owned()).collect()
    }

    /// Whether there may be more to read.
    pub(super) fn is_read(&self) -> bool {
        self.output.is_some()
    }

    /// What it holds now is still taken, and no more than it can hold.
    pub(super) fn seal(&mut self) {
        self.left.get_or_insert(HELD_BYTES_MAX);
    }

    /// One move of what the program has written into stdout's pipe, as soon as that is empty.
    pub(super) fn pump_output(&mut self, cx: &mut Context<'_>) -> Pumped {
        let Some(output) = &self.output else {
            return Pumped::Nothing;
        };
        // Whoever empties the pipe tries this again. So the pipe is never what a splice has to wait for.
        if waiting(output.as_fd()) > 0 {
            return Pumped::Nothing;
        }
        let max = self.left.unwrap_or(u64::MAX).min(SPLICE_BYTES_MAX);
        let moved = match self.left {
            Some(0) => Ok(0),
            Some(_) => splice(self.master(), output.as_fd(), max),
            None => match self.master.poll_read_ready(cx) {
                Poll::Pending => return Pumped::Nothing,
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(mut guard)) => {
                    match guard
                        .try_io(|master| splice(master.get_ref().as_fd(), output.as_fd(), max))
                    {
                        Ok(moved) => moved,
                        Err(_) => return Pumped::Some,
                    }
                }
            },
        };
        match moved {
            Ok(len @ 1..) => {
                self.left = self.left.map(|left| left.saturating_sub(len));
                Pumped::Some
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Pumped::Some,
            // EIO says that nobody has the terminal any more; once sealed, being empty is the end.
            Ok(0) | Err(_) => {
                self.output = None;
                Pumped::End
            }
        }
    }

    /// One move of what the client has sent. Says whether anything moved.
    pub(super) fn pump_input(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(input) = &self.input else {
            return false;
        };
        if waiting(input.as_fd()) == 0 {
            return false;
        }
        let written = match self.master.poll_write_ready(cx) {
            Poll::Pending => return false,
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(mut guard)) => {
                match guard.try_io(|master| {
                    splice(input.as_fd(), master.get_ref().as_fd(), SPLICE_BYTES_MAX)
                }) {
                    Ok(written) => written,
                    Err(_) => return true,
                }
            }
        };
        if written.is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
            self.input = None;
        }
        true
    }
}

/// Sets the size of a terminal. No size at all means that the client does not know.
pub(super) fn resize(master: BorrowedFd<'_>, (cols, rows): (u16, u16)) {
    if cols > 0 && rows > 0 {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}

fn waiting(fd: BorrowedFd<'_>) -> u64 {
    rustix::io::ioctl_fionread(fd).unwrap_or(0)
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, max: u64) -> io::Result<u64> {
    let len = usize::try_from(max).unwrap_or(usize::MAX);
    let moved = rustix::pipe::splice(from, None, to, None, len, SpliceFlags::NONBLOCK)?;
    Ok(u64::try_from(moved).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use rustix::pipe::PipeFlags;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

    use super::*;

    #[tokio::test]
    async fn what_a_sealed_terminal_holds_is_heard_although_somebody_has_it_open() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let mut modes = tcgetattr(&slave).unwrap();
        modes.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &modes).unwrap();
        for fd in [&master, &slave] {
            rustix::io::ioctl_fionbio(fd, true).unwrap();
        }
        // More than FIONREAD tells of.
        let (mut held, said) = (0, [b'x'; 10 * 1024]);
        while held < said.len() {
            match rustix::io::write(&slave, &said[held..]) {
                Ok(len) => held += len,
                Err(_) => break,
            }
        }
        assert!(held > 4096, "{held}");
        let (reader, output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut terminal = Terminal::open(vec![master, output]).unwrap().unwrap();
        terminal.seal();
        let mut heard = 0;
        let mut space = vec![0; 64 * 1024];
        loop {
            let pumped = std::future::poll_fn(|cx| Poll::Ready(terminal.pump_output(cx))).await;
            match pumped {
                Pumped::End => break,
                _ => heard += rustix::io::read(&reader, &mut space).unwrap(),
            }
        }
        assert_eq!(heard, held);
        drop(slave);
    }
}
