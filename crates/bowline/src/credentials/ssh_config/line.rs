//! One line of a configuration: its keyword and its values.
//!
//! Owns quotes, the optional `=` and comments, and nothing that the words mean.

/// A quote is opened and not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenQuote;

/// Splits a line into the keyword, in lower case, and its values; `None` if there is nothing on it.
///
/// `"…"` and `'…'` hold blanks, a backslash keeps a quote, a backslash or a blank, and `#` in front of a word begins a
/// comment.
pub(super) fn split(line: &str) -> Result<Option<(String, Vec<String>)>, OpenQuote> {
    let line = line.trim_matches(is_blank);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line
        .find(|char| is_blank(char) || char == '=')
        .unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start_matches(is_blank);
    let rest = rest.strip_prefix('=').unwrap_or(rest);
    Ok(Some((keyword.to_ascii_lowercase(), words(rest)?)))
}

fn words(text: &str) -> Result<Vec<String>, OpenQuote> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|char| is_blank(*char)).is_some() {}
        match chars.peek() {
            None | Some('#') => return Ok(words),
            Some(_) => {}
        }
        let mut word = String::new();
        let mut quote = None;
        while let Some(char) = chars.next_if(|char| quote.is_some() || !is_blank(*char)) {
            match char {
                '\\' if matches!(chars.peek(), Some('"' | '\'' | '\\')) => {
                    word.extend(chars.next());
                }
                '\\' if quote.is_none() && chars.peek() == Some(&' ') => {
                    word.extend(chars.next());
                }
                '"' | '\'' if quote == Some(char) => quote = None,
                '"' | '\'' if quote.is_none() => quote = Some(char),
                _ => word.push(char),
            }
        }
        if quote.is_some() {
            return Err(OpenQuote);
        }
        words.push(word);
    }
}

fn is_blank(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\r' | '\x0c')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split() {
        for (line, expected) in [
            ("", None),
            ("  # comment", None),
            ("Host a b", Some("host|a|b")),
            ("\tHost = a\tb ", Some("host|a|b")),
            ("HostName=a", Some("hostname|a")),
            ("User = =a", Some("user|=a")),
            ("User", Some("user")),
            (r#"IdentityFile "a b" 'c d'"#, Some("identityfile|a b|c d")),
            (r#"User a"b c"d"#, Some("user|ab cd")),
            (r#"User a\"b \\ c\d e\ f"#, Some(r#"user|a"b|\|c\d|e f"#)),
            (r#"User "it's""#, Some("user|it's")),
            ("User a # comment", Some("user|a")),
            ("User a#b", Some("user|a#b")),
            (r##"User "#a""##, Some("user|#a")),
            (r#"User """#, Some("user|")),
        ] {
            let found = split(line).unwrap().map(|(keyword, values)| {
                let mut all = vec![keyword];
                all.extend(values);
                all.join("|")
            });
            assert_eq!(found.as_deref(), expected, "{line}");
        }
        for line in ["User \"a", "User 'a b", r#"User "a\""#] {
            assert_eq!(split(line), Err(OpenQuote), "{line}");
        }
    }

    proptest::proptest! {
        /// Words written in quotes come back as they were.
        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec("[ -~]{0,12}", 0..5)) {
            let quoted = words.iter().map(|word| {
                let escaped = word.replace('\\', "\\\\").replace('"', "\\\"");
                format!(" \"{escaped}\"")
            });
            let line = format!("Keyword{}", quoted.collect::<String>());
            proptest::prop_assert_eq!(split(&line), Ok(Some(("keyword".to_owned(), words))));
        }

        #[test]
        fn any_line_is_survived(line in r#"[a-z=" '\\#\t]{0,40}"#, other: String) {
            let _ = split(&line);
            let _ = split(&other);
        }
    }
}
