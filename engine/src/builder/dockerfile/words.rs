//! The ways in which instructions are split: at blanks, into words with quotes, into flags, as a JSON array.

use super::instruction::Flag;
use super::line::{Part, is_blank};
use super::{FLAGS_MAX, WORDS_MAX};
use crate::builder::source::{Complaint, Spanned, Word};

/// Words between blanks; quotes mean nothing.
///
/// # Errors
/// Too many words.
pub(super) fn split_blanks(part: Part) -> Result<Vec<Word>, Complaint> {
    let mut words = Vec::new();
    let mut rest = part.trim();
    while !rest.text().is_empty() {
        let (word, after) = rest.split_word();
        words.push(word.word());
        check_count(&words, part)?;
        rest = after;
    }
    Ok(words)
}

/// Words between blanks that are neither quoted nor escaped; quotes and escapes stay in them.
///
/// # Errors
/// Too many words.
pub(super) fn split_quoted(part: Part, escape: char) -> Result<Vec<Word>, Complaint> {
    let text = part.text();
    let mut words = Vec::new();
    let mut start: Option<usize> = None;
    let mut quote: Option<char> = None;
    let mut characters = text.char_indices().peekable();
    while let Some((offset, c)) = characters.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(start.take().map(|start| part.slice(start, offset).word()));
            check_count(&words, part)?;
            continue;
        }
        start.get_or_insert(offset);
        if c == escape && quote != Some('\'') {
            characters.next();
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && matches!(c, '\'' | '"') {
            quote = Some(c);
        }
    }
    words.extend(start.map(|start| part.slice(start, text.len()).word()));
    Ok(words)
}

fn check_count(words: &[Word], part: Part) -> Result<(), Complaint> {
    if words.len() > WORDS_MAX {
        return Err(Complaint::new(part.span(), format!("the instruction has more than {WORDS_MAX} words")));
    }
    Ok(())
}

/// Takes the flags off the front: words that start with `--`. Quotes and escapes in them are resolved.
///
/// # Errors
/// Too many flags.
pub(super) fn take_flags<'a>(part: Part<'a>, escape: char) -> Result<(Vec<Flag>, Part<'a>), Complaint> {
    let mut flags = Vec::new();
    let mut rest = part.trim();
    while rest.text().starts_with("--") {
        let (end, value) = flag_word(rest.text(), escape);
        let raw = rest.slice(0, end);
        rest = rest.slice(end, rest.text().len()).trim();
        if value == "--" {
            break;
        }
        flags.push(flag(raw, &value));
        if flags.len() > FLAGS_MAX {
            return Err(Complaint::new(part.span(), format!("the instruction has more than {FLAGS_MAX} flags")));
        }
    }
    Ok((flags, rest))
}

/// Where the word at the start of `text` ends, and what it comes to.
fn flag_word(text: &str, escape: char) -> (usize, String) {
    let mut value = String::new();
    let mut quote: Option<char> = None;
    let mut characters = text.char_indices();
    while let Some((offset, c)) = characters.next() {
        if quote.is_none() && c.is_whitespace() {
            return (offset, value);
        }
        if c == escape {
            value.extend(characters.next().map(|(_, escaped)| escaped));
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && matches!(c, '\'' | '"') {
            quote = Some(c);
        } else {
            value.push(c);
        }
    }
    (text.len(), value)
}

fn flag(raw: Part, value: &str) -> Flag {
    let (name, value) = match value.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (value, None),
    };
    let equals = raw.text().find('=').map_or(raw.text().len(), |equals| equals + 1);
    Flag {
        name: Spanned::new(name.trim_start_matches("--").to_owned(), raw.span()),
        value: value.map(|value| Spanned::new(value.to_owned(), raw.slice(equals, raw.text().len()).span())),
    }
}

/// A JSON array of strings; `None` for what is no JSON array, which is then a shell's.
///
/// # Errors
/// An array that holds something else.
pub(super) fn json_array(part: Part) -> Result<Option<Vec<Word>>, Complaint> {
    let part = part.trim();
    if !part.text().starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(part.text()) else { return Ok(None) };
    if values.len() > WORDS_MAX {
        return Err(Complaint::new(part.span(), format!("the array has more than {WORDS_MAX} elements")));
    }
    let mut spans = string_literals(part).into_iter();
    let mut words = Vec::new();
    for value in values {
        let serde_json::Value::String(text) = value else {
            return Err(Complaint::new(part.span(), "the array holds something that is no string")
                .hint("put every element between double quotes, as in [\"sleep\", \"10\"]"));
        };
        let span = spans.next().map_or(part.span(), Part::span);
        words.push(Spanned::new(text, span));
    }
    Ok(Some(words))
}

/// The strings of a text that is JSON, with their quotes.
fn string_literals(part: Part) -> Vec<Part> {
    let mut found = Vec::new();
    let mut start: Option<usize> = None;
    let mut characters = part.text().char_indices();
    while let Some((offset, c)) = characters.next() {
        match (c, start) {
            ('\\', Some(_)) => {
                characters.next();
            }
            ('"', Some(first)) => {
                found.push(part.slice(first, offset + 1));
                start = None;
            }
            ('"', None) => start = Some(offset),
            _ => {}
        }
    }
    found
}

/// What `ENV name value` has behind the name: everything.
pub(super) fn split_once_blank(part: Part) -> Option<(Part, Part)> {
    let (name, rest) = part.split_word();
    part.text().contains(is_blank).then_some((name, rest))
}
