//! The one table of the record: what is written to it and read from it, in SQL.

use std::collections::BTreeSet;

use bowline_proto::id::JobId;
use bowline_proto::message::Exit;
use bowline_proto::outcome::{Happened, Outcome};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Asked, Keep, Row, Wanted};

pub(super) const SCHEMA: &str = "
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

/// A gate that is killed between its record and the keeper leaves an entry that nobody else knows of.
pub(super) fn close_others(
    connection: &Connection,
    known: &BTreeSet<JobId>,
) -> rusqlite::Result<()> {
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

pub(super) fn insert(connection: &Connection, asked: &Asked) -> rusqlite::Result<()> {
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

pub(super) fn update(
    connection: &Connection,
    job: JobId,
    pid: i32,
    exit: &Exit,
) -> rusqlite::Result<()> {
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

pub(super) fn select(connection: &Connection, wanted: &Wanted) -> rusqlite::Result<Vec<Row>> {
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
pub(super) fn clean(connection: &Connection, keep: Keep) -> rusqlite::Result<()> {
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
