//! What the fuzz targets of the protocol crate check, beyond "it does not panic".
//!
//! Each function takes any bytes and panics where a promise is broken. This file
//! knows no fuzzer, so `crates/proto/tests/fuzz_targets.rs` runs the same code
//! over the corpus and over random bytes in the normal test run.

use bowline_proto::auth::{self, ProofJson};
use bowline_proto::frame::{self, Bound, Flags, Kind, Prelude, Stream};
use bowline_proto::framing::{ByteOrder, Decimal, Delimited, Framing, Headed, Int32};
use bowline_proto::id::{Channel, JobId};
use bowline_proto::key::PublicKey;
use bowline_proto::limits::{
    CHANNELS_MAX, CONTROL_OUT_PAUSE, FRAME_BYTES_MAX, HEADER_BYTES_MAX, PROTOCOL,
};
use bowline_proto::message::{
    Attach, Auth, Bye, Exit, Forget, Gap, Granted, Hello, Jobs, List, Message, Ping, Pong, Refused,
    Resize, Signal, Start, Started, Window,
};
use bowline_proto::plain::ntp;
use bowline_proto::session::{Event, ServerEvent, ServerHandshake, Session, Step};
use bowline_proto::sshsig::SshSig;
use bowline_proto::{copy, grants, known_hosts};

/// A target: its name and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: &[Target] = &[
    ("frame", frame_target),
    ("message", message_target),
    ("handshake", handshake_target),
    ("session_server", session_server_target),
    ("session_client", session_client_target),
    ("grants", grants_target),
    ("known_hosts", known_hosts_target),
    ("key", key_target),
    ("sshsig", sshsig_target),
    ("framing_int32", framing_int32_target),
    ("framing_headed", framing_headed_target),
    ("framing_decimal", framing_decimal_target),
    ("framing_delimited", framing_delimited_target),
    ("copy", copy_target),
    ("copy_matcher", copy_matcher_target),
    ("ntp", ntp_target),
];

/// A frame that decodes encodes to the same bytes, no beginning of it decodes,
/// and what is wrong with a beginning is wrong with the whole.
pub fn frame_target(data: &[u8]) {
    for bound in [Bound::Unauthenticated, Bound::Authenticated] {
        let whole = frame::decode(data, bound);
        if let Ok(Some((frame, len))) = whole {
            assert!(len <= FRAME_BYTES_MAX && frame.header.len() <= HEADER_BYTES_MAX);
            let prelude = Prelude {
                kind: frame.kind,
                flags: frame.flags,
                header_len: u16::try_from(frame.header.len()).unwrap(),
                channel: frame.channel,
                payload_len: u32::try_from(frame.payload.len()).unwrap(),
            };
            let again = [&prelude.encode()[..], frame.header, frame.payload].concat();
            assert_eq!(again, data[..len]);
            assert_eq!(frame::decode(&data[..len], bound), whole);
        }
        for end in 0..data.len().min(40) {
            match frame::decode(&data[..end], bound) {
                Ok(None) => {}
                other => assert_eq!(other, whole),
            }
        }
    }
}

