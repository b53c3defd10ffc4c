//! Where a message ends in a stream of bytes: framings as values, without IO.
//!
//! TCP has no messages: two sends arrive in one read, or one in two. A [`Framing`]
//! keeps them apart; its value is one direction of one connection.
//!
//! | framing | on the wire |
//! | --- | --- |
//! | [`Raw`] | nothing marks the end: a message is what one read gave |
//! | [`Delimited`] | the message, then a delimiter such as a line end |
//! | [`Int32`] | its length in four bytes, signed, of either order; the message |
//! | [`Decimal`] | its length in ASCII digits; the receiver acknowledges; the message |
//! | [`Headed`] | a JSON object with its length, itself behind an int32 length; the message |
//!
//! Bytes enter by [`Framing::decode`], in pieces of any size, and whole messages
//! leave; a piece may hold a part of one or a thousand. However the bytes were cut,
//! the messages are the same (but for [`Raw`], which is about cuts). A length is
//! compared with the bound before anything is done with it, and memory grows with
//! what has come and not with what was announced.
//!
//! ```
//! use bowline_proto::framing::{Framing, Int32};
//!
//! let mut framing = Int32::little_endian(1024);
//! let mut wire = Vec::new();
//! framing.encode(b"hello", &mut wire)?;
//! framing.encode(b"world", &mut wire)?;
//!
//! // The bytes come in two pieces, cut in the middle of the second length.
//! let mut messages = Vec::new();
//! for piece in [&wire[..11], &wire[11..]] {
//!     let mut rest = piece;
//!     while !rest.is_empty() {
//!         let (len, message) = framing.decode(rest)?;
//!         rest = &rest[len..];
//!         messages.extend(message);
//!     }
//! }
//! assert_eq!(messages, [b"hello", b"world"]);
//! # Ok::<(), bowline_proto::framing::FramingError>(())
//! ```

mod body;
mod decimal;
mod delimited;
mod headed;
mod int32;
mod raw;
#[cfg(test)]
mod tests;

pub use decimal::{ACKNOWLEDGEMENT, Decimal};
pub use delimited::Delimited;
pub use headed::{HEADER_BYTES_MAX, Headed, HeadedMessage};
pub use int32::{ByteOrder, Int32};
pub use raw::Raw;

/// How the end of a message is marked.
pub trait Framing {
    /// What comes out: the bytes, or with what is said about them.
    type Message;

    /// Takes bytes off the front of `input`: says how many, and gives a message if
    /// it is whole by them. At most one; what is left is the next ones', so call
    /// again until nothing is left. Without a message all of `input` was taken.
    ///
    /// # Errors
    /// What is wrong with the bytes. There is no way to find the next message then.
    fn decode(&mut self, input: &[u8]) -> Result<(usize, Option<Self::Message>), FramingError>;

    /// The stream has ended: a message that only the end ends.
    ///
    /// # Errors
    /// [`FramingError::Truncated`] where a message had begun and is not whole.
    fn finish(&mut self) -> Result<Option<Self::Message>, FramingError>;

    /// Whether bytes of a message have come that is not whole yet.
    fn has_begun(&self) -> bool;

    /// Appends what goes before a message.
    ///
    /// # Errors
    /// Where this framing cannot carry it. Nothing was appended then.
    fn head(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError>;

    /// What goes behind a message.
    fn tail(&self) -> &[u8] {
        &[]
    }

    /// What the receiver sends between the head and the message; nothing in most
    /// framings. The sender waits for it.
    fn acknowledgement(&self) -> &'static [u8] {
        &[]
    }

    /// Nothing more comes for now. Says whether the sender waits for the
    /// [`Framing::acknowledgement`]: it is to be sent then, and
    /// [`Framing::decode`] to be called again, with whatever is there.
    ///
    /// # Errors
    /// As [`Framing::decode`].
    fn pause(&mut self) -> Result<bool, FramingError> {
        Ok(false)
    }

    /// Appends a message as it goes over the wire. Where there is an
    /// acknowledgement, what is behind the head must wait for it.
    ///
    /// # Errors
    /// As [`Framing::head`].
    fn encode(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        self.head(message, out)?;
        out.extend_from_slice(message);
        out.extend_from_slice(self.tail());
        Ok(())
    }
}

/// What is wrong with a message, received or to be sent.
#[derive(Debug, thiserror::Error)]
pub enum FramingError {
    /// It is longer than the framing's bound, or than the framing can say.
    #[error("a message is over the limit of {bytes_max} bytes")]
    TooLong {
        /// The bound.
        bytes_max: usize,
    },
    /// A length is below zero.
    #[error("a length is {0}")]
    Negative(i32),
    /// A decimal length has something else than digits.
    #[error("a length has the byte {0:#04x}, which is no digit")]
    NotADigit(u8),
    /// The JSON header is over [`HEADER_BYTES_MAX`].
    #[error("a header is over the limit of {HEADER_BYTES_MAX} bytes")]
    HeaderTooLong,
    /// The JSON header is none, or does not say a length.
    #[error("a header is not as it must be")]
    Header(#[source] serde_json::Error),
    /// A message to be sent holds the delimiter, which would end it.
    #[error("a message holds its own delimiter")]
    HoldsDelimiter,
    /// Something else came than the acknowledgement.
    #[error("what came is not the acknowledgement")]
    NotAcknowledged,
    /// The stream ended within a message.
    #[error("the stream ended within a message")]
    Truncated,
}
