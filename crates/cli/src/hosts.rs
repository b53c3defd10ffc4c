//! Whether a server's host key is believed: known_hosts, and a person who is asked.

use std::io;
use std::path::PathBuf;

use bowline::client::{HostKeyError, HostTrust};
use bowline::credentials::fingerprint;
use bowline::credentials::places::Places;
use bowline::credentials::trust::{HostDatabase, Place, TrustError, Verdict};
use bowline_proto::key::PublicKey;

use crate::config::Trust;
use crate::stderr::tell;
use crate::terminal::Terminal;

/// The known hosts of this user.
#[derive(Debug)]
pub(crate) struct Hosts {
    mode: Trust,
    files: Files,
    /// The server proves itself by other means: an unknown key is no obstacle.
    proven_otherwise: bool,
}

#[derive(Clone, Debug)]
struct Files {
    own: PathBuf,
    ssh: Vec<PathBuf>,
}

impl Hosts {
    pub(crate) fn new(places: &Places, mode: Trust, proven_otherwise: bool) -> Self {
        let ssh = places.home().join(".ssh/known_hosts");
        Self {
            mode,
            files: Files {
                own: places.known_hosts(),
                ssh: vec![ssh, PathBuf::from("/etc/ssh/ssh_known_hosts")],
            },
            proven_otherwise,
        }
    }
}

impl HostTrust for Hosts {
    fn check(&mut self, host: &str, port: u16, key: &[u8; 32]) -> Result<(), HostKeyError> {
        let key = PublicKey::from_ed25519(key);
        let mut database = self.files.load()?;
        match judge(&database, host, port, &key)? {
            true => Ok(()),
            false if self.proven_otherwise => Ok(()),
            false => self.decide(&mut database, host, port, &key),
        }
    }
}

impl Hosts {
    /// What becomes of a key that nothing is known about.
    fn decide(
        &self,
        database: &mut HostDatabase,
        host: &str,
        port: u16,
        key: &PublicKey,
    ) -> Result<(), HostKeyError> {
        // The host may well be in a file that others could have written.
        for error in database.unusable() {
            let said = crate::exit::chain(error);
            tell!("bowline: {said} [known_hosts_unusable]");
        }
        match self.mode {
            Trust::Strict => Err(unknown(host, port, key)),
            Trust::New => {
                pin(database, host, port, key)?;
                let name = name(host, port);
                tell!(
                    "bowline: {name} is new; pinned its host key {}",
                    fingerprint(key)
                );
                Ok(())
            }
            Trust::Ask => {
                if !ask(host, port, key).unwrap_or(false) {
                    return Err(unknown(host, port, key));
                }
                pin(database, host, port, key)
            }
        }
    }
}

impl Files {
    fn load(&self) -> Result<HostDatabase, HostKeyError> {
        HostDatabase::load(&self.own, &self.ssh).map_err(|error| unusable(&self.own, error))
    }
}

/// What `bowline trust` does: shows the key, and pins it where that is wanted.
#[derive(Debug)]
pub(crate) struct Pinning {
    files: Files,
    /// Pin without asking.
    pub(crate) yes: bool,
    /// Pin only this key.
    pub(crate) expected: Option<String>,
    /// What came of it.
    pub(crate) result: Option<Pinned>,
}

/// What came of `bowline trust`.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    pub(crate) host: String,
    pub(crate) fingerprint: String,
    pub(crate) key: String,
    pub(crate) verdict: &'static str,
}

impl Pinning {
    pub(crate) fn new(places: &Places, yes: bool, expected: Option<String>) -> Self {
        Self {
            files: Hosts::new(places, Trust::Strict, false).files,
            yes,
            expected,
            result: None,
        }
    }
}

impl HostTrust for Pinning {
    fn check(&mut self, host: &str, port: u16, key: &[u8; 32]) -> Result<(), HostKeyError> {
        let key = PublicKey::from_ed25519(key);
        let mut pinned = Pinned {
            host: name(host, port),
            fingerprint: fingerprint(&key),
            key: key.to_string(),
            verdict: "known",
        };
        let mut database = self.files.load()?;
        if !judge(&database, host, port, &key)? {
            let wanted = match &self.expected {
                Some(expected) => *expected == pinned.fingerprint,
                None => self.yes || ask(host, port, &key).unwrap_or(false),
            };
            if !wanted {
                return Err(unknown(host, port, &key));
            }
            pin(&mut database, host, port, &key)?;
            pinned.verdict = "pinned";
        }
        self.result = Some(pinned);
        Ok(())
    }
}

/// Whether the key is known; a key that must not be believed is an error.
fn judge(
    database: &HostDatabase,
    host: &str,
    port: u16,
    key: &PublicKey,
) -> Result<bool, HostKeyError> {
    match database.check(host, port, key) {
        Verdict::Known(place) => {
            tracing::info!(file = %place.file.display(), line = place.line, "the host key is known");
            Ok(true)
        }
        Verdict::Unknown => Ok(false),
        Verdict::Changed { place, .. } => Err(HostKeyError::Changed {
            host: name(host, port),
            place: shown(&place),
            fingerprint: fingerprint(key),
        }),
        Verdict::Revoked(place) => Err(HostKeyError::Revoked {
            host: name(host, port),
            place: shown(&place),
        }),
    }
}

fn pin(
    database: &mut HostDatabase,
    host: &str,
    port: u16,
    key: &PublicKey,
) -> Result<(), HostKeyError> {
    let pinned = database.pin(host, port, key);
    pinned.map(drop).map_err(|error| HostKeyError::File {
        place: format!("the pin of {}", name(host, port)),
        source: io::Error::other(error),
    })
}

fn unusable(own: &std::path::Path, error: TrustError) -> HostKeyError {
    HostKeyError::File {
        place: own.display().to_string(),
        source: io::Error::other(error),
    }
}

fn unknown(host: &str, port: u16, key: &PublicKey) -> HostKeyError {
    HostKeyError::Unknown {
        host: name(host, port),
        fingerprint: fingerprint(key),
    }
}

/// As a file names it.
fn name(host: &str, port: u16) -> String {
    bowline_proto::known_hosts::entry_name(host, port)
}

fn shown(place: &Place) -> String {
    format!("{}, line {}", place.file.display(), place.line)
}

/// Asks on the terminal. `None` where there is none, or nobody answers.
fn ask(host: &str, port: u16, key: &PublicKey) -> Option<bool> {
    let terminal = Terminal::open()?;
    let fingerprint = fingerprint(key);
    let mut question = format!(
        "The host key of {} is not known.\n{} {fingerprint}\nIs it the right one? (yes, no, or the fingerprint) ",
        name(host, port),
        key.algorithm().name(),
    );
    loop {
        match terminal.ask(&question)?.trim() {
            "yes" => return Some(true),
            "no" => return Some(false),
            answer if answer == fingerprint => return Some(true),
            _ => "Please type yes, no or the fingerprint: ".clone_into(&mut question),
        }
    }
}
