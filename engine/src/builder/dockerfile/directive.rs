//! Parser directives: `# syntax=`, `# escape=` and `# check=` in the first comments of a file.

use serde::{Deserialize, Serialize};

use super::scan::{Physical, Scanner};
use crate::builder::source::{Complaint, Spanned, Word};

/// Names under which the language that is understood here goes.
const FRONTENDS: [&str; 2] = ["docker/dockerfile", "docker.io/docker/dockerfile"];

/// What the first comments of a file say of how to read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directives {
    /// The image of a frontend, when one is named; it is never fetched.
    pub syntax: Option<Word>,
    /// What takes the meaning from a character, and continues a line.
    pub escape: char,
    /// Which checks are made.
    pub checks: Option<Spanned<Checks>>,
}

impl Default for Directives {
    fn default() -> Directives {
        Directives { syntax: None, escape: '\\', checks: None }
    }
}

/// The value of a `check` directive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// Names of checks that are not made; `all` stands for every one.
    pub skip: Vec<String>,
    /// Names of experimental checks that are made; `all` stands for every one.
    pub experimental: Vec<String>,
    /// Whether a warning is an error.
    pub error: bool,
}

impl Checks {
    /// Reads `skip=A,B;experimental=C;error=true`.
    ///
    /// # Errors
    /// What it cannot mean.
    pub fn parse(text: &str) -> Result<Checks, String> {
        let mut checks = Checks::default();
        for option in text.split(';').map(str::trim).filter(|option| !option.is_empty()) {
            let Some((key, value)) = option.split_once('=') else {
                return Err(format!("`{option}` in the check directive has no `=`"));
            };
            let names = || value.split(',').map(|name| name.trim().to_owned()).collect();
            match key.trim() {
                "skip" => checks.skip = names(),
                "experimental" => checks.experimental = names(),
                "error" => match value.trim() {
                    "true" | "1" | "True" | "TRUE" | "t" | "T" => checks.error = true,
                    "false" | "0" | "False" | "FALSE" | "f" | "F" => checks.error = false,
                    other => return Err(format!("`error={other}` in the check directive is neither true nor false")),
                },
                other => return Err(format!("`{other}` is no option of the check directive")),
            }
        }
        Ok(checks)
    }

    /// The options that a comment above an instruction gives, as in `# check=skip=NAME`.
    pub fn of_comment(comment: &str) -> Option<Checks> {
        let (name, value) = comment.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("check") {
            return None;
        }
        Checks::parse(value.trim().split(' ').next().unwrap_or_default()).ok()
    }
}

/// Reads the directives in front of everything else.
///
/// # Errors
/// A directive that comes twice or has a value that is not understood.
pub(super) fn read(scanner: &mut Scanner) -> Result<Directives, Complaint> {
    let mut directives = Directives::default();
    let mut seen: Vec<String> = Vec::new();
    let mut after_shebang = false;
    while let Some(line) = scanner.peek() {
        if line.text.starts_with("#!") && seen.is_empty() && !after_shebang {
            after_shebang = true;
            scanner.skip(line);
            continue;
        }
        let Some((name, value)) = directive(line) else { break };
        if seen.contains(&name) {
            return Err(Complaint::new(value.span, format!("the directive `{name}` comes twice"))
                .hint("keep the first of them"));
        }
        match name.as_str() {
            "syntax" => directives.syntax = Some(syntax(value)?),
            // BuildKit looks for this one in its own parser, which takes a shebang for a comment.
            "escape" if after_shebang => {}
            "escape" => directives.escape = escape(&value)?,
            "check" => directives.checks = Some(checks(&value)?),
            _ => break,
        }
        seen.push(name);
        scanner.skip(line);
    }
    Ok(directives)
}

/// `# name = value`.
fn directive(line: Physical) -> Option<(String, Word)> {
    let rest = line.content().trim_start().strip_prefix('#')?.trim_start();
    let (name, value) = rest.split_once('=')?;
    let name = name.trim_end();
    let is_name =
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    let value = value.trim();
    if !is_name || value.is_empty() {
        return None;
    }
    Some((name.to_ascii_lowercase(), Spanned::new(value.to_owned(), line.span())))
}

fn syntax(value: Word) -> Result<Word, Complaint> {
    let image = value.value.split_whitespace().next().unwrap_or_default();
    let is_ours = FRONTENDS.iter().any(|name| {
        // Variants such as `docker/dockerfile-upstream:master` speak the same language.
        image.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@', '-']))
    });
    if is_ours {
        return Ok(value);
    }
    Err(Complaint::new(value.span, format!("the frontend `{image}` is not supported")).hint(
        "a frontend is a program that would run with the builder's rights; only docker/dockerfile, which is built in, \
         is understood: remove the line if the file needs nothing else",
    ))
}

fn escape(value: &Word) -> Result<char, Complaint> {
    match value.value.as_str() {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        other => Err(Complaint::new(value.span, format!("`{other}` cannot be the escape character"))
            .hint("it is either \\ or `")),
    }
}

fn checks(value: &Word) -> Result<Spanned<Checks>, Complaint> {
    // What follows on a blank is a remark.
    let text = value.value.split(' ').next().unwrap_or_default();
    let checks = Checks::parse(text).map_err(|problem| {
        Complaint::new(value.span, problem).hint("as in `# check=skip=JSONArgsRecommended,StageNameCasing;error=true`")
    })?;
    Ok(Spanned::new(checks, value.span))
}
