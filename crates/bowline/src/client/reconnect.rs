//! When to try to reach a server again, and when to give up. Without IO: time
//! and randomness are arguments.
//!
//! ```text
//!            lost              failed, pause, failed …           connected
//! connected ──────► trying at once ──────────────────► trying ──────────────► connected
//!                                                        │ grace is over
//!                                                        └──► given up
//! ```

use std::time::Duration;

/// The longest pause while an outage is young. With the three round trips of a new
/// connection it bounds what a cut costs its user beyond the time that the path was
/// really down: 100 ms.
const PAUSE_YOUNG_MAX: Duration = Duration::from_millis(80);
/// So long a person is likely to wait. A thousand clients of a server that is down make
/// some 16,000 packets of 60 bytes a second meanwhile, which its kernel, or nobody, answers.
const YOUNG: Duration = Duration::from_secs(300);
/// The longest pause at all.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The pause after a server's first "later"; it doubles with each.
const PAUSE_BUSY: Duration = Duration::from_millis(100);
/// What part of an outage a pause may add to it once it is no longer young.
const PART_OF_OUTAGE: u32 = 3750;
/// A line that lasted no longer than this was no line: the outage before it goes on.
const STEADY: Duration = Duration::from_secs(2);

const _: () = assert!(YOUNG.as_millis() == PAUSE_YOUNG_MAX.as_millis() * PART_OF_OUTAGE as u128);

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody answered: trying is cheap for everybody.
    Unanswered,
    /// The server, or what carries the connection to it, said "later".
    Busy,
}

/// The attempts of one client to get back to its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconnect {
    grace: Duration,
    lost_at: Duration,
    connected_at: Option<Duration>,
    busy: u32,
    hasty: u32,
}

impl Reconnect {
    /// The line was lost at `now`, and is given up `grace` after that. All times
    /// are told from the same moment. The first attempt is made at once.
    pub fn new(now: Duration, grace: Duration) -> Self {
        Self {
            grace,
            lost_at: now,
            connected_at: None,
            busy: 0,
            hasty: 0,
        }
    }

    /// The line stands again.
    pub fn connected(&mut self, now: Duration) {
        self.connected_at = Some(now);
    }

    /// The line was lost again. Gives the pause before the first attempt: none,
    /// unless lines keep breaking as soon as they stand.
    pub fn lost(&mut self, now: Duration, random: u64) -> Duration {
        let steady = self
            .connected_at
            .is_none_or(|at| now.saturating_sub(at) > STEADY);
        self.lost_at = now;
        self.connected_at = None;
        if steady {
            self.busy = 0;
            self.hasty = 0;
            return Duration::ZERO;
        }
        self.hasty = self.hasty.saturating_add(1);
        match self.hasty {
            1 => Duration::ZERO,
            hasty => jitter(doubled(PAUSE_BUSY, hasty - 2), random),
        }
    }

    /// An attempt failed. Gives the pause before the next, or `None` where the
    /// grace is over.
    pub fn failed(&mut self, now: Duration, failure: Failure, random: u64) -> Option<Duration> {
        let outage = self.outage(now);
        let left = self.grace.checked_sub(outage)?;
        if left.is_zero() {
            return None;
        }
        let pause = match failure {
            Failure::Unanswered => self.spacing(now, random),
            Failure::Busy => {
                self.busy = self.busy.saturating_add(1);
                jitter(doubled(PAUSE_BUSY, self.busy - 1), random)
            }
        };
        // The last attempt is made when the grace ends, not before.
        Some(pause.min(left))
    }

    /// From one attempt to the next while nobody answers: at least half of what it is at
    /// most, for the sake of those who are asked, and otherwise by chance, so that clients
    /// that lost their server together do not ask together.
    pub fn spacing(&self, now: Duration, random: u64) -> Duration {
        let most = self.outage(now) / PART_OF_OUTAGE;
        let half = most.clamp(PAUSE_YOUNG_MAX, PAUSE_MAX) / 2;
        half + jitter(half, random)
    }

