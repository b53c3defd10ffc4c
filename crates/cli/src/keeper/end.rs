//! How a job ends: by itself or on purpose, with its tree or without.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bowline_proto::id::JobId;
use nix::errno::Errno;
use nix::sys::wait::{self as nix_wait, Id, WaitPidFlag};
use rustix::event::epoll;
use rustix::process::{Pid, Signal, WaitIdOptions, WaitIdStatus, WaitOptions};

use super::cgroup::Cgroup;
use super::jobs::{Job, JobPhase, Serial};
use super::journal::{EndRecord, Record};
use super::{Keeper, ORPHANS_AFTER, Timer, reap, spawn, tree, unix_ms, wait};
use crate::ipc::{Cause, Exited, Scope, Stream, ToGate, Tree};

impl Keeper {
    fn failed_gone(&mut self, serial: Serial) {
        if let Some((pidfd, cgroup)) = self.jobs.failed.remove(&serial) {
            let _ = reap(pidfd.as_fd());
            let _ = epoll::delete(&self.epoll, &pidfd);
            self.give_back(cgroup);
        }
    }

    pub(super) fn give_back(&mut self, cgroup: Option<Cgroup>) {
        if let Some(cgroup) = cgroup {
            self.cgroups.give_back(cgroup);
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
        let mut tree = Tree::LeftAlone;
        if job.cause.is_some() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if matches!(wait(pidfd.as_fd(), options), Ok(None)) {
                return;
            }
            // While it is not reaped its number cannot be another's: this is the time for its tree.
            tree = job.roots.kill(job.cgroup.as_ref());
        }
        let exited = match reap(pidfd.as_fd()) {
            Ok(None) => return,
            Ok(Some(status)) => exited(&status),
            // Somebody else has reaped it; nobody will ever know.
            Err(_) => Exited::Lost,
        };
        let _ = epoll::delete(&self.epoll, pidfd);
        job.pidfd = None;
        job.roots.main_reaped();
        let end = EndRecord {
            exited,
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
        // What has ended by itself just now was not made to.
        self.job_gone(serial);
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
        self.give_back(job.cgroup);
    }

    /// Reaps processes that lost their parents and came to the keeper.
    pub(super) fn reap_orphans(&mut self) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            // Looked at before it is reaped: main processes and the gate have their own ways.
            let pid = match nix_wait::waitid(Id::All, flags) {
                Ok(looked) => looked.pid().and_then(|pid| Pid::from_raw(pid.as_raw())),
                // It cannot name those that a real-time signal killed.
                Err(Errno::EINVAL) => tree::dead_children().first().copied(),
                Err(_) => None,
            };
            let Some(pid) = pid else { return };
            if let Some(serial) = self.jobs.by_pid(pid) {
                self.job_gone(serial);
            } else if self.gate.as_ref().is_some_and(|gate| gate.pid == pid) {
                // Its own event is due, and what is behind it is reaped when it is.
                let at = Instant::now() + ORPHANS_AFTER;
                return self.timers.set(Timer::Orphans, at);
            } else {
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
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
