//! Serves connections and datagrams: who comes in, how many, and how it all ends.
//!
//! Bound sockets and a [`Handler`] enter; tasks run until the stop token is cancelled,
//! then what is in flight has until a deadline. A connection that fails ends alone.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bowline::net::{Peer, UnixName};
use tokio::net::{UdpSocket, UnixDatagram};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::challenge::{CHALLENGE_BYTES, Secret};
use super::conn::{Conn, Stream};
use super::listen::{Bound, Socket};
use super::service::{Answer, Handler};

/// The longest datagram there is over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Where nothing can be accepted because descriptors or memory are used up, the next try
/// comes after this, or when a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to answer the challenge.
const CHALLENGE_TIME: Duration = Duration::from_secs(10);
/// Addresses whose datagrams are counted at once.
const SOURCES_MAX: usize = 4096;
/// The port of NTP, the one below 1024 that clients have too.
const NTP_PORT: u16 = bowline_proto::plain::ntp::PORT;
/// The lowest port that a program without privileges gets.
const ORDINARY_PORT_MIN: u16 = 1024;

/// What a server's clients may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) connections_per_client_max: usize,
    /// Of a client that is let in; `None` is never.
    pub(crate) idle: Option<Duration>,
    /// Datagrams a second that one address off this machine is answered.
    pub(crate) datagrams_per_second: u32,
    /// What is in flight at the stop has so long.
    pub(crate) drain: Duration,
}

/// Whom a limit counts as one: an address, a network of 64 bits, a user of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    Ip(IpAddr),
    Uid(Option<u32>),
}

impl Client {
    pub(crate) fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Ip(address) => Self::Ip(match address.ip().to_canonical() {
                IpAddr::V6(v6) => {
                    let network = u128::from(v6) >> 64 << 64;
                    IpAddr::V6(Ipv6Addr::from(network))
                }
                v4 => v4,
            }),
            Peer::Unix { uid, .. } => Self::Uid(*uid),
        }
    }
}

/// One service on its sockets.
#[derive(Debug)]
pub(crate) struct Server {
    handler: Arc<Handler>,
    secret: Option<Secret>,
    limits: Limits,
    stop: CancellationToken,
    places: Mutex<HashMap<Client, usize>>,
}

impl Server {
    pub(crate) fn new(
        handler: Handler,
        secret: Option<Secret>,
        limits: Limits,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            handler: Arc::new(handler),
            secret,
            limits,
            stop,
            places: Mutex::default(),
        })
    }

    /// Serves a socket until the stop, and what is in flight then until the deadline.
    pub(crate) async fn serve(self: Arc<Self>, bound: Bound) {
        match &bound.socket {
            Socket::Udp(socket) => self.datagrams(&Datagrams::Udp(socket)).await,
            Socket::Unixgram(socket) => self.datagrams(&Datagrams::Unix(socket)).await,
            Socket::Tcp(_) | Socket::Unix(_) => {
                let mut connections = JoinSet::new();
                self.accept_all(&bound, &mut connections).await;
                drop(bound);
                let all = async { while connections.join_next().await.is_some() {} };
                if tokio::time::timeout(self.limits.drain, all).await.is_err() {
                    tracing::info!("what was still in flight is cut off");
                }
                connections.shutdown().await;
            }
        }
    }

    async fn accept_all(self: &Arc<Self>, bound: &Bound, connections: &mut JoinSet<()>) {
        loop {
            let full = connections.len() >= self.limits.connections_max;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection's task failed");
                    }
                }
                accepted = accept(&bound.socket), if !full => match accepted {
                    Ok((stream, peer)) => {
                        connections.spawn(Arc::clone(self).connection(stream, peer));
                    }
                    Err(error) if is_of_one_peer(&error) => {}
                    Err(error) => {
                        tracing::warn!(%error, "no connection can be accepted");
                        tokio::select! {
                            () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                            () = self.stop.cancelled() => return,
                        }
                    }
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: Stream, peer: Peer) {
        let Some(_place) = Place::take(&self, Client::of(&peer)) else {
            tracing::info!(%peer, "too many connections of this client");
            return;
        };
        let stop = self.stop.clone();
        let mut conn = Conn::new(stream, peer.clone(), stop, self.limits.idle);
        if let Some(secret) = &self.secret {
            match tokio::time::timeout(CHALLENGE_TIME, challenge(&mut conn, secret)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => {
                    tracing::info!(%peer, "the answer to the challenge is wrong");
                    return;
                }
                Ok(Err(error)) => return told(&peer, &error.into()),
                Err(_) => {
                    tracing::info!(%peer, "there was no answer to the challenge in time");
                    return;
                }
            }
        }
        match self.handler.serve(&mut conn).await {
            Ok(()) => conn.close().await,
            Err(error) => told(&peer, &error),
        }
    }

    async fn datagrams(&self, socket: &Datagrams<'_>) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        let mut reply = Vec::new();
        let mut rates = Rates::new(self.limits.datagrams_per_second);
        loop {
            let received = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                received = socket.receive(&mut buffer) => received,
            };
            let (len, peer) = match received {
                Ok(received) => received,
                // An earlier answer reached nobody (ICMP): that is not this datagram's fault.
                Err(error) => {
                    tracing::debug!(%error, "a datagram could not be received");
                    continue;
                }
            };
            if !is_ordinary(&peer) || !rates.permit(&peer) {
                continue;
            }
            reply.clear();
            let request = buffer.get(..len).unwrap_or_default();
            let answer = self.handler.answer(request, &peer, &mut reply).await;
            if answer == Answer::Reply
                && let Err(error) = socket.send(&reply, &peer).await
            {
                tracing::debug!(%peer, %error, "an answer could not be sent");
            }
        }
    }
}

