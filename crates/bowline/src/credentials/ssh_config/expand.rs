//! `~` and `%` in the values of a configuration.
//!
//! Owns what each letter stands for. A letter that is not known makes the value unusable instead of wrong.

use std::path::{Path, PathBuf};

/// What the letters stand for.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    /// `%d` and `~`.
    pub(super) home: &'a Path,
    /// `%u`.
    pub(super) local_user: &'a str,
    /// `%n`.
    pub(super) typed_host: &'a str,
    /// `%h`.
    pub(super) remote_host: &'a str,
    /// `%r`.
    pub(super) remote_user: &'a str,
}

impl Tokens<'_> {
    /// Expands a path; as with ssh, relative ones start in the current folder.
    ///
    /// `None` if a letter is not known, or the home of another user is meant.
    pub(super) fn path(&self, value: &str) -> Option<PathBuf> {
        let home = self.home.to_str()?;
        let from_home = match value.strip_prefix('~') {
            None => value.to_owned(),
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("%d{rest}"),
            Some(_) => return None,
        };
        percent(&from_home, |letter| {
            Some(match letter {
                'd' => home.to_owned(),
                'h' => self.remote_host.to_owned(),
                'i' => rustix::process::getuid().as_raw().to_string(),
                'l' => local_host(),
                'n' => self.typed_host.to_owned(),
                'r' => self.remote_user.to_owned(),
                'u' => self.local_user.to_owned(),
                _ => return None,
            })
        })
        .map(PathBuf::from)
    }
}

/// Expands the value of `HostName`, which knows `%h` for the name as it was typed.
pub(super) fn host_name(value: &str, typed: &str) -> Option<String> {
    percent(value, |letter| (letter == 'h').then(|| typed.to_owned()))
}

fn percent(value: &str, meaning: impl Fn(char) -> Option<String>) -> Option<String> {
    let mut expanded = String::new();
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        match char {
            '%' => match chars.next()? {
                '%' => expanded.push('%'),
                letter => expanded.push_str(&meaning(letter)?),
            },
            char => expanded.push(char),
        }
    }
    Some(expanded)
}

fn local_host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
