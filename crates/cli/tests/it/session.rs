//! `bowline serve --stdio`: a session's process, and the server behind it that
//! stays while somebody needs it.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use bowline_proto::frame::Kind;
use rustix::fs::FlockOperation;

use crate::lifecycle::Watched;
use crate::server::{bowline, children_of, is_root, signal_process};
use crate::upgrade::put;

/// A folder for the server of a test's sessions.
struct Place(tempfile::TempDir);

/// One session: a process, and its two streams.
struct Session {
    process: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        // As root the gate, which is somebody else then, must be able to reach its part.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        Place(folder)
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn command(&self, until_idle: &str) -> Command {
        let mut command = Command::new(bowline());
        command
            .args([
                "serve",
                "--stdio",
                "--until-idle",
                until_idle,
                "--state-dir",
            ])
            .arg(self.state())
            .env("HOME", self.0.path())
            .env_remove("XDG_CONFIG_HOME");
        command
    }

    /// A session whose server has said hello.
    fn session(&self, until_idle: &str) -> Session {
        let mut session = Session::start(&mut self.command(until_idle));
        session.hears_hello();
        session
    }

    /// The server's keeper, which wrote its number into the lock.
    fn server(&self) -> Watched {
        Watched::new(self.keeper())
    }

    fn keeper(&self) -> u32 {
        let lock = std::fs::read_to_string(self.state().join("lock")).unwrap();
        lock.trim().parse().unwrap()
    }
}

impl Session {
    fn start(command: &mut Command) -> Session {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Session {
            input: process.stdin.take(),
            output: process.stdout.take().unwrap(),
            process,
        }
    }

    fn hears_hello(&mut self) {
        let mut prelude = [0; 12];
        self.output.read_exact(&mut prelude).unwrap();
        assert_eq!(prelude[0], Kind::Hello as u8);
    }

    /// Ends as ssh ends it: its input closes.
    fn ends(mut self) {
        drop(self.input.take());
        self.output.read_to_end(&mut Vec::new()).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

#[test]
fn sessions_that_come_at_once_share_one_server() {
    let place = Place::new();
    let sessions: Vec<Session> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..12)
            .map(|_| scope.spawn(|| place.session("0")))
            .collect();
        starting.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let server = place.server();
    // It belongs to no session: neither a child nor in the session of one.
    let keeper = place.keeper();
    for session in &sessions {
        let pid = session.process.id();
        let children = children_of(pid);
        let is_keeper = |(child, _): &(u32, String)| *child == keeper;
        // One outside this pid namespace has the number 0, which rustix does not take.
        let sid = |pid: u32| nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid as i32)));
        assert!(children.iter().all(is_keeper), "{children:?}");
        assert_ne!(sid(pid), sid(keeper));
    }
    let mut sessions = sessions;
    let last = sessions.pop().unwrap();
    sessions.into_iter().for_each(Session::ends);
    // It stays for the last, and ends with it.
    let lock = std::fs::File::open(place.state().join("lock")).unwrap();
    let free = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
    assert!(free.is_err(), "the server has ended");
    last.ends();
    server.ends();
    assert!(!place.state().join("socket").exists());
}

/// One that ends and one that comes meet in every order; none is left without a server.
#[test]
fn a_session_never_meets_a_server_that_ends() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..12).for_each(|_| place.session("0").ends()));
        }
    });
    // The last of them may be on its way out, or gone already.
    let lock = std::fs::File::open(place.state().join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
}

#[test]
fn a_server_that_was_killed_is_replaced() {
    let place = Place::new();
    let session = place.session("0");
    let (server, keeper) = (place.server(), place.keeper());
    signal_process(keeper, 9);
    server.ends();
    drop(session.input);
    let mut process = session.process;
    process.wait().unwrap();
    // Its socket is still there, and nobody behind it.
    assert!(place.state().join("socket").exists());
    let next = place.session("0");
    assert_ne!(place.keeper(), keeper);
    let server = place.server();
    next.ends();
    server.ends();
}

/// Whoever removes the folder ends the server with it, once nobody is connected.
#[test]
fn a_server_whose_folder_is_gone_ends() {
    let place = Place::new();
    let session = place.session("0");
    let server = place.server();
    std::fs::remove_dir_all(place.state()).unwrap();
    session.ends();
    server.ends();
}

#[test]
fn a_place_that_cannot_be_used_is_told() {
    let place = Place::new();
    std::fs::create_dir(place.state()).unwrap();
    std::fs::set_permissions(place.state(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let done = place.command("0").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert!(said.contains("not this user's alone"), "{said}");
    // A server that does not start says why in its log, and where that is is said.
    std::fs::set_permissions(place.state(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut broken = place.command("0");
    broken.arg("--config").arg(place.0.path().join("none"));
    let done = broken.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let log = place.state().join("log");
    assert!(said.contains(log.to_str().unwrap()), "{said}");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("none"), "{log}");
}

/// Where there is no place for a server that stays, the session has one of its own.
#[test]
fn without_a_place_the_server_is_the_sessions_own() {
    let place = Place::new();
    let runtime = place.0.path().join("run");
    std::fs::create_dir(&runtime).unwrap();
    // A program that another user can execute.
    let program = place.0.path().join("bowline");
    put(&bowline(), &program);
    let mut command = Command::new(&program);
    command
        .args(["serve", "--stdio"])
        .env("HOME", "/nonexistent")
        .env("XDG_CONFIG_HOME", &runtime)
        .env_remove("XDG_STATE_HOME")
        .env("TMPDIR", &runtime)
        .env_remove("XDG_RUNTIME_DIR")
        .stderr(Stdio::piped());
    if is_root() {
        const NOBODY: u32 = 65_534;
        std::os::unix::fs::chown(&runtime, Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut session = Session::start(&mut command);
    session.hears_hello();
    let folder = runtime.join(format!("bowline-stdio-{}", session.process.id()));
    assert!(Path::new(&folder).join("lock").exists());
    let mut stderr = session.process.stderr.take().unwrap();
    session.ends();
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("the server ends with this session"), "{said}");
    assert!(!folder.exists());
}
