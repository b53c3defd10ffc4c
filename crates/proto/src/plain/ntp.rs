//! NTP packets (RFC 5905): what a client asks, what a server answers, and what
//! the four times of an exchange say.
//!
//! Bytes of a datagram enter, packets and figures leave. Extension fields and
//! authentication codes behind the 48 bytes of the header are passed over. There
//! is no clock here: every time is an argument, and randomness is too.

use crate::wire;

/// Bytes of a packet without extensions (RFC 5905, section 7.3).
pub const PACKET_BYTES: usize = 48;
/// The port of NTP servers.
pub const PORT: u16 = 123;

/// The mode of a client's request.
pub const MODE_CLIENT: u8 = 3;
/// The mode of a server's answer.
pub const MODE_SERVER: u8 = 4;
/// The newest version, and what a client of ours says.
pub const VERSION: u8 = 4;
/// The largest stratum of a synchronised server; 16 is none, and 0 on the wire.
pub const STRATUM_MAX: u8 = 15;

/// Seconds from 1900, where NTP's first era begins, to 1970.
const UNIX_OFFSET: i128 = 2_208_988_800;
const NANOS: i128 = 1_000_000_000;
/// The largest precision that is believed, as a power of two of seconds.
const PRECISION_MAX: i8 = 16;
const PRECISION_MIN: i8 = -32;

/// A time on the wire: seconds of an era in 32 bits and a binary fraction in 32.
/// Zero means that there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time so many nanoseconds after 1970, in its era.
    pub fn from_unix_nanos(nanos: i128) -> Self {
        let seconds = nanos.div_euclid(NANOS).saturating_add(UNIX_OFFSET);
        let fraction = (nanos.rem_euclid(NANOS) << 32) / NANOS;
        let seconds = seconds.rem_euclid(1 << 32);
        Self(u64::try_from((seconds << 32) | fraction).unwrap_or_default())
    }

    /// The nanoseconds after 1970, in the era that lies nearest to `near`.
    pub fn to_unix_nanos(self, near: i128) -> i128 {
        near.saturating_add(self.since(Self::from_unix_nanos(near)))
    }

    /// The signed distance from `other` to this time in nanoseconds; right within
    /// half an era, 68 years.
    pub fn since(self, other: Self) -> i128 {
        let units = i128::from(self.0.wrapping_sub(other.0).cast_signed());
        (units.saturating_mul(NANOS)) >> 32
    }
}

/// A duration on the wire in units of 2⁻¹⁶ s: root delay and root dispersion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Short(pub u32);

impl Short {
    /// Rounds up: an error bound must not become smaller on its way.
    pub fn from_micros(micros: u64) -> Self {
        let units = (u128::from(micros) << 16).div_ceil(1_000_000);
        Self(u32::try_from(units).unwrap_or(u32::MAX))
    }

    /// In nanoseconds.
    pub fn nanos(self) -> i128 {
        (i128::from(self.0).saturating_mul(NANOS)) >> 16
    }
}

/// What a server says of the minute that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leap {
    /// It has 60 seconds.
    None,
    /// It has 61.
    Insert,
    /// It has 59.
    Delete,
    /// The clock is not synchronised.
    Unknown,
}

impl Leap {
    fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::Insert,
            2 => Self::Delete,
            _ => Self::Unknown,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Insert => 1,
            Self::Delete => 2,
            Self::Unknown => 3,
        }
    }
}

/// The header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Leap second, or that the clock is not synchronised.
    pub leap: Leap,
    /// 1 to 7.
    pub version: u8,
    /// 3 is a client's request, 4 a server's answer.
    pub mode: u8,
    /// 1 has a clock of its own, 2 to 15 have it from others, 0 is none.
    pub stratum: u8,
    /// The poll interval as a power of two of seconds.
    pub poll: i8,
    /// The precision of the clock as a power of two of seconds.
    pub precision: i8,
    /// The round trip to the reference clock.
    pub root_delay: Short,
    /// The error that has gathered on the way from there.
    pub root_dispersion: Short,
    /// What the clock follows; with stratum 0 four letters that say why not.
    pub reference_id: [u8; 4],
    /// When the clock was set last.
    pub reference: Timestamp,
    /// The time at the client when it asked.
    pub origin: Timestamp,
    /// The time at the server when the request came.
    pub receive: Timestamp,
    /// The time at the sender when the packet left.
    pub transmit: Timestamp,
}

