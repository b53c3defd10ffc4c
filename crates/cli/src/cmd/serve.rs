//! `bowline serve`: opens the listening sockets and the host key, says where
//! it listens, then becomes the keeper.
//!
//! The configuration, already read, enters; one line `listening ADDRESS` per
//! socket leaves on stdout, and the exit status at the end.

use std::ffi::{CString, OsString};
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bowline::credentials::host_key::HostKey;
use bowline::net::tls::{self, HostSigner};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::config::ServerConfig;
use crate::inherited;
use crate::keeper::policy::Policy;
use crate::keeper::state::SocketFile;
use crate::keeper::{self, Claim, GateCommand, HostKeySigner, Reload, Setup};

/// Connections that the kernel holds for the gate; it takes less where
/// net.core.somaxconn is lower.
const BACKLOG: i32 = 4096;
/// What the gate gets of this process's environment. It reads the network, so
/// whatever else an administrator's shell may hold is none of its business.
const FOR_THE_GATE: [&str; 4] = ["BOWLINE_LOG", "NO_COLOR", "RUST_BACKTRACE", "TZ"];

/// What `bowline serve` was asked to do.
pub(crate) struct Serve {
    /// The configuration.
    pub(crate) config: ServerConfig,
    /// Decides who is let in.
    pub(crate) policy: Box<dyn Policy>,
    /// Reads the configuration again.
    pub(crate) reload: Reload,
    /// Serve one session on standard input and output and listen nowhere.
    pub(crate) stdio: bool,
    /// End when the other end of standard input closes.
    pub(crate) lifeline: bool,
    /// How often `-v` was given, for the gate too.
    pub(crate) verbose: u8,
    /// Where an earlier program of this process has left its state.
    pub(crate) successor: Option<RawFd>,
}

/// Serves until a signal, the end of the lifeline or of the one session.
///
/// # Errors
/// Where an address, the host key or the state directory cannot be used.
pub(crate) fn serve(serve: Serve) -> anyhow::Result<ExitCode> {
    let mut config = serve.config;
    if config.until_idle_ms.is_some() {
        // Whoever started it may leave, and its terminal with it.
        let _ = rustix::process::setsid();
    }
    let host_key = host_key(&config.host_key)?;
    let mut claim = match serve.successor {
        None => Claim::new(&config)?,
        Some(number) => Claim::inherit(number, &mut config).context("the earlier program")?,
    };
    let lifeline = match claim.is_inherited() {
        true => claim.take_lifeline(),
        false => {
            let lifeline = serve.lifeline.then(|| own_end(rustix::stdio::stdin()));
            lifeline.transpose()
        }
    };
    let lifeline = lifeline.context("the lifeline")?;
    let mut unix_paths = UnixPaths::default();
    let listeners = if serve.stdio {
        standard_streams().context("standard input and output")?
    } else if let Some((listeners, files)) = claim.take_sockets().context("the sockets")? {
        unix_paths.made = files;
        listeners
    } else {
        let left = claim.take_listeners();
        let listeners = listen_all(&config.listen, &mut unix_paths, left)?;
        announce(&listeners);
        listeners
    };
    let gate = gate_command(config.gate.workers.max(1), serve.verbose)?;
    let ended = keeper::serve(Setup {
        config,
        claim,
        listeners,
        socket_files: unix_paths.made.clone(),
        stdio: serve.stdio,
        policy: serve.policy,
        host_key,
        reload: serve.reload,
        lifeline,
        gate,
    });
    drop(unix_paths);
    ended
}

/// The host key in the hands of the keeper; the gate gets signatures alone.
#[derive(Debug)]
struct Holder(HostKey);

impl HostSigner for Holder {
    fn sign(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        Ok(self.0.sign(message).to_vec())
    }
}

