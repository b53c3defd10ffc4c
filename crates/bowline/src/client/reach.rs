//! A TCP connection to a server whose path may be down.
//!
//! The kernel sends the first packet of a connection again after 1, 3, 7 and more
//! seconds, so a path that comes back may be found late. One who hurries begins another
//! attempt every few moments instead, and the first that gets through is taken.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// No attempt is waited for longer, so no more than so much divided by
/// [`Hurry::every`] are under way.
const ATTEMPT_TIME: Duration = Duration::from_secs(3);

/// How to hurry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hurry {
    /// From one attempt to the next.
    pub every: Duration,
    /// The address that worked before, for while nobody can be asked for it.
    pub known: Option<SocketAddr>,
    /// Whether somebody is asked all the same: the host may have another by now.
    pub ask: bool,
}

/// One thing that came of the work.
enum News {
    Addresses(io::Result<Vec<SocketAddr>>),
    Connected(io::Result<TcpStream>),
}

/// # Errors
/// As getaddrinfo(3) and connect(2), of the last attempt.
pub(super) async fn reach(host: &str, port: u16, hurry: Option<Hurry>) -> io::Result<TcpStream> {
    match hurry {
        None => TcpStream::connect((host, port)).await,
        Some(hurry) => reach_in_a_hurry(host, port, hurry).await,
    }
}

async fn reach_in_a_hurry(host: &str, port: u16, hurry: Hurry) -> io::Result<TcpStream> {
    let mut work = JoinSet::new();
    if hurry.ask || hurry.known.is_none() {
        let name = host.to_owned();
        work.spawn(async move {
            let found = lookup_host((name, port)).await;
            News::Addresses(found.map(Iterator::collect))
        });
    }
    let mut addresses: Vec<SocketAddr> = hurry.known.into_iter().collect();
    let mut turn = 0;
    let mut ticks = interval(hurry.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = work.join_next(), if !work.is_empty() => match news {
                Some(Ok(News::Connected(Ok(stream)))) => return Ok(stream),
                Some(Ok(News::Connected(Err(error)))) => return Err(error),
                Some(Ok(News::Addresses(Ok(found)))) if !found.is_empty() => addresses = found,
                Some(Ok(News::Addresses(Err(error)))) if addresses.is_empty() => return Err(error),
                Some(Ok(News::Addresses(Ok(_)))) if addresses.is_empty() => {
                    return Err(io::ErrorKind::NotFound.into());
                }
                // The one that is known has to do.
                Some(Ok(News::Addresses(_))) => {}
                Some(Err(_)) | None => return Err(io::ErrorKind::NotConnected.into()),
            },
            _ = ticks.tick(), if !addresses.is_empty() => {
                let Some(&address) = addresses.get(turn % addresses.len()) else {
                    continue;
                };
                turn += 1;
                work.spawn(async move {
                    let connect = timeout(ATTEMPT_TIME, TcpStream::connect(address));
                    News::Connected(connect.await.unwrap_or_else(|late| Err(late.into())))
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn hurry(known: Option<SocketAddr>) -> Option<Hurry> {
        Some(Hurry {
            every: Duration::from_millis(1),
            known,
            ask: true,
        })
    }

    #[tokio::test]
    async fn the_address_that_worked_is_tried_where_the_name_is_not_known() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let known = listener.local_addr().unwrap();
        let name = "name.invalid";
        reach(name, known.port(), hurry(Some(known))).await.unwrap();
        reach(name, known.port(), hurry(None)).await.unwrap_err();
        reach("127.0.0.1", known.port(), hurry(None)).await.unwrap();
        // Whoever has an address need not ask; whoever has none must.
        for (known, name) in [(Some(known), name), (None, "127.0.0.1")] {
            let hurry = hurry(known).map(|hurry| Hurry {
                ask: false,
                ..hurry
            });
            reach(name, listener.local_addr().unwrap().port(), hurry)
                .await
                .unwrap();
        }
    }

    /// A queue of connections that is full takes no more, and answers nobody.
    #[tokio::test]
    async fn a_path_that_comes_back_is_found_by_another_attempt() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = socket2::SockRef::from(&listener);
        socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = JoinSet::new();
        let filling = std::net::TcpStream::connect(address).unwrap();
        for _ in 0..3 {
            queued.spawn(TcpStream::connect(address));
        }
        let found = reach("127.0.0.1", address.port(), hurry(None));
        let free = async {
            loop {
                listener.accept().await.unwrap();
            }
        };
        tokio::select! {
            stream = found => drop(stream.unwrap()),
            () = free => {}
        }
        drop(filling);
    }
}
