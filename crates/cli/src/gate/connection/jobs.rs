//! The jobs of a connection: how they are started, attached to, and told to the end.

use std::sync::Arc;
use std::task::Context;

use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::limits::JOBS_PER_MESSAGE_MAX;
use bowline_proto::message::{Attach, Exit, JobRow, Jobs, Refused, Signal, Start};
use bowline_proto::session::RecvFlow;

use super::super::job::{AttachError, Attachment, Done, Job, OUTPUT_LOST, Owner};
use super::super::record::Asked;
use super::super::spec;
use super::keeper::KEEPER_GONE;
use super::{Authenticated, Connection, Phase, Shown, refused};
use crate::clock::unix_ms;
use crate::ipc::Source;

/// A code and a sentence.
type Refusal = (&'static str, &'static str);

const NO_SUCH_JOB: Refusal = ("no_such_job", "no job of this user has this id");

impl Connection {
    pub(super) fn start(
        &mut self,
        authenticated: &Authenticated,
        channel: Channel,
        start: &Start,
        payload: &[u8],
    ) {
        let attached = self.try_start(authenticated, start, payload);
        self.attached(channel, attached);
    }

    pub(super) fn attach(
        &mut self,
        authenticated: &Authenticated,
        channel: Channel,
        attach: &Attach,
    ) {
        let attached = self.try_attach(authenticated, attach);
        self.attached(channel, attached);
    }

    fn attached(&mut self, channel: Channel, attached: Result<Attachment, Refusal>) {
        match attached {
            Ok(attachment) => {
                self.jobs.insert(channel.0, attachment);
            }
            Err((code, message)) => {
                if let Phase::Open(session, _) = &mut self.phase {
                    session.refuse(channel, &refused(code, message));
                }
            }
        }
    }

    /// Whether this connection may have one more.
    fn has_room(&self) -> Result<(), Refusal> {
        let max = self.worker.config().jobs_per_connection_max;
        if self.jobs.len() >= usize::try_from(max).unwrap_or(usize::MAX) {
            return Err((
                "too_many_jobs",
                "this connection has as many jobs as one may have",
            ));
        }
        Ok(())
    }

    fn try_start(
        &mut self,
        Authenticated(granted): &Authenticated,
        start: &Start,
        payload: &[u8],
    ) -> Result<Attachment, Refusal> {
        if self.worker.link.is_gone() {
            return Err(("keeper_gone", KEEPER_GONE));
        }
        if self.draining {
            return Err(("draining", "the server is stopping"));
        }
        self.has_room()?;
        if start.detach && !self.worker.shared.estate.stays() {
            return Err((
                "not_permitted",
                "this server ends with its client, and detached jobs with it",
            ));
        }
        let mut spec = spec::read(start, payload, self.source.clone(), self.id)
            .map_err(|_| ("bad_start", "the start message is malformed"))?;
        // Over stdio there is nowhere to come back to: the server ends with its one session.
        spec.terms.keep &= self.source != Source::Stdio;
        let Some(id) = start.job else {
            return Err(("bad_start", "a start without a job id"));
        };
        let grant = (self.id, granted.token);
        let new = || Job::new(id, granted.user.clone(), granted.uid, &spec, grant);
        let (job, fresh, attachment) = loop {
            let (mut job, mut fresh) = self.worker.shared.enter(id, new);
            if fresh && let Some(ended) = self.ended(start, id)? {
                self.worker.shared.leave(&job);
                (job, fresh) = (ended, false);
            }
            if !fresh && !job.is_same(granted.uid, &spec) {
                return Err(("duplicate_job", "a job of this id is there already"));
            }
            match job.attach_by_start(grant) {
                Some(attachment) => break (job, fresh, attachment),
                // It never ran, and is on its way out.
                None => self.worker.shared.leave(&job),
            }
        };
        if fresh {
            let recording = self.worker.shared.recorder.asked(Asked {
                job: id,
                user: granted.user.clone(),
                proof: granted.proof.clone(),
                source: Shown(&self.source).to_string(),
                command: spec::command(&spec),
                cwd: spec.cwd.as_deref().map(|cwd| spec::place_name(cwd)),
                unix_ms: unix_ms(),
            });
            let owner = Owner::new(self.worker.clone(), job, recording, spec);
            self.worker.own(owner);
        }
        Ok(attachment)
    }

    /// A detached job of this id that ended before.
    fn ended(&self, start: &Start, id: JobId) -> Result<Option<Arc<Job>>, Refusal> {
        if !start.detach {
            return Ok(None);
        }
        let ended = Job::ended(id, &self.worker.shared.spools);
        let ended = ended.inspect_err(|error| {
            tracing::error!(%error, job = %id, "the job's files cannot be read");
        });
        let ended = ended.map_err(|_| {
            let message = "the server cannot read whether this job was there before";
            ("out_of_resources", message)
        })?;
        Ok(ended.map(Arc::new))
    }

