//! One of the job's output streams on its way to one of the client's own, over
//! all lines that it comes on.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bowline::client::ClientError;
use bowline_proto::frame::Stream;
use bytes::Bytes;

use super::json::Encoder;
use super::line::Line;
use super::sink::{Sink, Written};

/// One of our own streams that takes no more, as on a full disk: bytes of the job are lost here.
#[derive(Debug)]
pub(in crate::cmd) struct Unwritten {
    stream: Stream,
    error: io::Error,
}

impl Unwritten {
    /// None where nobody reads any more: whoever left (`| head`) misses nothing.
    pub(super) fn new(stream: Stream, error: io::Error) -> Option<Self> {
        (error.kind() != io::ErrorKind::BrokenPipe).then_some(Self { stream, error })
    }
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stream, error) = (self.stream.as_str(), &self.error);
        write!(
            f,
            "{stream} cannot be written here: {error} [{stream}_failed]"
        )
    }
}

/// A stream. Offsets are the job's; what the sink counts is what was put into it.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) sink: Sink,
    stream: Stream,
    json: Option<Encoder>,
    /// The offset behind the last byte that came.
    received: u64,
    /// What came on earlier lines and has not arrived: its acknowledgement is nobody's business.
    stale: u64,
    put: u64,
    arrived: u64,
    /// What is behind this offset is not wanted.
    until: u64,
    pub(super) ended: bool,
    /// Our own stream was closed, or its reader is gone.
    pub(super) closed: bool,
}

impl Output {
    pub(super) fn new(
        stream: Stream,
        fd: BorrowedFd<'static>,
        json: bool,
        written: Arc<Written>,
    ) -> Self {
        Self {
            sink: Sink::new(fd, written),
            stream,
            json: json.then(|| Encoder::new(stream)),
            received: 0,
            stale: 0,
            put: 0,
            arrived: 0,
            until: u64::MAX,
            ended: false,
            closed: false,
        }
    }

    /// The same, of a stream that is wanted up to an offset alone.
    pub(super) fn until(self, until: u64) -> Self {
        Self { until, ..self }
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn take(&mut self, mut bytes: Bytes, end: bool) {
        let counts = bytes.len() as u64;
        let wanted = self.until.saturating_sub(self.received);
        bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        self.received = self.received.saturating_add(counts);
        self.put = self.put.saturating_add(counts);
        self.ended |= end;
        let last = end || self.is_enough();
        let text = match &mut self.json {
            None => bytes,
            Some(json) => json.piece(&bytes, last),
        };
        if !text.is_empty() || counts > 0 {
            self.sink.put(text, counts);
        }
    }

    /// Whether as much has come as was wanted.
    pub(super) fn is_enough(&self) -> bool {
        self.received >= self.until
    }

    /// The stream goes on at an offset, on another line or behind a gap. Gives how much is
    /// left out; with `told` a reader of JSON learns of it too.
    ///
    /// # Errors
    /// [`ClientError::OutputLost`] where that leaves out something that was to come.
    pub(super) fn go_on_at(
        &mut self,
        offset: u64,
        gaps: bool,
        told: bool,
    ) -> Result<u64, ClientError> {
        if offset > self.received && !gaps {
            return Err(ClientError::OutputLost {
                from: self.received,
                to: offset,
            });
        }
        if let Some(json) = &mut self.json
            && offset > self.received
        {
            let cut = json.skip_to(offset, told);
            self.sink.put(cut, 0);
        }
        let left_out = offset.saturating_sub(self.received);
        self.received = self.received.max(offset);
        Ok(left_out)
    }

    /// Another line begins.
    pub(super) fn begin_line(&mut self) {
        self.arrived = self.arrived.saturating_add(self.sink.arrived());
        self.stale = self.put.saturating_sub(self.arrived);
        if self.sink.failure().is_some() {
            // Whether the server had heard that nobody reads is not known.
            self.closed = false;
        }
    }

    /// Why the job's bytes could not be written here, where it is not that their reader
    /// has gone.
    pub(super) fn unwritten(&mut self) -> Option<Unwritten> {
        Unwritten::new(self.stream, self.sink.failure()?)
    }

    /// Tells the server what has arrived. What still comes when nobody reads it any more
    /// is dropped, and the window stays open for it.
    pub(super) fn account(&mut self, line: &mut Line) {
        let news = self.sink.arrived();
        self.arrived = self.arrived.saturating_add(news);
        let old = news.min(self.stale);
        self.stale -= old;
        if news > old {
            line.consumed(self.stream, news - old);
        }
        if self.sink.failure().is_some() {
            let consumed = line.consumed_so_far(self.stream).unwrap_or(self.received);
            let rest = self.received.saturating_sub(consumed);
            if rest > 0 {
                line.consumed(self.stream, rest);
            }
        }
    }
}
