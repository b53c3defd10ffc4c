//! One connection of the gate: from the first byte to the last outcome.
//!
//! ```text
//! Handshake ─► Deciding ─► Open ─► Closing ─► Gone
//!     └────────────┴─► Closing        (only jobs that have yet to end)
//! ```
//!
//! The whole connection is one value that is polled: what is half done is in
//! it, nothing is in a future. One turn looks at everything once; turns go on
//! until nothing moves.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bowline::driver::Wire;
use bowline_proto::auth::{Binding, EXPORTER_LABEL, proofs_from_json};
use bowline_proto::id::{Channel, JobId};
use bowline_proto::limits::{JOBS_PER_MESSAGE_MAX, PROTOCOL};
use bowline_proto::message::{
    Auth, Bye, Exit, Granted as GrantedMessage, Hello, JobRow, Jobs, List, Refused, Signal, Start,
    Started,
};
use bowline_proto::outcome::{Happened, Outcome};
use bowline_proto::session::{
    Event, Outbox, ServerEvent, ServerHandshake, Session, SessionError, Step,
};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::job::{Job, Reaped, Stage, not_started};
use super::limits::{Admitted, Refusal};
use super::link::{Letter, Mail};
use super::record::{Asked, Row};
use super::{Live, Worker, spec, unix_ms};
use crate::ipc::{
    Cause, DenyCode, Granted, RefuseCode, Scope, Source, Stream as KeeperStream, ToGate, ToKeeper,
};

/// Turns before other connections of the worker get theirs.
const TURNS_MAX: u32 = 32;
/// How long the last words may take, and how long the peer is waited for behind them.
const CLOSING: Duration = Duration::from_secs(2);
/// Lists that wait for the record.
const LISTS_MAX: usize = 4;
/// Signals that wait for a job to be started.
const EARLY_SIGNALS_MAX: usize = 16;
/// Jobs in one answer, where the client does not say.
const LIST_COUNT: u32 = 50;
/// Jobs in one answer at most.
const LIST_COUNT_MAX: u32 = 10_000;
/// The longest command in a list, as JSON.
const ROW_COMMAND_BYTES_MAX: usize = 256;

/// Proof that the keeper has let this connection in. Only [`Connection::decided`]
/// makes one, and starting a job takes it.
#[derive(Debug)]
struct Authenticated(Granted);

#[derive(Debug)]
enum Phase {
    Handshake(Box<ServerHandshake>),
    Deciding(Box<ServerHandshake>),
    /// A failed authentication is answered a little later.
    Delayed(Box<ServerHandshake>, Refused),
    Open(Box<Session>, Rc<Authenticated>),
    /// The last words are on their way; nothing more is taken in.
    Closing(Box<Outbox>, bool),
    Gone,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    source: Source,
    worker: Rc<Worker>,
    wire: Wire,
    mail: Rc<Mail>,
    phase: Phase,
    nonce: Option<[u8; 32]>,
    jobs: BTreeMap<u32, Job>,
    lists: VecDeque<oneshot::Receiver<Vec<Row>>>,
    /// Until authenticated: its deadline. Then the idle time. At the end: the last words'.
    timer: Pin<Box<Sleep>>,
    draining: bool,
    /// Its room; given back with the connection.
    admitted: Admitted,
    /// When its proofs arrived.
    asked_at: tokio::time::Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.worker.link.forget_connection(self.id);
        self.worker.link.send(&ToKeeper::Disconnected {
            connection: self.id,
        });
    }
}

impl Connection {
    /// Takes over an accepted connection. `nonce` is what proofs are bound to
    /// where there is no TLS.
    pub(super) fn new(
        worker: Rc<Worker>,
        id: u64,
        source: Source,
        wire: Wire,
        nonce: Option<[u8; 32]>,
        admitted: Admitted,
    ) -> Self {
        let hello = Hello {
            protocol: PROTOCOL.to_owned(),
            software: concat!("bowline/", env!("CARGO_PKG_VERSION")).to_owned(),
            nonce: nonce.map(hex::encode),
            ..Hello::default()
        };
        let timeout = Duration::from_millis(worker.config().auth_timeout_ms);
        Self {
            id,
            source,
            mail: worker.link.open_box(id),
            wire,
            phase: Phase::Handshake(Box::new(ServerHandshake::new(&hello))),
            nonce,
            jobs: BTreeMap::new(),
            lists: VecDeque::new(),
            timer: Box::pin(tokio::time::sleep(timeout)),
            draining: false,
            admitted,
            asked_at: tokio::time::Instant::now(),
            worker,
        }
    }

