//! Opening the sockets of a server, and removing the files of Unix sockets.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram, UnixListener};

use super::connection::set_keepalive;
use super::datagram::DatagramSocket;
use super::endpoint::{Endpoint, UnixName};

/// How a server's sockets are opened.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) backlog: u32,
    pub(super) reuse_address: bool,
    pub(super) unix_mode: Option<u32>,
}

/// A socket that streams are accepted from.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        _file: UnixFile,
    },
}

/// Listens on every address that the endpoint stands for.
pub(super) async fn streams(
    endpoint: &Endpoint,
    opening: &Opening,
) -> io::Result<Vec<(Endpoint, Listener)>> {
    match endpoint {
        Endpoint::Tcp(host, port) => {
            let mut opened: Vec<(Endpoint, Listener)> = Vec::new();
            for address in addresses(host, *port).await? {
                let address = with_port_of(address, opened.iter().map(|(it, _)| it));
                match tcp(address, opening) {
                    Ok((local, listener)) => {
                        opened.push((Endpoint::tcp(local), Listener::Tcp(listener)));
                    }
                    Err(error) if !opened.is_empty() && is_optional(&error, *port) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(opened)
        }
        Endpoint::Unix(name) => {
            let (socket, file) = unix(name, Type::STREAM, opening)?;
            socket.listen(backlog(opening))?;
            let listener = Listener::Unix {
                listener: UnixListener::from_std(socket.into())?,
                _file: file,
            };
            Ok(vec![(endpoint.clone(), listener)])
        }
        Endpoint::Udp(..) | Endpoint::Unixgram(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Opens a socket for datagrams on every address that the endpoint stands for.
pub(super) async fn datagrams(
    endpoint: &Endpoint,
    opening: &Opening,
) -> io::Result<Vec<(Endpoint, DatagramSocket, UnixFile)>> {
    match endpoint {
        Endpoint::Udp(host, port) => {
            let mut opened: Vec<(Endpoint, DatagramSocket, UnixFile)> = Vec::new();
            for address in addresses(host, *port).await? {
                let address = with_port_of(address, opened.iter().map(|(it, ..)| it));
                match udp(address) {
                    Ok((local, socket)) => opened.push((
                        Endpoint::udp(local),
                        DatagramSocket::Udp(socket),
                        UnixFile::default(),
                    )),
                    Err(error) if !opened.is_empty() && is_optional(&error, *port) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(opened)
        }
        Endpoint::Unixgram(name) => {
            let (socket, file) = unix(name, Type::DGRAM, opening)?;
            let socket = UnixDatagram::from_std(socket.into())?;
            Ok(vec![(endpoint.clone(), DatagramSocket::Unix(socket), file)])
        }
        Endpoint::Tcp(..) | Endpoint::Unix(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((host, port)).await?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    Ok(addresses)
}

/// Where the kernel is to choose the port, it chooses one for all addresses of the name.
fn with_port_of<'a>(
    mut address: SocketAddr,
    opened: impl IntoIterator<Item = &'a Endpoint>,
) -> SocketAddr {
    if address.port() == 0
        && let Some(Endpoint::Tcp(_, port) | Endpoint::Udp(_, port)) = opened.into_iter().next()
    {
        address.set_port(*port);
    }
    address
}

/// Whether the first address of a name is enough: this machine may not have
/// the others (`localhost` is `::1` too where there is no IPv6), or the port that
/// the kernel chose for the first is taken there.
fn is_optional(error: &io::Error, port: u16) -> bool {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) => true,
        Some(Errno::ADDRINUSE) => port == 0,
        _ => false,
    }
}

fn backlog(opening: &Opening) -> i32 {
    // listen(2) cuts it to net.core.somaxconn.
    opening.backlog.try_into().unwrap_or(i32::MAX)
}

fn ip(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), None)?;
    if address.is_ipv6() {
        // [::] is every address of this machine, those of IPv4 too.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

fn tcp(address: SocketAddr, opening: &Opening) -> io::Result<(SocketAddr, TcpListener)> {
    let socket = ip(address, Type::STREAM)?;
    socket.set_reuse_address(opening.reuse_address)?;
    // What is accepted inherits both, which saves system calls for each connection.
    socket.set_tcp_nodelay(true)?;
    set_keepalive(&SockRef::from(&socket))?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(backlog(opening))?;
    let listener = TcpListener::from_std(socket.into())?;
    Ok((listener.local_addr()?, listener))
}

/// Without address reuse: with it, a second server would take the datagrams of the first.
fn udp(address: SocketAddr) -> io::Result<(SocketAddr, UdpSocket)> {
    let socket = ip(address, Type::DGRAM)?;
    socket.bind(&SockAddr::from(address))?;
    let socket = UdpSocket::from_std(socket.into())?;
    Ok((socket.local_addr()?, socket))
}

fn unix(name: &UnixName, kind: Type, opening: &Opening) -> io::Result<(Socket, UnixFile)> {
    let socket = Socket::new(Domain::UNIX, kind.nonblocking(), None)?;
    let path = match name {
        UnixName::Abstract(_) => None,
        UnixName::Path(path) => Some(path),
    };
    if let Some(path) = path {
        remove_stale(path, kind)?;
    }
    socket.bind(&SockAddr::unix(name.to_path())?)?;
    let file = match path {
        Some(path) => UnixFile::of(path)?,
        None => UnixFile::default(),
    };
    // Before listen(2) nobody can connect, so nobody comes in under another mode.
    if let (Some(path), Some(mode)) = (path, opening.unix_mode) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok((socket, file))
}

/// Removes the socket of a server that is gone, and nothing else.
fn remove_stale(path: &Path, kind: Type) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        // bind(2) says that there is something.
        Ok(meta) if !meta.file_type().is_socket() => return Ok(()),
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, kind.nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        // It lives, or it cannot be told: bind(2) fails.
        _ => Ok(()),
    }
}

/// The file of a Unix socket, removed when dropped; or none.
#[derive(Debug, Default)]
pub(super) struct UnixFile(Option<(PathBuf, u64, u64)>);

impl UnixFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Self(Some((path.to_owned(), meta.dev(), meta.ino()))))
    }
}

impl Drop for UnixFile {
    fn drop(&mut self) {
        let Some((path, dev, ino)) = &self.0 else {
            return;
        };
        // Another server may have put its own there meanwhile.
        let same = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == (*dev, *ino);
        if std::fs::symlink_metadata(path).is_ok_and(same) {
            let _ = std::fs::remove_file(path);
        }
    }
}
