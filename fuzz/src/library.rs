//! Targets of the library crate: parsers of files that users bring along.
//!
//! They are apart because the library's cryptography takes minutes to build.

use std::fs;
use std::sync::LazyLock;

use bowline::credentials::key_file::KeyFile;
use bowline::credentials::ssh_config::{self, Asker};
use bowline::net::Endpoint;

/// A private key in OpenSSH's file format. Encrypted ones are not opened: bcrypt is slow on purpose.
pub fn key_file_target(data: &[u8]) {
    if let Ok(file) = KeyFile::parse(data)
        && !file.is_encrypted()
        && let Ok(key) = file.open()
    {
        assert_eq!(key.public(), file.public());
    }
}

/// `~/.ssh/config`.
pub fn ssh_config_target(data: &[u8]) {
    // In memory: ext4 writes a file that is cut and filled again to the disk at once.
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let memory = tempfile::tempdir_in("/dev/shm");
        memory.or_else(|_| tempfile::tempdir()).unwrap()
    });
    let path = FOLDER.path().join("config");
    fs::write(&path, data).unwrap();
    let asker = Asker {
        home: FOLDER.path(),
        user: "alice",
        remote_user: None,
    };
    let _ = ssh_config::lookup(&[path], "host.example.com", &asker);
}

/// An address: what parses is shown so that it parses again.
pub fn endpoint_target(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(endpoint) = text.parse::<Endpoint>()
    {
        let shown = endpoint.to_string();
        // A name with control characters is shown without them.
        if !text.contains(char::is_control) {
            assert_eq!(shown.parse::<Endpoint>().unwrap(), endpoint);
        }
    }
}
