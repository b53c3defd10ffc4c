//! Public keys as OpenSSH writes them: the key blob of RFC 4253, section 6.6, and its line form.
//!
//! Owns the one parser of key blobs that grants, known_hosts, proofs and the agent share. It checks the shape
//! of a key and does no arithmetic with it: whether a point lies on its curve is for the verifier to find.
//! Bytes enter from files and proofs; a [`PublicKey`] leaves, whose blob is the only form its content has,
//! so that two keys are the same exactly if their blobs are.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::ssh_wire::{self, Reader, WireError};

/// The most bytes a key blob may have. An RSA key of 16,384 bits takes 2,071.
pub const KEY_BLOB_BYTES_MAX: usize = 4096;
/// The fewest bits of an RSA modulus that bowline accepts.
pub const RSA_BITS_MIN: usize = 2048;
/// The most bits of an RSA modulus that bowline accepts: what its verifier can check.
pub const RSA_BITS_MAX: usize = 8192;

/// The curve of an ECDSA key (RFC 5656).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

impl Curve {
    /// Bytes of a coordinate, and of each half of a signature in fixed form.
    pub fn field_bytes(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }

    /// The name inside a key blob, as `nistp256`.
    pub fn name(self) -> &'static str {
        match self {
            Curve::P256 => "nistp256",
            Curve::P384 => "nistp384",
            Curve::P521 => "nistp521",
        }
    }
}

/// The type of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// `ssh-ed25519` (RFC 8709).
    Ed25519,
    /// `ecdsa-sha2-nistp256` and its siblings (RFC 5656).
    Ecdsa(Curve),
    /// `ssh-rsa`; the name of the key type, not of the SHA-1 signature.
    Rsa,
    /// `sk-ssh-ed25519@openssh.com`: a FIDO key. Known, not supported yet.
    SkEd25519,
    /// `sk-ecdsa-sha2-nistp256@openssh.com`: a FIDO key. Known, not supported yet.
    SkEcdsa,
}

impl Algorithm {
    /// The name in a key blob and in front of it on a line.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Ed25519 => "ssh-ed25519",
            Algorithm::Ecdsa(Curve::P256) => "ecdsa-sha2-nistp256",
            Algorithm::Ecdsa(Curve::P384) => "ecdsa-sha2-nistp384",
            Algorithm::Ecdsa(Curve::P521) => "ecdsa-sha2-nistp521",
            Algorithm::Rsa => "ssh-rsa",
            Algorithm::SkEd25519 => "sk-ssh-ed25519@openssh.com",
            Algorithm::SkEcdsa => "sk-ecdsa-sha2-nistp256@openssh.com",
        }
    }

    /// The type with that name, if bowline knows it.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        [
            Algorithm::Ed25519,
            Algorithm::Ecdsa(Curve::P256),
            Algorithm::Ecdsa(Curve::P384),
            Algorithm::Ecdsa(Curve::P521),
            Algorithm::Rsa,
            Algorithm::SkEd25519,
            Algorithm::SkEcdsa,
        ]
        .into_iter()
        .find(|algorithm| algorithm.name() == name)
    }

    /// Whether bowline can check signatures of such a key.
    pub fn is_supported(self) -> bool {
        !matches!(self, Algorithm::SkEd25519 | Algorithm::SkEcdsa)
    }
}

/// What a key consists of, as views into its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Material<'a> {
    /// The 32 bytes of an Ed25519 key.
    Ed25519(&'a [u8; 32]),
    /// A curve and an uncompressed point on it.
    Ecdsa {
        /// The curve.
        curve: Curve,
        /// `0x04`, x, y.
        point: &'a [u8],
    },
    /// Exponent and modulus, big-endian, without leading zeros.
    Rsa {
        /// The public exponent.
        exponent: &'a [u8],
        /// The modulus.
        modulus: &'a [u8],
    },
    /// A FIDO key, whose parts bowline does not use yet.
    SecurityKey,
}

/// What can be wrong with a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The blob is longer than [`KEY_BLOB_BYTES_MAX`].
    #[error("the key is longer than {KEY_BLOB_BYTES_MAX} bytes")]
    TooLong,
    /// The key type is not known to bowline.
    #[error("the key type is not supported")]
    UnknownAlgorithm,
    /// The type in front of a line is not the one inside the key.
    #[error("the key is of another type than the line says")]
    AlgorithmMismatch,
    /// The text is not base64.
    #[error("the key is not base64")]
    NotBase64,
    /// The line has no key after its type.
    #[error("there is no key on the line")]
    Missing,
    /// The blob's fields are not what the type asks for.
    #[error("the key is malformed: {0}")]
    Wire(#[from] WireError),
    /// A field has the wrong length or value.
    #[error("the key is malformed")]
    Malformed,
    /// An RSA key is shorter than [`RSA_BITS_MIN`] or longer than [`RSA_BITS_MAX`].
    #[error("the RSA key has {bits} bits; {RSA_BITS_MIN} to {RSA_BITS_MAX} are accepted")]
    RsaSize {
        /// Bits of its modulus.
        bits: usize,
    },
}

