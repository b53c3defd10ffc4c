//! PATH as the machine's own files say it, kept for as long as they stay as they are.
//!
//! The files are looked at for every job, so that a change counts at once, but
//! read only when stat(2) tells of one. /etc/login.defs has 12 KiB of comments.

use std::cell::RefCell;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// PATH of a job where nothing on the machine says otherwise.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";
/// The same for root.
const PATH_DEFAULT_ROOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most bytes of /etc/environment and /etc/login.defs that are read.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// A file that was changed this recently may be changed again within the same tick of
/// its file system's clock, and look as before.
const SETTLED: Duration = Duration::from_secs(2);

/// Where the machine says what PATH is, and what it said.
#[derive(Debug)]
pub(crate) struct MachinePath {
    environment: PathBuf,
    login_defs: PathBuf,
    kept: RefCell<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    from: [Version; 2],
    paths: Paths,
}

/// PATH of root and of everybody else.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Paths {
    root: Vec<u8>,
    other: Vec<u8>,
}

impl Default for MachinePath {
    fn default() -> Self {
        Self::new("/etc/environment", "/etc/login.defs")
    }
}

impl MachinePath {
    fn new(environment: impl Into<PathBuf>, login_defs: impl Into<PathBuf>) -> Self {
        Self {
            environment: environment.into(),
            login_defs: login_defs.into(),
            kept: RefCell::default(),
        }
    }

    /// PATH of a job of this user, as pam_env(8) and login(1) find it: /etc/environment, else
    /// ENV_SUPATH or ENV_PATH of /etc/login.defs, else a default.
    pub(crate) fn of(&self, uid: u32) -> Vec<u8> {
        self.at(SystemTime::now(), uid)
    }

    fn at(&self, time: SystemTime, uid: u32) -> Vec<u8> {
        let mut kept = self.kept.borrow_mut();
        // Looked at before they are read: what changes in between is seen the next time.
        let now = [&self.environment, &self.login_defs].map(|path| Version::of(path));
        let known = kept.take().filter(|kept| kept.from == now);
        let paths = match known {
            Some(known) => kept.insert(known).paths.clone(),
            None => {
                let paths = self.read();
                if now.iter().all(|version| version.is_settled(time)) {
                    let paths = paths.clone();
                    *kept = Some(Kept { from: now, paths });
                }
                paths
            }
        };
        match uid {
            0 => paths.root,
            _ => paths.other,
        }
    }

    fn read(&self) -> Paths {
        let environment = read(&self.environment);
        let login_defs = read(&self.login_defs);
        let environment = path_of_environment(&environment);
        let path = |key: &str, default: &str| {
            let path = environment.or_else(|| path_of_login_defs(&login_defs, key));
            path.unwrap_or(default).as_bytes().to_vec()
        };
        Paths {
            root: path("ENV_SUPATH", PATH_DEFAULT_ROOT),
            other: path("ENV_PATH", PATH_DEFAULT),
        }
    }
}

/// What stat(2) says of a file; nothing where it is not there.
#[derive(Debug, PartialEq, Eq)]
struct Version(Option<Stat>);

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(path: &Path) -> Self {
        Self(fs::metadata(path).ok().map(|found| Stat {
            file: (found.dev(), found.ino()),
            bytes: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }))
    }

    /// Whether the next change of the file is sure to show.
    fn is_settled(&self, time: SystemTime) -> bool {
        let Some(stat) = &self.0 else {
            return true;
        };
        let changed = u64::try_from(stat.changed.0).unwrap_or(u64::MAX);
        let settled = Duration::from_secs(changed).saturating_add(SETTLED);
        time.duration_since(UNIX_EPOCH)
            .is_ok_and(|time| settled < time)
    }
}

fn path_of_environment(text: &str) -> Option<&str> {
    let mut paths = text.lines().filter_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        Some(unquote(line.strip_prefix("PATH=")?))
    });
    paths.rfind(|path| !path.is_empty())
}

fn path_of_login_defs<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.trim().split_once(char::is_whitespace)?;
        let value = value.trim();
        let value = value.strip_prefix("PATH=").unwrap_or(value);
        (name == key && !value.is_empty()).then_some(value)
    })
}

fn unquote(value: &str) -> &str {
    let value = value.trim();
    ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value)
}

/// The text of a file; empty where there is none that could be read.
fn read(path: &Path) -> String {
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| {
        let mut file = file.take(FILE_BYTES_MAX);
        file.read_to_end(&mut text)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(machine: &MachinePath, uid: u32) -> String {
        String::from_utf8(machine.of(uid)).unwrap()
    }

    #[test]
    fn path_comes_from_the_first_file_that_names_one() {
        let folder = tempfile::tempdir().unwrap();
        let environment = folder.path().join("environment");
        let login_defs = folder.path().join("login.defs");
        // The same for every step: what was found once must not hide what is written next.
        let machine = MachinePath::new(&environment, &login_defs);
        assert_eq!(path(&machine, 0), PATH_DEFAULT_ROOT);
        assert_eq!(path(&machine, 1), PATH_DEFAULT);
        let text = "#ENV_PATH PATH=/no\nENV_SUPATH\tPATH=/sbin\nENV_PATH   /bin:/x\n";
        fs::write(&login_defs, text).unwrap();
        assert_eq!(path(&machine, 0), "/sbin");
        assert_eq!(path(&machine, 1), "/bin:/x");
        fs::write(&environment, "LANG=C\n").unwrap();
        assert_eq!(path(&machine, 1), "/bin:/x");
        fs::write(&environment, "MYPATH=/no\nexport PATH='/e:/f'\n").unwrap();
        assert_eq!(path(&machine, 0), "/e:/f");
        fs::write(&environment, "PATH=\"/g\"\n").unwrap();
        assert_eq!(path(&machine, 1), "/g");
        // Of the same length, and perhaps within one tick of the clock.
        fs::write(&environment, "PATH=\"/h\"\n").unwrap();
        assert_eq!(path(&machine, 1), "/h");
        fs::remove_file(&environment).unwrap();
        assert_eq!(path(&machine, 1), "/bin:/x");
    }

    #[test]
    fn files_that_stay_as_they_are_are_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let environment = folder.path().join("environment");
        fs::write(&environment, "PATH=/a\n").unwrap();
        let machine = MachinePath::new(&environment, folder.path().join("none"));
        let keep = |path: &str| {
            let mut kept = machine.kept.borrow_mut();
            kept.as_mut().unwrap().paths.other = path.as_bytes().to_vec();
        };
        let now = SystemTime::now();
        assert_eq!(machine.at(now, 1), b"/a");
        assert!(machine.kept.borrow().is_none(), "it was written just now");
        let later = now + 2 * SETTLED;
        assert_eq!(machine.at(later, 1), b"/a");
        // What is told is what was kept, until the file is another.
        keep("/kept");
        assert_eq!(machine.at(later, 1), b"/kept");
        fs::write(&environment, "PATH=/longer\n").unwrap();
        assert_eq!(machine.at(later, 1), b"/longer");
        keep("/kept");
        fs::remove_file(&environment).unwrap();
        assert_eq!(machine.at(later, 1), PATH_DEFAULT.as_bytes());
    }
}
