//! An open session: channels, streams and their credit, without IO.
//!
//! Here is what comes in: [`Session::next`] with the bytes that have come.
//! Commands (`commands.rs`) put frames into the [`Outbox`]; getters tell how far
//! each stream is. One caller moves the bytes. Nothing here waits, and what one
//! input can cost is bounded by the limits of [`crate::limits`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::channel::{Attachment, Opened, Stage};
use super::event::{Event, SessionError, Step};
use super::outbox::{Order, Outbox};
use super::phase::{self, Role};
use crate::frame::{self, Bound, Frame, Kind, Stream};
use crate::id::Channel;
use crate::limits::{
    CHANNELS_MAX, CONTROL_OUT_MAX, PROTOCOL, START_BYTES_MAX, WINDOW_GROWTH_PER_CONNECTION_MAX,
};
use crate::message::{
    Attach, Bye, Exit, Forget, Gap, Granted, Hello, Jobs, List, Message, MessageError, Ping, Pong,
    Refused, Resize, Signal, Start, Started, Window,
};

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
    pub(super) role: Role,
    said_hello: bool,
    granted: bool,
    /// What both sides may rely on: the smaller of the two numbers. 0 before both have said theirs.
    minor: u32,
    own_minor: u32,
    pub(super) outbox: Outbox,
    pub(super) channels: BTreeMap<u32, Attachment>,
    /// A server: the one start that is not whole yet.
    pending: Option<PendingStart>,
    /// What the windows of this connection may still grow by.
    pub(super) growth_budget: u64,
    pub(super) next_channel: u32,
}

impl Session {
    fn new(role: Role, outbox: Outbox, own_minor: u32) -> Self {
        Self {
            role,
            said_hello: role == Role::Server,
            granted: role == Role::Server,
            minor: if role == Role::Server { own_minor } else { 0 },
            own_minor,
            outbox,
            channels: BTreeMap::new(),
            pending: None,
            growth_budget: WINDOW_GROWTH_PER_CONNECTION_MAX,
            next_channel: 1,
        }
    }

    /// `minor` is the smaller of what both sides have said.
    pub(super) fn open_server(outbox: Outbox, minor: u32) -> Self {
        Self::new(Role::Server, outbox, minor)
    }

    /// A client's session. Its `hello` and `auth` are queued, and what is
    /// started before the server has answered goes out in the same flight.
    pub fn client(hello: &Hello) -> Self {
        let mut session = Self::new(Role::Client, Outbox::default(), hello.minor);
        session
            .outbox
            .message(Channel::CONNECTION, Order::First, hello);
        session
    }

    /// What waits to be sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Whether the server has granted.
    pub fn is_granted(&self) -> bool {
        self.granted
    }

    /// The minor version that both sides may rely on; a client knows it once the server's
    /// hello has come, and it is 0 before.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// How many channels are in use.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// What is held of a start that is not whole.
    #[cfg(test)]
    pub(super) fn pending_bytes(&self) -> usize {
        let pending = self.pending.as_ref();
        pending.map_or(0, |pending| pending.payload.capacity())
    }

    /// Looks at the frame at the start of `input`.
    ///
    /// # Errors
    /// [`SessionError`]; the connection cannot go on.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, SessionError> {
        if self.outbox.answers() >= CONTROL_OUT_MAX {
            return Err(SessionError::AnswersUnread);
        }
        let bound = if self.granted {
            Bound::Authenticated
        } else {
            Bound::Unauthenticated
        };
        let Some((frame, len)) = frame::decode(input, bound)? else {
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
                self.minor = hello.minor.min(self.own_minor);
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
                let opened = Opened::ByAttach(attach.offsets());
                self.open(frame.channel, opened, Stage::Asked)?;
                Event::Attach(attach)
            }
            Kind::Started => return self.on_started(frame.channel, header),
            // A server has closed a channel as soon as it has sent `exit`; what the client
            // said meanwhile is late, not wrong, and there is nobody to act on it for.
            Kind::Signal | Kind::Resize if self.is_late(frame.channel) => return Ok(None),
            Kind::Signal => Event::Signal(Signal::from_header(header)?),
            Kind::Resize => Event::Resize(Resize::from_header(header)?),
            Kind::Gap => return self.on_gap(frame.channel, header),
            Kind::Exit => return self.on_exit(frame.channel, header),
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

    /// Whether this is a channel that a client may believe to be open.
    fn is_late(&self, channel: Channel) -> bool {
        self.role == Role::Server
            && channel != Channel::CONNECTION
            && !self.channels.contains_key(&channel.0)
    }

