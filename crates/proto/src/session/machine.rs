//! An open session: channels, streams and their credit, without IO.
//!
//! Inputs are [`Session::next`] with the bytes that have come; commands put
//! frames into the [`Outbox`]; getters tell how far each stream is. One caller
//! moves the bytes. Nothing here waits, and what one input can cost is bounded
//! by the limits of [`crate::limits`].

use std::collections::BTreeMap;

use super::flow::{FlowError, RecvFlow, SendFlow};
use super::outbox::{Order, Outbox};
use super::phase::{self, Role};
use crate::frame::{self, Bound, Flags, Frame, FrameError, Kind, Stream};
use crate::id::Channel;
use crate::limits::{
    CHANNELS_MAX, PAYLOAD_BYTES_MAX, PROTOCOL, START_BYTES_MAX, WINDOW_GROWTH_PER_CONNECTION_MAX,
};
use crate::message::{
    Attach, Auth, Bye, Exit, Forget, Granted, Hello, Jobs, List, Message, MessageError, Ping, Pong,
    Refused, Resize, Signal, Start, Started, Window,
};

/// A peer that broke the rules. The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Bytes that are not a frame.
    #[error("malformed frame")]
    Frame(#[from] FrameError),
    /// A header that is not what its kind asks for.
    #[error("malformed message")]
    Message(#[from] MessageError),
    /// The window of a stream was not kept.
    #[error("channel {channel}: {stream:?}")]
    Flow {
        /// Whose stream.
        channel: Channel,
        /// Which one.
        stream: Stream,
        /// What was wrong.
        source: FlowError,
    },
    /// A kind that this phase, side or channel does not permit.
    #[error("a {0:?} is not permitted here")]
    NotPermitted(Kind),
    /// A channel that is in use or was never opened.
    #[error("channel {0} is not one that this may be said on")]
    Channel(Channel),
    /// More channels at once than a connection may have.
    #[error("more than {CHANNELS_MAX} channels")]
    TooManyChannels,
    /// Another protocol.
    #[error("the peer does not speak {PROTOCOL}")]
    Protocol,
    /// The user name is too long.
    #[error("the user name is too long")]
    UserTooLong,
}

/// What came of the bytes so far.
#[derive(Debug)]
pub enum Step<'a> {
    /// They are no whole frame yet.
    NeedMore,
    /// The frame was taken in and there is nothing to act on.
    Taken(usize),
    /// So many bytes were a message to act on.
    Event(usize, Channel, Event<'a>),
}

/// A message to act on.
#[derive(Debug)]
pub enum Event<'a> {
    /// The server introduced itself.
    Hello(Hello),
    /// The server lets this client in.
    Granted(Granted),
    /// Data of a stream; tell [`Session::consumed`] when it has arrived.
    Data {
        /// Which stream.
        stream: Stream,
        /// Its next bytes.
        bytes: &'a [u8],
        /// Nothing more comes.
        end: bool,
    },
    /// A whole `start`: its header and its payload.
    Start(Start, Vec<u8>),
    /// The program runs.
    Started(Started),
    /// A client wants an earlier job.
    Attach(Attach),
    /// Send a signal.
    Signal(Signal),
    /// The terminal's size.
    Resize(Resize),
    /// The peer said how far a stream may go.
    Window(Stream),
    /// The outcome.
    Exit(Exit),
    /// What was asked for is not done.
    Refused(Refused),
    /// The client has the outcome.
    Forget(Forget),
    /// Show the jobs.
    List(List),
    /// Some of them.
    Jobs(Jobs),
    /// A `ping`, which is answered already.
    Ping(Ping),
    /// The answer to a `ping`.
    Pong(Pong),
    /// The peer is about to close.
    Bye(Bye),
}

/// What could not be put into a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum PutError<E> {
    /// No such channel, or the stream goes the other way or has ended.
    Closed,
    /// The source of the bytes failed.
    Source(E),
}

/// The three streams of a channel.
#[derive(Debug, Default)]
struct Streams {
    /// Of a client the sending, of a server the receiving ends are used.
    send: [SendFlow; 3],
    recv: [RecvFlow; 3],
    /// A client: what has come was `exit` or `refused`; the channel is done.
    started: bool,
}

/// A `start` of which not all frames have come.
#[derive(Debug)]
struct PendingStart {
    channel: Channel,
    header: Start,
    payload: Vec<u8>,
}

