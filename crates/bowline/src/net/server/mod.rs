//! Servers: opened by a [`ServerBuilder`], run by their owner, watched and
//! stopped through a [`ServerHandle`].
//!
//! ```text
//! builder ──stream(service)───► StreamServer ───serve()──► Stopped
//!         └─datagram(service)─► DatagramServer ─┘   ▲
//!                                                   │ stop
//!                                   ServerHandle ───┘
//! ```
//!
//! A server owns every task that it starts and is done when they are. `serve`
//! is a future of its owner: dropping it ends all connections at once.

mod builder;
mod datagrams;
mod handle;
mod streams;

pub use builder::{ListenError, ServerBuilder};
pub use datagrams::DatagramServer;
pub use handle::{ServerHandle, Stopped};
pub use streams::StreamServer;
