//! Finds the blocks of an old file in a new one, while the sums of the old one still come in.
//!
//! ```text
//!                    ┌──── the next block is here too ────┐
//!                    ▼                                    │
//!              ┌── expect ◄─────────── found ◄──────────┐ │
//!              │     └────────────────────────────────┐ │ │
//!   another    │                                      │ │ │
//!   block or   ▼                                      └─┼─┘
//!   none:    search: roll over every offset for anchors, and look at every block's length ──┘
//! ```
//!
//! As long as one block follows the other, each byte is hashed once, by the fast hash. Only where something has
//! changed every offset is looked at. Bytes enter as a window of the new file that its owner
//! moves on; what they are leaves as [`Step`]s. Whatever the sums say, every byte comes to
//! be in one step, and the work is bounded by the length of the file.

use std::collections::HashMap;

use super::blocks::{ANCHOR_BYTES, ANCHOR_ZONE, BLOCK_LOG2_MAX, Layout, Roll, Sum, Sums, strong};

/// Bytes that are looked at before all sums are there: a block of the end may be at the beginning.
const HELD_BYTES: usize = 8 * 1024 * 1024;
/// New bytes that are worth a step.
const NEW_BYTES: usize = 64 * 1024;
/// Blocks that are hashed in vain for each byte that is rolled over, in bytes; and how many at first.
const VAIN_BYTES: u64 = 8;
/// See [`VAIN_BYTES`].
const VAIN_BLOCKS: u64 = 16;
/// Blocks with the same anchor that are tried.
const ALIKE_MAX: usize = 4;

/// The most that [`Step::Bytes`] asks for.
pub const WINDOW_BYTES_MAX: usize = HELD_BYTES + (2 << BLOCK_LOG2_MAX) + NEW_BYTES + ANCHOR_ZONE;

/// What the next bytes of the new file are, or what is needed to say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give more sums, or say that there are no more.
    Sums,
    /// Have at least so many bytes in the window, or all to the end of the file.
    Bytes(usize),
    /// The next bytes are this block: move the window on by its length.
    Block {
        /// In the order of the layout.
        index: u64,
        /// In bytes.
        len: usize,
    },
    /// So many bytes are in no block: move the window on by them.
    New(usize),
    /// There are no more bytes.
    End,
}

/// More sums than the layout has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more sums than there are blocks")]
pub struct TooMany;

/// Finds the blocks of a layout in a file.
pub struct Matcher {
    layout: Layout,
    sums: Vec<Sum>,
    complete: bool,
    /// The first block with each hash; of those that are no file's last.
    blocks: HashMap<u64, u32>,
    /// The first block with each anchor, and for each block the next with the same one.
    anchors: HashMap<u32, u32>,
    alike: Vec<u32>,
    strong: fn(&[u8]) -> u64,
    /// The block that is expected.
    next: u64,
    state: State,
    /// Bytes that may yet be hashed in vain.
    vain: u64,
}

/// Whereto nothing leads.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
enum State {
    Expect,
    Search(Search),
    /// All sums are waited for: what is searched begins anew.
    Starved,
    /// Behind new bytes that were said.
    Found {
        index: u64,
        len: usize,
    },
}

/// A search, from the beginning of the window on.
#[derive(Clone, Copy, Debug, Default)]
struct Search {
    /// So far.
    rolled: usize,
    roll: Roll,
    /// Where a block is tried next, whatever lies there.
    grid: usize,
}

impl Matcher {
    /// For a file that is looked at from an offset on.
    pub fn new(layout: Layout, from: u64) -> Self {
        Self {
            layout,
            sums: Vec::new(),
            complete: false,
            blocks: HashMap::new(),
            anchors: HashMap::new(),
            alike: Vec::new(),
            strong,
            // In between two blocks none is expected.
            next: match from % (1 << layout.log2()) {
                0 => from >> layout.log2(),
                _ => u64::MAX,
            },
            state: State::Expect,
            vain: VAIN_BLOCKS << layout.log2(),
        }
    }

