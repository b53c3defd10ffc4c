//! One stream between a service and a peer, or between a client and a service.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::buffer::Chunk;
use super::endpoint::{Endpoint, Peer, UnixName};
use super::limits::Limits;
use super::patience::Stop;
use super::reader::{ReadHalf, Reader};
use super::service::ServiceError;
use super::writer::{WriteHalf, Writer};

/// How long a TCP peer may be silent before the kernel asks whether it is still there.
pub(super) const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
/// How often it asks then.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// A stream, both of its directions.
///
/// They are public fields, so that one can be read from while the other is
/// written to.
#[derive(Debug)]
pub struct Connection {
    /// What the peer sends.
    pub reader: Reader,
    /// What it is sent.
    pub writer: Writer,
    peer: Peer,
    stop: Stop,
}

impl Connection {
    /// Connects to a stream service, with no limit of time.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use bowline::net::Connection;
    ///
    /// let mut connection = Connection::connect(&"tcp://127.0.0.1:7000".parse()?).await?;
    /// connection.send(b"hello").await?;
    /// let reply = connection.read().await?;
    /// println!("{:?}", reply.as_deref());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As connect(2) and the lookup of the name; [`io::ErrorKind::InvalidInput`]
    /// for the endpoint of a datagram service.
    pub async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                set_keepalive(&SockRef::from(&stream))?;
                Self::tcp(stream)
            }
            Endpoint::Unix(name) => Self::unix(UnixStream::connect(name.to_path()).await?),
            Endpoint::Udp(..) | Endpoint::Unixgram(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Takes over a TCP connection as it is.
    ///
    /// # Errors
    /// Where it is not connected any more.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        let peer = Peer::ip(stream.peer_addr()?);
        Ok(Self::of_tcp(stream, peer, &Limits::default()))
    }

    /// Takes over a connection of a Unix socket.
    ///
    /// # Errors
    /// As getsockopt(2).
    pub fn unix(stream: UnixStream) -> io::Result<Self> {
        let peer = unix_peer(&stream)?;
        Ok(Self::of_unix(stream, peer, &Limits::default()))
    }

    pub(super) fn of_tcp(stream: TcpStream, peer: Peer, limits: &Limits) -> Self {
        let (read, write) = stream.into_split();
        Self::new(ReadHalf::Tcp(read), WriteHalf::Tcp(write), peer, limits)
    }

    pub(super) fn of_unix(stream: UnixStream, peer: Peer, limits: &Limits) -> Self {
        let (read, write) = stream.into_split();
        Self::new(ReadHalf::Unix(read), WriteHalf::Unix(write), peer, limits)
    }

    fn new(read: ReadHalf, write: WriteHalf, peer: Peer, limits: &Limits) -> Self {
        Self {
            reader: Reader::new(read, limits.message_bytes_max, limits.idle_time),
            writer: Writer::new(write, limits.idle_time),
            peer,
            stop: Stop::default(),
        }
    }

    /// Makes the reading end when the server stops.
    pub(super) fn stop_with(&mut self, stop: &Stop) {
        self.reader.stop_with(stop.watch());
        self.stop = stop.clone();
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Cancelled when the server stops: for work that can be left off then.
    pub fn stopping(&self) -> &CancellationToken {
        self.stop.token()
    }

    /// As [`Reader::read`]. What was [put](Writer::put) is sent before it waits.
    ///
    /// # Errors
    /// As [`Reader::read`] and [`Writer::flush`].
    pub async fn read(&mut self) -> Result<Option<Chunk>, ServiceError> {
        if self.reader.buffered().is_empty() {
            self.writer.flush().await?;
        }
        self.reader.read().await
    }

    /// As [`Reader::read_line`]. What was [put](Writer::put) is sent before it waits.
    ///
    /// # Errors
    /// As [`Reader::read_line`] and [`Writer::flush`].
    ///
    /// # Cancel safety
    /// None, as [`Reader::read_line`].
    pub async fn read_line(&mut self, line: &mut Vec<u8>) -> Result<bool, ServiceError> {
        if !self.reader.buffered().contains(&b'\n') {
            self.writer.flush().await?;
        }
        self.reader.read_line(line).await
    }

    /// As [`Reader::closed`], for a service that prepares a reply: says whether there is
    /// nobody left to send it to. `false` is a peer that may only have closed its own
    /// direction, and may still read; TCP does not tell the two apart.
    ///
    /// # Cancel safety
    /// Safe: what the peer said meanwhile is there for the next read.
    pub async fn gone(&mut self) -> bool {
        self.reader.closed().await;
        self.writer.is_gone().await
    }

    /// As [`Writer::send`].
    ///
    /// # Errors
    /// As [`Writer::send`].
    ///
    /// # Cancel safety
    /// None, as [`Writer::send`].
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ServiceError> {
        self.writer.send(bytes).await
    }
}

/// Has the kernel notice peers that vanished without a word.
pub(super) fn set_keepalive(socket: &SockRef<'_>) -> io::Result<()> {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)
}

pub(super) fn unix_peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let address: std::os::unix::net::SocketAddr = stream.peer_addr()?.into();
    Ok(Peer::Unix {
        name: UnixName::of(&address),
        uid: Some(credentials.uid()),
        pid: credentials.pid(),
    })
}
