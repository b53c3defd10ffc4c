//! Detached jobs: they belong to no connection, what they write is on the server's disk, and what
//! they came to is told long after.

mod limits;
mod many;

use std::path::PathBuf;

use bowline_proto::frame::Kind;
use serde_json::{Value, json};

use crate::hostile::raw::{job, message};
use crate::hostile::witness::gate_of;
use crate::lifecycle::{jobs, outcome, until_jobs};
use crate::resume::client::Client;
use crate::resume::{all_of, attach, block_on, check, numbers, raw, rest, server, start};
use crate::server::{Server, signal_process};
use crate::upgrade::Signal;

const KILL: i32 = 9;
const TERM: i32 = 15;

fn detach() -> Value {
    json!({"detach": true})
}

/// The file of a stream.
fn spooled(server: &Server, number: u64, stream: &str) -> PathBuf {
    let name = format!("{}.{stream}", job(number));
    server.dir().join("state/spool").join(name)
}

/// Starts a detached job, and leaves when it runs.
fn leave(server: &Server, number: u64, text: &str, keys: &Value) {
    let mut first = raw(server);
    first.send(&start(1, number, text, keys));
    first.until(Kind::Started, 1);
}

/// Its stdout, as much of it as is kept, and its outcome in the form of the wire.
fn read(server: &Server, number: u64) -> (Vec<u8>, Value) {
    let (bytes, exit) = all_of(server, number);
    (bytes, serde_json::to_value(exit).unwrap())
}

#[test]
fn the_command_prints_the_id_alone_and_leaves() {
    let server = server();
    let go = Signal::new(&server, "go");
    let text = format!(
        "echo out; echo err >&2; read x < {}; exit 7",
        go.0.display()
    );
    let run = server.run(&["--detach"], &["sh", "-c", &text]).output();
    let run = run.unwrap();
    assert!(run.status.success(), "{run:?}");
    let id = String::from_utf8(run.stdout).unwrap();
    let id = id.strip_suffix('\n').unwrap();
    assert_eq!((id.len(), run.stderr.as_slice()), (32, &b""[..]));
    let rows = jobs(&server);
    assert_eq!((&rows[0]["job"], outcome(&rows[0])), (&json!(id), "none"));
    go.give();
    until_jobs(&server, |rows| rows[0]["outcome"]["code"] == 7);
    // Of what never ran there is nothing to be detached.
    for (argv, status) in [("/no/such/program", 127), ("/", 126)] {
        let run = server.run(&["--detach"], &[argv]).output().unwrap();
        assert_eq!(run.status.code(), Some(status), "{run:?}");
        assert!(run.stdout.is_empty() && !run.stderr.is_empty());
    }
    let left = std::fs::read_dir(server.dir().join("state/spool")).unwrap();
    let left: Vec<_> = left.map(|it| it.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|it| it.to_string_lossy().starts_with(id)),
        "{left:?}"
    );
}

