//! `bowline run --detach`: starts a job that belongs to no connection, and leaves.

use std::process::ExitCode;

use anyhow::Context as _;
use bowline::client::{ClientError, Connection, Happening, StartRequest};
use bowline_proto::id::JobId;
use bowline_proto::message::{Exit, SpoolPolicy};
use bowline_proto::outcome::{Happened, Outcome};

use super::{RunFlags, exit_code, report_to_all};
use crate::cmd::dial::Dialer;
use crate::config::{HostSettings, Spool};
use crate::exit;
use crate::inherited;
use crate::report::Report;

// Whether a job is left alone, and what becomes of its output. No doc comment: clap would have a command say that of itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct DetachFlags {
    /// Start it, print its job's id and leave; its output is kept on the server's disk
    #[arg(long, conflicts_with_all = ["json", "pty"])]
    pub(super) detach: bool,
    /// With --detach: what happens when the output has no room left (default: block)
    #[arg(long, value_name = "POLICY", requires = "detach")]
    spool: Option<Spool>,
    /// With --detach: that room, in bytes of each stream (default: as much as the server permits)
    #[arg(long, value_name = "N", requires = "detach", value_parser = clap::value_parser!(u64).range(1..))]
    spool_bytes: Option<u64>,
}

impl DetachFlags {
    /// What was asked for, with what becomes of its output. The flags win over the configuration.
    fn request(&self, request: &StartRequest, settings: &HostSettings) -> StartRequest {
        let policy = self.spool.or(settings.spool);
        StartRequest {
            spool: policy.map_or(SpoolPolicy::Block, SpoolPolicy::from),
            spool_bytes: self.spool_bytes.or(settings.spool_bytes),
            ..request.clone()
        }
    }
}

impl From<Spool> for SpoolPolicy {
    fn from(policy: Spool) -> Self {
        match policy {
            Spool::Block => Self::Block,
            Spool::DropOldest => Self::DropOldest,
            Spool::Kill => Self::Kill,
        }
    }
}

/// What the server said first.
enum Answer {
    Started,
    /// It did not run, or was over at once without a word.
    Over(Exit),
}

/// Starts the job and prints its id, alone on a line.
///
/// # Errors
/// Where the flags make no sense, and as write(2) on stdout.
pub(super) async fn run(
    flags: RunFlags,
    request: &StartRequest,
    quiet: bool,
) -> anyhow::Result<ExitCode> {
    let status = flags.status_fd.map(inherited::take).transpose();
    let status = status.context("--status-fd")?;
    let job = exit::fresh_job_id()?;
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let request = flags.detach.request(request, dialer.settings());
    let answer = ask(&mut dialer, job, &request).await;
    dialer.finish();
    let report = match answer {
        Ok(Answer::Started) => {
            exit::print(&format!("{job}\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        Ok(Answer::Over(exit)) => Report::new(exit, &flags.target, job),
        Err((error, asked)) => Report::without_exit(unknown(&error, asked), &flags.target, job),
    };
    let unwritten = report_to_all(&report, false, status, quiet);
    Ok(exit_code(report.outcome.exit_status(), unwritten))
}

/// Asks for the job until there is an answer, with the same id: it starts once. An error comes with
/// whether it may have started all the same.
async fn ask(
    dialer: &mut Dialer,
    job: JobId,
    request: &StartRequest,
) -> Result<Answer, (ClientError, bool)> {
    let mut asked = false;
    loop {
        let error = match dialer.dial().await {
            Err(error) => error,
            Ok(mut connection) => match start(&mut connection, job, request, &mut asked).await {
                Ok(answer) => {
                    connection.bye();
                    let _ = connection.finish().await;
                    return Ok(answer);
                }
                Err(error) => error,
            },
        };
        let Some(pause) = dialer.pause_before_another(&error) else {
            // A refusal is an answer: nothing was run.
            let asked = asked && !matches!(error, ClientError::Refused(_));
            return Err((error, asked));
        };
        tokio::time::sleep(pause).await;
    }
}

async fn start(
    connection: &mut Connection,
    job: JobId,
    request: &StartRequest,
    asked: &mut bool,
) -> Result<Answer, ClientError> {
    if !connection.has_attachments().await? {
        return Err(ClientError::NoAttachments);
    }
    connection.start(job, request)?;
    *asked = true;
    loop {
        match connection.next().await? {
            Happening::Started(..) => return Ok(Answer::Started),
            Happening::Exit(_, exit) => return Ok(Answer::Over(exit)),
            Happening::Refused(_, refused) => return Err(ClientError::Refused(refused)),
            _ => {}
        }
    }
}

/// There was no answer.
fn unknown(error: &ClientError, asked: bool) -> Outcome {
    let mut outcome = error.outcome();
    let mut message = exit::chain(error);
    if asked {
        outcome = Happened::Unreachable;
        message.push_str("; the job was asked for, and whether it runs is not known");
    }
    Outcome::failed(outcome, error.code(), message)
}
