//! TARGET: where a command goes, as a person types it.
//!
//! | form | meaning |
//! | --- | --- |
//! | `[user@]host[:port]` | TCP; the host a name or an address |
//! | `[user@][v6]:port`, `[user@]v6` | TCP to an IPv6 address |
//! | `unix:PATH`, `unix:@NAME` | a Unix socket, the second an abstract one |
//! | `ssh:[user@]host[:port]` | the standard streams of an ssh session |
//! | `local` | a server of one's own for this one call |
//! | `[user@]NAME` | a host of the configuration |
//!
//! A string enters; a checked [`Target`] leaves. It looks nothing up.

use std::ffi::OsString;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use bowline::client::Endpoint;

use crate::config::{ClientConfig, DEFAULT_PORT, HostSettings};

/// The longest TARGET, in bytes: a user, a host name of 253 and a port.
const TARGET_BYTES_MAX: usize = 4096;

/// Where a command goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The user to be there, if the target or the configuration names one.
    pub(crate) user: Option<String>,
    /// Where it is.
    pub(crate) place: Place,
    /// What the configuration says about it: keys, trust.
    pub(crate) settings: HostSettings,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A host and a port.
    Tcp {
        host: String,
        /// `None` where nobody named one: 7322.
        port: Option<u16>,
    },
    /// A Unix socket; a leading NUL byte is an abstract name.
    Unix(PathBuf),
    /// A host that ssh connects to.
    Ssh {
        user: Option<String>,
        host: String,
        port: Option<u16>,
    },
    /// A server of one's own.
    Local,
}

/// A TARGET that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the target {target:?} cannot be used: {why} [bad_target]")]
pub(crate) struct TargetError {
    target: String,
    why: Why,
}

/// What is wrong with a TARGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Why {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Over [`TARGET_BYTES_MAX`].
    #[error("it is too long")]
    TooLong,
    /// `@` with nothing in front.
    #[error("there is no user in front of `@`")]
    NoUser,
    /// No host where one must be.
    #[error("there is no host in it")]
    NoHost,
    /// A blank, a control character or another one that no host name has.
    #[error(
        "a host name consists of letters, digits, `-`, `.` and `_`, and does not begin with `-`"
    )]
    BadHost,
    /// Not 1 to 65535.
    #[error("a port is a number from 1 to 65535")]
    BadPort,
    /// Colons that could belong to an address or a port.
    #[error("write an IPv6 address with a port as [ADDRESS]:PORT")]
    Colons,
    /// `[` without `]`, or something else than an IPv6 address between them.
    #[error("what stands in brackets must be an IPv6 address")]
    Brackets,
    /// `unix:` without a path or name.
    #[error("there is no path behind `unix:`")]
    NoPath,
    /// A name or path that no socket can have.
    #[error("a socket's path has at most 107 bytes, and none of them is NUL")]
    BadPath,
    /// A user in front of a form that has none.
    #[error("name the user of this kind of target with --user")]
    UserHere,
}

impl Target {
    /// Takes a TARGET apart.
    ///
    /// # Errors
    /// [`TargetError`]; also where the address of a configured host is none.
    pub(crate) fn parse(text: &str, config: &ClientConfig) -> Result<Self, TargetError> {
        let fail = |target: &str, why| TargetError {
            target: target.to_owned(),
            why,
        };
        let (user, place) = parse(text).map_err(|why| fail(text, why))?;
        let name = match &place {
            Place::Tcp { host, .. } | Place::Ssh { host, .. } => host.as_str(),
            Place::Unix(_) | Place::Local => "",
        };
        let settings = config.settings(name);
        // What a name stands for is looked up once: an address is no name again.
        let place = match (&settings.address, place) {
            (Some(address), Place::Tcp { port, .. }) => {
                let (none, named) = parse(address).map_err(|why| fail(address, why))?;
                if none.is_some() || named == Place::Local {
                    return Err(fail(address, Why::UserHere));
                }
                with_port(named, port)
            }
            (_, place) => place,
        };
        let user = user.or_else(|| match place {
            // What is started for oneself runs as oneself.
            Place::Local => None,
            _ => settings.user.clone(),
        });
        let place = match place {
            Place::Tcp { host, port } => Place::Tcp {
                host,
                port: port.or(settings.port),
            },
            other => other,
        };
        Ok(Self {
            user,
            place,
            settings,
        })
    }

