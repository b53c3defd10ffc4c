//! `bowline run`: one command on another machine, as if it were here.

mod detach;
mod escapes;
mod follow;
mod json;
mod line;
mod outage;
mod output;
mod relay;
mod signals;
mod sink;
mod stdin;
mod tty;
mod wiring;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bowline::client::StartRequest;
use bowline_proto::frame::Stream;
use bowline_proto::message::Pty;

pub(super) use self::detach::DetachFlags;
pub(crate) use self::follow::PatienceFlags;
pub(in crate::cmd) use self::follow::{Errand, Follower};
pub(in crate::cmd) use self::outage::Outage;
use self::output::Unwritten;
pub(in crate::cmd) use self::relay::Relay;
pub(in crate::cmd) use self::wiring::Wiring;
use super::dial::{ConnectFlags, Dialer};
use crate::duration;
use crate::exit;
use crate::inherited;
use crate::report::Report;
use crate::stderr::tell;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RunFlags {
    #[arg(
        help = "The machine: [user@]host[:port], unix:PATH, ssh:[user@]host, a configured name, or local"
    )]
    pub(crate) target: String,
    /// The program and its arguments, exactly as they are
    #[arg(last = true, value_name = "PROGRAM", required_unless_present = "shell")]
    pub(crate) argv: Vec<OsString>,
    /// Run this text with the remote user's shell instead
    #[arg(long, value_name = "TEXT", conflicts_with = "argv")]
    pub(crate) shell: Option<OsString>,
    /// The working directory (default: the remote user's home)
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<OsString>,
    /// Set a variable for the program, or with NAME alone pass on one's own (may be given again)
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    pub(crate) env: Vec<OsString>,
    /// End the job's whole tree after this time, such as 500ms, 30s or 2h
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// The program reads nothing (/dev/null) instead of this command's stdin
    #[arg(short = 'n')]
    pub(crate) no_stdin: bool,
    /// The remote user (the same as user@ in TARGET)
    #[arg(long, short = 'l', value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Write output and outcome as JSON lines on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the outcome as JSON to this descriptor
    #[arg(long, value_name = "N")]
    pub(crate) status_fd: Option<i32>,
    /// Wait for the end of the output, also of background children
    #[arg(long)]
    pub(crate) wait_output: bool,
    /// Give the program a terminal, of this one's size and kind where there is one
    #[arg(long, conflicts_with = "json")]
    pub(crate) pty: bool,
    /// With --pty: stderr stays apart instead of going to the terminal
    #[arg(long, requires = "pty")]
    pub(crate) stderr_pipe: bool,
    #[command(flatten)]
    pub(crate) detach: DetachFlags,
    #[command(flatten)]
    pub(crate) patience: PatienceFlags,
    #[command(flatten)]
    pub(crate) connect: ConnectFlags,
}

/// Runs the command and gives the status to exit with.
///
/// # Errors
/// Where the flags make no sense, before anything was asked for.
pub(crate) async fn run(flags: RunFlags, quiet: bool) -> anyhow::Result<ExitCode> {
    let request = request(&flags)?;
    if flags.detach.detach {
        return detach::run(flags, &request, quiet).await;
    }
    follow(flags, request, quiet).await
}

/// The same with the account's login shell as the program.
///
/// # Errors
/// As [`run`].
pub(super) async fn login(flags: RunFlags, quiet: bool) -> anyhow::Result<ExitCode> {
    let request = StartRequest {
        login: true,
        ..request(&flags)?
    };
    follow(flags, request, quiet).await
}

async fn follow(flags: RunFlags, request: StartRequest, quiet: bool) -> anyhow::Result<ExitCode> {
    let status = flags.status_fd.map(inherited::take).transpose();
    let status = status.context("--status-fd")?;
    let job = exit::fresh_job_id()?;
    let wiring = Wiring {
        stdin: !flags.no_stdin,
        json: flags.json,
        pty: flags.pty,
        ..Wiring::default()
    };
    let mut relay = Relay::new(wiring).context("stdin")?;
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let errand = Errand::Start(request);
    let patience = flags.patience.patience(dialer.settings());
    let follower = Follower::new(
        &mut dialer,
        &mut relay,
        (job, &errand),
        patience,
        (&flags.target, quiet),
    );
    let report = follower.follow().await;
    Ok(finish(&report, (relay, dialer), flags.json, status, quiet))
}

