//! A peer that does as it likes: lengths, offsets, parts of starts, keys given
//! twice, and bytes without any sense.

use super::*;
use crate::frame::FrameError;
use crate::limits::{
    CHANNELS_MAX, CONTROL_OUT_PAUSE, FRAME_BYTES_MAX, FRAME_BYTES_UNAUTHENTICATED_MAX,
    HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, START_BYTES_MAX, WINDOW_INITIAL,
};
use crate::message::{
    Attach, AttachFrom, Bye, Exit, Forget, Gap, JobRow, Jobs, List, MessageError, OnDisconnect,
    Ping, Pong, Pty, Refused, Resize, Signal, SpoolPolicy, Started, Window,
};
use crate::outcome::{Happened, Outcome};

fn start_part(flags: Flags, header: &Start, payload: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    frame(Kind::Start, flags, 1, &header, payload)
}

fn more(flags: Flags, payload: &[u8]) -> Vec<u8> {
    frame(Kind::Start, flags, 1, b"", payload)
}

/// What becomes of parts of a start: all but the last must be taken.
fn parts(frames: &[Vec<u8>]) -> Result<bool, SessionError> {
    let mut session = server();
    let (last, before) = frames.split_last().unwrap();
    for bytes in before {
        assert!(matches!(session.next(bytes), Ok(Step::Taken(len)) if len == bytes.len()));
    }
    let step = session.next(last)?;
    Ok(matches!(step, Step::Event(_, _, Event::Start(..))))
}

#[test]
fn parts_of_a_start_add_up_to_what_it_announced() {
    let (start, payload) = start_of(10);
    let first = |len: usize| start_part(Flags::NONE, &start, &payload[..len]);
    let wrong = |frames: &[Vec<u8>]| {
        assert!(matches!(
            parts(frames),
            Err(SessionError::Message(MessageError::StartPayload))
        ));
    };
    assert!(parts(&[start_part(Flags::END, &start, &payload)]).unwrap());
    assert!(
        parts(&[
            first(4),
            more(Flags::NONE, &payload[4..9]),
            more(Flags::END, b"\0")
        ])
        .unwrap()
    );
    // The end may come by itself.
    assert!(parts(&[first(10), more(Flags::END, b"")]).unwrap());
    // Too few, too many, and parts that carry nothing.
    wrong(&[start_part(Flags::END, &start, &payload[..9])]);
    wrong(&[first(4), more(Flags::END, &payload[4..9])]);
    wrong(&[start_part(Flags::END, &start, b"xxxxxxxxxx\0")]);
    wrong(&[first(4), more(Flags::NONE, b"xxxxxxx")]);
    wrong(&[first(0)]);
    wrong(&[first(4), more(Flags::NONE, b"")]);
    // A header on a later part, or none on the first.
    assert!(matches!(
        parts(&[first(4), first(4)]),
        Err(SessionError::NotPermitted(Kind::Start))
    ));
    assert!(matches!(
        parts(&[more(Flags::END, &payload)]),
        Err(SessionError::Message(MessageError::Header { .. }))
    ));
}

