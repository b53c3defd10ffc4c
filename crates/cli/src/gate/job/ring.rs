//! A stream of output in a memfd that the keeper holds too.
//!
//! Bytes enter a ring from a pipe by splice(2) at the *file position*, which the kernel
//! moves together with the bytes and which all processes with the same open file description
//! share: so it tells the truth even when the gate is killed between two instructions.
//! They leave by pread(2) at any offset that is still there.
//!
//! A stream begins in a small ring, because what fits the processor's cache moves half as fast
//! again. One that waits for its readers most of the time goes on in a large ring behind it
//! ([`Ring::grow`]), and stays there.
//!
//! ```text
//! 0       position   SMALL_BYTES                                 WORDS_AT
//! │ this lap ──►│ before │ the large ring: RING_BYTES              │ words, u64 LE each │
//! ```
//!
//! At the end of a lap the position has to go back to the ring's beginning, which is a step of its
//! own: `intent = lap + 1`, lseek(beginning), `lap = lap + 1`. Whoever finds the two
//! numbers different finishes the step. Growth is a step too: `grown = end`, lseek(SMALL_BYTES).
//! The words are written at the first wrap, so a small output costs neither the writes nor the page.
//!
//! Pages of a ring are copied into and out of, never shared with a pipe: to
//! write over them is safe once nobody wants to read them.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::pipe::SpliceFlags;

/// How much output is kept of a stream at first.
pub(in crate::gate) const SMALL_BYTES: u64 = 512 * 1024;
/// How much once it has grown: what is on its way to those who read it.
pub(in crate::gate) const RING_BYTES: u64 = 8 * 1024 * 1024;
/// Where the words stand: lap and intent of the small ring,
const WORDS_AT: u64 = SMALL_BYTES + RING_BYTES;
/// the offset at which the stream has left it, 0 where it has not,
const GROWN_AT: u64 = WORDS_AT + 16;
/// and lap and intent of the large one.
const LARGE_WORDS_AT: u64 = WORDS_AT + 24;
/// The most that one splice moves, so that other jobs get their turn.
const SPLICE_BYTES_MAX: u64 = 1024 * 1024;

/// Where the bytes of a stream are in its memfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Layout {
    /// In the small ring.
    #[default]
    Small,
    /// In the large ring from this offset on, which is not 0, and before it in the small one.
    Grown(u64),
    /// In one of [`RING_BYTES`] at the beginning, with two words behind it: so wrote the gates that knew no small ring, and
    /// a stream of theirs that an upgrade takes over stays as it is.
    Single,
}

impl Layout {
    /// How much may be written behind `floor`, before which nobody wants anything any more.
    pub(super) fn end_max(self, floor: u64) -> u64 {
        match self {
            Self::Small => floor.saturating_add(SMALL_BYTES),
            Self::Grown(from) => floor.max(from).saturating_add(RING_BYTES),
            Self::Single => floor.saturating_add(RING_BYTES),
        }
    }

    /// The oldest byte that is there when all before `end` is written.
    pub(super) fn oldest(self, end: u64) -> u64 {
        match self {
            Self::Small => end.saturating_sub(SMALL_BYTES),
            // The small ring is as it was when the stream left it.
            Self::Grown(from) if end <= from.saturating_add(RING_BYTES) => {
                from.saturating_sub(SMALL_BYTES)
            }
            Self::Grown(_) | Self::Single => end.saturating_sub(RING_BYTES),
        }
    }

    /// Where the byte at `offset` is, and how many follow it without a step.
    fn place(self, offset: u64) -> (u64, u64) {
        match self {
            Self::Grown(from) if offset >= from => {
                let place = (offset - from) % RING_BYTES;
                (SMALL_BYTES + place, RING_BYTES - place)
            }
            Self::Small | Self::Grown(_) => {
                let place = offset % SMALL_BYTES;
                let whole = SMALL_BYTES - place;
                let left = match self {
                    Self::Grown(from) => from - offset,
                    _ => u64::MAX,
                };
                (place, whole.min(left))
            }
            Self::Single => {
                let place = offset % RING_BYTES;
                (place, RING_BYTES - place)
            }
        }
    }

    /// Which part of the memfd is written to, and the place of the two words of its laps.
    fn ring(self) -> (u64, u64, u64) {
        match self {
            Self::Small => (0, SMALL_BYTES, WORDS_AT),
            Self::Grown(_) => (SMALL_BYTES, RING_BYTES, LARGE_WORDS_AT),
            Self::Single => (0, RING_BYTES, RING_BYTES),
        }
    }
}

/// The end of the ring that is written to. There is one, in the one task that owns the job.
#[derive(Debug)]
pub(super) struct Ring {
    layout: Layout,
    lap: u64,
    /// From the ring's beginning.
    position: u64,
}

impl Ring {
    /// Finds out how far a stream has come, and finishes what was begun.
    ///
    /// # Errors
    /// As pread(2) and lseek(2); `InvalidData` where the memfd is no ring.
    pub(super) fn open(memfd: BorrowedFd<'_>) -> io::Result<Self> {
        let position = rustix::fs::seek(memfd, SeekFrom::Current(0))?;
        let layout = layout(memfd)?;
        if let Layout::Grown(from) = layout
            && position < SMALL_BYTES
        {
            // It was to leave the small ring, and is still there.
            let ring = Self::open_as(Layout::Small, memfd, position)?;
            return match ring.end() == from {
                true => ring.enter_large(memfd),
                false => Err(io::ErrorKind::InvalidData.into()),
            };
        }
        Self::open_as(layout, memfd, position)
    }

