//! What became of a job: the one truth that is told, recorded and exited with.

use serde::{Deserialize, Serialize};

/// What happened, in one word. Unknown is an outcome too, and never success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// The program ended; `code` is its status.
    Exited,
    /// A signal killed it; `signal` says which.
    Signaled,
    /// Its `timeout` ended it, the whole tree.
    TimedOut,
    /// The client or an operator ended it.
    Cancelled,
    /// It was never started; `code` is 125, 126 or 127.
    NotStarted,
    /// Policy, limits, not authenticated.
    Refused,
    /// Never connected, or never learnt what became of it.
    Unreachable,
    /// The keeper died under it: the status cannot be known.
    #[default]
    Lost,
}

impl Happened {
    /// The word of the wire and of JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Happened::Exited => "exited",
            Happened::Signaled => "signaled",
            Happened::TimedOut => "timed_out",
            Happened::Cancelled => "cancelled",
            Happened::NotStarted => "not_started",
            Happened::Refused => "refused",
            Happened::Unreachable => "unreachable",
            Happened::Lost => "lost",
        }
    }
}

/// How a job's tree was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kill {
    /// Every process was in a cgroup that was killed.
    Exact,
    /// The descendants were found by walking; one that hid may have escaped.
    BestEffort,
}

/// The outcome of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What happened.
    pub outcome: Happened,
    /// The exit status of the main process, or of `not_started`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended the main process, Linux's number of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel wrote a core file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub core_dumped: bool,
    /// How the tree was ended, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill: Option<Kill>,
    /// When the main process was started, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// A stable code where something other than the program decided: see PROTOCOL.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// A sentence for a person, with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Outcome {
    /// An outcome that something other than the program decided.
    pub fn failed(outcome: Happened, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            outcome,
            error: Some(code.into()),
            message: Some(message.into()),
            ..Self::default()
        }
    }

    /// The status that a program which stands for this job exits with.
    ///
    /// | outcome | status |
    /// | --- | --- |
    /// | exited | its status |
    /// | signaled | 128 + signal |
    /// | timed_out | 124 |
    /// | cancelled | 130, or 128 + signal sent |
    /// | not_started | 126, 127 or 125 |
    /// | refused, unreachable, lost | 255 |
    pub fn exit_status(&self) -> u8 {
        let low = |code: i32| code.to_le_bytes()[0];
        let signaled =
            |signal: Option<i32>| signal.map_or(130, |signal| low(128 + (signal & 0x7f)));
        match self.outcome {
            // A status that is missing is not a success.
            Happened::Exited => self.code.map_or(255, low),
            Happened::Signaled => self.signal.map_or(255, |_| signaled(self.signal)),
            Happened::TimedOut => 124,
            Happened::Cancelled => signaled(self.signal),
            Happened::NotStarted => match self.code {
                Some(126) => 126,
                Some(127) => 127,
                _ => 125,
            },
            Happened::Refused | Happened::Unreachable | Happened::Lost => 255,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_is_never_zero() {
        let every = [
            Happened::Exited,
            Happened::Signaled,
            Happened::TimedOut,
            Happened::Cancelled,
            Happened::NotStarted,
            Happened::Refused,
            Happened::Unreachable,
            Happened::Lost,
        ];
        for outcome in every {
            let bare = Outcome {
                outcome,
                ..Outcome::default()
            };
            assert_ne!(bare.exit_status(), 0, "{outcome:?}");
        }
        assert_ne!(Outcome::default().exit_status(), 0);
    }

    #[test]
    fn statuses_are_the_documented_ones() {
        let of = |outcome, code, signal| {
            Outcome {
                outcome,
                code,
                signal,
                ..Outcome::default()
            }
            .exit_status()
        };
        assert_eq!(of(Happened::Exited, Some(0), None), 0);
        assert_eq!(of(Happened::Exited, Some(255), None), 255);
        assert_eq!(of(Happened::Signaled, None, Some(9)), 137);
        assert_eq!(of(Happened::Signaled, None, Some(64)), 192);
        assert_eq!(of(Happened::TimedOut, None, Some(15)), 124);
        assert_eq!(of(Happened::Cancelled, None, None), 130);
        assert_eq!(of(Happened::Cancelled, None, Some(15)), 143);
        assert_eq!(of(Happened::NotStarted, Some(127), None), 127);
        assert_eq!(of(Happened::NotStarted, Some(0), None), 125);
        assert_eq!(of(Happened::Lost, Some(0), None), 255);
    }
}
