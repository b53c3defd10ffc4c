//! What the client says: frames, from the first to the last.

use std::os::fd::AsFd;
use std::task::{Context, Poll};

use bowline_proto::auth::{Binding, EXPORTER_LABEL, proofs_from_json};
use bowline_proto::id::Channel;
use bowline_proto::limits::{JOBS_PER_MESSAGE_MAX, PROTOCOL};
use bowline_proto::message::{Auth, JobRow, Jobs, Signal, Start};
use bowline_proto::session::{Event, ServerEvent, SessionError, Step};

use super::super::job::Job;
use super::super::record::Asked;
use super::super::{Live, spec};
use super::keeper::KEEPER_GONE;
use super::{Authenticated, Connection, EARLY_SIGNALS_MAX, Phase, Shown, order, refused};
use crate::clock::unix_ms;
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
                if let Some(job) = self.jobs.get_mut(&channel.0) {
                    let written = job.stdin(bytes, end);
                    session.consumed(channel, bowline_proto::frame::Stream::Stdin, written);
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
                self.signal(&authenticated, channel, signal);
            }
            Event::Resize(size) => {
                self.wire.take(len);
                if let Some(job) = self.jobs.get_mut(&channel.0) {
                    job.resize(size.cols, size.rows);
                }
            }
            Event::List(list) => {
                self.wire.take(len);
                self.list(&list);
            }
            Event::Attach(_) => {
                self.wire.take(len);
                let refused = refused("not_permitted", "this server cannot resume jobs yet");
                session.refuse(channel, &refused);
            }
            Event::Bye(_) => {
                self.wire.take(len);
                self.close();
                return Ok(false);
            }
            // Outcomes are kept for as long as the record says.
            _ => self.wire.take(len),
        }
        self.rest();
        Ok(true)
    }

    pub(super) fn start(
        &mut self,
        authenticated: &Authenticated,
        channel: Channel,
        start: &Start,
        payload: &[u8],
    ) {
        if let Err((code, message)) = self.try_start(authenticated, channel, start, payload)
            && let Phase::Open(session, _) = &mut self.phase
        {
            session.refuse(channel, &refused(code, message));
        }
    }

    pub(super) fn try_start(
        &mut self,
        Authenticated(granted): &Authenticated,
        channel: Channel,
        start: &Start,
        payload: &[u8],
    ) -> Result<(), (&'static str, &'static str)> {
        let config = self.worker.config();
        if self.worker.link.is_gone() {
            return Err(("keeper_gone", KEEPER_GONE));
        }
        if self.draining {
            return Err(("draining", "the server is stopping"));
        }
        if self.jobs.len() >= usize::try_from(config.jobs_per_connection_max).unwrap_or(usize::MAX)
        {
            return Err((
                "too_many_jobs",
                "this connection has as many jobs as one may have",
            ));
        }
        let spec = spec::read(start, payload, self.source.clone(), self.id)
            .map_err(|_| ("bad_start", "the start message is malformed"))?;
        let Some(id) = start.job else {
            return Err(("bad_start", "a start without a job id"));
        };
        let live = Live {
            user: granted.user.clone(),
            pid: 0,
        };
        if !self.worker.shared.enter(id, live) {
            return Err(("duplicate_job", "a job of this id is there already"));
        }
        let recording = self.worker.shared.recorder.asked(Asked {
            job: id,
            user: granted.user.clone(),
            proof: granted.proof.clone(),
            source: Shown(&self.source).to_string(),
            command: spec::command(&spec),
            cwd: spec.cwd.as_deref().map(|cwd| spec::place_name(cwd)),
            unix_ms: unix_ms(),
        });
        let job = Job::new(id, recording, spec, start.wait_output);
        self.jobs.insert(channel.0, job);
        Ok(())
    }

    pub(super) fn signal(
        &mut self,
        authenticated: &Authenticated,
        channel: Channel,
        signal: Signal,
    ) {
        if !(1..=64).contains(&signal.signal) {
            return;
        }
        if channel == Channel::CONNECTION {
            self.signal_other(authenticated, &signal);
            return;
        }
        let Some(job) = self.jobs.get_mut(&channel.0) else {
            return;
        };
        if job.is_known_to_keeper() {
            self.worker.link.send(&order(job.id, &signal));
        } else if job.early.len() < EARLY_SIGNALS_MAX {
            job.early.push(signal);
        }
    }

    /// A signal to a job of any connection of the same user. The answer is the
    /// jobs that the name fits; the signal is sent where that is one.
    pub(super) fn signal_other(&mut self, Authenticated(granted): &Authenticated, signal: &Signal) {
        let name = signal.job.as_deref().unwrap_or_default();
        // Every id begins with no name at all; that names none of them.
        let fits = match name {
            "" => Vec::new(),
            name => self.worker.shared.find(&granted.user, name),
        };
        if let [(job, _)] = fits.as_slice() {
            self.worker.link.send(&order(*job, signal));
        }
        let jobs = fits.iter().take(JOBS_PER_MESSAGE_MAX);
        let jobs = jobs.map(|(job, live)| JobRow {
            job: Some(*job),
            user: live.user.clone(),
            pid: live.pid,
            ..JobRow::default()
        });
        let jobs = Jobs {
            jobs: jobs.collect(),
            more: false,
        };
        if let Phase::Open(session, _) = &mut self.phase {
            session.jobs(&jobs);
        }
    }
}
