//! `bowline attach` and `bowline logs`: the streams of jobs that others started.

use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;

use serde_json::{Value, json};

use super::{Gate, begin, begin_with, done, ended, first_output, id};
use crate::faults::way::Way;
use crate::piped::Piped;
use crate::resume::numbers;
use crate::server::{Server, signal_process};
use crate::terminal::Terminal;

const INT: i32 = 2;

/// What else comes on a client's stdout and stderr, and its status: 1000 more for a signal.
pub(super) fn end(client: Piped) -> (String, String, i32) {
    let (status, out, err) = client.end();
    let status = status
        .code()
        .or(status.signal().map(|signal| 1000 + signal));
    (out, err, status.unwrap())
}

/// A client with pipes on all of its streams.
pub(super) fn client(server: &Server, args: &[&str]) -> Piped {
    Piped::start(server.command(args))
}

/// Whether a job runs, as `bowline jobs` shows it.
fn runs(server: &Server, beginning: &str) -> bool {
    let (stdout, ..) = done(server, &["jobs", "--json", &server.target()]);
    stdout.contains(&id(beginning))
}

#[test]
fn two_that_are_attached_get_the_same() {
    let server = Server::start();
    let target = server.target();
    let gate = Gate::new(&server, "gate");
    let text = format!(
        "echo up; : < {}; seq 1 200000; echo err >&2; exit 9",
        gate.0.display()
    );
    begin(&server, "a", &text);
    let mut clients =
        [(); 2].map(|()| client(&server, &["attach", "-n", "--from-start", &target, "a"]));
    for client in &mut clients {
        client.hears("up\n");
    }
    let opened = gate.open();
    for client in clients {
        let (out, err, status) = end(client);
        assert!(out == numbers(200_000), "{} bytes", out.len());
        assert_eq!((err.as_str(), status), ("err\n", 9));
    }
    drop(opened);
}

#[test]
fn what_has_ended_is_shown_again_and_again() {
    let server = Server::start();
    let target = server.target();
    ended(&server, "a", "echo out; echo err >&2; exit 7");
    let whole = id("a");
    let own = |out: &str, err: &str, status| (out.to_owned(), err.to_owned(), status);
    for _ in 0..2 {
        for name in ["a", &whole] {
            let all = done(&server, &["attach", "--from-start", &target, name]);
            assert_eq!(all, own("out\n", "err\n", 7));
            assert_eq!(done(&server, &["attach", &target, name]), own("", "", 7));
            for flags in [&[][..], &["-f"]] {
                let logs = |more: &[&str]| {
                    done(&server, &[&["logs", &target, name], flags, more].concat())
                };
                assert_eq!(logs(&[]), own("out\n", "err\n", 0));
                assert_eq!(logs(&["--stream", "stdout"]), own("out\n", "", 0));
                assert_eq!(logs(&["--stream", "stderr"]), own("", "err\n", 0));
                let (out, err, status) = logs(&["--json"]);
                let mut lines: Vec<&str> = out.lines().collect();
                lines.sort_unstable();
                let expected = [
                    r#"{"stream":"stderr","offset":0,"text":"err\n"}"#,
                    r#"{"stream":"stdout","offset":0,"text":"out\n"}"#,
                ];
                assert_eq!((lines, err.as_str(), status), (expected.to_vec(), "", 0));
            }
        }
    }
    let (out, ..) = done(&server, &["attach", "--json", &target, "a"]);
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["outcome"], &last["code"], &last["job"]),
        (&json!("exited"), &json!(7), &json!(whole))
    );
    assert_eq!(done(&server, &["forget", &target, "a"]).2, 0);
    for command in ["attach", "logs"] {
        let (out, err, status) = done(&server, &[command, &target, "a"]);
        assert_eq!((out.as_str(), status), ("", 255), "{command}");
        assert!(err.contains("[no_such_job]"), "{command}: {err}");
    }
}

#[test]
fn whoever_attaches_last_has_the_input_and_sees_what_comes_then() {
    let server = Server::start();
    let target = server.target();
    let text = "echo before; read a; echo one $a; read b; echo two $b; exit 4";
    let mut job = begin_with(&server, "a", text, &json!({"null_stdin": false}));
    assert_eq!(first_output(&mut job), "before\n");
    let mut first = client(&server, &["attach", "--from-now", &target, "a"]);
    first.send("x\n");
    first.hears("one x\n");
    let mut second = client(&server, &["attach", &target, "a"]);
    // It goes on behind what the first has sent.
    second.send("y\n");
    second.hears("two y\n");
    assert_eq!(end(second), (String::new(), String::new(), 4));
    let (out, err, status) = end(first);
    assert_eq!((out.as_str(), status), ("", 255));
    assert!(err.contains("[attached_elsewhere]"), "{err}");
}