/// A public key of a known type and well-formed.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct PublicKey {
    blob: Vec<u8>,
}

impl PublicKey {
    /// Takes a key blob.
    ///
    /// # Errors
    /// If the type is unknown or the blob is not exactly one well-formed key of that type.
    pub fn from_blob(blob: &[u8]) -> Result<PublicKey, KeyError> {
        if blob.len() > KEY_BLOB_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        read_blob(blob)?;
        Ok(PublicKey {
            blob: blob.to_vec(),
        })
    }

    /// Makes the key for 32 raw Ed25519 bytes.
    pub fn from_ed25519(raw: &[u8; 32]) -> PublicKey {
        let mut blob = Vec::with_capacity(51);
        ssh_wire::put_string(&mut blob, Algorithm::Ed25519.name().as_bytes());
        ssh_wire::put_string(&mut blob, raw);
        PublicKey { blob }
    }

    /// Takes the two fields of a line: the type and the blob in base64.
    ///
    /// # Errors
    /// As [`PublicKey::from_blob`], and if the two fields disagree.
    pub fn from_fields(algorithm: &str, base64: &str) -> Result<PublicKey, KeyError> {
        let algorithm = Algorithm::from_name(algorithm).ok_or(KeyError::UnknownAlgorithm)?;
        if base64.len() > KEY_BLOB_BYTES_MAX.div_ceil(3) * 4 {
            return Err(KeyError::TooLong);
        }
        let blob = STANDARD.decode(base64).map_err(|_| KeyError::NotBase64)?;
        let key = PublicKey::from_blob(&blob).map_err(|error| match error {
            KeyError::UnknownAlgorithm => KeyError::AlgorithmMismatch,
            other => other,
        })?;
        if key.algorithm() != algorithm {
            return Err(KeyError::AlgorithmMismatch);
        }
        Ok(key)
    }

    /// Takes a whole line as in a `.pub` file, and gives the key and its comment.
    ///
    /// # Errors
    /// As [`PublicKey::from_fields`].
    pub fn from_line(line: &str) -> Result<(PublicKey, &str), KeyError> {
        let blank = |c: char| c == ' ' || c == '\t';
        let line = line.trim_matches(|c: char| c.is_ascii_whitespace());
        let (algorithm, rest) = line.split_once(blank).ok_or(KeyError::Missing)?;
        let rest = rest.trim_start_matches(blank);
        let (base64, comment) = rest.split_once(blank).unwrap_or((rest, ""));
        let key = PublicKey::from_fields(algorithm, base64)?;
        Ok((key, comment.trim_matches(blank)))
    }

    /// The key's type.
    pub fn algorithm(&self) -> Algorithm {
        // Every constructor has read the blob, so the fallback is never taken.
        read_blob(&self.blob).map_or(Algorithm::SkEcdsa, |(algorithm, _)| algorithm)
    }

    /// What the key consists of.
    pub fn material(&self) -> Material<'_> {
        read_blob(&self.blob).map_or(Material::SecurityKey, |(_, material)| material)
    }

    /// The raw bytes of an Ed25519 key.
    pub fn ed25519(&self) -> Option<[u8; 32]> {
        match self.material() {
            Material::Ed25519(raw) => Some(*raw),
            _ => None,
        }
    }

    /// The key blob.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// Refuses an RSA key of a size that bowline does not accept.
    ///
    /// # Errors
    /// [`KeyError::RsaSize`].
    pub fn check_size(&self) -> Result<(), KeyError> {
        let Material::Rsa { modulus, .. } = self.material() else {
            return Ok(());
        };
        let zeros = modulus
            .first()
            .map_or(0, |first| first.leading_zeros() as usize);
        let bits = modulus.len() * 8 - zeros;
        if (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            Ok(())
        } else {
            Err(KeyError::RsaSize { bits })
        }
    }
}

