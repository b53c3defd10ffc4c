//! What the receiver has answered and the sender has not acted on yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};

use bowline_proto::copy::{BLOCKS_MAX, Hash, Layout, Matcher, Message, SUM_BYTES, Sums, VERSION};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;

use super::super::WorkerError;
use super::super::link::Input;

/// Answers that are passed on together, at most.
const ANSWERS_AT_ONCE: usize = 256;
/// Answers that wait: more than a receiver of this version can have under way.
const ANSWERS_MAX: usize = 1 << 20;

const TOO_MANY: WorkerError = WorkerError::Rules("more answers than there can be");

/// One answer, without borrowed bytes.
#[derive(Debug)]
pub(super) enum Answer {
    Skip { first: u64, count: u64 },
    Want(Want),
    Done { id: u64 },
    Finished,
}

/// A file that is wanted, and what of it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) id: u64,
    pub(super) prefix: Option<(u64, Hash)>,
    pub(super) same: Option<Hash>,
    pub(super) blocks: Option<Layout>,
}

/// A queue between the thread that takes in answers and the one that acts on them.
///
/// Sums of blocks have a queue of their own: they come while other answers do, file by file in the order in which the files
/// are wanted. Both are bounded by what may be answered: entries that are under way, and twice the blocks of a file.
#[derive(Debug)]
pub(super) struct Answers {
    state: Mutex<State>,
    changed: Condvar,
    /// An eventfd that is readable once nothing more comes.
    ended: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Answer>,
    /// Packed; `None` is the end of those of a file.
    sums: VecDeque<Option<Vec<u8>>>,
    /// How many they are.
    blocks: u64,
    /// Files whose sums have not all come.
    summed: usize,
    ended: Option<WorkerError>,
}

impl Answers {
    /// # Errors
    /// As eventfd(2).
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            ended: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    /// Takes in answers until the stream ends.
    pub(super) fn fill(&self, mut input: Input) {
        let ended = self.read(&mut input);
        let error = ended
            .err()
            .unwrap_or_else(|| WorkerError::Line(io::ErrorKind::UnexpectedEof.into()));
        self.lock().ended = Some(error);
        self.changed.notify_all();
        // An eventfd takes a first number always.
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
    }

