//! Jobs by their ids, from clients that did not start them: attach, logs, wait, kill, forget, and
//! how a job is named.

mod dropped;
mod streams;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use bowline_proto::frame::Kind;
use serde_json::{Value, json};

use self::streams::{client, end};
use crate::faults::way::Way;
use crate::hostile::raw::{Raw, message};
use crate::resume::{raw, start};
use crate::run::wait_gone;
use crate::server::{Server, is_root};

/// An id that begins so.
fn id(beginning: &str) -> String {
    format!("{beginning:0<32}")
}

/// Starts a job that outlives its connection, which is given.
fn begin(server: &Server, beginning: &str, text: &str) -> Raw {
    begin_with(server, beginning, text, &json!({}))
}

/// The same with more keys in its `start`.
fn begin_with(server: &Server, beginning: &str, text: &str, more: &Value) -> Raw {
    let mut connection = raw(server);
    let mut keys = json!({"job": id(beginning), "on_disconnect": "keep"});
    for (key, value) in more.as_object().unwrap() {
        keys[key] = value.clone();
    }
    connection.send(&start(1, 0, text, &keys));
    connection.until(Kind::Started, 1);
    connection
}

/// The first bytes of a job's output.
fn first_output(connection: &mut Raw) -> String {
    let said = connection.until(Kind::Stdout, 1);
    String::from_utf8(said.payload).unwrap()
}

/// A job that is over, and kept.
fn ended(server: &Server, beginning: &str, text: &str) {
    begin(server, beginning, text).until(Kind::Exit, 1);
}

fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// What a command of a client prints, with its status: stdout, stderr.
fn done(server: &Server, args: &[&str]) -> (String, String, i32) {
    let Output {
        stdout,
        stderr,
        status,
    } = output(server.command(args));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(stdout), text(stderr), status.code().unwrap())
}

/// Something that programs wait for with `: < PATH`.
struct Gate(PathBuf);

impl Gate {
    fn new(server: &Server, name: &str) -> Gate {
        let path = server.dir().join(name);
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        Gate(path)
    }

    /// Lets them go on, also those that come later, for as long as what is given lives.
    fn open(&self) -> File {
        File::options().write(true).open(&self.0).unwrap()
    }
}

#[test]
fn ten_jobs_are_waited_for_and_each_is_told_as_it_ends() {
    let server = Server::start();
    let gate = Gate::new(&server, "gate");
    let names: Vec<String> = (0..10).map(|number| format!("{number}a")).collect();
    for (number, name) in names.iter().enumerate() {
        match number < 5 {
            true => ended(&server, name, &format!("exit {number}")),
            false => drop(begin(
                &server,
                name,
                &format!(": < {}; exit {number}", gate.0.display()),
            )),
        }
    }
    let target = server.target();
    let mut args = vec!["wait", "--json", &target];
    args.extend(names.iter().map(String::as_str));
    let mut command = server.command(&args);
    let mut waiting = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(waiting.stdout.take().unwrap()).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let mut codes: Vec<u64> = (0..5)
        .map(|_| lines.next().unwrap()["code"].as_u64().unwrap())
        .collect();
    codes.sort_unstable();
    assert_eq!(
        codes,
        [0, 1, 2, 3, 4],
        "those that had ended are told first"
    );
    let opened = gate.open();
    let rest: Vec<Value> = lines.collect();
    drop(opened);
    assert_eq!(rest.len(), 5);
    for line in rest {
        let number = line["code"].as_u64().unwrap();
        assert!(number >= 5, "{line}");
        assert_eq!(line["job"], id(&names[number as usize]));
        assert_eq!(
            (&line["outcome"], &line["host"]),
            (&json!("exited"), &json!(target))
        );
        assert_eq!(line["stdout"], 0);
    }
    assert_eq!(
        waiting.wait().unwrap().code(),
        Some(1),
        "the first that is not 0"
    );

    let (stdout, stderr, status) = done(&server, &["wait", &target, &names[7], &names[3]]);
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    let expected = [3, 7].map(|number| format!("{}  exited {number}", id(&names[number])));
    assert_eq!(
        (lines, stderr.as_str(), status),
        (expected.iter().map(String::as_str).collect(), "", 7)
    );
    assert_eq!(done(&server, &["wait", &target, &names[0]]).2, 0);
}

