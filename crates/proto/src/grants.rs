//! Grants: lines of authorized_keys syntax (sshd(8), AUTHORIZED_KEYS FILE FORMAT), which key may do what.
//!
//! Owns splitting a file into lines and a line into options and key. A line is honoured as a whole or refused as
//! a whole: what bowline does not know or cannot do is never left out silently. It opens no file, knows no clock
//! and no time zone. The bytes of a file enter; [`Grant`]s leave, and a [`Warning`] for every line that counts
//! for nothing.
//!
//! | option | what it does |
//! | --- | --- |
//! | `from="…"` | limits the addresses, see [`Source`] |
//! | `command="…"` | is run instead of what is asked for |
//! | `environment="NAME=value"` | is added to the environment; may stand several times |
//! | `expiry-time="…"` | ends the grant, see [`Expiry`] |
//! | `restrict` | takes everything away that a later option does not give back |
//! | `pty`, `no-pty` | whether a terminal may be asked for |
//! | `[no-]port-forwarding`, `[no-]agent-forwarding`, `[no-]X11-forwarding`, `[no-]user-rc`, `permitopen="…"`, `permitlisten="…"` | nothing: bowline has no such thing |
//! | every other | refuses the line |

mod expiry;
mod options;
mod source;

pub use expiry::{Civil, Expiry, Zone};
pub use options::{Options, OptionsError};
pub use source::{Source, SourceError};

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::key::{Algorithm, KeyError, PublicKey};

/// The most bytes of a grant file.
pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most bytes of a line.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// The most warnings about one file; after them stands one of [`LineError::More`].
pub const WARNINGS_MAX: usize = 64;

/// A key that is let in, and on which conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The line it stands on; the first is 1.
    pub line: usize,
    /// The key.
    pub key: PublicKey,
    /// The conditions.
    pub options: Options,
}

/// A line that counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Warning {
    /// Its number; the first is 1.
    pub line: usize,
    /// Why it counts for nothing.
    pub reason: LineError,
}

/// Why a line counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The file is longer than [`FILE_BYTES_MAX`]; none of it is read.
    #[error("the file is longer than {FILE_BYTES_MAX} bytes")]
    FileTooLong,
    /// The line is longer than [`LINE_BYTES_MAX`].
    #[error("the line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// It holds a NUL byte.
    #[error("the line holds a NUL byte")]
    Nul,
    /// A quote is opened and not closed.
    #[error("a quote is not closed")]
    OpenQuote,
    /// There is no key on it.
    #[error("there is no key on the line")]
    NoKey,
    /// The key is of a type that bowline cannot check.
    #[error("keys of type {0} are not supported")]
    KeyType(String),
    /// The key is malformed or of a size that is not accepted.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// An option is unknown, cannot be honoured or is malformed.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// More lines are refused than are warned about.
    #[error("more lines than these are refused")]
    More,
}

/// Why a grant does not hold at this moment, from this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// `from=` does not permit the address, or there is none to compare.
    #[error("the key may not be used from there")]
    Source,
    /// `expiry-time=` has passed.
    #[error("the key's grant has expired")]
    Expired,
}

impl Grant {
    /// Checks the conditions that depend on the connection.
    ///
    /// `source` is the other end's address; `None` for a Unix socket or stdio, where a grant with `from=` never
    /// holds. `local_to_unix` is as in [`Options::is_expired`].
    ///
    /// # Errors
    /// [`Denied`]. As in sshd, a later line with the same key may still hold.
    pub fn check(
        &self,
        source: Option<IpAddr>,
        now_unix: i64,
        local_to_unix: impl Fn(&Civil) -> Option<i64>,
    ) -> Result<(), Denied> {
        if !self.options.permits_source(source) {
            return Err(Denied::Source);
        }
        if self.options.is_expired(now_unix, local_to_unix) {
            return Err(Denied::Expired);
        }
        Ok(())
    }
}

/// Reads a whole file.
pub fn parse(file: &[u8]) -> (Vec<Grant>, Vec<Warning>) {
    parse_lines(file, |_| true)
}

/// Reads the lines of one key: what a server asks when that key was offered.
///
/// It is much cheaper than [`parse`], as all other lines are passed over; they give no warning either.
pub fn parse_for(file: &[u8], key: &PublicKey) -> (Vec<Grant>, Vec<Warning>) {
    // Base64 is accepted in its one canonical form only, so the same key is always the same text.
    let base64 = STANDARD.encode(key.blob());
    let (mut grants, warnings) = parse_lines(file, |line| contains(line, base64.as_bytes()));
    grants.retain(|grant| grant.key == *key);
    (grants, warnings)
}

