//! What a peer sends: the reading half of a connection.
//!
//! Bytes are read into a buffer of the thread once they are there, and wait in
//! it until somebody takes them. A reset is the same as a close: the peer has
//! gone, and what it sent before has been read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bowline_proto::framing::Framing;
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio::net::{tcp, unix};

use super::buffer::{Buffer, Chunk};
use super::limits::BUFFER_BYTES;
use super::patience::{Patience, StopWatch, poll_patience};
use super::service::ServiceError;

/// The half of a socket that is read from.
#[derive(Debug)]
pub(super) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
}

impl ReadHalf {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(half) => Pin::new(half).poll_read(cx, into),
            Self::Unix(half) => Pin::new(half).poll_read(cx, into),
        }
    }
}

/// Reads what the peer sends: what `rfile` is to Python's `StreamRequestHandler`.
///
/// It is an [`AsyncBufRead`] too. All of its own methods are cancel safe: what
/// was read and not returned is there for the next call.
#[derive(Debug)]
pub struct Reader {
    half: ReadHalf,
    /// There only while something is in it.
    buffer: Option<Buffer>,
    ended: bool,
    /// Between two messages: where the server's stop ends the reading.
    between: bool,
    message_bytes_max: usize,
    patience: Patience,
    stop: Option<StopWatch>,
}

impl Reader {
    pub(super) fn new(half: ReadHalf, message_bytes_max: usize, idle: Option<Duration>) -> Self {
        Self {
            half,
            buffer: None,
            ended: false,
            between: true,
            message_bytes_max,
            patience: Patience::new(idle),
            stop: None,
        }
    }

    pub(super) fn stop_with(&mut self, stop: StopWatch) {
        self.stop = Some(stop);
    }

    pub(super) fn expect_first(&mut self, within: Option<Duration>) {
        self.patience.expect_first(within);
    }

    /// The longest line or message, in bytes.
    pub fn message_bytes_max(&self) -> usize {
        self.message_bytes_max
    }

    /// Whether the peer has closed its side, or the server's stop ended the reading.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes what is there, as it came: one read's worth, up to
    /// [`BUFFER_BYTES`](super::BUFFER_BYTES). `None` is the end.
    ///
    /// # Errors
    /// [`ServiceError::TimedOut`], [`ServiceError::Io`].
    pub async fn read(&mut self) -> Result<Option<Chunk>, ServiceError> {
        if self.buffer.is_none() && self.fill().await? == 0 {
            return Ok(None);
        }
        self.message_came(true);
        Ok(self.buffer.take().map(Chunk))
    }

    /// Takes exactly as many bytes as the slice has.
    ///
    /// # Errors
    /// [`ServiceError::Gone`] where the peer closes before; [`ServiceError::TimedOut`],
    /// [`ServiceError::Io`]; [`ServiceError::TooLong`] past [`BUFFER_BYTES`](super::BUFFER_BYTES).
    pub async fn read_exact(&mut self, into: &mut [u8]) -> Result<(), ServiceError> {
        if into.len() > BUFFER_BYTES {
            return Err(ServiceError::TooLong {
                bytes_max: BUFFER_BYTES,
            });
        }
        while self.buffered().len() < into.len() {
            if self.fill().await? == 0 {
                return Err(ServiceError::Gone);
            }
        }
        let len = into.len();
        into.copy_from_slice(&self.buffered()[..len]);
        self.consume_buffered(len);
        self.message_came(true);
        Ok(())
    }

    /// Takes a line into `line`, which is emptied first, without its `\n` or
    /// `\r\n`. Says whether there was one: `false` is the end. The last line
    /// may lack its end.
    ///
    /// # Errors
    /// [`ServiceError::TooLong`] past [`Reader::message_bytes_max`];
    /// [`ServiceError::TimedOut`], [`ServiceError::Io`].
    ///
    /// # Cancel safety
    /// None: what is in `line` by then is lost with it.
    pub async fn read_line(&mut self, line: &mut Vec<u8>) -> Result<bool, ServiceError> {
        line.clear();
        loop {
            let buffered = self.buffered();
            let end = buffered.iter().position(|&byte| byte == b'\n');
            let part = &buffered[..end.unwrap_or(buffered.len())];
            // One more for the carriage return.
            if line.len() + part.len() > self.message_bytes_max + 1 {
                return Err(self.too_long());
            }
            line.extend_from_slice(part);
            let taken = part.len() + usize::from(end.is_some());
            self.consume_buffered(taken);
            if end.is_some() || (taken == 0 && self.ended) {
                if end.is_some() && line.last() == Some(&b'\r') {
                    line.pop();
                }
                if line.len() > self.message_bytes_max {
                    return Err(self.too_long());
                }
                self.message_came(true);
                return Ok(end.is_some() || !line.is_empty());
            }
            self.between = line.is_empty();
            self.fill().await?;
        }
    }

