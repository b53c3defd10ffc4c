//! SSHSIG: OpenSSH's signatures over any data (PROTOCOL.sshsig in the OpenSSH sources).
//!
//! Owns the bytes of the signature blob and of what is signed. It computes no hash and checks no signature:
//! the library hands in the digest and does the rest. A blob enters from a proof and leaves for one.
//!
//! | field of the blob | encoding | content |
//! | --- | --- | --- |
//! | magic | 6 bytes | `SSHSIG` |
//! | version | uint32 | 1 |
//! | public key | string | key blob |
//! | namespace | string | as signed |
//! | reserved | string | empty |
//! | hash | string | `sha256` or `sha512` |
//! | signature | string | string algorithm, string signature |
//!
//! What is signed: magic, string namespace, string reserved, string hash, string H(message).

use crate::key::{KeyError, PublicKey};
use crate::ssh_wire::{self, Reader, WireError};

/// The most bytes a signature blob may have: an RSA key of 8,192 bits makes 2,200.
///
/// Four of them in base64 fit a frame of 16 KiB with the rest of `auth`.
pub const SSHSIG_BYTES_MAX: usize = 2560;

const MAGIC: &[u8] = b"SSHSIG";
const VERSION: u32 = 1;

/// The hash that a message goes through before it is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-512, which ssh-keygen uses unless told otherwise.
    Sha512,
}

impl Hash {
    /// The name in the blob.
    pub fn name(self) -> &'static str {
        match self {
            Hash::Sha256 => "sha256",
            Hash::Sha512 => "sha512",
        }
    }

    fn from_name(name: &[u8]) -> Option<Hash> {
        [Hash::Sha256, Hash::Sha512]
            .into_iter()
            .find(|hash| hash.name().as_bytes() == name)
    }
}

/// What can be wrong with a signature blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshSigError {
    /// Longer than [`SSHSIG_BYTES_MAX`].
    #[error("the signature is longer than {SSHSIG_BYTES_MAX} bytes")]
    TooLong,
    /// It does not begin as an SSHSIG does.
    #[error("the bytes are not an SSHSIG")]
    NotSshSig,
    /// A version other than 1.
    #[error("SSHSIG version {0} is not known")]
    Version(u32),
    /// A hash other than SHA-256 and SHA-512.
    #[error("the hash of the signature is not known")]
    UnknownHash,
    /// The fields are malformed.
    #[error("the signature is malformed: {0}")]
    Wire(#[from] WireError),
    /// The key in it is malformed or of an unknown type.
    #[error("the key of the signature: {0}")]
    Key(#[from] KeyError),
}

/// A signature blob taken apart. Nothing in it has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSig {
    /// The key that it claims to be made with.
    pub key: PublicKey,
    /// The namespace that it claims to be made for.
    pub namespace: Vec<u8>,
    /// What the message was hashed with.
    pub hash: Hash,
    /// The signature algorithm, as `rsa-sha2-512`.
    pub algorithm: String,
    /// The signature in the encoding of its algorithm.
    pub signature: Vec<u8>,
}

impl SshSig {
    /// Takes a blob apart.
    ///
    /// # Errors
    /// If it is not exactly one well-formed SSHSIG.
    pub fn decode(blob: &[u8]) -> Result<SshSig, SshSigError> {
        if blob.len() > SSHSIG_BYTES_MAX {
            return Err(SshSigError::TooLong);
        }
        let mut reader = Reader::new(blob);
        if reader.bytes(MAGIC.len()) != Ok(MAGIC) {
            return Err(SshSigError::NotSshSig);
        }
        match reader.number()? {
            VERSION => {}
            other => return Err(SshSigError::Version(other)),
        }
        let key = reader.string()?;
        let namespace = reader.string()?;
        // "Reserved" may hold anything in later versions, but what is signed holds it too: this one is empty.
        if !reader.string()?.is_empty() {
            return Err(SshSigError::Wire(WireError::Trailing));
        }
        let hash = Hash::from_name(reader.string()?).ok_or(SshSigError::UnknownHash)?;
        let mut inner = Reader::new(reader.string()?);
        reader.finish()?;
        let algorithm = inner.text()?.to_owned();
        let signature = inner.string()?.to_vec();
        inner.finish()?;
        Ok(SshSig {
            key: PublicKey::from_blob(key)?,
            namespace: namespace.to_vec(),
            hash,
            algorithm,
            signature,
        })
    }

    /// Makes the blob.
    pub fn encode(&self) -> Vec<u8> {
        let mut inner = Vec::new();
        ssh_wire::put_string(&mut inner, self.algorithm.as_bytes());
        ssh_wire::put_string(&mut inner, &self.signature);
        let mut blob = MAGIC.to_vec();
        ssh_wire::put_number(&mut blob, VERSION);
        ssh_wire::put_string(&mut blob, self.key.blob());
        ssh_wire::put_string(&mut blob, &self.namespace);
        ssh_wire::put_string(&mut blob, b"");
        ssh_wire::put_string(&mut blob, self.hash.name().as_bytes());
        ssh_wire::put_string(&mut blob, &inner);
        blob
    }
}

/// The bytes that the key signs, from the digest of the message.
pub fn signed_data(namespace: &[u8], hash: Hash, digest: &[u8]) -> Vec<u8> {
    let mut data = MAGIC.to_vec();
    ssh_wire::put_string(&mut data, namespace);
    ssh_wire::put_string(&mut data, b"");
    ssh_wire::put_string(&mut data, hash.name().as_bytes());
    ssh_wire::put_string(&mut data, digest);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SshSig {
        SshSig {
            key: PublicKey::from_ed25519(&[9; 32]),
            namespace: b"auth@bowline".to_vec(),
            hash: Hash::Sha512,
            algorithm: "ssh-ed25519".to_owned(),
            signature: vec![7; 64],
        }
    }

    #[test]
    fn a_blob_round_trips_and_no_cut_of_it_passes() {
        let blob = sample().encode();
        assert_eq!(SshSig::decode(&blob), Ok(sample()));
        for end in 0..blob.len() {
            assert!(SshSig::decode(&blob[..end]).is_err(), "{end}");
        }
        let mut longer = blob;
        longer.push(0);
        assert!(SshSig::decode(&longer).is_err());
        assert_eq!(
            SshSig::decode(&[0; SSHSIG_BYTES_MAX + 1]),
            Err(SshSigError::TooLong)
        );
    }

    #[test]
    fn versions_and_hashes_are_checked() {
        let mut blob = sample().encode();
        blob[9] = 2;
        assert_eq!(SshSig::decode(&blob), Err(SshSigError::Version(2)));
        let text = sample().encode();
        let at = text.windows(6).position(|w| w == b"sha512").unwrap();
        let mut blob = text;
        blob[at..at + 6].copy_from_slice(b"sha384");
        assert_eq!(SshSig::decode(&blob), Err(SshSigError::UnknownHash));
    }
}
