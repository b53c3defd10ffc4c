//! No marks at all.

use super::{Framing, FramingError};

/// A message is what one read gave: the framing of every first program with
/// sockets. Two sends that arrive together are one message, and one that arrives in
/// two pieces is two.
#[derive(Clone, Debug)]
pub struct Raw {
    bytes_max: usize,
}

impl Raw {
    /// Cuts what is longer into messages of `bytes_max` bytes, at least one.
    pub const fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max: if bytes_max == 0 { 1 } else { bytes_max },
        }
    }
}

impl Framing for Raw {
    type Message = Vec<u8>;

    fn decode(&mut self, input: &[u8]) -> Result<(usize, Option<Vec<u8>>), FramingError> {
        let len = input.len().min(self.bytes_max);
        let part = input.get(..len).unwrap_or_default();
        Ok((len, (len > 0).then(|| part.to_vec())))
    }

    fn finish(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        Ok(None)
    }

    fn has_begun(&self) -> bool {
        false
    }

    fn head(&self, _: &[u8], _: &mut Vec<u8>) -> Result<(), FramingError> {
        Ok(())
    }
}
