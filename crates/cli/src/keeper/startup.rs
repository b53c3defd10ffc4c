//! From a [`Setup`] to a running [`Keeper`]: directories, lock, journal,
//! limits, signals. Everything that may fail for good fails here, before a job exists.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::event::epoll;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Resource, Rlimit, WaitIdOptions};

use super::gate::GateProgram;
use super::journal::{self, Journal, KeeperRecord};
use super::program::Own;
use super::spawn::{self, Ids, Image, Program};
use super::state::{JobState, KeeperState, SocketFile};
use super::takeover::{self, Estate, Takeover};
use super::upgrade::OwnProgram;
use super::{Cgroups, Keeper, Phase, Setup, Token, successor};
use crate::clock::unix_ms;
use crate::config::ServerConfig;
use crate::inherited;
use crate::ipc::Question;

/// The accounts that the gate of a root keeper runs as, the first that exists.
const GATE_USERS: [&str; 2] = ["bowline", "nobody"];
/// "Unlimited", as the kernel counts.
const UNLIMITED: u64 = u64::MAX;

/// The state directory in this process's hands, before it listens anywhere.
#[derive(Debug)]
pub(crate) struct Claim {
    lock: OwnedFd,
    gate_ids: Option<Ids>,
    own: Own,
    nofile: u64,
    /// What an earlier program of this process has left.
    state: Option<KeeperState>,
    /// What the gate of a keeper that died has kept.
    estate: Option<Estate>,
}

impl Claim {
    /// Makes the state directory and takes its lock.
    ///
    /// # Errors
    /// Where it cannot be made, is another user's, or another server uses it.
    pub(crate) fn new(config: &ServerConfig) -> anyhow::Result<Self> {
        let own = own();
        let gate_ids = gate_ids(config)?;
        make_folders(config, gate_ids.as_ref())?;
        let lock = lock(&config.state_dir)?;
        let nofile = raise_nofile(own.nofile);
        let estate = Estate::find(&config.state_dir).unwrap_or_else(|error| {
            tracing::error!(%error, "the gate of a dead keeper does not hand over what it holds");
            None
        });
        Ok(Self {
            lock,
            gate_ids,
            own,
            nofile,
            state: None,
            estate,
        })
    }

    /// Takes what an earlier program of this process has left under `number`.
    ///
    /// # Errors
    /// Where there is no state that this program knows, and as [`Claim::new`].
    pub(crate) fn inherit(number: RawFd, config: &mut ServerConfig) -> anyhow::Result<Self> {
        let state = successor::read(number)?;
        // Older kernels call a process by the number of the descriptor that it was executed from.
        let _ = rustix::thread::set_name(c"bowline");
        config.state_dir.clone_from(&state.state_dir);
        let gate_ids = gate_ids(config)?;
        make_folders(config, gate_ids.as_ref())?;
        let own = successor::own(&state);
        Ok(Self {
            lock: inherited::take(state.lock).context("the lock")?,
            gate_ids,
            nofile: raise_nofile(own.nofile),
            own,
            state: Some(state),
            estate: None,
        })
    }

    /// The sockets that listen already, and the files of those that this server made.
    ///
    /// # Errors
    /// As fcntl(2).
    pub(crate) fn take_sockets(&mut self) -> io::Result<Option<Sockets>> {
        let Some(state) = &mut self.state else {
            return Ok(None);
        };
        let listeners = std::mem::take(&mut state.listeners).into_iter();
        let listeners = listeners.map(|(name, fd)| Ok((name, inherited::take(fd)?)));
        let files = std::mem::take(&mut state.socket_files);
        Ok(Some((listeners.collect::<io::Result<_>>()?, files)))
    }

    /// The sockets on which a keeper that died has listened.
    pub(crate) fn take_listeners(&mut self) -> Vec<(String, OwnedFd)> {
        let estate = self.estate.as_mut();
        estate.map_or_else(Vec::new, |estate| std::mem::take(&mut estate.listeners))
    }

