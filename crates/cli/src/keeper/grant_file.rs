//! Reading a grant file, if nobody but its owner could have written it.
//!
//! The rules are those of sshd's StrictModes: the file is a regular one, it and
//! every folder above it, up to the account's home or the root folder, belong
//! to the account or to root, and neither group nor others may write them. One
//! case is added: a folder with the sticky bit, such as /tmp, in which nobody
//! can replace what belongs to somebody else. A path enters; bounded bytes leave.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_proto::grants::FILE_BYTES_MAX;
use rustix::fs::OFlags;

use super::aside::{AsideError, aside};
use super::become_user::AsUser;
use super::policy::Account;

/// Bits of a mode with which group or others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why nothing of a grant file counts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrantFileError {
    /// It, or a folder above it, cannot be read with the account's identity.
    #[error("{} cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A folder, device, FIFO or socket.
    #[error("{} is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// More than any grant file has.
    #[error("{} is longer than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLong(PathBuf),
    /// Somebody else owns it and could change it.
    #[error("{} belongs to uid {uid}, not to the account or root", path.display())]
    ForeignOwner { path: PathBuf, uid: u32 },
    /// Somebody else could have written it.
    #[error("{} may be written by others (mode {mode:04o}): run `chmod go-w` on it", path.display())]
    Writable { path: PathBuf, mode: u32 },
    /// It was replaced while it was looked at.
    #[error("{} changed while it was read", .0.display())]
    Replaced(PathBuf),
    /// It was read by another process, which says what is wrong with it.
    #[error("{0}")]
    Told(String),
    /// The other process could not read it, or not in time.
    #[error("{} cannot be read", path.display())]
    Aside {
        path: PathBuf,
        #[source]
        source: AsideError,
    },
}

impl GrantFileError {
    /// Whether the file system did not answer, as it will not at the next try.
    pub(crate) fn is_slow(&self) -> bool {
        matches!(
            self,
            Self::Aside {
                source: AsideError::TimedOut(_),
                ..
            }
        )
    }
}

/// As [`read`], in a process of its own and for a bounded time: for a file in
/// a place where its user decides what opening it means.
///
/// # Errors
/// [`GrantFileError`].
pub(crate) fn read_aside(
    path: &Path,
    account: &Account,
    within: Duration,
) -> Result<Option<Vec<u8>>, GrantFileError> {
    let answer = aside(within, FILE_BYTES_MAX + 1, || {
        let (kind, bytes) = match read(path, account) {
            Ok(None) => (ANSWER_NONE, Vec::new()),
            Ok(Some(bytes)) => (ANSWER_BYTES, bytes),
            Err(error) => (ANSWER_ERROR, crate::exit::chain(&error).into_bytes()),
        };
        [&[kind], bytes.as_slice()].concat()
    });
    let answer = answer.map_err(|source| GrantFileError::Aside {
        path: path.to_owned(),
        source,
    })?;
    match answer.split_first() {
        Some((&ANSWER_NONE, _)) => Ok(None),
        Some((&ANSWER_BYTES, bytes)) => Ok(Some(bytes.to_vec())),
        Some((_, text)) => Err(GrantFileError::Told(
            String::from_utf8_lossy(text).into_owned(),
        )),
        None => Err(GrantFileError::Aside {
            path: path.to_owned(),
            source: AsideError::Failed,
        }),
    }
}

/// The first byte of what the other process says: there is no file, what is in
/// it, what is wrong with it.
const ANSWER_NONE: u8 = 0;
const ANSWER_BYTES: u8 = 1;
const ANSWER_ERROR: u8 = 2;

/// Reads the grant file of an account with that account's identity; `None`
/// where there is no file.
///
/// # Errors
/// [`GrantFileError`].
pub(crate) fn read(path: &Path, account: &Account) -> Result<Option<Vec<u8>>, GrantFileError> {
    let failed = |source| GrantFileError::Read {
        path: path.to_owned(),
        source,
    };
    let _identity = AsUser::enter(account).map_err(failed)?;
    // A FIFO must not hold the keeper, nor a terminal become its own.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let file = match opened {
        Err(error) if is_missing(&error) => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(GrantFileError::NotRegular(path.to_owned()));
    }
    check(path, &metadata, account.uid)?;
    let real = fs::canonicalize(path).map_err(failed)?;
    // What was opened is what lies at the path whose folders are checked now.
    let there = fs::symlink_metadata(&real).map_err(failed)?;
    if (there.dev(), there.ino()) != (metadata.dev(), metadata.ino()) {
        return Err(GrantFileError::Replaced(path.to_owned()));
    }
    check_folders(&real, account)?;
    read_bounded(file, path).map(Some)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Checks every folder from the file's own up to the home or the root folder.
