//! From an error to what a person is told, and the status to exit with.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use bowline::client::ClientError;
use bowline_proto::id::JobId;

use crate::stderr::tell;

/// The status for flags and files that make no sense: nothing was asked of anybody.
pub(crate) const USAGE: u8 = 2;

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// What to do about an error, by its stable code.
pub(crate) fn hint(code: &str, host: &str) -> Option<String> {
    Some(match code {
        "connect_timeout" | "carrier_failed" if host.starts_with("ssh:") => {
            "ssh is what connects: does `ssh` alone get there?".to_owned()
        }
        "protocol_error" if host.starts_with("ssh:") => {
            "does the shell over there print something before it runs a command?".to_owned()
        }
        "carrier_not_found" => {
            "is bowline installed there, in the PATH of an ssh session without a terminal?"
                .to_owned()
        }
        "connect_failed" | "connect_timeout" => {
            format!("is `bowline serve` running there? `ssh:{host}` needs no open port")
        }
        "host_key_unknown" => format!("compare the fingerprint, then `bowline trust {host}`"),
        "host_key_changed" => {
            "somebody may be in between; if the key was changed on purpose, remove the old line"
                .to_owned()
        }
        "not_authenticated" => {
            "is your public key in the server's authorized_keys? `-v` shows which keys were offered"
                .to_owned()
        }
        "tls_failed" => "is that port really bowline's?".to_owned(),
        "not_found" => "a program without a slash is searched in the remote PATH".to_owned(),
        "too_many_jobs" | "out_of_resources" => "try again when others have ended".to_owned(),
        _ => return None,
    })
}

/// Tells a person why a command did not reach its server, and gives the status for it.
pub(crate) fn failed(host: &str, error: &ClientError) -> ExitCode {
    tell!("bowline: {host}: {} [{}]", chain(error), error.code());
    if let Some(hint) = hint(error.code(), host) {
        tell!("  hint: {hint}");
    }
    ExitCode::from(u8::MAX)
}

/// Writes to stdout. A reader that has gone (`| head`) wants no more and is no error.
///
/// # Errors
/// As write(2), but for EPIPE.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("stdout")
        }
        _ => Ok(()),
    }
}

/// 128 random bits.
///
/// # Errors
/// Where the operating system has no randomness.
pub(crate) fn fresh_job_id() -> anyhow::Result<JobId> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .ok()
        .context("no random bytes")?;
    Ok(JobId::from_bytes(bytes))
}
