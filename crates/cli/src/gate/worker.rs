//! A worker: one thread with its runtime, its link to the keeper, its share of
//! the connections.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use bowline::driver::Wire;
use bowline::net::Socket;
use bowline::net::tls::{self, HostSigner};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Connection, Shown};
use super::job::{Adoption, Owner};
use super::limits::Limits;
use super::link::Link;
use super::{Incoming, Shared, lock, spool_keep};
use crate::config::GateConfig;
use crate::ipc::{Source, ToGate, ToKeeper, messages, packet};

/// How long nothing is accepted when no descriptor is left for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Threads of a worker that wait for the disk, where detached jobs write.
const DISK_THREADS_MAX: usize = 4;

/// What the connections of a worker use.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) link: Link,
    pub(super) shared: Arc<Shared>,
    /// The owners of the jobs that this worker has the pipes of.
    owners: TaskTracker,
    tls: Arc<rustls::ServerConfig>,
}

/// The keeper's signatures for TLS handshakes, over a socket that is used for nothing else.
#[derive(Debug)]
struct KeeperSigner(Mutex<OwnedFd>);

impl HostSigner for KeeperSigner {
    fn sign(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let socket = lock(&self.0);
        let request = ToKeeper::Sign {
            message: message.to_vec().into(),
        };
        packet::send(&*socket, &request, &[])?;
        match packet::receive::<ToGate>(&*socket, &mut Vec::new())? {
            Some((ToGate::Signature { signature }, _)) => Ok(signature.into_vec()),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// A worker's sockets to the keeper, and what it must do when those close.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) socket: OwnedFd,
    pub(super) signature: OwnedFd,
    /// Dropped when every connection has noted that the keeper is gone, and the
    /// listening sockets are closed.
    pub(super) noting: mpsc::Sender<()>,
    /// With the worker that waits for the next keeper: ends when all have noted it.
    pub(super) noted: Option<mpsc::Receiver<()>>,
}

impl Worker {
    /// Serves until the keeper is gone or has it stop, and the last connection is over.
    ///
    /// # Errors
    /// Where the runtime, the link or a listening socket cannot be used.
    pub(super) fn run(
        shared: Arc<Shared>,
        lines: Lines,
        certificate: Vec<u8>,
        incoming: Incoming,
        adoptions: Vec<Adoption>,
    ) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(DISK_THREADS_MAX)
            .build()
            .context("a runtime")?;
        let _entered = runtime.enter();
        let signer = Arc::new(KeeperSigner(Mutex::new(lines.signature)));
        let worker = Rc::new(Worker {
            link: Link::new(lines.socket, lines.noting.clone())
                .context("the link to the keeper")?,
            shared,
            owners: TaskTracker::new(),
            tls: tls::server_config(certificate, signer).context("TLS")?,
        });
        worker.link.send(&ToKeeper::Ready {
            version: messages::VERSION,
        });
        let serve = worker.serve(incoming, adoptions, lines.noting, lines.noted);
        LocalSet::new().block_on(&runtime, serve)
    }

    pub(super) fn config(&self) -> Arc<GateConfig> {
        lock(&self.shared.config).clone()
    }

    /// Has a job served to its end.
    pub(super) fn own(&self, owner: Owner) {
        self.owners.spawn_local(owner.serve());
    }

    async fn serve(
        self: Rc<Self>,
        incoming: Incoming,
        adoptions: Vec<Adoption>,
        noting: mpsc::Sender<()>,
        mut noted: Option<mpsc::Receiver<()>>,
    ) -> anyhow::Result<()> {
        let (stop, retire) = (CancellationToken::new(), &self.shared.retire);
        for adoption in adoptions {
            self.own(Owner::adopt(self.clone(), adoption));
        }
        // It is waited for once no connection can bring another.
        self.owners.close();
        let mut tasks = JoinSet::new();
        match incoming {
            Incoming::Listeners(listeners) => {
                for (address, socket) in listeners {
                    let listener = Listener::new(&address, socket)
                        .with_context(|| format!("the listening socket of {address}"))?;
                    let accept = self.clone().accept(listener, stop.clone(), noting.clone());
                    tasks.spawn_local(accept);
                }
            }
            Incoming::Stdio(input, output) => {
                tasks.spawn_local(self.clone().stdio(input, output));
            }
        }
        drop(noting);
        let link = self.link.run(|message, _fds| match message {
            ToGate::Retire => retire.cancel(),
            message => self.other(message, &stop),
        });
        let mut link = std::pin::pin!(link);
        let mut linked = true;
        loop {
            tokio::select! {
                // Connections break here: what they carry goes on with the next gate.
                () = retire.cancelled() => return Ok(()),
                result = &mut link, if linked => {
                    linked = false;
                    stop.cancel();
                    result.context("the link to the keeper")?;
                    if let Some(noted) = noted.take() {
                        let worker = self.clone();
                        tasks.spawn_local(async move {
                            let shared = &worker.shared;
                            shared.estate.bequeath(noted, &shared.retire).await;
                        });
                    }
                }
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
                () = self.owners.wait(), if tasks.is_empty() => return Ok(()),
            }
        }
    }

    /// What the keeper says that concerns no connection of this worker.
    fn other(&self, message: ToGate, stop: &CancellationToken) {
        match message {
            ToGate::Drain { .. } => stop.cancel(),
            ToGate::Reload { config } => {
                self.shared.door.set_limits(Limits::from(&*config));
                self.shared.spools.keep(spool_keep(&config));
                self.shared.spools.account.set_max(config.spool.bytes_max);
                *lock(&self.shared.config) = Arc::new(*config);
            }
            // An answer to a connection or job that is gone.
            _ => {}
        }
    }

    async fn accept(
        self: Rc<Self>,
        listener: Listener,
        stop: CancellationToken,
        noting: mpsc::Sender<()>,
    ) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((socket, source)) => {
                        if let Some(connection) = self.clone().admit(socket, source) {
                            connections.spawn_local(connection);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection cannot be accepted");
                        // Descriptors are back when a connection or job ends; until then accept(2)
                        // would fail at once again, and take all of a core.
                        if !matches!(error.kind(), io::ErrorKind::ConnectionAborted) {
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    }
                },
            }
        }
        drop(listener);
        drop(noting);
        while connections.join_next().await.is_some() {}
    }

    /// Lets an accepted connection begin. Where there is no room for it, a few
    /// at a time are told so, and the others are closed without a word: to tell
    /// costs a handshake.
    fn admit(self: Rc<Self>, socket: Socket, source: Source) -> Option<impl Future<Output = ()>> {
        let address = match source {
            Source::Tcp(address, _) => Some(address),
            Source::Unix | Source::Stdio => None,
        };
        let (admitted, refusal) = match self.shared.door.admit(address) {
            Ok(admitted) => (admitted, None),
            Err(refusal) => {
                // A flood must not fill the log too: those who cannot be told are not named.
                let told = self.shared.door.turn_away()?;
                tracing::warn!(source = %Shown(&source), %refusal, "a connection is turned away");
                (told, Some(refusal))
            }
        };
        let nonce = match source {
            Source::Tcp(..) => None,
            Source::Unix | Source::Stdio => Some(nonce().ok()?),
        };
        let wire = match &socket {
            Socket::Tcp(_) => match rustls::ServerConnection::new(self.tls.clone()) {
                Ok(tls) => Wire::tls(socket, tls),
                Err(error) => {
                    tracing::error!(%error, "TLS");
                    return None;
                }
            },
            _ => Wire::plain(socket),
        };
        let id = self.shared.connection_id();
        tracing::debug!(connection = id, source = %Shown(&source), "accepted");
        Some(async move {
            let mut connection = Connection::new(self, id, source, wire, nonce, admitted);
            if let Some(refusal) = refusal {
                connection.refuse(refusal.code(), &refusal.to_string());
            }
            connection.serve().await;
        })
    }

    async fn stdio(self: Rc<Self>, input: OwnedFd, output: OwnedFd) {
        let connection = Socket::pipes(input, output)
            .inspect_err(|error| tracing::error!(%error, "stdin and stdout are no pipes"))
            .ok()
            .and_then(|socket| self.clone().admit(socket, Source::Stdio));
        if let Some(connection) = connection {
            connection.await;
        }
        self.owners.wait().await;
        // There will be no other: the keeper sees the gate end and ends too.
        std::process::exit(0);
    }
}

fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| io::ErrorKind::Other)?;
    Ok(nonce)
}

/// A socket that listens.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn new(address: &str, socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        if address.starts_with("unix:") {
            UnixListener::from_std(socket.into()).map(Self::Unix)
        } else {
            TcpListener::from_std(socket.into()).map(Self::Tcp)
        }
    }

    async fn accept(&self) -> io::Result<(Socket, Source)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let address = match peer.ip() {
                    IpAddr::V6(address) => address.to_canonical(),
                    address @ IpAddr::V4(_) => address,
                };
                Ok((Socket::tcp(stream)?, Source::Tcp(address, peer.port())))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), Source::Unix))
            }
        }
    }
}
