//! What a server lets its peers cost, and the constants behind it.
//!
//! Every number that bounds what a stranger can make a service hold stands here.

use std::time::Duration;

/// What one read takes at most, and the size of the buffers that a thread keeps
/// for its connections; a datagram always fits.
pub const BUFFER_BYTES: usize = 64 * 1024;
/// Buffers that a thread keeps for the next reads; more are given back.
pub(super) const BUFFERS_PER_THREAD: usize = 16;
/// The longest UDP datagram over IPv4, in bytes; longer ones are not taken on any socket.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Descriptors that are left for other things than connections.
pub(super) const DESCRIPTORS_RESERVED: u64 = 64;
/// Where nothing can be accepted because descriptors or memory are used up: the
/// time until the next try, unless a connection ends before.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection whose service is done is read from, so that what was
/// sent last is not lost to a reset.
pub(super) const LINGER_TIME: Duration = Duration::from_secs(2);
/// A length in digits is whole when nothing came behind it for so long; its sender
/// writes it in one piece.
pub(super) const LENGTH_PAUSE: Duration = Duration::from_millis(5);
/// Sources that a rate is kept for at once.
pub(super) const SOURCES_MAX: usize = 16 * 1024;
/// Of these, the ones that are looked at for one datagram.
pub(super) const SOURCES_PER_SET: usize = 8;

/// What a server's peers may cost. `None` is no limit.
///
/// ```
/// use std::time::Duration;
///
/// use bowline::net::Limits;
///
/// let limits = Limits {
///     connections_max: 200,
///     idle_time: Some(Duration::from_secs(600)),
///     ..Limits::default()
/// };
/// assert_eq!(limits.message_bytes_max, 1024 * 1024);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all. Never more than the process may have descriptors
    /// (RLIMIT_NOFILE), less a few.
    pub connections_max: usize,
    /// Connections of one address: an IPv4 address, an IPv6 network of 64 bits,
    /// or a user of this machine.
    pub connections_per_address_max: usize,
    /// Connections that have not been let in yet, where there is an
    /// authentication: they cannot take every place.
    pub unauthenticated_max: usize,
    /// The longest line or datagram that is taken, in bytes, and what a service
    /// gives its framings as their bound ([`Reader::message_bytes_max`](super::Reader::message_bytes_max)).
    pub message_bytes_max: usize,
    /// How long a peer may say nothing, or take nothing of what is sent. A person
    /// at a prompt may think for hours, so there is none unless you set one.
    pub idle_time: Option<Duration>,
    /// How long a peer may take for its whole first message, once it is let in.
    pub first_message_time: Option<Duration>,
    /// How long the authentication may take in all.
    pub authentication_time: Duration,
    /// Datagrams that are answered at the same time, where answers wait for something.
    pub datagrams_in_flight_max: usize,
    /// How many datagrams of one source are looked at; the others are dropped.
    /// A source is an IPv4 address or an IPv6 network of 64 bits, whatever the port.
    pub datagram_rate: Option<Rate>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16 * 1024,
            connections_per_address_max: 1024,
            unauthenticated_max: 1024,
            message_bytes_max: 1024 * 1024,
            idle_time: None,
            first_message_time: None,
            authentication_time: Duration::from_secs(10),
            datagrams_in_flight_max: 64,
            datagram_rate: None,
        }
    }
}

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once, after a pause.
    pub burst: u32,
}

const _: () = assert!(DATAGRAM_BYTES_MAX < BUFFER_BYTES);
const _: () = assert!(SOURCES_MAX.is_multiple_of(SOURCES_PER_SET));
