//! The destination: a path that a person wrote, and what the copy is called there.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;

use bowline_proto::copy::{Options, Permit};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::tree::{self, Folder};
use super::super::{Failure, WorkerError};
use super::Destination;

/// Where a copy goes.
pub(super) struct Root {
    /// Everything is in here.
    pub(super) folder: Rc<Folder>,
    /// The one thing that is copied is called so, whatever it is called where it comes from.
    pub(super) name: Option<Vec<u8>>,
    /// The folder does not exist (a dry run does not make it).
    pub(super) absent: bool,
    /// The one file is written here instead.
    pub(super) stream: Option<OwnedFd>,
}

impl Root {
    /// # Errors
    /// [`WorkerError::Place`].
    pub(super) fn open(destination: Destination, options: &Options) -> Result<Self, WorkerError> {
        let path = match destination {
            Destination::Path(path) => path,
            Destination::Stream(fd) => {
                let nothing = open(b"/").map_err(|errno| place_error(b"-", errno.into()))?;
                return Ok(Self::new(nothing, None, Some(fd)));
            }
        };
        Self::at(&path, options).map_err(|failure| place_error(&path, failure))
    }

    fn new(fd: OwnedFd, name: Option<&[u8]>, stream: Option<OwnedFd>) -> Self {
        Self {
            folder: Folder::root(fd),
            name: name.map(<[u8]>::to_vec),
            absent: false,
            stream,
        }
    }

    fn at(path: &[u8], options: &Options) -> Result<Self, Failure> {
        let path = if path.is_empty() { b"." } else { path };
        let found = rustix::fs::stat(Path::new(OsStr::from_bytes(path)));
        let folder = match &found {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            Err(Errno::NOENT | Errno::NOTDIR) => false,
            Err(errno) => return Err((*errno).into()),
        };
        if folder && options.stream {
            return Err(Errno::ISDIR.into());
        }
        if folder {
            return Ok(Self::new(open(path)?, None, None));
        }
        let (parent, name) = split(path);
        if name.is_empty() || matches!(name, b"." | b"..") {
            return Err(Errno::NOENT.into());
        }
        let missing = found.is_err();
        if missing && options.permits.first() == Some(&Permit::Contents) {
            return Self::make(parent, name, options.dry_run);
        }
        if options.into_folder {
            let code = if missing { "not_found" } else { "not_a_folder" };
            return Err(Failure::new(
                code,
                "the destination must be a folder that exists",
            ));
        }
        Ok(Self::new(open(parent)?, Some(name), None))
    }

    /// A folder for the contents of another one.
    fn make(parent: &[u8], name: &[u8], dry_run: bool) -> Result<Self, Failure> {
        let parent = open(parent)?;
        if dry_run {
            let absent = Self::new(parent, None, None);
            return Ok(Self {
                absent: true,
                ..absent
            });
        }
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
        Ok(Self::new(
            tree::open_folder(parent.as_fd(), name)?,
            None,
            None,
        ))
    }
}

fn open(path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(Path::new(OsStr::from_bytes(path)), flags, Mode::empty())
}

fn place_error(path: &[u8], failure: Failure) -> WorkerError {
    WorkerError::Place {
        path: path.to_vec(),
        failure,
    }
}

/// The folder that a path is in, and its last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(0, |at| at + 1);
    let path = path.get(..end).unwrap_or_default();
    let cut = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    let (parent, name) = path.split_at_checked(cut).unwrap_or_default();
    (if parent.is_empty() { b"." } else { parent }, name)
}
