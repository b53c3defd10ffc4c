//! Files that grow by whole lines while others read and write them: pinned hosts and grants.
//!
//! Owns the lock under which a line is added, so that two writers never see the same state, and the promise that
//! a line is there as a whole or not at all. It never rewrites what stands there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};

use super::private_file::{self, FileError};

/// Adds a line to a file under its lock; the file is made (mode 0600, folders 0700) if it is missing.
///
/// `decide` sees what stands in the file and gives the line with its end, or `None` to leave the file as it is.
/// Returns whether a line was added; it is on the disk then.
///
/// # Errors
/// What `decide` says; [`FileError`] if the file is too long, not ours, writable for others or cannot be written.
pub fn append<E: From<FileError>>(
    path: &Path,
    bytes_max: usize,
    decide: impl FnOnce(&[u8]) -> Result<Option<String>, E>,
) -> Result<bool, E> {
    let mut file = open_locked(path)?;
    let mut content = Vec::new();
    private_file::read_into(&mut content, &mut file, path, bytes_max)?;
    let Some(line) = decide(&content)? else {
        return Ok(false);
    };
    // The last line of a file edited by hand may lack its end.
    let mut bytes = match content.last() {
        None | Some(b'\n') => Vec::new(),
        Some(_) => vec![b'\n'],
    };
    bytes.extend_from_slice(line.as_bytes());
    if let Err(source) = file.write_all(&bytes).and_then(|()| file.sync_all()) {
        // A part of a line must not stay; if this fails too there is nothing left to try.
        let _ = file.set_len(content.len() as u64);
        return Err(E::from(FileError::Write {
            path: path.to_owned(),
            source,
        }));
    }
    Ok(true)
}

fn open_locked(path: &Path) -> Result<File, FileError> {
    let failed = |source| FileError::Write {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        private_file::create_private_dir(folder)?;
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular {
            path: path.to_owned(),
        });
    }
    private_file::check_writers(path, &metadata)?;
    // The lock is held for the moment of one write, by nobody but bowline.
    loop {
        match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(io::Error::from(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_holds_the_lock_while_a_line_is_decided() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let other_gets_lock = || {
            let other = File::open(&path).unwrap();
            rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared).is_ok()
        };
        let added = append(&path, 100, |content| {
            assert_eq!(content, b"");
            assert!(!other_gets_lock());
            Ok::<_, FileError>(Some("line\n".to_owned()))
        });
        assert!(added.unwrap());
        assert!(other_gets_lock());
        let full = append(&path, 4, |_| Ok::<_, FileError>(None));
        assert!(matches!(full, Err(FileError::TooLong { bytes_max: 4, .. })));
    }
}
