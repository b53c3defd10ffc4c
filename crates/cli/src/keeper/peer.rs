//! Who is at the other end of a Unix socket that the gate shows.
//!
//! The kernel remembers who made a connection, and for a pair who made the
//! pair. The gate holds ends of pairs that the keeper itself made, as root: if
//! any socket counted, a gate that was taken over could show one of those and
//! be root. So only a connection that was accepted from one of the keeper's own
//! listening sockets counts: it bears that socket's name, which a pair never
//! does, and a socket that the gate makes has the gate's own uid.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, sockopt};
use rustix::process::{Gid, Uid};

/// Tells the uid and gid of whoever connected.
///
/// # Errors
/// As getsockopt(2) and getsockname(2); `InvalidInput` for any other socket
/// than a connection to one of `listeners`.
pub(super) fn peer<'a>(
    socket: BorrowedFd<'_>,
    listeners: impl IntoIterator<Item = BorrowedFd<'a>>,
) -> io::Result<(Uid, Gid)> {
    let name = connection_name(socket)?;
    let ours = listeners
        .into_iter()
        .filter_map(|listener| unix_name(listener).ok().flatten());
    if !{ ours }.any(|listener| listener == name) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let peer = sockopt::socket_peercred(socket)?;
    Ok((peer.uid, peer.gid))
}

/// The name of a connected stream socket.
fn connection_name(socket: BorrowedFd<'_>) -> io::Result<SocketAddrUnix> {
    let is_connection =
        sockopt::socket_type(socket)? == SocketType::STREAM && !sockopt::socket_acceptconn(socket)?;
    match unix_name(socket)? {
        Some(name) if is_connection => Ok(name),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// The name of a Unix socket; `None` of one without, and of other kinds.
fn unix_name(socket: BorrowedFd<'_>) -> io::Result<Option<SocketAddrUnix>> {
    if sockopt::socket_domain(socket.as_fd())? != AddressFamily::UNIX {
        return Ok(None);
    }
    let name = rustix::net::getsockname(socket)?;
    let name = SocketAddrUnix::try_from(name).map_err(io::Error::from)?;
    let named =
        name.path_bytes().is_some_and(|path| !path.is_empty()) || name.abstract_name().is_some();
    Ok(named.then_some(name))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

    use rustix::net::SocketFlags;

    use super::*;

    fn is_ours(socket: impl AsFd, listeners: &[&UnixListener]) -> bool {
        let listeners = listeners.iter().map(|listener| listener.as_fd());
        match peer(socket.as_fd(), listeners) {
            Ok((uid, _)) => {
                assert_eq!(uid, rustix::process::geteuid());
                true
            }
            Err(_) => false,
        }
    }

    #[test]
    fn only_connections_to_the_own_listeners_count() {
        let folder = tempfile::tempdir().unwrap();
        let listen = |name: &str| {
            let path = folder.path().join(name);
            let listener = UnixListener::bind(&path).unwrap();
            let client = UnixStream::connect(&path).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            (listener, client, accepted)
        };
        let (own, client, accepted) = listen("own");
        let (other, _other_client, elsewhere) = listen("other");
        assert!(is_ours(&accepted, &[&own]));
        assert!(is_ours(&accepted, &[&other, &own]));
        assert!(!is_ours(&accepted, &[&other]));
        assert!(!is_ours(&accepted, &[]));
        assert!(!is_ours(&elsewhere, &[&own]));
        assert!(!is_ours(&client, &[&own]), "the client's end has no name");
        assert!(!is_ours(&own, &[&own]), "it listens");
    }

    #[test]
    fn pairs_and_other_kinds_never_count() {
        let folder = tempfile::tempdir().unwrap();
        let own = UnixListener::bind(folder.path().join("own")).unwrap();
        let (stream, _end) = UnixStream::pair().unwrap();
        assert!(!is_ours(&stream, &[&own]));
        let (datagram, _end) = UnixDatagram::pair().unwrap();
        assert!(!is_ours(&datagram, &[&own]));
        // As the keeper makes them for the gate.
        let kind = SocketType::SEQPACKET;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        assert!(!is_ours(pair.unwrap().0, &[&own]));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        assert!(!is_ours(&stream, &[&own]));
        assert!(!is_ours(std::fs::File::open("/dev/null").unwrap(), &[&own]));
        // Of two sockets without a name, neither is the other's.
        let nameless = UnixStream::pair().unwrap().0;
        let listeners = [nameless.as_fd()];
        assert!(peer(stream.as_fd(), listeners).is_err());
    }

    #[test]
    fn abstract_names_count_too() {
        let name = format!("bowline-test-peer-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let _client = UnixStream::connect_addr(&address).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(is_ours(&accepted, &[&listener]));
    }
}
