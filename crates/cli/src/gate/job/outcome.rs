//! What a job came to: from the keeper's word to the outcome of the wire.

use std::io;

use bowline_proto::outcome::{Happened, Kill, Outcome};

use crate::ipc::{Cause, Exited, NotStarted, Tree};

/// What the keeper said when the main process was reaped.
#[derive(Debug)]
pub(in crate::gate) struct Reaped {
    exited: Exited,
    pub(super) cause: Option<Cause>,
    tree: Tree,
    unix_ms: u64,
}

impl Reaped {
    pub(in crate::gate) fn new(
        exited: Exited,
        cause: Option<Cause>,
        tree: Tree,
        unix_ms: u64,
    ) -> Self {
        Self {
            exited,
            cause,
            tree,
            unix_ms,
        }
    }

    /// What became of the job, by what the keeper saw.
    pub(in crate::gate) fn outcome(&self, started_ms: Option<u64>) -> Outcome {
        let (happened, code, signal, core_dumped) = match self.exited {
            Exited::Lost => (Happened::Lost, None, None, false),
            Exited::Code(code) => (made(self.cause, Happened::Exited), Some(code), None, false),
            Exited::Signal {
                signal,
                core_dumped,
            } => (
                made(self.cause, Happened::Signaled),
                None,
                Some(signal),
                core_dumped,
            ),
        };
        let signal = match self.cause {
            // What was asked for says more than the SIGKILL that may have come of it.
            Some(Cause::Cancelled(asked)) => Some(asked),
            _ => signal,
        };
        Outcome {
            outcome: happened,
            code,
            signal,
            core_dumped,
            kill: match self.tree {
                Tree::LeftAlone => None,
                Tree::Exact => Some(Kill::Exact),
                Tree::BestEffort => Some(Kill::BestEffort),
            },
            started_ms,
            ended_ms: Some(self.unix_ms),
            error: self.cause.and_then(error_of).map(str::to_owned),
            message: None,
        }
    }
}

/// What a job that was made to end has come to.
fn made(cause: Option<Cause>, otherwise: Happened) -> Happened {
    match cause {
        None => otherwise,
        Some(Cause::TimedOut) => Happened::TimedOut,
        Some(Cause::Cancelled(_) | Cause::Disconnected | Cause::Draining) => Happened::Cancelled,
    }
}

fn error_of(cause: Cause) -> Option<&'static str> {
    match cause {
        Cause::TimedOut | Cause::Cancelled(_) => None,
        Cause::Disconnected => Some("disconnected"),
        Cause::Draining => Some("draining"),
    }
}

/// The outcome of a job that could not be started.
pub(in crate::gate) fn not_started(why: &NotStarted) -> Outcome {
    let (status, code, message) = match why {
        NotStarted::NotFound => (127, "not_found", "the program was not found".to_owned()),
        NotStarted::NotExecutable { errno } => (
            126,
            "not_executable",
            format!("the program cannot be executed: {}", said(*errno)),
        ),
        NotStarted::Directory { errno } => (
            125,
            "bad_directory",
            format!("the working directory cannot be used: {}", said(*errno)),
        ),
        NotStarted::User { errno } => (
            125,
            "bad_user",
            format!("the account cannot be used: {}", said(*errno)),
        ),
        NotStarted::Resources { errno } => (
            125,
            "out_of_resources",
            format!("the server cannot start another program: {}", said(*errno)),
        ),
        NotStarted::TooLong => (
            126,
            "too_long",
            "the arguments and the environment are too long together".to_owned(),
        ),
    };
    Outcome {
        code: Some(status),
        ..Outcome::failed(Happened::NotStarted, code, message)
    }
}

/// strerror(3), without the number that the standard library adds.
fn said(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_keeper_saw_is_the_outcome() {
        let of = |exited, cause| Reaped::new(exited, cause, Tree::Exact, 7).outcome(Some(3));
        let killed = Exited::Signal {
            signal: libc::SIGKILL,
            core_dumped: false,
        };
        assert_eq!(of(Exited::Code(4), None).outcome, Happened::Exited);
        assert_eq!(of(killed, None).outcome, Happened::Signaled);
        // Its time was up, whoever was there to see it.
        let timed_out = of(killed, Some(Cause::TimedOut));
        assert_eq!(timed_out.outcome, Happened::TimedOut);
        assert_eq!(timed_out.error, None);
        let dropped = of(killed, Some(Cause::Disconnected));
        assert_eq!(dropped.outcome, Happened::Cancelled);
        assert_eq!(dropped.error.as_deref(), Some("disconnected"));
        let asked = of(killed, Some(Cause::Cancelled(libc::SIGTERM)));
        assert_eq!(asked.signal, Some(libc::SIGTERM));
        // A status that nobody saw is none, whatever was asked for.
        for cause in [None, Some(Cause::TimedOut), Some(Cause::Draining)] {
            let lost = of(Exited::Lost, cause);
            assert_eq!((lost.outcome, lost.code), (Happened::Lost, None));
        }
        assert_eq!(asked.kill, Some(Kill::Exact));
        assert_eq!((asked.started_ms, asked.ended_ms), (Some(3), Some(7)));
    }
}
