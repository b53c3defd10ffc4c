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
    pub(super) fn new() -> io::Result<Self> {
        let mut signals = Vec::new();
        for number in FORWARDED {
            // A signal that we were started to ignore (nohup) stays ignored.
            if !is_ignored(number) {
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

/// Whether this process ignores a signal, as /proc/self/status tells.
fn is_ignored(number: i32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return false;
    };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}
