//! The SSH encoding of strings and numbers (RFC 4251, section 5), as key blobs, SSHSIG and the agent use it.
//!
//! Owns reading and writing of length-prefixed fields. It never allocates on the word of a length that it
//! read: a field is a view into bytes that are there. Bytes enter as slices and leave as slices.

/// What can be wrong with SSH-encoded bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field reaches past the end of the bytes.
    #[error("the bytes end inside a field")]
    Truncated,
    /// Bytes follow the last field.
    #[error("bytes follow the last field")]
    Trailing,
    /// A number is negative, zero or written with superfluous zero bytes.
    #[error("a number is not in its shortest positive form")]
    BadNumber,
    /// A name is not UTF-8.
    #[error("a name is not UTF-8")]
    NotText,
}

/// Reads fields one after the other from a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// Takes `count` bytes as they are.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (field, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(field)
    }

    /// Takes one byte.
    pub fn byte(&mut self) -> Result<u8, WireError> {
        let (first, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*first)
    }

    /// Takes a `uint32`: four bytes, the highest first.
    pub fn number(&mut self) -> Result<u32, WireError> {
        let (field, rest) = self
            .rest
            .split_first_chunk::<4>()
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*field))
    }

    /// Takes a `string`: its length as a `uint32`, then its bytes.
    pub fn string(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.number()?;
        self.bytes(usize::try_from(length).map_err(|_| WireError::Truncated)?)
    }

    /// Takes a `string` that must be UTF-8.
    pub fn text(&mut self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.string()?).map_err(|_| WireError::NotText)
    }

    /// Takes an `mpint` that must be positive, and gives its magnitude without leading zeros.
    ///
    /// Only the one shortest form is accepted, so that equal keys have equal blobs.
    pub fn positive(&mut self) -> Result<&'a [u8], WireError> {
        let field = self.string()?;
        match field {
            [] | [0] => Err(WireError::BadNumber),
            [0, next, ..] if *next < 0x80 => Err(WireError::BadNumber),
            [0, magnitude @ ..] => Ok(magnitude),
            [first, ..] if *first >= 0x80 => Err(WireError::BadNumber),
            magnitude => Ok(magnitude),
        }
    }

    /// Whether every byte was taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Succeeds if every byte was taken.
    pub fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::Trailing)
        }
    }
}

/// Appends a `uint32`.
pub fn put_number(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_be_bytes());
}

/// Appends a `string`.
///
/// What bowline writes is bounded far below 4 GiB; a longer field would be cut to what its length can say.
pub fn put_string(out: &mut Vec<u8>, field: &[u8]) {
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    put_number(out, length);
    out.extend(field.iter().take(length as usize));
}

/// Appends a positive `mpint` from its magnitude; leading zeros are dropped.
pub fn put_positive(out: &mut Vec<u8>, magnitude: &[u8]) {
    let zeros = magnitude.iter().take_while(|byte| **byte == 0).count();
    let digits: Vec<u8> = magnitude.iter().copied().skip(zeros).collect();
    match digits.first() {
        Some(first) if *first >= 0x80 => {
            let mut padded = Vec::with_capacity(digits.len() + 1);
            padded.push(0);
            padded.extend_from_slice(&digits);
            put_string(out, &padded);
        }
        _ => put_string(out, &digits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_round_trip() {
        let mut bytes = vec![7];
        put_number(&mut bytes, 0x0102_0304);
        put_string(&mut bytes, b"name");
        put_positive(&mut bytes, &[0, 0, 0x80, 1]);
        put_positive(&mut bytes, &[0x7f]);
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.byte(), Ok(7));
        assert_eq!(reader.number(), Ok(0x0102_0304));
        assert_eq!(reader.text(), Ok("name"));
        assert_eq!(reader.positive(), Ok(&[0x80, 1][..]));
        assert_eq!(reader.positive(), Ok(&[0x7f][..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_length_past_the_end_is_refused() {
        assert_eq!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 1]).string(),
            Err(WireError::Truncated)
        );
        assert_eq!(Reader::new(&[0, 0]).number(), Err(WireError::Truncated));
        assert_eq!(Reader::new(&[1]).finish(), Err(WireError::Trailing));
    }

    #[test]
    fn numbers_have_one_form() {
        for field in [&[][..], &[0], &[0, 0x7f], &[0x80], &[0, 0, 0x80]] {
            let mut bytes = Vec::new();
            put_string(&mut bytes, field);
            assert_eq!(
                Reader::new(&bytes).positive(),
                Err(WireError::BadNumber),
                "{field:?}"
            );
        }
    }
}
