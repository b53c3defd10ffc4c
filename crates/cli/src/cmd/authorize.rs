//! `bowline authorize`: lets a key in, by a line of the local grant file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use bowline::credentials::authorize::{self as grants, Authorized};
use bowline::credentials::fingerprint;
use bowline::credentials::places::Places;

use crate::exit;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AuthorizeFlags {
    /// The public key, or a private key file of OpenSSH's format
    pub(crate) keyfile: PathBuf,
    /// The grant file (default: ~/.config/bowline/authorized_keys)
    #[arg(long, value_name = "FILE")]
    pub(crate) authorized_keys: Option<PathBuf>,
    /// What stands in front of the key, such as 'from="10.0.0.0/8",no-pty' (sshd(8))
    #[arg(long, value_name = "OPTIONS")]
    pub(crate) options: Option<String>,
}

/// # Errors
/// Where the key or the file cannot be used.
pub(crate) fn authorize(flags: &AuthorizeFlags) -> anyhow::Result<ExitCode> {
    let file = match &flags.authorized_keys {
        Some(file) => file.clone(),
        None => Places::from_env()
            .context("there is no home folder")?
            .authorized_keys(),
    };
    let (key, comment) = grants::read_key(&flags.keyfile)?;
    let done = grants::authorize(&file, &key, &comment, flags.options.as_deref())?;
    let (key, file) = (fingerprint(&key), file.display());
    exit::print(&match done {
        Authorized::Added => format!("{key} may start jobs now ({file})\n"),
        Authorized::AlreadyThere { line } => {
            format!("{key} is there already ({file}, line {line})\n")
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
