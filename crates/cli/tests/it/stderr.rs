//! A stderr that takes nothing: words are lost there, statuses and services are not.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::server::{Server, bowline};

/// The disk that is always full.
pub(crate) fn full() -> Stdio {
    Stdio::from(File::options().write(true).open("/dev/full").unwrap())
}

/// A pipe whose reader has gone.
fn gone() -> Stdio {
    Stdio::from(std::io::pipe().unwrap().1)
}

#[test]
fn what_cannot_be_said_changes_no_status() {
    let server = Server::start();
    let target = server.target();
    let nowhere = "unix:/there/is/no/such/socket";
    let cases: [(&[&str], i32); 6] = [
        (&["ping", nowhere], 255),
        (&["jobs", nowhere], 255),
        (&["jobs", "host:port"], 2),
        (&["kill", &target, "abcdef"], 1),
        (&["plain", "connect", "upper", nowhere], 255),
        (&["cp", "/there/is/no/such/file", "/tmp/bowline-none"], 1),
    ];
    for (args, status) in cases {
        for stderr in [full(), gone()] {
            let mut command = server.command(args);
            let ended = command.stdin(Stdio::null()).stderr(stderr).status();
            assert_eq!(ended.unwrap().code(), Some(status), "{args:?}");
        }
    }
}

#[test]
fn a_server_whose_log_has_no_room_serves() {
    let server = Server::start_with(|command, _| {
        command.arg("-vv").stderr(full());
    });
    let run = server.run(&[], &["echo", "served"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&run.stdout), "served\n");
    assert_eq!(run.status.code(), Some(0));
    let mut local = Command::new(bowline());
    server.client(&mut local);
    let local = local.args(["-vv", "run", "local", "--", "true"]);
    assert_eq!(local.stderr(full()).status().unwrap().code(), Some(0));
}
