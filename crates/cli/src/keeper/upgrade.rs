//! Replacing the program under a running server: the side of the old program.
//!
//! ```text
//! SIGHUP ─► the file is the one that runs ──────────────► read the configuration again
//!    └────► another one ─► asked ─► the gate retires ─► execve ─► `successor`
//!                            │             ▲               │
//!                            └ says no ────┼──── fails ────┴──► the old program goes on
//!                              (as without a new file)     (with a gate of its own again)
//! ```
//!
//! The process stays: its number, its children and its descriptors, so every
//! job lives on and its status is there for the successor to reap. The
//! candidate is asked by starting it with the state that it would get and with
//! the arguments that it would have (`serve … --check`), so a program that is
//! broken, too old, or does not like the configuration, never takes the server
//! down. The file that was asked is the one that is executed: both go by one
//! open descriptor.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, pidfd_send_signal};

use super::shutdown::Phase;
use super::spawn::{self, Image, Pending, Program};
use super::state::KeeperState;
use super::{Keeper, Timer, Token, reap};
use crate::ipc::ToGate;

/// How long a candidate may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long the gate may take to write its record down and leave.
const RETIRING_MAX: Duration = Duration::from_secs(5);
/// What is read of a candidate's answer.
const ANSWER_BYTES_MAX: usize = 256;
/// The answer of a program that can take over.
pub(crate) const READY: &str = "bowline can take over\n";
/// The hidden flag that names the state's descriptor.
pub(crate) const FLAG: &str = "--successor=";

/// The program that runs, and how to start what takes its place.
#[derive(Debug)]
pub(crate) struct OwnProgram {
    /// The file that it was started from.
    path: PathBuf,
    /// Its arguments, the name first.
    argv: Vec<CString>,
    envp: Vec<CString>,
    /// The file as it was.
    file: FileId,
}

/// What tells a file from the one that was there before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    bytes: i64,
    modified: (i64, i64),
}

/// How far an upgrade is.
#[derive(Debug)]
pub(super) enum Upgrade {
    /// The candidate is asked.
    Asking(Candidate),
    /// The gate was told to go; the file is executed when it has.
    Retiring(OwnedFd),
}

/// A program that is asked whether it can take over.
#[derive(Debug)]
pub(super) struct Candidate {
    file: OwnedFd,
    pid: Pid,
    pidfd: OwnedFd,
    answer: OwnedFd,
    pending: Pending,
}

impl OwnProgram {
    /// The running program. `path` is what an earlier program of this process
    /// was started from, if there was one.
    ///
    /// # Errors
    /// Where the program's own file cannot be looked at.
    pub(crate) fn this(path: Option<PathBuf>) -> io::Result<Self> {
        let file = FileId::at(Path::new("/proc/self/exe"))?;
        let mut argv: Vec<CString> = Vec::new();
        for argument in std::env::args_os() {
            if !argument.as_bytes().starts_with(FLAG.as_bytes()) {
                argv.push(CString::new(argument.as_bytes())?);
            }
        }
        let mut envp = Vec::new();
        for (name, value) in std::env::vars_os() {
            envp.push(CString::new(
                [name.as_bytes(), b"=", value.as_bytes()].concat(),
            )?);
        }
        let path = match path {
            Some(path) => path,
            None => started_from(file)?,
        };
        Ok(Self {
            path,
            argv,
            envp,
            file,
        })
    }

    /// The file that the program is started from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What lies there now, if it is another file than the one that runs.
    fn replaced(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.path, flags, Mode::empty())?;
        let id = FileId::of(rustix::fs::fstat(&file)?);
        Ok((id != self.file).then_some(file))
    }

    fn arguments(&self, more: &[String]) -> io::Result<Vec<CString>> {
        let more = more.iter().map(|text| CString::new(text.as_str()));
        let more: Vec<CString> = more.collect::<Result<_, _>>()?;
        Ok(self.argv.iter().cloned().chain(more).collect())
    }
}

impl FileId {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(rustix::fs::stat(path)?))
    }

    fn of(stat: rustix::fs::Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            bytes: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
        }
    }
}