    /// How to connect; `None` for `local`, which is started first.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        match &self.place {
            Place::Tcp { host, port } => {
                Some(Endpoint::Tcp(host.clone(), port.unwrap_or(DEFAULT_PORT)))
            }
            Place::Unix(path) => Some(Endpoint::Unix(path.clone())),
            Place::Ssh { user, host, port } => {
                let command = ssh_command(user.as_deref(), host, *port);
                Some(Endpoint::Command(command))
            }
            Place::Local => None,
        }
    }
}

/// Starts ssh so that the keyboard's signals, which are for the job at the other
/// end, do not end it. What it asks, it asks on the terminal that is also ours.
/// A status of 127 is left to mean that there is no bowline over there.
const START_SSH: &str = "trap '' INT QUIT
command -v ssh >/dev/null || { echo 'bowline: there is no ssh in the PATH' >&2; exit 255; }
exec ssh \"$@\"";

/// The ssh that carries a session: no terminal, no escapes, nothing forwarded.
fn ssh_command(user: Option<&str>, host: &str, port: Option<u16>) -> Vec<OsString> {
    let mut argv: Vec<OsString> = ["/bin/sh", "-c", START_SSH]
        .into_iter()
        .chain(["ssh", "-T", "-x", "-a", "-e", "none"])
        .map(Into::into)
        .collect();
    if let Some(port) = port {
        argv.extend(["-p".into(), port.to_string().into()]);
    }
    if let Some(user) = user {
        argv.extend(["-l".into(), user.into()]);
    }
    // Behind `--` nothing is an option, whatever a host is called.
    argv.extend(["--", host, "bowline", "serve", "--stdio"].map(Into::into));
    argv
}

fn with_port(place: Place, wanted: Option<u16>) -> Place {
    match place {
        Place::Tcp { host, port } => Place::Tcp {
            host,
            port: wanted.or(port),
        },
        Place::Ssh { user, host, port } => Place::Ssh {
            user,
            host,
            port: wanted.or(port),
        },
        other => other,
    }
}

fn parse(text: &str) -> Result<(Option<String>, Place), Why> {
    match text {
        "" => return Err(Why::Empty),
        "local" => return Ok((None, Place::Local)),
        long if long.len() > TARGET_BYTES_MAX => return Err(Why::TooLong),
        _ => {}
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok((None, Place::Unix(unix_path(path)?)));
    }
    if let Some(rest) = text.strip_prefix("ssh:") {
        let (user, host, port) = host_and_port(rest)?;
        return Ok((None, Place::Ssh { user, host, port }));
    }
    let (user, host, port) = host_and_port(text)?;
    if port.is_none() && user.is_some() && host == "local" {
        return Err(Why::UserHere);
    }
    Ok((user, Place::Tcp { host, port }))
}

fn unix_path(path: &str) -> Result<PathBuf, Why> {
    let name = path.strip_prefix('@');
    if path.is_empty() || name == Some("") {
        return Err(Why::NoPath);
    }
    // sun_path has 108 bytes, of which a path's last is NUL, as an abstract name's first is.
    if path.contains('\0') || path.len() - usize::from(name.is_some()) > 107 {
        return Err(Why::BadPath);
    }
    Ok(match name {
        Some(name) => PathBuf::from(format!("\0{name}")),
        None => PathBuf::from(path),
    })
}

/// `[user@]host[:port]`; a user may hold an `@` of its own.
fn host_and_port(text: &str) -> Result<(Option<String>, String, Option<u16>), Why> {
    if let Some((_, rest)) = text.split_once('@')
        && (rest.starts_with("unix:") || rest.starts_with("ssh:"))
    {
        return Err(Why::UserHere);
    }
    let (user, place) = match text.rsplit_once('@') {
        Some(("", _)) => return Err(Why::NoUser),
        Some((user, place)) => (Some(user.to_owned()), place),
        None => (None, text),
    };
    if user
        .as_ref()
        .is_some_and(|user| user.contains(['\0', '\n']) || user.starts_with('-'))
    {
        return Err(Why::NoUser);
    }
    let (host, port) = split_port(place)?;
    Ok((user, host, port))
}

