//! The shared secret: both sides prove it, and nothing is told to a server that
//! cannot.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bowline::credentials::host_key::HostKey;
use bowline::net::tls::{self, HostSigner};
use bowline_proto::frame::{self, Bound, Kind};
use bowline_proto::limits::PROTOCOL;
use bowline_proto::message::{Granted, Hello};
use bowline_proto::session::{ServerEvent, ServerHandshake};

use crate::openssh::{ended, text};
use crate::server::{Server, bowline};

/// Makes a secret as a person does.
fn keygen(file: &Path) {
    let mut command = Command::new(bowline());
    command.args(["keygen", "--secret"]).arg(file);
    let (out, _) = ended(&command, 0);
    assert!(out.contains(file.to_str().unwrap()), "{out}");
}

fn own_name() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    user.unwrap().unwrap().name
}

/// A server that knows one secret, and a home that knows no host key.
fn server(secret: &Path) -> Server {
    let server = Server::start_with(|command, dir| {
        let config = dir.join("server.toml");
        let entry = format!(
            "[[secret]]\nuser = \"{}\"\nfile = \"{}\"\n",
            own_name(),
            secret.display()
        );
        std::fs::write(&config, entry).unwrap();
        command.arg("--config").arg(config);
    });
    std::fs::remove_file(server.home().join(".config/bowline/known_hosts")).unwrap();
    std::fs::remove_file(server.home().join(".ssh/id_ed25519")).unwrap();
    server
}

fn with_secret<'a>(file: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec!["--secret-file", file.to_str().unwrap()];
    flags.extend(more);
    flags
}

#[test]
fn a_secret_serves_both_sides_without_a_known_host_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    keygen(&file);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let server = server(&file);
    for trust in ["ask", "strict"] {
        let flags = with_secret(&file, &["--trust", trust]);
        let (out, err) = ended(&server.run(&flags, &["echo", "in"]), 0);
        assert_eq!((out.as_str(), err.as_str()), ("in\n", ""));
    }
    assert!(!server.home().join(".config/bowline/known_hosts").exists());
    // Input that was typed ahead of the grant arrives all the same.
    let mut cat = server
        .run(&with_secret(&file, &[]), &["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = vec![b'x'; 300_000];
    cat.stdin.take().unwrap().write_all(&input).unwrap();
    let done = cat.wait_with_output().unwrap();
    assert!(done.status.success() && done.stdout == input);
    // The client's configuration can name it, too.
    let config = server.home().join(".config/bowline/config.toml");
    std::fs::write(&config, format!("secret = \"{}\"\n", file.display())).unwrap();
    assert_eq!(ended(&server.run(&[], &["echo", "in"]), 0).0, "in\n");
    // Only the account that it was given to.
    let flags = with_secret(&file, &["--user", "daemon"]);
    let (_, err) = ended(&server.run(&flags, &["true"]), 255);
    assert!(err.contains("[not_authenticated]"), "{err}");
}

#[test]
fn another_secret_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join("secret"), dir.path().join("other"));
    keygen(&file);
    keygen(&other);
    let server = server(&file);
    let marker = dir.path().join("marker");
    let touch = ["touch", marker.to_str().unwrap()];
    let (_, err) = ended(&server.run(&with_secret(&other, &[]), &touch), 255);
    assert!(err.contains("[not_authenticated]"), "{err}");
    // A key that is let in does not stand in for the secret that was named.
    assert!(!marker.exists());
}

#[test]
fn a_changed_host_key_is_refused_even_with_the_secret() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    keygen(&file);
    let server = server(&file);
    let other = dir.path().join("key");
    crate::openssh::ssh_keygen(&other, &["-t", "ed25519"]);
    let key = std::fs::read_to_string(crate::openssh::public(&other)).unwrap();
    let port = server.port().unwrap();
    let known = server.home().join(".config/bowline/known_hosts");
    std::fs::write(known, format!("[127.0.0.1]:{port} {key}")).unwrap();
    let (_, err) = ended(&server.run(&with_secret(&file, &[]), &["true"]), 255);
    assert!(err.contains("[host_key_changed]"), "{err}");
}

#[test]
fn files_that_are_no_secret_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    keygen(&file);
    let server = server(&file);
    let mut again = Command::new(bowline());
    again.args(["keygen", "--secret"]).arg(&file);
    let before = std::fs::read(&file).unwrap();
    let (_, err) = ended(&again, 2);
    assert!(err.contains("is there already"), "{err}");
    assert_eq!(std::fs::read(&file).unwrap(), before);

    let bad = dir.path().join("bad");
    for (content, mode, said) in [
        (
            &b"correct horse battery staple"[..],
            0o600,
            "neither hex nor base64",
        ),
        (b"c2hvcnQ=", 0o600, "at least 32"),
        (before.as_slice(), 0o640, "chmod 600"),
    ] {
        std::fs::write(&bad, content).unwrap();
        std::fs::set_permissions(&bad, std::fs::Permissions::from_mode(mode)).unwrap();
        let (_, err) = ended(&server.run(&with_secret(&bad, &[]), &["true"]), 2);
        assert!(err.contains(said), "{err}");
        // The server does not begin with such a file either.
        let config = dir.path().join("bad.toml");
        let entry = format!(
            "[[secret]]\nuser = \"{}\"\nfile = \"{}\"\n",
            own_name(),
            bad.display()
        );
        std::fs::write(&config, entry).unwrap();
        let mut serve = Command::new(bowline());
        serve
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(config);
        serve.arg("--state-dir").arg(dir.path().join("state"));
        serve.arg("--host-key").arg(dir.path().join("host_key"));
        serve.env("HOME", dir.path());
        let (_, err) = ended(&serve, 2);
        assert!(err.contains(said), "{err}");
    }
}

