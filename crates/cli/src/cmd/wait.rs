//! `bowline wait`: the outcomes of jobs, as soon as each is known.
//!
//! One connection carries an attachment to each job that wants neither stream. Of a job whose
//! outcome is kept no more the server's record may still know it.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::Duration;

use bowline::client::{ClientError, Connection, Happening};
use bowline_proto::id::{Channel, JobId};
use bowline_proto::message::{Attach, Exit, Jobs, List, Refused};
use bowline_proto::outcome::{Happened, Outcome};

use super::dial::{ConnectFlags, Dialer};
use super::job_name::{JobName, find};
use super::jobs::state;
use super::keepalive::Keepalive;
use super::run::{Outage, PatienceFlags};
use crate::exit;
use crate::report::Report;
use crate::stderr::tell;

/// Jobs that are waited for at once; the others get their turn when one of these has ended.
const AT_ONCE_MAX: usize = 64;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WaitFlags {
    /// The machine, as in `bowline run`
    pub(crate) target: String,
    /// The jobs: each its id, or the beginning of it that no other has
    #[arg(required = true, value_name = "JOB")]
    pub(crate) jobs: Vec<JobName>,
    /// The remote user (the same as user@ in TARGET)
    #[arg(long, short = 'l', value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Print each outcome as a line of JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectFlags,
}

/// # Errors
/// Where the flags make no sense.
pub(crate) async fn wait(flags: WaitFlags, quiet: bool) -> anyhow::Result<ExitCode> {
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let status = wait_for_all(&mut dialer, &flags, quiet).await;
    dialer.finish();
    status
}

async fn wait_for_all(
    dialer: &mut Dialer,
    flags: &WaitFlags,
    quiet: bool,
) -> anyhow::Result<ExitCode> {
    let jobs = match named(dialer, flags).await {
        Ok(Some(jobs)) => jobs,
        // Nobody waits for hours to learn of a typing error.
        Ok(None) => return Ok(ExitCode::from(u8::MAX)),
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    };
    let teller = Teller {
        target: &flags.target,
        json: flags.json,
        quiet,
    };
    let mut waiting = Waiting::new(jobs, teller);
    waiting.wait(dialer).await?;
    Ok(ExitCode::from(waiting.status()))
}

/// The jobs that are meant; `None` where a name gives none, which is said.
async fn named(dialer: &mut Dialer, flags: &WaitFlags) -> Result<Option<Vec<JobId>>, ClientError> {
    let mut connection = dialer.enter().await?;
    let found = find(&mut connection, &flags.jobs, true).await?;
    connection.bye();
    let _ = connection.finish().await;
    let mut jobs = Vec::new();
    for (name, found) in flags.jobs.iter().zip(found) {
        match found {
            Ok((job, _)) => jobs.push(job),
            Err(not_one) => not_one.tell(&flags.target, name, "job of yours"),
        }
    }
    Ok((jobs.len() == flags.jobs.len()).then_some(jobs))
}

/// Where outcomes are told.
#[derive(Clone, Copy, Debug)]
struct Teller<'a> {
    target: &'a str,
    json: bool,
    quiet: bool,
}

impl Teller<'_> {
    /// Tells one outcome; gives the status that stands for it.
    fn tell(&self, exit: Exit, job: JobId, whole: bool) -> anyhow::Result<u8> {
        let report = Report::new(exit, self.target, job);
        let text = match (self.json, self.quiet) {
            (true, _) => line(&report, whole)?,
            (false, true) => String::new(),
            (false, false) => format!("{job}  {}\n", state(Some(&report.outcome))),
        };
        exit::print(&text)?;
        if let (false, Some(sentence)) = (self.quiet, report.sentence()) {
            tell!("bowline: {sentence}");
        }
        Ok(report.outcome.exit_status())
    }
}

