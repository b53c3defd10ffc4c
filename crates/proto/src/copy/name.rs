//! Names of entries, and the name of a file that is not finished.
//!
//! A name from the other side is one part of a path and nothing else: what may be
//! opened with it, relative to an open folder and without following a link, is in that folder.

use super::NAME_BYTES_MAX;

/// What stands between a name and what makes its temporary name its own.
const MARK: &[u8] = b".bowline-";
/// Hexadecimal digits behind the mark.
const DIGITS: usize = 16;

/// Why a name cannot be an entry's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.`, `..`, with a slash or NUL, or too long.
    #[error("it is no name of a file")]
    Bad,
    /// It is what a copy that is not finished is called.
    #[error("such names are for copies that are not finished")]
    Reserved,
}

/// Checks a name from the other side.
///
/// # Errors
/// [`NameError`].
pub fn check(name: &[u8]) -> Result<(), NameError> {
    let dots = name == b"." || name == b"..";
    if name.is_empty()
        || dots
        || name.len() > NAME_BYTES_MAX
        || name.iter().any(|b| matches!(b, 0 | b'/'))
    {
        return Err(NameError::Bad);
    }
    if is_temporary(name) {
        return Err(NameError::Reserved);
    }
    Ok(())
}

/// The temporary name of `name`: `.NAME.bowline-` and sixteen digits. A long name is cut,
/// which the digits, made from all of it, make up for.
pub fn temporary(name: &[u8], digits: u64) -> Vec<u8> {
    let room = NAME_BYTES_MAX - 1 - MARK.len() - DIGITS;
    let stem = name.get(..room.min(name.len())).unwrap_or_default();
    let digits = format!("{digits:016x}");
    [b".", stem, MARK, digits.as_bytes()].concat()
}

/// Whether a name is one that [`temporary`] makes.
pub fn is_temporary(name: &[u8]) -> bool {
    stem(name).is_some()
}

/// The beginning of the name that a temporary name was made from.
pub fn stem(name: &[u8]) -> Option<&[u8]> {
    let name = name.strip_prefix(b".")?;
    let (rest, digits) = name.split_at_checked(name.len().checked_sub(DIGITS)?)?;
    let hex = |b: &u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    let stem = rest.strip_suffix(MARK)?;
    (!stem.is_empty() && digits.iter().all(hex)).then_some(stem)
}

/// A name or path for a person: control characters, bytes that are not text and
/// everything that could steer a terminal or turn the line around is escaped.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let steers = c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c == '\\' {
                text.push_str("\\\\");
            } else if steers {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}
