//! What the client says: frames, from the first to the last.

use std::os::fd::AsFd;
use std::task::{Context, Poll};

use bowline_proto::auth::{Binding, EXPORTER_LABEL, proofs_from_json};
use bowline_proto::limits::PROTOCOL;
use bowline_proto::message::Auth;
use bowline_proto::session::{Event, ServerEvent, SessionError, Step};

use super::{Connection, Phase, Shown};
use crate::ipc::ToKeeper;

impl Connection {
    pub(super) fn input(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        let full = match &mut self.phase {
            Phase::Open(session, _) => session.outbox().control_is_full(),
            Phase::Gone => true,
            _ => false,
        };
        if full {
            return false;
        }
        match self.wire.poll_fill(cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => progress = true,
            Poll::Ready(Err(error)) => {
                tracing::debug!(connection = self.id, %error, "the line broke");
                // What TLS has to say about it still goes out, if it can.
                self.close();
                return true;
            }
        }
        if self.wire.input().is_empty() && !self.wire.ended() {
            return progress;
        }
        if let Err(error) = self.frames() {
            tracing::info!(
                connection = self.id, source = %Shown(&self.source),
                error = &error as &dyn std::error::Error, "the client broke the protocol"
            );
            self.refuse("protocol_error", &error.to_string());
            return true;
        }
        if self.wire.ended() && !matches!(self.phase, Phase::Gone) {
            self.gone();
            return true;
        }
        progress
    }

    /// Takes the whole frames that have come.
    pub(super) fn frames(&mut self) -> Result<(), SessionError> {
        loop {
            let more = match &mut self.phase {
                Phase::Handshake(handshake) => {
                    let (len, event) = handshake.next(self.wire.input())?;
                    self.wire.take(len);
                    self.introduce(event)?
                }
                Phase::Open(..) => self.frame()?,
                Phase::Closing(..) => {
                    let len = self.wire.input().len();
                    self.wire.take(len);
                    false
                }
                // Nothing behind `auth` is looked at until it is decided.
                Phase::Deciding(_) | Phase::Delayed(..) | Phase::Gone => false,
            };
            if !more {
                return Ok(());
            }
        }
    }

    pub(super) fn introduce(&mut self, event: ServerEvent) -> Result<bool, SessionError> {
        match event {
            ServerEvent::NeedMore => Ok(false),
            ServerEvent::Hello(hello) => {
                tracing::debug!(connection = self.id, software = %hello.software, "hello");
                Ok(true)
            }
            ServerEvent::Auth(auth) => {
                self.ask(auth);
                Ok(false)
            }
            ServerEvent::Bye(_) => {
                self.close();
                Ok(false)
            }
        }
    }

    /// Has the keeper decide.
    pub(super) fn ask(&mut self, auth: Auth) {
        self.asked_at = tokio::time::Instant::now();
        let binding = match (self.wire.exporter(EXPORTER_LABEL), self.nonce) {
            (Some(exporter), _) => Binding::Exporter(exporter),
            (None, Some(nonce)) => Binding::Nonce(nonce),
            (None, None) => {
                self.refuse("protocol_error", "authentication before TLS was agreed on");
                return;
            }
        };
        let proofs = match proofs_from_json(&auth.proofs) {
            Ok(proofs) => proofs,
            Err(error) => {
                self.refuse("protocol_error", &error.to_string());
                return;
            }
        };
        let Phase::Handshake(handshake) = std::mem::replace(&mut self.phase, Phase::Gone) else {
            return;
        };
        self.phase = Phase::Deciding(handshake);
        let message = ToKeeper::Authenticate {
            request: self.worker.link.request(&self.mail),
            connection: self.id,
            user: auth.user,
            source: self.source.clone(),
            binding,
            protocol: PROTOCOL.to_owned(),
            proofs,
        };
        let socket = match self.wire.socket() {
            bowline::net::Socket::Unix(stream) => Some(stream.as_fd()),
            _ => None,
        };
        self.worker.link.send_with(&message, socket);
    }

    /// Takes one frame of an open session. Says whether there may be another.
    pub(super) fn frame(&mut self) -> Result<bool, SessionError> {
        let Phase::Open(session, authenticated) = &mut self.phase else {
            return Ok(false);
        };
        // One read may hold thousands of questions whose answers are long.
        if session.outbox().control_is_full() {
            return Ok(false);
        }
        let authenticated = authenticated.clone();
        let (len, channel, event) = match session.next(self.wire.input())? {
            Step::NeedMore => return Ok(false),
            Step::Taken(len) => {
                self.wire.take(len);
                return Ok(true);
            }
            Step::Event(len, channel, event) => (len, channel, event),
        };
        match event {
            Event::Data { bytes, end, .. } => {
                let offset = Self::stdin_offset(session, channel, bytes.len());
                if let Some(attachment) = self.jobs.get(&channel.0) {
                    attachment.input(offset, bytes, end);
                }
                self.wire.take(len);
                return Ok(true);
            }
            Event::Start(start, payload) => {
                self.wire.take(len);
                self.start(&authenticated, channel, &start, &payload);
            }
            Event::Signal(signal) => {
                self.wire.take(len);
                self.signal(&authenticated, channel, &signal);
            }
            Event::Resize(size) => {
                self.wire.take(len);
                if let Some(attachment) = self.jobs.get(&channel.0) {
                    attachment.job().resize(size.cols, size.rows);
                }
            }
            Event::List(list) => {
                self.wire.take(len);
                self.list(&authenticated, &list);
            }
            Event::Attach(attach) => {
                self.wire.take(len);
                self.attach(&authenticated, channel, &attach);
            }
            Event::Forget(forget) => {
                self.wire.take(len);
                self.forget(&authenticated, forget.job);
            }
            Event::Bye(_) => {
                self.wire.take(len);
                self.forget_told();
                self.close();
                return Ok(false);
            }
            // Nothing else is for a server.
            _ => self.wire.take(len),
        }
        self.rest();
        Ok(true)
    }
}
