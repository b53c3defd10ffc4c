//! Clients that want all of something: memory, connections, time.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use bowline_proto::frame::Kind;
use bowline_proto::limits::PAYLOAD_BYTES_MAX;
use serde_json::json;

use super::raw::{Raw, client_hello, connect_from, frame, hello, message, start};
use super::witness::Witness;
use super::{GRANTED, UNIX_GRANTED};

const MIB: u64 = 1 << 20;

/// Sends `bytes` again and again and reads nothing, until the server takes no
/// more of it.
fn flood(witness: &mut Witness, mut raw: Raw, bytes: &[u8]) {
    let sent = AtomicU64::new(0);
    let handle = raw.socket().try_clone_to_owned().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while raw.try_send(bytes).is_ok() {
                sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        });
        // It has come to a stop once others were served and nothing more of it was taken.
        let mut before = u64::MAX;
        loop {
            let now = sent.load(Ordering::Relaxed);
            if now == before {
                break;
            }
            assert!(now < 4096 * MIB, "there is no end to what the server takes");
            before = now;
            witness.check("a flood");
        }
        // Where the server has ended it already, there is nothing to shut.
        let _ = rustix::net::shutdown(&handle, rustix::net::Shutdown::Both);
    });
}

#[test]
fn answers_that_nobody_reads() {
    let mut witness = Witness::start("");
    let before = witness.gate_bytes();
    let pings: Vec<u8> = (0..1000)
        .flat_map(|id| message(Kind::Ping, 0, &json!({"id": id})))
        .collect();
    for reach in [GRANTED, UNIX_GRANTED] {
        let raw = reach(&witness);
        flood(&mut witness, raw, &pings);
    }
    // Starts that are refused at once, so that their channels are free when they come again.
    let header = json!({"job": "00".repeat(16), "args": 1, "bytes": 1}).to_string();
    let starts: Vec<u8> = (1..=500)
        .flat_map(|channel| frame(Kind::Start, 1, channel, header.as_bytes(), b"x"))
        .collect();
    let raw = GRANTED(&witness);
    flood(&mut witness, raw, &starts);
    let grown = witness.gate_bytes().saturating_sub(before);
    assert!(grown < 24 * MIB, "the gate has grown by {grown} bytes");
}

#[test]
fn output_that_nobody_reads() {
    let mut witness = Witness::start("");
    let before = witness.gate_bytes();
    let mut greedy = Vec::new();
    for connection in 0..8 {
        let mut raw = GRANTED(&witness);
        for channel in 1..=16 {
            let number = connection * 100 + u64::from(channel);
            raw.send(&start(channel, number, &["yes", "no end of it"]));
            // It says that it takes everything, and reads nothing.
            let all = json!({"stream": "stdout", "acked": 0, "limit": u64::MAX});
            raw.send(&message(Kind::Window, channel, &all));
        }
        greedy.push(raw);
    }
    witness.check("output that nobody reads");
    witness.check("more of it");
    let grown = witness.gate_bytes().saturating_sub(before);
    assert!(grown < 48 * MIB, "the gate has grown by {grown} bytes");
    drop(greedy);
    witness.check("its end");
}

#[test]
fn input_that_nobody_reads() {
    let mut witness = Witness::start("");
    let before = witness.gate_bytes();
    let mut held = Vec::new();
    for number in 0..16 {
        let mut raw = GRANTED(&witness);
        raw.send(&start(1, number, &["sleep", "1000"]));
        raw.until(Kind::Started, 1);
        let (mut sent, mut limit) = (0, 256 * 1024);
        // As much as it is given room for, until a ping comes back and no room with it.
        loop {
            while sent < limit {
                let len = (limit - sent).min(PAYLOAD_BYTES_MAX as u64);
                raw.send(&frame(Kind::Stdin, 0, 1, b"", &vec![b'x'; len as usize]));
                sent += len;
            }
            raw.send(&message(Kind::Ping, 0, &json!({"id": sent})));
            let more = loop {
                let said = raw.next().unwrap();
                match said.kind {
                    Kind::Window => limit = said.header["limit"].as_u64().unwrap(),
                    Kind::Pong => break sent < limit,
                    _ => panic!("{said:?}"),
                }
            };
            if !more {
                break;
            }
        }
        assert!(
            sent < 2 * MIB,
            "{sent} bytes were taken for a program that reads none"
        );
        held.push(raw);
    }
    let grown = witness.gate_bytes().saturating_sub(before);
    assert!(grown < 32 * MIB, "the gate has grown by {grown} bytes");
    witness.check("input that nobody reads");
}

