//! `ssh:host`: a session over a real ssh and a real sshd, both with files of the
//! test's own; the way for hosts where no port can be opened.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{ended, public, script, ssh_keygen, text};
use crate::run::wait_gone;
use crate::server::{bowline, children_of, is_root, signal_process};
use crate::terminal::Terminal;

/// A machine with sshd and nothing else, and a client that ssh knows it from.
pub(super) struct Machine {
    dir: tempfile::TempDir,
    sshd: Sshd,
}

/// sshd for each connection, as inetd starts it: no port is taken that another
/// could have, and each one is ours to wait for.
struct Sshd {
    address: SocketAddr,
    sessions: Arc<Mutex<Vec<Child>>>,
    stopping: Arc<AtomicBool>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl Sshd {
    fn start(config: PathBuf, log: PathBuf) -> Sshd {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (kept, stop) = (Arc::clone(&sessions), Arc::clone(&stopping));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let socket = OwnedFd::from(stream.unwrap());
                let child = Command::new("/usr/sbin/sshd")
                    .args(["-i", "-f"])
                    .arg(&config)
                    .arg("-E")
                    .arg(&log)
                    .stdin(socket.try_clone().unwrap())
                    .stdout(socket)
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("sshd, of openssh-server");
                kept.lock().unwrap().push(child);
            }
        });
        Sshd {
            address,
            sessions,
            stopping,
            accepting: Some(accepting),
        }
    }

    /// Waits for the end of every session there was. They end by themselves.
    fn all_ended(&self) {
        for mut session in self.sessions.lock().unwrap().drain(..) {
            wait_gone(session.id() as i32);
            session.wait().unwrap();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for mut session in self.sessions.lock().unwrap().drain(..) {
            signal_process(session.id(), 15);
            let _ = session.wait();
        }
    }
}

impl Machine {
    pub(super) fn start() -> Machine {
        Machine::with("ok")
    }

