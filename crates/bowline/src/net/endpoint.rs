//! Addresses of services and of their peers: parsed and shown here and nowhere else.
//!
//! | form | meaning |
//! | --- | --- |
//! | `tcp://HOST:PORT` | TCP; the host a name, an IPv4 address or an IPv6 address in brackets |
//! | `udp://HOST:PORT` | UDP, likewise |
//! | `unix:PATH`, `unix:@NAME` | a Unix stream socket, the second an abstract one (unix(7)) |
//! | `unixgram:PATH`, `unixgram:@NAME` | a Unix datagram socket |
//!
//! Text of a person enters by [`str::parse`]; what leaves by `Display` parses
//! again. Names that a peer chose are shown without their control characters.
//! Nothing is looked up here.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest name or path of a Unix socket, in bytes: `sun_path` has 108, and
/// either a NUL ends it or one begins it.
pub const UNIX_NAME_BYTES_MAX: usize = 107;
/// The longest host: a name of 253 bytes (RFC 1035, section 2.3.4), or an
/// address with a zone, which is shorter.
pub const HOST_BYTES_MAX: usize = 253;

/// Where a service is.
///
/// ```
/// use bowline::net::Endpoint;
///
/// let endpoint: Endpoint = "tcp://[::1]:7000".parse()?;
/// assert_eq!(endpoint, Endpoint::Tcp("::1".to_owned(), 7000));
/// assert_eq!(endpoint.to_string(), "tcp://[::1]:7000");
/// assert!("unixgram:@clock".parse::<Endpoint>()?.is_datagram());
/// assert!("7000".parse::<Endpoint>().is_err());
/// # Ok::<(), bowline::net::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host name or address without brackets, and a port; 0 lets the kernel choose one.
    Tcp(String, u16),
    /// Likewise, UDP.
    Udp(String, u16),
    /// A Unix stream socket.
    Unix(UnixName),
    /// A Unix datagram socket.
    Unixgram(UnixName),
}

impl Endpoint {
    /// Whether it carries datagrams and not a stream.
    pub const fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp(..) | Self::Unixgram(_))
    }

    /// Whether only this machine can reach it: a Unix socket, a loopback
    /// address, or the name `localhost`. Any other name is taken to be outside.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Unixgram(_) => true,
            Self::Tcp(host, _) | Self::Udp(host, _) => match host.parse::<IpAddr>() {
                Ok(address) => address.to_canonical().is_loopback(),
                Err(_) => host.eq_ignore_ascii_case("localhost"),
            },
        }
    }

    /// TCP at an address that is known.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::Tcp(host_of(address), address.port())
    }

    /// UDP at an address that is known.
    pub fn udp(address: SocketAddr) -> Self {
        Self::Udp(host_of(address), address.port())
    }
}

/// The address without its port; a zone stays, as the number of its interface.
fn host_of(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write_host(f, "tcp", host, *port),
            Self::Udp(host, port) => write_host(f, "udp", host, *port),
            Self::Unix(name) => write!(f, "unix:{name}"),
            Self::Unixgram(name) => write!(f, "unixgram:{name}"),
        }
    }
}

fn write_host(f: &mut fmt::Formatter<'_>, scheme: &str, host: &str, port: u16) -> fmt::Result {
    if host.contains(':') {
        write!(f, "{scheme}://[{host}]:{port}")
    } else {
        write!(f, "{scheme}://{host}:{port}")
    }
}

/// The name of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UnixName {
    /// A file.
    Path(PathBuf),
    /// A name of the abstract namespace, without the NUL that begins it.
    Abstract(Vec<u8>),
}

impl UnixName {
    /// Takes the name out of what the kernel says; `None` for a socket without one.
    pub fn of(address: &std::os::unix::net::SocketAddr) -> Option<Self> {
        use std::os::linux::net::SocketAddrExt;
        let path = address.as_pathname().map(|it| Self::Path(it.to_owned()));
        path.or_else(|| {
            let name = address.as_abstract_name()?;
            Some(Self::Abstract(name.to_owned()))
        })
    }

