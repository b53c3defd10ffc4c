//! Peers that keep no rule: at every phase of a connection, over TCP, TLS and
//! Unix sockets. Whatever they do, the gate stays the same process, a session
//! that was open before goes on, new jobs run, and who can still be told why is.

mod floods;
mod impostors;
mod jobs;
pub(crate) mod raw;
mod secrets;
pub(crate) mod witness;

use bowline_proto::auth::NAMESPACE;
use bowline_proto::frame::Kind;
use bowline_proto::limits::{
    FRAME_BYTES_UNAUTHENTICATED_MAX, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, PRELUDE_BYTES, PROTOCOL,
    USER_BYTES_MAX,
};
use serde_json::{Value, json};

use raw::{Raw, frame, hello, job, message, prelude, start, user};
use witness::Witness;

/// How a connection came to where it is attacked.
type Reach = fn(&Witness) -> Raw;

const AFTER_TLS: Reach = |witness| Raw::tls(&witness.server);
const UNIX: Reach = |witness| Raw::unix(&witness.server);
const INTRODUCED: Reach = |witness| Raw::tls(&witness.server).introduced();
const UNIX_INTRODUCED: Reach = |witness| Raw::unix(&witness.server).introduced();
const GRANTED: Reach = |witness| Raw::tls(&witness.server).granted(&witness.server);
const UNIX_GRANTED: Reach = |witness| Raw::unix(&witness.server).granted(&witness.server);

/// Every attack ends its connection with `protocol_error`.
fn all_refused(witness: &mut Witness, reached: &str, reach: Reach, attacks: &[(&str, Vec<u8>)]) {
    for (name, bytes) in attacks {
        let mut raw = reach(witness);
        raw.about = format!("{reached}: {name}");
        raw.send(bytes);
        let said = raw.last_word();
        assert_eq!(said.as_deref(), Some("protocol_error"), "{reached}: {name}");
    }
    witness.check(reached);
}

/// What is no frame in any phase.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Kind::Hello as u8;
    vec![
        ("a kind that there is not", vec![0xee]),
        ("kind 0", prelude(0, 0, 0, 0, 0)),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("all ones", vec![0xff; 4096]),
        ("all zeros", vec![0; 4096]),
        ("a flag that there is not", prelude(hello, 0x80, 0, 0, 0)),
        ("an end flag on a message", prelude(hello, 1, 0, 0, 0)),
        (
            "end and blocked at once",
            prelude(Kind::Stdin as u8, 3, 0, 1, 0),
        ),
        (
            "a header past the limit",
            prelude(hello, 0, HEADER_BYTES_MAX as u16 + 1, 0, 0),
        ),
        (
            "the longest header there could be",
            prelude(hello, 0, u16::MAX, 0, 0),
        ),
        (
            "the longest payload there could be",
            prelude(hello, 0, 0, 0, u32::MAX),
        ),
        (
            "a payload past the limit",
            prelude(hello, 0, 0, 0, PAYLOAD_BYTES_MAX as u32 + 1),
        ),
        ("data with a header", prelude(Kind::Stdin as u8, 0, 1, 1, 0)),
    ]
}

/// Headers that are not what `kind` asks for; `good` is one that is.
fn headers(kind: Kind, channel: u32, good: &Value) -> Vec<(&'static str, Vec<u8>)> {
    let text = good.to_string();
    let (key, value) = good.as_object().unwrap().iter().next().unwrap();
    let twice = format!("{},\"{key}\":{value}}}", &text[..text.len() - 1]);
    let mut not_text = text.clone().into_bytes();
    not_text.insert(text.len() - 1, 0xff);
    let mut in_a_string = format!("{},\"x\":\"", &text[..text.len() - 1]).into_bytes();
    in_a_string.extend(b"\xc3\x28\"}");
    let spaces = format!("{}{text}", " ".repeat(100)) + "x";
    vec![
        ("no header", frame(kind, 0, channel, b"", b"")),
        (
            "half a header",
            frame(kind, 0, channel, &text.as_bytes()[..text.len() / 2], b""),
        ),
        (
            "a key twice",
            frame(kind, 0, channel, twice.as_bytes(), b""),
        ),
        (
            "a byte that is not UTF-8",
            frame(kind, 0, channel, &not_text, b""),
        ),
        (
            "a string that is not UTF-8",
            frame(kind, 0, channel, &in_a_string, b""),
        ),
        ("a NUL", frame(kind, 0, channel, b"\0", b"")),
        ("an array", frame(kind, 0, channel, b"[1]", b"")),
        ("a number", frame(kind, 0, channel, b"1", b"")),
        ("null", frame(kind, 0, channel, b"null", b"")),
        (
            "more behind the object",
            frame(kind, 0, channel, spaces.as_bytes(), b""),
        ),
        ("a wrong type", message(kind, channel, &json!({key: [[]]}))),
        (
            "a payload where there is none",
            frame(kind, 0, channel, text.as_bytes(), b"x"),
        ),
    ]
}

