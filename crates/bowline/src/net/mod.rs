//! Sockets and TLS: everything that touches the operating system's network.

mod socket;
pub mod tls;

pub use socket::Socket;