    /// Waits until there is something to read; false where nobody wants it any more.
    ///
    /// # Errors
    /// As poll(2).
    pub(super) fn wait_for(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let fds = [self.ended.as_fd(), fd];
        loop {
            let mut both = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
            match rustix::event::poll(&mut both, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let [ended, _] = both.map(|fd| !fd.revents().is_empty());
            return Ok(!ended);
        }
    }

    fn read(&self, input: &mut Input) -> Result<(), WorkerError> {
        let (mut greeted, mut taken) = (false, Vec::new());
        loop {
            // Answers come in crowds; one by one each would wake the other thread.
            if input.would_wait()? || taken.len() == ANSWERS_AT_ONCE {
                self.pass_on(&mut taken)?;
            }
            let Some(message) = input.next()? else {
                return Ok(());
            };
            let answer = match message {
                Message::Basis(sums) => {
                    // They follow their `Want`.
                    self.pass_on(&mut taken)?;
                    self.sums(Some(sums.packed().to_vec()), sums.len() as u64)?;
                    continue;
                }
                Message::BasisEnd => {
                    self.pass_on(&mut taken)?;
                    self.sums(None, 0)?;
                    continue;
                }
                Message::Hello(VERSION) if !greeted => {
                    greeted = true;
                    continue;
                }
                Message::Hello(version) => return Err(WorkerError::Version(version)),
                _ if !greeted => return Err(WorkerError::Rules("no greeting")),
                Message::Skip { first, count } => Answer::Skip { first, count },
                Message::Done { id, .. } => Answer::Done { id },
                Message::Want {
                    id,
                    prefix,
                    same,
                    blocks,
                } => Answer::Want(Want {
                    id,
                    prefix,
                    same,
                    blocks,
                }),
                Message::Finished => Answer::Finished,
                // For the client, which sees everything that passes.
                Message::Removed { .. } | Message::Problem { .. } => continue,
                _ => return Err(WorkerError::Rules("a sender's message from a receiver")),
            };
            taken.push(answer);
        }
    }

    fn pass_on(&self, taken: &mut Vec<Answer>) -> Result<(), WorkerError> {
        if taken.is_empty() {
            return Ok(());
        }
        let mut state = self.lock();
        for answer in taken.drain(..) {
            let summed = matches!(&answer, Answer::Want(want) if want.blocks.is_some());
            state.summed += usize::from(summed);
            state.queue.push_back(answer);
        }
        if state.queue.len() > ANSWERS_MAX {
            return Err(TOO_MANY);
        }
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    fn sums(&self, sums: Option<Vec<u8>>, count: u64) -> Result<(), WorkerError> {
        let mut state = self.lock();
        if state.summed == 0 {
            return Err(WorkerError::Rules("blocks that nobody asked for"));
        }
        state.summed -= usize::from(sums.is_none());
        state.blocks += count;
        if state.blocks > 2 * BLOCKS_MAX || state.sums.len() > ANSWERS_MAX {
            return Err(TOO_MANY);
        }
        state.sums.push_back(sums);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The next answer; waits for it if `wait`.
    ///
    /// # Errors
    /// What ended the stream, once everything before it was taken.
    pub(super) fn next(&self, wait: bool) -> Result<Option<Answer>, WorkerError> {
        self.take(wait, |state| state.queue.pop_front())
    }

    fn take<T>(
        &self,
        wait: bool,
        mut from: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>, WorkerError> {
        let mut state = self.lock();
        loop {
            if let Some(taken) = from(&mut state) {
                return Ok(Some(taken));
            }
            if let Some(error) = state.ended.take() {
                return Err(error);
            }
            if !wait {
                return Ok(None);
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether [`Self::next`] would have to wait.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sums of the blocks of one file, as they come.
pub(super) struct FileSums<'a> {
    answers: &'a Answers,
    ended: bool,
}

impl<'a> FileSums<'a> {
    /// Of the file that is wanted; there are none where it was not to be compared by blocks.
    pub(super) fn of(want: &Want, answers: &'a Answers) -> Self {
        Self {
            answers,
            ended: want.blocks.is_none(),
        }
    }

    /// Gives the next to the matcher; waits for them if `wait`. False where there are none to give.
    ///
    /// # Errors
    /// As [`Answers::next`], and where there are more than there can be.
    pub(super) fn pass_to(
        &mut self,
        matcher: &mut Matcher,
        wait: bool,
    ) -> Result<bool, WorkerError> {
        match self.next(wait)? {
            Some(sums) => {
                let taken = matcher.extend(&Sums::of(&sums));
                taken.map_err(|_| TOO_MANY)?;
                Ok(true)
            }
            None => {
                if self.ended {
                    matcher.complete();
                }
                Ok(false)
            }
        }
    }

    /// Waits for those that still come, which nobody needs.
    ///
    /// # Errors
    /// As [`Answers::next`].
    pub(super) fn drain(&mut self) -> Result<(), WorkerError> {
        while !self.ended {
            self.next(true)?;
        }
        Ok(())
    }

    fn next(&mut self, wait: bool) -> Result<Option<Vec<u8>>, WorkerError> {
        if self.ended {
            return Ok(None);
        }
        let next = self.answers.take(wait, |state| {
            let sums = state.sums.pop_front()?;
            let count = sums.as_ref().map_or(0, |sums| sums.len() / SUM_BYTES);
            state.blocks -= count as u64;
            Some(sums)
        })?;
        self.ended = matches!(next, Some(None));
        Ok(next.flatten())
    }
}