/// What is done when a job is not followed any more: its outcome is told, and becomes our status.
pub(super) fn finish(
    report: &Report,
    (mut relay, dialer): (Relay, Dialer),
    json: bool,
    status: Option<OwnedFd>,
    quiet: bool,
) -> ExitCode {
    let unwritten = relay.unwritten();
    // Its terminal is as it was before anything is said.
    drop(relay);
    dialer.finish();
    let unwritten = report_to_all(report, json, status, quiet).or(unwritten);
    exit_code(report.outcome.exit_status(), unwritten)
}

/// A terminal like our own. Without one it is a terminal all the same: it was asked for.
fn terminal(stderr_pipe: bool) -> Pty {
    let size = tty::size();
    Pty {
        term: std::env::var("TERM").unwrap_or_default(),
        cols: size.map_or(0, |size| size.cols),
        rows: size.map_or(0, |size| size.rows),
        stderr_pipe,
    }
}

fn request(flags: &RunFlags) -> anyhow::Result<StartRequest> {
    let argv: Vec<Vec<u8>> = match &flags.shell {
        Some(text) => vec![text.clone().into_vec()],
        None => flags.argv.iter().cloned().map(OsString::into_vec).collect(),
    };
    let mut env = forwarded_locale();
    for variable in &flags.env {
        env.push(variable_of(variable)?);
    }
    Ok(StartRequest {
        argv,
        env,
        cwd: flags.cwd.clone().map(OsString::into_vec),
        shell: flags.shell.is_some(),
        // Nobody stays to write it.
        null_stdin: flags.no_stdin || flags.detach.detach,
        timeout_ms: flags
            .timeout
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        wait_output: flags.wait_output,
        pty: flags.pty.then(|| terminal(flags.stderr_pipe)),
        detach: flags.detach.detach,
        ..StartRequest::default()
    })
}

/// LANG and LC_*: the output is read here, so it should be in our language.
fn forwarded_locale() -> Vec<Vec<u8>> {
    let locale = std::env::vars_os().filter(|(name, _)| {
        let name = name.as_bytes();
        name == b"LANG" || name.starts_with(b"LC_")
    });
    locale
        .map(|(name, value)| assignment(&name, &value))
        .collect()
}

fn assignment(name: &std::ffi::OsStr, value: &std::ffi::OsStr) -> Vec<u8> {
    [name.as_bytes(), b"=", value.as_bytes()].concat()
}

/// `NAME=VALUE` as it is, `NAME` with our own value of it.
fn variable_of(text: &OsString) -> anyhow::Result<Vec<u8>> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(0) => anyhow::bail!("--env {text:?}: a variable needs a name"),
        Some(_) => Ok(bytes.to_vec()),
        None => {
            let value = std::env::var_os(text)
                .with_context(|| format!("--env {text:?}: it is not set here; give NAME=VALUE"))?;
            Ok(assignment(text, &value))
        }
    }
}

/// The status to end with: never 0 where something that the job wrote is lost here, which is said.
pub(super) fn exit_code(status: u8, unwritten: Option<Unwritten>) -> ExitCode {
    let Some(unwritten) = unwritten else {
        return ExitCode::from(status);
    };
    tell!("bowline: {unwritten}");
    match status {
        0 => ExitCode::from(exit::USAGE),
        status => ExitCode::from(status),
    }
}

/// Tells the outcome to whoever wants it. Gives why stdout does not take it.
pub(super) fn report_to_all(
    report: &Report,
    json: bool,
    status: Option<OwnedFd>,
    quiet: bool,
) -> Option<Unwritten> {
    let written = match json {
        true => std::io::stdout().write_all(&report.line()),
        false => Ok(()),
    };
    let unwritten = written
        .err()
        .and_then(|error| Unwritten::new(Stream::Stdout, error));
    if let Some(fd) = status
        && let Err(error) = report.write_to(fd)
    {
        tell!("bowline: --status-fd: {error} [status_fd_failed]");
    }
    if !quiet && let Some(sentence) = report.sentence() {
        tell!("bowline: {sentence}");
        let code = report.outcome.error.as_deref().unwrap_or_default();
        if let Some(hint) = exit::hint(code, &report.host) {
            tell!("  hint: {hint}");
        }
    }
    unwritten
}
