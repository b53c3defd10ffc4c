//! `bowline man`: the manual's pages, one for each command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap_mangen::Man;

use crate::exit;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ManFlags {
    /// Of this command; without one, the page of bowline itself
    command: Vec<String>,
    /// Write every page into this folder instead, such as ~/.local/share/man/man1
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

/// # Errors
/// Where there is no such command, and as write(2).
pub(crate) fn man(flags: &ManFlags, mut program: clap::Command) -> anyhow::Result<ExitCode> {
    program.build();
    if let Some(dir) = &flags.dir {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        write_all(dir, &program)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = &program;
    for name in &flags.command {
        let found = command.find_subcommand(name);
        let found = found.filter(|it| !it.is_hide_set());
        command = found.with_context(|| format!("bowline has no command {name:?}"))?;
    }
    exit::print(&String::from_utf8_lossy(&page(command)?))?;
    Ok(ExitCode::SUCCESS)
}

/// The page of a command, and those of the commands below it.
fn write_all(dir: &Path, command: &clap::Command) -> anyhow::Result<()> {
    let file = dir.join(format!("{}.1", title(command)));
    std::fs::write(&file, page(command)?).with_context(|| file.display().to_string())?;
    let shown = |below: &&clap::Command| !below.is_hide_set() && below.get_name() != "help";
    for below in command.get_subcommands().filter(shown) {
        write_all(dir, below)?;
    }
    Ok(())
}

fn page(command: &clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone().version(env!("CARGO_PKG_VERSION")));
    man.title(title(command)).render(&mut page)?;
    Ok(page)
}

/// As git names its pages: `bowline-run`.
fn title(command: &clap::Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or_else(|| command.get_name()).to_owned()
}
