//! Who may come in, as far as room is concerned: connections in all and per
//! address, handshakes in progress, and what failed authentications cost.
//!
//! [`Admission`] is pure: addresses and the time enter, verdicts and delays
//! leave. [`Door`] shares one among the workers, and an [`Admitted`] gives its
//! room back when it is dropped. Every connection in progress has room that was
//! counted; what is remembered of addresses that have gone is bounded.
//!
//! # Handshakes
//! With `max` of them permitted, there is room for a quarter more in reserve:
//!
//! | an address that | gets a new handshake while there are fewer than |
//! | --- | --- |
//! | let somebody in lately | max + reserve |
//! | has fewer than four in progress | max + half of the reserve |
//! | has more | max |
//! | failed often, and has not let anybody in lately or has 32 in progress | max / 2 |
//!
//! So one address may use all of it while nobody else wants it, it can never
//! keep others out, and a flood of strangers cannot keep out those who are known.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::GateConfig;

/// Addresses without a connection that are remembered.
const IDLE_ADDRESSES_MAX: usize = 4096;
/// An address that let somebody in is known for so long.
const SUCCESS_AGE: Duration = Duration::from_secs(600);
/// Handshakes that a known address may have at once although it failed often.
const KNOWN_ALLOWANCE: u32 = 32;
/// Handshakes in progress up to which an address is modest.
const FEW: u32 = 4;
/// After this time a failure counts half.
const FAILURE_HALF_LIFE: Duration = Duration::from_secs(60);
/// Failures that are still what people do who have several keys.
const FAILURES_FREE: f64 = 4.0;
/// Failures from which on an address is a nuisance.
const FAILURES_SUSPECT: f64 = 10.0;
/// What is left of failures that is not worth remembering.
const FAILURES_FORGOTTEN: f64 = 0.5;
/// The delay before every refusal.
const DELAY_MIN: Duration = Duration::from_millis(200);
/// The longest delay before a refusal.
const DELAY_MAX: Duration = Duration::from_secs(10);
/// Connections at once that are told why there is no room for them; others are
/// closed without a word, which costs nothing.
const TURNED_AWAY_MAX: u32 = 32;

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) connections_max: u32,
    pub(crate) connections_per_address_max: u32,
    pub(crate) handshakes_max: u32,
}

impl From<&GateConfig> for Limits {
    fn from(config: &GateConfig) -> Self {
        Self {
            connections_max: config.connections_max,
            connections_per_address_max: config.connections_per_address_max,
            handshakes_max: config.handshakes_max,
        }
    }
}

impl Limits {
    fn reserve(&self) -> u32 {
        // Even a server for one handshake at a time keeps one for those who are known.
        (self.handshakes_max / 4).max(1)
    }
}

/// Why there is no room for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// `connections_max`.
    #[error("there are as many connections as the server takes")]
    Connections,
    /// `connections_per_address_max`.
    #[error("the address has as many connections as one may have")]
    Address,
    /// `handshakes_max`.
    #[error("there are as many handshakes in progress as the server takes")]
    Handshakes,
    /// Handshakes are scarce, and the address failed often.
    #[error("the address failed to authenticate too often")]
    Suspect,
}

impl Refusal {
    /// The stable code that a client is told.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Connections | Self::Address => "too_many_connections",
            Self::Handshakes | Self::Suspect => "too_many_handshakes",
        }
    }
}

/// Where connections are counted together: an IPv4 address, or the 64 bits of
/// an IPv6 network that one customer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Origin(IpAddr);

impl Origin {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 => v4,
        })
    }
}

/// What is known about an origin.
#[derive(Clone, Debug, Default)]
struct Known {
    connections: u32,
    handshakes: u32,
    /// Failures, each counting less as it ages; as of `failures_at`.
    failures: f64,
    failures_at: Option<Instant>,
    success_at: Option<Instant>,
    /// The place in the order of going, while it has no connection.
    idle_since: Option<u64>,
}