#[test]
fn what_is_forgotten_is_no_job_but_on_record() {
    let server = Server::start();
    let target = server.target();
    ended(&server, "a1", "echo gone; exit 7");
    let mut running = begin(&server, "a2", "echo here; exec sleep 1000");
    first_output(&mut running);

    let (stdout, stderr, status) = done(&server, &["forget", &target, "a1", "a2", "a3"]);
    assert_eq!((stdout, status), (format!("forgot {}\n", id("a1")), 1));
    assert!(
        stderr.contains(&format!("{}: it has not ended", id("a2")))
            && stderr.contains("[job_runs]")
    );
    assert!(stderr.contains("a3: no job of yours") && stderr.contains("[no_such_job]"));

    let mut other = raw(&server);
    other.send(&message(Kind::Attach, 1, &json!({"job": id("a1")})));
    assert_eq!(other.until(Kind::Refused, 1).text("code"), "no_such_job");
    other.send(&message(
        Kind::Attach,
        2,
        &json!({"job": id("a2"), "stdin": false}),
    ));
    other.until(Kind::Started, 2);

    // The record still says what became of it, but not how much it wrote.
    let (stdout, _, status) = done(&server, &["wait", "--json", &target, "a1"]);
    let line: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&line["code"], line.get("stdout"), status),
        (&json!(7), None, 7)
    );
    let (stdout, ..) = done(&server, &["jobs", "--all", &target]);
    assert!(
        stdout.contains("exited 7") && stdout.contains("running"),
        "{stdout}"
    );
    let (stdout, ..) = done(&server, &["jobs", &target]);
    assert!(!stdout.contains("exited"), "{stdout}");
    assert_eq!(done(&server, &["kill", &target, "a2"]).2, 0);
    assert_eq!(
        done(&server, &["wait", "-q", &target, "a2"]),
        (String::new(), String::new(), 143)
    );
    assert_eq!(
        done(&server, &["forget", "--json", &target, "A2"]).0,
        format!("{{\"job\":\"{}\"}}\n", id("a2"))
    );
}

