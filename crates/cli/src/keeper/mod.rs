//! The keeper: one thread that spawns and reaps, holds the jobs' descriptors
//! and the host key, and decides who may start what. It never reads the
//! network and never sees tokio, TLS or the gate's code.
//!
//! Bytes enter as packets from the gate (`requests`), as the ends of processes
//! (`end`) and as signals (`shutdown`); they leave as packets to the gate,
//! records of the `journal` and processes (`spawn`).
//!
//! ```text
//!             gate ──Start──► requests ──► program ──► spawn ──► process
//!              ▲                 │                                  │
//!              └── Ended ── jobs ◄── journal, cgroup, tree ◄── pidfd ┘
//! ```

pub(crate) mod account;
mod aside;
pub(crate) mod authenticate;
mod become_user;
mod cgroup;
mod end;
mod environment;
mod gate;
mod grant_file;
mod grants;
mod idle;
mod jobs;
mod journal;
mod local_time;
mod machine_path;
mod peer;
pub(crate) mod policy;
mod program;
mod requests;
mod shutdown;
mod sign;
mod spawn;
mod start;
mod startup;
pub(crate) mod state;
mod strangers;
mod successor;
mod takeover;
mod terminal;
#[cfg(test)]
mod tests;
mod timers;
mod tree;
mod upgrade;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signalfd::SignalFd;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

use self::cgroup::Cgroups;
use self::end::TreeWork;
use self::gate::{Gate, GateProgram};
use self::grants::Grants;
pub(crate) use self::idle::SESSIONS;
use self::jobs::{Jobs, Serial};
use self::journal::Journal;
use self::policy::Policy;
use self::program::Own;
use self::shutdown::Phase;
use self::spawn::{Progress, Stacks};
pub(crate) use self::startup::{Claim, check_successor};
use self::state::SocketFile;
use self::takeover::Takeover;
pub(crate) use self::takeover::is_served;
use self::timers::Timers;
use self::tree::Cookies;
pub(crate) use self::upgrade::READY as SUCCESSOR_READY;
use self::upgrade::{OwnProgram, Upgrade};
use crate::config::ServerConfig;
use crate::ipc::ToGate;

/// What a keeper is started with.
pub(crate) struct Setup {
    /// The configuration.
    pub(crate) config: ServerConfig,
    /// The state directory, which nobody else uses, and what was found with it.
    pub(crate) claim: Claim,
    /// The addresses and their listening sockets; with `stdio`, one entry
    /// `stdio` for each of input and output.
    pub(crate) listeners: Vec<(String, OwnedFd)>,
    /// The files of Unix sockets among them that this server made.
    pub(crate) socket_files: Vec<SocketFile>,
    /// One session over standard input and output: when its gate ends, all ends.
    pub(crate) stdio: bool,
    /// Decides who is let in.
    pub(crate) policy: Box<dyn Policy>,
    /// The host key, which never leaves the keeper.
    pub(crate) host_key: HostKeySigner,
    /// Reads the configuration again.
    pub(crate) reload: Reload,
    /// When this pipe's other end closes, everything ends.
    pub(crate) lifeline: Option<OwnedFd>,
    /// The arguments and environment of the gate.
    pub(crate) gate: GateCommand,
}

/// Reads the configuration again, on SIGHUP.
pub(crate) type Reload = Box<dyn FnMut() -> anyhow::Result<(ServerConfig, Box<dyn Policy>)>>;

/// Signs with the Ed25519 host key.
pub(crate) type Sign = Box<dyn Fn(&[u8]) -> [u8; 64]>;

/// The host key, as far as the keeper needs it.
pub(crate) struct HostKeySigner {
    /// Signs; what is signed has been checked before.
    pub(crate) sign: Sign,
    /// DER of the certificate that shows the key.
    pub(crate) certificate: Vec<u8>,
}

/// How the gate is executed.
#[derive(Clone, Debug)]
pub(crate) struct GateCommand {
    /// Its arguments, the program's name first.
    pub(crate) argv: Vec<CString>,
    /// Its environment.
    pub(crate) envp: Vec<CString>,
}

