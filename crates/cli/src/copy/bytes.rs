//! Bytes of files: read at an offset, and hashed.

use std::io;
use std::os::fd::BorrowedFd;

use super::buffer::Buffer;

/// Reads at an offset; less than asked for only at the end of the file.
///
/// # Errors
/// As pread(2).
pub(crate) fn read_at(file: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = into.get_mut(filled..).filter(|room| !room.is_empty()) {
        match rustix::io::pread(file, room, offset + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(filled)
}

/// Feeds the first `len` bytes of a file to a hasher; false if it has less.
///
/// # Errors
/// As pread(2).
pub(crate) fn hash_prefix(
    file: BorrowedFd<'_>,
    len: u64,
    hasher: &mut blake3::Hasher,
) -> io::Result<bool> {
    let mut buffer = Buffer::new(256 * 1024);
    let mut at = 0;
    while at < len {
        let want = usize::try_from(len - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let room = buffer.get_mut(..want).unwrap_or_default();
        let read = read_at(file, room, at)?;
        hasher.update(room.get(..read).unwrap_or_default());
        at += read as u64;
        if read < want {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Feeds zeros to a hasher.
pub(crate) fn zeros(hasher: &mut blake3::Hasher, mut len: u64) {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        hasher.update(ZEROS.get(..now as usize).unwrap_or_default());
        len -= now;
    }
}
