//! Accounts of this machine: who they are, and whether they may be used at all.
//!
//! Everything is looked up here, before any fork: NSS is not safe after one.
//! Names enter from the network and are bounded before NSS sees them; an
//! [`Account`] leaves. It decides nothing about proofs.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User};

use super::policy::Account;

/// The most bytes of a name that NSS is asked for.
const NAME_BYTES_MAX: usize = bowline_proto::limits::USER_BYTES_MAX;
/// The most bytes of `/etc/shadow` that are read; a longer file locks nobody in.
const SHADOW_BYTES_MAX: u64 = 16 * 1024 * 1024;
const SECONDS_PER_DAY: u64 = 86_400;
/// The shell of an account whose passwd line names none (passwd(5)).
const SHELL_DEFAULT: &str = "/bin/sh";

/// Why an account is not there or may not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    /// passwd has no such name, or it could not be a name.
    #[error("there is no such account")]
    Unknown,
    /// passwd or group could not be read.
    #[error("the account cannot be looked up")]
    Lookup(#[source] std::io::Error),
    /// Its shell says that nobody logs in.
    #[error("the account's shell {} permits no login", .0.display())]
    NoLogin(PathBuf),
    /// Its password field begins with `!`.
    #[error("the account is locked")]
    Locked,
    /// Its expiry date (shadow(5), field 8) has passed.
    #[error("the account has expired")]
    Expired,
    /// /etc/shadow is there and cannot be read, so nobody can say whether it is locked.
    #[error("/etc/shadow cannot be read")]
    Shadow(#[source] std::io::Error),
}

impl Account {
    /// Looks an account up by its name.
    ///
    /// # Errors
    /// [`AccountError::Unknown`], [`AccountError::Lookup`].
    pub(crate) fn by_name(name: &str) -> Result<Self, AccountError> {
        let plausible = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name
                .bytes()
                .any(|byte| byte.is_ascii_control() || byte == b':' || byte == b'/');
        if !plausible {
            return Err(AccountError::Unknown);
        }
        let user = User::from_name(name).map_err(lookup)?;
        Self::from_user(user.ok_or(AccountError::Unknown)?)
    }

    /// Looks an account up by its number.
    ///
    /// # Errors
    /// [`AccountError::Unknown`], [`AccountError::Lookup`].
    pub(crate) fn by_uid(uid: u32) -> Result<Self, AccountError> {
        let user = User::from_uid(Uid::from_raw(uid)).map_err(lookup)?;
        Self::from_user(user.ok_or(AccountError::Unknown)?)
    }

    /// The account that this process runs as. Where passwd does not know it, as
    /// in a container that was given a bare number, HOME and the number serve.
    ///
    /// # Errors
    /// [`AccountError::Lookup`].
    pub(crate) fn own() -> Result<Self, AccountError> {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        match Self::by_uid(uid) {
            Err(AccountError::Unknown) => {
                let home = std::env::var_os("HOME").map(PathBuf::from);
                let groups = rustix::process::getgroups().unwrap_or_default();
                Ok(Self {
                    name: uid.to_string(),
                    uid,
                    gid,
                    groups: groups.into_iter().map(|gid| gid.as_raw()).collect(),
                    home: home
                        .filter(|home| home.is_absolute())
                        .unwrap_or_else(|| PathBuf::from("/")),
                    shell: PathBuf::from(SHELL_DEFAULT),
                })
            }
            found => found,
        }
    }

    fn from_user(user: User) -> Result<Self, AccountError> {
        let name = CString::new(user.name.as_str()).map_err(|_| AccountError::Unknown)?;
        let groups = groups(&name, user.gid)?;
        let shell = match user.shell.as_os_str().is_empty() {
            true => PathBuf::from(SHELL_DEFAULT),
            false => user.shell,
        };
        // As login(1): an account without a home lives in the root folder.
        let home = match user.dir.is_absolute() {
            true => user.dir,
            false => PathBuf::from("/"),
        };
        Ok(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups,
            home,
            shell,
        })
    }

    /// Refuses an account that nobody may log in to. Only for a keeper that
    /// runs as root: /etc/shadow is not for others to read.
    ///
    /// `locked_too` lets in accounts whose password is locked with `!`.
    ///
    /// # Errors
    /// [`AccountError`].
    pub(crate) fn may_log_in(&self, now_unix: u64, locked_too: bool) -> Result<(), AccountError> {
        self.may_log_in_by(Path::new("/etc/shadow"), now_unix, locked_too)
    }

    fn may_log_in_by(
        &self,
        shadow: &Path,
        now_unix: u64,
        locked_too: bool,
    ) -> Result<(), AccountError> {
        let shell = self.shell.file_name().unwrap_or_default();
        if shell == "nologin" || shell == "false" || !is_executable(&self.shell) {
            return Err(AccountError::NoLogin(self.shell.clone()));
        }
        let Some(text) = read_shadow(shadow).map_err(AccountError::Shadow)? else {
            return Ok(());
        };
        let Some(entry) = Shadow::find(&text, self.name.as_bytes()) else {
            // As for accounts of a directory service: what locks them is not here.
            return Ok(());
        };
        if entry.locked && !locked_too {
            return Err(AccountError::Locked);
        }
        match entry.expires_day {
            // shadow(5): the day of the date itself is already too late.
            Some(day) if day <= now_unix / SECONDS_PER_DAY => Err(AccountError::Expired),
            _ => Ok(()),
        }
    }
}

/// Whether a shell can be one: `/dev/null` and missing files are ways to keep people out.
fn is_executable(shell: &Path) -> bool {
    fs::metadata(shell).is_ok_and(|shell| shell.is_file() && shell.mode() & 0o111 != 0)
}

