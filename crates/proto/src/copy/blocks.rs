//! Blocks of a file that is there already: how it is cut, and what is said of each.
//!
//! A block is told by two things. Its strong hash says whether some bytes are it. Its anchor, the place near its
//! beginning where a rolling hash of 64 bytes stands out most, says where in another file it may
//! begin, so that nobody has to try every offset. Both are good, not unforgeable: what is made from
//! blocks is checked as a whole by BLAKE3.

use std::sync::LazyLock;

use twox_hash::XxHash3_64;

use super::fields::{Fields, put_number};

/// The smallest and largest blocks, as powers of two.
pub const BLOCK_LOG2_MIN: u8 = 11;
/// See [`BLOCK_LOG2_MIN`].
pub const BLOCK_LOG2_MAX: u8 = 20;
/// Blocks that may be told of for one file: 4 TiB of the largest.
pub const BLOCKS_MAX: u64 = 4 * 1024 * 1024;
/// What is said of a block.
pub const SUM_BYTES: usize = 14;
/// Sums in one message.
pub const SUMS_PER_MESSAGE_MAX: usize = 8 * 1024;

/// Bytes at the beginning of a block in which its anchor lies.
pub(super) const ANCHOR_ZONE: usize = 2048;
/// Bytes that the rolling hash depends on.
pub(super) const ANCHOR_BYTES: usize = 64;
/// Rolling hashes from here on stand out: one of 256.
const OUTSTANDING: u64 = 0xff << 56;
/// An anchor's offset where there is none.
const NO_ANCHOR: u16 = u16::MAX;

const _: () = assert!(ANCHOR_ZONE <= 1 << BLOCK_LOG2_MIN);
const _: () = assert!(ANCHOR_ZONE < NO_ANCHOR as usize);

/// How one or two files are cut into blocks: those of the first, then those of the second. The last
/// block of each may be shorter than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    log2: u8,
    sizes: [u64; 2],
}

/// Where blocks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the files of the layout.
    pub file: usize,
    /// From its beginning.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

impl Layout {
    /// One file, or two, of these sizes; the sizes of files that there are not are 0.
    pub fn new(log2: u8, sizes: [u64; 2]) -> Self {
        let log2 = log2.clamp(BLOCK_LOG2_MIN, BLOCK_LOG2_MAX);
        Self { log2, sizes }
    }

    /// What suits files of these sizes. Sums cost the more, and what is sent around a change the less, the smaller
    /// the blocks are: the least is near the root of fourteen times the size.
    pub fn of(sizes: [u64; 2]) -> Self {
        let size = sizes
            .iter()
            .fold(0, |sum: u64, size| sum.saturating_add(*size));
        let wanted = (size.checked_ilog2().unwrap_or(0) + 4) / 2;
        Self::new(u8::try_from(wanted).unwrap_or(u8::MAX), sizes)
    }

    /// The size of a block that is no file's last.
    pub fn block(&self) -> usize {
        1 << self.log2
    }

    /// See [`Self::block`].
    pub fn log2(&self) -> u8 {
        self.log2
    }

    /// The sizes of the files.
    pub fn sizes(&self) -> [u64; 2] {
        self.sizes
    }

    /// Blocks of all files that are told of.
    pub fn count(&self) -> u64 {
        let [first, second] = self.counts();
        (first + second).min(BLOCKS_MAX)
    }

    fn counts(&self) -> [u64; 2] {
        self.sizes.map(|size| size.div_ceil(1 << self.log2))
    }

    /// Where so many blocks from one on lie, as far as they lie in one file: its last may be short.
    pub fn place(&self, first: u64, count: u64) -> Option<Place> {
        let [before, _] = self.counts();
        let (file, index) = match first.checked_sub(before) {
            None => (0, first),
            Some(index) => (1, index),
        };
        let size = self.sizes.get(file)?;
        let offset = index.checked_mul(1 << self.log2)?;
        let rest = size.checked_sub(offset).filter(|rest| *rest > 0)?;
        let len = count.saturating_mul(1 << self.log2).min(rest);
        Some(Place { file, offset, len })
    }

