//! Clients that were let in and then keep no rule of jobs and streams.

use bowline_proto::frame::Kind;
use bowline_proto::limits::{PAYLOAD_BYTES_MAX, START_BYTES_MAX, START_STRINGS_MAX, WINDOW_MAX};
use serde_json::{Value, json};

use super::GRANTED;
use super::raw::{Raw, frame, job, message, start};
use super::witness::Witness;

/// A part of a `start`.
fn part(channel: u32, header: &Value, payload: &[u8], end: bool) -> Vec<u8> {
    let header = match header {
        Value::Null => String::new(),
        header => header.to_string(),
    };
    frame(
        Kind::Start,
        u8::from(end),
        channel,
        header.as_bytes(),
        payload,
    )
}

/// A whole `start` in as many frames as it needs.
fn parts(channel: u32, header: &Value, payload: &[u8]) -> Vec<u8> {
    let count = payload.len().div_ceil(PAYLOAD_BYTES_MAX);
    let mut bytes = Vec::new();
    for (number, piece) in payload.chunks(PAYLOAD_BYTES_MAX).enumerate() {
        let header = if number == 0 { header } else { &Value::Null };
        bytes.extend(part(channel, header, piece, number + 1 == count));
    }
    bytes
}

fn window(channel: u32, stream: &str, acked: u64, limit: u64) -> Vec<u8> {
    let header = json!({"stream": stream, "acked": acked, "limit": limit});
    message(Kind::Window, channel, &header)
}

fn stdin(channel: u32, bytes: &[u8]) -> Vec<u8> {
    frame(Kind::Stdin, 0, channel, b"", bytes)
}

/// A connection with a program on channel 1 that runs until its client goes.
fn with_sleeper(witness: &Witness, number: u64) -> Raw {
    let mut raw = GRANTED(witness);
    raw.send(&start(1, number, &["sleep", "1000"]));
    raw.until(Kind::Started, 1);
    raw
}

/// The connection is as good as before.
fn answers(raw: &mut Raw) {
    raw.send(&message(Kind::Ping, 0, &json!({"id": 77})));
    assert_eq!(raw.until(Kind::Pong, 0).header, json!({"id": 77}));
}

#[test]
fn starts_that_are_none() {
    let mut witness = Witness::start("");
    let header = |args: u32, vars: u32, bytes: usize| json!({"job": job(1), "args": args, "vars": vars, "bytes": bytes});
    let plain = |args: u32, vars: u32, payload: &[u8]| {
        part(1, &header(args, vars, payload.len()), payload, true)
    };
    let two_for_the_shell = json!({"job": job(1), "args": 2, "bytes": 4, "shell": true});
    let no_cwd = json!({"job": job(1), "args": 1, "bytes": 2, "cwd": true});
    // The frame is one, its strings are not those that it announces: the channel is refused.
    for (name, bytes) in [
        ("no NUL at the end", plain(1, 0, b"true")),
        ("a NUL too many", plain(1, 0, b"true\0\0")),
        ("an argument too few", plain(2, 0, b"true\0")),
        ("an argument too many", plain(1, 0, b"true\0x\0")),
        ("nothing", plain(1, 0, b"")),
        ("a variable without a =", plain(1, 1, b"true\0A\0")),
        ("a variable without a name", plain(1, 1, b"true\0=x\0")),
        (
            "two texts for the shell",
            part(1, &two_for_the_shell, b"a\0b\0", true),
        ),
        (
            "a directory that does not follow",
            part(1, &no_cwd, b"a\0", true),
        ),
    ] {
        let mut raw = GRANTED(&witness);
        raw.about = name.to_owned();
        raw.send(&bytes);
        assert_eq!(
            raw.until(Kind::Refused, 1).text("code"),
            "bad_start",
            "{name}"
        );
        answers(&mut raw);
    }
    let id = |id: Value| json!({"job": id, "args": 1, "bytes": 2});
    let first = json!({"job": job(1), "args": 1, "bytes": 100_000});
    let half = part(1, &first, &[b'x'; 50_000], false);
    let then = |second: Vec<u8>| [half.clone(), second].concat();
    for (name, bytes) in [
        ("no argument", plain(0, 0, b"")),
        (
            "4 thousand million arguments",
            part(1, &header(u32::MAX, u32::MAX, 2), b"a\0", true),
        ),
        (
            "strings past the limit",
            part(1, &header(START_STRINGS_MAX as u32, 1, 2), b"a\0", true),
        ),
        (
            "more than was announced",
            part(1, &header(1, 0, 2), b"true\0", true),
        ),
        (
            "less than was announced",
            part(1, &header(1, 0, 20), b"true\0", true),
        ),
        (
            "a byte past 2 MiB",
            part(1, &header(1, 0, START_BYTES_MAX + 1), b"a\0", false),
        ),
        (
            "4 GiB",
            part(1, &header(1, 0, u32::MAX as usize), b"a\0", false),
        ),
        ("an empty part", part(1, &header(1, 0, 2), b"", false)),
        (
            "an id that is no hex",
            part(1, &id(json!("x".repeat(32))), b"a\0", true),
        ),
        (
            "an id that is short",
            part(1, &id(json!("00")), b"a\0", true),
        ),
        (
            "an id that is null",
            part(1, &id(Value::Null), b"a\0", true),
        ),
        (
            "an id that is a number",
            part(1, &id(json!(7)), b"a\0", true),
        ),
        ("a second header", then(part(1, &first, b"x", true))),
        ("a start between the parts", then(start(2, 2, &["true"]))),
        ("data between the parts", then(stdin(1, b"x"))),
        (
            "a signal between the parts",
            then(message(Kind::Signal, 1, &json!({"signal": 9}))),
        ),
        (
            "parts past what was announced",
            then(part(1, &Value::Null, &[b'x'; 50_001], true)),
        ),
        (
            "an end before what was announced",
            then(part(1, &Value::Null, b"x", true)),
        ),
    ] {
        let mut raw = GRANTED(&witness);
        raw.about = name.to_owned();
        raw.send(&bytes);
        assert_eq!(raw.last_word().as_deref(), Some("protocol_error"), "{name}");
    }
    // Other things may be said between the parts, and a start may never end.
    let mut raw = GRANTED(&witness);
    raw.send(&half);
    answers(&mut raw);
    drop(raw);
    witness.check("starts that are none");
}

