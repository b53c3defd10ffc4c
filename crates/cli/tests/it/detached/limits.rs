//! What happens when there is no room: of the job's own, of all jobs, of the disk; and what is kept for
//! how long.

use std::process::Command;

use bowline::client::Happening;
use bowline_proto::frame::Kind;
use bowline_proto::id::JobId;
use bowline_proto::message::Attach;
use serde_json::{Value, json};

use super::{KILL, detach, leave, read, spooled};
use crate::hostile::raw::{job, message};
use crate::hostile::witness::gate_of;
use crate::lifecycle::{jobs, outcome, until_jobs};
use crate::resume::client::connected;
use crate::resume::{all_of, attach, block_on, numbers, raw, rest, server, start};
use crate::server::{Server, is_root, signal_process};
use crate::upgrade::Signal;

/// A server with this configuration, on a Unix socket too.
fn server_with(config: &str) -> Server {
    Server::start_with(|command, dir| {
        std::fs::write(dir.join("server.toml"), config).unwrap();
        command.arg("--config").arg(dir.join("server.toml"));
        let socket = format!("unix:{}", dir.join("socket").display());
        command.args(["--listen", &socket]);
    })
}

/// The same, started by a shell that does something before.
fn server_behind(script: &str) -> Server {
    Server::start_with(|command, dir| {
        let state = dir.join("state").display().to_string();
        let script = script.replace("STATE", &state);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{script}; exec \"$0\" \"$@\"")]);
        shell.arg(command.get_program()).args(command.get_args());
        let socket = format!("unix:{}", dir.join("socket").display());
        shell.args(["--listen", &socket]);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        *command = shell;
    })
}

fn waits(rows: &[Value]) -> Option<&str> {
    rows[0].get("waits").and_then(Value::as_str)
}

/// Where stdout begins for whoever wants all that is kept.
fn begins(server: &Server, number: u64) -> u64 {
    let mut raw = raw(server);
    raw.send(&attach(
        1,
        number,
        &json!({"from": "start", "stdin": false}),
    ));
    let started = raw.until(Kind::Started, 1);
    started.header["stdout"].as_u64().unwrap()
}

/// A reader from the beginning that takes nothing for a while: what it is told to have missed, and what
/// it was given.
async fn read_late(server: &Server, number: u64, go: &Signal) -> (Vec<(u64, u64)>, u64) {
    let whole = numbers(2_000_000);
    let mut connection = connected(&server.dir().join("socket")).await.unwrap();
    let job: JobId = job(number).parse().unwrap();
    let attach = Attach {
        job: Some(job),
        stdin: false,
        ..Attach::default()
    };
    let channel = connection.attach(&attach).unwrap();
    let (mut at, mut gaps, mut late) = (0, Vec::new(), false);
    loop {
        match connection.next().await.unwrap() {
            Happening::Started(..) => go.give(),
            Happening::Output { stream, bytes, .. } => {
                let place = usize::try_from(at).unwrap();
                assert!(whole.as_bytes()[place..].starts_with(&bytes), "at {at}");
                at += bytes.len() as u64;
                if !late {
                    // The first window is not given back before the program has written everything.
                    until_jobs(server, |rows| rows[0].get("outcome").is_some());
                    late = true;
                }
                connection.consumed(channel, stream, bytes.len() as u64);
            }
            Happening::Gap(_, gap) => {
                gaps.push((at, gap.offset));
                at = gap.offset;
            }
            Happening::Exit(_, exit) => {
                assert_eq!(exit.stdout, at);
                assert_eq!(exit.outcome.code, Some(0));
                assert_eq!(exit.outcome.error, None);
                return (gaps, at);
            }
            _ => {}
        }
    }
}

#[test]
fn the_oldest_output_is_dropped_and_readers_see_the_gap() {
    let server = server();
    let go = Signal::new(&server, "go");
    let text = format!("read x < {}; seq 1 2000000", go.0.display());
    let keys = json!({"detach": true, "spool": "drop_oldest", "spool_bytes": 1_000_000});
    leave(&server, 1, &text, &keys);
    let (gaps, end) = block_on(read_late(&server, 1, &go));
    let whole = numbers(2_000_000);
    assert_eq!(end, whole.len() as u64);
    assert!(!gaps.is_empty() && gaps.iter().all(|(from, to)| from < to));
    assert_eq!(begins(&server, 1), end - 1_000_000);
    let (bytes, exit) = read(&server, 1);
    assert!(bytes == whole.as_bytes()[whole.len() - 1_000_000..]);
    assert_eq!(exit["code"], 0);
    use std::os::unix::fs::MetadataExt as _;
    let file = spooled(&server, 1, "stdout").metadata().unwrap();
    assert_eq!(file.len(), end);
    assert!(file.blocks() * 512 < 1_200_000, "{}", file.blocks());
}

