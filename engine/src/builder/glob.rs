//! Patterns as Go's `path.Match` has them: `*`, `?`, `[a-z]`, `[^a]` and `\`, none of which matches a slash.

/// Whether a pattern can be matched at all; the sentence says what is wrong with it.
///
/// # Errors
/// A class that is not closed or is empty, an escape at the end.
pub(super) fn check(pattern: &str) -> Result<(), &'static str> {
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                rest.next().ok_or("ends with an escape")?;
            }
            '[' => {
                let (_, after) = Class::read(rest.as_str())?;
                rest = after.chars();
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a pattern holds anything that is not literal.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

/// Whether `pattern` matches all of `name`, which holds no slash. A pattern that `check` refuses matches nothing.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    // Where to go on when a star should have taken one more character.
    let mut retry: Option<(&str, &str)> = None;
    loop {
        match one(pattern, name) {
            Step::Done => return true,
            Step::Star(after) => {
                retry = Some((after, name));
                pattern = after;
            }
            Step::Matched(pattern_after, name_after) => (pattern, name) = (pattern_after, name_after),
            Step::Failed => {
                let Some((after, from)) = retry else { return false };
                let mut shorter = from.chars();
                if shorter.next().is_none() {
                    return false;
                }
                retry = Some((after, shorter.as_str()));
                (pattern, name) = (after, shorter.as_str());
            }
        }
    }
}

enum Step<'a> {
    Done,
    Failed,
    Star(&'a str),
    Matched(&'a str, &'a str),
}

/// Matches one element of the pattern.
fn one<'a>(pattern: &'a str, name: &'a str) -> Step<'a> {
    let mut rest = pattern.chars();
    let Some(c) = rest.next() else { return if name.is_empty() { Step::Done } else { Step::Failed } };
    if c == '*' {
        return Step::Star(rest.as_str());
    }
    let mut names = name.chars();
    let Some(n) = names.next() else { return Step::Failed };
    let (fits, after) = match c {
        '?' => (true, rest.as_str()),
        '[' => match Class::read(rest.as_str()) {
            Ok((class, after)) => (class.holds(n), after),
            Err(_) => return Step::Failed,
        },
        '\\' => (rest.next() == Some(n), rest.as_str()),
        literal => (literal == n, rest.as_str()),
    };
    if fits { Step::Matched(after, names.as_str()) } else { Step::Failed }
}

/// `[…]`
struct Class {
    is_negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    /// Reads what follows on `[`; returns the text behind `]` too.
    fn read(text: &str) -> Result<(Class, &str), &'static str> {
        let (is_negated, mut rest) = match text.strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut ranges = Vec::new();
        loop {
            if let Some(after) = rest.strip_prefix(']').filter(|_| !ranges.is_empty()) {
                return Ok((Class { is_negated, ranges }, after));
            }
            let (low, after) = element(rest)?;
            let (high, after) = match after.strip_prefix('-') {
                Some(after) => element(after)?,
                None => (low, after),
            };
            ranges.push((low, high));
            rest = after;
        }
    }

    fn holds(&self, c: char) -> bool {
        self.ranges.iter().any(|&(low, high)| (low..=high).contains(&c)) != self.is_negated
    }
}

/// One character of a class, escaped or not.
fn element(text: &str) -> Result<(char, &str), &'static str> {
    const UNCLOSED: &str = "has a `[` that is not closed";
    let mut rest = text.chars();
    let c = match rest.next() {
        None => return Err(UNCLOSED),
        Some('-' | ']') => return Err("has a `[` with an empty class or range"),
        Some('\\') => rest.next().ok_or(UNCLOSED)?,
        Some(c) => c,
    };
    if rest.as_str().is_empty() { Err(UNCLOSED) } else { Ok((c, rest.as_str())) }
}

/// A path without `.`, `..`, double and trailing slashes, as Go's `path.Clean` leaves it.
pub(super) fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    match (is_absolute, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        let yes =
            [("*.go", "a.go"), ("*", ".x"), ("a?c", "abc"), ("[a-c]x", "bx"), ("[^a]", "b"), ("\\*", "*"), ("", "")];
        let no =
            [("*.go", "a.gox"), ("a?c", "ac"), ("[a-c]x", "dx"), ("[^a]", "a"), ("\\*", "x"), ("", "a"), ("[", "[")];
        for (pattern, name) in yes {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in no {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        for pattern in ["[", "[]", "[a", "[a-", "[-a]", "a\\", "[]a]", "[a-]"] {
            assert!(check(pattern).is_err(), "{pattern}");
        }
        for pattern in ["[^]-]x", "**", "a\\[", "[\\]]"] {
            assert_eq!(check(pattern).is_ok(), pattern != "[^]-]x", "{pattern}");
        }
    }

    #[test]
    fn many_stars_cost_little() {
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
        assert!(!matches(&format!("{}b", "a*".repeat(100)), &"a".repeat(10_000)));
    }

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, expected) in [
            ("", "."),
            ("a//b/./c/", "a/b/c"),
            ("../a", "../a"),
            ("/../a", "/a"),
            ("a/../..", ".."),
            ("!/a", "!/a"),
            ("/", "/"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
    }
}
