//! One connection: its socket, its session, and what is half done.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::limits::{MINOR_OF_ATTACHMENTS, MINOR_OF_TERMINALS};
use bowline_proto::message::{
    Attach, Auth, Bye, Exit, Forget, Gap, Granted, Hello, Jobs, List, OnDisconnect, Ping, Pong,
    Pty, Refused, Resize, Signal, SpoolPolicy, Start, Started,
};
use bowline_proto::session::{Event, PutError, Session, SessionError, Step};
use bytes::Bytes;
use tokio::process::Child;

use super::connect::ServerProof;
use super::error::ClientError;
use crate::driver::{Wire, WireError};
use crate::net::Socket;

/// What is to be run. Everything is bytes; nothing may contain NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartRequest {
    /// The program and its arguments; with `shell`, exactly one text.
    pub argv: Vec<Vec<u8>>,
    /// Variables, each `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// The working directory; the account's home where there is none.
    pub cwd: Option<Vec<u8>>,
    /// The one argument is a text for the account's shell.
    pub shell: bool,
    /// The program reads `/dev/null`.
    pub null_stdin: bool,
    /// The server ends the whole tree after this time, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Wait for the end of the output for as long as it takes.
    pub wait_output: bool,
    /// What the server does when nobody is attached any more. Like all that follows, to be asked
    /// for only where [`Connection::minor`] is 1 or more.
    pub on_disconnect: OnDisconnect,
    /// With `Keep`: how long nobody may be attached, in milliseconds.
    pub grace_ms: Option<u64>,
    /// The job belongs to no connection; its output is kept on the server's disk.
    pub detach: bool,
    /// With `detach`: what happens when the output has no room left.
    pub spool: SpoolPolicy,
    /// With `detach`: that room, in bytes of each stream.
    pub spool_bytes: Option<u64>,
    /// A terminal of its own; only with a server that [`Connection::has_terminals`].
    pub pty: Option<Pty>,
    /// The account's shell as a login shell; `argv` is empty then. As with `pty`.
    pub login: bool,
}

impl StartRequest {
    /// The message and its payload.
    fn encode(&self, job: JobId) -> (Start, Vec<u8>) {
        let mut payload = Vec::new();
        let strings = self.argv.iter().chain(&self.env).chain(&self.cwd);
        for string in strings {
            payload.extend_from_slice(string);
            payload.push(0);
        }
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let start = Start {
            job: Some(job),
            args: count(self.argv.len()),
            vars: count(self.env.len()),
            cwd: self.cwd.is_some(),
            bytes: count(payload.len()),
            shell: self.shell,
            null_stdin: self.null_stdin,
            timeout_ms: self.timeout_ms,
            wait_output: self.wait_output,
            on_disconnect: self.on_disconnect,
            grace_ms: self.grace_ms,
            detach: self.detach,
            spool: self.spool,
            spool_bytes: self.spool_bytes,
            pty: self.pty.clone(),
            login: self.login,
        };
        (start, payload)
    }
}

/// Something that the server said.
#[derive(Clone, Debug)]
pub enum Happening {
    /// It lets this client in.
    Granted(Granted),
    /// A job runs.
    Started(Channel, Started),
    /// A job wrote something; tell [`Connection::consumed`] once it has arrived.
    Output {
        /// Which job.
        channel: Channel,
        /// Stdout or stderr.
        stream: Stream,
        /// Its next bytes.
        bytes: Bytes,
        /// Nothing more comes.
        end: bool,
    },
    /// More of a job's stdin may be sent, it has arrived, or the program reads no more of
    /// it ([`Connection::stdin_is_closed`]); on
    /// [`Channel::CONNECTION`], what filled the connection's own buffer is sent.
    Room(Channel),
    /// Part of a job's output was dropped by the server; the stream goes on at this offset.
    Gap(Channel, Gap),
    /// A job's outcome, behind all of its output.
    Exit(Channel, Exit),
    /// What a channel asked for is not done.
    Refused(Channel, Refused),
    /// Some of the jobs that were asked for.
    Jobs(Jobs),
    /// The answer to a ping.
    Pong(Pong),
    /// The server is about to close the connection.
    Bye(Bye),
}

