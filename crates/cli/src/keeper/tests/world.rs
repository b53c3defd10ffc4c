//! A keeper's process and what a test needs to speak to it as its gate.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use bowline_proto::id::JobId;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use serde_bytes::ByteBuf;

use super::roles::{FOLDER, Inherited, OPTIONS, Options, ROLE, arguments};
use crate::ipc::messages::VERSION;
use crate::ipc::{
    Binding, Cause, Exited, GrantToken, Granted, JobSnapshot, JobSpec, NotStarted, RefuseCode,
    Source, SpecPlace, Stdin, Terms, ToGate, ToKeeper, Tree, packet,
};

/// A test fails rather than wait longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// An account that nobody has, for a keeper that is not root.
const ROOTLESS: u32 = 54_321;

/// A keeper, its gate and the folder of both.
pub(super) struct World {
    pub(super) gate: PresentGate,
    control: OwnedFd,
    keeper: Option<Child>,
    notify: Option<UnixDatagram>,
    options: Options,
    uid: Option<u32>,
    _log: Log,
    folder: tempfile::TempDir,
}

/// The gate that the test speaks for, once there is one.
pub(super) struct PresentGate(Option<TestGate>);

impl Deref for PresentGate {
    type Target = TestGate;

    fn deref(&self) -> &TestGate {
        self.0.as_ref().expect("a gate")
    }
}

impl DerefMut for PresentGate {
    fn deref_mut(&mut self) -> &mut TestGate {
        self.0.as_mut().expect("a gate")
    }
}

/// What the keeper said, shown where a test fails.
struct Log(PathBuf);

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.0).unwrap_or_default());
        }
    }
}

/// What the test knows of the gate that it speaks for.
pub(super) struct TestGate {
    pub(super) workers: Vec<OwnedFd>,
    pub(super) signers: Vec<OwnedFd>,
    pub(super) inherited: Inherited,
    pub(super) pid: Pid,
    pub(super) listeners: Vec<OwnedFd>,
    pub(super) welcome: ToGate,
    pub(super) adopted: Vec<(JobSnapshot, Vec<OwnedFd>)>,
    control: OwnedFd,
    requests: u64,
    grants: HashMap<u64, GrantToken>,
    /// Messages that came while another was waited for.
    kept: Vec<(ToGate, Vec<OwnedFd>)>,
}

/// A job's ends.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: JobId,
    pub(super) pid: Pid,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// The memfds of the streams, in the same order.
    pub(super) spools: Vec<OwnedFd>,
    /// Whether they came non-blocking; the test has changed that.
    pub(super) non_blocking: bool,
}

/// What became of a start.
#[derive(Debug)]
pub(super) enum Answer {
    Started(Running),
    NotStarted(NotStarted),
    Refused(RefuseCode),
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(super) fn with(options: Options) -> Self {
        Self::start(options, None, false).with_gate()
    }

    /// With a keeper that is not root, and so has no cgroups of its own here.
    pub(super) fn rootless(options: Options) -> Self {
        let root = rustix::process::geteuid().is_root();
        Self::start(options, root.then_some(ROOTLESS), false).with_gate()
    }

    /// With a service manager that is told how the keeper does.
    pub(super) fn notified() -> Self {
        Self::start(Options::default(), None, true).with_gate()
    }

    /// With gates that never speak.
    pub(super) fn broken(options: Options) -> Self {
        Self::start(options, None, false)
    }

    fn start(options: Options, uid: Option<u32>, notified: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The gate of a root keeper is another user and must find the test's socket.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = folder.path().join("control");
        let control = control_socket(&path);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        if uid.is_some() {
            std::os::unix::fs::chown(folder.path(), uid, uid).unwrap();
        }
        let notify = notified.then(|| super::life::notify_socket(folder.path()));
        Self {
            keeper: Some(spawn_keeper(folder.path(), &options, uid)),
            // Dropped after the keeper: the log is shown if the test fails.
            _log: Log(folder.path().join("keeper.log")),
            gate: PresentGate(None),
            control,
            options,
            uid,
            notify,
            folder,
        }
    }

    fn with_gate(mut self) -> Self {
        self.next_gate();
        self
    }

    pub(super) fn keeper(&self) -> Pid {
        Pid::from_child(self.keeper.as_ref().unwrap())
    }

    pub(super) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Another keeper's process on the same folder, with its errors.
    pub(super) fn second_keeper(&self) -> Child {
        spawn_keeper(self.folder.path(), &self.options, self.uid)
    }

