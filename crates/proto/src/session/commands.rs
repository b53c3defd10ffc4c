//! What this side says: the commands and getters of a session.
//!
//! Commands put frames into the outbox and never wait. What they are given is
//! this side's own: a mistake in it is cut to its limit, or refused, and never
//! becomes a frame that the peer would misread. Data leaves by
//! [`Session::put_with`], straight into the frame that carries it.

use std::collections::BTreeMap;

use super::channel::{Opened, Stage};
use super::event::{PutError, SessionError};
use super::flow::{RecvFlow, SendFlow};
use super::machine::Session;
use super::outbox::Order;
use super::phase::Role;
use crate::frame::{Flags, Kind, Stream};
use crate::id::Channel;
use crate::limits::{HEADER_BYTES_MAX, JOBS_PER_MESSAGE_MAX, PAYLOAD_BYTES_MAX};
use crate::message::{
    Attach, Auth, Bye, Exit, Forget, Gap, JobRow, Jobs, List, Message, MessageError, Ping, Refused,
    Resize, Signal, Start, Started, Window,
};

/// What the rows of one `jobs` may take; the rest of its header is `{"jobs":[],"more":false}`.
const JOBS_ROWS_BYTES_MAX: usize = HEADER_BYTES_MAX - 32;

impl Session {
    /// Queues a message. What a server says is an answer, and so is a client's `pong`.
    fn say<M: Message>(&mut self, channel: Channel, order: Order, message: &M) {
        if self.role == Role::Server || M::KIND == Kind::Pong {
            self.outbox.answer(channel, order, message);
        } else {
            self.outbox.message(channel, order, message);
        }
    }

    pub(super) fn control<M: Message>(&mut self, channel: Channel, message: &M) {
        self.say(channel, Order::First, message);
    }

    /// A client's user and proofs.
    pub fn authenticate(&mut self, auth: &Auth) {
        self.control(Channel::CONNECTION, auth);
    }

