//! The program `bowline`: reads its arguments and calls the command's file.

mod cmd;
mod config;
mod duration;
mod exit;
mod gate;
mod inherited;
mod ipc;
mod keeper;
mod local;
mod report;
mod target;

use std::process::ExitCode;

use clap::Parser;

/// Run commands on other machines as if they were here
#[derive(Debug, Parser)]
#[command(name = "bowline", version, max_term_width = 100)]
struct Cli {
    /// Say nothing but what was asked for
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more; twice, everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(Box<cmd::run::RunFlags>),
    /// The network side of a server; started by `bowline serve` alone
    #[command(hide = true)]
    Gate {
        #[arg(long)]
        workers: u16,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.verbose, &cli.command);
    match command(cli) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("bowline: {}", exit::chain(error.as_ref()));
            ExitCode::from(exit::USAGE)
        }
    }
}

fn command(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run(flags) => wait_for(cmd::run::run(*flags, cli.quiet)),
        Command::Gate { workers } => gate::main(workers),
    }
}

/// Runs a client's command on this thread.
fn wait_for(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let status = runtime.block_on(command);
    // A thread that looks up a name that nobody answers for is not waited for.
    runtime.shutdown_background();
    status
}

/// Log lines go to stderr, for a server as much as it was told to say.
fn log(verbose: u8, command: &Command) {
    use tracing_subscriber::EnvFilter;
    let server = matches!(command, Command::Gate { .. });
    let default = match (verbose, server) {
        (0, false) => return,
        (0, true) => "warn",
        (1, _) => "bowline=info",
        (_, _) => "bowline=debug,bowline_cli=debug",
    };
    let filter = std::env::var("BOWLINE_LOG").unwrap_or_else(|_| default.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .init();
}
