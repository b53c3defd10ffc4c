//! The configuration of `bowline serve`: what the file, the flags and the
//! defaults say together.

use std::path::PathBuf;

use super::GateConfig;

/// Everything that a keeper is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerConfig {
    /// Where to listen, e.g. `tcp://[::]:7322` or `unix:/run/bowline/bowline.sock`.
    pub(crate) listen: Vec<String>,
    /// The Ed25519 host key in OpenSSH's format; made where it is missing.
    pub(crate) host_key: PathBuf,
    /// The keeper's own folder: journal, takeover socket. Mode 0700.
    pub(crate) state_dir: PathBuf,
    /// bowline's own grant file; `%u` stands for the user, `%h` for the home.
    pub(crate) authorized_keys: PathBuf,
    /// Whether `~/.ssh/authorized_keys` of the user counts too.
    pub(crate) ssh_authorized_keys: bool,
    /// Jobs run as the account that the server runs as, and as no other. Always
    /// so for a server that is not root's, over stdio, and for the target `local`.
    pub(crate) own_user_only: bool,
    /// As root: the users that may be asked for; empty is none.
    pub(crate) allow_users: Vec<String>,
    /// As root: whether accounts count whose password is locked with `!`, as
    /// cloud images make them.
    pub(crate) allow_locked_accounts: bool,
    /// Files of shared secrets: the user it lets in, and the file.
    pub(crate) secrets: Vec<(String, PathBuf)>,
    /// As root: the account that the gate runs as.
    pub(crate) gate_user: Option<String>,
    /// Live jobs in all.
    pub(crate) jobs_max: u32,
    /// Between the first signal and SIGKILL when a tree is ended.
    pub(crate) kill_grace_ms: u64,
    /// How long SIGTERM lets running jobs go on.
    pub(crate) drain_ms: u64,
    /// The gate's part.
    pub(crate) gate: GateConfig,
}
