//! Patterns of host names and addresses, as ssh_config(5) describes them under PATTERNS.
//!
//! Owns `*`, `?` and `!` in comma-separated lists. Matching takes at most pattern times text steps and never
//! recurses, so a hostile pattern costs no more than its length allows.

/// What a list of patterns says about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListMatch {
    /// A pattern matches and no negated one does.
    Yes,
    /// Nothing matches.
    No,
    /// A negated pattern matches: it wins over all others.
    Negated,
}

/// Whether `text` as a whole matches `pattern`: `*` is any run of bytes, `?` any one byte.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Where to go on when the attempt fails: behind the last star, with one byte more given to it.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', after)), _) => {
                retry = Some((after, text));
                pattern = after;
            }
            (Some((wanted, after)), Some((byte, rest))) if *wanted == b'?' || wanted == byte => {
                pattern = after;
                text = rest;
            }
            (None, None) => return true,
            _ => {
                let Some((after, from)) = retry else {
                    return false;
                };
                let Some((_, from)) = from.split_first() else {
                    return false;
                };
                retry = Some((after, from));
                pattern = after;
                text = from;
            }
        }
    }
}

/// Matches a name, without regard to case, against patterns separated by commas.
pub fn matches_list(patterns: &[u8], name: &[u8]) -> ListMatch {
    let name = name.to_ascii_lowercase();
    let mut found = ListMatch::No;
    for pattern in patterns.split(|byte| *byte == b',') {
        let (negated, pattern) = match pattern.split_first() {
            Some((b'!', rest)) => (true, rest),
            _ => (false, pattern),
        };
        if pattern.is_empty() || !matches(&pattern.to_ascii_lowercase(), &name) {
            continue;
        }
        if negated {
            return ListMatch::Negated;
        }
        found = ListMatch::Yes;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*.co.uk", "a.b.co.uk", true),
            ("*.co.uk", "co.uk", false),
            ("192.168.0.?", "192.168.0.7", true),
            ("192.168.0.?", "192.168.0.17", false),
            ("a*b*c", "aXbXbYc", true),
            ("a*b*c", "aXbXbY", false),
            ("***a", "bbba", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_negated_match_wins_wherever_it_stands() {
        let list = |patterns: &str, name: &str| matches_list(patterns.as_bytes(), name.as_bytes());
        assert_eq!(
            list("!dialup.example.com,*.example.com", "www.example.com"),
            ListMatch::Yes
        );
        assert_eq!(
            list("!dialup.example.com,*.example.com", "dialup.example.com"),
            ListMatch::Negated
        );
        assert_eq!(
            list("*.example.com,!dialup.*", "Dialup.Example.com"),
            ListMatch::Negated
        );
        assert_eq!(list("!a,b", "c"), ListMatch::No);
        assert_eq!(list(",!,", ""), ListMatch::No);
    }

    proptest! {
        #[test]
        fn agrees_with_the_obvious_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            fn obvious(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern, text) {
                    ([], []) => true,
                    ([b'*', p @ ..], _) => {
                        (0..=text.len()).any(|skip| obvious(p, &text[skip..]))
                    }
                    ([b'?', p @ ..], [_, t @ ..]) => obvious(p, t),
                    ([x, p @ ..], [y, t @ ..]) if x == y => obvious(p, t),
                    _ => false,
                }
            }
            prop_assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                obvious(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
