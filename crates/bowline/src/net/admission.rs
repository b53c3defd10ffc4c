//! Who may come in: connections in all, of one address, and not yet let in.
//!
//! A place is taken with a value and given back when that is dropped, however a
//! connection ends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::endpoint::Peer;
use super::limits::Limits;

/// Whom limits count as one: an IPv4 address; an IPv6 network of 64 bits, which
/// is what one customer has at least; a user of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    V4(Ipv4Addr),
    V6(u64),
    User(u32),
    /// A Unix datagram socket: the kernel does not say whose.
    Unnamed,
}

impl Source {
    pub(super) fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Ip(address) => match address.ip() {
                IpAddr::V4(v4) => Self::V4(v4),
                IpAddr::V6(v6) => {
                    let network = v6.to_bits() >> 64;
                    Self::V6(network as u64)
                }
            },
            Peer::Unix { uid: Some(uid), .. } => Self::User(*uid),
            Peer::Unix { uid: None, .. } => Self::Unnamed,
        }
    }
}

/// Why somebody does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("there are as many connections as may be")]
    Connections,
    #[error("its address has as many connections as it may have")]
    Address,
    #[error("as many connections as may be have not been let in yet")]
    Unauthenticated,
}

/// The places of a server.
#[derive(Debug)]
pub(super) struct Admission {
    connections_max: usize,
    per_address_max: usize,
    unauthenticated_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    connections: usize,
    unauthenticated: usize,
    addresses: HashMap<Source, usize>,
}

impl Admission {
    /// `connections_max` is that of the limits, or less where there are too few descriptors.
    pub(super) fn new(limits: &Limits, connections_max: usize) -> Arc<Self> {
        Arc::new(Self {
            connections_max,
            per_address_max: limits.connections_per_address_max,
            unauthenticated_max: limits.unauthenticated_max,
            taken: Mutex::default(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connections(&self) -> usize {
        self.taken().connections
    }

    /// Takes a place, and one of those who are not let in yet where
    /// `authenticates` says that they must prove themselves.
    pub(super) fn enter(
        self: &Arc<Self>,
        source: Source,
        authenticates: bool,
    ) -> Result<Place, Full> {
        let mut taken = self.taken();
        if taken.connections >= self.connections_max {
            return Err(Full::Connections);
        }
        if authenticates && taken.unauthenticated >= self.unauthenticated_max {
            return Err(Full::Unauthenticated);
        }
        let of_address = taken.addresses.get(&source).copied().unwrap_or_default();
        if of_address >= self.per_address_max {
            return Err(Full::Address);
        }
        taken.addresses.insert(source, of_address + 1);
        taken.connections += 1;
        taken.unauthenticated += usize::from(authenticates);
        Ok(Place {
            admission: self.clone(),
            source,
            authenticates,
        })
    }
}

/// A place that a connection has taken.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    source: Source,
    authenticates: bool,
}

impl Place {
    /// The peer has proven itself.
    pub(super) fn authenticated(&mut self) {
        if std::mem::take(&mut self.authenticates) {
            self.admission.taken().unauthenticated -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.authenticated();
        let mut taken = self.admission.taken();
        taken.connections -= 1;
        if let Some(count) = taken.addresses.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.addresses.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        Source::of(&Peer::ip(address.parse().unwrap()))
    }

    #[test]
    fn each_limit_lets_in_as_many_as_it_says() {
        let limits = Limits {
            connections_per_address_max: 2,
            unauthenticated_max: 3,
            ..Limits::default()
        };
        let admission = Admission::new(&limits, 4);
        let (a, b, c) = (
            source("10.0.0.1:1"),
            source("10.0.0.2:1"),
            source("[2001:db8::1]:1"),
        );
        let first = admission.enter(a, true).unwrap();
        let _second = admission.enter(a, true).unwrap();
        assert_eq!(admission.enter(a, true).unwrap_err(), Full::Address);
        let mut third = admission.enter(b, true).unwrap();
        assert_eq!(admission.enter(c, true).unwrap_err(), Full::Unauthenticated);
        third.authenticated();
        let _fourth = admission.enter(c, true).unwrap();
        assert_eq!(admission.enter(c, false).unwrap_err(), Full::Connections);
        assert_eq!(admission.connections(), 4);
        drop(first);
        assert!(admission.enter(a, false).is_ok());
    }

    #[test]
    fn every_place_comes_back() {
        let admission = Admission::new(&Limits::default(), 10);
        let mut places: Vec<Place> = (0..10)
            .map(|number| {
                admission
                    .enter(Source::User(number % 3), number % 2 == 0)
                    .unwrap()
            })
            .collect();
        places[0].authenticated();
        places.clear();
        let taken = admission.taken();
        assert_eq!((taken.connections, taken.unauthenticated), (0, 0));
        assert!(taken.addresses.is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        assert_eq!(source("[2001:db8::1]:1"), source("[2001:db8::2:3]:9"));
        assert_ne!(source("[2001:db8::1]:1"), source("[2001:db8:0:1::1]:1"));
        assert_eq!(source("[::ffff:10.0.0.1]:1"), source("10.0.0.1:2"));
    }
}
