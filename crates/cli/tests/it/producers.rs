//! Whoever writes to a program that reads no more is told, through bowline as
//! by a pipe.

use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::server::Server;

/// Reads a byte, closes its stdin, and goes on until its producer has been told; gives up
/// after half a minute.
fn script(told: &Path) -> String {
    format!(
        "head -c 1; exec <&-; i=0; \
         while [ $i -lt 600 ]; do [ -e '{}' ] && exec echo told; sleep 0.05; i=$((i+1)); done; echo never",
        told.display()
    )
}

/// Writes to the command for as long as it is taken, and notes in a file that it no longer is.
fn produce(mut command: Command, told: &Path) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let told = told.to_owned();
    let producer = std::thread::spawn(move || {
        // Far more than all windows and pipes on the way hold.
        for _ in 0..1024 {
            if let Err(error) = input.write_all(&[b'y'; 64 * 1024]) {
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                std::fs::write(&told, "").unwrap();
                return true;
            }
        }
        false
    });
    let mut said = String::new();
    let mut output = child.stdout.take().unwrap();
    output.read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap().code();
    // Where the client never let go, its end does.
    assert!(producer.join().unwrap(), "all of it was taken");
    (status, said)
}

#[test]
fn a_producer_is_told_that_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start();
    let here = dir.path().join("here");
    let mut command = Command::new("sh");
    command.args(["-c", &script(&here)]);
    let local = produce(command, &here);
    assert_eq!(local, (Some(0), "ytold\n".to_owned()));
    let there = dir.path().join("there");
    let remote = server.run(&[], &["sh", "-c", &script(&there)]);
    assert_eq!(produce(remote, &there), local);
    // Also where the outcome is told as JSON, and the program ends at once.
    let gone = dir.path().join("gone");
    let remote = server.run(&["--json"], &["head", "-c", "1"]);
    let (status, said) = produce(remote, &gone);
    assert_eq!(status, Some(0));
    assert!(said.contains("\"outcome\":\"exited\""), "{said}");
}
