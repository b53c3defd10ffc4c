//! `bowline attach`: a job that runs already, as if this client had started it.

use std::process::ExitCode;

use anyhow::Context as _;
use bowline::client::ClientError;
use bowline_proto::id::JobId;
use bowline_proto::message::{Attach, AttachFrom};

use super::dial::{ConnectFlags, Dialer};
use super::job_name::{JobName, find_one};
use super::run::{self, Errand, Follower, PatienceFlags, Relay, Wiring};
use crate::exit;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AttachFlags {
    /// The machine, as in `bowline run`
    target: String,
    /// The job: its id, or the beginning of it that no other has
    #[arg(value_name = "JOB")]
    job: JobName,
    /// Begin with the oldest output that is kept
    #[arg(long)]
    from_start: bool,
    /// Begin with what the job writes next (the default)
    #[arg(long, conflicts_with = "from_start")]
    from_now: bool,
    /// Only look: nothing that is typed and no signal goes to the job
    #[arg(short = 'n')]
    no_stdin: bool,
    /// The remote user (the same as user@ in TARGET)
    #[arg(long, short = 'l', value_name = "NAME")]
    user: Option<String>,
    /// Write output and outcome as JSON lines on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectFlags,
}

/// # Errors
/// Where the flags make no sense.
pub(crate) async fn attach(flags: AttachFlags, quiet: bool) -> anyhow::Result<ExitCode> {
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let job = match flags.job.id() {
        Some(job) => Ok(Some(job)),
        None => named(&mut dialer, &flags.target, &flags.job).await,
    };
    let job = match job {
        Ok(Some(job)) => job,
        Ok(None) => return Ok(ExitCode::from(u8::MAX)),
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    };
    let wiring = Wiring {
        stdin: !flags.no_stdin,
        json: flags.json,
        gaps: true,
        guest: true,
        whole: flags.from_start,
        quiet,
        ..Wiring::default()
    };
    let mut relay = Relay::new(wiring).context("stdin")?;
    let errand = Errand::Attach(Attach {
        from: match flags.from_start {
            true => AttachFrom::Start,
            false => AttachFrom::Now,
        },
        stdin: !flags.no_stdin,
        ..Attach::default()
    });
    let patience = PatienceFlags::default().patience(dialer.settings());
    let host = (flags.target.as_str(), quiet);
    let follower = Follower::new(&mut dialer, &mut relay, (job, &errand), patience, host);
    let report = follower.follow().await;
    let ends = (relay, dialer);
    Ok(run::finish(&report, ends, flags.json, None, quiet))
}

/// The job that is meant; `None` where the name gives none, which is said.
async fn named(
    dialer: &mut Dialer,
    target: &str,
    name: &JobName,
) -> Result<Option<JobId>, ClientError> {
    let mut connection = dialer.enter().await?;
    let job = find_one(&mut connection, target, name).await?;
    connection.bye();
    let _ = connection.finish().await;
    Ok(job)
}
