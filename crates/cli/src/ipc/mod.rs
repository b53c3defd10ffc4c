//! What the gate and the keeper say to each other over their seqpacket sockets.
//!
//! The keeper makes one pair of sockets for each worker of the gate and one
//! for its handshake signatures, before it starts the gate; nobody else ever
//! holds an end. Each message is one packet of postcard, with descriptors
//! beside it (SCM_RIGHTS) where the variant says so. The keeper trusts no
//! claim in a [`ToKeeper`]: a start needs a grant that the keeper itself gave.

pub mod messages;
pub mod packet;

pub use messages::{
    Answer, Bequest, Binding, Cause, DenyCode, End, Exited, Grant, GrantToken, Granted,
    JobSnapshot, JobSpec, NotStarted, Pty, Question, RefuseCode, Scope, Source, SpecPlace, Spool,
    SpoolPolicy, Stdin, Stream, Terms, ToGate, ToKeeper, Tree,
};
