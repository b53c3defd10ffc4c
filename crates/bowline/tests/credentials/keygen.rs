//! `bowline keygen`: its keys are read by ssh-keygen, and nothing is replaced.

use std::os::unix::fs::MetadataExt as _;

use bowline::credentials::fingerprint;
use bowline::credentials::keygen::{KeygenError, keygen};
use bowline::credentials::private_file::FileError;

use crate::real::{Home, public};

#[test]
fn ssh_keygen_reads_a_new_pair() {
    let home = Home::new();
    let path = home.join("config/bowline/id_ed25519");
    let key = keygen(&path, "me@here", None).unwrap();
    assert_eq!(public(&path), key);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let derived = home.keygen(["-y".as_ref(), "-f".as_ref(), path.as_os_str()]);
    assert_eq!(derived.trim(), format!("{key} me@here"));
    let listed = home.keygen(["-lf".as_ref(), path.as_os_str()]);
    assert_eq!(
        listed.trim(),
        format!("256 {} me@here (ED25519)", fingerprint(&key))
    );
}

#[test]
fn ssh_keygen_opens_an_encrypted_key_with_its_passphrase() {
    let home = Home::new();
    let path = home.join("id");
    let key = keygen(&path, "", Some(b"open sesame")).unwrap();
    let derive = |passphrase: &str| {
        home.command("ssh-keygen")
            .args(["-y", "-P", passphrase, "-f"])
            .arg(&path)
            .output()
            .unwrap()
    };
    assert!(!derive("").status.success());
    assert!(!derive("open").status.success());
    let output = derive("open sesame");
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        key.to_string()
    );
}

#[test]
fn nothing_is_replaced() {
    let home = Home::new();
    let exists = |result| matches!(result, Err(KeygenError::File(FileError::Exists { .. })));
    let path = home.write("id", "precious", 0o600);
    assert!(exists(keygen(&path, "", None)));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(!home.join("id.pub").exists());
    home.write("other.pub", "precious", 0o644);
    assert!(exists(keygen(&home.join("other"), "", None)));
    assert!(!home.join("other").exists());
}

#[test]
fn comments_and_passphrases_are_checked() {
    let home = Home::new();
    let path = home.join("id");
    for comment in ["a\nb", "a\u{7f}", &"c".repeat(2000)] {
        assert!(matches!(
            keygen(&path, comment, None),
            Err(KeygenError::Comment)
        ));
    }
    assert!(matches!(
        keygen(&path, "", Some(b"")),
        Err(KeygenError::EmptyPassphrase)
    ));
    assert!(!path.exists());
}
