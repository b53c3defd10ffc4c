//! Frames of the reference: kind (u8), channel (u32), length (u32), bytes. It
//! must never hold more than one frame. Bytes of the peer enter here.

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Client to server: a channel's argv, NUL-terminated strings.
pub const START: u8 = 0;
/// Client to server: input of the process; an empty one is its end.
pub const STDIN: u8 = 1;
/// Server to client: output of the process.
pub const STDOUT: u8 = 2;
/// Server to client: errors of the process.
pub const STDERR: u8 = 3;
/// Server to client: the process has ended, one byte, behind all of its output.
pub const STATUS: u8 = 4;

/// Bytes before those of a frame.
pub const HEAD: usize = 9;
/// The longest frame's bytes.
pub const BODY_MAX: usize = 64 * 1024;

/// What stands before `len` bytes.
pub fn head(kind: u8, channel: u32, len: usize) -> [u8; HEAD] {
    let mut head = [kind; HEAD];
    head[1..5].copy_from_slice(&channel.to_le_bytes());
    head[5..].copy_from_slice(&(len as u32).to_le_bytes());
    head
}

/// A whole frame, for small ones.
pub fn frame(kind: u8, channel: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = head(kind, channel, body.len()).to_vec();
    frame.extend_from_slice(body);
    frame
}

/// Reads a frame: its kind, its channel, its bytes in `body`.
pub async fn read(from: &mut (impl AsyncRead + Unpin), body: &mut Vec<u8>) -> Result<(u8, u32)> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head).await?;
    let [kind, c0, c1, c2, c3, l0, l1, l2, l3] = head;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    ensure!(len <= BODY_MAX, "a frame of {len} bytes");
    body.resize(len, 0);
    from.read_exact(body).await?;
    Ok((kind, u32::from_le_bytes([c0, c1, c2, c3])))
}
