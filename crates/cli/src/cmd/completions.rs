//! `bowline completions`: what a shell needs to complete bowline's commands and flags.

use std::process::ExitCode;

use clap_complete::{Shell, generate};

use crate::exit;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CompletionsFlags {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// # Errors
/// As write(2).
pub(crate) fn completions(
    flags: &CompletionsFlags,
    program: &clap::Command,
) -> anyhow::Result<ExitCode> {
    // Not all of the generators leave out what is hidden.
    let shown = program.get_subcommands().filter(|it| !it.is_hide_set());
    let mut shown = clap::Command::new("bowline")
        .version(env!("CARGO_PKG_VERSION"))
        .args(program.get_arguments().cloned())
        .subcommands(shown.cloned());
    let mut text = Vec::new();
    generate(flags.shell, &mut shown, "bowline", &mut text);
    exit::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
