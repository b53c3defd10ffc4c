//! The time of day, as the journal, the record and the wire write it, and the
//! time that every process of this machine counts alike.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 on a machine whose clock is before that.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}

/// An instant, in milliseconds of the kernel's monotonic clock: another program
/// understands it as long as the machine runs.
pub(crate) fn monotonic_ms(at: Instant) -> u64 {
    let now = Instant::now();
    let (ahead, behind) = (
        at.saturating_duration_since(now),
        now.saturating_duration_since(at),
    );
    let time = (monotonic() + ahead).saturating_sub(behind);
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The instant that [`monotonic_ms`] wrote; one that has passed is now.
pub(crate) fn monotonic_instant(ms: u64) -> Option<Instant> {
    let ahead = Duration::from_millis(ms).saturating_sub(monotonic());
    Instant::now().checked_add(ahead)
}

fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_the_same_in_another_program() {
        let at = Instant::now() + Duration::from_secs(60);
        let again = monotonic_instant(monotonic_ms(at)).unwrap();
        // Not to the microsecond: time goes by between two looks at the clock.
        assert!(again > Instant::now() && again < at + Duration::from_secs(30));
        assert!(monotonic_instant(0).unwrap() <= Instant::now());
    }
}
