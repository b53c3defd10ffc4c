//! Virtual time throughout: no test waits for anything.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn admission(connections: u32, per_address: u32, handshakes: u32) -> Admission {
    Admission::new(Limits {
        connections_max: connections,
        connections_per_address_max: per_address,
        handshakes_max: handshakes,
    })
}

fn address(number: u32) -> Option<IpAddr> {
    Some(IpAddr::from(number.to_be_bytes()))
}

/// Everything about an admission that must return to where it was.
fn counts(admission: &Admission) -> (u32, u32, u32, u32) {
    let of = |count: fn(&Known) -> u32| admission.known.values().map(count).sum();
    (
        admission.connections,
        admission.handshakes,
        of(|known| known.connections),
        of(|known| known.handshakes),
    )
}

/// Lets `count` clients of an address fail, each on a connection of its own.
fn fail(admission: &mut Admission, from: Option<IpAddr>, count: u32, now: Instant) -> Duration {
    let mut delay = Duration::ZERO;
    for _ in 0..count {
        let ticket = admission.admit(from, now).unwrap();
        delay = admission.failed(&ticket, now);
        admission.released(ticket, now);
    }
    delay
}

fn succeed(admission: &mut Admission, from: Option<IpAddr>, now: Instant) {
    let mut ticket = admission.admit(from, now).unwrap();
    admission.authenticated(&mut ticket, now);
    admission.released(ticket, now);
}

#[test]
fn connections_are_limited_in_all_and_per_address() {
    let now = Instant::now();
    let mut admission = admission(3, 2, 100);
    let first = admission.admit(address(1), now).unwrap();
    let _second = admission.admit(address(1), now).unwrap();
    assert_eq!(
        admission.admit(address(1), now).unwrap_err(),
        Refusal::Address
    );
    let _third = admission.admit(address(2), now).unwrap();
    assert_eq!(
        admission.admit(address(3), now).unwrap_err(),
        Refusal::Connections
    );
    assert_eq!(
        admission.admit(None, now).unwrap_err(),
        Refusal::Connections
    );
    admission.released(first, now);
    assert!(admission.admit(address(1), now).is_ok());
}

#[test]
fn a_network_of_ipv6_counts_as_one_and_mapped_addresses_as_ipv4() {
    let now = Instant::now();
    let mut admission = admission(100, 1, 100);
    let parse = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let _one = admission.admit(parse("2001:db8:0:1::1"), now).unwrap();
    let same = admission.admit(parse("2001:db8:0:1:ffff::2"), now);
    assert_eq!(same.unwrap_err(), Refusal::Address);
    assert!(admission.admit(parse("2001:db8:0:2::1"), now).is_ok());
    let _v4 = admission.admit(parse("192.0.2.7"), now).unwrap();
    let mapped = admission.admit(parse("::ffff:192.0.2.7"), now);
    assert_eq!(mapped.unwrap_err(), Refusal::Address);
}

#[test]
fn one_address_may_use_every_handshake_and_keeps_nobody_out() {
    let now = Instant::now();
    let mut admission = admission(1000, 1000, 100);
    let flood: Vec<Ticket> = (0..100)
        .map(|_| admission.admit(address(1), now).unwrap())
        .collect();
    assert_eq!(
        admission.admit(address(1), now).unwrap_err(),
        Refusal::Handshakes
    );
    // Others get in all the same.
    let mut ticket = admission.admit(address(2), now).unwrap();
    admission.authenticated(&mut ticket, now);
    // A handshake that is over makes room.
    for ticket in flood {
        admission.released(ticket, now);
    }
    assert!(admission.admit(address(1), now).is_ok());
}

#[test]
fn a_flood_of_strangers_does_not_keep_out_who_is_known() {
    let now = Instant::now();
    let mut admission = admission(1000, 1000, 100);
    succeed(&mut admission, address(7), now);
    let mut strangers = 0;
    while let Ok(_held) = admission.admit(address(1000 + strangers), now) {
        strangers += 1;
    }
    assert_eq!(strangers, 112);
    for _ in 0..13 {
        let _held = admission.admit(address(7), now).unwrap();
    }
    let beyond = admission.admit(address(7), now).unwrap_err();
    assert_eq!(beyond, Refusal::Handshakes, "the reserve has an end too");
    // What one was known for is forgotten.
    let later = now + SUCCESS_AGE;
    assert!(!admission.known[&Origin::of(address(7).unwrap())].let_in_lately(later));
}

