//! The one place that moves bytes between a socket and a session.
//!
//! A [`Wire`] owns the socket and, where there is one, the TLS connection. It
//! reads ciphertext into plain bytes that wait in [`Wire::input`], and it
//! empties an [`Outbox`] into the socket. All partial work is in the value
//! itself, so a future that polls it may be dropped at any time.

use std::io::{self, BufRead, IoSlice, Write};
use std::task::{Context, Poll, ready};

use bowline_proto::limits::FRAME_BYTES_MAX;
use bowline_proto::session::Outbox;
use bytes::{Buf, Bytes, BytesMut};

use crate::net::Socket;

/// The first read from a socket, in bytes; one that fills its buffer doubles the next.
const READ_BYTES_MIN: usize = 16 * 1024;
/// The largest.
const READ_BYTES_MAX: usize = 256 * 1024;
/// Plain bytes that may wait to be looked at; one frame always fits.
const INPUT_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Output buffers larger than this are given back once they are empty.
const KEEP_BYTES: usize = 4 * 1024;

/// Why a wire can carry nothing more.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer's TLS is not as it must be, or bytes were changed under way.
    #[error("TLS failed")]
    Tls(#[from] rustls::Error),
}

/// A socket with its TLS and its buffers.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    tls: Option<Box<rustls::Connection>>,
    input: BytesMut,
    ended: bool,
    /// What the next read asks for, and what the last one gave.
    read_bytes: usize,
    last_read: usize,
    received: u64,
    /// Without TLS: frames on their way into the socket.
    output: BytesMut,
    /// What the outbox held is on its way into the socket, and no more is taken from it before
    /// it is there.
    sending: bool,
}

