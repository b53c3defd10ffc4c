//! The signals that a client forwards to its job, and those on their way.

use std::fs::File;
use std::io::{self, Read as _};
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::line::Line;

/// Those that DESIGN names: what a terminal sends, and what people send by hand.
const FORWARDED: [i32; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// What else ends a process that does not expect it. At a raw terminal it is caught, so that
/// the modes come back first. What tells of a bug of our own is not: nothing is to be trusted then.
const ENDING: [i32; 8] = [
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];
/// A stop at a raw terminal is to be prepared for, and what a shell did meanwhile undone.
const STOPPING: [i32; 2] = [libc::SIGTSTP, libc::SIGCONT];

/// Whether a signal ends a client whose job has a terminal, as with ssh.
pub(super) fn ends(signal: i32) -> bool {
    matches!(signal, libc::SIGTERM | libc::SIGHUP) || ENDING.contains(&signal)
}

/// Signals as they come. From its making on, they no longer end this process.
#[derive(Debug)]
pub(super) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// # Errors
    /// As sigaction(2).
    pub(super) fn new(terminal: bool) -> io::Result<Self> {
        let ignored = ignored();
        let mut signals = Vec::new();
        let more = terminal.then_some(ENDING.into_iter().chain(STOPPING));
        for number in FORWARDED.into_iter().chain(more.into_iter().flatten()) {
            // A signal that we were started to ignore (nohup) stays ignored.
            if ignored >> (number - 1) & 1 == 0 {
                signals.push((number, signal(SignalKind::from_raw(number))?));
            }
        }
        Ok(Self(signals))
    }

    /// None at all: each does to this process what it does to any.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// The next signal.
    ///
    /// # Cancel safety
    /// No signal is lost.
    pub(super) async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(cx).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Signals that the job is to get: kept while there is no line, and until the server has them for
/// certain.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    waiting: Vec<i32>,
    /// With the number of the answer that confirms them.
    sent: Vec<(u64, i32)>,
}

impl Forwarding {
    /// One more. One that waits already is the same one, as with signal(7).
    pub(super) fn add(&mut self, signal: i32) {
        if !self.waiting.contains(&signal) {
            self.waiting.push(signal);
        }
    }

    /// Sends those that wait.
    pub(super) fn send(&mut self, line: &mut Line) {
        for signal in self.waiting.drain(..) {
            self.sent.push((line.signal(signal), signal));
        }
    }

    /// The server has answered what was asked behind them.
    pub(super) fn confirmed(&mut self, answer: u64) {
        self.sent.retain(|(number, _)| *number > answer);
    }

    /// The line broke. What was meant to end the program or to stop what it does is sent again:
    /// twice is better than never. Of the others nobody knows what twice would mean.
    pub(super) fn line_lost(&mut self) {
        let again = std::mem::take(&mut self.sent).into_iter();
        let again = again.map(|(_, signal)| signal).filter(|signal| {
            matches!(
                *signal,
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT
            )
        });
        let newer = std::mem::take(&mut self.waiting);
        again.chain(newer).for_each(|signal| self.add(signal));
    }
}

/// The signals that this process ignores, a bit each, as /proc/self/status tells (proc(5)).
fn ignored() -> u64 {
    // Its size is not known before; each further read has the kernel write it anew.
    let mut status = String::with_capacity(4096);
    if let Ok(mut file) = File::open("/proc/self/status") {
        let _ = file.read_to_string(&mut status);
    }
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