    /// Tells the client why there is no room for it, and ends.
    pub(super) fn turn_away(&mut self, refusal: Refusal) {
        self.refuse(refusal.code(), &refusal.to_string());
    }

    /// Serves the connection to its end, and its jobs to theirs.
    pub(super) async fn serve(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..TURNS_MAX {
            let progress = self.turn(cx);
            if matches!(self.phase, Phase::Gone) && self.jobs.is_empty() {
                return Poll::Ready(());
            }
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks at everything once. Says whether anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = self.letters(cx);
        progress |= self.input(cx);
        progress |= self.jobs(cx);
        progress |= self.answers(cx);
        progress |= self.output(cx);
        progress | self.time(cx)
    }

    // ---- the keeper ---------------------------------------------------------

    fn letters(&mut self, cx: &Context<'_>) -> bool {
        let mut any = false;
        while let Some(letter) = self.mail.take(cx) {
            any = true;
            match letter {
                Letter::Keeper(message, fds) => self.keeper_says(message, fds),
                Letter::Drain => {
                    self.draining = true;
                    self.leave_if_idle();
                }
                Letter::KeeperGone => self.keeper_gone(),
            }
        }
        any
    }

    fn keeper_says(&mut self, message: ToGate, fds: Vec<OwnedFd>) {
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
            | ToGate::Drain { .. } => {}
        }
    }

