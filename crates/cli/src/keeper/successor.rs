//! Handing a keeper on to the next program of this process, and taking it over
//! there: each field that is written has its reader beside it.
//!
//! What is passed are numbers of open descriptors ([`super::state`]); when the
//! program is executed and when it is not is decided in [`super::upgrade`].

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context as _;
use rustix::process::Pid;

use super::cgroup::{Cgroup, Cgroups};
use super::jobs::{Job, JobPhase, Pipes, Serial};
use super::journal::JobImage;
use super::program::Own;
use super::spawn::Pending;
use super::state::{JobState, KeeperState, Pass};
use super::tree::Roots;
use super::{Keeper, Timer, Token};
use crate::clock::{monotonic_instant, monotonic_ms};
use crate::inherited;

/// The longest state: some hundred bytes for each of as many jobs as there can be.
const STATE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Reads the state that the earlier program of this process has left, or that a
/// running one shows to a program that may follow it.
///
/// # Errors
/// Where there is none under that number, or none that this program knows.
pub(crate) fn read(number: RawFd) -> anyhow::Result<KeeperState> {
    let memfd = inherited::take(number).context("only a running server upgrades itself")?;
    let mut bytes = Vec::new();
    let file = std::fs::File::from(memfd);
    // It may have been read before, through the same open file.
    io::Seek::rewind(&mut &file)?;
    file.take(STATE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(KeeperState::decode(&bytes)?)
}

impl Keeper {
    /// All that the next program needs to know; `pass` is given each descriptor
    /// that it is to have.
    pub(super) fn state<'a>(&'a self, pass: &mut Pass<'a, '_>) -> io::Result<KeeperState> {
        let program = self.program.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let listeners = self.listeners.iter();
        let listeners = listeners.map(|(name, fd)| Ok((name.clone(), pass(fd.as_fd())?)));
        let listeners = listeners.collect::<io::Result<_>>()?;
        let jobs = self.jobs.by_serial.iter();
        let jobs = jobs.map(|(&serial, job)| self.job_state(serial, job, pass));
        let jobs = jobs.collect::<io::Result<_>>()?;
        Ok(KeeperState {
            software: env!("CARGO_PKG_VERSION").to_owned(),
            program: program.path().to_owned(),
            state_dir: self.config.state_dir.clone(),
            generation: self.generation,
            nofile: self.own.nofile,
            umask: self.own.umask,
            lock: pass(self.lock.as_fd())?,
            takeover: pass(self.takeover.as_fd())?,
            lifeline: match &self.lifeline {
                Some(lifeline) => Some(pass(lifeline.as_fd())?),
                None => None,
            },
            listeners,
            socket_files: self.socket_files.clone(),
            cgroups: self.cgroups.state(pass)?,
            journal: self.journal.jobs().cloned().collect(),
            recent: self.journal.recent().collect(),
            jobs,
        })
    }

    fn job_state<'a>(
        &'a self,
        serial: Serial,
        job: &'a Job,
        pass: &mut Pass<'a, '_>,
    ) -> io::Result<JobState> {
        let pipes = [&job.pipes.stdin, &job.pipes.stdout, &job.pipes.stderr];
        let mut passed = [None; 3];
        for (place, pipe) in passed.iter_mut().zip(pipes) {
            *place = pipe.as_ref().map(|pipe| pass(pipe.as_fd())).transpose()?;
        }
        let spools = job.pipes.spools.iter();
        let spools = spools.map(|(stream, memfd)| Ok((*stream, pass(memfd.as_fd())?)));
        let spools = spools.collect::<io::Result<_>>()?;
        let terminal = job.pipes.terminal.iter().map(|fd| pass(fd.as_fd()));
        let terminal = terminal.collect::<io::Result<_>>()?;
        let starting = match &job.phase {
            JobPhase::Starting(pending) => {
                Some((pass(pending.status())?, pending.report().to_vec()))
            }
            JobPhase::Running | JobPhase::Ended(_) => None,
        };
        let pidfd = job.pidfd.as_ref().map(|pidfd| pass(pidfd.as_fd()));
        let cgroup = job.cgroup.as_ref().map(|cgroup| cgroup.state(pass));
        let due = |timer| self.timers.at(timer).map(monotonic_ms);
        Ok(JobState {
            job: job.id,
            pid: job.pid.as_raw_pid(),
            ours: job.ours,
            fingerprint: job.fingerprint,
            stdin: job.stdin,
            cause: job.cause,
            pidfd: pidfd.transpose()?,
            starting,
            pipes: passed,
            spools,
            terminal,
            cgroup: cgroup.transpose()?,
            seen: job.roots.seen(),
            timeout_ms: due(Timer::JobTimeout(serial)),
            kill_ms: due(Timer::JobKill(serial)),
        })
    }

    /// Takes over the jobs of the earlier program. What ended meanwhile is
    /// noticed as always: its pidfd says so.
    pub(super) fn resume_jobs(&mut self, jobs: Vec<JobState>) {
        for state in jobs {
            let (job, pid) = (state.job, state.pid);
            if let Err(error) = self.resume_job(state) {
                // It is in the journal, and is recorded as lost.
                tracing::error!(%job, pid, %error, "a job cannot be taken over");
            }
        }
        // Those that could not execute their program are left to be reaped.
        self.timers.set(Timer::Orphans, Instant::now());
    }

    fn resume_job(&mut self, state: JobState) -> io::Result<()> {
        let image = self.journal.job(state.job).ok_or(io::ErrorKind::NotFound)?;
        let job = Job::resume(&state, image)?;
        self.jobs.last += 1;
        let serial = Serial(self.jobs.last);
        if let Some(pidfd) = &job.pidfd {
            self.watch(pidfd.as_fd(), Token::JobGone(serial))?;
        }
        if let JobPhase::Starting(pending) = &job.phase {
            self.watch(pending.status(), Token::JobStatus(serial))?;
        }
        let timers = [
            (Timer::JobTimeout(serial), state.timeout_ms),
            (Timer::JobKill(serial), state.kill_ms),
        ];
        for (timer, due) in timers {
            if let Some(at) = due.and_then(monotonic_instant) {
                self.timers.set(timer, at);
            }
        }
        self.jobs.insert(serial, job);
        Ok(())
    }
}

