//! Files that were changed in every way, put together again from what the matcher says.

use super::super::blocks::SUM_BYTES;
use super::super::tests::noise;
use super::*;

const LOG2: u8 = 11;
const BLOCK: usize = 1 << LOG2;

/// How one thing and the other come in.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// Bytes that the window grows by beyond what is asked for.
    more: usize,
    /// Sums that come at once.
    sums: usize,
    /// They come before they are asked for.
    early: bool,
}

const MANNERS: [Manner; 3] = [
    Manner {
        more: 0,
        sums: 1,
        early: false,
    },
    Manner {
        more: 5000,
        sums: 7,
        early: true,
    },
    Manner {
        more: 1 << 20,
        sums: 1000,
        early: false,
    },
];

fn packed(layout: Layout, files: &[&[u8]]) -> Vec<u8> {
    let mut packed = Vec::new();
    for block in files.iter().flat_map(|file| file.chunks(layout.block())) {
        Sums::push(&mut packed, &Sum::of(block));
    }
    packed
}

/// Puts `new` together from blocks of `olds` and what is in none: that, and the steps.
fn put_together(
    mut matcher: Matcher,
    sums: &[u8],
    olds: &[&[u8]],
    new: &[u8],
    manner: Manner,
) -> (Vec<u8>, Vec<Step>) {
    let (layout, mut sums) = (matcher.layout, sums.chunks(manner.sums * SUM_BYTES));
    let (mut made, mut steps, mut at, mut end) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        if manner.early
            && let Some(some) = sums.next()
        {
            matcher.extend(&Sums::of(some)).unwrap();
        }
        let step = matcher.step(&new[at..end], end == new.len());
        match step {
            Step::Sums => match sums.next() {
                Some(some) => matcher.extend(&Sums::of(some)).unwrap(),
                None => matcher.complete(),
            },
            Step::Bytes(len) => {
                assert!(len > end - at && len <= WINDOW_BYTES_MAX && end < new.len());
                end = new.len().min(at + len + manner.more);
            }
            Step::Block { index, len } => {
                let place = layout.place(index, 1).unwrap();
                assert_eq!(place.len, len as u64);
                made.extend_from_slice(&olds[place.file][place.offset as usize..][..len]);
                (at, steps) = (at + len, [steps, vec![step]].concat());
            }
            Step::New(len) => {
                assert!(len > 0);
                made.extend_from_slice(&new[at..at + len]);
                (at, steps) = (at + len, [steps, vec![step]].concat());
            }
            Step::End => break,
        }
        assert!(at <= end);
    }
    assert_eq!(at, new.len());
    (made, steps)
}

/// The bytes of `new` that have to be sent, however everything comes in.
#[track_caller]
fn cost(olds: &[&[u8]], new: &[u8]) -> usize {
    let sizes = [0, 1].map(|file| olds.get(file).map_or(0, |old| old.len() as u64));
    let layout = Layout::new(LOG2, sizes);
    let sums = packed(layout, olds);
    let costs = MANNERS.map(|manner| {
        let matcher = Matcher::new(layout, 0);
        let (made, steps) = put_together(matcher, &sums, olds, new, manner);
        assert!(made == new, "{manner:?}");
        let new = steps.iter().map(|step| match step {
            Step::New(len) => *len,
            _ => 0,
        });
        new.sum::<usize>()
    });
    costs.into_iter().max().unwrap_or(0)
}

#[test]
fn what_is_as_it_was_costs_nothing() {
    for len in [
        1,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        100 * BLOCK,
        100 * BLOCK + 77,
    ] {
        let old = noise(1, len);
        assert_eq!(cost(&[&old], &old), 0, "{len}");
    }
    assert_eq!(cost(&[&noise(1, 9000)], b""), 0);
}

#[test]
fn an_insertion_costs_itself_and_less_than_a_block_on_either_side() {
    let old = noise(2, 200 * BLOCK + 100);
    for (at, len) in [
        (0, 1),
        (0, 3 * BLOCK),
        (1, 1),
        (50 * BLOCK, 10),
        (77_777, 1),
        (old.len(), 5000),
    ] {
        let mut new = old.clone();
        new.splice(at..at, noise(3, len));
        let cost = cost(&[&old], &new);
        let around = if at % BLOCK == 0 { 0 } else { BLOCK };
        assert!(cost <= len + around, "{at} {len}: {cost}");
    }
}

