//! Following a job to its end, over as many lines as it takes.
//!
//! ```text
//!            broken before we were let in: a few more times
//!              ┌─────┐
//! dial ──► ask for the job ──► follow ──► outcome
//!   ▲      (start, or attach)    │ the line is lost
//!   └──── pauses, grace ◄────────┘
//! ```
//!
//! What was asked for over a line that broke may have been heard: the same start is
//! sent again under the same id, and a job that has started is attached to where its
//! streams were. What became of it is never guessed.

use std::time::Duration;

use bowline::client::{ClientError, Connection, Failure, StartRequest};
use bowline::driver::WireError;
use bowline_proto::id::JobId;
use bowline_proto::message::{Attach, AttachFrom, Exit, OnDisconnect};
use bowline_proto::outcome::{Happened, Outcome};

use super::super::dial::Dialer;
use super::line::Line;
use super::outage::Outage;
use super::relay::Relay;
use super::signals::Signals;
use crate::config::{HostSettings, Milliseconds, OnDisconnect as WhenAlone};
use crate::report::Report;
use crate::{duration, exit};

/// How long a path may be silent before it is called dead, by default.
const SILENCE: Duration = Duration::from_secs(20);
/// A bound that no path could keep would break lines that work.
const SILENCE_MIN: Duration = Duration::from_millis(100);
/// How long one tries to get back to a job, by default: as long as a server keeps it.
const GRACE: Duration = Duration::from_secs(600);

/// What is wanted of a job.
#[derive(Clone, Debug)]
pub(in crate::cmd) enum Errand {
    /// That it is started, by this client.
    Start(StartRequest),
    /// To be there: from these offsets on the first time, and on another line from where the
    /// one before broke.
    Attach(Attach),
}

/// What happens when the line breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cmd) struct Patience {
    pub(in crate::cmd) on_disconnect: OnDisconnect,
    /// Asked for, for the server and for us; where not, each has its own.
    grace: Option<Duration>,
    pub(in crate::cmd) silence: Duration,
}

impl Patience {
    /// How long one tries to get back to a job.
    pub(in crate::cmd) fn grace(&self) -> Duration {
        self.grace.unwrap_or(GRACE)
    }
}

// The flags for it. No doc comment: clap would have a command say that of itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct PatienceFlags {
    /// What the server does with the job when nobody comes back: keep it for the grace time, or kill it (default: keep)
    #[arg(long, value_name = "WHAT")]
    on_disconnect: Option<WhenAlone>,
    /// How long the job is kept when the line breaks, and one tries to get back to it (default: 10m, and as the server says)
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    grace: Option<Duration>,
    /// How long the line may be silent before it is called dead (default: 20s)
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    silence: Option<Duration>,
}

impl PatienceFlags {
    /// The flags win over the configuration.
    pub(in crate::cmd) fn patience(&self, settings: &HostSettings) -> Patience {
        let silence = self.silence.or(settings.silence.map(Milliseconds::time));
        let on_disconnect = self.on_disconnect.or(settings.on_disconnect);
        Patience {
            on_disconnect: match on_disconnect {
                None | Some(WhenAlone::Keep) => OnDisconnect::Keep,
                Some(WhenAlone::Kill) => OnDisconnect::Kill,
            },
            grace: self.grace.or(settings.grace.map(Milliseconds::time)),
            silence: silence.unwrap_or(SILENCE).max(SILENCE_MIN),
        }
    }
}

/// Why the outcome is not known.
#[derive(Debug)]
struct Failed {
    error: ClientError,
    /// The job had started, or may have.
    started: bool,
    /// For so long nobody could be reached.
    given_up: Option<Duration>,
}

impl Failed {
    /// The outcome of a job that the server said nothing final about.
    fn outcome(&self) -> Outcome {
        let mut outcome = self.error.outcome();
        let mut message = exit::chain(&self.error);
        if let Some(grace) = self.given_up {
            message.push_str(&format!("; given up after {}", duration::spoken(grace)));
        }
        if self.started {
            outcome = Happened::Unreachable;
            message.push_str("; the job had started, and what became of it is not known");
        }
        Outcome::failed(outcome, self.error.code(), message)
    }
}

