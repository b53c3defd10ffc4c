//! The signals that a client forwards to its job.

use std::io;

use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

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

/// The signals that this process ignores, a bit each, as /proc/self/status tells (proc(5)).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
