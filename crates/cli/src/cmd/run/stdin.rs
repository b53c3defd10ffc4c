//! The client's own standard input, as the job's.
//!
//! The descriptor is shared with whoever started us, so it is never set to
//! non-blocking: it is read only when poll(2) says that something is there.
//! What was read is kept until the server has acknowledged it, so that another
//! line goes on where the one before broke; of a job that ends with its line,
//! until it has started, so that a start that is tried again loses none of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use bowline::client::{InputLost, Unacked};
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
    /// What may have to be sent again.
    unacked: Unacked,
    keeping: bool,
    /// The source has no more.
    ended: bool,
    /// All of it was sent on this line, with its end, or nothing may be.
    done: bool,
    read: u64,
    enlarged: bool,
    /// At a raw terminal: what is typed for us is taken out.
    escapes: Option<Escapes>,
    /// What was typed for us, until somebody asks.
    asked: Option<Asked>,
    /// What was typed behind that, and not looked at.
    behind: Vec<u8>,
    /// What was typed for the program while there was no line.
    typed: Vec<u8>,
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
            unacked: Unacked::default(),
            keeping: true,
            ended: false,
            done: false,
            read: 0,
            enlarged: false,
            escapes: None,
            asked: None,
            behind: Vec::new(),
            typed: Vec::new(),
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

    /// Whether there is or may be more to send on this line.
    pub(super) fn is_open(&self) -> bool {
        !self.done
    }

    /// Whether something is here without a look at the source.
    fn has_some(&self) -> bool {
        self.unacked.has_again() || self.ended || !self.behind.is_empty() || !self.typed.is_empty()
    }

    /// Waits until there is something to read.
    ///
    /// # Cancel safety
    /// Nothing is read here.
    pub(super) async fn readable(&self) {
        if self.has_some() {
            return;
        }
        self.source_readable().await;
    }

    async fn source_readable(&self) {
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
        if self.unacked.has_again() {
            let len = self.unacked.again(space);
            self.done = self.ended && !self.unacked.has_again();
            self.drop_kept();
            return Ok((len, self.done));
        }
        let (len, end) = match &self.escapes {
            Some(_) => self.read_typed(space)?,
            None => self.read_source(space)?,
        };
        self.done = end;
        if self.keeping {
            self.unacked.sent(space.get(..len).unwrap_or_default());
        }
        Ok((len, end))
    }

    fn read_source(&mut self, space: &mut [u8]) -> io::Result<(usize, bool)> {
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
                // Its end is sent with the next look.
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
        Ok((len, self.ended))
    }

    /// The same without what is typed for us. Stops behind each thing that is.
    fn read_typed(&mut self, space: &mut [u8]) -> io::Result<(usize, bool)> {
        if !self.typed.is_empty() {
            let len = self.typed.len().min(space.len());
            for (to, from) in space.iter_mut().zip(self.typed.drain(..len)) {
                *to = from;
            }
            return Ok((len, false));
        }
        if self.asked.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.behind.is_empty() && self.look(space.len())? {
            return Ok((0, true));
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

    /// Takes what was typed and not looked at. Says whether there was the end instead.
    fn look(&mut self, room: usize) -> io::Result<bool> {
        if !self.ended {
            if !is_readable(self.fd) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // A `~` that was held back may take one byte more.
            let mut typed = vec![0; room.saturating_sub(1).min(TYPED_BYTES_MAX)];
            let len = rustix::io::retry_on_intr(|| rustix::io::read(self.fd, &mut typed))?;
            self.ended = len == 0;
            typed.truncate(len);
            self.behind = typed;
        }
        Ok(self.ended)
    }

    /// Whether keys are to be listened to while there is no line.
    pub(super) fn listens(&self) -> bool {
        self.escapes.is_some() && !self.ended
    }

    /// Waits until [`Self::listen`] has something to do.
    ///
    /// # Cancel safety
    /// Nothing is read here.
    pub(super) async fn typed(&self) {
        if self.behind.is_empty() {
            self.source_readable().await;
        }
    }

    /// Takes in what is typed while there is no line; says whether there was room for all of it.
    pub(super) fn listen(&mut self) -> bool {
        if self.behind.is_empty() && self.look(TYPED_BYTES_MAX).is_err() {
            return true;
        }
        let mut out = Vec::new();
        if let Some(escapes) = &mut self.escapes {
            let (taken, asked) = escapes.read(&self.behind, &mut out);
            self.asked = asked;
            self.behind.drain(..taken);
        }
        let room = TYPED_BYTES_MAX.saturating_sub(self.typed.len());
        self.typed.extend(out.iter().take(room));
        out.len() <= room
    }

    /// The job runs, and its streams are kept for another line or end with this one.
    pub(super) fn started(&mut self, kept: bool) {
        self.keeping = kept;
        self.drop_kept();
    }

    fn drop_kept(&mut self) {
        if !self.keeping && !self.unacked.has_again() {
            self.unacked = Unacked::default();
        }
    }

    /// Everything before this offset has arrived for good.
    pub(super) fn acked(&mut self, offset: u64) {
        if self.keeping {
            self.unacked.acked(offset);
        }
    }

    /// There is another line, on which the job is asked for, or goes on, at this offset.
    ///
    /// # Errors
    /// [`InputLost`] where that is not here.
    pub(super) fn go_on_at(&mut self, offset: u64) -> Result<(), InputLost> {
        self.unacked.go_on_at(offset)?;
        self.done = false;
        Ok(())
    }

    /// What is here is the job's from this offset on: what is before came from others.
    pub(super) fn begin_at(&mut self, offset: u64) {
        self.unacked = Unacked::starting_at(offset);
    }

    /// Nothing more may be sent on this line.
    pub(super) fn stop(&mut self) {
        self.done = true;
    }
}

/// Whether a read would give something, or the end, at once.
fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let fd = fd.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready == 1)
}
