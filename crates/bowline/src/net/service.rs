//! What a service is: the two traits that a program implements, and how a
//! service can fail.

use std::any::Any;
use std::error::Error;
use std::future::Future;
use std::io;
use std::time::Duration;

use bowline_proto::framing::FramingError;

use super::connection::Connection;
use super::endpoint::Peer;

/// A service over streams: TCP or Unix sockets.
///
/// One method must be written. It is called for each connection, each in a task
/// of its own, and the connection is closed when it returns.
///
/// ```
/// use bowline::net::{Connection, ServiceError, StreamService};
///
/// struct Upper;
///
/// impl StreamService for Upper {
///     async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
///         while let Some(mut bytes) = connection.read().await? {
///             bytes.make_ascii_uppercase();
///             connection.send(&bytes).await?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait StreamService: Send + Sync + 'static {
    /// Serves one connection until it is done with it.
    ///
    /// When the server stops, reads between two messages end as if the peer had
    /// closed; what takes longer than the time for stopping is dropped.
    ///
    /// # Errors
    /// What [`StreamService::handle_error`] or [`StreamService::handle_timeout`]
    /// is to hear; it ends this connection alone.
    fn serve(
        &self,
        connection: &mut Connection,
    ) -> impl Future<Output = Result<(), ServiceError>> + Send;

    /// Whether a peer may come in; asked after the limits and before the authentication.
    fn verify_request(&self, peer: &Peer) -> bool {
        let _ = peer;
        true
    }

    /// Hears of a connection that ended with an error. A peer that has gone is none.
    fn handle_error(&self, peer: &Peer, error: &ServiceError) {
        // Strangers must not be able to fill the log.
        if error.is_of_peer() {
            tracing::debug!(%peer, error = error as &dyn Error, "a connection failed");
        } else {
            tracing::warn!(%peer, error = error as &dyn Error, "a connection failed");
        }
    }

    /// Hears of a time that was up. `peer` is `None` where nobody came at all.
    fn handle_timeout(&self, peer: Option<&Peer>, time: TimedOut) {
        match peer {
            Some(peer) => tracing::debug!(%peer, "{time}"),
            None => tracing::debug!("{time}"),
        }
    }

    /// Runs beside the connections for as long as the server serves: what the
    /// service must do by itself, such as to reload a file. It is dropped when
    /// the server stops.
    fn service_actions(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// A service over datagrams: UDP or Unix datagram sockets.
///
/// ```
/// use bowline::net::{Answer, DatagramService, Peer, ServiceError};
///
/// struct Upper;
///
/// impl DatagramService for Upper {
///     async fn answer(&self, request: &[u8], _: &Peer, reply: &mut Vec<u8>) -> Result<Answer, ServiceError> {
///         reply.extend(request.iter().map(u8::to_ascii_uppercase));
///         Ok(Answer::Reply)
///     }
/// }
/// ```
pub trait DatagramService: Send + Sync + 'static {
    /// Answers one datagram: puts the answer into `reply`, which is empty and
    /// used again, and says whether it is to be sent; an empty one can be.
    ///
    /// An answer that waits for something holds up no other, up to
    /// [`Limits::datagrams_in_flight_max`](super::Limits::datagrams_in_flight_max).
    ///
    /// # Errors
    /// What [`DatagramService::handle_error`] is to hear; nothing is sent then.
    fn answer(
        &self,
        request: &[u8],
        peer: &Peer,
        reply: &mut Vec<u8>,
    ) -> impl Future<Output = Result<Answer, ServiceError>> + Send;

    /// Whether a datagram is looked at; asked after the limits.
    fn verify_request(&self, request: &[u8], peer: &Peer) -> bool {
        let _ = (request, peer);
        true
    }

    /// Hears of a datagram that could not be taken or answered.
    fn handle_error(&self, peer: &Peer, error: &ServiceError) {
        // The sender may be forged, and anybody may send many.
        tracing::debug!(%peer, error = error as &dyn Error, "a datagram was not answered");
    }

    /// Hears that nobody came for a while.
    fn handle_timeout(&self, time: TimedOut) {
        tracing::debug!("{time}");
    }

    /// As [`StreamService::service_actions`].
    fn service_actions(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Whether a datagram has an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was put into the reply is sent.
    Reply,
    /// Nothing is sent.
    Nothing,
}

/// A time that was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimedOut {
    /// [`Limits::idle_time`](super::Limits::idle_time).
    #[error("nothing was said or taken for {0:?}")]
    Idle(Duration),
    /// [`Limits::first_message_time`](super::Limits::first_message_time).
    #[error("the first message was not there within {0:?}")]
    FirstMessage(Duration),
    /// [`Limits::authentication_time`](super::Limits::authentication_time).
    #[error("the authentication was not done within {0:?}")]
    Authentication(Duration),
    /// [`ServerBuilder::timeout`](super::ServerBuilder::timeout).
    #[error("nobody came for {0:?}")]
    NobodyCame(Duration),
}

/// Why a connection or a datagram was not served to its end.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The peer closed or reset the connection while something was sent to it,
    /// or where more had to come.
    #[error("the peer has gone")]
    Gone,
    /// The peer let a time pass.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The peer sent a message that is longer than allowed.
    #[error("a message is over the limit of {bytes_max} bytes")]
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// The peer sent something else than the framing has.
    #[error("a message is not as the framing has it")]
    Framing(#[from] FramingError),
    /// The peer did not prove who it is.
    #[error("the peer is not who it must be")]
    NotAuthenticated,
    /// The socket, or something else of this machine, failed.
    #[error("an operation of the system failed")]
    Io(#[source] io::Error),
    /// The service says so.
    #[error("the service failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// The service panicked: a defect of it. The other connections go on.
    #[error("the service panicked: {0}")]
    Panicked(String),
}

impl ServiceError {
    /// Wraps an error of the service's own.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }

    /// Whether the peer is to blame, and not the service or this machine.
    pub fn is_of_peer(&self) -> bool {
        match self {
            Self::Gone
            | Self::TimedOut(_)
            | Self::TooLong { .. }
            | Self::Framing(_)
            | Self::NotAuthenticated => true,
            Self::Io(_) | Self::Failed(_) | Self::Panicked(_) => false,
        }
    }

    pub(super) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::Panicked(text.unwrap_or("with no text").to_owned())
    }

    /// Sorts out what a socket failed with.
    pub(super) fn of_socket(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut as Silent};
        match Self::from(error) {
            Self::Io(error)
                if matches!(
                    error.kind(),
                    BrokenPipe | ConnectionReset | ConnectionAborted | Silent
                ) =>
            {
                Self::Gone
            }
            other => other,
        }
    }
}

impl From<io::Error> for ServiceError {
    /// Finds the [`TimedOut`] that a reader or writer put into an `io::Error`.
    fn from(error: io::Error) -> Self {
        let inner = error.get_ref();
        match inner.and_then(|inner| inner.downcast_ref::<TimedOut>()) {
            Some(time) => Self::TimedOut(*time),
            None => Self::Io(error),
        }
    }
}

impl From<TimedOut> for io::Error {
    fn from(time: TimedOut) -> Self {
        io::Error::new(io::ErrorKind::TimedOut, time)
    }
}
