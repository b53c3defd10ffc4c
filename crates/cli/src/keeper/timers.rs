//! What is to be done later, and when. One entry for each thing; setting it again moves it.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The timers of a loop, named by `T`.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    order: BTreeSet<(Instant, T)>,
    at: HashMap<T, Instant>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            order: BTreeSet::new(),
            at: HashMap::new(),
        }
    }
}

impl<T: Copy + Ord + Hash> Timers<T> {
    /// Sets or moves a timer.
    pub(crate) fn set(&mut self, timer: T, at: Instant) {
        self.cancel(timer);
        self.at.insert(timer, at);
        self.order.insert((at, timer));
    }

    /// Sets a timer that is not set already.
    pub(crate) fn set_once(&mut self, timer: T, at: Instant) {
        if !self.at.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    /// When a timer is due, if it is set.
    pub(crate) fn at(&self, timer: T) -> Option<Instant> {
        self.at.get(&timer).copied()
    }

    /// Removes a timer.
    pub(crate) fn cancel(&mut self, timer: T) {
        if let Some(at) = self.at.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    /// How long until the next timer.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let (at, _) = self.order.first()?;
        Some(at.saturating_duration_since(now))
    }

    /// Takes the next timer whose time has come.
    pub(crate) fn due(&mut self, now: Instant) -> Option<T> {
        let &(at, timer) = self.order.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_order_and_once() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.set('b', after(20));
        timers.set('a', after(10));
        timers.set('c', after(5));
        timers.set('c', after(30));
        timers.set_once('a', after(1));
        timers.set('x', after(7));
        timers.cancel('x');
        assert_eq!((timers.at('c'), timers.at('x')), (Some(after(30)), None));
        assert_eq!(timers.wait(start), Some(Duration::from_millis(10)));
        assert_eq!(timers.due(after(9)), None);
        assert_eq!(timers.due(after(25)), Some('a'));
        assert_eq!(timers.due(after(25)), Some('b'));
        assert_eq!(timers.due(after(25)), None);
        assert_eq!(timers.wait(after(40)), Some(Duration::ZERO));
        assert_eq!(timers.due(after(30)), Some('c'));
        assert_eq!(timers.wait(start), None);
    }
}
