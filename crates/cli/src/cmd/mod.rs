//! The commands, a file each: what their flags are and what they do.

pub(crate) mod attach;
pub(crate) mod authorize;
pub(crate) mod completions;
pub(crate) mod cp;
pub(crate) mod dial;
pub(crate) mod forget;
pub(crate) mod job_name;
pub(crate) mod jobs;
mod keepalive;
pub(crate) mod keygen;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod ping;
pub(crate) mod plain;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod session;
pub(crate) mod shell;
pub(crate) mod time;
pub(crate) mod trust;
pub(crate) mod wait;
