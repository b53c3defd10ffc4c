//! OpenSSH's private key files (PROTOCOL.key in the OpenSSH sources), read and written.
//!
//! Owns the armour, the container and the private section. The decryption is done by the ciphers of the ssh-key
//! crate; its own reader of ECDSA keys refuses numbers that begin with zeros, half of all P-521 keys, so the
//! fields are read here. Files of unknown origin enter; a [`PrivateKey`] leaves whose halves belong together.
//!
//! | field of the container | encoding | content |
//! | --- | --- | --- |
//! | magic | 15 bytes | `openssh-key-v1` and NUL |
//! | cipher, kdf | string each | `none`, or such as `aes256-ctr` and `bcrypt` |
//! | kdf's options | string | string salt, uint32 rounds; or empty |
//! | number of keys | uint32 | 1 |
//! | public key | string | key blob |
//! | private section | string | encrypted: uint32 check twice, key, string comment, padding 1, 2, 3… |
//! | tag | rest | of ciphers with authentication |

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bowline_proto::key::{Algorithm, KeyError, PublicKey};
use bowline_proto::ssh_wire::{self, Reader, WireError};
use ssh_key::{Cipher, Kdf};
use zeroize::Zeroizing;

use super::private_key::{PrivateKey, PrivateKeyError, RsaNumbers};

/// The most bytes a key file may have: an RSA key of 8,192 bits takes 6,500.
pub const KEY_FILE_BYTES_MAX: usize = 64 * 1024;
/// The most rounds of bcrypt that are done for a file; `ssh-keygen -a 1000` takes some seconds already.
pub const BCRYPT_ROUNDS_MAX: u32 = 10_000;

const BEGIN: &[u8] = b"-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &[u8] = b"-----END OPENSSH PRIVATE KEY-----";
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// What ssh-keygen wraps lines at.
const LINE_CHARS: usize = 70;
/// What ssh-keygen uses unless told otherwise.
const BCRYPT_ROUNDS: u32 = 16;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// PEM or PKCS#8, which older programs write.
    #[error("the key is in PEM format, not OpenSSH's")]
    Pem,
    /// A public key, where the private one was asked for.
    #[error("this is a public key; name the private key beside it")]
    PublicKey,
    /// Nothing that looks like a key.
    #[error("this is not an OpenSSH private key")]
    NotAKey,
    /// The armour is right and what it holds is not.
    #[error("the key file is damaged: {0}")]
    Wire(#[from] WireError),
    /// The armour is right and what it holds is not base64, or not consistent.
    #[error("the key file is damaged")]
    Damaged,
    /// The public half.
    #[error("the key file's public key: {0}")]
    Public(#[from] KeyError),
    /// A cipher or a key derivation that bowline lacks.
    #[error(
        "the key file is encrypted in a way that is not supported; change it with `ssh-keygen -p -Z aes256-ctr`"
    )]
    UnsupportedCipher,
    /// It would take longer to try the passphrase than anybody waits.
    #[error(
        "the key file asks for {rounds} rounds of bcrypt; {BCRYPT_ROUNDS_MAX} at most are done"
    )]
    TooManyRounds {
        /// What the file asks for.
        rounds: u32,
    },
    /// It is encrypted and no passphrase was given.
    #[error("the key file is encrypted")]
    Encrypted,
    /// The passphrase does not open it.
    #[error("the passphrase is wrong")]
    Passphrase,
    /// The numbers in it make no key.
    #[error(transparent)]
    Key(#[from] PrivateKeyError),
}

/// A key file taken apart, its private section still closed.
pub struct KeyFile {
    cipher: Cipher,
    kdf: Kdf,
    public: PublicKey,
    sealed: Zeroizing<Vec<u8>>,
    tag: Option<[u8; 16]>,
}

impl KeyFile {
    /// Takes the text of a file apart.
    ///
    /// # Errors
    /// [`KeyFileError`], all that can be seen without a passphrase.
    pub fn parse(text: &[u8]) -> Result<KeyFile, KeyFileError> {
        let bytes = unarmour(text)?;
        let mut reader = Reader::new(&bytes);
        if reader.bytes(MAGIC.len())? != MAGIC {
            return Err(KeyFileError::NotAKey);
        }
        let cipher = Cipher::new(reader.text()?)
            .ok()
            .filter(|cipher| *cipher != Cipher::TDesCbc)
            .ok_or(KeyFileError::UnsupportedCipher)?;
        let kdf = read_kdf(reader.text()?, reader.string()?)?;
        if cipher.is_some() != kdf.is_some() {
            return Err(KeyFileError::Damaged);
        }
        if reader.number()? != 1 {
            return Err(KeyFileError::Damaged);
        }
        let public = PublicKey::from_blob(reader.string()?)?;
        let sealed = Zeroizing::new(reader.string()?.to_vec());
        if sealed.len() % cipher.block_size() != 0 {
            return Err(KeyFileError::Damaged);
        }
        let tag = match cipher.has_tag() {
            true => reader.bytes(16)?.try_into().ok(),
            false => None,
        };
        reader.finish()?;
        Ok(KeyFile {
            cipher,
            kdf,
            public,
            sealed,
            tag,
        })
    }

