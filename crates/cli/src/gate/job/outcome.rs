//! What a job came to: from the keeper's word to the outcome of the wire.

use std::io;

use bowline_proto::outcome::{Happened, Kill, Outcome};

use crate::ipc::{Cause, End, Exited, NotStarted, Tree};

/// Why the server itself ended a job, where it did: a code and a sentence.
pub(super) type Note = (&'static str, &'static str);

/// The outcome of a job that ended, once its output is read.
pub(super) fn outcome(end: &End, started_ms: Option<u64>, note: Option<Note>) -> Outcome {
    // Streams that the server lost make a job one that it ended, however fast the program was.
    let lost_streams = note.map(|_| Cause::Cancelled(libc::SIGKILL));
    let cause = end.cause.or(lost_streams);
    let (happened, code, signal, core_dumped) = match (cause, end.exited) {
        (_, Exited::Lost) => (Happened::Lost, None, None, false),
        (cause, Exited::Code(code)) => (made(cause, Happened::Exited), Some(code), None, false),
        (
            cause,
            Exited::Signal {
                signal,
                core_dumped,
            },
        ) => (
            made(cause, Happened::Signaled),
            None,
            Some(signal),
            core_dumped,
        ),
    };
    let signal = match end.cause {
        // What was asked for says more than the SIGKILL that may have come of it.
        Some(Cause::Cancelled(asked)) => Some(asked),
        _ => signal,
    };
    Outcome {
        outcome: happened,
        code,
        signal,
        core_dumped,
        kill: match end.tree {
            Tree::LeftAlone => None,
            Tree::Exact => Some(Kill::Exact),
            Tree::BestEffort => Some(Kill::BestEffort),
        },
        started_ms,
        ended_ms: Some(end.unix_ms),
        error: note
            .map(|(code, _)| code)
            .or_else(|| end.cause.and_then(error_of))
            .map(str::to_owned),
        message: note.map(|(_, message)| message.to_owned()),
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
pub(super) fn not_started(why: &NotStarted) -> Outcome {
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

    fn end(exited: Exited, cause: Option<Cause>) -> End {
        End {
            exited,
            cause,
            tree: Tree::Exact,
            unix_ms: 7,
        }
    }

    #[test]
    fn what_the_keeper_saw_is_the_outcome() {
        let of = |exited, cause| outcome(&end(exited, cause), Some(3), None);
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
        // What the server lost says more than how fast the program was.
        let lost = outcome(&end(Exited::Code(0), None), Some(3), Some(("code", "why")));
        assert_eq!(
            (lost.outcome, lost.error.as_deref()),
            (Happened::Cancelled, Some("code"))
        );
        assert_eq!(asked.kill, Some(Kill::Exact));
        assert_eq!((asked.started_ms, asked.ended_ms), (Some(3), Some(7)));
    }
}
