//! Entries as they come: is the name a good one, what is there, what is to be done.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;

use bowline_proto::copy::{DEPTH_MAX, Entry, Fsync, Message, Node, Permit, WINDOW_ENTRIES, name};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::super::bytes;
use super::super::tree::{self, Folder};
use super::super::{Attributes, Failure, LARGE_BYTES_MIN, WorkerError};
use super::{Pending, Receiver, attributes, size_of, temporary};

/// Memory for the names in all open folders together: some millions in one folder.
const NAMES_BYTES_MAX: usize = 1 << 30;
/// What a name costs beside its bytes, about.
const NAME_COST: usize = 160;
/// Entries that are under way: what the sender keeps to, and what it walks between two looks.
const UNDER_WAY_MAX: usize = WINDOW_ENTRIES as usize + 1024;

/// A folder that entries come for.
pub(super) struct Level {
    pub(super) folder: Rc<Folder>,
    pub(super) state: State,
    /// What it is called where it comes from; nothing at the top.
    pub(super) sent: Vec<u8>,
    /// The names so far, by what they are where case does not count.
    pub(super) names: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    /// What the names cost, in bytes.
    cost: usize,
    /// Whether `a` is `A` here, once somebody had to know.
    ignores_case: Option<bool>,
}

/// What is behind a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A folder.
    There,
    /// Nothing: it would have been made, but for the dry run.
    Absent,
    /// It could not be made, so nothing can be in it.
    Failed,
}

impl Level {
    fn new(folder: Rc<Folder>, state: State, sent: &[u8]) -> Self {
        Self {
            folder,
            state,
            sent: sent.to_vec(),
            names: HashMap::new(),
            cost: 0,
            ignores_case: None,
        }
    }

    /// Whether an entry of this name came.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        let alike = self.names.get(&folded(name));
        alike.is_some_and(|alike| alike.iter().any(|other| other == name))
    }
}

impl Receiver {
    pub(super) fn enter_root(&mut self) {
        let state = if self.root.absent {
            State::Absent
        } else {
            State::There
        };
        self.levels
            .push(Level::new(self.root.folder.clone(), state, b""));
    }

    pub(super) fn leave_root(&mut self) -> Result<(), WorkerError> {
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        self.release(&level.folder)?;
        // It is nobody's entry, but it has got new names.
        if self.options.fsync == Fsync::All && level.state == State::There {
            let fd = self.tree.fd(&level.folder);
            let synced = fd.and_then(|fd| Ok(rustix::fs::fsync(&fd)?));
            if let Err(error) = synced {
                return self.problem(b".", &error.into());
            }
        }
        Ok(())
    }

    /// Takes the next entry.
    pub(super) fn entry(&mut self, entry: &Entry<'_>) -> Result<(), WorkerError> {
        let id = self.next;
        self.next += 1;
        if self.levels.len() > DEPTH_MAX {
            return Err(WorkerError::Rules("folders too deep in each other"));
        }
        if self.pending.len() + self.links.waiting() >= UNDER_WAY_MAX {
            return Err(WorkerError::Rules("more entries than it waits to hear of"));
        }
        let result = self.admit(entry);
        let name = match result {
            Ok(name) => name,
            Err(failure) => return self.refuse(id, entry, failure),
        };
        let Some(level) = self.levels.last() else {
            return Ok(());
        };
        let (folder, state) = (level.folder.clone(), level.state);
        match entry.node {
            Node::Folder => self.folder(id, entry, &folder, &name, state),
            Node::Regular { .. } | Node::Stream => self.file(id, entry, &folder, &name, state),
            Node::HardLink(first) => self.hard_link(id, &folder, &name, first),
            Node::Symlink(target) => match self.symlink(entry, &folder, &name, target, state) {
                Ok(true) => self.done(id, Ok(())),
                Ok(false) => self.skip(id),
                Err(failure) => self.done(id, Err(failure)),
            },
        }
    }