    /// `bin` is the folder in the machine's PATH, of those that are made.
    fn with(bin: &str) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        // As root the gate, which is somebody else then, must be able to reach its part.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let at = |name: &str| dir.path().join(name);
        if is_root() {
            // Debian's sshd wants its empty folder, which its service makes.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        for name in ["ok", "none", "noisy", "client", "home"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let programs = [("ok/bowline", ""), ("noisy/bowline", "echo Welcome")];
        for (name, first) in programs {
            let program = bowline();
            // A place of its own for each test's server, which ends as soon as nobody needs it.
            let flags = format!("--state-dir '{}' --until-idle 0", at("state").display());
            script(
                &at(name),
                &format!("{first}\nexec '{}' \"$@\" {flags}", program.display()),
            );
        }
        ssh_keygen(&at("sshd_key"), &["-t", "ed25519"]);
        ssh_keygen(&at("user_key"), &["-t", "ed25519"]);
        ssh_keygen(
            &at("locked_key"),
            &["-t", "ed25519", "-a", "4", "-N", "phrase"],
        );
        let mut grants = std::fs::read_to_string(public(&at("user_key"))).unwrap();
        grants += &std::fs::read_to_string(public(&at("locked_key"))).unwrap();
        std::fs::write(at("authorized_keys"), grants).unwrap();
        let sshd_config = format!(
            "HostKey {0}/sshd_key\nAuthorizedKeysFile {0}/authorized_keys\nStrictModes no\n\
             UsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPidFile none\nLogLevel VERBOSE\n\
             AcceptEnv LANG LC_*\n\
             SetEnv PATH={0}/{bin}:/usr/bin:/bin XDG_RUNTIME_DIR={0}\n",
            dir.path().display()
        );
        std::fs::write(at("sshd_config"), sshd_config).unwrap();
        let sshd = Sshd::start(at("sshd_config"), at("sshd_log"));
        let known = std::fs::read_to_string(public(&at("sshd_key"))).unwrap();
        std::fs::write(at("known_hosts"), format!("box {known}")).unwrap();
        let machine = Machine { dir, sshd };
        machine.configure("user_key");
        let config = machine.at("ssh_config");
        let wrapper = format!("exec /usr/bin/ssh -F '{}' \"$@\"", config.display());
        script(&machine.at("client/ssh"), &wrapper);
        machine
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What ssh reads on the client's side.
    fn configure(&self, key: &str) {
        let config = format!(
            "Host box\n  HostName 127.0.0.1\n  HostKeyAlias box\n  Port {}\n  IdentityFile {1}/{key}\n  \
             IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {1}/known_hosts\n  \
             GlobalKnownHostsFile none\n  SendEnv LANG LC_*\n",
            self.sshd.address.port(),
            self.dir.path().display()
        );
        std::fs::write(self.at("ssh_config"), config).unwrap();
    }

    fn run(&self, flags: &[&str], argv: &[&str]) -> Command {
        let mut command = Command::new(bowline());
        command
            .arg("run")
            .args(flags)
            .arg("ssh:box")
            .arg("--")
            .args(argv);
        let path = std::env::var("PATH").unwrap();
        command
            .env("PATH", format!("{}:{path}", self.at("client").display()))
            .env("HOME", self.at("home"))
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("SSH_ASKPASS")
            .env_remove("DISPLAY")
            .env_remove("XDG_CONFIG_HOME");
        command
    }

    /// Any other command of a client.
    fn command(&self, args: &[&str]) -> Command {
        let run = self.run(&[], &[]);
        let mut command = Command::new(bowline());
        command
            .args(args)
            .envs(run.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("XDG_CONFIG_HOME");
        command
    }

    /// Requires that nothing runs there any more.
    fn ends_quietly(self) {
        self.sshd.all_ended();
        let mine = self.dir.path().to_str().unwrap().to_owned();
        // The server ends by itself when nobody needs it; what is just being started comes and goes.
        loop {
            let running = processes_of(&mine);
            if running.is_empty() {
                break;
            }
            running.into_iter().for_each(wait_gone);
        }
    }
}

/// Processes whose command line or environment names a folder.
fn processes_of(folder: &str) -> Vec<i32> {
    let names = |pid: &i32| {
        ["cmdline", "environ"].iter().any(|name| {
            let read = std::fs::read(format!("/proc/{pid}/{name}"));
            text(&read.unwrap_or_default()).contains(folder)
        })
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(names)
        .collect()
}

#[test]
fn output_input_and_status() {
    let machine = Machine::start();
    let script = "echo out; echo err >&2; exit 3";
    let (out, err) = ended(&machine.run(&[], &["sh", "-c", script]), 3);
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    let mut cat = machine
        .run(&[], &["sh", "-c", "cat; echo end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"in\n").unwrap();
    let done = cat.wait_with_output().unwrap();
    assert_eq!(text(&done.stdout), "in\nend\n");
    // Arguments are not joined, whatever ssh would do to them.
    let argv = ["printf", "<%s>", "a b", "", "$HOME", "*", "it's"];
    assert_eq!(
        ended(&machine.run(&[], &argv), 0).0,
        "<a b><><$HOME><*><it's>"
    );
    ended(&machine.run(&[], &["sh", "-c", "kill -SEGV $$"]), 139);
    ended(&machine.run(&[], &["sh", "-c", "exit 255"]), 255);
    let (_, err) = ended(&machine.run(&[], &["no-such-program"]), 127);
    assert!(err.contains("[not_found]"), "{err}");
    let (out, _) = ended(&machine.run(&["--json"], &["true"]), 0);
    let outcome: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(outcome["outcome"], "exited");
    ended(
        &machine.run(&["--timeout", "200ms"], &["sleep", "1000"]),
        124,
    );
    machine.ends_quietly();
}

#[test]
fn twenty_mebibytes_each_way() {
    const BYTES: usize = 20 << 20;
    let machine = Machine::start();
    let mut bytes = vec![0; BYTES];
    let mut state = 1u32;
    for byte in &mut bytes {
        // Numerical Recipes' generator: it must only not repeat.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let mut cat = machine
        .run(&[], &["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&bytes).unwrap();
            drop(stdin);
        });
        cat.wait_with_output().unwrap()
    });
    assert_eq!(done.status.code(), Some(0));
    assert!(
        done.stdout == bytes,
        "{} bytes came back",
        done.stdout.len()
    );
    machine.ends_quietly();
}

#[test]
fn signals_reach_the_program() {
    let machine = Machine::start();
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 7' TERM; echo ready; while :; do sleep 0.02; done";
    let mut child = machine
        .run(&[], &["sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    for (expected, signal) in [("ready\n", 10), ("usr1\n", 15)] {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
        signal_process(child.id(), signal);
    }
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(
        (rest.as_str(), child.wait().unwrap().code()),
        ("term\n", Some(7))
    );
    ended(&machine.run(&[], &["sh", "-c", "kill -TERM $$"]), 143);
    machine.ends_quietly();
}

#[test]
fn ctrl_c_is_for_the_job_and_not_for_ssh() {
    let machine = Machine::start();
    let script = "trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.02; done";
    let mut terminal = Terminal::start(&machine.run(&[], &["sh", "-c", script]));
    terminal.expect("ready\r\n");
    terminal.type_in("\u{3}");
    terminal.expect("caught\r\n");
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(4), "{shown}");

    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.02; done";
    let mut terminal = Terminal::start(&machine.run(&[], &["sh", "-c", script]));
    terminal.expect("ready\r\n");
    terminal.type_in("\u{3}");
    terminal.expect("caught\r\n");
    terminal.type_in("\u{3}");
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(130), "{shown}");
    machine.ends_quietly();
}

#[test]
fn what_ssh_asks_a_person_can_answer() {
    let machine = Machine::start();
    machine.configure("locked_key");
    let mut terminal = Terminal::start(&machine.run(&[], &["echo", "in"]));
    terminal.expect("Enter passphrase for key");
    terminal.expect(": ");
    terminal.type_in("phrase\n");
    terminal.expect("in\r\n");
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(0), "{shown}");
    // Where nobody is there, ssh says no and so do we.
    let (_, err) = ended(&machine.run(&[], &["true"]), 255);
    assert!(err.contains("Permission denied"), "{err}");
    assert!(err.contains("[carrier_failed]\n  hint: "), "{err}");
    // A Ctrl-C at the question ends it all, and the terminal is as it was.
    let mut terminal = Terminal::start(&machine.run(&[], &["echo", "in"]));
    terminal.expect("Enter passphrase for key");
    terminal.expect(": ");
    assert!(!terminal.echoes());
    // ssh misses a signal that comes before it waits for the answer, as no person's would; so it gets one.
    terminal.type_in("\u{3}\n");
    let (status, shown) = terminal.end();
    assert_eq!(status.signal(), Some(2), "{shown}");
    machine.ends_quietly();
}

#[test]
fn a_machine_without_bowline_is_told_as_that() {
    let machine = Machine::with("none");
    let (_, err) = ended(&machine.run(&[], &["true"]), 255);
    assert!(err.contains("bowline: "), "{err}");
    assert!(
        err.contains("[carrier_not_found]\n  hint: is bowline installed"),
        "{err}"
    );
    // It is tried once: ssh was not the problem.
    assert_eq!(machine.sshd.sessions.lock().unwrap().len(), 1);
    machine.ends_quietly();
}

#[test]
fn a_shell_that_talks_ahead_of_bowline_is_told_as_that() {
    let machine = Machine::with("noisy");
    let (_, err) = ended(&machine.run(&[], &["true"]), 255);
    assert!(err.contains("[protocol_error]\n  hint: "), "{err}");
    machine.ends_quietly();
}

#[test]
fn a_host_key_that_ssh_does_not_know_is_asked_about_by_ssh() {
    let machine = Machine::start();
    std::fs::remove_file(machine.at("known_hosts")).unwrap();
    let (_, err) = ended(&machine.run(&[], &["true"]), 255);
    assert!(err.contains("Host key verification failed"), "{err}");
    let mut terminal = Terminal::start(&machine.run(&[], &["echo", "in"]));
    terminal.expect("continue connecting (yes/no");
    terminal.expect("? ");
    terminal.type_in("yes\n");
    terminal.expect("in\r\n");
    assert_eq!(terminal.end().0.code(), Some(0));
    machine.ends_quietly();
}

#[test]
fn the_other_commands_go_over_ssh_too() {
    let machine = Machine::start();
    let (out, _) = ended(
        &machine.command(&["ping", "ssh:box", "-c", "3", "--job"]),
        0,
    );
    assert!(out.contains("median"), "{out}");
    ended(&machine.command(&["jobs", "ssh:box"]), 0);
    let (_, err) = ended(&machine.command(&["trust", "ssh:box"]), 2);
    assert!(err.contains("no host key"), "{err}");
    machine.ends_quietly();
}

/// One connection's job is there for the next one: both meet the same server, which
/// stays for as long as the job runs.
#[test]
fn another_connection_finds_the_job() {
    let machine = Machine::start();
    let mut first = machine
        .run(&["-n"], &["sh", "-c", "echo up; exec sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(first.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let (out, _) = ended(&machine.command(&["jobs", "--json", "ssh:box"]), 0);
    let found: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!(found["command"], "sh -c 'echo up; exec sleep 1000'");
    let job = found["job"].as_str().unwrap();
    ended(&machine.command(&["kill", "ssh:box", job]), 0);
    assert_eq!(first.wait().unwrap().code(), Some(143));
    // Its record is there for a server that was not.
    let (out, _) = ended(&machine.command(&["jobs", "--all", "--json", "ssh:box"]), 0);
    assert!(out.contains(job) && out.contains("cancelled"), "{out}");
    machine.ends_quietly();
}

#[test]
fn no_ssh_here_is_told_as_that() {
    let machine = Machine::start();
    let mut run = machine.run(&[], &["true"]);
    run.env("PATH", machine.at("none"));
    // The test's own way of starting things needs the PATH.
    let done = run.stdin(Stdio::null()).output().unwrap();
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(255), "{err}");
    assert!(err.contains("no ssh in the PATH"), "{err}");
    assert!(err.contains("[carrier_failed]"), "{err}");
}

#[test]
fn an_ssh_that_dies_leaves_an_unknown_outcome_and_no_process() {
    let machine = Machine::start();
    let mut child = machine
        .run(
            &["--json", "--on-disconnect", "kill"],
            &["sh", "-c", "setsid sleep 1000 & echo $! $$; wait"],
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let pids = line["text"].as_str().unwrap().to_owned();
    let ssh = ssh_of(child.id());
    signal_process(ssh, 9);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    let outcome: serde_json::Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert_eq!(outcome["outcome"], "unreachable");
    assert_eq!(child.wait().unwrap().code(), Some(255));
    for pid in pids.split_whitespace() {
        wait_gone(pid.parse().unwrap());
    }
    machine.ends_quietly();
}

/// The server stays for the job, and another ssh finds it again.
#[test]
fn an_ssh_that_dies_is_replaced() {
    let machine = Machine::start();
    let mut child = machine
        .run(&[], &["sh", "-c", "echo up; read x; echo $x; exit 5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    signal_process(ssh_of(child.id()), 9);
    child.stdin.take().unwrap().write_all(b"heard\n").unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = text(&done.stderr);
    assert_eq!((done.status.code(), rest.as_str()), (Some(5), "heard\n"));
    assert!(said.contains("the connection is lost"), "{said}");
    assert!(said.contains("connected again after"), "{said}");
    machine.ends_quietly();
}

/// The ssh that a client started.
fn ssh_of(client: u32) -> u32 {
    let children = children_of(client);
    let ssh = children.iter().find(|(_, command)| command.contains("ssh"));
    ssh.unwrap_or_else(|| panic!("{children:?}")).0
}

#[test]
fn a_client_that_is_killed_leaves_nothing_there() {
    let machine = Machine::start();
    let mut child = machine
        .run(
            &["--on-disconnect", "kill"],
            &["sh", "-c", "setsid sleep 1000 & echo $!; wait"],
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    signal_process(child.id(), 9);
    child.wait().unwrap();
    wait_gone(line.trim().parse().unwrap());
    machine.ends_quietly();
}