#[test]
fn what_is_dropped_is_not_there_for_the_next_gate_either() {
    let server = server();
    let go: Vec<_> = (0..3)
        .map(|n| Signal::new(&server, &format!("go{n}")))
        .collect();
    let mut text = "seq 1 1000000".to_owned();
    for (part, go) in go.iter().enumerate() {
        let from = 1_000_000 + part * 500_000;
        let go = go.0.display();
        text += &format!("; read x < {go}; seq {} {}", from + 1, from + 500_000);
    }
    let keys = json!({"detach": true, "spool": "drop_oldest", "spool_bytes": 700_000});
    leave(&server, 1, &text, &keys);
    for go in go {
        std::thread::scope(|scope| {
            scope.spawn(|| go.give());
            signal_process(gate_of(&server), KILL);
        });
        until_jobs(&server, |rows| rows.len() == 1);
    }
    let (bytes, exit) = read(&server, 1);
    let whole = numbers(2_500_000);
    assert_eq!(exit["stdout"], whole.len());
    assert!(whole.as_bytes().ends_with(&bytes));
    assert!(bytes.len() >= 700_000, "{}", bytes.len());
}

#[test]
fn a_program_that_wrote_too_much_waits_until_somebody_has_read_it() {
    let server = server();
    let keys = json!({"detach": true, "spool_bytes": 500_000});
    leave(&server, 1, "seq 1 1000000", &keys);
    until_jobs(&server, |rows| waits(rows) == Some("spool_full"));
    // Whoever looks on from now on has not read it.
    let mut other = raw(&server);
    other.send(&attach(
        1,
        1,
        &json!({"from": "now", "stdin": false, "stderr": null}),
    ));
    let now = other.until(Kind::Started, 1).header["stdout"].clone();
    assert_eq!(now, 500_000);
    drop(other);
    signal_process(gate_of(&server), KILL);
    until_jobs(&server, |rows| waits(rows) == Some("spool_full"));
    let (bytes, exit) = all_of(&server, 1);
    let whole = numbers(1_000_000);
    assert!(bytes == whole.as_bytes());
    assert_eq!(exit.outcome.code, Some(0));
    assert_eq!(exit.outcome.error, None);
    // What was read may be gone; what is there is right.
    let from = usize::try_from(begins(&server, 1)).unwrap();
    assert!(from >= whole.len() - 500_000, "{from}");
    assert!(read(&server, 1).0 == whole.as_bytes()[from..]);
}

#[test]
fn nothing_is_dropped_while_there_is_room() {
    let server = server();
    let keys = json!({"detach": true, "spool": "drop_oldest"});
    leave(&server, 1, "seq 1 2000000", &keys);
    let (bytes, exit) = read(&server, 1);
    assert!(bytes == numbers(2_000_000).as_bytes(), "{}", bytes.len());
    assert_eq!(exit["code"], 0);
}

#[test]
fn what_is_too_much_is_so_too_when_its_program_has_ended() {
    let server = server();
    let keys = json!({
        "detach": true, "spool": "kill", "spool_bytes": 1000, "wait_output": true
    });
    // All of it is in the pipe when the program ends, and somebody holds the pipe on.
    leave(&server, 1, "sleep 1000 & seq 1 2000", &keys);
    let (bytes, exit) = read(&server, 1);
    assert!(bytes == numbers(2000).as_bytes()[..1000]);
    assert_eq!(
        (&exit["outcome"], &exit["error"]),
        (&json!("cancelled"), &json!("spool_full"))
    );
}

#[test]
fn what_waits_for_room_can_be_ended() {
    let server = server();
    let keys = json!({"detach": true, "spool_bytes": 1000});
    leave(&server, 1, "seq 1 1000000", &keys);
    until_jobs(&server, |rows| waits(rows) == Some("spool_full"));
    let mut raw = raw(&server);
    let kill = json!({"signal": 15, "tree": true, "job": job(1)});
    raw.send(&message(Kind::Signal, 0, &kill));
    let (bytes, exit) = read(&server, 1);
    assert!(bytes == numbers(1000).as_bytes()[..1000]);
    assert_eq!(exit["outcome"], "cancelled");
    assert_eq!(exit["error"], "spool_full");
    assert_eq!(waits(&jobs(&server)), None);
}