#[test]
fn where_the_server_ends_with_its_client_nothing_is_detached() {
    let server = server();
    let run = server
        .command(&["run", "--detach", "local", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(255));
    assert!(run.stdout.is_empty());
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(said.contains("[not_permitted]"), "{said}");
}

#[test]
fn what_it_wrote_is_read_by_anybody_of_the_user_until_it_is_forgotten() {
    let mut server = server();
    let go = Signal::new(&server, "go");
    let text = format!(
        "seq 1 1000; echo errors >&2; read x < {}; seq 1001 2000; exit 9",
        go.0.display()
    );
    leave(&server, 1, &text, &detach());
    let mut readers: Vec<_> = (0..3).map(|_| raw(&server)).collect();
    for reader in &mut readers {
        reader.send(&attach(1, 1, &json!({"stdin": false})));
        reader.until(Kind::Started, 1);
    }
    go.give();
    let whole = numbers(2000);
    for mut reader in readers {
        let (bytes, exit) = rest(&mut reader, 1, Kind::Stdout);
        assert!(bytes == whole.as_bytes());
        assert_eq!((&exit["code"], &exit["stderr"]), (&json!(9), &json!(7)));
        // A client that leaves in order has forgotten nothing.
        reader.send(&message(Kind::Bye, 0, &json!({})));
        reader.until_closed();
    }
    signal_process(gate_of(&server), KILL);
    for round in 0..2 {
        // The next gate is there when it answers.
        until_jobs(&server, |rows| rows.len() == 1);
        let (bytes, exit) = read(&server, 1);
        assert!(bytes == whole.as_bytes(), "{round}");
        assert_eq!(exit["code"], 9);
        let mut part = raw(&server);
        part.send(&attach(1, 1, &json!({"stdout": 10, "stderr": null})));
        let (bytes, _) = rest(&mut part, 1, Kind::Stdout);
        assert!(bytes == whole.as_bytes()[10..], "{round}");
        part.send(&attach(2, 1, &json!({"stdout": whole.len() + 1})));
        assert_eq!(part.until(Kind::Refused, 2).text("code"), "bad_offset");
        if round == 0 {
            server.signal(TERM);
            server.restart();
        }
    }
    let mut last = raw(&server);
    last.send(&message(Kind::Forget, 0, &json!({"job": job(1)})));
    last.send(&attach(1, 1, &json!({})));
    assert_eq!(last.until(Kind::Refused, 1).text("code"), "no_such_job");
    // The rest goes a moment later, and at the server's end at the latest.
    server.signal(TERM);
    server.wait();
    let left = std::fs::read_dir(server.dir().join("state/spool")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn the_files_are_the_gates_alone() {
    use std::os::unix::fs::MetadataExt as _;
    let server = server();
    leave(&server, 1, "echo secret", &detach());
    read(&server, 1);
    let folder = server.dir().join("state/spool").metadata().unwrap();
    let gate = std::fs::metadata(format!("/proc/{}", gate_of(&server))).unwrap();
    assert_eq!(folder.mode() & 0o777, 0o700);
    for stream in ["stdout", "end"] {
        let file = spooled(&server, 1, stream).metadata().unwrap();
        assert_eq!((file.mode() & 0o777, file.uid()), (0o600, folder.uid()));
    }
    // Not dumpable, its entry is root's; as an ordinary user all of them are the same.
    let own = nix::unistd::geteuid().as_raw();
    assert!(gate.uid() == own || gate.uid() == folder.uid());
    if own == 0 {
        assert_ne!(folder.uid(), 0);
    }
}

#[test]
fn a_start_that_comes_again_after_the_end_does_not_run_again() {
    let mut server = server();
    let log = server.dir().join("log");
    let text = format!("echo ran >> {}; echo out; exit 5", log.display());
    leave(&server, 1, &text, &detach());
    read(&server, 1);
    for round in 0..2 {
        let mut again = raw(&server);
        again.send(&start(1, 1, &text, &detach()));
        let (bytes, exit) = rest(&mut again, 1, Kind::Stdout);
        assert_eq!((&bytes[..], &exit["code"]), (&b"out\n"[..], &json!(5)));
        again.send(&start(2, 1, "exit 6", &detach()));
        assert_eq!(again.until(Kind::Refused, 2).text("code"), "duplicate_job");
        if round == 0 {
            server.signal(TERM);
            server.restart();
        }
    }
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "ran\n");
}

#[test]
fn a_transfer_in_both_directions_survives_its_gates_and_lines() {
    let total = 3 * 8 * 1024 * 1024 + 54_321;
    let server = server();
    let mut client = Client::new(&server, &["tee", "/dev/stderr"], total);
    client.detached = true;
    let exit = block_on(client.run(9));
    assert_eq!(client.faults, 9);
    check(&client, &exit);
}

#[test]
fn nobody_reads_and_nothing_is_lost_although_the_gate_is_killed() {
    let server = server();
    let go: Vec<_> = (0..4)
        .map(|n| Signal::new(&server, &format!("go{n}")))
        .collect();
    // More than a ring and a pipe hold, in parts; the numbers say what is missing.
    let mut text = "seq 1 2000000".to_owned();
    for (part, go) in go.iter().enumerate() {
        let from = 2_000_000 + part * 500_000;
        let go = go.0.display();
        text += &format!("; read x < {go}; seq {} {}", from + 1, from + 500_000);
    }
    leave(&server, 1, &text, &detach());
    for go in go {
        std::thread::scope(|scope| {
            scope.spawn(|| go.give());
            signal_process(gate_of(&server), KILL);
        });
        until_jobs(&server, |rows| rows.len() == 1);
    }
    let (bytes, exit) = all_of(&server, 1);
    assert_eq!(exit.outcome.code, Some(0));
    assert!(bytes == numbers(4_000_000).as_bytes());
}

/// Keeper and gate are killed together: what had reached the disk is there, and the outcome is unknown.
#[test]
fn what_is_on_the_disk_outlives_keeper_and_gate() {
    let mut server = server();
    leave(&server, 1, "seq 1 1000; exec sleep 1000", &detach());
    let mut reader = raw(&server);
    reader.send(&attach(1, 1, &json!({"stdin": false})));
    let whole = numbers(1000);
    let mut came = Vec::new();
    while came.len() < whole.len() {
        came.extend(reader.until(Kind::Stdout, 1).payload);
    }
    let gate = gate_of(&server);
    let sleeps = jobs(&server)[0]["pid"].as_u64().unwrap();
    server.signal(KILL);
    signal_process(gate, KILL);
    signal_process(u32::try_from(sleeps).unwrap(), KILL);
    server.restart();
    let (bytes, exit) = read(&server, 1);
    assert!(bytes == whole.as_bytes());
    assert_eq!(exit["outcome"], "lost");
}

#[test]
fn a_job_that_writes_too_much_is_ended_where_it_wants_that() {
    let server = server();
    let keys = json!({"detach": true, "spool": "kill", "spool_bytes": 100_000});
    leave(&server, 1, "seq 1 1000000", &keys);
    let (bytes, exit) = read(&server, 1);
    assert!(bytes == numbers(1_000_000).as_bytes()[..100_000]);
    assert_eq!(
        (&exit["outcome"], &exit["error"], &exit["stdout"]),
        (&json!("cancelled"), &json!("spool_full"), &json!(100_000))
    );
    // What just fits is no reason.
    let keys = json!({"detach": true, "spool": "kill", "spool_bytes": 292});
    leave(&server, 2, "seq 1 100", &keys);
    let (bytes, exit) = read(&server, 2);
    assert!(bytes == numbers(100).as_bytes());
    assert_eq!((&exit["code"], exit.get("error")), (&json!(0), None));
}