#[test]
fn what_was_taken_away_costs_less_than_two_blocks() {
    let old = noise(4, 300 * BLOCK + 5);
    for (at, len) in [
        (0, 1),
        (0, 150 * BLOCK),
        (100, BLOCK),
        (20_000, 1),
        (20 * BLOCK, 7 * BLOCK),
    ] {
        let mut new = old.clone();
        new.drain(at..at + len);
        let cost = cost(&[&old], &new);
        assert!(cost < 2 * BLOCK, "{at} {len}: {cost}");
    }
    // Cut off, not on a boundary: the last bytes are in no block.
    assert_eq!(cost(&[&old], &old[..100 * BLOCK + 9]), 9);
    assert_eq!(cost(&[&old], &old[..100 * BLOCK]), 0);
}

#[test]
fn an_overwritten_part_costs_the_blocks_that_it_touches() {
    let old = noise(5, 400 * BLOCK);
    let mut new = old.clone();
    new[100 * BLOCK + 10..][..20 * BLOCK].copy_from_slice(&noise(6, 20 * BLOCK));
    assert_eq!(cost(&[&old], &new), 21 * BLOCK);
    // The first, the last, and every third.
    for index in (0..400).step_by(3) {
        new[index * BLOCK] ^= 1;
    }
    assert_eq!(cost(&[&old], &new), 21 * BLOCK + (134 - 7) * BLOCK);
}

#[test]
fn parts_that_moved_are_found_where_they_are() {
    let old = noise(7, 100 * BLOCK);
    let (a, b) = old.split_at(41 * BLOCK + 333);
    assert!(cost(&[&old], &[b, a].concat()) < 2 * BLOCK);
    // In another order block by block, backwards, and each twice.
    let blocks: Vec<_> = old.chunks(BLOCK).collect();
    let backwards: Vec<u8> = blocks
        .iter()
        .rev()
        .flat_map(|block| block.to_vec())
        .collect();
    assert_eq!(cost(&[&old], &backwards), 0);
    let twice: Vec<u8> = blocks.iter().flat_map(|block| block.repeat(2)).collect();
    assert_eq!(cost(&[&old], &twice), 0);
    // With a byte between them.
    let mut apart = Vec::new();
    for block in &blocks {
        apart.extend_from_slice(block);
        apart.push(0);
    }
    assert!(cost(&[&old], &apart) <= 2 * blocks.len());
}

#[test]
fn what_repeats_itself_costs_no_more() {
    // Nothing but one byte, longer and shorter.
    let zeros = vec![0; 50 * BLOCK];
    assert_eq!(cost(&[&zeros], &vec![0; 90 * BLOCK]), 0);
    assert!(cost(&[&zeros], &vec![0; 30 * BLOCK + 7]) <= 7);
    // Zeros around what is moved on.
    let old = [&zeros[..], &noise(8, 20 * BLOCK), &zeros].concat();
    let new = [&[1][..], &old].concat();
    assert!(cost(&[&old], &new) < 3 * BLOCK);
    // A record again and again, shorter than a block and not a part of one.
    let record = noise(9, 300);
    let old = record.repeat(400);
    assert!(cost(&[&old], &record.repeat(500)) < 3 * BLOCK);
    assert!(cost(&[&old], &[&[7; 5][..], &old].concat()) < 3 * BLOCK);
}

#[test]
fn a_second_file_serves_too() {
    let (first, second) = (noise(10, 10 * BLOCK + 9), noise(11, 30 * BLOCK));
    let new = [&second[..7 * BLOCK], &first, &second[20 * BLOCK..]].concat();
    assert_eq!(cost(&[&first, &second], &new), 0);
}

#[test]
fn what_has_nothing_in_common_is_new() {
    let (old, new) = (noise(12, 100 * BLOCK), noise(13, 333_333));
    assert_eq!(cost(&[&old], &new), new.len());
    assert_eq!(cost(&[&old[..1]], &new), new.len());
}

