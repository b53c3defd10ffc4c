//! How a job begins: recorded, spawned, answered.
//!
//! Nothing here waits for a child. It is answered for when it has executed its
//! program or could not, which the loop learns as an event.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;
use serde_bytes::ByteBuf;

use super::cgroup::Cgroup;
use super::jobs::{Job, JobPhase, Pipes, Serial};
use super::journal::{Record, StartRecord};
use super::requests::Start;
use super::spawn::{self, Program, Progress, Spawned, Stage};
use super::{Keeper, Timer, Token, terminal, tree};
use crate::clock::unix_ms;
use crate::ipc::messages::NO_REQUEST;
use crate::ipc::{NotStarted, Pty, RefuseCode, Stdin, Stream, ToGate};

/// How a start failed before there was a process.
enum Failed {
    Refused(RefuseCode),
    NotStarted(NotStarted),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
        Self::NotStarted(NotStarted::Resources { errno })
    }
}

/// The ends that a child gets, and the keeper's.
struct Standard {
    child: [OwnedFd; 3],
    pipes: Pipes,
    /// The terminal's name, where there is one.
    tty: Option<CString>,
}

impl Keeper {
    /// Starts a job, or answers for one that was started already.
    pub(super) fn start_job(&mut self, start: Start) {
        if let Some(serial) = self.jobs.by_id(start.job) {
            return self.start_again(serial, &start);
        }
        let (worker, request, job) = (start.worker, start.request, start.job);
        match self.spawn_job(start) {
            Ok(()) => {}
            Err(Failed::Refused(code)) => self.refuse(worker, request, job, code),
            Err(Failed::NotStarted(why)) => {
                let answer = ToGate::NotStarted { request, job, why };
                self.send(worker, &answer, &[]);
            }
        }
    }

    /// The same start came twice while the program is being executed: both are answered.
    fn start_again(&mut self, serial: Serial, start: &Start) {
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        let same = job.uid == start.decision.account.uid
            && job.connection == start.spec.connection
            && job.worker == start.worker
            && job.fingerprint == start.fingerprint;
        match job.phase {
            // Once a gate has the descriptors it knows the job, and answers by itself: there must
            // never be two who use them.
            JobPhase::Starting(_) if same => job.requests.push(start.request),
            _ => self.refuse(
                start.worker,
                start.request,
                start.job,
                RefuseCode::DuplicateJob,
            ),
        }
    }

    fn spawn_job(&mut self, start: Start) -> Result<(), Failed> {
        let mut program = self.prepare(&start).map_err(Failed::Refused)?;
        let standard = self.standard(&start)?;
        program.envp.extend(standard.tty);
        let now = unix_ms();
        let recorded = self
            .journal
            .append(Record::Start(start_record(&start, now)));
        recorded.map_err(|error| {
            tracing::error!(%error, "the journal cannot be written; no job is started");
            Failed::Refused(RefuseCode::OutOfResources)
        })?;
        match self.spawn_program(program, &standard.child) {
            Ok((spawned, cgroup)) => {
                self.enter_job(start, spawned, standard.pipes, cgroup, now);
                Ok(())
            }
            Err(error) => {
                self.record(Record::NotStarted { job: start.job });
                Err(error.into())
            }
        }
    }

    fn spawn_program(
        &mut self,
        program: Program,
        standard: &[OwnedFd; 3],
    ) -> io::Result<(Spawned, Option<Cgroup>)> {
        let mut cgroup = self.cgroups.take();
        let fds = standard.each_ref().map(AsFd::as_fd);
        let within = cgroup.as_ref().map(Cgroup::as_fd);
        match spawn::spawn(program, &fds, within, &mut self.stacks) {
            Ok(spawned) => {
                if !spawned.in_cgroup && cgroup.take().is_some() {
                    tracing::warn!("jobs cannot be started in cgroups; trees are ended by walking");
                    self.cgroups.give_up();
                }
                Ok((spawned, cgroup))
            }
            Err(error) => {
                self.give_back(cgroup);
                Err(error)
            }
        }
    }

