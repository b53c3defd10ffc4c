//! SOURCE and DEST as scp writes them.
//!
//! | form | meaning |
//! | --- | --- |
//! | `[user@]host:path` | there; the path from the home folder on if it does not begin with `/` |
//! | `[user@]host:port:path` | the second part digits alone, and a colon behind it |
//! | `[user@][v6]:path`, `[user@][v6]:port:path` | the same for an IPv6 address |
//! | `ssh:[user@]host:path`, `unix:SOCKET:path`, `local:path` | other targets of `bowline run` |
//! | `-` | stdin, or stdout |
//! | anything else | here; also with a colon behind a slash, as `./a:b` |
//!
//! Strings enter, places leave; nothing is looked up.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On this machine.
    Here(Vec<u8>),
    /// On the machine that TARGET names.
    There { target: String, path: Vec<u8> },
    /// stdin or stdout.
    Stream,
}

/// A place that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadPlace {
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
    /// `[` without `]:`.
    #[error("write an IPv6 address as [ADDRESS]:path or [ADDRESS]:port:path")]
    Brackets,
    /// Not UTF-8 in front of the path.
    #[error("the name of a machine is text; write ./NAME for a local file")]
    Host,
    /// Not 1 to 65535.
    #[error("a port is a number from 1 to 65535")]
    Port,
}

/// Takes an argument apart.
///
/// # Errors
/// [`BadPlace`].
pub(super) fn parse(argument: &OsStr) -> Result<Place, BadPlace> {
    let bytes = argument.as_bytes();
    match bytes {
        b"" => return Err(BadPlace::Empty),
        b"-" => return Ok(Place::Stream),
        _ => {}
    }
    let Some((head, rest)) = split_target(bytes)? else {
        return Ok(Place::Here(bytes.to_vec()));
    };
    let target = std::str::from_utf8(head)
        .map_err(|_| BadPlace::Host)?
        .to_owned();
    let (port, path) = match rest.iter().position(|byte| *byte == b':') {
        Some(at) if at > 0 && !target.starts_with("unix:") => {
            let (digits, path) = rest.split_at_checked(at).unwrap_or_default();
            match digits.iter().all(u8::is_ascii_digit) {
                true => (Some(digits), path.get(1..).unwrap_or_default()),
                false => (None, rest),
            }
        }
        _ => (None, rest),
    };
    let target = match port {
        None => target,
        Some(digits) => {
            let number = std::str::from_utf8(digits)
                .ok()
                .and_then(|text| text.parse::<u16>().ok());
            let port = number.filter(|port| *port > 0).ok_or(BadPlace::Port)?;
            format!("{target}:{port}")
        }
    };
    Ok(Place::There {
        target,
        path: path.to_vec(),
    })
}

/// What is in front of the colon that makes a place remote, and what is behind it.
type Split<'a> = Option<(&'a [u8], &'a [u8])>;

fn split_target(bytes: &[u8]) -> Result<Split<'_>, BadPlace> {
    let at = |from: usize, byte: u8| {
        let found = bytes.get(from..)?.iter().position(|other| *other == byte)?;
        Some(from + found)
    };
    let user = bytes.iter().take_while(|byte| !b"/:[".contains(byte));
    let user = user
        .collect::<Vec<_>>()
        .iter()
        .rposition(|byte| **byte == b'@')
        .map_or(0, |at| at + 1);
    let colon = if bytes.get(user) == Some(&b'[') {
        match at(user, b']') {
            Some(end) if bytes.get(end + 1) == Some(&b':') => Some(end + 1),
            // A file may be called so, but nobody means one that looks like an address.
            Some(_) | None if bytes.contains(&b':') => return Err(BadPlace::Brackets),
            _ => None,
        }
    } else if bytes.starts_with(b"ssh:") {
        at(4, b':').or(Some(3))
    } else if bytes.starts_with(b"unix:") {
        at(5, b':')
    } else {
        at(0, b':')
    };
    let Some(colon) = colon else {
        return Ok(None);
    };
    let (head, rest) = bytes.split_at_checked(colon).unwrap_or_default();
    let named = head.starts_with(b"unix:") || !head.contains(&b'/');
    Ok((named && !head.is_empty()).then(|| (head, rest.get(1..).unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(target: &str, path: &str) -> Result<Place, BadPlace> {
        Ok(Place::There {
            target: target.to_owned(),
            path: path.into(),
        })
    }

    #[test]
    fn scp_and_ports_and_addresses() {
        let of = |text: &str| parse(OsStr::new(text));
        assert_eq!(of("host:a"), there("host", "a"));
        assert_eq!(of("ann@host:/a:b"), there("ann@host", "/a:b"));
        assert_eq!(of("host:"), there("host", ""));
        assert_eq!(of("host:22:a"), there("host:22", "a"));
        assert_eq!(of("host:22"), there("host", "22"));
        assert_eq!(of("host:22x:a"), there("host", "22x:a"));
        assert_eq!(of("host:22:"), there("host:22", ""));
        assert_eq!(of("[::1]:a"), there("[::1]", "a"));
        assert_eq!(of("ann@[::1]:7322:/a"), there("ann@[::1]:7322", "/a"));
        assert_eq!(of("local:x"), there("local", "x"));
        assert_eq!(of("ssh:ann@host:x"), there("ssh:ann@host", "x"));
        assert_eq!(of("unix:/run/b.sock:x:1"), there("unix:/run/b.sock", "x:1"));
        for local in ["a", "/a:b", "./a:b", "a/b:c", ":a", "a@b", "x[1]"] {
            assert_eq!(of(local), Ok(Place::Here(local.into())), "{local}");
        }
        assert_eq!(of("-"), Ok(Place::Stream));
        assert_eq!(of("[::1:a"), Err(BadPlace::Brackets));
        assert_eq!(of("host:0:a"), Err(BadPlace::Port));
        assert_eq!(of("host:65536:a"), Err(BadPlace::Port));
        assert_eq!(of(""), Err(BadPlace::Empty));
    }
}
