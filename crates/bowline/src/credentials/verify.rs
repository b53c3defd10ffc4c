//! Verification of proofs: whether a signature or an authentication code is good.
//!
//! Owns the choice of algorithms: a key type permits exactly its own signatures, RSA only with SHA-2 and only of
//! [`bowline_proto::key`]'s sizes. It decides nothing about what a good proof permits: that is the grant's part.
//! Hostile bytes enter; a [`PublicKey`] leaves only if its owner signed this very message.

use aws_lc_rs::{digest, hmac, signature};
use bowline_proto::auth::NAMESPACE;
use bowline_proto::key::{Curve, KeyError, Material, PublicKey};
use bowline_proto::ssh_wire::Reader;
use bowline_proto::sshsig::{Hash, SshSig, SshSigError, signed_data};

/// Why a public-key proof is not good. All of it is the peer's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The blob is not an SSHSIG.
    #[error(transparent)]
    Malformed(#[from] SshSigError),
    /// The signature was made for something else than authentication to bowline.
    #[error("the signature was not made in the namespace {NAMESPACE}")]
    Namespace,
    /// The key is of a type that bowline knows and does not verify: a FIDO key.
    #[error("signatures of {0} keys are not supported yet")]
    Unsupported(&'static str),
    /// The key is too short or too long.
    #[error(transparent)]
    KeySize(#[from] KeyError),
    /// An RSA signature over SHA-1.
    #[error("RSA signatures with SHA-1 (ssh-rsa) are not accepted")]
    Sha1,
    /// The signature's algorithm is not one of the key's type.
    #[error("the signature is not of the key's type")]
    AlgorithmMismatch,
    /// The signature does not belong to the key and the message.
    #[error("the signature is wrong")]
    Wrong,
}

/// A public-key proof that was taken apart and not yet verified.
///
/// It lets a server look for the key among its grants first: for a key that has none, no arithmetic is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    sshsig: SshSig,
}

impl Claim {
    /// Takes a proof apart and checks everything about it that needs no arithmetic.
    ///
    /// # Errors
    /// [`VerifyError`], all but `Wrong`.
    pub fn decode(sshsig: &[u8]) -> Result<Claim, VerifyError> {
        let sshsig = SshSig::decode(sshsig)?;
        if sshsig.namespace != NAMESPACE.as_bytes() {
            return Err(VerifyError::Namespace);
        }
        sshsig.key.check_size()?;
        check_algorithm(&sshsig)?;
        Ok(Claim { sshsig })
    }

    /// The key that the proof claims to be made with.
    pub fn key(&self) -> &PublicKey {
        &self.sshsig.key
    }

    /// Checks the signature over `message`, and gives the key that made it.
    ///
    /// # Errors
    /// [`VerifyError::Wrong`].
    pub fn verify(self, message: &[u8]) -> Result<PublicKey, VerifyError> {
        let digest = match self.sshsig.hash {
            Hash::Sha256 => digest::digest(&digest::SHA256, message),
            Hash::Sha512 => digest::digest(&digest::SHA512, message),
        };
        let signed = signed_data(
            &self.sshsig.namespace,
            self.sshsig.hash,
            AsRef::<[u8]>::as_ref(&digest),
        );
        if signature_is_good(&self.sshsig, &signed) {
            Ok(self.sshsig.key)
        } else {
            Err(VerifyError::Wrong)
        }
    }
}

/// Verifies a public-key proof over `message` (see [`bowline_proto::auth::public_key_message`]), and gives the
/// key that made it.
///
/// # Errors
/// [`VerifyError`] if it proves nothing.
pub fn verify_proof(sshsig: &[u8], message: &[u8]) -> Result<PublicKey, VerifyError> {
    Claim::decode(sshsig)?.verify(message)
}

/// Computes HMAC-SHA256 (RFC 2104) of `message` with a shared secret.
pub fn hmac(secret: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message);
    let mut mac = [0; 32];
    // The tag of HMAC-SHA256 has 32 bytes by definition.
    mac.copy_from_slice(tag.as_ref());
    mac
}

/// Whether `mac` is [`hmac()`] of `message`; takes the same time wherever they differ.
pub fn verify_hmac(secret: &[u8], message: &[u8], mac: &[u8; 32]) -> bool {
    hmac::verify(
        &hmac::Key::new(hmac::HMAC_SHA256, secret),
        message,
        mac.as_slice(),
    )
    .is_ok()
}

fn check_algorithm(sshsig: &SshSig) -> Result<(), VerifyError> {
    let key = sshsig.key.algorithm();
    let same = sshsig.algorithm == key.name();
    match sshsig.key.material() {
        Material::Ed25519(_) | Material::Ecdsa { .. } if same => Ok(()),
        Material::Rsa { .. } => match sshsig.algorithm.as_str() {
            "rsa-sha2-256" | "rsa-sha2-512" => Ok(()),
            "ssh-rsa" => Err(VerifyError::Sha1),
            _ => Err(VerifyError::AlgorithmMismatch),
        },
        Material::SecurityKey => Err(VerifyError::Unsupported(key.name())),
        Material::Ed25519(_) | Material::Ecdsa { .. } => Err(VerifyError::AlgorithmMismatch),
    }
}

fn signature_is_good(sshsig: &SshSig, signed: &[u8]) -> bool {
    let signature = &sshsig.signature;
    match sshsig.key.material() {
        Material::Ed25519(raw) => {
            signature::UnparsedPublicKey::new(&signature::ED25519, raw.as_slice())
                .verify(signed, signature)
                .is_ok()
        }
        Material::Ecdsa { curve, point } => {
            let algorithm = match curve {
                Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED,
                Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED,
                Curve::P521 => &signature::ECDSA_P521_SHA512_FIXED,
            };
            ecdsa_fixed(signature, curve.field_bytes()).is_some_and(|fixed| {
                signature::UnparsedPublicKey::new(algorithm, point)
                    .verify(signed, &fixed)
                    .is_ok()
            })
        }
        Material::Rsa { exponent, modulus } => {
            let parameters = match sshsig.algorithm.as_str() {
                "rsa-sha2-256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                "rsa-sha2-512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                _ => return false,
            };
            let components = signature::RsaPublicKeyComponents {
                n: modulus,
                e: exponent,
            };
            padded(signature, modulus.len())
                .is_some_and(|full| components.verify(parameters, signed, &full).is_ok())
        }
        Material::SecurityKey => false,
    }
}

/// Brings an ECDSA signature (RFC 5656, section 3.1.2: mpint r, mpint s) to r and s of full length.
fn ecdsa_fixed(signature: &[u8], field_bytes: usize) -> Option<Vec<u8>> {
    let mut reader = Reader::new(signature);
    let mut fixed = padded(reader.positive().ok()?, field_bytes)?;
    fixed.extend(padded(reader.positive().ok()?, field_bytes)?);
    reader.finish().ok()?;
    Some(fixed)
}

/// Puts zeros in front of a number up to `length` bytes; some signers drop them.
fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let zeros = length.checked_sub(number.len())?;
    let mut full = vec![0; zeros];
    full.extend_from_slice(number);
    Some(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        // Test case 2 of RFC 4231.
        let mac = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(
            hex::encode(mac),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(verify_hmac(b"Jefe", b"what do ya want for nothing?", &mac));
        assert!(!verify_hmac(b"Jefe", b"what do ya want for nothing!", &mac));
        assert!(!verify_hmac(b"jefe", b"what do ya want for nothing?", &mac));
        let mut other = mac;
        other[31] ^= 1;
        assert!(!verify_hmac(
            b"Jefe",
            b"what do ya want for nothing?",
            &other
        ));
    }
}
