//! How a job ends: by itself or on purpose, with its tree or without.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bowline_proto::id::JobId;
use nix::errno::Errno;
use nix::sys::wait::{self as nix_wait, Id, WaitPidFlag};
use rustix::event::epoll;
use rustix::process::{Pid, Signal, WaitIdStatus, WaitOptions};

use super::cgroup::Cgroup;
use super::jobs::{Job, JobPhase, Jobs, Serial};
use super::journal::Record;
use super::tree::Cookies;
use super::{Keeper, ORPHANS_AFTER, Timer, reap, spawn, tree};
use crate::clock::unix_ms;
use crate::ipc::{Cause, End, Exited, Scope, Stream, ToGate, Tree};

/// What is to be done to whole trees when the loop has handled all that there
/// is: a walk through /proc serves them together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TreeWork {
    /// Signals to each, in their order.
    signals: BTreeMap<Serial, Vec<Signal>>,
    /// To be ended.
    kills: BTreeSet<Serial>,
    /// To be ended because their main process has, which was made to.
    gone: BTreeSet<Serial>,
}

impl TreeWork {
    fn signal(&mut self, serial: Serial, signals: &[Signal]) {
        self.signals.entry(serial).or_default().extend(signals);
    }
}

impl Jobs {
    fn signal_trees(&mut self, work: &BTreeMap<Serial, Vec<Signal>>, cookies: &mut Cookies) {
        let mut walked = Vec::new();
        for (serial, job) in self.by_serial.iter_mut() {
            match (work.get(serial), &job.cgroup) {
                (None, _) => {}
                (Some(signals), Some(cgroup)) => tree::signal_cgroup(cgroup, signals),
                (Some(signals), None) => walked.push((&mut job.roots, &signals[..])),
            }
        }
        tree::signal_all(&mut walked, cookies);
    }

    /// Ends trees; says which of them the kernel has ended exactly.
    fn kill_trees(&mut self, work: &BTreeSet<Serial>, cookies: &mut Cookies) -> BTreeSet<Serial> {
        let mut exact = BTreeSet::new();
        let mut walked = Vec::new();
        let chosen = self.by_serial.iter_mut();
        for (&serial, job) in chosen.filter(|(serial, _)| work.contains(serial)) {
            if job
                .cgroup
                .as_ref()
                .is_some_and(|cgroup| cgroup.kill().is_ok())
            {
                exact.insert(serial);
            } else {
                walked.push(&mut job.roots);
            }
        }
        tree::kill_all(&mut walked, cookies);
        exact
    }
}

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
        if job.pidfd.is_none() {
            return;
        }
        if job.cause.is_some() {
            if job.main_has_ended() {
                // Its tree ends first: while it is not reaped its number cannot be another's.
                self.trees.gone.insert(serial);
            }
            return;
        }
        self.job_ended(serial, Tree::LeftAlone);
    }

    /// Reaps the main process and tells what became of the job.
    fn job_ended(&mut self, serial: Serial, tree: Tree) {
        let Some(job) = self.jobs.get(serial) else {
            return;
        };
        let Some(pidfd) = job.pidfd.as_ref() else {
            return;
        };
        if !job.main_has_ended() {
            return;
        }
        let exited = match reap(pidfd.as_fd()) {
            Ok(Some(status)) if job.ours => exited(&status),
            // It is somebody else's to reap; nobody here will ever know.
            _ => Exited::Lost,
        };
        let _ = epoll::delete(&self.epoll, pidfd);
        job.pidfd = None;
        job.roots.main_reaped();
        let end = End {
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
        self.send(worker, &ToGate::Ended { job: id, end }, &[]);
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
            Scope::Tree => self.trees.signal(serial, &[signal]),
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
        // What is stopped would not notice.
        self.trees.signal(serial, &[first, Signal::CONT]);
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
        self.trees.kills.insert(serial);
    }

    /// Does what was asked of trees since the last time.
    pub(super) fn settle_trees(&mut self) {
        let work = std::mem::take(&mut self.trees);
        if work == TreeWork::default() {
            return;
        }
        self.jobs.signal_trees(&work.signals, &mut self.cookies);
        let ending = work.kills.union(&work.gone).copied().collect();
        let exact = self.jobs.kill_trees(&ending, &mut self.cookies);
        for serial in work.gone {
            let tree = match exact.contains(&serial) {
                true => Tree::Exact,
                false => Tree::BestEffort,
            };
            self.job_ended(serial, tree);
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
                if self.trees.gone.contains(&serial) {
                    // Its tree ends before it is reaped, and what is behind it after that.
                    let at = Instant::now() + ORPHANS_AFTER;
                    return self.timers.set(Timer::Orphans, at);
                }
            } else if self.gate.as_ref().is_some_and(|gate| gate.pid == pid) {
                // Whichever event comes first; its own may never, if it could not be watched.
                self.gate_gone();
            } else if self.is_candidate(pid) {
                self.candidate_gone();
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