impl Packet {
    /// Reads the header of a datagram; `None` where it is too short or has no version.
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let ([flags, stratum, poll, precision], rest) = wire::array::<4>(datagram)?;
        let (root_delay, rest) = wire::array::<4>(rest)?;
        let (root_dispersion, rest) = wire::array::<4>(rest)?;
        let (reference_id, rest) = wire::array::<4>(rest)?;
        let (reference, rest) = wire::array::<8>(rest)?;
        let (origin, rest) = wire::array::<8>(rest)?;
        let (receive, rest) = wire::array::<8>(rest)?;
        let (transmit, _) = wire::array::<8>(rest)?;
        let version = (flags >> 3) & 7;
        (version > 0).then_some(Self {
            leap: Leap::from_bits(flags >> 6),
            version,
            mode: flags & 7,
            stratum,
            poll: poll.cast_signed(),
            precision: precision.cast_signed(),
            root_delay: Short(u32::from_be_bytes(root_delay)),
            root_dispersion: Short(u32::from_be_bytes(root_dispersion)),
            reference_id,
            reference: Timestamp(u64::from_be_bytes(reference)),
            origin: Timestamp(u64::from_be_bytes(origin)),
            receive: Timestamp(u64::from_be_bytes(receive)),
            transmit: Timestamp(u64::from_be_bytes(transmit)),
        })
    }

    /// The 48 bytes of the packet.
    pub fn encode(&self) -> [u8; PACKET_BYTES] {
        let mut bytes = [0; PACKET_BYTES];
        let flags = (self.leap.bits() << 6) | ((self.version & 7) << 3) | (self.mode & 7);
        let head = [
            flags,
            self.stratum,
            self.poll.cast_unsigned(),
            self.precision.cast_unsigned(),
        ];
        let parts: [&[u8]; 8] = [
            &head,
            &self.root_delay.0.to_be_bytes(),
            &self.root_dispersion.0.to_be_bytes(),
            &self.reference_id,
            &self.reference.0.to_be_bytes(),
            &self.origin.0.to_be_bytes(),
            &self.receive.0.to_be_bytes(),
            &self.transmit.0.to_be_bytes(),
        ];
        for (place, byte) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *place = *byte;
        }
        bytes
    }

    /// A client's request. It says nothing of the client: `nonce`, random bits, stands
    /// for the time, so that an answer must have seen the request and its sender's clock
    /// stays its own. The caller remembers when it was sent.
    pub fn request(nonce: u64) -> Self {
        Self {
            leap: Leap::None,
            version: VERSION,
            mode: MODE_CLIENT,
            stratum: 0,
            poll: 0,
            precision: 0,
            root_delay: Short(0),
            root_dispersion: Short(0),
            reference_id: [0; 4],
            reference: Timestamp(0),
            origin: Timestamp(0),
            receive: Timestamp(0),
            transmit: Timestamp(nonce),
        }
    }
}

/// What a server knows of its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockState {
    /// The leap second, or that the clock is not synchronised.
    pub leap: Leap,
    /// 1 to 15.
    pub stratum: u8,
    /// The precision of the clock as a power of two of seconds.
    pub precision: i8,
    /// The round trip to the reference clock.
    pub root_delay: Short,
    /// The largest error there can be, without that of the round trip.
    pub root_dispersion: Short,
    /// What the clock follows.
    pub reference_id: [u8; 4],
}

