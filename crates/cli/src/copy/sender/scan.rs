//! The walk over the sources, one entry at a time.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use bowline_proto::copy::{DEPTH_MAX, Entry, Message, NAME_BYTES_MAX, Node, TARGET_BYTES_MAX};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::super::tree::{self, Folder};
use super::super::{Failure, WorkerError};
use super::place::{self, Named, Source};
use super::{Offered, Sender};

/// What tells that a file has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    /// 512 bytes each.
    blocks: u64,
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: stat.st_size.try_into().unwrap_or(0),
            mtime: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            ctime: (stat.st_ctime, stat.st_ctime_nsec.cast_signed()),
            blocks: stat.st_blocks.try_into().unwrap_or(0),
        }
    }

    /// Whether less is stored than there is to read: it has holes.
    pub(super) fn is_sparse(&self) -> bool {
        self.blocks.saturating_mul(512) < self.size
    }

    /// Whether the content may have been another one.
    pub(super) fn differs(&self, other: &Self) -> bool {
        let what = |stamp: &Self| (stamp.inode, stamp.size, stamp.mtime, stamp.ctime);
        what(self) != what(other)
    }
}

/// A folder whose names are being walked.
struct Level {
    folder: Rc<Folder>,
    names: std::vec::IntoIter<Vec<u8>>,
    /// Everything in it could be read.
    whole: bool,
    /// What it is called in the copy; nothing where its contents are what is copied.
    name: Option<Vec<u8>>,
}

/// Where the walk is.
pub(super) struct Scan {
    sources: std::vec::IntoIter<Source>,
    levels: Vec<Level>,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), u64>,
    owners: HashSet<(bool, u32)>,
    told: Option<u64>,
    /// The source that is walked, as a person wrote it.
    given: Vec<u8>,
}

impl Scan {
    pub(super) fn new(sources: Vec<Source>) -> Self {
        Self {
            sources: sources.into_iter(),
            levels: Vec::new(),
            linked: HashMap::new(),
            owners: HashSet::new(),
            told: None,
            given: Vec::new(),
        }
    }

    /// Sends the next entry; false when there is none.
    pub(super) fn step(&mut self, sender: &mut Sender) -> Result<bool, WorkerError> {
        let Some(level) = self.levels.last_mut() else {
            return match self.sources.next() {
                Some(source) => self.source(sender, source).map(|()| true),
                None => Ok(false),
            };
        };
        if let Some(name) = level.names.next() {
            let folder = level.folder.clone();
            self.entry(sender, &folder, &name, false)?;
        } else if let Some(level) = self.levels.pop() {
            let whole = level.whole;
            sender.output.send(&Message::FolderEnd { whole })?;
        }
        Ok(true)
    }

    fn source(&mut self, sender: &mut Sender, source: Source) -> Result<(), WorkerError> {
        let (index, path) = match source {
            Source::Path(index, path) => (index, path),
            Source::Stream(fd) => return stream(sender, fd),
        };
        if self.told != Some(index) {
            self.told = Some(index);
            sender.output.send(&Message::Source(index))?;
        }
        self.given.clone_from(&path);
        let opened = match place::named(&path) {
            Named::Contents(folder) => place::open_folder(folder).map(|fd| {
                let folder = Folder::root(fd);
                self.open(sender, &folder, &path, None)
            }),
            Named::Entry {
                folder,
                name,
                slash,
            } => place::open_folder(folder).map(|fd| {
                let folder = Folder::root(fd);
                self.entry(sender, &folder, name, slash)
            }),
        };
        match opened {
            Ok(sent) => sent,
            Err(error) => sender.problem(&path, &error.into()),
        }
    }

    /// Begins to walk a folder.
    fn open(
        &mut self,
        sender: &mut Sender,
        folder: &Rc<Folder>,
        path: &[u8],
        name: Option<&[u8]>,
    ) -> Result<(), WorkerError> {
        let fd = sender.tree.fd(folder);
        let names = fd.and_then(|fd| tree::names(fd.as_fd()));
        let whole = names.is_ok();
        if let Err(error) = &names {
            let failure = std::io::Error::from(error.kind());
            let errno = error.raw_os_error().map(std::io::Error::from_raw_os_error);
            sender.problem(path, &errno.unwrap_or(failure).into())?;
        }
        let mut names = names.unwrap_or_default();
        names.sort_unstable();
        self.levels.push(Level {
            folder: folder.clone(),
            names: names.into_iter(),
            whole,
            name: name.map(<[u8]>::to_vec),
        });
        Ok(())
    }