    /// Takes in the sums of the next blocks.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn extend(&mut self, sums: &Sums<'_>) -> Result<(), TooMany> {
        for sum in sums.iter() {
            let index = self.sums.len() as u64;
            if self.complete || index >= self.layout.count() {
                return Err(TooMany);
            }
            let number = u32::try_from(index).map_err(|_| TooMany)?;
            if self.len(index) == self.layout.block() {
                self.blocks.entry(sum.strong).or_insert(number);
            }
            self.sums.push(sum);
            self.alike.push(NONE);
            if let Some(anchor) = sum.anchor {
                self.link(anchor.hash, number);
            }
        }
        Ok(())
    }

    /// Puts a block behind those with the same anchor, where it makes a difference.
    fn link(&mut self, hash: u32, number: u32) {
        let first = *self.anchors.entry(hash).or_insert(number);
        let (offset, len) = (self.offset(number), self.len(u64::from(number)));
        let mut at = first;
        for _ in 0..ALIKE_MAX {
            // One that begins at the same place is found by its hash.
            if at == number || (self.offset(at), self.len(u64::from(at))) == (offset, len) {
                return;
            }
            match self.alike.get_mut(at as usize) {
                Some(after) if *after == NONE => {
                    *after = number;
                    return;
                }
                Some(after) => at = *after,
                None => return,
            }
        }
    }

    fn offset(&self, number: u32) -> Option<u16> {
        let anchor = self.sums.get(number as usize)?.anchor?;
        Some(anchor.offset)
    }

    /// There are no more sums.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// The length of a block; 0 where there is none.
    fn len(&self, index: u64) -> usize {
        let place = self.layout.place(index, 1);
        place.map_or(0, |place| usize::try_from(place.len).unwrap_or(0))
    }

    /// What the window begins with. `ended` says that it goes to the end of the file.
    pub fn step(&mut self, window: &[u8], ended: bool) -> Step {
        match std::mem::replace(&mut self.state, State::Expect) {
            State::Found { index, len } => self.block(index, len),
            State::Starved if !self.complete => {
                self.state = State::Starved;
                Step::Sums
            }
            _ if window.is_empty() && ended => Step::End,
            State::Expect => self.follow(window, ended),
            State::Starved => self.search(Search::default(), window, ended),
            State::Search(search) => self.search(search, window, ended),
        }
    }

    fn block(&mut self, index: u64, len: usize) -> Step {
        self.next = index.saturating_add(1);
        Step::Block { index, len }
    }

    fn follow(&mut self, window: &[u8], ended: bool) -> Step {
        let known = self.sums.len() as u64;
        if self.next >= known && self.next < self.layout.count() && !self.complete {
            return Step::Sums;
        }
        let expected = usize::try_from(self.next).unwrap_or(usize::MAX);
        let expected = self.sums.get(expected).map(|sum| sum.strong);
        let block = self.layout.block();
        let len = expected.map_or(block, |_| self.len(self.next));
        if window.len() < len && !ended {
            return Step::Bytes(len);
        }
        let mut search = Search::default();
        if let Some(bytes) = window.get(..len) {
            let strong = (self.strong)(bytes);
            if expected == Some(strong) {
                return self.block(self.next, len);
            }
            if len == block {
                if let Some(index) = self.blocks.get(&strong) {
                    return self.block(u64::from(*index), len);
                }
                search.grid = block;
            }
        }
        self.search(search, window, ended)
    }

    fn search(&mut self, mut search: Search, window: &[u8], ended: bool) -> Step {
        let block = self.layout.block();
        // Every block that may begin before this is in the window as a whole.
        let limit = match ended {
            true => window.len(),
            false => window.len().saturating_sub(block),
        };
        loop {
            let here = search.grid.checked_add(block);
            let here = here.and_then(|end| window.get(search.grid..end));
            let until = here.map_or(limit, |_| limit.min(search.grid + ANCHOR_ZONE));
            if let Some((start, index, len)) = self.roll(&mut search, window, until) {
                return self.found(start, index, len);
            }
            let Some(here) = here else { break };
            if let Some(index) = self.blocks.get(&(self.strong)(here)) {
                return self.found(search.grid, u64::from(*index), block);
            }
            search.grid += block;
        }
        if !self.complete && (ended || window.len() >= HELD_BYTES) {
            self.state = State::Starved;
            return Step::Sums;
        }
        if ended {
            return Step::New(window.len());
        }
        // What a later anchor may belong to stays.
        let new = search.rolled.saturating_sub(ANCHOR_ZONE);
        if self.complete && new >= NEW_BYTES {
            search.rolled -= new;
            search.grid = search.grid.saturating_sub(new);
            self.state = State::Search(search);
            return Step::New(new);
        }
        self.state = State::Search(search);
        Step::Bytes(window.len().max(block) + block.max(NEW_BYTES))
    }

    fn found(&mut self, start: usize, index: u64, len: usize) -> Step {
        if start == 0 {
            return self.block(index, len);
        }
        if start > self.layout.block() && !self.complete {
            // What is before it may be in blocks that nobody has told of yet.
            self.state = State::Starved;
            return Step::Sums;
        }
        self.state = State::Found { index, len };
        Step::New(start)
    }

    /// Rolls on for a block that begins where an anchor says: its beginning, which it is, its length.
    fn roll(
        &mut self,
        search: &mut Search,
        window: &[u8],
        until: usize,
    ) -> Option<(usize, u64, usize)> {
        loop {
            let ahead = window.get(search.rolled..until).unwrap_or_default();
            let outstanding = search.roll.outstanding(ahead);
            let len = outstanding.unwrap_or(ahead.len());
            search.rolled += len;
            self.vain = self.vain.saturating_add(len as u64 * VAIN_BYTES);
            outstanding?;
            let mut at = self.anchors.get(&search.roll.short()).copied();
            while let Some(number) = at.filter(|number| *number != NONE) {
                if let Some(found) = self.confirm(number, search.rolled, window) {
                    return Some(found);
                }
                at = self.alike.get(number as usize).copied();
            }
        }
    }

    /// Whether the block is there whose anchor would end at `end`, or one that is as long.
    fn confirm(&mut self, number: u32, end: usize, window: &[u8]) -> Option<(usize, u64, usize)> {
        let sum = *self.sums.get(number as usize)?;
        let before = ANCHOR_BYTES + usize::from(sum.anchor?.offset);
        let start = end.checked_sub(before)?;
        let index = u64::from(number);
        let len = self.len(index);
        let bytes = window.get(start..start.checked_add(len)?)?;
        let cost = len as u64;
        if self.vain < cost {
            return None;
        }
        let strong = (self.strong)(bytes);
        if sum.strong == strong {
            return Some((start, index, len));
        }
        if len == self.layout.block()
            && let Some(other) = self.blocks.get(&strong)
        {
            return Some((start, u64::from(*other), len));
        }
        self.vain -= cost;
        None
    }
}

#[cfg(test)]
mod tests;
