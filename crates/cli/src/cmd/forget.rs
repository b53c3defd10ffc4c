//! `bowline forget`: tells a server that it may drop what it keeps of jobs that have ended.

use std::process::ExitCode;

use bowline::client::{ClientError, Connection, Happening};
use bowline_proto::id::JobId;

use super::dial::{ConnectFlags, Dialer};
use super::job_name::{JobName, find};
use crate::exit;
use crate::stderr::tell;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ForgetFlags {
    /// The machine, as in `bowline run`
    pub(crate) target: String,
    /// The jobs: each its id, or the beginning of it that no other has
    #[arg(required = true, value_name = "JOB")]
    pub(crate) jobs: Vec<JobName>,
    /// The remote user (the same as user@ in TARGET)
    #[arg(long, short = 'l', value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Print a line of JSON for each job
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectFlags,
}

/// # Errors
/// Where the flags make no sense.
pub(crate) async fn forget(flags: ForgetFlags) -> anyhow::Result<ExitCode> {
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let forgotten = ask(&mut dialer, &flags).await;
    dialer.finish();
    let forgotten = match forgotten {
        Ok(forgotten) => forgotten,
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    };
    let mut text = String::new();
    for job in &forgotten {
        text.push_str(&match flags.json {
            true => format!("{}\n", serde_json::json!({ "job": job })),
            false => format!("forgot {job}\n"),
        });
    }
    exit::print(&text)?;
    Ok(match forgotten.len() == flags.jobs.len() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Those that are forgotten; why others are not is said.
async fn ask(dialer: &mut Dialer, flags: &ForgetFlags) -> Result<Vec<JobId>, ClientError> {
    let mut connection = dialer.enter().await?;
    let mut forgotten = Vec::new();
    let found = find(&mut connection, &flags.jobs, true).await?;
    for (name, found) in flags.jobs.iter().zip(found) {
        match found {
            Err(not_one) => not_one.tell(&flags.target, name, "job of yours"),
            Ok((job, row)) if row.outcome.is_none() => {
                tell!(
                    "bowline: {}: {job}: it has not ended; `bowline kill` ends it [job_runs]",
                    flags.target
                );
            }
            Ok((job, _)) => {
                connection.forget(job);
                forgotten.push(job);
            }
        }
    }
    heard(&mut connection).await?;
    connection.bye();
    let _ = connection.finish().await;
    Ok(forgotten)
}

/// Waits until the server has taken in what was said so far.
async fn heard(connection: &mut Connection) -> Result<(), ClientError> {
    connection.ping(1);
    while !matches!(connection.next().await?, Happening::Pong(_)) {}
    Ok(())
}
