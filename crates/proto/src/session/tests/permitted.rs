//! Every kind, on every sort of channel, in every phase, to each side: what is
//! taken, what is ignored, and which error the rest is.

use super::*;
use crate::auth::ProofJson;
use crate::limits::WINDOW_INITIAL;
use crate::message::{
    Attach, Bye, Exit, Forget, Gap, Jobs, List, Ping, Pong, Refused, Resize, Signal, Started,
    Window,
};

/// What a session makes of one frame.
///
/// `e` an event, `t` taken and nothing to act on, `n` not looked at,
/// `p` not permitted, `c` not on this channel.
fn verdict(result: Result<Step<'_>, SessionError>) -> char {
    match result {
        Ok(Step::Event(..)) => 'e',
        Ok(Step::Taken(_)) => 't',
        Ok(Step::NeedMore) => 'n',
        Err(SessionError::NotPermitted(_)) => 'p',
        Err(SessionError::Channel(_)) => 'c',
        Err(other) => panic!("{other:?}"),
    }
}

/// A well-formed frame of each kind. `window` is for the stream that the other
/// side may give credit for.
fn sample(kind: Kind, channel: u32, window: Stream) -> Vec<u8> {
    let job = Some(JobId::from_bytes([1; 16]));
    match kind {
        Kind::Stdin | Kind::Stdout | Kind::Stderr => frame(kind, Flags::NONE, channel, b"", b"x"),
        Kind::Hello => message(channel, &hello()),
        Kind::Auth => message(channel, &auth()),
        Kind::Granted => message(channel, &Granted::default()),
        Kind::Refused => {
            let (code, text) = ("draining".to_owned(), String::new());
            message(
                channel,
                &Refused {
                    code,
                    message: text,
                },
            )
        }
        Kind::Start => start_frame(channel),
        Kind::Started => message(channel, &Started::default()),
        Kind::Attach => message(
            channel,
            &Attach {
                job,
                ..Attach::default()
            },
        ),
        Kind::Signal => message(channel, &Signal::default()),
        Kind::Resize => message(channel, &Resize { cols: 1, rows: 1 }),
        Kind::Window => {
            let limit = WINDOW_INITIAL;
            message(
                channel,
                &Window {
                    stream: window,
                    acked: 0,
                    limit,
                    closed: false,
                },
            )
        }
        Kind::Exit => message(channel, &Exit::default()),
        Kind::Forget => message(channel, &Forget { job }),
        Kind::List => message(channel, &List::default()),
        Kind::Jobs => message(channel, &Jobs::default()),
        Kind::Gap => {
            let (stream, offset) = (Stream::Stdout, 7);
            message(channel, &Gap { stream, offset })
        }
        Kind::Ping => message(channel, &Ping { id: 1 }),
        Kind::Pong => message(channel, &Pong { id: 1 }),
        Kind::Bye => message(channel, &Bye::default()),
    }
}

/// Channels of the tables: the connection, one that nobody opened, one whose
/// start is not whole, one that was asked for, one that runs, one that an attach
/// asked for, one that runs again after an attach, one that has ended.
const CONNECTION: u32 = 0;
const FRESH: u32 = 9;
const STARTING: u32 = 1;
const ASKED: u32 = 2;
const RUNNING: u32 = 3;
const ATTACHING: u32 = 4;
const ATTACHED: u32 = 5;
const ENDED: u32 = 6;

fn attach_to(_channel: u32) -> Attach {
    Attach {
        job: Some(JobId::from_bytes([1; 16])),
        ..Attach::default()
    }
}

/// A server that has one of each; without [`STARTING`] unless it is asked for,
/// because a half start forbids any other.
fn busy_server(starting: bool) -> Session {
    let mut session = server();
    for channel in [ASKED, RUNNING, ENDED] {
        session.next(&start_frame(channel)).unwrap();
    }
    for channel in [ATTACHING, ATTACHED] {
        session
            .next(&message(channel, &attach_to(channel)))
            .unwrap();
    }
    session.started(Channel(RUNNING), &Started::default());
    session.started(Channel(ATTACHED), &Started::default());
    session.exit(Channel(ENDED), &Exit::default());
    if starting {
        let (start, payload) = start_of(5);
        let header = serde_json::to_vec(&start).unwrap();
        let half = frame(Kind::Start, Flags::NONE, STARTING, &header, &payload[..2]);
        assert!(matches!(session.next(&half), Ok(Step::Taken(_))));
    }
    session
}

/// A client that has one of each.
fn busy_client() -> Session {
    let mut session = client();
    let (start, payload) = start_of(5);
    for channel in [ASKED, RUNNING, ENDED] {
        session.next_channel = channel;
        session.start(&start, &payload).unwrap();
    }
    for channel in [ATTACHING, ATTACHED] {
        session.next_channel = channel;
        session.attach(&attach_to(channel)).unwrap();
    }
    for channel in [RUNNING, ATTACHED] {
        let started = message(channel, &Started::default());
        assert!(matches!(session.next(&started), Ok(Step::Event(..))));
    }
    assert!(session.close(Channel(ENDED)));
    session
}

