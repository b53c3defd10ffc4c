//! From an address to a connection whose client has introduced itself.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use bowline_proto::auth::{self, Binding, EXPORTER_LABEL, Proof};
use bowline_proto::limits::{MINOR, PROTOCOL};
use bowline_proto::message::{Auth, Hello};
use bowline_proto::session::Session;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::connection::Connection;
use super::error::ClientError;
use super::handshake::meet;
use super::reach::Hurry;
use crate::driver::Wire;
use crate::net::Socket;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name or address, and a port.
    Tcp(String, u16),
    /// A Unix socket; a leading NUL byte is an abstract name (unix(7)).
    Unix(PathBuf),
    /// A program whose standard input and output are the connection:
    /// `ssh host bowline serve --stdio`.
    Command(Vec<OsString>),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Command(argv) => {
                let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
                f.write_str(&words.join(" "))
            }
        }
    }
}

/// Why a host key is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// Nobody has ever vouched for it.
    #[error("the host key of {host} is not known ({fingerprint})")]
    Unknown {
        /// The host as known_hosts names it.
        host: String,
        /// `SHA256:…`.
        fingerprint: String,
    },
    /// Another key is pinned for this host.
    #[error("the host key of {host} has changed: {place} pins another than {fingerprint}")]
    Changed {
        /// The host as known_hosts names it.
        host: String,
        /// File and line of the pinned key.
        place: String,
        /// `SHA256:…` of the key that was shown.
        fingerprint: String,
    },
    /// The key is marked as revoked.
    #[error("the host key of {host} is revoked by {place}")]
    Revoked {
        /// The host as known_hosts names it.
        host: String,
        /// File and line of the mark.
        place: String,
    },
    /// The files that pin host keys cannot be read or written.
    #[error("{place} cannot be used")]
    File {
        /// The file.
        place: String,
        /// What is wrong with it.
        source: std::io::Error,
    },
}

impl HostKeyError {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "host_key_unknown",
            Self::Changed { .. } => "host_key_changed",
            Self::Revoked { .. } => "host_key_revoked",
            Self::File { .. } => "known_hosts_unusable",
        }
    }
}

/// Decides about a host key, before the client says anything.
pub trait HostTrust {
    /// Accepts `key`, the 32 bytes of an Ed25519 key, of `host` and `port`, or
    /// says why not. May ask a person.
    ///
    /// # Errors
    /// [`HostKeyError`]; the connection ends.
    fn check(&mut self, host: &str, port: u16, key: &[u8; 32]) -> Result<(), HostKeyError>;
}

/// Proves who the client is.
pub trait Proofs {
    /// Up to four proofs for this connection; the first that the server grants counts.
    fn proofs(&mut self, binding: &Binding, user: &str) -> Vec<Proof>;

    /// What the server must prove in return, before it is told what to run;
    /// `None` where the host key is proof enough.
    fn server_proof(&mut self, binding: &Binding, user: &str) -> Option<ServerProof>;
}

/// The authentication code that a server which knows the shared secret sends.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerProof(pub [u8; 32]);

impl fmt::Debug for ServerProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerProof")
    }
}

/// Whom to be, and how to prove it.
pub struct Access<'a> {
    /// The account that jobs are to run as; empty leaves it to the server.
    pub user: String,
    /// What proves it.
    pub proofs: &'a mut dyn Proofs,
    /// What decides about the host key. With a shared secret the server proves
    /// itself, and an unknown host key need not end the connection.
    pub trust: &'a mut dyn HostTrust,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// From the first packet to the end of the handshake.
    pub timeout: Duration,
    /// How long the path may be silent before the kernel gives it up; as the kernel thinks
    /// fit where there is none. [`super::Pulse`] notices what the kernel cannot.
    pub silence: Option<Duration>,
    /// For a path that is down: to be there soon when it is back.
    pub hurry: Option<Hurry>,
    /// Name and version of the program, for the server's log.
    pub software: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15),
            silence: None,
            hurry: None,
            software: concat!("bowline/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Connects, checks the host key, and queues the client's `hello` and `auth`.
///
/// What is started on the connection before the server has answered goes out
/// in the same flight as they do.
///
/// # Errors
/// [`ClientError`]; nothing was started.
///
/// # Cancel safety
/// Dropping the future closes what was opened; nothing was asked for yet.
pub async fn connect(
    to: &Endpoint,
    access: Access<'_>,
    options: &Options,
) -> Result<Connection, ClientError> {
    match tokio::time::timeout(options.timeout, open(to, access, options)).await {
        Ok(opened) => opened,
        Err(_) => Err(ClientError::Timeout(options.timeout)),
    }
}

async fn open(
    to: &Endpoint,
    access: Access<'_>,
    options: &Options,
) -> Result<Connection, ClientError> {
    let Access {
        user,
        proofs,
        trust,
    } = access;
    let hello = Hello {
        protocol: PROTOCOL.to_owned(),
        minor: MINOR,
        software: options.software.clone(),
        ..Hello::default()
    };
    let failed = |source| ClientError::Connect {
        to: to.to_string(),
        source,
    };
    let session = Session::client(&hello);
    let mut connection = match to {
        Endpoint::Tcp(host, port) => {
            let (wire, key) = meet(host, *port, options).await?;
            trust.check(host, *port, &key)?;
            Connection::new(wire, session, None)
        }
        Endpoint::Unix(path) => {
            let stream = unix(path).await.map_err(failed)?;
            Connection::new(Wire::plain(Socket::Unix(stream)), session, None)
        }
        Endpoint::Command(argv) => {
            let (socket, child) = command(argv)?;
            Connection::new(Wire::plain(socket), session, Some(child))
        }
    };
    let binding = match connection.exporter(EXPORTER_LABEL) {
        Some(exporter) => Binding::Exporter(exporter),
        None => match connection.nonce().await {
            Ok(nonce) => Binding::Nonce(nonce),
            // How ssh ended says more than that it did.
            Err(error) => return Err(connection.carrier_ended(error).await),
        },
    };
    let mut offered = proofs.proofs(&binding, &user);
    offered.truncate(auth::PROOFS_MAX);
    connection.expect_proof(proofs.server_proof(&binding, &user));
    connection.authenticate(&Auth {
        user,
        proofs: auth::proofs_to_json(&offered),
    });
    Ok(connection)
}

async fn unix(path: &std::path::Path) -> std::io::Result<UnixStream> {
    use std::os::unix::ffi::OsStrExt;
    match path.as_os_str().as_bytes().strip_prefix(b"\0") {
        None => UnixStream::connect(path).await,
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        }
    }
}

/// Starts the program that carries the connection. Its stderr and its terminal
/// stay ours: that is where ssh asks and complains, and in another process group
/// it would be stopped for asking. So a Ctrl-C reaches it too, and it must
/// ignore that where the job alone is meant.
fn command(argv: &[OsString]) -> Result<(Socket, Child), ClientError> {
    let (program, args) = argv.split_first().ok_or(ClientError::Closed)?;
    let failed = |source| ClientError::Command {
        program: program.to_string_lossy().into_owned(),
        source,
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(ClientError::Closed);
    };
    let output: OwnedFd = stdin.into_owned_fd().map_err(failed)?;
    let input: OwnedFd = stdout.into_owned_fd().map_err(failed)?;
    Ok((Socket::pipes(input, output).map_err(failed)?, child))
}
