//! Credit for one stream in one direction, in absolute offsets.
//!
//! The receiver announces two offsets, never increments: `acked`, before which
//! everything has reached its destination, and `limit`, at which the sender
//! stops. A window that is told twice or late does no harm.
//!
//! The receiver's window grows on evidence alone: the sender says with a flag
//! that it waits for the window, and the receiver's own backlog is small, so
//! the window and not the destination is what limits the stream. Neither a
//! clock nor an estimate of the path is needed, and a slow destination keeps
//! its window small. What the sender said before it knew of the last growth is
//! no evidence for another: one doubling a round trip. What a window grew by is drawn from a budget of the
//! connection and goes back there once the stream has ended and arrived.
//!
//! Offsets enter from frames, counts from the session; nothing here sees a byte
//! of data.

use crate::limits::{WINDOW_INITIAL, WINDOW_MAX};

/// A peer that broke the rules of a stream. The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// More data than the window permits.
    #[error("data up to offset {end}, past the limit of {limit}")]
    PastLimit {
        /// The offset behind the data.
        end: u64,
        /// What was announced.
        limit: u64,
    },
    /// Data behind the end of the stream.
    #[error("data behind the end of the stream")]
    PastEnd,
    /// A gap that goes back or nowhere.
    #[error("a gap that does not go forward")]
    BadGap,
    /// A window that goes back, or that acknowledges what was never sent.
    #[error("a window that goes back or acknowledges what was not sent")]
    BadWindow,
}

/// The sending end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendFlow {
    sent: u64,
    acked: u64,
    limit: u64,
    ended: bool,
    closed: bool,
}

impl Default for SendFlow {
    fn default() -> Self {
        Self::from_offset(0)
    }
}

impl SendFlow {
    /// A stream whose next byte is at `offset`.
    pub const fn from_offset(offset: u64) -> Self {
        Self {
            sent: offset,
            acked: offset,
            limit: offset.saturating_add(WINDOW_INITIAL),
            ended: false,
            closed: false,
        }
    }

    /// A stream of which nothing may be sent until the peer has said where it goes on.
    pub(super) const fn closed_until_told() -> Self {
        Self {
            sent: 0,
            acked: 0,
            limit: 0,
            ended: false,
            closed: false,
        }
    }

    /// A stream that was never open.
    pub(super) const fn never() -> Self {
        Self {
            ended: true,
            ..Self::closed_until_told()
        }
    }

    /// How many bytes may be sent now.
    pub const fn room(&self) -> u64 {
        if self.is_over() {
            0
        } else {
            self.limit.saturating_sub(self.sent)
        }
    }

    /// The offset of the next byte.
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// Everything before this offset has reached its destination.
    pub const fn acked(&self) -> u64 {
        self.acked
    }

    /// Whether the end was sent.
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// Goes on at a later offset: what is between was dropped.
    pub(super) fn skip_to(&mut self, offset: u64) {
        self.sent = self.sent.max(offset);
    }

    /// Whether the receiver takes nothing more.
    pub const fn closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing more is to be sent, not even an end.
    pub(super) const fn is_over(&self) -> bool {
        self.ended || self.closed
    }

    /// The receiver takes nothing more; it does not change its mind.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Counts `len` bytes as sent; the caller has asked for [`Self::room`].
    pub(super) fn advance(&mut self, len: u64, end: bool) {
        self.sent = self.sent.saturating_add(len);
        self.ended |= end;
    }

    /// Takes the receiver's word.
    pub(super) fn on_window(&mut self, acked: u64, limit: u64) -> Result<(), FlowError> {
        if acked > self.sent || acked < self.acked || limit < self.limit || limit < acked {
            return Err(FlowError::BadWindow);
        }
        self.acked = acked;
        self.limit = limit;
        Ok(())
    }
}

/// The receiving end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecvFlow {
    received: u64,
    consumed: u64,
    limit: u64,
    /// What was last announced as acknowledged.
    announced: u64,
    window: u64,
    /// Whether the sender's last frame said that it waits: what it said before is
    /// no evidence any more.
    blocked: bool,
    /// Only what the sender says behind this offset was said in knowledge of the
    /// window's last growth.
    grown_behind: u64,
    ended: bool,
}

