//! Which job a person means: its id, or the beginning of it that no other job has.
//!
//! Owns the one rule for all commands that take a JOB, and what is said where the rule
//! gives no job or several. Names enter, rows of the server's list leave. It never
//! chooses between several.

use std::str::FromStr;

use bowline::client::{ClientError, Connection, Happening};
use bowline_proto::id::JobId;
use bowline_proto::message::{JobRow, List};

use super::jobs::{printable, state};
use crate::stderr::tell;

/// Hexadecimal digits of an id.
const ID_DIGITS: usize = 32;
/// So many jobs of one beginning are asked for, and shown, to a person who has to choose.
const CANDIDATES_MAX: usize = 10;
/// Of a server that does not know prefixes, which sends all of its list.
const ROWS_MAX: u32 = 10_000;

/// A JOB of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobName(String);

/// What is no JOB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job is named by 32 hexadecimal digits, or the first of them")]
pub(crate) struct NoJobName;

impl FromStr for JobName {
    type Err = NoJobName;

    fn from_str(text: &str) -> Result<Self, NoJobName> {
        let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
        if !digits || text.len() > ID_DIGITS {
            return Err(NoJobName);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl JobName {
    /// The id, where it is given in full.
    pub(crate) fn id(&self) -> Option<JobId> {
        self.0.parse().ok()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The one job among these that is meant.
    ///
    /// # Errors
    /// [`NotOne`].
    pub(crate) fn pick(&self, rows: Vec<JobRow>) -> Result<(JobId, JobRow), NotOne> {
        let named = |row: JobRow| Some((row.job?, row));
        let fits = |(id, _): &(JobId, JobRow)| id.to_string().starts_with(&self.0);
        let mut rows: Vec<_> = rows.into_iter().filter_map(named).filter(fits).collect();
        match (rows.len(), rows.pop()) {
            (1, Some(row)) => Ok(row),
            (_, None) => Err(NotOne::None),
            (_, Some(last)) => {
                rows.push(last);
                Err(NotOne::Several(rows))
            }
        }
    }
}

/// Why a name gives no job.
#[derive(Clone, Debug)]
pub(crate) enum NotOne {
    None,
    Several(Vec<(JobId, JobRow)>),
}

impl NotOne {
    /// Says so, with the jobs to choose from; `what` they are is looked for.
    pub(crate) fn tell(&self, target: &str, name: &JobName, what: &str) {
        let name = name.as_str();
        match self {
            Self::None => {
                tell!("bowline: {target}: {name}: no {what} has an id like this [no_such_job]");
            }
            Self::Several(rows) => {
                tell!(
                    "bowline: {target}: {name}: several jobs have an id like this; give more of it [ambiguous_job]"
                );
                for (id, row) in rows.iter().take(CANDIDATES_MAX) {
                    let state = state(row.outcome.as_ref());
                    tell!("  {id}  {state}  {}", printable(&row.command));
                }
                if rows.len() > CANDIDATES_MAX {
                    tell!("  and {} more", rows.len() - CANDIDATES_MAX);
                }
            }
        }
    }
}

/// Asks a server which job each name means: those that run, and with `ended` those that are over.
///
/// # Errors
/// [`ClientError`]; the connection is over.
pub(crate) async fn find(
    connection: &mut Connection,
    names: &[JobName],
    ended: bool,
) -> Result<Vec<Result<(JobId, JobRow), NotOne>>, ClientError> {
    let mut found = Vec::new();
    // One at a time: a server answers only a few lists at once.
    for name in names {
        let list = List {
            ended,
            count: ROWS_MAX,
            job: Some(name.as_str().to_owned()),
        };
        found.push(name.pick(rows(connection, &list).await?));
    }
    Ok(found)
}

/// The job that one name means, also one that is over; `None` where it means none, which is said.
///
/// # Errors
/// As [`find`].
pub(crate) async fn find_one(
    connection: &mut Connection,
    target: &str,
    name: &JobName,
) -> Result<Option<JobId>, ClientError> {
    let found = find(connection, std::slice::from_ref(name), true).await?;
    Ok(found.into_iter().next().and_then(|found| match found {
        Ok((job, _)) => Some(job),
        Err(not_one) => {
            not_one.tell(target, name, "job of yours");
            None
        }
    }))
}

/// All rows of a list.
///
/// # Errors
/// [`ClientError`]; the connection is over.
pub(crate) async fn rows(
    connection: &mut Connection,
    list: &List,
) -> Result<Vec<JobRow>, ClientError> {
    connection.list(list);
    let mut rows = Vec::new();
    loop {
        if let Happening::Jobs(jobs) = connection.next().await? {
            rows.extend(jobs.jobs);
            if !jobs.more {
                return Ok(rows);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_digits_of_an_id() {
        for text in ["a", "0123456789ABCDEFabcdef", &"f".repeat(32)] {
            let name: JobName = text.parse().unwrap();
            assert_eq!(name.as_str(), text.to_ascii_lowercase());
        }
        for text in ["", "g", "-1", "0x1", "a b", "é", &"f".repeat(33)] {
            assert_eq!(text.parse::<JobName>(), Err(NoJobName), "{text:?}");
        }
    }

    #[test]
    fn a_whole_id_needs_no_list() {
        let whole: JobName = "AB".repeat(16).parse().unwrap();
        assert_eq!(whole.id(), Some(JobId::from_bytes([0xab; 16])));
        assert_eq!("ab".parse::<JobName>().unwrap().id(), None);
    }

    #[test]
    fn one_job_is_meant_or_none() {
        let row = |byte: u8| JobRow {
            job: Some(JobId::from_bytes([byte; 16])),
            ..JobRow::default()
        };
        let rows = || vec![row(0x12), row(0x13), row(0x23)];
        let pick = |text: &str| text.parse::<JobName>().unwrap().pick(rows());
        assert_eq!(pick("2").unwrap().0, JobId::from_bytes([0x23; 16]));
        assert_eq!(pick("131").unwrap().0, JobId::from_bytes([0x13; 16]));
        assert!(matches!(pick("1"), Err(NotOne::Several(jobs)) if jobs.len() == 2));
        assert!(matches!(pick("3"), Err(NotOne::None)));
        assert!(matches!(pick("1213"), Err(NotOne::None)));
    }
}
