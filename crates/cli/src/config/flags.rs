//! The flags of `bowline serve`. A flag replaces what the file says.

use std::path::PathBuf;
use std::time::Duration;

// No doc comment: clap would have the command say that of itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ServeFlags {
    /// Listen on HOST:PORT or unix:PATH (may be given again)
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Vec<String>,
    /// Read this configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Let in the keys of this file, and not those of ~/.ssh/authorized_keys
    #[arg(long, value_name = "FILE")]
    pub(crate) authorized_keys: Option<PathBuf>,
    /// Show this Ed25519 host key; it is made where it is missing
    #[arg(long, value_name = "FILE")]
    pub(crate) host_key: Option<PathBuf>,
    /// Keep the journal and the record here
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// As root: let this user be asked for (may be given again)
    #[arg(long, value_name = "USER")]
    pub(crate) allow_user: Vec<String>,
    /// Check the configuration, print what is in force, and leave
    #[arg(long)]
    pub(crate) check: bool,
    /// Serve a session on standard input and output, by a server of this user that stays while it has jobs
    #[arg(long, conflicts_with = "listen")]
    pub(crate) stdio: bool,
    /// End when standard input does; read no file, leave no state behind
    #[arg(long, hide = true, conflicts_with_all = ["stdio", "config"])]
    pub(crate) lifeline: bool,
    /// End when nobody was connected and nothing ran for this time; serve this account alone
    #[arg(long, value_name = "TIME", hide = true, value_parser = crate::duration::parse)]
    pub(crate) until_idle: Option<Duration>,
    /// Go on with what an earlier program of this process has left in this descriptor
    #[arg(long, value_name = "FD", hide = true)]
    pub(crate) successor: Option<i32>,
    /// Leave the state directory behind
    #[arg(long, hide = true, requires = "lifeline")]
    pub(crate) keep_state: bool,
    /// Threads that serve connections
    #[arg(long, value_name = "N", hide = true)]
    pub(crate) workers: Option<u16>,
}