#[test]
fn logs_end_with_what_is_there_and_with_f_with_the_job() {
    let server = Server::start();
    let target = server.target();
    let gate = Gate::new(&server, "gate");
    let text = format!("echo up; : < {}; echo down; exit 3", gate.0.display());
    let mut job = begin(&server, "a", &text);
    first_output(&mut job);
    assert_eq!(
        done(&server, &["logs", &target, "a"]),
        ("up\n".to_owned(), String::new(), 0)
    );
    let follow = ["logs", "-f", &target, "a"];
    let mut interrupted = client(&server, &follow);
    interrupted.hears("up\n");
    signal_process(interrupted.child.id(), INT);
    assert_eq!(end(interrupted).2, 1000 + INT);
    assert!(runs(&server, "a"), "only the client was interrupted");
    let mut client = client(&server, &follow);
    client.hears("up\n");
    let opened = gate.open();
    assert_eq!(end(client), ("down\n".to_owned(), String::new(), 0));
    drop(opened);
}

#[test]
fn logs_begin_with_what_was_written_since_a_time() {
    let server = Server::start();
    let target = server.target();
    let gate = Gate::new(&server, "gate");
    let text = format!(
        "echo before; echo errors >&2; : < {}; echo after; echo more >&2; exit 3",
        gate.0.display()
    );
    let (job, ..) = done(
        &server,
        &["run", "--detach", &target, "--", "sh", "-c", &text],
    );
    let job = job.trim_end();
    let own = |out: &str, err: &str, status| (out.to_owned(), err.to_owned(), status);
    let logs = |when: &str, flags: &[&str]| {
        let args = [&["logs", &target, job, "--since", when], flags].concat();
        done(&server, &args)
    };
    while logs("1h", &[]) != own("before\n", "errors\n", 0) {}
    // Times are told apart by seconds.
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        format!("{:.3}", now.unwrap().as_secs_f64())
    };
    let seconds = loop {
        let seconds = now();
        if logs(&seconds, &[]) == own("", "", 0) {
            break seconds;
        }
    };
    let mut follower = client(&server, &["logs", "-f", "--since", &seconds, &target, job]);
    let opened = gate.open();
    follower.hears("after\n");
    assert_eq!(end(follower), own("", "more\n", 0));
    drop(opened);
    let mut date = std::process::Command::new("date");
    date.args(["-u", "-d", &format!("@{seconds}"), "+%FT%T.%3NZ"]);
    let date = String::from_utf8(date.output().unwrap().stdout).unwrap();
    for when in [seconds.as_str(), date.trim_end()] {
        assert_eq!(logs(when, &[]), own("after\n", "more\n", 0), "{when}");
        let only = logs(when, &["--stream", "stdout", "-f"]);
        assert_eq!(only, own("after\n", "", 0), "{when}");
        let json = logs(when, &["--stream", "stderr", "--json"]);
        let line = "{\"stream\":\"stderr\",\"offset\":7,\"text\":\"more\\n\"}\n";
        assert_eq!(json, own(line, "", 0), "{when}");
    }
    let whole = own("before\nafter\n", "errors\nmore\n", 0);
    assert_eq!(logs("1h", &[]), whole);
    assert_eq!(logs("0", &[]), whole);
    for when in ["soon", "2026-11-28T17:45:00", "2026-02-29T00:00:00Z"] {
        let (out, err, status) = logs(when, &[]);
        assert_eq!((out.as_str(), status), ("", 2), "{when}");
        assert!(
            err.contains("--since") && err.contains("[bad_time]"),
            "{err}"
        );
    }
    // Of a job that is not detached nobody knows when it wrote what.
    ended(&server, "a", "echo out");
    let (out, err, status) = done(&server, &["logs", &target, &id("a"), "--since", "1h"]);
    assert_eq!((out.as_str(), status), ("", 255));
    assert!(err.contains("[not_permitted]"), "{err}");
}

#[test]
fn a_reader_that_has_had_enough_ends_no_job() {
    let server = Server::start();
    let target = server.target();
    begin(&server, "a", "while :; do echo y; done");
    for (args, status, said) in [
        (&["logs", "-f"][..], 0, ""),
        (&["logs", "-f", "--json"], 0, ""),
        (&["attach", "-n", "--from-start"], 255, "[output_closed]"),
    ] {
        let mut client = client(&server, &[args, &[&target, "a"]].concat());
        client.line();
        client.out = None;
        let (_, err, ended) = end(client);
        assert_eq!(ended, status, "{args:?}: {err}");
        assert!(
            err.contains(said) && err.is_empty() == said.is_empty(),
            "{args:?}: {err}"
        );
        assert!(runs(&server, "a"), "{args:?}");
    }
    assert_eq!(done(&server, &["kill", &target, "a"]).2, 0);
}