fn split_port(place: &str) -> Result<(String, Option<u16>), Why> {
    if let Some(rest) = place.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(Why::Brackets)?;
        if !is_v6(address) {
            return Err(Why::Brackets);
        }
        let port = match rest {
            "" => None,
            rest => Some(port(rest.strip_prefix(':').ok_or(Why::BadPort)?)?),
        };
        return Ok((address.to_owned(), port));
    }
    if is_v6(place) {
        return Ok((place.to_owned(), None));
    }
    let (host, port) = match place.split_once(':') {
        Some((_, rest)) if rest.contains(':') => return Err(Why::Colons),
        Some((host, rest)) => (host, Some(port(rest)?)),
        None => (place, None),
    };
    if host.is_empty() {
        return Err(Why::NoHost);
    }
    let letter = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.starts_with('-') || !host.chars().all(letter) {
        return Err(Why::BadHost);
    }
    Ok((host.to_owned(), port))
}

/// An IPv6 address, with a zone (`%eth0`) perhaps.
fn is_v6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "1"));
    let in_zone = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    address.parse::<Ipv6Addr>().is_ok() && !zone.is_empty() && zone.chars().all(in_zone)
}

fn port(text: &str) -> Result<u16, Why> {
    // `+1` parses as a number, and is none that a person would write.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(Why::BadPort),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<Target, Why> {
        let config = "user = \"def\"\n\
                      [host.plain]\n\
                      [host.box]\naddress = \"192.0.2.7\"\nuser = \"root\"\nport = 9\n\
                      [host.sock]\naddress = \"unix:/run/b\"\n\
                      [host.far]\naddress = \"ssh:gw:22\"\n\
                      [host.bad]\naddress = \"a:b:c\"\n\
                      [host.loop]\naddress = \"loop\"\n";
        let config = ClientConfig::parse(config).unwrap();
        Target::parse(text, &config).map_err(|error| error.why)
    }

    fn bare(text: &str) -> Result<(Option<String>, String, Option<u16>), Why> {
        let target = Target::parse(text, &ClientConfig::default()).map_err(|error| error.why)?;
        match target.place {
            Place::Tcp { host, port } => Ok((target.user, host, port)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hosts_addresses_ports_and_users() {
        let tcp = |user: Option<&str>, host: &str, port| {
            Ok((user.map(str::to_owned), host.to_owned(), port))
        };
        assert_eq!(bare("host"), tcp(None, "host", None));
        assert_eq!(bare("host:1"), tcp(None, "host", Some(1)));
        assert_eq!(
            bare("ann@host.example.com:65535"),
            tcp(Some("ann"), "host.example.com", Some(65535))
        );
        assert_eq!(bare("192.0.2.7:80"), tcp(None, "192.0.2.7", Some(80)));
        assert_eq!(bare("[::1]:80"), tcp(None, "::1", Some(80)));
        assert_eq!(bare("[::1]"), tcp(None, "::1", None));
        assert_eq!(bare("::1"), tcp(None, "::1", None));
        assert_eq!(bare("fe80::1%eth0"), tcp(None, "fe80::1%eth0", None));
        assert_eq!(
            bare("ann@[fe80::1%eth0]:7"),
            tcp(Some("ann"), "fe80::1%eth0", Some(7))
        );
        assert_eq!(
            bare("ann@corp.example@host"),
            tcp(Some("ann@corp.example"), "host", None)
        );
        assert_eq!(bare("my_host-1"), tcp(None, "my_host-1", None));
        assert_eq!(bare("bücher.example"), tcp(None, "bücher.example", None));
        // Only the bare word is the server of one's own.
        assert_eq!(bare("local:7322"), tcp(None, "local", Some(7322)));
        assert_eq!(bare("localhost"), tcp(None, "localhost", None));
    }

    #[test]
    fn what_is_no_target_is_refused_with_its_reason() {
        for (text, why) in [
            ("", Why::Empty),
            ("@host", Why::NoUser),
            ("-oProxyCommand=x@host", Why::NoUser),
            ("ann@", Why::NoHost),
            (":80", Why::NoHost),
            ("host:", Why::BadPort),
            ("host:0", Why::BadPort),
            ("host:65536", Why::BadPort),
            ("host:+1", Why::BadPort),
            ("host:http", Why::BadPort),
            ("host: 1", Why::BadPort),
            ("a:b:c", Why::Colons),
            ("1:2:3", Why::Colons),
            ("[::1", Why::Brackets),
            ("[host]:1", Why::Brackets),
            ("[::1%]:1", Why::Brackets),
            ("[::1]80", Why::BadPort),
            ("a b", Why::BadHost),
            ("host/path", Why::BadHost),
            ("-oProxyCommand=x", Why::BadHost),
            ("ssh:-oProxyCommand=x", Why::BadHost),
            ("ssh:-lroot@host", Why::NoUser),
            ("ssh:", Why::NoHost),
            ("host\n", Why::BadHost),
            ("unix:", Why::NoPath),
            ("unix:@", Why::NoPath),
            ("unix:/a\0b", Why::BadPath),
            ("ann@local", Why::UserHere),
            ("ann@unix:/run/x", Why::UserHere),
            ("ann@unix:/run/x@y", Why::UserHere),
            ("ann@ssh:host", Why::UserHere),
        ] {
            assert_eq!(target(text).unwrap_err(), why, "{text:?}");
        }
        assert_eq!(target(&"x".repeat(TARGET_BYTES_MAX + 1)), Err(Why::TooLong));
        let long = format!("unix:/{}", "x".repeat(107));
        assert_eq!(target(&long), Err(Why::BadPath));
        assert!(target(&long[..long.len() - 1]).is_ok());
        let error = Target::parse("a b", &ClientConfig::default()).unwrap_err();
        let said = error.to_string();
        assert!(
            said.starts_with("the target \"a b\" cannot be used: "),
            "{said}"
        );
        assert!(said.ends_with(" [bad_target]"), "{said}");
    }

    #[test]
    fn sockets_ssh_and_local() {
        let place = |text: &str| target(text).unwrap().place;
        assert_eq!(
            place("unix:/run/b.sock"),
            Place::Unix(PathBuf::from("/run/b.sock"))
        );
        assert_eq!(place("unix:b@c:1"), Place::Unix(PathBuf::from("b@c:1")));
        assert_eq!(place("unix:@name"), Place::Unix(PathBuf::from("\0name")));
        assert_eq!(place("local"), Place::Local);
        assert_eq!(target("local").unwrap().user, None);
        assert_eq!(target("local").unwrap().endpoint(), None);
        let ssh = target("ssh:ann@host:22").unwrap();
        let Some(Endpoint::Command(argv)) = ssh.endpoint() else {
            panic!("{ssh:?}");
        };
        let expected = "ssh -T -x -a -e none -p 22 -l ann -- host bowline serve --stdio";
        let said = argv.join(" ".as_ref()).to_string_lossy().into_owned();
        assert!(said.ends_with(expected), "{said}");
    }

    #[test]
    fn names_of_the_configuration() {
        let of = |text: &str| {
            let target = target(text).unwrap();
            (target.user.unwrap_or_default(), target.place)
        };
        let tcp = |host: &str, port| Place::Tcp {
            host: host.to_owned(),
            port,
        };
        assert_eq!(of("box"), ("root".to_owned(), tcp("192.0.2.7", Some(9))));
        assert_eq!(
            of("ann@box:1"),
            ("ann".to_owned(), tcp("192.0.2.7", Some(1)))
        );
        assert_eq!(of("plain"), ("def".to_owned(), tcp("plain", None)));
        assert_eq!(of("unknown"), ("def".to_owned(), tcp("unknown", None)));
        assert_eq!(of("sock").1, Place::Unix(PathBuf::from("/run/b")));
        assert_eq!(of("loop").1, tcp("loop", None));
        let far = Place::Ssh {
            user: None,
            host: "gw".to_owned(),
            port: Some(22),
        };
        assert_eq!(of("far").1, far);
        assert_eq!(target("bad"), Err(Why::Colons));
    }

    #[test]
    fn no_text_makes_it_panic() {
        let config = ClientConfig::default();
        let letters = [
            "@", ":", "[", "]", "%", "/", "a", "1", "::", "unix:", "ssh:", "é", "\0",
        ];
        for a in letters {
            for b in letters {
                for c in letters {
                    for d in letters {
                        let text = [a, b, c, d].concat();
                        if let Ok(target) = Target::parse(&text, &config) {
                            let _ = target.endpoint();
                        }
                    }
                }
            }
        }
    }
}
