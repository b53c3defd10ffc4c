//! A length of four bytes before each message.

use super::body::Body;
use super::{Framing, FramingError};

/// The order of the four bytes of a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// The least first: `struct.pack('i', n)` or `'<i'` of Python on most machines.
    LittleEndian,
    /// The greatest first: the order of networks, `struct.pack('!i', n)`.
    BigEndian,
}

impl ByteOrder {
    /// Writes a length.
    pub const fn encode(self, length: i32) -> [u8; 4] {
        match self {
            Self::LittleEndian => length.to_le_bytes(),
            Self::BigEndian => length.to_be_bytes(),
        }
    }

    /// Reads a length.
    pub const fn decode(self, bytes: [u8; 4]) -> i32 {
        match self {
            Self::LittleEndian => i32::from_le_bytes(bytes),
            Self::BigEndian => i32::from_be_bytes(bytes),
        }
    }
}

/// Four bytes that may come one by one.
#[derive(Clone, Debug)]
pub(super) struct Length {
    order: ByteOrder,
    bytes: [u8; 4],
    filled: usize,
}

impl Length {
    pub(super) const fn new(order: ByteOrder) -> Self {
        Self {
            order,
            bytes: [0; 4],
            filled: 0,
        }
    }

    pub(super) const fn has_begun(&self) -> bool {
        self.filled > 0
    }

    /// Takes what belongs to it off the front: how much that was, and the length
    /// once all four are here.
    pub(super) fn take(&mut self, input: &[u8]) -> Result<(usize, Option<usize>), FramingError> {
        let free = self.bytes.get_mut(self.filled..).unwrap_or_default();
        let len = free.len().min(input.len());
        for (place, byte) in free.iter_mut().zip(input) {
            *place = *byte;
        }
        self.filled += len;
        if self.filled < 4 {
            return Ok((len, None));
        }
        self.filled = 0;
        let length = self.order.decode(self.bytes);
        let checked = usize::try_from(length).map_err(|_| FramingError::Negative(length))?;
        Ok((len, Some(checked)))
    }
}

/// A message follows its length: four bytes, signed.
#[derive(Clone, Debug)]
pub struct Int32 {
    order: ByteOrder,
    bytes_max: usize,
    length: Length,
    body: Option<Body>,
}

impl Int32 {
    /// Messages have at most `bytes_max` bytes.
    pub const fn new(order: ByteOrder, bytes_max: usize) -> Self {
        Self {
            order,
            bytes_max,
            length: Length::new(order),
            body: None,
        }
    }

    /// With the least byte first.
    pub const fn little_endian(bytes_max: usize) -> Self {
        Self::new(ByteOrder::LittleEndian, bytes_max)
    }

    /// With the greatest byte first.
    pub const fn big_endian(bytes_max: usize) -> Self {
        Self::new(ByteOrder::BigEndian, bytes_max)
    }
}

impl Framing for Int32 {
    type Message = Vec<u8>;

    fn decode(&mut self, input: &[u8]) -> Result<(usize, Option<Vec<u8>>), FramingError> {
        let mut taken = 0;
        if self.body.is_none() {
            let (len, length) = self.length.take(input)?;
            let Some(length) = length else {
                return Ok((len, None));
            };
            if length > self.bytes_max {
                return Err(FramingError::TooLong {
                    bytes_max: self.bytes_max,
                });
            }
            self.body = Some(Body::of_len(length));
            taken = len;
        }
        let Some(body) = &mut self.body else {
            return Ok((taken, None));
        };
        let (len, whole) = body.take(input.get(taken..).unwrap_or_default());
        if whole.is_some() {
            self.body = None;
        }
        Ok((taken + len, whole))
    }

    fn finish(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if self.has_begun() {
            return Err(FramingError::Truncated);
        }
        Ok(None)
    }

    fn has_begun(&self) -> bool {
        self.body.is_some() || self.length.has_begun()
    }

    fn head(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        let length = i32::try_from(message.len()).ok();
        let length = length.filter(|_| message.len() <= self.bytes_max);
        let length = length.ok_or(FramingError::TooLong {
            bytes_max: self.bytes_max.min(i32::MAX as usize),
        })?;
        out.extend_from_slice(&self.order.encode(length));
        Ok(())
    }
}
