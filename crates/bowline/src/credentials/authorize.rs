//! `bowline authorize`: lets a key in by a line in a grant file.
//!
//! Owns finding the public key in what a user names, and adding its line. It never changes a line that stands
//! there, and adds none that the server would refuse.

use std::path::{Path, PathBuf};

use bowline_proto::grants::{self, Grant, LineError};
use bowline_proto::key::{KeyError, PublicKey};

use super::key_file::{KEY_FILE_BYTES_MAX, KeyFile, KeyFileError};
use super::line_file;
use super::private_file::{self, FileError};

/// Why no line was added.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizeError {
    /// A file cannot be read or written, or others may change the grant file.
    #[error(transparent)]
    File(#[from] FileError),
    /// What was named holds no key.
    #[error("there is no public key in {}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        source: KeyError,
    },
    /// What was named is a private key that does not show its public half.
    #[error("there is no public key in {}", path.display())]
    PrivateKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyFileError,
    },
    /// The server would refuse the line.
    #[error("the line would be refused")]
    Line(#[from] LineError),
}

/// What became of the wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorized {
    /// The line was added.
    Added,
    /// The key stands there already; nothing was changed, whatever options it has.
    AlreadyThere {
        /// On which line.
        line: usize,
    },
}

/// Finds the public key, and the comment, in a `.pub` file or in a private key file of OpenSSH's format.
///
/// # Errors
/// [`AuthorizeError`].
pub fn read_key(path: &Path) -> Result<(PublicKey, String), AuthorizeError> {
    let text = private_file::read_public(path, KEY_FILE_BYTES_MAX)?;
    match KeyFile::parse(&text) {
        Ok(file) => Ok((file.public().clone(), String::new())),
        Err(KeyFileError::PublicKey | KeyFileError::NotAKey) => {
            let text = String::from_utf8_lossy(&text);
            let line = text.lines().find(|line| !line.trim().is_empty());
            let (key, comment) = PublicKey::from_line(line.unwrap_or("")).map_err(|source| {
                AuthorizeError::NoKey {
                    path: path.to_owned(),
                    source,
                }
            })?;
            Ok((key, comment.to_owned()))
        }
        Err(source) => Err(AuthorizeError::PrivateKey {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Adds a line for a key to a grant file, which is made with mode 0600 if it is missing.
///
/// `options` is what stands in front of the key, such as `from="10.0.0.0/8",no-pty`.
///
/// # Errors
/// [`AuthorizeError`]; the file is as it was then.
pub fn authorize(
    file: &Path,
    key: &PublicKey,
    comment: &str,
    options: Option<&str>,
) -> Result<Authorized, AuthorizeError> {
    let line = grant_line(key, comment, options)?;
    let mut there = None;
    line_file::append(file, grants::FILE_BYTES_MAX, |content| {
        let (found, _) = grants::parse_for(content, key);
        there = found.first().map(|grant: &Grant| grant.line);
        Ok::<_, AuthorizeError>(there.is_none().then_some(line))
    })?;
    Ok(match there {
        Some(line) => Authorized::AlreadyThere { line },
        None => Authorized::Added,
    })
}

fn grant_line(
    key: &PublicKey,
    comment: &str,
    options: Option<&str>,
) -> Result<String, AuthorizeError> {
    let mut line = String::new();
    if let Some(options) = options.map(str::trim).filter(|options| !options.is_empty()) {
        line.push_str(options);
        line.push(' ');
    }
    line.push_str(&key.to_string());
    let comment: String = comment.chars().filter(|char| !char.is_control()).collect();
    if !comment.trim().is_empty() {
        line.push(' ');
        line.push_str(comment.trim());
    }
    // A newline in the options would make two lines of it.
    if line.contains(['\n', '\r']) {
        return Err(LineError::OpenQuote.into());
    }
    let (found, _) = grants::parse_line(line.as_bytes())?;
    if found != *key {
        return Err(LineError::NoKey.into());
    }
    line.push('\n');
    Ok(line)
}
