//! `bowline plain`: the plain services, as server and as client.

mod connect;
mod demo;
mod options;
mod prompt;
mod serve;
mod user;

use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct PlainFlags {
    #[command(subcommand)]
    command: PlainCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PlainCommand {
    Serve(Box<options::ServeFlags>),
    Connect(Box<connect::ConnectFlags>),
    Demo(demo::DemoFlags),
}

/// # Errors
/// Where the flags make no sense.
pub(crate) fn plain(flags: PlainFlags) -> anyhow::Result<ExitCode> {
    match flags.command {
        PlainCommand::Serve(flags) => serve::serve(&flags),
        PlainCommand::Connect(flags) => connect::connect(&flags),
        PlainCommand::Demo(flags) => demo::demo(&flags),
    }
}
