//! A real server for a test: a home of its own with OpenSSH's files in it, a
//! state folder, a port of its own; and clients with that home.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The number of SIGKILL.
const KILL: i32 = 9;

/// The program under test.
pub(crate) fn bowline() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_bowline"))
}

/// A server and everything that belongs to it; ended and removed when dropped.
pub(crate) struct Server {
    child: Child,
    /// What it was started with, to start it again.
    command: Command,
    dir: tempfile::TempDir,
    pub(crate) addresses: Vec<String>,
    /// Gates of keepers that were killed: they stay for the next keeper, which may never come.
    gates: Mutex<Vec<OwnedFd>>,
}

impl Server {
    /// With the defaults of a test: loopback, one key, the test's own user.
    pub(crate) fn start() -> Server {
        Server::start_with(|_, _| {})
    }

    /// `change` may add flags, and files in the server's folder.
    pub(crate) fn start_with(change: impl FnOnce(&mut Command, &Path)) -> Server {
        let dir = tempfile::tempdir().unwrap();
        // As root the gate, which is somebody else then, must be able to reach its part.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir_all(home.join(".ssh")).unwrap();
        std::fs::set_permissions(home.join(".ssh"), std::fs::Permissions::from_mode(0o700))
            .unwrap();
        let keygen = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
            .arg(home.join(".ssh/id_ed25519"))
            .status()
            .expect("ssh-keygen, of openssh-client");
        assert!(keygen.success());
        std::fs::copy(
            home.join(".ssh/id_ed25519.pub"),
            dir.path().join("authorized_keys"),
        )
        .unwrap();
        let mut command = Command::new(bowline());
        command
            .arg("serve")
            .args(["--listen", "tcp://127.0.0.1:0"])
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .arg("--host-key")
            .arg(dir.path().join("host_key"))
            .arg("--authorized-keys")
            .arg(dir.path().join("authorized_keys"));
        if is_root() {
            command.args(["--allow-user", "root"]);
        }
        command.env("HOME", &home).env_remove("XDG_CONFIG_HOME");
        change(&mut command, dir.path());
        let (child, addresses) = launch(&mut command);
        let server = Server {
            child,
            command,
            dir,
            addresses,
            gates: Mutex::default(),
        };
        server.pin();
        server
    }

    /// Starts it again on the same folders, once it has ended.
    pub(crate) fn restart(&mut self) {
        self.child.wait().unwrap();
        (self.child, self.addresses) = launch(&mut self.command);
        self.pin();
    }

    /// The same with these in place of the addresses to listen on.
    pub(crate) fn restart_with(&mut self, listen: &[&str]) {
        self.child.wait().unwrap();
        let mut command = Command::new(self.command.get_program());
        let mut given = self.command.get_args();
        while let Some(argument) = given.next() {
            if argument == "--listen" {
                given.next();
            } else {
                command.arg(argument);
            }
        }
        command.args(listen);
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.command = command;
        (self.child, self.addresses) = launch(&mut self.command);
        self.pin();
    }

    /// Has the test's home know the server's host key, as `bowline trust` would.
    fn pin(&self) {
        let Some(port) = self.port() else { return };
        let key = Command::new("ssh-keygen")
            .arg("-yf")
            .arg(self.dir.path().join("host_key"))
            .output()
            .unwrap();
        assert!(key.status.success());
        let folder = self.home().join(".config/bowline");
        std::fs::create_dir_all(&folder).unwrap();
        let key = String::from_utf8(key.stdout).unwrap();
        std::fs::write(
            folder.join("known_hosts"),
            format!("[127.0.0.1]:{port} {key}"),
        )
        .unwrap();
    }

    pub(crate) fn port(&self) -> Option<u16> {
        let tcp = self
            .addresses
            .iter()
            .find_map(|address| address.strip_prefix("tcp://"));
        tcp.map(|address| address.rsplit(':').next().unwrap().parse().unwrap())
    }

    /// What a client calls it.
    pub(crate) fn target(&self) -> String {
        format!("127.0.0.1:{}", self.port().unwrap())
    }

    /// The folder of the server's files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The home of its clients.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The keeper's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes a command one of a client of this server.
    pub(crate) fn client(&self, command: &mut Command) {
        command
            .env("HOME", self.home())
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("XDG_CONFIG_HOME");
    }

    /// `bowline run [flags] TARGET -- argv`.
    pub(crate) fn run(&self, flags: &[&str], argv: &[&str]) -> Command {
        let mut command = Command::new(bowline());
        self.client(&mut command);
        command
            .arg("run")
            .args(flags)
            .arg(self.target())
            .arg("--")
            .args(argv);
        command
    }

    /// Any other command of a client.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bowline());
        self.client(&mut command);
        command.args(args);
        command
    }

    /// Processes of the server, by their parent: the gate and the jobs.
    pub(crate) fn children(&self) -> Vec<(u32, String)> {
        children_of(self.pid())
    }

    /// Sends a signal to the keeper.
    pub(crate) fn signal(&self, signal: i32) {
        if signal == KILL {
            let children = self.children();
            let gates = children.iter().filter(|(_, line)| line.contains(" gate "));
            let pidfds = gates.filter_map(|(pid, _)| {
                let pid = Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
                pidfd_open(pid, PidfdFlags::empty()).ok()
            });
            self.gates.lock().unwrap().extend(pidfds);
        }
        signal_process(self.pid(), signal);
    }

    /// Waits for the server's end.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

/// Starts a server and waits until it listens.
fn launch(command: &mut Command) -> (Child, Vec<String>) {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let listeners = command.get_args().filter(|arg| *arg == "--listen").count();
    let addresses = (0..listeners)
        .map(|_| {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            let address = line.trim_end().strip_prefix("listening ");
            address.unwrap_or_else(|| panic!("{line:?}")).to_owned()
        })
        .collect();
    (child, addresses)
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(15);
            let _ = self.child.wait();
        }
        for gate in self
            .gates
            .get_mut()
            .into_iter()
            .flat_map(|gates| gates.drain(..))
        {
            let _ = pidfd_send_signal(&gate, Signal::KILL);
            let _ = poll(&mut [PollFd::new(&gate, PollFlags::IN)], None);
        }
    }
}

/// The processes whose parent is `pid`, with their command lines.
pub(crate) fn children_of(pid: u32) -> Vec<(u32, String)> {
    let tasks = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(tasks).unwrap_or_default();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    children
        .map(|pid: u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (pid, String::from_utf8_lossy(&command).replace('\0', " "))
        })
        .collect()
}

pub(crate) fn signal_process(pid: u32, signal: i32) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    let signal = nix::sys::signal::Signal::try_from(signal).unwrap();
    let _ = nix::sys::signal::kill(pid, signal);
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
