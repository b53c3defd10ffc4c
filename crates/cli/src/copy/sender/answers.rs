//! What the receiver has answered and the sender has not acted on yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};

use bowline_proto::copy::{CHUNK_HASH_BYTES, CHUNKS_MAX, Hash, Message, VERSION};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;

use super::super::WorkerError;
use super::super::link::Input;

/// Answers that are passed on together, at most.
const ANSWERS_AT_ONCE: usize = 256;
/// Answers that wait: more than a receiver of this version can have under way.
const ANSWERS_MAX: usize = 1 << 20;

/// One answer, without borrowed bytes.
#[derive(Debug)]
pub(super) enum Answer {
    Skip { first: u64, count: u64 },
    Want(Want),
    Chunks(Vec<(u32, [u8; CHUNK_HASH_BYTES])>),
    ChunksEnd(Option<Hash>),
    Done { id: u64 },
    Finished,
}

/// A file that is wanted, and what of it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) id: u64,
    pub(super) prefix: Option<(u64, Hash)>,
    pub(super) same: Option<Hash>,
    pub(super) chunks: Option<u8>,
}

/// A queue between the thread that takes in answers and the one that acts on them.
///
/// It is bounded by what may be answered: entries that are under way, and twice the chunks of a file.
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
    chunks: u64,
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
                    chunks,
                } => Answer::Want(Want {
                    id,
                    prefix,
                    same,
                    chunks,
                }),
                Message::Basis(chunks) => Answer::Chunks(chunks.iter().collect()),
                Message::BasisEnd(root) => Answer::ChunksEnd(root),
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
            if let Answer::Chunks(chunks) = &answer {
                state.chunks += chunks.len() as u64;
            }
            state.queue.push_back(answer);
        }
        if state.chunks > 2 * CHUNKS_MAX || state.queue.len() > ANSWERS_MAX {
            return Err(WorkerError::Rules("more answers than there can be"));
        }
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The next answer; waits for it if `wait`.
    ///
    /// # Errors
    /// What ended the stream, once everything before it was taken.
    pub(super) fn next(&self, wait: bool) -> Result<Option<Answer>, WorkerError> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.queue.pop_front() {
                if let Answer::Chunks(chunks) = &answer {
                    state.chunks -= chunks.len() as u64;
                }
                return Ok(Some(answer));
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