    /// The public half, which stands in the clear in every file.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Whether a passphrase is needed.
    pub fn is_encrypted(&self) -> bool {
        self.cipher.is_some()
    }

    /// Opens the private section of a file that is not encrypted.
    ///
    /// # Errors
    /// [`KeyFileError::Encrypted`], or if the file is damaged.
    pub fn open(&self) -> Result<PrivateKey, KeyFileError> {
        if self.is_encrypted() {
            return Err(KeyFileError::Encrypted);
        }
        if !checks_agree(&self.sealed) {
            return Err(KeyFileError::Damaged);
        }
        self.read_section(&self.sealed)
    }

    /// Opens the private section with a passphrase; one that is not encrypted opens with any.
    ///
    /// # Errors
    /// [`KeyFileError::Passphrase`] if it is the wrong one, else if the file is damaged.
    pub fn open_with(&self, passphrase: &[u8]) -> Result<PrivateKey, KeyFileError> {
        if !self.is_encrypted() {
            return self.open();
        }
        let (key, iv) = self
            .kdf
            .derive_key_and_iv(self.cipher, passphrase)
            .map_err(|_| KeyFileError::Passphrase)?;
        let mut section = self.sealed.clone();
        self.cipher
            .decrypt(&key, &iv, &mut section, self.tag)
            .map_err(|_| KeyFileError::Passphrase)?;
        if !checks_agree(&section) {
            return Err(KeyFileError::Passphrase);
        }
        self.read_section(&section)
    }

    /// Reads the decrypted section: the checks, one key, its comment and the padding.
    fn read_section(&self, section: &[u8]) -> Result<PrivateKey, KeyFileError> {
        let mut reader = Reader::new(section);
        reader.bytes(8)?;
        let key = read_key(&mut reader)?;
        reader.string()?;
        let mut padding = 0;
        while !reader.is_empty() {
            padding += 1;
            if usize::from(reader.byte()?) != padding || padding >= self.cipher.block_size() {
                return Err(KeyFileError::Damaged);
            }
        }
        if *key.public() != self.public {
            return Err(KeyFileError::Key(PrivateKeyError::Inconsistent));
        }
        Ok(key)
    }
}

/// Writes a new Ed25519 key as ssh-keygen does: the private file and the line of the public one.
///
/// With a passphrase it is encrypted with aes256-ctr and 16 rounds of bcrypt.
///
/// # Errors
/// [`KeyFileError::Key`] if the key is of another type or the library fails; [`KeyFileError::Passphrase`] if the
/// passphrase is empty.
pub fn write(
    key: &PrivateKey,
    comment: &str,
    passphrase: Option<&[u8]>,
) -> Result<Zeroizing<String>, KeyFileError> {
    let (cipher, kdf) = match passphrase {
        Some(_) => {
            let salt = random::<16>()?.to_vec();
            let rounds = BCRYPT_ROUNDS;
            (Cipher::Aes256Ctr, Kdf::Bcrypt { salt, rounds })
        }
        None => (Cipher::None, Kdf::None),
    };
    let mut section = section_of(key, comment, cipher.block_size())?;
    if let Some(passphrase) = passphrase {
        let (key, iv) = kdf
            .derive_key_and_iv(cipher, passphrase)
            .map_err(|_| KeyFileError::Passphrase)?;
        cipher
            .encrypt(&key, &iv, &mut section)
            .map_err(|_| KeyFileError::Key(PrivateKeyError::Library))?;
    }
    let mut options = Vec::new();
    if let Kdf::Bcrypt { salt, rounds } = &kdf {
        ssh_wire::put_string(&mut options, salt);
        ssh_wire::put_number(&mut options, *rounds);
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX));
    bytes.extend_from_slice(MAGIC);
    ssh_wire::put_string(&mut bytes, cipher.as_str().as_bytes());
    ssh_wire::put_string(&mut bytes, kdf.algorithm().as_str().as_bytes());
    ssh_wire::put_string(&mut bytes, &options);
    ssh_wire::put_number(&mut bytes, 1);
    ssh_wire::put_string(&mut bytes, key.public().blob());
    ssh_wire::put_string(&mut bytes, &section);
    Ok(armour(&bytes))
}