    /// There is a child: from here on it is a job.
    fn enter_job(
        &mut self,
        start: Start,
        spawned: Spawned,
        pipes: Pipes,
        cgroup: Option<Cgroup>,
        now: u64,
    ) {
        self.jobs.last += 1;
        let serial = Serial(self.jobs.last);
        let watched = [
            self.watch(spawned.pidfd.as_fd(), Token::JobGone(serial)),
            self.watch(spawned.pending.status(), Token::JobStatus(serial)),
        ];
        self.record(Record::Spawned {
            job: start.job,
            pid: spawned.pid.as_raw_pid(),
            started: tree::start_time(spawned.pid),
        });
        let timeout = start.spec.timeout_ms.map(Duration::from_millis);
        // One that is too far away to be told is as good as none.
        if let Some(at) = timeout.and_then(|timeout| Instant::now().checked_add(timeout)) {
            self.timers.set(Timer::JobTimeout(serial), at);
        }
        let job = Job::new(start, spawned, pipes, cgroup, now);
        self.jobs.insert(serial, job);
        if watched.iter().any(Result::is_err) {
            // Its end would never be noticed.
            self.kill_job(serial);
        }
    }

    fn standard(&self, start: &Start) -> io::Result<Standard> {
        if let Some(pty) = &start.spec.pty {
            return self.terminal(pty, start);
        }
        let (stdin, ours) = match start.spec.stdin {
            Stdin::Null => (rustix::io::fcntl_dupfd_cloexec(&self.null, 3)?, None),
            Stdin::Pipe => {
                let (child, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                (child, Some(non_blocking(ours)?))
            }
        };
        let (stdout, child_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, child_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Standard {
            child: [stdin, child_stdout, child_stderr],
            pipes: Pipes {
                spools: spools(ours.is_some())?,
                stdin: ours,
                stdout: Some(non_blocking(stdout)?),
                stderr: Some(non_blocking(stderr)?),
                terminal: Vec::new(),
            },
            tty: None,
        })
    }

    /// The same with a terminal: its master is at the other ends of the pipes.
    fn terminal(&self, pty: &Pty, start: &Start) -> io::Result<Standard> {
        let owner =
            (self.own.uid != start.decision.account.uid).then_some(start.decision.account.uid);
        let made = terminal::open(pty, speaks_utf8(&start.spec.env), owner)?;
        let master = non_blocking(made.master)?;
        let with_stdin = start.spec.stdin == Stdin::Pipe;
        let stdin = match with_stdin {
            true => rustix::io::fcntl_dupfd_cloexec(&made.slave, 3)?,
            false => rustix::io::fcntl_dupfd_cloexec(&self.null, 3)?,
        };
        let (stderr, ours) = if pty.stderr_pipe {
            let (ours, stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            (stderr, Some(non_blocking(ours)?))
        } else {
            (rustix::io::fcntl_dupfd_cloexec(&made.slave, 3)?, None)
        };
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
        let (stdout, from_master) = pipe()?;
        let mut terminal = vec![master, Rc::new(from_master)];
        let mut to_master = None;
        if with_stdin {
            let (typed, writer) = pipe()?;
            terminal.push(Rc::new(typed));
            to_master = Some(Rc::new(writer));
        }
        Ok(Standard {
            child: [stdin, made.slave, stderr],
            pipes: Pipes {
                stdin: to_master,
                stdout: Some(Rc::new(stdout)),
                stderr: ours,
                spools: spools(with_stdin)?,
                terminal,
            },
            tty: Some(made.variable),
        })
    }

    /// A child has executed its program, or could not.
    pub(super) fn job_progress(&mut self, serial: Serial) {
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        let JobPhase::Starting(pending) = &mut job.phase else {
            return;
        };
        let progress = pending.progress();
        if progress == Progress::Waiting {
            return;
        }
        if let JobPhase::Starting(pending) = std::mem::replace(&mut job.phase, JobPhase::Running) {
            let _ = epoll::delete(&self.epoll, pending.status());
            self.stacks.give_back(pending);
        }
        match progress {
            Progress::Failed(stage, errno) => self.job_failed(serial, not_started(stage, errno)),
            _ => self.tell_started(serial),
        }
    }

    fn tell_started(&mut self, serial: Serial) {
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        let requests = std::mem::take(&mut job.requests);
        let (worker, (open, spools, fds)) = (job.worker, job.pipes.all());
        let (job, pid, unix_ms) = (job.id, job.pid.as_raw_pid(), job.unix_ms);
        if requests.is_empty() {
            // It was asked for by a gate that is gone; this one has its descriptors.
            let request = NO_REQUEST;
            let started = ToGate::Started {
                request,
                job,
                pid,
                unix_ms,
                open: Vec::new(),
                spools: Vec::new(),
            };
            return self.send(worker, &started, &[]);
        }
        for request in requests {
            let started = ToGate::Started {
                request,
                job,
                pid,
                unix_ms,
                open: open.clone(),
                spools: spools.clone(),
            };
            self.send(worker, &started, &fds);
        }
    }

    /// Nothing ran: the job is forgotten, and only its child is still to be reaped.
    fn job_failed(&mut self, serial: Serial, why: NotStarted) {
        self.timers.cancel(Timer::JobTimeout(serial));
        self.timers.cancel(Timer::JobKill(serial));
        let Some(mut job) = self.jobs.remove(serial) else {
            return;
        };
        if let Some(pidfd) = job.pidfd.take() {
            self.jobs.failed.insert(serial, (pidfd, job.cgroup.take()));
        }
        self.record(Record::NotStarted { job: job.id });
        if job.requests.is_empty() {
            job.requests.push(NO_REQUEST);
        }
        for request in job.requests {
            let answer = ToGate::NotStarted {
                request,
                job: job.id,
                why: why.clone(),
            };
            self.send(job.worker, &answer, &[]);
        }
    }
}

fn start_record(start: &Start, now: u64) -> StartRecord {
    let account = &start.decision.account;
    StartRecord {
        job: start.job,
        user: account.name.clone(),
        uid: account.uid,
        source: start.spec.source.clone(),
        connection: start.spec.connection,
        unix_ms: now,
        deadline_unix_ms: start.spec.timeout_ms.map(|ms| now.saturating_add(ms)),
        fingerprint: start.fingerprint,
        terms: start.spec.terms,
    }
}

/// Whether the client's locale is one of UTF-8, by the variable that decides (locale(7)).
fn speaks_utf8(env: &[ByteBuf]) -> bool {
    let value = |name: &[u8]| {
        let of = |variable: &&ByteBuf| variable.strip_prefix(name).is_some_and(|v| !v.is_empty());
        env.iter().rev().find(of)
    };
    let names = [&b"LC_ALL="[..], b"LC_CTYPE=", b"LANG="];
    names.into_iter().find_map(value).is_some_and(|variable| {
        let text = variable.to_ascii_lowercase();
        [&b"utf-8"[..], b"utf8"]
            .iter()
            .any(|code| text.windows(code.len()).any(|part| part == *code))
    })
}

/// The memfds of a job's streams, without a page: what is never used costs little.
fn spools(stdin: bool) -> io::Result<Vec<(Stream, Rc<OwnedFd>)>> {
    let all = [
        (Stream::Stdin, c"bowline-stdin"),
        (Stream::Stdout, c"bowline-stdout"),
        (Stream::Stderr, c"bowline-stderr"),
    ];
    let wanted = all.into_iter().skip(usize::from(!stdin));
    let memfd = |name: &CStr| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
    let spools = wanted.map(|(stream, name)| Ok((stream, Rc::new(memfd(name)?))));
    spools.collect()
}

fn non_blocking(fd: OwnedFd) -> io::Result<Rc<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Rc::new(fd))
}

fn not_started(stage: Stage, errno: i32) -> NotStarted {
    match (stage, errno) {
        (_, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => {
            NotStarted::Resources { errno }
        }
        (Stage::Setup, _) => NotStarted::Resources { errno },
        (Stage::User, _) => NotStarted::User { errno },
        (Stage::Directory, _) => NotStarted::Directory { errno },
        (Stage::Exec, libc::ENOENT) => NotStarted::NotFound,
        (Stage::Exec, libc::E2BIG) => NotStarted::TooLong,
        (Stage::Exec, _) => NotStarted::NotExecutable { errno },
    }
}
