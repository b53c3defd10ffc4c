//! The program `bowline`: reads its arguments and calls the command's file.

#![allow(
    unreachable_pub,
    reason = "a program exports nothing, so `pub` can only mean its own modules"
)]

mod clock;
mod cmd;
mod config;
mod copy;
mod duration;
mod exit;
mod gate;
mod hosts;
mod inherited;
mod ipc;
mod keeper;
mod local;
mod plain;
mod report;
mod stderr;
mod system_clock;
mod target;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};

use stderr::tell;

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
    Shell(Box<cmd::shell::ShellFlags>),
    /// Let people run commands on this machine
    Serve(Box<config::ServeFlags>),
    Cp(Box<cmd::cp::CpFlags>),
    Jobs(Box<cmd::jobs::JobsFlags>),
    Attach(Box<cmd::attach::AttachFlags>),
    Logs(Box<cmd::logs::LogsFlags>),
    Wait(Box<cmd::wait::WaitFlags>),
    Kill(Box<cmd::kill::KillFlags>),
    Forget(Box<cmd::forget::ForgetFlags>),
    Ping(Box<cmd::ping::PingFlags>),
    Keygen(cmd::keygen::KeygenFlags),
    Trust(cmd::trust::TrustFlags),
    Authorize(cmd::authorize::AuthorizeFlags),
    Plain(cmd::plain::PlainFlags),
    Time(cmd::time::TimeFlags),
    Completions(cmd::completions::CompletionsFlags),
    Man(cmd::man::ManFlags),
    /// The network side of a server; started by `bowline serve` alone
    #[command(hide = true)]
    Gate {
        #[arg(long)]
        workers: u16,
    },
    /// One side of a copy; started by a server for `bowline cp` alone
    #[command(hide = true)]
    CopyWorker {
        #[command(subcommand)]
        role: copy::worker::Role,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.verbose, &cli.command);
    match command(cli) {
        Ok(status) => status,
        Err(error) => {
            let code = error
                .downcast_ref::<target::TargetError>()
                .map(|_| " [bad_target]");
            tell!(
                "bowline: {}{}",
                exit::chain(error.as_ref()),
                code.unwrap_or_default()
            );
            ExitCode::from(exit::USAGE)
        }
    }
}

fn command(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run(flags) => wait_for(cmd::run::run(*flags, cli.quiet)),
        Command::Shell(flags) => wait_for(cmd::shell::shell(*flags, cli.quiet)),
        Command::Cp(flags) => wait_for(cmd::cp::cp(*flags, cli.quiet)),
        Command::Jobs(flags) => wait_for(cmd::jobs::jobs(*flags)),
        Command::Kill(flags) => wait_for(cmd::kill::kill(*flags)),
        Command::Attach(flags) => wait_for(cmd::attach::attach(*flags, cli.quiet)),
        Command::Logs(flags) => wait_for(cmd::logs::logs(*flags, cli.quiet)),
        Command::Wait(flags) => wait_for(cmd::wait::wait(*flags, cli.quiet)),
        Command::Forget(flags) => wait_for(cmd::forget::forget(*flags)),
        Command::Completions(flags) => cmd::completions::completions(&flags, &Cli::command()),
        Command::Man(flags) => cmd::man::man(&flags, Cli::command()),
        Command::Ping(flags) => wait_for(cmd::ping::ping(*flags)),
        Command::Keygen(flags) => cmd::keygen::keygen(&flags),
        Command::Trust(flags) => wait_for(cmd::trust::trust(flags)),
        Command::Authorize(flags) => cmd::authorize::authorize(&flags),
        Command::Time(flags) => cmd::time::time(&flags),
        Command::Plain(flags) => cmd::plain::plain(flags),
        Command::Serve(flags) => serve(&flags, cli.verbose),
        Command::Gate { workers } => gate::main(workers),
        Command::CopyWorker { role } => Ok(copy::worker::main(role)),
    }
}

fn serve(flags: &config::ServeFlags, verbose: u8) -> anyhow::Result<ExitCode> {
    if flags.stdio && !flags.check {
        match cmd::session::serve(flags, verbose) {
            Err(error) if flags.state_dir.is_none() => {
                let error = exit::chain(error.as_ref());
                tracing::warn!(
                    error,
                    "the server ends with this session, and its jobs with it"
                );
            }
            served => return served,
        }
    }
    let mut config = config::ServerConfig::load(flags)?;
    if let (true, Some(state)) = (flags.check, flags.successor) {
        keeper::check_successor(state, &mut config)?;
        keeper::authenticate::Authenticator::new(&config)?;
        cmd::serve::host_key(&config.host_key)?;
        exit::print(keeper::SUCCESSOR_READY)?;
        return Ok(ExitCode::SUCCESS);
    }
    if flags.check {
        keeper::authenticate::Authenticator::new(&config)?;
        exit::print(&config.to_toml())?;
        return Ok(ExitCode::SUCCESS);
    }
    let state_dir = config.state_dir.clone();
    let ended = cmd::serve::serve(cmd::serve::Serve {
        policy: Box::new(keeper::authenticate::Authenticator::new(&config)?),
        reload: reload(flags.clone(), config.clone()),
        config,
        stdio: flags.stdio,
        lifeline: flags.lifeline,
        verbose,
        successor: flags.successor,
    });
    if (flags.lifeline && !flags.keep_state) || (flags.stdio && flags.state_dir.is_none()) {
        // What was made for one session leaves no trace, also where its client was killed.
        let _ = std::fs::remove_dir_all(state_dir);
    }
    ended
}

/// Reads the configuration again, on SIGHUP.
fn reload(flags: config::ServeFlags, mut now: config::ServerConfig) -> keeper::Reload {
    Box::new(move || {
        let (config, waiting) = now.reload(&flags)?;
        if !waiting.is_empty() {
            tracing::warn!(keys = waiting.join(", "), "these wait for a restart");
        }
        let policy = keeper::authenticate::Authenticator::new(&config)?;
        now = config.clone();
        Ok((config, Box::new(policy) as Box<dyn keeper::policy::Policy>))
    })
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
    let server = matches!(command, Command::Gate { .. } | Command::Serve(_));
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
        .with_ansi(false)
        // It would tell stderr that stderr cannot be written, by a panic.
        .log_internal_errors(false)
        .init();
}
