//! Modes, times and owners.
//!
//! Without `--archive` only the permission bits are kept. With it times too, and owners and the special bits of
//! modes as far as this process may: a file that could not be given to its owner gets no setuid bit.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

use super::super::tree::{self, Folder};
use super::super::{Attributes, Failure};
use super::Receiver;

/// The sender's owners that are remembered.
const OWNERS_MAX: usize = 64 * 1024;

/// What the sender's numbers of owners are here: names count, as with rsync.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<(bool, u32), u32>);

impl Owners {
    pub(super) fn learn(&mut self, group: bool, id: u32, name: &[u8]) {
        // Root is root, whatever it is called.
        let Ok(name) = std::str::from_utf8(name) else {
            return;
        };
        if id == 0 || self.0.len() >= OWNERS_MAX || self.0.contains_key(&(group, id)) {
            return;
        }
        let here = if group {
            let found = nix::unistd::Group::from_name(name).ok().flatten();
            found.map(|group| group.gid.as_raw())
        } else {
            let found = nix::unistd::User::from_name(name).ok().flatten();
            found.map(|user| user.uid.as_raw())
        };
        // Also where there is none: what was looked up once is not again.
        self.0.insert((group, id), here.unwrap_or(id));
    }

    fn here(&self, attributes: &Attributes) -> (u32, u32) {
        let of = |group, id| self.0.get(&(group, id)).copied().unwrap_or(id);
        (of(false, attributes.uid), of(true, attributes.gid))
    }
}

impl Receiver {
    /// The bits of a mode that are kept.
    pub(super) fn mode(&self, attributes: &Attributes) -> u32 {
        attributes.mode & if self.options.archive { 0o7777 } else { 0o777 }
    }

    /// Makes an open file or folder what it is to be like. `mode_now` is its mode at the moment.
    pub(super) fn apply(
        &self,
        fd: BorrowedFd<'_>,
        attributes: &Attributes,
        mode_now: u32,
    ) -> io::Result<()> {
        let mut mode = self.mode(attributes);
        let mut chown = false;
        if self.options.archive {
            (chown, mode) = self.own(attributes, mode, |uid, gid| {
                rustix::fs::fchown(fd, uid, gid)
            });
        }
        // Another owner takes the special bits away.
        if mode != mode_now & 0o7777 || (chown && mode & 0o7000 != 0) {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
        }
        if self.options.archive {
            rustix::fs::futimens(fd, &times(attributes))?;
        }
        Ok(())
    }

    /// Changes the owner as far as possible, and gives the mode that may then be set.
    fn own(
        &self,
        attributes: &Attributes,
        mode: u32,
        chown: impl Fn(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> (bool, u32) {
        let (uid, gid) = self.owners.here(attributes);
        let (own_uid, own_gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        if own_uid == 0 {
            let both = chown(Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            return (true, if both.is_ok() { mode } else { mode & 0o777 });
        }
        let mut mode = mode;
        if uid != own_uid {
            mode &= !0o4000;
        }
        if gid != own_gid && chown(None, Some(Gid::from_raw(gid))).is_err() {
            mode &= !0o2000;
        }
        (gid != own_gid, mode)
    }

    /// Lets this user work in a folder of its own that is closed to it. What the folder is to be
    /// like comes when nothing in it is left to do; where this fails, what cannot be done in it says so.
    pub(super) fn open_up(&self, parent: BorrowedFd<'_>, name: &[u8], stat: &Stat) {
        let own = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_uid != 0;
        if !own || stat.st_mode & 0o700 == 0o700 || self.options.dry_run {
            return;
        }
        if let Ok(folder) = tree::open(parent, name, OFlags::PATH, Mode::empty()) {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700);
            let _ = rustix::fs::chmod(by_descriptor(folder.as_fd()).as_str(), mode);
        }
    }

    /// The last of a folder, when nothing in it is left to do.
    pub(super) fn finish_folder(
        &mut self,
        folder: &Rc<Folder>,
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        let fd = self.tree.fd(folder)?;
        let now = rustix::fs::fstat(&fd)?.st_mode;
        // Without `--archive` its own special bits stay: a setgid parent wished them.
        let kept = if self.options.archive {
            0
        } else {
            now & 0o7000
        };
        self.apply(fd.as_fd(), attributes, now & !kept)?;
        if self.options.fsync == bowline_proto::copy::Fsync::All {
            rustix::fs::fsync(&fd)?;
        }
        Ok(())
    }

    /// Puts right what differs of a file whose content is as it should be.
    pub(super) fn touch(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        attributes: &Attributes,
        stat: &Stat,
    ) -> Result<(), Failure> {
        let (uid, gid) = self.owners.here(attributes);
        let archive = self.options.archive;
        let owner = archive && (stat.st_uid, stat.st_gid) != (uid, gid);
        let time = archive && !is_time(stat, attributes);
        let mode = stat.st_mode & if archive { 0o7777 } else { 0o777 };
        if !owner && !time && mode == self.mode(attributes) {
            return Ok(());
        }
        let path = tree::open(folder, name, OFlags::PATH, Mode::empty())?;
        let this = by_descriptor(path.as_fd());
        let mut mode = self.mode(attributes);
        if owner {
            (_, mode) = self.own(attributes, mode, |uid, gid| {
                rustix::fs::chownat(&path, c"", uid, gid, AtFlags::EMPTY_PATH)
            });
        }
        rustix::fs::chmod(this.as_str(), Mode::from_raw_mode(mode))?;
        if time {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(folder, name, &times(attributes), flags)?;
        }
        Ok(())
    }

    /// The same for a link, which has no mode.
    pub(super) fn touch_link(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        if !self.options.archive {
            return Ok(());
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        self.own(attributes, 0, |uid, gid| {
            rustix::fs::chownat(folder, name, uid, gid, flags)
        });
        Ok(rustix::fs::utimensat(
            folder,
            name,
            &times(attributes),
            flags,
        )?)
    }
}

/// A path to the very file that was opened with O_PATH, as fchmod(2) takes no such descriptor.
fn by_descriptor(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Whether a file was changed last when the sender's was.
pub(super) fn is_time(stat: &Stat, attributes: &Attributes) -> bool {
    let now = (
        stat.st_mtime,
        u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    );
    now == attributes.mtime
}

fn times(attributes: &Attributes) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: attributes.mtime.0,
            tv_nsec: attributes.mtime.1.into(),
        },
    }
}
