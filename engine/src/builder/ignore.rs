//! `.dockerignore`: which paths of a context are left out, with the meaning that moby/patternmatcher gives to patterns.
//! That meaning is its translation to a regular expression, oddities included, so it is translated here likewise.

use regex::Regex;

use super::glob;

mod translate;

/// Longest ignore file, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Most patterns.
pub const PATTERNS_MAX: usize = 10_000;

/// Why an ignore file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the ignore file: the pattern `{pattern}` {problem}{}", .hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default())]
pub struct IgnoreError {
    /// The number of the line, from 1.
    pub line: usize,
    /// The pattern, shortened.
    pub pattern: String,
    /// What is wrong with it.
    pub problem: String,
    /// What the reader can do.
    pub hint: Option<&'static str>,
}

/// The patterns of an ignore file, ready to match.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
    has_exceptions: bool,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    is_exception: bool,
    matcher: Matcher,
}

/// How a pattern is matched. Only what needs to be is a regular expression: patternmatcher does so too, and what its
/// shortcuts match differs from what the expressions would.
#[derive(Clone, Debug)]
enum Matcher {
    Exact,
    /// The path starts with this.
    Prefix(String),
    /// The path ends with this.
    Suffix(String),
    Regex(Regex),
}

/// Which patterns matched a folder, for what is in it.
#[derive(Clone, Debug, Default)]
pub struct Matched(Vec<bool>);

impl Ignore {
    /// Reads an ignore file.
    ///
    /// # Errors
    /// A pattern that is none, a file or a number of patterns above its bound.
    pub fn parse(text: &str) -> Result<Ignore, IgnoreError> {
        let refuse = |line, pattern: &str, problem: &str, hint| {
            let pattern = pattern.chars().take(80).collect();
            Err(IgnoreError { line, pattern, problem: problem.to_owned(), hint })
        };
        if text.len() > FILE_BYTES_MAX {
            return refuse(1, "", "stands in a file of more than 1 MiB", None);
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut ignore = Ignore::default();
        for (index, line) in text.split('\n').enumerate() {
            let Some(written) = normalized(line.strip_suffix('\r').unwrap_or(line)) else { continue };
            if ignore.patterns.len() == PATTERNS_MAX {
                return refuse(index + 1, &written, "is one too many: there can be 10000", None);
            }
            match Pattern::new(&written) {
                Ok(Some(pattern)) => {
                    ignore.has_exceptions |= pattern.is_exception;
                    ignore.patterns.push(pattern);
                }
                Ok(None) => {}
                Err((problem, hint)) => return refuse(index + 1, &written, &problem, hint),
            }
        }
        Ok(ignore)
    }

    /// Whether there is a pattern at all.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern with `!` takes something back.
    pub fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    /// Whether a pattern leaves out everything at the root.
    pub fn excludes_all(&self) -> bool {
        self.patterns
            .iter()
            .any(|pattern| !pattern.is_exception && matches!(pattern.text.as_str(), "*" | "**" | "**/*"))
    }

    /// Whether a path, relative to the root of the context, is left out: what a walk from the root to it finds. An
    /// exception that matches a folder which is not left out takes nothing back below it.
    pub fn excludes(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(slash, _)| slash).chain([path.len()]);
        let mut last = (false, Matched::default());
        for end in ends {
            last = self.excludes_below(&path[..end], &last.1);
        }
        last.0
    }

    /// The same for one who walks: `parent` is what this gave for the folder that the path is in, the default for the
    /// root.
    pub fn excludes_below(&self, path: &str, parent: &Matched) -> (bool, Matched) {
        let mut is_excluded = false;
        let mut matched = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            let mut fits = parent.0.get(index).copied().unwrap_or(false);
            if !fits {
                // A pattern that could change nothing is not asked.
                if pattern.is_exception != is_excluded {
                    continue;
                }
                fits = pattern.matches(path);
            }
            matched[index] = fits;
            if fits {
                is_excluded = !pattern.is_exception;
            }
        }
        (is_excluded, Matched(matched))
    }

    /// Whether an exception may take back something inside a folder that is left out.
    pub fn may_take_back_in(&self, folder: &str) -> bool {
        let below = format!("{folder}/");
        self.patterns.iter().filter(|pattern| pattern.is_exception).any(|pattern| {
            // What comes before the first wildcard decides; a pattern that starts with one may match anywhere.
            let literal = pattern.text.split(['*', '?', '[', '\\']).next().unwrap_or_default();
            let is_whole = literal.len() == pattern.text.len();
            if is_whole {
                format!("{literal}/").starts_with(&below)
            } else {
                literal.starts_with(&below) || below.starts_with(literal)
            }
        })
    }
}

impl Pattern {
    /// Compiles a pattern; `None` for one that is empty.
    fn new(written: &str) -> Result<Option<Pattern>, (String, Option<&'static str>)> {
        let cleaned = glob::clean(written);
        let (is_exception, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(("takes nothing back".to_owned(), Some("a path follows on `!`"))),
            Some(rest) => (true, rest),
            None => (false, cleaned.as_str()),
        };
        glob::check(text)
            .map_err(|problem| (problem.to_owned(), Some("write \\[ for a bracket that is part of a name")))?;
        let matcher = match translate::go_expression(text) {
            translate::Translation::Exact => Matcher::Exact,
            translate::Translation::Prefix => Matcher::Prefix(text[..text.len() - 2].to_owned()),
            translate::Translation::Suffix => Matcher::Suffix(text[2..].to_owned()),
            translate::Translation::Regex(go) => {
                let ours = translate::our_expression(&go).map_err(|problem| (problem, None))?;
                let regex = Regex::new(&ours).map_err(|_| ("cannot be matched".to_owned(), None))?;
                Matcher::Regex(regex)
            }
        };
        Ok(Some(Pattern { text: text.to_owned(), is_exception, matcher }))
    }

    fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::Exact => path == self.text,
            Matcher::Prefix(prefix) => path.starts_with(prefix),
            Matcher::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path),
            Matcher::Regex(regex) => regex.is_match(path),
        }
    }
}

/// A line as a pattern relative to the root; `None` for comments and empty lines.
fn normalized(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let line = line.trim();
    if line.is_empty() {
        return None;
    }
    let (exception, path) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", line),
    };
    if path.is_empty() {
        return Some(exception.to_owned());
    }
    let cleaned = glob::clean(path);
    let relative = if cleaned.len() > 1 { cleaned.strip_prefix('/').unwrap_or(&cleaned) } else { &cleaned };
    Some(format!("{exception}{relative}"))
}