/// A line of JSON; without the bytes of each stream where they are not known.
fn line(report: &Report, whole: bool) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(report)?;
    if let (false, Some(keys)) = (whole, value.as_object_mut()) {
        for stream in ["stdin", "stdout", "stderr"] {
            keys.remove(stream);
        }
    }
    Ok(format!("{value}\n"))
}

/// The jobs that are waited for.
#[derive(Debug)]
struct Waiting<'a> {
    teller: Teller<'a>,
    /// In the order in which they were named, with the status that each came to.
    jobs: Vec<(JobId, Option<u8>)>,
    at_once: usize,
}

/// What is under way on one connection; jobs are named by their place in [`Waiting::jobs`].
#[derive(Debug)]
struct Under {
    connection: Connection,
    next: VecDeque<usize>,
    attached: Vec<(Channel, usize)>,
    /// Lists that were asked for, of a job each.
    looked_up: VecDeque<usize>,
    keepalive: Keepalive,
}

impl<'a> Waiting<'a> {
    fn new(jobs: Vec<JobId>, teller: Teller<'a>) -> Self {
        Self {
            teller,
            jobs: jobs.into_iter().map(|job| (job, None)).collect(),
            at_once: AT_ONCE_MAX,
        }
    }

    /// The first status, in the order of the names, that is not 0.
    fn status(&self) -> u8 {
        let statuses = self
            .jobs
            .iter()
            .map(|(_, status)| status.unwrap_or(u8::MAX));
        statuses
            .into_iter()
            .find(|&status| status != 0)
            .unwrap_or(0)
    }

    fn job(&self, place: usize) -> Option<JobId> {
        self.jobs.get(place).map(|(job, _)| *job)
    }

