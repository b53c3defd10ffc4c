//! Shared secrets in files.

use std::os::unix::fs::MetadataExt as _;

use bowline::credentials::private_file::FileError;
use bowline::credentials::secret::{Secret, SecretError};
use bowline_proto::auth::{Binding, Role};

use crate::real::Home;

fn code(secret: &Secret) -> [u8; 32] {
    secret.code(Role::Client, &Binding::Nonce([3; 32]), "me", "bowline/1")
}

#[test]
fn a_made_secret_is_read_again_and_never_replaced() {
    let home = Home::new();
    let path = home.join("secret");
    let made = Secret::create(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(code(&Secret::load(&path).unwrap()), code(&made));
    assert!(matches!(
        Secret::create(&path),
        Err(SecretError::File(FileError::Exists { .. }))
    ));
    assert_ne!(
        code(&Secret::create(&home.join("other")).unwrap()),
        code(&made)
    );
}

#[test]
fn the_same_secret_in_every_form_proves_the_same() {
    let home = Home::new();
    let raw: Vec<u8> = (100..164).collect();
    let load = |name: &str, content: &[u8]| Secret::load(&home.write(name, content, 0o600));
    let expected = code(&load("raw", &raw).unwrap());
    let hex = format!("{}\n", hex::encode(&raw));
    assert_eq!(code(&load("hex", hex.as_bytes()).unwrap()), expected);
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &raw);
    assert_eq!(code(&load("base64", base64.as_bytes()).unwrap()), expected);
    assert_ne!(code(&load("shorter", &raw[..63]).unwrap()), expected);
}

#[test]
fn weak_and_open_secrets_are_refused() {
    let home = Home::new();
    let load = |content: &[u8], mode| Secret::load(&home.write("secret", content, mode));
    assert!(matches!(
        load(&[0x80; 31], 0o600),
        Err(SecretError::TooShort { bytes: 31, .. })
    ));
    // 32 hex digits are 16 bytes.
    assert!(matches!(
        load(&[b'a'; 32], 0o600),
        Err(SecretError::TooShort { bytes: 16, .. })
    ));
    assert!(matches!(
        load(b"", 0o600),
        Err(SecretError::TooShort { bytes: 0, .. })
    ));
    assert!(matches!(
        load(b"a sentence of more than thirty-two letters", 0o600),
        Err(SecretError::Text { .. })
    ));
    for mode in [0o640, 0o604, 0o660] {
        assert!(matches!(
            load(&[0x80; 32], mode),
            Err(SecretError::File(FileError::OpenToOthers { .. }))
        ));
    }
    assert!(load(&[0x80; 32], 0o600).is_ok());
    assert!(matches!(
        load(&[0x80; 5000], 0o600),
        Err(SecretError::File(FileError::TooLong { .. }))
    ));
}
