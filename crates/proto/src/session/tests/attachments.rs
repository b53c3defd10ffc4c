//! Attachments: where their streams go on, which of them are wanted, and what is said of
//! output that was dropped.

use super::simulation::Pair;
use super::*;
use crate::limits::WINDOW_INITIAL;
use crate::message::{Attach, AttachFrom, Exit, Gap, Started};

fn attach() -> Attach {
    Attach {
        job: Some(JobId::from_bytes([1; 16])),
        ..Attach::default()
    }
}

/// An attachment that both sides know and that was answered with `started`.
fn attached(attach: &Attach, started: &Started) -> (Pair, Channel) {
    let mut pair = Pair::new(100_000, 0);
    let channel = pair.client.attach(attach).unwrap();
    // Where stdin goes on is not known yet.
    assert_eq!(pair.client.room(channel, Stream::Stdin), 0);
    assert_eq!(
        pair.client.put_end(channel, Stream::Stdin),
        Err(PutError::Closed)
    );
    pair.step(|_, session, channel, event| {
        assert!(matches!(event, Event::Attach(_)));
        session.started(channel, started);
    });
    pair.step(|_, _, _, event| assert!(matches!(event, Event::Started(_))));
    (pair, channel)
}

fn put(session: &mut Session, channel: Channel, stream: Stream, len: usize, end: bool) {
    let put = session.put_with(channel, stream, |_| Ok::<_, ()>((len, end)));
    assert_eq!(put, Ok((len, end)));
}

#[test]
fn an_attachment_goes_on_at_its_offsets() {
    let asked = Attach {
        stdout: Some(1 << 40),
        stderr: Some(5),
        ..attach()
    };
    let started = Started {
        stdin: 77,
        ..Started::default()
    };
    let (mut pair, channel) = attached(&asked, &started);
    for (stream, expected) in [(Stream::Stdout, 1 << 40), (Stream::Stderr, 5)] {
        let sending = pair.server.sending(channel, stream).unwrap();
        assert_eq!(sending.sent(), expected);
        put(&mut pair.server, channel, stream, 4, true);
    }
    let flow = pair.client.sending(channel, Stream::Stdin).unwrap();
    assert_eq!((flow.sent(), flow.room()), (77, WINDOW_INITIAL));
    put(&mut pair.client, channel, Stream::Stdin, 3, true);
    let mut data = Vec::new();
    pair.step(|_, session, channel, event| match event {
        Event::Data { stream, .. } => {
            data.push(session.receiving(channel, stream).unwrap().received());
        }
        other => panic!("{other:?}"),
    });
    data.sort_unstable();
    assert_eq!(data, [9, 80, (1 << 40) + 4]);
    let exit = Exit {
        stdin: 80,
        stdout: (1 << 40) + 4,
        stderr: 9,
        ..Exit::default()
    };
    pair.server.exit(channel, &exit);
    let mut exited = false;
    pair.step(|_, _, _, event| exited |= matches!(event, Event::Exit(_)));
    assert!(exited);
}

#[test]
fn a_stream_that_is_not_wanted_is_not_sent_and_not_compared() {
    let asked = Attach {
        stdout: None,
        from: AttachFrom::Start,
        stdin: false,
        ..attach()
    };
    let started = Started {
        stdin: 9,
        stdin_closed: true,
        stdout: Some(3),
        stderr: Some(100),
        ..Started::default()
    };
    let (mut pair, channel) = attached(&asked, &started);
    let closed = Err(PutError::Closed);
    assert_eq!(pair.server.put_end(channel, Stream::Stdout), closed);
    assert_eq!(pair.client.put_end(channel, Stream::Stdin), closed);
    assert_eq!(pair.server.room(channel, Stream::Stdout), 0);
    put(&mut pair.server, channel, Stream::Stderr, 4, true);
    let exit = |stderr| Exit {
        stdout: 1 << 50,
        stderr,
        ..Exit::default()
    };
    let wrong = message(channel.0, &exit(103));
    pair.step(|_, _, _, _| {});
    assert!(matches!(
        pair.client.next(&wrong),
        Err(SessionError::Incomplete(_))
    ));
    assert!(matches!(
        pair.client.next(&message(channel.0, &exit(104))),
        Ok(Step::Event(_, _, Event::Exit(_)))
    ));
    // A server that sends it nevertheless, or takes what nobody may send.
    let unwanted = data(Stream::Stdout, channel.0, b"x");
    assert!(pair.client.next(&unwanted).is_err());
    let input = data(Stream::Stdin, channel.0, b"x");
    assert!(pair.server.next(&input).is_err());
}

