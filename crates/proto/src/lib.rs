//! The rules of bowline's wire: what a frame, a message, a session may be.
//!
//! Bytes and values in, bytes and values out. This crate must never see a
//! socket, a clock, a source of randomness or an async runtime: time and
//! randomness are arguments, and one program (`bowline::driver`) moves the
//! bytes. Everything that arrives here is hostile until it has been checked.
//!
//! Direction of imports: `limits` → `wire` → `frame` → `message` → `session`.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod auth;
pub mod copy;
pub mod frame;
pub mod framing;
pub mod grants;
pub mod id;
pub mod key;
pub mod known_hosts;
pub mod limits;
pub mod message;
pub mod outcome;
pub mod pattern;
pub mod plain;
pub mod session;
pub mod ssh_wire;
pub mod sshsig;
mod wire;
