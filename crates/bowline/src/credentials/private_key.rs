//! Private keys in memory, and the signatures that they make.
//!
//! Owns the step from the numbers of a key file to a key of aws-lc-rs, which checks that they belong together.
//! Signatures leave as SSHSIG blobs. No private number leaves: `Debug` shows the
//! public half.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPairComponents;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair, RsaPublicKeyComponents,
};
use aws_lc_rs::{digest, rand};
use bowline_proto::key::{Curve, KeyError, Material, PublicKey};
use bowline_proto::ssh_wire;
use bowline_proto::sshsig::{Hash, SshSig, signed_data};
use zeroize::Zeroizing;

/// Why a key cannot be used or made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// The public half is malformed or of a size that is not accepted.
    #[error(transparent)]
    Public(#[from] KeyError),
    /// The private and the public numbers do not belong together.
    #[error("the private half of the key does not belong to its public half")]
    Inconsistent,
    /// A type that bowline cannot sign with.
    #[error("bowline cannot sign with {0} keys yet; use a key of another type")]
    Unsupported(&'static str),
    /// The library would not sign or gave no random bytes.
    #[error("the cryptographic library failed")]
    Library,
}

/// A key that signs.
pub struct PrivateKey {
    public: PublicKey,
    pair: Pair,
}

enum Pair {
    Ed25519 {
        pair: Ed25519KeyPair,
        seed: Zeroizing<[u8; 32]>,
    },
    Ecdsa {
        pair: EcdsaKeyPair,
        curve: Curve,
    },
    Rsa(RsaKeyPair),
}

/// The private numbers of an RSA key as OpenSSH keeps them, big-endian.
pub(crate) struct RsaNumbers<'a> {
    pub(crate) d: &'a [u8],
    pub(crate) iqmp: &'a [u8],
    pub(crate) p: &'a [u8],
    pub(crate) q: &'a [u8],
}

impl PrivateKey {
    /// Makes a new Ed25519 key.
    ///
    /// # Errors
    /// [`PrivateKeyError::Library`] if there are no random bytes.
    pub fn generate() -> Result<PrivateKey, PrivateKeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        rand::fill(seed.as_mut_slice()).map_err(|_| PrivateKeyError::Library)?;
        PrivateKey::from_ed25519_seed(seed)
    }

    /// Makes the Ed25519 key of a seed (RFC 8032, section 5.1.5).
    ///
    /// # Errors
    /// [`PrivateKeyError::Library`].
    pub fn from_ed25519_seed(seed: Zeroizing<[u8; 32]>) -> Result<PrivateKey, PrivateKeyError> {
        use aws_lc_rs::signature::KeyPair as _;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice())
            .map_err(|_| PrivateKeyError::Library)?;
        let raw: [u8; 32] = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| PrivateKeyError::Library)?;
        Ok(PrivateKey {
            public: PublicKey::from_ed25519(&raw),
            pair: Pair::Ed25519 { pair, seed },
        })
    }

    pub(crate) fn from_ecdsa(
        public: PublicKey,
        scalar: &[u8],
    ) -> Result<PrivateKey, PrivateKeyError> {
        let Material::Ecdsa { curve, point } = public.material() else {
            return Err(PrivateKeyError::Inconsistent);
        };
        let algorithm = match curve {
            Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            Curve::P521 => &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
        };
        // The file holds the scalar as a number; a short one has lost its zeros.
        let zeros = curve.field_bytes().checked_sub(scalar.len());
        let zeros = zeros.ok_or(PrivateKeyError::Inconsistent)?;
        let mut full = Zeroizing::new(vec![0; curve.field_bytes()]);
        full[zeros..].copy_from_slice(scalar);
        let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &full, point)
            .map_err(|_| PrivateKeyError::Inconsistent)?;
        Ok(PrivateKey {
            pair: Pair::Ecdsa { pair, curve },
            public,
        })
    }

    pub(crate) fn from_rsa(
        public: PublicKey,
        numbers: &RsaNumbers<'_>,
    ) -> Result<PrivateKey, PrivateKeyError> {
        public.check_size()?;
        let Material::Rsa { exponent, modulus } = public.material() else {
            return Err(PrivateKeyError::Inconsistent);
        };
        if numbers.p.len() > modulus.len() || numbers.q.len() > modulus.len() {
            return Err(PrivateKeyError::Inconsistent);
        }
        let (exponent_p, exponent_q) = (
            reduce_by_predecessor(numbers.d, numbers.p),
            reduce_by_predecessor(numbers.d, numbers.q),
        );
        let pair = RsaKeyPair::from_components(&KeyPairComponents {
            public_key: RsaPublicKeyComponents {
                n: modulus,
                e: exponent,
            },
            d: numbers.d,
            p: numbers.p,
            q: numbers.q,
            dP: &exponent_p,
            dQ: &exponent_q,
            qInv: numbers.iqmp,
        })
        .map_err(|_| PrivateKeyError::Inconsistent)?;
        Ok(PrivateKey {
            pair: Pair::Rsa(pair),
            public,
        })
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The seed of an Ed25519 key.
    pub(crate) fn ed25519_seed(&self) -> Option<&Zeroizing<[u8; 32]>> {
        match &self.pair {
            Pair::Ed25519 { seed, .. } => Some(seed),
            _ => None,
        }
    }

    /// Hands out the pair of an Ed25519 key, for signatures that are not SSHSIG; gives any other key back.
    pub(crate) fn into_ed25519(self) -> Result<Ed25519KeyPair, PrivateKey> {
        match self.pair {
            Pair::Ed25519 { pair, .. } => Ok(pair),
            _ => Err(self),
        }
    }

    /// Signs `message` in a namespace and gives the SSHSIG blob.
    ///
    /// # Errors
    /// [`PrivateKeyError::Library`].
    pub fn sign_sshsig(&self, namespace: &str, message: &[u8]) -> Result<Vec<u8>, PrivateKeyError> {
        let signed = sshsig_data(namespace, message);
        let (algorithm, signature) = self.sign(&signed)?;
        let sshsig = SshSig {
            key: self.public.clone(),
            namespace: namespace.as_bytes().to_vec(),
            hash: Hash::Sha512,
            algorithm: algorithm.to_owned(),
            signature,
        };
        Ok(sshsig.encode())
    }

    fn sign(&self, data: &[u8]) -> Result<(&'static str, Vec<u8>), PrivateKeyError> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ed25519 { pair, .. } => Ok((
                self.public.algorithm().name(),
                pair.sign(data).as_ref().to_vec(),
            )),
            Pair::Ecdsa { pair, curve } => {
                let fixed = pair
                    .sign(&random, data)
                    .map_err(|_| PrivateKeyError::Library)?;
                let (r, s) = fixed
                    .as_ref()
                    .split_at_checked(curve.field_bytes())
                    .ok_or(PrivateKeyError::Library)?;
                let mut signature = Vec::new();
                ssh_wire::put_positive(&mut signature, r);
                ssh_wire::put_positive(&mut signature, s);
                Ok((self.public.algorithm().name(), signature))
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA512, &random, data, &mut signature)
                    .map_err(|_| PrivateKeyError::Library)?;
                Ok(("rsa-sha2-512", signature))
            }
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public)
    }
}

