//! TARGET: how a server is named on the command line.
//!
//! | form | meaning |
//! | --- | --- |
//! | `[user@]host[:port]` | a name or address, or a name from the configuration |
//! | `[user@][v6]:port`, a bare v6 address | an IPv6 address |
//! | `unix:PATH`, `unix:@name` | a Unix socket, or its abstract name (unix(7)) |
//! | `ssh:[user@]host[:port]` | over `ssh host bowline serve --stdio` |
//! | `local` | a server of its own for this one call |
//!
//! Text of the user enters; a value that names one place leaves. Nothing is
//! looked up here.

use std::net::Ipv6Addr;
use std::path::PathBuf;

/// bowline's port, where none is named.
pub(crate) const DEFAULT_PORT: u16 = 7322;

/// A place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A host.
    Host {
        user: Option<String>,
        host: String,
        port: Option<u16>,
    },
    /// A Unix socket; an abstract name begins with NUL.
    Unix(PathBuf),
    /// Through ssh.
    Ssh {
        user: Option<String>,
        host: String,
        port: Option<u16>,
    },
    /// A server of its own.
    Local,
}

/// What is wrong with a TARGET.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("TARGET is empty; a host is [user@]host[:port]")]
    Empty,
    #[error("the host in TARGET {0:?} is empty or holds what no host name does")]
    Host(String),
    #[error("the user in TARGET {0:?} is empty or holds what no user name does")]
    User(String),
    #[error("the port in TARGET {0:?} is not a number from 1 to 65535")]
    Port(String),
    #[error("an IPv6 address with a port is written [ADDRESS]:PORT, unlike {0:?}")]
    Ipv6(String),
    #[error("unix: needs the path of a socket, as in unix:/run/bowline.sock")]
    Path,
}

impl Target {
    /// Parses a TARGET.
    ///
    /// # Errors
    /// [`TargetError`].
    pub(crate) fn parse(text: &str) -> Result<Self, TargetError> {
        if text == "local" {
            return Ok(Self::Local);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.strip_prefix('@') {
                Some("") | None if path.len() <= 1 && path != "/" => Err(TargetError::Path),
                Some(name) => Ok(Self::Unix(PathBuf::from(format!("\0{name}")))),
                None => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        if let Some(rest) = text.strip_prefix("ssh:") {
            let (user, host, port) = host(rest)?;
            return Ok(Self::Ssh { user, host, port });
        }
        let (user, host, port) = host(text)?;
        Ok(Self::Host { user, host, port })
    }
}

/// `[user@]host[:port]`.
fn host(text: &str) -> Result<(Option<String>, String, Option<u16>), TargetError> {
    if text.is_empty() {
        return Err(TargetError::Empty);
    }
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, text),
    };
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if user.is_some_and(|user| user.is_empty() || user.contains(bad)) {
        return Err(TargetError::User(text.to_owned()));
    }
    let (host, port) = host_and_port(rest, text)?;
    // A leading dash would be an option to ssh(1).
    if host.is_empty() || host.starts_with('-') || host.contains(bad) || host.contains('/') {
        return Err(TargetError::Host(text.to_owned()));
    }
    Ok((user.map(str::to_owned), host.to_owned(), port))
}

fn host_and_port<'a>(
    rest: &'a str,
    text: &str,
) -> Result<(&'a str, Option<u16>), TargetError> {
    let port = |digits: &str| match digits.parse::<u16>() {
        Ok(port) if port > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(port)),
        _ => Err(TargetError::Port(text.to_owned())),
    };
    if let Some(bracketed) = rest.strip_prefix('[') {
        let broken = || TargetError::Ipv6(text.to_owned());
        let (host, behind) = bracketed.split_once(']').ok_or_else(broken)?;
        let address = host.split_once('%').map_or(host, |(address, _zone)| address);
        address.parse::<Ipv6Addr>().map_err(|_| broken())?;
        return match behind.strip_prefix(':') {
            Some(digits) => Ok((host, port(digits)?)),
            None if behind.is_empty() => Ok((host, None)),
            None => Err(broken()),
        };
    }
    match rest.split_once(':') {
        None => Ok((rest, None)),
        Some((_, more)) if more.contains(':') => {
            let address = rest.split_once('%').map_or(rest, |(address, _zone)| address);
            match address.parse::<Ipv6Addr>() {
                Ok(_) => Ok((rest, None)),
                Err(_) => Err(TargetError::Ipv6(text.to_owned())),
            }
        }
        Some((host, digits)) => Ok((host, port(digits)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_of(text: &str) -> (Option<String>, String, Option<u16>) {
        match Target::parse(text) {
            Ok(Target::Host { user, host, port }) => (user, host, port),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn hosts() {
        let expect = |user: Option<&str>, host: &str, port| {
            (user.map(str::to_owned), host.to_owned(), port)
        };
        for (text, expected) in [
            ("web1", expect(None, "web1", None)),
            ("web1:80", expect(None, "web1", Some(80))),
            ("me@web1", expect(Some("me"), "web1", None)),
            ("me@corp@web1:1", expect(Some("me@corp"), "web1", Some(1))),
            ("::1", expect(None, "::1", None)),
            ("[::1]", expect(None, "::1", None)),
            ("[::1]:9", expect(None, "::1", Some(9))),
            ("me@[fe80::1%eth0]:9", expect(Some("me"), "fe80::1%eth0", Some(9))),
            ("locale", expect(None, "locale", None)),
        ] {
            assert_eq!(host_of(text), expected, "{text}");
        }
    }

    #[test]
    fn other_places() {
        assert_eq!(Target::parse("local"), Ok(Target::Local));
        assert_eq!(Target::parse("unix:/run/b"), Ok(Target::Unix("/run/b".into())));
        assert_eq!(Target::parse("unix:b"), Ok(Target::Unix("b".into())));
        assert_eq!(Target::parse("unix:@b"), Ok(Target::Unix("\0b".into())));
        let ssh = Target::Ssh {
            user: Some("me".to_owned()),
            host: "web1".to_owned(),
            port: Some(2222),
        };
        assert_eq!(Target::parse("ssh:me@web1:2222"), Ok(ssh));
    }

    #[test]
    fn what_is_no_target() {
        for wrong in [
            "", "@host", "a b", "host:", "host:0", "host:65536", "host:+1", "host:x", "a:b:c",
            "[::1", "[::1]x", "[host]:1", "unix:", "unix:@", "ssh:", "-oProxyCommand=x",
            "ssh:-oProxyCommand=x", "a/b", "a\u{7f}b", ":80", "me@", "me@:80",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
