//! `bowline run` when its line breaks: it says so, comes back, and goes on where it was.

mod moved;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use bowline_proto::frame::Kind;
use serde_json::json;

use crate::faults::way::Way;
use crate::hostile::raw::message;
use crate::hostile::witness::gate_of;
use crate::lifecycle::{Watched, granted};
use crate::piped::Piped;
use crate::server::{Server, signal_process};
use crate::upgrade::Signal;

const KILL: i32 = 9;
const INT: i32 = 2;

/// A client over a way that the test breaks.
fn traveller(server: &Server, way: &Way, flags: &[&str], script: &str) -> Piped {
    let target = way.target();
    let mut args = vec!["run", "--trust", "new"];
    args.extend(flags);
    args.extend([target.as_str(), "--", "sh", "-c", script]);
    let mut traveller = Piped::start(server.command(&args));
    traveller.says_next("pinned its host key");
    traveller
}

/// Its exit status, and what else came on its stdout and stderr.
fn end(mut client: Piped) -> (Option<i32>, String, String) {
    drop(client.child.stdin.take());
    let (status, out, err) = client.end();
    (status.code(), out, err)
}

/// Says that it runs, waits for a line and says it again on both of its outputs.
const ECHO: &str = "echo up; read x; echo $x; echo $x >&2; read y; echo $y; exit 5";

fn way_to(server: &Server) -> Way {
    Way::to(server.port().unwrap())
}

#[test]
fn a_line_that_breaks_is_said_once_and_the_job_goes_on() {
    let server = Server::start();
    let breaks: [&dyn Fn(&Way); 3] = [&|way| _ = way.cut(false), &|way| _ = way.cut(true), &|_| {
        signal_process(gate_of(&server), KILL)
    }];
    for break_it in breaks {
        let way = way_to(&server);
        let mut client = traveller(&server, &way, &[], ECHO);
        client.hears("up\n");
        break_it(&way);
        client.says_next("the connection is lost");
        client.says_next("connected again after");
        client.send("one\n");
        client.hears("one\n");
        client.says_next("one");
        break_it(&way);
        // Typed while there may be no line.
        client.send("two\n");
        let (status, out, err) = end(client);
        assert_eq!((status, out.as_str()), (Some(5), "two\n"), "{err}");
        assert_eq!(err.lines().count(), 2, "{err}");
    }
}

#[test]
fn nothing_is_said_where_nobody_wants_to_hear_it() {
    let server = Server::start();
    let way = way_to(&server);
    let mut client = traveller(&server, &way, &["-q"], ECHO);
    client.hears("up\n");
    way.cut(true);
    client.send("one\ntwo\n");
    let (status, out, err) = end(client);
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (Some(5), "one\ntwo\n", "one\n")
    );
}

#[test]
fn a_silent_line_is_noticed_within_its_bound() {
    let server = Server::start();
    let way = way_to(&server);
    let mut client = traveller(&server, &way, &["--silence", "400ms"], ECHO);
    client.hears("up\n");
    way.freeze();
    let said = client.says_next("the connection is lost");
    assert!(said.contains("[connection_silent]"), "{said}");
    way.thaw();
    client.says_next("connected again after");
    client.send("one\ntwo\n");
    let (status, out, _) = end(client);
    assert_eq!((status, out.as_str()), (Some(5), "one\ntwo\n"));
}

/// A path that is back for others than the connection that was made first.
#[test]
fn a_handshake_that_nobody_answers_is_not_waited_for_alone() {
    let server = Server::start();
    let way = way_to(&server);
    let mut client = traveller(&server, &way, &["--connect-timeout", "10m"], ECHO);
    client.hears("up\n");
    let before = way.connections();
    way.mute_next();
    way.cut(true);
    client.says_next("the connection is lost");
    way.until_connected(before + 1);
    client.says_next("connected again after");
    client.send("one\ntwo\n");
    let (status, out, err) = end(client);
    assert_eq!((status, out.as_str()), (Some(5), "one\ntwo\n"), "{err}");
}

#[test]
fn a_job_that_ends_meanwhile_is_told_exactly() {
    let server = Server::start();
    let way = way_to(&server);
    let signal = Signal::new(&server, "go");
    let script = format!(
        "echo $$; read x < {}; seq 100000; exit 9",
        signal.0.display()
    );
    let mut client = traveller(&server, &way, &["--silence", "400ms"], &script);
    let line = client.line();
    let process = Watched::new(line.trim().parse().unwrap());
    way.freeze();
    signal.give();
    client.says_next("the connection is lost");
    process.ends();
    way.cut(false);
    way.thaw();
    let (status, out, err) = end(client);
    assert_eq!(status, Some(9), "{err}");
    assert_eq!(out.lines().count(), 100_000);
    assert!(out.ends_with("\n100000\n"));
}

