//! Datagrams, whatever carries them: UDP or a Unix datagram socket.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use socket2::{SockAddr, SockRef};
use tokio::io::ReadBuf;
use tokio::net::{UdpSocket, UnixDatagram};

use super::endpoint::{Endpoint, Peer, UnixName};
use super::limits::{BUFFER_BYTES, DATAGRAM_BYTES_MAX};

/// A socket for datagrams.
#[derive(Debug)]
pub enum DatagramSocket {
    /// UDP.
    Udp(UdpSocket),
    /// A Unix datagram socket.
    Unix(UnixDatagram),
}

/// Where a datagram came from, as the kernel takes it back.
#[derive(Debug)]
pub(super) enum ReplyTo {
    Udp(SocketAddr),
    Unix(Option<UnixName>),
}

impl ReplyTo {
    pub(super) fn peer(&self) -> Peer {
        match self {
            Self::Udp(address) => Peer::ip(*address),
            Self::Unix(name) => Peer::Unix {
                name: name.clone(),
                uid: None,
                pid: None,
            },
        }
    }
}

impl DatagramSocket {
    /// Makes a client's socket that sends to a datagram service and hears from
    /// it alone. A Unix one takes a name of its own that the kernel chooses, so
    /// that the service can answer.
    ///
    /// # Errors
    /// As connect(2) and the lookup of the name; [`io::ErrorKind::InvalidInput`]
    /// for the endpoint of a stream service.
    pub async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Udp(host, port) => {
                let mut failed = io::ErrorKind::AddrNotAvailable.into();
                for address in tokio::net::lookup_host((host.as_str(), *port)).await? {
                    match udp_to(address).await {
                        Ok(socket) => return Ok(Self::Udp(socket)),
                        Err(error) => failed = error,
                    }
                }
                Err(failed)
            }
            Endpoint::Unixgram(name) => {
                let socket = UnixDatagram::unbound()?;
                // An address without a name asks for one (unix(7), "Autobind").
                SockRef::from(&socket).bind(&SockAddr::unix("")?)?;
                SockRef::from(&socket).connect(&SockAddr::unix(name.to_path())?)?;
                Ok(Self::Unix(socket))
            }
            Endpoint::Tcp(..) | Endpoint::Unix(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Sends one datagram to the service that the socket is connected to.
    ///
    /// # Errors
    /// As send(2).
    ///
    /// # Cancel safety
    /// Safe: a datagram goes out whole or not at all.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(datagram).await,
            Self::Unix(socket) => socket.send(datagram).await,
        }
        .map(|_| ())
    }

    /// Puts the next datagram into `datagram`, which is emptied first.
    ///
    /// # Errors
    /// As recv(2); over UDP [`io::ErrorKind::ConnectionRefused`] where the other
    /// machine says that nobody is there.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken before it is returned.
    pub async fn receive(&self, datagram: &mut Vec<u8>) -> io::Result<()> {
        datagram.resize(BUFFER_BYTES, 0);
        let received = match self {
            Self::Udp(socket) => socket.recv(datagram).await,
            Self::Unix(socket) => socket.recv(datagram).await,
        };
        datagram.truncate(*received.as_ref().unwrap_or(&0));
        received.map(|_| ())
    }

    /// Takes a datagram and says how long it is, which is more than
    /// [`DATAGRAM_BYTES_MAX`] where it is too long.
    pub(super) fn poll_receive_from(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, ReplyTo)>> {
        let mut into = ReadBuf::new(into);
        let from = match self {
            Self::Udp(socket) => ReplyTo::Udp(ready!(socket.poll_recv_from(cx, &mut into))?),
            Self::Unix(socket) => {
                let from = ready!(socket.poll_recv_from(cx, &mut into))?;
                ReplyTo::Unix(UnixName::of(&from.into()))
            }
        };
        Poll::Ready(Ok((into.filled().len(), from)))
    }

    /// Sends an answer. One who has no name cannot be answered, and is not.
    pub(super) async fn send_to(&self, datagram: &[u8], to: &ReplyTo) -> io::Result<()> {
        match (self, to) {
            (Self::Udp(socket), ReplyTo::Udp(to)) => {
                socket.send_to(datagram, *to).await.map(|_| ())
            }
            (Self::Unix(socket), ReplyTo::Unix(Some(to))) => {
                let to = SockAddr::unix(to.to_path())?;
                // Not waited for: one who takes no answers loses them, as over
                // UDP, and the kernel would not say when there is room again.
                // (One that is connected to this socket has a queue without end,
                // and what it does not read fills this socket's send buffer
                // while it is there. A user of this machine can do that, nobody
                // else; the mode of the socket's file says who may connect.)
                SockRef::from(socket).send_to(datagram, &to).map(|_| ())
            }
            _ => Ok(()),
        }
    }
}

async fn udp_to(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

const _: () = assert!(DATAGRAM_BYTES_MAX < BUFFER_BYTES);
