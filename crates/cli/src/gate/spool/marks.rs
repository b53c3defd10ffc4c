//! What is known of a detached job's output beside the bytes: where the kept part begins, and when it came.
//!
//! ```text
//! 0            8            16                              +24
//! │ stdout from │ stderr from │ unix_ms │ stdout │ stderr │ …
//! ```
//!
//! All numbers are u64, little-endian. The first two are written before what lies before them is given back to the
//! file system; until then they are zero, or not there. The entries say from which offsets on the bytes came at that time or later; there is at most one a second, of a
//! job that writes for long one a minute, then one an hour. A torn entry at the end is none, and is written over.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;

use crate::gate::lock;

const HEAD_BYTES: u64 = 16;
const ENTRY_BYTES: u64 = 24;
/// So many entries are as far apart as the first of these, as many more as the next.
const ENTRIES_PER_STEP: u64 = 65_536;
const STEPS_MS: [u64; 3] = [1_000, 60_000, 3_600_000];

/// The file.
#[derive(Debug)]
pub(in crate::gate) struct Marks {
    file: File,
    /// Entries, and the time of the last.
    written: Mutex<(u64, u64)>,
}

impl Marks {
    /// Takes over a file, which may be empty: a gate finds its jobs on a full disk too.
    ///
    /// # Errors
    /// As fstat(2) and pread(2).
    pub(in crate::gate) fn open(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let count = len.saturating_sub(HEAD_BYTES) / ENTRY_BYTES;
        let marks = Self {
            file,
            written: Mutex::default(),
        };
        let last = match count.checked_sub(1) {
            Some(last) => marks.entry(last)?[0],
            None => 0,
        };
        *lock(&marks.written) = (count, last);
        Ok(marks)
    }

    /// Where the kept parts of stdout and stderr begin.
    ///
    /// # Errors
    /// As pread(2).
    pub(in crate::gate) fn from(&self) -> io::Result<[u64; 2]> {
        let mut head = [[0; 8]; 2];
        match self.file.read_exact_at(head.as_flattened_mut(), 0) {
            // Nothing was dropped yet.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok([0; 2]),
            read => read.map(|()| head.map(u64::from_le_bytes)),
        }
    }

    /// What is before `offset` of a stream may go.
    ///
    /// # Errors
    /// As pwrite(2); then it may not.
    pub(in crate::gate) fn drop_before(&self, index: usize, offset: u64) -> io::Result<()> {
        let at = if index == 0 { 0 } else { 8 };
        self.file.write_all_at(&offset.to_le_bytes(), at)
    }

    /// What follows these offsets comes at `unix_ms` or later.
    ///
    /// # Errors
    /// As pwrite(2); then nothing may follow.
    pub(in crate::gate) fn note(&self, unix_ms: u64, ends: [u64; 2]) -> io::Result<()> {
        let mut written = lock(&self.written);
        let (count, last) = *written;
        let due = count
            .checked_sub(1)
            .map(|before| last.saturating_add(step_ms(before)));
        if due.is_some_and(|due| unix_ms < due) {
            return Ok(());
        }
        let [stdout, stderr] = ends;
        let entry = [unix_ms, stdout, stderr].map(u64::to_le_bytes);
        let at = HEAD_BYTES + count * ENTRY_BYTES;
        self.file.write_all_at(entry.as_flattened(), at)?;
        *written = (count + 1, unix_ms);
        Ok(())
    }

    /// Where what came at `unix_ms` or later begins, and a little of what came before. `None` where
    /// nothing has.
    ///
    /// # Errors
    /// As pread(2).
    pub(in crate::gate) fn since(&self, unix_ms: u64) -> io::Result<Option<[u64; 2]>> {
        let (count, _) = *lock(&self.written);
        let (mut low, mut high) = (0, count);
        // The first one whose time reaches to `unix_ms`: times only grow.
        while low < high {
            let middle = low + (high - low) / 2;
            let [at, ..] = self.entry(middle)?;
            if at.saturating_add(step_ms(middle)) > unix_ms {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        if low == count {
            return Ok(None);
        }
        let [_, stdout, stderr] = self.entry(low)?;
        Ok(Some([stdout, stderr]))
    }

    fn entry(&self, number: u64) -> io::Result<[u64; 3]> {
        let mut entry = [[0; 8]; 3];
        let at = HEAD_BYTES + number * ENTRY_BYTES;
        self.file.read_exact_at(entry.as_flattened_mut(), at)?;
        Ok(entry.map(u64::from_le_bytes))
    }
}

/// For how long an entry stands: the next one is so much later at least.
fn step_ms(number: u64) -> u64 {
    let step = usize::try_from(number / ENTRIES_PER_STEP).unwrap_or(usize::MAX);
    let [.., last] = STEPS_MS;
    STEPS_MS.get(step).copied().unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> (File, Marks) {
        let file = tempfile::tempfile().unwrap();
        let marks = Marks::open(file.try_clone().unwrap()).unwrap();
        (file, marks)
    }

    #[test]
    fn what_came_since_a_time_is_never_more_than_a_second_too_much_and_never_too_little() {
        let (file, marks) = marks();
        // Bursts of a byte every 300 ms, with pauses.
        let times: Vec<u64> = (0..400)
            .map(|n| 10_000 + n * 300 + (n / 50) * 7_000)
            .collect();
        for (offset, &ms) in (0..).zip(&times) {
            marks.note(ms, [offset, 2 * offset]).unwrap();
        }
        for marks in [marks, Marks::open(file).unwrap()] {
            for since in (9_000..times[399] + 2_000).step_by(77) {
                let wanted = times.iter().position(|&ms| ms >= since);
                let told = marks.since(since).unwrap();
                let Some(told) = told else {
                    assert_eq!(wanted, None, "{since}");
                    continue;
                };
                assert_eq!(told[1], 2 * told[0]);
                let first = times[told[0] as usize];
                assert!(first + 1_000 > since, "{since}: {told:?}");
                assert!(wanted.is_none_or(|wanted| told[0] <= wanted as u64));
            }
        }
    }

    #[test]
    fn a_clock_that_goes_back_and_a_torn_entry_do_no_harm() {
        let (file, marks) = marks();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert_eq!(marks.from().unwrap(), [0, 0]);
        marks.note(5_000, [0, 0]).unwrap();
        marks.note(3_000, [1, 1]).unwrap();
        marks.note(6_500, [2, 2]).unwrap();
        file.set_len(HEAD_BYTES + ENTRY_BYTES + 7).unwrap();
        let marks = Marks::open(file).unwrap();
        assert_eq!(marks.since(9_000).unwrap(), None);
        marks.note(7_000, [3, 3]).unwrap();
        assert_eq!(marks.since(0).unwrap(), Some([0, 0]));
        assert_eq!(marks.since(6_500).unwrap(), Some([3, 3]));
        assert_eq!(marks.from().unwrap(), [0, 0]);
        marks.drop_before(1, 9).unwrap();
        assert_eq!(marks.from().unwrap(), [0, 9]);
    }
}