    /// Waits for all of them, over as many lines as it takes.
    ///
    /// # Errors
    /// Where stdout takes no outcome.
    async fn wait(&mut self, dialer: &mut Dialer) -> anyhow::Result<()> {
        let patience = PatienceFlags::default().patience(dialer.settings());
        dialer.bound_silence(patience.silence);
        let quiet = self.teller.quiet;
        let mut outage = Outage::new(self.teller.target, quiet, patience.grace());
        loop {
            dialer.hurry(outage.hurry());
            let error = match self.attempt(dialer, &mut outage, patience.silence).await {
                Ok(()) => return Ok(()),
                Err(Stop::Output(error)) => return Err(error),
                Err(Stop::Client(error)) => error,
            };
            let pause = match (error.failure(), outage.is_down()) {
                (Some(_), false) => Some(outage.begins()),
                (Some(failure), true) => outage.goes_on(failure),
                (None, _) => None,
            };
            let Some(pause) = pause else {
                return self.give_up(&error);
            };
            outage.tell(&error, false);
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits for all that have no outcome yet, over one connection.
    async fn attempt(
        &mut self,
        dialer: &mut Dialer,
        outage: &mut Outage,
        silence: Duration,
    ) -> Result<(), Stop> {
        let connection = entered(dialer).await?;
        outage.is_over(false);
        let open = self.jobs.iter().enumerate();
        let open = open.filter(|(_, (_, status))| status.is_none());
        let mut under = Under {
            connection,
            next: open.map(|(place, _)| place).collect(),
            attached: Vec::new(),
            looked_up: VecDeque::new(),
            keepalive: Keepalive::new(silence),
        };
        loop {
            self.attach_more(&mut under)?;
            if under.attached.is_empty() && under.looked_up.is_empty() {
                break;
            }
            let happening = under.keepalive.next(&mut under.connection).await?;
            self.apply(&mut under, happening)?;
        }
        // No goodbye: a server takes that for "the outcomes are no longer needed".
        let _ = under.connection.finish().await;
        Ok(())
    }

    fn attach_more(&self, under: &mut Under) -> Result<(), ClientError> {
        while under.attached.len() < self.at_once
            && let Some(place) = under.next.pop_front()
        {
            let channel = under.connection.attach(&Attach {
                job: self.job(place),
                stdout: None,
                stderr: None,
                stdin: false,
                ..Attach::default()
            })?;
            under.attached.push((channel, place));
        }
        Ok(())
    }

    fn apply(&mut self, under: &mut Under, happening: Happening) -> Result<(), Stop> {
        match happening {
            Happening::Exit(channel, exit) => {
                under.connection.close(channel);
                if let Some(place) = under.take(channel) {
                    self.over(place, exit, true)?;
                }
            }
            Happening::Refused(channel, refused) => {
                if let Some(place) = under.take(channel) {
                    self.refused(under, place, refused)?;
                }
            }
            Happening::Jobs(jobs) => self.recorded(under, &jobs)?,
            _ => {}
        }
        Ok(())
    }

    fn refused(&mut self, under: &mut Under, place: usize, refused: Refused) -> Result<(), Stop> {
        match refused.code.as_str() {
            // As many as one connection may have: it waits until another has ended.
            "too_many_jobs" if !under.attached.is_empty() => {
                self.at_once = under.attached.len();
                under.next.push_front(place);
            }
            "no_such_job" => {
                // It is not kept, but may be recorded.
                under.connection.list(&List {
                    ended: true,
                    count: 1,
                    job: self.job(place).map(|job| job.to_string()),
                });
                under.looked_up.push_back(place);
            }
            _ => return Err(ClientError::Refused(refused).into()),
        }
        Ok(())
    }

    /// What the record says of the job that was looked up first.
    fn recorded(&mut self, under: &mut Under, jobs: &Jobs) -> Result<(), Stop> {
        let Some(place) = under.looked_up.pop_front() else {
            return Ok(());
        };
        let row = jobs.jobs.iter().find(|row| row.job == self.job(place));
        let outcome = row.and_then(|row| row.outcome.clone());
        let outcome = outcome.unwrap_or_else(|| {
            let message = "nothing is kept of this job";
            Outcome::failed(Happened::Refused, "no_such_job", message.to_owned())
        });
        let exit = Exit {
            outcome,
            ..Exit::default()
        };
        Ok(self.over(place, exit, false)?)
    }

    fn over(&mut self, place: usize, exit: Exit, whole: bool) -> anyhow::Result<()> {
        if let Some((job, status)) = self.jobs.get_mut(place) {
            *status = Some(self.teller.tell(exit, *job, whole)?);
        }
        Ok(())
    }

    /// What became of those that are left will not be known.
    fn give_up(&mut self, error: &ClientError) -> anyhow::Result<()> {
        for place in 0..self.jobs.len() {
            if let Some((_, Some(_))) = self.jobs.get(place) {
                continue;
            }
            let outcome = Outcome::failed(error.outcome(), error.code(), exit::chain(error));
            let exit = Exit {
                outcome,
                ..Exit::default()
            };
            self.over(place, exit, false)?;
        }
        Ok(())
    }
}

/// Connects, to a server that can be waited at.
async fn entered(dialer: &mut Dialer) -> Result<Connection, ClientError> {
    // One that has made a connection and then says nothing is not waited for.
    let time = dialer.timeout();
    let entered = async {
        let mut connection = dialer.enter().await?;
        match connection.has_attachments().await? {
            true => Ok(connection),
            false => Err(ClientError::NoAttachments),
        }
    };
    let entered = tokio::time::timeout(time, entered).await;
    entered.unwrap_or(Err(ClientError::Timeout(time)))
}

impl Under {
    /// The job on a channel, which is over.
    fn take(&mut self, channel: Channel) -> Option<usize> {
        let at = self.attached.iter().position(|(it, _)| *it == channel)?;
        Some(self.attached.swap_remove(at).1)
    }
}

/// Why one attempt is over before everything is known.
#[derive(Debug)]
enum Stop {
    Client(ClientError),
    /// Stdout takes nothing more.
    Output(anyhow::Error),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Output(error)
    }
}
