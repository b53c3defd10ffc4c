//! The program `bowline`: reads its arguments and calls the command's file.

#![allow(
    unreachable_pub,
    reason = "a program exports nothing, so `pub` can only mean its own modules"
)]

mod clock;
mod cmd;
mod config;
mod copy;
mod descriptor;
mod duration;
mod exit;
mod gate;
mod hosts;
mod inherited;
mod ipc;
mod keeper;
mod local;
mod moment;
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

// The flags of a command are defined once it is the one that was asked for: those of all the others
// cost a short command more than what it does itself.
#[derive(Debug, clap::Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run a command on another machine
    Run(Box<cmd::run::RunFlags>),
    /// Open a login shell on another machine, at a terminal
    ///
    /// Behind a newline, `~.` leaves, `~^Z` suspends and `~?` shows what else there is.
    Shell(Box<cmd::shell::ShellFlags>),
    /// Let people run commands on this machine
    Serve(Box<config::ServeFlags>),
    /// Copy files and folders to, from and between machines
    Cp(Box<cmd::cp::CpFlags>),
    /// Show the jobs of this user on a server
    Jobs(Box<cmd::jobs::JobsFlags>),
    /// Attach to a job that runs: its output, its input, its outcome
    ///
    /// Ends with the job's status, as `bowline run` would. Signals and what is typed go to the job; the
    /// input of a client that was attached before is taken over. Leaving does not end the job: behind a
    /// newline, `~.` leaves and `~?` shows what else there is; so do a second Ctrl-C, SIGTERM and
    /// SIGHUP. The status is 255 then.
    Attach(Box<cmd::attach::AttachFlags>),
    /// Show what a job has written, as far as it is kept
    ///
    /// Ends with status 0, whatever became of the job, and also where some of its output was dropped: how
    /// much, and where, is said on stderr, or by -q not at all; --json has a line for it.
    Logs(Box<cmd::logs::LogsFlags>),
    /// Wait until jobs have ended, and tell what became of them
    ///
    /// Ends with the status that `bowline run` would give. Of several jobs it is that of the first, in
    /// the order in which they are named, that is not 0.
    Wait(Box<cmd::wait::WaitFlags>),
    /// End a job on a server, the whole tree, or send it a signal
    ///
    /// Ends with status 1 where there is no such job that runs, or where several have an id like it.
    Kill(Box<cmd::kill::KillFlags>),
    /// Drop what a server keeps of jobs that have ended: their output and outcome
    ///
    /// `bowline jobs --all` shows such a job still, for as long as the server's record does.
    Forget(Box<cmd::forget::ForgetFlags>),
    /// Measure round trips to a server, over one connection
    Ping(Box<cmd::ping::PingFlags>),
    /// Make an Ed25519 key pair in OpenSSH's format
    Keygen(cmd::keygen::KeygenFlags),
    /// Show the host key of a server and pin it
    Trust(cmd::trust::TrustFlags),
    /// Let a key start jobs as you on this machine
    Authorize(cmd::authorize::AuthorizeFlags),
    /// Small protocols over bare sockets: serve them, or talk to one
    Plain(cmd::plain::PlainFlags),
    /// Ask an NTP server how far the clock is off; the clock is never set
    Time(cmd::time::TimeFlags),
    /// Print the completions of a shell, from the very definitions of the commands
    ///
    /// bash: `bowline completions bash > ~/.local/share/bash-completion/completions/bowline`
    Completions(cmd::completions::CompletionsFlags),
    /// Print a page of the manual, or write all of them, from the very definitions of the commands
    ///
    /// `bowline man run | man -l -` shows the one of `bowline run`.
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
    let status = match command(cli) {
        Ok(status) => status,
        Err(error) => {
            tell!("bowline: {}", exit::chain(error.as_ref()));
            ExitCode::from(exit::USAGE)
        }
    };
    stderr::finish();
    status
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
    if server {
        stderr::without_thread();
    }
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        // Nobody waits for whoever reads this.
        .with_writer(|| stderr::Writer)
        .with_ansi(false)
        // It would tell stderr that stderr cannot be written, by a panic.
        .log_internal_errors(false)
        .init();
}
