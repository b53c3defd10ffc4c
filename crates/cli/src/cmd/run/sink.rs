//! Where output goes: the client's own stdout and stderr.
//!
//! These descriptors are shared with whoever started us (`descriptor.rs`). A pipe or a
//! socket is written with RWF_NOWAIT, and waited for where it is full. For everything
//! else, such as a terminal, a small piece is written at once where poll(2) says that it
//! will not block, and the rest goes through a thread of the stream's own. A stopped
//! reader of one stream stops neither the other nor signals.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use bytes::{Buf as _, Bytes};
use rustix::fs::FileType;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use crate::descriptor::{self, AT_ONCE_BYTES_MAX, write_all};

/// Pieces in one call.
const PIECES_AT_ONCE: usize = 16;
/// A pipe that much goes through gets this capacity, in bytes: fewer switches
/// between us and its reader. Linux's default limit for users (pipe(7)).
const PIPE_BYTES: usize = 1024 * 1024;
/// So much makes it worth the while.
const MUCH_BYTES: u64 = 512 * 1024;

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
    /// Pieces that wait for the descriptor; used while it takes RWF_NOWAIT.
    queue: VecDeque<Piece>,
    nowait: bool,
    /// Tells when a full pipe takes more.
    room: Option<pipe::Sender>,
    enlarged: bool,
    writer: Option<Writer>,
    /// Counted at once, without the thread.
    direct: u64,
    put: u64,
    taken: u64,
    failed: Option<io::Error>,
}

impl Sink {
    pub(super) fn new(fd: BorrowedFd<'static>, written: Arc<Written>) -> Self {
        let kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        Self {
            fd,
            written,
            progress: Arc::default(),
            queue: VecDeque::new(),
            nowait: matches!(kind, Ok(FileType::Fifo | FileType::Socket)),
            room: None,
            enlarged: false,
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
        let piece = Piece { text, counts };
        if self.nowait {
            self.queue.push_back(piece);
            self.pump();
        } else {
            self.put_waiting(piece);
        }
    }

    /// Writes what waits, as much as the descriptor takes.
    pub(super) fn pump(&mut self) {
        while self.nowait && !self.queue.is_empty() && self.failed.is_none() {
            match self.write_some() {
                Ok(()) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    if self.wait_for_room().is_ok() {
                        return;
                    }
                    self.give_up_nowait();
                }
                // Not every kind of pipe and socket knows the flag.
                Err(error) if descriptor::is_unknown(error) => self.give_up_nowait(),
                Err(error) => self.failed = Some(error.into()),
            }
        }
    }

    /// Waits until a descriptor that was full takes more.
    ///
    /// # Cancel safety
    /// Nothing is written here.
    pub(super) async fn writable(&self) {
        let Some(room) = &self.room else {
            return std::future::pending().await;
        };
        while room.ready(Interest::WRITABLE).await.is_ok() && !self.is_writable() {
            // Clears the readiness, unless news of it came in between.
            let _ = room.try_io(|| match self.is_writable() {
                true => Ok(()),
                false => Err::<(), _>(io::ErrorKind::WouldBlock.into()),
            });
        }
    }

    /// Whether [`Self::writable`] is to be waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.nowait && !self.queue.is_empty() && self.failed.is_none()
    }

    fn write_some(&mut self) -> rustix::io::Result<()> {
        let mut parts = [IoSlice::new(&[]); PIECES_AT_ONCE];
        let mut count = 0;
        for (part, piece) in parts.iter_mut().zip(&self.queue) {
            *part = IoSlice::new(&piece.text);
            count += 1;
        }
        let parts = parts.get(..count).unwrap_or_default();
        let mut len = descriptor::write_nowait(self.fd, parts)?;
        while let Some(piece) = self.queue.front_mut() {
            if len < piece.text.len() {
                piece.text.advance(len);
                break;
            }
            len -= piece.text.len();
            self.direct = self.direct.saturating_add(piece.counts);
            self.queue.pop_front();
        }
        if !self.enlarged && self.direct > MUCH_BYTES {
            self.enlarged = true;
            // Over the user's limit, or where it is no pipe, it stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(self.fd, PIPE_BYTES);
        }
        Ok(())
    }

    fn wait_for_room(&mut self) -> io::Result<()> {
        if self.room.is_none() {
            let fd = self.fd.try_clone_to_owned()?;
            self.room = Some(pipe::Sender::from_owned_fd_unchecked(fd)?);
        }
        Ok(())
    }

    fn give_up_nowait(&mut self) {
        self.nowait = false;
        for piece in std::mem::take(&mut self.queue) {
            self.put_waiting(piece);
        }
    }

    fn put_waiting(&mut self, Piece { text, counts }: Piece) {
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
        descriptor::is_writable(self.fd)
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

/// Puts /dev/null in the place of one of our own streams. Stderr stays: it is
/// where we say what happened.
pub(super) fn close_own(fd: i32) {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null");
    let Ok(null) = null else { return };
    let _ = match fd {
        0 => rustix::stdio::dup2_stdin(null.as_fd()),
        1 => rustix::stdio::dup2_stdout(null.as_fd()),
        _ => Ok(()),
    };
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

    async fn news(sink: &mut Sink, written: &Written) {
        tokio::select! {
            () = written.changed() => {}
            () = sink.writable(), if sink.is_waiting() => sink.pump(),
        }
    }

    /// Both ways of writing: without blocking, and through a thread.
    fn sinks(fd: BorrowedFd<'static>, written: &Arc<Written>) -> [Sink; 2] {
        let mut threaded = Sink::new(fd, written.clone());
        assert!(threaded.nowait, "a pipe");
        threaded.nowait = false;
        [Sink::new(fd, written.clone()), threaded]
    }

    #[tokio::test]
    async fn a_reader_that_stops_does_not_stop_the_putter_and_nothing_is_lost() {
        for way in [0, 1] {
            let (reader, writer) = std::io::pipe().unwrap();
            let written = Arc::new(Written::default());
            let [nowait, threaded] = sinks(leaked(writer.into()), &written);
            let mut sink = if way == 0 { nowait } else { threaded };
            for number in 0..10 {
                sink.put(Bytes::from(vec![number; 100_000]), 100_000);
            }
            let mut arrived = sink.arrived();
            assert!(!sink.is_empty(), "a pipe holds less than that");
            let reading = std::thread::spawn(move || {
                let mut all = vec![0; 1_000_000];
                let mut reader = reader;
                reader.read_exact(&mut all).unwrap();
                all
            });
            while !sink.is_empty() {
                news(&mut sink, &written).await;
                arrived += sink.arrived();
            }
            sink.close();
            assert_eq!(arrived, 1_000_000);
            let all = reading.join().unwrap();
            let in_order = all
                .chunks(100_000)
                .zip(0..)
                .all(|(piece, number)| piece.iter().all(|byte| *byte == number));
            assert!(in_order);
        }
    }

    #[tokio::test]
    async fn a_closed_reader_is_an_error_in_every_way_of_writing() {
        for len in [10, 1_000_000] {
            for way in [0, 1] {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                let written = Arc::new(Written::default());
                let [nowait, threaded] = sinks(leaked(writer.into()), &written);
                let mut sink = if way == 0 { nowait } else { threaded };
                sink.put(Bytes::from(vec![b'x'; len]), len as u64);
                let error = loop {
                    if let Some(error) = sink.failure() {
                        break error;
                    }
                    news(&mut sink, &written).await;
                };
                assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            }
        }
    }
}