/// Whether a datagram is meant for NTP and not a format of the time service: it
/// has the bytes of a packet and a NUL among them, which no format has.
pub fn is_packet(datagram: &[u8]) -> bool {
    datagram.len() >= PACKET_BYTES && datagram.contains(&0)
}

/// The server's answer to a datagram, which is never longer than it; `None` where
/// it is no client's request. Answers, errors and other modes are never answered,
/// so two servers cannot keep each other busy.
///
/// `received` and `now` are the server's times, in nanoseconds since 1970.
pub fn answer(
    datagram: &[u8],
    clock: &ClockState,
    received: i128,
    now: i128,
) -> Option<[u8; PACKET_BYTES]> {
    let request = Packet::decode(datagram)?;
    if request.mode != MODE_CLIENT || request.version > VERSION {
        return None;
    }
    let lost = clock.leap == Leap::Unknown;
    let answer = Packet {
        leap: clock.leap,
        version: request.version,
        mode: MODE_SERVER,
        stratum: if lost { 0 } else { clock.stratum },
        poll: request.poll,
        precision: clock.precision,
        root_delay: clock.root_delay,
        root_dispersion: clock.root_dispersion,
        // RFC 5905, section 7.4: the clock was never synchronised.
        reference_id: if lost { *b"INIT" } else { clock.reference_id },
        reference: if lost {
            Timestamp(0)
        } else {
            // The kernel vouches for its clock now.
            Timestamp::from_unix_nanos(received)
        },
        origin: request.transmit,
        receive: Timestamp::from_unix_nanos(received),
        transmit: Timestamp::from_unix_nanos(now),
    };
    Some(answer.encode())
}

/// Why an answer tells no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Too short, or of another version or mode.
    #[error("that is no answer of an NTP server")]
    Malformed,
    /// It does not belong to the request: late, repeated or forged.
    #[error("the answer is to another request")]
    NotAsked,
    /// The server tells not to ask: a kiss-o'-death (RFC 5905, section 7.4).
    #[error("the server tells no time: {}", code_text(.0))]
    Refused([u8; 4]),
    /// The server's own clock is not synchronised.
    #[error("the server's clock is not synchronised")]
    NotSynchronised,
    /// Its times cannot be: it answered before it was asked, or its error bound is too large.
    #[error("the server's times make no sense")]
    Implausible,
}

/// The letters of a kiss code, as far as they are letters.
fn code_text(code: &[u8; 4]) -> String {
    let letters = code.iter().take_while(|byte| byte.is_ascii_alphanumeric());
    letters.map(|byte| char::from(*byte)).collect()
}

/// What one exchange says. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What must be added to the client's clock to get the server's.
    pub offset: i128,
    /// The time on the way, there and back.
    pub delay: i128,
    /// The true offset lies within so much of [`Self::offset`], if the server's own bounds hold.
    pub uncertainty: i128,
    /// The packet itself.
    pub packet: Packet,
}

