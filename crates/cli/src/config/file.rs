//! Reading a TOML file into a type, with errors that say where and what to do.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::duration;

/// The most bytes of a configuration file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is wrong with a configuration. Whoever wrote it is to blame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file is no TOML, or holds an unknown key or a wrong value.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    /// The value of a key or flag makes no sense.
    #[error("{key}: {message}")]
    Value { key: String, message: String },
    /// There is no home folder to find the files in.
    #[error("there is no home folder: set HOME, or name the files with flags")]
    NoHome,
}

impl ConfigError {
    pub(super) fn value(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Value {
            key: key.into(),
            message: message.into(),
        }
    }
}

/// Reads a file; `None` where there is none.
///
/// # Errors
/// [`ConfigError::Read`], [`ConfigError::Syntax`].
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    parse(&text, path).map(Some)
}

/// Reads a file that must be there.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_required<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    read(path)?.ok_or_else(|| ConfigError::Read {
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })
}

/// Parses the text of a file.
///
/// # Errors
/// [`ConfigError::Syntax`].
pub(super) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..start].iter().filter(|&&b| b == b'\n');
        ConfigError::Syntax {
            path: path.to_owned(),
            line: line.count() + 1,
            message: with_suggestion(error.message()),
        }
    })
}

/// Adds what was probably meant to serde's message about an unknown key.
fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((unknown, known)) = quoted.split_first() else {
        return message.to_owned();
    };
    if !message.starts_with("unknown field") {
        return message.to_owned();
    }
    let near = known.iter().map(|name| (distance(unknown, name), name));
    match near.min() {
        Some((steps, name)) if steps <= 3 && steps < name.len() => {
            format!("there is no key `{unknown}`; did you mean `{name}`?")
        }
        _ => format!(
            "there is no key `{unknown}`; there are: {}",
            known.join(", ")
        ),
    }
}

/// How many letters must be put in, left out or changed (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// A duration in a file: a string such as `"20s"`; kept in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Milliseconds(pub(super) u64);

impl Milliseconds {
    pub(crate) fn time(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl<'de> Deserialize<'de> for Milliseconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let time = duration::parse(&text).map_err(serde::de::Error::custom)?;
        let ms = u64::try_from(time.as_millis()).map_err(serde::de::Error::custom)?;
        Ok(Self(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only errors are looked at")]
    struct Sample {
        listen: Option<Vec<String>>,
        drain: Option<Milliseconds>,
    }

    fn error(text: &str) -> String {
        let parsed = parse::<Sample>(text, Path::new("/x/server.toml"));
        parsed.unwrap_err().to_string()
    }

    #[test]
    fn errors_name_file_line_and_what_was_meant() {
        assert_eq!(
            error("# a comment\nlistn = []\n"),
            "/x/server.toml:2: there is no key `listn`; did you mean `listen`?"
        );
        assert_eq!(
            error("drain = \"1s\"\n\nsomething = 1\n"),
            "/x/server.toml:3: there is no key `something`; there are: listen, drain"
        );
        assert!(error("drain = \"1\"\n").starts_with("/x/server.toml:1: a duration is"));
        assert!(error("drain = 1\n").starts_with("/x/server.toml:1: "));
        assert!(error("listen = [\n").starts_with("/x/server.toml:"));
        let twice = error("drain = \"1s\"\ndrain = \"2s\"\n");
        assert!(twice.starts_with("/x/server.toml:2: "), "{twice}");
    }

    #[test]
    fn files_are_bounded_and_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        assert!(read::<Sample>(&path).unwrap().is_none());
        let file = File::create(&path).unwrap();
        assert!(read::<Sample>(&path).unwrap().is_some());
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(
            read::<Sample>(&path),
            Err(ConfigError::Read { .. })
        ));
        let folder_instead = read::<Sample>(folder.path());
        assert!(matches!(folder_instead, Err(ConfigError::Read { .. })));
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
