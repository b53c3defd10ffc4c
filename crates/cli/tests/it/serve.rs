//! `bowline serve` as a service: passed sockets, the service manager, signals, its places.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read as _};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::server::{Server, bowline, children_of, is_root, signal_process};

/// Waits for the next message to the service manager.
fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let count = socket.recv(&mut buffer).expect("a message in time");
    String::from_utf8(buffer[..count].to_vec()).unwrap()
}

/// A server that ends with its test, also where that fails.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal_process(self.0.id(), 15);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn a_service_manager_passes_sockets_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    // As root the gate, which is somebody else then, must be able to reach its part.
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Only a shell can put a socket at number 3 and name its own process.
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
    let child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(bowline())
        .args(["serve", "--listen", "tcp://192.0.2.1:1", "--state-dir"])
        .arg(dir.path().join("state"))
        .arg("--host-key")
        .arg(dir.path().join("host_key"))
        .arg("--authorized-keys")
        .arg(dir.path().join("authorized_keys"))
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .env("HOME", dir.path())
        .env("BOWLINE_LOG", "warn")
        .env("TOKEN", "secret")
        .env_remove("NO_COLOR")
        .env_remove("RUST_BACKTRACE")
        .env_remove("TZ")
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::piped())
        .spawn();
    let mut serving = Serving(child.unwrap());
    let child = &mut serving.0;
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, format!("listening tcp://{address}\n"));
    assert_eq!(told(&manager).trim(), "READY=1");
    // What the manager says is for the keeper alone, and so is all else that it was started with.
    let (gate, _) = children_of(child.id()).remove(0);
    let environment = std::fs::read(format!("/proc/{gate}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    let names = environment
        .split_terminator('\0')
        .map(|var| var.split('=').next().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["BOWLINE_LOG"]);
    // It accepts, and speaks TLS: a client without a key gets as far as the host key.
    let mut client = std::net::TcpStream::connect(address).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    std::io::Write::write_all(&mut client, b"not TLS at all").unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    assert_eq!(answer.first(), Some(&21), "a TLS alert: {answer:?}");
    signal_process(child.id(), 1);
    assert!(told(&manager).contains("RELOADING=1"));
    assert_eq!(told(&manager).trim(), "READY=1");
    signal_process(child.id(), 15);
    assert_eq!(told(&manager).trim(), "STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn sigterm_lets_what_runs_end_and_tells_its_outcome() {
    let mut server = Server::start();
    let mut command = server.run(&[], &["sh", "-c", "echo up; read line; echo $line; exit 9"]);
    let client = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = client.stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    server.signal(15);
    // It no longer listens, once the gate has heard of it.
    let target = server.target();
    while std::net::TcpStream::connect(&target).is_ok_and(|mut connection| {
        // A connection that nobody accepts any more is closed without a word when the gate ends;
        // one that is served gets an alert.
        let _ = std::io::Write::write_all(&mut connection, b"not TLS at all");
        connection
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        matches!(connection.read(&mut [0; 64]), Ok(count) if count > 0)
    }) {}
    std::io::Write::write_all(&mut client.stdin.take().unwrap(), b"later\n").unwrap();
    line.clear();
    stdout.read_to_string(&mut line).unwrap();
    assert_eq!(line, "later\n");
    assert_eq!(client.wait().unwrap().code(), Some(9));
    assert!(server.wait().success());
}

#[test]
fn a_killed_gate_comes_back_and_takes_connections_at_once() {
    let server = Server::start();
    let gate = || {
        let children = server.children();
        let gate = children
            .iter()
            .find(|(_, command)| command.contains(" gate "));
        gate.map(|(pid, _)| *pid)
    };
    // Once somebody was served there is a gate.
    assert!(server.run(&[], &["true"]).status().unwrap().success());
    for _ in 0..3 {
        let before = gate().expect("a gate");
        signal_process(before, 9);
        // Nobody is refused: the listening sockets are the keeper's.
        let status = server.run(&[], &["true"]).status().unwrap();
        assert_eq!(status.code(), Some(0));
        assert_ne!(gate().expect("a gate"), before);
    }
}

#[test]
fn places_that_are_in_use_are_said_to_be() {
    let server = Server::start();
    let serve = |flags: &[&str], state: &std::path::Path| {
        let dir = server.dir();
        let output = Command::new(bowline())
            .arg("serve")
            .args(flags)
            .arg("--state-dir")
            .arg(state)
            .arg("--host-key")
            .arg(dir.join("host_key"))
            .arg("--authorized-keys")
            .arg(dir.join("authorized_keys"))
            .env("HOME", server.home())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = serve(
        &["--listen", "tcp://127.0.0.1:0"],
        &server.dir().join("state"),
    );
    let pid = format!(
        "pid {}, version {}",
        server.pid(),
        env!("CARGO_PKG_VERSION")
    );
    assert!(
        said.contains("another bowline serve") && said.contains(&pid),
        "{said}"
    );
    let address = format!("tcp://{}", server.target());
    let said = serve(&["--listen", &address], &server.dir().join("other"));
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
    let said = serve(
        &["--listen", "udp://127.0.0.1:1"],
        &server.dir().join("other"),
    );
    assert!(said.contains("HOST:PORT"), "{said}");
}

#[test]
fn a_gate_that_could_not_reach_its_record_is_not_started() {
    if !is_root() {
        return;
    }
    // Nobody but root passes through it.
    let private = Permissions::from_mode(0o700);
    let dir = tempfile::Builder::new()
        .permissions(private)
        .tempdir()
        .unwrap();
    let serve = Command::new(bowline())
        .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(dir.path().join("state"))
        .arg("--host-key")
        .arg(dir.path().join("host_key"))
        .env("HOME", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&serve.stderr);
    assert!(!serve.status.success(), "{said}");
    assert!(
        said.contains("cannot reach") && said.contains("chmod o+x"),
        "{said}"
    );
}