#[test]
fn starts_at_the_limits() {
    let mut witness = Witness::start("");
    let run = |args: u32, payload: &[u8], number: u64| {
        let mut raw = GRANTED(&witness);
        let header = json!({"job": job(number), "args": args, "bytes": payload.len()});
        raw.send(&parts(1, &header, payload));
        let exit = raw.until(Kind::Exit, 1);
        (exit.text("outcome").to_owned(), exit.header["code"].clone())
    };
    let mut long = b"true\0".to_vec();
    while long.len() < 1_800_000 {
        long.extend([b'x'; 100_000]);
        long.push(0);
    }
    let args = |payload: &[u8]| payload.iter().filter(|byte| **byte == 0).count() as u32;
    assert_eq!(run(args(&long), &long, 1), ("exited".to_owned(), json!(0)));
    // Exactly 2 MiB are a start; that execve(2) does not take so much is an outcome.
    while long.len() < START_BYTES_MAX {
        let rest = START_BYTES_MAX - long.len();
        long.extend(vec![b'x'; (rest - 1).min(100_000)]);
        long.push(0);
    }
    assert_eq!(long.len(), START_BYTES_MAX);
    assert_eq!(
        run(args(&long), &long, 2),
        ("not_started".to_owned(), json!(126))
    );
    let mut many = b"true\0".to_vec();
    many.resize(5 + START_STRINGS_MAX - 1, 0);
    let (outcome, _) = run(START_STRINGS_MAX as u32, &many, 3);
    assert!(["exited", "not_started"].contains(&&*outcome), "{outcome}");
    witness.check("starts at the limits");
}

#[test]
fn more_jobs_than_a_connection_may_have() {
    let mut witness = Witness::start("limits.jobs_per_connection_max = 3\n");
    let mut raw = GRANTED(&witness);
    let all: Vec<u8> = (1..=200)
        .flat_map(|n| start(n, u64::from(n), &["cat"]))
        .collect();
    raw.send(&all);
    for channel in 4..=200 {
        assert_eq!(
            raw.until(Kind::Refused, channel).text("code"),
            "too_many_jobs"
        );
    }
    // The end of one makes room for another.
    raw.send(&frame(Kind::Stdin, 1, 2, b"", b"last words"));
    assert_eq!(raw.until(Kind::Stdout, 2).payload, b"last words");
    raw.until(Kind::Exit, 2);
    raw.send(&start(2, 1000, &["true"]));
    assert_eq!(raw.until(Kind::Exit, 2).header["code"], 0);
    // An id that runs is not run again, on this connection or on another.
    raw.send(&start(5, 1, &["true"]));
    assert_eq!(raw.until(Kind::Refused, 5).text("code"), "duplicate_job");
    let mut other = GRANTED(&witness);
    other.send(&start(5, 1, &["true"]));
    assert_eq!(other.until(Kind::Refused, 5).text("code"), "duplicate_job");
    // A channel that is in use is no place for another start.
    raw.send(&start(1, 2000, &["true"]));
    assert_eq!(raw.refusal(), "protocol_error");
    witness.check("too many jobs");
}

