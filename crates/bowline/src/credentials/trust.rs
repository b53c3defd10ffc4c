//! Which host keys a client believes.
//!
//! Owns the verdict about a host's key and the file in which bowline pins keys. bowline's own file decides; an
//! entry that ssh made for the plain name of a host may confirm a key and never contradicts one, because ssh's
//! server on that host may have another key than bowline's. A key that is revoked in any of the files is refused.
//! Whether an unknown host is asked about, taken or refused is the caller's part.
//!
//! | what the files say | verdict |
//! | --- | --- |
//! | a file: the key is revoked for the host | [`Verdict::Revoked`] |
//! | own file: the host has this key | [`Verdict::Known`] |
//! | own file: the host has another key of this type | [`Verdict::Changed`] |
//! | ssh's file: the host, by its plain name, has this key | [`Verdict::Known`] |
//! | nothing of that | [`Verdict::Unknown`] |
//!
//! Lines with `@cert-authority` say nothing here: bowline's servers show no certificates.

use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use bowline_proto::key::PublicKey;
use bowline_proto::known_hosts::{self, DEFAULT_PORT, FILE_BYTES_MAX, Line, LineError, Marker};

use super::line_file;
use super::private_file::{self, FileError};

/// The most warnings that are kept about the files.
const WARNINGS_MAX: usize = 32;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line; the first is 1.
    pub line: usize,
}

/// What is known about a host's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's key.
    Known(Place),
    /// Nothing is known about the host.
    Unknown,
    /// The host had another key: it was given a new one, or somebody is between.
    Changed {
        /// Where the other key stands.
        place: Place,
        /// The other key.
        expected: PublicKey,
    },
    /// The key was declared unfit.
    Revoked(Place),
}

/// Why a file cannot be used or a key not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// bowline's own file cannot be read, written or relied on.
    #[error(transparent)]
    File(#[from] FileError),
    /// The host's name cannot stand in a known_hosts file.
    #[error("the host's name cannot stand in a known_hosts file")]
    Name,
    /// While it was to be pinned, the host turned out to have another key, or the key to be revoked.
    #[error("another key is pinned for the host in {}, line {}", .0.file.display(), .0.line)]
    Contradiction(Place),
}

/// The hosts that bowline pinned and those that ssh knows, as the files say at one moment.
#[derive(Debug)]
pub struct HostDatabase {
    own: KnownHosts,
    ssh: Vec<KnownHosts>,
    unusable: Vec<FileError>,
}

#[derive(Debug)]
struct KnownHosts {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl HostDatabase {
    /// Reads the files; missing ones are empty.
    ///
    /// One of ssh's files that cannot be read, or that others may change, is left out and named by
    /// [`HostDatabase::unusable`].
    ///
    /// # Errors
    /// [`TrustError::File`] if bowline's own file is there and cannot be used: its pins must not be forgotten.
    pub fn load(own: &Path, ssh: &[PathBuf]) -> Result<HostDatabase, TrustError> {
        let mut unusable = Vec::new();
        let mut known = Vec::new();
        for path in ssh {
            match read(path) {
                Ok(file) => known.push(file),
                Err(error) => unusable.push(error),
            }
        }
        Ok(HostDatabase {
            own: read(own)?,
            ssh: known,
            unusable,
        })
    }

    /// Says what is known about the key that a host showed.
    pub fn check(&self, host: &str, port: u16, key: &PublicKey) -> Verdict {
        let name = known_hosts::entry_name(host, port);
        // ssh knows the machine by its plain name, whatever port bowline has there.
        let plain = known_hosts::entry_name(host, DEFAULT_PORT);
        let own = self.own.judge(&name, key);
        let ssh: Vec<_> = self
            .ssh
            .iter()
            .filter_map(|file| file.confirm(&plain, key))
            .collect();
        let mut all = own.iter().chain(&ssh);
        let revoked = all.find(|verdict| matches!(verdict, Verdict::Revoked(_)));
        match revoked {
            Some(revoked) => revoked.clone(),
            None => own
                .into_iter()
                .chain(ssh)
                .next()
                .unwrap_or(Verdict::Unknown),
        }
    }

