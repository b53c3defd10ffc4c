//! A TCP connection to a server whose path may be down.
//!
//! The kernel sends the first packet of a connection again after 1, 3, 7 and more
//! seconds, so a path that comes back may be found late. One who hurries begins another
//! attempt every few moments instead, and the first that gets through is taken. The host may
//! come back at another address, so its name is looked up again meanwhile.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// No attempt is waited for longer, so no more than so much divided by
/// [`Hurry::every`] are under way.
const ATTEMPT_TIME: Duration = Duration::from_secs(3);

/// How often the name of a host whose path is down is looked up.
const LOOKUP_EVERY: Duration = Duration::from_secs(2);

/// How to hurry.
#[derive(Clone, Debug)]
pub struct Hurry {
    /// From one attempt to the next.
    pub every: Duration,
    /// Where the host is looked for.
    pub whereabouts: Whereabouts,
}

/// The addresses of one host, which all attempts to get back to it share.
#[derive(Clone, Debug, Default)]
pub struct Whereabouts(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    /// Where the last connection stood: for while nobody can be asked for the name.
    stood: Option<SocketAddr>,
    /// What the name stood for when it was looked up last.
    named: Vec<SocketAddr>,
    looked_up: Option<Instant>,
    /// That lookup, while it is under way: it may take longer than an attempt.
    lookup: JoinSet<io::Result<Vec<SocketAddr>>>,
    /// Attempts made since that connection.
    attempts: usize,
}

impl Whereabouts {
    /// A connection stands at this address.
    pub fn stands(&self, address: SocketAddr) {
        let mut found = self.found();
        found.stood = Some(address);
        found.attempts = 0;
    }

    /// Where the next attempt goes: each address has its turn, and the one that worked the first. One
    /// that takes connections and nothing more keeps nobody from the others.
    fn next(&self) -> Option<SocketAddr> {
        let addresses = self.addresses();
        let mut found = self.found();
        let next = found.attempts.checked_rem(addresses.len())?;
        found.attempts = found.attempts.wrapping_add(1);
        addresses.get(next).copied()
    }

    /// All of them, the one that worked first.
    fn addresses(&self) -> Vec<SocketAddr> {
        let found = self.found();
        let named = found.named.iter().copied();
        let others = named.filter(|address| found.stood != Some(*address));
        found.stood.into_iter().chain(others).collect()
    }

    /// Looks the name up, if it is time to.
    fn ask(&self, host: &str, port: u16) {
        let mut found = self.found();
        let last = found.looked_up;
        if found.lookup.is_empty() && last.is_none_or(|at| at.elapsed() >= LOOKUP_EVERY) {
            found.looked_up = Some(Instant::now());
            found.lookup.spawn(look_up(host.to_owned(), port));
        }
    }

    fn is_asking(&self) -> bool {
        !self.found().lookup.is_empty()
    }

