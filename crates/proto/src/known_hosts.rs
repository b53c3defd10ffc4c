//! known_hosts: which keys a host is known by (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
//!
//! Owns the syntax of its lines and the name that a host has in them. It reads no file and computes no hash: the
//! library hands in HMAC-SHA1, which hashed names need. It judges nothing either: what follows from a line is
//! for the library to say. The bytes of a file enter; views of its lines leave.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::key::{KeyError, PublicKey};
use crate::pattern::{self, ListMatch};

/// The port of bowline, under which a host has its plain name.
pub const DEFAULT_PORT: u16 = 7322;
/// The most bytes of a file that are read.
pub const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most bytes of a line.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// What a line says besides "this is the host's key".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// `@revoked`: the key must never be accepted for these hosts.
    Revoked,
    /// `@cert-authority`: the key signs host certificates, which bowline does not use.
    CertAuthority,
}

/// Why a line counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than [`LINE_BYTES_MAX`].
    #[error("the line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// A marker that is not known.
    #[error("the marker is not known")]
    Marker,
    /// Host, type or key is missing.
    #[error("the line needs a host, a key type and a key")]
    Missing,
    /// A hashed name is not `|1|salt|hash`.
    #[error("the hashed name is malformed")]
    Hash,
}

/// A line that counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Warning {
    /// Its number; the first is 1.
    pub line: usize,
    /// Why.
    pub reason: LineError,
}

/// A line taken apart; its key is not decoded yet, as most lines are of other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number; the first is 1.
    pub number: usize,
    /// `@revoked` or `@cert-authority`.
    pub marker: Option<Marker>,
    hosts: Hosts<'a>,
    algorithm: &'a [u8],
    base64: &'a [u8],
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts<'a> {
    Patterns(&'a [u8]),
    Hashed { salt: [u8; 20], hash: [u8; 20] },
}

/// Takes the lines of a file apart, without the empty ones and the comments.
pub fn lines(file: &[u8]) -> impl Iterator<Item = Result<Line<'_>, Warning>> {
    file.split(|byte| *byte == b'\n')
        .enumerate()
        .map(|(index, text)| (index + 1, text.trim_ascii()))
        .filter(|(_, text)| !text.is_empty() && !text.starts_with(b"#"))
        .map(|(line, text)| parse_line(line, text).map_err(|reason| Warning { line, reason }))
}

/// The name under which a host stands: `host` on bowline's own port, else `[host]:port`; in lower case.
pub fn entry_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    match port {
        DEFAULT_PORT => host,
        port => format!("[{host}]:{port}"),
    }
}

/// Writes a line, with its end, that pins a key to a name; `None` if the name cannot stand in such a file.
pub fn write_line(name: &str, key: &PublicKey) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%[]".contains(&byte);
    (!name.is_empty() && name.bytes().all(plain)).then(|| format!("{name} {key}\n"))
}

impl Line<'_> {
    /// Whether the line speaks of a host, under the name that [`entry_name`] gives.
    ///
    /// `hmac_sha1` computes HMAC-SHA1 (RFC 2104) from key and message.
    pub fn names(&self, name: &str, hmac_sha1: impl Fn(&[u8], &[u8]) -> [u8; 20]) -> bool {
        match &self.hosts {
            Hosts::Patterns(list) => pattern::matches_list(list, name.as_bytes()) == ListMatch::Yes,
            Hosts::Hashed { salt, hash } => hmac_sha1(salt, name.as_bytes()) == *hash,
        }
    }

    /// Whether it holds exactly this key; cheaper than to decode it.
    pub fn has_key(&self, key: &PublicKey) -> bool {
        // Base64 has one canonical form, and OpenSSH writes no other.
        self.algorithm == key.algorithm().name().as_bytes()
            && self.base64 == STANDARD.encode(key.blob()).as_bytes()
    }

    /// Decodes the key.
    ///
    /// # Errors
    /// [`KeyError`]; `UnknownAlgorithm` for types that other programs use.
    pub fn key(&self) -> Result<PublicKey, KeyError> {
        let text = |bytes| std::str::from_utf8(bytes);
        let algorithm = text(self.algorithm).map_err(|_| KeyError::UnknownAlgorithm)?;
        let base64 = text(self.base64).map_err(|_| KeyError::NotBase64)?;
        PublicKey::from_fields(algorithm, base64)
    }
}

fn parse_line(number: usize, text: &[u8]) -> Result<Line<'_>, LineError> {
    if text.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    let mut words = text
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty());
    let mut next = || words.next().ok_or(LineError::Missing);
    let mut hosts = next()?;
    let marker = match hosts {
        b"@revoked" => Some(Marker::Revoked),
        b"@cert-authority" => Some(Marker::CertAuthority),
        [b'@', ..] => return Err(LineError::Marker),
        _ => None,
    };
    if marker.is_some() {
        hosts = next()?;
    }
    let hosts = match hosts {
        [b'|', ..] => parse_hash(hosts).ok_or(LineError::Hash)?,
        list => Hosts::Patterns(list),
    };
    Ok(Line {
        number,
        marker,
        hosts,
        algorithm: next()?,
        base64: next()?,
    })
}