/// Where a shell would have found the program, if that is this program: a link
/// there may lead to another file later. Else where the kernel says that it is.
fn started_from(own: FileId) -> io::Result<PathBuf> {
    let name = std::env::args_os().next().unwrap_or_default();
    let mut places = Vec::new();
    if name.as_bytes().contains(&b'/') {
        places.push(std::path::absolute(&name)?);
    } else if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path).map(|folder| folder.join(&name)));
    }
    let this =
        |place: &PathBuf| place.is_absolute() && FileId::at(place).is_ok_and(|found| found == own);
    match places.into_iter().find(this) {
        Some(place) => Ok(place),
        None => std::env::current_exe(),
    }
}

impl Keeper {
    /// SIGHUP: the configuration is read again, by another program if there is one.
    pub(super) fn reload(&mut self) {
        if self.upgrade.is_some() {
            tracing::info!("a new program is being asked already");
            return;
        }
        let replaced = match &self.program {
            Some(program) if self.phase == Phase::Serving => program.replaced(),
            _ => Ok(None),
        };
        match replaced {
            Ok(None) => self.reload_config(),
            Ok(Some(file)) => match self.ask_candidate(file) {
                Ok(candidate) => {
                    super::shutdown::notify_reloading();
                    self.timers
                        .set(Timer::CandidateOver, Instant::now() + ANSWER_MAX);
                    self.upgrade = Some(Upgrade::Asking(candidate));
                }
                Err(error) => self.stay(&format!("it cannot be started: {error}")),
            },
            Err(error) => self.stay(&format!("it cannot be looked at: {error}")),
        }
    }

    /// The program that runs goes on.
    fn stay(&mut self, why: &str) {
        let path = self.program.as_ref().map(|program| program.path.display());
        tracing::error!(
            program = path.map(tracing::field::display),
            why,
            "the new program is not used; the one that runs goes on"
        );
        self.upgrade = None;
        self.reload_config();
    }

    fn ask_candidate(&mut self, file: OwnedFd) -> io::Result<Candidate> {
        let Some(program) = &self.program else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let state = self.state(&mut |fd: BorrowedFd<'_>| Ok(fd.as_raw_fd()))?;
        // Its numbers 0 to 3 are filled with these.
        let high = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 4);
        let state = high(sealed(&state.encode().map_err(io::Error::other)?)?.as_fd())?;
        let (answer, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&answer, true)?;
        let (null, theirs) = (high(self.null.as_fd())?, high(theirs.as_fd())?);
        let errors = high(rustix::stdio::stderr())?;
        let asked = Program {
            image: Image::Open(high(file.as_fd())?),
            argv: program.arguments(&["--check".to_owned(), format!("{FLAG}3")])?,
            envp: program.envp.clone(),
            cwd: Vec::new(),
            ids: None,
            nofile: self.own.nofile,
            umask: self.own.umask,
            terminal: false,
            no_new_privs: false,
        };
        let fds = [&null, &theirs, &errors, &state].map(AsFd::as_fd);
        let started = spawn::spawn(asked, &fds, None, &mut self.stacks)?;
        let watched = self.watch(started.pidfd.as_fd(), Token::Candidate);
        if let Err(error) = watched {
            // Nobody would notice its end; the sweep of orphans reaps it.
            let _ = pidfd_send_signal(&started.pidfd, Signal::KILL);
            return Err(error.into());
        }
        Ok(Candidate {
            file,
            pid: started.pid,
            pidfd: started.pidfd,
            answer,
            pending: started.pending,
        })
    }

    /// The candidate takes too long; its end says the rest.
    pub(super) fn candidate_over(&mut self) {
        if let Some(Upgrade::Asking(candidate)) = &self.upgrade {
            let _ = pidfd_send_signal(&candidate.pidfd, Signal::KILL);
        }
    }

    /// Whether this process is the candidate, which is reaped in its own way.
    pub(super) fn is_candidate(&self, pid: Pid) -> bool {
        matches!(&self.upgrade, Some(Upgrade::Asking(candidate)) if candidate.pid == pid)
    }

