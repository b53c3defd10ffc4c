//! What became of a job: the one truth that is told, recorded and exited with.
//!
//! Owns the words of the outcome and the exit status that follows from them. It must never make a success of
//! what it does not know. Outcomes enter from the keeper and the wire, and leave for both and for the exit status.

use serde::{Deserialize, Serialize};

use crate::limits::{NAME_BYTES_MAX, SENTENCE_BYTES_MAX};
use crate::wire::cut;

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

    /// The same with its texts cut to their limits, so that it fits a message.
    pub(crate) fn fitted(&self) -> Self {
        let cut_to = |text: &Option<String>, max| text.as_deref().map(|text| cut(text, max));
        Self {
            error: cut_to(&self.error, NAME_BYTES_MAX),
            message: cut_to(&self.message, SENTENCE_BYTES_MAX),
            ..self.clone()
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
        // A number that no kernel gives is not cut down to one that means something else:
        // 256 must not become the 0 of success.
        let status = |code: i32| u8::try_from(code).unwrap_or(255);
        let signaled = |signal: i32| match signal {
            1..=127 => status(128 + signal),
            _ => 255,
        };
        match self.outcome {
            // A status that is missing is not a success.
            Happened::Exited => self.code.map_or(255, status),
            Happened::Signaled => self.signal.map_or(255, signaled),
            Happened::TimedOut => 124,
            Happened::Cancelled => self.signal.map_or(130, signaled),
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

    #[test]
    fn numbers_that_no_kernel_gives_are_not_success() {
        for code in [256, -256, -1, 512, i32::MIN, i32::MAX] {
            for outcome in [Happened::Exited, Happened::Signaled, Happened::Cancelled] {
                let strange = Outcome {
                    outcome,
                    code: Some(code),
                    signal: Some(code),
                    ..Outcome::default()
                };
                assert_eq!(strange.exit_status(), 255, "{outcome:?} {code}");
            }
        }
    }
}
