//! Folders by their open descriptors.
//!
//! A path of the other side is never handed to the kernel: a folder is opened by one name in its
//! open parent, and no link is followed. Few are open at once: one that was closed is opened again the
//! same way.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Attributes;

/// Folders that are open at once, beside those that the caller holds.
const OPEN_MAX: usize = 128;

/// A folder of the copy.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) parent: Option<Rc<Folder>>,
    pub(crate) name: Vec<u8>,
    open: RefCell<Option<Rc<OwnedFd>>>,
    /// Entries in it that are not finished, and itself as long as more may come.
    pub(crate) left: Cell<u64>,
    /// What it is to be like when nothing in it is left.
    pub(crate) finally: Cell<Option<Attributes>>,
}

impl Folder {
    /// The folder that everything is in.
    pub(crate) fn root(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self {
            parent: None,
            name: Vec::new(),
            open: RefCell::new(Some(Rc::new(fd))),
            left: Cell::new(1),
            finally: Cell::new(None),
        })
    }

    /// A folder in this one; it need not be open yet, nor exist.
    pub(crate) fn child(self: &Rc<Self>, name: &[u8]) -> Rc<Self> {
        Rc::new(Self {
            parent: Some(self.clone()),
            name: name.to_vec(),
            open: RefCell::new(None),
            left: Cell::new(1),
            finally: Cell::new(None),
        })
    }

    /// The path of something in it, from the root on.
    pub(crate) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut parts = vec![name];
        let mut folder = Some(self);
        while let Some(here) = folder {
            if here.parent.is_some() {
                parts.push(&here.name);
            }
            folder = here.parent.as_deref();
        }
        parts.reverse();
        parts.join(&b'/')
    }
}

/// A long chain of parents is taken apart without recursion.
impl Drop for Folder {
    fn drop(&mut self) {
        let mut parent = self.parent.take();
        while let Some(folder) = parent {
            parent = match Rc::try_unwrap(folder) {
                Ok(mut folder) => folder.parent.take(),
                Err(_) => None,
            };
        }
    }
}

/// Which folders are open.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    open: VecDeque<Rc<Folder>>,
}

impl Tree {
    /// The folder's descriptor, opened if need be.
    ///
    /// # Errors
    /// As openat2(2): also where it is not the folder any more that it was.
    pub(crate) fn fd(&mut self, folder: &Rc<Folder>) -> io::Result<Rc<OwnedFd>> {
        let mut closed = Vec::new();
        let mut at = folder;
        let mut fd = loop {
            if let Some(fd) = &*at.open.borrow() {
                break fd.clone();
            }
            closed.push(at);
            at = at.parent.as_ref().ok_or(io::ErrorKind::NotFound)?;
        };
        while let Some(folder) = closed.pop() {
            fd = Rc::new(open_folder(fd.as_fd(), &folder.name)?);
            self.keep(folder, fd.clone());
        }
        Ok(fd)
    }

    fn keep(&mut self, folder: &Rc<Folder>, fd: Rc<OwnedFd>) {
        *folder.open.borrow_mut() = Some(fd);
        self.open.push_back(folder.clone());
        if self.open.len() > OPEN_MAX
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.open.borrow_mut().take();
        }
    }
}

/// Opens a folder in another one.
///
/// # Errors
/// As openat2(2): ELOOP or ENOTDIR where it is a link.
pub(crate) fn open_folder(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    open(parent, name, flags, Mode::empty())
}

/// Opens something in a folder: one name, nothing outside, through no link.
///
/// # Errors
/// As openat2(2).
pub(crate) fn open(
    parent: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let mut flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if !flags.contains(OFlags::PATH) {
        // openat2(2) takes nothing beside O_PATH that it would ignore.
        flags |= OFlags::NOCTTY;
    }
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(parent, name, flags, mode, within) {
        // A kernel or a seccomp filter without it: one name and O_NOFOLLOW say the same.
        Err(Errno::NOSYS | Errno::PERM) if is_one_part(name) => {
            Ok(rustix::fs::openat(parent, name, flags, mode)?)
        }
        opened => Ok(opened?),
    }
}

fn is_one_part(name: &[u8]) -> bool {
    !name.contains(&b'/') && name != b".." && name != b"."
}

/// The names in a folder, without `.` and `..`.
///
/// # Errors
/// As getdents64(2).
pub(crate) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
