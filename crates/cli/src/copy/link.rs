//! Messages over a pair of byte streams: buffers, and who watches.
//!
//! The sender of a message decides nothing about when it travels: an [`Output`] keeps it until
//! there is enough for a write or nobody has anything more to say.

use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bowline_proto::copy::{
    DATA_BYTES_MAX, HEAD_BYTES, Message, PAYLOAD_BYTES_MAX, decode, encode, head,
};

use super::WorkerError;
use super::buffer::{Buffer, PAGE_BYTES};
use crate::descriptor;

/// Bytes of messages that are written at once.
const OUTPUT_BYTES: usize = DATA_BYTES_MAX + 4096;
/// Room for the longest message and what comes behind it.
const INPUT_BYTES: usize = HEAD_BYTES + PAYLOAD_BYTES_MAX + DATA_BYTES_MAX + PAGE_BYTES;
/// Buffers on their way through a [`pipe`].
const BUFFERS_UNDER_WAY: usize = 4;

/// Sees every message that passes a worker of this process.
pub(crate) type Tap = Arc<dyn Fn(&Message<'_>) + Send + Sync>;

/// An empty buffer of an [`Output`].
pub(crate) fn output_buffer() -> Buffer {
    Buffer::before_page(OUTPUT_BYTES, HEAD_BYTES)
}

/// Where full buffers go.
pub(crate) trait Sink: Send {
    /// Takes the first `len` bytes, and leaves a buffer of the same length.
    ///
    /// # Errors
    /// Where nobody takes them any more.
    fn put(&mut self, buffer: &mut Buffer, len: usize) -> io::Result<()>;
}

impl Sink for OwnedFd {
    fn put(&mut self, buffer: &mut Buffer, len: usize) -> io::Result<()> {
        descriptor::write_all(self.as_fd(), buffer.get(..len).unwrap_or_default())
    }
}

/// Sends messages.
pub(crate) struct Output {
    sink: Box<dyn Sink>,
    /// The first data in it begins at a page.
    buffer: Buffer,
    filled: usize,
    scratch: Vec<u8>,
    tap: Option<Tap>,
}

impl Output {
    pub(crate) fn new(sink: Box<dyn Sink>, tap: Option<Tap>) -> Self {
        Self {
            sink,
            buffer: output_buffer(),
            filled: 0,
            scratch: Vec::new(),
            tap,
        }
    }

    /// Puts a message behind those that wait.
    ///
    /// # Errors
    /// [`WorkerError::Line`].
    pub(crate) fn send(&mut self, message: &Message<'_>) -> Result<(), WorkerError> {
        if let Some(tap) = &self.tap {
            tap(message);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        encode(message, &mut scratch);
        let put = self.put(&scratch);
        self.scratch = scratch;
        put
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), WorkerError> {
        while !bytes.is_empty() {
            if self.filled == self.buffer.len() {
                self.flush()?;
            }
            let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
            let len = room.len().min(bytes.len());
            let (now, later) = bytes.split_at(len);
            room.get_mut(..len).unwrap_or_default().copy_from_slice(now);
            self.filled += len;
            bytes = later;
        }
        Ok(())
    }

    /// Sends what `fill` writes as file data, at most `max` bytes; gives how many it wrote.
    /// It sees the bytes in place, so that a file is read where it is sent from.
    ///
    /// # Errors
    /// The outer one as [`Self::send`]; the inner one is `fill`'s, and nothing was sent.
    pub(crate) fn data<E>(
        &mut self,
        max: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Result<usize, E>, WorkerError> {
        // A piece worth its head.
        if self.buffer.len() - self.filled < HEAD_BYTES + DATA_BYTES_MAX / 4 {
            self.flush()?;
        }
        let start = self.filled + HEAD_BYTES;
        let max = usize::try_from(max)
            .unwrap_or(usize::MAX)
            .min(DATA_BYTES_MAX);
        let end = self.buffer.len().min(start.saturating_add(max));
        let room = self.buffer.get_mut(start..end).unwrap_or_default();
        let len = match fill(room) {
            Ok(len) => len.min(room.len()),
            Err(error) => return Ok(Err(error)),
        };
        if len == 0 {
            return Ok(Ok(0));
        }
        if let Some(tap) = &self.tap {
            tap(&Message::Data(room.get(..len).unwrap_or_default()));
        }
        if let Some(place) = self.buffer.get_mut(self.filled..start) {
            place.copy_from_slice(&head(Message::DATA, len));
        }
        self.filled = start + len;
        Ok(Ok(len))
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.filled
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// [`WorkerError::Line`].
    pub(crate) fn flush(&mut self) -> Result<(), WorkerError> {
        if self.filled > 0 {
            self.sink
                .put(&mut self.buffer, self.filled)
                .map_err(WorkerError::Line)?;
            self.filled = 0;
        }
        Ok(())
    }
}

/// An [`Output`] for several threads: each message goes out as a whole.
#[derive(Clone)]
pub(crate) struct SharedOutput(Arc<Mutex<Output>>);

impl SharedOutput {
    pub(crate) fn new(output: Output) -> Self {
        Self(Arc::new(Mutex::new(output)))
    }

    /// # Errors
    /// As [`Output::send`].
    pub(crate) fn send(&self, message: &Message<'_>) -> Result<(), WorkerError> {
        self.lock().send(message)
    }

    /// # Errors
    /// As [`Output::flush`].
    pub(crate) fn flush(&self) -> Result<(), WorkerError> {
        self.lock().flush()
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives messages.
pub(crate) struct Input {
    source: Box<dyn Read + Send>,
    /// Its offsets in pages are those of the stream, and of the memory that it comes from.
    buffer: Buffer,
    start: usize,
    end: usize,
    tap: Option<Tap>,
}

impl Input {
    pub(crate) fn new(source: Box<dyn Read + Send>, tap: Option<Tap>) -> Self {
        Self {
            source,
            buffer: Buffer::new(INPUT_BYTES),
            start: 0,
            end: 0,
            tap,
        }
    }

    /// Whether the next message would have to be waited for.
    ///
    /// # Errors
    /// [`WorkerError::Peer`].
    pub(crate) fn would_wait(&self) -> Result<bool, WorkerError> {
        let here = self.buffer.get(self.start..self.end).unwrap_or_default();
        Ok(decode(here)?.is_none())
    }

    /// The next message; `None` at the end of the stream between two messages.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub(crate) fn next(&mut self) -> Result<Option<Message<'_>>, WorkerError> {
        let len = loop {
            let here = self.buffer.get(self.start..self.end).unwrap_or_default();
            if let Some((_, len)) = decode(here)? {
                break len;
            }
            if !self.fill()? {
                return Ok(None);
            }
        };
        let message = self.buffer.get(self.start..self.start + len);
        self.start += len;
        let decoded = decode(message.unwrap_or_default())?;
        let message = decoded.map(|(message, _)| message);
        if let (Some(tap), Some(message)) = (&self.tap, &message) {
            tap(message);
        }
        Ok(message)
    }

    fn fill(&mut self) -> Result<bool, WorkerError> {
        if self.start >= PAGE_BYTES
            && (self.start == self.end || self.buffer.len() - self.end < DATA_BYTES_MAX)
        {
            let front = self.start % PAGE_BYTES;
            self.buffer.copy_within(self.start..self.end, front);
            self.end -= self.start - front;
            self.start = front;
        }
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let len = loop {
            match self.source.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(WorkerError::Line)?,
            }
        };
        self.end += len;
        match (len, self.start == self.end) {
            (0, true) => Ok(false),
            (0, false) => Err(WorkerError::Line(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(true),
        }
    }
}

/// A stream of bytes between two threads of this process. Buffers go there and come back.
pub(crate) fn pipe() -> (PipeSink, PipeSource) {
    let (full, filled) = sync_channel(BUFFERS_UNDER_WAY);
    let (give_back, empty) = sync_channel(BUFFERS_UNDER_WAY + 1);
    let source = PipeSource {
        filled,
        give_back,
        now: None,
    };
    (PipeSink { full, empty }, source)
}

/// The end of a [`pipe`] that is written to.
pub(crate) struct PipeSink {
    full: SyncSender<(Buffer, usize)>,
    empty: Receiver<Buffer>,
}

impl Sink for PipeSink {
    fn put(&mut self, buffer: &mut Buffer, len: usize) -> io::Result<()> {
        let empty = self.empty.try_recv();
        let empty = empty.unwrap_or_else(|_| output_buffer());
        let full = std::mem::replace(buffer, empty);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.full.send((full, len)).map_err(gone)
    }
}

/// The end of a [`pipe`] that is read from.
pub(crate) struct PipeSource {
    filled: Receiver<(Buffer, usize)>,
    give_back: SyncSender<Buffer>,
    /// The buffer that is read from, up to where, and how much it holds.
    now: Option<(Buffer, usize, usize)>,
}

impl Read for PipeSource {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (buffer, at, len) = match self.now.take() {
            Some(now) => now,
            None => match self.filled.recv() {
                Ok((buffer, len)) => (buffer, 0, len),
                Err(_) => return Ok(0),
            },
        };
        let here = buffer.get(at..len).unwrap_or_default();
        let count = here.len().min(into.len());
        let (from, to) = (here.get(..count), into.get_mut(..count));
        to.unwrap_or_default()
            .copy_from_slice(from.unwrap_or_default());
        match at + count {
            at if at < len => self.now = Some((buffer, at, len)),
            _ => _ = self.give_back.try_send(buffer),
        }
        Ok(count)
    }
}
