//! `from=`: the addresses that a key may be used from.
//!
//! Owns CIDR networks and patterns (ssh_config(5), PATTERNS) over addresses. bowline looks up no names: a pattern
//! that names a host never matches, and a list that excludes one is refused, because the exclusion would not hold.

use std::net::IpAddr;

use crate::pattern;

/// What is wrong with a list of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// A network's prefix is no number, too long, or bits of the address are set behind it.
    #[error("from= holds a network whose prefix does not fit its address")]
    Network,
    /// A host's name is excluded.
    #[error("from= excludes a host by its name, and bowline looks up no names")]
    ExcludedName,
    /// A pattern is not ASCII.
    #[error("from= is not ASCII")]
    NotAscii,
}

/// A list of addresses, networks and patterns, some of them negated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    negated: bool,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Network { address: IpAddr, prefix: u8 },
    Pattern(Vec<u8>),
}

impl Source {
    /// Reads a list such as `10.0.0.0/8,!10.9.*,2001:db8::/32`.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn parse(list: &[u8]) -> Result<Source, SourceError> {
        let text = std::str::from_utf8(list).map_err(|_| SourceError::NotAscii)?;
        if !text.is_ascii() {
            return Err(SourceError::NotAscii);
        }
        let mut entries = Vec::new();
        for entry in text.split(',').filter(|entry| !entry.is_empty()) {
            let (negated, entry) = match entry.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, entry),
            };
            let what = parse_entry(entry)?;
            if negated && matches!(what, What::Pattern(_)) && !is_address_pattern(entry) {
                return Err(SourceError::ExcludedName);
            }
            entries.push(Entry { negated, what });
        }
        Ok(Source { entries })
    }

    /// Whether the list permits an address: one entry matches and no negated one does.
    ///
    /// An IPv4 address in IPv6 form counts as IPv4.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let text = address.to_string();
        let mut found = false;
        for entry in &self.entries {
            let matches = match &entry.what {
                What::Network {
                    address: net,
                    prefix,
                } => in_network(address, *net, *prefix),
                What::Pattern(pattern) => pattern::matches(pattern, text.as_bytes()),
            };
            match (matches, entry.negated) {
                (true, true) => return false,
                (true, false) => found = true,
                (false, _) => {}
            }
        }
        found
    }
}

fn parse_entry(entry: &str) -> Result<What, SourceError> {
    let (address, prefix) = match entry.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (entry, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        // A slash never stands in an address, so such a pattern would silently never match.
        return match prefix {
            Some(_) => Err(SourceError::Network),
            None => Ok(What::Pattern(entry.to_ascii_lowercase().into_bytes())),
        };
    };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => bits,
        Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map_err(|_| SourceError::Network)?
        }
        Some(_) => return Err(SourceError::Network),
    };
    if prefix > bits || significant(address, prefix) != significant(address, bits) {
        return Err(SourceError::Network);
    }
    // `::ffff:10.0.0.0/104` means what `10.0.0.0/8` means, as the addresses are compared in that form.
    match (address, address.to_canonical()) {
        (IpAddr::V6(_), IpAddr::V4(mapped)) if prefix >= 96 => Ok(What::Network {
            address: IpAddr::V4(mapped),
            prefix: prefix - 96,
        }),
        _ => Ok(What::Network { address, prefix }),
    }
}

/// Whether a pattern can only be meant for addresses.
fn is_address_pattern(pattern: &str) -> bool {
    let colon = pattern.contains(':');
    pattern.bytes().all(|byte| match byte {
        b'0'..=b'9' | b'.' | b'*' | b'?' => true,
        b':' | b'a'..=b'f' | b'A'..=b'F' => colon,
        _ => false,
    })
}

fn in_network(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    address.is_ipv4() == network.is_ipv4()
        && significant(address, prefix) == significant(network, prefix)
}

/// The first `prefix` bits of an address, the rest zero.
fn significant(address: IpAddr, prefix: u8) -> u128 {
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32u32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let behind = width.saturating_sub(u32::from(prefix));
    bits.checked_shr(behind)
        .and_then(|bits| bits.checked_shl(behind))
        .unwrap_or(0)
}
