//! The part of the configuration that the gate needs, sent to it by the keeper.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Limits and places of the gate. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GateConfig {
    /// Threads that serve connections.
    pub(crate) workers: u16,
    /// The folder of the gate's own files (the SQLite record); it belongs to the gate's uid.
    pub(crate) record_dir: PathBuf,
    /// Connections in all.
    pub(crate) connections_max: u32,
    /// Connections from one address.
    pub(crate) connections_per_address_max: u32,
    /// Connections that have not authenticated yet, in all.
    pub(crate) handshakes_max: u32,
    /// Channels with a job on one connection.
    pub(crate) jobs_per_connection_max: u32,
    /// Live jobs of one user, over all connections. The keeper enforces it too.
    pub(crate) jobs_per_user_max: u32,
    /// From accept to a granted authentication.
    pub(crate) auth_timeout_ms: u64,
    /// Without a frame in either direction and without a live job; 0 is never.
    pub(crate) idle_timeout_ms: u64,
    /// How long the pipes may stay open after the main process ended.
    pub(crate) output_wait_ms: u64,
    /// How long a job waits for its client to come back, where the client does not say.
    pub(crate) grace_ms: u64,
    /// How long it waits at most.
    pub(crate) grace_max_ms: u64,
    /// Records of ended jobs that are kept.
    pub(crate) record_jobs_max: u64,
    /// Records older than this are removed.
    pub(crate) record_age_ms: u64,
    pub(crate) spool: SpoolConfig,
}

/// Where the output of detached jobs lies, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpoolConfig {
    /// Their folder; it belongs to the gate's uid.
    pub(crate) dir: PathBuf,
    /// Of each stream of a job, in bytes.
    pub(crate) stream_bytes_max: u64,
    /// Of all jobs that have not ended, in bytes.
    pub(crate) bytes_max: u64,
    /// How long output and outcome of an ended job are kept.
    pub(crate) keep_ms: u64,
    /// Of all ended jobs, in bytes; the oldest go first.
    pub(crate) keep_bytes_max: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            stream_bytes_max: 256 * 1024 * 1024,
            bytes_max: 8 * 1024 * 1024 * 1024,
            keep_ms: 7 * 24 * 3_600_000,
            keep_bytes_max: 8 * 1024 * 1024 * 1024,
        }
    }
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, |n| n.get().min(8)) as u16,
            record_dir: PathBuf::new(),
            connections_max: 10_000,
            connections_per_address_max: 2_000,
            handshakes_max: 500,
            jobs_per_connection_max: 256,
            jobs_per_user_max: 4_096,
            auth_timeout_ms: 20_000,
            idle_timeout_ms: 0,
            output_wait_ms: 250,
            grace_ms: 10 * 60_000,
            grace_max_ms: 24 * 3_600_000,
            record_jobs_max: 100_000,
            record_age_ms: 30 * 24 * 3_600_000,
            spool: SpoolConfig::default(),
        }
    }
}