#[test]
fn before_tls() {
    let mut witness = Witness::start("limits.auth_timeout = \"2s\"\n");
    let mut client_hello = Vec::new();
    raw::client_hello().write_tls(&mut client_hello).unwrap();
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("a frame", hello()),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("all ones", vec![0xff; 200_000]),
        ("all zeros", vec![0; 200_000]),
        (
            "a record of an unknown type",
            vec![0x7f, 3, 3, 0, 4, 1, 2, 3, 4],
        ),
        (
            "a record past its limit",
            [&[22, 3, 3, 0xff, 0xff][..], &[0; 70_000]].concat(),
        ),
        ("an empty handshake record", vec![22, 3, 3, 0, 0]),
        ("a fatal alert", vec![21, 3, 3, 0, 2, 2, 80]),
        ("application data at once", vec![23, 3, 3, 0, 4, 1, 2, 3, 4]),
        (
            "a handshake of 16 MiB",
            [&[22, 3, 3, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 100_000]].concat(),
        ),
        (
            "TLS 1.0",
            b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01"
                .iter()
                .copied()
                .chain([7; 34])
                .collect(),
        ),
        (
            "two hellos",
            [client_hello.clone(), client_hello.clone()].concat(),
        ),
    ];
    for (name, bytes) in attacks {
        let mut raw = Raw::tcp(&witness.server);
        raw.about = name.to_owned();
        raw.send(&bytes);
        raw.shut();
        raw.until_closed();
    }
    witness.check("what is no TLS");
    // Cut at every point of its first bytes and at some of the later ones; one that goes and one that
    // stays until the time to authenticate is over.
    for cut in (1..12).chain([100, client_hello.len() - 1]) {
        let mut goes = Raw::tcp(&witness.server);
        goes.send(&client_hello[..cut]);
        goes.shut();
        goes.until_closed();
    }
    let mut stays: Vec<Raw> = [1, 5, 6, 100, client_hello.len() - 1, client_hello.len()]
        .map(|cut| {
            let mut raw = Raw::tcp(&witness.server);
            raw.send(&client_hello[..cut]);
            raw
        })
        .into();
    for raw in &mut stays {
        raw.until_closed();
    }
    // Each byte of the hello changed in turn: whatever that means to TLS, it is over soon.
    for at in (0..client_hello.len()).step_by(7) {
        let mut changed = client_hello.clone();
        changed[at] ^= 0x55;
        let mut raw = Raw::tcp(&witness.server);
        raw.send(&changed);
        raw.shut();
        raw.until_closed();
    }
    witness.check("truncated and changed handshakes");
}

