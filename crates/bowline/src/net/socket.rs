//! One byte stream to a peer, whatever carries it: TCP, a Unix socket, or a
//! pair of pipes such as the standard input and output of an ssh session.
//!
//! Readiness and single tries only: whoever drives a [`Socket`] keeps all
//! partial work in values of its own.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};

/// How many bytes may wait unsent in the kernel before a TCP socket is no
/// longer writable: little enough that a signal waits behind little.
const NOTSENT_LOWAT_BYTES: u32 = 256 * 1024;

/// A connected byte stream.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// Two pipes.
    Pipes(pipe::Receiver, pipe::Sender),
}

impl Socket {
    /// Takes over a TCP connection and sets what bowline needs of it: no
    /// Nagle, keepalive, and little unsent data in the kernel.
    ///
    /// # Errors
    /// As setsockopt(2), where the connection is already broken.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(std::time::Duration::from_secs(60))
            .with_interval(std::time::Duration::from_secs(15));
        socket.set_tcp_keepalive(&keepalive)?;
        Ok(Self::Tcp(stream))
    }

    /// Has the kernel give up a TCP connection whose path is silent for `bound`:
    /// sent bytes that nobody acknowledges (TCP_USER_TIMEOUT, tcp(7)), or probes of an idle one.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn bound_silence(&self, bound: std::time::Duration) -> io::Result<()> {
        let Self::Tcp(stream) = self else {
            return Ok(());
        };
        let socket = socket2::SockRef::from(stream);
        socket.set_tcp_user_timeout(Some(bound))?;
        // The kernel counts whole seconds, and takes no more than 32,767 of them.
        let probe = (bound / 3).clamp(
            std::time::Duration::from_secs(1),
            std::time::Duration::from_secs(32_767),
        );
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(probe)
            .with_interval(probe)
            .with_retries(2);
        socket.set_tcp_keepalive(&keepalive)
    }

    /// Makes a stream of two pipes or other streams that this process was given.
    ///
    /// # Errors
    /// Where one of them is a regular file or cannot be waited for (epoll(7)).
    pub fn pipes(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        // sshd gives sockets where others give pipes; both are read and written alike.
        rustix::io::ioctl_fionbio(&input, true)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let input = pipe::Receiver::from_owned_fd_unchecked(input)?;
        let output = pipe::Sender::from_owned_fd_unchecked(output)?;
        Ok(Self::Pipes(input, output))
    }

    /// Ready when a read may give something.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
            Self::Pipes(input, _) => input.poll_read_ready(cx),
        }
    }

    /// Ready when a write may take something.
    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
            Self::Pipes(_, output) => output.poll_write_ready(cx),
        }
    }

    /// Reads what is there; 0 is the end.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Unix(stream) => stream.try_read(buffer),
            Self::Pipes(input, _) => input.try_read(buffer),
        }
    }

    /// Writes what fits.
    pub(crate) fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(parts),
            Self::Unix(stream) => stream.try_write_vectored(parts),
            Self::Pipes(_, output) => output.try_write_vectored(parts),
        }
    }
}