/// One place of a client, given back when dropped.
struct Place<'a> {
    server: &'a Server,
    client: Client,
}

impl<'a> Place<'a> {
    fn take(server: &'a Server, client: Client) -> Option<Self> {
        let mut places = server.places.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = places.entry(client).or_default();
        if *taken >= server.limits.connections_per_client_max {
            return None;
        }
        *taken += 1;
        Some(Self { server, client })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let places = &self.server.places;
        let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = places.get_mut(&self.client) {
            *taken -= 1;
            if *taken == 0 {
                places.remove(&self.client);
            }
        }
    }
}

/// Sends random bytes and compares what comes back with their HMAC.
async fn challenge(conn: &mut Conn, secret: &Secret) -> io::Result<bool> {
    let mut bytes = [0; CHALLENGE_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    conn.send(&[&bytes]).await?;
    let answer = conn.exactly(secret.answer_len()).await?;
    Ok(answer.is_some_and(|answer| secret.verify(&bytes, &answer)))
}

/// A peer that has gone is nothing to speak of.
fn told(peer: &Peer, error: &anyhow::Error) {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    match kind {
        Some(BrokenPipe | ConnectionAborted | ConnectionReset) => {
            tracing::debug!(%peer, "the client has gone");
        }
        _ => tracing::warn!(%peer, error = format!("{error:#}"), "a connection was closed"),
    }
}

async fn accept(socket: &Socket) -> io::Result<(Stream, Peer)> {
    match socket {
        Socket::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            // A reply is whole when it is sent; waiting for more would only hold it up.
            stream.set_nodelay(true)?;
            Ok((Stream::Tcp(stream), Peer::ip(address)))
        }
        Socket::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            let who = stream.peer_cred().ok();
            let peer = Peer::Unix {
                name: None,
                uid: who.map(|who| who.uid()),
                pid: who.and_then(|who| who.pid()),
            };
            Ok((Stream::Unix(stream), peer))
        }
        Socket::Udp(_) | Socket::Unixgram(_) => std::future::pending().await,
    }
}

/// Whether the error is of the connection that was to be accepted and not of this machine (accept(2)).
fn is_of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, InvalidInput};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | InvalidInput
    )
}

/// A port that a client has, and no service that might answer our answer.
fn is_ordinary(peer: &Peer) -> bool {
    peer.address()
        .is_none_or(|address| address.port() == NTP_PORT || address.port() >= ORDINARY_PORT_MIN)
}

