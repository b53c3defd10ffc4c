//! How many commands each client may run at once.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bowline::net::Peer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a command waits for its client's other commands to end.
const PLACE_TIME: Duration = Duration::from_secs(10);

/// Whom a limit counts as one: an address, a network of 64 bits, a user of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    Ip(IpAddr),
    Uid(Option<u32>),
}

impl Client {
    fn of(peer: &Peer) -> Self {
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

/// The places of all clients.
#[derive(Debug)]
pub(crate) struct Places {
    per_client: usize,
    of: Mutex<HashMap<Client, Arc<Semaphore>>>,
}

impl Places {
    pub(crate) fn new(per_client: usize) -> Self {
        Self {
            per_client,
            of: Mutex::default(),
        }
    }

    /// Waits for a place, but not for ever.
    pub(crate) async fn take(&self, peer: &Peer) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever has nobody waiting and nothing running is not worth remembering.
            of.retain(|_, places| {
                Arc::strong_count(places) > 1 || places.available_permits() < self.per_client
            });
            Arc::clone(
                of.entry(Client::of(peer))
                    .or_insert_with(|| Arc::new(Semaphore::new(self.per_client))),
            )
        };
        let place = tokio::time::timeout(PLACE_TIME, places.acquire_owned()).await;
        place.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_addresses_networks_and_users() {
        let of = |text: &str| Client::of(&Peer::Ip(text.parse().unwrap()));
        assert_eq!(of("192.0.2.1:1"), of("192.0.2.1:2"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::2]:1"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
    }

    #[tokio::test]
    async fn who_has_gone_is_forgotten() {
        let places = Places::new(1);
        for number in 1..100_u16 {
            let peer = Peer::Ip(([192, 0, 2, number as u8], number).into());
            drop(places.take(&peer).await.unwrap());
        }
        assert_eq!(places.of.lock().unwrap().len(), 1, "the last alone");
    }
}
