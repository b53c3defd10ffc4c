//! The two ends that a gate holds of a job's pipes, and when something can be moved.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bowline_proto::limits::PAYLOAD_BYTES_MAX;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Sleep};

use super::input::Input;
use super::ring::{Layout, Ring};

/// Full reads in a row after which a pipe is made larger.
const FULL_READS_TO_GROW: u32 = 4;
/// What a pipe of output is grown to, in bytes: fewer wake-ups, and still within the processor's cache.
const OUTPUT_PIPE_BYTES: usize = 128 * 1024;
/// And one of input, whose pages lie in its memfd anyway: a smaller one was slower.
const INPUT_PIPE_BYTES: usize = 256 * 1024;
/// Acknowledgements that take so long are on a long way: 512 KiB in 1 ms are 500 MB/s.
const LAG_LONG: Duration = Duration::from_millis(1);
/// A ring is too small for the way where they took so long together, in a row; or where it was full for so long.
const LAG_SUM: Duration = Duration::from_millis(25);

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// There is nothing to move; the task is woken when there is.
    Nothing,
    /// Bytes moved, or it must be tried again.
    Some,
    /// The pipe is at its end.
    End,
}

/// The end of a pipe that a program writes to, and the ring that it is emptied into.
#[derive(Debug)]
pub(super) struct OutputPipe {
    pipe: AsyncFd<OwnedFd>,
    ring: Ring,
    lag: Lag,
    /// Until when the small ring may be full.
    full: Option<Pin<Box<Sleep>>>,
    full_reads: u32,
    /// Once the time for the pipe's end has passed: what was in it then.
    left: Option<u64>,
}

impl OutputPipe {
    /// # Errors
    /// As epoll_ctl(2), and where the memfd is no ring.
    pub(super) fn open(pipe: OwnedFd, memfd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            pipe: watched(pipe, Interest::READABLE)?,
            ring: Ring::open(memfd)?,
            lag: Lag::default(),
            full: None,
            full_reads: 0,
            left: None,
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.get_ref().as_fd()
    }

    /// The offset behind the last byte that is in the ring.
    pub(super) fn end(&self) -> u64 {
        self.ring.end()
    }

    /// The ring has no room. Makes it a larger one where it has had none for long, whoever is slow: a program is to be held up late.
    /// Gives where the stream is then.
    pub(super) fn starve(&mut self, cx: &mut Context<'_>, memfd: BorrowedFd<'_>) -> Option<Layout> {
        self.lag.starved = true;
        if self.ring.layout() != Layout::Small {
            return None;
        }
        let full = || Box::pin(tokio::time::sleep(LAG_SUM));
        let full = self.full.get_or_insert_with(full).as_mut().poll(cx);
        full.is_ready().then(|| self.grow_ring(memfd))
    }

    /// What is before `floor` nobody wants any more. Makes the ring a larger one where it is too small for the way
    /// to those who read; gives where the stream is then.
    pub(super) fn acknowledged(&mut self, memfd: BorrowedFd<'_>, floor: u64) -> Option<Layout> {
        let short = self.lag.end(floor, Instant::now) && self.ring.layout() == Layout::Small;
        short.then(|| self.grow_ring(memfd))
    }

    fn grow_ring(&mut self, memfd: BorrowedFd<'_>) -> Layout {
        self.full = None;
        if let Err(error) = self.ring.grow(memfd) {
            tracing::debug!(%error, "a stream stays in its small ring");
        }
        self.ring.layout()
    }

    /// Nothing is taken beyond what the pipe holds now.
    pub(super) fn seal(&mut self) {
        if self.left.is_none() {
            self.left = Some(rustix::io::ioctl_fionread(self.pipe.get_ref()).unwrap_or(0));
        }
    }

    /// One move from the pipe into the ring, of at most `room` bytes, which is more than 0.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        memfd: BorrowedFd<'_>,
        room: u64,
    ) -> Pumped {
        self.full = None;
        let Self {
            pipe, ring, left, ..
        } = self;
        let max = left.unwrap_or(u64::MAX).min(room);
        if max == 0 {
            return Pumped::End;
        }
        let moved = match left {
            // Readiness may not have been told yet for what FIONREAD counted.
            Some(_) => ring.fill(memfd, pipe.get_ref().as_fd(), max),
            None => match pipe.poll_read_ready(cx) {
                Poll::Pending => return Pumped::Nothing,
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(mut guard)) => {
                    match guard.try_io(|pipe| ring.fill(memfd, pipe.get_ref().as_fd(), max)) {
                        Ok(moved) => moved,
                        // Readiness was out of date: it is asked for again, and waited for.
                        Err(_) => return Pumped::Some,
                    }
                }
            },
        };
        match moved {
            Ok(0) => Pumped::End,
            Ok(len) => {
                if let Some(left) = left {
                    *left = left.saturating_sub(len);
                }
                self.lag.begin(self.ring.end(), Instant::now);
                self.grow(len);
                Pumped::Some
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Pumped::Some,
            // A pipe that fails to be read is at its end (EIO and its kind), and one that is
            // sealed and empty too.
            Err(_) => Pumped::End,
        }
    }

    /// Whether the pipe holds something, without taking it: `Some` then, and the task is woken
    /// for nothing else.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) -> Pumped {
        if let Some(left) = self.left {
            return if left == 0 { Pumped::End } else { Pumped::Some };
        }
        loop {
            let mut guard = match self.pipe.poll_read_ready(cx) {
                Poll::Pending => return Pumped::Nothing,
                Poll::Ready(Err(_)) => return Pumped::End,
                Poll::Ready(Ok(guard)) => guard,
            };
            let closed = guard.ready().is_read_closed();
            match rustix::io::ioctl_fionread(self.pipe.get_ref()) {
                Ok(1..) => return Pumped::Some,
                Ok(0) if !closed => guard.clear_ready(),
                Ok(0) | Err(_) => return Pumped::End,
            }
        }
    }

    /// A pipe that is full whenever it is read gets more space: fewer wake-ups.
    fn grow(&mut self, len: u64) {
        let full = u64::try_from(PAYLOAD_BYTES_MAX).is_ok_and(|full| len >= full);
        if full {
            self.full_reads = self.full_reads.saturating_add(1);
            if self.full_reads == FULL_READS_TO_GROW {
                grow(self.pipe.get_ref().as_fd(), OUTPUT_PIPE_BYTES);
            }
        }
    }
}

