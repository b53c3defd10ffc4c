//! Frames that wait to be sent, in two queues.
//!
//! Control frames go first, so that a signal or a window waits behind little.
//! Stream data, and what must not overtake it (`exit`), goes in the other
//! queue, in order. Both hold whole frames only, so taking from one and then
//! the other never splits a frame. Frames enter from the session and leave for
//! whoever moves the bytes.
//!
//! Each queue counts the answers in it: frames that are there because the peer
//! asked. Stream data is bounded by [`BULK_OUT_PAUSE`], and what this side asks
//! for by this side; only answers could grow without end at the peer's will.
//! What is asked for is no reason to stop reading: two sides that both did
//! would wait for each other for ever.

use crate::frame::{Flags, Kind, Prelude};
use crate::id::Channel;
use crate::limits::{
    BULK_OUT_PAUSE, CONTROL_OUT_PAUSE, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, PRELUDE_BYTES,
};
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
    /// Bytes of answers in `control` and in `bulk`.
    control_answers: usize,
    bulk_answers: usize,
}

impl Outbox {
    /// Whether anything waits.
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.filled == 0
    }

    /// Whether so many answers wait that no more input should be taken.
    pub fn control_is_full(&self) -> bool {
        self.answers() >= CONTROL_OUT_PAUSE
    }

    /// Bytes of answers that wait.
    pub(super) fn answers(&self) -> usize {
        self.control_answers.saturating_add(self.bulk_answers)
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
        self.control_answers = 0;
        // A `start` of 2 MiB was here once; that is no reason to keep its space.
        if self.control.capacity() > CONTROL_OUT_PAUSE {
            self.control = Vec::new();
        }
    }

    /// Counts all data frames as sent.
    pub fn bulk_sent(&mut self) {
        self.filled = 0;
        self.bulk_answers = 0;
        if self.bulk.len() > BULK_OUT_PAUSE.saturating_add(PRELUDE_BYTES + PAYLOAD_BYTES_MAX) {
            self.bulk = Vec::new();
        }
    }

    /// What both queues have allocated.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> (usize, usize) {
        (self.control.capacity(), self.bulk.capacity())
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

    /// Queues a message and gives the length of its frame.
    pub(super) fn message<M: Message>(
        &mut self,
        channel: Channel,
        order: Order,
        message: &M,
    ) -> usize {
        // Serialising plain data cannot fail but for a job without its id. That, or a header
        // over its limit, is our bug: an empty header keeps the frames apart, and the peer refuses it.
        let header = serde_json::to_vec(message).unwrap_or_default();
        self.frame(M::KIND, Flags::NONE, channel, order, &header, &[])
    }

    /// Queues a message that the peer has asked for.
    pub(super) fn answer<M: Message>(&mut self, channel: Channel, order: Order, message: &M) {
        let len = self.message(channel, order, message);
        let answers = match order {
            Order::First => &mut self.control_answers,
            Order::AfterData => &mut self.bulk_answers,
        };
        *answers = answers.saturating_add(len);
    }

    /// Queues a frame and gives its length. A part over its limit, which is our
    /// bug, is left out: a length that lies would mix up all frames behind it.
    pub(super) fn frame(
        &mut self,
        kind: Kind,
        flags: Flags,
        channel: Channel,
        order: Order,
        header: &[u8],
        payload: &[u8],
    ) -> usize {
        debug_assert!(header.len() <= HEADER_BYTES_MAX && payload.len() <= PAYLOAD_BYTES_MAX);
        let within = |part, max| if <[u8]>::len(part) <= max { part } else { &[] };
        let header: &[u8] = within(header, HEADER_BYTES_MAX);
        let payload: &[u8] = within(payload, PAYLOAD_BYTES_MAX);
        let prelude = Prelude {
            kind,
            flags,
            header_len: u16::try_from(header.len()).unwrap_or(0),
            channel,
            payload_len: u32::try_from(payload.len()).unwrap_or(0),
        }
        .encode();
        let queue = match order {
            Order::First => &mut self.control,
            Order::AfterData => {
                self.bulk.truncate(self.filled);
                &mut self.bulk
            }
        };
        for part in [&prelude[..], header, payload] {
            queue.extend_from_slice(part);
        }
        if order == Order::AfterData {
            self.filled = self.bulk.len();
        }
        PRELUDE_BYTES + header.len() + payload.len()
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
