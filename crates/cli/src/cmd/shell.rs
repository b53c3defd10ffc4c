//! `bowline shell`: the account's login shell on another machine, at a terminal.

use std::ffi::OsString;
use std::process::ExitCode;

use super::dial::ConnectFlags;
use super::run::{DetachFlags, PatienceFlags, RunFlags, login};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShellFlags {
    #[arg(
        help = "The machine: [user@]host[:port], unix:PATH, ssh:[user@]host, a configured name, or local"
    )]
    target: String,
    /// The working directory (default: the remote user's home)
    #[arg(long, value_name = "DIR")]
    cwd: Option<OsString>,
    /// Set a variable for the shell, or with NAME alone pass on one's own (may be given again)
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// The remote user (the same as user@ in TARGET)
    #[arg(long, short = 'l', value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    patience: PatienceFlags,
    #[command(flatten)]
    connect: ConnectFlags,
}

/// Runs the shell and gives the status to exit with.
///
/// # Errors
/// Where the flags make no sense, before anything was asked for.
pub(crate) async fn shell(flags: ShellFlags, quiet: bool) -> anyhow::Result<ExitCode> {
    let flags = RunFlags {
        target: flags.target,
        argv: Vec::new(),
        shell: None,
        cwd: flags.cwd,
        env: flags.env,
        timeout: None,
        no_stdin: false,
        user: flags.user,
        json: false,
        status_fd: None,
        wait_output: false,
        pty: true,
        stderr_pipe: false,
        detach: DetachFlags::default(),
        patience: flags.patience,
        connect: flags.connect,
    };
    login(flags, quiet).await
}