/// A socket for datagrams.
enum Datagrams<'a> {
    Udp(&'a UdpSocket),
    Unix(&'a UnixDatagram),
}

impl Datagrams<'_> {
    async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
        match self {
            Self::Udp(socket) => {
                let (len, address) = socket.recv_from(buffer).await?;
                Ok((len, Peer::ip(address)))
            }
            Self::Unix(socket) => {
                let (len, address) = socket.recv_from(buffer).await?;
                let name = UnixName::of(&address.into());
                let peer = Peer::Unix {
                    name,
                    uid: None,
                    pid: None,
                };
                Ok((len, peer))
            }
        }
    }

    async fn send(&self, bytes: &[u8], to: &Peer) -> io::Result<()> {
        match (self, to) {
            (Self::Udp(socket), Peer::Ip(address)) => {
                let v6 = socket.local_addr()?.is_ipv6();
                socket.send_to(bytes, as_family(*address, v6)).await?;
            }
            (Self::Unix(socket), Peer::Unix { name, .. }) => {
                use rustix::net::{SendFlags, SocketAddrUnix};
                let address = match name {
                    Some(UnixName::Path(path)) => SocketAddrUnix::new(path.as_path())?,
                    Some(UnixName::Abstract(name)) => SocketAddrUnix::new_abstract_name(name)?,
                    // A socket without a name cannot be answered.
                    None => return Ok(()),
                };
                // A client that does not read its answers loses them, and keeps nobody else
                // waiting.
                rustix::net::sendto(socket, bytes, SendFlags::DONTWAIT, &address)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// An address as a socket of that family takes it: an IPv4 address came through an IPv6 socket mapped.
fn as_family(address: SocketAddr, v6: bool) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        other => other,
    }
}

/// How often each address off this machine was answered of late: a second's worth may
/// come at once, more is dropped. Nobody can make others' datagrams dropped but by
/// filling the table, and then the oldest entries make room.
struct Rates {
    per_second: u32,
    seen: HashMap<Client, (Instant, f64)>,
}

impl Rates {
    fn new(per_second: u32) -> Self {
        Self {
            per_second,
            seen: HashMap::new(),
        }
    }

    fn permit(&mut self, peer: &Peer) -> bool {
        let Some(address) = peer.address() else {
            return true;
        };
        if address.ip().to_canonical().is_loopback() {
            return true;
        }
        self.permit_at(Client::of(peer), Instant::now())
    }

    fn permit_at(&mut self, client: Client, now: Instant) -> bool {
        let full = f64::from(self.per_second);
        if self.seen.len() >= SOURCES_MAX && !self.seen.contains_key(&client) {
            // Whoever's second is over has its whole allowance again: forgetting it changes nothing.
            let second = Duration::from_secs(1);
            self.seen
                .retain(|_, (then, _)| now.saturating_duration_since(*then) < second);
            if self.seen.len() >= SOURCES_MAX {
                self.seen.clear();
            }
        }
        let (then, left) = self.seen.entry(client).or_insert((now, full));
        let passed = now.saturating_duration_since(*then).as_secs_f64();
        *left = (*left + passed * full).min(full);
        *then = now;
        let permitted = *left >= 1.0;
        if permitted {
            *left -= 1.0;
        }
        permitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_rate() {
        let mut rates = Rates::new(3);
        let now = Instant::now();
        let one = Client::Ip("192.0.2.1".parse().unwrap());
        let other = Client::Ip("192.0.2.2".parse().unwrap());
        let passed =
            |rates: &mut Rates, client, at| (0..10).filter(|_| rates.permit_at(client, at)).count();
        assert_eq!(passed(&mut rates, one, now), 3);
        assert_eq!(passed(&mut rates, other, now), 3);
        assert_eq!(passed(&mut rates, one, now + Duration::from_secs(1)), 3);
        let after = now + Duration::from_secs(60);
        assert_eq!(
            passed(&mut rates, one, after),
            3,
            "no more than a second's worth"
        );
    }

    #[test]
    fn a_flood_of_addresses_is_held_in_bounded_memory() {
        let mut rates = Rates::new(3);
        let now = Instant::now();
        for number in 0..100_000_u32 {
            rates.permit_at(Client::Ip(IpAddr::V4(number.into())), now);
            assert!(rates.seen.len() <= SOURCES_MAX);
        }
    }

    #[test]
    fn clients_are_addresses_networks_and_users() {
        let of = |text: &str| Client::of(&Peer::Ip(text.parse().unwrap()));
        assert_eq!(of("192.0.2.1:1"), of("192.0.2.1:2"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::2]:1"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        let ordinary = |port: u16| is_ordinary(&Peer::Ip(([192, 0, 2, 1], port).into()));
        assert!(ordinary(123) && ordinary(1024) && ordinary(65_535));
        assert!(!ordinary(0) && !ordinary(7) && !ordinary(122) && !ordinary(1023));
    }
}
