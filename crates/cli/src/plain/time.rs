//! The time service: a strftime format over datagrams, and NTP on the same port.
//!
//! What the answer says of the clock is what the kernel says. The clock is never set.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bowline::net::{Answer, Peer};
use bowline_proto::plain::ntp::{self, ClockState, Leap, Short};
use bowline_proto::plain::text::whole_characters;

use crate::system_clock::{self, KernelClock};

/// The format of an empty request.
const FORMAT: &[u8] = b"%Y-%m-%d-%X";
/// Where the text of an answer is cut.
const TEXT_BYTES_MAX: usize = 1024;
/// The kernel does not say from whom its time came, so nobody is to prefer ours to that
/// of a server that knows: no better than what others call a last resort.
const STRATUM: u8 = 10;
/// What the local clock is called where its source is not known.
const LOCAL: [u8; 4] = [127, 127, 1, 1];

/// A network that the text form is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network: write it as 192.0.2.0/24");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| wrong()))?;
        (bits <= most)
            .then_some(Self { address, bits })
            .ok_or_else(wrong)
    }
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        let differ = match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                u128::from(u32::from(own) ^ u32::from(other)) << 96
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => u128::from(own) ^ u128::from(other),
            _ => return false,
        };
        u32::from(self.bits) <= differ.leading_zeros()
    }
}

/// The time service.
#[derive(Debug)]
pub(crate) struct Time {
    text_from: Vec<Network>,
    /// Serve this machine's clock under this stratum also where the kernel vouches for nothing.
    local_stratum: Option<u8>,
    /// What was said of the clock last, and in which second.
    said: Mutex<Option<(i128, ClockState)>>,
}

impl Time {
    pub(crate) fn new(text_from: Vec<Network>, local_stratum: Option<u8>) -> Self {
        Self {
            text_from,
            local_stratum,
            said: Mutex::new(None),
        }
    }

    /// What an answer says of the clock. The kernel is asked once a second, since its own
    /// figures move once a second; so what somebody sets in between is told that much later.
    fn clock(&self, nanos: i128) -> ClockState {
        let second = nanos.div_euclid(1_000_000_000);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, clock)) = said.filter(|(then, _)| *then == second) {
            return clock;
        }
        let clock = clock_state(system_clock::kernel_clock().ok(), self.local_stratum);
        *said = Some((second, clock));
        clock
    }

    /// Answers a datagram into `reply`.
    pub(crate) fn answer(&self, request: &[u8], peer: &Peer, reply: &mut Vec<u8>) -> Answer {
        if ntp::is_packet(request) {
            let received = now_nanos();
            let clock = self.clock(received);
            let Some(packet) = ntp::answer(request, &clock, received, now_nanos()) else {
                return Answer::Nothing;
            };
            reply.extend_from_slice(&packet);
            return Answer::Reply;
        }
        if !self.may_ask_for_text(peer) {
            return Answer::Nothing;
        }
        let format = if request.is_empty() { FORMAT } else { request };
        let seconds = i64::try_from(now_nanos() / 1_000_000_000).unwrap_or_default();
        let Some(mut text) = system_clock::strftime(format, seconds) else {
            return Answer::Nothing;
        };
        if text.len() > TEXT_BYTES_MAX {
            text.truncate(TEXT_BYTES_MAX);
            text.truncate(whole_characters(&text));
        }
        reply.append(&mut text);
        Answer::Reply
    }

    /// Its answer can be longer than the request, so a forged source would be sent more
    /// than the forger sent: only whom the operator names is answered off this machine.
    fn may_ask_for_text(&self, peer: &Peer) -> bool {
        peer.address().is_none_or(|address| {
            let ip = address.ip().to_canonical();
            ip.is_loopback() || self.text_from.iter().any(|network| network.contains(ip))
        })
    }
}

fn now_nanos() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i128::try_from(since.as_nanos()).unwrap_or_default()
    })
}

