//! What a sender keeps of a stream until its receiver has it for good.

use std::collections::VecDeque;

use bowline_proto::limits::PAYLOAD_BYTES_MAX;

/// The receiver wants to go on where this side has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server wants input from byte {wanted} on, and only {from} to {to} are here")]
pub struct InputLost {
    /// Where it wants to go on.
    pub wanted: u64,
    /// The first byte that is kept.
    pub from: u64,
    /// The offset behind the last.
    pub to: u64,
}

/// The bytes of a stream from the first that is not acknowledged to the last
/// that was read, and where among them to send next. The stream's window bounds
/// how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unacked {
    bytes: VecDeque<u8>,
    base: u64,
    next: u64,
    /// How many there were at most since there was none.
    peak: usize,
}

impl Unacked {
    /// Of a stream whose bytes before `offset` are none of ours.
    pub fn starting_at(offset: u64) -> Self {
        Self {
            bytes: VecDeque::new(),
            base: offset,
            next: offset,
            peak: 0,
        }
    }

    /// Whether something that was read is to be sent again.
    pub fn has_again(&self) -> bool {
        self.next < self.end()
    }

    /// How many bytes are kept.
    pub fn held(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.bytes.len() as u64)
    }

    /// Copies the next bytes to be sent again into `space`; gives how many.
    pub fn again(&mut self, space: &mut [u8]) -> usize {
        let skip = usize::try_from(self.next.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let mut copied = 0;
        let (one, two) = self.bytes.as_slices();
        let rest = one.get(skip..).unwrap_or_default();
        let behind = two
            .get(skip.saturating_sub(one.len())..)
            .unwrap_or_default();
        for part in [rest, behind] {
            let to = space.get_mut(copied..).unwrap_or_default();
            let len = part.len().min(to.len());
            if let (Some(to), Some(from)) = (to.get_mut(..len), part.get(..len)) {
                to.copy_from_slice(from);
            }
            copied += len;
        }
        self.next = self.next.saturating_add(copied as u64);
        copied
    }

    /// Keeps bytes that are being sent for the first time.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.peak = self.peak.max(self.bytes.len());
        self.next = self.end();
    }

    /// Drops what is acknowledged, up to `offset`.
    pub fn acked(&mut self, offset: u64) {
        let len = offset.saturating_sub(self.base);
        let len = usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(self.bytes.len());
        self.bytes.drain(..len);
        self.base = self.base.saturating_add(len as u64);
        self.next = self.next.max(self.base);
        if self.bytes.is_empty() {
            // A buffer that is much too large is given back; in the middle of much data it is
            // needed again at once.
            let needed = std::mem::take(&mut self.peak).max(PAYLOAD_BYTES_MAX);
            if self.bytes.capacity() / 4 > needed {
                self.bytes = VecDeque::with_capacity(needed);
            }
        }
    }

    /// Goes on at `offset`, on another connection; what is before it has arrived.
    ///
    /// # Errors
    /// [`InputLost`] where that byte is not here.
    pub fn go_on_at(&mut self, offset: u64) -> Result<(), InputLost> {
        if offset < self.base || offset > self.end() {
            return Err(InputLost {
                wanted: offset,
                from: self.base,
                to: self.end(),
            });
        }
        self.next = offset;
        self.acked(offset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_receiver_gets_what_it_wants_or_an_error() {
        let mut kept = Unacked::default();
        kept.sent(b"0123456789");
        assert!(!kept.has_again());
        kept.acked(4);
        let error = kept.go_on_at(3).unwrap_err();
        assert_eq!((error.wanted, error.from, error.to), (3, 4, 10));
        assert!(kept.go_on_at(11).is_err(), "what was never sent");
        kept.go_on_at(6).unwrap();
        let mut space = [0; 3];
        assert_eq!(kept.again(&mut space), 3);
        assert_eq!(&space, b"678");
        assert_eq!(kept.again(&mut space), 1);
        assert_eq!(space[0], b'9');
        assert!(!kept.has_again());
        kept.go_on_at(10).unwrap();
        assert_eq!(kept.again(&mut space), 0);
    }

    #[test]
    fn a_stream_may_begin_where_others_left_it() {
        let mut kept = Unacked::starting_at(1 << 40);
        assert!(kept.go_on_at(0).is_err());
        kept.sent(b"abc");
        kept.go_on_at((1 << 40) + 1).unwrap();
        let mut space = [0; 8];
        assert_eq!(kept.again(&mut space), 2);
        assert_eq!(&space[..2], b"bc");
    }

    proptest! {
        /// Whatever is sent, acknowledged and lost, in any order: the receiver's
        /// next byte is always the right one.
        #[test]
        fn the_stream_goes_on_at_every_offset(
            steps in prop::collection::vec((0..4_u8, 0..50_usize), 1..200),
        ) {
            let byte = |offset: u64| (offset % 251) as u8;
            let mut kept = Unacked::default();
            // What the receiver has, and what it has told.
            let (mut has, mut told) = (0_u64, 0_u64);
            for (step, count) in steps {
                match step {
                    0 if !kept.has_again() => {
                        let from = kept.end();
                        let fresh: Vec<u8> = (from..from + count as u64).map(byte).collect();
                        kept.sent(&fresh);
                    }
                    0 | 1 => {
                        let at = kept.next;
                        let mut space = vec![0; count];
                        let len = kept.again(&mut space);
                        let right = (at..).map(byte).take(len);
                        prop_assert!(right.eq(space[..len].iter().copied()));
                    }
                    2 => {
                        has = (has + count as u64).min(kept.next);
                        told = has;
                        kept.acked(told);
                    }
                    _ => {
                        // Some of what was on its way arrived, and then the line broke.
                        has = (has + count as u64).min(kept.next).max(told);
                        prop_assert!(kept.go_on_at(has).is_ok());
                    }
                }
            }
        }
    }
}
