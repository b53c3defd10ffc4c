//! The server of a stream service: accepts, admits, serves each connection in a
//! task of its own, and stops.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::builder::ServerBuilder;
use super::handle::{ServerHandle, Stopped};
use crate::net::admission::{Place, Source};
use crate::net::authentication::{Anyone, Authentication};
use crate::net::connection::{Connection, unix_peer};
use crate::net::endpoint::Peer;
use crate::net::limits::{ACCEPT_PAUSE, LINGER_TIME, Limits};
use crate::net::listen::Listener;
use crate::net::service::{ServiceError, StreamService, TimedOut};

/// A stream service and the sockets that it listens on.
pub struct StreamServer<S, A = Anyone> {
    shared: Arc<Shared<S, A>>,
    listeners: Vec<Listener>,
    stop_within: Duration,
    timeout: Option<Duration>,
}

struct Shared<S, A> {
    service: S,
    authentication: A,
    limits: Limits,
    handle: ServerHandle,
}

impl<S, A> fmt::Debug for StreamServer<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.handle.fmt(f)
    }
}

/// What the server's own task has to do next.
enum Event {
    ActionsDone,
    Ended(Result<(Id, ()), (Id, JoinError)>),
    Accepted(io::Result<Accepted>),
    PauseOver,
    NobodyCame(Duration),
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl<S: StreamService, A: Authentication> StreamServer<S, A> {
    pub(super) fn new(
        builder: ServerBuilder<A>,
        handle: ServerHandle,
        listeners: Vec<Listener>,
        service: S,
    ) -> Self {
        Self {
            listeners,
            stop_within: builder.stop_within,
            timeout: builder.timeout,
            shared: Arc::new(Shared {
                service,
                authentication: builder.authentication,
                limits: builder.limits,
                handle,
            }),
        }
    }

    /// Watches and stops this server, also while it serves.
    pub fn handle(&self) -> ServerHandle {
        self.shared.handle.clone()
    }

    /// Serves until [`ServerHandle::stop`] is called; Python's `serve_forever`.
    ///
    /// # Cancel safety
    /// Dropping the future drops all connections.
    pub async fn serve(self) -> Stopped {
        let shared = self.shared.clone();
        let mut connections = Connections::default();
        let mut stopped = pin!(shared.handle.stop.token().cancelled());
        let mut actions = pin!(shared.service.service_actions());
        let mut acting = true;
        let mut paused: Option<Instant> = None;
        let mut last_came = Instant::now();
        let mut next = 0;
        loop {
            let event = tokio::select! {
                biased;
                () = &mut stopped => break,
                () = &mut actions, if acting => Event::ActionsDone,
                ended = connections.next_ended(), if !connections.is_empty() => Event::Ended(ended),
                accepted = poll_fn(|cx| poll_accept(&self.listeners, &mut next, cx)),
                    if paused.is_none() => Event::Accepted(accepted),
                () = sleep_until(paused.unwrap_or(last_came)), if paused.is_some() => Event::PauseOver,
                time = quiet_for(last_came, self.timeout) => Event::NobodyCame(time),
            };
            match event {
                Event::ActionsDone => acting = false,
                Event::Ended(ended) => {
                    paused = None;
                    connections.forget(ended, &shared.service);
                }
                Event::Accepted(Ok(accepted)) => {
                    last_came = Instant::now();
                    shared.clone().begin(accepted, &mut connections);
                }
                Event::Accepted(Err(error)) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    // accept(2) would fail again at once and take all of a core.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        paused = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                }
                Event::PauseOver => paused = None,
                Event::NobodyCame(time) => {
                    last_came = Instant::now();
                    let time = TimedOut::NobodyCame(time);
                    shared.service.handle_timeout(None, time);
                }
            }
        }
        drop(self.listeners);
        connections.drain(&shared.service, self.stop_within).await
    }
}

/// Ready when nobody came for so long.
async fn quiet_for(since: Instant, timeout: Option<Duration>) -> Duration {
    match timeout {
        Some(time) => {
            sleep_until(since + time).await;
            time
        }
        None => std::future::pending().await,
    }
}

/// Accepts from each listener in turn, so that none can starve another.
fn poll_accept(
    listeners: &[Listener],
    next: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Accepted>> {
    for _ in listeners {
        *next = (*next + 1) % listeners.len();
        let polled = match &listeners[*next] {
            Listener::Tcp(listener) => listener
                .poll_accept(cx)
                .map_ok(|(stream, address)| Accepted::Tcp(stream, address)),
            Listener::Unix { listener, .. } => listener
                .poll_accept(cx)
                .map_ok(|(stream, _)| Accepted::Unix(stream)),
        };
        if polled.is_ready() {
            return polled;
        }
    }
    Poll::Pending
}

impl<S: StreamService, A: Authentication> Shared<S, A> {
    /// Starts to serve what was accepted, or closes it.
    fn begin(self: Arc<Self>, accepted: Accepted, connections: &mut Connections) {
        let peer = match &accepted {
            Accepted::Tcp(_, address) => Peer::ip(*address),
            Accepted::Unix(stream) => match unix_peer(stream) {
                Ok(peer) => peer,
                // Gone already.
                Err(_) => return,
            },
        };
        let authenticates = self.authentication.is_needed();
        let admission = &self.handle.admission;
        let place = match admission.enter(Source::of(&peer), authenticates) {
            Ok(place) => place,
            Err(full) => {
                tracing::debug!(%peer, "a connection is turned away: {full}");
                return;
            }
        };
        if !self.service.verify_request(&peer) {
            tracing::debug!(%peer, "a connection is turned away by the service");
            return;
        }
        let mut connection = match accepted {
            Accepted::Tcp(stream, _) => Connection::of_tcp(stream, peer.clone(), &self.limits),
            Accepted::Unix(stream) => Connection::of_unix(stream, peer.clone(), &self.limits),
        };
        connection.stop_with(&self.handle.stop);
        connections.spawn(peer, self.converse(place, connection));
    }

    /// A connection's life; its place is taken until the socket is closed.
    async fn converse(self: Arc<Self>, mut place: Place, mut connection: Connection) {
        let served = self.serve(&mut connection, &mut place).await;
        let lingers = match &served {
            Ok(()) => true,
            Err(ServiceError::Gone) => false,
            Err(ServiceError::TimedOut(time)) => {
                self.service.handle_timeout(Some(connection.peer()), *time);
                false
            }
            Err(error) => {
                self.service.handle_error(connection.peer(), error);
                !matches!(error, ServiceError::NotAuthenticated)
            }
        };
        if lingers {
            linger(&mut connection).await;
        }
    }

    async fn serve(
        &self,
        connection: &mut Connection,
        place: &mut Place,
    ) -> Result<(), ServiceError> {
        if self.authentication.is_needed() {
            let within = self.limits.authentication_time;
            let authenticating = self.authentication.authenticate(connection);
            match timeout(within, authenticating).await {
                Ok(authenticated) => authenticated?,
                Err(_) => return Err(TimedOut::Authentication(within).into()),
            }
            place.authenticated();
        }
        let within = self.limits.first_message_time;
        connection.reader.expect_first(within);
        self.service.serve(connection).await?;
        connection.writer.flush().await
    }
}

/// Says that nothing more comes, and reads what the peer still sends until it
/// closes too: a close with something unread is a reset, and a reset can take the
/// last reply away from a peer that has not read it yet.
async fn linger(connection: &mut Connection) {
    let ended = async {
        if connection.writer.finish().await.is_ok() {
            while let Ok(Some(_)) = connection.reader.read().await {}
        }
    };
    let _ = timeout(LINGER_TIME, ended).await;
}

/// The tasks of the connections, and whose they are.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    peers: HashMap<Id, Peer>,
}

impl Connections {
    fn spawn(&mut self, peer: Peer, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(task);
        self.peers.insert(task.id(), peer);
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    async fn next_ended(&mut self) -> Result<(Id, ()), (Id, JoinError)> {
        match self.tasks.join_next_with_id().await {
            Some(ended) => ended.map_err(|error| (error.id(), error)),
            None => std::future::pending().await,
        }
    }

    fn forget(&mut self, ended: Result<(Id, ()), (Id, JoinError)>, service: &impl StreamService) {
        let (id, error) = match ended {
            Ok((id, ())) => (id, None),
            Err((id, error)) => (id, Some(error)),
        };
        let peer = self.peers.remove(&id);
        if let (Some(peer), Some(error)) = (peer, error)
            && error.is_panic()
        {
            let panic = error.into_panic();
            service.handle_error(&peer, &ServiceError::panicked(panic.as_ref()));
        }
    }

    /// Waits for the connections to end, and drops those that do not in time.
    async fn drain(mut self, service: &impl StreamService, within: Duration) -> Stopped {
        let drained = async {
            while !self.is_empty() {
                let ended = self.next_ended().await;
                self.forget(ended, service);
            }
        };
        let _ = timeout(within, drained).await;
        let cut_off = self.tasks.len();
        self.tasks.shutdown().await;
        Stopped { cut_off }
    }
}
