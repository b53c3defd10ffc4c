//! Descriptors that this process was started with: the one place that takes
//! them by their number.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over an inherited descriptor and marks it close-on-exec.
///
/// The caller names each number once: whoever started this process said what
/// is behind it (LISTEN_FDS, `bowline gate`, `--status-fd`).
///
/// # Errors
/// EBADF where nothing is open under that number.
pub(crate) fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the borrow is used for one fcntl(2), which says whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, as fcntl just said, it was inherited and so is owned by nothing else in
    // this process, and no other place takes the same number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
