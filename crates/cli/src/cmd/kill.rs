//! `bowline kill`: ends a job of this user, or sends it a signal.

use std::process::ExitCode;

use bowline::client::{ClientError, Happening};
use bowline_proto::id::{Channel, JobId};
use bowline_proto::message::{JobRow, Signal};

use super::dial::{ConnectFlags, Dialer};
use super::job_name::{JobName, NotOne, find};
use crate::exit;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct KillFlags {
    /// The machine, as in `bowline run`
    pub(crate) target: String,
    /// The job: its id, or the beginning of it that no other that runs has
    #[arg(value_name = "JOB")]
    pub(crate) job: JobName,
    /// Send this signal to the job's foreground group and do no more
    #[arg(long, short, value_name = "NAME", value_parser = signal_number)]
    pub(crate) signal: Option<i32>,
    /// End the whole tree, with SIGTERM or the signal of --signal first (without --signal this is what happens)
    #[arg(long)]
    pub(crate) tree: bool,
    /// The remote user (the same as user@ in TARGET)
    #[arg(long, short = 'l', value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Say what was done as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectFlags,
}

/// `TERM`, `SIGTERM` or `15`; Linux's numbers.
fn signal_number(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return match number {
            1..=64 => Ok(number),
            _ => Err("signals are numbered from 1 to 64".to_owned()),
        };
    }
    let name = text.to_ascii_uppercase();
    let name = format!("SIG{}", name.strip_prefix("SIG").unwrap_or(&name));
    name.parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| "no such signal; `kill -l` lists them".to_owned())
}

/// # Errors
/// Where the flags make no sense.
pub(crate) async fn kill(flags: KillFlags) -> anyhow::Result<ExitCode> {
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let found = ask(&mut dialer, &flags).await;
    dialer.finish();
    let (id, row) = match found {
        Ok(Ok(found)) => found,
        Ok(Err(not_one)) => {
            not_one.tell(&flags.target, &flags.job, "job of yours that runs");
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    };
    let text = match (flags.json, flags.signal) {
        (true, signal) => {
            let tree = flags.tree();
            serde_json::json!({ "job": id, "pid": row.pid, "signal": signal, "tree": tree })
                .to_string()
        }
        (false, Some(signal)) if !flags.tree() => format!("sent signal {signal} to {id}"),
        (false, _) => format!("ending {id}"),
    };
    exit::print(&format!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}

impl KillFlags {
    /// Whether the whole tree is to end.
    fn tree(&self) -> bool {
        self.tree || self.signal.is_none()
    }
}

/// The job that the signal was sent to.
async fn ask(
    dialer: &mut Dialer,
    flags: &KillFlags,
) -> Result<Result<(JobId, JobRow), NotOne>, ClientError> {
    let mut connection = dialer.enter().await?;
    let message = Signal {
        signal: flags.signal.unwrap_or(libc::SIGTERM),
        tree: flags.tree(),
        job: Some(flags.job.as_str().to_owned()),
    };
    connection.signal(Channel::CONNECTION, &message);
    // The server looks and sends in one step, so no job can come between the two.
    let fits = loop {
        if let Happening::Jobs(jobs) = connection.next().await? {
            break jobs.jobs;
        }
    };
    let mut found = flags.job.pick(fits);
    if let Err(NotOne::Several(_)) = &found {
        // Its answer does not say what they are; the list does.
        let names = std::slice::from_ref(&flags.job);
        let listed = find(&mut connection, names, false).await?;
        let several = listed
            .into_iter()
            .find(|it| matches!(it, Err(NotOne::Several(_))));
        found = several.unwrap_or(found);
    }
    connection.bye();
    let _ = connection.finish().await;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(signal_number(text), Ok(15), "{text}");
        }
        assert_eq!(signal_number("64"), Ok(64));
        for text in ["0", "65", "-1", "NOPE", ""] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }
}
