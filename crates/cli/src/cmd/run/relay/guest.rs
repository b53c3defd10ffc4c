//! What is different for one who looks in at a job that somebody else started: whoever
//! leaves lets the job be, and never says what became of it without having been told.

use std::io;

use bowline::client::ClientError;
use bowline_proto::frame::Stream;
use bowline_proto::message::Exit;
use bowline_proto::outcome::{Happened, Outcome};
use rustix::termios::isatty;

use super::super::signals::Signals;
use super::super::wiring::Wiring;
use super::Relay;
use crate::stderr::tell;

impl Relay {
    /// The signals that are the job's, or to be prepared for. Whoever only looks has none.
    ///
    /// # Errors
    /// As sigaction(2).
    pub(in crate::cmd::run) fn signals(&self) -> io::Result<Signals> {
        let Wiring {
            guest, stdin, pty, ..
        } = self.wiring;
        match guest {
            true if !stdin => Ok(Signals::none()),
            true => Signals::new(isatty(rustix::stdio::stdin())),
            false => Signals::new(pty),
        }
    }

    /// Whether the job has a terminal, and it is to be like our own.
    pub(super) fn shows_size(&self) -> bool {
        self.wiring.pty && (self.wiring.stdin || !self.wiring.guest)
    }

    /// A stream goes on at an offset, and whoever is to know learns what is left out.
    pub(super) fn go_on_at(
        &mut self,
        stream: Stream,
        offset: u64,
        gaps: bool,
        told: bool,
    ) -> Result<(), ClientError> {
        let raw = self.is_raw();
        let told_here = told && !self.wiring.quiet;
        let Some(output) = self.output(stream) else {
            return Ok(());
        };
        let left_out = output.go_on_at(offset, gaps, told)?;
        if told_here && left_out > 0 {
            let end = if raw { "\r" } else { "" };
            let (stream, from) = (stream.as_str(), offset - left_out);
            tell!(
                "bowline: {left_out} bytes of {stream} were dropped and are not kept any more, those from {from} to {offset} [output_dropped]{end}"
            );
        }
        Ok(())
    }

    /// What one leaves with who only looked in: what became of the job is not known.
    pub(super) fn left(&self, code: &str, message: &str) -> Exit {
        let [stdout, stderr] = self.received();
        Exit {
            outcome: Outcome::failed(Happened::Unreachable, code, message.to_owned()),
            stdout,
            stderr,
            ..Exit::default()
        }
    }

    /// One who looked in leaves when nobody reads any more what the job writes.
    pub(super) fn unread(&mut self) -> Option<Exit> {
        let gone = self.stdout.sink.failure().is_some() || self.stderr.sink.failure().is_some();
        let message = "nobody reads the output here any more; the job runs on";
        (self.wiring.guest && gone).then(|| self.left("output_closed", message))
    }

    /// Whether there is as much as was wanted, where that was not everything.
    pub(super) fn is_enough(&self) -> bool {
        let [no_stdout, no_stderr] = self.wiring.unwanted;
        self.started
            && self.wiring.until.is_some()
            && (no_stdout || self.stdout.is_enough())
            && (no_stderr || self.stderr.is_enough())
    }
}