/// An open session of either side.
#[derive(Debug)]
pub struct Session {
    role: Role,
    said_hello: bool,
    granted: bool,
    outbox: Outbox,
    channels: BTreeMap<u32, Streams>,
    pending: Option<PendingStart>,
    growth_budget: u64,
    next_channel: u32,
}

const fn slot(stream: Stream) -> usize {
    match stream {
        Stream::Stdin => 0,
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    }
}

impl Streams {
    fn send(&mut self, stream: Stream) -> Option<&mut SendFlow> {
        self.send.get_mut(slot(stream))
    }

    fn recv(&mut self, stream: Stream) -> Option<&mut RecvFlow> {
        self.recv.get_mut(slot(stream))
    }
}

impl Session {
    fn new(role: Role, outbox: Outbox) -> Self {
        Self {
            role,
            said_hello: role == Role::Server,
            granted: role == Role::Server,
            outbox,
            channels: BTreeMap::new(),
            pending: None,
            growth_budget: WINDOW_GROWTH_PER_CONNECTION_MAX,
            next_channel: 1,
        }
    }

    pub(super) fn open_server(outbox: Outbox) -> Self {
        Self::new(Role::Server, outbox)
    }

    /// A client's session. Its `hello` and `auth` are queued, and what is
    /// started before the server has answered goes out in the same flight.
    pub fn client(hello: &Hello) -> Self {
        let mut session = Self::new(Role::Client, Outbox::default());
        session
            .outbox
            .message(Channel::CONNECTION, Order::First, hello);
        session
    }

    /// A client's user and proofs.
    pub fn authenticate(&mut self, auth: &Auth) {
        self.outbox.message(Channel::CONNECTION, Order::First, auth);
    }

    /// What waits to be sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Whether the server has granted.
    pub fn is_granted(&self) -> bool {
        self.granted
    }

    /// How many channels are in use.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    // ---- what comes in ----------------------------------------------------

