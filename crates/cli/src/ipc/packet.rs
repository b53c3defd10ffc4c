//! One packet of a seqpacket socket: bytes and the descriptors beside them.
//!
//! Both directions, blocking or not as the socket is. Descriptors arrive with
//! CLOEXEC set. A packet whose bytes were cut off is an error, never a shorter
//! message. Descriptors may be missing where the receiver has no room for them
//! (EMFILE): whoever takes a message counts what came beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest packet, in bytes. What may be longer travels in a memfd.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;
/// The longest spec that travels in the packet itself, in bytes.
pub const INLINE_SPEC_BYTES_MAX: usize = 32 * 1024;
/// The most descriptors beside one packet.
pub const FDS_MAX: usize = 64;

const _: () = assert!(INLINE_SPEC_BYTES_MAX + 4096 <= PACKET_BYTES_MAX);
const _: () = assert!(FDS_MAX <= 253, "SCM_MAX_FD");

/// Sends one message with its descriptors.
///
/// # Errors
/// As sendmsg(2); `WouldBlock` on a full non-blocking socket; `InvalidData`
/// where the message is over [`PACKET_BYTES_MAX`].
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(invalid)?;
    send_bytes(socket, &bytes, fds)
}

/// Sends one packet of bytes that [`postcard`] made earlier.
///
/// # Errors
/// As [`send`].
pub fn send_bytes(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > PACKET_BYTES_MAX || fds.len() > FDS_MAX {
        return Err(invalid("a packet over its limit"));
    }
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(invalid("too many descriptors"));
    }
    loop {
        let sent = rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message with its descriptors; `None` when the peer has closed.
///
/// `buffer` is scratch space that the caller keeps between calls.
///
/// # Errors
/// As recvmsg(2); `WouldBlock` on an empty non-blocking socket; `InvalidData`
/// for a packet that was cut off or does not decode.
pub fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    buffer.resize(PACKET_BYTES_MAX, 0);
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let received = rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            // It has closed without having read everything.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(invalid("a packet arrived cut off"));
    }
    let bytes = buffer.get(..received.bytes).unwrap_or_default();
    let message = postcard::from_bytes(bytes).map_err(invalid)?;
    Ok(Some((message, fds)))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