    /// An entry that is not taken. A folder's own entries still come.
    fn refuse(&mut self, id: u64, entry: &Entry<'_>, failure: Failure) -> Result<(), WorkerError> {
        if let (Node::Folder, Some(level)) = (&entry.node, self.levels.last()) {
            let folder = level.folder.clone();
            folder.left.set(folder.left.get() + 1);
            let child = folder.child(entry.name);
            self.levels
                .push(Level::new(child, State::Failed, entry.name));
        }
        if matches!(entry.node, Node::Regular { linked: true, .. }) {
            self.links.expect(id);
            self.settle(id, None)?;
        }
        self.done(id, Err(failure))
    }

    /// Whether an entry may have its name, and what it is called here.
    fn admit(&mut self, entry: &Entry<'_>) -> Result<Vec<u8>, Failure> {
        let is_file = matches!(entry.node, Node::Regular { .. } | Node::Stream);
        if self.root.stream.is_some() && !is_file {
            return Err(no_stream());
        }
        let top = self.levels.len() == 1;
        let mut called = entry.name.to_vec();
        if top {
            let permit = self
                .source
                .and_then(|source| self.options.permits.get(source));
            if !permit.is_some_and(|permit| permit.allows(entry.name)) {
                return Err(Failure::new("not_asked_for", "nobody asked for this name"));
            }
            if let Some(name) = &self.root.name {
                called.clone_from(name);
            }
        }
        name::check(&called).map_err(|error| {
            let code = match error {
                name::NameError::Bad => "bad_name",
                name::NameError::Reserved => "reserved_name",
            };
            Failure::new(code, error.to_string())
        })?;
        let Some(level) = self.levels.last_mut() else {
            return Ok(called);
        };
        if level.state == State::Failed {
            return Err(Failure::new("no_folder", "the folder that it is in failed"));
        }
        let cost = 2 * called.len() + NAME_COST;
        if self.names_bytes + cost > NAMES_BYTES_MAX {
            return Err(Failure::new(
                "too_many",
                "there are too many names in one folder",
            ));
        }
        let alike = level.names.entry(folded(&called)).or_default();
        if alike.contains(&called) {
            return Err(Failure::new("name_twice", "this name came before"));
        }
        let first = alike.is_empty();
        alike.push(called.clone());
        level.cost += cost;
        self.names_bytes += cost;
        if !first && self.ignores_case(&called)? {
            let why = "it is the name of another one here, where case does not count";
            return Err(Failure::new("name_collides", why));
        }
        Ok(called)
    }