    /// The form that tokio and socket2 take: a leading NUL for an abstract name.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Abstract(name) => {
                let name = [b"\0", name.as_slice()].concat();
                PathBuf::from(OsString::from_vec(name))
            }
        }
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Self::Path(path) => path.as_os_str().as_bytes(),
            Self::Abstract(name) => {
                f.write_char('@')?;
                name
            }
        };
        for character in String::from_utf8_lossy(bytes).chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// A text that is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address: {why}")]
pub struct EndpointError {
    text: String,
    why: Why,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error("an address is tcp://HOST:PORT, udp://HOST:PORT, unix:PATH or unixgram:PATH")]
    Scheme,
    #[error("there is no port behind the host")]
    NoPort,
    #[error("a port is a number from 0 to 65535")]
    BadPort,
    #[error("write an IPv6 address in brackets, as [::1]:PORT")]
    Brackets,
    #[error("a host is an address, or a name of letters, digits, `-`, `.` and `_`")]
    BadHost,
    #[error(
        "a socket's path or name has 1 to {UNIX_NAME_BYTES_MAX} bytes, and none of them is NUL"
    )]
    BadName,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        parse(text).map_err(|why| EndpointError {
            text: text.chars().take(HOST_BYTES_MAX).collect(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Endpoint, Why> {
    if let Some(place) = text.strip_prefix("tcp://") {
        let (host, port) = host_and_port(place)?;
        Ok(Endpoint::Tcp(host, port))
    } else if let Some(place) = text.strip_prefix("udp://") {
        let (host, port) = host_and_port(place)?;
        Ok(Endpoint::Udp(host, port))
    } else if let Some(name) = text.strip_prefix("unix:") {
        Ok(Endpoint::Unix(unix_name(name)?))
    } else if let Some(name) = text.strip_prefix("unixgram:") {
        Ok(Endpoint::Unixgram(unix_name(name)?))
    } else {
        Err(Why::Scheme)
    }
}

fn host_and_port(place: &str) -> Result<(String, u16), Why> {
    let (host, port) = place.rsplit_once(':').ok_or(Why::NoPort)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or(Why::Brackets)?;
            let (address, zone) = inner.split_once('%').unwrap_or((inner, "0"));
            address.parse::<Ipv6Addr>().map_err(|_| Why::Brackets)?;
            if !is_name(zone) {
                return Err(Why::BadHost);
            }
            inner
        }
        // An address without brackets would lose its last group to the port.
        None if host.contains(':') => return Err(Why::Brackets),
        None if is_name(host) => host,
        None => return Err(Why::BadHost),
    };
    // `parse` would take a sign.
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Why::BadPort);
    }
    let port = port.parse().map_err(|_| Why::BadPort)?;
    Ok((host.to_owned(), port))
}

fn is_name(host: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (1..=HOST_BYTES_MAX).contains(&host.len()) && !host.starts_with('-') && host.bytes().all(fits)
}

fn unix_name(text: &str) -> Result<UnixName, Why> {
    let (name, is_abstract) = match text.strip_prefix('@') {
        Some(name) => (name, true),
        None => (text, false),
    };
    if !(1..=UNIX_NAME_BYTES_MAX).contains(&name.len()) || name.contains('\0') {
        return Err(Why::BadName);
    }
    Ok(if is_abstract {
        UnixName::Abstract(name.as_bytes().to_owned())
    } else {
        UnixName::Path(Path::new(OsStr::new(name)).to_owned())
    })
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An address and port. An IPv4 address that came through an IPv6 socket is shown as IPv4.
    Ip(SocketAddr),
    /// A process of this machine.
    Unix {
        /// What its socket is called, if it has a name. Peers choose it freely.
        name: Option<UnixName>,
        /// Its user, where the kernel says so (SO_PEERCRED: of streams alone).
        uid: Option<u32>,
        /// Its process, likewise.
        pid: Option<i32>,
    },
}

