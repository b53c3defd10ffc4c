//! kill -9 of the keeper, of the gate that it leaves behind, and of both: the jobs
//! run on, their streams are kept, the next server takes them over, and nobody is
//! ever told a status that nobody knows.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Stdio};

use bowline_proto::frame::Kind;
use serde_json::Value;

use crate::hostile::raw::{frame, start};
use crate::hostile::witness::gate_of;
use crate::lifecycle::{Client, TREE, Watched, granted, jobs, outcome, until_jobs};
use crate::server::{Server, signal_process};
use crate::upgrade::Signal;

const KILL: i32 = 9;

/// A server that says what it does in a file.
fn logged() -> Server {
    Server::start_with(|command, dir| {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"));
        command.stderr(log.unwrap());
    })
}

fn log(server: &Server) -> String {
    std::fs::read_to_string(server.dir().join("log")).unwrap()
}

/// A job that the test leads: it says its process, then reads a line.
struct Led {
    client: Child,
    lines: BufReader<ChildStdout>,
    process: Watched,
}

impl Led {
    fn start(server: &Server, signal: &Signal, then: &str) -> Led {
        Led::start_with(server, &["-n"], signal, then)
    }

    fn start_with(server: &Server, flags: &[&str], signal: &Signal, then: &str) -> Led {
        let script = format!("echo $$; read x < {}; {then}", signal.0.display());
        let mut client = server
            .run(flags, &["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let process = Watched::new(line.trim().parse().unwrap());
        Led {
            client,
            lines,
            process,
        }
    }
}

fn kill(server: &Server, job: &Value) {
    let (target, id) = (server.target(), job["job"].as_str().unwrap());
    let done = server.command(&["kill", &target, id]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn output_goes_on_and_its_end_is_no_success() {
    let mut server = logged();
    let signal = Signal::new(&server, "go");
    let mut led = Led::start(&server, &signal, "echo after; echo too >&2");
    let gate = Watched::new(gate_of(&server));
    server.signal(KILL);
    // The keeper is gone for certain before the program goes on.
    server.wait();
    signal.give();
    let (mut out, mut said) = (String::new(), String::new());
    led.lines.read_to_string(&mut out).unwrap();
    led.client
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(out, "after\n");
    assert!(said.contains("too\n") && said.contains("[lost]"), "{said}");
    assert_eq!(led.client.wait().unwrap().code(), Some(255));
    led.process.ends();
    // Nothing is left to wait for.
    gate.ends();
    server.restart();
    until_jobs(&server, |jobs| {
        jobs.len() == 1 && outcome(&jobs[0]) == "lost"
    });
}

#[test]
fn nothing_new_begins_without_a_keeper() {
    let mut server = Server::start();
    let mut raw = granted(&server);
    raw.send(&start(1, 1, &["cat"]));
    raw.until(Kind::Started, 1);
    server.signal(KILL);
    server.wait();
    for number in 2.. {
        raw.send(&start(number, u64::from(number), &["true"]));
        let said = loop {
            let said = raw.next().expect("closed instead of refused");
            if said.channel == number && said.kind != Kind::Started {
                break said;
            }
        };
        // It may have asked the keeper just before it died; then nobody knows.
        if said.kind == Kind::Refused && said.text("code") == "keeper_gone" {
            break;
        }
        let lost = said.kind == Kind::Exit && said.text("outcome") == "lost";
        assert!(lost, "{said:?}");
    }
    // What runs is still served, in both directions, and to its end.
    raw.send(&frame(Kind::Stdin, 0, 1, b"", b"still here"));
    assert_eq!(raw.until(Kind::Stdout, 1).payload, b"still here");
    raw.send(&frame(Kind::Stdin, 1, 1, b"", b""));
    assert_eq!(raw.until(Kind::Exit, 1).text("outcome"), "lost");
}

#[test]
fn the_next_server_takes_the_jobs_over() {
    let mut server = logged();
    let signal = Signal::new(&server, "go");
    let mut tree = Client::start(&server, TREE);
    let (shell, sleeper) = (tree.process(), tree.process());
    // And one that nobody is connected to.
    let led = Led::start(&server, &signal, "echo after; exit 0");
    let (port, gate) = (server.port(), gate_of(&server));
    server.signal(KILL);
    server.wait();
    let mut abandoned = led.client;
    abandoned.kill().unwrap();
    abandoned.wait().unwrap();
    // Whoever comes meanwhile waits for the next server.
    let waiting = server
        .run(&["-n"], &["echo", "served"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let gate = Watched::new(gate);
    server.restart();
    gate.ends();
    assert_eq!(server.port(), port, "the same socket");
    assert_eq!(waiting.wait_with_output().unwrap().stdout, b"served\n");
    let live = jobs(&server);
    let of = |command: &str| {
        let named = |job: &&Value| job["command"].as_str().unwrap().contains(command);
        live.iter().find(named).unwrap()
    };
    assert_eq!(outcome(of("setsid")), "none");
    assert!(of("setsid")["pid"].as_i64().unwrap() > 0);
    kill(&server, of("setsid"));
    shell.ends();
    sleeper.ends();
    // Its client has come back, and is told what is known.
    let (status, said) = tree.end();
    assert_eq!(status, Some(255), "{said}");
    assert!(said.contains("[lost]"), "{said}");
    // Its pipes are open: it says what it has to say, and ends as it wanted to.
    signal.give();
    led.process.ends();
    until_jobs(&server, |jobs| {
        let lost = jobs.iter().filter(|job| outcome(job) == "lost").count();
        let exited = jobs.iter().filter(|job| outcome(job) == "exited").count();
        (lost, exited) == (2, 1)
    });
    assert!(log(&server).contains("runs on; its outcome will be unknown"));
}

/// The jobs of one keeper outlive the next one too, and an upgrade in between is no different.
#[test]
fn keepers_that_are_killed_again_and_again() {
    const JOBS: u32 = 60;
    let mut server = logged();
    let signal = Signal::new(&server, "go");
    let mut raw = granted(&server);
    let marker = server.dir().join("ended");
    let script = format!(
        "echo up; read x < {}; echo said || exit 1; echo $$ >> {}",
        signal.0.display(),
        marker.display()
    );
    for number in 1..=JOBS {
        raw.send(&start(number, u64::from(number), &["sh", "-c", &script]));
        raw.until(Kind::Stdout, number);
    }
    for _ in 0..3 {
        server.signal(KILL);
        server.restart();
        let live = jobs(&server);
        let running = live.iter().filter(|job| outcome(job) == "none").count();
        assert_eq!(running, JOBS as usize);
    }
    drop(raw);
    signal.give();
    until_jobs(&server, |jobs| {
        jobs.len() == JOBS as usize && jobs.iter().all(|job| outcome(job) == "lost")
    });
    // Not one of them had its output closed.
    let ended = std::fs::read_to_string(marker).unwrap();
    assert_eq!(ended.lines().count(), JOBS as usize);
}

#[test]
fn both_are_killed() {
    let mut server = logged();
    // Whoever comes back would wait for a server at this address.
    let stays = ["-n", "--on-disconnect", "kill"];
    let mut tree = Client::start_with(&server, &stays, TREE);
    let (shell, sleeper) = (tree.process(), tree.process());
    let signal = Signal::new(&server, "go");
    let led = Led::start_with(&server, &stays, &signal, "exit 0");
    let gate = gate_of(&server);
    server.signal(KILL);
    server.wait();
    signal_process(gate, KILL);
    for status in [
        tree.end().0,
        Some(
            led.client
                .wait_with_output()
                .unwrap()
                .status
                .code()
                .unwrap(),
        ),
    ] {
        assert_eq!(status, Some(255));
    }
    signal.give();
    led.process.ends();
    server.restart();
    // It has looked for the jobs when it answers.
    let live = jobs(&server);
    let said = log(&server);
    assert!(said.contains("streams=false"), "{said}");
    assert!(said.contains("is lost"), "{said}");
    let running: Vec<&Value> = live.iter().filter(|job| outcome(job) == "none").collect();
    assert_eq!(running.len(), 1, "{live:?}");
    kill(&server, running[0]);
    shell.ends();
    sleeper.ends();
    until_jobs(&server, |jobs| {
        jobs.len() == 2 && jobs.iter().all(|job| outcome(job) == "lost")
    });
}

/// A terminal whose last master is closed hangs up its session.
#[test]
fn a_terminal_is_handed_over() {
    let mut server = logged();
    let signal = Signal::new(&server, "go");
    let marker = server.dir().join("said");
    let then = format!(
        "test -t 0 -a -t 1 && echo on && echo on > {}",
        marker.display()
    );
    let led = Led::start_with(&server, &["--pty"], &signal, &then);
    server.signal(KILL);
    server.restart();
    // It has taken the job over when it answers.
    assert_eq!(jobs(&server).len(), 1);
    signal.give();
    led.process.ends();
    assert_eq!(std::fs::read(marker).unwrap(), b"on\n");
    until_jobs(&server, |jobs| {
        jobs.len() == 1 && outcome(&jobs[0]) == "lost"
    });
    assert!(log(&server).contains("streams=true"), "{}", log(&server));
    assert_eq!(
        led.client.wait_with_output().unwrap().status.code(),
        Some(255)
    );
}

/// A server with another address and one that finds its own changed.
#[test]
fn what_the_next_server_does_not_want_is_let_go() {
    let mut server = Server::start_with(|command, dir| {
        let socket = format!("unix:{}", dir.join("socket").display());
        command.args(["--listen", "tcp://127.0.0.2:0", "--listen", &socket]);
    });
    let mut client = Client::start(&server, "echo $$; exec sleep 1000");
    let process = client.process();
    let unwanted = server.addresses[1].strip_prefix("tcp://").unwrap();
    let unwanted: std::net::SocketAddr = unwanted.parse().unwrap();
    let (port, socket) = (server.port(), server.dir().join("socket"));
    server.signal(KILL);
    // The same socket by another name: it can be made once the old one is closed.
    let renamed = format!("unix:{}/./socket", server.dir().display());
    server.restart_with(&["--listen", "tcp://127.0.0.1:0", "--listen", &renamed]);
    assert_eq!(server.port(), port);
    assert!(std::net::TcpStream::connect(unwanted).is_err());
    std::os::unix::net::UnixStream::connect(socket).unwrap();
    assert!(server.run(&["-n"], &["true"]).status().unwrap().success());
    let all = jobs(&server);
    let running = all.iter().find(|job| outcome(job) == "none");
    kill(&server, running.unwrap());
    process.ends();
    let (status, said) = client.end();
    assert_eq!(status, Some(255), "{said}");
}
