//! `bowline jobs`: what runs on a server for this user, and what has run.

use std::process::ExitCode;

use bowline::client::ClientError;
use bowline_proto::message::{JobRow, List};
use bowline_proto::outcome::{Happened, Outcome};

use super::dial::{ConnectFlags, Dialer};
use super::job_name;
use crate::exit;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct JobsFlags {
    /// The machine, as in `bowline run`
    pub(crate) target: String,
    /// Also those that have ended
    #[arg(long, short)]
    pub(crate) all: bool,
    /// At most so many, the latest first
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    pub(crate) count: u32,
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
pub(crate) async fn jobs(flags: JobsFlags) -> anyhow::Result<ExitCode> {
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let rows = ask(&mut dialer, &flags).await;
    dialer.finish();
    let rows = match rows {
        Ok(rows) => rows,
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    };
    let mut text = String::new();
    if flags.json {
        for row in &rows {
            text.push_str(&serde_json::to_string(row)?);
            text.push('\n');
        }
    } else {
        text = table(&rows);
    }
    exit::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(dialer: &mut Dialer, flags: &JobsFlags) -> Result<Vec<JobRow>, ClientError> {
    let mut connection = dialer.enter().await?;
    let list = List {
        ended: flags.all,
        count: flags.count,
        job: None,
    };
    let rows = job_name::rows(&mut connection, &list).await?;
    connection.bye();
    let _ = connection.finish().await;
    Ok(rows)
}

/// A table for people; ids are shortened to what is enough to name them here.
fn table(rows: &[JobRow]) -> String {
    let mut lines = vec![["JOB", "PID", "STATE", "FROM", "COMMAND"].map(str::to_owned)];
    for row in rows {
        let mut id = row.job.map(|job| job.to_string()).unwrap_or_default();
        id.truncate(12);
        let pid = if row.pid == 0 {
            "-".to_owned()
        } else {
            row.pid.to_string()
        };
        lines.push([
            id,
            pid,
            state(row.outcome.as_ref()),
            row.source.clone(),
            printable(&row.command),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..4).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(cell);
            let padding = width.saturating_sub(cell.chars().count()) + 2;
            text.extend(std::iter::repeat_n(' ', padding));
        }
        text.push_str(&line[4]);
        text.push('\n');
    }
    text
}

/// What has become of a job, in a word or two.
pub(super) fn state(outcome: Option<&Outcome>) -> String {
    let Some(outcome) = outcome else {
        return "running".to_owned();
    };
    match (outcome.outcome, outcome.code, outcome.signal) {
        (Happened::Exited, Some(code), _) => format!("exited {code}"),
        (Happened::Signaled, _, Some(signal)) => format!("signal {signal}"),
        (happened, ..) => happened.as_str().to_owned(),
    }
}

/// Control characters in somebody's arguments must not reach a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bowline_proto::id::JobId;

    #[test]
    fn a_table_is_aligned_and_harmless() {
        let row = |command: &str, outcome| JobRow {
            job: Some(JobId::from_bytes([0xab; 16])),
            source: "127.0.0.1:5".to_owned(),
            pid: 7,
            command: command.to_owned(),
            outcome,
            ..JobRow::default()
        };
        let ended = Outcome {
            outcome: Happened::Exited,
            code: Some(3),
            ..Outcome::default()
        };
        let text = table(&[row("ls -l", None), row("echo \u{1b}[2J", Some(ended))]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "abababababab  7    running   127.0.0.1:5  ls -l");
        assert_eq!(
            lines[2],
            "abababababab  7    exited 3  127.0.0.1:5  echo \u{fffd}[2J"
        );
    }
}
