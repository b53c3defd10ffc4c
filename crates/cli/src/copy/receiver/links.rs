//! Hard links: other names of files that this copy has put in place, and of nothing else.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::super::tree::Folder;
use super::super::{Failure, WorkerError};
use super::{Receiver, temporary};

/// Files with several names that are remembered.
const LINKED_MAX: usize = 1024 * 1024;

/// Files that may be named again.
#[derive(Default)]
pub(super) struct Links {
    files: HashMap<u64, State>,
    waiting: usize,
}

enum State {
    /// Not finished; these wait for it.
    Waiting(Vec<Waiting>),
    /// Here it is.
    There(Rc<Folder>, Vec<u8>),
    /// It is not.
    Failed,
}

/// A name that waits for its file.
pub(super) struct Waiting {
    id: u64,
    folder: Rc<Folder>,
    name: Vec<u8>,
}

impl Links {
    /// A file with several names comes.
    pub(super) fn expect(&mut self, id: u64) {
        if self.files.len() < LINKED_MAX {
            self.files.insert(id, State::Waiting(Vec::new()));
        }
    }

    /// Names that wait for their files.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}

impl Receiver {
    /// Another name of an earlier file.
    pub(super) fn hard_link(
        &mut self,
        id: u64,
        folder: &Rc<Folder>,
        name: &[u8],
        first: u64,
    ) -> Result<(), WorkerError> {
        let waiting = Waiting {
            id,
            folder: folder.clone(),
            name: name.to_vec(),
        };
        folder.left.set(folder.left.get() + 1);
        match self.links.files.get_mut(&first) {
            _ if first >= id => Err(WorkerError::Rules("a link to what comes later")),
            None => {
                let why = "it is another name of a file that is not known";
                self.linked(&waiting, Err(Failure::new("bad_link", why)))
            }
            Some(State::Waiting(list)) => {
                list.push(waiting);
                self.links.waiting += 1;
                Ok(())
            }
            Some(_) => self.link_now(first, waiting),
        }
    }

    /// It is over with a file: here it is, or it is not. The names that waited for it follow.
    pub(super) fn settle(
        &mut self,
        id: u64,
        place: Option<(&Rc<Folder>, &[u8])>,
    ) -> Result<(), WorkerError> {
        let Some(state) = self.links.files.get_mut(&id) else {
            return Ok(());
        };
        let now = match place {
            Some((folder, name)) => State::There(folder.clone(), name.to_vec()),
            None => State::Failed,
        };
        if let State::Waiting(waiting) = std::mem::replace(state, now) {
            self.links.waiting -= waiting.len();
            for waiting in waiting {
                self.link_now(id, waiting)?;
            }
        }
        Ok(())
    }

    fn link_now(&mut self, first: u64, waiting: Waiting) -> Result<(), WorkerError> {
        let place = match self.links.files.get(&first) {
            Some(State::There(folder, name)) => Some((folder.clone(), name.clone())),
            _ => None,
        };
        let result = match place {
            // What the file would be another name of may not be there yet.
            Some((folder, name)) if self.options.dry_run => {
                Ok(self.link(&folder, &name, &waiting).unwrap_or(true))
            }
            Some((folder, name)) => self.link(&folder, &name, &waiting),
            None => Err(Failure::new(
                "bad_link",
                "the file that it is another name of failed",
            )),
        };
        self.linked(&waiting, result)
    }

    /// It is over with a name: it was made, it was there, or it failed.
    fn linked(
        &mut self,
        waiting: &Waiting,
        result: Result<bool, Failure>,
    ) -> Result<(), WorkerError> {
        self.release(&waiting.folder)?;
        match result {
            Ok(false) => self.skip(waiting.id),
            Ok(true) => self.done(waiting.id, Ok(())),
            Err(failure) => self.done(waiting.id, Err(failure)),
        }
    }

    fn link(&mut self, folder: &Rc<Folder>, name: &[u8], to: &Waiting) -> Result<bool, Failure> {
        let (from, into) = (self.tree.fd(folder)?, self.tree.fd(&to.folder)?);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let file = rustix::fs::statat(&from, name, flags)?;
        if !FileType::from_raw_mode(file.st_mode).is_file() {
            return Err(Failure::new(
                "bad_link",
                "the first name is no file any more",
            ));
        }
        let name_there = to.name.as_slice();
        match rustix::fs::statat(&into, name_there, flags) {
            Ok(there) if (there.st_dev, there.st_ino) == (file.st_dev, file.st_ino) => {
                return Ok(false);
            }
            Ok(there) if FileType::from_raw_mode(there.st_mode).is_dir() => {
                return Err(Errno::ISDIR.into());
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                if !self.options.dry_run {
                    rustix::fs::linkat(&from, name, &into, name_there, AtFlags::empty())?;
                }
                return Ok(true);
            }
            Err(errno) => return Err(errno.into()),
        }
        if self.options.dry_run {
            return Ok(true);
        }
        // Under a name that nobody uses, and then over what is there.
        temporary::over(into.as_fd(), name_there, self.options.origin, |over| {
            rustix::fs::linkat(&from, name, &into, over, AtFlags::empty())
        })?;
        Ok(true)
    }
}
