//! `bowline keygen`: makes a key pair, or a shared secret.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use bowline::credentials::places::Places;
use bowline::credentials::secret::Secret;
use bowline::credentials::{fingerprint, keygen as make};

use crate::exit;
use crate::terminal::Terminal;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct KeygenFlags {
    /// Where to put it (default: ~/.config/bowline/id_ed25519)
    pub(crate) file: Option<PathBuf>,
    /// What stands behind the key in its public line
    #[arg(long, short = 'C', default_value = "bowline")]
    pub(crate) comment: String,
    /// Ask for a passphrase that protects the key
    #[arg(long)]
    pub(crate) passphrase: bool,
    /// Make a shared secret of 32 random bytes instead
    #[arg(long, conflicts_with_all = ["passphrase", "comment"])]
    pub(crate) secret: bool,
}

/// # Errors
/// Where the file is there already or cannot be written.
pub(crate) fn keygen(flags: &KeygenFlags) -> anyhow::Result<ExitCode> {
    let places = Places::from_env();
    if flags.secret {
        let file = flags.file.as_ref().context("name the FILE of the secret")?;
        Secret::create(file)?;
        exit::print(&format!("made {}\n", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = match &flags.file {
        Some(file) => file.clone(),
        None => places.context("there is no home folder")?.identity(),
    };
    let passphrase = match flags.passphrase {
        true => Some(new_passphrase()?),
        false => None,
    };
    let key = make::keygen(
        &file,
        &flags.comment,
        passphrase.as_ref().map(|text| text.as_bytes()),
    )?;
    exit::print(&format!(
        "made {} and {}\n{}\n",
        file.display(),
        make::public_path(&file).display(),
        fingerprint(&key)
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn new_passphrase() -> anyhow::Result<zeroize::Zeroizing<String>> {
    let terminal = Terminal::open().context("a passphrase needs a terminal")?;
    let ask = |question| terminal.ask_secret(question).context("no answer");
    let passphrase = ask("Passphrase: ")?;
    let again = ask("Again: ")?;
    anyhow::ensure!(*passphrase == *again, "the two are not the same");
    Ok(passphrase)
}