#[test]
fn failures_cost_more_and_more_time_and_are_forgiven() {
    let now = Instant::now();
    let mut admission = admission(1000, 1000, 100);
    assert_eq!(fail(&mut admission, address(1), 1, now), DELAY_MIN);
    assert_eq!(fail(&mut admission, address(1), 3, now), DELAY_MIN);
    assert_eq!(fail(&mut admission, address(1), 1, now), 2 * DELAY_MIN);
    assert_eq!(fail(&mut admission, address(1), 1, now), 4 * DELAY_MIN);
    assert_eq!(fail(&mut admission, address(1), 40, now), DELAY_MAX);
    // Another address pays nothing for it.
    assert_eq!(fail(&mut admission, address(2), 1, now), DELAY_MIN);
    assert_eq!(fail(&mut admission, None, 50, now), DELAY_MIN);
    let later = now + 20 * FAILURE_HALF_LIFE;
    assert_eq!(fail(&mut admission, address(1), 1, later), DELAY_MIN);
}

#[test]
fn who_failed_often_waits_while_others_compete() {
    let now = Instant::now();
    let mut admission = admission(1000, 1000, 10);
    fail(&mut admission, address(1), 20, now);
    // Nobody else is there: it may go on trying.
    fail(&mut admission, address(1), 1, now);
    let others: Vec<Ticket> = (0..5)
        .map(|n| admission.admit(address(100 + n), now).unwrap())
        .collect();
    assert_eq!(
        admission.admit(address(1), now).unwrap_err(),
        Refusal::Suspect
    );
    // Its clients that are let in get an allowance of their own.
    for ticket in others {
        admission.released(ticket, now);
    }
    succeed(&mut admission, address(1), now);
    for n in 0..5 {
        let _held = admission.admit(address(100 + n), now).unwrap();
    }
    assert!(admission.admit(address(1), now).is_ok());
    // The rest of its connections are not touched by any of this.
    assert!(admission.admit(address(2), now).is_ok());
}

#[test]
fn the_allowance_of_a_known_nuisance_has_an_end() {
    let now = Instant::now();
    let mut admission = admission(1000, 1000, 40);
    succeed(&mut admission, address(1), now);
    fail(&mut admission, address(1), 20, now);
    for _ in 0..KNOWN_ALLOWANCE {
        let _held = admission.admit(address(1), now).unwrap();
    }
    assert_eq!(
        admission.admit(address(1), now).unwrap_err(),
        Refusal::Suspect
    );
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut now = Instant::now();
    let mut admission = admission(10, 10, 10);
    let addresses = IDLE_ADDRESSES_MAX as u32 + 500;
    for number in 0..addresses {
        fail(&mut admission, address(number), 1, now);
    }
    assert_eq!(admission.known.len(), IDLE_ADDRESSES_MAX);
    assert_eq!(admission.idle.len(), IDLE_ADDRESSES_MAX);
    let origin = |number| Origin::of(address(number).unwrap());
    assert!(!admission.known.contains_key(&origin(0)));
    assert!(admission.known.contains_key(&origin(addresses - 1)));
    // Who neither failed nor was let in is not remembered at all.
    let ticket = admission.admit(address(9_999_999), now).unwrap();
    admission.released(ticket, now);
    assert!(!admission.known.contains_key(&origin(9_999_999)));
    // Old failures go with the next one that comes to rest.
    now += 20 * FAILURE_HALF_LIFE;
    fail(&mut admission, address(1), 1, now);
    assert_eq!(admission.known.len(), 1);
}