/// Reads the host key, or makes it.
///
/// # Errors
/// Where it is no Ed25519 key, or not this user's alone.
pub(crate) fn host_key(path: &Path) -> anyhow::Result<HostKeySigner> {
    let key = HostKey::load_or_create(path).context("the host key")?;
    let public = key.public().ed25519();
    let public = public.with_context(|| format!("{} is no Ed25519 key", path.display()))?;
    let holder = Arc::new(Holder(key));
    let certificate = tls::self_signed(public, Arc::clone(&holder) as Arc<dyn HostSigner>);
    Ok(HostKeySigner {
        certificate: certificate.context("the certificate of the host key")?,
        sign: Box::new(move |message| holder.0.sign(message)),
    })
}

/// Moves standard input and output away: what this process says itself must
/// not end up in the session.
fn standard_streams() -> io::Result<Vec<(String, OwnedFd)>> {
    let streams = [
        ("stdio".to_owned(), own_end(rustix::stdio::stdin())?),
        ("stdio".to_owned(), own_end(rustix::stdio::stdout())?),
    ];
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(streams.into())
}

fn own_end(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

fn gate_command(workers: u16, verbose: u8) -> anyhow::Result<GateCommand> {
    let c_string = |text: OsString| CString::new(text.into_vec());
    let name = std::env::args_os()
        .next()
        .unwrap_or_else(|| "bowline".into());
    let mut argv = vec![
        name,
        "gate".into(),
        "--workers".into(),
        workers.to_string().into(),
    ];
    argv.extend((0..verbose).map(|_| "-v".into()));
    let variables = FOR_THE_GATE.iter().filter_map(|&name| {
        let value = std::env::var_os(name)?;
        Some((OsString::from(name), value))
    });
    let variables = variables.map(|(name, value)| [name, value].join("=".as_ref()));
    Ok(GateCommand {
        argv: argv.into_iter().map(c_string).collect::<Result<_, _>>()?,
        envp: variables.map(c_string).collect::<Result<_, _>>()?,
    })
}

/// The sockets that a service manager passed, or else those of the configuration.
/// `left` are those of a server that died: whoever has connected to them
/// meanwhile waits there. Those that are not wanted again are closed.
fn listen_all(
    addresses: &[String],
    unix_paths: &mut UnixPaths,
    mut left: Vec<(String, OwnedFd)>,
) -> anyhow::Result<Vec<(String, OwnedFd)>> {
    let passed = sd_notify::listen_fds().context("LISTEN_FDS")?;
    if passed.len() > 0 {
        return passed
            .map(|number| activated(number).context("LISTEN_FDS"))
            .collect();
    }
    let mut places = Vec::new();
    for address in addresses {
        let those = Place::of(address);
        places.extend(those.with_context(|| format!("cannot listen on {address}"))?);
    }
    if places.is_empty() {
        bail!("there is no address to listen on; name one with --listen");
    }
    let found: Vec<_> = places.iter().map(|place| place.find(&mut left)).collect();
    // An address that is wanted may only now be free.
    drop(left);
    let opened = places.iter().zip(found).map(|(place, found)| {
        let opened = match found {
            Some(found) => place.keep(found, unix_paths),
            None => place.listen(unix_paths),
        };
        opened.with_context(|| format!("cannot listen on {place}"))
    });
    opened.collect()
}

/// A socket that the service manager opened (sd_listen_fds(3)).
fn activated(number: i32) -> anyhow::Result<(String, OwnedFd)> {
    let socket = inherited::take(number).with_context(|| format!("descriptor {number}"))?;
    let is_listening = sockopt::socket_acceptconn(&socket)
        .with_context(|| format!("descriptor {number} is no socket"))?;
    if !is_listening || sockopt::socket_type(&socket)? != SocketType::STREAM {
        bail!("descriptor {number} is no listening stream socket");
    }
    rustix::io::ioctl_fionbio(&socket, true)?;
    let name = match sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => {
            let listener = UnixListener::from(socket.try_clone()?);
            let address = listener.local_addr()?;
            if let Some(name) = address.as_abstract_name() {
                return Ok((format!("unix:@{}", String::from_utf8_lossy(name)), socket));
            }
            format!(
                "unix:{}",
                address.as_pathname().unwrap_or(Path::new("")).display()
            )
        }
        _ => tcp_name(&TcpListener::from(socket.try_clone()?))?,
    };
    Ok((name, socket))
}