    /// The lifeline of the earlier program.
    ///
    /// # Errors
    /// As fcntl(2).
    pub(crate) fn take_lifeline(&mut self) -> io::Result<Option<OwnedFd>> {
        let state = self.state.as_mut();
        let lifeline = state.and_then(|state| state.lifeline.take());
        lifeline.map(inherited::take).transpose()
    }

    /// Whether an earlier program of this process has left something.
    pub(crate) fn is_inherited(&self) -> bool {
        self.state.is_some()
    }
}

/// Listening sockets with their addresses, and the files of Unix sockets.
pub(crate) type Sockets = (Vec<(String, OwnedFd)>, Vec<SocketFile>);

/// Makes sure that this program could take over from the one whose state is
/// under `number`.
///
/// # Errors
/// What would stop it.
pub(crate) fn check_successor(number: RawFd, config: &mut ServerConfig) -> anyhow::Result<()> {
    let state = successor::read(number)?;
    config.state_dir.clone_from(&state.state_dir);
    let gate_ids = gate_ids(config)?;
    make_folders(config, gate_ids.as_ref())?;
    let folder = &state.state_dir;
    Journal::check_resume(folder, &keeper_record(), state.journal, state.recent)
        .with_context(|| format!("cannot write a journal in {}", folder.display()))
}

/// What a keeper stands on: made anew, or taken over.
struct Ground {
    cgroups: Cgroups,
    journal: Journal,
    takeover: Takeover,
    generation: u64,
    program: Option<PathBuf>,
    jobs: Vec<JobState>,
}

impl Ground {
    fn fresh(folder: &Path) -> anyhow::Result<Self> {
        let journal = Journal::open(folder, keeper_record());
        let journal =
            journal.with_context(|| format!("cannot open the journal in {}", folder.display()))?;
        Ok(Self {
            cgroups: Cgroups::find(rustix::process::getpid()),
            journal,
            takeover: Takeover::listen(folder).context("the takeover socket")?,
            generation: 0,
            program: None,
            jobs: Vec::new(),
        })
    }

    fn inherited(state: KeeperState) -> anyhow::Result<Self> {
        let (folder, record) = (state.state_dir.clone(), keeper_record());
        let takeover = inherited::take(state.takeover).context("the takeover socket")?;
        tracing::info!(from = state.software, "taken over from an earlier program");
        Ok(Self {
            cgroups: successor::cgroups(&state),
            journal: Journal::resume(&folder, record, state.journal, state.recent)
                .with_context(|| format!("cannot write the journal in {}", folder.display()))?,
            takeover: Takeover::resume(takeover),
            generation: state.generation,
            program: Some(state.program),
            jobs: state.jobs,
        })
    }
}

