//! The sockets that plain services listen on: opened, named, and removed at the end.
//!
//! An [`Endpoint`] enters, bound sockets leave, with the port that the kernel chose.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bowline::net::{Endpoint, UnixName};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram, UnixListener};

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
    Udp(UdpSocket),
    Unixgram(UnixDatagram),
}

/// A bound socket and its address.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: Socket,
    pub(crate) name: String,
    /// The file of a Unix socket, removed when this is dropped.
    _file: Option<SocketFile>,
}

/// Binds an address: a name may have several.
///
/// # Errors
/// As bind(2), with the address.
pub(crate) async fn bind(to: &Endpoint, backlog: i32) -> anyhow::Result<Vec<Bound>> {
    let bound = match to {
        Endpoint::Tcp(host, port) => {
            let mut all = Vec::new();
            for address in lookup(host, *port).await.with_context(|| said(to))? {
                all.push(tcp(address, backlog).with_context(|| said(to))?);
            }
            all
        }
        Endpoint::Udp(host, port) => {
            let mut all = Vec::new();
            for address in lookup(host, *port).await.with_context(|| said(to))? {
                all.push(udp(address).with_context(|| said(to))?);
            }
            all
        }
        Endpoint::Unix(name) => vec![unix(name, to, Some(backlog)).with_context(|| said(to))?],
        Endpoint::Unixgram(name) => vec![unix(name, to, None).with_context(|| said(to))?],
    };
    if bound.is_empty() {
        bail!("{}: the name has no address", said(to));
    }
    Ok(bound)
}

fn said(to: &Endpoint) -> String {
    format!("cannot listen on {to}")
}

async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

fn ip_socket(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        // [::] is every address of this machine, those of IPv4 too.
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    Ok(socket)
}

fn tcp(address: SocketAddr, backlog: i32) -> io::Result<Bound> {
    let socket = ip_socket(address, SocketType::STREAM)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    let listener = TcpListener::from_std(std::net::TcpListener::from(socket))?;
    Ok(Bound {
        name: Endpoint::tcp(listener.local_addr()?).to_string(),
        socket: Socket::Tcp(listener),
        _file: None,
    })
}

fn udp(address: SocketAddr) -> io::Result<Bound> {
    // Not SO_REUSEADDR: of UDP it would let another program take the datagrams.
    let socket = ip_socket(address, SocketType::DGRAM)?;
    rustix::net::bind(&socket, &address)?;
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
    Ok(Bound {
        name: Endpoint::udp(socket.local_addr()?).to_string(),
        socket: Socket::Udp(socket),
        _file: None,
    })
}

/// With a backlog a stream socket, else one for datagrams. Only this user may connect.
fn unix(name: &UnixName, to: &Endpoint, backlog: Option<i32>) -> anyhow::Result<Bound> {
    let kind = match backlog {
        Some(_) => SocketType::STREAM,
        None => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    let file = match name {
        UnixName::Abstract(name) => {
            let address = rustix::net::SocketAddrUnix::new_abstract_name(name)?;
            rustix::net::bind(&socket, &address)?;
            None
        }
        UnixName::Path(path) => {
            remove_stale(path, backlog.is_none())?;
            let address = rustix::net::SocketAddrUnix::new(path.as_path())?;
            // Nobody else may connect, not even between bind and chmod.
            let before = rustix::process::umask(Mode::from_raw_mode(0o177));
            let bound = rustix::net::bind(&socket, &address);
            rustix::process::umask(before);
            bound?;
            Some(SocketFile::of(path)?)
        }
    };
    let socket = match backlog {
        Some(backlog) => {
            rustix::net::listen(&socket, backlog)?;
            Socket::Unix(UnixListener::from_std(socket.into())?)
        }
        None => Socket::Unixgram(UnixDatagram::from_std(socket.into())?),
    };
    Ok(Bound {
        socket,
        name: to.to_string(),
        _file: file,
    })
}

/// Removes the socket of a server that is gone, and nothing else.
fn remove_stale(path: &Path, datagrams: bool) -> anyhow::Result<()> {
    if !datagrams {
        return crate::cmd::serve::remove_stale(path);
    }
    use std::os::unix::fs::FileTypeExt as _;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(meta) if !meta.file_type().is_socket() => bail!("there is a file that is no socket"),
        found => found?,
    };
    match StdDatagram::unbound()?.connect(path) {
        Ok(()) => bail!("another server listens there"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(std::fs::remove_file(path)?)
        }
        Err(error) => Err(error).context("there is a socket that cannot be checked"),
    }
}

/// The file of a Unix socket of this process.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            id: (meta.dev(), meta.ino()),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another server may have put its own there meanwhile.
        let same = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == self.id;
        if std::fs::symlink_metadata(&self.path).is_ok_and(same) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
