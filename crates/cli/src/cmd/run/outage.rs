//! What a person is told while there is no line, and when to try to get one again.

use std::time::{Duration, Instant};

use bowline::client::{ClientError, Failure, Reconnect};

use crate::stderr::tell;
use crate::{duration, exit};

/// The outages of one client, one after another.
#[derive(Debug)]
pub(in crate::cmd) struct Outage {
    host: String,
    quiet: bool,
    grace: Duration,
    /// From when all times are told.
    begun: Instant,
    reconnect: Option<Reconnect>,
    down: bool,
    told: bool,
}

impl Outage {
    pub(in crate::cmd) fn new(host: &str, quiet: bool, grace: Duration) -> Self {
        Self {
            host: host.to_owned(),
            quiet,
            grace,
            begun: Instant::now(),
            reconnect: None,
            down: false,
            told: false,
        }
    }

    /// Whether a line was lost and none has taken its place.
    pub(in crate::cmd) fn is_down(&self) -> bool {
        self.down
    }

    /// How soon after one attempt to connect the next may follow, while nobody answers.
    pub(in crate::cmd) fn hurry(&self) -> Option<Duration> {
        let reconnect = self.reconnect.as_ref().filter(|_| self.down)?;
        Some(reconnect.spacing(self.begun.elapsed(), random()))
    }

    /// For how long a server is tried to be reached.
    pub(in crate::cmd) fn grace(&self) -> Duration {
        self.grace
    }

    /// The line was lost. Gives the pause before the first attempt to get another.
    pub(in crate::cmd) fn begins(&mut self) -> Duration {
        let now = self.begun.elapsed();
        self.down = true;
        self.told = false;
        match &mut self.reconnect {
            Some(reconnect) => reconnect.lost(now, random()),
            None => {
                self.reconnect = Some(Reconnect::new(now, self.grace));
                Duration::ZERO
            }
        }
    }

    /// Says what is the matter, once.
    pub(in crate::cmd) fn tell(&mut self, error: &ClientError, raw: bool) {
        if !std::mem::replace(&mut self.told, true) {
            let (why, code) = (exit::chain(error), error.code());
            let grace = duration::spoken(self.grace);
            self.say(
                raw,
                &format!(
                    "the connection is lost ({why}); connecting again for up to {grace} [{code}]"
                ),
            );
        }
    }

    /// An attempt came to nothing. Gives the pause before the next, or `None` where the grace is over.
    pub(in crate::cmd) fn goes_on(&mut self, failure: Failure) -> Option<Duration> {
        let now = self.begun.elapsed();
        let reconnect = self.reconnect.as_mut()?;
        reconnect.failed(now, failure, random())
    }

    /// The job is followed on another line.
    pub(in crate::cmd) fn is_over(&mut self, raw: bool) {
        if !std::mem::take(&mut self.down) {
            return;
        }
        let now = self.begun.elapsed();
        let Some(reconnect) = &mut self.reconnect else {
            return;
        };
        let time = duration::spoken(reconnect.outage(now));
        reconnect.connected(now);
        if self.told {
            self.say(raw, &format!("connected again after {time}"));
        }
    }

    fn say(&self, raw: bool, text: &str) {
        if self.quiet {
            return;
        }
        // The program over there may have left the cursor anywhere.
        let [before, behind] = if raw { ["\r\n", "\r"] } else { ["", ""] };
        tell!("{before}bowline: {}: {text}{behind}", self.host);
    }
}

/// For jitter: where there is none, clients come back together.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
