//! What this program tells people: words on stderr.
//!
//! The one way to say something there. `eprintln!` panics where stderr is a full disk or a reader
//! that has gone, and the exit status would be that of the panic instead of the job's. It also
//! waits where a pipe is full, and with it everything else that the program has to do. So what
//! stderr does not take at once is left to a thread, as far as there is room for it; what is too
//! much is counted, and told of in its place. Whoever does not want to hear loses the words and
//! nothing else.
//!
//! A server has no such thread: the keeper must have one alone, and whoever reads a server's log
//! has a whole pipe to be late by. What is not taken at once is counted there.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::FileType;

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

/// Has no thread made for words that stderr does not take at once: they are left out.
pub(crate) fn without_thread() {
    WORDS.alone.store(true, Ordering::Relaxed);
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
    /// Nothing is written by a thread.
    alone: AtomicBool,
    waiting: Mutex<Waiting>,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Without a thread only the rest of a line that was begun.
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
            alone: AtomicBool::new(false),
            waiting: Mutex::default(),
            written: Condvar::new(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&'static self, words: &[u8]) {
        let mut waiting = self.waiting();
        if self.alone.load(Ordering::Relaxed) {
            return waiting.say_alone(self.fd, words);
        }
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
        let mut waiting = self.waiting();
        if self.alone.load(Ordering::Relaxed) {
            return waiting.say_alone(self.fd, &[]);
        }
        let _ = self
            .written
            .wait_timeout_while(waiting, time, |waiting| waiting.busy);
    }
}

impl Waiting {
    /// Everything that waits. `None` where that is nothing, and the thread ends.
    fn take(&mut self) -> Option<Vec<u8>> {
        let mut words = std::mem::take(&mut self.words);
        words.extend_from_slice(self.note().as_bytes());
        self.left_out = 0;
        self.busy = !words.is_empty();
        self.busy.then_some(words)
    }

    /// What is said in the place of what was left out.
    fn note(&self) -> String {
        match self.left_out {
            0 => String::new(),
            count => format!("bowline: {count} messages are left out here [words_left_out]\n"),
        }
    }

    /// Says what there is room for now, behind the rest of what was begun and behind a note of what
    /// was left out; or leaves the words out too. No words at all are for that rest and that note.
    fn say_alone(&mut self, fd: BorrowedFd<'_>, words: &[u8]) {
        let begun = self.words.len();
        let mut text = std::mem::take(&mut self.words);
        text.extend_from_slice(self.note().as_bytes());
        text.extend_from_slice(words);
        // A file takes everything, and says EAGAIN where the disk would have to be waited for.
        let done = match is_file(fd) {
            true => descriptor::write_all(fd, &text).map(|()| text.len()),
            false => descriptor::write_at_once(fd, &text),
        };
        let done = done.unwrap_or(0);
        if done > begun {
            self.left_out = 0;
        } else {
            text.truncate(begun);
            self.left_out += u64::from(!words.is_empty());
        }
        text.drain(..done);
        self.words = text;
    }
}

fn is_file(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
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

    fn line(number: u32) -> String {
        format!("{number:05} {}\n", "x".repeat(93))
    }

    /// The next line that is heard: one that was said, or how many are left out.
    fn hear(reader: &mut impl io::BufRead) -> Result<String, u32> {
        let mut heard = String::new();
        reader.read_line(&mut heard).unwrap();
        match heard.strip_suffix(" messages are left out here [words_left_out]\n") {
            None => Ok(heard),
            Some(note) => Err(note.strip_prefix("bowline: ").unwrap().parse().unwrap()),
        }
    }

    #[test]
    fn a_full_pipe_stops_nobody_and_what_is_left_out_is_counted() {
        let (reader, writer) = std::io::pipe().unwrap();
        let words = words(writer.into());
        // More than a pipe and what may wait hold together, by far.
        for number in 0..10_000 {
            words.say(line(number).as_bytes());
        }
        words.finish(Duration::ZERO);
        // In their order, with notes in the places of those that are left out.
        let (mut next, mut notes) = (0, 0);
        let mut reader = BufReader::new(reader);
        while next < 10_000 {
            match hear(&mut reader) {
                Ok(heard) => {
                    assert_eq!(heard, line(next));
                    next += 1;
                }
                Err(count) => {
                    next += count;
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
    fn without_a_thread_what_is_not_taken_at_once_is_counted() {
        let (reader, writer) = std::io::pipe().unwrap();
        let words = words(writer.into());
        words.alone.store(true, Ordering::Relaxed);
        // Longer than what a pipe takes whole or not at all, and no divisor of what it holds.
        let long = |number: u32| format!("{number} {}\n", "x".repeat(5000));
        for number in 0..100 {
            words.say(long(number).as_bytes());
        }
        let mut reader = BufReader::with_capacity(4096, reader);
        let mut next = 0;
        while next < 5 {
            assert_eq!(hear(&mut reader), Ok(long(next)));
            next += 1;
        }
        // There is room again, for the rest of a line that was begun, a note and a line.
        words.say(long(100).as_bytes());
        let left_out = loop {
            match hear(&mut reader) {
                Ok(heard) => assert_eq!(heard, long(next)),
                Err(count) => break count,
            }
            next += 1;
        };
        assert_eq!(next + left_out, 100);
        assert_eq!(hear(&mut reader), Ok(long(100)));
        // What was left out at last is told of at the end.
        for number in 0..100 {
            words.say(long(number).as_bytes());
        }
        let mut next = 0;
        while next < 5 {
            assert_eq!(hear(&mut reader), Ok(long(next)));
            next += 1;
        }
        words.finish(Duration::MAX);
        let left_out = loop {
            match hear(&mut reader) {
                Ok(heard) => assert_eq!(heard, long(next)),
                Err(count) => break count,
            }
            next += 1;
        };
        assert_eq!(next + left_out, 100);
        let waiting = words.waiting();
        assert!(waiting.words.is_empty() && waiting.left_out == 0 && !waiting.busy);
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