#[test]
fn lists_without_end() {
    let mut witness = Witness::start("record.jobs_max = 5000\n");
    let mut raw = GRANTED(&witness);
    let word = "\u{1}".repeat(3000);
    for number in 1..=1500 {
        raw.send(&start(1, number, &["/no/such/program", &word]));
        raw.until(Kind::Exit, 1);
    }
    let before = witness.gate_bytes();
    let list = message(Kind::List, 0, &json!({"ended": true, "count": u32::MAX}));
    raw.send(&list);
    let mut rows = 0;
    loop {
        let said = raw.until(Kind::Jobs, 0);
        rows += said.header["jobs"].as_array().unwrap().len();
        if said.header["more"] == json!(false) {
            break;
        }
    }
    assert!(rows >= 1500, "{rows} rows");
    // Many who ask for it and do not read it.
    let mut greedy = Vec::new();
    for _ in 0..8 {
        let mut raw = GRANTED(&witness);
        raw.send(&list.repeat(4));
        greedy.push(raw);
    }
    witness.check("lists that nobody reads");
    let grown = witness.gate_bytes().saturating_sub(before);
    assert!(grown < 64 * MIB, "the gate has grown by {grown} bytes");
    let mut hasty = GRANTED(&witness);
    hasty.send(&list.repeat(1000));
    assert_eq!(hasty.refusal(), "too_many_requests");
    witness.check("a thousand lists at once");
}

#[test]
fn clients_that_take_their_time() {
    let mut witness = Witness::start("limits.auth_timeout = \"1s\"\n");
    let mut tls = Vec::new();
    client_hello().write_tls(&mut tls).unwrap();
    // One that says all but the end of its handshake, byte by byte, and then nothing.
    let mut slow = Raw::tcp(&witness.server);
    for byte in &tls[..tls.len() - 1] {
        slow.send(&[*byte]);
    }
    slow.until_closed();
    // The same behind TLS and on a Unix socket: there it is told why.
    for mut slow in [Raw::tls(&witness.server), Raw::unix(&witness.server)] {
        for byte in &hello()[..hello().len() - 1] {
            slow.send(&[*byte]);
        }
        assert_eq!(slow.refusal(), "auth_timeout");
    }
    for mut slow in [Raw::tls(&witness.server), Raw::unix(&witness.server)] {
        slow.send(&hello());
        assert_eq!(slow.refusal(), "auth_timeout");
    }
    // One that never stops saying something is no better off.
    let mut busy = Raw::unix(&witness.server);
    busy.send(&hello());
    let header = vec![b' '; 16_000];
    let auth = frame(Kind::Auth, 0, 0, &header, b"");
    busy.send(&auth[..12]);
    let mut bytes = auth[12..auth.len() - 1].iter();
    let socket = busy.socket().try_clone_to_owned().unwrap();
    let mut fds = [rustix::event::PollFd::new(
        &socket,
        rustix::event::PollFlags::IN,
    )];
    // The pace of the attack: a byte, then a look at whether there is an answer.
    let pace = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    busy.expect(Kind::Hello);
    while rustix::event::poll(&mut fds, Some(&pace)).unwrap() == 0 {
        busy.send(&[*bytes.next().expect("no answer, however long it took")]);
    }
    assert_eq!(busy.refusal(), "auth_timeout");
    witness.check("slow clients");
}