#[test]
fn new_limits_hold_for_what_comes() {
    let now = Instant::now();
    let mut admission = admission(1, 10, 10);
    let _open = admission.admit(address(1), now).unwrap();
    assert!(admission.admit(address(1), now).is_err());
    admission.set_limits(Limits {
        connections_max: 2,
        ..admission.limits
    });
    assert!(admission.admit(address(1), now).is_ok());
}

#[test]
fn dropping_an_admitted_connection_gives_its_room_back() {
    let door = Door::new(Limits {
        connections_max: 1,
        connections_per_address_max: 1,
        handshakes_max: 1,
    });
    let mut admitted = door.admit(address(1)).unwrap();
    admitted.authenticated();
    assert_eq!(door.connections(), 1);
    assert_eq!(door.admit(address(1)).unwrap_err(), Refusal::Connections);
    drop(admitted);
    assert_eq!(door.connections(), 0);
    assert!(door.admit(address(1)).is_ok());
    assert_eq!(counts(&door.lock()), (0, 0, 0, 0));
}

#[test]
fn few_are_told_why_there_is_no_room() {
    let door = Door::new(admission(1, 1, 1).limits);
    let _open = door.admit(address(1)).unwrap();
    assert_eq!(
        door.admit(address(2)).unwrap_err().code(),
        "too_many_connections"
    );
    let mut told: Vec<Admitted> = std::iter::from_fn(|| door.turn_away()).collect();
    assert_eq!(told.len(), TURNED_AWAY_MAX as usize);
    told.pop();
    assert!(door.turn_away().is_some());
    drop(told);
    assert_eq!(door.lock().turned_away, 0);
    assert_eq!(door.connections(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Admit(Option<u32>),
    Authenticate(usize),
    Fail(usize),
    Release(usize),
    Pass(u32),
    Limit(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::option::weighted(0.9, 0u32..6).prop_map(Step::Admit),
        2 => any::<usize>().prop_map(Step::Authenticate),
        2 => any::<usize>().prop_map(Step::Fail),
        3 => any::<usize>().prop_map(Step::Release),
        1 => (0u32..2000).prop_map(Step::Pass),
        1 => (1u32..20).prop_map(Step::Limit),
    ]
}

proptest! {
    #[test]
    fn counts_never_leak(steps in proptest::collection::vec(step(), 0..200)) {
        let mut now = Instant::now();
        let mut admission = admission(20, 8, 6);
        let mut open: Vec<Ticket> = Vec::new();
        for step in steps {
            match step {
                Step::Admit(from) => {
                    let before = counts(&admission);
                    match admission.admit(from.and_then(address), now) {
                        Ok(ticket) => open.push(ticket),
                        Err(_) => prop_assert_eq!(counts(&admission), before),
                    }
                }
                Step::Authenticate(at) if !open.is_empty() => {
                    let at = at % open.len();
                    admission.authenticated(&mut open[at], now);
                }
                Step::Fail(at) if !open.is_empty() => {
                    let delay = admission.failed(&open[at % open.len()], now);
                    prop_assert!((DELAY_MIN..=DELAY_MAX).contains(&delay));
                }
                Step::Release(at) if !open.is_empty() => {
                    let at = at % open.len();
                    admission.released(open.swap_remove(at), now);
                }
                Step::Pass(seconds) => now += seconds * SECOND,
                Step::Limit(handshakes_max) => admission.set_limits(Limits {
                    handshakes_max,
                    ..admission.limits
                }),
                _ => {}
            }
            let handshakes = open.iter().filter(|ticket| ticket.handshake).count() as u32;
            let named = open.iter().filter(|ticket| ticket.origin.is_some());
            let of_names = named.clone().count() as u32;
            let handshakes_of_names = named.filter(|ticket| ticket.handshake).count() as u32;
            let expected = (open.len() as u32, handshakes, of_names, handshakes_of_names);
            prop_assert_eq!(counts(&admission), expected);
            let idle = admission.known.values().filter(|known| known.connections == 0).count();
            prop_assert_eq!(idle, admission.idle.len());
        }
        for ticket in open {
            admission.released(ticket, now);
        }
        prop_assert_eq!(counts(&admission), (0, 0, 0, 0));
    }
}
