//! One connection of a plain service: reads as they come, writes that are whole.
//!
//! Bytes of the peer enter, replies leave. An idle connection holds no buffer. While a
//! command runs the peer is watched: what it says meanwhile is kept, up to a bound.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::time::Duration;

use bowline::net::Peer;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

/// One read.
const READ_BYTES: usize = 64 * 1024;
/// What a peer may say ahead while its command runs; more waits in the kernel.
const AHEAD_BYTES_MAX: usize = 64 * 1024;
/// How long what was sent last may take to be read by a peer that still sends.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    /// What one read fills; nothing stays in it.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    async fn ready(&self, interest: Interest) -> io::Result<tokio::io::Ready> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await,
            Self::Unix(stream) => stream.ready(interest).await,
        }
    }

    fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(bytes),
            Self::Unix(stream) => stream.try_read(bytes),
        }
    }

    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(parts),
            Self::Unix(stream) => stream.try_write_vectored(parts),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: Stream,
    pub(crate) peer: Peer,
    /// Read already and not taken.
    ahead: Vec<u8>,
    ended: bool,
    stop: CancellationToken,
    idle: Option<Duration>,
}

/// Where a time is up, as an `io::Error`.
fn late(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl Conn {
    pub(crate) fn new(
        stream: Stream,
        peer: Peer,
        stop: CancellationToken,
        idle: Option<Duration>,
    ) -> Self {
        Self {
            stream,
            peer,
            ahead: Vec::new(),
            ended: false,
            stop,
            idle,
        }
    }

    /// The next bytes; `None` when the peer has closed, or the service stops between
    /// two messages.
    ///
    /// # Errors
    /// As recv(2), or that nothing came for too long; a reset is no error.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        if !self.ahead.is_empty() {
            return Ok(Some(std::mem::take(&mut self.ahead)));
        }
        let stop = self.stop.clone();
        let idle = self.idle;
        tokio::select! {
            biased;
            read = self.read_socket() => read,
            () = stop.cancelled() => Ok(None),
            () = up(idle) => Err(late("nothing came for too long")),
        }
    }

    /// What comes within a short time behind what was read; empty where nothing does.
    ///
    /// # Errors
    /// As recv(2).
    pub(crate) async fn more(&mut self, time: Duration) -> io::Result<Vec<u8>> {
        match tokio::time::timeout(time, self.read_socket()).await {
            Ok(read) => Ok(read?.unwrap_or_default()),
            Err(_) => Ok(Vec::new()),
        }
    }

    async fn read_socket(&mut self) -> io::Result<Option<Vec<u8>>> {
        while !self.ended {
            self.stream.ready(Interest::READABLE).await?;
            let read: io::Result<Vec<u8>> = BUFFER.with_borrow_mut(|buffer| {
                let len = self.stream.try_read(buffer)?;
                Ok(buffer[..len].to_vec())
            });
            match read {
                Ok(bytes) if bytes.is_empty() => self.ended = true,
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionReset => self.ended = true,
                    _ => return Err(error),
                },
            }
        }
        Ok(None)
    }

    /// Exactly `len` bytes, `None` where the peer closes before; what follows them is
    /// kept for the next read.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) async fn exactly(&mut self, len: usize) -> io::Result<Option<Vec<u8>>> {
        // It grows by what has come, not by what was announced.
        let mut gathered = Vec::new();
        while gathered.len() < len {
            let Some(mut bytes) = self.read().await? else {
                return Ok(None);
            };
            let part = bytes.len().min(len - gathered.len());
            self.ahead = bytes.split_off(part);
            gathered.append(&mut bytes);
        }
        Ok(Some(gathered))
    }

    /// Waits until the peer has closed or reset the connection, and keeps what it says
    /// until then. True where it cannot even be sent to any more.
    pub(crate) async fn gone(&mut self) -> bool {
        while !self.ended {
            if self.ahead.len() >= AHEAD_BYTES_MAX {
                // Its end stands behind bytes that nobody has asked for yet.
                std::future::pending::<()>().await;
            }
            match self.read_socket().await {
                Ok(Some(mut bytes)) => self.ahead.append(&mut bytes),
                Ok(None) => {}
                Err(_) => return true,
            }
        }
        let ready = self.stream.ready(Interest::WRITABLE).await;
        ready.map_or(true, |ready| ready.is_write_closed())
    }

    /// Sends the parts as one: in one call of the kernel, if it takes that much.
    ///
    /// # Errors
    /// As send(2), or that the peer took nothing for too long.
    pub(crate) async fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| IoSlice::new(part))
            .collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match self.stream.try_write_vectored(left) {
                Ok(len) => IoSlice::advance_slices(&mut left, len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let idle = self.idle;
                    tokio::select! {
                        biased;
                        ready = self.stream.ready(Interest::WRITABLE) => { ready?; }
                        () = up(idle) => return Err(late("the peer took nothing for too long")),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Closes so that what was sent last arrives: a close with bytes unread would be a
    /// reset, and take it away.
    pub(crate) async fn close(mut self) {
        let shut = match &self.stream {
            Stream::Tcp(stream) => rustix::net::shutdown(stream, rustix::net::Shutdown::Write),
            Stream::Unix(stream) => rustix::net::shutdown(stream, rustix::net::Shutdown::Write),
        };
        if shut.is_err() {
            return;
        }
        let drained = async { while let Ok(Some(_)) = self.read_socket().await {} };
        let _ = tokio::time::timeout(LINGER, drained).await;
    }
}

/// Waits until a time is up; for ever, where there is none.
async fn up(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
