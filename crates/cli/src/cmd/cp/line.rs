//! The line between a worker on a thread of its own and the task that holds the connection.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

use crate::copy::buffer::Buffer;
use crate::copy::link::{Sink, output_buffer};

/// Buffers on their way, in each direction.
const BUFFERS_UNDER_WAY: usize = 4;

/// A full buffer and how much of it counts.
pub(super) type Full = (Buffer, usize);

/// The worker's ends, and the task's.
pub(super) fn line() -> ((Outgoing, Incoming), Ends) {
    let (full, from_worker) = mpsc::channel(BUFFERS_UNDER_WAY);
    let (give_back, empty) = mpsc::channel(BUFFERS_UNDER_WAY + 1);
    let (to_worker, incoming) = mpsc::channel(BUFFERS_UNDER_WAY);
    let outgoing = Outgoing { full, empty };
    let incoming = Incoming {
        pieces: incoming,
        now: Bytes::new(),
    };
    let ends = Ends {
        from_worker,
        give_back,
        to_worker: Some(to_worker),
    };
    ((outgoing, incoming), ends)
}

/// What the task holds.
pub(super) struct Ends {
    pub(super) from_worker: mpsc::Receiver<Full>,
    pub(super) give_back: mpsc::Sender<Buffer>,
    /// Dropped when nothing more comes.
    pub(super) to_worker: Option<mpsc::Sender<Bytes>>,
}

/// Where the worker's messages go.
pub(super) struct Outgoing {
    full: mpsc::Sender<Full>,
    empty: mpsc::Receiver<Buffer>,
}

impl Sink for Outgoing {
    fn put(&mut self, buffer: &mut Buffer, len: usize) -> io::Result<()> {
        let empty = self.empty.try_recv();
        let empty = empty.unwrap_or_else(|_| output_buffer());
        let full = std::mem::replace(buffer, empty);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.full.blocking_send((full, len)).map_err(gone)
    }
}

/// Where its answers come from.
pub(super) struct Incoming {
    pieces: mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece,
                None => return Ok(0),
            }
        }
        let len = self.now.len().min(into.len());
        self.now
            .copy_to_slice(into.get_mut(..len).unwrap_or_default());
        Ok(len)
    }
}
