//! What can go wrong between a client and its server, by whose fault it is.

use std::io;
use std::time::Duration;

use bowline_proto::message::Refused;
use bowline_proto::outcome::Happened;
use bowline_proto::session::SessionError;

use super::connect::HostKeyError;
use super::unacked::InputLost;
use crate::driver::WireError;

/// Why there is no connection, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody was reached.
    #[error("cannot connect to {to}")]
    Connect {
        /// The address as the user gave it.
        to: String,
        /// As getaddrinfo(3) and connect(2).
        source: io::Error,
    },
    /// The helper program that carries the connection (ssh) did not start.
    #[error("cannot run {program}")]
    Command {
        /// The program.
        program: String,
        /// As execve(2).
        source: io::Error,
    },
    /// The helper program ended before a server answered through it.
    #[error("what carries the connection ended before a server answered ({0})")]
    Carrier(std::process::ExitStatus),
    /// Nobody answered in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The socket or TLS failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// TLS could not be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The server broke the protocol.
    #[error("the server broke the protocol")]
    Session(#[from] SessionError),
    /// The server's host key is not the one that it must be.
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
    /// The server knows the shared secret no better than we know the server.
    #[error("the server did not prove that it knows the shared secret")]
    ServerNotProven,
    /// The server said no.
    #[error("{}", .0.message)]
    Refused(Refused),
    /// The server is older than terminals.
    #[error("the server is too old to give a job a terminal")]
    NoTerminals,
    /// The server is older than what is asked for: jobs that outlive their connections.
    #[error("the server is too old for jobs that outlive their connection")]
    NoAttachments,
    /// Nobody was heard of for as long as that, though asked.
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    /// The server wants to go on with input that it had already acknowledged.
    #[error(transparent)]
    InputLost(#[from] InputLost),
    /// The connection ended without a word.
    #[error("the connection was closed")]
    Closed,
}

impl ClientError {
    /// The stable code, as PROTOCOL.md lists them.
    pub fn code(&self) -> &str {
        match self {
            Self::Connect { .. } => "connect_failed",
            Self::Command { .. } => "command_failed",
            // POSIX's shells, so also those that ssh starts, say so of a missing program.
            Self::Carrier(status) if matches!(status.code(), Some(126 | 127)) => {
                "carrier_not_found"
            }
            Self::Carrier(_) => "carrier_failed",
            Self::Timeout(_) => "connect_timeout",
            Self::Wire(WireError::Io(_)) | Self::Closed => "connection_lost",
            Self::Wire(WireError::Tls(_)) | Self::Tls(_) => "tls_failed",
            Self::Session(_) => "protocol_error",
            Self::HostKey(error) => error.code(),
            Self::ServerNotProven => "server_not_proven",
            Self::Refused(refused) => &refused.code,
            Self::NoTerminals => "no_terminals",
            Self::NoAttachments => "no_attachments",
            Self::Silent(_) => "connection_silent",
            Self::InputLost(_) => "input_lost",
        }
    }

    /// The outcome of a job that got no further than this.
    pub fn outcome(&self) -> Happened {
        match self {
            Self::Refused(_) | Self::NoTerminals | Self::NoAttachments => Happened::Refused,
            _ => Happened::Unreachable,
        }
    }

    /// Whether the same attempt may work a moment later: the line broke, and
    /// nobody said no.
    pub fn is_broken_line(&self) -> bool {
        matches!(
            self,
            Self::Closed | Self::Silent(_) | Self::Wire(WireError::Io(_))
        )
    }
}