    /// The candidate has ended: what has it answered?
    pub(super) fn candidate_gone(&mut self) {
        let Some(Upgrade::Asking(mut candidate)) = self.upgrade.take() else {
            return;
        };
        let status = reap(candidate.pidfd.as_fd()).ok().flatten();
        let _ = epoll::delete(&self.epoll, &candidate.pidfd);
        self.timers.cancel(Timer::CandidateOver);
        let progress = candidate.pending.progress();
        self.stacks.give_back(candidate.pending);
        if self.phase != Phase::Serving {
            return;
        }
        if let spawn::Progress::Failed(_, errno) = progress {
            let error = io::Error::from_raw_os_error(errno);
            return self.stay(&format!("it cannot be executed: {error}"));
        }
        let mut answer = [0; ANSWER_BYTES_MAX];
        let count = rustix::io::read(&candidate.answer, &mut answer).unwrap_or(0);
        let good = status.is_some_and(|status| status.exit_status() == Some(0));
        if !good || answer.get(..count) != Some(READY.as_bytes()) {
            let status = super::describe(status);
            return self.stay(&format!("it does not say that it can take over ({status})"));
        }
        self.retire_gate(candidate.file);
    }

    /// The gate writes down what it knows and goes; connections break, and
    /// nobody is told an outcome that is not one.
    fn retire_gate(&mut self, file: OwnedFd) {
        tracing::info!("a new program takes over");
        self.upgrade = Some(Upgrade::Retiring(file));
        // What is signalled from here on is for the successor: it stays pending.
        let _ = epoll::delete(&self.epoll, &self.signals);
        self.timers.cancel(Timer::StartGate);
        if self.gate.is_none() {
            return self.execute();
        }
        self.send_all(&ToGate::Retire);
        self.timers
            .set(Timer::KillGate, Instant::now() + RETIRING_MAX);
    }

    pub(super) fn is_retiring(&self) -> bool {
        matches!(self.upgrade, Some(Upgrade::Retiring(_)))
    }

    /// Executes the new program in place of this one. Comes back only if that fails.
    pub(super) fn execute(&mut self) {
        let Some(Upgrade::Retiring(file)) = self.upgrade.take() else {
            return;
        };
        self.timers.cancel(Timer::KillGate);
        self.settle_trees();
        // What could not execute its program is only to be reaped, by whomever.
        for (_, (_, cgroup)) in std::mem::take(&mut self.jobs.failed) {
            self.give_back(cgroup);
        }
        self.cgroups.remove_free();
        let Err(error) = self.try_execute(&file);
        if let Err(error) = self.watch(self.signals.as_fd(), Token::Signals) {
            tracing::error!(%error, "signals cannot be watched any more");
        }
        self.stay(&format!("it cannot be executed: {error}"));
        self.start_gate();
    }

    fn try_execute(&self, file: &OwnedFd) -> io::Result<Infallible> {
        let mut passed: Vec<BorrowedFd<'_>> = Vec::new();
        let done = self.state(&mut |fd| {
            passed.push(fd);
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            Ok(fd.as_raw_fd())
        });
        let done = done.and_then(|state| self.replace_by(file, &state));
        for fd in passed {
            // The program goes on, and what it starts must not have them.
            rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
        done
    }

    fn replace_by(&self, file: &OwnedFd, state: &KeeperState) -> io::Result<Infallible> {
        let program = self.program.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let state = sealed(&state.encode().map_err(io::Error::other)?)?;
        rustix::io::fcntl_setfd(&state, FdFlags::empty())?;
        let argv = program.arguments(&[format!("{FLAG}{}", state.as_raw_fd())])?;
        // Only this process knows how much of its log nobody took.
        crate::stderr::finish();
        Ok(nix::unistd::fexecve(file, &argv, &program.envp)?)
    }
}

/// A memfd with these bytes that nobody can change.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create("keeper state", flags)?;
    let mut file = std::fs::File::from(memfd);
    file.write_all(bytes)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}
