//! A secret that client and server share: 32 random bytes or more, in a file on both sides.
//!
//! Owns reading and making such a file, and the proofs of both sides. The secret never leaves; codes over one
//! connection do, each with the role of its maker in it.
//!
//! | the file holds | the secret is |
//! | --- | --- |
//! | hex digits, with blanks and newlines around them | the bytes they stand for |
//! | base64 (RFC 4648, section 4, padded), likewise | the bytes it stands for |
//! | anything with bytes that are not printable | these bytes, all of them |
//! | other text | refused: a sentence can be guessed, and one proof is enough to try guesses against |

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bowline_proto::auth::{self, Binding, Proof, Role};
use zeroize::Zeroizing;

use super::private_file::{self, FileError, Owner};
use super::verify;

/// The fewest bytes of a secret.
pub const SECRET_BYTES_MIN: usize = 32;
/// The most bytes of a secret's file.
pub const SECRET_FILE_BYTES_MAX: usize = 4096;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or made, or others may read it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The secret is too short.
    #[error("the secret in {} has {bytes} bytes; at least {SECRET_BYTES_MIN} random ones are needed", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// What it has.
        bytes: usize,
    },
    /// It is text, and neither hex nor base64.
    #[error("{} holds neither hex nor base64 nor raw bytes; make a secret with `bowline keygen --secret FILE`", path.display())]
    Text {
        /// The file.
        path: PathBuf,
    },
    /// There are no random bytes for a new one.
    #[error("the cryptographic library gave no random bytes")]
    Random,
}

/// A shared secret.
pub struct Secret {
    bytes: Zeroizing<Vec<u8>>,
}

impl Secret {
    /// Reads a secret from a file that only its owner may read.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn load(path: &Path) -> Result<Secret, SecretError> {
        let content = private_file::read_private(path, SECRET_FILE_BYTES_MAX, Owner::SelfOrRoot)?;
        let bytes = decode(content).ok_or_else(|| SecretError::Text {
            path: path.to_owned(),
        })?;
        if bytes.len() < SECRET_BYTES_MIN {
            return Err(SecretError::TooShort {
                path: path.to_owned(),
                bytes: bytes.len(),
            });
        }
        Ok(Secret { bytes })
    }

    /// Makes a file with a new secret, as base64 with mode 0600; it replaces nothing.
    ///
    /// # Errors
    /// [`SecretError::File`] if there is a file already, or it cannot be made.
    pub fn create(path: &Path) -> Result<Secret, SecretError> {
        let mut bytes = Zeroizing::new(vec![0; SECRET_BYTES_MIN]);
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SecretError::Random)?;
        let mut text = Zeroizing::new(STANDARD.encode(&bytes));
        text.push('\n');
        private_file::create_private(path, text.as_bytes())?;
        Ok(Secret { bytes })
    }

    /// The client's proof that it has the secret.
    pub fn proof(&self, binding: &Binding, user: &str, protocol: &str) -> Proof {
        Proof::Secret {
            mac: self.code(Role::Client, binding, user, protocol),
        }
    }

    /// The code of one side.
    pub fn code(&self, role: Role, binding: &Binding, user: &str, protocol: &str) -> [u8; 32] {
        let message = auth::secret_message(role, binding, user, protocol);
        verify::hmac(&self.bytes, &message)
    }

    /// Whether the other side, in `role`, has the secret too; takes the same time wherever codes differ.
    pub fn verify(
        &self,
        role: Role,
        binding: &Binding,
        user: &str,
        protocol: &str,
        code: &[u8; 32],
    ) -> bool {
        let message = auth::secret_message(role, binding, user, protocol);
        verify::verify_hmac(&self.bytes, &message, code)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Finds out which of the forms a file has; `None` if it is some other text.
fn decode(content: Zeroizing<Vec<u8>>) -> Option<Zeroizing<Vec<u8>>> {
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    if !content.iter().all(printable) {
        return Some(content);
    }
    let text = content.trim_ascii();
    // Hex goes first: its digits are base64 too.
    let mut bytes = Zeroizing::new(vec![0; text.len()]);
    let length = if text.iter().all(u8::is_ascii_hexdigit) {
        let half = text.len() / 2;
        hex::decode_to_slice(text, bytes.get_mut(..half)?).ok()?;
        half
    } else {
        STANDARD.decode_slice_unchecked(text, &mut bytes).ok()?
    };
    bytes.truncate(length);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(content: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        decode(Zeroizing::new(content.as_ref().to_vec())).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn every_form_is_told_from_the_others() {
        let raw: Vec<u8> = (0..40).collect();
        assert_eq!(decoded(&raw), Some(raw.clone()));
        assert_eq!(decoded(hex::encode(&raw)), Some(raw.clone()));
        assert_eq!(
            decoded(format!("\n {}\n", hex::encode_upper(&raw))),
            Some(raw.clone())
        );
        assert_eq!(
            decoded(format!("{}\r\n", STANDARD.encode(&raw))),
            Some(raw.clone())
        );
        // The newline of a raw secret is a part of it.
        let mut longer = raw;
        longer.push(b'\n');
        assert_eq!(decoded(&longer), Some(longer.clone()));
        for text in [
            "correct horse battery staple and some more words",
            "correct-horse-battery-staple-and-some-more-words",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde",
        ] {
            assert_eq!(decoded(text), None, "{text}");
        }
        assert_eq!(decoded(""), Some(Vec::new()));
    }

    #[test]
    fn a_code_proves_one_role_on_one_connection() {
        let secret = Secret {
            bytes: Zeroizing::new(vec![7; 32]),
        };
        let (here, there) = (Binding::Exporter([1; 32]), Binding::Exporter([2; 32]));
        let code = secret.code(Role::Client, &here, "me", "bowline/1");
        assert_eq!(
            secret.proof(&here, "me", "bowline/1"),
            Proof::Secret { mac: code }
        );
        assert!(secret.verify(Role::Client, &here, "me", "bowline/1", &code));
        assert!(!secret.verify(Role::Server, &here, "me", "bowline/1", &code));
        assert!(!secret.verify(Role::Client, &there, "me", "bowline/1", &code));
        assert!(!secret.verify(Role::Client, &here, "you", "bowline/1", &code));
        assert!(!secret.verify(Role::Client, &here, "me", "bowline/2", &code));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
