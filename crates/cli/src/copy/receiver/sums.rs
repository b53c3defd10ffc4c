//! Says the sums of blocks that are here, on a thread of its own: while it still reads, the sender compares
//! what was said, and the receiver puts together what was found.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bowline_proto::copy::{Layout, Message, SUM_BYTES, SUMS_PER_MESSAGE_MAX, Sum, Sums};

use super::super::WorkerError;
use super::super::buffer::Buffer;
use super::super::bytes::read_at;
use super::super::link::SharedOutput;
use super::basis::FILES_MAX;

/// Bytes that are read at once, and hashed while they are in the cache.
const READ_BYTES: usize = 256 * 1024;
/// Bytes whose sums are worth a write.
const BYTES_WORTH: usize = 8 * 1024 * 1024;

/// Files whose blocks were offered.
pub(super) struct Job {
    pub(super) files: Vec<Arc<OwnedFd>>,
    pub(super) layout: Layout,
    /// Set when nobody needs the rest.
    pub(super) needless: Arc<AtomicBool>,
}

/// The thread, from the first file on that is offered.
pub(super) struct Summing {
    output: SharedOutput,
    running: Option<(SyncSender<Job>, JoinHandle<()>)>,
}

impl Summing {
    pub(super) fn new(output: SharedOutput) -> Self {
        Self {
            output,
            running: None,
        }
    }

    /// Has the sums of some files said, behind those of the files before.
    ///
    /// # Errors
    /// [`WorkerError::Line`].
    pub(super) fn begin(&mut self, job: Job) -> Result<(), WorkerError> {
        if self.running.is_none() {
            let (jobs, queue) = sync_channel(2 * FILES_MAX);
            let output = self.output.clone();
            let thread = std::thread::Builder::new().name("sums".to_owned());
            let thread = thread.spawn(move || work(&queue, &output));
            self.running = Some((jobs, thread.map_err(WorkerError::Line)?));
        }
        let running = self.running.as_ref();
        let begun = running.is_some_and(|(jobs, _)| jobs.send(job).is_ok());
        let gone = || WorkerError::Line(io::ErrorKind::BrokenPipe.into());
        begun.then_some(()).ok_or_else(gone)
    }

    /// Waits for the last of them; the line is still there.
    pub(super) fn end(&mut self) {
        if let Some((jobs, thread)) = self.running.take() {
            drop(jobs);
            let _ = thread.join();
        }
    }
}

/// Ends with the jobs, or with the line.
fn work(jobs: &Receiver<Job>, output: &SharedOutput) {
    let mut buffer = Buffer::default();
    for job in jobs {
        let said = say(&job, output, &mut buffer);
        let ended = said.and_then(|()| output.send(&Message::BasisEnd));
        if ended.and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

/// What cannot be read any more has no sums, and nothing behind it.
fn say(job: &Job, output: &SharedOutput, buffer: &mut Buffer) -> Result<(), WorkerError> {
    let block = job.layout.block();
    if buffer.len() < READ_BYTES.max(block) {
        *buffer = Buffer::new(READ_BYTES.max(block));
    }
    let (mut packed, mut worth) = (Vec::new(), 0);
    let mut left = job.layout.count();
    for (file, size) in job.files.iter().zip(job.layout.sizes()) {
        let mut at = 0;
        while at < size && left > 0 {
            if job.needless.load(Ordering::Relaxed) {
                return Ok(());
            }
            let len = usize::try_from(size - at).unwrap_or(usize::MAX);
            let room = buffer.get_mut(..len.min(READ_BYTES.max(block)));
            let room = room.unwrap_or_default();
            if read_at(file.as_fd(), room, at).ok() != Some(room.len()) {
                return put(output, &mut packed);
            }
            for block in room
                .chunks(block)
                .take(usize::try_from(left).unwrap_or(usize::MAX))
            {
                Sums::push(&mut packed, &Sum::of(block));
                left -= 1;
            }
            at += room.len() as u64;
            worth += room.len();
            // A read has fewer blocks than a message may have.
            let full = packed.len() / SUM_BYTES > SUMS_PER_MESSAGE_MAX / 2;
            if worth >= BYTES_WORTH || full {
                put(output, &mut packed)?;
                worth = 0;
            }
        }
    }
    put(output, &mut packed)
}

const _: () =
    assert!(READ_BYTES >> bowline_proto::copy::BLOCK_LOG2_MIN <= SUMS_PER_MESSAGE_MAX / 2);

fn put(output: &SharedOutput, packed: &mut Vec<u8>) -> Result<(), WorkerError> {
    if packed.is_empty() {
        return Ok(());
    }
    output.send(&Message::Basis(Sums::of(packed)))?;
    packed.clear();
    output.flush()
}
