//! What goes to a peer: the writing half of a connection.
//!
//! [`Writer::send`] gives bytes to the kernel at once and in one piece, as the
//! other side's single `recv` wants them; [`Writer::put`] gathers small ones
//! into a buffer of the thread.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncWrite, Interest, Ready};
use tokio::net::{tcp, unix};

use super::buffer::Buffer;
use super::patience::{Patience, poll_patience};
use super::service::ServiceError;

/// Parts of a message that are copied together rather than written from where
/// they lie, in bytes: up to here the copy costs less.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// The half of a socket that is written to.
#[derive(Debug)]
pub(super) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
}

impl WriteHalf {
    fn stream(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match self {
            Self::Tcp(half) => Pin::new(half),
            Self::Unix(half) => Pin::new(half),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(half) => Pin::new(half).poll_write(cx, bytes),
            Self::Unix(half) => Pin::new(half).poll_write(cx, bytes),
        }
    }

    async fn ready(&self) -> io::Result<Ready> {
        match self {
            Self::Tcp(half) => half.ready(Interest::WRITABLE).await,
            Self::Unix(half) => half.ready(Interest::WRITABLE).await,
        }
    }
}

/// Sends to the peer: what `wfile` is to Python's `StreamRequestHandler`.
///
/// It is an [`AsyncWrite`] too.
#[derive(Debug)]
pub struct Writer {
    half: WriteHalf,
    /// There only while something is in it.
    buffer: Option<Buffer>,
    finished: bool,
    patience: Patience,
}

impl Writer {
    pub(super) fn new(half: WriteHalf, idle: Option<Duration>) -> Self {
        Self {
            half,
            buffer: None,
            finished: false,
            patience: Patience::new(idle),
        }
    }

    /// Sends what was put before and then these bytes, in one write if the
    /// kernel takes them so, and waits until it has them all.
    ///
    /// # Errors
    /// [`ServiceError::Gone`], [`ServiceError::TimedOut`], [`ServiceError::Io`].
    ///
    /// # Cancel safety
    /// None: some of the bytes may have gone out. Close the connection then.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ServiceError> {
        if self.buffer.is_some() {
            return self.send_parts(&[bytes]).await;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = std::future::poll_fn(|cx| self.poll_write_now(cx, rest))
                .await
                .map_err(ServiceError::of_socket)?;
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    /// As [`Writer::send`], of several parts that lie apart: a header and a body.
    ///
    /// # Errors
    /// As [`Writer::send`].
    ///
    /// # Cancel safety
    /// None, as [`Writer::send`].
    pub async fn send_parts(&mut self, parts: &[&[u8]]) -> Result<(), ServiceError> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if len <= COPIED_BYTES_MAX {
            for part in parts {
                self.put(part).await?;
            }
            return self.flush().await;
        }
        let buffer = self.buffer.take();
        let first = buffer.as_ref().map_or(&[][..], Buffer::filled);
        let parts = parts.iter().map(|part| IoSlice::new(part));
        let mut slices: Vec<_> = std::iter::once(IoSlice::new(first)).chain(parts).collect();
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let len = std::future::poll_fn(|cx| self.poll_write_parts(cx, slices))
                .await
                .map_err(ServiceError::of_socket)?;
            IoSlice::advance_slices(&mut slices, len);
        }
        Ok(())
    }

    /// Keeps bytes to be sent together; a full buffer is sent.
    ///
    /// # Errors
    /// As [`Writer::send`].
    ///
    /// # Cancel safety
    /// None, as [`Writer::send`].
    pub async fn put(&mut self, bytes: &[u8]) -> Result<(), ServiceError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = self.buffer.get_or_insert_with(Buffer::take).append(rest);
            rest = rest.get(len..).unwrap_or_default();
            if !rest.is_empty() {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Sends what was put.
    ///
    /// # Errors
    /// As [`Writer::send`].
    ///
    /// # Cancel safety
    /// Safe: what has not gone out is there for the next call.
    pub async fn flush(&mut self) -> Result<(), ServiceError> {
        std::future::poll_fn(|cx| self.poll_empty(cx))
            .await
            .map_err(ServiceError::of_socket)
    }

    /// Sends what was put and closes this direction; the peer may go on to send.
    ///
    /// # Errors
    /// As [`Writer::send`].
    ///
    /// # Cancel safety
    /// Safe, as [`Writer::flush`].
    pub async fn finish(&mut self) -> Result<(), ServiceError> {
        self.flush().await?;
        if !self.finished {
            self.finished = true;
            std::future::poll_fn(|cx| self.half.stream().poll_shutdown(cx))
                .await
                .map_err(ServiceError::of_socket)?;
        }
        Ok(())
    }

    /// Whether the connection is gone for this direction too, once the kernel takes
    /// bytes again: it was reset, or a Unix socket's other end is closed.
    pub(super) async fn is_gone(&self) -> bool {
        let ready = self.half.ready().await;
        ready.map_or(true, |ready| ready.is_write_closed())
    }

    fn poll_write_now(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = self.half.poll_write(cx, bytes);
        self.or_time(cx, polled)
    }

    fn poll_write_parts(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.half.stream().poll_write_vectored(cx, parts);
        self.or_time(cx, polled)
    }

    fn or_time(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(written) => {
                self.patience.moved();
                Poll::Ready(written)
            }
            Poll::Pending => poll_patience(&mut self.patience, cx),
        }
    }

    /// Writes out the buffer.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(mut buffer) = self.buffer.take() {
            let polled = self.poll_write_now(cx, buffer.filled());
            if let Poll::Ready(Ok(len)) = &polled {
                buffer.consume(*len);
            }
            if !buffer.filled().is_empty() {
                self.buffer = Some(buffer);
            }
            ready!(polled)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_empty(cx))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.poll_write_now(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_empty(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_empty(cx))?;
        this.finished = true;
        this.half.stream().poll_shutdown(cx)
    }
}
