//! Patterns to regular expressions: first the text that patternmatcher makes for Go's engine, then the same for ours,
//! where the two engines read a text differently.

use std::fmt::Write as _;

/// What a pattern's text came to.
pub(super) enum Translation {
    /// It has nothing but literal text.
    Exact,
    /// It ends with its only wildcard, `**`.
    Prefix,
    /// It starts with its only wildcard, `**`.
    Suffix,
    /// An expression in Go's syntax.
    Regex(String),
}

/// As patternmatcher compiles a pattern. It means to escape `{`, `|` and `}` too, but its table has no room for them.
pub(super) fn go_expression(pattern: &str) -> Translation {
    let mut text = String::from("^");
    let mut kind = Translation::Exact;
    let mut is_regex = false;
    let mut characters = pattern.chars().peekable();
    let mut is_first = true;
    while let Some(c) = characters.next() {
        match c {
            '*' if characters.peek() == Some(&'*') => {
                characters.next();
                characters.next_if_eq(&'/');
                if characters.peek().is_some() {
                    text.push_str("(.*/)?");
                    is_regex = true;
                } else if !is_regex && matches!(kind, Translation::Exact) {
                    kind = Translation::Prefix;
                } else {
                    text.push_str(".*");
                    is_regex = true;
                }
                if is_first {
                    kind = Translation::Suffix;
                    is_regex = false;
                }
            }
            '*' => {
                text.push_str("[^/]*");
                is_regex = true;
            }
            '?' => {
                text.push_str("[^/]");
                is_regex = true;
            }
            '.' | '+' | '(' | ')' | '$' => text.extend(['\\', c]),
            '\\' => {
                text.push('\\');
                if let Some(escaped) = characters.next() {
                    text.push(escaped);
                    is_regex = true;
                }
            }
            '[' | ']' => {
                text.push(c);
                is_regex = true;
            }
            _ => text.push(c),
        }
        is_first = false;
    }
    if is_regex { Translation::Regex(text + "$") } else { kind }
}

/// The same expression in our syntax.
///
/// # Errors
/// What Go's engine would refuse, and the rarer escapes of letters, which nobody means as what they are.
pub(super) fn our_expression(go: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = go;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\\' => match named_class(after) {
                Some(class) => {
                    text.push_str(class);
                    &after[1..]
                }
                None => {
                    let (escaped, after) = escaped(after)?;
                    push_literal(&mut text, escaped);
                    after
                }
            },
            '[' => class(after, &mut text)?,
            '{' => match repetition(after) {
                Some(length) => {
                    text.push_str(&rest[..=length]);
                    &rest[length + 1..]
                }
                None => {
                    push_literal(&mut text, c);
                    after
                }
            },
            '.' | '*' | '?' | '(' | ')' | '^' | '$' | '|' => {
                text.push(c);
                after
            }
            _ => {
                push_literal(&mut text, c);
                after
            }
        };
    }
    Ok(text)
}

fn push_literal(text: &mut String, c: char) {
    text.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
}

/// The class that a letter behind a backslash stands for: the expression is Go's, whatever the pattern meant.
fn named_class(text: &str) -> Option<&'static str> {
    match text.chars().next()? {
        'd' => Some("[0-9]"),
        'D' => Some("[^0-9]"),
        's' => Some("[\\t\\n\\x0c\\r ]"),
        'S' => Some("[^\\t\\n\\x0c\\r ]"),
        'w' => Some("[0-9A-Za-z_]"),
        'W' => Some("[^0-9A-Za-z_]"),
        _ => None,
    }
}

/// The character behind a backslash.
fn escaped(text: &str) -> Result<(char, &str), String> {
    match text.chars().next() {
        Some(c) if c.is_ascii_alphanumeric() => Err(format!("escapes `{c}`, which needs no escape")),
        Some(c) => Ok((c, &text[c.len_utf8()..])),
        None => Err("ends with an escape".to_owned()),
    }
}

/// Bytes of `n}`, `n,}` or `n,m}`.
fn repetition(text: &str) -> Option<usize> {
    let end = text.find('}')?;
    let (low, high) = text[..end].split_once(',').unwrap_or((&text[..end], "0"));
    let is_number = |part: &str| !part.is_empty() && part.len() < 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(low) && (high.is_empty() || is_number(high))).then_some(end + 1)
}

/// A class, from behind its `[`; in Go's syntax a `[` inside of one is a character like others.
fn class<'a>(text: &'a str, out: &mut String) -> Result<&'a str, String> {
    const UNCLOSED: &str = "has a `[` that is not closed";
    let (negation, mut rest) = match text.strip_prefix('^') {
        Some(rest) => ("^", rest),
        None => ("", text),
    };
    out.push('[');
    out.push_str(negation);
    let mut is_first = true;
    loop {
        if let Some(after) = rest.strip_prefix(']').filter(|_| !is_first) {
            out.push(']');
            return Ok(after);
        }
        is_first = false;
        let (low, after) = element(rest).ok_or(UNCLOSED)??;
        let is_range = after.starts_with('-') && !after.starts_with("-]") && after.len() > 1;
        let (high, after) = if is_range { element(&after[1..]).ok_or(UNCLOSED)?? } else { (low, after) };
        if high < low {
            return Err(format!("has the range `{low}-{high}`, which goes backwards"));
        }
        let _ = write!(out, "\\x{{{:x}}}-\\x{{{:x}}}", u32::from(low), u32::from(high));
        rest = after;
    }
}

fn element(text: &str) -> Option<Result<(char, &str), String>> {
    let c = text.chars().next()?;
    let after = &text[c.len_utf8()..];
    Some(if c == '\\' { escaped(after) } else { Ok((c, after)) })
}
