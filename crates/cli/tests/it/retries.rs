//! Lines that break before anything was done over them: every command that
//! connects tries again, and none for ever.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Output;

use crate::server::Server;

/// Lines that may break before a client gives up.
const BROKEN_MAX: usize = 5;

/// Takes connections for a server: closes the first `broken` of them after the client has
/// spoken, and passes what comes over the last one.
fn way(listener: &TcpListener, server: &Server, broken: usize) {
    for _ in 0..broken {
        let (client, _) = listener.accept().unwrap();
        // Something has come; what it says is never read, so the client sees a reset.
        client.peek(&mut [0]).unwrap();
    }
    let (client, _) = listener.accept().unwrap();
    let there = TcpStream::connect(("127.0.0.1", server.port().unwrap())).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| pass(&client, &there));
        pass(&there, &client);
    });
}

fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    // An end that resets is an end too.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// A client's command over lines of which the first ones break.
fn over(server: &Server, broken: usize, args: &[&str]) -> Output {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let args: Vec<&str> = args
        .iter()
        .map(|arg| if *arg == "TARGET" { &*target } else { *arg })
        .collect();
    std::thread::scope(|scope| {
        let way = scope.spawn(|| way(&listener, server, broken));
        let done = server.command(&args).output().unwrap();
        if broken > BROKEN_MAX {
            // The client has given up: nobody comes for the last line.
            drop(TcpStream::connect(listener.local_addr().unwrap()));
        }
        way.join().unwrap();
        done
    })
}

const COMMANDS: [&[&str]; 4] = [
    &[
        "run", "--trust", "new", "-n", "TARGET", "--", "echo", "done",
    ],
    &["jobs", "--trust", "new", "--all", "TARGET"],
    &["ping", "--trust", "new", "-c", "1", "TARGET"],
    &["kill", "--trust", "new", "TARGET", "0123456789abcdef"],
];

#[test]
fn every_command_outlives_lines_that_break() {
    let server = Server::start();
    for args in COMMANDS {
        let done = over(&server, BROKEN_MAX, args);
        let said = String::from_utf8_lossy(&done.stderr);
        if args[0] == "kill" {
            // It was asked and answered: there is no such job.
            assert!(said.contains("[no_such_job]"), "{said}");
        } else {
            assert_eq!(done.status.code(), Some(0), "{args:?}: {said}");
            assert!(!done.stdout.is_empty(), "{args:?}");
        }
    }
}

#[test]
fn no_command_tries_for_ever() {
    let server = Server::start();
    for args in COMMANDS {
        let done = over(&server, BROKEN_MAX + 1, args);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(255), "{args:?}: {said}");
        assert!(said.contains("[connection_lost]"), "{args:?}: {said}");
    }
}
