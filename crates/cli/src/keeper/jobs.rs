//! The live jobs: what is known of each, and what a gate is told that did not start it.
//! How they begin is in `start`, how they end in `end`.
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
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use bowline_proto::id::JobId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitIdOptions};

use super::Keeper;
use super::cgroup::Cgroup;
use super::journal::{JobImage, Record};
use super::requests::Start;
use super::spawn::{self, Pending};
use super::terminal;
use super::tree::Roots;
use crate::clock::unix_ms;
use crate::ipc::{
    Cause, End, Exited, JobSnapshot, RefuseCode, Source, Stdin, Stream, Terms, ToGate, Tree,
};

/// Names a job within this keeper; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Serial(pub(super) u64);

/// All jobs that are not released.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    pub(super) by_serial: BTreeMap<Serial, Job>,
    pub(super) by_id: HashMap<JobId, Serial>,
    pub(super) per_user: HashMap<u32, u32>,
    /// Children that could not execute their program and are not reaped yet.
    pub(super) failed: HashMap<Serial, (OwnedFd, Option<Cgroup>)>,
    pub(super) last: u64,
}

/// A job.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) user: String,
    pub(super) uid: u32,
    pub(super) source: Source,
    pub(super) connection: u64,
    pub(super) fingerprint: u64,
    pub(super) stdin: Stdin,
    pub(super) terms: Terms,
    /// Whom the present gate is told of it through.
    pub(super) worker: usize,
    /// Starts that wait for their answer.
    pub(super) requests: Vec<u64>,
    pub(super) pid: Pid,
    /// The main process is a child of this process, which can tell its status.
    pub(super) ours: bool,
    /// Until the main process is reaped, or has ended where it is not ours.
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) pipes: Pipes,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) roots: Roots,
    pub(super) unix_ms: u64,
    pub(super) phase: JobPhase,
    /// Why it is made to end, if it is.
    pub(super) cause: Option<Cause>,
    /// Its connection was cut by this server itself: no gate ends it for that.
    pub(super) kept: bool,
}

#[derive(Debug)]
pub(super) enum JobPhase {
    Starting(Pending),
    Running,
    Ended(End),
}

/// The keeper's ends of a job's streams.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    pub(super) stdin: Option<Rc<OwnedFd>>,
    pub(super) stdout: Option<Rc<OwnedFd>>,
    pub(super) stderr: Option<Rc<OwnedFd>>,
    /// The memfds that the gate moves bytes through: held until the job is released, so that the next gate
    /// finds in them what this one had not passed on.
    pub(super) spools: Vec<(Stream, Rc<OwnedFd>)>,
    /// The master of its terminal, the end of stdout's pipe that it is emptied into, and the end
    /// of stdin's pipe that it is filled from. A terminal cannot be spliced into a memfd; and what is
    /// in the pipes is not lost with a gate.
    pub(super) terminal: Vec<Rc<OwnedFd>>,
}

