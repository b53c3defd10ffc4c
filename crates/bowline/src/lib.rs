//! Run commands on other machines as if they were here: the library.
//!
//! `net` knows sockets and TLS, `driver` moves bytes between a socket and a
//! session of [`bowline_proto`], and [`client`] is what a program uses: connect,
//! start jobs, take their output and their outcome. Everything above the bytes
//! is in [`bowline_proto`], which this crate re-exports as [`proto`].
//!
//! Direction of imports: `net` → `driver` → `client`.

#![forbid(unsafe_code)]

pub mod client;
pub mod credentials;
pub mod driver;
pub mod net;

pub use bowline_proto as proto;