/// A header that reads writes, and what is written reads as the same.
pub fn message_target(data: &[u8]) {
    fn through<M: Message + PartialEq + std::fmt::Debug>(header: &[u8]) {
        if let Ok(message) = M::from_header(header) {
            let written = serde_json::to_vec(&message).unwrap();
            assert_eq!(M::from_header(&written).unwrap(), message);
        }
    }
    let Some((&kind, header)) = data.split_first() else {
        return;
    };
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    match kind {
        Kind::Stdin | Kind::Stdout | Kind::Stderr => {
            if let Ok(proof) = serde_json::from_slice::<ProofJson>(header) {
                let _ = auth::proofs_from_json(&[proof]);
            }
        }
        Kind::Hello => through::<Hello>(header),
        Kind::Auth => through::<Auth>(header),
        Kind::Granted => through::<Granted>(header),
        Kind::Refused => through::<Refused>(header),
        Kind::Start => {
            // Behind the first NUL is a payload.
            let mut parts = header.splitn(2, |&byte| byte == 0);
            let header = parts.next().unwrap_or_default();
            through::<Start>(header);
            if let Ok(start) = Start::from_header(header)
                && start.check().is_ok()
                && let Ok(strings) = start.strings(parts.next().unwrap_or_default())
            {
                assert_eq!(strings.argv.len(), start.args as usize);
                assert_eq!(strings.env.len(), start.vars as usize);
                assert_eq!(strings.cwd.is_some(), start.cwd);
            }
        }
        Kind::Started => through::<Started>(header),
        Kind::Attach => through::<Attach>(header),
        Kind::Signal => through::<Signal>(header),
        Kind::Resize => through::<Resize>(header),
        Kind::Window => through::<Window>(header),
        Kind::Exit => {
            through::<Exit>(header);
            if let Ok(exit) = Exit::from_header(header) {
                let success = exit.outcome.exit_status() == 0;
                assert!(!success || exit.outcome.code == Some(0));
            }
        }
        Kind::Forget => through::<Forget>(header),
        Kind::List => through::<List>(header),
        Kind::Jobs => through::<Jobs>(header),
        Kind::Gap => through::<Gap>(header),
        Kind::Ping => through::<Ping>(header),
        Kind::Pong => through::<Pong>(header),
        Kind::Bye => through::<Bye>(header),
    }
}

/// The bytes of a peer. With an even first byte they are what follows, as it is; with an odd one
/// they are frames, whose lengths are right, made of records: kind, flags, channel, header's length, payload's
/// length (two bytes), header, payload.
pub fn peer_bytes(data: &[u8]) -> Vec<u8> {
    let Some((&first, mut rest)) = data.split_first() else {
        return Vec::new();
    };
    if first % 2 == 0 {
        return rest.to_vec();
    }
    let mut bytes = Vec::new();
    while let Some((&[kind, flags, channel, header, low, high], after)) = rest.split_first_chunk() {
        let (header, after) = after.split_at(usize::from(header).min(after.len()));
        let payload = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (payload, after) = after.split_at(payload);
        bytes.extend([kind, flags]);
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(u32::from(channel).to_le_bytes());
        bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend([header, payload].concat());
        rest = after;
    }
    bytes
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL.to_owned(),
        ..Hello::default()
    }
}

fn encoded<M: Message>(message: &M) -> Vec<u8> {
    let header = serde_json::to_vec(message).unwrap();
    let prelude = Prelude {
        kind: M::KIND,
        flags: Flags::NONE,
        header_len: u16::try_from(header.len()).unwrap(),
        channel: Channel::CONNECTION,
        payload_len: 0,
    };
    [&prelude.encode()[..], &header].concat()
}

/// What a handshake made of bytes that come in pieces of `piece`.
fn handshake_story(bytes: &[u8], piece: usize) -> String {
    let mut handshake = ServerHandshake::new(&hello());
    let mut story = String::new();
    let (mut at, mut end) = (0, 0);
    loop {
        match handshake.next(&bytes[at..end]) {
            Ok((0, ServerEvent::NeedMore)) if end == bytes.len() => return story,
            Ok((0, ServerEvent::NeedMore)) => end = bytes.len().min(end + piece),
            Ok((len, event)) => {
                assert!(len > 0 && len <= end - at);
                at += len;
                story.push_str(&format!("{event:?}\n"));
            }
            Err(error) => return story + &format!("{error:?}"),
        }
    }
}

/// Any split of the bytes gives the same story.
pub fn handshake_target(data: &[u8]) {
    let bytes = peer_bytes(data);
    let whole = handshake_story(&bytes, usize::MAX / 2);
    assert_eq!(handshake_story(&bytes, 1), whole);
    assert_eq!(handshake_story(&bytes, 13), whole);
}

fn server_session() -> Session {
    let mut handshake = ServerHandshake::new(&hello());
    handshake.next(&encoded(&hello())).unwrap();
    let auth = Auth {
        user: "u".to_owned(),
        proofs: Vec::new(),
    };
    handshake.next(&encoded(&auth)).unwrap();
    handshake.granted(&Granted::default(), &())
}

