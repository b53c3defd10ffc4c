//! Whether the other end of a connection is still there: pings where nothing is heard, and an
//! error where that goes on for longer than the user wants to wait.

use std::time::Duration;

use bowline::client::{Beat, ClientError, Connection, Happening, Pulse};
use tokio::time::{Interval, MissedTickBehavior};

/// The watch over one connection, from its making on.
#[derive(Debug)]
pub(super) struct Keepalive {
    silence: Duration,
    pulse: Pulse,
    beats: Interval,
    pings: u64,
}

impl Keepalive {
    /// `silence` is how long nothing at all may be heard.
    pub(super) fn new(silence: Duration) -> Self {
        let every = Pulse::interval(silence);
        let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            silence,
            pulse: Pulse::default(),
            beats,
            pings: 0,
        }
    }

    /// What the server says next.
    ///
    /// # Errors
    /// [`ClientError`]; also where nothing at all was heard for too long.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(
        &mut self,
        connection: &mut Connection,
    ) -> Result<Happening, ClientError> {
        loop {
            tokio::select! {
                biased;
                happening = connection.next() => return happening,
                _ = self.beats.tick() => {}
            }
            match self.pulse.beat(connection.heard()) {
                Beat::Ping => _ = self.ping(connection),
                Beat::Silent => return Err(ClientError::Silent(self.silence)),
            }
        }
    }

    /// Asks for an answer behind everything that was said before; gives its number.
    pub(super) fn ping(&mut self, connection: &mut Connection) -> u64 {
        self.pings += 1;
        connection.ping(self.pings);
        self.pings
    }
}