impl Job {
    fn resume(state: &JobState, image: &JobImage) -> io::Result<Self> {
        let open = |number: &Option<RawFd>| -> io::Result<Option<OwnedFd>> {
            number.map(inherited::take).transpose()
        };
        let shared = |number| Ok::<_, io::Error>(open(number)?.map(Rc::new));
        let [stdin, stdout, stderr] = &state.pipes;
        let spools = state.spools.iter();
        let spools =
            spools.map(|&(stream, number)| Ok((stream, Rc::new(inherited::take(number)?))));
        let spools = spools.collect::<io::Result<_>>()?;
        let terminal = state
            .terminal
            .iter()
            .map(|&fd| Ok(Rc::new(inherited::take(fd)?)));
        let terminal = terminal.collect::<io::Result<_>>()?;
        let pid = Pid::from_raw(state.pid).ok_or(io::ErrorKind::InvalidData)?;
        let pidfd = open(&state.pidfd)?;
        let mut roots = Roots::new(state.job, pid);
        roots.remember(&state.seen);
        if pidfd.is_none() || !state.ours {
            roots.main_reaped();
        }
        let phase = match (&state.starting, image.end) {
            (Some((status, report)), _) => JobPhase::Starting(Pending::inherited(
                inherited::take(*status)?,
                report.clone(),
            )),
            (None, Some(end)) => JobPhase::Ended(end),
            (None, None) => JobPhase::Running,
        };
        Ok(Self {
            id: state.job,
            user: image.start.user.clone(),
            uid: image.start.uid,
            source: image.start.source.clone(),
            connection: image.start.connection,
            fingerprint: state.fingerprint,
            stdin: state.stdin,
            terms: image.start.terms,
            worker: 0,
            requests: Vec::new(),
            pid,
            ours: state.ours,
            pidfd,
            pipes: Pipes {
                stdin: shared(stdin)?,
                stdout: shared(stdout)?,
                stderr: shared(stderr)?,
                spools,
                terminal,
            },
            cgroup: state.cgroup.clone().map(Cgroup::resume).transpose()?,
            roots,
            unix_ms: image.start.unix_ms,
            phase,
            cause: state.cause,
            kept: true,
        })
    }
}

/// What the first program of this process was started with.
pub(super) fn own(state: &KeeperState) -> Own {
    Own {
        uid: rustix::process::geteuid().as_raw(),
        nofile: state.nofile,
        umask: state.umask,
    }
}

/// The cgroups of the earlier program; without them trees are ended by walking.
pub(super) fn cgroups(state: &KeeperState) -> Cgroups {
    Cgroups::resume(state.cgroups.clone()).unwrap_or_else(|error| {
        tracing::error!(%error, "the cgroups cannot be taken over");
        Cgroups::default()
    })
}
