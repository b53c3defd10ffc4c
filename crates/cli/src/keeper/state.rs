//! All that a keeper would hand to its successor, as data with a version.
//!
//! Descriptors travel beside it, in the order of the jobs: the ends of each
//! job's streams as its snapshot lists them. A successor that does not know the
//! version leaves the jobs alone.

use serde::{Deserialize, Serialize};

use super::journal::KeeperRecord;
use crate::ipc::{Cause, JobSnapshot};

/// The version of [`KeeperState`]; raised with every change of it or of what it contains.
pub(crate) const VERSION: u16 = 1;

/// A keeper, without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeeperState {
    pub(crate) keeper: KeeperRecord,
    /// How many gates it has started.
    pub(crate) generation: u64,
    pub(crate) jobs: Vec<JobState>,
}

/// A job that is not released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobState {
    pub(crate) snapshot: JobSnapshot,
    /// Tells its pid from later ones, in clock ticks since the boot.
    pub(crate) started: Option<u64>,
    pub(crate) deadline_unix_ms: Option<u64>,
    /// Why it is being made to end.
    pub(crate) cause: Option<Cause>,
}

/// Bytes that are no state that this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StateError {
    /// Another version of bowline wrote it.
    #[error("the state has version {0}, this program knows version {VERSION}")]
    Version(u16),
    /// It is damaged.
    #[error("the state is damaged")]
    Damaged,
}

impl KeeperState {
    /// The version, then postcard of the rest.
    ///
    /// # Errors
    /// [`StateError::Damaged`] where it cannot be encoded.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, StateError> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        bytes.extend(postcard::to_stdvec(self).map_err(|_| StateError::Damaged)?);
        Ok(bytes)
    }

    /// Reads what [`KeeperState::encode`] wrote.
    ///
    /// # Errors
    /// [`StateError`].
    #[cfg_attr(not(test), expect(dead_code, reason = "the takeover reads it"))]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let (version, rest) = bytes.split_first_chunk().ok_or(StateError::Damaged)?;
        match u16::from_le_bytes(*version) {
            VERSION => postcard::from_bytes(rest).map_err(|_| StateError::Damaged),
            other => Err(StateError::Version(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_from_damage() {
        let state = KeeperState {
            keeper: KeeperRecord {
                version: 1,
                pid: 2,
                boot_id: "boot".to_owned(),
                unix_ms: 3,
            },
            generation: 4,
            jobs: Vec::new(),
        };
        let mut bytes = state.encode().unwrap();
        assert_eq!(KeeperState::decode(&bytes), Ok(state));
        assert_eq!(KeeperState::decode(&bytes[..3]), Err(StateError::Damaged));
        assert_eq!(KeeperState::decode(&[]), Err(StateError::Damaged));
        bytes[0] = 9;
        assert_eq!(KeeperState::decode(&bytes), Err(StateError::Version(9)));
    }
}
