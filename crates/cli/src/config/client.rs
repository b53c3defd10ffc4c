//! The client's configuration: named hosts, and defaults for all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::ConfigError;
use super::file::{self, Milliseconds};

/// What to do with a host key that nothing is known about.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Trust {
    /// Ask on a terminal; without one, refuse.
    Ask,
    /// Pin it.
    New,
    /// Refuse it.
    Strict,
}

/// What a server does with a job when nobody comes back for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnDisconnect {
    /// Keep it for the grace time.
    Keep,
    /// End the whole tree at once.
    Kill,
}

/// What happens when the output of a detached job has no room left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Spool {
    /// The program waits
    Block,
    /// The oldest output is dropped
    DropOldest,
    /// The job's whole tree is ended
    Kill,
}

/// What is set for one host, or for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostSettings {
    /// Where it is, as a TARGET without a user: `192.0.2.7`, `unix:/run/x`, `ssh:host`.
    pub(crate) address: Option<String>,
    /// The user to be there.
    pub(crate) user: Option<String>,
    /// Its port.
    #[serde(default, deserialize_with = "port")]
    pub(crate) port: Option<u16>,
    /// The keys to prove oneself with, instead of the usual ones.
    #[serde(default, deserialize_with = "files")]
    pub(crate) identity: Vec<PathBuf>,
    /// A shared secret to prove oneself with.
    #[serde(default, deserialize_with = "file")]
    pub(crate) secret: Option<PathBuf>,
    /// See [`Trust`].
    pub(crate) trust: Option<Trust>,
    /// How long one waits for a connection.
    #[serde(default, deserialize_with = "some_time")]
    pub(crate) connect_timeout: Option<Milliseconds>,
    /// See [`OnDisconnect`].
    pub(crate) on_disconnect: Option<OnDisconnect>,
    /// How long a job is kept when the line breaks, and one tries to get back to it.
    pub(crate) grace: Option<Milliseconds>,
    /// How long the line may be silent.
    pub(crate) silence: Option<Milliseconds>,
    /// See [`Spool`].
    pub(crate) spool: Option<Spool>,
    /// How much is kept of each stream of a detached job.
    #[serde(default, deserialize_with = "some_bytes")]
    pub(crate) spool_bytes: Option<u64>,
}

/// `config.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientConfig {
    defaults: HostSettings,
    hosts: BTreeMap<String, HostSettings>,
}

/// The keys of the file: the defaults at the top, and `[host.NAME]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    user: Option<String>,
    #[serde(default, deserialize_with = "port")]
    port: Option<u16>,
    #[serde(default, deserialize_with = "files")]
    identity: Vec<PathBuf>,
    #[serde(default, deserialize_with = "file")]
    secret: Option<PathBuf>,
    trust: Option<Trust>,
    #[serde(default, deserialize_with = "some_time")]
    connect_timeout: Option<Milliseconds>,
    on_disconnect: Option<OnDisconnect>,
    grace: Option<Milliseconds>,
    silence: Option<Milliseconds>,
    spool: Option<Spool>,
    #[serde(default, deserialize_with = "some_bytes")]
    spool_bytes: Option<u64>,
    #[serde(default)]
    host: BTreeMap<HostName, HostSettings>,
}

/// The name of a `[host.NAME]`: no other kind of TARGET looks like it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HostName(String);