    /// Asks the server to start a job; gives the channel it will be on.
    ///
    /// `payload` holds the strings that `start` counts, and `start.bytes` is its length.
    ///
    /// # Errors
    /// [`SessionError::TooManyChannels`]; [`SessionError::Message`] where the start is
    /// over a limit or `payload` has another length. Nothing was sent then.
    pub fn start(&mut self, start: &Start, payload: &[u8]) -> Result<Channel, SessionError> {
        start.check()?;
        if u32::try_from(payload.len()) != Ok(start.bytes) {
            return Err(MessageError::StartPayload.into());
        }
        let channel = self.fresh_channel();
        let attachment = self.open(channel, Opened::ByStart, Stage::Asked)?;
        if start.null_stdin {
            attachment.without_stdin();
        }
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

    /// Attaches to a job that was started before. Its stdin can be sent once
    /// `started` has told where it goes on.
    ///
    /// # Errors
    /// [`SessionError::TooManyChannels`].
    pub fn attach(&mut self, attach: &Attach) -> Result<Channel, SessionError> {
        let channel = self.fresh_channel();
        let opened = Opened::ByAttach(attach.offsets());
        self.open(channel, opened, Stage::Asked)?;
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

    /// Tells the server that it may drop what it keeps of a job that has ended.
    pub fn forget(&mut self, forget: &Forget) {
        self.control(Channel::CONNECTION, forget);
    }

    /// A server: a stream goes on at a later offset, behind the data that was put; what is
    /// between was dropped. Says nothing where the offset is not later, or to a peer that does
    /// not know gaps: its caller ends the channel instead.
    pub fn gap(&mut self, channel: Channel, gap: &Gap) -> bool {
        let known = self.minor() >= 1;
        let flow = self.open_end(channel, gap.stream);
        let Some(flow) = flow.filter(|flow| known && flow.sent() < gap.offset) else {
            return false;
        };
        flow.skip_to(gap.offset);
        self.say(channel, Order::AfterData, gap);
        true
    }

    /// A server: the program runs. It is said once.
    pub fn started(&mut self, channel: Channel, started: &Started) {
        if let Some(attachment) = self.channels.get_mut(&channel.0)
            && attachment.stage == Stage::Asked
        {
            attachment.run(started);
            self.control(channel, started);
        }
    }

    /// A server: the outcome, behind all data that was put; the channel is closed.
    pub fn exit(&mut self, channel: Channel, exit: &Exit) {
        if self.close(channel) {
            self.say(channel, Order::AfterData, &exit.fitted());
        }
    }

    /// Refuses what a channel, or with channel 0 the connection, asked for; the
    /// channel is closed. On a channel that is closed already nothing was asked,
    /// and nothing is said.
    pub fn refuse(&mut self, channel: Channel, refused: &Refused) {
        if self.close(channel) || channel == Channel::CONNECTION {
            self.say(channel, Order::AfterData, &refused.fitted());
        }
    }

    /// Forgets a channel whose end has come; a client calls it after `exit` or
    /// `refused`. Says whether it was open.
    ///
    /// The growth of its windows is free for others then: a caller that still holds
    /// output of it bounds that by itself.
    pub fn close(&mut self, channel: Channel) -> bool {
        let Some(attachment) = self.channels.remove(&channel.0) else {
            return false;
        };
        self.growth_budget = self.growth_budget.saturating_add(attachment.growth());
        if self.channels.is_empty() {
            // An empty map keeps a node; an idle connection need not.
            self.channels = BTreeMap::new();
        }
        true
    }

    /// Sends a signal to the job of a channel, or on channel 0 to the job it names.
    pub fn signal(&mut self, channel: Channel, signal: &Signal) {
        self.control(channel, &signal.fitted());
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
        self.control(Channel::CONNECTION, &list.fitted());
    }

    /// Answers `list`, in as many messages as its rows need; texts over their
    /// limits are cut.
    pub fn jobs(&mut self, jobs: &Jobs) {
        let mut part = Vec::new();
        let mut part_bytes = 0_usize;
        for row in jobs.jobs.iter().map(JobRow::fitted) {
            let bytes = serde_json::to_vec(&row).map_or(0, |row| row.len().saturating_add(1));
            let full = part_bytes.saturating_add(bytes) > JOBS_ROWS_BYTES_MAX;
            if full || part.len() >= JOBS_PER_MESSAGE_MAX {
                let jobs = std::mem::take(&mut part);
                self.control(Channel::CONNECTION, &Jobs { jobs, more: true });
                part_bytes = 0;
            }
            part_bytes = part_bytes.saturating_add(bytes);
            part.push(row);
        }
        let (jobs, more) = (part, jobs.more);
        self.control(Channel::CONNECTION, &Jobs { jobs, more });
    }

    /// Says that the connection is about to close, behind all that is queued.
    pub fn bye(&mut self, bye: &Bye) {
        self.say(Channel::CONNECTION, Order::AfterData, &bye.fitted());
    }

    // ---- streams ----------------------------------------------------------

    /// The sending end of a stream; `None` where it goes the other way.
    pub fn sending(&self, channel: Channel, stream: Stream) -> Option<&SendFlow> {
        self.channels.get(&channel.0)?.send(stream)
    }

    /// The receiving end of a stream; `None` where it goes the other way.
    pub fn receiving(&self, channel: Channel, stream: Stream) -> Option<&RecvFlow> {
        self.channels.get(&channel.0)?.recv(stream)
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

    /// The sending end of a stream that can be put into.
    fn open_end(&mut self, channel: Channel, stream: Stream) -> Option<&mut SendFlow> {
        let attachment = self.channels.get_mut(&channel.0)?;
        let known = stream != Stream::Stdin || attachment.stdin_is_open();
        let flow = attachment.send_mut(stream)?;
        (known && !flow.is_over()).then_some(flow)
    }

    /// Lets `fill` write the next bytes of a stream into the frame that will
    /// carry them: at most [`Self::room`] and at most the space it is given.
    ///
    /// `fill` gives how many bytes it wrote and whether the stream ends behind
    /// them. Nothing is sent for no bytes and no end. Without room `fill` is not
    /// called: a read into no space looks like the end of a file.
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
        let flow = self.open_end(channel, stream).ok_or(PutError::Closed)?;
        let window = flow.room();
        if room == 0 {
            return Ok((0, false));
        }
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
        if let Some(flow) = self.open_end(channel, stream) {
            flow.advance(u64::try_from(len).unwrap_or(u64::MAX), end);
        }
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
        let flow = self.open_end(channel, stream).ok_or(PutError::Closed)?;
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
        let attachment = self.channels.get_mut(&channel.0);
        let Some(flow) = attachment.and_then(|attachment| attachment.recv_mut(stream)) else {
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
                    closed: false,
                },
            );
        }
    }

    /// A server: the program reads no more of its stdin, so the client need not send more.
    /// What is on its way is still taken in, up to the window.
    pub fn close_stdin(&mut self, channel: Channel) {
        let stream = Stream::Stdin;
        let attachment = self.channels.get_mut(&channel.0);
        let flow = attachment.and_then(|attachment| attachment.recv_mut(stream));
        if let Some((acked, limit)) = flow.and_then(RecvFlow::announce_closed) {
            let window = Window {
                stream,
                acked,
                limit,
                closed: true,
            };
            self.control(channel, &window);
        }
    }
}
