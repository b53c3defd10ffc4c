//! The record: every job in one SQLite file, written before it starts.
//!
//! One thread owns the file. What several workers ask for at the same time is
//! one transaction, so the cost of a commit is shared (WAL,
//! synchronous=NORMAL: it survives the death of processes, not of power).
//!
//! Where the file cannot be written, nothing is started, and what became of a job that ran is
//! owed to the record until it can: its owner keeps the job with the keeper as long.

mod table;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bowline_proto::id::JobId;
use bowline_proto::message::Exit;
use bowline_proto::outcome::Outcome;
use rusqlite::Connection;
use tokio::sync::oneshot;

use self::table::{SCHEMA, clean, close_others, insert, select, update};

/// Requests that may wait for the thread; more make the askers wait.
const QUEUE_MAX: usize = 1024;
/// Requests in one transaction.
const BATCH_MAX: usize = 256;
/// After so many ended jobs the old ones are looked for.
const CLEAN_EVERY: u64 = 256;
/// A file that could not be written is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of a job before it starts.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) job: JobId,
    pub(super) user: String,
    pub(super) proof: String,
    pub(super) source: String,
    pub(super) command: String,
    pub(super) cwd: Option<String>,
    pub(super) unix_ms: u64,
}

/// A job as the record shows it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) asked: Asked,
    pub(super) pid: i32,
    pub(super) outcome: Option<Outcome>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    pub(super) jobs_max: u64,
    pub(super) age_ms: u64,
}

#[derive(Debug)]
enum Request {
    Write(Write),
    List(Wanted, oneshot::Sender<Vec<Row>>),
}

#[derive(Debug)]
enum Write {
    Asked(Asked, oneshot::Sender<bool>),
    Ended(Ended),
    /// These are all that anybody knows of.
    Known(BTreeSet<JobId>),
}

/// What became of a job.
#[derive(Debug)]
struct Ended {
    job: JobId,
    pid: i32,
    exit: Box<Exit>,
    written: oneshot::Sender<()>,
}

/// Which jobs are to be listed.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) user: String,
    /// Also those that have ended.
    pub(super) ended: bool,
    pub(super) count: u32,
    /// How their ids begin, in hexadecimal digits.
    pub(super) prefix: String,
}

/// A way to the record, for every worker.
#[derive(Clone, Debug)]
pub(super) struct Recorder(SyncSender<Request>);

