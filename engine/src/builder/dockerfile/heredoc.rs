//! Heredocs: which words of an instruction start one. Only whole shell words do: `<<<word` and `$((1<<2))` do not.

use serde::{Deserialize, Serialize};

use crate::builder::expand::{Rules, expand};
use crate::builder::source::Spanned;

/// A text that stands below its instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heredoc {
    /// The word that ends it, without quotes; the name of the file in COPY and ADD.
    pub name: String,
    /// The descriptor in front of `<<`.
    pub descriptor: Option<u32>,
    /// Whether tabs at the start of its lines are dropped (`<<-`).
    pub strip_tabs: bool,
    /// Whether variables in it are expanded: no part of its word was quoted.
    pub expands: bool,
    /// Its lines as they stand in the file.
    pub body: Spanned<String>,
}

impl Heredoc {
    /// The text as it is meant: without leading tabs, when it was written with `<<-`.
    pub fn content(&self) -> String {
        if !self.strip_tabs {
            return self.body.value.clone();
        }
        self.body.value.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// The heredocs that a line starts, in their order and without their bodies.
pub(super) fn starts(line: &str) -> Vec<Heredoc> {
    if !line.contains("<<") {
        return Vec::new();
    }
    let rules = Rules { keep_quotes: true, keep_escapes: true, keep_unset: true, ..Rules::default() };
    // A line that no shell could split has none; the shell will say so.
    let Ok(expanded) = expand(line, '\\', rules, &|_| None) else { return Vec::new() };
    let mut depth = 0;
    let mut found = Vec::new();
    for word in expanded.words {
        // Between `$((` and `))`, `<<` shifts a number.
        let is_arithmetic = depth > 0 || word.contains("$((");
        depth += word.matches("$((").count();
        depth = depth.saturating_sub(word.matches("))").count());
        if !is_arithmetic {
            found.extend(start(&word));
        }
    }
    found
}

/// The heredoc that a word starts, when it starts one.
pub(super) fn start(word: &str) -> Option<Heredoc> {
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let rest = word[digits..].strip_prefix("<<")?;
    let strip_tabs = rest.starts_with('-');
    let rest = rest[usize::from(strip_tabs)..].trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let words = |keep_quotes| {
        let rules = Rules { keep_quotes, keep_unset: true, ..Rules::default() };
        expand(rest, '\\', rules, &|_| None).ok().map(|expanded| expanded.words)
    };
    let (plain, raw) = (words(false)?, words(true)?);
    let ([plain], [raw]) = (plain.as_slice(), raw.as_slice()) else { return None };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Some(Heredoc {
        name: plain.clone(),
        descriptor: word[..digits].parse().ok(),
        strip_tabs,
        expands: quotes(plain) == quotes(raw),
        body: Spanned::default(),
    })
}