impl Default for RecvFlow {
    fn default() -> Self {
        Self::from_offset(0)
    }
}

impl RecvFlow {
    /// A stream whose next byte is at `offset`.
    pub const fn from_offset(offset: u64) -> Self {
        Self {
            received: offset,
            consumed: offset,
            limit: offset.saturating_add(WINDOW_INITIAL),
            announced: offset,
            window: WINDOW_INITIAL,
            blocked: false,
            grown_behind: offset,
            ended: false,
        }
    }

    /// A stream that was never open: any data is behind its end.
    pub(super) const fn never() -> Self {
        Self {
            ended: true,
            ..Self::from_offset(0)
        }
    }

    /// The offset behind the last byte that came.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// The offset behind the last byte that reached its destination.
    pub const fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Whether the sender has ended the stream.
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// Bytes that came and have not reached their destination.
    pub const fn backlog(&self) -> u64 {
        self.received.saturating_sub(self.consumed)
    }

    /// What the window has grown by.
    pub const fn growth(&self) -> u64 {
        self.window.saturating_sub(WINDOW_INITIAL)
    }

    /// Takes data in.
    pub(super) fn on_data(&mut self, len: u64, end: bool, blocked: bool) -> Result<(), FlowError> {
        if self.ended {
            return Err(FlowError::PastEnd);
        }
        // A gap may have led anywhere, also to where there is no next offset.
        let behind = self.received.checked_add(len);
        let behind = behind.filter(|&behind| behind <= self.limit);
        let behind = behind.ok_or(FlowError::PastLimit {
            end: self.received.saturating_add(len),
            limit: self.limit,
        })?;
        self.received = behind;
        self.ended = end;
        self.blocked = blocked && behind > self.grown_behind;
        Ok(())
    }

    /// The sender goes on at a later offset: what is between has nowhere to arrive. The limit stays
    /// where it is, for the sender may have heard of it already; where that leaves no room, the
    /// next announcement makes some.
    pub(super) fn skip_to(&mut self, offset: u64) -> Result<(), FlowError> {
        if self.ended {
            return Err(FlowError::PastEnd);
        }
        let skipped = offset.checked_sub(self.received);
        let skipped = skipped.filter(|&skipped| skipped > 0);
        let skipped = skipped.ok_or(FlowError::BadGap)?;
        self.received = offset;
        self.consumed = self.consumed.saturating_add(skipped);
        self.blocked = false;
        Ok(())
    }

    /// Counts `len` more bytes as arrived at their destination.
    pub(super) fn consume(&mut self, len: u64) {
        self.consumed = self.consumed.saturating_add(len).min(self.received);
    }

    /// The window to announce now, if it is worth a message; `budget` is what
    /// this window may still grow by: growth is drawn from it, and given back at the end.
    pub(super) fn announce(&mut self, budget: &mut u64) -> Option<(u64, u64)> {
        if self.ended {
            // No more data comes; the sender only learns that all of it arrived.
            let arrived = self.consumed == self.received;
            if arrived {
                *budget = budget.saturating_add(self.growth());
                self.window = WINDOW_INITIAL;
            }
            let news = arrived && self.announced < self.consumed;
            return news.then(|| self.announcement());
        }
        let drained = self.backlog() < self.window / 2;
        if self.blocked && drained {
            self.blocked = false;
            let growth = self
                .window
                .min(WINDOW_MAX.saturating_sub(self.window))
                .min(*budget);
            *budget = budget.saturating_sub(growth);
            self.window = self.window.saturating_add(growth);
            self.grown_behind = self.limit;
        }
        let offered = self.consumed.saturating_add(self.window);
        let worth = offered.saturating_sub(self.limit) >= self.window / 4;
        worth.then(|| self.announcement())
    }

    /// The window to announce where the destination takes nothing more; nothing where the
    /// sender has ended the stream anyway.
    pub(super) fn announce_closed(&mut self) -> Option<(u64, u64)> {
        (!self.ended).then(|| self.announcement())
    }