/// A connection to a server.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    session: Session,
    hello: Option<Hello>,
    granted: bool,
    expected: Option<ServerProof>,
    /// What waits for the server's proof: argv and environment are secrets.
    held: VecDeque<Held>,
    /// Kept for as long as the connection: ssh, where it carries it.
    carrier: Option<Child>,
}

impl Connection {
    pub(super) fn new(wire: Wire, session: Session, carrier: Option<Child>) -> Self {
        Self {
            wire,
            session,
            hello: None,
            granted: false,
            expected: None,
            held: VecDeque::new(),
            carrier,
        }
    }

    pub(super) fn exporter(&self, label: &[u8]) -> Option<[u8; 32]> {
        self.wire.exporter(label)
    }

    /// Waits for the nonce of the server's hello.
    pub(super) async fn nonce(&mut self) -> Result<[u8; 32], ClientError> {
        let early = poll_fn(|cx| {
            loop {
                if let Some(nonce) = self.hello.as_ref().and_then(|hello| hello.nonce.clone()) {
                    return Poll::Ready(Ok(nonce));
                }
                if let Poll::Ready(happening) = self.poll_next(cx) {
                    happening?;
                } else if self.hello.is_none() {
                    return Poll::Pending;
                } else if self
                    .hello
                    .as_ref()
                    .is_some_and(|hello| hello.nonce.is_none())
                {
                    return Poll::Ready(Err(SessionError::Protocol.into()));
                }
            }
        });
        let nonce: Result<String, ClientError> = early.await;
        let mut bytes = [0; 32];
        hex::decode_to_slice(nonce?, &mut bytes).map_err(|_| SessionError::Protocol)?;
        Ok(bytes)
    }

    /// Puts the end of the program that carries the connection in the place of
    /// an error that only says that the line broke.
    pub(super) async fn carrier_ended(&mut self, error: ClientError) -> ClientError {
        match &mut self.carrier {
            Some(carrier) if error.is_broken_line() => match carrier.wait().await {
                Ok(status) => ClientError::Carrier(status),
                Err(_) => error,
            },
            _ => error,
        }
    }

    pub(super) fn expect_proof(&mut self, proof: Option<ServerProof>) {
        self.expected = proof;
    }

    pub(super) fn authenticate(&mut self, auth: &Auth) {
        self.session.authenticate(auth);
    }

    /// Whether the server has let this client in.
    pub fn is_granted(&self) -> bool {
        self.granted
    }

    /// The server's address, where that is one of TCP.
    pub fn peer(&self) -> Option<std::net::SocketAddr> {
        match self.wire.socket() {
            Socket::Tcp(stream) => stream.peer_addr().ok(),
            _ => None,
        }
    }

