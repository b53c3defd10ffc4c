//! Signatures: ours checked by ssh-keygen, ssh-keygen's checked by us, and wrong ones by both.

use bowline::credentials::fingerprint;
use bowline::credentials::key_file::{KeyFile, KeyFileError};
use bowline::credentials::verify::{Claim, VerifyError, verify_proof};
use bowline_proto::auth::NAMESPACE;
use bowline_proto::sshsig::{Hash, SshSig};

use crate::real::{Home, KINDS, public, succeeded};

const MESSAGE: &[u8] = b"what is signed";

#[test]
fn signatures_of_ssh_keygen_are_good() {
    let home = Home::new();
    for (kind, bits) in KINDS {
        let key = home.key(&format!("{kind}{bits}"), (kind, bits), "");
        for hash in ["sha256", "sha512"] {
            let sshsig = home.sign(&key, NAMESPACE, hash, MESSAGE);
            assert_eq!(verify_proof(&sshsig, MESSAGE), Ok(public(&key)), "{kind}");
            assert_eq!(verify_proof(&sshsig, b"other"), Err(VerifyError::Wrong));
            assert_eq!(Claim::decode(&sshsig).unwrap().key(), &public(&key));
        }
        let sshsig = home.sign(&key, "file", "sha512", MESSAGE);
        assert_eq!(verify_proof(&sshsig, MESSAGE), Err(VerifyError::Namespace));
    }
}

#[test]
fn our_signatures_are_good_to_ssh_keygen() {
    let home = Home::new();
    for (kind, bits) in KINDS {
        let path = home.key(&format!("{kind}{bits}"), (kind, bits), "");
        let key = KeyFile::parse(&std::fs::read(&path).unwrap())
            .and_then(|file| file.open())
            .unwrap();
        assert_eq!(key.public(), &public(&path));
        let sshsig = key.sign_sshsig(NAMESPACE, MESSAGE).unwrap();
        assert!(
            home.verifies(key.public(), NAMESPACE, &sshsig, MESSAGE),
            "{kind} {bits}"
        );
        assert!(!home.verifies(key.public(), NAMESPACE, &sshsig, b"other"));
        assert!(!home.verifies(key.public(), "file", &sshsig, MESSAGE));
        assert_eq!(verify_proof(&sshsig, MESSAGE), Ok(public(&path)));
    }
}

/// Numbers that begin with zeros are written shorter: one key in 256, every second one on P-521.
#[test]
fn numbers_that_begin_with_zeros_are_read() {
    let home = Home::new();
    for number in 0..12 {
        let path = home.key(&format!("key{number}"), ("ecdsa", "521"), "");
        let key = KeyFile::parse(&std::fs::read(&path).unwrap())
            .and_then(|file| file.open())
            .unwrap();
        // Of 64 pairs of r and s, half have a zero in front.
        for message in 0u8..64 {
            let sshsig = key.sign_sshsig(NAMESPACE, &[message]).unwrap();
            assert_eq!(verify_proof(&sshsig, &[message]), Ok(public(&path)));
        }
    }
}

#[test]
fn every_changed_bit_of_a_proof_is_noticed() {
    let home = Home::new();
    for kind in [("ed25519", ""), ("ecdsa", "256"), ("rsa", "2048")] {
        let key = home.key(kind.0, kind, "");
        let sshsig = home.sign(&key, NAMESPACE, "sha512", MESSAGE);
        for at in 0..sshsig.len() {
            for bit in 0..8 {
                let mut changed = sshsig.clone();
                changed[at] ^= 1 << bit;
                assert!(verify_proof(&changed, MESSAGE).is_err(), "{at} {bit}");
            }
        }
    }
}

#[test]
fn an_algorithm_that_is_not_the_keys_is_refused() {
    let home = Home::new();
    let rsa = home.key("rsa", ("rsa", "2048"), "");
    let sshsig = SshSig::decode(&home.sign(&rsa, NAMESPACE, "sha512", MESSAGE)).unwrap();
    assert_eq!(sshsig.algorithm, "rsa-sha2-512");
    for (algorithm, expected) in [
        ("ssh-rsa", VerifyError::Sha1),
        ("ssh-ed25519", VerifyError::AlgorithmMismatch),
        ("rsa-sha2-256", VerifyError::Wrong),
        ("", VerifyError::AlgorithmMismatch),
    ] {
        let mut sshsig = sshsig.clone();
        sshsig.algorithm = algorithm.to_owned();
        assert_eq!(verify_proof(&sshsig.encode(), MESSAGE), Err(expected));
    }
    let ed25519 = home.key("ed25519", ("ed25519", ""), "");
    let mut sshsig = SshSig::decode(&home.sign(&ed25519, NAMESPACE, "sha512", MESSAGE)).unwrap();
    sshsig.hash = Hash::Sha256;
    assert_eq!(
        verify_proof(&sshsig.encode(), MESSAGE),
        Err(VerifyError::Wrong)
    );
    sshsig.algorithm = "rsa-sha2-512".to_owned();
    assert_eq!(
        verify_proof(&sshsig.encode(), MESSAGE),
        Err(VerifyError::AlgorithmMismatch)
    );
}