    pub(super) fn read(f: &mut Fields<'_>) -> Option<Option<Self>> {
        let log2 = match f.byte()? {
            0 => return Some(None),
            log2 @ BLOCK_LOG2_MIN..=BLOCK_LOG2_MAX => log2,
            _ => return None,
        };
        let sizes = [f.number()?, f.number()?];
        (sizes.first() != Some(&0)).then_some(Some(Self { log2, sizes }))
    }

    pub(super) fn write(layout: Option<&Self>, out: &mut Vec<u8>) {
        out.push(layout.map_or(0, |layout| layout.log2));
        let sizes = layout.into_iter().flat_map(|layout| layout.sizes);
        sizes.for_each(|size| put_number(out, size));
    }
}

/// What is said of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// XXH3 of 64 bits: it tells blocks apart.
    pub strong: u64,
    /// Most blocks have one.
    pub anchor: Option<Anchor>,
}

/// A place in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Of the 64 bytes there.
    pub hash: u32,
    /// Where they begin.
    pub offset: u16,
}

impl Sum {
    /// What is to be said of a block.
    pub fn of(block: &[u8]) -> Self {
        Self {
            strong: strong(block),
            anchor: anchor(block),
        }
    }
}

/// The hash that tells blocks apart: XXH3 of 64 bits.
pub(super) fn strong(block: &[u8]) -> u64 {
    XxHash3_64::oneshot(block)
}

/// Where in the beginning of a block the rolling hash is the highest, if it stands out anywhere.
fn anchor(block: &[u8]) -> Option<Anchor> {
    let zone = block.get(..ANCHOR_ZONE).unwrap_or(block);
    let (mut roll, mut at, mut best) = (Roll::default(), 0, None);
    while let Some(len) = roll.outstanding(zone.get(at..).unwrap_or_default()) {
        at += len;
        let higher = best.is_none_or(|(hash, _)| roll.0 > hash);
        if at >= ANCHOR_BYTES && higher {
            best = Some((roll.0, at - ANCHOR_BYTES));
        }
    }
    best.map(|(hash, offset)| Anchor {
        hash: Roll(hash).short(),
        offset: u16::try_from(offset).unwrap_or(NO_ANCHOR),
    })
}

/// A rolling hash: it depends on the last [`ANCHOR_BYTES`] bytes, and on fewer only while there are fewer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Roll(u64);

/// What each byte adds. With the highest bit, 64 times the same come to no hash that stands out.
static GEAR: LazyLock<[u64; 256]> = LazyLock::new(|| {
    let mut gear = [0; 256];
    let all = gear.iter_mut().zip(0..=u8::MAX);
    all.for_each(|(add, byte)| *add = strong(&[byte]) | 1 << 63);
    gear
});

impl Roll {
    /// Takes in bytes up to the next after which it stands out: how many.
    pub(super) fn outstanding(&mut self, bytes: &[u8]) -> Option<usize> {
        let gear = &*GEAR;
        let mut hash = self.0;
        for (index, byte) in bytes.iter().enumerate() {
            let add = gear.get(usize::from(*byte)).copied().unwrap_or_default();
            hash = (hash << 1).wrapping_add(add);
            if hash >= OUTSTANDING {
                self.0 = hash;
                return Some(index + 1);
            }
        }
        self.0 = hash;
        None
    }

    /// The part of it that is sent: below the bits that all have that stand out.
    pub(super) fn short(self) -> u32 {
        (self.0 >> 24) as u32
    }
}

/// The packed sums of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums<'a>(&'a [u8]);