    fn announcement(&mut self) -> (u64, u64) {
        self.limit = self.limit.max(self.consumed.saturating_add(self.window));
        self.announced = self.consumed;
        (self.consumed, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_taken_up_to_the_limit_and_not_past_it() {
        let mut flow = RecvFlow::default();
        flow.on_data(WINDOW_INITIAL, false, false).unwrap();
        assert!(matches!(
            flow.on_data(1, false, false),
            Err(FlowError::PastLimit { .. })
        ));
        let mut flow = RecvFlow::default();
        flow.on_data(0, true, false).unwrap();
        assert_eq!(flow.on_data(0, true, false), Err(FlowError::PastEnd));
    }

    #[test]
    fn a_blocked_sender_and_a_fast_destination_double_the_window() {
        let mut flow = RecvFlow::default();
        let mut budget = WINDOW_MAX;
        flow.on_data(WINDOW_INITIAL, false, true).unwrap();
        assert_eq!(
            flow.announce(&mut budget),
            None,
            "the destination has taken nothing"
        );
        flow.consume(WINDOW_INITIAL);
        let (acked, limit) = flow.announce(&mut budget).unwrap();
        assert_eq!(acked, WINDOW_INITIAL);
        assert_eq!(limit, WINDOW_INITIAL + 2 * WINDOW_INITIAL);
        assert_eq!(budget, WINDOW_MAX - WINDOW_INITIAL);
    }

    #[test]
    fn growth_stops_at_the_maximum_and_at_the_budget() {
        let mut flow = RecvFlow::default();
        let mut budget = u64::MAX;
        for _ in 0..20 {
            let room = flow.limit - flow.received;
            flow.on_data(room, false, true).unwrap();
            flow.consume(room);
            flow.announce(&mut budget);
        }
        assert_eq!(flow.window, WINDOW_MAX);
        let mut flow = RecvFlow::default();
        let mut budget = 10;
        flow.on_data(WINDOW_INITIAL, false, true).unwrap();
        flow.consume(WINDOW_INITIAL);
        flow.announce(&mut budget);
        assert_eq!((flow.growth(), budget), (10, 0));
        // At the end the growth goes back, once.
        flow.on_data(1, true, false).unwrap();
        flow.announce(&mut budget);
        assert_eq!((flow.growth(), budget), (10, 0), "one byte is on its way");
        flow.consume(1);
        flow.announce(&mut budget);
        flow.announce(&mut budget);
        assert_eq!((flow.growth(), budget), (0, 10));
    }

    #[test]
    fn old_evidence_does_not_count() {
        let mut flow = RecvFlow::default();
        let mut budget = WINDOW_MAX;
        flow.on_data(WINDOW_INITIAL, false, true).unwrap();
        flow.consume(WINDOW_INITIAL / 4);
        flow.announce(&mut budget).unwrap();
        flow.on_data(1, false, false).unwrap();
        flow.consume(WINDOW_INITIAL);
        flow.announce(&mut budget).unwrap();
        assert_eq!(flow.growth(), 0, "the sender had room when it last spoke");
    }

    #[test]
    fn windows_never_go_back() {
        let mut flow = SendFlow::default();
        flow.advance(10, false);
        assert_eq!(
            flow.on_window(11, WINDOW_INITIAL),
            Err(FlowError::BadWindow)
        );
        assert_eq!(
            flow.on_window(5, WINDOW_INITIAL - 1),
            Err(FlowError::BadWindow)
        );
        flow.on_window(5, WINDOW_INITIAL).unwrap();
        assert_eq!(flow.on_window(4, WINDOW_INITIAL), Err(FlowError::BadWindow));
        flow.on_window(10, u64::MAX).unwrap();
        assert_eq!(flow.room(), u64::MAX - 10);
    }

    #[test]
    fn the_end_is_acknowledged_once_all_has_arrived() {
        let mut flow = RecvFlow::default();
        let mut budget = 0;
        flow.on_data(3, true, false).unwrap();
        assert_eq!(flow.announce(&mut budget), None);
        flow.consume(3);
        assert_eq!(flow.announce(&mut budget).map(|(acked, _)| acked), Some(3));
        assert_eq!(flow.announce(&mut budget), None);
    }
}
