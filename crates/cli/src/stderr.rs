//! What this program tells people: words on stderr.
//!
//! The one way to say something there. `eprintln!` panics where stderr is a full disk or a reader
//! that has gone, and the exit status would be that of the panic instead of the job's. It also
//! waits where a pipe is full, and with it everything else that the program has to do. So what
//! stderr does not take at once is left to a thread, as far as there is room for it; what is too
//! much is counted, and told of in its place. Whoever does not want to hear loses the words and
//! nothing else.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::descriptor;

/// What waits for a stderr that is full; more is left out.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// How long the end of the program waits for it.
const END_TIME: Duration = Duration::from_secs(1);

/// Writes a line to stderr, as `eprintln!` does, where it can be written.
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::stderr::line(::std::format_args!($($text)*))
    };
}
pub(crate) use tell;

static WORDS: LazyLock<Words> = LazyLock::new(|| Words::new(rustix::stdio::stderr()));

/// In one write, so that lines of several processes do not run into each other.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    WORDS.say(format!("{text}\n").as_bytes());
}

/// The same without a newline, as at a terminal.
pub(crate) fn say(words: &[u8]) {
    WORDS.say(words);
}

/// Waits for what has been said, but not for long: to be called at the end of the program.
pub(crate) fn finish() {
    WORDS.finish(END_TIME);
}

/// [`say`], for whoever wants a writer. Each write is said as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer;

impl io::Write for Writer {
    fn write(&mut self, words: &[u8]) -> io::Result<usize> {
        say(words);
        Ok(words.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is said to one descriptor.
#[derive(Debug)]
struct Words {
    fd: BorrowedFd<'static>,
    waiting: Mutex<Waiting>,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    words: Vec<u8>,
    /// How often there was no room for more. What is said then comes behind that.
    left_out: u64,
    /// A thread is writing.
    busy: bool,
}

impl Words {
    fn new(fd: BorrowedFd<'static>) -> Self {
        Self {
            fd,
            waiting: Mutex::default(),
            written: Condvar::new(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&'static self, words: &[u8]) {
        let mut waiting = self.waiting();
        let done = match waiting.busy {
            true => 0,
            // Nobody hears the rest where this cannot be written.
            false => descriptor::write_at_once(self.fd, words).unwrap_or(words.len()),
        };
        let rest = words.get(done..).unwrap_or_default();
        if rest.is_empty() {
            return;
        }
        let len = waiting.words.len() + rest.len();
        if waiting.left_out > 0 || (len > WAITING_BYTES_MAX && waiting.busy) {
            waiting.left_out += 1;
            return;
        }
        waiting.words.extend_from_slice(rest);
        if !waiting.busy {
            let thread = std::thread::Builder::new().name("words".to_owned());
            waiting.busy = thread.spawn(|| self.write()).is_ok();
            if !waiting.busy {
                waiting.words.clear();
            }
        }
    }

    /// Writes until nothing waits any more.
    fn write(&self) {
        // The lock is not held meanwhile.
        let take = || self.waiting().take();
        while let Some(words) = take() {
            // Whoever has gone does not hear what comes behind it either.
            let _ = descriptor::write_all(self.fd, &words);
        }
        self.written.notify_all();
    }

    fn finish(&self, time: Duration) {
        let waiting = self.waiting();
        let _ = self
            .written
            .wait_timeout_while(waiting, time, |waiting| waiting.busy);
    }
}

impl Waiting {
    /// Everything that waits. `None` where that is nothing, and the thread ends.
    fn take(&mut self) -> Option<Vec<u8>> {
        let mut words = std::mem::take(&mut self.words);
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            let said = format!("bowline: {left_out} messages are left out here [words_left_out]\n");
            words.extend_from_slice(said.as_bytes());
        }
        self.busy = !words.is_empty();
        self.busy.then_some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::os::fd::{AsFd as _, OwnedFd};

    fn words(fd: OwnedFd) -> &'static Words {
        let fd: &'static OwnedFd = Box::leak(Box::new(fd));
        Box::leak(Box::new(Words::new(fd.as_fd())))
    }

    #[test]
    fn a_full_pipe_stops_nobody_and_what_is_left_out_is_counted() {
        let (reader, writer) = std::io::pipe().unwrap();
        let words = words(writer.into());
        let line = |number: u32| format!("{number:05} {}\n", "x".repeat(93));
        // More than a pipe and what may wait hold together, by far.
        for number in 0..10_000 {
            words.say(line(number).as_bytes());
        }
        words.finish(Duration::ZERO);
        // In their order, with notes in the places of those that are left out.
        let (mut next, mut notes) = (0, 0);
        let mut reader = BufReader::new(reader);
        while next < 10_000 {
            let mut heard = String::new();
            reader.read_line(&mut heard).unwrap();
            match heard.strip_suffix(" messages are left out here [words_left_out]\n") {
                None => {
                    assert_eq!(heard, line(next));
                    next += 1;
                }
                Some(note) => {
                    next += note
                        .strip_prefix("bowline: ")
                        .unwrap()
                        .parse::<u32>()
                        .unwrap();
                    notes += 1;
                }
            }
        }
        assert!(next == 10_000 && notes > 0);
        // And all is well again.
        words.finish(Duration::MAX);
        words.say(b"more\n");
        let mut heard = String::new();
        reader.read_line(&mut heard).unwrap();
        assert_eq!(heard, "more\n");
    }

    #[test]
    fn where_nobody_reads_nothing_waits() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let words = words(writer.into());
        for _ in 0..10_000 {
            words.say(b"a line of words that nobody hears\n");
        }
        words.finish(Duration::MAX);
        assert_eq!(words.waiting().words.len(), 0);
    }
}
