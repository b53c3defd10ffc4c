//! The folder of detached jobs: what each of them writes, and what those that have ended came to.
//!
//! | file | content |
//! | --- | --- |
//! | `JOB.stdout`, `JOB.stderr` | the stream; its length says how much of it is safe, and what was dropped is a hole |
//! | `JOB.marks` | where what is kept begins, and when it came ([`marks`]) |
//! | `JOB.end` | JSON of [`Ended`], written when everything else is there |
//!
//! The folder is the gate's alone, and so are the files: users reach them through an
//! attachment, which asks whose job it is. What must never be here is anything that only
//! memory knows: a gate that is killed at any moment leaves files that the next one goes on with.

mod account;
mod janitor;
mod marks;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bowline_proto::frame::Stream;
use bowline_proto::id::JobId;
use bowline_proto::message::Exit;
use serde::{Deserialize, Serialize};

use self::janitor::{Janitor, Told};
pub(super) use self::{account::Account, janitor::Keep, marks::Marks};

/// The version of [`Ended`].
const VERSION: u16 = 1;
/// All that there is of a job.
const FILES: [&str; 4] = ["stdout", "stderr", "marks", "end"];
/// The longest `JOB.end`.
const END_BYTES_MAX: u64 = 64 * 1024;

/// A detached job that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    version: u16,
    pub(super) user: String,
    pub(super) uid: u32,
    pub(super) pid: i32,
    /// When it was started.
    pub(super) unix_ms: u64,
    /// What another start of it must have in common with this one.
    pub(super) fingerprint: u64,
    /// It had a terminal.
    pub(super) pty: bool,
    pub(super) exit: Exit,
}

impl Ended {
    pub(super) fn new(user: &str, uid: u32, fingerprint: u64) -> Self {
        Self {
            version: VERSION,
            user: user.to_owned(),
            uid,
            pid: 0,
            unix_ms: 0,
            fingerprint,
            pty: false,
            exit: Exit::default(),
        }
    }
}

/// The folder.
#[derive(Debug)]
pub(super) struct Spools {
    dir: PathBuf,
    pub(super) account: Arc<Account>,
    /// To the janitor, once there is one.
    janitor: Mutex<Option<Sender<Told>>>,
}

