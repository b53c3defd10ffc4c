//! The keys of `server.toml`, as they are written; docs/server.toml explains each.

use std::path::PathBuf;

use serde::Deserialize;

use super::file::Milliseconds;

/// The file as a whole. What is absent has its default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerFile {
    pub(super) listen: Option<Vec<String>>,
    pub(super) host_key: Option<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) authorized_keys: Option<PathBuf>,
    pub(super) ssh_authorized_keys: Option<bool>,
    pub(super) own_user_only: Option<bool>,
    pub(super) allow_users: Option<Vec<String>>,
    pub(super) allow_locked_accounts: Option<bool>,
    pub(super) gate_user: Option<String>,
    pub(super) kill_grace: Option<Milliseconds>,
    pub(super) drain: Option<Milliseconds>,
    #[serde(default)]
    pub(super) secret: Vec<SecretEntry>,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) record: Record,
    #[serde(default)]
    pub(super) spool: Spool,
}

/// `[[secret]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretEntry {
    pub(super) user: String,
    pub(super) file: PathBuf,
}

/// `[limits]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) workers: Option<u16>,
    pub(super) jobs_max: Option<u32>,
    pub(super) connections_max: Option<u32>,
    pub(super) connections_per_address_max: Option<u32>,
    pub(super) handshakes_max: Option<u32>,
    pub(super) jobs_per_connection_max: Option<u32>,
    pub(super) jobs_per_user_max: Option<u32>,
    pub(super) auth_timeout: Option<Milliseconds>,
    pub(super) idle_timeout: Option<Milliseconds>,
    pub(super) output_wait: Option<Milliseconds>,
    pub(super) grace: Option<Milliseconds>,
    pub(super) grace_max: Option<Milliseconds>,
}

/// `[record]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) dir: Option<PathBuf>,
    pub(super) jobs_max: Option<u64>,
    pub(super) age: Option<Milliseconds>,
}

/// `[spool]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spool {
    pub(super) dir: Option<PathBuf>,
    pub(super) stream_bytes_max: Option<u64>,
    pub(super) bytes_max: Option<u64>,
    pub(super) keep_for: Option<Milliseconds>,
    pub(super) keep_bytes_max: Option<u64>,
}
