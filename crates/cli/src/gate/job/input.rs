//! Stdin in a memfd that the keeper holds too.
//!
//! What a client sends is written at its offset, so a byte that comes twice is
//! written once; the end of the file is how far it has come. It leaves by splice(2)
//! into the pipe at the *file position*, which the kernel moves together with the
//! bytes: so the position is what has reached the pipe, even when the gate is killed
//! between two instructions.
//!
//! Pages that were spliced stay shared with the pipe, and with every pipe that a
//! program splices them on to. So nothing is ever written over: the file grows, and
//! what is behind the position is punched out, in blocks that no page crosses
//! however large it is.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::pipe::SpliceFlags;

/// What is punched at once, and aligned to: the size of a huge page, part of which the kernel
/// would clear in place, or a multiple of it.
const BLOCK_BYTES: u64 = 2 * 1024 * 1024;
/// The most that one splice moves, so that other jobs get their turn.
const SPLICE_BYTES_MAX: u64 = 1024 * 1024;

/// The end that leads to the pipe. There is one, in the one task that owns the job.
#[derive(Debug)]
pub(super) struct Input {
    /// What has reached the pipe.
    position: u64,
    /// What was given back to the kernel.
    punched: u64,
}

impl Input {
    /// Finds out how far a stream has come.
    ///
    /// # Errors
    /// As lseek(2).
    pub(super) fn open(memfd: BorrowedFd<'_>) -> io::Result<Self> {
        let position = rustix::fs::seek(memfd, SeekFrom::Current(0))?;
        Ok(Self {
            position,
            // Punching the same again does no harm.
            punched: 0,
        })
    }

    /// What has reached the pipe.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Moves what the pipe takes of the bytes before `end`. Gives how much it was.
    ///
    /// # Errors
    /// As splice(2); `WouldBlock` where the pipe is full.
    pub(super) fn drain(
        &mut self,
        memfd: BorrowedFd<'_>,
        pipe: BorrowedFd<'_>,
        end: u64,
    ) -> io::Result<u64> {
        let len = end.saturating_sub(self.position).min(SPLICE_BYTES_MAX);
        if len == 0 {
            return Ok(0);
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let moved = rustix::pipe::splice(memfd, None, pipe, None, len, flags)?;
        let moved = u64::try_from(moved).unwrap_or(u64::MAX);
        self.position = self.position.saturating_add(moved);
        self.punch(memfd);
        Ok(moved)
    }

    fn punch(&mut self, memfd: BorrowedFd<'_>) {
        let whole = self.position - self.position % BLOCK_BYTES;
        if whole > self.punched {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // It costs memory where it fails, and no byte.
            let _ = rustix::fs::fallocate(memfd, flags, self.punched, whole - self.punched);
            self.punched = whole;
        }
    }
}

/// How much of the stream has come.
///
/// # Errors
/// As fstat(2).
pub(super) fn end(memfd: BorrowedFd<'_>) -> io::Result<u64> {
    let size = rustix::fs::fstat(memfd)?.st_size;
    Ok(u64::try_from(size).unwrap_or(0))
}

/// What is new of the bytes at `offset` of a stream of which `end` bytes are there already. Bytes that would
/// leave a gap are not taken.
pub(super) fn fresh(end: u64, offset: u64, bytes: &[u8]) -> &[u8] {
    let known = end.checked_sub(offset);
    let known = known.and_then(|known| usize::try_from(known).ok());
    known
        .and_then(|known| bytes.get(known..))
        .unwrap_or_default()
}

/// Writes the bytes that follow the first `end`.
///
/// # Errors
/// As pwrite(2).
pub(super) fn take(memfd: BorrowedFd<'_>, mut end: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let len = rustix::io::pwrite(memfd, bytes, end)?;
        if len == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        end = end.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        bytes = bytes.get(len..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::fs::MemfdFlags;
    use rustix::pipe::PipeFlags;

    use super::*;

    fn memfd() -> OwnedFd {
        rustix::fs::memfd_create("stdin", MemfdFlags::CLOEXEC).unwrap()
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    #[test]
    fn what_comes_twice_is_there_once_and_nothing_leaves_a_gap() {
        let memfd = memfd();
        let fd = memfd.as_fd();
        for (offset, bytes, expected) in [
            (0, &b"hello"[..], 5),
            (3, b"lo, you", 10),
            (0, b"hello", 10),
            (11, b"lost", 10),
        ] {
            let there = end(fd).unwrap();
            take(fd, there, fresh(there, offset, bytes)).unwrap();
            assert_eq!(end(fd).unwrap(), expected);
        }
        let (reader, writer) = pipe();
        let mut input = Input::open(fd).unwrap();
        assert_eq!(input.drain(fd, writer.as_fd(), 7).unwrap(), 7);
        // Whoever takes over goes on where the pipe is.
        let mut input = Input::open(fd).unwrap();
        assert_eq!(input.position(), 7);
        assert_eq!(input.drain(fd, writer.as_fd(), 10).unwrap(), 3);
        assert_eq!(input.drain(fd, writer.as_fd(), 10).unwrap(), 0);
        let mut bytes = [0; 20];
        assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 10);
        assert_eq!(&bytes[..10], b"hello, you");
    }

    #[test]
    fn what_is_in_a_pipe_stays_as_it_was_and_the_memory_goes_back() {
        let memfd = memfd();
        let fd = memfd.as_fd();
        let (reader, writer) = pipe();
        let mut input = Input::open(fd).unwrap();
        let block = |number: u64| vec![number as u8; 1 << 16];
        let blocks = 5 * BLOCK_BYTES / (1 << 16);
        let mut end = 0;
        let mut kept = Vec::new();
        for number in 0..blocks {
            take(fd, end, &block(number)).unwrap();
            end += 1 << 16;
            while input.position() < end {
                match input.drain(fd, writer.as_fd(), end) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let mut bytes = vec![0; 1 << 16];
                        let len = rustix::io::read(&reader, &mut bytes).unwrap();
                        kept.extend_from_slice(&bytes[..len]);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        drop(writer);
        let mut bytes = vec![0; 1 << 16];
        while let Ok(len @ 1..) = rustix::io::read(&reader, &mut bytes) {
            kept.extend_from_slice(&bytes[..len]);
        }
        let expected: Vec<u8> = (0..blocks).flat_map(block).collect();
        assert!(kept == expected);
        let held = rustix::fs::fstat(&memfd).unwrap().st_blocks as u64 * 512;
        assert!(held <= BLOCK_BYTES, "{held}");
    }
}
