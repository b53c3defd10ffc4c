//! The options in front of a key.
//!
//! Owns splitting at commas, quotes and escapes, in sshd's order: from left to right, so that `restrict,pty`
//! gives a terminal back and `pty,restrict` does not.

use std::net::IpAddr;

use super::expiry::{Civil, Expiry};
use super::source::{Source, SourceError};

/// What is wrong with the options of a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Not an option that bowline knows.
    #[error("the option {0} is not known, so the whole line is refused")]
    Unknown(String),
    /// An option that sshd knows and bowline does not honour.
    #[error("the option {0} is not supported, so the whole line is refused")]
    Unsupported(&'static str),
    /// An option that may stand once stands twice.
    #[error("the option {0} stands there twice")]
    Twice(&'static str),
    /// A value is missing or not in quotes.
    #[error("the option {0} needs a value in quotes")]
    Unquoted(&'static str),
    /// A comma has nothing behind it, or something else than a comma follows an option.
    #[error("the options are not separated by single commas")]
    Separator,
    /// `from=` is malformed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// `expiry-time=` is malformed.
    #[error("expiry-time= is not YYYYMMDD[HHMM[SS]][Z]")]
    Expiry,
    /// `environment=` is malformed.
    #[error("environment= is not NAME=value with a name of letters, digits and _")]
    Environment,
}

/// What a key may do and when, as its line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `from=`; `None` is anywhere.
    pub from: Option<Source>,
    /// `command=`: a text for the user's shell, run instead of what is asked for.
    pub command: Option<Vec<u8>>,
    /// `environment=`, each `NAME=value`, in the order of the line.
    pub environment: Vec<Vec<u8>>,
    /// `expiry-time=`; the earliest counts.
    pub expiry: Vec<Expiry>,
    /// Whether a terminal may be asked for.
    pub pty: bool,
    /// Whether `restrict` stands there: what bowline learns to do later is not permitted by this line.
    pub restrict: bool,
}

impl Default for Options {
    /// The options of a line that has none: everything is permitted.
    fn default() -> Options {
        Options {
            from: None,
            command: None,
            environment: Vec::new(),
            expiry: Vec::new(),
            pty: true,
            restrict: false,
        }
    }
}

/// The flags that permit or forbid what bowline does not have.
const WITHOUT_EFFECT: [&str; 4] = [
    "port-forwarding",
    "agent-forwarding",
    "X11-forwarding",
    "user-rc",
];
/// The options with a value that limit what bowline does not have.
const VALUE_WITHOUT_EFFECT: [&str; 2] = ["permitopen", "permitlisten"];
/// What sshd knows and bowline does not honour: a line with it would mean something else here.
const UNSUPPORTED: [&str; 5] = [
    "cert-authority",
    "principals",
    "tunnel",
    "no-touch-required",
    "verify-required",
];

impl Options {
    /// Reads the options of a line, without the blank behind them.
    ///
    /// # Errors
    /// [`OptionsError`]: the line must not count.
    pub fn parse(text: &[u8]) -> Result<Options, OptionsError> {
        let mut options = Options::default();
        let mut rest = text;
        loop {
            rest = options.apply(rest)?;
            match rest.split_first() {
                None => return Ok(options),
                Some((b',', after)) if !after.is_empty() => rest = after,
                Some(_) => return Err(OptionsError::Separator),
            }
        }
    }

    /// Whether the key may be used from `source`; with `from=` and no address it may not.
    pub fn permits_source(&self, source: Option<IpAddr>) -> bool {
        match (&self.from, source) {
            (None, _) => true,
            (Some(list), Some(address)) => list.permits(address),
            (Some(_), None) => false,
        }
    }

    /// Whether the grant has ended.
    ///
    /// `local_to_unix` turns a local time of the server into seconds since 1970, as mktime(3) does. Where it
    /// cannot, the grant counts as ended.
    pub fn is_expired(&self, now_unix: i64, local_to_unix: impl Fn(&Civil) -> Option<i64>) -> bool {
        self.expiry.iter().any(|expiry| {
            expiry
                .unix(&local_to_unix)
                .is_none_or(|unix| unix < now_unix)
        })
    }

    /// Takes one option from the front of `text` and gives what follows it.
    fn apply<'a>(&mut self, text: &'a [u8]) -> Result<&'a [u8], OptionsError> {
        let end = text.iter().position(|byte| matches!(byte, b',' | b'='));
        let (name, rest) = text
            .split_at_checked(end.unwrap_or(text.len()))
            .unwrap_or((text, b""));
        match rest.strip_prefix(b"=") {
            Some(value) => self.apply_value(name, value),
            None => self.apply_flag(name).map(|()| rest),
        }
    }

    fn apply_flag(&mut self, name: &[u8]) -> Result<(), OptionsError> {
        let (positive, base) = match name.get(..3) {
            Some(no) if no.eq_ignore_ascii_case(b"no-") => (false, name.get(3..).unwrap_or(b"")),
            _ => (true, name),
        };
        if is(base, "pty") {
            self.pty = positive;
        } else if is(name, "restrict") {
            self.pty = false;
            self.restrict = true;
        } else if !WITHOUT_EFFECT.iter().any(|known| is(base, known)) {
            return Err(not_honoured(name));
        }
        Ok(())
    }

    fn apply_value<'a>(&mut self, name: &[u8], text: &'a [u8]) -> Result<&'a [u8], OptionsError> {
        let value = |known| dequote(text).ok_or(OptionsError::Unquoted(known));
        if is(name, "from") {
            let (list, rest) = value("from")?;
            set_once(&mut self.from, Source::parse(&list)?, "from")?;
            return Ok(rest);
        }
        if is(name, "command") {
            let (command, rest) = value("command")?;
            set_once(&mut self.command, command, "command")?;
            return Ok(rest);
        }
        if is(name, "environment") {
            let (variable, rest) = value("environment")?;
            if !is_variable(&variable) {
                return Err(OptionsError::Environment);
            }
            self.environment.push(variable);
            return Ok(rest);
        }
        if is(name, "expiry-time") {
            let (time, rest) = value("expiry-time")?;
            self.expiry
                .push(Expiry::parse(&time).ok_or(OptionsError::Expiry)?);
            return Ok(rest);
        }
        match VALUE_WITHOUT_EFFECT.iter().find(|known| is(name, known)) {
            Some(known) => Ok(value(known)?.1),
            None => Err(not_honoured(name)),
        }
    }
}

fn is(name: &[u8], known: &str) -> bool {
    name.eq_ignore_ascii_case(known.as_bytes())
}

fn not_honoured(name: &[u8]) -> OptionsError {
    match UNSUPPORTED.iter().find(|known| is(name, known)) {
        Some(known) => OptionsError::Unsupported(known),
        None => OptionsError::Unknown(super::printable(name)),
    }
}

fn set_once<T>(place: &mut Option<T>, value: T, name: &'static str) -> Result<(), OptionsError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(OptionsError::Twice(name)),
    }
}

/// Takes a quoted value from the front: `\"` stands for a quote, every other backslash for itself.
fn dequote(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = text.strip_prefix(b"\"")?;
    let mut value = Vec::new();
    loop {
        match rest {
            [b'"', after @ ..] => return Some((value, after)),
            [b'\\', b'"', after @ ..] => {
                value.push(b'"');
                rest = after;
            }
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}

fn is_variable(variable: &[u8]) -> bool {
    let Some(equals) = variable.iter().position(|byte| *byte == b'=') else {
        return false;
    };
    let name = variable.get(..equals).unwrap_or(b"");
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    !name.is_empty() && name.iter().all(plain)
}
