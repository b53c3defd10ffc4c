//! Tests of the session: two sides over a scripted network, and one side
//! against a peer that does as it likes.
//!
//! Each random test prints its seed; `BOWLINE_SEED=n` runs that one alone, and
//! `BOWLINE_SEEDS=n` so many.

mod attachments;
mod document;
mod growth;
mod hostile;
mod outgoing;
mod permitted;
mod simulation;
mod vectors;

use super::*;
use crate::frame::{Flags, Kind, Prelude, Stream};
use crate::id::{Channel, JobId};
use crate::limits::{MINOR, PROTOCOL};
use crate::message::{Auth, Granted, Hello, Message, Start};

/// A generator of numbers that look random and come again with the same seed (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    fn size(&mut self, end: usize) -> usize {
        self.below(end as u64) as usize
    }

    /// True once in `n` times.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The seeds to run: `count` of them, or the one that `BOWLINE_SEED` names.
fn seeds(count: u64) -> Vec<u64> {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is a number")),
        )
    };
    match number("BOWLINE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("BOWLINE_SEEDS").unwrap_or(count)).collect(),
    }
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL.to_owned(),
        minor: MINOR,
        ..Hello::default()
    }
}

fn auth() -> Auth {
    Auth {
        user: "alice".to_owned(),
        proofs: vec![crate::auth::ProofJson::Peer],
    }
}

/// A frame of any shape, also of shapes that no session sends.
fn frame(kind: Kind, flags: Flags, channel: u32, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let prelude = Prelude {
        kind,
        flags,
        header_len: header.len() as u16,
        channel: Channel(channel),
        payload_len: payload.len() as u32,
    };
    [&prelude.encode()[..], header, payload].concat()
}

fn message<M: Message>(channel: u32, message: &M) -> Vec<u8> {
    let header = serde_json::to_vec(message).unwrap();
    frame(M::KIND, Flags::NONE, channel, &header, b"")
}

fn data(stream: Stream, channel: u32, bytes: &[u8]) -> Vec<u8> {
    frame(Kind::data(stream), Flags::NONE, channel, b"", bytes)
}

/// A `start` of `true` with so many bytes in its one argument, NUL included.
fn start_of(bytes: usize) -> (Start, Vec<u8>) {
    let mut payload = vec![b'x'; bytes];
    *payload.last_mut().unwrap() = 0;
    let start = Start {
        job: Some(JobId::from_bytes([3; 16])),
        args: 1,
        bytes: bytes as u32,
        ..Start::default()
    };
    (start, payload)
}

fn start_frame(channel: u32) -> Vec<u8> {
    let (start, payload) = start_of(5);
    let header = serde_json::to_vec(&start).unwrap();
    frame(Kind::Start, Flags::END, channel, &header, &payload)
}

/// A server's session that has granted, with nothing left to send.
fn server() -> Session {
    let mut handshake = ServerHandshake::new(&hello());
    for bytes in [message(0, &hello()), message(0, &auth())] {
        let (len, _) = handshake.next(&bytes).unwrap();
        assert_eq!(len, bytes.len());
    }
    let mut session = handshake.granted(&Granted::default(), &());
    session.outbox().control_sent();
    session
}

/// A client's session that was granted, with nothing left to send.
fn client() -> Session {
    let mut session = Session::client(&hello());
    session.authenticate(&auth());
    for bytes in [message(0, &hello()), message(0, &Granted::default())] {
        assert!(matches!(session.next(&bytes), Ok(Step::Event(len, _, _)) if len == bytes.len()));
    }
    session.outbox().control_sent();
    session
}
