//! What two file workers say to each other while they copy; see PROTOCOL.md, section 12.
//!
//! A worker is a sender or a receiver. Their bytes travel in the stdin and stdout
//! of a job, or between two threads. Everything is a [`Message`]: a kind, a length, a
//! payload. Entries are numbered by both sides from 0 in the order in which they are sent,
//! so that nobody can name one twice. This module holds the bytes and what may be in them;
//! it opens no file and knows no path of more than one part.

mod blocks;
mod fields;
pub mod glob;
mod matcher;
mod message;
pub mod name;
mod options;

pub use blocks::{
    BLOCK_LOG2_MAX, BLOCK_LOG2_MIN, BLOCKS_MAX, Layout, Place, SUM_BYTES, SUMS_PER_MESSAGE_MAX,
    Sum, Sums,
};
pub use matcher::{Matcher, Step, TooMany, WINDOW_BYTES_MAX};
pub use message::{Entry, Message, Node, decode, encode, head};
pub use options::{Fsync, Options, Permit};

/// What a greeting begins with.
pub const MAGIC: &[u8; 12] = b"bowline copy";
/// The version of this protocol; a worker of another one is refused.
pub const VERSION: u64 = 2;

/// The fixed part of a message: a kind of one byte and a length of three.
pub const HEAD_BYTES: usize = 4;
/// The longest payload.
pub const PAYLOAD_BYTES_MAX: usize = 512 * 1024;
/// File data in one message.
pub const DATA_BYTES_MAX: usize = 256 * 1024;
/// The longest name of an entry: NAME_MAX of Linux.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link: PATH_MAX of Linux.
pub const TARGET_BYTES_MAX: usize = 4095;
/// The longest path in a report, and the longest sentence.
pub const REPORT_BYTES_MAX: usize = 64 * 1024;
/// A stable code of what went wrong.
pub const CODE_BYTES_MAX: usize = 64;
/// Folders within folders.
pub const DEPTH_MAX: usize = 4096;
/// Entries that were sent and are not answered yet.
pub const WINDOW_ENTRIES: u64 = 16 * 1024;
/// Patterns of one kind in the options.
pub const PATTERNS_MAX: usize = 1024;
/// The longest pattern.
pub const PATTERN_BYTES_MAX: usize = 4096;

const _: () = assert!(DATA_BYTES_MAX + 64 <= PAYLOAD_BYTES_MAX);
const _: () = assert!(PAYLOAD_BYTES_MAX < 1 << 24);
const _: () = assert!(SUMS_PER_MESSAGE_MAX * SUM_BYTES <= PAYLOAD_BYTES_MAX);

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// Bytes that were received are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// A kind that there is not.
    #[error("a message of the unknown kind {0:#04x}")]
    Kind(u8),
    /// Over a limit.
    #[error("a length is over its limit")]
    TooLong,
    /// Fields that do not fill the payload, or a value that a field cannot have.
    #[error("a message of kind {0:#04x} is malformed")]
    Malformed(u8),
}

#[cfg(test)]
mod tests;
