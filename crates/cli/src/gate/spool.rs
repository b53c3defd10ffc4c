//! The folder of detached jobs: what each of them writes, and what those that have ended came to.
//!
//! | file | content |
//! | --- | --- |
//! | `JOB.stdout`, `JOB.stderr` | the stream; its length says how much of it is safe |
//! | `JOB.end` | JSON of [`Ended`], written when everything else is there |
//!
//! The folder is the gate's alone, and so are the files: users reach them through an
//! attachment, which asks whose job it is. What must never be here is anything that only
//! memory knows: a gate that is killed at any moment leaves files that the next one goes on with.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bowline_proto::frame::Stream;
use bowline_proto::id::JobId;
use bowline_proto::message::Exit;
use serde::{Deserialize, Serialize};

/// The version of [`Ended`].
const VERSION: u16 = 1;
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
}

impl Spools {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// A stream's file, to be read and written; made where it is missing.
    ///
    /// # Errors
    /// As open(2).
    pub(super) fn make(&self, job: JobId, stream: Stream) -> io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).open(self.path(job, name_of(stream)))
    }

    /// The same, if it is there.
    ///
    /// # Errors
    /// As open(2).
    pub(super) fn open(&self, job: JobId, stream: Stream) -> io::Result<Option<File>> {
        let path = self.path(job, name_of(stream));
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

    /// Removes everything of a job. Whoever reads it reads on.
    pub(super) fn remove(&self, job: JobId) {
        // The outcome goes last: without it nobody could say whose the rest is.
        for name in ["stdout", "stderr", "end"] {
            if let Err(error) = found(fs::remove_file(self.path(job, name))) {
                tracing::warn!(%job, %error, "output cannot be removed");
            }
        }
    }

    fn path(&self, job: JobId, name: &str) -> PathBuf {
        self.dir.join(format!("{job}.{name}"))
    }
}

fn name_of(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdin => "stdin",
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
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
        let spools = Spools::new(dir.path());
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
        spools.remove(job);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
