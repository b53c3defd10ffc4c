//! Jobs that outlive their connections and their gates: nothing is lost, nothing comes twice,
//! nothing starts twice.
//!
//! The client here is the library's, driven by the test: it keeps its offsets and comes back
//! with them. Every 8 bytes of a stream say where they are.

pub(crate) mod client;

use bowline::client::Happening;
use bowline_proto::frame::{Kind, Stream};
use bowline_proto::id::JobId;
use bowline_proto::limits::PROTOCOL;
use bowline_proto::message::{Attach, Exit};
use bowline_proto::outcome::Happened;
use serde_json::{Value, json};

use self::client::{Client, connected};
use crate::hostile::raw::{Raw, Said, frame, job, message};
use crate::hostile::witness::gate_of;
use crate::server::{Server, signal_process};

const KILL: i32 = 9;

/// A server on a Unix socket and on TCP.
pub(crate) fn server() -> Server {
    Server::start_with(|command, dir| {
        let socket = format!("unix:{}", dir.join("socket").display());
        command.args(["--listen", &socket]);
    })
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

/// All of a coded stream came back, and the program ended by itself.
pub(crate) fn check(client: &Client<'_>, exit: &Exit) {
    assert_eq!(
        (exit.outcome.outcome, exit.outcome.code),
        (Happened::Exited, Some(0)),
        "{exit:?}"
    );
    assert_eq!(client.got, [client.total; 2]);
    let offsets = (exit.stdin, exit.stdout, exit.stderr);
    assert_eq!(offsets, (client.total, client.total, client.total));
}

#[test]
fn a_transfer_in_both_directions_survives_its_gates_and_lines() {
    // Several laps of the rings, and not a multiple of anything.
    let total = 3 * 8 * 1024 * 1024 + 12_345;
    let server = server();
    let mut client = Client::new(&server, &["tee", "/dev/stderr"], total);
    let exit = block_on(client.run(9));
    assert_eq!(client.faults, 9);
    check(&client, &exit);
}

#[test]
fn without_a_fault_one_connection_does() {
    let server = server();
    let mut client = Client::new(&server, &["tee", "/dev/stderr"], 1_000_003);
    let exit = block_on(client.run(0));
    assert_eq!(client.connections, 1);
    check(&client, &exit);
}

/// What is in a terminal or on its way from it when the gate is killed is not lost either.
#[test]
fn a_terminal_survives_its_gates_and_lines() {
    let total: u64 = 2 * 8 * 1024 * 1024 + 12_345;
    let script = format!(
        "import os, tty
tty.setraw(1)
left = memoryview(b''.join(at.to_bytes(8, 'little') for at in range({total} // 8 + 1)))[:{total}]
while left: left = left[os.write(1, left):]"
    );
    let server = server();
    let mut client = Client::new(&server, &["python3", "-c", &script], total);
    client.terminal = true;
    let exit = block_on(client.run(9));
    assert_eq!(client.faults, 9);
    assert_eq!(exit.outcome.code, Some(0), "{exit:?}");
    assert_eq!(client.got, [total, 0]);
    assert_eq!((exit.stdout, exit.stderr), (total, 0));
}

/// A client of minor 1, of raw frames.
pub(crate) fn raw(server: &Server) -> Raw {
    let mut raw = Raw::tls(server);
    raw.expect(Kind::Hello);
    raw.send(&message(
        Kind::Hello,
        0,
        &json!({"protocol": PROTOCOL, "minor": 1}),
    ));
    let auth = raw.auth(server);
    raw.send(&auth);
    raw.expect(Kind::Granted);
    raw
}

/// A `start` of a shell's text with more keys in its header.
pub(crate) fn start(channel: u32, number: u64, text: &str, keys: &Value) -> Vec<u8> {
    let payload = format!("sh\0-c\0{text}\0");
    let mut header = json!({
        "job": job(number), "args": 3, "bytes": payload.len(), "null_stdin": true,
    });
    for (key, value) in keys.as_object().unwrap() {
        header[key] = value.clone();
    }
    let header = header.to_string();
    frame(
        Kind::Start,
        1,
        channel,
        header.as_bytes(),
        payload.as_bytes(),
    )
}

pub(crate) fn attach(channel: u32, number: u64, keys: &Value) -> Vec<u8> {
    let mut header = json!({"job": job(number)});
    for (key, value) in keys.as_object().unwrap() {
        header[key] = value.clone();
    }
    message(Kind::Attach, channel, &header)
}

/// All of a stream on a channel until the outcome, and the outcome.
pub(crate) fn rest(raw: &mut Raw, channel: u32, kind: Kind) -> (Vec<u8>, Value) {
    rest_unless_refused(raw, channel, kind).unwrap_or_else(|refused| panic!("{refused:?}"))
}

fn rest_unless_refused(
    raw: &mut Raw,
    channel: u32,
    kind: Kind,
) -> Result<(Vec<u8>, Value), Box<Said>> {
    let mut bytes = Vec::new();
    loop {
        let said = raw.next().expect("closed before the outcome");
        if said.channel != channel {
            continue;
        }
        if said.kind == Kind::Refused {
            return Err(Box::new(said));
        }
        if said.kind == kind {
            bytes.extend(&said.payload);
        }
        if said.kind == Kind::Exit {
            return Ok((bytes, said.header));
        }
    }
}

#[test]
fn a_start_whose_answer_was_lost_starts_once() {
    let server = server();
    let log = server.dir().join("log");
    std::fs::write(&log, "").unwrap();
    let text = format!("echo $$ >> {}; echo started; exit 7", log.display());
    let keep = json!({"on_disconnect": "keep"});
    let jobs = 12;
    for number in 1..=jobs {
        let mut first = raw(&server);
        first.send(&start(1, number, &text, &keep));
        match number % 3 {
            0 => signal_process(gate_of(&server), KILL),
            1 => drop(first),
            _ => {
                // It runs; nobody has heard of it.
                first.until(Kind::Started, 1);
                signal_process(gate_of(&server), KILL);
            }
        }
        let (bytes, exit) = loop {
            // A gate that is just dying may take the connection with it.
            let Ok(mut again) = Raw::try_tls(&server) else {
                continue;
            };
            if again.next().is_none() {
                continue;
            }
            again.send(&message(
                Kind::Hello,
                0,
                &json!({"protocol": PROTOCOL, "minor": 1}),
            ));
            let auth = again.auth(&server);
            again.send(&auth);
            if again.next().is_none_or(|said| said.kind != Kind::Granted) {
                continue;
            }
            again.send(&start(1, number, &text, &keep));
            let answer = match rest_unless_refused(&mut again, 1, Kind::Stdout) {
                Ok(answer) => answer,
                Err(refused) => {
                    // The first line's start may arrive last, and attaches then.
                    assert_eq!(refused.text("code"), "attached_elsewhere");
                    continue;
                }
            };
            again.send(&message(Kind::Forget, 0, &json!({"job": job(number)})));
            again.send(&message(Kind::Bye, 0, &json!({})));
            again.until_closed();
            break answer;
        };
        assert_eq!(bytes, b"started\n", "job {number}");
        assert_eq!(exit["code"], 7, "job {number}");
    }
    let log = std::fs::read_to_string(&log).unwrap();
    assert_eq!(log.lines().count() as u64, jobs, "{log}");
    // What is over and forgotten is no job any more, and does not start again either.
    let mut raw = raw(&server);
    raw.send(&attach(1, 1, &json!({})));
    assert_eq!(raw.until(Kind::Refused, 1).text("code"), "no_such_job");
    raw.send(&start(2, 1, &text, &keep));
    assert_eq!(raw.until(Kind::Refused, 2).text("code"), "duplicate_job");
}

#[test]
fn the_same_id_with_another_command_is_refused() {
    let server = server();
    let mut raw = raw(&server);
    let keep = json!({"on_disconnect": "keep"});
    raw.send(&start(1, 1, "sleep 1000", &keep));
    raw.until(Kind::Started, 1);
    for (channel, text, keys) in [
        (2, "sleep 1001", keep.clone()),
        (3, "sleep 1000", json!({})),
        (
            4,
            "sleep 1000",
            json!({"on_disconnect": "keep", "grace_ms": 5}),
        ),
        (
            5,
            "sleep 1000",
            json!({"on_disconnect": "keep", "timeout_ms": 500_000}),
        ),
    ] {
        raw.send(&start(channel, 1, text, &keys));
        let code = raw.until(Kind::Refused, channel);
        assert_eq!(code.text("code"), "duplicate_job", "{channel}");
    }
    // The same again takes the place of the first.
    raw.send(&start(6, 1, "sleep 1000", &keep));
    raw.until(Kind::Started, 6);
    raw.send(&message(Kind::Signal, 6, &json!({"signal": 9})));
    assert_eq!(rest(&mut raw, 6, Kind::Stdout).1["signal"], 9);
}

#[test]
fn the_place_of_the_first_is_taken() {
    let server = server();
    let mut first = raw(&server);
    first.send(&start(
        1,
        1,
        "sleep 1000",
        &json!({"on_disconnect": "keep"}),
    ));
    first.until(Kind::Started, 1);
    let mut second = raw(&server);
    second.send(&attach(1, 1, &json!({})));
    second.until(Kind::Started, 1);
    let refused = first.until(Kind::Refused, 1);
    assert_eq!(refused.text("code"), "attached_elsewhere");
    second.send(&message(Kind::Signal, 1, &json!({"signal": 15})));
    assert_eq!(rest(&mut second, 1, Kind::Stdout).1["signal"], 15);
}

#[test]
fn many_read_one_job_each_at_its_own_offset() {
    let server = server();
    let mut first = raw(&server);
    let text = "printf 0123456789; printf errors >&2; read go < \"$0\"; printf more; exit 3";
    let fifo = server.dir().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let text = text.replace("$0", &fifo.display().to_string());
    first.send(&start(1, 1, &text, &json!({"on_disconnect": "keep"})));
    let mut came = Vec::new();
    while came.len() < 10 {
        came.extend(first.until(Kind::Stdout, 1).payload);
    }
    let mut other = raw(&server);
    let seen = |more: Value| {
        let mut keys = json!({"stdin": false});
        for (key, value) in more.as_object().unwrap() {
            keys[key] = value.clone();
        }
        keys
    };
    for (channel, keys) in [
        (1, seen(json!({"from": "start"}))),
        (2, seen(json!({"from": "now", "stderr": null}))),
        (3, seen(json!({"stdout": 4, "stderr": 6}))),
        (4, seen(json!({"stdout": null, "stderr": null}))),
    ] {
        other.send(&attach(channel, 1, &keys));
    }
    // All of them are there before it goes on.
    let mut started = 0;
    let mut streams = vec![Vec::new(); 8];
    let mut exits = 0;
    while exits < 4 {
        let said = other.next().unwrap();
        let channel = said.channel as usize;
        match said.kind {
            Kind::Started => {
                assert_eq!(said.header["stdin_closed"], true);
                started += 1;
                if started == 4 {
                    std::fs::write(&fifo, "go\n").unwrap();
                }
            }
            Kind::Stdout => streams[channel - 1].extend(&said.payload),
            Kind::Stderr => streams[channel + 3].extend(&said.payload),
            Kind::Exit => {
                assert_eq!(
                    (&said.header["code"], &said.header["stdout"]),
                    (&json!(3), &json!(14))
                );
                exits += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let texts: Vec<_> = streams
        .iter()
        .map(|it| String::from_utf8_lossy(it))
        .collect();
    assert_eq!(
        texts,
        [
            "0123456789more",
            "more",
            "456789more",
            "",
            "errors",
            "",
            "",
            ""
        ]
    );
    let (bytes, exit) = rest(&mut first, 1, Kind::Stdout);
    assert_eq!((&bytes[..], &exit["code"]), (&b"more"[..], &json!(3)));
    other.send(&attach(9, 1, &json!({"stdout": 15, "stdin": false})));
    assert_eq!(other.until(Kind::Refused, 9).text("code"), "bad_offset");
}

#[test]
fn what_ends_while_nobody_is_there_is_kept_until_it_is_forgotten() {
    let server = server();
    let mut first = raw(&server);
    let done = server.dir().join("done");
    let text = format!(
        "read go < {0}; echo all; echo of it >&2; exit 9",
        done.display()
    );
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&done)
            .status()
            .unwrap()
            .success()
    );
    first.send(&start(1, 1, &text, &json!({"on_disconnect": "keep"})));
    first.until(Kind::Started, 1);
    drop(first);
    std::fs::write(&done, "go\n").unwrap();
    for round in 0..3 {
        let mut again = raw(&server);
        again.send(&attach(1, 1, &json!({})));
        let (bytes, exit) = rest(&mut again, 1, Kind::Stdout);
        assert_eq!(
            (&bytes[..], &exit["code"]),
            (&b"all\n"[..], &json!(9)),
            "{round}"
        );
        if round == 1 {
            // Also when the gate that knew it is gone.
            signal_process(gate_of(&server), KILL);
            again.until_closed();
        }
    }
    let mut last = raw(&server);
    last.send(&message(Kind::Forget, 0, &json!({"job": job(1)})));
    // The owner of the job drops it a moment later.
    let mut channel = 1;
    loop {
        last.send(&attach(
            channel,
            1,
            &json!({"stdout": null, "stderr": null}),
        ));
        let said = last.next().unwrap();
        match said.kind {
            Kind::Refused => break assert_eq!(said.text("code"), "no_such_job"),
            Kind::Started => {
                last.until(Kind::Exit, channel);
            }
            other => panic!("{other:?}"),
        }
        channel += 1;
    }
}

#[test]
fn a_job_that_nobody_comes_back_to_is_ended_after_its_grace() {
    let server = server();
    for (number, keys) in [
        (1, json!({"on_disconnect": "keep", "grace_ms": 1})),
        (2, json!({"on_disconnect": "kill"})),
    ] {
        let mut first = raw(&server);
        first.send(&start(1, number, "sleep 1000", &keys));
        first.until(Kind::Started, 1);
        drop(first);
    }
    // Lists are of the record, which is written when a job is over.
    let mut other = raw(&server);
    loop {
        other.send(&message(Kind::List, 0, &json!({"ended": true})));
        let jobs = other.until(Kind::Jobs, 0).header["jobs"].clone();
        let jobs = jobs.as_array().unwrap();
        assert_eq!(jobs.len(), 2);
        if jobs.iter().all(|row| row.get("outcome").is_some()) {
            for row in jobs {
                assert_eq!(row["outcome"]["outcome"], "cancelled", "{row}");
                assert_eq!(row["outcome"]["error"], "disconnected", "{row}");
            }
            break;
        }
    }
}

/// All of stdout of a job that nobody has read yet, behind the last gap if there is one, and its outcome.
pub(crate) fn all_of(server: &Server, number: u64) -> (Vec<u8>, Exit) {
    let socket = server.dir().join("socket");
    block_on(async {
        let mut connection = connected(&socket).await.unwrap();
        let job: JobId = job(number).parse().unwrap();
        let channel = connection
            .attach(&Attach {
                job: Some(job),
                ..Attach::default()
            })
            .unwrap();
        let mut bytes = Vec::new();
        loop {
            match connection.next().await.unwrap() {
                Happening::Output {
                    stream,
                    bytes: part,
                    ..
                } => {
                    connection.consumed(channel, stream, part.len() as u64);
                    if stream == Stream::Stdout {
                        bytes.extend_from_slice(&part);
                    }
                }
                Happening::Gap(_, gap) if gap.stream == Stream::Stdout => bytes.clear(),
                Happening::Exit(_, exit) => return (bytes, exit),
                Happening::Refused(_, refused) => panic!("{refused:?}"),
                _ => {}
            }
        }
    })
}

/// What seq(1) writes.
pub(crate) fn numbers(last: u32) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for number in 1..=last {
        writeln!(text, "{number}").unwrap();
    }
    text
}

#[test]
fn a_program_that_nobody_reads_waits_and_loses_nothing() {
    let server = server();
    let mut first = raw(&server);
    // More than a ring and a pipe hold; the numbers say what is missing.
    let text = "seq 1 2000000";
    first.send(&start(1, 1, text, &json!({"on_disconnect": "keep"})));
    first.until(Kind::Started, 1);
    drop(first);
    let (bytes, exit) = all_of(&server, 1);
    assert_eq!(exit.outcome.code, Some(0));
    assert!(bytes == numbers(2_000_000).as_bytes());
}
