//! The jobs of a keeper that died, found by the next one. They are somebody
//! else's children, so their status can never be known: their outcome is `lost`,
//! whatever they do. But they are shown, signalled and ended, and their end is
//! noticed.
//!
//! A main process is known by its number, its start time and the boot; where the
//! keeper died before it could write those down, by the cookie in its
//! environment. The streams come from the gate that stayed, if it did.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use bowline_proto::id::JobId;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::Cgroup;
use super::jobs::{Job, JobPhase, Pipes, Serial, has_ended};
use super::journal::{JobImage, Record};
use super::tree::{self, Roots};
use super::{Keeper, Timer, Token};
use crate::clock::unix_ms;
use crate::ipc::{End, Exited, Stdin, Stream, Tree};

/// A main process that runs.
struct Main {
    pid: Pid,
    started: u64,
    pidfd: OwnedFd,
}

impl Keeper {
    /// Takes over what an earlier keeper's journal says of jobs. `streams` are
    /// those that its gate has handed over.
    pub(super) fn take_over_strangers(&mut self, streams: Option<&HashMap<JobId, Pipes>>) {
        let unknown = |image: &&JobImage| self.jobs.by_id(image.start.job).is_none();
        let images: Vec<JobImage> = self.journal.jobs().filter(unknown).cloned().collect();
        let predecessor = self.journal.predecessor();
        let same_boot =
            predecessor.is_some_and(|keeper| keeper.boot_id == self.journal.keeper().boot_id);
        let mut carrying = HashMap::new();
        let unnamed = |image: &JobImage| image.end.is_none() && image.pid.is_none();
        if same_boot && images.iter().any(unnamed) {
            carrying = tree::carrying(&mut self.cookies);
        }
        for image in images {
            let pipes = streams.and_then(|streams| streams.get(&image.start.job));
            let main = match (image.end, same_boot) {
                (None, true) => main_of(&image, &carrying),
                _ => None,
            };
            if main.is_some() || pipes.is_some() {
                self.take_over(&image, main, pipes.map(Pipes::shared));
            }
        }
    }

    fn take_over(&mut self, image: &JobImage, main: Option<Main>, pipes: Option<Pipes>) {
        self.jobs.last += 1;
        let serial = Serial(self.jobs.last);
        let job = image.start.job;
        let mut end = image.end;
        if let Some(main) = &main {
            if let Err(error) = self.watch(main.pidfd.as_fd(), Token::JobGone(serial)) {
                return tracing::error!(%job, %error, "a job cannot be taken over");
            }
            self.found_running(serial, image, main, pipes.is_some());
        } else if end.is_none() {
            tracing::warn!(%job, "a job of an earlier keeper is lost: its outcome cannot be known");
            let unseen = lost(image);
            self.record(Record::Ended { job, end: unseen });
            end = Some(unseen);
        }
        let pipes = pipes.unwrap_or_default();
        if let Some(stranger) = Job::stranger(image, main, pipes, end) {
            self.jobs.insert(serial, stranger);
        }
    }

    fn found_running(&mut self, serial: Serial, image: &JobImage, main: &Main, streams: bool) {
        let (job, pid) = (image.start.job, main.pid.as_raw_pid());
        tracing::warn!(
            %job, pid, streams, "a job of an earlier keeper runs on; its outcome will be unknown"
        );
        if image.pid.is_none() {
            let started = Some(main.started);
            self.record(Record::Spawned { job, pid, started });
        }
        let deadline = image.start.deadline_unix_ms;
        if let Some(at) = deadline.and_then(|at| after_now(at.saturating_sub(unix_ms()))) {
            self.timers.set(Timer::JobTimeout(serial), at);
        }
        if image.cause.is_some()
            && let Some(at) = after_now(self.config.kill_grace_ms)
        {
            self.timers.set(Timer::JobKill(serial), at);
        }
    }
}

/// The main process of a job that has not ended as far as the journal knows.
fn main_of(image: &JobImage, carrying: &HashMap<JobId, Vec<(Pid, u64)>>) -> Option<Main> {
    let (pid, started) = match image.pid {
        Some((pid, started)) => (Pid::from_raw(pid)?, started?),
        None => *carrying.get(&image.start.job)?.first()?,
    };
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Looked at behind the open: what the pidfd means is this process and no later one.
    let is_it = tree::start_time(pid) == Some(started) && !has_ended(&pidfd);
    is_it.then_some(Main {
        pid,
        started,
        pidfd,
    })
}

/// How a job ended that nobody saw end.
fn lost(image: &JobImage) -> End {
    End {
        exited: Exited::Lost,
        cause: image.cause,
        tree: Tree::LeftAlone,
        unix_ms: unix_ms(),
    }
}

fn after_now(ms: u64) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(ms))
}

impl Job {
    fn stranger(
        image: &JobImage,
        main: Option<Main>,
        pipes: Pipes,
        end: Option<End>,
    ) -> Option<Self> {
        let pid = match &main {
            Some(main) => main.pid,
            None => Pid::from_raw(image.pid?.0)?,
        };
        let mut roots = Roots::new(image.start.job, pid);
        // Whoever its parent is now may reap it at any time.
        roots.main_reaped();
        if let Some(main) = &main {
            roots.remember(&[(main.pid.as_raw_pid(), main.started)]);
        }
        let has_stdin = |(stream, _): &(Stream, _)| *stream == Stream::Stdin;
        let piped = pipes.stdin.is_some() || pipes.spools.iter().any(has_stdin);
        Some(Self {
            id: image.start.job,
            user: image.start.user.clone(),
            uid: image.start.uid,
            source: image.start.source.clone(),
            connection: image.start.connection,
            fingerprint: image.start.fingerprint,
            terms: image.start.terms,
            stdin: if piped { Stdin::Pipe } else { Stdin::Null },
            worker: 0,
            requests: Vec::new(),
            pid,
            ours: false,
            cgroup: main.as_ref().and_then(|main| Cgroup::of_process(main.pid)),
            pidfd: main.map(|main| main.pidfd),
            pipes,
            roots,
            unix_ms: image.start.unix_ms,
            phase: end.map_or(JobPhase::Running, JobPhase::Ended),
            cause: image.cause,
            kept: true,
        })
    }
}
