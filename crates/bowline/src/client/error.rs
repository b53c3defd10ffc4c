//! What can go wrong between a client and its server, by whose fault it is.

use std::io;
use std::time::Duration;

use bowline_proto::message::Refused;
use bowline_proto::outcome::Happened;
use bowline_proto::session::SessionError;

use super::connect::HostKeyError;
use super::reconnect::Failure;
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
    /// Output between these two offsets is kept no more.
    #[error("{} bytes of output that were still to come are kept no more", to.saturating_sub(*from))]
    OutputLost {
        /// What has come.
        from: u64,
        /// Where the server goes on.
        to: u64,
    },
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
            Self::OutputLost { .. } => "output_lost",
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

    /// Why an attempt to get back to a server came to nothing; `None` where another
    /// one cannot end better. A server that let this client in before is meant: of one that
    /// never did, [`Self::is_broken_line`] says enough.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Connect { .. }
            | Self::Timeout(_)
            | Self::Wire(WireError::Io(_))
            | Self::Silent(_)
            | Self::Closed => Some(Failure::Unanswered),
            // Bytes that were changed under way, and a program that costs more to start than a
            // connection.
            Self::Wire(WireError::Tls(_)) | Self::Command { .. } | Self::Carrier(_) => {
                Some(Failure::Busy)
            }
            Self::Refused(refused) if is_temporary(&refused.code) => Some(Failure::Busy),
            Self::Refused(_)
            | Self::Tls(_)
            | Self::Session(_)
            | Self::HostKey(_)
            | Self::ServerNotProven
            | Self::NoTerminals
            | Self::NoAttachments
            | Self::InputLost(_)
            | Self::OutputLost { .. } => None,
        }
    }
}

/// Whether PROTOCOL.md says of a refusal that one may try again.
fn is_temporary(code: &str) -> bool {
    matches!(
        code,
        "auth_timeout"
            | "too_many_handshakes"
            | "too_many_connections"
            | "too_many_requests"
            | "idle_timeout"
            | "keeper_gone"
            | "draining"
            | "too_many_jobs"
            | "out_of_resources"
            | "record_failed"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_end_better_is_tried_again_and_nothing_else() {
        let refused = |code: &str| {
            ClientError::Refused(Refused {
                code: code.to_owned(),
                message: String::new(),
            })
        };
        for later in ["draining", "keeper_gone", "too_many_connections"] {
            assert_eq!(refused(later).failure(), Some(Failure::Busy), "{later}");
        }
        for never in ["no_such_job", "not_authenticated", "output_lost", "new"] {
            assert_eq!(refused(never).failure(), None, "{never}");
        }
        assert_eq!(ClientError::Closed.failure(), Some(Failure::Unanswered));
        let changed = HostKeyError::Changed {
            host: "h".to_owned(),
            place: "f:1".to_owned(),
            fingerprint: "SHA256:x".to_owned(),
        };
        assert_eq!(ClientError::from(changed).failure(), None);
        assert_eq!(ClientError::ServerNotProven.failure(), None);
    }
}
