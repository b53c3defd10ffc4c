//! `bowline kill`: ends a job of this user, or sends it a signal.

use std::process::ExitCode;

use bowline::client::{ClientError, Happening};
use bowline_proto::id::Channel;
use bowline_proto::message::{JobRow, Signal};

use super::dial::{ConnectFlags, Dialer};
use crate::exit;
use crate::stderr::tell;

/// End a job on a server, the whole tree, or send it a signal
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct KillFlags {
    /// The machine, as in `bowline run`
    pub(crate) target: String,
    /// The job: its id, or the beginning of it that no other has
    pub(crate) job: String,
    /// Send this signal to the job's foreground group and do no more
    #[arg(long, short, value_name = "SIGNAL", value_parser = signal_number)]
    pub(crate) signal: Option<i32>,
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
    let name = flags.job.to_ascii_lowercase();
    let hex = !name.is_empty() && name.len() <= 32 && name.chars().all(|c| c.is_ascii_hexdigit());
    anyhow::ensure!(
        hex,
        "JOB {:?} is no job id: 32 hexadecimal digits, or the first of them",
        flags.job
    );
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let fits = ask(&mut dialer, &flags, name).await;
    dialer.finish();
    let fits = match fits {
        Ok(fits) => fits,
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    };
    let [job] = fits.as_slice() else {
        let (code, text) = if fits.is_empty() {
            ("no_such_job", "no job that runs has an id like this")
        } else {
            (
                "ambiguous_job",
                "several jobs have an id like this; give more of it",
            )
        };
        tell!("bowline: {}: {}: {text} [{code}]", flags.target, flags.job);
        return Ok(ExitCode::FAILURE);
    };
    let id = job.job.map(|job| job.to_string()).unwrap_or_default();
    let text = if flags.json {
        serde_json::json!({ "job": id, "pid": job.pid, "signal": flags.signal }).to_string()
    } else if let Some(signal) = flags.signal {
        format!("sent signal {signal} to {id}")
    } else {
        format!("ending {id}")
    };
    exit::print(&format!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(
    dialer: &mut Dialer,
    flags: &KillFlags,
    name: String,
) -> Result<Vec<JobRow>, ClientError> {
    let mut connection = dialer.enter().await?;
    let message = Signal {
        signal: flags.signal.unwrap_or(libc::SIGTERM),
        tree: flags.signal.is_none(),
        job: Some(name),
    };
    connection.signal(Channel::CONNECTION, &message);
    loop {
        if let Happening::Jobs(jobs) = connection.next().await? {
            connection.bye();
            let _ = connection.finish().await;
            return Ok(jobs.jobs);
        }
    }
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
