//! What `~/.ssh/config` says about a host (ssh_config(5)): its real name, its user and its keys.
//!
//! Owns the few settings that bowline shares with ssh and passes over all others, so that a user's file serves as
//! it is. As in ssh the first value of a setting counts, `IdentityFile` adds up, and a file that others may write
//! is refused. `Match` blocks are passed over, but for `Match all`: their conditions may run programs.
//! Files enter; a [`HostConfig`] leaves.
//!
//! | setting | what of it |
//! | --- | --- |
//! | `Host` | patterns with `*`, `?` and `!` |
//! | `Include` | `~`, names relative to the first file's folder, `*` and `?` |
//! | `HostName` | with `%h` and `%%` |
//! | `User` | as it is |
//! | `IdentityFile` | `~`, `%d %h %i %l %n %r %u %%`, `none` |
//! | `IdentitiesOnly` | `yes`, `no` |
//! | `IdentityAgent` | a path as of `IdentityFile`, `none`, `SSH_AUTH_SOCK`, `$VARIABLE` |

mod expand;
mod include;
mod line;

use std::path::{Path, PathBuf};

use bowline_proto::pattern;

use self::expand::Tokens;
use super::private_file::{self, FileError};

/// The most bytes of one file.
const FILE_BYTES_MAX: usize = 1024 * 1024;
/// The most files in all.
const FILES_MAX: usize = 256;
/// How deep files may include files, as in ssh.
const DEPTH_MAX: usize = 16;
/// The most keys for one host.
const IDENTITIES_MAX: usize = 64;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SshConfigError {
    /// A file cannot be read, or others may change it.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line's quotes are not closed.
    #[error("{}, line {line}: a quote is not closed", path.display())]
    OpenQuote {
        /// The file.
        path: PathBuf,
        /// The line; the first is 1.
        line: usize,
    },
    /// A setting that bowline uses has no value, or one that cannot be.
    #[error("{}, line {line}: {setting} has no value that bowline understands", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line; the first is 1.
        line: usize,
        /// The setting.
        setting: &'static str,
    },
    /// Files include each other without end, or there are too many.
    #[error("{} includes too many files, or itself", path.display())]
    Includes {
        /// The file that would be one too many.
        path: PathBuf,
    },
}

/// Who asks, for `~` and the `%` of paths.
#[derive(Debug, Clone)]
pub struct Asker<'a> {
    /// The home folder.
    pub home: &'a Path,
    /// The local user's name.
    pub user: &'a str,
    /// The user asked for on the command line, which outweighs `User`.
    pub remote_user: Option<&'a str>,
}

/// Where the agent is, if the configuration says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityAgent {
    /// No agent is to be used.
    None,
    /// The agent that this environment variable names.
    Variable(String),
    /// The agent behind this socket.
    Socket(PathBuf),
}

/// What the configuration says about one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// The name or address to connect to, if it is another than was typed.
    pub host_name: Option<String>,
    /// The user on the host.
    pub user: Option<String>,
    /// The keys named, in order; `None` if none is named, empty for `IdentityFile none`.
    pub identity_files: Option<Vec<PathBuf>>,
    /// Whether only the named keys are to be offered.
    pub identities_only: bool,
    /// The agent.
    pub identity_agent: Option<IdentityAgent>,
}

/// Reads what the files, the user's before the machine's, say about `host` as it was typed.
///
/// Missing files are empty.
///
/// # Errors
/// [`SshConfigError`].
pub fn lookup(
    files: &[PathBuf],
    host: &str,
    asker: &Asker<'_>,
) -> Result<HostConfig, SshConfigError> {
    let mut reading = Reading {
        host,
        home: asker.home,
        files: 0,
        raw: Raw::default(),
    };
    for path in files {
        match reading.file(path, path.parent().unwrap_or(Path::new("/")), 0) {
            Err(SshConfigError::File(error)) if error.is_not_found() => {}
            read => read?,
        }
    }
    Ok(finish(reading.raw, host, asker))
}

/// The settings as they are written.
#[derive(Debug, Default)]
struct Raw {
    host_name: Option<String>,
    user: Option<String>,
    identity_files: Vec<String>,
    identities_only: Option<bool>,
    identity_agent: Option<String>,
}

struct Reading<'a> {
    host: &'a str,
    home: &'a Path,
    files: usize,
    raw: Raw,
}

