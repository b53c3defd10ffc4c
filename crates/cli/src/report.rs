//! What a job came to, for people and for programs.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use bowline_proto::id::JobId;
use bowline_proto::message::Exit;
use bowline_proto::outcome::{Happened, Outcome};
use serde::Serialize;

/// A job's outcome with everything that is told about it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    /// Bytes of stdin that reached the program's pipe.
    pub(crate) stdin: u64,
    /// Bytes of stdout.
    pub(crate) stdout: u64,
    /// Bytes of stderr.
    pub(crate) stderr: u64,
    /// The target as it was given.
    pub(crate) host: String,
    pub(crate) job: JobId,
}

impl Report {
    pub(crate) fn new(exit: Exit, host: &str, job: JobId) -> Self {
        Self {
            outcome: exit.outcome,
            stdin: exit.stdin,
            stdout: exit.stdout,
            stderr: exit.stderr,
            host: host.to_owned(),
            job,
        }
    }

    /// An outcome that came without one word of the job.
    pub(crate) fn without_exit(outcome: Outcome, host: &str, job: JobId) -> Self {
        let exit = Exit {
            outcome,
            ..Exit::default()
        };
        Self::new(exit, host, job)
    }

    /// One line of JSON.
    pub(crate) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Writes the line to a descriptor of the caller's choice.
    ///
    /// # Errors
    /// As write(2).
    pub(crate) fn write_to(&self, fd: OwnedFd) -> io::Result<()> {
        std::fs::File::from(fd).write_all(&self.line())
    }

    /// What a person is told, where the exit status alone would leave them guessing.
    pub(crate) fn sentence(&self) -> Option<String> {
        let outcome = &self.outcome;
        let code = outcome
            .error
            .as_ref()
            .map_or_else(|| outcome.outcome.as_str(), String::as_str);
        let text = match outcome.outcome {
            Happened::Exited | Happened::Signaled => return None,
            Happened::TimedOut => "the time was up; the job was ended".to_owned(),
            Happened::Cancelled if outcome.error.is_none() => return None,
            Happened::Lost => {
                "the server's keeper died under the job: its status cannot be known".to_owned()
            }
            _ => outcome
                .message
                .clone()
                .unwrap_or_else(|| outcome.outcome.as_str().replace('_', " ")),
        };
        let best_effort = match outcome.kill {
            Some(bowline_proto::outcome::Kill::BestEffort) => {
                " (found by walking the process tree: one that hid may have escaped)"
            }
            _ => "",
        };
        Some(format!("{}: {text}{best_effort} [{code}]", self.host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line_of_json() {
        let exit = Exit {
            outcome: Outcome {
                outcome: Happened::Exited,
                code: Some(3),
                ..Outcome::default()
            },
            stdout: 7,
            ..Exit::default()
        };
        let report = Report::new(exit, "local", JobId::from_bytes([1; 16]));
        let line = report.line();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(json["outcome"], "exited");
        assert_eq!(json["code"], 3);
        assert_eq!(json["stdout"], 7);
        assert_eq!(json["job"], "01".repeat(16));
        assert!(report.sentence().is_none());
    }
}