#[test]
fn all_jobs_together_have_a_limit_too() {
    // As much as a first window.
    let server = server_with("spool.bytes_max = 262144\n");
    let go = Signal::new(&server, "go");
    let text = format!("head -c 262144 /dev/zero; read x < {}", go.0.display());
    leave(&server, 1, &text, &detach());
    let mut first = raw(&server);
    first.send(&attach(1, 1, &json!({"stdin": false})));
    let mut left = 262_144;
    while left > 0 {
        left -= first.until(Kind::Stdout, 1).payload.len();
    }
    let kill = json!({"detach": true, "spool": "kill"});
    leave(&server, 2, "echo too much", &kill);
    let (bytes, exit) = read(&server, 2);
    assert_eq!(
        (&bytes[..], &exit["error"]),
        (&b""[..], &json!("spool_full"))
    );
    // Whoever wants the newest gets no room, and goes on.
    let newest = json!({"detach": true, "spool": "drop_oldest"});
    leave(&server, 4, "seq 1 100000", &newest);
    let (_, exit) = read(&server, 4);
    assert_eq!(
        (&exit["code"], &exit["stdout"]),
        (&json!(0), &json!(588_895))
    );
    assert_eq!(begins(&server, 4), 588_895);
    // Another waits until the first one ends.
    leave(&server, 3, "head -c 250000 /dev/zero", &detach());
    until_jobs(&server, |rows| waits(rows) == Some("spool_full"));
    go.give();
    let (bytes, exit) = read(&server, 3);
    assert_eq!((bytes.len(), &exit["code"]), (250_000, &json!(0)));
}

#[test]
fn what_ended_is_kept_for_as_long_and_as_much_as_the_configuration_says() {
    // What runs at the end of the test is not waited for.
    let server = server_with("drain = \"0s\"\n[spool]\nkeep_bytes_max = 300000\n");
    let there = |number| {
        let mut raw = raw(&server);
        raw.send(&attach(1, number, &json!({"stdin": false})));
        let said = raw.next().unwrap();
        match said.kind {
            Kind::Started => true,
            Kind::Refused => {
                assert_eq!(said.text("code"), "no_such_job");
                false
            }
            other => panic!("{other:?}"),
        }
    };
    for number in 1..=3 {
        leave(&server, number, "head -c 100000 /dev/zero", &detach());
        read(&server, number);
    }
    // The third is the one too many, with what else is kept of each.
    while there(1) {}
    assert!(there(2) && there(3));
    let config = "drain = \"0s\"\n[spool]\nkeep_for = \"1ms\"\n";
    std::fs::write(server.dir().join("server.toml"), config).unwrap();
    server.signal(1);
    while there(2) || there(3) {}
    // What runs is nobody's business.
    leave(&server, 4, "echo up; exec sleep 1000", &detach());
    signal_process(gate_of(&server), KILL);
    until_jobs(&server, |rows| rows.len() == 4);
    assert!(there(4));
}

#[test]
fn what_was_written_since_a_time_is_found() {
    let server = server();
    let go = Signal::new(&server, "go");
    let text = format!("echo before; read x < {}; echo after", go.0.display());
    leave(&server, 1, &text, &detach());
    let mut raw = raw(&server);
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::try_from(now.unwrap().as_millis()).unwrap()
    };
    let since = |ms: u64| json!({"from": "since", "since_ms": ms, "stdin": false});
    raw.send(&attach(1, 1, &json!({"stdin": false})));
    raw.until(Kind::Stdout, 1);
    // Times are told apart by seconds.
    let time = loop {
        let time = now();
        let mut raw = crate::resume::raw(&server);
        raw.send(&attach(1, 1, &since(time)));
        if raw.until(Kind::Started, 1).header["stdout"] == 7 {
            break time;
        }
    };
    let mut channel = 1;
    go.give();
    for ms in [time, 1] {
        channel += 1;
        raw.send(&attach(channel, 1, &since(ms)));
        let (bytes, exit) = rest(&mut raw, channel, Kind::Stdout);
        assert_eq!(exit["code"], 0);
        let expected = if ms == 1 {
            "before\nafter\n"
        } else {
            "after\n"
        };
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
    // Also when it is long over, in the eyes of another gate.
    signal_process(gate_of(&server), KILL);
    until_jobs(&server, |rows| rows.len() == 1);
    let mut raw = crate::resume::raw(&server);
    raw.send(&attach(1, 1, &since(time)));
    assert_eq!(rest(&mut raw, 1, Kind::Stdout).0, b"after\n");
    raw.send(&attach(2, 1, &since(now() + 10_000)));
    assert_eq!(rest(&mut raw, 2, Kind::Stdout).0, b"");
    // Of a job that is not detached nobody knows.
    raw.send(&start(3, 3, "sleep 1000", &json!({})));
    raw.until(Kind::Started, 3);
    raw.send(&attach(4, 3, &since(1)));
    assert_eq!(raw.until(Kind::Refused, 4).text("code"), "not_permitted");
}