/// A client with a start and an attachment under way; `granted` has come or not.
fn client_session(granted: bool) -> Session {
    let mut session = Session::client(&hello());
    let start = Start {
        job: Some(JobId::from_bytes([1; 16])),
        args: 1,
        bytes: 2,
        ..Start::default()
    };
    session.start(&start, b"x\0").unwrap();
    let attach = Attach {
        job: start.job,
        stdout: Some(1 << 40),
        stderr: Some(u64::MAX - 10),
        ..Attach::default()
    };
    session.attach(&attach).unwrap();
    if granted {
        session.next(&encoded(&hello())).unwrap();
        session.next(&encoded(&Granted::default())).unwrap();
    }
    session.outbox().control_sent();
    session
}

/// What a session made of bytes in pieces, and what it said.
fn session_story(mut session: Session, bytes: &[u8], piece: usize) -> String {
    let mut story = String::new();
    let (mut at, mut end) = (0, 0);
    loop {
        if session.outbox().control_is_full() {
            break;
        }
        let (len, channel, event) = match session.next(&bytes[at..end]) {
            Ok(Step::NeedMore) if end == bytes.len() => break,
            Ok(Step::NeedMore) => {
                end = bytes.len().min(end + piece);
                continue;
            }
            Ok(Step::Taken(len)) => {
                at += len;
                continue;
            }
            Ok(Step::Event(len, channel, event)) => (len, channel, event),
            Err(error) => {
                story.push_str(&format!("{error:?}"));
                break;
            }
        };
        story.push_str(&format!("{channel} {event:?}\n"));
        at += len;
        act(&mut session, channel, &event);
        assert!(session.channels() <= CHANNELS_MAX);
    }
    let outbox = session.outbox();
    assert!(outbox.control().len() <= CONTROL_OUT_PAUSE + FRAME_BYTES_MAX);
    assert!(outbox.bulk().len() <= CONTROL_OUT_PAUSE + 4 * FRAME_BYTES_MAX);
    frames_are_whole(outbox.control());
    frames_are_whole(outbox.bulk());
    story + &format!("{:?} {:?}", outbox.control(), outbox.bulk())
}

/// A side that answers as it may, and counts everything as arrived.
fn act(session: &mut Session, channel: Channel, event: &Event<'_>) {
    match event {
        Event::Data { stream, bytes, .. } => {
            let flow = session.receiving(channel, *stream).unwrap();
            assert!(flow.backlog() <= bowline_proto::limits::WINDOW_INITIAL + flow.growth());
            let len = u64::try_from(bytes.len()).unwrap();
            session.consumed(channel, *stream, len - len / 3);
        }
        Event::Start(start, payload) => {
            assert_eq!(payload.len(), start.bytes as usize);
            match start.strings(payload) {
                Ok(_) => session.started(channel, &Started::default()),
                Err(_) => session.refuse(
                    channel,
                    &Refused {
                        code: "bad_start".to_owned(),
                        message: String::new(),
                    },
                ),
            }
        }
        Event::Window(stream) => {
            let room = session.room(channel, *stream);
            let put = session.put_with(channel, *stream, |space| {
                assert_eq!(space.len(), room);
                Ok::<_, std::convert::Infallible>((space.len().min(9), false))
            });
            assert!(
                put.is_ok()
                    || session
                        .sending(channel, *stream)
                        .is_none_or(|it| it.ended() || it.room() == 0)
            );
        }
        Event::Signal(signal) if channel != Channel::CONNECTION && signal.tree => {
            let stdout = session.sending(channel, Stream::Stdout).unwrap().sent();
            let exit = Exit {
                stdout,
                ..Exit::default()
            };
            session.exit(channel, &exit);
        }
        Event::Exit(_) | Event::Refused(_) => {
            session.close(channel);
        }
        Event::List(_) => session.jobs(&Jobs::default()),
        _ => {}
    }
}

fn frames_are_whole(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (_, len) = frame::decode(bytes, Bound::Authenticated).unwrap().unwrap();
        bytes = &bytes[len..];
    }
}

/// Any split gives the same story, and what is held and said stays bounded.
pub fn session_server_target(data: &[u8]) {
    let bytes = peer_bytes(data);
    let whole = session_story(server_session(), &bytes, usize::MAX / 2);
    assert_eq!(session_story(server_session(), &bytes, 1), whole);
    assert_eq!(session_story(server_session(), &bytes, 29), whole);
}