/// Where there is no room the client is told so, as soon as there is room it is let in.
#[test]
fn room_is_limited_and_the_refusal_says_so() {
    let address = |last: u8| Ipv4Addr::new(127, 9, 9, last);
    let mut witness = Witness::start(
        "limits.connections_per_address_max = 3\nlimits.handshakes_max = 8\nlimits.auth_timeout = \"300s\"\n",
    );
    let server = &witness.server;
    let open = |last| Raw::tls_from(address(last), server).unwrap();
    let mut three: Vec<Raw> = (0..3).map(|_| open(1).granted(server)).collect();
    assert_eq!(open(1).refusal(), "too_many_connections");
    open(2).granted(server);
    // The server notices an end by itself; until then it says no.
    let mut gone = three.pop().unwrap();
    gone.send(&message(Kind::Bye, 0, &json!({})));
    gone.until_closed();
    drop(gone);
    loop {
        let mut again = open(1);
        let first = again.next().unwrap();
        if first.kind == Kind::Hello {
            break;
        }
        assert_eq!(first.text("code"), "too_many_connections");
    }
    drop(three);
    // Handshakes: those of many addresses that say nothing, then one more.
    let silent: Vec<Raw> = (0..12).map(|n| open(10 + n)).collect();
    let mut told = 0;
    for mut raw in silent.into_iter().rev().take(2) {
        told += u32::from(raw.refusal() == "too_many_handshakes");
    }
    assert_eq!(told, 2, "handshakes past the limit");
    witness.check("limits of room");
}

const CROWD: usize = 4;
const CROWD_EACH: usize = 2000;

/// One of the crowd: another process of this very test, with a limit of
/// descriptors of its own.
fn member(port: &str, address: &str) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(CROWD_EACH as u64 + 100),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let (port, address): (u16, Ipv4Addr) = (port.parse().unwrap(), address.parse().unwrap());
    let held: Vec<_> = (0..CROWD_EACH)
        .map(|_| connect_from(address, port))
        .collect();
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "\ncrowd {}", held.len()).unwrap();
    stdout.flush().unwrap();
    // Until whoever started us has seen enough.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn eight_thousand_connections_that_say_nothing() {
    if let (Ok(port), Ok(address)) = (std::env::var("CROWD_PORT"), std::env::var("CROWD_ADDRESS")) {
        return member(&port, &address);
    }
    let mut witness = Witness::start(
        "limits.connections_max = 7000\nlimits.connections_per_address_max = 1900\n\
         limits.handshakes_max = 6000\nlimits.auth_timeout = \"300s\"\n",
    );
    let before = witness.gate_bytes();
    let mut crowd: Vec<Child> = (0..CROWD)
        .map(|number| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture", "--test-threads=1"])
                .arg("hostile::floods::eight_thousand_connections_that_say_nothing")
                .env("CROWD_PORT", witness.server.port().unwrap().to_string())
                .env("CROWD_ADDRESS", format!("127.8.0.{}", number + 1))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for member in &mut crowd {
        let mut lines = BufReader::new(member.stdout.as_mut().unwrap()).lines();
        let all = format!("crowd {CROWD_EACH}");
        assert!(
            lines.any(|line| line.unwrap() == all),
            "a member of the crowd failed"
        );
    }
    witness.check("a crowd that says nothing");
    let held = std::fs::read_dir(format!("/proc/{}/fd", witness.gate()))
        .unwrap()
        .count();
    assert!(
        (5000..6300).contains(&held),
        "{held} descriptors: what is past the limit is closed"
    );
    let grown = witness.gate_bytes().saturating_sub(before);
    assert!(grown < 192 * MIB, "the gate has grown by {grown} bytes");
    for mut member in crowd {
        drop(member.stdin.take());
        let _ = std::io::copy(&mut member.stdout.take().unwrap(), &mut std::io::sink());
        assert!(member.wait().unwrap().success());
    }
    witness.check("its end");
}