/// Runs the keeper until it is told to end.
///
/// # Errors
/// Where it cannot begin: the state directory, the journal, descriptors.
pub(crate) fn serve(setup: Setup) -> anyhow::Result<ExitCode> {
    startup::begin(setup)?.run()
}

/// What an event is about. In epoll's 64 bits: the kind in the upper eight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Signals,
    Lifeline,
    GateGone,
    Worker(usize),
    Signer(usize),
    JobStatus(Serial),
    JobGone(Serial),
    Takeover,
    Asker(u64),
    Candidate,
}

/// What is to be done later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    JobTimeout(Serial),
    JobKill(Serial),
    StartGate,
    Orphans,
    Flush,
    DrainOver,
    KillGate,
    CandidateOver,
    Idle,
}

/// Everything the thread owns.
struct Keeper {
    epoll: OwnedFd,
    signals: SignalFd,
    lifeline: Option<OwnedFd>,
    config: ServerConfig,
    policy: Box<dyn Policy>,
    host_key: HostKeySigner,
    reload: Reload,
    listeners: Vec<(String, Rc<OwnedFd>)>,
    socket_files: Vec<SocketFile>,
    stdio: bool,
    /// None where it cannot be replaced while it runs.
    program: Option<OwnProgram>,
    upgrade: Option<Upgrade>,
    gate_program: GateProgram,
    gate: Option<Gate>,
    /// How many gates were started.
    generation: u64,
    /// Gates in a row that died within a moment.
    quick_deaths: u32,
    ready_told: bool,
    grants: Grants,
    jobs: Jobs,
    trees: TreeWork,
    cookies: Cookies,
    journal: Journal,
    takeover: Takeover,
    cgroups: Cgroups,
    stacks: Stacks,
    timers: Timers<Timer>,
    own: Own,
    null: OwnedFd,
    phase: Phase,
    /// Scratch space for packets.
    buffer: Vec<u8>,
    /// Held, so that no second keeper uses the state directory.
    lock: OwnedFd,
    /// That no session comes any more; see `idle`.
    sessions: Option<std::fs::File>,
}

/// Events taken from epoll at once.
const EVENTS_MAX: usize = 64;
/// Orphans are reaped so long after the first of them died.
const ORPHANS_AFTER: Duration = Duration::from_millis(100);
/// What the gate did not take is tried again after this time.
const FLUSH_AFTER: Duration = Duration::from_millis(1);
/// A gate that dies within this time died quickly.
const QUICK_DEATH: Duration = Duration::from_secs(1);
/// The wait after the second quick death in a row; doubled for each further one.
const RESTART_WAIT: Duration = Duration::from_millis(50);
/// The longest wait.
const RESTART_WAIT_MAX: Duration = Duration::from_secs(5);