/// Reads the answer to a request with this nonce, sent at `sent` and answered at
/// `received`, the client's times in nanoseconds since 1970.
///
/// # Errors
/// [`AnswerError`].
pub fn sample(
    datagram: &[u8],
    nonce: u64,
    sent: i128,
    received: i128,
) -> Result<Sample, AnswerError> {
    let packet = Packet::decode(datagram).ok_or(AnswerError::Malformed)?;
    if packet.mode != MODE_SERVER || packet.version > VERSION {
        return Err(AnswerError::Malformed);
    }
    if packet.origin != Timestamp(nonce) {
        return Err(AnswerError::NotAsked);
    }
    if packet.leap == Leap::Unknown || packet.stratum > STRATUM_MAX {
        return Err(AnswerError::NotSynchronised);
    }
    if packet.stratum == 0 {
        return Err(AnswerError::Refused(packet.reference_id));
    }
    let root = packet.root_delay.nanos() / 2 + packet.root_dispersion.nanos();
    let served = packet.transmit.since(packet.receive);
    let zero = Timestamp(0);
    // RFC 5905, section 7.3 (MAXDISP): 16 seconds are as good as no clock at all.
    if packet.receive == zero || packet.transmit == zero || served < 0 || root >= 16 * NANOS {
        return Err(AnswerError::Implausible);
    }
    let there = packet.receive.to_unix_nanos(sent).saturating_sub(sent);
    let back = packet
        .transmit
        .to_unix_nanos(received)
        .saturating_sub(received);
    // A clock that was set meanwhile can make it negative; no path is faster than none.
    let delay = received.saturating_sub(sent).saturating_sub(served).max(0);
    let precision = packet.precision.clamp(PRECISION_MIN, PRECISION_MAX);
    let tick = NANOS
        .checked_shr(u32::from(precision.unsigned_abs()))
        .filter(|_| precision < 0)
        .unwrap_or_else(|| NANOS << u32::from(precision.unsigned_abs()));
    Ok(Sample {
        offset: there.saturating_add(back) / 2,
        delay,
        uncertainty: (delay / 2).saturating_add(root).saturating_add(tick),
        packet,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLOCK: ClockState = ClockState {
        leap: Leap::None,
        stratum: 10,
        precision: -20,
        root_delay: Short(0),
        root_dispersion: Short(0x0001_0000),
        reference_id: [127, 127, 1, 1],
    };
    /// 2026-11-08 07:05:03.25 UTC.
    const NOW: i128 = 1_794_121_503_250_000_000;

    #[test]
    fn times_are_those_of_the_rfc() {
        // RFC 5905, figure 4: 1970-01-01 is 2,208,988,800 of era 0, and era 1 begins on 2036-02-07 06:28:16.
        assert_eq!(Timestamp::from_unix_nanos(0).0 >> 32, 2_208_988_800);
        assert_eq!(
            Timestamp::from_unix_nanos(2_085_978_496 * NANOS),
            Timestamp(0)
        );
        assert_eq!(Timestamp::from_unix_nanos(NANOS / 2).0 as u32, 1 << 31);
        assert_eq!(Timestamp::from_unix_nanos(-1).0 >> 32, 2_208_988_799);
        // A time of the next era, seen from shortly before it.
        let near = 2_085_978_490 * NANOS;
        assert_eq!(
            Timestamp(1 << 32).to_unix_nanos(near),
            2_085_978_497 * NANOS
        );
        assert_eq!(Short::from_micros(1_000_000), Short(0x0001_0000));
        assert_eq!(Short::from_micros(1), Short(1), "rounded up");
        assert_eq!(Short::from_micros(u64::MAX), Short(u32::MAX));
    }

    #[test]
    fn an_exchange_tells_offset_and_delay() {
        // The server is 2 s ahead, 10 ms there, 1 ms to answer, 30 ms back.
        let ms = 1_000_000;
        let sent = NOW;
        let came = sent + 2_000 * ms + 10 * ms;
        let request = Packet::request(0x0123_4567_89ab_cdef).encode();
        let reply = answer(&request, &CLOCK, came, came + ms).unwrap();
        let received = sent + 41 * ms;
        let sample = sample(&reply, 0x0123_4567_89ab_cdef, sent, received).unwrap();
        let near = |value: i128, expected: i128| (value - expected).abs() < 10;
        assert!(near(sample.delay, 40 * ms), "{sample:?}");
        assert!(near(sample.offset, 1_990 * ms), "{sample:?}");
        // Half the delay, one second of root dispersion, a tick of 2⁻²⁰ s.
        assert!(
            near(sample.uncertainty, 20 * ms + NANOS + 953),
            "{sample:?}"
        );
        assert_eq!(sample.packet.stratum, 10);
        assert_eq!(sample.packet.reference_id, [127, 127, 1, 1]);
    }

    #[test]
    fn nothing_but_a_client_is_answered() {
        let request = Packet::request(7);
        for mode in 0..8 {
            for version in 0..8 {
                let datagram = Packet {
                    mode,
                    version,
                    ..request
                }
                .encode();
                let answered = answer(&datagram, &CLOCK, NOW, NOW).is_some();
                let client = mode == MODE_CLIENT && (1..=4).contains(&version);
                assert_eq!(answered, client, "mode {mode}, version {version}");
            }
        }
        let datagram = request.encode();
        for len in 0..PACKET_BYTES {
            assert!(answer(&datagram[..len], &CLOCK, NOW, NOW).is_none());
        }
        // An answer is never answered, whatever it is an answer to.
        let reply = answer(&datagram, &CLOCK, NOW, NOW).unwrap();
        assert!(answer(&reply, &CLOCK, NOW, NOW).is_none());
    }

    #[test]
    fn a_clock_that_is_not_synchronised_says_so() {
        let lost = ClockState {
            leap: Leap::Unknown,
            ..CLOCK
        };
        let reply = answer(&Packet::request(7).encode(), &lost, NOW, NOW).unwrap();
        assert_eq!(reply[0], 0b11_100_100);
        assert_eq!(reply[1], 0);
        assert_eq!(&reply[12..16], b"INIT");
        assert_eq!(
            sample(&reply, 7, NOW, NOW),
            Err(AnswerError::NotSynchronised)
        );
    }

    #[test]
    fn answers_that_tell_no_time_are_refused() {
        let reply = answer(&Packet::request(7).encode(), &CLOCK, NOW, NOW).unwrap();
        assert!(sample(&reply, 7, NOW, NOW).is_ok());
        assert_eq!(sample(&reply, 8, NOW, NOW), Err(AnswerError::NotAsked));
        assert_eq!(
            sample(&reply[..47], 7, NOW, NOW),
            Err(AnswerError::Malformed)
        );
        let packet = Packet::decode(&reply).unwrap();
        let tried = |packet: Packet| sample(&packet.encode(), 7, NOW, NOW).map(|_| ());
        let kiss = Packet {
            stratum: 0,
            reference_id: *b"RATE",
            ..packet
        };
        assert_eq!(tried(kiss), Err(AnswerError::Refused(*b"RATE")));
        assert!(
            AnswerError::Refused(*b"RATE")
                .to_string()
                .ends_with(": RATE")
        );
        assert_eq!(
            tried(Packet {
                stratum: 16,
                ..packet
            }),
            Err(AnswerError::NotSynchronised)
        );
        assert_eq!(
            tried(Packet { mode: 5, ..packet }),
            Err(AnswerError::Malformed)
        );
        let none = Packet {
            transmit: Timestamp(0),
            ..packet
        };
        assert_eq!(tried(none), Err(AnswerError::Implausible));
        let before = Packet {
            receive: Timestamp(packet.transmit.0 + 1_000_000),
            ..packet
        };
        assert_eq!(tried(before), Err(AnswerError::Implausible));
        let far = Packet {
            root_dispersion: Short(16 << 16),
            ..packet
        };
        assert_eq!(tried(far), Err(AnswerError::Implausible));
    }

    #[test]
    fn a_format_is_no_packet() {
        assert!(!is_packet(&[b'%'; 48]));
        assert!(!is_packet(&[0; 47]));
        assert!(is_packet(&Packet::request(u64::MAX).encode()));
    }

    proptest! {
        #[test]
        fn packets_are_read_as_they_were_written(bytes in proptest::array::uniform::<_, 48>(any::<u8>())) {
            if let Some(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(packet.encode(), bytes);
            }
        }

        #[test]
        fn a_time_comes_back(nanos in -4_000_000_000_000_000_000_i128..8_000_000_000_000_000_000, off in -1_000_000_000_000_i128..1_000_000_000_000) {
            let back = Timestamp::from_unix_nanos(nanos).to_unix_nanos(nanos + off);
            prop_assert!((back - nanos).abs() <= 2, "{back} of {nanos}");
        }
    }
}
