//! The server's side up to the grant. A client's handshake is part of its
//! [`Session`]: it may speak ahead of the answer, a server may not act ahead of it.

use super::event::SessionError;
use super::machine::Session;
use super::outbox::{Order, Outbox};
use crate::frame::{self, Bound, Kind};
use crate::id::Channel;
use crate::limits::{PROTOCOL, USER_BYTES_MAX};
use crate::message::{Auth, Bye, Granted, Hello, Message, Refused};

/// A server's connection before it is decided.
#[derive(Debug)]
pub struct ServerHandshake {
    outbox: Outbox,
    state: State,
    minor: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Hello,
    Auth,
    /// Nothing behind `auth` is looked at until it is decided.
    Deciding,
}

/// What a client said before it was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// The bytes so far are no whole message; or, once `Auth` was given, no
    /// more is looked at.
    NeedMore,
    /// It introduced itself.
    Hello(Hello),
    /// Its proofs, to be decided.
    Auth(Auth),
    /// It leaves.
    Bye(Bye),
}

impl ServerHandshake {
    /// Begins with the server's `hello`, which waits in the outbox.
    pub fn new(hello: &Hello) -> Self {
        let mut outbox = Outbox::default();
        outbox.message(Channel::CONNECTION, Order::First, hello);
        Self {
            outbox,
            state: State::Hello,
            minor: hello.minor,
        }
    }

    /// Whether the proofs have come and are to be decided.
    #[cfg(test)]
    pub(super) fn is_deciding(&self) -> bool {
        self.state == State::Deciding
    }

    /// What waits to be sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Looks for the next message at the start of `input` and says how many
    /// bytes it took.
    ///
    /// # Errors
    /// [`SessionError`]; the connection cannot go on.
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, ServerEvent), SessionError> {
        if self.state == State::Deciding {
            return Ok((0, ServerEvent::NeedMore));
        }
        let Some((frame, len)) = frame::decode(input, Bound::Unauthenticated)? else {
            return Ok((0, ServerEvent::NeedMore));
        };
        if frame.channel != Channel::CONNECTION || !frame.payload.is_empty() {
            return Err(SessionError::NotPermitted(frame.kind));
        }
        let event = match (self.state, frame.kind) {
            (State::Hello, Kind::Hello) => {
                let hello = Hello::from_header(frame.header)?;
                if hello.protocol != PROTOCOL {
                    return Err(SessionError::Protocol);
                }
                self.state = State::Auth;
                self.minor = self.minor.min(hello.minor);
                ServerEvent::Hello(hello)
            }
            (State::Auth, Kind::Auth) => {
                let auth = Auth::from_header(frame.header)?;
                if auth.user.len() > USER_BYTES_MAX {
                    return Err(SessionError::UserTooLong);
                }
                self.state = State::Deciding;
                ServerEvent::Auth(auth)
            }
            (_, Kind::Bye) => ServerEvent::Bye(Bye::from_header(frame.header)?),
            (_, kind) => return Err(SessionError::NotPermitted(kind)),
        };
        Ok((len, event))
    }

    /// The proofs were good: the session begins.
    ///
    /// `_proof` is the value that only the verifier can make; the caller's
    /// type of it stays with whoever starts jobs.
    pub fn granted<A>(mut self, granted: &Granted, _proof: &A) -> Session {
        self.outbox
            .message(Channel::CONNECTION, Order::First, granted);
        Session::open_server(self.outbox, self.minor)
    }

    /// Tells the client why it is not let in; the connection ends when that is sent.
    pub fn refuse(&mut self, refused: &Refused) {
        self.outbox
            .message(Channel::CONNECTION, Order::First, &refused.fitted());
    }
}
