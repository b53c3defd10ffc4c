//! The jobs of a connection, from the record to the outcome.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::message::{Exit, Refused, Started};
use bowline_proto::outcome::{Happened, Outcome};

use super::super::job::{Job, Stage};
use super::super::spec;
use super::{Connection, Phase, order, refusal};
use crate::ipc::{Cause, RefuseCode, Stream as KeeperStream, ToKeeper};

impl Connection {
    pub(super) fn job_mut(&mut self, id: JobId) -> Option<(Channel, &mut Job)> {
        let mut jobs = self.jobs.iter_mut();
        jobs.find(|(_, job)| job.id == id)
            .map(|(channel, job)| (Channel(*channel), job))
    }

    pub(super) fn started(&mut self, id: JobId, pid: i32, unix_ms: u64, fds: Vec<OwnedFd>) {
        self.worker.shared.runs(id, pid);
        let gone = matches!(self.phase, Phase::Gone | Phase::Closing(..));
        let worker = self.worker.clone();
        let Some((channel, job)) = self.job_mut(id) else {
            return;
        };
        if gone {
            // Its end was asked for with the connection's; nobody reads or writes its pipes.
            job.runs(pid, unix_ms);
            return;
        }
        let no_stderr = job.has_no_stderr();
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
                ..Started::default()
            };
            session.started(channel, &started);
            if no_stderr {
                let _ = session.put_end(channel, Stream::Stderr);
            }
        }
    }

    /// A job that did not come to run.
    pub(super) fn fail(&mut self, id: JobId, outcome: Outcome) {
        let Some((channel, _)) = self.job_mut(id) else {
            return;
        };
        self.finish(channel, outcome);
    }

    pub(super) fn jobs(&mut self, cx: &mut Context<'_>) -> bool {
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
                    let shared = &self.worker.shared;
                    shared.estate.close(job.id, KeeperStream::Stdin);
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
    pub(super) fn recorded(&mut self, cx: &mut Context<'_>, channel: Channel) -> bool {
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
    pub(super) fn finish(&mut self, channel: Channel, outcome: Outcome) {
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

    pub(super) fn tell(&mut self, channel: Channel, exit: Exit) {
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
}