fn check_folders(file: &Path, account: &Account) -> Result<(), GrantFileError> {
    let home = fs::canonicalize(&account.home).ok();
    for folder in file.ancestors().skip(1) {
        let metadata = fs::symlink_metadata(folder).map_err(|source| GrantFileError::Read {
            path: folder.to_owned(),
            source,
        })?;
        check(folder, &metadata, account.uid)?;
        // What lies above a home is the business of whoever made the home.
        if home.as_deref() == Some(folder) {
            break;
        }
    }
    Ok(())
}

fn check(path: &Path, metadata: &Metadata, uid: u32) -> Result<(), GrantFileError> {
    if metadata.uid() != 0 && metadata.uid() != uid {
        return Err(GrantFileError::ForeignOwner {
            path: path.to_owned(),
            uid: metadata.uid(),
        });
    }
    let mode = metadata.mode() & 0o7777;
    let sticky = metadata.is_dir() && mode & STICKY != 0;
    if mode & WRITABLE_BY_OTHERS != 0 && !sticky {
        return Err(GrantFileError::Writable {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, GrantFileError> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| GrantFileError::Read {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(GrantFileError::TooLong(path.to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    /// A home below a sticky folder, with `.ssh/authorized_keys` in it. As root
    /// it belongs to nobody, so that the change of identity is part of each test.
    struct Home {
        folder: tempfile::TempDir,
        account: Account,
    }

    impl Home {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut account = match rustix::process::geteuid().is_root() {
                true => Account::by_name("nobody").unwrap(),
                false => Account::own().unwrap(),
            };
            account.home = folder.path().join("home");
            let home = Self { folder, account };
            home.mode("", 0o755);
            for (name, text) in [
                ("home/.ssh", None),
                ("home/.ssh/authorized_keys", Some("x")),
            ] {
                home.make(name, text);
            }
            for name in ["home", "home/.ssh", "home/.ssh/authorized_keys"] {
                home.give(name);
            }
            home
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn file(&self) -> PathBuf {
            self.path("home/.ssh/authorized_keys")
        }

        fn make(&self, name: &str, text: Option<&str>) {
            match text {
                Some(text) => fs::write(self.path(name), text).unwrap(),
                None => fs::create_dir_all(self.path(name)).unwrap(),
            }
        }

        fn give(&self, name: &str) {
            if rustix::process::geteuid().is_root() {
                let account = &self.account;
                chown(self.path(name), Some(account.uid), Some(account.gid)).unwrap();
            }
        }

        fn mode(&self, name: &str, mode: u32) {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(self.path(name), permissions).unwrap();
        }

        fn read(&self) -> Result<Option<Vec<u8>>, GrantFileError> {
            read(&self.file(), &self.account)
        }
    }

    #[test]
    fn a_file_that_only_its_owner_could_write_is_read() {
        let home = Home::new();
        assert_eq!(home.read().unwrap(), Some(b"x".to_vec()));
        home.mode("home/.ssh/authorized_keys", 0o600);
        home.mode("home/.ssh", 0o700);
        home.mode("home", 0o700);
        assert_eq!(home.read().unwrap(), Some(b"x".to_vec()));
        fs::remove_file(home.file()).unwrap();
        assert_eq!(home.read().unwrap(), None);
        fs::remove_dir(home.path("home/.ssh")).unwrap();
        assert_eq!(home.read().unwrap(), None);
        home.make("home/.ssh", Some("a file"));
        assert_eq!(home.read().unwrap(), None);
    }

    #[test]
    fn what_others_may_write_is_refused_at_every_level() {
        for name in ["home/.ssh/authorized_keys", "home/.ssh", "home"] {
            for mode in [0o720, 0o702, 0o777] {
                let home = Home::new();
                home.mode(name, mode);
                let found = home.read();
                let refused = matches!(&found, Err(GrantFileError::Writable { path, .. })
                    if *path == fs::canonicalize(home.path(name)).unwrap());
                assert!(refused, "{name} {mode:o}: {found:?}");
            }
        }
        // Above the home it is not the account's business.
        let home = Home::new();
        home.mode("", 0o777);
        assert!(home.read().is_ok());
    }

    #[test]
    fn without_a_home_in_the_path_every_folder_counts() {
        let mut home = Home::new();
        home.account.home = PathBuf::from("/nonexistent");
        assert!(home.read().is_ok(), "{:?}", home.read());
        home.mode("", 0o1777);
        assert!(home.read().is_ok(), "a sticky folder is safe");
        home.mode("", 0o777);
        assert!(matches!(home.read(), Err(GrantFileError::Writable { .. })));
    }

    #[test]
    fn a_link_is_judged_by_where_it_leads() {
        let home = Home::new();
        home.make("home/dotfiles", None);
        home.give("home/dotfiles");
        home.make("home/dotfiles/keys", Some("linked"));
        home.give("home/dotfiles/keys");
        fs::remove_file(home.file()).unwrap();
        symlink(home.path("home/dotfiles/keys"), home.file()).unwrap();
        assert_eq!(home.read().unwrap(), Some(b"linked".to_vec()));
        home.mode("home/dotfiles", 0o777);
        assert!(matches!(home.read(), Err(GrantFileError::Writable { .. })));
        fs::remove_file(home.file()).unwrap();
        symlink("/nonexistent/keys", home.file()).unwrap();
        assert_eq!(home.read().unwrap(), None);
        fs::remove_file(home.file()).unwrap();
        symlink("authorized_keys", home.file()).unwrap();
        assert!(matches!(home.read(), Err(GrantFileError::Read { .. })));
    }

    #[test]
    fn what_is_no_file_of_a_sane_size_is_refused() {
        let home = Home::new();
        fs::remove_file(home.file()).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, home.file(), kind, mode, 0).unwrap();
        home.give("home/.ssh/authorized_keys");
        assert!(matches!(home.read(), Err(GrantFileError::NotRegular(_))));
        fs::remove_file(home.file()).unwrap();
        fs::create_dir(home.file()).unwrap();
        home.give("home/.ssh/authorized_keys");
        assert!(matches!(home.read(), Err(GrantFileError::NotRegular(_))));
        fs::remove_dir(home.file()).unwrap();
        let sparse = File::create(home.file()).unwrap();
        sparse.set_len(FILE_BYTES_MAX as u64 + 1).unwrap();
        home.give("home/.ssh/authorized_keys");
        assert!(matches!(home.read(), Err(GrantFileError::TooLong(_))));
        sparse.set_len(FILE_BYTES_MAX as u64).unwrap();
        assert_eq!(home.read().unwrap().unwrap().len(), FILE_BYTES_MAX);
    }

    #[test]
    fn another_process_reads_the_same() {
        let home = Home::new();
        let within = Duration::from_secs(30);
        let read = || read_aside(&home.file(), &home.account, within);
        assert_eq!(read().unwrap(), Some(b"x".to_vec()));
        home.mode("home/.ssh", 0o777);
        let error = read().unwrap_err();
        assert!(!error.is_slow());
        assert_eq!(error.to_string(), home.read().unwrap_err().to_string());
        home.mode("home/.ssh", 0o700);
        let sparse = File::options().write(true).open(home.file()).unwrap();
        sparse.set_len(FILE_BYTES_MAX as u64).unwrap();
        assert_eq!(read().unwrap().unwrap().len(), FILE_BYTES_MAX);
        fs::remove_file(home.file()).unwrap();
        assert_eq!(read().unwrap(), None);
    }

    #[test]
    fn as_root_the_file_is_read_with_the_users_own_rights() {
        if !rustix::process::geteuid().is_root() {
            // Another user's file is out of reach then, which is what is tested.
            let root = Account::by_name("root").unwrap();
            let found = read(Path::new("/etc/shadow"), &root);
            assert!(matches!(found, Err(GrantFileError::Read { .. })));
            return;
        }
        let home = Home::new();
        // A link of the user's to a file that only root may read.
        home.make("secret", Some("root's own"));
        home.mode("secret", 0o600);
        fs::remove_file(home.file()).unwrap();
        symlink(home.path("secret"), home.file()).unwrap();
        assert!(matches!(home.read(), Err(GrantFileError::Read { .. })));
        // Root's file that everybody may read is as good as the user's own.
        home.mode("secret", 0o644);
        assert_eq!(home.read().unwrap(), Some(b"root's own".to_vec()));
        // A third user's is not.
        chown(home.path("secret"), Some(1), Some(1)).unwrap();
        let found = home.read();
        assert!(matches!(
            found,
            Err(GrantFileError::ForeignOwner { uid: 1, .. })
        ));
    }
}
