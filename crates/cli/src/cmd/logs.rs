//! `bowline logs`: what a job has written, and with `-f` what it writes.

use std::process::ExitCode;

use anyhow::Context as _;
use bowline::client::{ClientError, Connection, Happening};
use bowline_proto::id::JobId;
use bowline_proto::message::{Attach, AttachFrom};
use bowline_proto::outcome::Happened;

use super::dial::{ConnectFlags, Dialer};
use super::job_name::{JobName, find_one};
use super::run::{self, Errand, Follower, PatienceFlags, Relay, Wiring};
use crate::{exit, moment};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LogsFlags {
    /// The machine, as in `bowline run`
    target: String,
    /// The job: its id, or the beginning of it that no other has
    #[arg(value_name = "JOB")]
    job: JobName,
    /// Go on until the job ends
    #[arg(long, short)]
    follow: bool,
    /// Only this stream
    #[arg(long, value_enum, value_name = "STREAM")]
    stream: Option<OutputStream>,
    /// Only what was written since then: how long ago (10m), a time (2026-11-28T17:45:00Z) or Unix
    /// seconds; of detached jobs, to the second or a little before
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    since: Option<u64>,
    /// The remote user (the same as user@ in TARGET)
    #[arg(long, short = 'l', value_name = "NAME")]
    user: Option<String>,
    /// Write the output as JSON lines on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectFlags,
}

/// One of the streams that a job writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OutputStream {
    Stdout,
    Stderr,
}

/// # Errors
/// Where the flags make no sense.
pub(crate) async fn logs(flags: LogsFlags, quiet: bool) -> anyhow::Result<ExitCode> {
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let asked = match (flags.job.id(), flags.follow) {
        (Some(job), true) => Ok(Some((job, None))),
        _ => ask(&mut dialer, &flags).await,
    };
    let (job, until) = match asked {
        Ok(Some(asked)) => asked,
        Ok(None) => return Ok(ExitCode::from(u8::MAX)),
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    };
    let wanted = |stream| flags.stream.is_none_or(|only| only == stream);
    let wanted = [OutputStream::Stdout, OutputStream::Stderr].map(wanted);
    let wiring = Wiring {
        json: flags.json,
        gaps: true,
        unwanted: wanted.map(|wanted| !wanted),
        guest: true,
        whole: flags.since.is_none(),
        until,
        quiet,
        ..Wiring::default()
    };
    let mut relay = Relay::new(wiring).context("stdout")?;
    let [stdout, stderr] = wanted.map(|wanted| wanted.then_some(0));
    let errand = Errand::Attach(Attach {
        stdout,
        stderr,
        from: match flags.since {
            Some(_) => AttachFrom::Since,
            None => AttachFrom::Start,
        },
        since_ms: flags.since,
        stdin: false,
        ..Attach::default()
    });
    let patience = PatienceFlags::default().patience(dialer.settings());
    let host = (flags.target.as_str(), quiet);
    let follower = Follower::new(&mut dialer, &mut relay, (job, &errand), patience, host);
    let report = follower.follow().await;
    let unwritten = relay.unwritten();
    drop(relay);
    dialer.finish();
    let outcome = &report.outcome;
    // What the server says of a job's end is the job's affair; what we could not get is ours.
    // A reader that has had enough (`| head`) is no failure.
    let ours = matches!(outcome.outcome, Happened::Unreachable | Happened::Refused);
    let closed = outcome.error.as_deref() == Some("output_closed");
    if !ours || closed || outcome.error.is_none() {
        return Ok(run::exit_code(0, unwritten));
    }
    let unwritten = run::report_to_all(&report, false, None, quiet).or(unwritten);
    Ok(run::exit_code(u8::MAX, unwritten))
}

/// The job that is meant, and without `-f` how far it has written by now. `None` where the
/// name gives none, which is said.
async fn ask(
    dialer: &mut Dialer,
    flags: &LogsFlags,
) -> Result<Option<(JobId, Option<[u64; 2]>)>, ClientError> {
    let mut connection = dialer.enter().await?;
    let job = match flags.job.id() {
        Some(job) => Some(job),
        None => find_one(&mut connection, &flags.target, &flags.job).await?,
    };
    let Some(job) = job else {
        return Ok(None);
    };
    let until = match flags.follow {
        true => None,
        false => Some(written(&mut connection, job).await?),
    };
    // No goodbye: the job may have ended, and its outcome is wanted by others.
    let _ = connection.finish().await;
    Ok(Some((job, until)))
}

/// How much a job has written to each stream so far: where one who attaches now would begin.
async fn written(connection: &mut Connection, job: JobId) -> Result<[u64; 2], ClientError> {
    if !connection.has_attachments().await? {
        return Err(ClientError::NoAttachments);
    }
    let channel = connection.attach(&Attach {
        job: Some(job),
        from: AttachFrom::Now,
        stdin: false,
        ..Attach::default()
    })?;
    loop {
        match connection.next().await? {
            Happening::Started(at, started) if at == channel => {
                return Ok([started.stdout, started.stderr].map(Option::unwrap_or_default));
            }
            // It never ran, and has written nothing.
            Happening::Exit(at, _) if at == channel => return Ok([0; 2]),
            Happening::Refused(at, refused) if at == channel => {
                return Err(ClientError::Refused(refused));
            }
            _ => {}
        }
    }
}