#[test]
fn a_beginning_that_several_ids_have_names_none_of_them() {
    let server = Server::start();
    let target = server.target();
    for (name, text) in [("ab1", "exit 3"), ("ab2", "echo '\u{1b}[2J'")] {
        ended(&server, name, text);
    }
    for command in ["attach", "logs", "wait", "forget", "kill"] {
        let (stdout, stderr, status) = done(&server, &[command, &target, "c"]);
        assert_eq!(stdout, "", "{command}");
        assert!(stderr.contains("[no_such_job]"), "{command}: {stderr}");
        assert_ne!(status, 0, "{command}");
        for name in ["", "xyz", &"a".repeat(33)] {
            assert_eq!(
                done(&server, &[command, &target, name]).2,
                2,
                "{command} {name:?}"
            );
        }
    }
    for command in ["attach", "logs", "wait", "forget"] {
        let (stdout, stderr, status) = done(&server, &[command, &target, "ab"]);
        assert_eq!(stdout, "", "{command}");
        assert_ne!(status, 0, "{command}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].contains("[ambiguous_job]"), "{stderr}");
        assert_eq!(lines.len(), 3, "{stderr}");
        for name in ["ab1", "ab2"] {
            assert!(stderr.contains(&id(name)), "{stderr}");
        }
        assert!(stderr.contains("exited 3  sh -c 'exit 3'") && !stderr.contains('\u{1b}'));
    }
    // Of those that run it is one again, and with more digits too.
    let mut running = begin(&server, "ab3", "echo here; exec sleep 1000");
    first_output(&mut running);
    let more = begin(&server, "ac", "exec sleep 1000");
    let (_, stderr, status) = done(&server, &["kill", &target, "a"]);
    assert_eq!(status, 1);
    assert!(stderr.contains("running  sh -c 'echo here"), "{stderr}");
    assert_eq!(done(&server, &["kill", &target, "ab"]).2, 0);
    assert_eq!(done(&server, &["wait", &target, "ab3"]).2, 143);
    assert_eq!(done(&server, &["kill", &target, "AC00"]).2, 0);
    drop(more);
}

#[test]
fn a_signal_is_for_the_group_in_front_and_with_tree_for_all_of_it() {
    let server = Server::start();
    let target = server.target();
    // Of the job's children one has left its session, and one hears nothing.
    let text =
        "setsid sleep 1000 & echo $!; trap '' INT; sleep 1000 & trap 'echo heard' USR1; echo $!;
        while :; do wait; done";
    let mut job = begin(&server, "a", text);
    let mut pids = String::new();
    while pids.lines().count() < 2 {
        pids += &first_output(&mut job);
    }
    let (stdout, _, status) = done(&server, &["kill", &target, "a", "--signal", "USR1"]);
    assert_eq!(
        (stdout, status),
        (format!("sent signal 10 to {}\n", id("a")), 0)
    );
    assert_eq!(first_output(&mut job), "heard\n");
    let (stdout, _, status) = done(
        &server,
        &["kill", &target, "a", "--signal", "int", "--tree"],
    );
    assert_eq!((stdout, status), (format!("ending {}\n", id("a")), 0));
    let exit = job.until(Kind::Exit, 1);
    assert_eq!(
        (&exit.header["outcome"], &exit.header["signal"]),
        (&json!("cancelled"), &json!(2))
    );
    for pid in pids.lines() {
        wait_gone(pid.parse().unwrap());
    }
}

#[test]
fn nobody_sees_the_jobs_of_others() {
    if !is_root() {
        // A server of an ordinary user has one user.
        return;
    }
    let server = Server::start_with(|command, _| {
        command.args(["--allow-user", "sync"]);
    });
    let target = server.target();
    let mut job = begin(&server, "ab", "echo here; exec sleep 1000");
    first_output(&mut job);
    for command in ["attach", "logs", "wait", "forget", "kill"] {
        for name in ["ab", &id("ab")] {
            let (_, stderr, status) = done(&server, &[command, &target, name, "--user", "sync"]);
            assert!(stderr.contains("[no_such_job]"), "{command}: {stderr}");
            assert_ne!(status, 0);
        }
    }
    let (stdout, ..) = done(
        &server,
        &["jobs", "--all", "--json", "--user", "sync", &target],
    );
    assert_eq!(stdout, "");
    assert_eq!(done(&server, &["kill", &target, "ab"]).2, 0);
}

#[test]
fn a_line_that_breaks_is_waited_through() {
    let server = Server::start();
    let gate = Gate::new(&server, "gate");
    let way = Way::to(server.port().unwrap());
    let target = way.target();
    begin(&server, "a", &format!(": < {}; exit 3", gate.0.display()));
    ended(&server, "b", "exit 0");
    let args = ["wait", "--trust", "new", &target, "b", "a"];
    let mut client = client(&server, &args);
    // What it was let in for: before that a line is made anew without a word.
    client.hears(&format!("{}  exited 0\n", id("b")));
    way.cut(true);
    client.says("the connection is lost");
    client.says("connected again after");
    let opened = gate.open();
    let (out, err, status) = end(client);
    let expected = format!("{}  exited 3\n", id("a"));
    assert_eq!((out, err.as_str(), status), (expected, "", 3));
    drop(opened);
}