/// How long it takes until what came is acknowledged, by a sample at a time.
#[derive(Debug, Default)]
struct Lag {
    /// An offset, and when the bytes before it came.
    sample: Option<(u64, Instant)>,
    /// Of the samples since the last short one.
    sum: Duration,
    /// The ring had no room meanwhile.
    starved: bool,
}

impl Lag {
    /// Bytes came before `end`.
    fn begin(&mut self, end: u64, now: impl FnOnce() -> Instant) {
        self.sample.get_or_insert_with(|| (end, now()));
    }

    /// What is before `floor` is acknowledged. Says whether the ring is too small for the way to the readers.
    fn end(&mut self, floor: u64, now: impl FnOnce() -> Instant) -> bool {
        let Some((_, since)) = self.sample.take_if(|(end, _)| *end <= floor) else {
            return false;
        };
        let lag = now() - since;
        if lag < LAG_LONG {
            *self = Self::default();
            return false;
        }
        self.sum += lag;
        self.starved && self.sum >= LAG_SUM
    }
}

/// The end of a pipe that a program reads from, and the memfd that it is filled from.
#[derive(Debug)]
pub(super) struct InputPipe {
    pipe: AsyncFd<OwnedFd>,
    input: Input,
    large: bool,
}

impl InputPipe {
    /// # Errors
    /// As epoll_ctl(2) and lseek(2).
    pub(super) fn open(pipe: OwnedFd, memfd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            pipe: watched(pipe, Interest::WRITABLE)?,
            input: Input::open(memfd)?,
            large: false,
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.get_ref().as_fd()
    }

    /// What has reached the pipe.
    pub(super) fn position(&self) -> u64 {
        self.input.position()
    }

    /// One move of what is before `end` into the pipe.
    pub(super) fn pump(&mut self, cx: &mut Context<'_>, memfd: BorrowedFd<'_>, end: u64) -> Pumped {
        let waits = end.saturating_sub(self.input.position());
        if waits == 0 {
            return Pumped::Nothing;
        }
        if !self.large && u64::try_from(PAYLOAD_BYTES_MAX).is_ok_and(|much| waits >= much) {
            self.large = true;
            grow(self.pipe.get_ref().as_fd(), INPUT_PIPE_BYTES);
        }
        let Self { pipe, input, .. } = self;
        match pipe.poll_write_ready(cx) {
            Poll::Pending => Pumped::Nothing,
            Poll::Ready(Err(_)) => Pumped::End,
            Poll::Ready(Ok(mut guard)) => {
                match guard.try_io(|pipe| input.drain(memfd, pipe.get_ref().as_fd(), end)) {
                    Err(_) => Pumped::Some,
                    Ok(Ok(_)) => Pumped::Some,
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => Pumped::Some,
                    // The program has closed its stdin.
                    Ok(Err(_)) => Pumped::End,
                }
            }
        }
    }
}

pub(super) fn watched(pipe: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "what its unsafe successor asks for, an OwnedFd has by its type: one descriptor, open until it is dropped"
    )]
    AsyncFd::with_interest(pipe, interest)
}

fn grow(pipe: BorrowedFd<'_>, bytes: usize) {
    // Over the user's limit it stays as it is.
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples that took so many ms each; whether the last of them asked for a larger ring.
    fn asks(lags: &[u64], starved: bool) -> bool {
        let mut lag = Lag::default();
        let mut asked = false;
        let mut now = Instant::now();
        for (&ms, end) in lags.iter().zip(1..) {
            lag.begin(end, || now);
            // What comes later does not begin a sample of its own.
            lag.begin(end + 1, || unreachable!());
            lag.starved |= starved;
            assert!(!lag.end(end - 1, || unreachable!()), "not acknowledged yet");
            now += Duration::from_millis(ms);
            asked = lag.end(end, || now);
        }
        asked
    }

    #[test]
    fn a_long_way_that_fills_the_ring_asks_for_a_larger_one() {
        assert!(asks(&[5; 5], true));
        assert!(asks(&[200], true));
        assert!(asks(&[0, 0, 0, 24, 0, 5, 5, 5, 5, 5], true));
        assert!(!asks(&[5; 4], true), "not yet");
        assert!(!asks(&[200; 5], false), "it never was full");
        assert!(!asks(&[24, 0, 24], true), "a reader that was slow once");
    }
}