#[test]
fn an_open_server_takes_this() {
    let columns = [
        CONNECTION, FRESH, STARTING, ASKED, RUNNING, ATTACHING, ATTACHED, ENDED,
    ];
    // In the order of the columns.
    let table = [
        (Kind::Stdin, "ctpeepet"),
        (Kind::Stdout, "pppppppp"),
        (Kind::Stderr, "pppppppp"),
        (Kind::Hello, "pppppppp"),
        (Kind::Auth, "pppppppp"),
        (Kind::Granted, "pppppppp"),
        (Kind::Refused, "pppppppp"),
        (Kind::Start, "cepcccce"),
        (Kind::Started, "pppppppp"),
        (Kind::Attach, "cepcccce"),
        (Kind::Signal, "etpeeeet"),
        (Kind::Resize, "ctpeeeet"),
        (Kind::Window, "ctpeeeet"),
        (Kind::Exit, "pppppppp"),
        (Kind::Forget, "ecpccccc"),
        (Kind::List, "ecpccccc"),
        (Kind::Jobs, "pppppppp"),
        (Kind::Gap, "pppppppp"),
        (Kind::Ping, "ecpccccc"),
        (Kind::Pong, "ecpccccc"),
        (Kind::Bye, "ecpccccc"),
    ];
    assert!(table.iter().map(|row| row.0).eq(Kind::ALL.iter().copied()));
    for (kind, expected) in table {
        let found: String = columns
            .iter()
            .map(|&channel| {
                let mut session = busy_server(channel == STARTING);
                verdict(session.next(&sample(kind, channel, Stream::Stdout)))
            })
            .collect();
        assert_eq!(found, expected, "{kind:?}");
    }
}

#[test]
fn an_open_client_takes_this() {
    let columns = [
        CONNECTION, FRESH, ASKED, RUNNING, ATTACHING, ATTACHED, ENDED,
    ];
    let table = [
        (Kind::Stdin, "ppppppp"),
        (Kind::Stdout, "ccpepec"),
        (Kind::Stderr, "ccpepec"),
        (Kind::Hello, "ppppppp"),
        (Kind::Auth, "ppppppp"),
        (Kind::Granted, "ppppppp"),
        (Kind::Refused, "eceeeec"),
        (Kind::Start, "ppppppp"),
        (Kind::Started, "ccepepc"),
        (Kind::Attach, "ppppppp"),
        (Kind::Signal, "ppppppp"),
        (Kind::Resize, "ppppppp"),
        (Kind::Window, "cceeeec"),
        (Kind::Exit, "cceeeec"),
        (Kind::Forget, "ppppppp"),
        (Kind::List, "ppppppp"),
        (Kind::Jobs, "ecccccc"),
        (Kind::Gap, "ccpepec"),
        (Kind::Ping, "ecccccc"),
        (Kind::Pong, "ecccccc"),
        (Kind::Bye, "ecccccc"),
    ];
    assert!(table.iter().map(|row| row.0).eq(Kind::ALL.iter().copied()));
    for (kind, expected) in table {
        let found: String = columns
            .iter()
            .map(|&channel| {
                let mut session = busy_client();
                verdict(session.next(&sample(kind, channel, Stream::Stdin)))
            })
            .collect();
        assert_eq!(found, expected, "{kind:?}");
    }
}

#[test]
fn before_the_grant_little_is_taken() {
    // What a client has said, then what each side takes next.
    for &kind in Kind::ALL {
        let bytes = sample(kind, 0, Stream::Stdin);
        let serve = |said: &[Vec<u8>]| {
            let mut handshake = ServerHandshake::new(&hello());
            for bytes in said {
                handshake.next(bytes).unwrap();
            }
            match handshake.next(&bytes) {
                Ok((0, ServerEvent::NeedMore)) => 'n',
                Ok((len, _)) if len == bytes.len() => 'e',
                Err(SessionError::NotPermitted(at)) if at == kind => 'p',
                other => panic!("{other:?}"),
            }
        };
        let expected = match kind {
            Kind::Hello => "epn",
            Kind::Auth => "pen",
            Kind::Bye => "een",
            _ => "ppn",
        };
        let hello_frame = message(0, &hello());
        let found: String = [
            &[][..],
            std::slice::from_ref(&hello_frame),
            &[hello_frame.clone(), message(0, &auth())],
        ]
        .into_iter()
        .map(serve)
        .collect();
        assert_eq!(found, expected, "a server, {kind:?}");

        let ask = |said: &[Vec<u8>]| {
            let mut session = Session::client(&hello());
            let (start, payload) = start_of(5);
            session.start(&start, &payload).unwrap();
            for bytes in said {
                session.next(bytes).unwrap();
            }
            [0, 1].map(|channel| verdict(session.next(&sample(kind, channel, Stream::Stdin))))
        };
        let found: String = [&[][..], &[hello_frame]]
            .into_iter()
            .flat_map(ask)
            .collect();
        // Before hello and before granted, each on the connection and on a channel.
        let expected = match kind {
            Kind::Hello => "eppp",
            Kind::Granted => "ppep",
            Kind::Refused => "ppee",
            Kind::Bye => "ppec",
            _ => "pppp",
        };
        assert_eq!(found, expected, "a client, {kind:?}");
    }
}

