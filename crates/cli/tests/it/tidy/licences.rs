//! Licence expressions (SPDX, and the `/` that crates.io once used) against what
//! deny.toml permits.

/// The entries of a list `name = [...]` in a section of deny.toml.
fn list(deny: &str, section: &str, name: &str) -> Vec<String> {
    let section = deny
        .split(&format!("\n[{section}]\n"))
        .nth(1)
        .unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let after = section.split(&format!("\n{name} = [")).nth(1);
    // A list may also be the first thing of its section.
    let after = after.or_else(|| section.strip_prefix(&format!("{name} = [")));
    let inner = after.and_then(|rest| rest.split("\n]").next());
    inner
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

/// Licences that may be linked.
pub(super) fn permitted(deny: &str) -> Vec<String> {
    list(deny, "licenses", "allow")
}

/// Crates that may not.
pub(super) fn banned(deny: &str) -> Vec<String> {
    list(deny, "bans", "deny")
}

/// Whether an expression can be satisfied by permitted licences alone.
pub(super) fn is_permitted(expression: &str, permitted: &[String]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let spaced = spaced.replace(" WITH ", "_WITH_");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reading = Reading {
        words: &words,
        permitted,
    };
    let result = reading.any();
    result == Some(true) && reading.words.is_empty()
}

struct Reading<'a> {
    words: &'a [&'a str],
    permitted: &'a [String],
}

impl Reading<'_> {
    fn take(&mut self, word: &str) -> bool {
        let taken = self.words.first() == Some(&word);
        if taken {
            self.words = &self.words[1..];
        }
        taken
    }

    fn any(&mut self) -> Option<bool> {
        let mut result = self.all()?;
        while self.take("OR") {
            result |= self.all()?;
        }
        Some(result)
    }

    fn all(&mut self) -> Option<bool> {
        let mut result = self.one()?;
        while self.take("AND") {
            result &= self.one()?;
        }
        Some(result)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let result = self.any()?;
            return self.take(")").then_some(result);
        }
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        let name = word.replace("_WITH_", " WITH ");
        Some(self.permitted.contains(&name))
    }
}

#[test]
fn expressions_are_weighed() {
    let permitted = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for (expression, right) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("MIT OR GPL-3.0 AND GPL-2.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("(MIT", false),
        ("MIT MIT", false),
        ("", false),
    ] {
        assert_eq!(is_permitted(expression, &permitted), right, "{expression}");
    }
}