    fn entry(
        &mut self,
        sender: &mut Sender,
        folder: &Rc<Folder>,
        name: &[u8],
        follow: bool,
    ) -> Result<(), WorkerError> {
        let found = sender.tree.fd(folder).and_then(|fd| {
            let flags = match follow {
                true => AtFlags::empty(),
                false => AtFlags::SYMLINK_NOFOLLOW,
            };
            Ok((rustix::fs::statat(&fd, name, flags)?, fd))
        });
        let (stat, fd) = match found {
            Ok(found) => found,
            Err(error) => return self.fail(sender, name, &error.into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !sender.options.excludes.is_empty() {
            let path = self.path(name);
            if sender
                .options
                .excludes
                .leave_out(&path, kind == FileType::Directory)
            {
                return Ok(());
            }
        }
        if name.len() > NAME_BYTES_MAX || self.levels.len() >= DEPTH_MAX {
            return self.fail(
                sender,
                name,
                &Failure::new("bad_name", "it lies too deep, or its name is too long"),
            );
        }
        match kind {
            FileType::RegularFile => self.regular(sender, folder, name, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, name, Vec::new());
                match target {
                    Ok(target) if target.as_bytes().len() <= TARGET_BYTES_MAX => {
                        self.tell(sender, name, Node::Symlink(target.as_bytes()), &stat)
                    }
                    Ok(_) => self.fail(
                        sender,
                        name,
                        &Failure::new("bad_name", "the link's text is too long"),
                    ),
                    Err(errno) => self.fail(sender, name, &errno.into()),
                }
            }
            FileType::Directory => {
                self.tell(sender, name, Node::Folder, &stat)?;
                let (child, path) = (folder.child(name), self.path(name));
                if follow {
                    // The person wrote the slash, so this one link is followed.
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let opened = rustix::fs::openat(&fd, name, flags, Mode::empty());
                    return match opened {
                        Ok(opened) => self.open(sender, &Folder::root(opened), &path, Some(name)),
                        Err(_) => self.open(sender, &child, &path, Some(name)),
                    };
                }
                self.open(sender, &child, &path, Some(name))
            }
            _ => {
                let why = "it is no file, folder or link";
                self.fail(sender, name, &Failure::new("not_regular", why))
            }
        }
    }

    fn regular(
        &mut self,
        sender: &mut Sender,
        folder: &Rc<Folder>,
        name: &[u8],
        stat: &Stat,
    ) -> Result<(), WorkerError> {
        let linked = sender.options.archive && stat.st_nlink > 1;
        if linked {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&inode) {
                return self.tell(sender, name, Node::HardLink(*first), stat);
            }
            self.linked.insert(inode, sender.sent);
        }
        let stamp = Stamp::of(stat);
        let id = sender.sent;
        let node = Node::Regular {
            size: stamp.size,
            linked,
        };
        self.tell(sender, name, node, stat)?;
        let offered = Offered {
            folder: folder.clone(),
            name: name.into(),
            stamp,
            stream: false,
        };
        sender.offered.insert(id, offered);
        Ok(())
    }

    fn tell(
        &mut self,
        sender: &mut Sender,
        name: &[u8],
        node: Node<'_>,
        stat: &Stat,
    ) -> Result<(), WorkerError> {
        if sender.options.archive {
            self.owner(sender, false, stat.st_uid)?;
            self.owner(sender, true, stat.st_gid)?;
        }
        sender.output.send(&Message::Entry(Entry {
            name,
            node,
            mode: stat.st_mode & 0o7777,
            mtime: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
        }))?;
        sender.sent += 1;
        Ok(())
    }

    /// Tells once what an owner is called.
    fn owner(&mut self, sender: &mut Sender, group: bool, id: u32) -> Result<(), WorkerError> {
        if !self.owners.insert((group, id)) {
            return Ok(());
        }
        let name = if group {
            let found = nix::unistd::Group::from_gid(id.into());
            found.ok().flatten().map(|group| group.name)
        } else {
            let found = nix::unistd::User::from_uid(id.into());
            found.ok().flatten().map(|user| user.name)
        };
        match name {
            Some(name) if name.len() <= NAME_BYTES_MAX => sender.output.send(&Message::Owner {
                group,
                id,
                name: name.as_bytes(),
            }),
            _ => Ok(()),
        }
    }

    fn fail(
        &mut self,
        sender: &mut Sender,
        name: &[u8],
        failure: &Failure,
    ) -> Result<(), WorkerError> {
        let path = match self.levels.last_mut() {
            Some(level) => {
                level.whole = false;
                self.path(name)
            }
            None => self.given.clone(),
        };
        sender.problem(&path, failure)
    }

    /// The path in the copy, from its root on.
    fn path(&self, name: &[u8]) -> Vec<u8> {
        let above = self.levels.iter().filter_map(|level| level.name.as_deref());
        above.chain([name]).collect::<Vec<_>>().join(&b'/')
    }
}

/// The one source is a stream.
fn stream(sender: &mut Sender, fd: OwnedFd) -> Result<(), WorkerError> {
    let id = sender.sent;
    sender.output.send(&Message::Source(0))?;
    sender.output.send(&Message::Entry(Entry {
        name: b"stdin",
        node: Node::Stream,
        mode: 0o644,
        mtime: 0,
        mtime_ns: 0,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    }))?;
    sender.sent += 1;
    let offered = Offered {
        folder: Folder::root(fd),
        name: Box::default(),
        stamp: Stamp::default(),
        stream: true,
    };
    sender.offered.insert(id, offered);
    Ok(())
}
