//! The keeper's own life: signals, reloading, and the ways it ends.
//!
//! ```text
//! Serving ──SIGTERM──► Draining ──jobs over, or drain_ms──► Ending ──► exit
//!    └── lifeline cut, stdio session over, second SIGTERM ────┘
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;
use sd_notify::NotifyState;

use super::{Keeper, ORPHANS_AFTER, Timer};
use crate::ipc::{Cause, ToGate};

/// Whether the keeper goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// Nothing new begins; what runs may end by itself.
    Draining,
    /// What runs is being ended.
    Ending,
}

/// How long the gate may take to tell the last outcomes, after the last job.
const GATE_LAST_WORDS: Duration = Duration::from_secs(2);

impl Keeper {
    pub(super) fn read_signals(&mut self) {
        // One at a time: the loop comes back while there are more.
        if let Ok(Some(info)) = self.signals.read_signal() {
            match info.ssi_signo as i32 {
                libc::SIGCHLD => {
                    self.timers
                        .set_once(Timer::Orphans, Instant::now() + ORPHANS_AFTER);
                }
                libc::SIGHUP => self.reload(),
                _ if self.phase == Phase::Serving => self.drain(),
                _ => self.end_now(),
            }
        }
    }

    /// Nothing new begins; running jobs have `drain_ms` to end.
    pub(super) fn drain(&mut self) {
        tracing::info!(
            drain_ms = self.config.drain_ms,
            "stopping when the running jobs have ended"
        );
        notify(&[NotifyState::Stopping]);
        self.phase = Phase::Draining;
        self.candidate_over();
        self.timers.cancel(Timer::StartGate);
        let deadline_ms = self.config.drain_ms;
        let at = Instant::now() + Duration::from_millis(deadline_ms);
        self.timers.set(Timer::DrainOver, at);
        self.send_all(&ToGate::Drain { deadline_ms });
        if self.gate.is_none() {
            self.gate_gone_for_good();
        }
    }

    /// The time of the running jobs is over.
    pub(super) fn drain_over(&mut self) {
        self.end_jobs(libc::SIGTERM);
        let grace = Duration::from_millis(self.config.kill_grace_ms);
        self.timers
            .set(Timer::KillGate, Instant::now() + grace + GATE_LAST_WORDS);
    }

    /// Ends everything without waiting for anything but the processes themselves.
    fn end_now(&mut self) {
        self.end_jobs(libc::SIGKILL);
        self.timers.cancel(Timer::StartGate);
        self.kill_gate();
    }

    fn end_jobs(&mut self, first: i32) {
        self.phase = Phase::Ending;
        for serial in self.jobs.live() {
            self.end_job(serial, Cause::Draining, first);
        }
    }

    /// The lifeline has something to say; only its end matters.
    pub(super) fn read_lifeline(&mut self) {
        let Some(lifeline) = &self.lifeline else {
            return;
        };
        match rustix::io::read(lifeline, &mut [0; 512]) {
            Ok(0) => self.lifeline_cut(),
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.lifeline_cut(),
        }
    }

    /// Whoever this keeper serves is gone.
    fn lifeline_cut(&mut self) {
        if let Some(lifeline) = self.lifeline.take() {
            let _ = epoll::delete(&self.epoll, &lifeline);
        }
        // Also what jobs have left behind in the background: nobody will ever come back to it.
        for serial in self.jobs.all() {
            self.kill_job(serial);
        }
        self.end_now();
    }

    /// The gate has ended and no other follows: nobody reads what the jobs say.
    pub(super) fn gate_gone_for_good(&mut self) {
        self.timers.cancel(Timer::StartGate);
        if self.phase != Phase::Ending {
            self.end_jobs(libc::SIGHUP);
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        let over = self.gate.is_none() && self.upgrade.is_none() && self.jobs.live().is_empty();
        self.phase != Phase::Serving && over
    }

    pub(super) fn finish(mut self) -> ExitCode {
        self.takeover.remove(&self.config.state_dir);
        self.reap_orphans();
        for cgroup in self.jobs.take_cgroups() {
            self.cgroups.give_back(cgroup);
        }
        self.cgroups.remove();
        ExitCode::SUCCESS
    }

    /// Reads the configuration again.
    pub(super) fn reload_config(&mut self) {
        notify_reloading();
        match (self.reload)() {
            Ok((mut config, policy)) => {
                // These are held open; another place would need another keeper.
                config.state_dir.clone_from(&self.config.state_dir);
                config
                    .gate
                    .record_dir
                    .clone_from(&self.config.gate.record_dir);
                let spool = &self.config.gate.spool.dir;
                config.gate.spool.dir.clone_from(spool);
                config.gate.workers = self.config.gate.workers;
                self.config = config;
                self.policy = policy;
                let config = Box::new(self.config.gate.clone());
                self.send_all(&ToGate::Reload { config });
                tracing::info!("the configuration was read again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the configuration stays as it was");
            }
        }
        notify(&[NotifyState::Ready]);
    }
}

/// Tells the service manager that what follows is a reload, which ends when it
/// is told that the server is ready.
pub(super) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Tells the service manager, if there is one.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