fn parse_lines(file: &[u8], wanted: impl Fn(&[u8]) -> bool) -> (Vec<Grant>, Vec<Warning>) {
    let mut grants = Vec::new();
    let mut warnings = Vec::new();
    if file.len() > FILE_BYTES_MAX {
        let reason = LineError::FileTooLong;
        return (grants, vec![Warning { line: 0, reason }]);
    }
    for (index, text) in file.split(|byte| *byte == b'\n').enumerate() {
        let line = index + 1;
        let text = text.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") || !wanted(text) {
            continue;
        }
        match parse_line(text) {
            Ok((key, options)) => grants.push(Grant { line, key, options }),
            Err(reason) if warnings.len() < WARNINGS_MAX => warnings.push(Warning { line, reason }),
            Err(_) if warnings.len() == WARNINGS_MAX => warnings.push(Warning {
                line,
                reason: LineError::More,
            }),
            Err(_) => {}
        }
    }
    (grants, warnings)
}

/// Reads one line that is neither empty nor a comment.
///
/// # Errors
/// [`LineError`]: then nothing of the line counts.
pub fn parse_line(line: &[u8]) -> Result<(PublicKey, Options), LineError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    if line.contains(&0) {
        return Err(LineError::Nul);
    }
    let line = line.trim_ascii();
    let (first, rest) = split_word(line);
    if Algorithm::from_name(&String::from_utf8_lossy(first)).is_some() {
        return Ok((parse_key(first, rest)?, Options::default()));
    }
    let (options, rest) = split_options(line)?;
    if looks_like_key_type(options) {
        return Err(LineError::KeyType(printable(first)));
    }
    let options = Options::parse(options)?;
    let (algorithm, rest) = split_word(rest);
    Ok((parse_key(algorithm, rest)?, options))
}

fn parse_key(algorithm: &[u8], rest: &[u8]) -> Result<PublicKey, LineError> {
    if algorithm.is_empty() {
        return Err(LineError::NoKey);
    }
    let known = std::str::from_utf8(algorithm)
        .ok()
        .and_then(Algorithm::from_name)
        .filter(|algorithm| algorithm.is_supported());
    let Some(known) = known else {
        return Err(LineError::KeyType(printable(algorithm)));
    };
    let (base64, _comment) = split_word(rest);
    if base64.is_empty() {
        return Err(LineError::NoKey);
    }
    let base64 = std::str::from_utf8(base64).map_err(|_| KeyError::NotBase64)?;
    let key = PublicKey::from_fields(known.name(), base64)?;
    key.check_size()?;
    Ok(key)
}

/// Cuts at the first blank, and drops the blanks in front of the rest.
fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(is_blank).unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end).unwrap_or((text, b""));
    (word, skip_blanks(rest))
}

/// What follows the blanks. Only these part words: a form feed, say, belongs to the word behind it,
/// for [`parse`] and [`parse_for`] alike.
fn skip_blanks(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|byte| is_blank(byte)).count();
    text.get(blanks..).unwrap_or_default()
}

/// Cuts at the first blank outside of quotes; a backslash keeps a quote from closing.
fn split_options(text: &[u8]) -> Result<(&[u8], &[u8]), LineError> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'"' if !escaped => quoted = !quoted,
            byte if is_blank(byte) && !quoted => {
                let (options, rest) = text.split_at_checked(at).unwrap_or((text, b""));
                return Ok((options, skip_blanks(rest)));
            }
            _ => {}
        }
        // Only `\"` is an escape to sshd: in `\\"` the second backslash escapes the quote too.
        escaped = *byte == b'\\';
    }
    if quoted {
        return Err(LineError::OpenQuote);
    }
    Ok((text, b""))
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Whether a word is the name of a key type that bowline does not know, rather than an option.
fn looks_like_key_type(word: &[u8]) -> bool {
    let starts = |with: &str| word.starts_with(with.as_bytes());
    starts("ssh-") || starts("ecdsa-") || starts("sk-")
}

/// A few bytes of a file for a message: what is not printable ASCII becomes `?`.
fn printable(bytes: &[u8]) -> String {
    let shown = bytes.iter().take(40);
    shown
        .map(|byte| match byte.is_ascii_graphic() {
            true => char::from(*byte),
            false => '?',
        })
        .collect()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    // The key begins a word, so the search may go from blank to blank.
    let blank = |byte: &u8| is_blank(byte);
    text.split(blank).any(|word| word == part)
}

#[cfg(test)]
mod tests;
