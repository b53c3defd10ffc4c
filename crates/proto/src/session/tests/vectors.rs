//! The test vectors are what the code reads and writes, to the byte.

use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::frame::{self, Bound, FrameError};
use crate::message::{
    Attach, Bye, Exit, Forget, Gap, Jobs, List, MessageError, Ping, Pong, Refused, Resize, Signal,
    Started, Window,
};
use crate::outcome::{Happened, Outcome};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    frames: Vec<FrameVector>,
    errors: Vec<ErrorVector>,
    conversation: Vec<Said>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FrameVector {
    name: String,
    kind: String,
    flags: Vec<String>,
    channel: u32,
    header: Option<Value>,
    payload_hex: String,
    frame_hex: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorVector {
    name: String,
    bound: String,
    error: String,
    frame_hex: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    from: String,
    frame_hex: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../../vectors/frames.json")).unwrap()
}

/// The kind's name in documents: its variant in lower case.
pub(super) fn name_of(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// Reads a header as its kind's message and writes it again.
fn rewritten(kind: Kind, header: &[u8]) -> Result<Vec<u8>, MessageError> {
    fn through<M: Message>(header: &[u8]) -> Result<Vec<u8>, MessageError> {
        Ok(serde_json::to_vec(&M::from_header(header)?).unwrap())
    }
    match kind {
        Kind::Stdin | Kind::Stdout | Kind::Stderr => Ok(header.to_vec()),
        Kind::Hello => through::<Hello>(header),
        Kind::Auth => through::<Auth>(header),
        Kind::Granted => through::<Granted>(header),
        Kind::Refused => through::<Refused>(header),
        Kind::Start => through::<Start>(header),
        Kind::Started => through::<Started>(header),
        Kind::Attach => through::<Attach>(header),
        Kind::Signal => through::<Signal>(header),
        Kind::Resize => through::<Resize>(header),
        Kind::Window => through::<Window>(header),
        Kind::Exit => through::<Exit>(header),
        Kind::Forget => through::<Forget>(header),
        Kind::List => through::<List>(header),
        Kind::Jobs => through::<Jobs>(header),
        Kind::Gap => through::<Gap>(header),
        Kind::Ping => through::<Ping>(header),
        Kind::Pong => through::<Pong>(header),
        Kind::Bye => through::<Bye>(header),
    }
}

#[test]
fn frames_are_read_and_written_as_the_vectors_say() {
    let mut seen = Vec::new();
    for vector in vectors().frames {
        let name = &vector.name;
        let bytes = hex::decode(&vector.frame_hex).unwrap();
        let (frame, len) = frame::decode(&bytes, Bound::Authenticated)
            .unwrap()
            .unwrap();
        assert_eq!(len, bytes.len(), "{name}");
        assert_eq!(name_of(frame.kind), vector.kind, "{name}");
        assert_eq!(frame.channel, Channel(vector.channel), "{name}");
        let flags = vector.flags.iter().map(|flag| match flag.as_str() {
            "end" => Flags::END,
            "blocked" => Flags::BLOCKED,
            other => panic!("{name}: {other}"),
        });
        assert_eq!(frame.flags, flags.fold(Flags::NONE, Flags::with), "{name}");
        assert_eq!(hex::encode(frame.payload), vector.payload_hex, "{name}");
        if let Some(header) = &vector.header {
            let parsed: Value = serde_json::from_slice(frame.header).unwrap();
            assert_eq!(&parsed, header, "{name}");
            let again = rewritten(frame.kind, frame.header).unwrap();
            let texts = [again.as_slice(), frame.header].map(String::from_utf8_lossy);
            assert_eq!(texts[0], texts[1], "{name}");
        } else {
            assert!(frame.header.is_empty(), "{name}");
        }
        let again = super::frame(
            frame.kind,
            frame.flags,
            frame.channel.0,
            frame.header,
            frame.payload,
        );
        assert_eq!(again, bytes, "{name}");
        seen.push(frame.kind);
    }
    for kind in Kind::ALL {
        assert!(seen.contains(kind), "no vector of {kind:?}");
    }
}

#[test]
fn starts_of_the_vectors_hold_their_strings() {
    let mut pending: Option<(Start, Vec<u8>)> = None;
    let mut whole = 0;
    for vector in vectors().frames.iter().filter(|it| it.kind == "start") {
        let payload = hex::decode(&vector.payload_hex).unwrap();
        let (start, bytes) = match (&vector.header, pending.take()) {
            (Some(header), None) => {
                let start: Start = serde_json::from_value(header.clone()).unwrap();
                start.check().unwrap();
                (start, payload)
            }
            (None, Some((start, before))) => (start, [before, payload].concat()),
            _ => panic!("{}: parts out of order", vector.name),
        };
        if vector.flags.is_empty() {
            pending = Some((start, bytes));
        } else {
            assert_eq!(start.bytes as usize, bytes.len(), "{}", vector.name);
            start.strings(&bytes).unwrap();
            whole += 1;
        }
    }
    assert_eq!(whole, 5);
}

#[test]
fn errors_are_those_of_the_vectors() {
    let mut seen = Vec::new();
    for vector in vectors().errors {
        let name = &vector.name;
        let bytes = hex::decode(&vector.frame_hex).unwrap();
        let bound = match vector.bound.as_str() {
            "authenticated" => Bound::Authenticated,
            "unauthenticated" => Bound::Unauthenticated,
            other => panic!("{name}: {other}"),
        };
        let found = match frame::decode(&bytes, bound) {
            Err(FrameError::UnknownKind(_)) => "unknown_kind",
            Err(FrameError::UnknownFlags(_)) => "unknown_flags",
            Err(FrameError::HeaderTooLong(_)) => "header_too_long",
            Err(FrameError::PayloadTooLong(_)) => "payload_too_long",
            Err(FrameError::UnauthenticatedTooLong(_)) => "unauthenticated_too_long",
            Err(FrameError::DataWithHeader) => "data_with_header",
            Ok(None) => panic!("{name}: not a whole frame"),
            Ok(Some((frame, _))) => {
                let start = |header: &[u8]| Start::from_header(header)?.check();
                let result = rewritten(frame.kind, frame.header).and_then(|_| match frame.kind {
                    Kind::Start => start(frame.header),
                    _ => Ok(()),
                });
                match result {
                    Err(MessageError::Header { .. }) => "header",
                    Err(MessageError::StartPayload) => "start_payload",
                    Err(MessageError::StartTooLong(_)) => "start_too_long",
                    Ok(()) => "nothing",
                }
            }
        };
        assert_eq!(found, vector.error, "{name}");
        seen.push(found);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 9, "{seen:?}");
}

/// Two sides that say the conversation of the vectors.
struct Play {
    client: Session,
    handshake: Option<ServerHandshake>,
    server: Option<Session>,
    heard: Vec<String>,
}

impl Play {
    fn begin() -> Self {
        let hello = |nonce: Option<String>| Hello {
            software: "bowline 0.1.0".to_owned(),
            nonce,
            ..hello()
        };
        let mut client = Session::client(&hello(None));
        client.authenticate(&auth());
        let start = Start {
            job: "000102030405060708090a0b0c0d0e0f".parse().ok(),
            args: 1,
            bytes: 4,
            ..Start::default()
        };
        client.start(&start, b"cat\0").unwrap();
        put(&mut client, Stream::Stdin, b"one\n", false);
        Self {
            client,
            handshake: Some(ServerHandshake::new(&hello(Some("ab".repeat(32))))),
            server: None,
            heard: Vec::new(),
        }
    }

    fn outbox(&mut self, from: &str) -> &mut Outbox {
        match (from, &mut self.handshake, &mut self.server) {
            ("client", _, _) => self.client.outbox(),
            (_, Some(handshake), _) => handshake.outbox(),
            (_, _, Some(server)) => server.outbox(),
            _ => panic!("no server"),
        }
    }

    /// What a side has to say, control first.
    fn said(&mut self, from: &str) -> Vec<u8> {
        let outbox = self.outbox(from);
        let said = [outbox.control(), outbox.bulk()].concat();
        outbox.control_sent();
        outbox.bulk_sent();
        said
    }

    /// One frame is heard; both sides then do what the conversation has them do.
    fn hear(&mut self, from: &str, bytes: &[u8]) {
        if from == "client"
            && let Some(mut handshake) = self.handshake.take()
        {
            let (len, event) = handshake.next(bytes).unwrap();
            assert_eq!(len, bytes.len());
            if matches!(event, ServerEvent::Auth(_)) {
                let granted = Granted {
                    user: "alice".to_owned(),
                    mac: None,
                };
                self.server = Some(handshake.granted(&granted, &()));
            } else {
                self.handshake = Some(handshake);
            }
            return;
        }
        let session = match (from, &mut self.server) {
            ("client", Some(server)) => server,
            _ => &mut self.client,
        };
        let Step::Event(len, channel, event) = session.next(bytes).unwrap() else {
            panic!("no event")
        };
        assert_eq!(len, bytes.len());
        self.heard.push(
            format!("{event:?}")
                .split([' ', '('])
                .next()
                .unwrap()
                .to_owned(),
        );
        match event {
            Event::Start(..) => {
                let started = Started {
                    pid: 4242,
                    unix_ms: 1_767_225_600_000,
                    ..Started::default()
                };
                session.started(channel, &started);
            }
            // The server runs cat; the client signals and ends its input when it has an answer.
            Event::Data {
                stream: Stream::Stdin,
                bytes,
                end,
            } => {
                put(session, Stream::Stdout, bytes, end);
                session.consumed(channel, Stream::Stdin, bytes.len() as u64);
                if end {
                    session.put_end(channel, Stream::Stderr).unwrap();
                    let exit = Exit {
                        outcome: Outcome {
                            outcome: Happened::Exited,
                            code: Some(0),
                            ..Outcome::default()
                        },
                        stdin: 8,
                        stdout: 8,
                        stderr: 0,
                    };
                    session.exit(channel, &exit);
                }
            }
            Event::Data {
                stream: Stream::Stdout,
                end: false,
                ..
            } => {
                let signal = Signal {
                    signal: 28,
                    ..Signal::default()
                };
                session.signal(channel, &signal);
                put(session, Stream::Stdin, b"two\n", true);
            }
            Event::Exit(_) => {
                session.close(channel);
                session.ping(&Ping { id: 1 });
            }
            Event::Pong(_) => session.bye(&Bye::default()),
            _ => {}
        }
    }
}

fn put(session: &mut Session, stream: Stream, bytes: &[u8], end: bool) {
    session
        .put_with(Channel(1), stream, |space| {
            space[..bytes.len()].copy_from_slice(bytes);
            Ok::<_, ()>((bytes.len(), end))
        })
        .unwrap();
}

#[test]
fn the_conversation_is_what_both_sides_say() {
    let conversation = vectors().conversation;
    let mut play = Play::begin();
    let mut written: [Vec<u8>; 2] = Default::default();
    let mut expected: [Vec<u8>; 2] = Default::default();
    for said in &conversation {
        let side = usize::from(said.from == "server");
        let bytes = hex::decode(&said.frame_hex).unwrap();
        written[side].extend(play.said(&said.from));
        play.hear(&said.from, &bytes);
        expected[side].extend(bytes);
    }
    for side in ["client", "server"] {
        written[usize::from(side == "server")].extend(play.said(side));
    }
    // The same frames; control may have gone ahead of data that waited.
    for (written, expected) in written.iter().zip(&expected) {
        let sorted = |bytes: &[u8]| {
            let mut frames = Vec::new();
            let mut rest = bytes;
            while let Some((_, len)) = frame::decode(rest, Bound::Authenticated).unwrap() {
                frames.push(hex::encode(&rest[..len]));
                rest = &rest[len..];
            }
            frames.sort();
            frames
        };
        assert_eq!(sorted(written), sorted(expected));
    }
    assert_eq!(play.client.channels(), 0);
    assert_eq!(play.heard.first().map(String::as_str), Some("Hello"));
    assert_eq!(play.heard.last().map(String::as_str), Some("Bye"));
}