/// A change at the end of an old file that is longer than what is held.
#[test]
fn the_end_may_be_the_beginning() {
    let old = noise(14, 10 << 20);
    let new = [&old[9 << 20..], &old[..9 << 20]].concat();
    assert!(cost(&[&old], &new) <= BLOCK);
}

#[test]
fn it_goes_on_in_the_middle() {
    let old = noise(15, 50 * BLOCK);
    let layout = Layout::new(LOG2, [old.len() as u64, 0]);
    let sums = packed(layout, &[&old]);
    for from in [0, 10 * BLOCK, 10 * BLOCK + 1, old.len() - 1] {
        let matcher = Matcher::new(layout, from as u64);
        let (made, steps) = put_together(matcher, &sums, &[&old], &old[from..], MANNERS[0]);
        assert!(made == old[from..]);
        let around = usize::from(from % BLOCK != 0);
        assert!(steps.len() <= 50 - from / BLOCK + around, "{from}");
    }
}

/// With a hash of four bits, nearly every block is taken for another one. That is for BLAKE3 to notice; the
/// matcher says of every byte something that could be.
#[test]
fn hashes_that_collide_deceive_and_break_nothing() {
    fn weak(bytes: &[u8]) -> u64 {
        strong(bytes) & 15
    }
    let (old, new) = (noise(16, 60 * BLOCK + 3), noise(17, 70 * BLOCK + 1));
    let layout = Layout::new(LOG2, [old.len() as u64, 0]);
    let mut sums = Vec::new();
    for block in old.chunks(BLOCK) {
        let sum = Sum::of(block);
        let strong = weak(block);
        Sums::push(&mut sums, &Sum { strong, ..sum });
    }
    for manner in MANNERS {
        let mut matcher = Matcher::new(layout, 0);
        matcher.strong = weak;
        let (made, steps) = put_together(matcher, &sums, &[&old], &new, manner);
        assert!(made != new && made.len() == new.len());
        assert!(steps.iter().any(|step| matches!(step, Step::Block { .. })));
    }
}

#[test]
fn sums_that_lie_cost_bounded_work() {
    // Every anchor is there at every place that stands out, and no block is what it is said to be.
    let new = noise(18, 300 * BLOCK);
    let layout = Layout::new(LOG2, [1000 * BLOCK as u64, 0]);
    let mut matcher = Matcher::new(layout, 0);
    let mut sums = Vec::new();
    for (index, block) in new.chunks(BLOCK).enumerate() {
        let anchor = Sum::of(block)
            .anchor
            .map(|anchor| super::super::blocks::Anchor {
                offset: index as u16,
                ..anchor
            });
        for strong in 0..3 {
            Sums::push(&mut sums, &Sum { strong, anchor });
        }
    }
    matcher.extend(&Sums::of(&sums)).unwrap();
    matcher.complete();
    let (vain, len) = (matcher.vain, new.len() as u64);
    assert_eq!(matcher.step(&new, true), Step::New(new.len()));
    assert!(vain + len * VAIN_BYTES >= matcher.vain);
    // More of them than there are blocks.
    let mut matcher = Matcher::new(Layout::new(LOG2, [5, 0]), 0);
    matcher.extend(&Sums::of(&sums[..SUM_BYTES])).unwrap();
    assert_eq!(matcher.extend(&Sums::of(&sums[..SUM_BYTES])), Err(TooMany));
}

proptest::proptest! {
    #[test]
    fn any_edit_is_put_together(
        seed: u64,
        edits in proptest::collection::vec((0..60_000usize, 0..5000usize, 0..5000usize), 0..6),
        alphabet in 1..=3u32,
    ) {
        // Few different bytes make many blocks alike.
        let mask = [1, 3, 255][alphabet as usize - 1];
        let old: Vec<u8> = noise(seed, 60_000).iter().map(|byte| byte & mask).collect();
        let mut new = old.clone();
        for (at, out, inserted) in edits {
            let start = at.min(new.len());
            let end = new.len().min(start + out);
            new.splice(start..end, noise(seed ^ at as u64, inserted));
        }
        cost(&[&old], &new);
    }
}