#[test]
fn a_line_that_breaks_costs_nothing() {
    let server = Server::start();
    let way = Way::to(server.port().unwrap());
    let target = way.target();
    for (name, args, status) in [
        ("a", &["logs", "-f"][..], 0),
        ("b", &["attach", "-n", "--from-start"], 3),
    ] {
        let gate = Gate::new(&server, name);
        let text = format!("echo up; : < {}; seq 1 100000; exit 3", gate.0.display());
        begin(&server, name, &text);
        let trust = ["--trust", "new", &target, name];
        let mut client = client(&server, &[args, &trust].concat());
        client.hears("up\n");
        way.cut(name == "a");
        client.says("the connection is lost");
        client.says("connected again after");
        let opened = gate.open();
        let (out, err, ended) = end(client);
        assert!(out == numbers(100_000), "{args:?}: {} bytes", out.len());
        assert_eq!((err.as_str(), ended), ("", status), "{args:?}");
        drop(opened);
    }
}

#[test]
fn what_is_not_kept_is_told_as_a_gap() {
    let server = Server::start();
    let target = server.target();
    let text = "head -c 20000000 /dev/zero | tr '\\0' y";
    begin(&server, "a", text);
    // Whoever takes over the input takes over what the program waits for, too.
    let mut reader = client(&server, &["attach", "--from-start", &target, "a"]);
    let mut all = Vec::new();
    reader.out.as_mut().unwrap().read_to_end(&mut all).unwrap();
    assert_eq!((all.len(), end(reader).2), (20_000_000, 0));
    let (out, err, status) = done(&server, &["logs", "--json", &target, "a"]);
    let mut lines = out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let gap = lines.next().unwrap();
    let to = gap["gap"]["to"].as_u64().unwrap();
    assert_eq!(
        gap,
        json!({"stream": "stdout", "gap": {"from": 0, "to": to}})
    );
    let rest: usize = lines.map(|line| line["text"].as_str().unwrap().len()).sum();
    assert_eq!((to + rest as u64, status), (20_000_000, 0));
    assert!(
        err.contains(&format!("{to} bytes of stdout were dropped")),
        "{err}"
    );
    // Who begins with what comes now misses nothing.
    let (_, err, _) = done(&server, &["attach", "--json", &target, "a"]);
    assert_eq!(err, "");
}

#[test]
fn at_a_terminal_one_leaves_and_comes_back() {
    let server = Server::start();
    let target = server.target();
    let text = "trap 'stty size' WINCH; echo up
        while :; do read x && echo got $x; [ \"$x\" = bye ] && exit 3; done";
    let pty = json!({"term": "xterm", "cols": 80, "rows": 24});
    let mut job = begin_with(
        &server,
        "a",
        text,
        &json!({"null_stdin": false, "pty": pty}),
    );
    assert_eq!(first_output(&mut job), "up\r\n");
    let mut terminal = Terminal::start(&server.command(&["attach", &target, "a"]));
    terminal.resize(100, 40);
    // Its window changes for every program to see, and is ours then.
    terminal.expect("40 100");
    assert!(!terminal.is_cooked());
    terminal.type_in("hello\r");
    terminal.expect("got hello");
    terminal.type_in("~?");
    terminal.expect("leave; the job runs on");
    terminal.type_in("~.");
    let (status, shown) = terminal.end_cooked();
    assert_eq!(status.code(), Some(255), "{shown}");
    assert!(shown.contains("the job runs on [detached]"), "{shown}");
    assert!(runs(&server, "a"));

    let mut terminal = Terminal::start(&server.command(&["attach", "--from-start", &target, "a"]));
    terminal.expect("got hello");
    terminal.type_in("bye\r");
    terminal.expect("got bye");
    let (status, shown) = terminal.end_cooked();
    assert_eq!(status.code(), Some(3), "{shown}");
}

#[test]
fn without_a_terminal_of_its_own_a_job_can_be_left_too() {
    let server = Server::start();
    let target = server.target();
    let text = "trap 'echo heard' INT; echo up; while :; do read x && echo got $x; done";
    let mut job = begin_with(&server, "a", text, &json!({"null_stdin": false}));
    assert_eq!(first_output(&mut job), "up\n");
    let attach = server.command(&["attach", "--from-start", &target, "a"]);
    let mut terminal = Terminal::start(&attach);
    terminal.expect("up");
    assert!(terminal.is_cooked());
    terminal.type_in("hello\n");
    terminal.expect("got hello");
    terminal.type_in("~.\n");
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(255), "{shown}");
    assert!(shown.contains("[detached]"), "{shown}");
    // The first Ctrl-C is the job's, the second is for the client.
    let mut terminal = Terminal::start(&attach);
    terminal.expect("got hello");
    terminal.type_in("\x03");
    terminal.expect("heard");
    terminal.type_in("\x03");
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(255), "{shown}");
    assert!(shown.contains("[detached]"), "{shown}");
    assert!(runs(&server, "a"));
    assert_eq!(done(&server, &["kill", &target, "a"]).2, 0);
}