#[test]
fn before_hello() {
    let mut witness = Witness::start("");
    let good = json!({"protocol": PROTOCOL});
    let mut attacks = malformed();
    attacks.extend(headers(Kind::Hello, 0, &good));
    attacks.extend([
        (
            "another protocol",
            message(Kind::Hello, 0, &json!({"protocol": "bowline/2"})),
        ),
        (
            "an empty protocol",
            message(Kind::Hello, 0, &json!({"protocol": ""})),
        ),
        ("a hello on a channel", message(Kind::Hello, 1, &good)),
        (
            "a frame past the limit",
            prelude(
                Kind::Hello as u8,
                0,
                HEADER_BYTES_MAX as u16,
                0,
                (FRAME_BYTES_UNAUTHENTICATED_MAX - PRELUDE_BYTES - HEADER_BYTES_MAX) as u32 + 1,
            ),
        ),
        (
            "auth first",
            message(Kind::Auth, 0, &json!({"user": user(), "proofs": []})),
        ),
        ("a start", start(1, 1, &["true"])),
    ]);
    for kind in Kind::ALL
        .iter()
        .filter(|kind| !matches!(kind, Kind::Hello | Kind::Bye))
    {
        attacks.push(("a kind that comes later", frame(*kind, 0, 0, b"", b"")));
    }
    all_refused(&mut witness, "after TLS", AFTER_TLS, &attacks);
    all_refused(&mut witness, "on a Unix socket", UNIX, &attacks);
    // Exactly at the limit: this is a hello.
    let mut long = good.to_string();
    long.insert_str(1, &" ".repeat(HEADER_BYTES_MAX - long.len()));
    let mut raw = Raw::tls(&witness.server);
    raw.expect(Kind::Hello);
    raw.send(&frame(Kind::Hello, 0, 0, long.as_bytes(), b""));
    let auth = raw.auth(&witness.server);
    raw.send(&auth);
    raw.expect(Kind::Granted);
}

#[test]
fn before_auth() {
    let mut witness = Witness::start("");
    let good = json!({"user": user(), "proofs": []});
    let proofs = |proofs: Value| message(Kind::Auth, 0, &json!({"user": user(), "proofs": proofs}));
    let mut attacks = malformed();
    attacks.extend(headers(Kind::Auth, 0, &good));
    let peer = json!({"type": "peer"});
    attacks.extend([
        ("another hello", hello()),
        ("an auth on a channel", message(Kind::Auth, 7, &good)),
        (
            "a user past the limit",
            message(
                Kind::Auth,
                0,
                &json!({"user": "u".repeat(USER_BYTES_MAX + 1), "proofs": []}),
            ),
        ),
        ("five proofs", proofs(json!([peer, peer, peer, peer, peer]))),
        (
            "five hundred proofs",
            proofs(json!(vec![peer.clone(); 500])),
        ),
        ("a proof of no type", proofs(json!([{}]))),
        (
            "a proof of an unknown type",
            proofs(json!([{"type": "password"}])),
        ),
        (
            "a signature that is not base64",
            proofs(json!([{"type": "publickey", "sshsig": "§"}])),
        ),
        (
            "a signature past its limit",
            proofs(json!([
                {"type": "publickey", "sshsig": "AAAA".repeat(2560 / 3 + 1)},
            ])),
        ),
        (
            "a code that is too short",
            proofs(json!([{"type": "secret", "mac": "00"}])),
        ),
        (
            "a code that is not hex",
            proofs(json!([{"type": "secret", "mac": "x".repeat(64)}])),
        ),
        ("a start", start(1, 1, &["true"])),
    ]);
    for kind in Kind::ALL
        .iter()
        .filter(|kind| !matches!(kind, Kind::Auth | Kind::Bye))
    {
        attacks.push(("a kind that comes later", frame(*kind, 0, 0, b"", b"")));
    }
    all_refused(&mut witness, "before auth", INTRODUCED, &attacks);
    all_refused(
        &mut witness,
        "before auth on a Unix socket",
        UNIX_INTRODUCED,
        &attacks,
    );
}