/// The private section of an Ed25519 key before encryption, padded to whole blocks.
fn section_of(
    key: &PrivateKey,
    comment: &str,
    block: usize,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let unsupported = || PrivateKeyError::Unsupported(key.public().algorithm().name());
    let seed = key.ed25519_seed().ok_or_else(unsupported)?;
    let public = key.public().ed25519().ok_or_else(unsupported)?;
    let mut both = Zeroizing::new([0; 64]);
    both[..32].copy_from_slice(seed.as_slice());
    both[32..].copy_from_slice(&public);
    let check = random::<4>()?;
    let mut section = Zeroizing::new(Vec::with_capacity(512 + comment.len()));
    section.extend_from_slice(&check);
    section.extend_from_slice(&check);
    ssh_wire::put_string(&mut section, Algorithm::Ed25519.name().as_bytes());
    ssh_wire::put_string(&mut section, &public);
    ssh_wire::put_string(&mut section, both.as_slice());
    ssh_wire::put_string(&mut section, comment.as_bytes());
    for padding in 1u8.. {
        if section.len() % block == 0 {
            break;
        }
        section.push(padding);
    }
    Ok(section)
}

fn random<const N: usize>() -> Result<[u8; N], KeyFileError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PrivateKeyError::Library)?;
    Ok(bytes)
}

fn armour(bytes: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(STANDARD.encode(bytes));
    let mut text = Zeroizing::new(String::with_capacity(base64.len() * 2 + 128));
    text.push_str(&String::from_utf8_lossy(BEGIN));
    for (index, digit) in base64.chars().enumerate() {
        if index % LINE_CHARS == 0 {
            text.push('\n');
        }
        text.push(digit);
    }
    text.push('\n');
    text.push_str(&String::from_utf8_lossy(END));
    text.push('\n');
    text
}

fn unarmour(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let text = text.trim_ascii();
    let Some(body) = text.strip_prefix(BEGIN) else {
        return Err(what_else(text));
    };
    let body = body.strip_suffix(END).ok_or(KeyFileError::Damaged)?;
    let mut digits = Zeroizing::new(Vec::with_capacity(body.len()));
    digits.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; digits.len()]);
    let length = STANDARD
        .decode_slice_unchecked(digits.as_slice(), &mut bytes)
        .map_err(|_| KeyFileError::Damaged)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Says what a file is that is not an OpenSSH private key.
fn what_else(text: &[u8]) -> KeyFileError {
    let begins = |with: &str| text.starts_with(with.as_bytes());
    if begins("-----BEGIN ") {
        KeyFileError::Pem
    } else if ["ssh-", "ecdsa-", "sk-"].into_iter().any(begins) {
        KeyFileError::PublicKey
    } else {
        KeyFileError::NotAKey
    }
}

fn read_kdf(name: &str, options: &[u8]) -> Result<Kdf, KeyFileError> {
    match name {
        "none" if options.is_empty() => Ok(Kdf::None),
        "none" => Err(KeyFileError::Damaged),
        "bcrypt" => {
            let mut reader = Reader::new(options);
            let salt = reader.string()?.to_vec();
            let rounds = reader.number()?;
            reader.finish()?;
            if rounds > BCRYPT_ROUNDS_MAX {
                return Err(KeyFileError::TooManyRounds { rounds });
            }
            if salt.is_empty() || rounds == 0 {
                return Err(KeyFileError::Damaged);
            }
            Ok(Kdf::Bcrypt { salt, rounds })
        }
        _ => Err(KeyFileError::UnsupportedCipher),
    }
}

/// Whether the two checks in front of a section are equal: only the right passphrase makes them so.
fn checks_agree(section: &[u8]) -> bool {
    matches!(section.get(..8), Some([a, b, c, d, e, f, g, h]) if [a, b, c, d] == [e, f, g, h])
}

