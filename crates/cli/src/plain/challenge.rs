//! The challenge of the plain services: an HMAC of random bytes under a shared secret.
//!
//! It says that the client knows the secret. It encrypts nothing, and the server
//! proves nothing; the native protocol does both.

use std::path::Path;

use anyhow::{Context as _, bail};
use hmac::{Hmac, Mac};
use md5::Md5;
use zeroize::Zeroizing;

use crate::stderr::tell;

/// Bytes of a challenge.
pub(crate) const CHALLENGE_BYTES: usize = 32;
/// A secret shorter than this earns a warning.
const SECRET_BYTES_ADVISED: usize = 16;
/// The most bytes of a secret's file.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// The hash function of the HMAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Digest {
    /// 16 bytes, as old programs want it
    Md5,
    /// 32 bytes
    #[default]
    Sha256,
}

impl Digest {
    /// Bytes of an answer.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 => 32,
        }
    }
}

/// A secret and how it is proven.
#[derive(Clone)]
pub(crate) struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    digest: Digest,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Secret {
    /// Reads the secret from a file; one line end at its end is not part of it.
    ///
    /// # Errors
    /// Where the file cannot be read, is empty or is too long for a secret.
    pub(crate) fn load(path: &Path, digest: Digest) -> anyhow::Result<Self> {
        use std::io::Read as _;
        let place = || format!("the secret in {}", path.display());
        let mut bytes = Zeroizing::new(Vec::new());
        let file = std::fs::File::open(path).with_context(place)?;
        file.take(SECRET_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .with_context(place)?;
        if bytes.len() as u64 > SECRET_BYTES_MAX {
            bail!("{} is longer than {SECRET_BYTES_MAX} bytes", place());
        }
        let without_end = bytes
            .strip_suffix(b"\r\n")
            .or_else(|| bytes.strip_suffix(b"\n"))
            .map_or(bytes.len(), <[u8]>::len);
        bytes.truncate(without_end);
        if bytes.is_empty() {
            bail!("{} is empty", place());
        }
        if bytes.len() < SECRET_BYTES_ADVISED {
            tell!(
                "bowline: {} has fewer than {SECRET_BYTES_ADVISED} bytes: it can be guessed",
                place()
            );
        }
        Ok(Self { bytes, digest })
    }

    /// Bytes of an answer.
    pub(crate) fn answer_len(&self) -> usize {
        self.digest.len()
    }

    /// The client's answer.
    pub(crate) fn answer(&self, challenge: &[u8]) -> Vec<u8> {
        match self.digest {
            Digest::Md5 => self
                .mac::<Hmac<Md5>>(challenge)
                .finalize()
                .into_bytes()
                .to_vec(),
            Digest::Sha256 => hmac_sha256(&self.bytes, challenge),
        }
    }

    /// Whether an answer is right, compared in constant time.
    pub(crate) fn verify(&self, challenge: &[u8], answer: &[u8]) -> bool {
        let expected = self.answer(challenge);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected, answer).is_ok()
    }

    fn mac<M: Mac + hmac::digest::KeyInit>(&self, challenge: &[u8]) -> M {
        // HMAC takes a key of any length.
        let mut mac = <M as Mac>::new_from_slice(&self.bytes)
            .unwrap_or_else(|_| <M as Mac>::new(&Default::default()));
        mac.update(challenge);
        mac
    }
}

fn hmac_sha256(secret: &[u8], challenge: &[u8]) -> Vec<u8> {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    aws_lc_rs::hmac::sign(&key, challenge).as_ref().to_vec()
}

/// The MD5 of some bytes: a checksum for programs that want one, no protection.
#[derive(Default)]
pub(crate) struct Checksum(Md5);

impl Checksum {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        md5::Digest::update(&mut self.0, bytes);
    }

    pub(crate) fn hex(self) -> String {
        hex::encode(md5::Digest::finalize(self.0))
    }
}

/// The checksum of all bytes at once, in hex.
pub(crate) fn md5_hex(bytes: &[u8]) -> String {
    let mut checksum = Checksum::default();
    checksum.add(bytes);
    checksum.hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(digest: Digest) -> Secret {
        Secret {
            bytes: Zeroizing::new(b"ni hao ma".to_vec()),
            digest,
        }
    }

    #[test]
    fn answers_are_those_that_stock_programs_give() {
        let counted: Vec<u8> = (0..32).collect();
        let md5 = secret(Digest::Md5);
        let answer = hex::encode(md5.answer(&counted));
        assert_eq!(answer, "ea33192cf3082d2db4e60c0ffb629a9c");
        let answer = hex::encode(md5.answer(&[0; 32]));
        assert_eq!(answer, "62b380ad2b6af4ce2dd35f626956207a");
        // Python: hmac.new(b"ni hao ma", bytes(range(32)), "sha256").hexdigest()
        let python = std::process::Command::new("python3")
            .args(["-c", "import hmac; print(hmac.new(b'ni hao ma', bytes(range(32)), 'sha256').hexdigest())"])
            .output()
            .unwrap();
        let sha256 = secret(Digest::Sha256);
        let expected = String::from_utf8(python.stdout).unwrap();
        assert_eq!(hex::encode(sha256.answer(&counted)), expected.trim_end());
    }

    #[test]
    fn only_the_whole_right_answer_is_right() {
        for digest in [Digest::Md5, Digest::Sha256] {
            let secret = secret(digest);
            let challenge = [7; CHALLENGE_BYTES];
            let mut answer = secret.answer(&challenge);
            assert_eq!(answer.len(), digest.len());
            assert!(secret.verify(&challenge, &answer));
            assert!(!secret.verify(&[8; CHALLENGE_BYTES], &answer));
            assert!(!secret.verify(&challenge, &answer[1..]));
            answer[0] ^= 1;
            assert!(!secret.verify(&challenge, &answer));
        }
    }

    #[test]
    fn one_line_end_is_not_part_of_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for (text, secret) in [
            ("0123456789abcdef\n", "0123456789abcdef"),
            ("0123456789abcdef\r\n", "0123456789abcdef"),
            ("0123456789abcdef\n\n", "0123456789abcdef\n"),
            ("0123456789abcdef", "0123456789abcdef"),
        ] {
            std::fs::write(&path, text).unwrap();
            let loaded = Secret::load(&path, Digest::Sha256).unwrap();
            assert_eq!(&loaded.bytes[..], secret.as_bytes());
            assert!(!format!("{loaded:?}").contains("0123"));
        }
        for wrong in [String::new(), "\n".to_owned(), "x".repeat(70_000)] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Secret::load(&path, Digest::Md5).is_err());
        }
    }

    #[test]
    fn checksums_are_those_of_md5sum() {
        assert_eq!(md5_hex(b""), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(md5_hex(b"abc"), "900150983cd24fb0d6963f7d28e17f72");
    }
}