/// Prepares the keeper.
pub(super) fn begin(setup: Setup) -> anyhow::Result<Keeper> {
    let (config, claim) = (setup.config, setup.claim);
    let is_successor = claim.state.is_some();
    let ground = match claim.state {
        None => Ground::fresh(&config.state_dir)?,
        Some(state) => Ground::inherited(state)?,
    };
    super::spawn::keep_children();
    let pid = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(pid)).context("cannot become the subreaper")?;
    let executable = rustix::fs::open(
        "/proc/self/exe",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    // The one session of a server over stdio would not live through it.
    let program = (!setup.stdio).then(|| OwnProgram::this(ground.program));
    let mut keeper = Keeper {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll")?,
        signals: signals().context("cannot receive signals")?,
        lifeline: setup.lifeline,
        policy: setup.policy,
        host_key: setup.host_key,
        reload: setup.reload,
        listeners: listeners(setup.listeners),
        socket_files: setup.socket_files,
        stdio: setup.stdio,
        program: program.transpose().context("this program's own file")?,
        upgrade: None,
        gate_program: GateProgram {
            executable: executable.context("cannot open this program's own file")?,
            argv: setup.gate.argv,
            envp: setup.gate.envp,
            ids: claim.gate_ids,
            nofile: claim.nofile,
            workers: config.gate.workers.max(1),
        },
        gate: None,
        generation: ground.generation,
        quick_deaths: 0,
        ready_told: false,
        grants: Default::default(),
        jobs: Default::default(),
        trees: Default::default(),
        cookies: Default::default(),
        journal: ground.journal,
        takeover: ground.takeover,
        cgroups: ground.cgroups,
        stacks: Default::default(),
        timers: Default::default(),
        own: claim.own,
        null: null.context("cannot open /dev/null")?,
        phase: Phase::Serving,
        buffer: Vec::new(),
        config,
        lock: claim.lock,
        sessions: None,
    };
    keeper.watch_own().context("epoll")?;
    if is_successor {
        keeper.resume_jobs(ground.jobs);
    } else {
        keeper.prove_cgroups();
    }
    let estate = claim.estate;
    keeper.take_over_strangers(estate.as_ref().map(|estate| &estate.jobs));
    keeper.record_lost();
    if let Some(estate) = estate {
        estate.relieve();
    }
    Ok(keeper)
}

impl Keeper {
    fn watch_own(&self) -> rustix::io::Result<()> {
        self.watch(self.signals.as_fd(), Token::Signals)?;
        self.watch(self.takeover.as_fd(), Token::Takeover)?;
        match &self.lifeline {
            Some(lifeline) => self.watch(lifeline.as_fd(), Token::Lifeline),
            None => Ok(()),
        }
    }

    fn prove_cgroups(&mut self) {
        let (null, stacks) = (self.null.as_fd(), &mut self.stacks);
        self.cgroups.prove(|group| {
            let nothing = Program {
                image: Image::Paths(Vec::new()),
                argv: Vec::new(),
                envp: Vec::new(),
                cwd: Vec::new(),
                ids: None,
                nofile: self.own.nofile,
                umask: self.own.umask,
                terminal: false,
                no_new_privs: true,
            };
            let Ok(child) = spawn::spawn(nothing, &[null; 3], Some(group.as_fd()), stacks) else {
                return false;
            };
            // It finds no program and exits, unless something kills it first.
            let status = super::wait(child.pidfd.as_fd(), WaitIdOptions::EXITED);
            let lived = matches!(status, Ok(Some(status)) if status.exited());
            let mut pending = child.pending;
            pending.progress();
            stacks.give_back(pending);
            lived && child.in_cgroup
        });
    }
}

fn listeners(listeners: Vec<(String, OwnedFd)>) -> Vec<(String, Rc<OwnedFd>)> {
    let shared = listeners.into_iter();
    shared.map(|(name, fd)| (name, Rc::new(fd))).collect()
}

/// What the keeper was started with and its jobs get; it keeps its own files to itself.
fn own() -> Own {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let number = |limit: Option<u64>| limit.unwrap_or(UNLIMITED);
    Own {
        uid: rustix::process::geteuid().as_raw(),
        nofile: (number(limit.current), number(limit.maximum)),
        umask: rustix::process::umask(Mode::RWXG | Mode::RWXO).bits(),
    }
}

/// Raises the soft limit of descriptors to the hard one; jobs get the old one back.
fn raise_nofile((soft, hard): (u64, u64)) -> u64 {
    let number = |limit: u64| (limit != UNLIMITED).then_some(limit);
    let raised = Rlimit {
        current: number(hard),
        maximum: number(hard),
    };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, "the limit of open descriptors stays low");
            soft
        }
    }
}

