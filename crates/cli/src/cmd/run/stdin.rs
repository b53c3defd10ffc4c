//! The client's own standard input, as the job's.
//!
//! The descriptor is shared with whoever started us, so it is never set to
//! non-blocking: it is read only when poll(2) says that something is there.
//! Until the job has started, what was read is kept, so that a start that is
//! tried again loses none of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use tokio::io::Interest;
use tokio::net::unix::pipe;

use super::escapes::{Asked, Escapes};

/// Reads in a row before something else gets its turn.
pub(super) const READS_MAX: usize = 8;
/// A pipe that much comes through gets this capacity, in bytes: fewer switches
/// between its writer and us. Linux's default limit for users (pipe(7)).
const PIPE_BYTES: usize = 1024 * 1024;
/// What is taken from a terminal at once, which never has more (N_TTY_BUF_SIZE of Linux).
const TYPED_BYTES_MAX: usize = 4096;
/// So much makes it worth the while.
const MUCH_BYTES: u64 = 512 * 1024;

/// The source of a job's stdin.
#[derive(Debug)]
pub(super) struct Stdin {
    fd: BorrowedFd<'static>,
    /// Waits for input; `None` for what is always readable, such as a file.
    readiness: Option<pipe::Receiver>,
    /// What was read before the job had started, and how much of it is sent again.
    kept: Vec<u8>,
    keeping: bool,
    again: usize,
    ended: bool,
    read: u64,
    enlarged: bool,
    /// At a raw terminal: what is typed for us is taken out.
    escapes: Option<Escapes>,
    /// What was typed for us, until somebody asks.
    asked: Option<Asked>,
    /// What was typed behind that.
    behind: Vec<u8>,
}

impl Stdin {
    /// Takes the standard input of this process.
    ///
    /// # Errors
    /// As dup(2).
    pub(super) fn open() -> io::Result<Self> {
        let fd = rustix::stdio::stdin();
        // epoll_ctl(2) refuses regular files and the like with EPERM: these never block.
        let waited = fd.try_clone_to_owned()?;
        let readiness = pipe::Receiver::from_owned_fd_unchecked(waited).ok();
        Ok(Self {
            fd,
            readiness,
            kept: Vec::new(),
            keeping: true,
            again: 0,
            ended: false,
            read: 0,
            enlarged: false,
            escapes: None,
            asked: None,
            behind: Vec::new(),
        })
    }

    /// From here on a person types: `~` behind a newline is for us.
    pub(super) fn watch_for_escapes(&mut self) {
        self.escapes.get_or_insert_default();
    }

    /// What was typed for us, once.
    pub(super) fn take_asked(&mut self) -> Option<Asked> {
        self.asked.take()
    }

    /// Whether there is or may be more to send.
    pub(super) fn is_open(&self) -> bool {
        !self.ended || self.has_again() || !self.behind.is_empty()
    }

    fn has_again(&self) -> bool {
        self.again < self.kept.len()
    }

    /// Waits until there is something to read.
    ///
    /// # Cancel safety
    /// Nothing is read here.
    pub(super) async fn readable(&self) {
        if self.has_again() || !self.behind.is_empty() {
            return;
        }
        let Some(readiness) = &self.readiness else {
            return;
        };
        while readiness.ready(Interest::READABLE).await.is_ok() && !is_readable(self.fd) {
            // Clears the readiness, unless news of it came in between.
            let _ = readiness.try_io(|| {
                if is_readable(self.fd) {
                    Ok(())
                } else {
                    Err(io::Error::from(io::ErrorKind::WouldBlock))
                }
            });
        }
    }

    /// Reads what is there; says whether the input ends behind it.
    ///
    /// # Errors
    /// `WouldBlock` where nothing is there now. Any other error is the end of
    /// the input too.
    pub(super) fn read(&mut self, space: &mut [u8]) -> io::Result<(usize, bool)> {
        if self.has_again() {
            let rest = self.kept.get(self.again..).unwrap_or_default();
            let len = rest.len().min(space.len());
            for (to, from) in space.iter_mut().zip(rest) {
                *to = *from;
            }
            self.again += len;
            self.drop_kept();
            return Ok((len, self.ended && !self.has_again()));
        }
        if self.escapes.is_some() {
            return self.read_typed(space);
        }
        if self.ended {
            return Ok((0, true));
        }
        if self.readiness.is_some() && !is_readable(self.fd) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = rustix::io::retry_on_intr(|| rustix::io::read(self.fd, &mut *space));
        let len = match len {
            Ok(len) => len,
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => {
                self.ended = true;
                return Err(error.into());
            }
        };
        self.ended = len == 0;
        self.read = self.read.saturating_add(len as u64);
        if self.read > MUCH_BYTES && !self.enlarged {
            self.enlarged = true;
            // Over the user's limit, or where it is no pipe, it stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(self.fd, PIPE_BYTES);
        }
        if self.keeping {
            self.kept
                .extend_from_slice(space.get(..len).unwrap_or_default());
            self.again = self.kept.len();
        }
        Ok((len, self.ended))
    }

    /// The same without what is typed for us. Stops behind each thing that is.
    fn read_typed(&mut self, space: &mut [u8]) -> io::Result<(usize, bool)> {
        if self.asked.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.behind.is_empty() {
            if self.ended {
                return Ok((0, true));
            }
            if !is_readable(self.fd) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // A `~` that was held back may take one byte more.
            let mut typed = vec![0; space.len().saturating_sub(1).min(TYPED_BYTES_MAX)];
            let len = rustix::io::retry_on_intr(|| rustix::io::read(self.fd, &mut typed))?;
            self.ended = len == 0;
            if self.ended {
                return Ok((0, true));
            }
            typed.truncate(len);
            self.behind = typed;
        }
        let mut out = Vec::new();
        let room = self.behind.len().min(space.len().saturating_sub(1));
        if let (Some(escapes), Some(typed)) = (&mut self.escapes, self.behind.get(..room)) {
            let (taken, asked) = escapes.read(typed, &mut out);
            self.asked = asked;
            self.behind.drain(..taken);
        }
        for (to, from) in space.iter_mut().zip(&out) {
            *to = *from;
        }
        if out.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok((out.len(), false))
    }

    /// The job runs: nothing is sent again from here on.
    pub(super) fn started(&mut self) {
        self.keeping = false;
        self.drop_kept();
    }

    fn drop_kept(&mut self) {
        if !self.keeping && !self.has_again() {
            self.kept = Vec::new();
            self.again = 0;
        }
    }

    /// The start is tried again: so is what was sent.
    pub(super) fn rewind(&mut self) {
        self.again = 0;
    }
}

/// Whether a read would give something, or the end, at once.
fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let fd = fd.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready == 1)
}