#[test]
fn whoever_is_not_back_in_time_does_not_know() {
    let server = Server::start();
    let way = way_to(&server);
    let script = "echo $$; exec sleep 1000";
    let mut client = traveller(&server, &way, &["--grace", "300ms"], script);
    let line = client.line();
    let process = Watched::new(line.trim().parse().unwrap());
    // Nobody listens there any more.
    drop(way);
    let (status, _, err) = end(client);
    assert_eq!(status, Some(255), "{err}");
    assert!(err.contains("given up after 300ms"), "{err}");
    assert!(err.contains("what became of it is not known"), "{err}");
    // The server ends it, as it was asked to.
    process.ends();
}

#[test]
fn a_job_that_the_server_no_longer_knows_has_no_outcome() {
    let server = Server::start();
    let way = way_to(&server);
    let flags = ["-n", "--json", "--silence", "400ms"];
    let mut client = traveller(&server, &way, &flags, "echo $$; exec sleep 1000");
    client.line();
    way.freeze();
    client.says_next("the connection is lost");
    // Somebody else ends it, and has its outcome dropped.
    let mut raw = granted(&server);
    let id = crate::lifecycle::jobs(&server)[0]["job"].clone();
    raw.send(&message(
        Kind::Signal,
        0,
        &json!({"signal": 9, "tree": true, "job": id}),
    ));
    raw.send(&message(Kind::Attach, 1, &json!({"job": id})));
    raw.until(Kind::Exit, 1);
    raw.send(&message(Kind::Forget, 0, &json!({"job": id})));
    raw.send(&message(Kind::Ping, 0, &json!({"id": 1})));
    raw.until(Kind::Pong, 0);
    way.thaw();
    let (status, out, err) = end(client);
    assert_eq!(status, Some(255), "{err}");
    let outcome: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(outcome["outcome"], "unreachable");
    assert_eq!(outcome["error"], "no_such_job");
}

#[test]
fn the_first_interrupt_waits_for_the_line_and_the_second_leaves() {
    let server = Server::start();
    let script = "trap 'echo caught; exit 4' INT; echo up; while :; do sleep 0.02; done";
    let away = |way: &Way| {
        let mut client = traveller(&server, way, &["--silence", "400ms"], script);
        client.hears("up\n");
        way.freeze();
        client.says_next("the connection is lost");
        signal_process(client.child.id(), INT);
        client
    };
    let way = way_to(&server);
    let client = away(&way);
    way.thaw();
    let (status, out, err) = end(client);
    assert_eq!((status, out.as_str()), (Some(4), "caught\n"), "{err}");

    let way = way_to(&server);
    let mut client = away(&way);
    // Signals of one kind that come at once are one.
    let status = loop {
        signal_process(client.child.id(), INT);
        if let Some(status) = client.child.try_wait().unwrap() {
            break status;
        }
    };
    assert_eq!(status.code(), Some(130));
    let mut err = String::new();
    client.err.read_to_string(&mut err).unwrap();
    assert!(err.contains("[left]"), "{err}");
    // It runs on for its grace time; nobody is to wait for that.
    let job = crate::lifecycle::jobs(&server)[0]["job"].clone();
    let mut kill = server.command(&["kill", &server.target(), job.as_str().unwrap()]);
    assert!(kill.output().unwrap().status.success());
}

#[test]
fn kill_is_what_it_says() {
    let server = Server::start();
    let way = way_to(&server);
    let flags = ["-n", "--on-disconnect", "kill"];
    let mut client = traveller(&server, &way, &flags, "echo $$; exec sleep 1000");
    let line = client.line();
    let process = Watched::new(line.trim().parse().unwrap());
    way.cut(true);
    let (status, _, err) = end(client);
    assert_eq!(status, Some(255), "{err}");
    assert!(err.contains("the job had started"), "{err}");
    process.ends();
}

/// The server keeps an outcome until it is told that the client has it.
#[test]
fn nothing_is_kept_for_a_client_that_has_its_outcome() {
    let server = Server::start();
    let mut raw = crate::resume::raw(&server);
    for number in 1..20 {
        let done = server.run(&["-n", "--json"], &["true"]).output().unwrap();
        assert!(done.status.success());
        let outcome: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        // A moment later at the latest.
        for channel in (number * 10_000).. {
            let attach = json!({"job": outcome["job"], "stdout": null, "stderr": null});
            raw.send(&message(Kind::Attach, channel, &attach));
            let said = loop {
                let said = raw.next().unwrap();
                if said.channel == channel && said.kind != Kind::Started {
                    break said;
                }
            };
            if said.kind == Kind::Refused {
                assert_eq!(said.text("code"), "no_such_job");
                break;
            }
            assert!(channel % 10_000 < 9_000, "it is kept");
        }
    }
}

/// The first record of TLS, whose length stands in it (RFC 8446, section 5.1): the ClientHello.
fn first_record(mut client: &TcpStream) -> Vec<u8> {
    let mut record = vec![0; 5];
    client.read_exact(&mut record).unwrap();
    let len = u16::from_be_bytes([record[3], record[4]]);
    record.resize(5 + usize::from(len), 0);
    client.read_exact(&mut record[5..]).unwrap();
    record
}