impl Pipes {
    pub(super) fn of(&mut self, stream: Stream) -> &mut Option<Rc<OwnedFd>> {
        match stream {
            Stream::Stdin => &mut self.stdin,
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// The same ends once more.
    pub(super) fn shared(&self) -> Self {
        Self {
            stdin: self.stdin.clone(),
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
            spools: self.spools.clone(),
            terminal: self.terminal.clone(),
        }
    }

    pub(super) fn open(&self) -> (Vec<Stream>, Vec<Rc<OwnedFd>>) {
        let all = [
            (Stream::Stdin, &self.stdin),
            (Stream::Stdout, &self.stdout),
            (Stream::Stderr, &self.stderr),
        ];
        let open = all.into_iter();
        open.filter_map(|(stream, fd)| Some((stream, Rc::clone(fd.as_ref()?))))
            .unzip()
    }

    /// The master of the terminal that its session controls.
    pub(super) fn master(&self) -> Option<&Rc<OwnedFd>> {
        self.terminal.first()
    }

    /// The pipes that are open, the memfds, and the descriptors of both and of the terminal in this order.
    pub(super) fn all(&self) -> (Vec<Stream>, Vec<Stream>, Vec<Rc<OwnedFd>>) {
        let (open, mut fds) = self.open();
        fds.extend(self.spools.iter().map(|(_, fd)| Rc::clone(fd)));
        fds.extend(self.terminal.iter().cloned());
        let spools = self.spools.iter().map(|(stream, _)| *stream);
        (open, spools.collect(), fds)
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
    pub(super) fn by_pid(&self, pid: Pid) -> Option<Serial> {
        let has = |(_, job): &(&Serial, &Job)| job.ours && job.pid == pid && job.pidfd.is_some();
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

    pub(super) fn insert(&mut self, serial: Serial, job: Job) {
        self.by_id.insert(job.id, serial);
        *self.per_user.entry(job.uid).or_default() += 1;
        self.by_serial.insert(serial, job);
    }

    pub(super) fn remove(&mut self, serial: Serial) -> Option<Job> {
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

impl Keeper {
    /// Writes a record of something that has happened already.
    pub(super) fn record(&mut self, record: Record) {
        if let Err(error) = self.journal.append(record) {
            tracing::error!(%error, "the journal cannot be written");
        }
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
        self.send(0, &ToGate::AllAdopted, &[]);
    }

    fn adopt(&mut self, serial: Serial) {
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        let (snapshot, fds) = job.snapshot();
        let (worker, snapshot) = (job.worker, Box::new(snapshot));
        self.send(worker, &ToGate::Adopt { snapshot }, &fds);
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
        let unseen = unseen.filter(|image| self.jobs.by_id(image.start.job).is_none());
        let unseen: Vec<(JobId, Option<Cause>)> =
            unseen.map(|image| (image.start.job, image.cause)).collect();
        for (job, cause) in unseen {
            tracing::warn!(%job, "a job of an earlier keeper is lost: its outcome cannot be known");
            let end = End {
                exited: Exited::Lost,
                cause,
                tree: Tree::LeftAlone,
                unix_ms: unix_ms(),
            };
            self.record(Record::Ended { job, end });
        }
    }
}

impl Job {
    pub(super) fn new(
        start: Start,
        spawned: spawn::Spawned,
        pipes: Pipes,
        cgroup: Option<Cgroup>,
        unix_ms: u64,
    ) -> Self {
        let account = &start.decision.account;
        Self {
            id: start.job,
            user: account.name.clone(),
            uid: account.uid,
            source: start.spec.source,
            connection: start.spec.connection,
            fingerprint: start.fingerprint,
            stdin: start.spec.stdin,
            terms: start.spec.terms,
            worker: start.worker,
            requests: vec![start.request],
            pid: spawned.pid,
            ours: true,
            pidfd: Some(spawned.pidfd),
            pipes,
            cgroup,
            roots: Roots::new(start.job, spawned.pid),
            unix_ms,
            phase: JobPhase::Starting(spawned.pending),
            cause: None,
            kept: false,
        }
    }

    pub(super) fn signal_group(&self, signal: Signal) {
        // A reaped process's number may be another's.
        let Some(pidfd) = &self.pidfd else { return };
        if !self.ours && has_ended(pidfd) {
            return;
        }
        // What is typed at a terminal is for the program in front, so signals are too.
        if let Some(front) = self.pipes.master().and_then(terminal::front)
            && rustix::process::kill_process_group(front, signal).is_ok()
        {
            return;
        }
        // A child that has no group of its own yet is alone.
        if rustix::process::kill_process_group(self.pid, signal).is_err() {
            let _ = rustix::process::pidfd_send_signal(pidfd, signal);
        }
    }

    /// Whether the main process has ended; it is reaped elsewhere.
    pub(super) fn main_has_ended(&self) -> bool {
        let Some(pidfd) = &self.pidfd else {
            return true;
        };
        if !self.ours {
            return has_ended(pidfd);
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(super::wait(pidfd.as_fd(), options), Ok(None))
    }

    fn snapshot(&self) -> (JobSnapshot, Vec<Rc<OwnedFd>>) {
        let (open, spools, fds) = self.pipes.all();
        let ended = match self.phase {
            JobPhase::Ended(end) => Some(end),
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
            fingerprint: self.fingerprint,
            terms: self.terms,
            starting: matches!(self.phase, JobPhase::Starting(_)),
            stdin: self.stdin,
            open,
            spools,
            ended,
            kept: self.kept,
        };
        (snapshot, fds)
    }
}

/// Whether a process has ended, whoever's child it is.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec::default();
    !matches!(
        poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)),
        Ok(0)
    )
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
        fingerprint: image.start.fingerprint,
        terms: image.start.terms,
        starting: false,
        stdin: Stdin::Null,
        open: Vec::new(),
        spools: Vec::new(),
        ended: Some(end),
        kept: false,
    })
}
