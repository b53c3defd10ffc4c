//! Whom a connection is let in as, and what that account is: the seam between
//! the keeper's loop and the code that reads passwd, keys and secrets.

use std::ffi::CString;
use std::path::PathBuf;

use bowline_proto::auth::{Binding, Proof};
use bowline_proto::id::JobId;
use rustix::process::{Gid, Uid};

use crate::ipc::{DenyCode, Grant, JobSpec, Source};

/// An account of this machine, looked up before any fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// Its name in passwd.
    pub(crate) name: String,
    pub(crate) uid: u32,
    /// Its primary group.
    pub(crate) gid: u32,
    /// Its supplementary groups, the primary one among them.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
    /// `/bin/sh` where passwd has none.
    pub(crate) shell: PathBuf,
}

/// What a connection asks to be let in as.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// The user's name; empty means the user that a rootless keeper runs as,
    /// or the user of the Unix socket's other end.
    pub(crate) user: &'a str,
    pub(crate) source: &'a Source,
    pub(crate) binding: &'a Binding,
    pub(crate) protocol: &'a str,
    pub(crate) proofs: &'a [Proof],
    /// The other end of a Unix socket, as SO_PEERCRED tells; of stdio, the keeper's own.
    pub(crate) peer: Option<(Uid, Gid)>,
    pub(crate) now_unix: u64,
}

/// A connection that is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) account: Account,
    /// For the record: `SHA256:…`, `secret` or `peer`.
    pub(crate) proof: String,
    pub(crate) grant: Grant,
    /// The text of `command=`, which the user's shell runs instead.
    pub(crate) forced_command: Option<Vec<u8>>,
    /// `environment=` of the grant line, each `NAME=value`.
    pub(crate) environment: Vec<Vec<u8>>,
    /// With the shared secret: the server's own proof.
    pub(crate) server_mac: Option<[u8; 32]>,
}

/// Decides, and describes accounts. The keeper's loop holds one.
pub(crate) trait Policy {
    /// Decides the proofs of one connection: the first that is good counts.
    ///
    /// # Errors
    /// [`DenyCode`], for the log alone.
    fn decide(&self, asked: &Asked<'_>) -> Result<Decision, DenyCode>;

    /// The whole environment of a job, each `NAME=value`.
    fn environment(&self, decision: &Decision, spec: &JobSpec, job: JobId) -> Vec<CString>;
}