fn gate_ids(config: &ServerConfig) -> anyhow::Result<Option<Ids>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let look_up = |name: &str| {
        let found = nix::unistd::User::from_name(name);
        found.with_context(|| format!("cannot look up the account {name}"))
    };
    let user = match &config.gate_user {
        Some(name) => {
            let user = look_up(name)?;
            Some(user.with_context(|| format!("gate_user: there is no account {name}"))?)
        }
        None => GATE_USERS.into_iter().find_map(|name| look_up(name).ok()?),
    };
    let Some(user) = user else {
        bail!("the gate needs an account: make one named bowline, or name another as gate_user");
    };
    if user.uid.is_root() {
        bail!("gate_user: the gate cannot run as root");
    }
    Ok(Some(Ids {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: vec![user.gid.as_raw()],
    }))
}

fn make_folders(config: &ServerConfig, gate: Option<&Ids>) -> anyhow::Result<()> {
    let state = &config.state_dir;
    let of_gate = [&config.gate.record_dir, &config.gate.spool.dir];
    // Another account must be able to pass through to its folders below it; files in it are 0600.
    let shared = gate.is_some() && of_gate.iter().any(|folder| folder.starts_with(state));
    private_folder(state, if shared { 0o711 } else { 0o700 })?;
    let owner = fs::metadata(state)
        .with_context(|| format!("{}", state.display()))?
        .uid();
    if owner != rustix::process::geteuid().as_raw() {
        bail!(
            "the state directory {} belongs to uid {owner}",
            state.display()
        );
    }
    for folder in of_gate {
        if folder.as_os_str().is_empty() {
            continue;
        }
        private_folder(folder, 0o700)?;
        if let Some(ids) = gate {
            let changed = std::os::unix::fs::lchown(folder, Some(ids.uid), Some(ids.gid));
            changed.with_context(|| format!("cannot give {} to the gate", folder.display()))?;
            check_way(folder, ids)?;
        }
    }
    Ok(())
}

/// Whether the gate's account can pass through what is above its folder: it would start, fail and
/// be started again for ever.
fn check_way(folder: &Path, gate: &Ids) -> anyhow::Result<()> {
    // For this thread's next open(2) alone, and the keeper has no other thread.
    let (uid, gid) = (Uid::from_raw(gate.uid), Gid::from_raw(gate.gid));
    let (own_uid, own_gid) = (setfsuid(uid), setfsgid(gid));
    let opened = rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    setfsuid(own_uid);
    setfsgid(own_gid);
    opened.map(drop).with_context(|| {
        format!(
            "the gate's account (uid {}) cannot reach {}: let others pass through the directories above it \
             (chmod o+x), or name another with --state-dir",
            gate.uid,
            folder.display()
        )
    })
}

fn private_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(mode).create(path);
    made.with_context(|| format!("cannot make the directory {}", path.display()))?;
    let set = fs::set_permissions(path, Permissions::from_mode(mode));
    set.with_context(|| format!("cannot make {} private", path.display()))
}

/// Takes the lock of a state directory, for as long as the descriptor lives.
fn lock(folder: &Path) -> anyhow::Result<OwnedFd> {
    let path = folder.join("lock");
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let mut file = options
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let running = match takeover::ask(folder, Question::Version) {
            Ok(answer) => format!(
                "pid {}, version {}, {} jobs",
                answer.pid, answer.software, answer.jobs
            ),
            // It is only just starting, or of another user.
            Err(_) => format!(
                "pid {}",
                fs::read_to_string(&path).unwrap_or_default().trim()
            ),
        };
        bail!(
            "another bowline serve ({running}) uses the state directory {}; \
             give this one its own with --state-dir",
            folder.display()
        );
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file.into())
}

fn keeper_record() -> KeeperRecord {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    KeeperRecord {
        version: journal::VERSION,
        pid: rustix::process::getpid().as_raw_pid(),
        boot_id: boot_id.trim().to_owned(),
        unix_ms: unix_ms(),
    }
}

/// The signals that the loop reads as events; children start with none blocked.
fn signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGCHLD,
    ] {
        mask.add(signal);
    }
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
