//! A worker on another machine: a job, whose stdin and stdout are the line to it.

use std::collections::VecDeque;
use std::convert::Infallible;

use bowline::client::{ClientError, Connection, Happening, StartRequest};
use bowline_proto::copy::{Message, Options, encode};
use bowline_proto::frame::Stream;
use bowline_proto::id::Channel;
use bowline_proto::message::Exit;
use bytes::{Buf as _, Bytes};

use crate::cmd::dial::Dialer;
use crate::copy::buffer::Buffer;
use crate::exit;

/// What a worker says on stderr is kept up to here.
const STDERR_BYTES_MAX: usize = 8 * 1024;

/// Bytes on their way to a worker.
pub(super) enum Piece {
    /// From a worker of this process: the buffer goes back to it.
    Buffer(Buffer, usize, usize),
    /// From another machine, or nobody.
    Bytes(Bytes),
}

impl Piece {
    fn rest(&self) -> &[u8] {
        match self {
            Self::Buffer(buffer, at, len) => buffer.get(*at..*len).unwrap_or_default(),
            Self::Bytes(bytes) => bytes,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Buffer(_, at, _) => *at += count,
            Self::Bytes(bytes) => bytes.advance(count),
        }
    }
}

/// A remote worker, and what is on its way to and from it.
pub(super) struct Remote {
    pub(super) connection: Connection,
    channel: Channel,
    /// What it sent and nobody has taken yet; bounded by the window of its stdout.
    inbox: VecDeque<Bytes>,
    stdout_ended: bool,
    /// What is being sent to it.
    outbox: Piece,
    /// Nothing more will be sent; told to it or not.
    closing: Option<bool>,
    exit: Option<Exit>,
    stderr: Vec<u8>,
    started: bool,
}

impl Remote {
    /// Connects and starts a worker: `role` is `send` or `receive`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(super) async fn start(
        dialer: &mut Dialer,
        role: &str,
        paths: &[Vec<u8>],
        options: &Options,
    ) -> Result<Self, ClientError> {
        let mut connection = dialer.enter().await?;
        // No program has an empty name: this one stands for the server's own file worker.
        let words = ["", "copy", role, "--"].map(|word| word.as_bytes().to_vec());
        let request = StartRequest {
            argv: words.into_iter().chain(paths.iter().cloned()).collect(),
            wait_output: true,
            ..StartRequest::default()
        };
        let job = exit::fresh_job_id().map_err(|_| ClientError::Closed)?;
        let channel = connection.start(job, &request)?;
        let mut first = Vec::new();
        encode(&Message::Options(options.clone()), &mut first);
        Ok(Self {
            connection,
            channel,
            inbox: VecDeque::new(),
            stdout_ended: false,
            outbox: Piece::Bytes(first.into()),
            closing: None,
            exit: None,
            stderr: Vec::new(),
            started: false,
        })
    }

    /// Acts on what the server says.
    ///
    /// # Errors
    /// [`ClientError`], also where the job is refused.
    pub(super) fn happened(&mut self, happening: Happening) -> Result<(), ClientError> {
        match happening {
            Happening::Started(..) => self.started = true,
            Happening::Output {
                channel,
                stream,
                bytes,
                end,
            } if channel == self.channel => match stream {
                Stream::Stdout => {
                    self.stdout_ended |= end;
                    if !bytes.is_empty() {
                        self.inbox.push_back(bytes);
                    }
                }
                _ => {
                    let room = STDERR_BYTES_MAX.saturating_sub(self.stderr.len());
                    self.stderr.extend(bytes.iter().take(room));
                    let len = bytes.len() as u64;
                    self.connection.consumed(channel, stream, len);
                }
            },
            Happening::Exit(channel, exit) if channel == self.channel => {
                self.stdout_ended = true;
                self.exit = Some(exit);
                self.connection.close(channel);
            }
            Happening::Refused(channel, refused) if channel == self.channel => {
                return Err(ClientError::Refused(refused));
            }
            _ => {}
        }
        Ok(())
    }

    /// The next piece of what it sent.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let piece = self.inbox.pop_front()?;
        if self.exit.is_none() {
            let len = piece.len() as u64;
            self.connection.consumed(self.channel, Stream::Stdout, len);
        }
        Some(piece)
    }

    /// Whether it has sent something that nobody has taken.
    pub(super) fn has_piece(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Nothing more comes from it.
    pub(super) fn has_ended(&self) -> bool {
        self.stdout_ended && self.inbox.is_empty()
    }

    /// Its outcome, once everything that it sent was taken.
    pub(super) fn outcome(&self) -> Option<&Exit> {
        self.exit.as_ref().filter(|_| self.inbox.is_empty())
    }

    /// Whether it takes another piece, be it for nobody: [`Self::pump`].
    pub(super) fn wants_piece(&self) -> bool {
        self.outbox.rest().is_empty() && self.closing.is_none()
    }

    /// Sends it a piece; gives back the buffer of the one before.
    pub(super) fn put(&mut self, piece: Piece) -> Option<Buffer> {
        match std::mem::replace(&mut self.outbox, piece) {
            Piece::Buffer(buffer, ..) => Some(buffer),
            Piece::Bytes(_) => None,
        }
    }

    /// Nothing more comes for it.
    pub(super) fn close(&mut self) {
        self.closing.get_or_insert(false);
    }

    /// Puts what waits for it into the connection, as far as there is room.
    pub(super) fn pump(&mut self) {
        // Nobody reads it any more. It must not wait for room that never comes: what the other side has
        // written, and behind it the outcome, is only got by a worker that can say what it has to say.
        if self.exit.is_some() || self.connection.stdin_is_closed(self.channel) {
            self.outbox = Piece::Bytes(Bytes::new());
            return;
        }
        while self.connection.room(self.channel) > 0 && !self.outbox.rest().is_empty() {
            let outbox = &mut self.outbox;
            let put = self.connection.put_with(self.channel, |room| {
                let rest = outbox.rest();
                let len = room.len().min(rest.len());
                let (to, from) = (room.get_mut(..len), rest.get(..len));
                to.unwrap_or_default()
                    .copy_from_slice(from.unwrap_or_default());
                outbox.advance(len);
                Ok::<_, Infallible>((len, false))
            });
            match put {
                Ok((0, _)) => return,
                Ok(_) => {}
                // It takes nothing more; its outcome will say why.
                Err(_) => self.outbox = Piece::Bytes(Bytes::new()),
            }
        }
        if self.closing == Some(false) && self.outbox.rest().is_empty() {
            let end = |_: &mut [u8]| Ok::<_, Infallible>((0, true));
            if !matches!(self.connection.put_with(self.channel, end), Ok((_, false))) {
                self.closing = Some(true);
            }
        }
    }

    /// What it said on stderr, for a person.
    pub(super) fn complaint(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.stderr);
        let line = text.lines().find(|line| !line.trim().is_empty())?;
        let line = line.strip_prefix("bowline: ").unwrap_or(line);
        Some(bowline_proto::copy::name::shown(line.as_bytes()))
    }
}