    fn decided(&mut self, granted: Granted) {
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

    fn denied(&mut self, code: DenyCode) {
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
        // Counted from when the proofs came: the time of the answer says nothing about them.
        let at = self.asked_at + self.admitted.failed();
        self.timer = Box::pin(tokio::time::sleep_until(at));
        self.phase = Phase::Delayed(handshake, refused);
    }

    fn keeper_gone(&mut self) {
        let now = unix_ms();
        for job in self.jobs.values_mut() {
            job.orphan(now);
        }
        self.draining = true;
        match self.phase {
            Phase::Deciding(_) => self.refuse("keeper_gone", "the server is restarting; try again"),
            _ => self.leave_if_idle(),
        }
    }

    // ---- the client ---------------------------------------------------------

    fn input(&mut self, cx: &mut Context<'_>) -> bool {
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
    fn frames(&mut self) -> Result<(), SessionError> {
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

    fn introduce(&mut self, event: ServerEvent) -> Result<bool, SessionError> {
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
    fn ask(&mut self, auth: Auth) {
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
    fn frame(&mut self) -> Result<bool, SessionError> {
        let Phase::Open(session, authenticated) = &mut self.phase else {
            return Ok(false);
        };
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
            Event::List(list) => {
                self.wire.take(len);
                self.list(&authenticated, &list);
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
            // A job without a terminal has no size, and outcomes are kept for as long as
            // the record says.
            _ => self.wire.take(len),
        }
        self.rest();
        Ok(true)
    }

    fn start(
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

    fn try_start(
        &mut self,
        Authenticated(granted): &Authenticated,
        channel: Channel,
        start: &Start,
        payload: &[u8],
    ) -> Result<(), (&'static str, &'static str)> {
        let config = self.worker.config();
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
            cwd: spec
                .cwd
                .as_ref()
                .map(|cwd| String::from_utf8_lossy(cwd).into_owned()),
            unix_ms: unix_ms(),
        });
        let job = Job::new(id, recording, spec, start.wait_output);
        self.jobs.insert(channel.0, job);
        Ok(())
    }

    fn signal(&mut self, authenticated: &Authenticated, channel: Channel, signal: Signal) {
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
    fn signal_other(&mut self, Authenticated(granted): &Authenticated, signal: &Signal) {
        let name = signal.job.as_deref().unwrap_or_default();
        let fits = self.worker.shared.find(&granted.user, name);
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

    fn list(&mut self, Authenticated(granted): &Authenticated, list: &List) {
        if self.lists.len() >= LISTS_MAX {
            self.refuse("too_many_requests", "too many lists are asked for at once");
            return;
        }
        let count = match list.count {
            0 => LIST_COUNT,
            count => count.min(LIST_COUNT_MAX),
        };
        let recorder = &self.worker.shared.recorder;
        self.lists
            .push_back(recorder.list(&granted.user, list.ended, count));
    }

    // ---- the jobs -----------------------------------------------------------

    fn job_mut(&mut self, id: JobId) -> Option<(Channel, &mut Job)> {
        let mut jobs = self.jobs.iter_mut();
        jobs.find(|(_, job)| job.id == id)
            .map(|(channel, job)| (Channel(*channel), job))
    }

    fn started(&mut self, id: JobId, pid: i32, unix_ms: u64, fds: Vec<OwnedFd>) {
        self.worker.shared.runs(id, pid);
        let gone = matches!(self.phase, Phase::Gone | Phase::Closing(..));
        let worker = self.worker.clone();
        let Some((channel, job)) = self.job_mut(id) else {
            return;
        };
        if gone {
            job.runs(pid, unix_ms);
            return;
        }
        if let Err(error) = job.started(pid, unix_ms, fds) {
            tracing::error!(%error, "the keeper's descriptors cannot be used");
            job.abandon();
            job.note = Some((
                "out_of_resources",
                "the server has no descriptors left for the job's streams, and ended it",
            ));
            let signal = rustix::process::Signal::KILL.as_raw();
            worker.link.send(&ToKeeper::End {
                job: id,
                cause: Cause::Cancelled(signal),
                first: signal,
            });
        }
        if let Phase::Open(session, _) = &mut self.phase {
            let started = Started {
                pid,
                unix_ms,
                stdin: 0,
            };
            session.started(channel, &started);
        }
    }

    /// A job that did not come to run.
    fn fail(&mut self, id: JobId, outcome: Outcome) {
        let Some((channel, _)) = self.job_mut(id) else {
            return;
        };
        self.finish(channel, outcome);
    }

    fn jobs(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        let mut over = Vec::new();
        let channels: Vec<u32> = self.jobs.keys().copied().collect();
        for number in channels {
            let channel = Channel(number);
            progress |= self.recorded(cx, channel);
            let Some(job) = self.jobs.get_mut(&number) else {
                continue;
            };
            if let Phase::Open(session, _) = &mut self.phase {
                let turn = job.pump(cx, session, channel);
                progress |= turn.progress;
                if turn.close_stdin {
                    self.worker.link.send(&ToKeeper::CloseStream {
                        job: job.id,
                        stream: KeeperStream::Stdin,
                    });
                }
            }
            if let Some(outcome) = job.outcome() {
                over.push((channel, outcome));
            }
        }
        for (channel, outcome) in over {
            progress = true;
            self.finish(channel, outcome);
        }
        progress
    }

    /// Asks the keeper for a job whose record is written.
    fn recorded(&mut self, cx: &mut Context<'_>, channel: Channel) -> bool {
        let Some(job) = self.jobs.get_mut(&channel.0) else {
            return false;
        };
        let Stage::Recording(recording, _) = &mut job.stage else {
            return false;
        };
        let Poll::Ready(written) = Pin::new(recording).poll(cx) else {
            return false;
        };
        if written != Ok(true) {
            let outcome = Outcome::failed(
                Happened::Refused,
                "record_failed",
                "the server cannot write its record, and starts nothing without it",
            );
            self.finish(channel, outcome);
            return true;
        }
        let Stage::Recording(_, spec) = std::mem::replace(&mut job.stage, Stage::Starting) else {
            return false;
        };
        let id = job.id;
        let early = std::mem::take(&mut job.early);
        let Phase::Open(_, authenticated) = &self.phase else {
            let outcome = Outcome::failed(Happened::Cancelled, "disconnected", "never started");
            self.finish(channel, outcome);
            return true;
        };
        let grant = authenticated.0.token;
        match spec::place(*spec) {
            Ok((place, memfd)) => {
                let link = &self.worker.link;
                link.follow(id, &self.mail);
                let start = ToKeeper::Start {
                    request: link.request(&self.mail),
                    grant,
                    job: id,
                    spec: place,
                };
                link.send_with(&start, memfd.as_ref().map(AsFd::as_fd));
                for signal in early {
                    link.send(&order(id, &signal));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a spec cannot be passed on");
                let (code, message) = refusal(RefuseCode::OutOfResources);
                self.finish(channel, Outcome::failed(Happened::Refused, code, message));
            }
        }
        true
    }

    /// A job's outcome is known: it is recorded and told.
    fn finish(&mut self, channel: Channel, outcome: Outcome) {
        let Some(job) = self.jobs.remove(&channel.0) else {
            return;
        };
        let session = match &self.phase {
            Phase::Open(session, _) => Some(&**session),
            _ => None,
        };
        let exit = job.exit(outcome, session, channel);
        self.worker.shared.leave(job.id);
        self.worker.shared.recorder.ended(job.id, job.pid, &exit);
        if job.is_known_to_keeper() {
            self.worker.link.unfollow(job.id);
            self.worker.link.send(&ToKeeper::Released { job: job.id });
        }
        tracing::info!(
            connection = self.id, job = %job.id, outcome = exit.outcome.outcome.as_str(),
            code = exit.outcome.code, signal = exit.outcome.signal, "job ended"
        );
        self.tell(channel, exit);
        self.rest();
        if self.draining {
            self.leave_if_idle();
        }
    }

    fn tell(&mut self, channel: Channel, exit: Exit) {
        let Phase::Open(session, _) = &mut self.phase else {
            return;
        };
        if exit.outcome.outcome == Happened::Refused {
            let refused = Refused {
                code: exit.outcome.error.unwrap_or_default(),
                message: exit.outcome.message.unwrap_or_default(),
            };
            session.refuse(channel, &refused);
        } else {
            session.exit(channel, &exit);
        }
    }

    /// Answers lists that the record has given.
    fn answers(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(list) = self.lists.front_mut() else {
            return false;
        };
        let Poll::Ready(rows) = Pin::new(list).poll(cx) else {
            return false;
        };
        self.lists.pop_front();
        let rows = rows.unwrap_or_default();
        let live = &self.worker.shared;
        let rows: Vec<JobRow> = rows.into_iter().map(|row| job_row(row, live)).collect();
        if let Phase::Open(session, _) = &mut self.phase {
            let mut parts = rows.chunks(JOBS_PER_MESSAGE_MAX).peekable();
            loop {
                let jobs = parts.next().unwrap_or_default().to_vec();
                let more = parts.peek().is_some();
                session.jobs(&Jobs { jobs, more });
                if !more {
                    break;
                }
            }
        }
        true
    }

    // ---- what goes out, and the end -----------------------------------------

    fn output(&mut self, cx: &mut Context<'_>) -> bool {
        let outbox = match &mut self.phase {
            Phase::Handshake(handshake)
            | Phase::Deciding(handshake)
            | Phase::Delayed(handshake, _) => handshake.outbox(),
            Phase::Open(session, _) => session.outbox(),
            Phase::Closing(outbox, _) => outbox,
            Phase::Gone => return false,
        };
        let waited = !outbox.is_empty();
        match self.wire.poll_flush(cx, outbox) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => {
                outbox.shrink();
                if let Phase::Closing(_, false) = self.phase {
                    self.wire.close();
                    self.phase = Phase::Closing(Box::default(), true);
                    return true;
                }
                waited
            }
            Poll::Ready(Err(error)) => {
                tracing::debug!(connection = self.id, %error, "the line broke");
                self.gone();
                true
            }
        }
    }

    fn time(&mut self, cx: &mut Context<'_>) -> bool {
        if matches!(self.phase, Phase::Gone) || self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::Handshake(handshake) | Phase::Deciding(handshake) => {
                tracing::info!(
                    connection = self.id, source = %Shown(&self.source), "authentication took too long"
                );
                self.phase = Phase::Handshake(handshake);
                self.refuse("auth_timeout", "authentication took too long");
            }
            Phase::Delayed(mut handshake, refused) => {
                handshake.refuse(&refused);
                self.closing(std::mem::take(handshake.outbox()));
            }
            Phase::Open(session, authenticated) => {
                self.phase = Phase::Open(session, authenticated);
                if self.jobs.is_empty() && self.worker.config().idle_timeout_ms > 0 {
                    self.leave("idle_timeout", "nothing was asked for a long time");
                } else {
                    self.rest();
                }
            }
            Phase::Closing(..) | Phase::Gone => self.gone(),
        }
        true
    }

    /// The time without anything asked for starts anew.
    fn rest(&mut self) {
        if matches!(self.phase, Phase::Open(..)) {
            let idle = match self.worker.config().idle_timeout_ms {
                0 => Duration::from_secs(24 * 3600),
                idle => Duration::from_millis(idle),
            };
            let at = tokio::time::Instant::now() + idle;
            self.timer.as_mut().reset(at);
        }
    }

    fn leave_if_idle(&mut self) {
        let waiting = matches!(self.phase, Phase::Handshake(_) | Phase::Open(..));
        if waiting && self.jobs.is_empty() {
            self.leave("draining", "the server is stopping");
        }
    }

    /// Says goodbye and closes.
    fn leave(&mut self, code: &str, message: &str) {
        if let Phase::Open(session, _) = &mut self.phase {
            session.bye(&Bye {
                code: code.to_owned(),
                message: message.to_owned(),
            });
            self.close();
        } else {
            self.refuse(code, message);
        }
    }

    /// Ends the connection with a reason. Jobs that run end too.
    fn refuse(&mut self, code: &str, message: &str) {
        let refused = Refused {
            code: code.to_owned(),
            message: message.to_owned(),
        };
        match &mut self.phase {
            Phase::Handshake(handshake)
            | Phase::Deciding(handshake)
            | Phase::Delayed(handshake, _) => handshake.refuse(&refused),
            Phase::Open(session, _) => session.refuse(Channel::CONNECTION, &refused),
            Phase::Closing(..) | Phase::Gone => {}
        }
        self.close();
    }

    /// Sends what waits, and then ends.
    fn close(&mut self) {
        let outbox = match &mut self.phase {
            Phase::Handshake(handshake)
            | Phase::Deciding(handshake)
            | Phase::Delayed(handshake, _) => std::mem::take(handshake.outbox()),
            Phase::Open(session, _) => std::mem::take(session.outbox()),
            Phase::Closing(..) | Phase::Gone => return,
        };
        self.closing(outbox);
    }

    fn closing(&mut self, outbox: Outbox) {
        self.phase = Phase::Closing(Box::new(outbox), false);
        self.timer = Box::pin(tokio::time::sleep(CLOSING));
        self.end_jobs();
    }

    /// The line is gone: what runs is ended.
    fn gone(&mut self) {
        self.phase = Phase::Gone;
        self.worker.link.send(&ToKeeper::Disconnected {
            connection: self.id,
        });
        self.end_jobs();
    }

    fn end_jobs(&mut self) {
        let never_started: Vec<u32> = self
            .jobs
            .iter()
            .filter(|(_, job)| !job.is_known_to_keeper())
            .map(|(channel, _)| *channel)
            .collect();
        for channel in never_started {
            let outcome = Outcome::failed(Happened::Cancelled, "disconnected", "never started");
            self.finish(Channel(channel), outcome);
        }
        for job in self.jobs.values_mut() {
            job.abandon();
            self.worker.link.send(&ToKeeper::End {
                job: job.id,
                cause: Cause::Disconnected,
                first: rustix::process::Signal::HUP.as_raw(),
            });
        }
    }
}

/// What the keeper is told for a client's signal.
fn order(job: JobId, signal: &Signal) -> ToKeeper {
    if signal.tree {
        ToKeeper::End {
            job,
            cause: Cause::Cancelled(signal.signal),
            first: signal.signal,
        }
    } else {
        ToKeeper::Signal {
            job,
            signal: signal.signal,
            scope: Scope::Group,
        }
    }
}

fn refused(code: &str, message: &str) -> Refused {
    Refused {
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

/// What a client is told for the keeper's refusal.
fn refusal(code: RefuseCode) -> (&'static str, &'static str) {
    match code {
        RefuseCode::NoGrant => ("not_permitted", "this connection may start nothing"),
        RefuseCode::TooManyJobs => ("too_many_jobs", "as many jobs run as may run at once"),
        RefuseCode::DuplicateJob => ("duplicate_job", "a job of this id was started already"),
        RefuseCode::BadSpec => ("bad_start", "the start message is malformed"),
        RefuseCode::Draining => ("draining", "the server is stopping"),
        RefuseCode::OutOfResources => (
            "out_of_resources",
            "the server has no descriptors, processes or disk left for another job",
        ),
    }
}

/// A row of the record as the wire shows it.
fn job_row(row: Row, live: &super::Shared) -> JobRow {
    let mut command = row.asked.command;
    let mut max = ROW_COMMAND_BYTES_MAX;
    // Escapes make JSON longer than the text; a header has a limit.
    while serde_json::to_string(&command).map_or(0, |json| json.len()) > ROW_COMMAND_BYTES_MAX + 2 {
        spec::cut(&mut command, max);
        max /= 2;
    }
    let pid = match row.outcome {
        None => live.pid(row.asked.job).unwrap_or(row.pid),
        Some(_) => row.pid,
    };
    JobRow {
        job: Some(row.asked.job),
        user: row.asked.user,
        source: row.asked.source,
        pid,
        unix_ms: row.asked.unix_ms,
        command,
        outcome: row.outcome,
    }
}

/// A source as the record and the log show it.
pub(super) struct Shown<'a>(pub(super) &'a Source);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Source::Tcp(address, port) => std::net::SocketAddr::new(*address, *port).fmt(f),
            Source::Unix => f.write_str("unix"),
            Source::Stdio => f.write_str("stdio"),
        }
    }
}