#[test]
fn starts_at_and_past_their_limits() {
    let (whole, _) = start_of(10);
    let check = |start: Start| {
        server()
            .next(&start_part(Flags::NONE, &start, b"x"))
            .map(|_| ())
    };
    let bytes = START_BYTES_MAX as u32;
    check(Start {
        bytes,
        ..whole.clone()
    })
    .unwrap();
    assert!(matches!(
        check(Start {
            bytes: bytes + 1,
            ..whole.clone()
        }),
        Err(SessionError::Message(MessageError::StartTooLong(_)))
    ));
    for start in [
        Start {
            args: 0,
            ..whole.clone()
        },
        Start {
            args: u32::MAX,
            vars: u32::MAX,
            cwd: true,
            ..whole.clone()
        },
    ] {
        assert!(matches!(
            check(start),
            Err(SessionError::Message(MessageError::StartPayload))
        ));
    }
    // An id is 32 hex digits, and it must be there.
    for job in [
        r#""00""#,
        r#""zz000000000000000000000000000000""#,
        "null",
        "7",
    ] {
        let header = format!(r#"{{"job":{job},"args":1,"bytes":1}}"#);
        let bytes = frame(Kind::Start, Flags::END, 1, header.as_bytes(), b"\0");
        assert!(server().next(&bytes).is_err(), "{job}");
    }
    let header = br#"{"args":1,"bytes":1}"#;
    assert!(
        server()
            .next(&frame(Kind::Start, Flags::END, 1, header, b"\0"))
            .is_err()
    );
}

#[test]
fn two_starts_do_not_interleave() {
    let (start, payload) = start_of(10);
    let mut session = server();
    session
        .next(&start_part(Flags::NONE, &start, &payload[..4]))
        .unwrap();
    assert!(matches!(
        session.next(&start_frame(2)),
        Err(SessionError::NotPermitted(Kind::Start))
    ));
    // Nor does a later part of one count for another.
    let elsewhere = frame(Kind::Start, Flags::END, 2, b"", &payload[4..]);
    let mut session = server();
    session
        .next(&start_part(Flags::NONE, &start, &payload[..4]))
        .unwrap();
    assert!(matches!(
        session.next(&elsewhere),
        Err(SessionError::NotPermitted(Kind::Start))
    ));
    // Whatever else the connection says meanwhile is heard.
    let mut session = server();
    session.next(&start_frame(2)).unwrap();
    session
        .next(&start_part(Flags::NONE, &start, &payload[..4]))
        .unwrap();
    for bytes in [message(0, &Ping { id: 1 }), data(Stream::Stdin, 2, b"x")] {
        assert!(matches!(session.next(&bytes), Ok(Step::Event(..))));
    }
    assert!(matches!(
        session.next(&more(Flags::END, &payload[4..])),
        Ok(Step::Event(_, Channel(1), Event::Start(..)))
    ));
}

#[test]
fn a_program_without_stdin_gets_none() {
    let (start, payload) = start_of(5);
    let start = Start {
        null_stdin: true,
        ..start
    };
    for flags in [Flags::NONE, Flags::END] {
        let mut session = server();
        session
            .next(&start_part(Flags::END, &start, &payload))
            .unwrap();
        let bytes = frame(Kind::Stdin, flags, 1, b"", b"");
        assert!(matches!(
            session.next(&bytes),
            Err(SessionError::Flow {
                source: FlowError::PastEnd,
                ..
            })
        ));
    }
    let mut session = client();
    let channel = session.start(&start, &payload).unwrap();
    assert_eq!(session.room(channel, Stream::Stdin), 0);
    assert_eq!(
        session.put_end(channel, Stream::Stdin),
        Err(PutError::Closed)
    );
}

#[test]
fn data_past_its_limit_or_its_end() {
    let chunk = vec![0; PAYLOAD_BYTES_MAX];
    let full = || {
        let mut session = server();
        session.next(&start_frame(1)).unwrap();
        for _ in 0..WINDOW_INITIAL / PAYLOAD_BYTES_MAX as u64 {
            session.next(&data(Stream::Stdin, 1, &chunk)).unwrap();
        }
        session
    };
    assert!(matches!(
        full().next(&data(Stream::Stdin, 1, b"x")),
        Err(SessionError::Flow {
            channel: Channel(1),
            stream: Stream::Stdin,
            source: FlowError::PastLimit { end, limit: WINDOW_INITIAL },
        }) if end == WINDOW_INITIAL + 1
    ));
    // No more bytes, but the end may come: it takes no room.
    let mut session = full();
    session
        .next(&frame(Kind::Stdin, Flags::END, 1, b"", b""))
        .unwrap();
    for bytes in [
        data(Stream::Stdin, 1, b""),
        frame(Kind::Stdin, Flags::END, 1, b"", b""),
    ] {
        assert!(matches!(
            session.next(&bytes),
            Err(SessionError::Flow {
                source: FlowError::PastEnd,
                ..
            })
        ));
    }
}

#[test]
fn a_window_that_goes_back_or_the_wrong_way() {
    let sent = 1000;
    let with = |stream, acked, limit| {
        let mut session = server();
        session.next(&start_frame(1)).unwrap();
        session.started(Channel(1), &Started::default());
        let put = session.put_with(Channel(1), Stream::Stdout, |_| Ok::<_, ()>((1000, false)));
        assert_eq!(put, Ok((1000, false)));
        let first = Window {
            stream: Stream::Stdout,
            acked: 500,
            limit: WINDOW_INITIAL + 500,
            closed: false,
        };
        session.next(&message(1, &first)).unwrap();
        session
            .next(&message(
                1,
                &Window {
                    stream,
                    acked,
                    limit,
                    closed: false,
                },
            ))
            .map(|_| ())
    };
    let limit = WINDOW_INITIAL + 500;
    // The same again, more, and all there is.
    with(Stream::Stdout, 500, limit).unwrap();
    with(Stream::Stdout, sent, limit + 1).unwrap();
    with(Stream::Stdout, sent, u64::MAX).unwrap();
    with(Stream::Stderr, 0, WINDOW_INITIAL).unwrap();
    for (stream, acked, limit) in [
        (Stream::Stdout, 499, limit),
        (Stream::Stdout, 500, limit - 1),
        (Stream::Stdout, sent + 1, limit),
        (Stream::Stdout, u64::MAX, u64::MAX),
        (Stream::Stderr, 1, WINDOW_INITIAL),
        (Stream::Stderr, 0, 0),
    ] {
        assert!(
            matches!(
                with(stream, acked, limit),
                Err(SessionError::Flow {
                    source: FlowError::BadWindow,
                    ..
                })
            ),
            "{stream:?} {acked} {limit}"
        );
    }
    assert!(matches!(
        with(Stream::Stdin, 0, WINDOW_INITIAL),
        Err(SessionError::NotPermitted(Kind::Window))
    ));
    // Endless credit does not make the outbox endless.
    let mut session = server();
    session.next(&start_frame(1)).unwrap();
    session.started(Channel(1), &Started::default());
    let all = Window {
        stream: Stream::Stdout,
        acked: 0,
        limit: u64::MAX,
        closed: false,
    };
    session.next(&message(1, &all)).unwrap();
    let mut put = 0;
    while session.room(Channel(1), Stream::Stdout) > 0 {
        assert!(put < 1 << 20, "the outbox takes without end");
        let all = |space: &mut [u8]| Ok::<_, ()>((space.len(), false));
        put += session.put_with(Channel(1), Stream::Stdout, all).unwrap().0;
    }
    assert_eq!(put, 2 * PAYLOAD_BYTES_MAX);
}

#[test]
fn an_outcome_before_all_of_the_output_is_not_believed() {
    let with = |stdout, stderr| {
        let mut session = client();
        let (start, payload) = start_of(5);
        session.start(&start, &payload).unwrap();
        session.next(&message(1, &Started::default())).unwrap();
        session.next(&data(Stream::Stdout, 1, b"abc")).unwrap();
        let exit = Exit {
            stdout,
            stderr,
            ..Exit::default()
        };
        session.next(&message(1, &exit)).map(|_| ())
    };
    with(3, 0).unwrap();
    for (stdout, stderr) in [(4, 0), (2, 0), (3, 1), (0, 3), (u64::MAX, 0)] {
        assert!(matches!(
            with(stdout, stderr),
            Err(SessionError::Incomplete(Channel(1)))
        ));
    }
}

#[test]
fn lengths_past_their_limits_are_known_by_the_prelude() {
    let long = |kind, header_len: usize, payload_len: usize| {
        Prelude {
            kind,
            flags: Flags::NONE,
            header_len: header_len as u16,
            channel: Channel(0),
            payload_len: payload_len as u32,
        }
        .encode()
    };
    let frame_error = |result: Result<_, SessionError>| match result {
        Err(SessionError::Frame(error)) => error,
        other => panic!("{other:?}"),
    };
    for mut session in [server(), client()] {
        let header = long(Kind::Ping, HEADER_BYTES_MAX + 1, 0);
        let found = frame_error(session.next(&header).map(|_| ()));
        assert_eq!(found, FrameError::HeaderTooLong(HEADER_BYTES_MAX + 1));
        let payload = long(Kind::Ping, 0, PAYLOAD_BYTES_MAX + 1);
        let found = frame_error(session.next(&payload).map(|_| ()));
        assert_eq!(found, FrameError::PayloadTooLong(PAYLOAD_BYTES_MAX + 1));
        let most = long(Kind::Ping, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX);
        assert!(matches!(session.next(&most), Ok(Step::NeedMore)));
    }
    // Before the grant both sides keep to the smaller limit.
    let payload = FRAME_BYTES_UNAUTHENTICATED_MAX - 12 - 4;
    let most = long(Kind::Hello, 4, payload);
    let past = long(Kind::Hello, 4, payload + 1);
    let error = FrameError::UnauthenticatedTooLong(FRAME_BYTES_UNAUTHENTICATED_MAX + 1);
    let mut handshake = ServerHandshake::new(&hello());
    assert_eq!(handshake.next(&most).unwrap(), (0, ServerEvent::NeedMore));
    assert_eq!(frame_error(handshake.next(&past).map(|_| ())), error);
    let mut session = Session::client(&hello());
    assert!(matches!(session.next(&most), Ok(Step::NeedMore)));
    assert_eq!(frame_error(session.next(&past).map(|_| ())), error);
}

/// Every kind's header in full, all optional keys included.
pub(super) fn full_headers() -> Vec<(Kind, serde_json::Value)> {
    fn value<M: Message>(message: &M) -> (Kind, serde_json::Value) {
        (M::KIND, serde_json::to_value(message).unwrap())
    }
    let job = Some(JobId::from_bytes([1; 16]));
    let text = || "text".to_owned();
    let outcome = Outcome {
        code: Some(1),
        signal: Some(2),
        core_dumped: true,
        kill: Some(crate::outcome::Kill::Exact),
        started_ms: Some(3),
        ended_ms: Some(4),
        ..Outcome::failed(Happened::NotStarted, "code", "message")
    };
    let hello = Hello {
        software: text(),
        nonce: Some(text()),
        kinds: vec![1],
        minor: 1,
        ..hello()
    };
    let start = Start {
        job,
        args: 1,
        vars: 1,
        cwd: true,
        bytes: 8,
        shell: true,
        null_stdin: true,
        timeout_ms: Some(1),
        wait_output: true,
        on_disconnect: OnDisconnect::Keep,
        grace_ms: Some(2),
        detach: true,
        spool: SpoolPolicy::DropOldest,
        spool_bytes: Some(3),
        pty: Some(Pty {
            term: text(),
            cols: 1,
            rows: 2,
            stderr_pipe: true,
        }),
        login: true,
    };
    let row = JobRow {
        job,
        outcome: Some(outcome.clone()),
        waits: Some(text()),
        ..JobRow::default()
    };
    vec![
        value(&hello),
        value(&auth()),
        value(&Granted {
            user: text(),
            mac: Some(text()),
        }),
        value(&Refused {
            code: text(),
            message: text(),
        }),
        value(&start),
        value(&Started {
            pid: 1,
            unix_ms: 2,
            stdin: 3,
            stdin_closed: true,
            stdout: Some(4),
            stderr: Some(5),
            pty: true,
        }),
        value(&Attach {
            job,
            stdout: Some(1),
            stderr: Some(2),
            from: AttachFrom::Since,
            since_ms: Some(3),
            stdin: false,
        }),
        value(&Signal {
            signal: 1,
            tree: true,
            job: Some(text()),
        }),
        value(&Resize { cols: 1, rows: 2 }),
        value(&Window {
            stream: Stream::Stdin,
            acked: 0,
            limit: 1,
            closed: true,
        }),
        value(&Exit {
            outcome,
            stdin: 1,
            stdout: 2,
            stderr: 3,
        }),
        value(&Forget { job }),
        value(&List {
            ended: true,
            count: 1,
            job: Some(text()),
        }),
        value(&Jobs {
            jobs: vec![row],
            more: true,
        }),
        value(&Gap {
            stream: Stream::Stdout,
            offset: 1,
        }),
        value(&Ping { id: 1 }),
        value(&Pong { id: 1 }),
        value(&Bye {
            code: text(),
            message: text(),
        }),
    ]
}

/// Whether a header is one of its kind.
pub(super) fn reads(kind: Kind, header: &str) -> bool {
    let header = header.as_bytes();
    match kind {
        Kind::Hello => Hello::from_header(header).is_ok(),
        Kind::Auth => Auth::from_header(header).is_ok(),
        Kind::Granted => Granted::from_header(header).is_ok(),
        Kind::Refused => Refused::from_header(header).is_ok(),
        Kind::Start => Start::from_header(header).is_ok(),
        Kind::Started => Started::from_header(header).is_ok(),
        Kind::Attach => Attach::from_header(header).is_ok(),
        Kind::Signal => Signal::from_header(header).is_ok(),
        Kind::Resize => Resize::from_header(header).is_ok(),
        Kind::Window => Window::from_header(header).is_ok(),
        Kind::Exit => Exit::from_header(header).is_ok(),
        Kind::Forget => Forget::from_header(header).is_ok(),
        Kind::List => List::from_header(header).is_ok(),
        Kind::Jobs => Jobs::from_header(header).is_ok(),
        Kind::Gap => Gap::from_header(header).is_ok(),
        Kind::Ping => Ping::from_header(header).is_ok(),
        Kind::Pong => Pong::from_header(header).is_ok(),
        Kind::Bye => Bye::from_header(header).is_ok(),
        Kind::Stdin | Kind::Stdout | Kind::Stderr => panic!("data has no header"),
    }
}

/// The same JSON with one key of one object given twice, for every key of every object.
fn with_a_key_twice(value: &serde_json::Value) -> Vec<String> {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let part = |key: &str, inner: &str| format!("{}:{inner}", Value::from(key));
            let plain: Vec<String> = map.iter().map(|(k, v)| part(k, &v.to_string())).collect();
            let mut all = Vec::new();
            for (at, (key, inner)) in map.iter().enumerate() {
                for twice in with_a_key_twice(inner) {
                    let mut parts = plain.clone();
                    parts[at] = part(key, &twice);
                    all.push(format!("{{{}}}", parts.join(",")));
                }
                let again = [&plain[..], &plain[at..=at]].concat();
                all.push(format!("{{{}}}", again.join(",")));
            }
            all
        }
        Value::Array(items) => items
            .iter()
            .flat_map(with_a_key_twice)
            .map(|item| format!("[{item}]"))
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn a_known_key_twice_is_an_error_in_every_message_and_an_unknown_one_is_ignored() {
    let headers = full_headers();
    let mut tried = 0;
    for &kind in Kind::ALL {
        let header = headers.iter().find(|header| header.0 == kind);
        let Some((_, header)) = header else {
            assert!(kind.stream().is_some(), "{kind:?} has no sample");
            continue;
        };
        let text = header.to_string();
        assert!(reads(kind, &text), "{text}");
        for twice in with_a_key_twice(header) {
            assert!(!reads(kind, &twice), "{twice}");
            tried += 1;
        }
        let grown = text.replacen('{', r#"{"later":{"deep":[1,2]},"#, 1);
        assert!(reads(kind, &grown), "{grown}");
        let comment = format!("{text} x");
        // In an array the values would still be in their order.
        let values: Vec<String> = header
            .as_object()
            .unwrap()
            .values()
            .map(ToString::to_string)
            .collect();
        let array = format!("[{}]", values.join(","));
        for wrong in ["", "{", "[]", "null", "7", "\"x\"", &comment, &array] {
            assert!(!reads(kind, wrong), "{kind:?} {wrong}");
        }
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn deep_json_is_refused_and_not_recursed_into() {
    let deep = format!(r#"{{"later":{}"#, "[".repeat(16_000));
    let bytes = frame(Kind::Ping, Flags::NONE, 0, deep.as_bytes(), b"");
    assert!(server().next(&bytes).is_err());
}

/// One thing that a hostile peer says: often well-formed, often changed a little.
fn anything(random: &mut Random, seen: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seen[random.size(seen.len())].clone();
    match random.below(6) {
        0 => (0..random.size(200))
            .map(|_| random.number() as u8)
            .collect(),
        1 => {
            for _ in 0..1 + random.size(4) {
                let at = random.size(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            bytes
        }
        2 => {
            // Another channel, another number of flags.
            let channel = random.below(6) as u32;
            bytes[4..8].copy_from_slice(&channel.to_le_bytes());
            bytes[1] = random.below(4) as u8;
            bytes
        }
        _ => bytes,
    }
}

/// Frames for both roles, to start from.
fn dictionary() -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = full_headers()
        .iter()
        .map(|(kind, header)| {
            let on = match kind {
                Kind::Started
                | Kind::Attach
                | Kind::Resize
                | Kind::Window
                | Kind::Exit
                | Kind::Gap => 1,
                _ => 0,
            };
            frame(*kind, Flags::NONE, on, header.to_string().as_bytes(), b"")
        })
        .collect();
    for channel in [1, 2] {
        frames.push(start_frame(channel));
        for stream in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
            frames.push(data(stream, channel, &[7; 900]));
        }
    }
    let (start, payload) = start_of(3000);
    frames.push(start_part(Flags::NONE, &start, &payload[..1000]));
    frames.push(more(Flags::NONE, &payload[..1000]));
    frames.push(more(Flags::END, &payload[2000..]));
    frames
}

/// What a session holds stays within what is promised.
fn check_bounds(session: &mut Session) {
    assert!(session.channels() <= CHANNELS_MAX);
    assert!(session.pending_bytes() <= 2 * START_BYTES_MAX);
    let answers = CONTROL_OUT_PAUSE + FRAME_BYTES_MAX;
    assert!(session.outbox().control().len() <= answers);
    assert!(session.outbox().bulk().len() <= answers);
}

#[test]
fn bytes_without_sense_neither_panic_nor_grow() {
    let seen = dictionary();
    let mut outcomes = [0_u64; 3];
    for seed in seeds(3_000) {
        eprintln!("seed {seed}");
        let mut random = Random::new(seed);
        let mut session = if random.one_in(2) { server() } else { client() };
        if random.one_in(2) {
            let (start, payload) = start_of(5);
            let _ = session.start(&start, &payload);
            session.outbox().control_sent();
        }
        let mut input = Vec::new();
        for _ in 0..200 {
            if session.outbox().control_is_full() {
                break;
            }
            input.extend(anything(&mut random, &seen));
            let (len, answer) = match session.next(&input) {
                Ok(Step::NeedMore) if input.len() <= FRAME_BYTES_MAX => {
                    outcomes[0] += 1;
                    continue;
                }
                Ok(Step::NeedMore) => panic!("more than a whole frame was there"),
                Ok(Step::Taken(len)) => (len, None),
                Ok(Step::Event(len, channel, event)) => {
                    let ask = matches!(event, Event::Start(..) | Event::Attach(_));
                    (len, ask.then_some(channel))
                }
                Err(_) => {
                    outcomes[1] += 1;
                    break;
                }
            };
            assert!((12..=input.len()).contains(&len));
            outcomes[2] += 1;
            input.drain(..len);
            if let Some(channel) = answer {
                match random.below(3) {
                    0 => session.started(channel, &Started::default()),
                    1 => session.exit(channel, &Exit::default()),
                    _ => {}
                }
            }
            check_bounds(&mut session);
        }
    }
    assert!(outcomes.iter().all(|&count| count > 100), "{outcomes:?}");
}

#[test]
fn bytes_without_sense_before_the_grant() {
    let seen = dictionary();
    let mut let_in = 0;
    for seed in seeds(2_000) {
        eprintln!("seed {seed}");
        let mut random = Random::new(seed);
        let mut handshake = ServerHandshake::new(&hello());
        let mut input = Vec::new();
        for _ in 0..20 {
            input.extend(anything(&mut random, &seen));
            match handshake.next(&input) {
                Ok((len, event)) => {
                    let_in += u64::from(matches!(event, ServerEvent::Hello(_)));
                    input.drain(..len);
                }
                Err(_) => break,
            }
        }
        assert!(handshake.outbox().control().len() < 1024);
    }
    assert!(let_in > 10, "{let_in}");
}
