//! What the programs are told from outside: files, flags, defaults.
//!
//! Text enters from TOML files and the command line; checked values leave,
//! with every key that was not given at its default. Nothing is guessed: an
//! unknown key is an error with its file, its line and what was probably meant.

mod client;
mod file;
mod flags;
mod gate;
mod machine;
mod server;
mod server_file;
mod show;

pub(crate) use client::{ClientConfig, HostSettings, OnDisconnect, Spool, Trust};
pub(crate) use file::{ConfigError, Milliseconds, read_required};
pub(crate) use flags::ServeFlags;
pub(crate) use gate::GateConfig;
pub(crate) use machine::session_dirs;
pub(crate) use server::{DEFAULT_PORT, ServerConfig};