    /// Takes the next message out of what was read; all of it where there is none.
    pub(super) fn decode<F: Framing>(
        &mut self,
        framing: &mut F,
    ) -> Result<Option<F::Message>, ServiceError> {
        let (taken, message) = framing.decode(self.buffered())?;
        self.consume_buffered(taken);
        self.between = !framing.has_begun();
        if message.is_some() {
            self.patience.message_came();
        }
        Ok(message)
    }

    fn too_long(&self) -> ServiceError {
        ServiceError::TooLong {
            bytes_max: self.message_bytes_max,
        }
    }

    /// What was read and not taken.
    pub(super) fn buffered(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], Buffer::filled)
    }

    /// Takes `len` bytes off what was read.
    pub(super) fn consume_buffered(&mut self, len: usize) {
        if let Some(buffer) = &mut self.buffer {
            buffer.consume(len);
            if buffer.filled().is_empty() {
                self.buffer = None;
            }
        }
    }

    /// Says whether the service is between two messages, or has begun one.
    pub(super) fn message_came(&mut self, whole: bool) {
        self.between = whole;
        if whole {
            self.patience.message_came();
        }
    }

    /// Reads more behind what is there; 0 is the end.
    pub(super) async fn fill(&mut self) -> Result<usize, ServiceError> {
        std::future::poll_fn(|cx| self.poll_more(cx))
            .await
            .map_err(ServiceError::of_socket)
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let mut buffer = self.buffer.take().unwrap_or_else(Buffer::take);
        let mut into = ReadBuf::new(buffer.free_mut());
        if into.capacity() == 0 {
            self.buffer = Some(buffer);
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        let polled = self.half.poll_read(cx, &mut into);
        let len = into.filled().len();
        buffer.fill(len);
        if !buffer.filled().is_empty() {
            self.buffer = Some(buffer);
        }
        match polled {
            Poll::Ready(Ok(())) => {
                self.patience.moved();
                self.ended = len == 0;
                Poll::Ready(Ok(len))
            }
            Poll::Ready(Err(error)) if is_gone(&error) => {
                self.ended = true;
                Poll::Ready(Ok(0))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.poll_wait(cx),
        }
    }

    /// Waits until the peer has closed its side or reset the connection, and keeps
    /// what it says until then, up to a buffer; behind more than that its end cannot be
    /// seen. Neither the idle time nor the server's stop ends the wait: it is for a
    /// service that is busy with the peer's last message.
    pub async fn closed(&mut self) {
        std::future::poll_fn(|cx| self.poll_closed(cx)).await;
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.ended {
            let mut buffer = self.buffer.take().unwrap_or_else(Buffer::take);
            let mut into = ReadBuf::new(buffer.free_mut());
            if into.capacity() == 0 {
                self.buffer = Some(buffer);
                return Poll::Pending;
            }
            let polled = self.half.poll_read(cx, &mut into);
            let len = into.filled().len();
            buffer.fill(len);
            if !buffer.filled().is_empty() {
                self.buffer = Some(buffer);
            }
            self.ended = match ready!(polled) {
                Ok(()) => len == 0,
                Err(_) => true,
            };
        }
        Poll::Ready(())
    }

    /// The socket has nothing: the other reasons to go on.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.between
            && self.buffer.is_none()
            && let Some(stop) = &mut self.stop
            && stop.poll_stopping(cx)
        {
            self.ended = true;
            return Poll::Ready(Ok(0));
        }
        poll_patience(&mut self.patience, cx)
    }
}

/// Whether the peer reset the connection, or the network gave it up.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, TimedOut};
    matches!(error.kind(), ConnectionReset | ConnectionAborted | TimedOut)
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let there = ready!(self.as_mut().poll_fill_buf(cx))?;
        let len = there.len().min(into.remaining());
        into.put_slice(&there[..len]);
        self.consume(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Reader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.buffer.is_none() {
            ready!(this.poll_more(cx))?;
        }
        Poll::Ready(Ok(this.buffered()))
    }

    fn consume(mut self: Pin<&mut Self>, len: usize) {
        self.consume_buffered(len);
        self.message_came(true);
    }
}
