//! How often a source may ask: a bucket of tokens for each, in a table of fixed size.
//!
//! Sources can be forged at no cost, so the table never grows: it has sets of
//! few places, and in a full set the source that was heard longest ago makes
//! room. Which set a source is in, outsiders cannot tell.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::admission::Source;
use super::limits::{Rate, SOURCES_MAX, SOURCES_PER_SET};

/// The buckets of many sources.
#[derive(Debug)]
pub(super) struct Rates {
    rate: Rate,
    hasher: RandomState,
    sets: Vec<[Option<Bucket>; SOURCES_PER_SET]>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    source: Source,
    /// Tokens in millionths, as of `heard`.
    tokens: u64,
    heard: Duration,
}

const TOKEN: u64 = 1_000_000;

impl Rates {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            hasher: RandomState::new(),
            sets: vec![[None; SOURCES_PER_SET]; SOURCES_MAX / SOURCES_PER_SET],
        }
    }

    /// Whether a source may ask once more. `now` counts from any fixed moment.
    pub(super) fn permits(&mut self, source: Source, now: Duration) -> bool {
        let full = u64::from(self.rate.burst) * TOKEN;
        let set = self.hasher.hash_one(source) as usize % self.sets.len();
        let Some(set) = self.sets.get_mut(set) else {
            return false;
        };
        let same = |bucket: &Option<Bucket>| bucket.is_some_and(|it| it.source == source);
        let at = set.iter().position(same).unwrap_or_else(|| {
            let heard = |at: &usize| set[*at].map(|bucket| bucket.heard);
            // A free place is `None`, the least of all.
            (0..SOURCES_PER_SET).min_by_key(heard).unwrap_or_default()
        });
        let before = set[at].filter(|bucket| bucket.source == source);
        let mut tokens = before.map_or(full, |bucket| {
            let waited = now.saturating_sub(bucket.heard).as_micros();
            let waited = u64::try_from(waited).unwrap_or(u64::MAX);
            // A second is a million microseconds, a token a million millionths.
            let gained = waited.saturating_mul(u64::from(self.rate.per_second));
            bucket.tokens.saturating_add(gained).min(full)
        });
        let permitted = tokens >= TOKEN;
        if permitted {
            tokens -= TOKEN;
        }
        set[at] = Some(Bucket {
            source,
            tokens,
            heard: now,
        });
        permitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 3,
    };

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut rates = Rates::new(RATE);
        let mut at = |ms| rates.permits(Source::User(1), Duration::from_millis(ms));
        assert_eq!([at(0), at(0), at(0), at(0)], [true, true, true, false]);
        assert_eq!([at(99), at(101), at(101)], [false, true, false]);
        // A long pause gives a burst and no more.
        assert_eq!(
            [at(9_000), at(9_000), at(9_000), at(9_000)],
            [true, true, true, false]
        );
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let mut rates = Rates::new(RATE);
        let mut at = |s| rates.permits(Source::User(1), Duration::from_secs(s));
        assert_eq!([at(9), at(9), at(9), at(5)], [true, true, true, false]);
    }

    #[test]
    fn forged_sources_take_no_memory_and_silence_nobody_for_long() {
        let mut rates = Rates::new(RATE);
        let sets = rates.sets.len();
        let now = Duration::from_secs(1);
        for forged in 0..4 * SOURCES_MAX as u32 {
            assert!(rates.permits(Source::V4(forged.into()), now));
        }
        assert_eq!(rates.sets.len(), sets);
        assert!(rates.permits(Source::User(7), now + Duration::from_millis(1)));
    }

    #[test]
    fn rates_of_nothing_permit_nothing() {
        let mut rates = Rates::new(Rate {
            per_second: u32::MAX,
            burst: 0,
        });
        assert!(!rates.permits(Source::Unnamed, Duration::MAX));
    }
}
