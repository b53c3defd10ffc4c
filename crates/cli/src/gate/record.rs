//! The record: every job in one SQLite file, written before it starts.
//!
//! One thread owns the file. What several workers ask for at the same time is
//! one transaction, so the cost of a commit is shared (WAL,
//! synchronous=NORMAL: it survives the death of processes, not of power).
//!
//! Where the file cannot be written, nothing is started, and what became of a job that ran is
//! owed to the record until it can: its owner keeps the job with the keeper as long.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bowline_proto::id::JobId;
use bowline_proto::message::Exit;
use bowline_proto::outcome::{Happened, Outcome};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

/// Requests that may wait for the thread; more make the askers wait.
const QUEUE_MAX: usize = 1024;
/// Requests in one transaction.
const BATCH_MAX: usize = 256;
/// After so many ended jobs the old ones are looked for.
const CLEAN_EVERY: u64 = 256;
/// A file that could not be written is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS jobs (
    id BLOB NOT NULL PRIMARY KEY,
    user TEXT NOT NULL,
    proof TEXT NOT NULL,
    source TEXT NOT NULL,
    command TEXT NOT NULL,
    cwd TEXT,
    asked_ms INTEGER NOT NULL,
    pid INTEGER,
    started_ms INTEGER,
    ended_ms INTEGER,
    outcome TEXT,
    code INTEGER,
    signal INTEGER,
    core_dumped INTEGER,
    kill TEXT,
    error TEXT,
    stdin_bytes INTEGER,
    stdout_bytes INTEGER,
    stderr_bytes INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (asked_ms);
";

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

/// A gate that is killed between its record and the keeper leaves an entry that nobody else knows of.
fn close_others(connection: &Connection, known: &BTreeSet<JobId>) -> rusqlite::Result<()> {
    let mut open = connection.prepare("SELECT id FROM jobs WHERE outcome IS NULL")?;
    let ids = open.query_map([], |row| row.get(0).map(JobId::from_bytes))?;
    let ids: Vec<JobId> = ids.collect::<rusqlite::Result<_>>()?;
    for job in ids.into_iter().filter(|job| !known.contains(job)) {
        tracing::warn!(%job, "nobody knows what became of a job in the record");
        connection
            .prepare_cached("UPDATE jobs SET outcome = 'lost' WHERE id = ?1")?
            .execute([job.as_bytes()])?;
    }
    Ok(())
}

fn insert(connection: &Connection, asked: &Asked) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO jobs (id, user, proof, source, command, cwd, asked_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET outcome = NULL, error = NULL, ended_ms = NULL,
                 source = excluded.source, asked_ms = excluded.asked_ms
             WHERE user = excluded.user AND (pid = 0 AND outcome IN ('cancelled', 'refused')
                 OR pid IS NULL AND outcome = 'lost')",
        )?
        .execute(params![
            asked.job.as_bytes(),
            asked.user,
            asked.proof,
            asked.source,
            asked.command,
            asked.cwd,
            signed(asked.unix_ms),
        ])
        .map(drop)
}

fn update(connection: &Connection, job: JobId, pid: i32, exit: &Exit) -> rusqlite::Result<()> {
    let outcome = &exit.outcome;
    let kill = outcome.kill.map(|kill| match kill {
        bowline_proto::outcome::Kill::Exact => "exact",
        bowline_proto::outcome::Kill::BestEffort => "best_effort",
    });
    connection
        .prepare_cached(
            "UPDATE jobs SET pid = ?2, started_ms = ?3, ended_ms = ?4, outcome = ?5, code = ?6,
                 signal = ?7, core_dumped = ?8, kill = ?9, error = ?10,
                 stdin_bytes = ?11, stdout_bytes = ?12, stderr_bytes = ?13
             WHERE id = ?1 AND outcome IS NULL",
        )?
        .execute(params![
            job.as_bytes(),
            pid,
            outcome.started_ms.map(signed),
            outcome.ended_ms.map(signed),
            outcome.outcome.as_str(),
            outcome.code,
            outcome.signal,
            outcome.core_dumped,
            kill,
            outcome.error,
            signed(exit.stdin),
            signed(exit.stdout),
            signed(exit.stderr),
        ])
        .map(drop)
}

