//! Whether anybody is still at the other end. Without IO or clock: the caller
//! beats in even steps and says how much it has heard.

use std::time::Duration;

/// Beats in the time that a path may be silent.
const BEATS: u32 = 4;

/// What a beat asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Say something that must be answered.
    Ping,
    /// Nothing was heard for too long: the path is dead.
    Silent,
}

/// Counts beats without a sign of life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    heard: u64,
    missed: u32,
}

impl Pulse {
    /// How long there is between two beats, for a path that may be silent for `bound`.
    pub fn interval(bound: Duration) -> Duration {
        (bound / BEATS).max(Duration::from_millis(1))
    }

    /// One beat. `heard` is what has come so far, in bytes. A path is called
    /// silent after more than half of its bound, and before the whole is over.
    ///
    /// Beats are counted, not seconds: after a process or a machine was stopped
    /// there is one beat, and what came meanwhile is heard before the next.
    pub fn beat(&mut self, heard: u64) -> Beat {
        if heard != self.heard {
            self.heard = heard;
            self.missed = 0;
            return Beat::Ping;
        }
        self.missed = self.missed.saturating_add(1);
        if self.missed >= BEATS - 1 {
            Beat::Silent
        } else {
            Beat::Ping
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_a_sign_of_life() {
        let mut pulse = Pulse::default();
        for heard in 1..100 {
            assert_eq!(pulse.beat(heard), Beat::Ping);
        }
    }

    #[test]
    fn silence_is_noticed_within_the_bound_and_not_at_once() {
        let mut pulse = Pulse::default();
        assert_eq!(
            pulse.beat(10),
            Beat::Ping,
            "heard just before the beat, or just after the last"
        );
        assert_eq!([pulse.beat(10), pulse.beat(10)], [Beat::Ping; 2]);
        assert_eq!(
            pulse.beat(10),
            Beat::Silent,
            "three to four intervals of silence"
        );
        assert_eq!(pulse.beat(11), Beat::Ping);
    }
}