/// A proof counts on its own connection, for its own purpose and user, and not otherwise.
#[test]
fn proofs_that_prove_nothing() {
    let mut witness = Witness::start("");
    let server = &witness.server;
    let denied = |name: &str, auth: &dyn Fn(&Raw) -> Vec<u8>| {
        for mut raw in [Raw::tls(server), Raw::unix(server)] {
            raw.expect(Kind::Hello);
            raw.send(&hello());
            let auth = auth(&raw);
            raw.send(&auth);
            // What comes behind is not looked at, let alone run.
            raw.send(&start(
                1,
                1,
                &["touch", server.dir().join("ran").to_str().unwrap()],
            ));
            assert_eq!(raw.refusal(), "not_authenticated", "{name}");
        }
    };
    let mut other = Raw::tls(server);
    other.expect(Kind::Hello);
    let replayed = other.auth(server);
    denied("a proof of another connection", &|_| replayed.clone());
    // It was good where it belongs.
    other.send(&hello());
    other.send(&replayed);
    other.expect(Kind::Granted);
    let publickey = |raw: &Raw, namespace: &str, user: &str| {
        use base64::Engine as _;
        let file = std::fs::read(server.home().join(".ssh/id_ed25519")).unwrap();
        let key = bowline::credentials::key_file::KeyFile::parse(&file).unwrap();
        let text = bowline_proto::auth::public_key_message(&raw.binding(), user, PROTOCOL);
        let signature = key.open().unwrap().sign_sshsig(namespace, &text).unwrap();
        let signature = base64::engine::general_purpose::STANDARD.encode(signature);
        json!({"type": "publickey", "sshsig": signature})
    };
    let auth = |user: &str, proofs: Value| {
        message(Kind::Auth, 0, &json!({"user": user, "proofs": proofs}))
    };
    denied("a signature of another namespace", &|raw| {
        auth(&user(), json!([publickey(raw, "file", &user())]))
    });
    denied("a signature of no namespace", &|raw| {
        auth(&user(), json!([publickey(raw, "", &user())]))
    });
    denied("a signature for another user", &|raw| {
        auth(&user(), json!([publickey(raw, NAMESPACE, "somebody")]))
    });
    denied("a user that there is not", &|raw| {
        auth(
            "no-such-user",
            json!([publickey(raw, NAMESPACE, "no-such-user")]),
        )
    });
    denied("a user of the longest name", &|raw| {
        let name = "u".repeat(USER_BYTES_MAX);
        auth(&name, json!([publickey(raw, NAMESPACE, &name)]))
    });
    denied("a user with a NUL", &|raw| {
        let name = format!("{}\0x", user());
        auth(&name, json!([publickey(raw, NAMESPACE, &name)]))
    });
    denied("a user that is a path", &|raw| {
        auth(
            "../../root",
            json!([publickey(raw, NAMESPACE, "../../root")]),
        )
    });
    denied("no proof", &|_| auth(&user(), json!([])));
    denied("bytes instead of a signature", &|_| {
        auth(&user(), json!([{"type": "publickey", "sshsig": "AAAA"}]))
    });
    denied("a code without a secret on the server", &|_| {
        auth(&user(), json!([{"type": "secret", "mac": "0".repeat(64)}]))
    });
    let mut peer = Raw::tls(server);
    peer.send(&hello());
    peer.send(&auth(&user(), json!([{"type": "peer"}])));
    assert_eq!(
        peer.refusal(),
        "not_authenticated",
        "a peer without a Unix socket"
    );
    assert!(!server.dir().join("ran").exists());
    witness.check("proofs that prove nothing");
}

/// What comes behind `auth` waits for the decision, and is then judged like anything else.
#[test]
fn during_the_decision() {
    let mut witness = Witness::start("");
    for reach in [AFTER_TLS, UNIX] {
        for (name, bytes) in malformed() {
            let mut raw = reach(&witness);
            raw.expect(Kind::Hello);
            let auth = raw.auth(&witness.server);
            raw.send(&[hello(), auth, bytes].concat());
            raw.expect(Kind::Granted);
            assert_eq!(raw.refusal(), "protocol_error", "{name}");
        }
        // More than the gate takes in before it has decided, and nobody let in.
        let mut raw = reach(&witness);
        let nobody = message(Kind::Auth, 0, &json!({"user": "nobody-here", "proofs": []}));
        raw.send(&[hello(), nobody].concat());
        raw.send(&vec![0xff; 8 * 1024 * 1024]);
        raw.until_closed();
    }
    // Gone in the middle of it, many times.
    for _ in 0..200 {
        let mut raw = Raw::unix(&witness.server);
        raw.expect(Kind::Hello);
        let auth = raw.auth(&witness.server);
        raw.send(&[hello(), auth, start(1, 99, &["true"])].concat());
    }
    witness.check("what came during the decision");
}

