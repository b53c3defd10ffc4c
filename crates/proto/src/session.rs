//! Sessions: what may be said when, and how far each stream has come.
//!
//! ```text
//!            server                                   client
//!   hello ─────────────►
//!   ServerHandshake                          ClientHandshake
//!                       ◄───────────── hello, auth [, start …]
//!   decided elsewhere
//!   granted ───────────►
//!   Session                                  Session
//! ```
//!
//! A [`ServerHandshake`] becomes a [`Session`] only by [`ServerHandshake::granted`];
//! before that, the functions that start jobs do not exist.

mod channel;
mod commands;
mod event;
mod flow;
mod handshake;
mod machine;
mod outbox;
mod phase;

#[cfg(test)]
mod tests;

pub use event::{Event, PutError, SessionError, Step};
pub use flow::{FlowError, RecvFlow, SendFlow};
pub use handshake::{ServerEvent, ServerHandshake};
pub use machine::Session;
pub use outbox::Outbox;
pub use phase::Role;
