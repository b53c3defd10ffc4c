//! Where output goes: the client's own stdout and stderr.
//!
//! These descriptors are shared with whoever started us, so they are never set
//! to non-blocking. A small piece is written at once where poll(2) says that it
//! will not block; everything else goes through a thread of the stream's own,
//! so that a stopped reader of one stream stops neither the other nor signals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags};
use tokio::sync::Notify;

/// A pipe that is writable takes at least this without blocking (PIPE_BUF, pipe(7)).
const AT_ONCE_BYTES_MAX: usize = 4096;

/// What the writing threads of a client tell its loop.
#[derive(Debug, Default)]
pub(super) struct Written {
    news: Notify,
}

impl Written {
    /// Waits until a thread has written something, or failed.
    pub(super) async fn changed(&self) {
        self.news.notified().await;
    }
}

/// One piece on its way: what is written, and how much of the job's stream that is.
#[derive(Debug)]
struct Piece {
    text: Bytes,
    counts: u64,
}

#[derive(Debug, Default)]
struct Progress {
    counts: AtomicU64,
    errno: AtomicI32,
}

#[derive(Debug)]
struct Writer {
    pieces: mpsc::Sender<Piece>,
    thread: JoinHandle<()>,
}

/// One of the client's own streams.
#[derive(Debug)]
pub(super) struct Sink {
    fd: BorrowedFd<'static>,
    written: Arc<Written>,
    progress: Arc<Progress>,
    writer: Option<Writer>,
    /// Counted at once, without the thread.
    direct: u64,
    put: u64,
    taken: u64,
    failed: Option<io::Error>,
}

impl Sink {
    pub(super) fn new(fd: BorrowedFd<'static>, written: Arc<Written>) -> Self {
        Self {
            fd,
            written,
            progress: Arc::default(),
            writer: None,
            direct: 0,
            put: 0,
            taken: 0,
            failed: None,
        }
    }

    /// Puts a piece that stands for `counts` bytes of the job's stream. What is
    /// waiting is bounded by the stream's window, which only [`Self::arrived`] opens.
    pub(super) fn put(&mut self, text: Bytes, counts: u64) {
        self.put = self.put.saturating_add(counts);
        if self.failed.is_some() {
            return;
        }
        if self.writer.is_none() && text.len() <= AT_ONCE_BYTES_MAX && self.is_writable() {
            match write_all(self.fd, &text) {
                Ok(()) => self.direct = self.direct.saturating_add(counts),
                Err(error) => self.failed = Some(error),
            }
            return;
        }
        if self.writer.is_none() {
            match self.start() {
                Ok(writer) => self.writer = Some(writer),
                Err(error) => {
                    self.failed = Some(error);
                    return;
                }
            }
        }
        if let Some(writer) = &self.writer {
            // A thread that is gone has said why in `progress`.
            let _ = writer.pieces.send(Piece { text, counts });
        }
    }

    /// How many more bytes of the job's stream have arrived at their destination.
    pub(super) fn arrived(&mut self) -> u64 {
        let total = self
            .direct
            .saturating_add(self.progress.counts.load(Ordering::Acquire));
        let more = total.saturating_sub(self.taken);
        self.taken = total;
        more
    }

    /// Whether everything that was put has arrived.
    pub(super) fn is_empty(&self) -> bool {
        self.failed.is_some() || self.taken >= self.put
    }

    /// Why nothing more can be written, once that is so. Told once.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        let errno = self.progress.errno.swap(0, Ordering::AcqRel);
        if errno != 0 {
            self.failed = Some(io::Error::from_raw_os_error(errno));
        }
        let failed = self.failed.as_ref()?;
        let told = failed.raw_os_error().map(io::Error::from_raw_os_error);
        Some(told.unwrap_or_else(|| io::Error::from(failed.kind())))
    }

    /// Ends the thread, where everything has been written.
    pub(super) fn close(&mut self) {
        if let Some(Writer { pieces, thread }) = self.writer.take() {
            drop(pieces);
            let _ = thread.join();
        }
    }

    fn is_writable(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let now = rustix::event::Timespec::default();
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready == 1)
    }

    fn start(&self) -> io::Result<Writer> {
        let (pieces, receiver) = mpsc::channel::<Piece>();
        let (fd, progress, written) = (self.fd, self.progress.clone(), self.written.clone());
        let thread = std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                for piece in receiver {
                    if let Err(error) = write_all(fd, &piece.text) {
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        progress.errno.store(errno, Ordering::Release);
                        written.news.notify_one();
                        return;
                    }
                    progress.counts.fetch_add(piece.counts, Ordering::AcqRel);
                    written.news.notify_one();
                }
            })?;
        Ok(Writer { pieces, thread })
    }
}

/// write(2) until all is written. A descriptor that somebody else has set to
/// non-blocking is waited for.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let fd = fd.as_fd();
                let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
                let _ = rustix::event::poll(&mut fds, None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    fn leaked(fd: OwnedFd) -> BorrowedFd<'static> {
        let fd: &'static OwnedFd = Box::leak(Box::new(fd));
        fd.as_fd()
    }

    #[tokio::test]
    async fn a_reader_that_stops_does_not_stop_the_putter_and_nothing_is_lost() {
        let (reader, writer) = std::io::pipe().unwrap();
        let written = Arc::new(Written::default());
        let mut sink = Sink::new(leaked(writer.into()), written.clone());
        let piece = Bytes::from(vec![b'x'; 100_000]);
        for _ in 0..10 {
            sink.put(piece.clone(), 100_000);
        }
        assert!(!sink.is_empty(), "a pipe holds less than that");
        let reading = std::thread::spawn(move || {
            let mut all = vec![0; 1_000_000];
            let mut reader = reader;
            reader.read_exact(&mut all).unwrap();
            all
        });
        let mut arrived = 0;
        while !sink.is_empty() {
            written.changed().await;
            arrived += sink.arrived();
        }
        sink.close();
        assert_eq!(arrived, 1_000_000);
        assert!(reading.join().unwrap().iter().all(|byte| *byte == b'x'));
    }

    #[tokio::test]
    async fn a_closed_reader_is_an_error_in_both_ways_of_writing() {
        for len in [10, 1_000_000] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let written = Arc::new(Written::default());
            let mut sink = Sink::new(leaked(writer.into()), written.clone());
            sink.put(Bytes::from(vec![b'x'; len]), len as u64);
            let error = loop {
                if let Some(error) = sink.failure() {
                    break error;
                }
                written.changed().await;
            };
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
