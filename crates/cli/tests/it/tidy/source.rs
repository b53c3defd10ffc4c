//! A Rust file as the tidy tests look at it: its code without comments and the
//! content of strings, and without its tests.

/// One file.
pub(super) struct Source {
    /// Its path from the root.
    pub(super) path: String,
    /// All of it.
    pub(super) text: String,
}

impl Source {
    pub(super) fn new(path: String, text: String) -> Self {
        Self { path, text }
    }

    /// Whether it lies in a folder.
    pub(super) fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(&format!("{folder}/"))
    }

    /// The names of its modules: of its folders and of the file.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.path.trim_end_matches(".rs").split('/')
    }

    /// Whether all of it is for tests, benches or fuzzing.
    pub(super) fn is_test(&self) -> bool {
        let outside = ["fuzz/", "bench/"];
        let for_tests = |name: &str| name == "tests" || name.ends_with("_tests");
        outside.iter().any(|folder| self.path.starts_with(folder)) || self.names().any(for_tests)
    }

    /// Whether it has tests.
    pub(super) fn has_tests(&self) -> bool {
        self.is_test() || self.text.contains("#[cfg(test)]")
    }

    /// Where its test module begins, in bytes.
    fn tests_begin(&self) -> usize {
        let found = self.text.find("#[cfg(test)]\nmod tests {");
        found.unwrap_or(self.text.len())
    }

    /// How long it is without its test module.
    pub(super) fn lines_without_tests(&self) -> usize {
        self.text[..self.tests_begin()].lines().count()
    }

    /// Its code without the test module.
    pub(super) fn code_without_tests(&self) -> String {
        code_of(&self.text[..self.tests_begin()])
    }

    /// Whether its code has this word, tests included.
    pub(super) fn has_word(&self, word: &str) -> bool {
        word_in(&code_of(&self.text), word)
    }

    /// The string literals that follow one of these beginnings, blanks and line ends apart.
    pub(super) fn first_strings_of(&self, beginnings: &[&str]) -> Vec<String> {
        let text = &self.text[..self.tests_begin()];
        let mut found = Vec::new();
        for beginning in beginnings {
            for (at, _) in text.match_indices(beginning) {
                let rest = text[at + beginning.len()..].trim_start();
                if let Some(literal) = rest.strip_prefix('"')
                    && let Some((word, _)) = literal.split_once('"')
                {
                    found.push(word.to_owned());
                }
            }
        }
        found
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether a word stands in code, by itself.
pub(super) fn word_in(code: &str, word: &str) -> bool {
    let bytes = code.as_bytes();
    code.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        let after = bytes.get(at + word.len());
        !before.copied().is_some_and(is_word) && !after.copied().is_some_and(is_word)
    })
}

/// Whether a path or the name of a crate stands in code.
pub(super) fn path_in(code: &str, path: &str) -> bool {
    match path.strip_suffix("::") {
        Some(name) => code.match_indices(path).any(|(at, _)| {
            !at.checked_sub(1)
                .is_some_and(|at| is_word(code.as_bytes()[at]))
                && !name.is_empty()
        }),
        None if path.contains("::") => code.contains(path),
        // A crate is named in a path or a use.
        None => ["::", ";", " as "].iter().any(|end| {
            let whole = format!("{path}{end}");
            code.match_indices(&whole).any(|(at, _)| {
                let before = at.checked_sub(1).map(|at| code.as_bytes()[at]);
                let used = *end == "::" || code[..at].ends_with("use ");
                used && !before.is_some_and(|byte| is_word(byte) || byte == b':')
            })
        }),
    }
}

/// Code without comments and without what stands in strings.
pub(super) fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end + 2..]);
        } else if let Some(len) = raw_string(rest) {
            code.push_str("\"\"");
            rest = &rest[len..];
        } else if first == '"' {
            code.push_str("\"\"");
            rest = &rest[string(rest)..];
        } else if let Some(len) = character(rest) {
            code.push_str("' '");
            rest = &rest[len..];
        } else {
            // A word is taken whole, so that the `r` of `for` begins no raw string.
            let word = rest.bytes().take_while(|&byte| is_word(byte)).count();
            let len = word.max(first.len_utf8());
            code.push_str(&rest[..len]);
            rest = &rest[len..];
        }
    }
    code
}

/// The length of the string that begins here.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return at + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// The length of the raw string that begins here, if one does.
fn raw_string(text: &str) -> Option<usize> {
    let start = ["br", "cr", "r"].iter().find(|it| text.starts_with(**it))?;
    let hashes = text[start.len()..]
        .bytes()
        .take_while(|&it| it == b'#')
        .count();
    let open = start.len() + hashes;
    if text.as_bytes().get(open) != Some(&b'"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let end = text[open + 1..].find(&close)?;
    Some(open + 1 + end + close.len())
}

/// The length of the character literal that begins here, if it is none of a lifetime.
fn character(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    let first = inner.chars().next()?;
    let len = if first == '\\' {
        inner[2.min(inner.len())..].find('\'')? + 2
    } else {
        first.len_utf8()
    };
    inner[len..].starts_with('\'').then_some(len + 2)
}

/// The targets of the links in a Markdown text, outside of code.
pub(super) fn markdown_links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        // Every second part between backticks is code.
        let prose: Vec<&str> = line.split('`').step_by(2).collect();
        let prose = prose.join("`");
        if fenced {
            continue;
        }
        for (at, _) in prose.match_indices("](") {
            let rest = &prose[at + 2..];
            if let Some((link, _)) = rest.split_once(')') {
                links.push(link.to_owned());
            }
        }
    }
    links
}

#[test]
fn code_is_told_from_comments_and_strings() {
    let text = "let a = \"unsafe \\\" x\"; // unsafe\n/* unsafe */ let b = r#\"unsafe\"#; let c = '\"'; fn f<'a>(x: &'a str) { for_r(\"y\") }";
    let code = code_of(text);
    assert!(!word_in(&code, "unsafe"), "{code}");
    assert!(
        code.contains("fn f<'a>(x: &'a str) { for_r(\"\") }"),
        "{code}"
    );
    assert!(word_in("unsafe { x }", "unsafe"));
    assert!(!word_in("unsafe_code", "unsafe"));
    assert!(path_in("use tokio::net;", "tokio"));
    assert!(path_in("use clap;", "clap"));
    assert!(!path_in("not_tokio::net", "tokio"));
    assert!(!path_in("crate::tokio::net", "tokio"));
}

#[test]
fn links_are_found_outside_of_code() {
    let text = "[a](b.md) `[c](d.md)`\n```\n[e](f.md)\n```\n[g](h.md#i)";
    assert_eq!(markdown_links(text), ["b.md", "h.md#i"]);
}
