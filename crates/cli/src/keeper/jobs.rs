//! The live jobs: how each begins, what it is told, how it ends.
//!
//! ```text
//!            exec              main process ends          gate: Released
//! Starting ───────► Running ──────────────────────► Ended ───────────────► (forgotten)
//!    │ cannot                                         ▲
//!    └────────────► (forgotten: nothing ran)          └ the rest of its tree may live on
//! ```
//!
//! The keeper's duplicates of a job's pipes stay open until the gate asks for
//! a stream to be closed or releases the job: so no program sees SIGPIPE or the
//! end of its input because a gate died.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bowline_proto::id::JobId;
use nix::sys::wait::{self as nix_wait, Id, WaitPidFlag};
use rustix::event::epoll;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitIdOptions, WaitIdStatus, WaitOptions};

use super::cgroup::Cgroup;
use super::journal::{EndRecord, JobImage, OnDisconnect, Record, StartRecord};
use super::program::COOKIE;
use super::requests::Start;
use super::spawn::{self, Pending, Progress, Stage};
use super::state::{JobState, KeeperState};
use super::tree::{self, Roots};
use super::{Keeper, ORPHANS_AFTER, Timer, Token, reap, unix_ms, wait};
use crate::ipc::{
    Cause, Exited, JobSnapshot, NotStarted, RefuseCode, Scope, Source, Stdin, Stream, ToGate, Tree,
};

/// Names a job within this keeper; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Serial(pub(super) u64);

/// All jobs that are not released.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    by_serial: BTreeMap<Serial, Job>,
    by_id: HashMap<JobId, Serial>,
    per_user: HashMap<u32, u32>,
    /// Children that could not execute their program and are not reaped yet.
    failed: HashMap<Serial, (OwnedFd, Option<Cgroup>)>,
    last: u64,
}

/// A job.
#[derive(Debug)]
pub(super) struct Job {
    id: JobId,
    user: String,
    uid: u32,
    source: Source,
    connection: u64,
    fingerprint: u64,
    stdin: Stdin,
    /// Whom the present gate is told of it through.
    worker: usize,
    /// Starts that wait for their answer.
    requests: Vec<u64>,
    pid: Pid,
    /// Until the main process is reaped.
    pidfd: Option<OwnedFd>,
    pipes: Pipes,
    cgroup: Option<Cgroup>,
    roots: Roots,
    unix_ms: u64,
    phase: JobPhase,
    /// Why it is made to end, if it is.
    cause: Option<Cause>,
}

#[derive(Debug)]
enum JobPhase {
    Starting(Pending),
    Running,
    Ended(EndRecord),
}

/// The keeper's ends of a job's streams.
#[derive(Debug, Default)]
struct Pipes {
    stdin: Option<Rc<OwnedFd>>,
    stdout: Option<Rc<OwnedFd>>,
    stderr: Option<Rc<OwnedFd>>,
}

