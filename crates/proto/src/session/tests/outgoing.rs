//! What a session says is well-formed whatever it was given, and its memory is given back.

use super::*;
use crate::frame::{self, Bound};
use crate::limits::{
    CHANNELS_MAX, CONTROL_OUT_MAX, CONTROL_OUT_PAUSE, HEADER_BYTES_MAX, JOBS_PER_MESSAGE_MAX,
    START_BYTES_MAX,
};
use crate::message::{
    Attach, Bye, Exit, JobRow, Jobs, List, MessageError, Ping, Refused, Signal, Started, Window,
};
use crate::outcome::{Happened, Outcome};

/// Every frame of a queue, with whether it is within the limits.
fn frames(mut bytes: &[u8]) -> Vec<(Kind, Channel, Vec<u8>)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (frame, len) = frame::decode(bytes, Bound::Authenticated).unwrap().unwrap();
        frames.push((frame.kind, frame.channel, frame.header.to_vec()));
        bytes = &bytes[len..];
    }
    frames
}

#[test]
fn long_lists_are_split_and_long_texts_are_cut() {
    let row = |text: &str| JobRow {
        job: Some(JobId::from_bytes([1; 16])),
        user: text.repeat(10_000),
        source: text.repeat(10_000),
        pid: i32::MIN,
        unix_ms: u64::MAX,
        command: text.repeat(100_000),
        outcome: Some(Outcome {
            started_ms: Some(u64::MAX),
            ended_ms: Some(u64::MAX),
            code: Some(i32::MIN),
            signal: Some(i32::MIN),
            core_dumped: true,
            kill: Some(crate::outcome::Kill::BestEffort),
            ..Outcome::failed(Happened::NotStarted, text.repeat(1000), text.repeat(10_000))
        }),
        waits: Some(text.repeat(1000)),
    };
    // A control character takes six bytes in JSON; an ö two that must not be parted.
    for text in ["\u{1}", "ö", "a"] {
        for (count, more) in [(0, false), (1, true), (32, false), (33, true), (200, false)] {
            let mut session = server();
            let jobs = vec![row(text); count];
            session.jobs(&Jobs { jobs, more });
            let sent: Vec<Jobs> = frames(session.outbox().control())
                .iter()
                .map(|(kind, channel, header)| {
                    assert_eq!((*kind, *channel), (Kind::Jobs, Channel::CONNECTION));
                    Jobs::from_header(header).unwrap()
                })
                .collect();
            let (last, before) = sent.split_last().unwrap();
            assert!(before.iter().all(|part| part.more && !part.jobs.is_empty()));
            assert_eq!(last.more, more);
            let rows: Vec<usize> = sent.iter().map(|part| part.jobs.len()).collect();
            assert_eq!(rows.iter().sum::<usize>(), count);
            assert!(rows.iter().all(|&rows| rows <= JOBS_PER_MESSAGE_MAX));
        }
    }
    let mut session = server();
    let short = JobRow {
        job: Some(JobId::from_bytes([1; 16])),
        ..JobRow::default()
    };
    let jobs = vec![short; JOBS_PER_MESSAGE_MAX];
    session.jobs(&Jobs { jobs, more: false });
    assert_eq!(frames(session.outbox().control()).len(), 1);
}

