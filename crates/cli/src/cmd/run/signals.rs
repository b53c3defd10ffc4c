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

/// Signals as they come. From its making on, they no longer end this process.
#[derive(Debug)]
pub(super) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// # Errors
    /// As sigaction(2).
    pub(super) fn new(terminal: bool) -> io::Result<Self> {
        let ignored = ignored();
        let mut signals = Vec::new();
        // At a terminal in raw mode a stop is ours to prepare for.
        let stop = terminal.then_some(libc::SIGTSTP);
        for number in FORWARDED.into_iter().chain(stop) {
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
