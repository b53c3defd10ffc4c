//! Host keys: made by us and read by ssh-keygen, made by ssh-keygen and read by us, and refused ones.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bowline::credentials::host_key::{HostKey, HostKeyError};
use bowline::credentials::private_file::FileError;

use crate::real::{Home, public};

#[test]
fn a_missing_key_is_made_once_and_ssh_keygen_reads_it() {
    let home = Home::new();
    let path = home.join("state/host_key");
    let made = HostKey::load_or_create(&path).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    let folder = std::fs::metadata(path.parent().unwrap()).unwrap();
    assert_eq!(folder.mode() & 0o7777, 0o700);
    let again = HostKey::load_or_create(&path).unwrap();
    assert_eq!(made.public(), again.public());
    let line = home.keygen(["-y".as_ref(), "-f".as_ref(), path.as_os_str()]);
    assert!(line.starts_with(&made.public().to_string()), "{line}");
    // Nothing else lies in the folder.
    let names = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(names, 1);
}

#[test]
fn many_at_once_get_the_same_key() {
    let home = Home::new();
    let path = home.join("host_key");
    let start = std::sync::Barrier::new(8);
    let keys: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    HostKey::load_or_create(&path).unwrap().public().clone()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
}

#[test]
fn signatures_are_raw_ed25519() {
    let home = Home::new();
    let path = home.key("ssh_host_ed25519_key", ("ed25519", ""), "");
    let key = HostKey::load(&path).unwrap();
    assert_eq!(key.public(), &public(&path));
    let raw = key.public().ed25519().unwrap();
    let signature = key.sign(b"message");
    let verifier = UnparsedPublicKey::new(&ED25519, &raw[..]);
    assert!(verifier.verify(b"message", &signature).is_ok());
    assert!(verifier.verify(b"massage", &signature).is_err());
}

#[test]
fn unsafe_and_unusable_files_are_refused() {
    let home = Home::new();
    let good = home.key("good", ("ed25519", ""), "");
    for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o666] {
        std::fs::set_permissions(&good, std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(
            matches!(
                HostKey::load_or_create(&good),
                Err(HostKeyError::File(FileError::OpenToOthers { .. }))
            ),
            "{mode:o}"
        );
    }
    std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(HostKey::load(&good).is_ok());

    let encrypted = home.key("encrypted", ("ed25519", ""), "secret");
    assert!(matches!(
        HostKey::load(&encrypted),
        Err(HostKeyError::Encrypted { .. })
    ));
    let rsa = home.key("rsa", ("rsa", "2048"), "");
    assert!(matches!(
        HostKey::load(&rsa),
        Err(HostKeyError::NotEd25519 {
            algorithm: "ssh-rsa",
            ..
        })
    ));
    let damaged = home.write("damaged", "-----BEGIN OPENSSH PRIVATE KEY-----\n", 0o600);
    let before = std::fs::read(&damaged).unwrap();
    assert!(matches!(
        HostKey::load_or_create(&damaged),
        Err(HostKeyError::Key { .. })
    ));
    assert_eq!(std::fs::read(&damaged).unwrap(), before);
    assert!(matches!(
        HostKey::load(home.path()),
        Err(HostKeyError::File(FileError::NotRegular { .. }))
    ));
    assert!(
        HostKey::load(&home.join("missing"))
            .unwrap_err()
            .is_not_found()
    );
}

/// A FIFO in the key's place is refused at once instead of waited for.
#[test]
fn a_fifo_holds_nobody() {
    let home = Home::new();
    let path = home.join("fifo");
    let made = home.command("mkfifo").arg("-m600").arg(&path).status();
    assert!(made.unwrap().success());
    assert!(matches!(
        HostKey::load(&path),
        Err(HostKeyError::File(FileError::NotRegular { .. }))
    ));
}

#[test]
fn a_dangling_link_is_not_followed_to_make_a_key() {
    let home = Home::new();
    let path = home.join("link");
    std::os::unix::fs::symlink(home.join("nowhere"), &path).unwrap();
    assert!(HostKey::load_or_create(&path).is_err());
    assert!(!home.join("nowhere").exists());
}