    /// What the server said of itself; `None` before its hello has come.
    pub fn server(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// Whether the server gives jobs terminals. Waits for its hello.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is over.
    pub async fn has_terminals(&mut self) -> Result<bool, ClientError> {
        Ok(self.server_minor().await? >= MINOR_OF_TERMINALS)
    }

    /// Whether jobs may outlive their connections and be attached to. Waits for the server's hello.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is over.
    pub async fn has_attachments(&mut self) -> Result<bool, ClientError> {
        Ok(self.server_minor().await? >= MINOR_OF_ATTACHMENTS)
    }

    /// What the server can do. Waits for its hello, which comes without being
    /// asked for, in the server's first flight.
    async fn server_minor(&mut self) -> Result<u32, ClientError> {
        poll_fn(|cx| {
            loop {
                // It may have come with the end of the handshake. Then nothing is sent yet, and
                // what is asked for next goes out together with the proofs.
                if self.hello.is_none() {
                    self.take_next()?;
                }
                if let Some(hello) = &self.hello {
                    return Poll::Ready(Ok(hello.minor));
                }
                // The server's first frame is its hello, so nothing else is dropped here.
                if let Poll::Ready(happening) = self.poll_next(cx) {
                    happening?;
                } else if self.hello.is_none() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Asks for a job to be started and gives the channel that it will be on.
    /// `job` is 128 random bits; the same request under the same id is not run twice.
    ///
    /// # Errors
    /// [`ClientError::Session`] where the request is over a limit of the wire
    /// or too many jobs are on this connection.
    pub fn start(&mut self, job: JobId, request: &StartRequest) -> Result<Channel, ClientError> {
        let (start, payload) = request.encode(job);
        if self.expected.is_some() && !self.granted {
            start.check().map_err(SessionError::from)?;
            return Ok(self.hold(Held::Start(start, payload)));
        }
        Ok(self.session.start(&start, &payload)?)
    }

    /// What both sides may rely on within the protocol; 0 before the server's hello has come.
    pub fn minor(&self) -> u32 {
        self.session.minor()
    }

    /// Attaches to a job and gives the channel that it will be on; its output
    /// goes on at the offsets that `attach` names. How far its stdin has come is
    /// told by [`Happening::Started`], and nothing of it can be sent before.
    ///
    /// # Errors
    /// [`ClientError::Session`] where too many jobs are on this connection.
    pub fn attach(&mut self, attach: &Attach) -> Result<Channel, ClientError> {
        if self.expected.is_some() && !self.granted {
            return Ok(self.hold(Held::Attach(attach.clone())));
        }
        Ok(self.session.attach(attach)?)
    }

    /// Keeps it until the server has proven itself. Channels are given in order,
    /// so the number is known already.
    fn hold(&mut self, held: Held) -> Channel {
        self.held.push_back(held);
        Channel(u32::try_from(self.held.len()).unwrap_or(u32::MAX))
    }

    /// Tells the server that it may drop what it keeps of a job.
    pub fn forget(&mut self, job: JobId) {
        self.session.forget(&Forget { job: Some(job) });
    }

    /// Bytes that have come from the server so far: a sign of life, whatever they mean.
    pub fn heard(&self) -> u64 {
        self.wire.received()
    }

    /// Sends a signal to a job, or on [`Channel::CONNECTION`] to the one that it names.
    pub fn signal(&mut self, channel: Channel, signal: &Signal) {
        self.session.signal(channel, signal);
    }

    /// Tells a job with a terminal its new size.
    pub fn resize(&mut self, channel: Channel, resize: &Resize) {
        self.session.resize(channel, resize);
    }

    /// Asks for a [`Happening::Pong`].
    pub fn ping(&mut self, id: u64) {
        self.session.ping(&Ping { id });
    }

    /// Asks for the jobs.
    pub fn list(&mut self, list: &List) {
        self.session.list(list);
    }

    /// Says goodbye; [`Self::flush`] sends it.
    pub fn bye(&mut self) {
        self.session.bye(&Bye::default());
    }

    /// How many bytes of a job's stdin may be put now.
    pub fn room(&self, channel: Channel) -> usize {
        self.session.room(channel, Stream::Stdin)
    }

    /// Lets `fill` write the next bytes of a job's stdin in place: it gives how
    /// many and whether the input ends behind them.
    ///
    /// # Errors
    /// [`PutError`].
    pub fn put_with<E>(
        &mut self,
        channel: Channel,
        fill: impl FnOnce(&mut [u8]) -> Result<(usize, bool), E>,
    ) -> Result<(usize, bool), PutError<E>> {
        self.session.put_with(channel, Stream::Stdin, fill)
    }

    /// How much of a job's stdin has reached its pipe, and how much was sent.
    pub fn stdin_offsets(&self, channel: Channel) -> Option<(u64, u64)> {
        let flow = self.session.sending(channel, Stream::Stdin)?;
        Some((flow.acked(), flow.sent()))
    }

    /// Whether the program reads no more of its stdin; what puts bytes into it may be told so.
    pub fn stdin_is_closed(&self, channel: Channel) -> bool {
        let flow = self.session.sending(channel, Stream::Stdin);
        flow.is_some_and(bowline_proto::session::SendFlow::closed)
    }

    /// Counts bytes of [`Happening::Output`] as arrived at their destination.
    pub fn consumed(&mut self, channel: Channel, stream: Stream, len: u64) {
        self.session.consumed(channel, stream, len);
    }

    /// Bytes of a stream that have come so far.
    pub fn received(&self, channel: Channel, stream: Stream) -> u64 {
        let flow = self.session.receiving(channel, stream);
        flow.map_or(0, bowline_proto::session::RecvFlow::received)
    }

    /// Bytes of a stream that were counted as arrived.
    pub fn consumed_so_far(&self, channel: Channel, stream: Stream) -> Option<u64> {
        let flow = self.session.receiving(channel, stream)?;
        Some(flow.consumed())
    }

    /// Ends a channel whose outcome has come.
    pub fn close(&mut self, channel: Channel) {
        self.session.close(channel);
    }

    /// Waits for the next thing that the server says, and meanwhile sends what
    /// was put in.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is over.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Happening, ClientError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Waits until everything that was put in is in the kernel.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is over.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        poll_fn(|cx| self.wire.poll_flush(cx, self.session.outbox())).await?;
        Ok(())
    }

    /// [`Self::next`] for a caller that polls.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Happening, ClientError>> {
        loop {
            if let Some(happening) = self.take_next()? {
                return Poll::Ready(Ok(happening));
            }
            // What the input made us say, such as windows, goes out before we wait. A line that
            // breaks while we send may still hold the server's reason in what it sent before.
            let was_full = self.session.outbox().bulk_is_full();
            let flushed = match self.wire.poll_flush(cx, self.session.outbox()) {
                Poll::Ready(Err(error)) => Some(error),
                _ => None,
            };
            if was_full && flushed.is_none() && !self.session.outbox().bulk_is_full() {
                return Poll::Ready(Ok(Happening::Room(Channel::CONNECTION)));
            }
            match (self.wire.poll_fill(cx), flushed) {
                (Poll::Ready(Ok(())), None) => {}
                (Poll::Ready(Ok(())), Some(_)) if !self.wire.ended() => {}
                (Poll::Ready(Ok(())) | Poll::Pending, Some(error)) => {
                    return match self.take_next()? {
                        Some(happening) => Poll::Ready(Ok(happening)),
                        None => Poll::Ready(Err(error.into())),
                    };
                }
                (Poll::Ready(Err(error)), _) => return Poll::Ready(Err(error.into())),
                (Poll::Pending, None) => return Poll::Pending,
            }
        }
    }

    fn take_next(&mut self) -> Result<Option<Happening>, ClientError> {
        loop {
            let (len, channel, event) = match self.session.next(self.wire.input())? {
                Step::NeedMore if self.wire.ended() => return Err(ClientError::Closed),
                Step::NeedMore => return Ok(None),
                Step::Taken(len) => {
                    self.wire.take(len);
                    continue;
                }
                Step::Event(len, channel, event) => (len, channel, event),
            };
            if let Event::Data { stream, bytes, end } = event {
                let header = len.saturating_sub(bytes.len());
                let mut bytes = self.wire.take_bytes(len);
                let bytes = bytes.split_off(header.min(bytes.len()));
                return Ok(Some(Happening::Output {
                    channel,
                    stream,
                    bytes,
                    end,
                }));
            }
            let happening = Self::told(channel, event);
            self.wire.take(len);
            if let Some(happening) = self.notice(happening)? {
                return Ok(Some(happening));
            }
        }
    }

    fn told(channel: Channel, event: Event<'_>) -> Told {
        Told::Happening(match event {
            Event::Hello(hello) => return Told::Hello(hello),
            Event::Granted(granted) => Happening::Granted(granted),
            Event::Started(started) => Happening::Started(channel, started),
            Event::Window(_) => Happening::Room(channel),
            Event::Gap(gap) => Happening::Gap(channel, gap),
            Event::Exit(exit) => Happening::Exit(channel, exit),
            Event::Refused(refused) => Happening::Refused(channel, refused),
            Event::Jobs(jobs) => Happening::Jobs(jobs),
            Event::Pong(pong) => Happening::Pong(pong),
            Event::Bye(bye) => Happening::Bye(bye),
            // Data was taken before; the others are a server's to hear, and the session
            // refuses them from a server.
            Event::Data { .. }
            | Event::Start(..)
            | Event::Attach(_)
            | Event::Signal(_)
            | Event::Resize(_)
            | Event::Forget(_)
            | Event::List(_)
            | Event::Ping(_) => return Told::Nothing,
        })
    }

    fn notice(&mut self, told: Told) -> Result<Option<Happening>, ClientError> {
        match told {
            Told::Nothing => Ok(None),
            Told::Hello(hello) => {
                self.hello = Some(hello);
                Ok(None)
            }
            Told::Happening(Happening::Granted(granted)) => {
                self.check_proof(&granted)?;
                self.granted = true;
                for held in std::mem::take(&mut self.held) {
                    match held {
                        Held::Start(start, payload) => self.session.start(&start, &payload)?,
                        Held::Attach(attach) => self.session.attach(&attach)?,
                    };
                }
                Ok(Some(Happening::Granted(granted)))
            }
            Told::Happening(Happening::Refused(Channel::CONNECTION, refused)) => {
                Err(ClientError::Refused(refused))
            }
            Told::Happening(happening) => Ok(Some(happening)),
        }
    }

    /// Both sides of a shared secret prove it.
    fn check_proof(&mut self, granted: &Granted) -> Result<(), ClientError> {
        let Some(ServerProof(expected)) = self.expected.as_ref() else {
            return Ok(());
        };
        let mut shown = [0; 32];
        let mac = granted.mac.as_deref().unwrap_or_default();
        hex::decode_to_slice(mac, &mut shown).map_err(|_| ClientError::ServerNotProven)?;
        aws_lc_rs::constant_time::verify_slices_are_equal(expected, &shown)
            .map_err(|_| ClientError::ServerNotProven)
    }

    /// Ends the connection in order: what was put in is sent, then TLS is closed.
    ///
    /// # Errors
    /// [`ClientError`] where the line was broken already.
    pub async fn finish(mut self) -> Result<(), ClientError> {
        self.close_line()?;
        self.flush().await
    }

    /// Says the end of the connection behind what was put in; to be flushed, and nothing may be put in
    /// any more.
    fn close_line(&mut self) -> Result<(), ClientError> {
        let taken = self.wire.take_outbox(self.session.outbox());
        taken.map_err(WireError::from)?;
        self.wire.close();
        Ok(())
    }

    /// The same for one who leaves and says nothing after it. Where a program carries the
    /// connection, waits until that has passed everything on and ended.
    ///
    /// # Errors
    /// As [`Self::finish`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the program, and what it has not passed on is lost.
    pub async fn leave(mut self) -> Result<(), ClientError> {
        self.close_line()?;
        self.flush().await?;
        let Self { wire, carrier, .. } = self;
        // It sees the end of its input.
        drop(wire);
        if let Some(mut carrier) = carrier {
            let _ = carrier.wait().await;
        }
        Ok(())
    }

    /// Waits until what was put in is sent, without taking in anything.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        ready!(self.wire.poll_flush(cx, self.session.outbox()))?;
        Poll::Ready(Ok(()))
    }
}

/// What a client asked for before it knew whom it asks.
#[derive(Debug)]
enum Held {
    Start(Start, Vec<u8>),
    Attach(Attach),
}

/// A message, once the input that it came from is gone.
enum Told {
    Nothing,
    Hello(Hello),
    Happening(Happening),
}