impl Known {
    fn failures(&self, now: Instant) -> f64 {
        let Some(at) = self.failures_at else {
            return 0.0;
        };
        let age = now.saturating_duration_since(at);
        self.failures * 0.5f64.powf(age.as_secs_f64() / FAILURE_HALF_LIFE.as_secs_f64())
    }

    fn let_in_lately(&self, now: Instant) -> bool {
        self.success_at
            .is_some_and(|at| now.saturating_duration_since(at) < SUCCESS_AGE)
    }

    fn is_worth_remembering(&self, now: Instant) -> bool {
        self.failures(now) >= FAILURES_FORGOTTEN || self.let_in_lately(now)
    }
}

/// The room of one connection. It is given back with [`Admission::released`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket {
    /// `None` for a Unix socket or stdio.
    origin: Option<Origin>,
    handshake: bool,
}

/// Counts connections, and remembers how authentication went.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    connections: u32,
    handshakes: u32,
    turned_away: u32,
    known: HashMap<Origin, Known>,
    /// The origins without a connection, the one that went first in front.
    idle: BTreeMap<u64, Origin>,
    next_idle: u64,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: 0,
            handshakes: 0,
            turned_away: 0,
            known: HashMap::new(),
            idle: BTreeMap::new(),
            next_idle: 0,
        }
    }

    /// Takes other limits. What is open stays open.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Connections at this moment.
    #[cfg(test)]
    pub(crate) fn connections(&self) -> u32 {
        self.connections
    }

    /// Takes room for a connection from `address`; `None` for one of this machine.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is counted.
    pub(crate) fn admit(
        &mut self,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<Ticket, Refusal> {
        if self.connections >= self.limits.connections_max {
            return Err(Refusal::Connections);
        }
        let origin = address.map(Origin::of);
        let stranger = Known::default();
        let known = origin.map(|origin| self.known.get(&origin).unwrap_or(&stranger));
        if known.is_some_and(|k| k.connections >= self.limits.connections_per_address_max) {
            return Err(Refusal::Address);
        }
        self.check_handshakes(known, now)?;
        self.connections += 1;
        self.handshakes += 1;
        if let Some(origin) = origin {
            let known = self.known.entry(origin).or_default();
            known.connections += 1;
            known.handshakes += 1;
            if let Some(place) = known.idle_since.take() {
                self.idle.remove(&place);
            }
        }
        Ok(Ticket {
            origin,
            handshake: true,
        })
    }

    /// The table at the top of this file.
    fn check_handshakes(&self, known: Option<&Known>, now: Instant) -> Result<(), Refusal> {
        let max = self.limits.handshakes_max;
        let reserve = self.limits.reserve();
        let (room, refusal) = match known {
            None => (max.saturating_add(reserve), Refusal::Handshakes),
            Some(known) => {
                let lately = known.let_in_lately(now);
                let suspect = known.failures(now) >= FAILURES_SUSPECT;
                if suspect && !(lately && known.handshakes < KNOWN_ALLOWANCE) {
                    ((max / 2).max(1), Refusal::Suspect)
                } else if lately {
                    (max.saturating_add(reserve), Refusal::Handshakes)
                } else if known.handshakes < FEW {
                    (max.saturating_add(reserve / 2), Refusal::Handshakes)
                } else {
                    (max, Refusal::Handshakes)
                }
            }
        };
        if self.handshakes < room {
            Ok(())
        } else {
            Err(refusal)
        }
    }

    /// The connection's client was let in: its handshake is over.
    pub(crate) fn authenticated(&mut self, ticket: &mut Ticket, now: Instant) {
        self.end_handshake(ticket);
        if let Some(known) = self.of(ticket) {
            known.success_at = Some(now);
        }
    }

    /// The connection's client was not let in. The refusal is to leave when this
    /// time has passed since the proofs arrived, not since they were decided: so
    /// the time of the answer says nothing about how the decision was made.
    pub(crate) fn failed(&mut self, ticket: &Ticket, now: Instant) -> Duration {
        let Some(known) = self.of(ticket) else {
            return DELAY_MIN;
        };
        known.failures = known.failures(now) + 1.0;
        known.failures_at = Some(now);
        let doublings = (known.failures - FAILURES_FREE).clamp(0.0, 16.0);
        DELAY_MIN.mul_f64(doublings.exp2()).min(DELAY_MAX)
    }

    /// The connection is over.
    pub(crate) fn released(&mut self, mut ticket: Ticket, now: Instant) {
        self.end_handshake(&mut ticket);
        self.connections = self.connections.saturating_sub(1);
        let Some(origin) = ticket.origin else {
            return;
        };
        let Some(known) = self.known.get_mut(&origin) else {
            return;
        };
        known.connections = known.connections.saturating_sub(1);
        if known.connections > 0 {
            return;
        }
        if !known.is_worth_remembering(now) {
            self.known.remove(&origin);
            return;
        }
        known.idle_since = Some(self.next_idle);
        self.idle.insert(self.next_idle, origin);
        self.next_idle += 1;
        self.forget(now);
    }

    /// Forgets those who went first, while they are too many or of no interest.
    fn forget(&mut self, now: Instant) {
        while let Some(first) = self.idle.first_entry() {
            let origin = *first.get();
            let interesting = self
                .known
                .get(&origin)
                .is_some_and(|known| known.is_worth_remembering(now));
            if interesting && self.idle.len() <= IDLE_ADDRESSES_MAX {
                return;
            }
            self.known.remove(&origin);
            self.idle.pop_first();
        }
    }

    fn end_handshake(&mut self, ticket: &mut Ticket) {
        if !std::mem::take(&mut ticket.handshake) {
            return;
        }
        self.handshakes = self.handshakes.saturating_sub(1);
        if let Some(known) = self.of(ticket) {
            known.handshakes = known.handshakes.saturating_sub(1);
        }
    }

    fn of(&mut self, ticket: &Ticket) -> Option<&mut Known> {
        self.known.get_mut(&ticket.origin?)
    }
}

