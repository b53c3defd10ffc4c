//! Whose power a plain server keeps: as root, none but that of the account it is to serve as.

use std::ffi::CString;

use anyhow::{Context as _, bail};
use nix::unistd::{Gid, Uid, User};

use super::options::ServiceOptions;
use crate::plain::Service;

/// An account to become.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: String,
    uid: Uid,
    gid: Gid,
}

/// The account that commands run as, where it is to be another than that of this process.
///
/// # Errors
/// Where commands would run as root and nobody said so, or there is no such account.
pub(super) fn commands_user(
    services: &[ServiceOptions],
    named: Option<&str>,
) -> anyhow::Result<Option<Account>> {
    let root = nix::unistd::geteuid().is_root();
    let exec = services.iter().any(|it| it.service == Service::Exec);
    let Some(name) = named else {
        if root && exec {
            bail!(
                "as root, say with --user NAME as whom commands are to run; root only if it is named"
            );
        }
        return Ok(None);
    };
    let user = User::from_name(name).with_context(|| format!("cannot look up {name}"))?;
    let user = user.with_context(|| format!("there is no account {name}"))?;
    if user.uid == nix::unistd::geteuid() {
        return Ok(None);
    }
    if !root {
        bail!("only root can serve as {name}");
    }
    Ok(Some(Account {
        name: user.name,
        uid: user.uid,
        gid: user.gid,
    }))
}

impl Account {
    /// Becomes the account for good: its groups first, then nothing can bring root back.
    ///
    /// # Errors
    /// As setuid(2); the server must not go on then.
    pub(super) fn become_it(&self) -> anyhow::Result<()> {
        let name = CString::new(self.name.as_str())?;
        nix::unistd::initgroups(&name, self.gid).context("initgroups")?;
        nix::unistd::setresgid(self.gid, self.gid, self.gid).context("setresgid")?;
        nix::unistd::setresuid(self.uid, self.uid, self.uid).context("setresuid")?;
        Ok(())
    }
}