impl Keeper {
    fn run(mut self) -> anyhow::Result<ExitCode> {
        self.start_gate();
        self.check_idle();
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let wait = self.timers.wait(Instant::now());
            let wait = wait.and_then(|wait| wait.try_into().ok());
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, space, wait.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll"),
            }
            for event in events.drain(..) {
                if let Some(token) = Token::from_u64(event.data.u64()) {
                    self.handle(token);
                }
            }
            let now = Instant::now();
            while let Some(timer) = self.timers.due(now) {
                self.fire(timer);
            }
            self.settle_trees();
            self.check_idle();
            if self.is_finished() {
                return Ok(self.finish());
            }
        }
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Signals => self.read_signals(),
            Token::Lifeline => self.read_lifeline(),
            Token::GateGone => self.gate_gone(),
            Token::Worker(index) => self.read_worker(index),
            Token::Signer(index) => self.read_signer(index),
            Token::JobStatus(serial) => self.job_progress(serial),
            Token::JobGone(serial) => self.job_gone(serial),
            Token::Takeover => self.accept_asker(),
            Token::Asker(number) => self.read_asker(number),
            Token::Candidate => self.candidate_gone(),
        }
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::JobTimeout(serial) => self.job_timed_out(serial),
            Timer::JobKill(serial) => self.kill_job(serial),
            Timer::StartGate => self.start_gate(),
            Timer::Orphans => self.reap_orphans(),
            Timer::Flush => {
                let workers = self.gate.as_ref().map_or(0, |gate| gate.workers.len());
                (0..workers).for_each(|index| self.flush(index));
            }
            Timer::DrainOver => self.drain_over(),
            Timer::KillGate => self.kill_gate(),
            Timer::CandidateOver => self.candidate_over(),
            Timer::Idle => self.idle_over(),
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> rustix::io::Result<()> {
        let data = EventData::new_u64(token.to_u64());
        epoll::add(&self.epoll, fd, data, EventFlags::IN)
    }

    /// Starts a gate and tells it everything that is.
    fn start_gate(&mut self) {
        if self.phase != Phase::Serving || self.gate.is_some() || self.is_retiring() {
            return;
        }
        let started = Gate::start(&self.gate_program, self.null.as_fd(), &mut self.stacks);
        let gate = match started {
            Ok(gate) => gate,
            Err(error) => {
                tracing::error!(%error, "the gate cannot be started; trying again");
                self.quick_deaths += 1;
                self.restart_gate_later();
                return;
            }
        };
        self.generation += 1;
        self.watch_gate(&gate);
        self.gate = Some(gate);
        self.welcome();
        self.adopt_all();
    }

    fn watch_gate(&self, gate: &Gate) {
        let mut watched = vec![self.watch(gate.pidfd.as_fd(), Token::GateGone)];
        for (index, worker) in gate.workers.iter().enumerate() {
            watched.push(self.watch(worker.socket.as_fd(), Token::Worker(index)));
            watched.push(self.watch(worker.signer.as_fd(), Token::Signer(index)));
        }
        // Without memory for this in the kernel there is no gate to speak of.
        if let Some(error) = watched.into_iter().find_map(Result::err) {
            tracing::error!(%error, "the gate cannot be watched; starting another");
            gate.kill();
        }
    }

    fn welcome(&mut self) {
        // What was started for one client ends with it.
        let stays = !self.stdio && self.lifeline.is_none();
        let welcome = ToGate::Welcome {
            version: crate::ipc::messages::VERSION,
            config: Box::new(self.config.gate.clone()),
            certificate: self.host_key.certificate.clone().into(),
            listeners: self.listener_names(),
            generation: self.generation,
            heirs: stays.then(|| rustix::process::geteuid().as_raw()),
        };
        let mut fds: Vec<_> = self.listeners.iter().map(|(_, fd)| Rc::clone(fd)).collect();
        fds.extend(stays.then(|| self.takeover.shared()));
        self.send(0, &welcome, &fds);
        if self.stdio {
            // The session's end must be seen by its client when the gate closes it.
            self.listeners.clear();
        }
    }

    fn listener_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in &self.listeners {
            if !self.stdio || names.is_empty() {
                names.push(name.clone());
            }
        }
        names
    }

    /// Sends to a worker of the present gate, if there is one.
    fn send(&mut self, index: usize, message: &ToGate, fds: &[Rc<OwnedFd>]) {
        let Some(gate) = &mut self.gate else { return };
        let Some(worker) = gate.workers.get_mut(index) else {
            return;
        };
        worker.send(message, fds);
        self.after_sending(index);
    }

    /// A gate that does not read its answers is not asked for more questions.
    fn after_sending(&mut self, index: usize) {
        let Some(gate) = &mut self.gate else { return };
        let Some(worker) = gate.workers.get_mut(index) else {
            return;
        };
        if worker.is_waiting() {
            self.timers
                .set_once(Timer::Flush, Instant::now() + FLUSH_AFTER);
        }
        let wanted = worker.takes_requests();
        if worker.watched != wanted {
            worker.watched = wanted;
            let data = EventData::new_u64(Token::Worker(index).to_u64());
            let flags = if wanted {
                EventFlags::IN
            } else {
                EventFlags::empty()
            };
            let _ = epoll::modify(&self.epoll, &worker.socket, data, flags);
        }
    }

    fn send_all(&mut self, message: &ToGate) {
        let workers = self.gate.as_ref().map_or(0, |gate| gate.workers.len());
        (0..workers).for_each(|index| self.send(index, message, &[]));
    }

    fn flush(&mut self, index: usize) {
        let Some(gate) = &mut self.gate else { return };
        let Some(worker) = gate.workers.get_mut(index) else {
            return;
        };
        worker.flush();
        self.after_sending(index);
    }

    /// The gate's process has ended.
    fn gate_gone(&mut self) {
        self.hear_out_gate();
        let Some(mut gate) = self.gate.take() else {
            return;
        };
        let status = reap(gate.pidfd.as_fd()).ok().flatten();
        let _ = epoll::delete(&self.epoll, &gate.pidfd);
        if let Some(mut pending) = gate.pending.take() {
            if let Progress::Failed(stage, errno) = pending.progress() {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::error!(%error, ?stage, "the gate cannot be executed");
            }
            self.stacks.give_back(pending);
        }
        self.grants.clear();
        self.timers.cancel(Timer::Flush);
        if self.stdio || self.phase != Phase::Serving {
            return self.gate_gone_for_good();
        }
        self.jobs.gate_gone();
        if self.is_retiring() {
            return self.execute();
        }
        let quick = gate.born.elapsed() < QUICK_DEATH;
        self.quick_deaths = if quick { self.quick_deaths + 1 } else { 0 };
        tracing::warn!(
            pid = gate.pid.as_raw_pid(), status = %describe(status),
            "the gate ended; starting another"
        );
        self.restart_gate_later();
    }

    fn restart_gate_later(&mut self) {
        if self.quick_deaths <= 1 {
            return self.timers.set(Timer::StartGate, Instant::now());
        }
        let doublings = (self.quick_deaths - 2).min(16);
        let wait = RESTART_WAIT.saturating_mul(1 << doublings);
        let wait = wait.min(RESTART_WAIT_MAX);
        self.timers.set(Timer::StartGate, Instant::now() + wait);
    }

    fn kill_gate(&mut self) {
        if let Some(gate) = &self.gate {
            gate.kill();
        }
    }
}