/// What is signed for an SSHSIG of `message` with SHA-512; an agent gets exactly these bytes.
pub(crate) fn sshsig_data(namespace: &str, message: &[u8]) -> Vec<u8> {
    let digest = digest::digest(&digest::SHA512, message);
    signed_data(namespace.as_bytes(), Hash::Sha512, digest.as_ref())
}

/// `number mod (prime - 1)`, which OpenSSH's files leave out and aws-lc-rs asks for.
///
/// Both are big-endian. Which bits are set influences neither branches nor addresses, only the lengths do.
fn reduce_by_predecessor(number: &[u8], prime: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut modulus = limbs(prime);
    if let Some(lowest) = modulus.first_mut() {
        // A prime of a key is odd, so its predecessor differs in the lowest bit alone.
        *lowest &= !1;
    }
    // One limb more than the modulus, so that doubling never overflows.
    modulus.push(0);
    let mut rest = Zeroizing::new(vec![0u64; modulus.len()]);
    let mut trial = Zeroizing::new(vec![0u64; modulus.len()]);
    for byte in number {
        for bit in (0..8).rev() {
            let mut carry = u64::from(byte >> bit & 1);
            for limb in rest.iter_mut() {
                let next = *limb >> 63;
                *limb = *limb << 1 | carry;
                carry = next;
            }
            let mut borrow = false;
            for ((out, limb), modulus) in trial.iter_mut().zip(rest.iter()).zip(modulus.iter()) {
                let (difference, below) = limb.overflowing_sub(*modulus);
                let (difference, below_again) = difference.overflowing_sub(u64::from(borrow));
                *out = difference;
                borrow = below | below_again;
            }
            // All ones if the difference is to be kept.
            let keep = u64::from(borrow).wrapping_sub(1);
            for (limb, trial) in rest.iter_mut().zip(trial.iter()) {
                *limb = *trial & keep | *limb & !keep;
            }
        }
    }
    Zeroizing::new(
        rest.iter()
            .rev()
            .flat_map(|limb| limb.to_be_bytes())
            .collect(),
    )
}

/// A big-endian number as limbs, the lowest first.
fn limbs(number: &[u8]) -> Zeroizing<Vec<u64>> {
    // Capacity for the limb that the caller adds, so that no copy is left behind.
    let mut limbs = Zeroizing::new(Vec::with_capacity(number.len().div_ceil(8) + 1));
    for chunk in number.rchunks(8) {
        let limb = chunk
            .iter()
            .fold(0, |limb: u64, byte| limb << 8 | u64::from(*byte));
        limbs.push(limb);
    }
    limbs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_reduced() {
        for (number, prime, expected) in [
            (100u128, 7u128, 100 % 6),
            (5, 7, 5),
            (6, 7, 0),
            (0, 7, 0),
            (
                u128::MAX,
                0xffff_ffff_ffff_ffc5,
                u128::MAX % 0xffff_ffff_ffff_ffc4,
            ),
            (u128::MAX, (1 << 127) - 1, u128::MAX % ((1 << 127) - 2)),
            (
                0x0123_4567_89ab_cdef_0011_2233_4455_6677,
                0x1_0000_0000_0000_000d,
                0x0123_4567_89ab_cdef_0011_2233_4455_6677 % 0x1_0000_0000_0000_000c,
            ),
        ] {
            let reduced = reduce_by_predecessor(&number.to_be_bytes(), &prime.to_be_bytes());
            let value = reduced
                .iter()
                .fold(0u128, |value, byte| value << 8 | u128::from(*byte));
            assert_eq!(value, expected, "{number} {prime}");
        }
    }

    #[test]
    fn debug_shows_no_private_number() {
        let key = PrivateKey::from_ed25519_seed(Zeroizing::new([7; 32])).unwrap();
        assert_eq!(format!("{key:?}"), format!("PrivateKey({})", key.public()));
    }
}
