//! A stream of output, as those see it who share a job: offsets, each behind the byte before.
//!
//! ```text
//! not detached:  readers have acknowledged ── floor ──── in the ring ──── end
//! detached:      dropped ── disk.from ──── in the file ──── disk.end ──── in the ring ──── end
//! ```
//!
//! Of a detached job only the file is read, so the ring may be written over as soon as the file
//! has what it holds.

use super::ring::Layout;

/// How far a stream has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Output {
    /// What has come from the program.
    pub(super) end: u64,
    /// What will be at most, once the splice that is under way is done.
    pub(super) reserved: u64,
    /// Everything before may be written over in the ring.
    pub(super) floor: u64,
    /// Nothing follows.
    pub(super) closed: bool,
    /// The owner waits for room.
    pub(super) starved: bool,
    /// Where it is in its memfd.
    pub(super) layout: Layout,
    /// Of a detached job.
    pub(super) disk: Option<OnDisk>,
}

/// The part of a stream that is on the disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OnDisk {
    pub(super) from: u64,
    pub(super) end: u64,
    /// The file has no more blocks before this offset.
    pub(super) punched: u64,
}

impl OnDisk {
    pub(super) fn kept(&self) -> u64 {
        self.end.saturating_sub(self.from)
    }
}

impl Output {
    /// The oldest byte that can be read.
    pub(super) fn oldest(&self) -> u64 {
        match self.disk {
            Some(disk) => disk.from,
            // Nothing is being written over it.
            None => self.layout.oldest(self.reserved),
        }
    }

    /// The end of what can be read.
    pub(super) fn readable(&self) -> u64 {
        self.disk.map_or(self.end, |disk| disk.end)
    }

    /// Whether all that there will ever be can be read.
    pub(super) fn is_complete(&self) -> bool {
        self.closed && self.readable() == self.end
    }

    /// How much the ring may take; of a detached job so much that no more than `kept_max` bytes
    /// of the stream are kept.
    pub(super) fn room(&self, kept_max: u64) -> u64 {
        let ring = self.layout.end_max(self.floor);
        let kept = match self.disk {
            Some(disk) => disk.from.saturating_add(kept_max),
            None => u64::MAX,
        };
        ring.min(kept).saturating_sub(self.end)
    }

    /// Whether so much of a detached job's output is kept as may be.
    pub(super) fn is_full(&self, kept_max: u64) -> bool {
        let kept = |disk: OnDisk| self.end.saturating_sub(disk.from) >= kept_max;
        self.disk.is_some_and(kept)
    }

    /// What is in the ring alone, and where it ends.
    pub(super) fn unspooled(&self) -> Option<(u64, u64)> {
        let disk = self.disk?;
        (disk.end < self.end).then_some((disk.end, self.end))
    }

    /// The file has everything before `end`.
    pub(super) fn spooled(&mut self, end: u64) {
        if let Some(disk) = &mut self.disk {
            disk.end = end;
            self.floor = end;
        }
    }

    /// What is on the disk before `offset` is not there any more for those who read.
    pub(super) fn drop_before(&mut self, offset: u64) {
        if let Some(disk) = &mut self.disk {
            disk.from = disk.from.max(offset.min(disk.end));
        }
    }

    /// What is not on the disk will never be.
    pub(super) fn give_up(&mut self) {
        self.end = self.readable();
        self.closed = true;
    }
}