#[test]
fn texts_of_any_length_leave_whole_frames() {
    let long = "\u{7}".repeat(3_000_000);
    let mut session = server();
    let refused = Refused {
        code: long.clone(),
        message: long.clone(),
    };
    let exit = Exit {
        outcome: Outcome::failed(Happened::NotStarted, long.clone(), long.clone()),
        ..Exit::default()
    };
    let bye = Bye {
        code: long.clone(),
        message: long.clone(),
    };
    for channel in [1, 2] {
        session.next(&start_frame(channel)).unwrap();
    }
    session.refuse(Channel(1), &refused);
    session.exit(Channel(2), &exit);
    session.refuse(Channel::CONNECTION, &refused);
    session.bye(&bye);
    let sent = frames(session.outbox().bulk());
    let kinds: Vec<Kind> = sent.iter().map(|(kind, _, _)| *kind).collect();
    assert_eq!(kinds, [Kind::Refused, Kind::Exit, Kind::Refused, Kind::Bye]);
    assert!(sent.iter().all(|(.., header)| header.len() > 1000));

    let mut session = client();
    let signal = Signal {
        signal: 15,
        tree: true,
        job: Some(long.clone()),
    };
    session.signal(Channel::CONNECTION, &signal);
    assert_eq!(frames(session.outbox().control()).len(), 1);
    session.list(&List {
        job: Some(long.clone()),
        ..List::default()
    });
    assert_eq!(frames(session.outbox().control()).len(), 2);

    let mut handshake = ServerHandshake::new(&hello());
    handshake.refuse(&refused);
    assert_eq!(frames(handshake.outbox().control()).len(), 2);
}

