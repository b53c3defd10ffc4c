//! What the keeper says to a connection, and what that changes.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use bowline_proto::message::{Granted as GrantedMessage, Refused};
use bowline_proto::outcome::{Happened, Outcome};

use super::super::job::{Reaped, not_started};
use super::super::link::Letter;
use super::{Authenticated, Connection, Phase, Shown, refusal};
use crate::clock::unix_ms;
use crate::ipc::{DenyCode, Granted, ToGate};

impl Connection {
    pub(super) fn letters(&mut self, cx: &Context<'_>) -> bool {
        let mut any = false;
        while let Some(letter) = self.mail.take(cx) {
            any = true;
            match letter {
                Letter::Keeper(message, fds) => self.keeper_says(message, fds),
                Letter::Drain => {
                    self.draining = true;
                    self.leave_if_idle();
                }
                Letter::KeeperGone(noting) => {
                    self.keeper_gone();
                    drop(noting);
                }
            }
        }
        any
    }

    pub(super) fn keeper_says(&mut self, message: ToGate, fds: Vec<OwnedFd>) {
        match message {
            ToGate::Granted { granted, .. } => self.decided(granted),
            ToGate::Denied { code, .. } => self.denied(code),
            ToGate::Started {
                job, pid, unix_ms, ..
            } => self.started(job, pid, unix_ms, fds),
            ToGate::NotStarted { job, why, .. } => self.fail(job, not_started(&why)),
            ToGate::Refused { job, code, .. } => {
                let (code, message) = refusal(code);
                self.fail(job, Outcome::failed(Happened::Refused, code, message));
            }
            ToGate::Ended {
                job,
                exited,
                cause,
                tree,
                unix_ms,
            } => {
                let wait = Duration::from_millis(self.worker.config().output_wait_ms);
                if let Some((_, job)) = self.job_mut(job) {
                    job.reaped(Reaped::new(exited, cause, tree, unix_ms), wait);
                }
            }
            // The link keeps what concerns no connection.
            ToGate::Welcome { .. }
            | ToGate::Signature { .. }
            | ToGate::Adopt { .. }
            | ToGate::Reload { .. }
            | ToGate::Retire
            | ToGate::Drain { .. } => {}
        }
    }

    pub(super) fn decided(&mut self, granted: Granted) {
        let Phase::Deciding(handshake) = std::mem::replace(&mut self.phase, Phase::Gone) else {
            // The client left while it was decided.
            return;
        };
        tracing::info!(
            connection = self.id, source = %Shown(&self.source), user = %granted.user,
            proof = %granted.proof, "authenticated"
        );
        let message = GrantedMessage {
            user: granted.user.clone(),
            mac: granted.server_mac.map(hex::encode),
        };
        let authenticated = Authenticated(granted);
        let session = handshake.granted(&message, &authenticated);
        self.phase = Phase::Open(Box::new(session), Rc::new(authenticated));
        self.admitted.authenticated();
        self.rest();
        if self.draining {
            self.leave_if_idle();
        }
    }

    pub(super) fn denied(&mut self, code: DenyCode) {
        let Phase::Deciding(handshake) = std::mem::replace(&mut self.phase, Phase::Gone) else {
            return;
        };
        tracing::warn!(
            connection = self.id, source = %Shown(&self.source), ?code, "not authenticated"
        );
        let refused = Refused {
            code: "not_authenticated".to_owned(),
            message: "no proof of this client was accepted for this user".to_owned(),
        };
        let delay = self.admitted.failed();
        // Counted from when the proofs came: the time of the answer says nothing about them.
        self.timer = Box::pin(tokio::time::sleep_until(self.asked_at + delay));
        self.phase = Phase::Delayed(handshake, refused);
    }

    pub(super) fn keeper_gone(&mut self) {
        let now = unix_ms();
        let estate = self.worker.shared.estate.clone();
        // Where the gate stays, a program is heard to the end of its output.
        let wait = Duration::from_millis(self.worker.config().output_wait_ms);
        let wait = (!estate.stays()).then_some(wait);
        self.refuse_unasked("keeper_gone", KEEPER_GONE);
        for job in self.jobs.values_mut() {
            job.orphan(now, wait);
            match job.streams() {
                Ok(streams) => estate.hold(job.id, streams),
                Err(error) => tracing::error!(job = %job.id, %error, "its streams are not kept"),
            }
        }
        self.draining = true;
        match self.phase {
            Phase::Deciding(_) => self.refuse("keeper_gone", KEEPER_GONE),
            Phase::Open(..) if self.jobs.is_empty() => self.leave("keeper_gone", KEEPER_GONE),
            _ => self.leave_if_idle(),
        }
    }
}

/// What a client is told that asks for something while there is no keeper.
pub(super) const KEEPER_GONE: &str = "the server is restarting; try again";
