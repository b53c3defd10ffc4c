//! How much of the disk all detached jobs that have not ended may have together.

use std::sync::Mutex;
use std::task::Waker;

use crate::gate::lock;

/// The account, in bytes.
#[derive(Debug)]
pub(in crate::gate) struct Account(Mutex<Books>);

#[derive(Debug)]
struct Books {
    max: u64,
    taken: u64,
    /// Who was refused, and waits.
    waiting: Vec<Waker>,
}

impl Account {
    pub(in crate::gate) fn new(max: u64) -> Self {
        Self(Mutex::new(Books {
            max,
            taken: 0,
            waiting: Vec::new(),
        }))
    }

    /// Takes `want` bytes, or what is left of them; where nothing is left, `waker` is woken when there is.
    pub(in crate::gate) fn take(&self, want: u64, waker: &Waker) -> u64 {
        let mut books = lock(&self.0);
        let taken = want.min(books.max.saturating_sub(books.taken));
        books.taken += taken;
        if taken == 0 && !books.waiting.iter().any(|other| other.will_wake(waker)) {
            books.waiting.push(waker.clone());
        }
        taken
    }

    /// Notes what is taken already, whatever the limit.
    pub(in crate::gate) fn note(&self, bytes: u64) {
        let mut books = lock(&self.0);
        books.taken = books.taken.saturating_add(bytes);
    }

    pub(in crate::gate) fn give_back(&self, bytes: u64) {
        let mut books = lock(&self.0);
        books.taken = books.taken.saturating_sub(bytes);
        let waiting = std::mem::take(&mut books.waiting);
        drop(books);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(in crate::gate) fn set_max(&self, max: u64) {
        lock(&self.0).max = max;
        self.give_back(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is() {
        let account = Account::new(100);
        let waker = Waker::noop();
        assert_eq!(account.take(70, waker), 70);
        assert_eq!(account.take(70, waker), 30);
        assert_eq!(account.take(70, waker), 0);
        account.give_back(50);
        assert_eq!(account.take(70, waker), 50);
        account.note(500);
        account.set_max(550);
        assert_eq!(account.take(1, waker), 0);
        account.give_back(500);
        assert_eq!(account.take(1000, waker), 450);
    }
}