    /// Whether this kind may be said on this channel.
    fn place(&self, kind: Kind, channel: Channel) -> Result<(), SessionError> {
        let connection = channel == Channel::CONNECTION;
        let attachment = self.channels.get(&channel.0);
        if kind != Kind::Start && attachment.is_some_and(|it| it.stage == Stage::Starting) {
            return Err(SessionError::NotPermitted(kind));
        }
        let known = attachment.is_some();
        let late = self.is_late(channel);
        let right = match kind {
            Kind::Hello | Kind::Granted | Kind::Forget | Kind::List | Kind::Jobs => connection,
            Kind::Ping | Kind::Pong | Kind::Bye | Kind::Auth => connection,
            Kind::Signal => connection || known || late,
            Kind::Refused => connection || known,
            Kind::Resize | Kind::Window | Kind::Stdin => known || late,
            Kind::Started | Kind::Exit | Kind::Gap | Kind::Stdout | Kind::Stderr => known,
            // `open` looks at the rest.
            Kind::Attach | Kind::Start => !connection,
        };
        right.then_some(()).ok_or(SessionError::Channel(channel))
    }

    fn on_data<'a>(
        &mut self,
        stream: Stream,
        frame: &Frame<'a>,
    ) -> Result<Option<Event<'a>>, SessionError> {
        self.place(frame.kind, frame.channel)?;
        let Some(attachment) = self.channels.get_mut(&frame.channel.0) else {
            // Input for a job that has just ended.
            return Ok(None);
        };
        let ready = match stream {
            Stream::Stdin => attachment.stdin_is_open(),
            Stream::Stdout | Stream::Stderr => attachment.stage == Stage::Running,
        };
        let flow = attachment.recv_mut(stream).filter(|_| ready);
        let flow = flow.ok_or(SessionError::NotPermitted(frame.kind))?;
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
                self.open(frame.channel, Opened::ByStart, Stage::Starting)?;
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
            if let Some(attachment) = self.channels.get_mut(&frame.channel.0) {
                attachment.stage = Stage::Asked;
                if pending.header.null_stdin {
                    attachment.without_stdin();
                }
            }
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
        let Some(attachment) = self.channels.get_mut(&channel.0) else {
            return Ok(None);
        };
        let stream = window.stream;
        let flow = attachment.send_mut(stream);
        let flow = flow.ok_or(SessionError::NotPermitted(Kind::Window))?;
        flow.on_window(window.acked, window.limit)
            .map_err(|source| SessionError::Flow {
                channel,
                stream,
                source,
            })?;
        // Output has no such thing: a server would wait for ever to end it.
        if window.closed && stream == Stream::Stdin {
            flow.close();
        }
        Ok(Some(Event::Window(stream)))
    }

    fn on_started<'a>(
        &mut self,
        channel: Channel,
        header: &[u8],
    ) -> Result<Option<Event<'a>>, SessionError> {
        let started = Started::from_header(header)?;
        let attachment = self.channels.get_mut(&channel.0);
        let attachment = attachment.filter(|attachment| attachment.stage == Stage::Asked);
        attachment
            .is_some_and(|attachment| attachment.run(&started))
            .then_some(Some(Event::Started(started)))
            .ok_or(SessionError::NotPermitted(Kind::Started))
    }

    /// Part of a stream does not come.
    fn on_gap<'a>(
        &mut self,
        channel: Channel,
        header: &[u8],
    ) -> Result<Option<Event<'a>>, SessionError> {
        let gap = Gap::from_header(header)?;
        let stream = gap.stream;
        let running = self.channels.get_mut(&channel.0);
        let running = running.filter(|attachment| attachment.stage == Stage::Running);
        let flow = running.filter(|_| self.minor >= 1);
        flow.and_then(|attachment| attachment.recv_mut(stream))
            .ok_or(SessionError::NotPermitted(Kind::Gap))?
            .skip_to(gap.offset)
            .map_err(|source| SessionError::Flow {
                channel,
                stream,
                source,
            })?;
        self.consumed(channel, stream, 0);
        Ok(Some(Event::Gap(gap)))
    }

    /// An outcome is only true together with all of the output before it.
    fn on_exit<'a>(
        &mut self,
        channel: Channel,
        header: &[u8],
    ) -> Result<Option<Event<'a>>, SessionError> {
        let exit = Exit::from_header(header)?;
        let whole = |stream, end| {
            let attachment = self.channels.get(&channel.0)?;
            let received = attachment.recv(stream)?.received();
            Some(received == end || !attachment.wants(stream))
        };
        let whole = whole(Stream::Stdout, exit.stdout) == Some(true)
            && whole(Stream::Stderr, exit.stderr) == Some(true);
        whole
            .then_some(Some(Event::Exit(exit)))
            .ok_or(SessionError::Incomplete(channel))
    }

    pub(super) fn open(
        &mut self,
        channel: Channel,
        opened: Opened,
        stage: Stage,
    ) -> Result<&mut Attachment, SessionError> {
        if self.channels.len() >= CHANNELS_MAX {
            return Err(SessionError::TooManyChannels);
        }
        match self.channels.entry(channel.0) {
            Entry::Vacant(vacant) if channel != Channel::CONNECTION => {
                Ok(vacant.insert(Attachment::new(self.role, opened, stage)))
            }
            _ => Err(SessionError::Channel(channel)),
        }
    }
}
