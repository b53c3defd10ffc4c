//! `--delete`: what the source does not have is removed, once a folder's entries have all come.
//!
//! What `--exclude` names stays, and with it the folders that it is in.

use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use bowline_proto::copy::{Message, name};
use rustix::fs::{AtFlags, FileType};

use super::super::WorkerError;
use super::super::tree::{self, Folder};
use super::Receiver;
use super::entries::State;

/// A folder whose entries are being removed.
struct Emptying {
    folder: Rc<Folder>,
    /// What is still to be removed, the next one last.
    names: Vec<Vec<u8>>,
    /// What it is called in the copy, as patterns see it.
    path: Vec<u8>,
    /// Something in it stays, and so it does.
    kept: bool,
}

/// What is to become of something.
enum Fate {
    Stays,
    /// It goes at once.
    Goes,
    /// These go first.
    Emptied(Vec<Vec<u8>>),
}

impl Receiver {
    /// Removes what no entry of the innermost folder has named.
    pub(super) fn remove_unnamed(&mut self) -> Result<(), WorkerError> {
        let Some(level) = self.levels.last() else {
            return Ok(());
        };
        if !self.options.delete || level.state != State::There {
            return Ok(());
        }
        let folder = level.folder.clone();
        let mut names = match self.tree.fd(&folder).and_then(|fd| tree::names(fd.as_fd())) {
            Ok(names) => names,
            Err(error) => return self.problem(&folder.path_of(b""), &error.into()),
        };
        names.retain(|name| !self.is_named(name));
        names.sort_unstable_by(|a, b| b.cmp(a));
        let sent = self.levels.iter().skip(1);
        let sent: Vec<&[u8]> = sent.map(|level| level.sent.as_slice()).collect();
        let path = sent.join(&b'/');
        self.empty(Emptying {
            folder,
            names,
            path,
            kept: true,
        })
    }

    /// Whether the source has a name, also that of a file that is still under way.
    fn is_named(&self, name: &[u8]) -> bool {
        let Some(level) = self.levels.last() else {
            return true;
        };
        match name::stem(name) {
            Some(stem) => level
                .names
                .values()
                .flatten()
                .any(|named| named.starts_with(stem)),
            None => level.has(name),
        }
    }

    /// Removes these, folders with all that is in them. A deep tree takes memory, but no stack and
    /// no descriptors.
    fn empty(&mut self, first: Emptying) -> Result<(), WorkerError> {
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                let Some(done) = levels.pop() else { break };
                if let Some(above) = levels.last_mut() {
                    let stays = done.kept
                        || !self.unlink(&above.folder, &done.folder.name, AtFlags::REMOVEDIR)?;
                    above.kept |= stays;
                }
                continue;
            };
            let path = match level.path.as_slice() {
                b"" => name.clone(),
                above => [above, &name].join(&b'/'),
            };
            match self.fate(&level.folder, &name, &path) {
                Ok(Fate::Stays) => level.kept = true,
                Ok(Fate::Goes) => {
                    level.kept |= !self.unlink(&level.folder, &name, AtFlags::empty())?;
                }
                Ok(Fate::Emptied(names)) => {
                    let folder = level.folder.child(&name);
                    levels.push(Emptying {
                        folder,
                        names,
                        path,
                        kept: false,
                    });
                }
                Err(error) => {
                    level.kept = true;
                    self.problem(&level.folder.path_of(&name), &error.into())?;
                }
            }
        }
        Ok(())
    }

    fn fate(&mut self, folder: &Rc<Folder>, name: &[u8], path: &[u8]) -> io::Result<Fate> {
        let fd = self.tree.fd(folder)?;
        let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_folder = FileType::from_raw_mode(stat.st_mode).is_dir();
        if self.options.excludes.leave_out(path, is_folder) {
            return Ok(Fate::Stays);
        }
        if !is_folder {
            return Ok(Fate::Goes);
        }
        self.open_up(fd.as_fd(), name, &stat);
        let inside = tree::open_folder(fd.as_fd(), name)?;
        let mut names = tree::names(inside.as_fd())?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Fate::Emptied(names))
    }

    /// Takes a name away, but in a dry run, and says so; false where it could not.
    fn unlink(
        &mut self,
        folder: &Rc<Folder>,
        name: &[u8],
        flags: AtFlags,
    ) -> Result<bool, WorkerError> {
        let path = folder.path_of(name);
        if !self.options.dry_run {
            let fd = self.tree.fd(folder);
            let gone = fd.and_then(|fd| Ok(rustix::fs::unlinkat(&fd, name, flags)?));
            if let Err(error) = gone {
                self.problem(&path, &error.into())?;
                return Ok(false);
            }
        }
        self.say_skipped()?;
        self.output.send(&Message::Removed { path: &path })?;
        Ok(true)
    }
}
