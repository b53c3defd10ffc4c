//! The client's end of a plain service: a socket that blocks, with a time for each read.
//!
//! A person or a script waits for each reply, so nothing here is asynchronous.
//! What was read behind the end of one message is kept for the next.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use bowline::net::{Endpoint, UnixName};

/// One read; a datagram always fits.
const READ_BYTES: usize = 64 * 1024;

/// A socket that is connected to its service.
#[derive(Debug)]
pub(crate) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
    Udp(UdpSocket),
    Unixgram(UnixDatagram),
}

/// What waiting for bytes came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Bytes(Vec<u8>),
    /// The peer closed; a reset is the same.
    Closed,
    /// Nothing came in time.
    Nothing,
}

impl Link {
    /// # Errors
    /// As connect(2), or where the name is not known.
    pub(crate) fn connect(to: &Endpoint) -> io::Result<Self> {
        Ok(match to {
            Endpoint::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
            Endpoint::Unix(name) => Self::Unix(UnixStream::connect_addr(&address_of(name)?)?),
            Endpoint::Udp(host, port) => Self::Udp(udp(host, *port)?),
            Endpoint::Unixgram(name) => {
                let socket = UnixDatagram::unbound()?;
                // An answer needs an address to go to: unix(7), autobind.
                rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new_unnamed())?;
                socket.connect_addr(&address_of(name)?)?;
                Self::Unixgram(socket)
            }
        })
    }

    pub(crate) fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp(_) | Self::Unixgram(_))
    }

    /// Sends a message whole.
    ///
    /// # Errors
    /// As send(2); the peer may have gone.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Udp(socket) => socket.send(bytes).map(|_| ()),
            Self::Unixgram(socket) => socket.send(bytes).map(|_| ()),
        }
    }

    /// Reads once; `None` waits for as long as it takes.
    ///
    /// # Errors
    /// As recv(2), but not for what a peer that has gone causes.
    pub(crate) fn read(&mut self, wait: Option<Duration>) -> io::Result<Came> {
        // A time of zero would be none at all.
        let wait = wait.map(|wait| wait.max(Duration::from_millis(1)));
        let mut bytes = vec![0; READ_BYTES];
        let datagram = self.is_datagram();
        loop {
            let read = match self {
                Self::Tcp(stream) => {
                    stream.set_read_timeout(wait)?;
                    stream.read(&mut bytes)
                }
                Self::Unix(stream) => {
                    stream.set_read_timeout(wait)?;
                    stream.read(&mut bytes)
                }
                Self::Udp(socket) => {
                    socket.set_read_timeout(wait)?;
                    socket.recv(&mut bytes)
                }
                Self::Unixgram(socket) => {
                    socket.set_read_timeout(wait)?;
                    socket.recv(&mut bytes)
                }
            };
            use io::ErrorKind as Kind;
            return match read {
                Ok(0) if !datagram => Ok(Came::Closed),
                Ok(len) => {
                    bytes.truncate(len);
                    Ok(Came::Bytes(bytes))
                }
                Err(error) => match error.kind() {
                    Kind::Interrupted => continue,
                    Kind::WouldBlock | Kind::TimedOut => Ok(Came::Nothing),
                    Kind::ConnectionReset | Kind::BrokenPipe if !datagram => Ok(Came::Closed),
                    _ => Err(error),
                },
            };
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn shut_down(&mut self) {
        // Where the peer has gone already there is nobody to tell.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Udp(_) | Self::Unixgram(_) => Ok(()),
        };
    }
}

fn address_of(name: &UnixName) -> io::Result<SocketAddr> {
    match name {
        UnixName::Path(path) => SocketAddr::from_pathname(path),
        UnixName::Abstract(name) => SocketAddr::from_abstract_name(name),
    }
}

/// A socket of the right family, connected, so that only the service's datagrams come.
fn udp(host: &str, port: u16) -> io::Result<UdpSocket> {
    use std::net::ToSocketAddrs as _;
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let any = if address.is_ipv6() {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let connected = UdpSocket::bind(any).and_then(|socket| {
            socket.connect(address)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