/// One [`Admission`] for all workers.
#[derive(Clone, Debug)]
pub(crate) struct Door(Arc<Mutex<Admission>>);

impl Door {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Admission::new(limits))))
    }

    /// As [`Admission::set_limits`].
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.lock().set_limits(limits);
    }

    /// As [`Admission::connections`].
    #[cfg(test)]
    pub(crate) fn connections(&self) -> u32 {
        self.lock().connections()
    }

    /// As [`Admission::admit`], now.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn admit(&self, address: Option<IpAddr>) -> Result<Admitted, Refusal> {
        let ticket = self.lock().admit(address, Instant::now())?;
        Ok(Admitted {
            door: self.clone(),
            ticket: Some(ticket),
        })
    }

    /// Room for telling a refused client why; `None` where too many are being told.
    pub(crate) fn turn_away(&self) -> Option<Admitted> {
        let mut admission = self.lock();
        if admission.turned_away >= TURNED_AWAY_MAX {
            return None;
        }
        admission.turned_away += 1;
        Some(Admitted {
            door: self.clone(),
            ticket: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Admission> {
        // The counters are whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that has room; dropping it gives the room back.
#[derive(Debug)]
pub(crate) struct Admitted {
    door: Door,
    /// `None` for one that is only told why it is refused.
    ticket: Option<Ticket>,
}

impl Admitted {
    /// As [`Admission::authenticated`], now.
    pub(crate) fn authenticated(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            self.door.lock().authenticated(ticket, Instant::now());
        }
    }

    /// As [`Admission::failed`], now.
    pub(crate) fn failed(&self) -> Duration {
        match &self.ticket {
            Some(ticket) => self.door.lock().failed(ticket, Instant::now()),
            None => DELAY_MIN,
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut admission = self.door.lock();
        match self.ticket.take() {
            Some(ticket) => admission.released(ticket, Instant::now()),
            None => admission.turned_away = admission.turned_away.saturating_sub(1),
        }
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