impl Spools {
    /// `bytes_max` is what all jobs that have not ended may have.
    pub(super) fn new(dir: &Path, bytes_max: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            account: Arc::new(Account::new(bytes_max)),
            janitor: Mutex::default(),
        }
    }

    /// Starts the thread that removes what is kept of ended jobs; it ends with this value. `live` are the jobs
    /// that are somebody's.
    ///
    /// # Errors
    /// As opendir(3), and where there is no thread.
    pub(super) fn clean(
        &self,
        keep: Keep,
        live: impl Fn(JobId) -> bool,
    ) -> io::Result<JoinHandle<()>> {
        let janitor = Janitor::look(&self.dir, keep, live)?;
        let (sender, told) = channel();
        *super::lock(&self.janitor) = Some(sender);
        std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || janitor.serve(&told))
    }

    fn tell(&self, told: Told) {
        if let Some(janitor) = &*super::lock(&self.janitor) {
            let _ = janitor.send(told);
        }
    }

    /// Nothing but its files is left of a job: they may go when they are too old.
    pub(super) fn leave(&self, job: JobId) {
        self.tell(Told::Ended(job));
    }

    /// Other limits are in force.
    pub(super) fn keep(&self, keep: Keep) {
        self.tell(Told::Keep(keep));
    }

    /// A stream's file, to be read and written; made where it is missing.
    ///
    /// # Errors
    /// As open(2).
    pub(super) fn make(&self, job: JobId, stream: Stream) -> io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).open(self.path(job, stream.as_str()))
    }

    /// The same, if it is there.
    ///
    /// # Errors
    /// As open(2).
    pub(super) fn open(&self, job: JobId, stream: Stream) -> io::Result<Option<File>> {
        let path = self.path(job, stream.as_str());
        found(File::options().read(true).write(true).open(path))
    }

    /// Writes down what a job came to.
    ///
    /// # Errors
    /// As open(2) and write(2); then the job has not ended.
    pub(super) fn end(&self, job: JobId, ended: &Ended) -> io::Result<()> {
        let path = self.path(job, "end");
        let written = serde_json::to_vec(ended)
            .map_err(io::Error::from)
            .and_then(|json| {
                let mut options = File::options();
                options.write(true).create(true).truncate(true);
                io::Write::write_all(&mut options.mode(0o600).open(&path)?, &json)
            });
        if written.is_err() {
            // Half of it is nothing; it is told from a whole one in any case.
            let _ = fs::remove_file(&path);
        }
        written
    }

    /// What a job came to, if it has ended.
    ///
    /// # Errors
    /// As open(2) and read(2). What is no [`Ended`] that this version knows is not there.
    pub(super) fn ended(&self, job: JobId) -> io::Result<Option<Ended>> {
        let Some(file) = found(File::open(self.path(job, "end")))? else {
            return Ok(None);
        };
        let mut json = Vec::new();
        file.take(END_BYTES_MAX).read_to_end(&mut json)?;
        let ended: Option<Ended> = serde_json::from_slice(&json).ok();
        Ok(ended.filter(|ended| ended.version == VERSION))
    }

    /// Where what is kept of a job begins, and when it came.
    ///
    /// # Errors
    /// As open(2) and what [`Marks::open`] needs.
    pub(super) fn make_marks(&self, job: JobId) -> io::Result<Marks> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        Marks::open(options.mode(0o600).open(self.path(job, "marks"))?)
    }

    /// The same, if it is there.
    ///
    /// # Errors
    /// As [`Self::make_marks`].
    pub(super) fn marks(&self, job: JobId) -> io::Result<Option<Marks>> {
        let mut options = File::options();
        let file = found(options.read(true).write(true).open(self.path(job, "marks")))?;
        file.map(Marks::open).transpose()
    }

    /// Removes everything of a job: its outcome now, so that nobody finds it any more, and the rest, which may take
    /// long, a moment later. Whoever reads it reads on.
    pub(super) fn remove(&self, job: JobId) {
        if let Err(error) = found(fs::remove_file(self.path(job, "end"))) {
            tracing::warn!(%job, %error, "an outcome cannot be removed");
        }
        self.tell(Told::Forgotten(job));
    }

    fn path(&self, job: JobId, name: &str) -> PathBuf {
        file_of(&self.dir, job, name)
    }
}

fn file_of(dir: &Path, job: JobId, name: &str) -> PathBuf {
    dir.join(format!("{job}.{name}"))
}

/// `None` where there is no such file.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use bowline_proto::outcome::{Happened, Outcome};

    use super::*;

    #[test]
    fn an_outcome_is_there_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let spools = Spools::new(dir.path(), u64::MAX);
        let job = JobId::from_bytes([7; 16]);
        assert_eq!(spools.ended(job).unwrap(), None);
        let mut ended = Ended::new("ann", 1000, u64::MAX);
        ended.exit.stdout = 5;
        ended.exit.outcome = Outcome {
            outcome: Happened::Exited,
            code: Some(3),
            ..Outcome::default()
        };
        spools.end(job, &ended).unwrap();
        assert_eq!(spools.ended(job).unwrap().as_ref(), Some(&ended));
        let path = dir.path().join(format!("{job}.end"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // A gate that was killed while it wrote.
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(spools.ended(job).unwrap(), None, "{len}");
        }
        spools.end(job, &ended).unwrap();
        drop(spools.make(job, Stream::Stdout).unwrap());
        assert!(spools.open(job, Stream::Stdout).unwrap().is_some());
        assert!(spools.open(job, Stream::Stderr).unwrap().is_none());
        let keep = Keep {
            age_ms: u64::MAX,
            bytes_max: u64::MAX,
        };
        let janitor = spools.clean(keep, |_| false).unwrap();
        spools.remove(job);
        assert_eq!(spools.ended(job).unwrap(), None);
        drop(spools);
        janitor.join().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