/// What a client asks on a line that it gives up may arrive later, and takes the job from what
/// it has asked for since: it must get it back.
#[test]
fn what_was_asked_on_a_line_given_up_takes_the_job_from_nobody() {
    let server = Server::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let args = ["--silence", "400ms", &target, "--", "sh", "-c", ECHO];
    let args = [&["run", "--trust", "new"], &args[..]].concat();
    let mut client = Piped::start(server.command(&args));
    let line = || {
        let there = ("127.0.0.1", server.port().unwrap());
        (
            listener.accept().unwrap().0,
            TcpStream::connect(there).unwrap(),
        )
    };
    std::thread::scope(|scope| {
        let pass_on = |(client, server): &(TcpStream, TcpStream)| {
            let clone = |socket: &TcpStream| socket.try_clone().unwrap();
            let [there, back] = [
                (clone(client), clone(server)),
                (clone(server), clone(client)),
            ];
            for (from, to) in [there, back] {
                scope.spawn(move || pass(&from, &to));
            }
        };
        let first = line();
        pass_on(&first);
        client.says_next("pinned its host key");
        client.hears("up\n");
        first.0.shutdown(Shutdown::Both).unwrap();
        client.says_next("the connection is lost");

        let (asks, hears) = line();
        hears.set_nodelay(true).unwrap();
        (&hears).write_all(&first_record(&asks)).unwrap();
        let [from, to] = [&hears, &asks].map(|socket| socket.try_clone().unwrap());
        scope.spawn(move || pass(&from, &to));
        let mut held = Vec::new();
        // To the end that the client makes: a reset is one too.
        let _ = (&asks).read_to_end(&mut held);
        let third = line();
        pass_on(&third);
        client.says_next("connected again after");
        (&hears).write_all(&held).unwrap();
        let said = client.says_next("the connection is lost");
        assert!(said.contains("[attached_elsewhere]"), "{said}");

        pass_on(&line());
        client.says_next("connected again after");
        client.send("one\ntwo\n");
        let (status, out, err) = end(client);
        assert_eq!((status, out.as_str()), (Some(5), "one\ntwo\n"), "{err}");
        for socket in [&hears, &third.1] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    });
}

/// Passes one connection on until the server answers what comes behind the handshake, lets
/// some bytes of that through, and cuts.
fn cut_in_the_answer(client: &TcpStream, server: &TcpStream, bytes: usize) {
    for socket in [client, server] {
        socket.set_nodelay(true).unwrap();
    }
    let asked = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut buffer, mut passed, mut first) = (vec![0; 64 * 1024], 0, None);
            while let Ok(len @ 1..) = (&mut &*client).read(&mut buffer) {
                // The length of a TLS record (RFC 8446, section 5.1): the first is the ClientHello.
                let hello = *first.get_or_insert(u16::from_be_bytes([buffer[3], buffer[4]]));
                passed += len;
                asked.fetch_or(passed > 5 + usize::from(hello), Ordering::SeqCst);
                if (&mut &*server).write_all(&buffer[..len]).is_err() {
                    break;
                }
            }
        });
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(len @ 1..) = (&mut &*server).read(&mut buffer) {
            let answer = asked.load(Ordering::SeqCst);
            let len = if answer { len.min(bytes) } else { len };
            let _ = (&mut &*client).write_all(&buffer[..len]);
            if answer {
                break;
            }
        }
        for socket in [client, server] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    });
}

/// More of them: `tools/faults --starts 1000`.
#[test]
fn a_start_whose_answer_is_cut_off_starts_one_job() {
    let starts: usize = std::env::var("BOWLINE_STARTS").map_or(60, |text| text.parse().unwrap());
    let server = Server::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let there = || TcpStream::connect(("127.0.0.1", server.port().unwrap())).unwrap();
    let marks = server.dir().join("marks");
    let script = format!("echo $0 >> {}; exit 7", marks.display());
    for number in 0..starts {
        std::thread::scope(|scope| {
            let way = scope.spawn(|| {
                // From nothing of the answer to more than `started`, and never the outcome.
                cut_in_the_answer(&listener.accept().unwrap().0, &there(), number * 7 % 250);
                let (client, server) = (listener.accept().unwrap().0, there());
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                scope.spawn({
                    let (client, server) =
                        (client.try_clone().unwrap(), server.try_clone().unwrap());
                    move || pass(&client, &server)
                });
                pass(&server, &client);
            });
            let mark = number.to_string();
            let args = [
                "run", "-q", "--trust", "new", "-n", &target, "--", "sh", "-c",
            ];
            let mut run = server.command(&args);
            let done = run.args([&script, &mark]).output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(7), "start {number}: {said}");
            way.join().unwrap();
        });
    }
    let marks = std::fs::read_to_string(marks).unwrap();
    eprintln!("{} jobs of {starts} starts", marks.lines().count());
    assert!(
        marks
            .lines()
            .eq((0..starts).map(|number| number.to_string()))
    );
}

fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    // An end that resets is an end too.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