#[test]
fn short_rsa_keys_are_refused() {
    let home = Home::new();
    let key = home.key("short", ("rsa", "1024"), "");
    let sshsig = home.sign(&key, NAMESPACE, "sha512", MESSAGE);
    assert!(matches!(
        verify_proof(&sshsig, MESSAGE),
        Err(VerifyError::KeySize(_))
    ));
}

#[test]
fn encrypted_files_open_with_their_passphrase() {
    let home = Home::new();
    for (kind, bits) in KINDS {
        let path = home.key(&format!("{kind}{bits}"), (kind, bits), "open sesame");
        let file = KeyFile::parse(&std::fs::read(&path).unwrap()).unwrap();
        assert!(file.is_encrypted());
        assert_eq!(file.public(), &public(&path));
        assert!(matches!(file.open(), Err(KeyFileError::Encrypted)));
        assert!(matches!(
            file.open_with(b"open"),
            Err(KeyFileError::Passphrase)
        ));
        let key = file.open_with(b"open sesame").unwrap();
        let sshsig = key.sign_sshsig(NAMESPACE, MESSAGE).unwrap();
        assert_eq!(verify_proof(&sshsig, MESSAGE), Ok(public(&path)));
    }
}

#[test]
fn every_cipher_of_ssh_keygen_is_known() {
    let home = Home::new();
    for cipher in [
        "aes128-cbc",
        "aes256-cbc",
        "aes192-ctr",
        "aes256-ctr",
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
    ] {
        let path = home.join(format!("key-{cipher}"));
        home.keygen([
            "-q".as_ref(),
            "-t".as_ref(),
            "ed25519".as_ref(),
            "-N".as_ref(),
            "secret".as_ref(),
            "-Z".as_ref(),
            cipher.as_ref(),
            "-f".as_ref(),
            path.as_os_str(),
        ]);
        let file = KeyFile::parse(&std::fs::read(&path).unwrap()).unwrap();
        assert!(
            matches!(file.open_with(b"other"), Err(KeyFileError::Passphrase)),
            "{cipher}"
        );
        let key = file
            .open_with(b"secret")
            .unwrap_or_else(|error| panic!("{cipher}: {error}"));
        assert_eq!(key.public(), &public(&path));
    }
    let path = home.join("old");
    home.keygen([
        "-q".as_ref(),
        "-N".as_ref(),
        "secret".as_ref(),
        "-Z".as_ref(),
        "3des-cbc".as_ref(),
        "-f".as_ref(),
        path.as_os_str(),
    ]);
    assert!(matches!(
        KeyFile::parse(&std::fs::read(&path).unwrap()),
        Err(KeyFileError::UnsupportedCipher)
    ));
}

#[test]
fn pem_files_are_named_as_such() {
    let home = Home::new();
    for format in ["PEM", "PKCS8"] {
        let path = home.join(format);
        home.keygen([
            "-q".as_ref(),
            "-t".as_ref(),
            "rsa".as_ref(),
            "-N".as_ref(),
            "".as_ref(),
            "-m".as_ref(),
            format.as_ref(),
            "-f".as_ref(),
            path.as_os_str(),
        ]);
        assert!(matches!(
            KeyFile::parse(&std::fs::read(&path).unwrap()),
            Err(KeyFileError::Pem)
        ));
    }
}

#[test]
fn fingerprints_are_those_of_ssh_keygen() {
    let home = Home::new();
    for (kind, bits) in KINDS {
        let path = home.key(&format!("{kind}{bits}"), (kind, bits), "");
        let output = home
            .command("ssh-keygen")
            .arg("-lf")
            .arg(&path)
            .output()
            .unwrap();
        let line = succeeded(&output);
        assert_eq!(
            line.split(' ').nth(1),
            Some(fingerprint(&public(&path)).as_str())
        );
    }
}