#[test]
fn output_cannot_begin_before_the_offset_that_was_asked_for() {
    let mut session = client();
    let asked = Attach {
        stdout: Some(10),
        ..attach()
    };
    let channel = session.attach(&asked).unwrap();
    let started = |stdout| Started {
        stdout: Some(stdout),
        ..Started::default()
    };
    let before = message(channel.0, &started(9));
    assert!(matches!(
        session.next(&before),
        Err(SessionError::NotPermitted(Kind::Started))
    ));
    let mut session = client();
    let channel = session.attach(&asked).unwrap();
    session.next(&message(channel.0, &started(11))).unwrap();
    let receiving = session.receiving(channel, Stream::Stdout).unwrap();
    assert_eq!(receiving.received(), 11);
}

#[test]
fn a_gap_moves_both_sides_and_leaves_a_window() {
    let (mut pair, channel) = attached(&attach(), &Started::default());
    put(&mut pair.server, channel, Stream::Stdout, 4, false);
    let gap = |offset| Gap {
        stream: Stream::Stdout,
        offset,
    };
    assert!(!pair.server.gap(channel, &gap(4)), "it leads nowhere");
    // Far past the window.
    let offset = 10 * WINDOW_INITIAL;
    assert!(pair.server.gap(channel, &gap(offset)));
    assert_eq!(pair.server.room(channel, Stream::Stdout), 0);
    let mut heard = Vec::new();
    pair.step(|_, session, channel, event| {
        let received = |session: &Session| {
            let flow = session.receiving(channel, Stream::Stdout).unwrap();
            (flow.received(), flow.backlog())
        };
        match event {
            Event::Data { .. } => heard.push(received(session)),
            Event::Gap(it) => {
                assert_eq!(it, gap(offset));
                heard.push(received(session));
            }
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(heard, [(4, 4), (offset, 4)], "what came before still waits");
    pair.client.consumed(channel, Stream::Stdout, 4);
    pair.step(|_, _, _, event| assert!(matches!(event, Event::Window(_))));
    assert!(pair.server.room(channel, Stream::Stdout) > 0);
    put(&mut pair.server, channel, Stream::Stdout, 5, true);
    pair.step(|_, _, _, _| {});
    let flow = pair.client.receiving(channel, Stream::Stdout).unwrap();
    assert_eq!(flow.received(), offset + 5);
    assert!(!pair.server.gap(channel, &gap(2 * offset)), "it has ended");
}

#[test]
fn a_gap_is_for_those_who_know_it_and_goes_forward() {
    let old = Hello {
        minor: 0,
        ..hello()
    };
    let mut handshake = ServerHandshake::new(&hello());
    handshake.next(&message(0, &old)).unwrap();
    handshake.next(&message(0, &auth())).unwrap();
    let mut server = handshake.granted(&Granted::default(), &());
    assert_eq!(server.minor(), 0);
    server.next(&start_frame(1)).unwrap();
    server.started(Channel(1), &Started::default());
    let gap = |offset| Gap {
        stream: Stream::Stdout,
        offset,
    };
    assert!(!server.gap(Channel(1), &gap(9)));

    let running = |hello: &Hello| {
        let mut session = Session::client(hello);
        let (start, payload) = start_of(5);
        session.start(&start, &payload).unwrap();
        for bytes in [
            message(0, &super::hello()),
            message(0, &Granted::default()),
            message(1, &Started::default()),
            data(Stream::Stdout, 1, b"1234"),
        ] {
            session.next(&bytes).unwrap();
        }
        session
    };
    assert!(matches!(
        running(&old).next(&message(1, &gap(9))),
        Err(SessionError::NotPermitted(Kind::Gap))
    ));
    for offset in [0, 3, 4] {
        assert!(matches!(
            running(&hello()).next(&message(1, &gap(offset))),
            Err(SessionError::Flow { .. })
        ));
    }
    let mut session = running(&hello());
    let far = message(1, &gap(u64::MAX));
    assert!(matches!(session.next(&far), Ok(Step::Event(..))));
    assert!(session.next(&data(Stream::Stdout, 1, b"x")).is_err());
}