impl Token {
    fn to_u64(self) -> u64 {
        let (kind, number) = match self {
            Token::Signals => (0, 0),
            Token::Lifeline => (1, 0),
            Token::GateGone => (2, 0),
            Token::Worker(index) => (3, index as u64),
            Token::Signer(index) => (4, index as u64),
            Token::JobStatus(Serial(serial)) => (5, serial),
            Token::JobGone(Serial(serial)) => (6, serial),
            Token::Takeover => (7, 0),
            Token::Asker(number) => (8, number),
            Token::Candidate => (9, 0),
        };
        kind << 56 | number
    }

    fn from_u64(bits: u64) -> Option<Self> {
        let number = bits & (u64::MAX >> 8);
        Some(match bits >> 56 {
            0 => Token::Signals,
            1 => Token::Lifeline,
            2 => Token::GateGone,
            3 => Token::Worker(number as usize),
            4 => Token::Signer(number as usize),
            5 => Token::JobStatus(Serial(number)),
            6 => Token::JobGone(Serial(number)),
            7 => Token::Takeover,
            8 => Token::Asker(number),
            9 => Token::Candidate,
            _ => return None,
        })
    }
}

/// Reaps a process if it has ended.
fn reap(pidfd: BorrowedFd<'_>) -> rustix::io::Result<Option<WaitIdStatus>> {
    wait(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

fn wait(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> rustix::io::Result<Option<WaitIdStatus>> {
    rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd), options))
}

fn describe(status: Option<WaitIdStatus>) -> String {
    let Some(status) = status else {
        return "unknown".to_owned();
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "unknown".to_owned(),
    }
}