/// A key of its own, as anybody in between could make one.
#[derive(Debug)]
struct Holder(HostKey);

impl HostSigner for Holder {
    fn sign(&self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        Ok(self.0.sign(message).to_vec())
    }
}

/// A server that lets everybody in with whatever proof of its own it is given.
struct Impostor {
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
}

impl Impostor {
    fn new(dir: &Path) -> Impostor {
        let key = HostKey::load_or_create(&dir.join("impostor")).unwrap();
        let public = key.public().ed25519().unwrap();
        let holder: Arc<dyn HostSigner> = Arc::new(Holder(key));
        let certificate = tls::self_signed(public, Arc::clone(&holder)).unwrap();
        Impostor {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            config: tls::server_config(certificate, holder).unwrap(),
        }
    }

    fn target(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Speaks with one client until it leaves, and gives all that it said.
    fn serve_one(&self, mac: Option<String>) -> Vec<u8> {
        let (mut socket, _) = self.listener.accept().unwrap();
        let limit = Some(std::time::Duration::from_secs(30));
        socket.set_read_timeout(limit).unwrap();
        let mut tls = rustls::ServerConnection::new(Arc::clone(&self.config)).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let mut handshake = ServerHandshake::new(&Hello {
            protocol: PROTOCOL.to_owned(),
            ..Hello::default()
        });
        stream.write_all(handshake.outbox().control()).unwrap();
        handshake.outbox().control_sent();
        let (mut all, mut taken) = (Vec::new(), 0);
        loop {
            let (len, event) = handshake.next(&all[taken..]).unwrap();
            taken += len;
            match event {
                ServerEvent::Auth(_) => break,
                ServerEvent::NeedMore => read_some(&mut stream, &mut all).unwrap(),
                _ => {}
            }
        }
        let granted = Granted {
            user: String::new(),
            mac,
        };
        let mut session = handshake.granted(&granted, &());
        stream.write_all(session.outbox().control()).unwrap();
        stream.flush().unwrap();
        // Until the client leaves, or has told what it must not.
        while !tells_secret(&all) && read_some(&mut stream, &mut all).is_ok() {}
        all
    }
}

/// Reads what there is; an error is the end.
fn read_some(
    stream: &mut rustls::Stream<'_, rustls::ServerConnection, TcpStream>,
    all: &mut Vec<u8>,
) -> std::io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    match stream.read(&mut bytes)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        read => {
            all.extend_from_slice(&bytes[..read]);
            Ok(())
        }
    }
}

fn tells_secret(said: &[u8]) -> bool {
    said.windows(7).any(|window| window == b"hunter2")
}

fn kinds(mut bytes: &[u8]) -> Vec<Kind> {
    let mut kinds = Vec::new();
    while let Ok(Some((frame, len))) = frame::decode(bytes, Bound::Authenticated) {
        kinds.push(frame.kind);
        bytes = &bytes[len..];
    }
    kinds
}

/// Runs a client with a secret in its argv against an impostor; gives what the
/// client said to it, its status and its stderr.
fn against(
    impostor: &Impostor,
    mac: Option<String>,
    flags: &[&str],
    home: &Path,
) -> (Vec<u8>, Option<i32>, String) {
    let mut run = Command::new(bowline());
    run.arg("run").args(flags).arg(impostor.target());
    run.args([
        "--env",
        "PASSWORD=hunter2",
        "--",
        "mysql",
        "--password=hunter2",
    ]);
    run.env("HOME", home)
        .env_remove("SSH_AUTH_SOCK")
        .env_remove("XDG_CONFIG_HOME");
    let child = run
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.as_ref().unwrap();
    stdin.write_all(b"hunter2 on stdin").unwrap();
    let said = impostor.serve_one(mac);
    let done = child.wait_with_output().unwrap();
    (said, done.status.code(), text(&done.stderr))
}

#[test]
fn a_server_that_cannot_prove_itself_is_told_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file: PathBuf = dir.path().join("secret");
    keygen(&file);
    let impostor = Impostor::new(dir.path());
    let flags = with_secret(&file, &[]);
    for mac in [None, Some("00".repeat(32)), Some("no hex".to_owned())] {
        let (said, status, err) = against(&impostor, mac, &flags, dir.path());
        assert_eq!(status, Some(255), "{err}");
        assert!(err.contains("[server_not_proven]"), "{err}");
        let kinds = kinds(&said);
        assert_eq!(kinds.get(..2), Some(&[Kind::Hello, Kind::Auth][..]));
        assert!(
            !kinds.contains(&Kind::Start) && !kinds.contains(&Kind::Stdin),
            "{kinds:?}"
        );
        assert!(!tells_secret(&said));
    }
    // The observer sees: to a server whose key is known all of it goes out at once.
    let key = dir.path().join("key");
    crate::openssh::ssh_keygen(&key, &["-t", "ed25519"]);
    let flags = ["--trust", "new", "--identity", key.to_str().unwrap()];
    // It tries again when the line breaks, and then nobody answers.
    let flags = [&flags[..], &["--connect-timeout", "3s"]].concat();
    let (said, _, _) = against(&impostor, None, &flags, dir.path());
    assert!(kinds(&said).contains(&Kind::Start));
    assert!(tells_secret(&said));
}
