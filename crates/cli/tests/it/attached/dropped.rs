//! Output that is dropped because it is too much: who reads it later, or slowly, is shown what is kept at
//! its place, and is told exactly what is missing. Every 8 bytes of the stream say where they are.

use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::streams::{client, end};
use super::{Gate, done};
use crate::piped::Piped;
use crate::server::Server;

/// No multiple of 8: what is dropped begins and ends anywhere.
const DROP_OLDEST: [&str; 4] = ["--spool", "drop-oldest", "--spool-bytes", "1000003"];

/// A stream from its beginning.
fn coded(len: usize) -> Vec<u8> {
    (0..len as u64)
        .step_by(8)
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// A detached job that writes so much, when a file can be opened so much more, and ends with 3.
fn start(server: &Server, flags: &[&str], lens: [usize; 2], file: &Path) -> String {
    let script = format!(
        "import os, sys
def write(begin, end):
    left = memoryview(b''.join(at.to_bytes(8, 'little') for at in range(begin, end, 8)))
    while left: left = left[os.write(1, left):]
write(0, {0})
open({file:?}).close()
write({0}, {0} + {1})
sys.exit(3)",
        lens[0], lens[1],
    );
    let target = server.target();
    let args = [
        &["run", "--detach"],
        flags,
        &[&target, "--", "python3", "-c", &script],
    ]
    .concat();
    let (job, err, status) = done(server, &args);
    assert_eq!((err.as_str(), status), ("", 0));
    job.trim_end().to_owned()
}

/// What the words say is missing of stdout; other words are none of its.
fn told(err: &str) -> Vec<[usize; 2]> {
    let gap = |line: &str| {
        let numbers = line.split(|c: char| !c.is_ascii_digit());
        let numbers = numbers.filter_map(|number| number.parse().ok());
        let [bytes, from, to] = numbers.collect::<Vec<usize>>()[..] else {
            panic!("{line}");
        };
        assert_eq!(
            line,
            format!(
                "bowline: {bytes} bytes of stdout were dropped and are not kept any more, those from {from} to {to} [output_dropped]"
            )
        );
        assert_eq!(to - from, bytes);
        [from, to]
    };
    err.lines().map(gap).collect()
}

/// What is shown is all of the stream but the gaps.
fn check(out: &[u8], len: usize, gaps: &[[usize; 2]]) {
    let mut whole = coded(len);
    let mut at = len;
    for &[from, to] in gaps.iter().rev() {
        assert!(from < to && to <= at, "{gaps:?}");
        whole.drain(from..to);
        at = from;
    }
    let place = out
        .iter()
        .zip(&whole)
        .position(|(shown, right)| shown != right);
    assert!(
        out == whole,
        "{} of {}, wrong at {place:?}, {gaps:?}",
        out.len(),
        whole.len()
    );
}

/// The pieces of JSON lines put together, and the gaps between them.
fn unpacked(lines: &[u8]) -> (Vec<u8>, Vec<[usize; 2]>) {
    let (mut bytes, mut gaps, mut at) = (Vec::new(), Vec::new(), 0);
    for line in lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let line: Value = serde_json::from_slice(line).unwrap();
        let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        if let Some(gap) = line.get("gap") {
            assert_eq!(number(&gap["from"]), at);
            at = number(&gap["to"]);
            gaps.push([number(&gap["from"]), at]);
        } else if let Some(offset) = line.get("offset") {
            assert_eq!(number(offset), at);
            let piece = match line.get("text") {
                Some(text) => text.as_str().unwrap().as_bytes().to_vec(),
                None => STANDARD.decode(line["base64"].as_str().unwrap()).unwrap(),
            };
            at += piece.len();
            bytes.extend(piece);
        }
    }
    (bytes, gaps)
}

/// The rest of what a client shows, read now; what it says; its status.
fn rest(mut client: Piped) -> (Vec<u8>, String, i32) {
    let mut out = Vec::new();
    client.out.take().unwrap().read_to_end(&mut out).unwrap();
    let (_, err, status) = end(client);
    (out, err, status)
}