impl Recorder {
    /// Opens the file in `dir` and starts its thread, which ends when the last
    /// recorder is dropped and everything is written.
    ///
    /// Jobs that an earlier gate left open stay open: their keeper says what became of them.
    ///
    /// # Errors
    /// As SQLite says.
    pub(super) fn start(dir: &Path, keep: Keep) -> rusqlite::Result<(Self, JoinHandle<()>)> {
        let connection = Connection::open(dir.join("jobs.sqlite"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.execute_batch(SCHEMA)?;
        connection.set_prepared_statement_cache_capacity(16);
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("record".to_owned())
            .spawn(move || serve(connection, &receiver, keep))
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        Ok((Self(sender), thread))
    }

    /// Writes a job down; true comes back once it is committed. A job of this
    /// id that is there already is left as it is, but for one that never ran: its client (or its
    /// gate) was lost before anything was started, and it is asked for again.
    pub(super) fn asked(&self, asked: Asked) -> oneshot::Receiver<bool> {
        let (done, answer) = oneshot::channel();
        // Where the thread has died the answer's sender is dropped, and the asker sees that.
        let _ = self.0.send(Request::Write(Write::Asked(asked, done)));
        answer
    }

    /// Writes down what became of a job. An answer comes back once it is committed, however long that takes.
    pub(super) fn ended(&self, job: JobId, pid: i32, exit: &Exit) -> oneshot::Receiver<()> {
        let (written, answer) = oneshot::channel();
        let ended = Ended {
            job,
            pid,
            exit: Box::new(exit.clone()),
            written,
        };
        let _ = self.0.send(Request::Write(Write::Ended(ended)));
        answer
    }

    /// Says which jobs an earlier gate has left: what became of any other that has no outcome, nobody will ever know.
    pub(super) fn known(&self, jobs: BTreeSet<JobId>) {
        let _ = self.0.send(Request::Write(Write::Known(jobs)));
    }

    /// The jobs of a user, the latest first.
    pub(super) fn list(&self, wanted: Wanted) -> oneshot::Receiver<Vec<Row>> {
        let (done, answer) = oneshot::channel();
        let _ = self.0.send(Request::List(wanted, done));
        answer
    }
}

fn serve(mut connection: Connection, requests: &Receiver<Request>, keep: Keep) {
    let mut since_clean = CLEAN_EVERY;
    let mut owed = Vec::new();
    loop {
        let wait = if owed.is_empty() {
            Duration::MAX
        } else {
            RETRY
        };
        let first = requests.recv_timeout(wait);
        let over = matches!(first, Err(RecvTimeoutError::Disconnected));
        let mut batch = Batch {
            writes: owed,
            ..Batch::default()
        };
        first.into_iter().for_each(|request| batch.take(request));
        let others = requests.try_iter().take(BATCH_MAX - 1);
        others.for_each(|request| batch.take(request));
        let ended = |write: &&Write| matches!(write, Write::Ended(_));
        let ended = batch.writes.iter().filter(ended).count();
        since_clean = since_clean.saturating_add(u64::try_from(ended).unwrap_or(0));
        owed = batch.serve(&mut connection);
        if since_clean >= CLEAN_EVERY {
            since_clean = 0;
            if let Err(error) = clean(&connection, keep) {
                tracing::warn!(%error, "old records cannot be removed");
            }
        }
        if over {
            return;
        }
    }
}

impl Write {
    /// It is committed.
    fn answer(self) {
        match self {
            Self::Asked(_, answer) => drop(answer.send(true)),
            Self::Ended(ended) => drop(ended.written.send(())),
            Self::Known(_) => {}
        }
    }

    /// Whether it is to be tried again where it could not be committed.
    fn is_owed(&self) -> bool {
        match self {
            // Without an answer nothing is started.
            Self::Asked(..) => false,
            // What nobody waits for has no owner.
            Self::Ended(ended) => !ended.written.is_closed(),
            Self::Known(_) => true,
        }
    }
}

/// What is asked for at the same time.
#[derive(Debug, Default)]
struct Batch {
    writes: Vec<Write>,
    lists: Vec<(Wanted, oneshot::Sender<Vec<Row>>)>,
}

impl Batch {
    fn take(&mut self, request: Request) {
        match request {
            Request::List(wanted, answer) => self.lists.push((wanted, answer)),
            Request::Write(write) => self.writes.push(write),
        }
    }

    /// Does it all, and answers; lists find what was asked for before. Gives what is owed still.
    fn serve(self, connection: &mut Connection) -> Vec<Write> {
        let written = self.write(connection);
        if let Err(error) = &written {
            tracing::error!(%error, "the record cannot be written");
        }
        let mut owed = Vec::new();
        for write in self.writes {
            match written {
                Ok(()) => write.answer(),
                Err(_) if write.is_owed() => owed.push(write),
                Err(_) => {}
            }
        }
        for (wanted, answer) in self.lists {
            match select(connection, &wanted) {
                Ok(rows) => drop(answer.send(rows)),
                Err(error) => tracing::error!(%error, "the record cannot be read"),
            }
        }
        owed
    }

    /// One transaction.
    fn write(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let transaction = connection.transaction()?;
        for write in &self.writes {
            match write {
                Write::Asked(asked, _) => insert(&transaction, asked)?,
                Write::Ended(ended) => update(&transaction, ended.job, ended.pid, &ended.exit)?,
                Write::Known(jobs) => close_others(&transaction, jobs)?,
            }
        }
        transaction.commit()
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
