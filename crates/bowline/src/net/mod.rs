//! Sockets, TLS, and services of one's own over TCP, UDP and Unix sockets.
//!
//! A service is a type with one method; everything else a server needs is here:
//! many clients at once, limits, authentication, a clean stop.
//!
//! ```
//! use bowline::net::{Connection, ServerBuilder, ServiceError, StreamService};
//!
//! struct Upper;
//!
//! impl StreamService for Upper {
//!     async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
//!         while let Some(mut bytes) = connection.read().await? {
//!             bytes.make_ascii_uppercase();
//!             connection.send(&bytes).await?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listen = "tcp://127.0.0.1:0".parse()?;
//! let server = ServerBuilder::new().listen(listen).stream(Upper).await?;
//! let handle = server.handle();
//! let client = async {
//!     let mut connection = Connection::connect(&handle.endpoints()[0]).await?;
//!     connection.send(b"hello").await?;
//!     assert_eq!(connection.read().await?.as_deref(), Some(&b"HELLO"[..]));
//!     handle.stop();
//!     Ok::<_, Box<dyn std::error::Error>>(())
//! };
//! let (stopped, done) = tokio::join!(server.serve(), client);
//! done?;
//! assert_eq!(stopped.cut_off, 0);
//! # Ok(())
//! # }
//! ```
//!
//! # From Python's socketserver
//!
//! | `socketserver` | here |
//! | --- | --- |
//! | `TCPServer`, `UnixStreamServer` | [`ServerBuilder::stream`] with `tcp://` or `unix:` endpoints, several at once |
//! | `UDPServer`, `UnixDatagramServer` | [`ServerBuilder::datagram`] with `udp://` or `unixgram:` |
//! | `ThreadingMixIn`, `ForkingMixIn` | always: a task for each connection; on tokio's multi-threaded runtime they share its threads |
//! | `max_children`, `daemon_threads`, `block_on_close` | [`Limits::connections_max`], [`ServerBuilder::stop_within`] |
//! | `BaseRequestHandler.handle` | [`StreamService::serve`], [`DatagramService::answer`] |
//! | `setup`, `finish` | the beginning and the end of `serve`; what was [put](Writer::put) is sent by itself |
//! | `StreamRequestHandler`'s `rfile`, `wfile` | [`Connection::reader`], [`Connection::writer`] |
//! | `StreamRequestHandler.timeout` | [`Limits::idle_time`], [`Limits::first_message_time`] |
//! | `disable_nagle_algorithm`, `wbufsize` | never Nagle; [`Writer::send`] is unbuffered, [`Writer::put`] is buffered |
//! | `client_address` | [`Connection::peer`] |
//! | `verify_request` | [`StreamService::verify_request`], [`DatagramService::verify_request`] |
//! | `handle_error` | [`StreamService::handle_error`], [`DatagramService::handle_error`]; a panic of the service arrives there too |
//! | `timeout`, `handle_timeout` | [`ServerBuilder::timeout`], [`StreamService::handle_timeout`], which also hears of idle peers |
//! | `service_actions` | [`StreamService::service_actions`]: a future beside the connections, not a call twice a second |
//! | `serve_forever`, `handle_request` | [`StreamServer::serve`], [`DatagramServer::serve`] |
//! | `shutdown`, `server_close` | [`ServerHandle::stop`], which lets what is under way end |
//! | `server_address`, `fileno` | [`ServerHandle::endpoints`] |
//! | `request_queue_size` | [`ServerBuilder::backlog`] |
//! | `allow_reuse_address` | [`ServerBuilder::reuse_address`] |
//! | `max_packet_size` | [`Limits::message_bytes_max`] |
//!
//! What it lacks and is here: messages that stay apart ([`Connection::read_message`]
//! with a framing of [`bowline_proto::framing`]), [`Limits`] on what strangers cost, an
//! [`Authentication`] before the service, [`ServerHandle::connections`], a close
//! that does not tear the last reply away, abstract Unix sockets, addresses that
//! can be [parsed](Endpoint).
mod admission;
mod authentication;
mod buffer;
mod connection;
mod datagram;
mod endpoint;
mod limits;
mod listen;
mod message;
mod patience;
mod rate;
mod reader;
mod server;
mod service;
mod socket;
pub mod tls;
mod writer;

pub use authentication::{Anyone, Authentication};
pub use buffer::Chunk;
pub use connection::Connection;
pub use datagram::DatagramSocket;
pub use endpoint::{Endpoint, EndpointError, HOST_BYTES_MAX, Peer, UNIX_NAME_BYTES_MAX, UnixName};
pub use limits::{BUFFER_BYTES, DATAGRAM_BYTES_MAX, Limits, Rate};
pub use reader::Reader;
pub use server::{DatagramServer, ListenError, ServerBuilder, ServerHandle, Stopped, StreamServer};
pub use service::{Answer, DatagramService, ServiceError, StreamService, TimedOut};
pub use socket::Socket;
pub use writer::Writer;
