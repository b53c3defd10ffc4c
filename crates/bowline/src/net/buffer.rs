//! Buffers that belong to a thread and not to a connection.
//!
//! A connection takes one when its socket has something and gives it back when
//! nothing is left in it, so an idle connection holds none, and a busy one
//! allocates none.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::limits::{BUFFER_BYTES, BUFFERS_PER_THREAD};

thread_local! {
    static KEPT: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// [`BUFFER_BYTES`] of memory, some of it filled; back to the thread when dropped.
pub(super) struct Buffer {
    // Empty only between `drop` and the end.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(super) fn take() -> Self {
        let kept = KEPT.try_with(|kept| kept.borrow_mut().pop());
        Self {
            bytes: kept
                .ok()
                .flatten()
                .unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice()),
            start: 0,
            end: 0,
        }
    }

    /// What is in it.
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// What is behind that, after moving it to the front where nothing else is left.
    pub(super) fn free_mut(&mut self) -> &mut [u8] {
        if self.end == BUFFER_BYTES && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// Counts `len` bytes of the free part as filled.
    pub(super) fn fill(&mut self, len: usize) {
        self.end = (self.end + len).min(BUFFER_BYTES);
    }

    /// Takes `len` bytes off the front.
    pub(super) fn consume(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
    }

    /// Copies as much as fits and says how much that was.
    pub(super) fn append(&mut self, bytes: &[u8]) -> usize {
        let free = self.free_mut();
        let len = free.len().min(bytes.len());
        free[..len].copy_from_slice(&bytes[..len]);
        self.fill(len);
        len
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // At the end of a thread there is nobody to keep it for.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < BUFFERS_PER_THREAD {
                kept.push(bytes);
            }
        });
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.end - self.start)
    }
}

/// What one read gave. The memory is the thread's: keep it no longer than the
/// bytes are needed.
#[derive(Debug)]
pub struct Chunk(pub(super) Buffer);

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.filled()
    }
}

impl DerefMut for Chunk {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.filled_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_few_are_kept() {
        let mut first = Buffer::take();
        first.append(b"secret");
        let place = first.bytes.as_ptr();
        drop(first);
        let again = Buffer::take();
        assert_eq!(again.bytes.as_ptr(), place);
        assert!(again.filled().is_empty());
        let many: Vec<Buffer> = (0..2 * BUFFERS_PER_THREAD)
            .map(|_| Buffer::take())
            .collect();
        drop((again, many));
        assert_eq!(KEPT.with_borrow(Vec::len), BUFFERS_PER_THREAD);
    }

    #[test]
    fn what_is_left_moves_to_the_front_when_the_end_is_reached() {
        let mut buffer = Buffer::take();
        assert_eq!(buffer.append(&[7; BUFFER_BYTES + 1]), BUFFER_BYTES);
        assert_eq!(buffer.append(b"x"), 0);
        buffer.consume(BUFFER_BYTES - 3);
        assert_eq!(buffer.append(b"rest"), 4);
        assert_eq!(buffer.filled(), [7, 7, 7, b'r', b'e', b's', b't']);
        buffer.consume(100);
        assert!(buffer.filled().is_empty());
    }
}
