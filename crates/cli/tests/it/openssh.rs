//! The files and programs of OpenSSH as they are on every machine: made by the
//! real ssh-keygen, held by the real ssh-agent, carried by the real ssh and sshd.

mod accounts;
mod grants;
mod hosts;
mod keys;
mod ssh_target;
mod terminals;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::server::{Server, bowline};

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command to its end, without input and without a terminal.
pub(crate) fn output(command: &Command) -> Output {
    let mut alone = Command::new("setsid");
    alone
        .arg("--wait")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => alone.env(name, value),
            None => alone.env_remove(name),
        };
    }
    alone.stdin(Stdio::null()).output().unwrap()
}

/// Requires the status and gives stdout and stderr.
#[track_caller]
pub(crate) fn ended(command: &Command, status: i32) -> (String, String) {
    let done = output(command);
    let (out, err) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(status), "{out}{err}");
    (out, err)
}

/// Makes a key pair with ssh-keygen.
pub(crate) fn ssh_keygen(path: &Path, args: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-C", "test"]).args(args);
    if !args.contains(&"-N") {
        command.args(["-N", ""]);
    }
    let made = command.arg("-f").arg(path).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
}

/// Where ssh-keygen puts the public half.
pub(crate) fn public(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Lets in the keys of these lines, and no others.
pub(crate) fn let_in(server: &Server, lines: &str) {
    std::fs::write(server.dir().join("authorized_keys"), lines).unwrap();
}

/// Takes away the key that every test's home begins with.
pub(crate) fn forget_key(server: &Server) {
    for name in ["id_ed25519", "id_ed25519.pub"] {
        std::fs::remove_file(server.home().join(".ssh").join(name)).unwrap();
    }
}

/// A real ssh-agent; ended when dropped.
pub(crate) struct Agent {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Agent {
    pub(crate) fn start() -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let mut child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            // Nobody confirms anything, also where this test runs on a desktop.
            .env("SSH_ASKPASS", "/bin/false")
            .env_remove("DISPLAY")
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // It says where it listens as soon as it does.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("SSH_AUTH_SOCK="), "{line:?}");
        Agent {
            child,
            socket,
            _dir: dir,
        }
    }

    /// Gives it a key, as `ssh-add` does; an encrypted one with its passphrase.
    pub(crate) fn add(&self, key: &Path, passphrase: Option<&str>) {
        let mut command = Command::new("setsid");
        command.args(["--wait", "ssh-add", "-q"]).arg(key);
        command.env("SSH_AUTH_SOCK", &self.socket);
        let askpass = self._dir.path().join("askpass");
        if let Some(passphrase) = passphrase {
            script(&askpass, &format!("echo '{passphrase}'"));
            command
                .env("SSH_ASKPASS", &askpass)
                .env("SSH_ASKPASS_REQUIRE", "force");
        }
        let added = command.stdin(Stdio::null()).output().unwrap();
        assert!(added.status.success(), "{}", text(&added.stderr));
    }

    /// Gives it a key with other flags of `ssh-add`.
    pub(crate) fn add_with(&self, flags: &[&str], key: &Path) {
        let mut command = Command::new("ssh-add");
        command.arg("-q").args(flags).arg(key);
        command.env("SSH_AUTH_SOCK", &self.socket);
        let added = command.stdin(Stdio::null()).output().unwrap();
        assert!(added.status.success(), "{}", text(&added.stderr));
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has a client use it.
    pub(crate) fn with(&self, mut command: Command) -> Command {
        command.env("SSH_AUTH_SOCK", &self.socket);
        command
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        crate::server::signal_process(self.child.id(), 15);
        let _ = self.child.wait();
    }
}

/// Lets other accounts pass through a folder, as through /home.
pub(crate) fn passable(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Puts a copy of a program somewhere. Another process writes it: a fork of this
/// one that happens meanwhile would hold it open for writing, and nobody could
/// execute it until then (execve(2), ETXTBSY).
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(from).arg(to);
    let done = install.output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
}

/// Makes a program of a shell's script.
pub(crate) fn script(path: &Path, text: &str) {
    let source = path.with_extension("source");
    std::fs::write(&source, format!("#!/bin/sh\n{text}\n")).unwrap();
    copy_program(&source, path);
    std::fs::remove_file(source).unwrap();
}

/// `bowline run [flags] TARGET -- argv` of somebody with this home.
pub(crate) fn run_at(home: &Path, target: &str, flags: &[&str], argv: &[&str]) -> Command {
    let mut command = Command::new(bowline());
    command
        .arg("run")
        .args(flags)
        .arg(target)
        .arg("--")
        .args(argv);
    command
        .env("HOME", home)
        .env_remove("SSH_AUTH_SOCK")
        .env_remove("XDG_CONFIG_HOME");
    command
}

/// A server that was started by a command of the test's own; ended when dropped.
pub(crate) struct Serving {
    child: Child,
    pub(crate) target: String,
    stderr: PathBuf,
}

impl Serving {
    /// Waits until it listens; what it says goes to a file in `dir`.
    pub(crate) fn start(mut command: Command, dir: &Path) -> Serving {
        let stderr = dir.join("stderr");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let target = line.trim_end().strip_prefix("listening tcp://");
        let Some(target) = target.map(str::to_owned) else {
            let _ = child.wait();
            panic!("{line:?} {}", std::fs::read_to_string(stderr).unwrap());
        };
        Serving {
            child,
            target,
            stderr,
        }
    }

    /// The keeper's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far. It speaks before it answers.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        crate::server::signal_process(self.child.id(), 15);
        let _ = self.child.wait();
    }
}