fn parse_hash(text: &[u8]) -> Option<Hosts<'static>> {
    let mut parts = text.strip_prefix(b"|1|")?.split(|byte| *byte == b'|');
    let mut next = || -> Option<[u8; 20]> { STANDARD.decode(parts.next()?).ok()?.try_into().ok() };
    let (salt, hash) = (next()?, next()?);
    parts
        .next()
        .is_none()
        .then_some(Hosts::Hashed { salt, hash })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

    fn no_hash(_: &[u8], _: &[u8]) -> [u8; 20] {
        [0; 20]
    }

    fn one(text: &str) -> Result<Line<'_>, LineError> {
        let mut lines = lines(text.as_bytes());
        let line = lines.next().unwrap();
        assert!(lines.next().is_none());
        line.map_err(|warning| warning.reason)
    }

    #[test]
    fn names_are_matched() {
        for (hosts, name, expected) in [
            ("host", "host", true),
            ("HOST", "host", true),
            ("host", "host.example.com", false),
            ("a,host,b", "host", true),
            ("*.example.com,!bad.example.com", "good.example.com", true),
            ("*.example.com,!bad.example.com", "bad.example.com", false),
            ("[host]:9000", "[host]:9000", true),
            ("[host]:9000", "host", false),
            ("[*.example.com]:90?0", "[a.example.com]:9010", true),
            ("::1", "::1", true),
        ] {
            let text = format!("{hosts} {KEY} comment");
            let line = one(&text).unwrap();
            assert_eq!(line.names(name, no_hash), expected, "{hosts} {name}");
        }
        assert_eq!(entry_name("Host.Example", DEFAULT_PORT), "host.example");
        assert_eq!(entry_name("::1", 22), "[::1]:22");
    }

    #[test]
    fn hashed_names_are_compared_with_the_hash() {
        let (salt, hash) = (STANDARD.encode([1; 20]), STANDARD.encode([2; 20]));
        let text = format!("|1|{salt}|{hash} {KEY}");
        let line = one(&text).unwrap();
        let hmac = |key: &[u8], message: &[u8]| {
            assert_eq!(key, [1; 20]);
            if message == b"host" { [2; 20] } else { [3; 20] }
        };
        assert!(line.names("host", hmac));
        assert!(!line.names("other", hmac));
        for bad in [
            format!("|2|{salt}|{hash}"),
            format!("|1|{salt}"),
            format!("|1|{salt}|{hash}|"),
            format!("|1|{salt}|{hash},other"),
            format!("|1|{}|{hash}", STANDARD.encode([1; 19])),
            "|1|*|*".to_owned(),
            "|".to_owned(),
        ] {
            assert_eq!(one(&format!("{bad} {KEY}")), Err(LineError::Hash), "{bad}");
        }
    }

    #[test]
    fn markers_keys_and_malformed_lines() {
        let key = PublicKey::from_line(KEY).unwrap().0;
        let text = format!("@revoked\thost  {KEY}");
        let line = one(&text).unwrap();
        assert_eq!(line.marker, Some(Marker::Revoked));
        assert_eq!(line.key().as_ref(), Ok(&key));
        assert!(line.has_key(&key));
        assert!(!line.has_key(&PublicKey::from_ed25519(&[0; 32])));
        let text = format!("@cert-authority *.example.com {KEY}");
        assert_eq!(one(&text).unwrap().marker, Some(Marker::CertAuthority));
        assert_eq!(one("@other host a b"), Err(LineError::Marker));
        for text in [
            "host",
            "host ssh-ed25519",
            "@revoked",
            "@revoked host ssh-ed25519",
        ] {
            assert_eq!(one(text), Err(LineError::Missing), "{text}");
        }
        assert_eq!(
            one("host ssh-dss AAAA").unwrap().key(),
            Err(KeyError::UnknownAlgorithm)
        );
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        assert_eq!(one(&long), Err(LineError::TooLong));
    }

    #[test]
    fn lines_are_counted_and_written() {
        let key = PublicKey::from_line(KEY).unwrap().0;
        let mut file = String::from("# comment\n\nbad\n");
        file.push_str(&write_line("host", &key).unwrap());
        file.push_str(&write_line("[::1]:22", &key).unwrap());
        let found: Vec<_> = lines(file.as_bytes()).collect();
        assert_eq!(found.len(), 3);
        assert_eq!(
            found[0].as_ref().unwrap_err().to_string(),
            "line 3: the line needs a host, a key type and a key"
        );
        assert_eq!(found[1].as_ref().unwrap().number, 4);
        assert!(found[2].as_ref().unwrap().names("[::1]:22", no_hash));
        for name in [
            "", "a b", "a,b", "*", "!a", "|1|", "#x", "@revoked", "a\nb", "ä",
        ] {
            assert_eq!(write_line(name, &key), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            parts in prop::collection::vec(
                prop_oneof![
                    any::<Vec<u8>>(),
                    prop::sample::select(vec![KEY, "\n", " ", "|1|", "|", "@revoked ", "host ", "!*,", "AAAA"])
                        .prop_map(|text| text.as_bytes().to_vec()),
                ],
                0..12,
            )
        ) {
            let file = parts.concat();
            for line in lines(&file).flatten() {
                let _ = line.names("host", no_hash);
                let decoded = line.key();
                if let Ok(key) = decoded {
                    prop_assert!(line.has_key(&key));
                }
            }
        }
    }
}