    /// Waits for the gate that follows one that ended.
    pub(super) fn next_gate(&mut self) {
        self.gate = PresentGate(Some(TestGate::accept(&self.control, &self.options)));
    }

    /// Starts a keeper on the same folder again, after the first has ended.
    pub(super) fn restart(&mut self) {
        assert!(self.keeper.is_none(), "the keeper still runs");
        self.keeper = Some(self.second_keeper());
        self.next_gate();
    }

    pub(super) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.keeper(), signal).unwrap();
    }

    /// Lets go of the lifeline and of the gate, and waits for the keeper's end.
    pub(super) fn cut(&mut self) -> ExitStatus {
        let mut keeper = self.keeper.take().unwrap();
        drop(keeper.stdin.take());
        keeper.wait().unwrap()
    }

    /// Waits for a keeper that ends by itself.
    pub(super) fn wait(&mut self) -> ExitStatus {
        let mut keeper = self.keeper.take().unwrap();
        // `wait` closes the lifeline first, which would end it.
        let lifeline = keeper.stdin.take();
        let status = keeper.wait().unwrap();
        drop(lifeline);
        status
    }

    /// The folder of the keeper's cgroups, if it has one.
    pub(super) fn cgroup(&self) -> Option<PathBuf> {
        // Behind those of keepers that have this number in another pid namespace.
        let pid = self.keeper().as_raw_pid();
        let names = (0..16)
            .rev()
            .map(|number| format!("bowline-keeper-{pid}-{number}"));
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let below = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let mut folders = names.flat_map(|name| mounts.map(|mount| mount.join(below).join(&name)));
        folders.find(|folder| folder.exists())
    }

    /// A connection to the takeover socket.
    pub(super) fn takeover_socket(&self) -> OwnedFd {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
        let address = SocketAddrUnix::new(self.state().join("takeover")).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        socket
    }

    /// What the keepers on this folder have said.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("keeper.log")).unwrap()
    }

    pub(super) fn notify_socket(&self) -> &UnixDatagram {
        self.notify.as_ref().unwrap()
    }

    /// How many descriptors the keeper has open, cgroups that it keeps for later aside.
    pub(super) fn open_fds(&self) -> usize {
        let path = format!("/proc/{}/fd", self.keeper().as_raw_pid());
        let open = std::fs::read_dir(path).unwrap();
        let targets = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        targets
            .filter(|target| !target.starts_with("/sys/fs/cgroup"))
            .count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.keeper.is_some() {
            self.cut();
        }
    }
}

fn control_socket(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    let control = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
    rustix::net::bind(&control, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&control, 16).unwrap();
    set_socket_timeout(&control, Timeout::Recv, Some(PATIENCE)).unwrap();
    control
}

/// The roles run on a thread of the test harness; signals must not hit its main thread.
fn spawn_keeper(folder: &Path, options: &Options, uid: Option<u32>) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("keeper.log"));
    let log = log.unwrap();
    let mut command = Command::new("env");
    command
        .args(["TERM", "INT", "HUP", "CHLD"].map(|name| format!("--block-signal={name}")))
        .arg(std::env::current_exe().unwrap())
        .args(arguments())
        .env(ROLE, "keeper")
        .env(FOLDER, folder)
        .env(OPTIONS, serde_json::to_string(options).unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/");
    match folder.join("notify") {
        path if path.exists() => command.env("NOTIFY_SOCKET", path),
        _ => command.env_remove("NOTIFY_SOCKET"),
    };
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.spawn().unwrap()
}