    fn open_as(layout: Layout, memfd: BorrowedFd<'_>, position: u64) -> io::Result<Self> {
        let (from, len, words_at) = layout.ring();
        let [lap, intent] = words(memfd, words_at)?;
        let position = position
            .checked_sub(from)
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut ring = Self {
            layout,
            lap,
            position,
        };
        let begun = lap.checked_add(1) == Some(intent);
        match (intent == lap, begun, position) {
            (true, _, at) if at <= len => {}
            (_, true, at) if at == len => ring.finish_wrap(memfd)?,
            // It went back and nothing followed: the lap is written before any splice.
            (_, true, 0) => ring.count_lap(memfd)?,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(ring)
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The offset behind the last byte.
    pub(super) fn end(&self) -> u64 {
        let (_, len, _) = self.layout.ring();
        let from = match self.layout {
            Layout::Grown(from) => from,
            Layout::Small | Layout::Single => 0,
        };
        let laps = self.lap.saturating_mul(len);
        from.saturating_add(laps).saturating_add(self.position)
    }

    /// Goes on in the large ring from here, where it is in the small one and something is in it.
    ///
    /// # Errors
    /// As pwrite(2) and lseek(2).
    pub(super) fn grow(&mut self, memfd: BorrowedFd<'_>) -> io::Result<()> {
        let end = self.end();
        if self.layout != Layout::Small || end == 0 {
            return Ok(());
        }
        write_word(memfd, GROWN_AT, end)?;
        *self = self.enter_large(memfd)?;
        Ok(())
    }

    fn enter_large(&self, memfd: BorrowedFd<'_>) -> io::Result<Self> {
        rustix::fs::seek(memfd, SeekFrom::Start(SMALL_BYTES))?;
        Ok(Self {
            layout: Layout::Grown(self.end()),
            lap: 0,
            position: 0,
        })
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
        let (_, whole, words_at) = self.layout.ring();
        if self.position == whole {
            write_word(memfd, words_at + 8, self.lap.saturating_add(1))?;
            self.finish_wrap(memfd)?;
        }
        let len = max.min(whole - self.position).min(SPLICE_BYTES_MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let moved = rustix::pipe::splice(pipe, None, memfd, None, len, flags)?;
        let moved = u64::try_from(moved).unwrap_or(u64::MAX);
        self.position = self.position.saturating_add(moved);
        Ok(moved)
    }

    fn finish_wrap(&mut self, memfd: BorrowedFd<'_>) -> io::Result<()> {
        let (from, ..) = self.layout.ring();
        rustix::fs::seek(memfd, SeekFrom::Start(from))?;
        self.position = 0;
        self.count_lap(memfd)
    }

    fn count_lap(&mut self, memfd: BorrowedFd<'_>) -> io::Result<()> {
        let (_, _, words_at) = self.layout.ring();
        self.lap = self.lap.saturating_add(1);
        write_word(memfd, words_at, self.lap)
    }
}

/// Reads what is at `offset` of the stream: as much as there is space for, and never past the end
/// of a lap. The caller knows that it is there; `layout` may be an older one than the stream's is now.
///
/// # Errors
/// As pread(2).
pub(super) fn read(
    memfd: BorrowedFd<'_>,
    layout: Layout,
    offset: u64,
    space: &mut [u8],
) -> io::Result<usize> {
    let (place, whole) = layout.place(offset);
    let len = space
        .len()
        .min(usize::try_from(whole).unwrap_or(usize::MAX));
    let space = space.get_mut(..len).unwrap_or_default();
    Ok(rustix::io::pread(memfd, space, place)?)
}

/// Which of the layouts a memfd has. Its length tells a single ring apart: without words the small one is no
/// longer than [`SMALL_BYTES`], and with them no shorter than where they stand.
fn layout(memfd: BorrowedFd<'_>) -> io::Result<Layout> {
    let len = u64::try_from(rustix::fs::fstat(memfd)?.st_size).unwrap_or(0);
    if len <= SMALL_BYTES {
        return Ok(Layout::Small);
    }
    if len <= WORDS_AT {
        return Ok(Layout::Single);
    }
    let [from, _] = words(memfd, GROWN_AT)?;
    Ok(match from {
        0 => Layout::Small,
        from => Layout::Grown(from),
    })
}

/// Two numbers; 0 where nothing was ever written.
fn words(memfd: BorrowedFd<'_>, at: u64) -> io::Result<[u64; 2]> {
    let mut bytes = [[0; 8]; 2];
    let len = rustix::io::pread(memfd, bytes.as_flattened_mut(), at)?;
    match len {
        0 | 8 | 16 => Ok(bytes.map(u64::from_le_bytes)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn write_word(memfd: BorrowedFd<'_>, at: u64, value: u64) -> io::Result<()> {
    match rustix::io::pwrite(memfd, &value.to_le_bytes(), at)? {
        8 => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