#[test]
fn what_was_dropped_before_is_told_with_its_place() {
    let server = Server::start();
    let target = server.target();
    let len = 3_000_000;
    let job = start(&server, &DROP_OLDEST, [len, 0], Path::new("/dev/null"));
    assert_eq!(done(&server, &["wait", "-q", &target, &job]).2, 3);
    let gap = [0, len - 1_000_003];
    for (command, status) in [
        (&["logs"][..], 0),
        (&["logs", "-f"], 0),
        (&["logs", "--since", "1h"], 0),
        (&["attach", "--from-start", "-n"], 3),
    ] {
        let shown = |flags: &[&str]| {
            let args = [command, flags, &[&target, &job]].concat();
            let (out, err, ended) = rest(client(&server, &args));
            assert_eq!(ended, status, "{args:?}: {err}");
            (out, err)
        };
        let (out, err) = shown(&[]);
        assert_eq!(told(&err), [gap], "{command:?}");
        check(&out, len, &[gap]);
        let (out, err) = shown(&["--json"]);
        assert_eq!(told(&err), [gap], "{command:?}");
        let (bytes, gaps) = unpacked(&out);
        assert_eq!(gaps, [gap], "{command:?}");
        check(&bytes, len, &gaps);
        // As with journals that were rotated, it is no failure; whoever does not want to hear of it does not.
        let (out, err) = shown(&["-q"]);
        assert_eq!(err, "", "{command:?}");
        check(&out, len, &[gap]);
        let (out, err) = shown(&["-q", "--json"]);
        assert_eq!((unpacked(&out).1, err.as_str()), (vec![gap], ""));
    }
}

#[test]
fn what_is_dropped_before_a_slow_reader_is_told_with_its_place() {
    for (command, status) in [
        (&["logs", "-f"][..], 0),
        (&["logs", "-f", "--json"], 0),
        (&["attach", "--from-start", "-n"], 3),
        (&["attach", "--from-start", "-n", "--json"], 3),
    ] {
        let server = Server::start();
        let target = server.target();
        let gate = Gate::new(&server, "gate");
        // More than what is on its way to a reader that takes nothing.
        let lens = [900_000, 23_000_000];
        let job = start(&server, &DROP_OLDEST, lens, &gate.0);
        let mut reader = client(&server, &[command, &[&target, &job]].concat());
        let mut first = vec![0; 100];
        reader.out.as_mut().unwrap().read_exact(&mut first).unwrap();
        let opened = gate.open();
        assert_eq!(done(&server, &["wait", "-q", &target, &job]).2, 3);
        drop(opened);
        let (out, err, ended) = rest(reader);
        assert_eq!(ended, status, "{command:?}: {err}");
        let gaps = told(&err);
        assert!(!gaps.is_empty(), "{command:?}");
        let out = [first, out].concat();
        let out = match command.contains(&"--json") {
            true => {
                let (bytes, told) = unpacked(&out);
                assert_eq!(told, gaps, "{command:?}");
                bytes
            }
            false => out,
        };
        check(&out, lens[0] + lens[1], &gaps);
    }
}

/// However slowly it is read, and whatever the job writes meanwhile.
#[test]
fn logs_show_what_was_there_when_they_were_asked_for() {
    let server = Server::start();
    let target = server.target();
    for flags in [&[][..], &["--json"]] {
        let gate = Gate::new(&server, if flags.is_empty() { "gate" } else { "another" });
        let lens = [1_500_000, 1_500_000];
        let job = start(&server, &[], lens, &gate.0);
        // All of it is there.
        let written = |len: usize| {
            let args = ["logs", &target, &job];
            rest(client(&server, &args)).0.len() == len
        };
        while !written(lens[0]) {}
        let mut reader = client(&server, &[&["logs"], flags, &[&target, &job]].concat());
        let mut first = vec![0; 100];
        reader.out.as_mut().unwrap().read_exact(&mut first).unwrap();
        let opened = gate.open();
        assert_eq!(done(&server, &["wait", "-q", &target, &job]).2, 3);
        drop(opened);
        let (out, err, status) = rest(reader);
        assert_eq!((err.as_str(), status), ("", 0));
        let out = [first, out].concat();
        let out = if flags.is_empty() {
            out
        } else {
            unpacked(&out).0
        };
        check(&out, lens[0], &[]);
        assert!(written(lens[0] + lens[1]));
    }
}