/// Reads a blob: the type's name, then the fields that the type asks for, and nothing after them.
fn read_blob(blob: &[u8]) -> Result<(Algorithm, Material<'_>), KeyError> {
    let mut reader = Reader::new(blob);
    let algorithm = reader.text().ok().and_then(Algorithm::from_name);
    let algorithm = algorithm.ok_or(KeyError::UnknownAlgorithm)?;
    let material = match algorithm {
        Algorithm::Ed25519 => Material::Ed25519(
            reader
                .string()?
                .try_into()
                .map_err(|_| KeyError::Malformed)?,
        ),
        Algorithm::Ecdsa(curve) => Material::Ecdsa {
            curve,
            point: read_point(&mut reader, curve)?,
        },
        Algorithm::Rsa => Material::Rsa {
            exponent: reader.positive()?,
            modulus: reader.positive()?,
        },
        Algorithm::SkEd25519 => {
            if reader.string()?.len() != 32 {
                return Err(KeyError::Malformed);
            }
            reader.string()?;
            Material::SecurityKey
        }
        Algorithm::SkEcdsa => {
            read_point(&mut reader, Curve::P256)?;
            reader.string()?;
            Material::SecurityKey
        }
    };
    reader.finish()?;
    Ok((algorithm, material))
}

/// Reads the curve's name and an uncompressed point, the only form that OpenSSH writes.
fn read_point<'a>(reader: &mut Reader<'a>, curve: Curve) -> Result<&'a [u8], KeyError> {
    let name = reader.string()?;
    let point = reader.string()?;
    let uncompressed = point.first() == Some(&4) && point.len() == 1 + 2 * curve.field_bytes();
    if name == curve.name().as_bytes() && uncompressed {
        Ok(point)
    } else {
        Err(KeyError::Malformed)
    }
}

impl fmt::Display for PublicKey {
    /// Writes the line form without a comment: `ssh-ed25519 AAAA…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base64 = STANDARD.encode(&self.blob);
        write!(f, "{} {base64}", self.algorithm().name())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl TryFrom<Vec<u8>> for PublicKey {
    type Error = KeyError;

    fn try_from(blob: Vec<u8>) -> Result<PublicKey, KeyError> {
        PublicKey::from_blob(&blob)
    }
}

impl From<PublicKey> for Vec<u8> {
    fn from(key: PublicKey) -> Vec<u8> {
        key.blob
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "ssh-ed25519 \
        AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl github";

    #[test]
    fn a_line_is_read_and_written() {
        let (key, comment) = PublicKey::from_line(LINE).unwrap();
        assert_eq!(comment, "github");
        assert_eq!(key.algorithm(), Algorithm::Ed25519);
        assert_eq!(format!("{key} github"), LINE);
        assert_eq!(PublicKey::from_ed25519(&key.ed25519().unwrap()), key);
    }

    #[test]
    fn a_wrong_type_in_front_is_refused() {
        let line = LINE.replacen("ssh-ed25519", "ssh-rsa", 1);
        assert_eq!(
            PublicKey::from_line(&line),
            Err(KeyError::AlgorithmMismatch)
        );
        let line = LINE.replacen("ssh-ed25519", "ssh-dss", 1);
        assert_eq!(PublicKey::from_line(&line), Err(KeyError::UnknownAlgorithm));
        assert_eq!(PublicKey::from_line("ssh-ed25519"), Err(KeyError::Missing));
        assert_eq!(
            PublicKey::from_line("ssh-ed25519 ????"),
            Err(KeyError::NotBase64)
        );
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let (key, _) = PublicKey::from_line(LINE).unwrap();
        for end in 0..key.blob().len() {
            assert!(PublicKey::from_blob(&key.blob()[..end]).is_err());
        }
        let mut longer = key.blob().to_vec();
        longer.push(0);
        assert_eq!(
            PublicKey::from_blob(&longer),
            Err(KeyError::Wire(WireError::Trailing))
        );
        assert_eq!(
            PublicKey::from_blob(&[0; KEY_BLOB_BYTES_MAX + 1]),
            Err(KeyError::TooLong)
        );
    }

    #[test]
    fn the_size_of_rsa_keys_is_bounded() {
        let rsa = |bits: usize| {
            let mut modulus = vec![0xff; bits.div_ceil(8)];
            modulus[0] >>= (8 - bits % 8) % 8;
            let mut blob = Vec::new();
            ssh_wire::put_string(&mut blob, b"ssh-rsa");
            ssh_wire::put_positive(&mut blob, &[1, 0, 1]);
            ssh_wire::put_positive(&mut blob, &modulus);
            PublicKey::from_blob(&blob).unwrap()
        };
        assert_eq!(
            rsa(2047).check_size(),
            Err(KeyError::RsaSize { bits: 2047 })
        );
        assert_eq!(rsa(2048).check_size(), Ok(()));
        assert_eq!(rsa(8192).check_size(), Ok(()));
        assert_eq!(
            rsa(8193).check_size(),
            Err(KeyError::RsaSize { bits: 8193 })
        );
    }
}