fn read_key(reader: &mut Reader<'_>) -> Result<PrivateKey, KeyFileError> {
    let algorithm = Algorithm::from_name(reader.text()?).ok_or(KeyError::UnknownAlgorithm)?;
    let mut blob = Vec::new();
    ssh_wire::put_string(&mut blob, algorithm.name().as_bytes());
    let key = match algorithm {
        Algorithm::Ed25519 => {
            let public = reader.string()?;
            let both = reader.string()?;
            let (seed, again) = both.split_at_checked(32).ok_or(KeyFileError::Damaged)?;
            let mut bytes = Zeroizing::new([0; 32]);
            bytes.copy_from_slice(seed);
            let key = PrivateKey::from_ed25519_seed(bytes)?;
            if again != public
                || key.public().ed25519().as_ref().map(|raw| &raw[..]) != Some(public)
            {
                return Err(KeyFileError::Key(PrivateKeyError::Inconsistent));
            }
            key
        }
        Algorithm::Ecdsa(_) => {
            ssh_wire::put_string(&mut blob, reader.string()?);
            ssh_wire::put_string(&mut blob, reader.string()?);
            PrivateKey::from_ecdsa(PublicKey::from_blob(&blob)?, reader.positive()?)?
        }
        Algorithm::Rsa => {
            let (modulus, exponent) = (reader.positive()?, reader.positive()?);
            ssh_wire::put_positive(&mut blob, exponent);
            ssh_wire::put_positive(&mut blob, modulus);
            let numbers = RsaNumbers {
                d: reader.positive()?,
                iqmp: reader.positive()?,
                p: reader.positive()?,
                q: reader.positive()?,
            };
            PrivateKey::from_rsa(PublicKey::from_blob(&blob)?, &numbers)?
        }
        Algorithm::SkEd25519 | Algorithm::SkEcdsa => {
            return Err(PrivateKeyError::Unsupported(algorithm.name()).into());
        }
    };
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PrivateKey {
        PrivateKey::from_ed25519_seed(Zeroizing::new([42; 32])).unwrap()
    }

    fn signature(key: &PrivateKey) -> Vec<u8> {
        key.sign_sshsig("test", b"message").unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = write(&key(), "me@here", None).unwrap();
        let file = KeyFile::parse(text.as_bytes()).unwrap();
        assert!(!file.is_encrypted());
        assert_eq!(file.public(), key().public());
        assert_eq!(signature(&file.open().unwrap()), signature(&key()));
    }

    #[test]
    fn a_passphrase_is_needed_and_must_be_right() {
        let text = write(&key(), "", Some(b"correct horse")).unwrap();
        let file = KeyFile::parse(text.as_bytes()).unwrap();
        assert!(file.is_encrypted());
        assert_eq!(file.public(), key().public());
        assert!(matches!(file.open(), Err(KeyFileError::Encrypted)));
        for wrong in [&b""[..], b"correct", b"correct horse "] {
            assert!(matches!(
                file.open_with(wrong),
                Err(KeyFileError::Passphrase)
            ));
        }
        let opened = file.open_with(b"correct horse").unwrap();
        assert_eq!(signature(&opened), signature(&key()));
        assert!(matches!(
            write(&key(), "", Some(b"")),
            Err(KeyFileError::Passphrase)
        ));
    }

    #[test]
    fn no_damaged_byte_makes_another_key() {
        let text = write(&key(), "c", None).unwrap();
        let bytes = unarmour(text.as_bytes()).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let parsed = KeyFile::parse(armour(&damaged).as_bytes());
            // A changed comment, or two checks, is all that may pass: the key and its public half stay the same.
            if let Ok((public, opened)) =
                parsed.and_then(|file| Ok((file.public().clone(), file.open()?)))
            {
                assert_eq!(
                    (&public, opened.public()),
                    (key().public(), &public),
                    "{at}"
                );
            }
            let cut = armour(&bytes[..at]);
            assert!(KeyFile::parse(cut.as_bytes()).is_err(), "{at}");
        }
    }

    #[test]
    fn other_files_are_named() {
        let parse = |text: &str| KeyFile::parse(text.as_bytes()).err().unwrap();
        for pem in ["RSA PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
            let text = format!("-----BEGIN {pem}-----\nAAAA\n-----END {pem}-----\n");
            assert!(matches!(parse(&text), KeyFileError::Pem));
        }
        let line = key().public().to_string();
        assert!(matches!(parse(&line), KeyFileError::PublicKey));
        assert!(matches!(parse("hello"), KeyFileError::NotAKey));
        assert!(matches!(parse(""), KeyFileError::NotAKey));
    }

    #[test]
    fn rounds_are_bounded() {
        let mut options = Vec::new();
        ssh_wire::put_string(&mut options, b"salt");
        ssh_wire::put_number(&mut options, u32::MAX);
        assert!(matches!(
            read_kdf("bcrypt", &options),
            Err(KeyFileError::TooManyRounds { rounds: u32::MAX })
        ));
    }

    proptest::proptest! {
        /// Whatever stands in a file, it is refused or it is a key whose halves belong together.
        #[test]
        fn any_file_is_survived(
            changes in proptest::collection::vec((0usize..1000, proptest::prelude::any::<u8>()), 0..4),
            cut in 0usize..1000,
            tail: Vec<u8>,
        ) {
            let text = write(&key(), "c", None).unwrap();
            let mut bytes = unarmour(text.as_bytes()).unwrap();
            let length = bytes.len();
            for (at, value) in changes {
                bytes[at % length] = value;
            }
            bytes.truncate(cut.min(length));
            bytes.extend_from_slice(&tail);
            for text in [armour(&bytes).as_bytes(), &tail] {
                if let Ok(file) = KeyFile::parse(text) {
                    // With a passphrase the rounds that a file may ask for would take minutes.
                    if let Ok(key) = file.open() {
                        proptest::prop_assert_eq!(key.public(), file.public());
                    }
                }
            }
        }
    }
}
