//! PROTOCOL.md is enough: a client in Python, written from it alone and sharing
//! nothing with bowline, talks to a real server. And a server, to which the real client does.

mod old_server;

use std::path::Path;
use std::process::Command;

use super::server::Server;

/// A client of each minor that there was, and of one that is yet to come.
#[test]
fn a_client_written_from_the_document_is_served() {
    let server = Server::start_with(|command, dir| {
        let socket = dir.join("socket");
        command
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()));
    });
    for minor in [None, Some("0"), Some("1"), Some("1000")] {
        served(&server, minor);
    }
}

fn served(server: &Server, minor: Option<&str>) {
    let user = Command::new("id").arg("-un").output().unwrap().stdout;
    let user = String::from_utf8(user).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/stranger.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(server.dir().join("socket"))
        .arg(user.trim())
        .arg(server.home().join(".ssh/id_ed25519"))
        .args(minor)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3");
    let seen = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "minor {minor:?}: {seen}{said}");
    // It came to its end.
    assert_eq!(seen.lines().count(), 11, "{seen}");
}