/// The same for a client, before and after its grant.
pub fn session_client_target(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let granted = first % 2 == 0;
    let bytes = peer_bytes(rest);
    let whole = session_story(client_session(granted), &bytes, usize::MAX / 2);
    assert_eq!(session_story(client_session(granted), &bytes, 1), whole);
    assert_eq!(session_story(client_session(granted), &bytes, 29), whole);
}

/// A grant that counts was a whole line, and reading it for its key finds it again.
pub fn grants_target(data: &[u8]) {
    let (found, warnings) = grants::parse(data);
    assert!(warnings.len() <= 1 + data.len());
    for grant in &found {
        let lines: Vec<&[u8]> = data.split(|&byte| byte == b'\n').collect();
        let (key, options) = grants::parse_line(lines[grant.line - 1]).unwrap();
        assert_eq!((&key, &options), (&grant.key, &grant.options));
        let (of_key, _) = grants::parse_for(data, &grant.key);
        assert!(of_key.contains(grant));
        for source in [None, Some([192, 0, 2, 7].into()), Some([0_u16; 8].into())] {
            let _ = grant.check(source, 1_800_000_000, |_| Some(0));
        }
    }
}

/// A key that decodes is the one that `has_key` means.
pub fn known_hosts_target(data: &[u8]) {
    for line in known_hosts::lines(data).flatten() {
        let _ = line.names("[host.example.com]:22", |_, _| [7; 20]);
        if let Ok(key) = line.key() {
            let decoded = PublicKey::from_blob(key.blob()).unwrap();
            assert_eq!(decoded, key);
            assert!(line.has_key(&key));
            let written = known_hosts::write_line("host", &key).unwrap();
            let again = known_hosts::lines(written.as_bytes()).next().unwrap();
            assert_eq!(again.unwrap().key().unwrap(), key);
        }
    }
}

