//! A program's side: connect to a server, start jobs, take what they write and
//! what became of them.
//!
//! [`connect()`] gives a [`Connection`], one value that owns its socket, its
//! session and everything half done. [`Connection::next`] is the only thing to
//! wait for; what a program wants is put in with plain methods. Nothing runs
//! behind its back, so dropping the value is the end of the connection.

mod connect;
mod connection;
mod error;
mod handshake;
mod pulse;
mod reach;
mod reconnect;
mod unacked;

pub use connect::{
    Access, Endpoint, HostKeyError, HostTrust, Options, Proofs, ServerProof, connect,
};
pub use connection::{Connection, Happening, StartRequest};
pub use error::ClientError;
pub use pulse::{Beat, Pulse};
pub use reach::{Hurry, Whereabouts};
pub use reconnect::{Failure, Reconnect};
pub use unacked::{InputLost, Unacked};