/// A server with a disk of 4 MiB in place of a folder of its state. Nobody else sees it, and it goes with the
/// server.
fn server_on_small_disk(folder: &str) -> Server {
    let mount = format!("mkdir -p {folder}; mount -t tmpfs -o size=4m none {folder} || exit 1");
    server_behind(&format!(
        "exec unshare -m sh -c '{mount}; exec \"$0\" \"$@\"' \"$0\" \"$@\""
    ))
}

/// The disk has room for three of these and no more.
const BALLAST: &str = "head -c 1000000 /dev/zero";

#[test]
fn a_full_disk_is_told_and_ends_nothing_else() {
    if !is_root() {
        return;
    }
    let server = server_on_small_disk("STATE/spool");
    for number in 1..=3 {
        leave(&server, number, BALLAST, &detach());
        assert_eq!(read(&server, number).1["code"], 0);
    }
    let gate = gate_of(&server);
    // Whoever wants to be ended is; its outcome may have to wait for the disk, and is told all the same.
    let kill = json!({"detach": true, "spool": "kill"});
    leave(&server, 4, "seq 1 400000", &kill);
    let (bytes, exit) = read(&server, 4);
    assert!(numbers(400_000).as_bytes().starts_with(&bytes));
    assert_eq!(
        (&exit["outcome"], &exit["error"]),
        (&json!("cancelled"), &json!("disk_full"))
    );
    // Whoever wants the newest has the newest.
    let mut raw = raw(&server);
    let forget = |number: u64| message(Kind::Forget, 0, &json!({"job": job(number)}));
    raw.send(&forget(4));
    let newest = json!({"detach": true, "spool": "drop_oldest"});
    leave(&server, 5, "seq 1 400000", &newest);
    let (bytes, exit) = read(&server, 5);
    assert!(numbers(400_000).as_bytes().ends_with(&bytes) && !bytes.is_empty());
    assert_eq!(
        (&exit["code"], &exit["error"]),
        (&json!(0), &json!("disk_full"))
    );
    raw.send(&forget(5));
    // Whoever wants to wait waits, and loses nothing.
    leave(&server, 6, "seq 1 400000", &detach());
    until_jobs(&server, |rows| waits(rows) == Some("disk_full"));
    (1..=3).for_each(|number| raw.send(&forget(number)));
    let (bytes, exit) = read(&server, 6);
    assert!(bytes == numbers(400_000).as_bytes());
    assert_eq!((&exit["code"], exit.get("error")), (&json!(0), None));
    assert_eq!(gate_of(&server), gate);
}

#[test]
fn any_other_error_of_the_disk_is_told_too() {
    // Larger than a ring, and than what SQLite has; dash counts blocks of 512 bytes, bash of 1024.
    let server = server_behind("ulimit -f 24576");
    // There is a gate when it answers.
    until_jobs(&server, <[Value]>::is_empty);
    let gate = gate_of(&server);
    let text = "ulimit -f unlimited; exec seq 1 6000000";
    let kill = json!({"detach": true, "spool": "kill"});
    leave(&server, 1, text, &kill);
    let (bytes, exit) = read(&server, 1);
    assert!(numbers(6_000_000).as_bytes().starts_with(&bytes));
    assert!(bytes.len() >= 24_576 * 512);
    assert_eq!(exit["error"], "spool_failed");
    assert_eq!(gate_of(&server), gate);
}

#[test]
fn a_record_that_cannot_be_written_is_owed_what_a_job_came_to() {
    if !is_root() {
        return;
    }
    let server = server_on_small_disk("STATE/record");
    let go = Signal::new(&server, "go");
    leave(
        &server,
        1,
        &format!("read x < {}; exit 3", go.0.display()),
        &detach(),
    );
    // The folder as the server sees it.
    let folder = server.dir().join("state/record");
    let folder = format!("/proc/{}/root{}", server.pid(), folder.display());
    let ballast = std::path::Path::new(&folder).join("ballast");
    let full = std::fs::write(&ballast, vec![1; 5_000_000]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    go.give();
    assert_eq!(read(&server, 1).1["code"], 3);
    // Nothing is started that is not recorded; what is there is listed.
    let mut raw = raw(&server);
    raw.send(&start(2, 2, "true", &json!({})));
    assert_eq!(raw.until(Kind::Refused, 2).text("code"), "record_failed");
    until_jobs(&server, |rows| {
        rows.len() == 1 && outcome(&rows[0]) == "none"
    });
    // The next gate is told of it again.
    signal_process(gate_of(&server), KILL);
    until_jobs(&server, |rows| {
        rows.len() == 1 && outcome(&rows[0]) == "none"
    });
    std::fs::remove_file(&ballast).unwrap();
    until_jobs(&server, |rows| rows[0]["outcome"]["code"] == 3);
    assert_eq!(read(&server, 1).1["code"], 3);
}
