//! Files that nobody but their owner may read (private keys, secrets) or change (pinned hosts, configuration).
//!
//! Owns the checks before a byte is believed (a regular file, bounded, mode and owner) and creation that shows
//! either nothing or the whole file, with mode 0600 from its first moment. It never replaces a file. Paths
//! enter; bytes that are wiped on drop leave.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::private_group;

/// Who may own a private file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This process's user or root: what a server relies on.
    SelfOrRoot,
    /// Anybody, for an identity: root may use the key of a user, as with ssh.
    Anybody,
}

/// Why a file was not read or made.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It, or a folder above it, cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is a folder, a device, a FIFO or a socket.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// It is longer than anything of its kind.
    #[error("{} is longer than {bytes_max} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        bytes_max: usize,
    },
    /// Group or others may read or write it.
    #[error("the mode {mode:04o} of {} lets others use it: run `chmod 600 {}`", path.display(), path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Group or others may write it, so what it says cannot be relied on.
    #[error("the mode {mode:04o} of {} lets others change it: run `chmod go-w {}`", path.display(), path.display())]
    WritableByOthers {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else, who could change it.
    #[error("{} belongs to the user with uid {uid}", path.display())]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It is there already and is not replaced.
    #[error("{} is there already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    /// Whether the reason is that there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, FileError::Read { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
    }
}

/// Reads a file that nobody but its owner may read.
///
/// # Errors
/// [`FileError`]; of a file that is open to others not a byte is read.
pub fn read_private(
    path: &Path,
    bytes_max: usize,
    owner: Owner,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let (file, metadata) = open_regular(path)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::OpenToOthers {
            path: path.to_owned(),
            mode,
        });
    }
    check_owner(path, &metadata, owner)?;
    read_bounded(file, path, bytes_max)
}

/// Reads a file that others may read and nobody but its owner (this user or root) may write.
///
/// # Errors
/// [`FileError`]; of a file that others may change not a byte is read.
pub fn read_trusted(path: &Path, bytes_max: usize) -> Result<Vec<u8>, FileError> {
    let (file, metadata) = open_regular(path)?;
    check_writers(path, &metadata)?;
    read_growing(file, &metadata, path, bytes_max)
}

/// Refuses a file that somebody else may write, or that belongs to neither this user nor root.
///
/// A group may write it if its owner is alone in the group, as many systems give every user such a group.
///
/// # Errors
/// [`FileError::WritableByOthers`], [`FileError::ForeignOwner`].
pub fn check_writers(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    let mode = metadata.mode() & 0o7777;
    let group = mode & 0o020 != 0 && !private_group::is_alone(metadata.uid(), metadata.gid());
    if mode & 0o002 != 0 || group {
        return Err(FileError::WritableByOthers {
            path: path.to_owned(),
            mode,
        });
    }
    check_owner(path, metadata, Owner::SelfOrRoot)
}

fn check_owner(path: &Path, metadata: &fs::Metadata, owner: Owner) -> Result<(), FileError> {
    let uid = metadata.uid();
    if owner == Owner::SelfOrRoot && uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(FileError::ForeignOwner {
            path: path.to_owned(),
            uid,
        });
    }
    Ok(())
}

/// Reads a file that others may read, such as a public key.
///
/// # Errors
/// [`FileError`].
pub fn read_public(path: &Path, bytes_max: usize) -> Result<Vec<u8>, FileError> {
    let (file, metadata) = open_regular(path)?;
    read_growing(file, &metadata, path, bytes_max)
}

/// Makes a file with mode 0600 that is not there yet: nobody ever sees a part of it.
///
/// # Errors
/// [`FileError::Exists`] if the path is taken, also by a dangling link; [`FileError::Write`].
pub fn create_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    create(path, bytes, 0o600)
}

/// As [`create_private`], with a mode that lets others read (0644, less the umask).
///
/// # Errors
/// As [`create_private`].
pub fn create_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    create(path, bytes, 0o644)
}

/// Makes a folder and those above it that are missing, with mode 0700.
///
/// # Errors
/// [`FileError::Write`].
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| FileError::Write {
            path: path.to_owned(),
            source,
        })
}

fn open_regular(path: &Path) -> Result<(File, fs::Metadata), FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    // A FIFO in the file's place must not hold the caller, nor a terminal become its own.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular {
            path: path.to_owned(),
        });
    }
    Ok((file, metadata))
}

fn read_bounded(
    file: File,
    path: &Path,
    bytes_max: usize,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // The buffer never grows past its first size: a growing one would leave copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
    read_into(&mut bytes, file, path, bytes_max)?;
    Ok(bytes)
}

fn read_growing(
    file: File,
    metadata: &fs::Metadata,
    path: &Path,
    bytes_max: usize,
) -> Result<Vec<u8>, FileError> {
    // One more than it holds, so that its end shows without a larger buffer.
    let size = usize::try_from(metadata.len()).unwrap_or(bytes_max);
    let mut bytes = Vec::with_capacity(size.min(bytes_max) + 1);
    read_into(&mut bytes, file, path, bytes_max)?;
    Ok(bytes)
}

pub(super) fn read_into(
    bytes: &mut Vec<u8>,
    file: impl Read,
    path: &Path,
    bytes_max: usize,
) -> Result<(), FileError> {
    file.take(bytes_max as u64 + 1)
        .read_to_end(bytes)
        .map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() > bytes_max {
        return Err(FileError::TooLong {
            path: path.to_owned(),
            bytes_max,
        });
    }
    Ok(())
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = Temporary::beside(path)?;
    let failed = |source| FileError::Write {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary.path)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    // A hard link, unlike a rename, fails if the name is taken.
    fs::hard_link(&temporary.path, path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists {
            path: path.to_owned(),
        },
        _ => failed(source),
    })?;
    drop(temporary);
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<(), FileError> {
    let folder = folder_of(path);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| FileError::Write {
            path: folder.to_owned(),
            source,
        })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A name in the same folder that nobody else uses, removed in the end whatever happens.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Temporary, FileError> {
        let mut random = [0; 8];
        let made = aws_lc_rs::rand::fill(&mut random);
        made.map_err(|_| FileError::Write {
            path: path.to_owned(),
            source: io::Error::other("no random bytes"),
        })?;
        let name = format!(".bowline-{}", hex::encode(random));
        Ok(Temporary {
            path: folder_of(path).join(name),
        })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // If it cannot be removed it lies there with mode 0600 and harms nobody.
        let _ = fs::remove_file(&self.path);
    }
}
