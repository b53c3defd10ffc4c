//! The host key: the Ed25519 key that a server shows and that its clients pin.
//!
//! Owns loading it and making it. The keeper holds it; the gate never sees it and asks for signatures. The file
//! is OpenSSH's, so that root may use sshd's key. The path enters; signatures and the public half leave.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use bowline_proto::key::PublicKey;

use super::key_file::{self, KEY_FILE_BYTES_MAX, KeyFile, KeyFileError};
use super::private_file::{self, FileError, Owner};
use super::private_key::{PrivateKey, PrivateKeyError};

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The file cannot be used, for its mode or owner or because it cannot be read or made.
    #[error(transparent)]
    File(#[from] FileError),
    /// It needs a passphrase, and nobody is there to ask.
    #[error("the host key {} is encrypted; a server's key must not be", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// It is of another type.
    #[error("the host key {} is of type {algorithm}; it must be ssh-ed25519", path.display())]
    NotEd25519 {
        /// The file.
        path: PathBuf,
        /// Its type.
        algorithm: &'static str,
    },
    /// It is no key, or damaged.
    #[error("the host key {} cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyFileError,
    },
    /// A new key could not be made.
    #[error("cannot make a host key")]
    Generate(#[from] PrivateKeyError),
}

/// The key that a server shows.
pub struct HostKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl HostKey {
    /// Makes a key that no file holds, for a server that lives as long as one call.
    ///
    /// # Errors
    /// [`HostKeyError::Generate`].
    pub fn generate() -> Result<HostKey, HostKeyError> {
        let key = PrivateKey::generate()?;
        // A new key is of type Ed25519, so this refuses nothing.
        HostKey::from_private(key).ok_or(HostKeyError::Generate(PrivateKeyError::Library))
    }

    /// Loads the key from a file that only its owner (this user or root) may read.
    ///
    /// # Errors
    /// [`HostKeyError`]; [`HostKeyError::is_not_found`] tells a missing file from the others.
    pub fn load(path: &Path) -> Result<HostKey, HostKeyError> {
        let text = private_file::read_private(path, KEY_FILE_BYTES_MAX, Owner::SelfOrRoot)?;
        let failed = |source| HostKeyError::Key {
            path: path.to_owned(),
            source,
        };
        let file = KeyFile::parse(&text).map_err(failed)?;
        let other_type = || HostKeyError::NotEd25519 {
            path: path.to_owned(),
            algorithm: file.public().algorithm().name(),
        };
        if file.public().ed25519().is_none() {
            return Err(other_type());
        }
        if file.is_encrypted() {
            return Err(HostKeyError::Encrypted {
                path: path.to_owned(),
            });
        }
        HostKey::from_private(file.open().map_err(failed)?).ok_or_else(other_type)
    }

    /// Loads the key, or makes the file with a new one (mode 0600, its folder 0700) if it is missing.
    ///
    /// Several processes may do so at once: all of them get the key of the one that was first.
    ///
    /// # Errors
    /// As [`HostKey::load`]; a file that is there and unusable is never replaced.
    pub fn load_or_create(path: &Path) -> Result<HostKey, HostKeyError> {
        match HostKey::load(path) {
            Err(error) if error.is_not_found() => {}
            decided => return decided,
        }
        let made = PrivateKey::generate()?;
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            private_file::create_private_dir(folder)?;
        }
        let text = key_file::write(&made, "bowline host key", None).map_err(|source| {
            HostKeyError::Key {
                path: path.to_owned(),
                source,
            }
        })?;
        match private_file::create_private(path, text.as_bytes()) {
            Ok(()) | Err(FileError::Exists { .. }) => HostKey::load(path),
            Err(error) => Err(error.into()),
        }
    }

    fn from_private(key: PrivateKey) -> Option<HostKey> {
        let public = key.public().clone();
        let pair = key.into_ed25519().ok()?;
        Some(HostKey { pair, public })
    }

    /// Signs the input of a TLS CertificateVerify: raw Ed25519 (RFC 8032), no SSHSIG.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        // A signature of Ed25519 has 64 bytes by definition.
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.public())
    }
}

impl HostKeyError {
    /// Whether the reason is that there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, HostKeyError::File(error) if error.is_not_found())
    }
}