    /// Looks at the frame at the start of `input`.
    ///
    /// # Errors
    /// [`SessionError`]; the connection cannot go on.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, SessionError> {
        let Some((frame, len)) = frame::decode(input, Bound::Authenticated)? else {
            return Ok(Step::NeedMore);
        };
        self.permit(frame.kind)?;
        let channel = frame.channel;
        Ok(match self.on_frame(frame)? {
            Some(event) => Step::Event(len, channel, event),
            None => Step::Taken(len),
        })
    }

    fn permit(&self, kind: Kind) -> Result<(), SessionError> {
        let permitted = match self.role {
            Role::Server => phase::client_may_send(kind),
            Role::Client if kind == Kind::Hello => !self.said_hello,
            Role::Client => self.said_hello && phase::server_may_send(kind, self.granted),
        };
        permitted
            .then_some(())
            .ok_or(SessionError::NotPermitted(kind))
    }

    fn on_frame<'a>(&mut self, frame: Frame<'a>) -> Result<Option<Event<'a>>, SessionError> {
        if let Some(stream) = frame.kind.stream() {
            return self.on_data(stream, &frame);
        }
        if frame.kind == Kind::Start {
            return self.on_start(&frame);
        }
        if !frame.payload.is_empty() {
            return Err(SessionError::NotPermitted(frame.kind));
        }
        self.place(frame.kind, frame.channel)?;
        let header = frame.header;
        Ok(Some(match frame.kind {
            Kind::Hello => {
                let hello = Hello::from_header(header)?;
                if hello.protocol != PROTOCOL {
                    return Err(SessionError::Protocol);
                }
                self.said_hello = true;
                Event::Hello(hello)
            }
            Kind::Granted => {
                self.granted = true;
                Event::Granted(Granted::from_header(header)?)
            }
            Kind::Window => return self.on_window(frame.channel, header),
            Kind::Ping => {
                let ping = Ping::from_header(header)?;
                self.control(Channel::CONNECTION, &Pong { id: ping.id });
                Event::Ping(ping)
            }
            Kind::Attach => {
                let attach = Attach::from_header(header)?;
                self.open(frame.channel, attach.stdout, attach.stderr)?;
                Event::Attach(attach)
            }
            Kind::Started => Event::Started(Started::from_header(header)?),
            Kind::Signal => Event::Signal(Signal::from_header(header)?),
            Kind::Resize => Event::Resize(Resize::from_header(header)?),
            Kind::Exit => Event::Exit(Exit::from_header(header)?),
            Kind::Refused => Event::Refused(Refused::from_header(header)?),
            Kind::Forget => Event::Forget(Forget::from_header(header)?),
            Kind::List => Event::List(List::from_header(header)?),
            Kind::Jobs => Event::Jobs(Jobs::from_header(header)?),
            Kind::Pong => Event::Pong(Pong::from_header(header)?),
            Kind::Bye => Event::Bye(Bye::from_header(header)?),
            Kind::Stdin | Kind::Stdout | Kind::Stderr | Kind::Start | Kind::Auth => {
                return Err(SessionError::NotPermitted(frame.kind));
            }
        }))
    }

    /// Whether this kind may be said on this channel.
    fn place(&self, kind: Kind, channel: Channel) -> Result<(), SessionError> {
        let connection = channel == Channel::CONNECTION;
        let known = self.channels.contains_key(&channel.0);
        let right = match kind {
            Kind::Hello | Kind::Granted | Kind::Forget | Kind::List | Kind::Jobs => connection,
            Kind::Ping | Kind::Pong | Kind::Bye => connection,
            Kind::Signal | Kind::Refused => connection || known || self.role == Role::Server,
            // A server has closed a channel as soon as it has sent `exit`; what the client
            // said meanwhile is late, not wrong.
            Kind::Resize | Kind::Window => !connection && (known || self.role == Role::Server),
            Kind::Started | Kind::Exit => known,
            // `open` looks at these.
            Kind::Attach | Kind::Start => !connection,
            Kind::Stdin | Kind::Stdout | Kind::Stderr | Kind::Auth => !connection,
        };
        right.then_some(()).ok_or(SessionError::Channel(channel))
    }

    fn on_data<'a>(
        &mut self,
        stream: Stream,
        frame: &Frame<'a>,
    ) -> Result<Option<Event<'a>>, SessionError> {
        let role = self.role;
        let Some(streams) = self.channels.get_mut(&frame.channel.0) else {
            // As in `place`: input for a job that has just ended.
            return match (role, frame.channel) {
                (Role::Server, channel) if channel != Channel::CONNECTION => Ok(None),
                _ => Err(SessionError::Channel(frame.channel)),
            };
        };
        let Some(flow) = streams.recv(stream) else {
            return Ok(None);
        };
        let len = u64::try_from(frame.payload.len()).unwrap_or(u64::MAX);
        flow.on_data(len, frame.flags.end(), frame.flags.blocked())
            .map_err(|source| SessionError::Flow {
                channel: frame.channel,
                stream,
                source,
            })?;
        Ok(Some(Event::Data {
            stream,
            bytes: frame.payload,
            end: frame.flags.end(),
        }))
    }

    fn on_start<'a>(&mut self, frame: &Frame<'a>) -> Result<Option<Event<'a>>, SessionError> {
        self.place(Kind::Start, frame.channel)?;
        let mut pending = match self.pending.take() {
            None => {
                let header = Start::from_header(frame.header)?;
                header.check()?;
                self.open(frame.channel, 0, 0)?;
                PendingStart {
                    channel: frame.channel,
                    payload: Vec::new(),
                    header,
                }
            }
            // One start at a time: what is held for starts is bounded by one of them.
            Some(pending) if pending.channel == frame.channel && frame.header.is_empty() => pending,
            Some(_) => return Err(SessionError::NotPermitted(Kind::Start)),
        };
        let announced = usize::try_from(pending.header.bytes).unwrap_or(usize::MAX);
        let whole = pending.payload.len().saturating_add(frame.payload.len());
        let end = frame.flags.end();
        let empty_part = frame.payload.is_empty() && !end;
        if whole > announced.min(START_BYTES_MAX) || empty_part || (end && whole != announced) {
            return Err(MessageError::StartPayload.into());
        }
        pending.payload.extend_from_slice(frame.payload);
        if end {
            return Ok(Some(Event::Start(pending.header, pending.payload)));
        }
        self.pending = Some(pending);
        Ok(None)
    }

    fn on_window<'a>(
        &mut self,
        channel: Channel,
        header: &[u8],
    ) -> Result<Option<Event<'a>>, SessionError> {
        let window = Window::from_header(header)?;
        let Some(streams) = self.channels.get_mut(&channel.0) else {
            return Ok(None);
        };
        let stream = window.stream;
        if let Some(flow) = streams.send(stream) {
            flow.on_window(window.acked, window.limit)
                .map_err(|source| SessionError::Flow {
                    channel,
                    stream,
                    source,
                })?;
        }
        Ok(Some(Event::Window(stream)))
    }

    fn open(&mut self, channel: Channel, stdout: u64, stderr: u64) -> Result<(), SessionError> {
        if self.channels.len() >= CHANNELS_MAX {
            return Err(SessionError::TooManyChannels);
        }
        if channel == Channel::CONNECTION || self.channels.contains_key(&channel.0) {
            return Err(SessionError::Channel(channel));
        }
        let streams = Streams {
            send: [
                SendFlow::default(),
                SendFlow::from_offset(stdout),
                SendFlow::from_offset(stderr),
            ],
            recv: [
                RecvFlow::default(),
                RecvFlow::from_offset(stdout),
                RecvFlow::from_offset(stderr),
            ],
            started: false,
        };
        self.channels.insert(channel.0, streams);
        Ok(())
    }

    // ---- what goes out ----------------------------------------------------

    fn control<M: Message>(&mut self, channel: Channel, message: &M) {
        self.outbox.message(channel, Order::First, message);
    }

    /// Asks the server to start a job; gives the channel it will be on.
    ///
    /// `payload` holds the strings that `start` counts, and `start.bytes` is its length.
    ///
    /// # Errors
    /// [`SessionError::TooManyChannels`], [`SessionError::Message`].
    pub fn start(&mut self, start: &Start, payload: &[u8]) -> Result<Channel, SessionError> {
        start.check()?;
        let channel = self.fresh_channel();
        self.open(channel, 0, 0)?;
        let mut header = serde_json::to_vec(start).unwrap_or_default();
        let mut parts = payload.chunks(PAYLOAD_BYTES_MAX).peekable();
        loop {
            let part = parts.next().unwrap_or_default();
            let last = parts.peek().is_none();
            let flags = if last { Flags::END } else { Flags::NONE };
            self.outbox
                .frame(Kind::Start, flags, channel, Order::First, &header, part);
            header.clear();
            if last {
                return Ok(channel);
            }
        }
    }

    /// Attaches to a job that was started before.
    ///
    /// # Errors
    /// [`SessionError::TooManyChannels`].
    pub fn attach(&mut self, attach: &Attach) -> Result<Channel, SessionError> {
        let channel = self.fresh_channel();
        self.open(channel, attach.stdout, attach.stderr)?;
        self.control(channel, attach);
        Ok(channel)
    }

    fn fresh_channel(&mut self) -> Channel {
        loop {
            let channel = self.next_channel.max(1);
            self.next_channel = channel.wrapping_add(1);
            if !self.channels.contains_key(&channel) {
                return Channel(channel);
            }
        }
    }

    /// A server: the program runs.
    pub fn started(&mut self, channel: Channel, started: &Started) {
        if let Some(streams) = self.channels.get_mut(&channel.0) {
            streams.started = true;
            self.control(channel, started);
        }
    }

    /// A server: the outcome, behind all data that was put; the channel is closed.
    pub fn exit(&mut self, channel: Channel, exit: &Exit) {
        if self.close(channel) {
            self.outbox.message(channel, Order::AfterData, exit);
        }
    }

    /// Refuses what a channel, or with channel 0 the connection, asked for; the
    /// channel is closed.
    pub fn refuse(&mut self, channel: Channel, refused: &Refused) {
        self.close(channel);
        self.outbox.message(channel, Order::AfterData, refused);
    }

    /// Forgets a channel whose end has come; a client calls it after `exit` or
    /// `refused`. Says whether it was open.
    pub fn close(&mut self, channel: Channel) -> bool {
        let Some(streams) = self.channels.remove(&channel.0) else {
            return false;
        };
        let growth: u64 = streams.recv.iter().map(RecvFlow::growth).sum();
        self.growth_budget = self.growth_budget.saturating_add(growth);
        true
    }

    /// Sends a signal to the job of a channel, or on channel 0 to the job it names.
    pub fn signal(&mut self, channel: Channel, signal: &Signal) {
        self.control(channel, signal);
    }

    /// Tells the terminal's size.
    pub fn resize(&mut self, channel: Channel, resize: &Resize) {
        self.control(channel, resize);
    }

    /// Asks for a `pong`.
    pub fn ping(&mut self, ping: &Ping) {
        self.control(Channel::CONNECTION, ping);
    }

    /// Asks for the jobs.
    pub fn list(&mut self, list: &List) {
        self.control(Channel::CONNECTION, list);
    }

    /// Answers `list`.
    pub fn jobs(&mut self, jobs: &Jobs) {
        self.control(Channel::CONNECTION, jobs);
    }

    /// Says that the connection is about to close, behind all that is queued.
    pub fn bye(&mut self, bye: &Bye) {
        self.outbox
            .message(Channel::CONNECTION, Order::AfterData, bye);
    }

    // ---- streams ----------------------------------------------------------

    /// The sending end of a stream.
    pub fn sending(&self, channel: Channel, stream: Stream) -> Option<&SendFlow> {
        self.channels.get(&channel.0)?.send.get(slot(stream))
    }

    /// The receiving end of a stream.
    pub fn receiving(&self, channel: Channel, stream: Stream) -> Option<&RecvFlow> {
        self.channels.get(&channel.0)?.recv.get(slot(stream))
    }

    /// How many bytes of a stream may be put now: by its window, and by what
    /// waits in the outbox.
    pub fn room(&self, channel: Channel, stream: Stream) -> usize {
        if self.outbox.bulk_is_full() {
            return 0;
        }
        let room = self.sending(channel, stream).map_or(0, SendFlow::room);
        usize::try_from(room)
            .unwrap_or(usize::MAX)
            .min(PAYLOAD_BYTES_MAX)
    }

    /// Lets `fill` write the next bytes of a stream into the frame that will
    /// carry them: at most [`Self::room`] and at most the space it is given.
    ///
    /// `fill` gives how many bytes it wrote and whether the stream ends behind
    /// them. Nothing is sent for no bytes and no end.
    ///
    /// # Errors
    /// [`PutError::Closed`], or what `fill` failed with, which leaves nothing behind.
    pub fn put_with<E>(
        &mut self,
        channel: Channel,
        stream: Stream,
        fill: impl FnOnce(&mut [u8]) -> Result<(usize, bool), E>,
    ) -> Result<(usize, bool), PutError<E>> {
        let room = self.room(channel, stream);
        let flow = self
            .channels
            .get_mut(&channel.0)
            .and_then(|streams| streams.send(stream))
            .filter(|flow| !flow.ended())
            .ok_or(PutError::Closed)?;
        let window = flow.room();
        let put = self
            .outbox
            .data_with(Kind::data(stream), channel, room, fill, |len, end| {
                let end_flag = if end { Flags::END } else { Flags::NONE };
                // The window is used up, and the source filled all it was given: most
                // likely there is more.
                let blocked = !end && u64::try_from(len).is_ok_and(|len| len >= window);
                if blocked {
                    end_flag.with(Flags::BLOCKED)
                } else {
                    end_flag
                }
            });
        let (len, end) = put.map_err(PutError::Source)?;
        flow.advance(u64::try_from(len).unwrap_or(u64::MAX), end);
        Ok((len, end))
    }

    /// Ends a stream.
    ///
    /// # Errors
    /// [`PutError::Closed`].
    pub fn put_end(
        &mut self,
        channel: Channel,
        stream: Stream,
    ) -> Result<(), PutError<std::convert::Infallible>> {
        let flow = self
            .channels
            .get_mut(&channel.0)
            .and_then(|streams| streams.send(stream))
            .filter(|flow| !flow.ended())
            .ok_or(PutError::Closed)?;
        flow.advance(0, true);
        self.outbox.frame(
            Kind::data(stream),
            Flags::END,
            channel,
            Order::AfterData,
            &[],
            &[],
        );
        Ok(())
    }

    /// Counts `len` more bytes of a stream as arrived at their destination and
    /// tells the sender when it is worth a message.
    pub fn consumed(&mut self, channel: Channel, stream: Stream, len: u64) {
        let Some(streams) = self.channels.get_mut(&channel.0) else {
            return;
        };
        let Some(flow) = streams.recv(stream) else {
            return;
        };
        flow.consume(len);
        if let Some((acked, limit)) = flow.announce(&mut self.growth_budget) {
            self.control(
                channel,
                &Window {
                    stream,
                    acked,
                    limit,
                },
            );
        }
    }
}
