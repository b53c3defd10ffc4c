//! A delimiter behind each message.

use super::{Framing, FramingError};

/// A message is what comes before the delimiter: one byte or several. The last
/// message may lack it.
#[derive(Clone, Debug)]
pub struct Delimited {
    delimiter: Vec<u8>,
    bytes_max: usize,
    gathered: Vec<u8>,
}

impl Delimited {
    /// Messages end with `delimiter` and have at most `bytes_max` bytes without it.
    /// `None` for an empty delimiter.
    pub fn new(delimiter: &[u8], bytes_max: usize) -> Option<Self> {
        (!delimiter.is_empty()).then(|| Self::by(delimiter, bytes_max))
    }

    /// Messages end with a line feed. A carriage return before it is a part of the
    /// message: [`Delimited::new`] with `\r\n` is the framing of telnet's kind.
    pub fn lines(bytes_max: usize) -> Self {
        Self::by(b"\n", bytes_max)
    }

    fn by(delimiter: &[u8], bytes_max: usize) -> Self {
        Self {
            delimiter: delimiter.to_vec(),
            bytes_max,
            gathered: Vec::new(),
        }
    }

    /// Where the first byte behind the first delimiter is, of what was gathered and `input`.
    fn end_in(&self, input: &[u8]) -> Option<usize> {
        let len = self.delimiter.len();
        // A delimiter may have begun in what was gathered.
        for begun in (1..len.min(self.gathered.len() + 1)).rev() {
            let (first, rest) = self.delimiter.split_at(begun);
            if self.gathered.ends_with(first) && input.starts_with(rest) {
                return Some(rest.len());
            }
        }
        if let [byte] = self.delimiter.as_slice() {
            return input.iter().position(|at| at == byte).map(|at| at + 1);
        }
        let found = input.windows(len).position(|at| at == self.delimiter);
        found.map(|at| at + len)
    }

    fn too_long(&self) -> FramingError {
        FramingError::TooLong {
            bytes_max: self.bytes_max,
        }
    }
}

impl Framing for Delimited {
    type Message = Vec<u8>;

    fn decode(&mut self, input: &[u8]) -> Result<(usize, Option<Vec<u8>>), FramingError> {
        let end = self.end_in(input);
        let part = input.get(..end.unwrap_or(input.len())).unwrap_or_default();
        let bytes = self.gathered.len().saturating_add(part.len());
        // What cannot be a message any more: even if its last bytes began a delimiter.
        let with_delimiter = self.bytes_max.saturating_add(self.delimiter.len());
        if bytes > with_delimiter || (end.is_none() && bytes == with_delimiter) {
            return Err(self.too_long());
        }
        self.gathered.extend_from_slice(part);
        if end.is_none() {
            return Ok((part.len(), None));
        }
        let mut message = std::mem::take(&mut self.gathered);
        message.truncate(message.len() - self.delimiter.len());
        Ok((part.len(), Some(message)))
    }

    fn finish(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if self.gathered.len() > self.bytes_max {
            return Err(self.too_long());
        }
        let rest = std::mem::take(&mut self.gathered);
        Ok((!rest.is_empty()).then_some(rest))
    }

    fn has_begun(&self) -> bool {
        !self.gathered.is_empty()
    }

    fn head(&self, message: &[u8], _: &mut Vec<u8>) -> Result<(), FramingError> {
        let len = self.delimiter.len();
        // One that its last bytes begin would end before the delimiter that follows.
        let whole = [message, &self.delimiter].concat();
        let ends_at = whole.windows(len).position(|at| at == self.delimiter);
        if ends_at != Some(message.len()) {
            return Err(FramingError::HoldsDelimiter);
        }
        if message.len() > self.bytes_max {
            return Err(self.too_long());
        }
        Ok(())
    }

    fn tail(&self) -> &[u8] {
        &self.delimiter
    }
}