    /// What the name stands for, as soon as that is known.
    async fn answer(&self) -> io::Result<()> {
        let answer = poll_fn(|cx| self.found().lookup.poll_join_next(cx)).await;
        if let Some(answer) = answer {
            self.found().named = answer.map_err(io::Error::other)??;
        }
        Ok(())
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// # Errors
/// As getaddrinfo(3) and connect(2), of the last attempt.
pub(super) async fn reach(host: &str, port: u16, hurry: Option<&Hurry>) -> io::Result<TcpStream> {
    match hurry {
        None => TcpStream::connect((host, port)).await,
        Some(hurry) => reach_in_a_hurry(host, port, hurry).await,
    }
}

/// Ends without a connection when none of the addresses takes one, those included that a
/// lookup under way tells of: an address that refuses at once may be somebody else's by now.
async fn reach_in_a_hurry(host: &str, port: u16, hurry: &Hurry) -> io::Result<TcpStream> {
    let whereabouts = &hurry.whereabouts;
    let mut attempts = JoinSet::new();
    let mut failed = Vec::new();
    let mut ticks = interval(hurry.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        whereabouts.ask(host, port);
        let addresses = whereabouts.addresses();
        let error = tokio::select! {
            attempted = attempts.join_next(), if !attempts.is_empty() => match attempted {
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                Some(Ok((address, Err(error)))) => {
                    failed.push(address);
                    error
                }
                Some(Err(_)) | None => return Err(io::ErrorKind::NotConnected.into()),
            },
            answer = whereabouts.answer(), if whereabouts.is_asking() => match answer {
                Ok(()) => continue,
                Err(error) => error,
            },
            _ = ticks.tick(), if !addresses.is_empty() => {
                if let Some(address) = whereabouts.next() {
                    attempts.spawn(attempt(address));
                }
                continue;
            }
        };
        let all = addresses.iter().all(|address| failed.contains(address));
        if all && !whereabouts.is_asking() {
            return Err(error);
        }
    }
}

async fn look_up(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    match lookup_host((host, port)).await.map(Vec::from_iter) {
        Ok(none) if none.is_empty() => Err(io::ErrorKind::NotFound.into()),
        found => found,
    }
}

async fn attempt(address: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
    let connected = timeout(ATTEMPT_TIME, TcpStream::connect(address)).await;
    (address, connected.unwrap_or_else(|late| Err(late.into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// For attempts that follow each other as fast as they can.
    fn hurry(stood: Option<SocketAddr>) -> Hurry {
        let whereabouts = Whereabouts::default();
        if let Some(stood) = stood {
            whereabouts.stands(stood);
        }
        Hurry {
            every: Duration::from_millis(1),
            whereabouts,
        }
    }

    #[tokio::test]
    async fn the_address_that_worked_is_tried_where_the_name_is_not_known() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let known = listener.local_addr().unwrap();
        let (name, port) = ("name.invalid", known.port());
        reach(name, port, Some(&hurry(Some(known)))).await.unwrap();
        reach(name, port, Some(&hurry(None))).await.unwrap_err();
        let hurry = hurry(None);
        reach("127.0.0.1", port, Some(&hurry)).await.unwrap();
        // Whoever has asked need not ask again at once.
        reach(name, port, Some(&hurry)).await.unwrap();
    }

    /// The first address refuses before anybody could say what the name stands for now.
    #[tokio::test]
    async fn a_host_that_has_moved_is_found_where_its_old_address_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let old = SocketAddr::from(([127, 0, 0, 2], port));
        for _ in 0..100 {
            let hurry = hurry(Some(old));
            reach("localhost", port, Some(&hurry)).await.unwrap();
        }
        // Where it has moved to nobody is there either.
        drop(listener);
        let error = reach("localhost", port, Some(&hurry(Some(old)))).await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    /// A queue of connections that is full takes no more, and answers nobody.
    async fn silent(address: &str) -> (TcpListener, std::net::TcpStream) {
        let listener = TcpListener::bind(address).await.unwrap();
        let socket = socket2::SockRef::from(&listener);
        socket.listen(0).unwrap();
        let filling = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener, filling)
    }

    #[tokio::test]
    async fn a_host_that_has_moved_is_found_where_its_old_address_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let old = format!("127.0.0.2:{port}");
        let _silent = silent(&old).await;
        let hurry = hurry(Some(old.parse().unwrap()));
        reach("127.0.0.1", port, Some(&hurry)).await.unwrap();
    }

    /// Whoever is there takes connections, and is not who is looked for. To connect is faster than to
    /// look up, but for no longer than a lookup takes.
    #[tokio::test]
    async fn a_host_that_has_moved_is_found_where_its_old_address_is_somebody_elses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let new = listener.local_addr().unwrap();
        let old = SocketAddr::from(([127, 0, 0, 2], new.port()));
        let _somebody_else = TcpListener::bind(old).await.unwrap();
        let hurry = hurry(Some(old));
        let reach = async || {
            let found = reach("localhost", new.port(), Some(&hurry)).await;
            found.unwrap().peer_addr().unwrap()
        };
        while reach().await == old {}
        // A host that is there again is looked for where it was.
        hurry.whereabouts.stands(new);
        assert_eq!(reach().await, new);
    }

    #[tokio::test]
    async fn a_path_that_comes_back_is_found_by_another_attempt() {
        let (listener, _filling) = silent("127.0.0.1:0").await;
        let address = listener.local_addr().unwrap();
        let mut queued = JoinSet::new();
        for _ in 0..3 {
            queued.spawn(TcpStream::connect(address));
        }
        let hurry = hurry(None);
        let found = reach("127.0.0.1", address.port(), Some(&hurry));
        let free = async {
            loop {
                listener.accept().await.unwrap();
            }
        };
        tokio::select! {
            stream = found => drop(stream.unwrap()),
            () = free => {}
        }
    }
}