/// Why one attempt is over.
enum Stop {
    /// The client leaves.
    Left(Exit),
    Failed(ClientError),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

/// One who follows a job.
pub(in crate::cmd) struct Follower<'a> {
    dialer: &'a mut Dialer,
    relay: &'a mut Relay,
    /// The target as the user gave it.
    host: &'a str,
    job: JobId,
    errand: &'a Errand,
    patience: Patience,
    outage: Outage,
    /// Until there is a connection, a signal does to this process what it does to any.
    signals: Option<Signals>,
    /// A server that keeps the job had let us in when it was asked for it.
    kept: bool,
    /// Lines that were given up before the job was asked for there and answered: what was asked may
    /// arrive behind what is asked later, and take its place.
    unanswered: u32,
}

impl<'a> Follower<'a> {
    /// `host` is the target as the user gave it; with `quiet` nothing is said of outages.
    pub(in crate::cmd) fn new(
        dialer: &'a mut Dialer,
        relay: &'a mut Relay,
        (job, errand): (JobId, &'a Errand),
        patience: Patience,
        (host, quiet): (&'a str, bool),
    ) -> Self {
        dialer.bound_silence(patience.silence);
        Self {
            dialer,
            relay,
            host,
            job,
            errand,
            patience,
            outage: Outage::new(host, quiet, patience.grace()),
            signals: None,
            kept: false,
            unanswered: 0,
        }
    }

    /// Follows the job until its outcome is known and its output is written, the client leaves, or
    /// neither can come to be.
    pub(in crate::cmd) async fn follow(self) -> Report {
        let (host, job) = (self.host, self.job);
        match self.follow_to_the_end().await {
            Ok(exit) => Report::new(exit, host, job),
            Err(failed) => Report::without_exit(failed.outcome(), host, job),
        }
    }

    async fn follow_to_the_end(mut self) -> Result<Exit, Failed> {
        loop {
            let error = match self.attempt().await {
                Ok(exit) | Err(Stop::Left(exit)) => return Ok(exit),
                Err(Stop::Failed(error)) => error,
            };
            let pause = match self.pause(&error) {
                Some(pause) => tokio::time::sleep(pause),
                None => return Err(self.failed(error)),
            };
            match &mut self.signals {
                None => pause.await,
                Some(signals) => {
                    if let Err(exit) = self.relay.meanwhile(signals, pause).await {
                        return Ok(exit);
                    }
                }
            }
        }
    }

    /// One line, from its making to the outcome or its end.
    async fn attempt(&mut self) -> Result<Exit, Stop> {
        self.dialer.hurry(self.outage.hurry());
        let dialled = match &mut self.signals {
            None => self.dialer.dial().await,
            Some(signals) => {
                let dialled = self.relay.meanwhile(signals, self.dialer.dial()).await;
                dialled.map_err(Stop::Left)?
            }
        };
        let mut connection = dialled?;
        let signals = match &mut self.signals {
            Some(signals) => signals,
            None => {
                let signals = self.relay.signals();
                let signals = signals.map_err(|error| ClientError::from(WireError::from(error)))?;
                self.signals.insert(signals)
            }
        };
        // A server that has made a connection and then says nothing is not waited for either.
        let time = self.dialer.timeout();
        let able = able(&mut connection, self.errand, self.patience);
        let able = async { tokio::time::timeout(time, able).await };
        let able = self.relay.meanwhile(signals, able).await;
        let able = able.map_err(Stop::Left)?;
        let attachments = able.map_err(|_| ClientError::Timeout(time))??;
        let mut line = self.ask(connection, attachments)?;
        let signals = self.signals.as_mut().ok_or(ClientError::Closed)?;
        let followed = self
            .relay
            .follow(&mut line, signals, &mut self.outage)
            .await;
        self.kept |= line.kept && line.is_granted();
        let answered = line.answered || matches!(followed, Err(ClientError::Refused(_)) | Ok(_));
        self.unanswered += u32::from(!answered);
        let exit = followed?;
        line.leave(self.job, self.relay.is_at_its_end()).await;
        Ok(exit)
    }

    /// Asks for the job on a new connection.
    fn ask(&mut self, mut connection: Connection, kept: bool) -> Result<Line, ClientError> {
        let silence = self.patience.silence;
        let [stdout, stderr] = self.relay.received();
        let attach = match self.errand {
            Errand::Start(_) if !self.relay.started() => None,
            Errand::Attach(attach) if !self.relay.started() => Some(attach.clone()),
            Errand::Start(_) => Some(Attach {
                stdout: Some(stdout),
                stderr: Some(stderr),
                ..Attach::default()
            }),
            Errand::Attach(attach) => Some(Attach {
                stdout: attach.stdout.map(|_| stdout),
                stderr: attach.stderr.map(|_| stderr),
                from: AttachFrom::Offset,
                since_ms: None,
                ..attach.clone()
            }),
        };
        let (channel, attached) = match (attach, self.errand) {
            (Some(attach), _) => {
                let attach = Attach {
                    job: Some(self.job),
                    ..attach
                };
                (connection.attach(&attach)?, true)
            }
            (None, Errand::Start(request)) => {
                let request = self.request(request, kept);
                (connection.start(self.job, &request)?, false)
            }
            (None, Errand::Attach(_)) => return Err(ClientError::NoAttachments),
        };
        let mut line = Line::new(connection, channel, silence);
        (line.attached, line.kept) = (attached, kept);
        line.guest = matches!(self.errand, Errand::Attach(_));
        self.relay.begin_line(&line)?;
        Ok(line)
    }

    /// The start with what is to happen when the line breaks.
    fn request(&self, request: &StartRequest, kept: bool) -> StartRequest {
        let grace = self.patience.grace.filter(|_| kept);
        StartRequest {
            on_disconnect: match kept {
                true => OnDisconnect::Keep,
                false => OnDisconnect::Kill,
            },
            grace_ms: grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
            ..request.clone()
        }
    }

    /// The pause before another attempt; `None` where none can end better.
    fn pause(&mut self, error: &ClientError) -> Option<Duration> {
        let raw = self.relay.is_raw();
        let ours = self.is_our_own(error);
        let failure = match ours {
            true => Some(Failure::Unanswered),
            false => error.failure(),
        };
        if self.outage.is_down() {
            self.outage.tell(error, raw);
            return match failure {
                Some(failure) => self.outage.goes_on(failure),
                None => self.dialer.pause_before_another(error),
            };
        }
        let started = self.relay.started();
        let lost = match error {
            ClientError::Wire(_) => true,
            _ if started || ours => failure.is_some(),
            error => error.is_broken_line(),
        };
        if self.kept && lost {
            let pause = self.outage.begins();
            // A start whose answer was lost is most likely answered the next time.
            if started {
                self.outage.tell(error, raw);
            }
            return Some(pause);
        }
        if started || self.was_heard(error) {
            return None;
        }
        self.dialer.pause_before_another(error)
    }

    /// Whether the job was taken from us by what we had asked for ourselves, on a line that we gave
    /// up: that is as good as a lost line. One for each (PROTOCOL.md, section 5).
    fn is_our_own(&mut self, error: &ClientError) -> bool {
        let ours = error.code() == "attached_elsewhere" && self.unanswered > 0;
        self.unanswered -= u32::from(ours);
        ours
    }

    /// Whether an earlier attempt had reached the keeper, and only its answer was lost.
    fn was_heard(&self, error: &ClientError) -> bool {
        self.dialer.was_broken() && error.code() == "duplicate_job"
    }

    fn failed(&self, error: ClientError) -> Failed {
        let down = self.outage.is_down();
        Failed {
            started: self.relay.started() || down || self.was_heard(&error),
            given_up: (down && error.failure().is_some()).then(|| self.outage.grace()),
            error,
        }
    }
}

/// Whether the job is to outlive its line, of a server that can do what is asked. Where nothing
/// depends on it the server's hello is not waited for.
async fn able(
    connection: &mut Connection,
    errand: &Errand,
    patience: Patience,
) -> Result<bool, ClientError> {
    match errand {
        Errand::Start(request) => {
            if (request.pty.is_some() || request.login) && !connection.has_terminals().await? {
                return Err(ClientError::NoTerminals);
            }
            Ok(
                patience.on_disconnect == OnDisconnect::Keep
                    && connection.has_attachments().await?,
            )
        }
        Errand::Attach(_) if connection.has_attachments().await? => Ok(true),
        Errand::Attach(_) => Err(ClientError::NoAttachments),
    }
}
