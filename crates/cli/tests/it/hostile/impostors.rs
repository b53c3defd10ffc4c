//! Servers that are not who they say: what a client tells them, and what it reports.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use bowline::credentials::host_key::HostKey;
use bowline::net::tls::{HostSigner, self_signed, server_config};
use bowline_proto::frame::Kind;
use bowline_proto::limits::PROTOCOL;
use serde_json::{Value, json};

use super::raw::message;
use crate::server::bowline;

/// What no impostor may learn.
const SECRETS: [&[u8]; 3] = [b"SECRET-ARGUMENT", b"SECRET-VALUE", b"/SECRET-FOLDER"];

#[derive(Debug)]
struct Key(HostKey);

impl HostSigner for Key {
    fn sign(&self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        Ok(self.0.sign(message).to_vec())
    }
}

/// Accepts one client, says hello and these frames, and gives all that the client said.
fn impostor(listener: &TcpListener, says: &[u8]) -> Vec<u8> {
    let key = HostKey::generate().unwrap();
    let public = key.public().ed25519().unwrap();
    let key: Arc<dyn HostSigner> = Arc::new(Key(key));
    let certificate = self_signed(public, key.clone()).unwrap();
    let config = server_config(certificate, key).unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let mut tls = rustls::ServerConnection::new(config).unwrap();
    let mut heard = Vec::new();
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    let hello = message(Kind::Hello, 0, &json!({"protocol": PROTOCOL}));
    // A client that leaves in the middle has said what it has said.
    if stream.write_all(&[&hello, says].concat()).is_ok() {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            heard.extend_from_slice(&buffer[..len]);
        }
    }
    heard
}

/// Runs a command against an impostor. Gives the client's status, what it said
/// to the person and what to the impostor.
fn meet(flags: &[&str], secret: bool, says: &[u8]) -> (Option<i32>, String, Vec<u8>) {
    let home = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(bowline());
    command
        .env("HOME", home.path())
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("SSH_AUTH_SOCK");
    command.arg("run").args(flags);
    if secret {
        let file = home.path().join("secret");
        bowline::credentials::secret::Secret::create(&file).unwrap();
        command.arg("--secret-file").arg(file);
    } else {
        let key = home.path().join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status();
        assert!(made.unwrap().success());
        command.arg("--identity").arg(key);
    }
    command.args([
        "-n",
        "--user",
        "root",
        "--cwd",
        "/SECRET-FOLDER",
        "--env",
        "A=SECRET-VALUE",
    ]);
    command.arg(format!(
        "127.0.0.1:{}",
        listener.local_addr().unwrap().port()
    ));
    command.args(["--", "echo", "SECRET-ARGUMENT"]);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| impostor(&listener, says));
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), said, server.join().unwrap())
    })
}

fn tells_nothing(heard: &[u8]) {
    for secret in SECRETS {
        let found = heard.windows(secret.len()).any(|bytes| bytes == secret);
        assert!(
            !found,
            "the impostor was told {}",
            String::from_utf8_lossy(secret)
        );
    }
}

/// A server that is older than terminals would run the program without one.
#[test]
fn a_server_without_terminals_is_not_asked_for_one() {
    let (status, said, heard) = meet(&["--trust", "new", "--pty"], false, &[]);
    assert_eq!(status, Some(255), "{said}");
    assert!(said.contains("[no_terminals]"), "{said}");
    tells_nothing(&heard);
}

/// With a shared secret both sides prove it; a server that cannot is told nothing.
#[test]
fn a_server_that_does_not_prove_itself() {
    let granted = |mac: Value| message(Kind::Granted, 0, &json!({"user": "root", "mac": mac}));
    let started = message(Kind::Started, 1, &json!({"pid": 1, "unix_ms": 1}));
    let exit = json!({
        "outcome": "exited", "code": 0, "stdin": 0, "stdout": 0, "stderr": 0,
    });
    let pretends = [started, message(Kind::Exit, 1, &exit)].concat();
    for (name, grant) in [
        (
            "no code",
            message(Kind::Granted, 0, &json!({"user": "root"})),
        ),
        ("a wrong code", granted(json!("0".repeat(64)))),
        ("a short code", granted(json!("00"))),
        ("nothing at all", Vec::new()),
    ] {
        for flags in [&[][..], &["--trust", "new"]] {
            let says = [&grant[..], &pretends].concat();
            let (status, said, heard) = meet(flags, true, &says);
            assert_eq!(status, Some(255), "{name}: {said}");
            tells_nothing(&heard);
        }
    }
}

/// With a key the host key is what a server proves; an unknown one is told not even who asks.
#[test]
fn a_server_that_nobody_knows() {
    let says = message(Kind::Granted, 0, &json!({"user": "root"}));
    let (status, said, heard) = meet(&["--trust", "strict"], false, &says);
    assert_eq!(status, Some(255), "{said}");
    assert!(said.contains("[host_key_unknown]"), "{said}");
    assert_eq!(heard, b"");
}

/// A server that breaks the protocol: the client reports what it knows, and never a success.
#[test]
fn a_server_that_keeps_no_rule() {
    let granted = message(Kind::Granted, 0, &json!({"user": "root"}));
    let started = message(Kind::Started, 1, &json!({"pid": 1, "unix_ms": 1}));
    let exit = |stdout: u64, extra: Value| {
        let mut header = json!({
            "outcome": "exited", "code": 0, "stdin": 0, "stdout": stdout, "stderr": 0,
        });
        header
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        message(Kind::Exit, 1, &header)
    };
    let open = [&granted[..], &started].concat();
    for (name, says) in [
        (
            "an outcome ahead of the output",
            [&open[..], &exit(5, json!({}))].concat(),
        ),
        (
            "an outcome that there is not",
            [&open[..], &exit(0, json!({"outcome": "fine"}))].concat(),
        ),
        ("an outcome before the grant", exit(0, json!({}))),
        (
            "a kind that there is not",
            [&open[..], &[0xee; 12]].concat(),
        ),
        (
            "a start",
            [&open[..], &super::start(2, 1, &["true"])].concat(),
        ),
        (
            "a payload past the limit",
            [&open[..], &super::prelude(2, 0, 0, 1, u32::MAX)].concat(),
        ),
        (
            "output of another channel",
            [&open[..], &super::frame(Kind::Stdout, 0, 9, b"", b"x")].concat(),
        ),
        (
            "stdin",
            [&open[..], &super::frame(Kind::Stdin, 0, 1, b"", b"x")].concat(),
        ),
        ("another grant", [&open[..], &granted].concat()),
        (
            "goodbye",
            [&open[..], &message(Kind::Bye, 0, &json!({}))].concat(),
        ),
        (
            "a refusal without a reason",
            [
                &open[..],
                &message(Kind::Refused, 1, &json!({"code": "", "message": ""})),
            ]
            .concat(),
        ),
    ] {
        // A server that waits for the client would wait for ever: these end by themselves.
        let says = [
            &says[..],
            &message(Kind::Refused, 0, &json!({"code": "x", "message": "x"})),
        ]
        .concat();
        let (status, said, _) = meet(&["--trust", "new"], false, &says);
        assert_eq!(status, Some(255), "{name}: {said}");
        assert!(!said.is_empty(), "{name}");
    }
}