impl ClientConfig {
    /// Reads `$XDG_CONFIG_HOME/bowline/config.toml`, or nothing where it is missing.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn load() -> Result<Self, ConfigError> {
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let Some(home) = home else {
            return Ok(Self::default());
        };
        let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
        let config = config
            .filter(|config| config.is_absolute())
            .unwrap_or_else(|| home.join(".config"));
        let path = config.join("bowline/config.toml");
        let file = file::read::<ClientFile>(&path)?;
        Ok(file.map_or_else(Self::default, |file| Self::from_file(file, &home)))
    }

    #[cfg(test)]
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let file = file::parse(text, Path::new("config.toml"))?;
        Ok(Self::from_file(file, Path::new("/home/ann")))
    }

    fn from_file(file: ClientFile, home: &Path) -> Self {
        let defaults = HostSettings {
            address: None,
            user: file.user,
            port: file.port,
            identity: file.identity,
            secret: file.secret,
            trust: file.trust,
            connect_timeout: file.connect_timeout,
            on_disconnect: file.on_disconnect,
            grace: file.grace,
            silence: file.silence,
            spool: file.spool,
            spool_bytes: file.spool_bytes,
        };
        let hosts = file.host.into_iter();
        Self {
            hosts: hosts
                .map(|(HostName(name), host)| (name, at_home(host, home)))
                .collect(),
            defaults: at_home(defaults, home),
        }
    }

    /// What is set for a host of that name, with the defaults for the rest;
    /// where the name is not in the file, the defaults alone.
    pub(crate) fn settings(&self, name: &str) -> HostSettings {
        let host = self.hosts.get(name).cloned().unwrap_or_default();
        let defaults = self.defaults.clone();
        HostSettings {
            address: host.address,
            user: host.user.or(defaults.user),
            port: host.port.or(defaults.port),
            identity: match host.identity.is_empty() {
                true => defaults.identity,
                false => host.identity,
            },
            secret: host.secret.or(defaults.secret),
            trust: host.trust.or(defaults.trust),
            connect_timeout: host.connect_timeout.or(defaults.connect_timeout),
            on_disconnect: host.on_disconnect.or(defaults.on_disconnect),
            grace: host.grace.or(defaults.grace),
            silence: host.silence.or(defaults.silence),
            spool: host.spool.or(defaults.spool),
            spool_bytes: host.spool_bytes.or(defaults.spool_bytes),
        }
    }
}

/// With the files that are said to be below the home folder there.
fn at_home(mut settings: HostSettings, home: &Path) -> HostSettings {
    for path in settings.identity.iter_mut().chain(&mut settings.secret) {
        if let Ok(below) = path.strip_prefix("~") {
            *path = home.join(below);
        }
    }
    settings
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        if name.is_empty() || name == "local" || name.contains([':', '@', '/', '[', ' ']) {
            return Err(D::Error::custom(format!(
                "the host {name:?} could be taken for another kind of TARGET; give it another name"
            )));
        }
        Ok(Self(name))
    }
}

fn port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    match u16::deserialize(from)? {
        0 => Err(D::Error::custom(
            "port 0 is no port to connect to; use 1 to 65535",
        )),
        port => Ok(Some(port)),
    }
}

fn some_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Milliseconds>, D::Error> {
    match Milliseconds::deserialize(from)? {
        Milliseconds(0) => Err(D::Error::custom(
            "nothing is done in no time; leave it out for the default",
        )),
        time => Ok(Some(time)),
    }
}

fn some_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    match u64::deserialize(from)? {
        0 => Err(D::Error::custom(
            "0 bytes are no room for output; leave it out for as much as the server permits",
        )),
        bytes => Ok(Some(bytes)),
    }
}

fn file<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.is_absolute() || path.starts_with("~") {
        return Ok(Some(path));
    }
    let path = path.display();
    Err(D::Error::custom(format!(
        "the file {path} must begin with / or ~/"
    )))
}

