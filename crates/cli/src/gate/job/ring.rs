//! A stream of output in a memfd that the keeper holds too.
//!
//! The first [`RING_BYTES`] of the memfd are a ring. Bytes enter from a pipe by
//! splice(2) at the *file position*, which the kernel moves together with the
//! bytes and which all processes with the same open file description share: so
//! it tells the truth even when the gate is killed between two instructions.
//! They leave by pread(2) at any offset that is still there.
//!
//! ```text
//! 0                    position        RING_BYTES         +8         +16
//! │ this lap ───────────►│ the lap before │  lap (u64 LE)  │ intent (u64 LE) │
//! ```
//!
//! At the end of a lap the position has to go back to 0, which is a step of its
//! own: `intent = lap + 1`, lseek(0), `lap = lap + 1`. Whoever finds the two
//! numbers different finishes the step. They are written at the first wrap, so a
//! small output costs neither the writes nor the page.
//!
//! Pages of the ring are copied into and out of, never shared with a pipe: to
//! write over them is safe once nobody wants to read them.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::pipe::SpliceFlags;

/// How much output is kept of a stream: what is on its way to those who read it.
pub(in crate::gate) const RING_BYTES: u64 = 8 * 1024 * 1024;
/// Where the number of whole laps stands, and behind it the intended one.
const WORDS_AT: u64 = RING_BYTES;
/// The most that one splice moves, so that other jobs get their turn.
const SPLICE_BYTES_MAX: u64 = 1024 * 1024;

/// The end of the ring that is written to. There is one, in the one task that owns the job.
#[derive(Debug)]
pub(super) struct Ring {
    lap: u64,
    position: u64,
}

impl Ring {
    /// Finds out how far a stream has come, and finishes what was begun.
    ///
    /// # Errors
    /// As pread(2) and lseek(2); `InvalidData` where the memfd is no ring.
    pub(super) fn open(memfd: BorrowedFd<'_>) -> io::Result<Self> {
        let [lap, intent] = words(memfd)?;
        let position = rustix::fs::seek(memfd, SeekFrom::Current(0))?;
        let mut ring = Self { lap, position };
        let begun = lap.checked_add(1) == Some(intent);
        match (intent == lap, begun, position) {
            (true, _, ..=RING_BYTES) => {}
            (_, true, RING_BYTES) => ring.finish_wrap(memfd)?,
            // It went back and nothing followed: the lap is written before any splice.
            (_, true, 0) => ring.count_lap(memfd)?,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(ring)
    }

    /// The offset behind the last byte.
    pub(super) fn end(&self) -> u64 {
        self.lap
            .saturating_mul(RING_BYTES)
            .saturating_add(self.position)
    }

    /// Moves what `pipe` holds into the ring, at most `max` bytes. Gives how much it was; 0 is the
    /// pipe's end.
    ///
    /// # Errors
    /// As splice(2); `WouldBlock` where the pipe is empty.
    pub(super) fn fill(
        &mut self,
        memfd: BorrowedFd<'_>,
        pipe: BorrowedFd<'_>,
        max: u64,
    ) -> io::Result<u64> {
        if self.position == RING_BYTES {
            self.wrap(memfd)?;
        }
        let len = max.min(RING_BYTES - self.position).min(SPLICE_BYTES_MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let moved = rustix::pipe::splice(pipe, None, memfd, None, len, flags)?;
        let moved = u64::try_from(moved).unwrap_or(u64::MAX);
        self.position = self.position.saturating_add(moved);
        Ok(moved)
    }

    fn wrap(&mut self, memfd: BorrowedFd<'_>) -> io::Result<()> {
        write_word(memfd, 1, self.lap.saturating_add(1))?;
        self.finish_wrap(memfd)
    }

    fn finish_wrap(&mut self, memfd: BorrowedFd<'_>) -> io::Result<()> {
        rustix::fs::seek(memfd, SeekFrom::Start(0))?;
        self.position = 0;
        self.count_lap(memfd)
    }

    fn count_lap(&mut self, memfd: BorrowedFd<'_>) -> io::Result<()> {
        self.lap = self.lap.saturating_add(1);
        write_word(memfd, 0, self.lap)
    }
}

/// Reads what is at `offset` of the stream: as much as there is space for, and never past the end
/// of a lap. The caller knows that it is there.
///
/// # Errors
/// As pread(2).
pub(super) fn read(memfd: BorrowedFd<'_>, offset: u64, space: &mut [u8]) -> io::Result<usize> {
    let place = offset % RING_BYTES;
    let whole = usize::try_from(RING_BYTES - place).unwrap_or(usize::MAX);
    let len = space.len().min(whole);
    let space = space.get_mut(..len).unwrap_or_default();
    Ok(rustix::io::pread(memfd, space, place)?)
}

/// The number of laps and the intended number; both 0 where nothing was ever written.
fn words(memfd: BorrowedFd<'_>) -> io::Result<[u64; 2]> {
    let mut bytes = [[0; 8]; 2];
    let len = rustix::io::pread(memfd, bytes.as_flattened_mut(), WORDS_AT)?;
    match len {
        // After the first write of `intent` alone the file is already whole.
        0 | 16 => Ok(bytes.map(u64::from_le_bytes)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn write_word(memfd: BorrowedFd<'_>, which: u64, value: u64) -> io::Result<()> {
    let at = WORDS_AT + 8 * which;
    match rustix::io::pwrite(memfd, &value.to_le_bytes(), at)? {
        8 => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
