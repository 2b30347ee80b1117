//! The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*` and `?`, and `\` before either of them.

use regex::Regex;

/// The value without the shortest, or longest, start that matches.
///
/// # Errors
/// A pattern that is none.
pub(super) fn remove_prefix(value: &str, pattern: &str, is_greedy: bool) -> Result<String, String> {
    let regex = compile(pattern, is_greedy, "^")?;
    Ok(regex.find(value).map_or(value, |found| &value[found.end()..]).to_owned())
}

/// The value without the shortest, or longest, end that matches.
///
/// # Errors
/// A pattern that is none.
pub(super) fn remove_suffix(value: &str, pattern: &str, is_greedy: bool) -> Result<String, String> {
    // A search from the left cannot find the shortest end, so both are turned round.
    let turned: String = value.chars().rev().collect();
    let rest = remove_prefix(&turned, &reversed(pattern), is_greedy)?;
    Ok(rest.chars().rev().collect())
}

/// The value with the first match, or all matches, replaced; as much as can be is taken for a match.
///
/// # Errors
/// A pattern that is none.
pub(super) fn replace(value: &str, pattern: &str, replacement: &str, all: bool) -> Result<String, String> {
    let regex = compile(pattern, true, "")?;
    let limit = usize::from(!all);
    Ok(regex.replacen(value, limit, regex::NoExpand(replacement)).into_owned())
}

fn compile(pattern: &str, is_greedy: bool, anchor: &str) -> Result<Regex, String> {
    let mut text = anchor.to_owned();
    let mut characters = pattern.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '*' => text.push_str(if is_greedy { ".*" } else { ".*?" }),
            '?' => text.push('.'),
            '\\' => match characters.peek() {
                // These had to be escaped for the `${}` around the pattern only.
                Some('}' | '/') => {}
                Some('*' | '?' | '\\') => {
                    text.push_str(&regex::escape(&characters.next().into_iter().collect::<String>()))
                }
                Some(other) => return Err(format!("`\\{other}` in a pattern escapes nothing")),
                None => return Err("a pattern ends with an escape".to_owned()),
            },
            _ => text.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&text).map_err(|_| "its pattern is too large".to_owned())
}

/// The pattern turned round, escapes still in front of what they escape.
fn reversed(pattern: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut characters = pattern.chars();
    while let Some(c) = characters.next() {
        parts.push(if c == '\\' { std::iter::once(c).chain(characters.next()).collect() } else { c.to_string() });
    }
    parts.into_iter().rev().collect()
}
