//! Writing to descriptors that others share, such as our own stdout and stderr.
//!
//! They are never set to non-blocking: that would change them for whoever started us too.
//! RWF_NOWAIT (pwritev2(2)) is the same for one call alone, but not everything knows it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags};

/// A pipe that is writable takes at least this without blocking (PIPE_BUF, pipe(7)).
pub(crate) const AT_ONCE_BYTES_MAX: usize = 4096;

/// Writes what is taken now.
///
/// # Errors
/// As pwritev2(2): EAGAIN where nothing is.
pub(crate) fn write_nowait(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    // An offset of -1 is none at all.
    rustix::io::pwritev2(fd, parts, u64::MAX, ReadWriteFlags::NOWAIT)
}

/// Whether an error of [`write_nowait`] says that this descriptor has no such writes.
pub(crate) fn is_unknown(error: Errno) -> bool {
    [Errno::OPNOTSUPP, Errno::INVAL, Errno::NOSYS, Errno::SPIPE].contains(&error)
}

/// Whether something can be written without waiting: [`AT_ONCE_BYTES_MAX`] to a pipe.
pub(crate) fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready == 1)
}

/// write(2) until all is written. A descriptor that somebody else has set to
/// non-blocking is waited for.
///
/// # Errors
/// As write(2).
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let fd = fd.as_fd();
                let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
                let _ = poll(&mut fds, None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes as much as is taken now, and gives how much that was.
///
/// # Errors
/// As write(2).
pub(crate) fn write_at_once(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match write_nowait(fd, &[IoSlice::new(rest)]) {
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(error) if is_unknown(error) => {
                if !is_writable(fd) {
                    break;
                }
                let part = rest.get(..AT_ONCE_BYTES_MAX).unwrap_or(rest);
                write_all(fd, part)?;
                done += part.len();
            }
            Err(_) if done > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}