/// A key that is taken is written as it was, and reads again.
pub fn key_target(data: &[u8]) {
    if let Ok(key) = PublicKey::from_blob(data) {
        assert_eq!(key.blob(), data);
        let _ = (key.material(), key.check_size(), key.ed25519());
        let line = key.to_string();
        assert_eq!(PublicKey::from_line(&line).unwrap().0, key);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok((key, _)) = PublicKey::from_line(text)
    {
        assert_eq!(PublicKey::from_blob(key.blob()).unwrap(), key);
    }
}

/// A signature that is taken apart goes together as the same bytes.
pub fn sshsig_target(data: &[u8]) {
    if let Ok(signature) = SshSig::decode(data) {
        assert_eq!(signature.encode(), data);
    }
}

/// Whatever sums say of an old file, each byte of the new one comes to be in one step, in few steps; where they are true,
/// the steps put the new file together. The first bytes say how: what comes when, how much of the rest is sums, and how much is
/// the old file, whose bytes the new one repeats.
pub fn copy_matcher_target(data: &[u8]) {
    let Some((&[manner, grow, part, copies, cut], rest)) = data.split_first_chunk() else {
        return;
    };
    let at = rest.len() * usize::from(part) / 255;
    let (seed, edits) = rest.split_at(at);
    // A small input makes files of some blocks.
    let old: Vec<u8> = seed
        .iter()
        .copied()
        .cycle()
        .take(seed.len() * usize::from(copies % 32))
        .collect();
    let middle = old.len() * usize::from(cut) / 255;
    let (before, after) = old.split_at(middle);
    let new = [before, edits, after].concat();
    let layout = copy::Layout::new(11, [old.len() as u64, 0]);
    let true_sums = manner & 1 == 0;
    let mut packed = Vec::new();
    for block in old.chunks(layout.block()) {
        let mut sum = copy::Sum::of(block);
        if !true_sums {
            sum.strong &= 3;
        }
        copy::Sums::push(&mut packed, &sum);
    }
    let mut sums = packed.chunks(copy::SUM_BYTES * (1 + usize::from(manner >> 4)));
    let mut matcher = copy::Matcher::new(layout, 0);
    let (mut at, mut end, mut made) = (0, 0, Vec::new());
    for steps in 0.. {
        assert!(steps < 100 + new.len() * 2 + packed.len());
        if manner & 2 == 0
            && let Some(sums) = sums.next()
        {
            matcher.extend(&copy::Sums::of(sums)).unwrap();
        }
        match matcher.step(&new[at..end], end == new.len()) {
            copy::Step::Sums => match sums.next() {
                Some(sums) => matcher.extend(&copy::Sums::of(sums)).unwrap(),
                None => matcher.complete(),
            },
            copy::Step::Bytes(len) => {
                assert!(len > end - at && len <= copy::WINDOW_BYTES_MAX && end < new.len());
                end = new.len().min(at + len + usize::from(grow));
            }
            copy::Step::Block { index, len } => {
                let place = layout.place(index, 1).unwrap();
                assert_eq!(place.len, len as u64);
                made.extend_from_slice(&old[usize::try_from(place.offset).unwrap()..][..len]);
                at += len;
            }
            copy::Step::New(len) => {
                made.extend_from_slice(&new[at..at + len]);
                at += len;
            }
            copy::Step::End => break,
        }
        assert!(at <= end);
    }
    assert_eq!((at, made.len()), (new.len(), new.len()));
    assert!(!true_sums || made == new);
}

/// A message of the file workers encodes to the same bytes again, and no beginning of it is one. Names
/// and patterns hold what they promise.
pub fn copy_target(data: &[u8]) {
    if let Ok(Some((message, len))) = copy::decode(data) {
        let mut again = Vec::new();
        copy::encode(&message, &mut again);
        assert_eq!(again, data[..len]);
        for end in 0..len.min(64) {
            assert_eq!(copy::decode(&data[..end]), Ok(None));
        }
        if let copy::Message::Basis(sums) = message {
            assert!(sums.len() <= copy::SUMS_PER_MESSAGE_MAX && sums.iter().count() == sums.len());
        }
    }
    if copy::name::check(data).is_ok() {
        assert!(!data.contains(&b'/') && !data.contains(&0) && data.len() <= 255);
        let temporary = copy::name::temporary(data, data.len() as u64);
        assert!(copy::name::is_temporary(&temporary) && temporary.len() <= 255);
    }
    assert!(!copy::name::shown(data).chars().any(char::is_control));
    let (pattern, text) = data.split_at(data.len() / 2);
    copy::glob::matches(pattern, text);
    copy::glob::matches_name(pattern, text);
    if !copy::glob::is_pattern(pattern) && !pattern.contains(&b'/') {
        assert!(
            copy::glob::matches(pattern, &copy::glob::literal(pattern)) || pattern.ends_with(b"\\")
        );
    }
    copy::glob::Excludes::new(vec![pattern.to_vec()]).leave_out(text, data.len().is_multiple_of(2));
}

/// Lengths that a framing of a fuzz target takes.
const FRAMING_BYTES_MAX: usize = 1000;

/// What a framing made of bytes that come in pieces of `piece`. Where the sender
/// would wait for an acknowledgement, a line end stands for its pause.
fn framing_story<F>(mut framing: F, bytes: &[u8], piece: usize) -> (Vec<F::Message>, String)
where
    F: Framing,
{
    let mut messages = Vec::new();
    for spoken in bytes.split_inclusive(|&byte| byte == b'\n') {
        let acknowledged = !framing.acknowledgement().is_empty() && spoken.ends_with(b"\n");
        let spoken = &spoken[..spoken.len() - usize::from(acknowledged)];
        for piece in spoken.chunks(piece) {
            let mut rest = piece;
            while !rest.is_empty() {
                match framing.decode(rest) {
                    Ok((len, message)) => {
                        assert!(len <= rest.len());
                        assert!(len == rest.len() || message.is_some());
                        messages.extend(message);
                        rest = &rest[len..];
                    }
                    Err(error) => return (messages, error.to_string()),
                }
            }
        }
        if acknowledged && framing.pause().unwrap() {
            let (len, message) = framing.decode(b"").unwrap();
            assert_eq!(len, 0);
            messages.extend(message);
        }
    }
    let begun = framing.has_begun();
    match framing.finish() {
        Ok(last) => {
            assert!(begun || last.is_none());
            messages.extend(last);
            (messages, String::new())
        }
        Err(error) => (messages, error.to_string()),
    }
}

/// Any split of the bytes gives the same messages.
fn framing_target<F>(framing: &F, data: &[u8]) -> Vec<F::Message>
where
    F: Framing<Message: PartialEq + std::fmt::Debug> + Clone,
{
    let whole = framing_story(framing.clone(), data, usize::MAX / 2);
    for piece in [1, 3, 13] {
        assert_eq!(framing_story(framing.clone(), data, piece), whole);
    }
    whole.0
}

/// Messages behind a length: what is taken, encodes to what came.
pub fn framing_int32_target(data: &[u8]) {
    for order in [ByteOrder::LittleEndian, ByteOrder::BigEndian] {
        let framing = Int32::new(order, FRAMING_BYTES_MAX);
        let mut again = Vec::new();
        for message in framing_target(&framing, data) {
            framing.encode(&message, &mut again).unwrap();
        }
        assert!(data.starts_with(&again));
    }
}

/// Messages behind a JSON header: what is taken, encodes to what reads as the same.
pub fn framing_headed_target(data: &[u8]) {
    for order in [ByteOrder::LittleEndian, ByteOrder::BigEndian] {
        let framing = Headed::new(order, FRAMING_BYTES_MAX);
        for message in framing_target(&framing, data) {
            let mut wire = Vec::new();
            framing
                .head_with(&message.header, &message.body, &mut wire)
                .unwrap();
            wire.extend_from_slice(&message.body);
            let (again, error) = framing_story(framing.clone(), &wire, 7);
            assert!(error.is_empty() && again.len() == 1);
            // Numbers may lose their last digit on the way through a float.
            assert!(again[0].header.keys().eq(message.header.keys()));
            assert_eq!(again[0].body, message.body);
        }
    }
}

/// Messages behind digits that are acknowledged.
pub fn framing_decimal_target(data: &[u8]) {
    for message in framing_target(&Decimal::new(FRAMING_BYTES_MAX), data) {
        assert!(message.len() <= FRAMING_BYTES_MAX);
    }
}

/// Messages before a delimiter; its first byte of input says how long the delimiter is.
pub fn framing_delimited_target(data: &[u8]) {
    let Some((&len, data)) = data.split_first() else {
        return;
    };
    let delimiter = &b"\r\n\r\n."[..1 + usize::from(len) % 5];
    let framing = Delimited::new(delimiter, FRAMING_BYTES_MAX).unwrap();
    let mut again = Vec::new();
    for message in framing_target(&framing, data) {
        assert!(message.len() <= FRAMING_BYTES_MAX);
        again.extend_from_slice(&message);
        again.extend_from_slice(delimiter);
    }
    // The last one may lack its delimiter.
    let shorter = &again[..again.len().saturating_sub(delimiter.len())];
    assert!(data.starts_with(&again) || data.starts_with(shorter));
}

/// A packet reads and writes as the same bytes; only a client is answered, never with
/// more bytes than it sent, and the answer is one that its client takes and no server.
pub fn ntp_target(data: &[u8]) {
    let clock = ntp::ClockState {
        leap: ntp::Leap::None,
        stratum: 2,
        precision: -20,
        root_delay: ntp::Short(1),
        root_dispersion: ntp::Short(1),
        reference_id: [127, 127, 1, 1],
    };
    let now = i128::from(u32::MAX) * 500_000_000;
    if let Some(packet) = ntp::Packet::decode(data) {
        assert_eq!(packet.encode(), data[..ntp::PACKET_BYTES]);
        let nonce = packet.origin.0;
        if let Ok(sample) = ntp::sample(data, nonce, now, now) {
            assert_eq!(sample.packet, packet);
            assert!(sample.delay >= 0 && sample.uncertainty >= sample.delay / 2);
        }
    }
    if let Some(answer) = ntp::answer(data, &clock, now, now) {
        assert!(answer.len() <= data.len());
        assert!(ntp::answer(&answer, &clock, now, now).is_none());
        let nonce = ntp::Packet::decode(data).unwrap().transmit.0;
        assert!(ntp::sample(&answer, nonce, now, now).is_ok());
    }
}