thread_local! {
    /// What one read gives before it is decrypted. It never outlives the read,
    /// so one a thread is enough and an idle connection holds none.
    static CIPHERTEXT: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Wire {
    /// A wire without encryption, for a Unix socket or the pipes of ssh.
    pub fn plain(socket: Socket) -> Self {
        Self::new(socket, None)
    }

    /// A wire whose TLS handshake has yet to happen.
    pub fn tls(socket: Socket, connection: impl Into<rustls::Connection>) -> Self {
        let mut connection = connection.into();
        // What may wait is bounded by the outbox that is written from.
        connection.set_buffer_limit(None);
        Self::new(socket, Some(Box::new(connection)))
    }

    fn new(socket: Socket, tls: Option<Box<rustls::Connection>>) -> Self {
        Self {
            socket,
            tls,
            input: BytesMut::new(),
            ended: false,
            read_bytes: READ_BYTES_MIN,
            last_read: 0,
            received: 0,
            output: BytesMut::new(),
            sending: false,
        }
    }

    /// The socket itself.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether TLS has yet to be agreed on.
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// The TLS exporter (RFC 8446, section 7.5) of `label`, 32 bytes; `None`
    /// without TLS or before its handshake is over.
    pub fn exporter(&self, label: &[u8]) -> Option<[u8; 32]> {
        let tls = self.tls.as_ref()?;
        tls.export_keying_material([0; 32], label, None).ok()
    }

    /// Does the TLS handshake, as far as it goes without anything to say.
    /// `Ready` when it is done, or when the peer has closed instead.
    ///
    /// # Errors
    /// [`WireError`]; the connection is over.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        let mut nothing = Outbox::default();
        while self.is_handshaking() && !self.ended {
            if let Poll::Ready(Err(error)) = self.flush(cx, &mut nothing) {
                return Poll::Ready(Err(error));
            }
            ready!(self.poll_fill(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// The bytes that came and were not taken yet.
    pub fn input(&self) -> &[u8] {
        &self.input
    }

    /// Bytes that were read from the socket so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the peer has closed; what came before is still in [`Self::input`].
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Drops `len` bytes of the input.
    pub fn take(&mut self, len: usize) {
        self.input.advance(len.min(self.input.len()));
    }

    /// Takes `len` bytes of the input without copying them.
    pub fn take_bytes(&mut self, len: usize) -> Bytes {
        self.input.split_to(len.min(self.input.len())).freeze()
    }

    /// Reads once. `Ready` means that there is more in [`Self::input`], or that
    /// a part of the handshake was done, or that the peer has closed; `Pending`
    /// that nothing came, or that the input is full.
    ///
    /// # Errors
    /// [`WireError`]; the connection is over.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        if self.ended || self.input.len() >= INPUT_BYTES_MAX {
            return Poll::Pending;
        }
        loop {
            if self.socket.poll_read_ready(cx)?.is_pending() {
                // In the middle of much data the buffer is needed again at once.
                let little = self.last_read <= KEEP_BYTES;
                if little && self.input.is_empty() && self.input.capacity() > KEEP_BYTES {
                    self.input = BytesMut::new();
                }
                return Poll::Pending;
            }
            let read = match self.tls.take() {
                None => self.fill_plain(),
                Some(mut tls) => {
                    let filled = self.fill_tls(&mut tls);
                    self.tls = Some(tls);
                    filled
                }
            };
            match read {
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
                Ok(()) => return Poll::Ready(Ok(())),
            }
        }
    }

    /// One read into the thread's buffer, which is as large as reads have filled it so far.
    fn read<'a>(&mut self, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        if buffer.len() < self.read_bytes {
            buffer.resize(self.read_bytes, 0);
        }
        let space = buffer.get_mut(..self.read_bytes).unwrap_or_default();
        let len = self.socket.try_read(space)?;
        if len == self.read_bytes {
            self.read_bytes = len.saturating_mul(2).min(READ_BYTES_MAX);
        }
        self.last_read = len;
        self.received = self.received.saturating_add(len as u64);
        self.ended = len == 0;
        Ok(space.get(..len).unwrap_or_default())
    }

    fn fill_plain(&mut self) -> Result<(), WireError> {
        CIPHERTEXT.with_borrow_mut(|buffer| {
            let bytes = self.read(buffer)?;
            self.input.extend_from_slice(bytes);
            Ok(())
        })
    }

    fn fill_tls(&mut self, tls: &mut rustls::Connection) -> Result<(), WireError> {
        CIPHERTEXT.with_borrow_mut(|buffer| {
            let mut rest = self.read(buffer)?;
            // rustls takes a few KiB at a time.
            while !rest.is_empty() {
                tls.read_tls(&mut rest)?;
                let state = tls.process_new_packets()?;
                self.ended |= state.peer_has_closed();
                let mut plain = state.plaintext_bytes_to_read();
                while plain > 0 {
                    let mut reader = tls.reader();
                    let chunk = reader.fill_buf()?;
                    let len = chunk.len();
                    self.input.extend_from_slice(chunk);
                    reader.consume(len);
                    plain = plain.saturating_sub(len.max(1));
                }
            }
            Ok(())
        })
    }

    /// Writes until the outbox and everything behind it is in the kernel
    /// (`Ready`) or the socket takes no more.
    ///
    /// # Errors
    /// [`WireError`]; the connection is over.
    pub fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        outbox: &mut Outbox,
    ) -> Poll<Result<(), WireError>> {
        let result = self.flush(cx, outbox);
        if result.is_ready() && self.output.capacity() > KEEP_BYTES {
            self.output = BytesMut::new();
        }
        result
    }

    fn flush(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), WireError>> {
        loop {
            // All that there is at once, behind what TLS itself has to say: it is one segment then, and
            // wakes the peer once.
            let encoded = match self.sending {
                true => Ok(()),
                false => self.take_outbox(outbox),
            };
            while self.wants_write() {
                self.sending = true;
                ready!(self.socket.poll_write_ready(cx))?;
                match self.write_once() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => other?,
                }
            }
            self.sending = false;
            // A TLS that has failed takes nothing more. What it says about that is sent by now.
            encoded?;
            if outbox.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn wants_write(&self) -> bool {
        !self.output.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Takes all that is in the outbox, to be sent with the next flush.
    ///
    /// # Errors
    /// As write(2); TLS that has failed takes nothing more.
    pub fn take_outbox(&mut self, outbox: &mut Outbox) -> io::Result<()> {
        if !outbox.control().is_empty() {
            self.encode(outbox.control())?;
            outbox.control_sent();
        }
        if !outbox.bulk().is_empty() {
            self.encode(outbox.bulk())?;
            outbox.bulk_sent();
        }
        Ok(())
    }

    fn encode(&mut self, frames: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(frames),
            None => {
                self.output.extend_from_slice(frames);
                Ok(())
            }
        }
    }

    fn write_once(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => {
                tls.write_tls(&mut SocketWriter(&self.socket))?;
            }
            None => {
                let len = self
                    .socket
                    .try_write_vectored(&[IoSlice::new(&self.output)])?;
                self.output.advance(len);
            }
        }
        Ok(())
    }

    /// Says the end of the TLS stream (close_notify), to be flushed like data.
    pub fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
    }
}

/// A socket as rustls wants to write to it.
struct SocketWriter<'a>(&'a Socket);

impl Write for SocketWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
