//! Writes to files behind the one who has the bytes, on a thread of its own: it hashes the next while
//! these are written.
//!
//! A fixed number of buffers goes there full and comes back empty. Of each file its bytes are written in order and
//! none behind one that failed, so what is there of it is a beginning at any time.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::io::Errno;

use super::super::buffer::{Buffer, PAGE_BYTES};

/// The size of a buffer.
pub(super) const BUFFER_BYTES: usize = 256 * 1024;
/// How many there are.
const BUFFERS: usize = 8;

struct Job {
    file: Arc<OwnedFd>,
    at: u64,
    buffer: Buffer,
    bytes: Range<usize>,
}

type Written = (Buffer, io::Result<()>);

/// The thread, and what is under way to it.
pub(super) struct Writer {
    jobs: Option<SyncSender<Job>>,
    written: Receiver<Written>,
    thread: Option<JoinHandle<()>>,
    empty: Vec<Buffer>,
    under_way: usize,
    failed: Option<io::Error>,
}

impl Writer {
    /// # Errors
    /// Where no thread can be started.
    pub(super) fn new() -> io::Result<Self> {
        let (jobs, queue) = sync_channel(BUFFERS);
        let (back, written) = sync_channel(BUFFERS);
        let thread = std::thread::Builder::new().name("writer".to_owned());
        let thread = thread.spawn(move || work(&queue, &back))?;
        Ok(Self {
            jobs: Some(jobs),
            written,
            thread: Some(thread),
            empty: Vec::new(),
            under_way: 0,
            failed: None,
        })
    }

    /// A buffer of [`BUFFER_BYTES`] and a page, once there is one.
    pub(super) fn buffer(&mut self) -> Buffer {
        if self.under_way == BUFFERS {
            self.take_back();
        }
        self.empty
            .pop()
            .unwrap_or_else(|| Buffer::new(PAGE_BYTES + BUFFER_BYTES))
    }

    /// Writes some bytes of a buffer behind what came before. Whether that went well, [`Self::settle`] says.
    pub(super) fn write(
        &mut self,
        file: &Arc<OwnedFd>,
        at: u64,
        buffer: Buffer,
        bytes: Range<usize>,
    ) {
        let file = Arc::clone(file);
        let job = Job {
            file,
            at,
            buffer,
            bytes,
        };
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => self.under_way += 1,
            _ => self.failed = Some(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// What went wrong first since it was asked last.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        while self.under_way > 0 {
            self.take_back();
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Whether something has failed already.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    fn take_back(&mut self) {
        match self.written.recv() {
            Ok((buffer, written)) => {
                self.under_way -= 1;
                self.empty.push(buffer);
                if let Err(error) = written {
                    self.failed.get_or_insert(error);
                }
            }
            Err(_) => {
                self.under_way = 0;
                self.failed = Some(io::ErrorKind::BrokenPipe.into());
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        // It has at most the buffers to write that there are.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(jobs: &Receiver<Job>, back: &SyncSender<Written>) {
    let mut failed: Option<Arc<OwnedFd>> = None;
    for Job {
        file,
        at,
        buffer,
        bytes,
    } in jobs
    {
        let mut written = Ok(());
        if !failed
            .as_ref()
            .is_some_and(|failed| Arc::ptr_eq(failed, &file))
        {
            written = write_at(file.as_fd(), buffer.get(bytes).unwrap_or_default(), at);
            failed = written.is_err().then_some(file);
        }
        if back.send((buffer, written)).is_err() {
            return;
        }
    }
}

/// Writes all of it at an offset.
///
/// # Errors
/// As pwrite(2).
pub(super) fn write_at(file: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(len) => {
                bytes = bytes.get(len..).unwrap_or_default();
                at += len as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