#[test]
fn a_start_that_the_server_would_refuse_is_not_sent() {
    let mut session = client();
    let (start, payload) = start_of(START_BYTES_MAX);
    session.start(&start, &payload).unwrap();
    let sent = session.outbox().control().len();
    let mut whole = Vec::new();
    let mut server = server();
    let flight = session.outbox().control().to_vec();
    let mut at = 0;
    while at < flight.len() {
        match server.next(&flight[at..]).unwrap() {
            Step::Taken(len) => at += len,
            Step::Event(len, _, Event::Start(_, payload)) => {
                whole = payload;
                at += len;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(whole, payload);

    let (longer, payload) = start_of(START_BYTES_MAX + 1);
    assert!(matches!(
        session.start(&longer, &payload),
        Err(SessionError::Message(MessageError::StartTooLong(_)))
    ));
    let (start, payload) = start_of(9);
    assert!(matches!(
        session.start(&start, &payload[..8]),
        Err(SessionError::Message(MessageError::StartPayload))
    ));
    assert_eq!(session.outbox().control().len(), sent);
    assert_eq!(session.channels(), 1);
}

#[test]
fn channels_have_a_limit_on_both_sides() {
    let (start, payload) = start_of(5);
    let (mut asks, mut serves) = (client(), server());
    for channel in 1..=CHANNELS_MAX as u32 {
        assert_eq!(asks.start(&start, &payload).unwrap(), Channel(channel));
        serves.next(&start_frame(channel)).unwrap();
    }
    assert!(matches!(
        asks.start(&start, &payload),
        Err(SessionError::TooManyChannels)
    ));
    assert!(matches!(
        asks.attach(&Attach {
            job: start.job,
            ..Attach::default()
        }),
        Err(SessionError::TooManyChannels)
    ));
    assert!(matches!(
        serves.next(&start_frame(5_000)),
        Err(SessionError::TooManyChannels)
    ));
    serves.exit(Channel(3), &Exit::default());
    assert!(serves.next(&start_frame(5_000)).is_ok());
    // Numbers wrap around 0 and around those that are in use.
    asks.close(Channel(9));
    asks.next_channel = u32::MAX;
    assert_eq!(asks.start(&start, &payload).unwrap(), Channel(u32::MAX));
    asks.close(Channel(20));
    asks.close(Channel(21));
    assert_eq!(asks.start(&start, &payload).unwrap(), Channel(9));
    assert_eq!(asks.start(&start, &payload).unwrap(), Channel(20));
}

#[test]
fn streams_go_one_way_and_end_once() {
    let (mut asks, mut serves) = (client(), server());
    let (start, payload) = start_of(5);
    let channel = asks.start(&start, &payload).unwrap();
    serves.next(&start_frame(channel.0)).unwrap();
    serves.started(channel, &Started::default());
    let put = |session: &mut Session, stream| {
        session.put_with(channel, stream, |_| Ok::<_, ()>((1, false)))
    };
    for stream in [Stream::Stdout, Stream::Stderr] {
        assert_eq!(put(&mut asks, stream), Err(PutError::Closed));
        assert!(asks.sending(channel, stream).is_none());
        assert!(serves.receiving(channel, stream).is_none());
        assert_eq!(put(&mut serves, stream), Ok((1, false)));
        serves.put_end(channel, stream).unwrap();
        assert_eq!(put(&mut serves, stream), Err(PutError::Closed));
        assert_eq!(serves.put_end(channel, stream), Err(PutError::Closed));
    }
    assert_eq!(put(&mut serves, Stream::Stdin), Err(PutError::Closed));
    assert_eq!(
        serves.put_end(channel, Stream::Stdin),
        Err(PutError::Closed)
    );
    assert_eq!(put(&mut asks, Stream::Stdin), Ok((1, false)));
    // A source that fails leaves nothing behind.
    let bulk = asks.outbox().bulk().len();
    let failed = asks.put_with(channel, Stream::Stdin, |space| {
        space.fill(1);
        Err::<(usize, bool), _>("EIO")
    });
    assert_eq!(failed, Err(PutError::Source("EIO")));
    assert_eq!(asks.outbox().bulk().len(), bulk);
    assert_eq!(asks.sending(channel, Stream::Stdin).unwrap().sent(), 1);
}

#[test]
fn a_source_is_not_asked_where_there_is_no_room() {
    let mut asks = client();
    let (start, payload) = start_of(5);
    let channel = asks.start(&start, &payload).unwrap();
    while asks.room(channel, Stream::Stdin) > 0 {
        asks.put_with(channel, Stream::Stdin, |space| {
            Ok::<_, ()>((space.len(), false))
        })
        .unwrap();
    }
    // read(2) into no space gives 0, which would look like the end of the file.
    let put = asks.put_with(channel, Stream::Stdin, |space| {
        Ok::<_, ()>((0, space.is_empty()))
    });
    assert_eq!(put, Ok((0, false)));
    assert!(!asks.sending(channel, Stream::Stdin).unwrap().ended());
}

#[test]
fn the_last_frame_of_a_window_says_that_more_waits() {
    let mut asks = client();
    let (start, payload) = start_of(5);
    let channel = asks.start(&start, &payload).unwrap();
    let mut flags = Vec::new();
    while asks.sending(channel, Stream::Stdin).unwrap().room() > 0 {
        let room = asks.room(channel, Stream::Stdin);
        asks.put_with(channel, Stream::Stdin, |_| {
            Ok::<_, ()>((room.min(60_000), false))
        })
        .unwrap();
        flags.push(asks.outbox().bulk()[1]);
        asks.outbox().bulk_sent();
    }
    // 262,144 bytes are four frames of 60,000 and one of the rest, which fills the window.
    assert_eq!(flags, [0, 0, 0, 0, 2]);
}

#[test]
fn what_a_peer_asked_for_counts_and_what_we_ask_for_does_not() {
    // Refusals wait behind data; a peer that never reads them is made to wait.
    let mut serves = server();
    let refused = Refused {
        code: "bad_start".to_owned(),
        message: String::new(),
    };
    let mut asked = 0;
    while !serves.outbox().control_is_full() {
        serves.next(&start_frame(1)).unwrap();
        serves.refuse(Channel(1), &refused);
        asked += 1;
        assert!(asked < 100_000, "it could ask for ever");
    }
    assert!(serves.outbox().bulk().len() < CONTROL_OUT_PAUSE + HEADER_BYTES_MAX);
    serves.outbox().bulk_sent();
    assert!(!serves.outbox().control_is_full());

    // A client's starts are its own affair: it goes on reading meanwhile.
    let mut asks = client();
    let (start, payload) = start_of(START_BYTES_MAX);
    asks.start(&start, &payload).unwrap();
    assert!(!asks.outbox().control_is_full());
    // A server's pings are not.
    let ping = message(0, &Ping { id: 1 });
    let mut pings = 0;
    while !asks.outbox().control_is_full() {
        asks.next(&ping).unwrap();
        pings += 1;
        assert!(pings < 100_000);
    }
    // Whoever goes on all the same is stopped before it costs much.
    while asks.next(&ping).is_ok() {
        pings += 1;
        assert!(pings < 100_000);
    }
    assert!(matches!(asks.next(&ping), Err(SessionError::AnswersUnread)));
    let held = asks.outbox().control().len();
    assert!(held < CONTROL_OUT_MAX + START_BYTES_MAX + 2 * HEADER_BYTES_MAX);
    asks.outbox().control_sent();
    assert!(!asks.outbox().control_is_full());
    assert!(asks.next(&ping).is_ok());
}

#[test]
fn nothing_is_said_on_a_channel_that_is_closed() {
    let mut serves = server();
    let closed = Channel(9);
    serves.refuse(
        closed,
        &Refused {
            code: String::new(),
            message: String::new(),
        },
    );
    serves.exit(closed, &Exit::default());
    serves.started(closed, &Started::default());
    serves.consumed(closed, Stream::Stdin, 1 << 30);
    assert!(serves.outbox().is_empty());
    // `started` is said once.
    serves.next(&start_frame(1)).unwrap();
    serves.started(Channel(1), &Started::default());
    serves.started(Channel(1), &Started::default());
    assert_eq!(frames(serves.outbox().control()).len(), 1);
}

#[test]
fn big_buffers_are_given_back() {
    let mut asks = client();
    let (start, payload) = start_of(START_BYTES_MAX);
    let channel = asks.start(&start, &payload).unwrap();
    asks.outbox().control_sent();
    assert_eq!(asks.outbox().capacities(), (0, 0));
    asks.put_with(channel, Stream::Stdin, |_| Ok::<_, ()>((1, false)))
        .unwrap();
    asks.outbox().bulk_sent();
    asks.outbox().shrink();
    assert_eq!(asks.outbox().capacities(), (0, 0));
}

#[test]
fn a_program_that_reads_no_more_is_told_of() {
    let (mut asks, mut serves) = (client(), server());
    let (start, payload) = start_of(5);
    let channel = asks.start(&start, &payload).unwrap();
    serves.next(asks.outbox().control()).unwrap();
    asks.outbox().control_sent();
    asks.put_with(channel, Stream::Stdin, |_| Ok::<_, ()>((5, false)))
        .unwrap();
    serves.close_stdin(channel);
    asks.next(serves.outbox().control()).unwrap();
    serves.outbox().control_sent();
    let stdin = asks.sending(channel, Stream::Stdin).unwrap();
    assert_eq!(
        (stdin.closed(), stdin.ended(), stdin.acked()),
        (true, false, 0)
    );
    assert_eq!(asks.room(channel, Stream::Stdin), 0);
    assert_eq!(asks.put_end(channel, Stream::Stdin), Err(PutError::Closed));
    // What was on its way is still taken in, and a later window takes nothing back.
    serves.next(asks.outbox().bulk()).unwrap();
    let more = Window {
        stream: Stream::Stdin,
        acked: 5,
        limit: u64::MAX,
        closed: false,
    };
    asks.next(&message(channel.0, &more)).unwrap();
    assert_eq!(asks.room(channel, Stream::Stdin), 0);
    // Of output it means nothing: a server could not end a stream that it may not send.
    serves.started(channel, &Started::default());
    let output = Window {
        stream: Stream::Stdout,
        acked: 0,
        limit: 1 << 20,
        closed: true,
    };
    serves.next(&message(channel.0, &output)).unwrap();
    assert!(serves.room(channel, Stream::Stdout) > 0);
    assert_eq!(serves.put_end(channel, Stream::Stdout), Ok(()));
    // Nor is anything said of an input that has ended, or of a channel that is not there.
    let mut over = server();
    over.next(&start_frame(1)).unwrap();
    over.next(&frame(Kind::Stdin, Flags::END, 1, b"", b""))
        .unwrap();
    over.close_stdin(Channel(1));
    over.close_stdin(Channel(9));
    assert!(over.outbox().is_empty());
}