    /// Pins a key to a host in bowline's own file, and says whether a line was added: not if it is there already.
    ///
    /// # Errors
    /// [`TrustError`]; a line that contradicts is never overruled.
    pub fn pin(&mut self, host: &str, port: u16, key: &PublicKey) -> Result<bool, TrustError> {
        let name = known_hosts::entry_name(host, port);
        let line = known_hosts::write_line(&name, key).ok_or(TrustError::Name)?;
        let path = self.own.path.clone();
        let added = line_file::append(&path, FILE_BYTES_MAX, |bytes| {
            // Another bowline may have pinned a key since the file was read.
            let file = KnownHosts {
                path: path.clone(),
                bytes: bytes.to_vec(),
            };
            match file.judge(&name, key) {
                None | Some(Verdict::Unknown) => Ok(Some(line)),
                Some(Verdict::Known(_)) => Ok(None),
                Some(Verdict::Changed { place, .. } | Verdict::Revoked(place)) => {
                    Err(TrustError::Contradiction(place))
                }
            }
        })?;
        self.own = read(&path)?;
        Ok(added)
    }

    /// The files of ssh that were left out, and why.
    pub fn unusable(&self) -> &[FileError] {
        &self.unusable
    }

    /// The first lines, of all files, that count for nothing.
    pub fn refused_lines(&self) -> Vec<(Place, LineError)> {
        std::iter::once(&self.own)
            .chain(&self.ssh)
            .flat_map(|file| {
                let refused = known_hosts::lines(&file.bytes).filter_map(Result::err);
                refused.map(|warning| (file.place(warning.line), warning.reason))
            })
            .take(WARNINGS_MAX)
            .collect()
    }
}

impl KnownHosts {
    /// What bowline's own file says about a key; `None` if it does not know the host.
    fn judge(&self, name: &str, key: &PublicKey) -> Option<Verdict> {
        let mut judged = None;
        for line in self.lines() {
            if !line.names(name, hmac_sha1) {
                continue;
            }
            let place = self.place(line.number);
            match (line.marker, line.has_key(key)) {
                (Some(Marker::Revoked), true) => return Some(Verdict::Revoked(place)),
                (None, true) => judged = Some(Verdict::Known(place)),
                (None, false) if judged.is_none() => judged = self.other_key(&line, key),
                _ => {}
            }
        }
        judged
    }

    /// A line of the host with another key contradicts if that key is of the same type: a host may have several.
    fn other_key(&self, line: &Line<'_>, key: &PublicKey) -> Option<Verdict> {
        let expected = line.key().ok()?;
        (expected.algorithm() == key.algorithm()).then(|| Verdict::Changed {
            place: self.place(line.number),
            expected,
        })
    }

    /// What one of ssh's files may say about a key: that it is the host's, or revoked.
    fn confirm(&self, plain: &str, key: &PublicKey) -> Option<Verdict> {
        let mut confirmed = None;
        // The cheap comparison goes first: the name may have to be hashed.
        let lines = self.lines().filter(|line| line.has_key(key));
        for line in lines.filter(|line| line.names(plain, hmac_sha1)) {
            let place = self.place(line.number);
            match line.marker {
                Some(Marker::Revoked) => return Some(Verdict::Revoked(place)),
                Some(Marker::CertAuthority) => {}
                None if confirmed.is_none() => confirmed = Some(Verdict::Known(place)),
                None => {}
            }
        }
        confirmed
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        known_hosts::lines(&self.bytes).filter_map(Result::ok)
    }

    fn place(&self, line: usize) -> Place {
        Place {
            file: self.path.clone(),
            line,
        }
    }
}

fn read(path: &Path) -> Result<KnownHosts, FileError> {
    let bytes = match private_file::read_trusted(path, FILE_BYTES_MAX) {
        Err(error) if error.is_not_found() => Vec::new(),
        read => read?,
    };
    Ok(KnownHosts {
        path: path.to_owned(),
        bytes,
    })
}

/// HMAC-SHA1, which hashed names are made with; it hides names and protects nothing.
fn hmac_sha1(key: &[u8], message: &[u8]) -> [u8; 20] {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    let mut mac = [0; 20];
    // The tag of HMAC-SHA1 has 20 bytes by definition.
    mac.copy_from_slice(hmac::sign(&key, message).as_ref());
    mac
}