impl Peer {
    /// Somebody on a network.
    pub fn ip(address: SocketAddr) -> Self {
        Self::Ip(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// Its address, if it came over the network.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix { .. } => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix {
                name: Some(name), ..
            } => write!(f, "unix:{name}"),
            Self::Unix { uid, pid, .. } => {
                f.write_str("unix:")?;
                if let Some(pid) = pid {
                    write!(f, " process {pid}")?;
                }
                if let Some(uid) = uid {
                    write!(f, " of uid {uid}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn every_form_is_shown_as_it_was_written() {
        for text in [
            "tcp://127.0.0.1:7000",
            "tcp://[::1]:0",
            "tcp://[fe80::1%2]:9",
            "tcp://[fe80::1%eth0]:9",
            "udp://clock.example:123",
            "unix:/run/x.sock",
            "unix:relative",
            "unix:@name",
            "unixgram:@a b",
        ] {
            assert_eq!(parsed(text).to_string(), text);
        }
        let v6 = parsed("tcp://[::1]:7000");
        assert_eq!(v6, Endpoint::Tcp("::1".to_owned(), 7000));
        let shown = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(Peer::ip(shown).to_string(), "10.0.0.1:5");
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, why) in [
            ("", Why::Scheme),
            ("127.0.0.1:7000", Why::Scheme),
            ("TCP://h:1", Why::Scheme),
            ("tcp://host", Why::NoPort),
            ("tcp://host:", Why::BadPort),
            ("tcp://host:+1", Why::BadPort),
            ("tcp://host:65536", Why::BadPort),
            ("tcp://host:http", Why::BadPort),
            ("tcp://::1:80", Why::Brackets),
            ("tcp://[::1:80", Why::Brackets),
            ("tcp://[host]:80", Why::Brackets),
            ("tcp://[::1%a b]:80", Why::BadHost),
            ("tcp://:80", Why::BadHost),
            ("tcp://-h:80", Why::BadHost),
            ("tcp://a b:80", Why::BadHost),
            ("unix:", Why::BadName),
            ("unix:@", Why::BadName),
            ("unix:a\0b", Why::BadName),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(error.why, why, "{text:?}");
        }
    }

    #[test]
    fn names_are_bounded() {
        let longest = "x".repeat(UNIX_NAME_BYTES_MAX);
        assert!(format!("unix:{longest}").parse::<Endpoint>().is_ok());
        assert!(format!("unix:@{longest}").parse::<Endpoint>().is_ok());
        assert!(format!("unix:{longest}x").parse::<Endpoint>().is_err());
        assert!(format!("unixgram:@{longest}x").parse::<Endpoint>().is_err());
        let host = "h".repeat(HOST_BYTES_MAX);
        assert!(format!("tcp://{host}:1").parse::<Endpoint>().is_ok());
        assert!(format!("tcp://{host}h:1").parse::<Endpoint>().is_err());
    }

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        for local in [
            "tcp://127.1.2.3:1",
            "udp://[::1]:1",
            "tcp://LocalHost:1",
            "unix:@x",
        ] {
            assert!(parsed(local).is_local(), "{local}");
        }
        assert!(parsed("tcp://[::ffff:127.0.0.1]:1").is_local());
        for outside in [
            "tcp://0.0.0.0:1",
            "tcp://[::]:1",
            "udp://10.0.0.1:1",
            "tcp://localhost.example:1",
        ] {
            assert!(!parsed(outside).is_local(), "{outside}");
        }
    }

    #[test]
    fn a_name_that_a_peer_chose_cannot_drive_a_terminal() {
        let name = UnixName::Abstract(b"a\x1b[2J\nb\xff".to_vec());
        assert_eq!(name.to_string(), "@a\\u{1b}[2J\\nb\u{fffd}");
    }

    proptest! {
        #[test]
        fn what_parses_is_shown_so_that_it_parses_again(text in "(tcp://|udp://|unix:|unixgram:)?[\\[\\]@%:.a-f0-9-]{0,20}(:[0-9]{1,6})?") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(parsed(&endpoint.to_string()), endpoint);
            }
        }

        #[test]
        fn any_text_parses_or_does_not(text in any::<String>()) {
            let _ = text.parse::<Endpoint>();
        }
    }
}
