//! Who removes what is kept of ended jobs, by age and size: one thread that waits for the next one to
//! be too old, or to be told of another.
//!
//! What a server that died has left without an outcome is nobody's, and goes by the same rule.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, UNIX_EPOCH};

use bowline_proto::id::JobId;

use super::{FILES, file_of};
use crate::clock::unix_ms;

/// What may be kept of ended jobs.
#[derive(Clone, Copy, Debug)]
pub(in crate::gate) struct Keep {
    pub(in crate::gate) age_ms: u64,
    pub(in crate::gate) bytes_max: u64,
}

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Told {
    /// A job has ended, and nothing but its files is left.
    Ended(JobId),
    /// A job is to be removed.
    Forgotten(JobId),
    Keep(Keep),
}

/// The ended jobs.
#[derive(Debug)]
pub(super) struct Janitor {
    dir: PathBuf,
    keep: Keep,
    /// When each ended, and how much is kept of it.
    jobs: HashMap<JobId, (u64, u64)>,
    /// The oldest first.
    by_age: BTreeSet<(u64, JobId)>,
    bytes: u64,
}

impl Janitor {
    /// Looks through the folder. `live` are the jobs that are somebody's.
    ///
    /// # Errors
    /// As opendir(3) and readdir(3).
    pub(super) fn look(dir: &Path, keep: Keep, live: impl Fn(JobId) -> bool) -> io::Result<Self> {
        let mut janitor = Self {
            dir: dir.to_owned(),
            keep,
            jobs: HashMap::new(),
            by_age: BTreeSet::new(),
            bytes: 0,
        };
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let job = name.split_once('.').and_then(|(job, _)| job.parse().ok());
            let Some(job) = job.filter(|&job| !live(job)) else {
                continue;
            };
            if !janitor.jobs.contains_key(&job) {
                janitor.enter(job);
            }
        }
        Ok(janitor)
    }

    /// Removes what is to be removed, until there is nobody left who could tell of more.
    pub(super) fn serve(mut self, told: &Receiver<Told>) {
        loop {
            let received = match self.clean() {
                None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => told.recv_timeout(wait),
            };
            match received {
                Ok(Told::Ended(job)) => self.enter(job),
                Ok(Told::Forgotten(job)) => self.remove(job),
                Ok(Told::Keep(keep)) => self.keep = keep,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn enter(&mut self, job: JobId) {
        let (mut ended, mut bytes) = (0, 0);
        for name in FILES {
            let Ok(metadata) = fs::metadata(file_of(&self.dir, job, name)) else {
                continue;
            };
            bytes += metadata.blocks() * 512;
            let changed = metadata.modified().ok();
            let changed = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let changed = changed.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(0));
            ended = ended.max(changed);
        }
        self.strike(job);
        self.jobs.insert(job, (ended, bytes));
        self.by_age.insert((ended, job));
        self.bytes += bytes;
    }

    fn strike(&mut self, job: JobId) {
        if let Some((ended, bytes)) = self.jobs.remove(&job) {
            self.by_age.remove(&(ended, job));
            self.bytes -= bytes;
        }
    }

    fn remove(&mut self, job: JobId) {
        self.strike(job);
        for name in FILES {
            match fs::remove_file(file_of(&self.dir, job, name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%job, name, %error, "output cannot be removed");
                }
                _ => {}
            }
        }
    }

    /// Removes what is too old or too much; gives how long it is until the next one is too old.
    fn clean(&mut self) -> Option<Duration> {
        let now = unix_ms();
        while let Some(&(ended, job)) = self.by_age.first() {
            let left = ended.saturating_add(self.keep.age_ms).saturating_sub(now);
            if left > 0 && self.bytes <= self.keep.bytes_max {
                return Some(Duration::from_millis(left));
            }
            tracing::info!(%job, "what was kept of an ended job is removed");
            self.remove(job);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_oldest_go_first_and_what_is_live_stays() {
        let dir = tempfile::tempdir().unwrap();
        let id = |number| JobId::from_bytes([number; 16]);
        let put = |number: u8, name: &str, seconds: u64| {
            let path = file_of(dir.path(), id(number), name);
            fs::write(&path, vec![b'x'; 8192]).unwrap();
            let time = SystemTime::now() - Duration::from_secs(seconds);
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_times(FileTimes::new().set_modified(time)).unwrap();
        };
        for (number, seconds) in [(1, 500), (2, 400), (3, 300), (4, 9000)] {
            put(number, "stdout", 9000);
            put(number, "end", seconds);
        }
        // Litter of a server that died.
        put(5, "stderr", 350);
        fs::write(dir.path().join("something else"), "").unwrap();
        let look = |age_s: u64, files: u64| {
            let keep = Keep {
                age_ms: age_s * 1000,
                bytes_max: files * 8192,
            };
            Janitor::look(dir.path(), keep, |job| job == id(4)).unwrap()
        };
        let left = || {
            let there = |number: &u8| file_of(dir.path(), id(*number), "end").exists();
            let mut left: Vec<u8> = (1..=5).filter(there).collect();
            left.extend(file_of(dir.path(), id(5), "stderr").exists().then_some(5));
            left
        };
        let mut janitor = look(450, 7);
        let wait = janitor.clean().unwrap();
        assert_eq!(left(), [2, 3, 4, 5]);
        assert!((30..=50).contains(&wait.as_secs()), "{wait:?}");
        let mut janitor = look(450, 3);
        assert!(janitor.clean().is_some());
        assert_eq!(left(), [3, 4, 5]);
        janitor.remove(id(3));
        assert_eq!(janitor.bytes, 8192);
        assert_eq!(look(450, 0).clean(), None);
        assert_eq!(left(), [4]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