impl TestGate {
    fn accept(control: &OwnedFd, options: &Options) -> Self {
        let accepted = rustix::net::accept_with(control, SocketFlags::CLOEXEC);
        let accepted = accepted.expect("the gate's process connects");
        set_socket_timeout(&accepted, Timeout::Recv, Some(PATIENCE)).unwrap();
        let received = packet::receive(&accepted, &mut Vec::new()).unwrap();
        let (inherited, mut workers) = received.unwrap();
        let signers = workers.split_off(usize::from(options.workers));
        for socket in workers.iter().chain(&signers) {
            set_socket_timeout(socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        }
        let peer = rustix::net::sockopt::socket_peercred(&accepted).unwrap();
        let mut gate = Self {
            workers,
            signers,
            inherited,
            pid: peer.pid,
            listeners: Vec::new(),
            welcome: ToGate::Drain { deadline_ms: 0 },
            adopted: Vec::new(),
            control: accepted,
            requests: 0,
            grants: HashMap::new(),
            kept: Vec::new(),
        };
        (gate.welcome, gate.listeners) = gate.receive(0);
        gate.tell(ToKeeper::Ready { version: VERSION });
        gate
    }

    pub(super) fn tell(&self, message: ToKeeper) {
        packet::send(&self.workers[0], &message, &[]).unwrap();
    }

    pub(super) fn tell_with(&self, message: &ToKeeper, fds: &[BorrowedFd<'_>]) {
        packet::send(&self.workers[0], message, fds).unwrap();
    }

    /// The next message, whatever it is.
    pub(super) fn receive(&mut self, worker: usize) -> (ToGate, Vec<OwnedFd>) {
        let received = packet::receive(&self.workers[worker], &mut Vec::new());
        received
            .expect("a message in time")
            .expect("the keeper is there")
    }

    /// The next message that `wanted` makes something of; others are kept.
    pub(super) fn expect<T>(&mut self, wanted: impl Fn(&ToGate) -> Option<T>) -> (T, Vec<OwnedFd>) {
        let kept = self
            .kept
            .iter()
            .position(|(message, _)| wanted(message).is_some());
        if let Some(at) = kept {
            let (message, fds) = self.kept.remove(at);
            return (wanted(&message).unwrap(), fds);
        }
        loop {
            let (message, fds) = self.receive(0);
            match wanted(&message) {
                Some(found) => return (found, fds),
                None => self.kept.push((message, fds)),
            }
        }
    }

    /// What a new gate is told of the jobs that live.
    pub(super) fn adopt(&mut self, count: usize) {
        for _ in 0..count {
            let (snapshot, fds) = self.expect(|message| match message {
                ToGate::Adopt { snapshot } => Some(snapshot.clone()),
                _ => None,
            });
            self.adopted.push((*snapshot, fds));
        }
    }

    /// How many adoptions have come while something else was waited for.
    pub(super) fn kept_adoptions(&self) -> usize {
        let kept = self.kept.iter();
        kept.filter(|(message, _)| matches!(message, ToGate::Adopt { .. }))
            .count()
    }

    pub(super) fn request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    pub(super) fn authenticate(&mut self, connection: u64, user: &str) -> Option<Granted> {
        let request = self.request();
        self.tell(ToKeeper::Authenticate {
            request,
            connection,
            user: user.to_owned(),
            source: Source::Tcp([127, 0, 0, 1].into(), 1),
            binding: Binding::Nonce([0; 32]),
            protocol: "bowline/1".to_owned(),
            proofs: Vec::new(),
        });
        let (granted, _) = self.expect(|message| match message {
            ToGate::Granted {
                request: r,
                granted,
            } if *r == request => Some(Some(granted.clone())),
            ToGate::Denied { request: r, .. } if *r == request => Some(None),
            _ => None,
        });
        self.grants
            .extend(granted.iter().map(|granted| (connection, granted.token)));
        granted
    }

    /// Starts a job on the connection that its spec names, as its account.
    pub(super) fn start_as(&mut self, user: &str, job: JobId, spec: JobSpec) -> Answer {
        let connection = spec.connection;
        if !self.grants.contains_key(&connection) {
            self.authenticate(connection, user).expect("a grant");
        }
        let grant = self.grants[&connection];
        let has_stdin = spec.stdin == Stdin::Pipe;
        let request = self.request();
        let start = |spec| ToKeeper::Start {
            request,
            grant,
            job,
            spec,
        };
        let bytes = postcard::to_stdvec(&spec).unwrap();
        if bytes.len() > packet::INLINE_SPEC_BYTES_MAX {
            self.tell_with(&start(SpecPlace::Memfd), &[sealed(&bytes).as_fd()]);
        } else {
            self.tell(start(SpecPlace::Inline(spec)));
        }
        self.answer(request, has_stdin)
    }

    pub(super) fn answer(&mut self, request: u64, has_stdin: bool) -> Answer {
        let (answer, fds) = self.expect(|message| match message {
            ToGate::Started { request: r, .. }
            | ToGate::NotStarted { request: r, .. }
            | ToGate::Refused { request: r, .. }
                if *r == request =>
            {
                Some(message.clone())
            }
            _ => None,
        });
        match answer {
            ToGate::Started { job, pid, .. } => {
                let streams = 2 + usize::from(has_stdin);
                let mut fds = fds;
                let spools = fds.split_off(streams);
                assert_eq!(spools.len(), streams, "a memfd for each stream");
                let flags = |fd: &OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap();
                let non_blocking = |fd| flags(fd).contains(rustix::fs::OFlags::NONBLOCK);
                let non_blocking = fds.iter().all(non_blocking);
                // The tests wait.
                fds.iter()
                    .for_each(|fd| rustix::io::ioctl_fionbio(fd, false).unwrap());
                let mut fds = fds.into_iter();
                let stdin = has_stdin.then(|| fds.next().unwrap());
                let running = Running {
                    id: job,
                    pid: Pid::from_raw(pid).unwrap(),
                    stdin,
                    stdout: fds.next().unwrap(),
                    stderr: fds.next().unwrap(),
                    spools,
                    non_blocking,
                };
                Answer::Started(running)
            }
            ToGate::NotStarted { why, .. } => Answer::NotStarted(why),
            ToGate::Refused { code, .. } => Answer::Refused(code),
            other => panic!("{other:?}"),
        }
    }

    /// Starts a job that must start.
    pub(super) fn run(&mut self, spec: JobSpec) -> Running {
        match self.start_as("", job_id(), spec) {
            Answer::Started(running) => running,
            other => panic!("{other:?}"),
        }
    }

    /// Starts a job that must not.
    pub(super) fn run_not(&mut self, spec: JobSpec) -> NotStarted {
        match self.start_as("", job_id(), spec) {
            Answer::NotStarted(why) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a job's end.
    pub(super) fn ended(&mut self, id: JobId) -> (Exited, Option<Cause>, Tree) {
        let (ended, _) = self.expect(|message| match message {
            ToGate::Ended { job, end } if *job == id => Some((end.exited, end.cause, end.tree)),
            _ => None,
        });
        ended
    }

    pub(super) fn end(&self, job: JobId, cause: Cause, first: Signal) {
        let first = first.as_raw();
        self.tell(ToKeeper::End { job, cause, first });
    }

    /// The gate's process is gone from here on.
    pub(super) fn kill(&self) {
        rustix::process::kill_process(self.pid, Signal::KILL).unwrap();
    }

    /// Lets the gate's process end by itself.
    pub(super) fn order(&self, order: &super::roles::GateOrder) {
        packet::send(&self.control, order, &[]).unwrap();
    }

    /// Waits until the keeper has handled everything that it was told so far.
    pub(super) fn settle(&mut self) {
        assert!(self.authenticate(u64::MAX, "deny").is_none());
    }
}

impl Running {
    /// Everything that the job says on stdout until its end.
    pub(super) fn output(&self) -> Vec<u8> {
        read_all(self.stdout.as_fd())
    }

    /// Waits for one line on stdout.
    pub(super) fn line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while rustix::io::read(&self.stdout, &mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }
}

/// A memfd with these bytes that nobody can change.
pub(super) fn sealed(bytes: &[u8]) -> OwnedFd {
    use rustix::fs::{MemfdFlags, SealFlags};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create("spec", flags).unwrap();
    let mut file = File::from(memfd.try_clone().unwrap());
    file.write_all(bytes).unwrap();
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    memfd
}

/// What comes out of a pipe until its end.
pub(super) fn read_all(pipe: BorrowedFd<'_>) -> Vec<u8> {
    rustix::io::ioctl_fionbio(pipe, false).unwrap();
    let mut file = File::from(pipe.try_clone_to_owned().unwrap());
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A job id of this test run.
pub(super) fn job_id() -> JobId {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    JobId::from_bytes(bytes)
}

/// A spec of exactly these arguments, on connection 1.
pub(super) fn spec(argv: &[&str]) -> JobSpec {
    JobSpec {
        argv: argv
            .iter()
            .map(|text| ByteBuf::from(text.as_bytes()))
            .collect(),
        env: Vec::new(),
        cwd: None,
        shell: false,
        stdin: Stdin::Null,
        timeout_ms: None,
        pty: None,
        login: false,
        source: Source::Tcp([127, 0, 0, 1].into(), 1),
        connection: 1,
        terms: Terms::default(),
    }
}

/// A spec of a text for the shell.
pub(super) fn shell(text: &str) -> JobSpec {
    JobSpec {
        shell: true,
        ..spec(&[text])
    }
}

/// Waits until no process has this number any more.
pub(super) fn wait_gone(pid: Pid) {
    use rustix::event::{PollFd, PollFlags, poll};
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let timeout = PATIENCE.try_into().unwrap();
    let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "process {pid:?} lives on");
}

/// Whether a process lives, or is there as a zombie.
pub(super) fn lives(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid).is_ok()
}