/// What an answer says of the clock.
fn clock_state(kernel: Option<KernelClock>, local_stratum: Option<u8>) -> ClockState {
    let vouched = kernel.filter(|kernel| kernel.synchronised);
    let leap = match (vouched, local_stratum) {
        (Some(kernel), _) => match kernel.leap {
            1.. => Leap::Insert,
            0 => Leap::None,
            _ => Leap::Delete,
        },
        // Whoever made this machine the reference has said so.
        (None, Some(_)) => Leap::None,
        (None, None) => Leap::Unknown,
    };
    let pulse = vouched.is_some_and(|kernel| kernel.pulse);
    let precision_us = kernel.map_or(1, |kernel| kernel.precision_us);
    ClockState {
        leap,
        stratum: match (pulse, local_stratum) {
            (true, _) => 1,
            (false, Some(stratum)) => stratum,
            (false, None) => STRATUM,
        },
        precision: power_of_two(precision_us),
        root_delay: Short(0),
        // The kernel's bound holds the delay too.
        root_dispersion: Short::from_micros(match (vouched, local_stratum) {
            (Some(kernel), _) => kernel.error_max_us,
            (None, Some(_)) => 0,
            (None, None) => kernel.map_or(u64::MAX, |kernel| kernel.error_max_us),
        }),
        reference_id: if pulse { *b"PPS\0" } else { LOCAL },
    }
}

/// The smallest power of two that is no shorter, in seconds.
fn power_of_two(micros: u64) -> i8 {
    (-20..=16)
        .find(|power| {
            let micros_of = (f64::from(*power)).exp2() * 1_000_000.0;
            micros_of >= micros as f64 * 0.95
        })
        .unwrap_or(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: KernelClock = KernelClock {
        synchronised: true,
        leap: 0,
        pulse: false,
        error_max_us: 250_000,
        precision_us: 1,
    };

    #[test]
    fn an_answer_says_of_the_clock_what_the_kernel_says() {
        let kept = clock_state(Some(KERNEL), None);
        assert_eq!(
            (kept.leap, kept.stratum, kept.precision),
            (Leap::None, 10, -20)
        );
        assert_eq!(kept.root_dispersion, Short(0x4000));
        let insert = KernelClock { leap: 1, ..KERNEL };
        assert_eq!(clock_state(Some(insert), None).leap, Leap::Insert);
        let delete = KernelClock { leap: -1, ..KERNEL };
        assert_eq!(clock_state(Some(delete), None).leap, Leap::Delete);
        let pulse = KernelClock {
            pulse: true,
            ..KERNEL
        };
        let pulse = clock_state(Some(pulse), None);
        assert_eq!((pulse.stratum, &pulse.reference_id), (1, b"PPS\0"));
        let lost = KernelClock {
            synchronised: false,
            ..KERNEL
        };
        assert_eq!(clock_state(Some(lost), None).leap, Leap::Unknown);
        assert_eq!(clock_state(None, None).leap, Leap::Unknown);
        let chosen = clock_state(Some(lost), Some(8));
        assert_eq!((chosen.leap, chosen.stratum), (Leap::None, 8));
    }

    #[test]
    fn networks_are_those_of_cidr() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        let holds = |text: &str, address: &str| network(text).contains(address.parse().unwrap());
        assert!(holds("192.0.2.0/24", "192.0.2.255"));
        assert!(!holds("192.0.2.0/24", "192.0.3.0"));
        assert!(holds("192.0.2.1", "192.0.2.1") && !holds("192.0.2.1", "192.0.2.2"));
        assert!(holds("0.0.0.0/0", "203.0.113.9") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("192.0.2.0/24", "::ffff:192.0.2.7"));
        assert!(holds("2001:db8::/32", "2001:db8:ffff::1"));
        for wrong in [
            "",
            "x",
            "192.0.2.0/33",
            "::/129",
            "192.0.2.0/",
            "192.0.2.0/-1",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn text_is_for_loopback_and_named_networks() {
        let time = Time::new(vec!["192.0.2.0/24".parse().unwrap()], None);
        let ask = |address: &str, request: &[u8]| {
            let mut reply = Vec::new();
            let peer = Peer::Ip(address.parse().unwrap());
            let answer = time.answer(request, &peer, &mut reply);
            (answer, String::from_utf8_lossy(&reply).into_owned())
        };
        assert_eq!(ask("127.0.0.1:4000", b"%%").1, "%");
        assert_eq!(ask("[::1]:4000", b"").1.len(), 19);
        assert_eq!(ask("192.0.2.9:4000", b"x").1, "x");
        assert_eq!(
            ask("203.0.113.1:4000", b"x"),
            (Answer::Nothing, String::new())
        );
        let packet = ntp::Packet::request(1).encode();
        let mut reply = Vec::new();
        let peer = Peer::Ip("203.0.113.1:4000".parse().unwrap());
        assert_eq!(time.answer(&packet, &peer, &mut reply), Answer::Reply);
        assert_eq!(reply.len(), ntp::PACKET_BYTES);
        let long = ask("127.0.0.1:4000", &"é".repeat(1000).into_bytes()).1;
        assert_eq!(long, "é".repeat(512));
    }
}