#[test]
fn after_the_grant() {
    let mut witness = Witness::start("");
    let id = job(7);
    let good_start = json!({"job": id, "args": 1, "bytes": 5});
    let mut attacks = malformed();
    for (kind, channel, good) in [
        (Kind::Ping, 0, json!({"id": 1})),
        (Kind::Signal, 0, json!({"signal": 15, "job": id})),
        (Kind::Attach, 1, json!({"job": id})),
        (
            Kind::Window,
            1,
            json!({"stream": "stdout", "acked": 0, "limit": 1}),
        ),
        (Kind::Resize, 0, json!({"cols": 1, "rows": 1})),
        (Kind::Forget, 0, json!({"job": id})),
    ] {
        attacks.extend(headers(kind, channel, &good));
    }
    attacks.extend(headers(Kind::List, 0, &json!({"ended": true})));
    attacks.extend(
        headers(Kind::Start, 1, &good_start)
            .into_iter()
            .filter(|(name, _)| *name != "a payload where there is none"),
    );
    attacks.extend([
        ("hello again", hello()),
        (
            "auth again",
            message(Kind::Auth, 0, &json!({"user": user(), "proofs": []})),
        ),
        (
            "a grant of its own",
            message(Kind::Granted, 0, &json!({"user": user()})),
        ),
        (
            "refused",
            message(Kind::Refused, 0, &json!({"code": "", "message": ""})),
        ),
        (
            "started",
            message(Kind::Started, 1, &json!({"pid": 1, "unix_ms": 0})),
        ),
        (
            "exit",
            message(Kind::Exit, 1, &json!({"outcome": "exited"})),
        ),
        ("jobs", message(Kind::Jobs, 0, &json!({"jobs": []}))),
        ("stdout", frame(Kind::Stdout, 0, 1, b"", b"x")),
        ("stderr", frame(Kind::Stderr, 0, 1, b"", b"x")),
        (
            "stdin of the connection",
            frame(Kind::Stdin, 0, 0, b"", b"x"),
        ),
        ("a start of the connection", start(0, 7, &["true"])),
        (
            "a ping on a channel",
            message(Kind::Ping, 1, &json!({"id": 1})),
        ),
        ("a list on a channel", message(Kind::List, 1, &json!({}))),
        ("a bye on a channel", message(Kind::Bye, 1, &json!({}))),
        (
            "an attach of the connection",
            message(Kind::Attach, 0, &json!({"job": id})),
        ),
        (
            "a window of the connection",
            message(
                Kind::Window,
                0,
                &json!({"stream": "stdout", "acked": 0, "limit": 1}),
            ),
        ),
    ]);
    all_refused(&mut witness, "after the grant", GRANTED, &attacks);
    all_refused(
        &mut witness,
        "after the grant on a Unix socket",
        UNIX_GRANTED,
        &attacks,
    );
    // A nest that no recursion could follow, under a key that is not known: it is passed over.
    let nest = format!(
        "{{\"id\":5,\"x\":{}1{}}}",
        "[".repeat(8000),
        "]".repeat(8000)
    );
    let mut raw = GRANTED(&witness);
    raw.send(&frame(Kind::Ping, 0, 0, nest.as_bytes(), b""));
    assert_eq!(raw.expect(Kind::Pong).header, json!({"id": 5}));
    // Half a frame, and then the end.
    for reach in [GRANTED, UNIX_GRANTED] {
        for bytes in [
            &prelude(Kind::Stdin as u8, 0, 0, 1, 65_536)[..],
            &[Kind::Ping as u8][..],
        ] {
            let mut raw = reach(&witness);
            raw.send(bytes);
            raw.shut();
            raw.until_closed();
        }
    }
    witness.check("half a frame");
}

#[test]
fn after_bye() {
    let mut witness = Witness::start("");
    for reach in [
        AFTER_TLS,
        UNIX,
        INTRODUCED,
        UNIX_INTRODUCED,
        GRANTED,
        UNIX_GRANTED,
    ] {
        for (_, bytes) in malformed() {
            let mut raw = reach(&witness);
            raw.send(&message(Kind::Bye, 0, &json!({})));
            raw.send(&bytes);
            let ran = witness.server.dir().join("ran");
            raw.send(&start(1, 8, &["touch", ran.to_str().unwrap()]));
            raw.shut();
            assert_eq!(
                raw.last_word(),
                None,
                "a server that was told bye has nothing to say"
            );
            assert!(!ran.exists());
        }
    }
    witness.check("what came after bye");
}
