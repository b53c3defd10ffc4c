//! Frames that wait to be sent, in two queues.
//!
//! Control frames go first, so that a signal or a window waits behind little.
//! Stream data, and what must not overtake it (`exit`), goes in the other
//! queue, in order. Both hold whole frames only, so taking from one and then
//! the other never splits a frame.

use crate::frame::{Flags, Kind, Prelude};
use crate::id::Channel;
use crate::limits::{BULK_OUT_PAUSE, CONTROL_OUT_PAUSE, PAYLOAD_BYTES_MAX, PRELUDE_BYTES};
use crate::message::Message;

/// Which queue a control message takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Ahead of stream data.
    First,
    /// Behind the stream data that is queued already.
    AfterData,
}

/// The two queues.
#[derive(Debug, Default)]
pub struct Outbox {
    control: Vec<u8>,
    /// Bytes up to `filled` are frames; what is behind them is space that was
    /// used before and need not be cleared again.
    bulk: Vec<u8>,
    filled: usize,
}

impl Outbox {
    /// Whether anything waits.
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.filled == 0
    }

    /// Whether so much control waits that no more input should be taken.
    pub fn control_is_full(&self) -> bool {
        self.control.len() >= CONTROL_OUT_PAUSE
    }

    /// Whether so much data waits that no more should be added.
    pub fn bulk_is_full(&self) -> bool {
        self.filled >= BULK_OUT_PAUSE
    }

    /// The control frames that wait.
    pub fn control(&self) -> &[u8] {
        &self.control
    }

    /// The data frames that wait.
    pub fn bulk(&self) -> &[u8] {
        self.bulk.get(..self.filled).unwrap_or_default()
    }

    /// Counts all control frames as sent.
    pub fn control_sent(&mut self) {
        self.control.clear();
    }

    /// Counts all data frames as sent.
    pub fn bulk_sent(&mut self) {
        self.filled = 0;
    }

    /// Gives back the space of both queues, where they are empty.
    pub fn shrink(&mut self) {
        if self.control.is_empty() {
            self.control = Vec::new();
        }
        if self.filled == 0 {
            self.bulk = Vec::new();
        }
    }

    pub(super) fn message<M: Message>(&mut self, channel: Channel, order: Order, message: &M) {
        // Serialising plain data cannot fail but for a job without its id, which is our bug
        // and leaves an empty header: the peer refuses it.
        let header = serde_json::to_vec(message).unwrap_or_default();
        self.frame(M::KIND, Flags::END, channel, order, &header, &[]);
    }

    pub(super) fn frame(
        &mut self,
        kind: Kind,
        flags: Flags,
        channel: Channel,
        order: Order,
        header: &[u8],
        payload: &[u8],
    ) {
        let prelude = Prelude {
            kind,
            flags,
            header_len: u16::try_from(header.len()).unwrap_or(0),
            channel,
            payload_len: u32::try_from(payload.len()).unwrap_or(0),
        }
        .encode();
        match order {
            Order::First => {
                for part in [&prelude[..], header, payload] {
                    self.control.extend_from_slice(part);
                }
            }
            Order::AfterData => {
                self.bulk.truncate(self.filled);
                for part in [&prelude[..], header, payload] {
                    self.bulk.extend_from_slice(part);
                }
                self.filled = self.bulk.len();
            }
        }
    }

    /// Lets `fill` write up to `max` bytes of payload in place and frames what
    /// it wrote; `flags` is asked for once the length is known.
    ///
    /// `fill` gives the number of bytes written, or an error, which leaves
    /// nothing behind.
    pub(super) fn data_with<E>(
        &mut self,
        kind: Kind,
        channel: Channel,
        max: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(usize, bool), E>,
        flags: impl FnOnce(usize, bool) -> Flags,
    ) -> Result<(usize, bool), E> {
        let max = max.min(PAYLOAD_BYTES_MAX);
        let start = self.filled.saturating_add(PRELUDE_BYTES);
        let end = start.saturating_add(max);
        if self.bulk.len() < end {
            self.bulk.resize(end, 0);
        }
        let space = self.bulk.get_mut(start..end).unwrap_or_default();
        let (len, ended) = fill(space)?;
        let len = len.min(max);
        if len == 0 && !ended {
            return Ok((0, false));
        }
        let prelude = Prelude {
            kind,
            flags: flags(len, ended),
            header_len: 0,
            channel,
            payload_len: u32::try_from(len).unwrap_or(0),
        };
        if let Some(place) = self.bulk.get_mut(self.filled..start) {
            place.copy_from_slice(&prelude.encode());
        }
        self.filled = start.saturating_add(len);
        Ok((len, ended))
    }
}