    /// How long the line has been down.
    pub fn outage(&self, now: Duration) -> Duration {
        now.saturating_sub(self.lost_at)
    }
}

fn doubled(pause: Duration, times: u32) -> Duration {
    pause.saturating_mul(1 << times.min(16)).min(PAUSE_MAX)
}

/// Full jitter: anything from nothing to `most`, so that clients that lost their
/// server together do not come back together.
fn jitter(most: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random % nanos.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn young_outages_cost_little_and_old_ones_do_not_hammer() {
        let reconnect = Reconnect::new(ms(7), ms(1_000_000_000));
        // The outage, and the shortest and longest pause in it.
        for (outage, min, max) in [
            (0, 40, 80),
            (20_000, 40, 80),
            (300_000, 40, 80),
            (600_000, 80, 160),
            (3_600_000, 480, 960),
            (100_000_000, 2_500, 5_000),
        ] {
            let pauses = |random| {
                let mut reconnect = reconnect.clone();
                let now = ms(7 + outage);
                assert_eq!(
                    reconnect.spacing(now, random),
                    reconnect.failed(now, Failure::Unanswered, random).unwrap()
                );
                reconnect.spacing(now, random)
            };
            let half = u64::try_from(ms(max).as_nanos() / 2).unwrap();
            assert_eq!(pauses(0), ms(min), "after {outage} ms");
            assert_eq!(pauses(half), ms(max), "after {outage} ms");
            for random in (0..u64::MAX).step_by(1 << 54) {
                assert!((ms(min)..=ms(max)).contains(&pauses(random)));
            }
        }
    }

    #[test]
    fn a_busy_server_is_asked_ever_less_often() {
        let mut reconnect = Reconnect::new(ms(0), ms(3_600_000));
        let pauses: Vec<Duration> = [100, 200, 400, 800, 1600, 3200, 5000, 5000]
            .iter()
            .map(|most| {
                let random = u64::try_from(ms(*most).as_nanos()).unwrap();
                reconnect.failed(ms(1), Failure::Busy, random).unwrap()
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(ms));
    }

    #[test]
    fn lines_that_break_at_once_are_not_taken_up_at_full_speed() {
        let mut reconnect = Reconnect::new(ms(0), ms(1000));
        reconnect.connected(ms(10));
        assert_eq!(reconnect.lost(ms(20), u64::MAX), ms(0), "once is no rule");
        reconnect.connected(ms(30));
        assert!(reconnect.lost(ms(40), 77_000_000) > ms(0));
        reconnect.connected(ms(50));
        assert_eq!(
            reconnect.lost(ms(10_000), u64::MAX),
            ms(0),
            "that one was steady"
        );
    }

    #[test]
    fn the_end_of_the_grace_is_an_attempt_and_then_the_end() {
        let mut reconnect = Reconnect::new(ms(0), ms(100));
        let pause = reconnect.failed(ms(99), Failure::Busy, 90_000_000);
        assert_eq!(pause, Some(ms(1)));
        assert_eq!(reconnect.failed(ms(100), Failure::Busy, 0), None);
        assert_eq!(reconnect.failed(ms(101), Failure::Unanswered, 0), None);
    }

    proptest! {
        #[test]
        fn every_pause_is_within_its_bounds_and_the_grace(
            grace in 0..100_000_u64, after in 0..200_000_u64, random: u64, busy: bool,
        ) {
            let mut reconnect = Reconnect::new(ms(5), ms(grace));
            let failure = if busy { Failure::Busy } else { Failure::Unanswered };
            match reconnect.failed(ms(5 + after), failure, random) {
                None => prop_assert!(after >= grace),
                Some(pause) => {
                    prop_assert!(after < grace);
                    prop_assert!(pause <= PAUSE_MAX && pause <= ms(grace - after));
                }
            }
        }
    }
}