impl Pipes {
    fn of(&mut self, stream: Stream) -> &mut Option<Rc<OwnedFd>> {
        match stream {
            Stream::Stdin => &mut self.stdin,
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn open(&self) -> (Vec<Stream>, Vec<Rc<OwnedFd>>) {
        let all = [
            (Stream::Stdin, &self.stdin),
            (Stream::Stdout, &self.stdout),
            (Stream::Stderr, &self.stderr),
        ];
        let open = all.into_iter();
        open.filter_map(|(stream, fd)| Some((stream, Rc::clone(fd.as_ref()?))))
            .unzip()
    }
}

impl Jobs {
    pub(super) fn by_id(&self, id: JobId) -> Option<Serial> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn get(&mut self, serial: Serial) -> Option<&mut Job> {
        self.by_serial.get_mut(&serial)
    }

    /// Whether this user may have one more.
    pub(super) fn check_limits(&self, uid: u32, (all, user): (u32, u32)) -> Result<(), RefuseCode> {
        let users = self.per_user.get(&uid).copied().unwrap_or(0);
        if self.by_serial.len() >= all as usize || users >= user {
            return Err(RefuseCode::TooManyJobs);
        }
        Ok(())
    }

    /// The gate is gone: its numbers mean nothing to the next one, whose first
    /// worker is told of everything.
    pub(super) fn gate_gone(&mut self) {
        for job in self.by_serial.values_mut() {
            job.worker = 0;
            job.requests.clear();
        }
    }

    /// Jobs whose main process lives.
    pub(super) fn live(&self) -> Vec<Serial> {
        let live = |(serial, job): (&Serial, &Job)| job.pidfd.is_some().then_some(*serial);
        self.by_serial.iter().filter_map(live).collect()
    }

    /// The job whose main process has this number and is not reaped.
    fn by_pid(&self, pid: Pid) -> Option<Serial> {
        let has = |(_, job): &(&Serial, &Job)| job.pid == pid && job.pidfd.is_some();
        self.by_serial.iter().find(has).map(|(serial, _)| *serial)
    }

    pub(super) fn all(&self) -> Vec<Serial> {
        self.by_serial.keys().copied().collect()
    }

    /// Takes the groups away from the jobs, for the keeper's end.
    pub(super) fn take_cgroups(&mut self) -> Vec<Cgroup> {
        let jobs = self.by_serial.values_mut();
        let of_jobs = jobs.filter_map(|job| job.cgroup.take());
        let of_failed = self.failed.drain().filter_map(|(_, (_, cgroup))| cgroup);
        of_jobs.chain(of_failed).collect()
    }

    fn insert(&mut self, serial: Serial, job: Job) {
        self.by_id.insert(job.id, serial);
        *self.per_user.entry(job.uid).or_default() += 1;
        self.by_serial.insert(serial, job);
    }

    fn remove(&mut self, serial: Serial) -> Option<Job> {
        let job = self.by_serial.remove(&serial)?;
        self.by_id.remove(&job.id);
        if let Some(count) = self.per_user.get_mut(&job.uid) {
            *count -= 1;
            if *count == 0 {
                self.per_user.remove(&job.uid);
            }
        }
        Some(job)
    }
}

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

    /// The same start came twice: it is answered once more if the first answer still holds.
    fn start_again(&mut self, serial: Serial, start: &Start) {
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        let same = job.uid == start.decision.account.uid
            && job.connection == start.spec.connection
            && job.worker == start.worker
            && job.fingerprint == start.fingerprint;
        let whole = job.pipes.open().0.len() == 2 + usize::from(job.stdin == Stdin::Pipe);
        match job.phase {
            JobPhase::Starting(_) if same => job.requests.push(start.request),
            JobPhase::Running if same && whole => {
                job.requests.push(start.request);
                self.tell_started(serial);
            }
            _ => self.refuse(
                start.worker,
                start.request,
                start.job,
                RefuseCode::DuplicateJob,
            ),
        }
    }

    fn spawn_job(&mut self, start: Start) -> Result<(), Failed> {
        let program = self.prepare(&start).map_err(Failed::Refused)?;
        let standard = self.standard(start.spec.stdin)?;
        let now = unix_ms();
        let record = start_record(&start, now);
        self.journal
            .append(Record::Start(record))
            .map_err(|error| {
                tracing::error!(%error, "the journal cannot be written; no job is started");
                Failed::Refused(RefuseCode::OutOfResources)
            })?;
        let mut cgroup = self.cgroups.take();
        let fds = standard.child.each_ref().map(AsFd::as_fd);
        let within = cgroup.as_ref().map(Cgroup::as_fd);
        let spawned = match spawn::spawn(program, &fds, within, &mut self.stacks) {
            Ok(spawned) => spawned,
            Err(error) => {
                self.record(Record::NotStarted { job: start.job });
                cgroup
                    .into_iter()
                    .for_each(|cgroup| self.cgroups.give_back(cgroup));
                return Err(error.into());
            }
        };
        if !spawned.in_cgroup && cgroup.take().is_some() {
            tracing::warn!("jobs cannot be started in cgroups; their trees are ended by walking");
            self.cgroups.give_up();
        }
        self.jobs.last += 1;
        let serial = Serial(self.jobs.last);
        let pid = spawned.pid.as_raw_pid();
        let watched = [
            self.watch(spawned.pidfd.as_fd(), Token::JobGone(serial)),
            self.watch(spawned.pending.status(), Token::JobStatus(serial)),
        ];
        self.record(Record::Spawned {
            job: start.job,
            pid,
            started: tree::start_time(spawned.pid),
        });
        if let Some(timeout_ms) = start.spec.timeout_ms {
            let at = Instant::now().checked_add(Duration::from_millis(timeout_ms));
            at.into_iter()
                .for_each(|at| self.timers.set(Timer::JobTimeout(serial), at));
        }
        let job = Job::new(start, spawned, standard.pipes, cgroup, now);
        self.jobs.insert(serial, job);
        if watched.iter().any(Result::is_err) {
            // Its end would never be noticed.
            self.kill_job(serial);
        }
        Ok(())
    }

    fn standard(&self, stdin: Stdin) -> io::Result<Standard> {
        let (stdin, ours) = match stdin {
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
                stdin: ours,
                stdout: Some(non_blocking(stdout)?),
                stderr: Some(non_blocking(stderr)?),
            },
        })
    }

    /// Writes a record of something that has happened already.
    fn record(&mut self, record: Record) {
        if let Err(error) = self.journal.append(record) {
            tracing::error!(%error, "the journal cannot be written");
        }
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
        if requests.is_empty() {
            // It was asked for by a gate that is gone.
            return self.adopt(serial);
        }
        let (worker, (_, fds)) = (job.worker, job.pipes.open());
        let (job, pid, unix_ms) = (job.id, job.pid.as_raw_pid(), job.unix_ms);
        for request in requests {
            let started = ToGate::Started {
                request,
                job,
                pid,
                unix_ms,
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
        for request in job.requests {
            let answer = ToGate::NotStarted {
                request,
                job: job.id,
                why: why.clone(),
            };
            self.send(job.worker, &answer, &[]);
        }
    }

    fn failed_gone(&mut self, serial: Serial) {
        if let Some((pidfd, cgroup)) = self.jobs.failed.remove(&serial) {
            reap(pidfd.as_fd());
            let _ = epoll::delete(&self.epoll, &pidfd);
            cgroup
                .into_iter()
                .for_each(|cgroup| self.cgroups.give_back(cgroup));
        }
    }

    /// The main process of a job has ended.
    pub(super) fn job_gone(&mut self, serial: Serial) {
        // Whether it executed its program is known by now, and said first.
        self.job_progress(serial);
        let Some(job) = self.jobs.get(serial) else {
            return self.failed_gone(serial);
        };
        let Some(pidfd) = job.pidfd.as_ref() else {
            return;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let Some(status) = wait(pidfd.as_fd(), options) else {
            return;
        };
        // While it is not reaped its number cannot be another's, so this is the time for its tree.
        let tree = match job.cause {
            Some(_) => job.roots.kill(job.cgroup.as_ref()),
            None => Tree::LeftAlone,
        };
        if let Some(pidfd) = job.pidfd.take() {
            reap(pidfd.as_fd());
            let _ = epoll::delete(&self.epoll, &pidfd);
        }
        job.roots.main_reaped();
        let end = EndRecord {
            exited: exited(&status),
            cause: job.cause,
            tree,
            unix_ms: unix_ms(),
        };
        job.phase = JobPhase::Ended(end);
        let (worker, id) = (job.worker, job.id);
        self.timers.cancel(Timer::JobTimeout(serial));
        self.timers.cancel(Timer::JobKill(serial));
        self.timers
            .set_once(Timer::Orphans, Instant::now() + ORPHANS_AFTER);
        self.record(Record::Ended { job: id, end });
        let ended = ToGate::Ended {
            job: id,
            exited: end.exited,
            cause: end.cause,
            tree: end.tree,
            unix_ms: end.unix_ms,
        };
        self.send(worker, &ended, &[]);
    }

    pub(super) fn signal_job(&mut self, id: JobId, signal: i32, scope: Scope) {
        let Some(signal) = spawn::signal_of(signal) else {
            return;
        };
        let Some(serial) = self.jobs.by_id(id) else {
            return;
        };
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        match scope {
            Scope::Group => job.signal_group(signal),
            Scope::Tree => job.roots.signal(job.cgroup.as_ref(), signal),
        }
    }

    pub(super) fn end_job_by_id(&mut self, id: JobId, cause: Cause, first: i32) {
        if let Some(serial) = self.jobs.by_id(id) {
            self.end_job(serial, cause, first);
        }
    }

    /// Ends a job's tree: `first` now, SIGKILL after the grace time or when the
    /// main process has gone.
    pub(super) fn end_job(&mut self, serial: Serial, cause: Cause, first: i32) {
        let grace = Duration::from_millis(self.config.kill_grace_ms);
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        let id = job.id;
        let first = spawn::signal_of(first).unwrap_or(Signal::KILL);
        if job.pidfd.is_none() || first == Signal::KILL {
            self.note_cause(serial, cause);
            return self.kill_job(serial);
        }
        job.roots.signal(job.cgroup.as_ref(), first);
        // What is stopped would not notice.
        job.roots.signal(job.cgroup.as_ref(), Signal::CONT);
        tracing::debug!(job = %id, ?cause, "a job is made to end");
        self.note_cause(serial, cause);
        self.timers
            .set_once(Timer::JobKill(serial), Instant::now() + grace);
    }

    fn note_cause(&mut self, serial: Serial, cause: Cause) {
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        if job.cause.is_none() {
            job.cause = Some(cause);
            let job = job.id;
            self.record(Record::Ending { job, cause });
        }
    }

    /// Sends SIGKILL to everything of a job.
    pub(super) fn kill_job(&mut self, serial: Serial) {
        self.timers.cancel(Timer::JobKill(serial));
        if let Some(job) = self.jobs.get(serial) {
            job.roots.kill(job.cgroup.as_ref());
        }
    }

    pub(super) fn job_timed_out(&mut self, serial: Serial) {
        self.end_job(serial, Cause::TimedOut, libc::SIGTERM);
    }

    pub(super) fn close_stream(&mut self, id: JobId, stream: Stream) {
        let Some(serial) = self.jobs.by_id(id) else {
            return;
        };
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        if job.pipes.of(stream).take().is_some() {
            self.record(Record::Closed { job: id, stream });
        }
    }

    pub(super) fn release_job(&mut self, id: JobId) {
        if let Some(serial) = self.jobs.by_id(id) {
            let ended = |job: &mut Job| matches!(job.phase, JobPhase::Ended(_));
            if self.jobs.get(serial).is_some_and(ended) {
                self.forget_job(serial);
            }
            return;
        }
        if let Some(uid) = self.journal.job(id).map(|image| image.start.uid) {
            self.record(Record::Released { job: id, uid });
        }
    }

    fn forget_job(&mut self, serial: Serial) {
        let Some(job) = self.jobs.remove(serial) else {
            return;
        };
        if matches!(job.phase, JobPhase::Ended(_)) {
            let (job, uid) = (job.id, job.uid);
            self.record(Record::Released { job, uid });
        }
        job.cgroup
            .into_iter()
            .for_each(|cgroup| self.cgroups.give_back(cgroup));
    }

    /// Tells the present gate of every job, those of a dead keeper among them.
    pub(super) fn adopt_all(&mut self) {
        for snapshot in self.lost() {
            let snapshot = Box::new(snapshot);
            self.send(0, &ToGate::Adopt { snapshot }, &[]);
        }
        for serial in self.jobs.all() {
            self.adopt(serial);
        }
    }

    fn adopt(&mut self, serial: Serial) {
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        if !matches!(job.phase, JobPhase::Running | JobPhase::Ended(_)) {
            return;
        }
        let (snapshot, fds) = job.snapshot();
        let (worker, snapshot) = (job.worker, Box::new(snapshot));
        self.send(worker, &ToGate::Adopt { snapshot }, &fds);
    }

    /// All that a successor needs to know.
    pub(super) fn state(&self) -> KeeperState {
        let jobs = self.jobs.by_serial.values().filter_map(|job| {
            let image = self.journal.job(job.id)?;
            Some(JobState {
                snapshot: job.snapshot().0,
                started: image.pid.and_then(|(_, started)| started),
                deadline_unix_ms: image.start.deadline_unix_ms,
                cause: job.cause,
            })
        });
        KeeperState {
            keeper: self.journal.keeper().clone(),
            generation: self.generation,
            jobs: jobs.collect(),
        }
    }

    /// Jobs that only the journal knows: an earlier keeper's.
    fn lost(&self) -> Vec<JobSnapshot> {
        let own = |image: &&JobImage| self.jobs.by_id(image.start.job).is_none();
        self.journal
            .jobs()
            .filter(own)
            .filter_map(lost_snapshot)
            .collect()
    }

    /// Records that the jobs of an earlier keeper ended without anybody seeing it.
    pub(super) fn record_lost(&mut self) {
        let unseen = self.journal.jobs().filter(|image| image.end.is_none());
        let unseen: Vec<(JobId, Option<Cause>)> =
            unseen.map(|image| (image.start.job, image.cause)).collect();
        for (job, cause) in unseen {
            tracing::warn!(%job, "a job of an earlier keeper is lost: its outcome cannot be known");
            let end = EndRecord {
                exited: Exited::Lost,
                cause,
                tree: Tree::LeftAlone,
                unix_ms: unix_ms(),
            };
            self.record(Record::Ended { job, end });
        }
    }

    /// Reaps processes that lost their parents and came to the keeper.
    pub(super) fn reap_orphans(&mut self) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        // Looked at before it is reaped: main processes and the gate have their own ways.
        while let Ok(looked) = nix_wait::waitid(Id::All, flags | WaitPidFlag::WNOWAIT) {
            let Some(pid) = looked.pid().and_then(|pid| Pid::from_raw(pid.as_raw())) else {
                return;
            };
            if let Some(serial) = self.jobs.by_pid(pid) {
                self.job_gone(serial);
            } else if self.gate.as_ref().is_some_and(|gate| gate.pid == pid) {
                // Its own event is due, and what is behind it is reaped when it is.
                return self
                    .timers
                    .set(Timer::Orphans, Instant::now() + ORPHANS_AFTER);
            } else {
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }
}

impl Job {
    fn new(
        start: Start,
        spawned: spawn::Spawned,
        pipes: Pipes,
        cgroup: Option<Cgroup>,
        unix_ms: u64,
    ) -> Self {
        let account = &start.decision.account;
        let cookie = format!("{COOKIE}={}", start.job).into_bytes();
        Self {
            id: start.job,
            user: account.name.clone(),
            uid: account.uid,
            source: start.spec.source,
            connection: start.spec.connection,
            fingerprint: start.fingerprint,
            stdin: start.spec.stdin,
            worker: start.worker,
            requests: vec![start.request],
            pid: spawned.pid,
            pidfd: Some(spawned.pidfd),
            pipes,
            cgroup,
            roots: Roots::new(spawned.pid, cookie),
            unix_ms,
            phase: JobPhase::Starting(spawned.pending),
            cause: None,
        }
    }

    fn signal_group(&self, signal: Signal) {
        // A reaped process's number may be another's.
        let Some(pidfd) = &self.pidfd else { return };
        // A child that has no group of its own yet is alone.
        if rustix::process::kill_process_group(self.pid, signal).is_err() {
            let _ = rustix::process::pidfd_send_signal(pidfd, signal);
        }
    }

    fn snapshot(&self) -> (JobSnapshot, Vec<Rc<OwnedFd>>) {
        let (open, fds) = self.pipes.open();
        let ended = match self.phase {
            JobPhase::Ended(end) => Some((end.exited, end.cause, end.tree, end.unix_ms)),
            _ => None,
        };
        let snapshot = JobSnapshot {
            job: self.id,
            user: self.user.clone(),
            uid: self.uid,
            pid: self.pid.as_raw_pid(),
            started_unix_ms: self.unix_ms,
            source: self.source.clone(),
            connection: self.connection,
            open,
            ended,
        };
        (snapshot, fds)
    }
}

fn lost_snapshot(image: &JobImage) -> Option<JobSnapshot> {
    let end = image.end?;
    Some(JobSnapshot {
        job: image.start.job,
        user: image.start.user.clone(),
        uid: image.start.uid,
        pid: image.pid.map_or(0, |(pid, _)| pid),
        started_unix_ms: image.start.unix_ms,
        source: image.start.source.clone(),
        connection: image.start.connection,
        open: Vec::new(),
        ended: Some((end.exited, end.cause, end.tree, end.unix_ms)),
    })
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
        on_disconnect: OnDisconnect::End,
    }
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

fn exited(status: &WaitIdStatus) -> Exited {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exited::Code(code),
        (_, Some(signal)) => Exited::Signal {
            signal,
            core_dumped: status.dumped(),
        },
        // WEXITED gives nothing else.
        _ => Exited::Lost,
    }
}
