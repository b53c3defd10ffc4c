//! The client's configuration: named hosts, and defaults for all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

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

/// What is set for one host, or for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostSettings {
    /// Where it is, as a TARGET without a user: `192.0.2.7`, `unix:/run/x`, `ssh:host`.
    pub(crate) address: Option<String>,
    /// The user to be there.
    pub(crate) user: Option<String>,
    /// Its port.
    pub(crate) port: Option<u16>,
    /// The keys to prove oneself with, instead of the usual ones.
    #[serde(default)]
    pub(crate) identity: Vec<PathBuf>,
    /// A shared secret to prove oneself with.
    pub(crate) secret: Option<PathBuf>,
    /// See [`Trust`].
    pub(crate) trust: Option<Trust>,
    /// See [`OnDisconnect`].
    pub(crate) on_disconnect: Option<OnDisconnect>,
    /// How long a job is kept when the line breaks, and one tries to get back to it.
    pub(crate) grace: Option<Milliseconds>,
    /// How long the line may be silent.
    pub(crate) silence: Option<Milliseconds>,
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
    port: Option<u16>,
    #[serde(default)]
    identity: Vec<PathBuf>,
    secret: Option<PathBuf>,
    trust: Option<Trust>,
    on_disconnect: Option<OnDisconnect>,
    grace: Option<Milliseconds>,
    silence: Option<Milliseconds>,
    #[serde(default)]
    host: BTreeMap<String, HostSettings>,
}

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
        match file::read::<ClientFile>(&path)? {
            Some(file) => Self::from_file(file, &home),
            None => Ok(Self::default()),
        }
    }

    #[cfg(test)]
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::from_file(
            file::parse(text, Path::new("config.toml"))?,
            Path::new("/home/ann"),
        )
    }

    fn from_file(file: ClientFile, home: &Path) -> Result<Self, ConfigError> {
        let defaults = HostSettings {
            address: None,
            user: file.user,
            port: file.port,
            identity: file.identity,
            secret: file.secret,
            trust: file.trust,
            on_disconnect: file.on_disconnect,
            grace: file.grace,
            silence: file.silence,
        };
        let hosts = file.host.into_iter().map(|(name, host)| {
            if name.is_empty() || name == "local" || name.contains([':', '@', '/', '[', ' ']) {
                let message = "the name could be taken for another kind of TARGET";
                return Err(ConfigError::value(format!("host.{name}"), message));
            }
            let host = checked(host, &format!("host.{name}"), home)?;
            Ok((name, host))
        });
        Ok(Self {
            hosts: hosts.collect::<Result<_, _>>()?,
            defaults: checked(defaults, "port", home)?,
        })
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
            on_disconnect: host.on_disconnect.or(defaults.on_disconnect),
            grace: host.grace.or(defaults.grace),
            silence: host.silence.or(defaults.silence),
        }
    }
}

fn checked(
    mut settings: HostSettings,
    key: &str,
    home: &Path,
) -> Result<HostSettings, ConfigError> {
    if settings.port == Some(0) {
        return Err(ConfigError::value(key, "port 0 is no port to connect to"));
    }
    for path in settings.identity.iter_mut().chain(&mut settings.secret) {
        if let Ok(below) = path.strip_prefix("~") {
            *path = home.join(below);
        }
        if !path.is_absolute() {
            let message = format!("{} must begin with / or ~/", path.display());
            return Err(ConfigError::value(key, message));
        }
    }
    Ok(settings)
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
        let other = all.settings("other");
        assert_eq!(other.on_disconnect, Some(OnDisconnect::Keep));
        assert_eq!(host.grace, other.grace);
        assert_eq!(other.grace, Some(Milliseconds(600_000)));
        assert_eq!(all.settings("other").trust, Some(Trust::Ask));
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
        let error = |text| ClientConfig::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("[host.x]\nadress = \"y\""),
            "config.toml:2: there is no key `adress`; did you mean `address`?"
        );
        assert!(error("trust = \"always\"").starts_with("config.toml:1: "));
        assert!(error("port = 65536").starts_with("config.toml:1: "));
        assert!(error("on_disconnect = \"wait\"").starts_with("config.toml:1: "));
        assert!(error("grace = \"10\"").contains("a duration is"));
        assert!(error("port = 0").contains("port 0"));
        assert!(error("[host.local]").starts_with("host.local: "));
        assert!(error("[host.\"a:b\"]").starts_with("host.a:b: "));
        assert!(error("[host.x]\nidentity = [\"key\"]").starts_with("host.x: "));
    }
}