    fn try_attach(
        &self,
        Authenticated(granted): &Authenticated,
        attach: &Attach,
    ) -> Result<Attachment, Refusal> {
        self.has_room()?;
        let job = attach
            .job
            .and_then(|id| self.worker.shared.job(granted.uid, id));
        let minor = match &self.phase {
            Phase::Open(session, _) => session.minor(),
            _ => 0,
        };
        let attachment = job.ok_or(NO_SUCH_JOB)?.attach(attach, minor);
        attachment.map_err(|error| match error {
            AttachError::Offset => (
                "bad_offset",
                "the job has not written as much as was said to be there already",
            ),
            AttachError::Lost => OUTPUT_LOST,
            AttachError::Forgotten => NO_SUCH_JOB,
            AttachError::Time => (
                "not_permitted",
                "when the output of this job came is not known",
            ),
        })
    }

    /// The client has the outcome of a job.
    pub(super) fn forget(&mut self, Authenticated(granted): &Authenticated, job: Option<JobId>) {
        let job = job.and_then(|id| self.worker.shared.forget(granted.uid, id));
        if let Some(job) = job {
            self.told.retain(|told| !Arc::ptr_eq(told, &job));
            if self.draining {
                self.leave_if_idle();
            }
        }
    }

    /// The client leaves by its own will: it has what it was told.
    pub(super) fn forget_told(&mut self) {
        for job in std::mem::take(&mut self.told) {
            job.forget();
        }
    }

    pub(super) fn signal(
        &mut self,
        authenticated: &Authenticated,
        channel: Channel,
        signal: &Signal,
    ) {
        if !(1..=64).contains(&signal.signal) {
            return;
        }
        if channel == Channel::CONNECTION {
            self.signal_other(authenticated, signal);
        } else if let Some(attachment) = self.jobs.get(&channel.0) {
            attachment.job().signal(signal, &self.worker.link);
        }
    }

    /// A signal to a job of any connection of the same user. The answer is the
    /// jobs that the name fits; the signal is sent where that is one.
    fn signal_other(&mut self, Authenticated(granted): &Authenticated, signal: &Signal) {
        let name = signal.job.as_deref().unwrap_or_default();
        // Every id begins with no name at all; that names none of them.
        let fits = match name {
            "" => Vec::new(),
            name => self.worker.shared.find(granted.uid, name),
        };
        if let [job] = fits.as_slice() {
            job.signal(signal, &self.worker.link);
        }
        let jobs = fits.iter().take(JOBS_PER_MESSAGE_MAX);
        let jobs = jobs.map(|job| JobRow {
            job: Some(job.id),
            user: job.user.clone(),
            pid: job.pid(),
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

    /// Moves what can be moved between the jobs and the client.
    pub(super) fn attachments(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Open(session, _) = &mut self.phase else {
            return false;
        };
        let mut progress = false;
        let mut over = Vec::new();
        // A frame of each at a time, as long as there is more of the same: one write takes all of it.
        loop {
            let before = session.outbox().bulk().len();
            for (&number, attachment) in &mut self.jobs {
                let (moved, done) = attachment.pump(cx, session, Channel(number));
                progress |= moved;
                over.extend(done.map(|done| (Channel(number), done)));
            }
            let outbox = session.outbox();
            if !over.is_empty() || outbox.bulk_is_full() || outbox.bulk().len() <= before {
                break;
            }
        }
        for (channel, done) in over {
            self.finish(channel, &done);
        }
        progress
    }

    /// A channel is over.
    fn finish(&mut self, channel: Channel, done: &Done) {
        let Some(attachment) = self.jobs.remove(&channel.0) else {
            return;
        };
        let Phase::Open(session, _) = &mut self.phase else {
            return;
        };
        match (done.refusal(), done) {
            (Some((code, message)), _) => session.refuse(channel, &Refused { code, message }),
            (None, Done::Exit(exit)) => {
                session.exit(channel, &Exit::clone(exit));
                if attachment.job().is_kept() {
                    self.told.push(attachment.job().clone());
                }
            }
            (None, _) => {}
        }
        drop(attachment);
        self.rest();
        if self.draining {
            self.leave_if_idle();
        }
    }

    /// The offset at which the last data of stdin on this channel began.
    pub(super) fn stdin_offset(
        session: &bowline_proto::session::Session,
        channel: Channel,
        len: usize,
    ) -> u64 {
        let received = session.receiving(channel, Stream::Stdin);
        let received = received.map_or(0, RecvFlow::received);
        received.saturating_sub(u64::try_from(len).unwrap_or(u64::MAX))
    }
}
