//! What a server is made of, before it listens.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use super::datagrams::DatagramServer;
use super::handle::ServerHandle;
use super::streams::StreamServer;
use crate::net::admission::Admission;
use crate::net::authentication::{Anyone, Authentication};
use crate::net::endpoint::Endpoint;
use crate::net::limits::{DESCRIPTORS_RESERVED, Limits};
use crate::net::listen::{self, Opening};
use crate::net::patience::Stop;
use crate::net::service::{DatagramService, StreamService};

/// Makes servers.
///
/// ```
/// # use bowline::net::{Connection, ServerBuilder, ServiceError, StreamService};
/// # struct Greet;
/// # impl StreamService for Greet {
/// #     async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
/// #         connection.send(b"hello").await
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = ServerBuilder::new()
///     .listen("tcp://127.0.0.1:0".parse()?)
///     .listen("unix:@greet-example".parse()?)
///     .backlog(128)
///     .stream(Greet)
///     .await?;
/// let handle = server.handle();
/// assert_eq!(handle.endpoints().len(), 2);
/// handle.stop();
/// server.serve().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ServerBuilder<A = Anyone> {
    endpoints: Vec<Endpoint>,
    opening: Opening,
    pub(super) limits: Limits,
    pub(super) stop_within: Duration,
    pub(super) timeout: Option<Duration>,
    pub(super) authentication: A,
}

impl ServerBuilder {
    /// A server that listens nowhere yet, lets anyone in, and has the limits of
    /// [`Limits::default`].
    pub fn new() -> Self {
        Self {
            endpoints: Vec::new(),
            opening: Opening {
                backlog: 1024,
                reuse_address: true,
                unix_mode: None,
            },
            limits: Limits::default(),
            stop_within: Duration::from_secs(5),
            timeout: None,
            authentication: Anyone,
        }
    }
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Authentication> ServerBuilder<A> {
    /// Listens here; may be called again for one more address.
    #[must_use]
    pub fn listen(mut self, endpoint: Endpoint) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// How many connections may wait to be accepted; Python's
    /// `request_queue_size`. The kernel cuts it to `net.core.somaxconn`.
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.opening.backlog = connections;
        self
    }

    /// Whether a TCP port may be taken while connections of an earlier server
    /// still fade away; Python's `allow_reuse_address`. It is so unless you say
    /// no. Of UDP ports it never is: two servers would share the datagrams.
    #[must_use]
    pub fn reuse_address(mut self, reuse: bool) -> Self {
        self.opening.reuse_address = reuse;
        self
    }

    /// The mode of the file of a Unix socket; else the umask decides.
    #[must_use]
    pub fn unix_mode(mut self, mode: u32) -> Self {
        self.opening.unix_mode = Some(mode);
        self
    }

    /// What peers may cost.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How long [`ServerHandle::stop`] lets what is under way go on.
    #[must_use]
    pub fn stop_within(mut self, time: Duration) -> Self {
        self.stop_within = time;
        self
    }

    /// Has `handle_timeout` called whenever nobody came for so long.
    #[must_use]
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// What a peer must do before the service sees it.
    #[must_use]
    pub fn authentication<B: Authentication>(self, authentication: B) -> ServerBuilder<B> {
        ServerBuilder {
            endpoints: self.endpoints,
            opening: self.opening,
            limits: self.limits,
            stop_within: self.stop_within,
            timeout: self.timeout,
            authentication,
        }
    }

    /// Opens the sockets for a stream service. Clients can connect from here
    /// on, and are served once [`StreamServer::serve`] runs.
    ///
    /// # Errors
    /// [`ListenError`]; nothing is left open.
    pub async fn stream<S: StreamService>(
        self,
        service: S,
    ) -> Result<StreamServer<S, A>, ListenError> {
        let mut endpoints = Vec::new();
        let mut listeners = Vec::new();
        for endpoint in &self.endpoints {
            if endpoint.is_datagram() {
                return Err(ListenError::Kind(endpoint.clone()));
            }
            let opened = listen::streams(endpoint, &self.opening).await;
            for (local, listener) in opened.map_err(|source| ListenError::at(endpoint, source))? {
                endpoints.push(local);
                listeners.push(listener);
            }
        }
        let handle = self.handle(endpoints)?;
        Ok(StreamServer::new(self, handle, listeners, service))
    }

    /// Opens the sockets for a datagram service.
    ///
    /// # Errors
    /// [`ListenError`]; nothing is left open.
    pub async fn datagram<S: DatagramService>(
        self,
        service: S,
    ) -> Result<DatagramServer<S>, ListenError> {
        if self.authentication.is_needed() {
            return Err(ListenError::Authentication);
        }
        let mut endpoints = Vec::new();
        let mut sockets = Vec::new();
        for endpoint in &self.endpoints {
            if !endpoint.is_datagram() {
                return Err(ListenError::Kind(endpoint.clone()));
            }
            let opened = listen::datagrams(endpoint, &self.opening).await;
            for (local, socket, file) in
                opened.map_err(|source| ListenError::at(endpoint, source))?
            {
                endpoints.push(local);
                sockets.push((socket, file));
            }
        }
        let handle = self.handle(endpoints)?;
        let waits = (self.stop_within, self.timeout);
        Ok(DatagramServer::new(
            handle,
            sockets,
            service,
            self.limits,
            waits,
        ))
    }

    fn handle(&self, endpoints: Vec<Endpoint>) -> Result<ServerHandle, ListenError> {
        if endpoints.is_empty() {
            return Err(ListenError::Nowhere);
        }
        let connections_max = self.limits.connections_max.min(descriptors());
        Ok(ServerHandle {
            endpoints: endpoints.into(),
            admission: Admission::new(&self.limits, connections_max),
            stop: Stop::default(),
        })
    }
}

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A socket cannot be opened: the address is in use, is not this machine's,
    /// or may not be taken; the name is not known.
    #[error("cannot listen on {endpoint}")]
    Open {
        /// Where.
        endpoint: Endpoint,
        /// What the system says.
        source: io::Error,
    },
    /// A stream service wants `tcp://` or `unix:`, a datagram service `udp://` or `unixgram:`.
    #[error("{0} is not for this kind of service")]
    Kind(Endpoint),
    /// No address was given.
    #[error("there is no address to listen on")]
    Nowhere,
    /// An authentication wants a connection.
    #[error("datagrams have no connection to authenticate")]
    Authentication,
}

impl ListenError {
    fn at(endpoint: &Endpoint, source: io::Error) -> Self {
        Self::Open {
            endpoint: endpoint.clone(),
            source,
        }
    }
}

/// How many connections the process can have descriptors for.
fn descriptors() -> usize {
    let soft = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let usable = soft.saturating_sub(DESCRIPTORS_RESERVED).max(1);
    usable.try_into().unwrap_or(usize::MAX)
}