/// Where to listen.
#[derive(Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Place {
    fn of(address: &str) -> anyhow::Result<Vec<Self>> {
        if let Some(path) = address.strip_prefix("unix:") {
            return Ok(vec![Self::Unix(path.into())]);
        }
        let Some(place) = address.strip_prefix("tcp://") else {
            bail!("an address is tcp://HOST:PORT or unix:PATH");
        };
        Ok(place.to_socket_addrs()?.map(Self::Tcp).collect())
    }

    /// Takes the socket that listens here. The kernel is asked where that is: a
    /// process has kept the sockets that reads the network.
    fn find(&self, left: &mut Vec<(String, OwnedFd)>) -> Option<OwnedFd> {
        let listens = |socket: &OwnedFd| {
            sockopt::socket_acceptconn(socket) == Ok(true)
                && sockopt::socket_type(socket) == Ok(SocketType::STREAM)
                && rustix::io::ioctl_fionbio(socket, true).is_ok()
        };
        let found = |(_, socket): &(String, OwnedFd)| listens(socket) && self.is_of(socket);
        let at = left.iter().position(found)?;
        Some(left.swap_remove(at).1)
    }

    fn is_of(&self, socket: &OwnedFd) -> bool {
        let Ok(name) = rustix::net::getsockname(socket) else {
            return false;
        };
        match self {
            // Port 0 is any port.
            Self::Tcp(wanted) => SocketAddr::try_from(name).is_ok_and(|name| {
                name.ip() == wanted.ip() && (wanted.port() == 0 || name.port() == wanted.port())
            }),
            Self::Unix(wanted) => SocketAddrUnix::try_from(name)
                .is_ok_and(|name| name.path_bytes() == Some(wanted.as_os_str().as_bytes())),
        }
    }

    /// Goes on with a socket of a server that died.
    fn keep(&self, socket: OwnedFd, paths: &mut UnixPaths) -> anyhow::Result<(String, OwnedFd)> {
        match self {
            Self::Tcp(_) => {
                let listener = TcpListener::from(socket);
                Ok((tcp_name(&listener)?, listener.into()))
            }
            // Where somebody has removed its file nobody finds it any more.
            Self::Unix(path) if paths.add(path).is_err() => self.listen(paths),
            Self::Unix(_) => Ok((self.to_string(), socket)),
        }
    }

    fn listen(&self, paths: &mut UnixPaths) -> anyhow::Result<(String, OwnedFd)> {
        match self {
            Self::Tcp(address) => Ok(listen_tcp(*address)?),
            Self::Unix(path) => Ok((self.to_string(), paths.listen(path)?)),
        }
    }
}

fn listen_tcp(address: SocketAddr) -> io::Result<(String, OwnedFd)> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // [::] is every address of this machine, those of IPv4 too.
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    let listener = TcpListener::from(socket);
    Ok((tcp_name(&listener)?, listener.into()))
}

/// With the port that the kernel chose where 0 was asked for.
fn tcp_name(listener: &TcpListener) -> io::Result<String> {
    Ok(format!("tcp://{}", listener.local_addr()?))
}

fn announce(listeners: &[(String, OwnedFd)]) {
    let mut stdout = io::stdout().lock();
    for (name, _) in listeners {
        // Whoever started the server need not listen to it.
        let _ = writeln!(stdout, "listening {name}");
    }
    let _ = stdout.flush();
}

/// The socket files of this process, removed at its end.
#[derive(Debug, Default)]
struct UnixPaths {
    made: Vec<SocketFile>,
}