impl Reading<'_> {
    /// Reads one file, whose first lines count; names that it includes start in `folder`.
    fn file(&mut self, path: &Path, folder: &Path, depth: usize) -> Result<(), SshConfigError> {
        self.files += 1;
        if depth > DEPTH_MAX || self.files > FILES_MAX {
            return Err(SshConfigError::Includes {
                path: path.to_owned(),
            });
        }
        let bytes = private_file::read_trusted(path, FILE_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&bytes);
        // A `Host` or `Match` counts to the end of its own file.
        let mut active = true;
        for (index, text) in text.lines().enumerate() {
            let line = index + 1;
            let at = Position { path, line };
            let Some((keyword, values)) = line::split(text).map_err(|_| at.open_quote())? else {
                continue;
            };
            match keyword.as_str() {
                "host" => active = self.is_meant(&values),
                "match" => {
                    active = matches!(values.as_slice(), [all] if all.eq_ignore_ascii_case("all"));
                }
                _ if !active => {}
                "include" => self.include(&values, folder, depth)?,
                _ => self.raw.set(&keyword, &values, &at)?,
            }
        }
        Ok(())
    }

    fn include(
        &mut self,
        names: &[String],
        folder: &Path,
        depth: usize,
    ) -> Result<(), SshConfigError> {
        for name in names {
            for path in include::find(name, folder, self.home, FILES_MAX) {
                match self.file(&path, folder, depth + 1) {
                    // As in ssh, what is named and missing is no fault.
                    Err(SshConfigError::File(error)) if error.is_not_found() => {}
                    read => read?,
                }
            }
        }
        Ok(())
    }

    /// Whether a pattern of a `Host` line matches, and no negated one does.
    fn is_meant(&self, patterns: &[String]) -> bool {
        let mut found = false;
        // As in ssh, the name counts as it was typed, capital letters included.
        let matches = |pattern: &str| pattern::matches(pattern.as_bytes(), self.host.as_bytes());
        for pattern in patterns {
            match pattern.strip_prefix('!') {
                Some(negated) if matches(negated) => return false,
                Some(_) => {}
                None => found |= matches(pattern),
            }
        }
        found
    }
}

impl Raw {
    /// Takes a setting in, if it is one of those that bowline uses and has no value yet.
    fn set(
        &mut self,
        keyword: &str,
        values: &[String],
        at: &Position<'_>,
    ) -> Result<(), SshConfigError> {
        let one = |setting| match values {
            [value, ..] if !value.is_empty() => Ok(value.clone()),
            _ => Err(at.value(setting)),
        };
        match keyword {
            "hostname" => {
                let value = one("HostName")?;
                // Connecting to the typed name instead would be to another machine.
                expand::host_name(&value, "").ok_or_else(|| at.value("HostName"))?;
                keep_first(&mut self.host_name, value);
            }
            "user" => keep_first(&mut self.user, one("User")?),
            "identityagent" => keep_first(&mut self.identity_agent, one("IdentityAgent")?),
            "identityfile" => {
                let value = one("IdentityFile")?;
                if self.identity_files.len() < IDENTITIES_MAX
                    && !self.identity_files.contains(&value)
                {
                    self.identity_files.push(value);
                }
            }
            "identitiesonly" => {
                let only = match one("IdentitiesOnly")?.to_ascii_lowercase().as_str() {
                    "yes" | "true" => true,
                    "no" | "false" => false,
                    _ => return Err(at.value("IdentitiesOnly")),
                };
                keep_first(&mut self.identities_only, only);
            }
            _ => {}
        }
        Ok(())
    }
}

fn keep_first<T>(place: &mut Option<T>, value: T) {
    if place.is_none() {
        *place = Some(value);
    }
}

/// Puts the values in for `~` and `%`, now that the host's name and user are known.
fn finish(raw: Raw, host: &str, asker: &Asker<'_>) -> HostConfig {
    let host_name = raw
        .host_name
        .and_then(|name| expand::host_name(&name, host));
    let remote = host_name.as_deref().unwrap_or(host).to_ascii_lowercase();
    let remote_user = asker.remote_user.or(raw.user.as_deref());
    let tokens = Tokens {
        home: asker.home,
        local_user: asker.user,
        typed_host: host,
        remote_host: &remote,
        remote_user: remote_user.unwrap_or(asker.user),
    };
    let none = |value: &String| value.eq_ignore_ascii_case("none");
    // A path with a `%` that bowline does not know names no file that could be found.
    let paths = raw.identity_files.iter().filter(|value| !none(value));
    let paths: Vec<_> = paths.filter_map(|value| tokens.path(value)).collect();
    let identity_agent = raw.identity_agent.and_then(|value| match value.as_str() {
        "SSH_AUTH_SOCK" => Some(IdentityAgent::Variable(value)),
        value if value.eq_ignore_ascii_case("none") => Some(IdentityAgent::None),
        value => match value.strip_prefix('$') {
            Some(name) if !name.starts_with('{') => Some(IdentityAgent::Variable(name.to_owned())),
            _ => tokens.path(value).map(IdentityAgent::Socket),
        },
    });
    HostConfig {
        identity_files: (!raw.identity_files.is_empty()).then_some(paths),
        identities_only: raw.identities_only.unwrap_or(false),
        identity_agent,
        user: raw.user,
        host_name,
    }
}

/// Where a line stands, for errors.
struct Position<'a> {
    path: &'a Path,
    line: usize,
}

impl Position<'_> {
    fn open_quote(&self) -> SshConfigError {
        SshConfigError::OpenQuote {
            path: self.path.to_owned(),
            line: self.line,
        }
    }

    fn value(&self, setting: &'static str) -> SshConfigError {
        SshConfigError::Value {
            path: self.path.to_owned(),
            line: self.line,
            setting,
        }
    }
}

#[cfg(test)]
mod tests;
