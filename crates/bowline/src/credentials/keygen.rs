//! `bowline keygen`: a new key pair, in OpenSSH's format, that ssh can use too.
//!
//! Owns the two files of a pair and that neither is ever replaced.

use std::path::{Path, PathBuf};

use bowline_proto::key::PublicKey;

use super::key_file::{self, KeyFileError};
use super::private_file::{self, FileError};
use super::private_key::{PrivateKey, PrivateKeyError};

/// The most bytes of a comment.
const COMMENT_BYTES_MAX: usize = 1024;

/// Why there is no new pair.
#[derive(Debug, thiserror::Error)]
pub enum KeygenError {
    /// A file is there already or cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The comment is too long or holds a control character, and would not stay on its line.
    #[error("a comment is one line of at most {COMMENT_BYTES_MAX} bytes")]
    Comment,
    /// The key cannot be made.
    #[error(transparent)]
    Key(#[from] PrivateKeyError),
    /// The passphrase is empty.
    #[error("an empty passphrase protects nothing; leave it out for none")]
    EmptyPassphrase,
}

/// Makes an Ed25519 key: `path` with mode 0600 and `path.pub` with its line. Folders that are missing are made
/// with mode 0700.
///
/// # Errors
/// [`KeygenError`]; if one of the two files is there already, nothing is written.
pub fn keygen(
    path: &Path,
    comment: &str,
    passphrase: Option<&[u8]>,
) -> Result<PublicKey, KeygenError> {
    if comment.len() > COMMENT_BYTES_MAX || comment.chars().any(char::is_control) {
        return Err(KeygenError::Comment);
    }
    if passphrase.is_some_and(<[u8]>::is_empty) {
        return Err(KeygenError::EmptyPassphrase);
    }
    let public_path = public_path(path);
    if public_path.symlink_metadata().is_ok() {
        return Err(FileError::Exists { path: public_path }.into());
    }
    let key = PrivateKey::generate()?;
    let text = key_file::write(&key, comment, passphrase).map_err(|error| match error {
        KeyFileError::Key(error) => error,
        _ => PrivateKeyError::Library,
    })?;
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        private_file::create_private_dir(folder)?;
    }
    private_file::create_private(path, text.as_bytes())?;
    let line = format!("{} {comment}", key.public());
    let line = format!("{}\n", line.trim_end());
    private_file::create_public(&public_path, line.as_bytes())?;
    Ok(key.public().clone())
}

/// The path of the public half beside a private key: `.pub` behind the whole name.
pub fn public_path(private: &Path) -> PathBuf {
    let mut name = private.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}
