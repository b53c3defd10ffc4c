//! Wildcards: `*`, `?`, `[…]`, a backslash, and `**` where paths are matched.
//!
//! Bytes in, yes or no out. Matching never recurses, and takes at most the product
//! of both lengths for each of the two kinds of stars.

/// Whether a text has a wildcard that is not escaped.
pub fn is_pattern(text: &[u8]) -> bool {
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
    false
}

/// The text that a pattern without wildcards stands for.
pub fn literal(pattern: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(pattern.len());
    let mut bytes = pattern.iter();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.as_slice().first()) {
            (b'\\', Some(next)) => {
                text.push(*next);
                bytes.next();
            }
            _ => text.push(*byte),
        }
    }
    text
}

/// Whether the shell would expand `pattern` to this name of a file: as [`matches()`], and a
/// leading dot must be there literally.
pub fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let dot = name.first() == Some(&b'.');
    let literally = matches!(pattern, [b'.', ..] | [b'\\', b'.', ..]);
    (!dot || literally) && matches(pattern, name)
}

/// Whether all of `text` matches: `*`, `?` and `[…]` do not match a slash, `**` does.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Where to go on when an attempt fails: behind a star, with one byte more given to it.
    let mut star: Option<(&[u8], &[u8])> = None;
    let mut stars: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match pattern {
            [b'*', b'*', ..] => {
                let after = trimmed(pattern);
                (stars, star) = (Some((after, text)), None);
                pattern = after;
                continue;
            }
            [b'*', after @ ..] => {
                star = Some((after, text));
                pattern = after;
                continue;
            }
            [] if text.is_empty() => return true,
            [] => None,
            _ => text
                .split_first()
                .and_then(|(byte, rest)| Some((one(pattern, *byte)?, rest))),
        };
        if let Some(next) = step {
            (pattern, text) = next;
            continue;
        }
        star = star.and_then(|(after, from)| match from.split_first() {
            Some((byte, from)) if *byte != b'/' => Some((after, from)),
            _ => None,
        });
        if star.is_none() {
            stars = stars.and_then(|(after, from)| Some((after, from.split_first()?.1)));
        }
        match star.or(stars) {
            Some(next) => (pattern, text) = next,
            None => return false,
        }
    }
}

fn trimmed(pattern: &[u8]) -> &[u8] {
    let len = pattern.iter().take_while(|byte| **byte == b'*').count();
    pattern.get(len..).unwrap_or_default()
}

/// Matches one byte and gives the rest of the pattern.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => (byte != b'/').then_some(rest),
        [b'\\', wanted, rest @ ..] => (*wanted == byte).then_some(rest),
        [b'[', rest @ ..] => match class(rest, byte) {
            Some((true, rest)) => Some(rest),
            Some((false, _)) => None,
            // Without its end it is a bracket like any other byte.
            None => (byte == b'[').then_some(rest),
        },
        [wanted, rest @ ..] => (*wanted == byte).then_some(rest),
        [] => None,
    }
}

/// Whether a byte is in the class that begins here, and what comes behind its `]`.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match pattern {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (mut found, mut first) = (false, true);
    loop {
        let (low, after) = match rest {
            [b']', after @ ..] if !first => return Some((found != negated && byte != b'/', after)),
            [b'\\', low, after @ ..] | [low, after @ ..] => (*low, after),
            [] => return None,
        };
        (rest, first) = (after, false);
        let high = match rest {
            [b'-', high, after @ ..] if *high != b']' => {
                rest = after;
                *high
            }
            _ => low,
        };
        found |= (low..=high).contains(&byte);
    }
}

/// What is left out, in the words of rsync(1) (`--exclude`).
///
/// A pattern with a slash at its front is matched at the root of the copy, one with a slash
/// inside at the end of the path, any other with the name; one that ends in a slash is for
/// folders alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excludes(Vec<Vec<u8>>);

impl Excludes {
    /// From patterns as they were given.
    pub fn new(patterns: Vec<Vec<u8>>) -> Self {
        Self(patterns)
    }

    /// The patterns.
    pub fn patterns(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// Whether there are none, so that nobody needs to build a path.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an entry is left out; `path` is from the root of the copy, with single slashes.
    pub fn leave_out(&self, path: &[u8], folder: bool) -> bool {
        self.0.iter().any(|pattern| excludes(pattern, path, folder))
    }
}

fn excludes(pattern: &[u8], path: &[u8], folder: bool) -> bool {
    let pattern = match pattern.strip_suffix(b"/") {
        Some(_) if !folder => return false,
        Some(pattern) => pattern,
        None => pattern,
    };
    if let Some(pattern) = pattern.strip_prefix(b"/") {
        return matches(pattern, path);
    }
    if pattern.contains(&b'/') || pattern.windows(2).any(|two| two == b"**") {
        let tails = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut tails = tails.filter_map(|(at, _)| path.get(at + 1..));
        return matches(pattern, path) || tails.any(|tail| matches(pattern, tail));
    }
    let name = path.rsplit(|byte| *byte == b'/').next();
    name.is_some_and(|name| matches(pattern, name))
}