fn select(connection: &Connection, wanted: &Wanted) -> rusqlite::Result<Vec<Row>> {
    let Some([first, last]) = ids_of(&wanted.prefix) else {
        return Ok(Vec::new());
    };
    // All of them are found by their time: `+` keeps SQLite from sorting the whole table instead.
    let id = if wanted.prefix.is_empty() {
        "+id"
    } else {
        "id"
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, user, proof, source, substr(command, 1, 300), NULL, asked_ms, pid, started_ms, ended_ms,
                outcome, code, signal, core_dumped, error
         FROM jobs WHERE user = ?1 AND (?2 OR outcome IS NULL) AND {id} BETWEEN ?4 AND ?5
         ORDER BY asked_ms DESC LIMIT ?3",
    ))?;
    let Wanted {
        user, ended, count, ..
    } = wanted;
    let rows = statement.query_map(params![user, ended, count, first, last], row)?;
    rows.collect()
}

/// The first and the last of the ids that begin with these digits; `None` where no id does.
fn ids_of(prefix: &str) -> Option<[[u8; 16]; 2]> {
    let filled = |digit: char| {
        let digits = prefix.chars().chain(std::iter::repeat(digit)).take(32);
        let id = digits.collect::<String>().parse::<JobId>().ok()?;
        Some(*id.as_bytes())
    };
    if prefix.len() > 32 {
        return None;
    }
    Some([filled('0')?, filled('f')?])
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    let word: Option<String> = row.get(10)?;
    let outcome = match word {
        None => None,
        Some(word) => Some(Outcome {
            outcome: happened(&word),
            code: row.get(11)?,
            signal: row.get(12)?,
            core_dumped: row.get::<_, Option<bool>>(13)?.unwrap_or(false),
            kill: None,
            started_ms: row.get::<_, Option<i64>>(8)?.map(unsigned),
            ended_ms: row.get::<_, Option<i64>>(9)?.map(unsigned),
            error: row.get(14)?,
            message: None,
        }),
    };
    Ok(Row {
        asked: Asked {
            job: JobId::from_bytes(row.get(0)?),
            user: row.get(1)?,
            proof: row.get(2)?,
            source: row.get(3)?,
            command: row.get(4)?,
            cwd: row.get(5)?,
            unix_ms: unsigned(row.get(6)?),
        },
        pid: row.get::<_, Option<i32>>(7)?.unwrap_or(0),
        outcome,
    })
}

/// A word that this version does not know was written by a later one.
fn happened(word: &str) -> Happened {
    serde_json::from_value(serde_json::Value::from(word)).unwrap_or(Happened::Lost)
}

