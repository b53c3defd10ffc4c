//! A length in digits that the receiver acknowledges before the message comes.

use super::body::Body;
use super::{Framing, FramingError};

/// What the receiver of a length says.
pub const ACKNOWLEDGEMENT: &[u8] = b"ready";
/// The most digits of a length: those of `u64::MAX`.
const DIGITS_MAX: usize = 20;

/// A message follows its length in ASCII digits, once that was acknowledged.
///
/// Nothing ends the digits: the sender says no more until it is answered. So the
/// length is whole when nothing comes behind it, and only the one who reads knows
/// that: tell it by [`Framing::pause`].
///
/// ```text
///           digits            pause            N bytes
/// Nothing ─────────► Length ─────────► Body ───────────► Nothing, and a message
///                      ▲ │ digits
///                      └─┘
/// ```
///
/// ```
/// use bowline_proto::framing::{ACKNOWLEDGEMENT, Decimal, Framing};
///
/// let mut framing = Decimal::new(1024);
/// assert_eq!(framing.decode(b"1")?, (1, None));
/// assert_eq!(framing.decode(b"1")?, (1, None));
/// // Nothing more is there: now `ready` is to be sent.
/// assert!(framing.pause()?);
/// assert_eq!(framing.acknowledgement(), ACKNOWLEDGEMENT);
/// let (len, message) = framing.decode(b"hello world")?;
/// assert_eq!((len, message.as_deref()), (11, Some(&b"hello world"[..])));
/// # Ok::<(), bowline_proto::framing::FramingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Decimal {
    bytes_max: usize,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Length { digits: usize, value: usize },
    Body(Body),
}

const NOTHING: State = State::Length {
    digits: 0,
    value: 0,
};

impl Decimal {
    /// Messages have at most `bytes_max` bytes.
    pub const fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: NOTHING,
        }
    }

    fn too_long(&self) -> FramingError {
        FramingError::TooLong {
            bytes_max: self.bytes_max,
        }
    }
}

impl Framing for Decimal {
    type Message = Vec<u8>;

    fn decode(&mut self, input: &[u8]) -> Result<(usize, Option<Vec<u8>>), FramingError> {
        match &mut self.state {
            State::Length { digits, value } => {
                for byte in input {
                    if !byte.is_ascii_digit() {
                        return Err(FramingError::NotADigit(*byte));
                    }
                    let digit = usize::from(byte - b'0');
                    *digits += 1;
                    *value = value.saturating_mul(10).saturating_add(digit);
                    if *digits > DIGITS_MAX || *value > self.bytes_max {
                        return Err(self.too_long());
                    }
                }
                Ok((input.len(), None))
            }
            State::Body(body) => {
                let (len, whole) = body.take(input);
                if whole.is_some() {
                    self.state = NOTHING;
                }
                Ok((len, whole))
            }
        }
    }

    fn finish(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if self.has_begun() {
            return Err(FramingError::Truncated);
        }
        Ok(None)
    }

    fn has_begun(&self) -> bool {
        !matches!(self.state, State::Length { digits: 0, .. })
    }

    fn head(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        if message.len() > self.bytes_max {
            return Err(self.too_long());
        }
        out.extend_from_slice(message.len().to_string().as_bytes());
        Ok(())
    }

    fn acknowledgement(&self) -> &'static [u8] {
        ACKNOWLEDGEMENT
    }

    fn pause(&mut self) -> Result<bool, FramingError> {
        match self.state {
            State::Length { digits: 1.., value } => {
                self.state = State::Body(Body::of_len(value));
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
