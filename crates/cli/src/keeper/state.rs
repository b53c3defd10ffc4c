//! All that a keeper hands to the program that replaces it, as data with a version.
//!
//! The descriptors stay open under their numbers: the successor is the same
//! process. It reads its own version and those before it that are listed in
//! [`KeeperState::decode`]; any other is refused, and as the successor is asked
//! before it is executed, that costs nobody anything.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;

use bowline_proto::id::JobId;
use serde::{Deserialize, Serialize};

use super::journal::JobImage;
use crate::ipc::{Cause, Stdin, Stream};

/// The version of [`KeeperState`]; raised with every change of it or of what it contains.
pub(crate) const VERSION: u16 = 3;

/// Makes a descriptor one that stays open when the next program is executed, and
/// tells its number.
pub(crate) type Pass<'a, 'b> = dyn FnMut(BorrowedFd<'a>) -> io::Result<RawFd> + 'b;

/// A keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeeperState {
    /// The release that wrote it, for the log.
    pub(crate) software: String,
    /// The file that the program is started from, and replaced at.
    pub(crate) program: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// How many gates it has started.
    pub(crate) generation: u64,
    /// Limits and mask as the first program of this process was started with.
    pub(crate) nofile: (u64, u64),
    pub(crate) umask: u32,
    /// The lock of the state directory.
    pub(crate) lock: RawFd,
    /// The socket in the state directory.
    pub(crate) takeover: RawFd,
    pub(crate) lifeline: Option<RawFd>,
    /// The listening sockets with their addresses.
    pub(crate) listeners: Vec<(String, RawFd)>,
    /// The files of Unix sockets that are removed at the end.
    pub(crate) socket_files: Vec<SocketFile>,
    pub(crate) cgroups: CgroupsState,
    /// What the journal says: jobs that are not released, and those that lately were.
    pub(crate) journal: Vec<JobImage>,
    pub(crate) recent: Vec<(u32, JobId)>,
    pub(crate) jobs: Vec<JobState>,
}

/// A Unix socket's file that the server made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketFile {
    pub(crate) path: PathBuf,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// The place of the cgroups, and those that no job has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupsState {
    pub(crate) place: Option<PlaceState>,
    pub(crate) made: u64,
    pub(crate) lingering: Vec<CgroupState>,
}

/// The keeper's folder of cgroups and the descriptor that holds its lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlaceState {
    pub(crate) path: PathBuf,
    pub(crate) lock: RawFd,
}

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupState {
    pub(crate) folder: RawFd,
    pub(crate) path: PathBuf,
    pub(crate) killed: bool,
    /// An earlier keeper's: no other job gets it.
    pub(crate) foreign: bool,
}

/// A job that is not released. What else there is to know is in the journal's image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobState {
    pub(crate) job: JobId,
    pub(crate) pid: i32,
    /// The main process is a child of this process.
    pub(crate) ours: bool,
    pub(crate) fingerprint: u64,
    pub(crate) stdin: Stdin,
    /// Why it is being made to end.
    pub(crate) cause: Option<Cause>,
    /// Until the main process is reaped.
    pub(crate) pidfd: Option<RawFd>,
    /// Until it has executed its program: the pipe that says so, and what it has said.
    pub(crate) starting: Option<(RawFd, Vec<u8>)>,
    /// The ends of stdin, stdout and stderr that are open.
    pub(crate) pipes: [Option<RawFd>; 3],
    /// The memfds of its streams.
    pub(crate) spools: Vec<(Stream, RawFd)>,
    /// The master of its terminal, and the ends of pipes that it is joined to.
    pub(crate) terminal: Vec<RawFd>,
    pub(crate) cgroup: Option<CgroupState>,
    /// Processes that were seen to belong to it: pid and start time.
    pub(crate) seen: Vec<(i32, u64)>,
    /// When it is to be ended and when killed, on the clock that counts from the boot.
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) kill_ms: Option<u64>,
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
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let (version, rest) = bytes.split_first_chunk().ok_or(StateError::Damaged)?;
        match u16::from_le_bytes(*version) {
            // Versions 1 and 2 were never handed on by any release.
            VERSION => postcard::from_bytes(rest).map_err(|_| StateError::Damaged),
            other => Err(StateError::Version(other)),
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
