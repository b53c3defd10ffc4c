//! What the keeper says to a connection, and what that changes.

use std::rc::Rc;
use std::task::Context;

use bowline_proto::message::{Granted as GrantedMessage, Refused};

use super::super::link::Letter;
use super::{Authenticated, Connection, Phase, Shown};
use crate::ipc::{DenyCode, Granted, ToGate};

impl Connection {
    pub(super) fn letters(&mut self, cx: &Context<'_>) -> bool {
        let mut any = false;
        while let Some(letter) = self.mail.take(cx) {
            any = true;
            match letter {
                Letter::Keeper(message, _) => self.keeper_says(message),
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

    pub(super) fn keeper_says(&mut self, message: ToGate) {
        match message {
            ToGate::Granted { granted, .. } => self.decided(granted),
            ToGate::Denied { code, .. } => self.denied(code),
            // The jobs' owners are told of their jobs, and the link keeps what concerns nobody.
            _ => {}
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
        self.draining = true;
        match self.phase {
            Phase::Deciding(_) => self.refuse("keeper_gone", KEEPER_GONE),
            Phase::Open(..) if self.jobs.is_empty() => self.leave("keeper_gone", KEEPER_GONE),
            _ => self.leave_if_idle(),
        }
    }
}

/// What a client is told that asks for something while there is no keeper.
pub(in crate::gate) const KEEPER_GONE: &str = "the server is restarting; try again";