fn files<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(deserialize_with = "file")] Option<PathBuf>);
    let files = Vec::<One>::deserialize(from)?;
    Ok(files.into_iter().filter_map(|One(file)| file).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_valid_and_its_defaults_are_the_defaults() {
        let text = include_str!("../../../../docs/client.toml");
        assert_eq!(ClientConfig::parse(text).unwrap(), ClientConfig::default());
        let lines = text.lines().map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => key,
            _ => line,
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        let all = ClientConfig::parse(&text).unwrap();
        let host = all.settings("build");
        assert_eq!(host.address.as_deref(), Some("build7.example.com"));
        assert_eq!(host.user.as_deref(), Some("ci"));
        assert_eq!(host.port, Some(7322));
        assert_eq!(host.identity, [PathBuf::from("/home/ann/.ssh/ci_ed25519")]);
        assert_eq!(host.trust, Some(Trust::Strict));
        assert!(host.secret.is_some());
        assert_eq!(host.on_disconnect, Some(OnDisconnect::Kill));
        assert_eq!(host.silence, Some(Milliseconds(60_000)));
        assert_eq!(host.connect_timeout, Some(Milliseconds(30_000)));
        assert_eq!(host.spool, Some(Spool::DropOldest));
        assert_eq!(host.spool_bytes, Some(16_777_216));
        let other = all.settings("other");
        assert_eq!(other.on_disconnect, Some(OnDisconnect::Keep));
        assert_eq!(host.grace, other.grace);
        assert_eq!(other.grace, Some(Milliseconds(600_000)));
        assert_eq!(all.settings("other").trust, Some(Trust::Ask));
        assert_eq!(other.connect_timeout, Some(Milliseconds(15_000)));
        assert_eq!(other.spool, Some(Spool::Block));
        assert_eq!(other.spool_bytes, Some(268_435_456));
    }

    #[test]
    fn a_host_inherits_the_defaults_and_overrides_them() {
        let text = "user = \"ann\"\nport = 1\nidentity = [\"~/a\"]\n[host.x]\nport = 2\n\
                    [host.y]\naddress = \"192.0.2.1\"\nuser = \"root\"\nidentity = [\"/b\"]";
        let config = ClientConfig::parse(text).unwrap();
        let x = config.settings("x");
        assert_eq!((x.user.as_deref(), x.port), (Some("ann"), Some(2)));
        assert_eq!(x.identity, [PathBuf::from("/home/ann/a")]);
        let y = config.settings("y");
        assert_eq!((y.user.as_deref(), y.port), (Some("root"), Some(1)));
        assert_eq!(y.identity, [PathBuf::from("/b")]);
        assert_eq!(config.settings("z").address, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let error = |text: &str| ClientConfig::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("[host.x]\nadress = \"y\""),
            "config.toml:2: there is no key `adress`; did you mean `address`?"
        );
        for (text, what) in [
            (
                "trust = \"always\"",
                "expected one of `ask`, `new`, `strict`",
            ),
            ("port = 65536", "expected u16"),
            ("port = 0", "use 1 to 65535"),
            ("on_disconnect = \"wait\"", "expected `keep` or `kill`"),
            ("grace = \"10\"", "a duration is a number with"),
            ("silence = 20", "expected a string"),
            ("connect_timeout = \"5\"", "a duration is a number with"),
            ("connect_timeout = \"0\"", "leave it out"),
            (
                "spool = \"drop_oldest\"",
                "expected one of `block`, `drop-oldest`, `kill`",
            ),
            ("spool_bytes = 0", "leave it out"),
            ("spool_bytes = -1", "expected u64"),
            ("spool_bytes = \"1G\"", "expected u64"),
            ("identity = [\"~/a\", \"key\"]", "must begin with / or ~/"),
            ("secret = \"key\"", "must begin with / or ~/"),
        ] {
            for (before, line) in [("", 1), ("[host.x]\nuser = \"ann\"\n", 3)] {
                let said = error(&format!("{before}{text}"));
                assert!(said.starts_with(&format!("config.toml:{line}: ")), "{said}");
                assert!(said.contains(what), "{said}");
            }
        }
        for name in ["local", "\"a:b\"", "\"\"", "\"a b\""] {
            let said = error(&format!("port = 1\n[host.{name}]\nport = 2"));
            assert!(said.starts_with("config.toml:2: the host "), "{said}");
            assert!(said.ends_with("give it another name"), "{said}");
        }
    }
}