#[test]
fn streams_that_keep_no_window() {
    let mut witness = Witness::start("");
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        (
            "data past the window",
            stdin(1, &[0; PAYLOAD_BYTES_MAX]).repeat(2 * WINDOW_MAX as usize / PAYLOAD_BYTES_MAX),
        ),
        (
            "data behind the end",
            [frame(Kind::Stdin, 1, 1, b"", b"x"), stdin(1, b"x")].concat(),
        ),
        ("two ends", frame(Kind::Stdin, 1, 1, b"", b"").repeat(2)),
        (
            "a window that goes back",
            [window(1, "stdout", 0, 1 << 20), window(1, "stdout", 0, 1)].concat(),
        ),
        (
            "what was never sent acknowledged",
            window(1, "stdout", 1, 1 << 20),
        ),
        (
            "a limit before what is acknowledged",
            window(1, "stderr", 0, 0),
        ),
        ("a window for stdin", window(1, "stdin", 0, 1 << 20)),
        ("a window for no stream", window(1, "stdfoo", 0, 1 << 20)),
        (
            "a negative window",
            message(
                Kind::Window,
                1,
                &json!({"stream": "stdout", "acked": -1, "limit": 1}),
            ),
        ),
    ];
    let before = witness.gate_bytes();
    for (number, (name, bytes)) in attacks.into_iter().enumerate() {
        let mut raw = with_sleeper(&witness, 100 + number as u64);
        raw.about = name.to_owned();
        raw.send(&bytes);
        assert_eq!(raw.last_word().as_deref(), Some("protocol_error"), "{name}");
    }
    assert!(
        witness.gate_bytes() < before + (32 << 20),
        "memory for data past the window"
    );
    let mut raw = GRANTED(&witness);
    let header = json!({"job": job(200), "args": 2, "bytes": 11, "null_stdin": true});
    raw.send(&part(1, &header, b"sleep\x001000\x00", true));
    raw.send(&stdin(1, b"x"));
    assert_eq!(raw.refusal(), "protocol_error", "data without a stdin");
    witness.check("windows not kept");
}

/// What is said to a job that has just ended, or to none, is late and not wrong.
#[test]
fn late_words_and_odd_signals() {
    let mut witness = Witness::start("");
    let mut raw = GRANTED(&witness);
    raw.send(&start(1, 1, &["true"]));
    raw.until(Kind::Exit, 1);
    for channel in [1, 2, u32::MAX] {
        raw.send(&stdin(channel, &[0; PAYLOAD_BYTES_MAX]));
        raw.send(&frame(Kind::Stdin, 1, channel, b"", b""));
        raw.send(&window(channel, "stdout", 5, 1));
        raw.send(&message(
            Kind::Signal,
            channel,
            &json!({"signal": 9, "tree": true}),
        ));
        raw.send(&message(
            Kind::Resize,
            channel,
            &json!({"cols": 0, "rows": 65535}),
        ));
    }
    answers(&mut raw);
    raw.send(&start(3, 3, &["sleep", "1000"]));
    raw.until(Kind::Started, 3);
    for signal in [0, -1, 65, i32::MIN, i32::MAX] {
        raw.send(&message(
            Kind::Signal,
            3,
            &json!({"signal": signal, "tree": true}),
        ));
        raw.send(&message(
            Kind::Signal,
            0,
            &json!({"signal": signal, "job": job(3)}),
        ));
    }
    for nobody in [
        json!({"signal": 9}),
        json!({"signal": 9, "job": ""}),
        json!({"signal": 9, "job": "x"}),
    ] {
        raw.send(&message(Kind::Signal, 0, &nobody));
        assert_eq!(
            raw.until(Kind::Jobs, 0).header["jobs"],
            json!([]),
            "{nobody}"
        );
    }
    for _ in 0..20_000 {
        raw.send(&message(Kind::Signal, 3, &json!({"signal": 18})));
    }
    answers(&mut raw);
    raw.send(&message(Kind::Signal, 3, &json!({"signal": 15})));
    let exit = raw.until(Kind::Exit, 3);
    assert_eq!(
        (exit.text("outcome"), &exit.header["signal"]),
        ("signaled", &json!(15))
    );
    // With one job alone, a signal to no name must not find it.
    witness.check("late words and odd signals");
    raw.send(&message(Kind::Signal, 0, &json!({"signal": 9})));
    assert_eq!(raw.until(Kind::Jobs, 0).header["jobs"], json!([]));
    raw.send(&message(Kind::Attach, 9, &json!({"job": job(1)})));
    assert!(!raw.until(Kind::Refused, 9).text("code").is_empty());
    witness.check("a signal to no job");
}
