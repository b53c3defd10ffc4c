//! Files that are not finished: found again by the next attempt, never by two at once.
//!
//! The name is made from the file's own and a number that is the same for each attempt at the same copy.
//! A lock (flock(2)) says that somebody is at work; whoever gets it makes sure that the name still means the file
//! that was locked, as it may have been renamed in between.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bowline_proto::copy::name;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::super::tree;

/// Names that are tried: others may be at work on the same file.
const SLOTS: u64 = 8;
/// How long the worker of a connection that broke may take to notice.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// A file under its temporary name, locked.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) name: Vec<u8>,
}

impl Temporary {
    /// Makes an empty one, beside those of the same file that are `held`. Its mode is what the file's will be, but
    /// that we can come back to it.
    ///
    /// # Errors
    /// As open(2); EEXIST where all names are taken.
    pub(super) fn create(
        folder: BorrowedFd<'_>,
        file: &[u8],
        origin: u64,
        mode: u32,
        held: &[Self],
    ) -> io::Result<Self> {
        let first = digits(file, origin);
        for slot in 0..SLOTS {
            let name = name::temporary(file, first.wrapping_add(slot));
            // Its lock would be waited for, and is ours.
            if held.iter().any(|held| held.name == name) {
                continue;
            }
            if let Some(made) = Self::make(folder, name, mode)? {
                return Ok(made);
            }
        }
        Err(Errno::EXIST.into())
    }

    fn make(folder: BorrowedFd<'_>, name: Vec<u8>, mode: u32) -> io::Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(mode & 0o777 | 0o600);
        let mut made = tree::open(folder, &name, flags, mode);
        if made
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
        {
            let Some(left) = Self::claim(folder, name.clone())? else {
                return Ok(None);
            };
            left.remove(folder);
            made = tree::open(folder, &name, flags, mode);
        }
        let fd = match made {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(error),
        };
        let fd = Arc::new(fd);
        Ok(lock(&fd)?.then_some(Self { fd, name }))
    }

    /// What earlier attempts have left of a file: the longest beginning of it. Others are removed.
    ///
    /// # Errors
    /// As open(2) and fstat(2).
    pub(super) fn find(
        folder: BorrowedFd<'_>,
        file: &[u8],
        origin: u64,
    ) -> io::Result<Option<(Self, u64)>> {
        let first = digits(file, origin);
        let mut best: Option<(Self, u64)> = None;
        for slot in 0..SLOTS {
            let name = name::temporary(file, first.wrapping_add(slot));
            let Some(found) = Self::claim(folder, name)? else {
                continue;
            };
            let len = u64::try_from(rustix::fs::fstat(&found.fd)?.st_size).unwrap_or(0);
            let worse = match &best {
                Some((_, longest)) if len <= *longest => Some((found, len)),
                _ => best.replace((found, len)),
            };
            if let Some((worse, _)) = worse {
                worse.remove(folder);
            }
        }
        Ok(best)
    }

    /// Takes over one that nobody is at work on; `None` where there is none that is ours.
    fn claim(folder: BorrowedFd<'_>, name: Vec<u8>) -> io::Result<Option<Self>> {
        let opened = tree::open(
            folder,
            &name,
            OFlags::RDWR | OFlags::NONBLOCK,
            Mode::empty(),
        );
        let Ok(fd) = opened else {
            return Ok(None);
        };
        if !lock(&fd)? && !lock_within(&fd, PREDECESSOR)? {
            return Ok(None);
        }
        let stat = rustix::fs::fstat(&fd)?;
        let ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_uid == rustix::process::geteuid().as_raw()
            && stat.st_nlink == 1;
        let named = rustix::fs::statat(folder, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        let same =
            named.is_ok_and(|named| (named.st_dev, named.st_ino) == (stat.st_dev, stat.st_ino));
        let fd = Arc::new(fd);
        Ok((ours && same).then_some(Self { fd, name }))
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// As renameat(2).
    pub(super) fn rename(&self, folder: BorrowedFd<'_>, file: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::renameat(
            folder,
            self.name.as_slice(),
            folder,
            file,
        )?)
    }

    /// Takes it away.
    pub(super) fn remove(&self, folder: BorrowedFd<'_>) {
        let _ = rustix::fs::unlinkat(folder, self.name.as_slice(), AtFlags::empty());
    }
}

fn lock(fd: &OwnedFd) -> io::Result<bool> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        // A file system without locks: two copies at once are what it cannot tell.
        Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::INVAL) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits for a lock, but not longer than this.
fn lock_within(fd: &OwnedFd, wait: Duration) -> io::Result<bool> {
    let waiting = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
    let (got, has) = std::sync::mpsc::channel();
    // The lock belongs to the open file, so it is ours when the thread has got it. One that gets it too
    // late lets go of it with its descriptor.
    let thread = std::thread::Builder::new().name("lock".to_owned());
    thread.spawn(move || {
        let locked = rustix::fs::flock(&waiting, FlockOperation::LockExclusive);
        let _ = got.send(locked.is_ok());
    })?;
    Ok(has.recv_timeout(wait).unwrap_or(false))
}

fn digits(file: &[u8], origin: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&origin.to_le_bytes()).update(file);
    let hash = hasher.finalize();
    let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(first)
}

/// Makes something that is no file under a temporary name, and puts it over what is there.
///
/// # Errors
/// As `make`, and renameat(2).
pub(super) fn over(
    folder: BorrowedFd<'_>,
    file: &[u8],
    origin: u64,
    make: impl Fn(&[u8]) -> rustix::io::Result<()>,
) -> io::Result<()> {
    let first = digits(file, origin);
    for slot in 0..SLOTS {
        let name = name::temporary(file, first.wrapping_add(slot));
        match make(&name) {
            Ok(()) => {
                let renamed = rustix::fs::renameat(folder, name.as_slice(), folder, file);
                if renamed.is_err() {
                    let _ = rustix::fs::unlinkat(folder, name.as_slice(), AtFlags::empty());
                }
                return Ok(renamed?);
            }
            Err(Errno::EXIST) => {
                // A link that an attempt has left which was ended between two system calls. A file may be
                // somebody's at work.
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let stat = rustix::fs::statat(folder, name.as_slice(), flags)?;
                if FileType::from_raw_mode(stat.st_mode).is_symlink() {
                    rustix::fs::unlinkat(folder, name.as_slice(), AtFlags::empty())?;
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EXIST.into())
}