impl UnixPaths {
    /// Listens on a path. As root everybody may connect, because the peer's uid
    /// decides who is let in; else only this user may.
    fn listen(&mut self, path: &Path) -> anyhow::Result<OwnedFd> {
        remove_stale(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::STREAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        let address = UnixAddr::from_pathname(path)?;
        let address = address.as_pathname().context("an address without a path")?;
        let address = SocketAddrUnix::new(address)?;
        // Nobody may connect between bind and the mode that is meant.
        let before = rustix::process::umask(Mode::from_raw_mode(0o777));
        let bound = rustix::net::bind(&socket, &address);
        rustix::process::umask(before);
        bound?;
        self.add(path)?;
        let mode = if rustix::process::geteuid().is_root() {
            0o666
        } else {
            0o600
        };
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// Counts the socket at a path as this process's.
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let meta = std::fs::symlink_metadata(path)?;
        self.made.push(SocketFile {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
        });
        Ok(())
    }
}

impl Drop for UnixPaths {
    fn drop(&mut self) {
        for file in &self.made {
            // Another server may have put its own there meanwhile.
            let same =
                |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == (file.device, file.inode);
            if std::fs::symlink_metadata(&file.path).is_ok_and(same) {
                let _ = std::fs::remove_file(&file.path);
            }
        }
    }
}

/// Removes the socket of a server that is gone, and nothing else.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !meta.file_type().is_socket() {
        bail!("there is a file that is no socket");
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("another server listens there"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(std::fs::remove_file(path)?)
        }
        Err(error) => Err(error).context("there is a socket that cannot be checked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_nobody_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let mut first = UnixPaths::default();
        let listener = first.listen(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        let expected = if rustix::process::geteuid().is_root() {
            0o666
        } else {
            0o600
        };
        assert_eq!(mode, expected);
        UnixStream::connect(&path).unwrap();
        let mut second = UnixPaths::default();
        let error = second.listen(&path).unwrap_err();
        assert!(error.to_string().contains("another server"), "{error}");
        drop(second);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        drop(first);
        assert!(!path.exists());
        std::fs::write(&path, "text").unwrap();
        assert!(UnixPaths::default().listen(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
    }

    fn listen(
        address: &str,
        paths: &mut UnixPaths,
        left: Vec<(String, OwnedFd)>,
    ) -> anyhow::Result<Vec<(String, OwnedFd)>> {
        listen_all(&[address.to_owned()], paths, left)
    }

    #[test]
    fn the_port_that_was_chosen_is_named() {
        let mut paths = UnixPaths::default();
        let opened = listen("tcp://127.0.0.1:0", &mut paths, Vec::new()).unwrap();
        let [(name, _socket)] = &opened[..] else {
            panic!("{opened:?}");
        };
        let place = name.strip_prefix("tcp://").unwrap();
        let address: SocketAddr = place.parse().unwrap();
        assert_ne!(address.port(), 0);
        std::net::TcpStream::connect(address).unwrap();
        assert!(listen("127.0.0.1:0", &mut paths, Vec::new()).is_err());
        assert!(listen("tcp://127.0.0.1", &mut paths, Vec::new()).is_err());
    }

    #[test]
    fn sockets_that_a_dead_server_left_are_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let unix = format!("unix:{}", folder.path().join("socket").display());
        let mut first = UnixPaths::default();
        let wanted = ["tcp://127.0.0.1:0".to_owned(), unix.clone()];
        let mut left = listen_all(&wanted, &mut first, Vec::new()).unwrap();
        let name = left[0].0.clone();
        // What only looks like a listening socket is none.
        let pair = UnixStream::pair().unwrap();
        left.insert(0, (name.clone(), pair.0.into()));
        first.made.clear();
        let mut paths = UnixPaths::default();
        let wanted = ["tcp://127.0.0.1:0".to_owned(), unix.clone()];
        let again = listen_all(&wanted, &mut paths, left).unwrap();
        assert_eq!((&again[0].0, &again[1].0), (&name, &unix));
        // Another address is opened once the old one is closed: here the same by another name.
        let wanted = [format!("unix:{}/./socket", folder.path().display())];
        let other = listen_all(&wanted, &mut paths, again).unwrap();
        assert_eq!(other[0].0, wanted[0]);
        drop((paths, other));
        assert!(!folder.path().join("socket").exists());
    }

    #[test]
    fn every_address_means_both_families() {
        let Ok((name, _socket)) = listen_tcp("[::]:0".parse().unwrap()) else {
            // This machine has no IPv6 at all.
            return;
        };
        let port = name.rsplit(':').next().unwrap();
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    }
}