/// Removes what is over the limits; jobs that run stay.
fn clean(connection: &Connection, keep: Keep) -> rusqlite::Result<()> {
    let latest: Option<i64> = connection
        .query_row("SELECT max(asked_ms) FROM jobs", [], |row| row.get(0))
        .optional()?
        .flatten();
    let Some(latest) = latest else {
        return Ok(());
    };
    connection.execute(
        "DELETE FROM jobs WHERE outcome IS NOT NULL AND (asked_ms < ?1 OR asked_ms <=
             (SELECT asked_ms FROM jobs ORDER BY asked_ms DESC LIMIT 1 OFFSET ?2))",
        params![
            latest.saturating_sub(signed(keep.age_ms)),
            signed(keep.jobs_max)
        ],
    )?;
    Ok(())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(number: u8, unix_ms: u64) -> Asked {
        Asked {
            job: JobId::from_bytes([number; 16]),
            user: "alice".to_owned(),
            proof: "SHA256:x".to_owned(),
            source: "127.0.0.1:1".to_owned(),
            command: "true".to_owned(),
            cwd: None,
            unix_ms,
        }
    }

    fn wanted(user: &str, ended: bool, count: u32) -> Wanted {
        Wanted {
            user: user.to_owned(),
            ended,
            count,
            prefix: String::new(),
        }
    }

    #[test]
    fn a_prefix_names_the_ids_that_begin_so() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep {
            jobs_max: 300,
            age_ms: 1 << 40,
        };
        let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
        for number in 0..=255 {
            recorder.asked(asked(number, u64::from(number)));
        }
        let fits = |prefix: &str| {
            let wanted = Wanted {
                prefix: prefix.to_owned(),
                ..wanted("alice", true, 1000)
            };
            recorder.list(wanted).blocking_recv().unwrap().len()
        };
        let whole = "ab".repeat(16);
        let longer = format!("{whole}a");
        for (prefix, count) in [
            ("", 256),
            ("a", 16),
            ("ab", 1),
            ("AB", 1),
            ("aba", 1),
            ("abc", 0),
            ("f", 16),
            ("0", 16),
            (&whole, 1),
            (&longer, 0),
            ("x", 0),
            ("é", 0),
        ] {
            assert_eq!(fits(prefix), count, "{prefix:?}");
        }
        drop(recorder);
        thread.join().unwrap();
    }

    #[test]
    fn a_job_is_there_before_its_outcome_and_survives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep {
            jobs_max: 10,
            age_ms: 1 << 40,
        };
        let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
        assert!(recorder.asked(asked(1, 5)).blocking_recv().unwrap());
        assert!(recorder.asked(asked(2, 6)).blocking_recv().unwrap());
        let exit = Exit {
            outcome: Outcome {
                outcome: Happened::Exited,
                code: Some(3),
                ..Outcome::default()
            },
            stdout: 7,
            ..Exit::default()
        };
        recorder.ended(JobId::from_bytes([1; 16]), 42, &exit);
        drop(recorder);
        thread.join().unwrap();

        let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
        let live = recorder
            .list(wanted("alice", false, 10))
            .blocking_recv()
            .unwrap();
        assert_eq!(live.len(), 1);
        assert_eq!(live[0].asked.job, JobId::from_bytes([2; 16]));
        let all = recorder
            .list(wanted("alice", true, 10))
            .blocking_recv()
            .unwrap();
        assert_eq!(all.len(), 2);
        let ended = all[1].outcome.as_ref().unwrap();
        assert_eq!((ended.outcome, ended.code), (Happened::Exited, Some(3)));
        assert_eq!(all[1].pid, 42);
        let others = recorder
            .list(wanted("bob", true, 10))
            .blocking_recv()
            .unwrap();
        assert!(others.is_empty());
        drop(recorder);
        thread.join().unwrap();
    }

    #[test]
    fn what_never_ran_may_be_asked_for_again_and_what_ran_stays() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep {
            jobs_max: 10,
            age_ms: 1 << 40,
        };
        let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
        let cancelled = Exit {
            outcome: Outcome::failed(Happened::Cancelled, "disconnected", "never started"),
            ..Exit::default()
        };
        for (number, pid) in [(1, 0), (2, 42)] {
            recorder.asked(asked(number, 5));
            recorder.ended(JobId::from_bytes([number; 16]), pid, &cancelled);
            recorder.asked(asked(number, 6));
        }
        let live = recorder
            .list(wanted("alice", false, 10))
            .blocking_recv()
            .unwrap();
        let live: Vec<_> = live
            .iter()
            .map(|row| (row.asked.job, row.asked.unix_ms))
            .collect();
        assert_eq!(live, [(JobId::from_bytes([1; 16]), 6)]);
        drop(recorder);
        thread.join().unwrap();
    }

    #[test]
    fn what_nobody_knows_of_is_lost_until_it_is_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep {
            jobs_max: 10,
            age_ms: 1 << 40,
        };
        let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
        for number in 1..=4 {
            recorder.asked(asked(number, u64::from(number)));
        }
        let exit = |happened| Exit {
            outcome: Outcome {
                outcome: happened,
                ..Outcome::default()
            },
            ..Exit::default()
        };
        let id = |number| JobId::from_bytes([number; 16]);
        // A process that was there and was lost is not started again.
        let written = recorder.ended(id(4), 42, &exit(Happened::Lost));
        written.blocking_recv().unwrap();
        recorder.known(BTreeSet::from([id(1)]));
        recorder.asked(asked(3, 5));
        recorder.asked(asked(4, 6));
        recorder.ended(id(3), 43, &exit(Happened::Exited));
        let wanted = wanted("alice", true, 10);
        let rows = recorder.list(wanted).blocking_recv().unwrap();
        let happened = |row: Row| (row.asked.unix_ms, row.outcome.map(|it| it.outcome));
        let rows: Vec<_> = rows.into_iter().map(happened).collect();
        let expected = [
            (5, Some(Happened::Exited)),
            (4, Some(Happened::Lost)),
            (2, Some(Happened::Lost)),
            (1, None),
        ];
        assert_eq!(rows, expected);
        drop(recorder);
        thread.join().unwrap();
    }

    #[test]
    fn only_the_latest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep {
            jobs_max: 10,
            age_ms: 1 << 40,
        };
        let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
        let exit = Exit::default();
        for number in 0..=255 {
            recorder.asked(asked(number, u64::from(number)));
            recorder.ended(JobId::from_bytes([number; 16]), 1, &exit);
        }
        drop(recorder);
        thread.join().unwrap();
        let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
        // The first batch after the start cleans what an earlier process left.
        recorder.ended(JobId::from_bytes([0; 16]), 1, &exit);
        let rows = loop {
            let rows = recorder
                .list(wanted("alice", true, 1000))
                .blocking_recv()
                .unwrap();
            if rows.len() <= 10 {
                break rows;
            }
        };
        assert_eq!(rows.len(), 10);
        assert_eq!(rows[0].asked.job, JobId::from_bytes([255; 16]));
        drop(recorder);
        thread.join().unwrap();
    }
}
