//! Being another user for as long as a file takes to read.
//!
//! A root keeper reads a user's files with that user's identity, so that no
//! link of theirs makes it read what they could not, and so that a home on NFS
//! can be read at all. The change is per thread (the kernel's own calls, not
//! libc's), and the keeper has one thread. The real and saved uid stay root's,
//! so the user can neither signal nor trace the keeper meanwhile.

use std::io;

use rustix::process::{Gid, Uid};

use super::policy::Account;

/// The identity of an account; the old one is back when it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct AsUser {
    old: Option<(Gid, Vec<Gid>)>,
}

impl AsUser {
    /// Takes on the account's uid, gid and groups. Without root's power, or for
    /// root, nothing changes.
    ///
    /// # Errors
    /// As setgroups(2), setresgid(2), setresuid(2); the identity is then the old one.
    pub(super) fn enter(account: &Account) -> io::Result<Self> {
        if account.uid == 0 || !rustix::process::geteuid().is_root() {
            return Ok(Self { old: None });
        }
        let groups: Vec<Gid> = account.groups.iter().map(|&g| Gid::from_raw(g)).collect();
        let old = (rustix::process::getegid(), rustix::process::getgroups()?);
        // Made first: from here on its drop takes back what was done.
        let entered = Self { old: Some(old) };
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(None, Gid::from_raw(account.gid), None)?;
        rustix::thread::set_thread_res_uid(None, Uid::from_raw(account.uid), None)?;
        Ok(entered)
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        let Some((gid, groups)) = self.old.take() else {
            return;
        };
        let back = rustix::thread::set_thread_res_uid(None, Uid::ROOT, None)
            .and_then(|()| rustix::thread::set_thread_res_gid(None, gid, None))
            .and_then(|()| rustix::thread::set_thread_groups(&groups));
        if back.is_err() {
            // Going on with the wrong identity would be worse than not going on.
            tracing::error!("the keeper cannot become root again");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_the_users_and_then_ones_own_again() {
        let before = (
            rustix::process::geteuid(),
            rustix::process::getegid(),
            rustix::process::getgroups().unwrap(),
        );
        let nobody = Account::by_name("nobody").unwrap();
        let entered = AsUser::enter(&nobody).unwrap();
        if before.0.is_root() {
            assert_eq!(rustix::process::geteuid().as_raw(), nobody.uid);
            assert_eq!(rustix::process::getegid().as_raw(), nobody.gid);
            assert!(std::fs::read("/etc/shadow").is_err());
        } else {
            assert_eq!(rustix::process::geteuid(), before.0);
        }
        drop(entered);
        let after = (
            rustix::process::geteuid(),
            rustix::process::getegid(),
            rustix::process::getgroups().unwrap(),
        );
        assert_eq!(before, after);
    }
}
