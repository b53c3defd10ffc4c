//! A JSON header before each message, behind a length of its own.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::body::Body;
use super::int32::{ByteOrder, Length};
use super::{Framing, FramingError};

/// The longest JSON header.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;

/// A message follows a JSON object that says its length as `total_size`, which may
/// be over 2 GiB, and whatever else; the object follows its own int32 length.
#[derive(Clone, Debug)]
pub struct Headed {
    order: ByteOrder,
    bytes_max: usize,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Length(Length),
    Header(Body),
    Body(Map<String, Value>, Body),
}

/// A message and what its header says beside the length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadedMessage {
    /// The header without `total_size`.
    pub header: Map<String, Value>,
    /// The message.
    pub body: Vec<u8>,
}

#[derive(Deserialize)]
struct HeaderRead {
    total_size: u64,
    #[serde(flatten)]
    header: Map<String, Value>,
}

#[derive(Serialize)]
struct HeaderWritten<'a> {
    total_size: usize,
    #[serde(flatten)]
    header: &'a Map<String, Value>,
}

impl Headed {
    /// Messages have at most `bytes_max` bytes without their headers, which have at
    /// most [`HEADER_BYTES_MAX`]. `order` is that of the header's length.
    pub const fn new(order: ByteOrder, bytes_max: usize) -> Self {
        Self {
            order,
            bytes_max,
            state: State::Length(Length::new(order)),
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

    /// As [`Framing::head`], with more to say in the header. A `total_size` in
    /// `header` is an error: the length is said once.
    ///
    /// # Errors
    /// As [`Framing::head`]; [`FramingError::Header`].
    pub fn head_with(
        &self,
        header: &Map<String, Value>,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FramingError> {
        if message.len() > self.bytes_max {
            return Err(self.too_long());
        }
        if header.contains_key("total_size") {
            let error = serde::de::Error::duplicate_field("total_size");
            return Err(FramingError::Header(error));
        }
        let written = HeaderWritten {
            total_size: message.len(),
            header,
        };
        let json = serde_json::to_vec(&written).map_err(FramingError::Header)?;
        let length = i32::try_from(json.len()).ok();
        let length = length.filter(|_| json.len() <= HEADER_BYTES_MAX);
        let length = length.ok_or(FramingError::HeaderTooLong)?;
        out.extend_from_slice(&self.order.encode(length));
        out.extend_from_slice(&json);
        Ok(())
    }

    fn too_long(&self) -> FramingError {
        FramingError::TooLong {
            bytes_max: self.bytes_max,
        }
    }

    /// What a whole header leads to.
    fn begin(&self, header: &[u8]) -> Result<State, FramingError> {
        let read: HeaderRead = serde_json::from_slice(header).map_err(FramingError::Header)?;
        let len = usize::try_from(read.total_size).ok();
        let len = len.filter(|len| *len <= self.bytes_max);
        let len = len.ok_or_else(|| self.too_long())?;
        Ok(State::Body(read.header, Body::of_len(len)))
    }
}

impl Framing for Headed {
    type Message = HeadedMessage;

    fn decode(&mut self, input: &[u8]) -> Result<(usize, Option<HeadedMessage>), FramingError> {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            match &mut self.state {
                State::Length(length) => {
                    let (len, length) = length.take(rest)?;
                    taken += len;
                    let Some(length) = length else {
                        return Ok((taken, None));
                    };
                    if length > HEADER_BYTES_MAX {
                        return Err(FramingError::HeaderTooLong);
                    }
                    self.state = State::Header(Body::of_len(length));
                }
                State::Header(header) => {
                    let (len, header) = header.take(rest);
                    taken += len;
                    let Some(header) = header else {
                        return Ok((taken, None));
                    };
                    self.state = self.begin(&header)?;
                }
                State::Body(header, body) => {
                    let (len, body) = body.take(rest);
                    taken += len;
                    let Some(body) = body else {
                        return Ok((taken, None));
                    };
                    let header = std::mem::take(header);
                    self.state = State::Length(Length::new(self.order));
                    return Ok((taken, Some(HeadedMessage { header, body })));
                }
            }
        }
    }

    fn finish(&mut self) -> Result<Option<HeadedMessage>, FramingError> {
        if self.has_begun() {
            return Err(FramingError::Truncated);
        }
        Ok(None)
    }

    fn has_begun(&self) -> bool {
        match &self.state {
            State::Length(length) => length.has_begun(),
            State::Header(_) | State::Body(..) => true,
        }
    }

    fn head(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        self.head_with(&Map::new(), message, out)
    }
}