/// What a line of /etc/shadow says about the account as a whole.
struct Shadow {
    /// The password field begins with `!`. A `*` only says that there is no
    /// password, which is what most accounts that use keys have.
    locked: bool,
    /// Days since 1970; the account is dead from that day on.
    expires_day: Option<u64>,
}

impl Shadow {
    fn find(text: &[u8], name: &[u8]) -> Option<Self> {
        text.split(|&byte| byte == b'\n').find_map(|line| {
            let mut fields = line.split(|&byte| byte == b':');
            if fields.next() != Some(name) {
                return None;
            }
            let locked = fields.next().is_some_and(|field| field.starts_with(b"!"));
            // Behind the password: last change, minimum, maximum, warning, inactivity, expiry.
            let expires = fields.nth(5).unwrap_or_default();
            let expires = std::str::from_utf8(expires).unwrap_or_default();
            Some(Self {
                locked,
                // An empty field or a negative number is "never".
                expires_day: expires.parse().ok(),
            })
        })
    }
}

/// The bytes of the shadow file; `None` where a system has none.
fn read_shadow(path: &Path) -> std::io::Result<Option<zeroize::Zeroizing<Vec<u8>>>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut text = zeroize::Zeroizing::new(Vec::new());
    file.take(SHADOW_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > SHADOW_BYTES_MAX {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(Some(text))
}

fn groups(name: &CStr, gid: Gid) -> Result<Vec<u32>, AccountError> {
    let groups = nix::unistd::getgrouplist(name, gid).map_err(lookup)?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

fn lookup(errno: nix::errno::Errno) -> AccountError {
    match errno {
        // getpwnam(3) lists these as "the name was not found".
        nix::errno::Errno::ENOENT | nix::errno::Errno::ESRCH | nix::errno::Errno::EBADF => {
            AccountError::Unknown
        }
        errno => AccountError::Lookup(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_by_name_and_number_with_its_groups() {
        let root = Account::by_name("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        assert!(root.home.is_absolute());
        assert_eq!(Account::by_uid(0).unwrap(), root);
    }

    #[test]
    fn groups_are_those_that_id_prints() {
        let own = Account::own().unwrap();
        let printed = std::process::Command::new("id")
            .args(["-G", &own.name])
            .output()
            .unwrap();
        let mut printed: Vec<u32> = String::from_utf8(printed.stdout)
            .unwrap()
            .split_whitespace()
            .map(|gid| gid.parse().unwrap())
            .collect();
        let mut groups = own.groups;
        printed.sort_unstable();
        groups.sort_unstable();
        groups.dedup();
        assert_eq!(groups, printed);
    }

    #[test]
    fn what_cannot_be_a_name_is_unknown() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in ["", "no-such-user-here", "a:b", "a/b", "a\nb", "a\0b", &long] {
            let found = Account::by_name(name);
            assert!(matches!(found, Err(AccountError::Unknown)), "{name:?}");
        }
    }

    #[test]
    fn a_shell_that_is_no_shell_keeps_everybody_out() {
        let nobody = Account::by_name("nobody").unwrap();
        let mut account = Account {
            shell: PathBuf::from("/usr/sbin/nologin"),
            ..nobody
        };
        let none = Path::new("/nonexistent/shadow");
        let no_shells = [
            "/usr/sbin/nologin",
            "/bin/false",
            "/dev/null",
            "/etc/passwd",
            "/bin",
            "/no",
        ];
        for shell in no_shells {
            account.shell = PathBuf::from(shell);
            let verdict = account.may_log_in_by(none, 0, true);
            assert!(matches!(verdict, Err(AccountError::NoLogin(_))), "{shell}");
        }
        account.shell = PathBuf::from("/bin/sh");
        account.may_log_in_by(none, 0, true).unwrap();
    }

    #[test]
    fn locked_and_expired_accounts_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let shadow = folder.path().join("shadow");
        let account = Account {
            shell: PathBuf::from("/bin/sh"),
            ..Account::by_name("nobody").unwrap()
        };
        let verdict = |line: &str, locked_too| {
            let text = format!("nobody2:!:1::::::\n{line}\nroot:*:1::::::\n");
            fs::write(&shadow, text).unwrap();
            account.may_log_in_by(&shadow, 20_000 * SECONDS_PER_DAY + 5, locked_too)
        };
        let locked = |line| matches!(verdict(line, false), Err(AccountError::Locked));
        let expired = |line| matches!(verdict(line, true), Err(AccountError::Expired));
        assert!(locked("nobody:!:19000:0:99999:7:::"));
        assert!(locked("nobody:!!:19000:0:99999:7:::"));
        assert!(locked("nobody:!$6$salt$hash:19000:0:99999:7:::"));
        assert!(verdict("nobody:!:19000:0:99999:7:::", true).is_ok());
        assert!(verdict("nobody:*:19000:0:99999:7:::", false).is_ok());
        assert!(verdict("nobody:$6$salt$hash:19000:0:99999:7:::", false).is_ok());
        assert!(verdict("somebody:!:19000:0:99999:7::1:", false).is_ok());
        assert!(expired("nobody:*:19000:0:99999:7::20000:"));
        assert!(expired("nobody:*:19000:0:99999:7::1:"));
        assert!(!expired("nobody:*:19000:0:99999:7::20001:"));
        assert!(!expired("nobody:*:19000:0:99999:7::-1:"));
        assert!(verdict("nobody", false).is_ok());
        // A shadow file that cannot be read locks everybody out: it might have said so.
        let unreadable = account.may_log_in_by(folder.path(), 0, true);
        assert!(matches!(unreadable, Err(AccountError::Shadow(_))));
    }
}
