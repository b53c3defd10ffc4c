//! What a session gives back: what came of the bytes, and what can be wrong with them.
//!
//! Plain types without behaviour, shared by both directions of the session.

use crate::frame::{FrameError, Kind, Stream};
use crate::id::Channel;
use crate::limits::{CHANNELS_MAX, PROTOCOL};
use crate::message::{
    Attach, Bye, Exit, Forget, Gap, Granted, Hello, Jobs, List, MessageError, Ping, Pong, Refused,
    Resize, Signal, Start, Started,
};

use super::flow::FlowError;

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
    /// An outcome whose offsets are not those of the data that came before it.
    #[error("channel {0}: the outcome came before all of the output")]
    Incomplete(Channel),
    /// The peer asks and asks and does not read the answers. A caller that pauses at
    /// [`super::Outbox::control_is_full`] never sees it.
    #[error("the peer does not read what it asks for")]
    AnswersUnread,
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
    /// Data of a stream; tell [`super::Session::consumed`] when it has arrived.
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
    /// Part of a stream was dropped; it goes on at the offset that this says.
    Gap(Gap),
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
