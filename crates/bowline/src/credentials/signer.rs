//! Who signs for a client: a key file or an ssh-agent.
//!
//! Owns when a passphrase is asked for: at the first signature that needs it, once, and only through what the
//! caller gave for it. Messages to be signed enter; SSHSIG blobs and [`Proof`]s leave.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bowline_proto::auth::{self, Binding, NAMESPACE, PROOFS_MAX, Proof};
use bowline_proto::key::PublicKey;
use zeroize::Zeroizing;

use super::agent::{Agent, AgentError, AgentKey};
use super::key_file::{KeyFile, KeyFileError};
use super::private_key::{PrivateKey, PrivateKeyError};

/// How often a passphrase is asked for.
const ATTEMPTS_MAX: u32 = 3;

/// Asks a person for the passphrase of a file; the number counts from 1. `None` is nobody there, or no wish.
pub type AskPassphrase = Arc<dyn Fn(&Path, u32) -> Option<Zeroizing<String>> + Send + Sync>;

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The agent would or could not.
    #[error("the key {comment} of the ssh-agent cannot be used")]
    Agent {
        /// What the agent calls the key.
        comment: String,
        /// Why.
        source: AgentError,
    },
    /// The key is encrypted and nobody gave its passphrase.
    #[error("the key {} is encrypted and nobody gave its passphrase; `ssh-add {}` gives it to the ssh-agent", path.display(), path.display())]
    NoPassphrase {
        /// Its file.
        path: PathBuf,
    },
    /// The file does not open.
    #[error("the key {} cannot be used", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyFileError,
    },
    /// The library failed.
    #[error("the key {} cannot sign", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PrivateKeyError,
    },
}

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In a file.
    File(PathBuf),
    /// In an agent, which calls it so.
    Agent(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Agent(comment) => write!(f, "ssh-agent ({comment})"),
        }
    }
}

/// A key that signs proofs.
pub trait Signer: fmt::Debug + Send + Sync {
    /// Its public half; known without a passphrase.
    fn public_key(&self) -> &PublicKey;

    /// Where it is, for `-v`.
    fn origin(&self) -> Origin;

    /// Whether [`Signer::sign`] would ask a person for a passphrase.
    fn asks(&self) -> bool;

    /// Signs `message` as SSHSIG in the namespace of proofs, and gives the blob.
    ///
    /// # Errors
    /// [`SignError`].
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// Makes the proofs of one `auth` from at most [`PROOFS_MAX`] keys; those that cannot sign are left out.
///
/// `binding` is the connection's, `user` the one asked for, `protocol` the ALPN name.
pub fn proofs(
    binding: &Binding,
    user: &str,
    protocol: &str,
    signers: &[Arc<dyn Signer>],
) -> (Vec<Proof>, Vec<SignError>) {
    let message = auth::public_key_message(binding, user, protocol);
    let mut proofs = Vec::new();
    let mut errors = Vec::new();
    for signer in signers.iter().take(PROOFS_MAX) {
        match signer.sign(&message) {
            Ok(sshsig) => proofs.push(Proof::PublicKey { sshsig }),
            Err(error) => errors.push(error),
        }
    }
    (proofs, errors)
}

/// A key in a file, opened at its first signature and kept open for those of later connections.
pub struct FileSigner {
    path: PathBuf,
    file: KeyFile,
    ask: AskPassphrase,
    opened: Mutex<Option<Arc<PrivateKey>>>,
}

impl FileSigner {
    /// Takes a file that was read; `ask` is used only if it is encrypted.
    pub fn new(path: PathBuf, file: KeyFile, ask: AskPassphrase) -> FileSigner {
        FileSigner {
            path,
            file,
            ask,
            opened: Mutex::new(None),
        }
    }

    fn opened(&self) -> Result<Arc<PrivateKey>, SignError> {
        // Held while a person types: a second signature waits for the same passphrase instead of asking too.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*opened {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(self.open()?);
        *opened = Some(Arc::clone(&key));
        Ok(key)
    }

    fn open(&self) -> Result<PrivateKey, SignError> {
        let failed = |source| SignError::File {
            path: self.path.clone(),
            source,
        };
        if !self.file.is_encrypted() {
            return self.file.open().map_err(failed);
        }
        let mut last = None;
        for attempt in 1..=ATTEMPTS_MAX {
            let Some(passphrase) = (self.ask)(&self.path, attempt) else {
                break;
            };
            match self.file.open_with(passphrase.as_bytes()) {
                Err(KeyFileError::Passphrase) => last = Some(KeyFileError::Passphrase),
                opened => return opened.map_err(failed),
            }
        }
        Err(match last {
            Some(wrong) => failed(wrong),
            None => SignError::NoPassphrase {
                path: self.path.clone(),
            },
        })
    }
}

impl Signer for FileSigner {
    fn public_key(&self) -> &PublicKey {
        self.file.public()
    }

    fn origin(&self) -> Origin {
        Origin::File(self.path.clone())
    }

    fn asks(&self) -> bool {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.is_encrypted() && opened.is_none()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.opened()?
            .sign_sshsig(NAMESPACE, message)
            .map_err(|source| SignError::Key {
                path: self.path.clone(),
                source,
            })
    }
}

impl fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileSigner({})", self.path.display())
    }
}

/// A key in an agent.
#[derive(Debug)]
pub struct AgentSigner {
    agent: Agent,
    key: AgentKey,
}

impl AgentSigner {
    /// Takes a key that the agent listed.
    pub fn new(agent: Agent, key: AgentKey) -> AgentSigner {
        AgentSigner { agent, key }
    }
}

impl Signer for AgentSigner {
    fn public_key(&self) -> &PublicKey {
        &self.key.key
    }

    fn origin(&self) -> Origin {
        Origin::Agent(self.key.comment.clone())
    }

    fn asks(&self) -> bool {
        false
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.agent
            .sign_proof(&self.key.key, message)
            .map_err(|source| SignError::Agent {
                comment: self.key.comment.clone(),
                source,
            })
    }
}