impl<'a> Sums<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (sums, rest) = bytes.as_chunks::<SUM_BYTES>();
        let few = !sums.is_empty() && sums.len() <= SUMS_PER_MESSAGE_MAX;
        let good = |sum: &[u8; SUM_BYTES]| {
            let [.., a, b, c, d, low, high] = *sum;
            match u16::from_le_bytes([low, high]) {
                NO_ANCHOR => [a, b, c, d] == [0; 4],
                offset => usize::from(offset) <= ANCHOR_ZONE - ANCHOR_BYTES,
            }
        };
        (rest.is_empty() && few && sums.iter().all(good)).then_some(Self(bytes))
    }

    /// Puts a sum behind those in `packed`.
    pub fn push(packed: &mut Vec<u8>, sum: &Sum) {
        packed.extend_from_slice(&sum.strong.to_le_bytes());
        let (hash, offset) = match sum.anchor {
            Some(anchor) => (anchor.hash, anchor.offset),
            None => (0, NO_ANCHOR),
        };
        packed.extend_from_slice(&hash.to_le_bytes());
        packed.extend_from_slice(&offset.to_le_bytes());
    }

    /// Of what was packed by [`Self::push`], or came as [`Self::packed`].
    pub fn of(packed: &'a [u8]) -> Self {
        Self(packed)
    }

    /// As they are sent.
    pub fn packed(&self) -> &'a [u8] {
        self.0
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / SUM_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = Sum> + 'a {
        let (sums, _) = self.0.as_chunks::<SUM_BYTES>();
        sums.iter().map(|sum| {
            let [s0, s1, s2, s3, s4, s5, s6, s7, a, b, c, d, low, high] = *sum;
            let offset = u16::from_le_bytes([low, high]);
            let hash = u32::from_le_bytes([a, b, c, d]);
            Sum {
                strong: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
                anchor: (offset != NO_ANCHOR).then_some(Anchor { hash, offset }),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::tests::noise;

    #[test]
    fn nothing_stands_out_in_a_run_of_one_byte() {
        for byte in 0..=255 {
            let run = [byte; 300];
            let (mut roll, mut at) = (Roll::default(), 0);
            // Fewer bytes may.
            while at < ANCHOR_BYTES {
                let len = roll.outstanding(&run[at..ANCHOR_BYTES]);
                at += len.unwrap_or(ANCHOR_BYTES);
            }
            assert_eq!(roll.outstanding(&run), None, "{byte}");
        }
    }

    #[test]
    fn an_anchor_is_where_its_bytes_are_and_in_nearly_every_block() {
        let bytes = noise(1, 500 * 4096);
        let mut without = 0;
        for block in bytes.chunks(4096) {
            let Some(anchor) = anchor(block) else {
                without += 1;
                continue;
            };
            let here = &block[usize::from(anchor.offset)..][..ANCHOR_BYTES];
            let mut roll = Roll(0x1234);
            let mut at = 0;
            while at < ANCHOR_BYTES {
                at += roll.outstanding(&here[at..]).unwrap_or(ANCHOR_BYTES);
            }
            assert!(roll.0 >= OUTSTANDING && roll.short() == anchor.hash);
        }
        assert!(without < 5, "{without}");
        assert_eq!(anchor(&[7; 4096]), None);
        assert_eq!(anchor(&bytes[..ANCHOR_BYTES - 1]), None);
        assert_eq!(anchor(b""), None);
    }

    #[test]
    fn the_hashes_are_those_of_the_document() {
        // XXH3 as others compute it, so that others can take part.
        assert_eq!(strong(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(strong(b"a"), 0xe6c6_32b6_1e96_4e1f);
        assert_eq!(GEAR[usize::from(b'a')], strong(b"a") | 1 << 63);
    }

    #[test]
    fn blocks_lie_where_the_layout_says() {
        let layout = Layout::new(12, [10_000, 4097]);
        assert_eq!((layout.block(), layout.count()), (4096, 5));
        let place = |first, count| {
            let place = layout.place(first, count)?;
            Some((place.file, place.offset, place.len))
        };
        assert_eq!(place(0, 2), Some((0, 0, 8192)));
        assert_eq!(place(0, 9), Some((0, 0, 10_000)));
        assert_eq!(place(2, 1), Some((0, 8192, 1808)));
        assert_eq!(place(3, u64::MAX), Some((1, 0, 4097)));
        assert_eq!(place(4, 1), Some((1, 4096, 1)));
        assert_eq!((place(5, 1), place(u64::MAX, 1)), (None, None));
        assert_eq!(Layout::new(12, [8192, 0]).place(2, 1), None);
        let huge = Layout::of([u64::MAX, u64::MAX]);
        assert_eq!((huge.log2(), huge.count()), (20, BLOCKS_MAX));
        assert_eq!(Layout::of([1, 0]).log2(), BLOCK_LOG2_MIN);
        assert_eq!(Layout::of([2 << 30, 0]).log2(), 17);
    }
}