#[test]
fn before_the_grant_only_the_connection_is_spoken_on_and_nothing_has_a_payload() {
    for bytes in [
        message(1, &hello()),
        frame(
            Kind::Hello,
            Flags::NONE,
            0,
            br#"{"protocol":"bowline/1"}"#,
            b"x",
        ),
    ] {
        let mut handshake = ServerHandshake::new(&hello());
        assert!(matches!(
            handshake.next(&bytes),
            Err(SessionError::NotPermitted(Kind::Hello))
        ));
        let mut session = Session::client(&hello());
        assert!(session.next(&bytes).is_err());
    }
    let other = Hello {
        protocol: "bowline/2".to_owned(),
        ..hello()
    };
    let mut handshake = ServerHandshake::new(&hello());
    assert!(matches!(
        handshake.next(&message(0, &other)),
        Err(SessionError::Protocol)
    ));
    assert!(matches!(
        Session::client(&hello()).next(&message(0, &other)),
        Err(SessionError::Protocol)
    ));
}

#[test]
fn only_data_and_start_have_payloads() {
    for &kind in Kind::ALL {
        let takes = kind.stream().is_some() || kind == Kind::Start;
        for (mut session, window) in [
            (busy_server(false), Stream::Stdout),
            (busy_client(), Stream::Stdin),
        ] {
            let mut bytes = sample(kind, RUNNING, window);
            if takes {
                continue;
            }
            bytes[8] = 1;
            bytes.push(b'x');
            assert!(
                matches!(session.next(&bytes), Err(SessionError::NotPermitted(at)) if at == kind),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn a_user_name_has_a_limit() {
    use crate::limits::USER_BYTES_MAX;
    for (len, right) in [(USER_BYTES_MAX, true), (USER_BYTES_MAX + 1, false)] {
        let mut handshake = ServerHandshake::new(&hello());
        handshake.next(&message(0, &hello())).unwrap();
        let auth = Auth {
            user: "u".repeat(len),
            proofs: vec![ProofJson::Peer],
        };
        let result = handshake.next(&message(0, &auth));
        assert_eq!(result.is_ok(), right);
        assert!(right || matches!(result, Err(SessionError::UserTooLong)));
    }
}

#[test]
fn a_cut_frame_is_waited_for_and_changes_nothing() {
    for &kind in Kind::ALL {
        for (mut session, window, channel) in [
            (busy_server(false), Stream::Stdout, RUNNING),
            (busy_client(), Stream::Stdin, RUNNING),
        ] {
            let channel = if takes(kind, channel, window) {
                channel
            } else {
                0
            };
            let channel = if matches!(kind, Kind::Start | Kind::Attach) {
                FRESH
            } else {
                channel
            };
            let bytes = sample(kind, channel, window);
            let channels = session.channels();
            let mut whole = Vec::new();
            for end in 0..bytes.len() {
                whole.push(verdict(session.next(&bytes[..end])));
            }
            assert!(whole.iter().all(|&it| it == 'n'), "{kind:?}");
            assert_eq!(session.channels(), channels);
            // The whole frame is judged as it would have been at once.
            let _ = verdict(session.next(&bytes));
        }
    }
}

/// Whether either side takes a kind on this channel.
fn takes(kind: Kind, channel: u32, window: Stream) -> bool {
    let bytes = sample(kind, channel, window);
    let server = verdict(busy_server(false).next(&bytes));
    let client = verdict(busy_client().next(&bytes));
    [server, client].iter().any(|it| ['e', 't'].contains(it))
}

/// The same, on channel 0 or any channel where a kind may be said.
pub(super) fn either_takes(kind: Kind, channel: u32) -> bool {
    let channels: &[u32] = match channel {
        CONNECTION => &[CONNECTION],
        _ => &[ASKED, RUNNING, FRESH],
    };
    let windows = [Stream::Stdin, Stream::Stdout];
    channels
        .iter()
        .any(|&channel| windows.iter().any(|&window| takes(kind, channel, window)))
}