    /// Whether names that differ in case are one here: tried with a name of our own.
    fn ignores_case(&mut self, file: &[u8]) -> Result<bool, Failure> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(false);
        };
        if let Some(known) = level.ignores_case {
            return Ok(known);
        }
        if level.state != State::There || self.options.dry_run {
            return Ok(false);
        }
        let folder = self.tree.fd(&level.folder)?;
        let origin = self.options.origin;
        let probe = temporary::Temporary::create(folder.as_fd(), file, origin, 0, &[])?;
        let upper = probe.name.to_ascii_uppercase();
        let found = rustix::fs::statat(&folder, upper.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        probe.remove(folder.as_fd());
        level.ignores_case = Some(found.is_ok());
        Ok(found.is_ok())
    }

    fn folder(
        &mut self,
        id: u64,
        entry: &Entry<'_>,
        parent: &Rc<Folder>,
        name: &[u8],
        state: State,
    ) -> Result<(), WorkerError> {
        let made = self.make_folder(entry, parent, name, state);
        let (state, new) = match made {
            Ok(made) => made,
            Err(failure) => return self.refuse(id, entry, failure),
        };
        let child = parent.child(name);
        parent.left.set(parent.left.get() + 1);
        if state == State::There && !self.options.dry_run {
            child.finally.set(Some(Attributes::of(entry)));
        }
        self.levels.push(Level::new(child, state, entry.name));
        match new {
            true => self.done(id, Ok(())),
            false => self.skip(id),
        }
    }

    /// Makes a folder where there is none; says whether it did.
    fn make_folder(
        &mut self,
        entry: &Entry<'_>,
        parent: &Rc<Folder>,
        name: &[u8],
        state: State,
    ) -> Result<(State, bool), Failure> {
        if state == State::Absent {
            return Ok((State::Absent, true));
        }
        let fd = self.tree.fd(parent)?;
        match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                self.open_up(fd.as_fd(), name, &stat);
                Ok((State::There, false))
            }
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_symlink() => Err(Failure::new(
                "not_a_folder",
                "there is a symbolic link, which is not followed",
            )),
            Ok(_) => Err(Errno::NOTDIR.into()),
            Err(Errno::NOENT) if self.options.dry_run => Ok((State::Absent, true)),
            Err(Errno::NOENT) => {
                // Whatever it is to be like: for now we must be able to work in it.
                let mode = entry.mode & 0o777 | 0o700;
                rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(mode))?;
                Ok((State::There, true))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// The folder that is open has no more entries.
    pub(super) fn folder_end(&mut self, whole: bool) -> Result<(), WorkerError> {
        if self.levels.len() == 1 {
            let permit = self
                .source
                .and_then(|source| self.options.permits.get(source));
            if permit != Some(&Permit::Contents) {
                return Err(WorkerError::Rules("the end of no folder"));
            }
            return match whole && self.options.permits.len() == 1 {
                true => self.remove_unnamed(),
                false => Ok(()),
            };
        }
        if whole {
            self.remove_unnamed()?;
        }
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        self.names_bytes -= level.cost;
        self.release(&level.folder)
    }

    /// Makes a link; says whether there was another one or none.
    fn symlink(
        &mut self,
        entry: &Entry<'_>,
        folder: &Rc<Folder>,
        name: &[u8],
        target: &[u8],
        state: State,
    ) -> Result<bool, Failure> {
        if state == State::Absent {
            return Ok(true);
        }
        let fd = self.tree.fd(folder)?;
        let attributes = Attributes::of(entry);
        match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if self.options.dry_run => return Ok(true),
            Err(Errno::NOENT) => rustix::fs::symlinkat(target, &fd, name)?,
            Err(errno) => return Err(errno.into()),
            Ok(stat) => {
                let kind = FileType::from_raw_mode(stat.st_mode);
                if kind.is_symlink() {
                    let now = rustix::fs::readlinkat(&fd, name, Vec::new())?;
                    if now.as_bytes() == target {
                        if !self.options.dry_run {
                            self.touch_link(fd.as_fd(), name, &attributes)?;
                        }
                        return Ok(false);
                    }
                }
                replaceable(kind)?;
                if self.options.dry_run {
                    return Ok(true);
                }
                temporary::over(fd.as_fd(), name, self.options.origin, |over| {
                    rustix::fs::symlinkat(target, &fd, over)
                })?;
            }
        }
        self.touch_link(fd.as_fd(), name, &attributes)?;
        Ok(true)
    }

    fn file(
        &mut self,
        id: u64,
        entry: &Entry<'_>,
        folder: &Rc<Folder>,
        name: &[u8],
        state: State,
    ) -> Result<(), WorkerError> {
        if matches!(entry.node, Node::Regular { linked: true, .. }) {
            self.links.expect(id);
        }
        folder.left.set(folder.left.get() + 1);
        let pending = Pending {
            folder: folder.clone(),
            name: name.to_vec(),
            attributes: Attributes::of(entry),
            size: size_of(&entry.node),
            have: None,
            again: false,
        };
        let wish = match self.root.stream {
            Some(_) if self.pending.is_empty() && id == 0 => Ok(Wish::Whole),
            Some(_) => Err(no_stream()),
            None => self.look(entry, &pending, state),
        };
        match wish {
            Err(failure) => return self.finished(id, pending, Err(failure)),
            Ok(Wish::Nothing) => {
                self.release(folder)?;
                self.skip(id)?;
                return self.settle(id, Some((folder, name)));
            }
            Ok(_) if self.options.dry_run && !matches!(wish, Ok(Wish::Same(_))) => {
                return self.finished(id, pending, Ok(()));
            }
            Ok(Wish::Same(hash)) => {
                self.pending.insert(id, pending);
                self.say_skipped()?;
                self.output.send(&Message::Want {
                    id,
                    prefix: None,
                    same: Some(hash),
                    blocks: None,
                })?;
            }
            Ok(Wish::Whole) => {
                self.pending.insert(id, pending);
                self.want(id)?;
            }
            Ok(Wish::Compare) => {
                self.pending.insert(id, pending);
                self.to_compare.push_back(id);
                self.compare_next()?;
            }
        }
        Ok(())
    }

    /// Asks for all of a file.
    pub(super) fn want(&mut self, id: u64) -> Result<(), WorkerError> {
        self.say_skipped()?;
        self.output.send(&Message::Want {
            id,
            prefix: None,
            same: None,
            blocks: None,
        })
    }

    /// What is needed of a file, by what is there.
    fn look(
        &mut self,
        entry: &Entry<'_>,
        pending: &Pending,
        state: State,
    ) -> Result<Wish, Failure> {
        let large = pending.size >= LARGE_BYTES_MIN;
        let without = if large { Wish::Compare } else { Wish::Whole };
        if state == State::Absent {
            return Ok(without);
        }
        let fd = self.tree.fd(&pending.folder)?;
        let stat = match rustix::fs::statat(&fd, pending.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(without),
            Err(errno) => return Err(errno.into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        replaceable(kind)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if !kind.is_file() || size != pending.size || entry.node == Node::Stream {
            return Ok(without);
        }
        let on_time = attributes::is_time(&stat, &pending.attributes) && !self.options.checksum;
        if on_time || size == 0 {
            if !self.options.dry_run {
                self.touch(fd.as_fd(), &pending.name, &pending.attributes, &stat)?;
            }
            return Ok(Wish::Nothing);
        }
        if large && !self.options.dry_run {
            return Ok(Wish::Compare);
        }
        // What cannot be read cannot be the same.
        Ok(match hash_of(fd.as_fd(), &pending.name, &stat) {
            Ok(hash) => Wish::Same(hash),
            Err(_) => Wish::Whole,
        })
    }
}

/// What is needed of a file.
enum Wish {
    /// It is as it should be.
    Nothing,
    /// It may be the same, if this is its hash.
    Same(bowline_proto::copy::Hash),
    /// What is here may serve.
    Compare,
    /// Everything.
    Whole,
}

/// Whether something may be replaced: files and links, but never a folder or a device.
fn replaceable(kind: FileType) -> Result<(), Failure> {
    match kind {
        FileType::RegularFile | FileType::Symlink => Ok(()),
        FileType::Directory => Err(Errno::ISDIR.into()),
        _ => Err(Failure::new(
            "not_regular",
            "there is something that is no file, folder or link",
        )),
    }
}

fn no_stream() -> Failure {
    Failure::new("not_a_stream", "only one file can be written to a stream")
}

fn hash_of(
    folder: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
) -> Result<bowline_proto::copy::Hash, Failure> {
    let file = tree::open(
        folder,
        name,
        OFlags::RDONLY | OFlags::NONBLOCK,
        Mode::empty(),
    )?;
    let mut hasher = blake3::Hasher::new();
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    bytes::hash_prefix(file.as_fd(), size, &mut hasher)?;
    Ok(*hasher.finalize().as_bytes())
}

/// A name as those see it for whom case does not count.
fn folded(name: &[u8]) -> Vec<u8> {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    String::from_utf8_lossy(name).to_lowercase().into_bytes()
}
