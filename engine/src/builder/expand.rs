//! Variables in words, as Dockerfiles have them: quotes, escapes, `$x`, `${x}` and the forms with `:-`, `-`, `:+`, `+`,
//! `:?`, `?`, `#`, `##`, `%`, `%%`, `/` and `//`. It runs no command and knows no positions but its own.

use std::collections::BTreeSet;

use pattern::{remove_prefix, remove_suffix, replace};

mod pattern;

/// Deepest nesting of `${a:-${b:-…}}`.
pub const NESTING_MAX: usize = 32;
/// Longest result: the longest single string that the kernel takes as an argument or in an environment.
pub const VALUE_BYTES_MAX: usize = 128 * 1024;

/// Most bytes of values that one text may have looked at. What a text comes to can be short, and costly all the same.
pub const WORK_BYTES_MAX: usize = 16 << 20;
/// What a pattern costs before it is matched, in the same bytes.
const PATTERN_BYTES: usize = 1024;

/// Where values come from.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<&'a str>;

/// How quotes, escapes and unset variables are treated; all off is what instructions need.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Quotes stay in the result.
    pub keep_quotes: bool,
    /// Escape characters stay in the result.
    pub keep_escapes: bool,
    /// Quotes are characters like others; for the text of heredocs.
    pub ignore_quotes: bool,
    /// A variable that is not set stays as it is written.
    pub keep_unset: bool,
}

/// What a text came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text as one word.
    pub text: String,
    /// The text split at blanks that are neither quoted nor escaped.
    pub words: Vec<String>,
    /// Variables that were found.
    pub matched: BTreeSet<String>,
    /// Variables that were not.
    pub unmatched: BTreeSet<String>,
    /// Bytes of values that were looked at.
    pub work: usize,
}

/// Why a text cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpandError {
    /// Offset in the text at which it was noticed.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
}

/// Expands `text`, in which `escape` takes the meaning from what follows it.
///
/// # Errors
/// An unfinished quote or substitution, an unknown modifier, `${x:?…}` that is not met, a result that is too long.
pub fn expand<'a>(text: &str, escape: char, rules: Rules, lookup: Lookup<'a>) -> Result<Expanded, ExpandError> {
    let characters = text.char_indices().collect();
    let mut lexer = Lexer { characters, index: 0, escape, rules, lookup, depth: 0, found: Expanded::default() };
    let mut words = Words::default();
    let text = lexer.until(None, rules.keep_escapes, &mut words)?;
    Ok(Expanded { text, words: words.finish(), ..lexer.found })
}

struct Lexer<'a> {
    characters: Vec<(usize, char)>,
    index: usize,
    escape: char,
    rules: Rules,
    lookup: Lookup<'a>,
    depth: usize,
    found: Expanded,
}

/// Collects words: blanks end one, unless they were added raw.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    open: String,
}

impl Words {
    fn push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.open.push(c);
        } else if !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.open.is_empty() {
            self.done.push(self.open);
        }
        self.done
    }
}

impl<'a> Lexer<'a> {
    fn peek(&self) -> Option<char> {
        self.characters.get(self.index).map(|&(_, c)| c)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.index += 1;
        Some(c)
    }

    fn error(&self, message: impl Into<String>) -> ExpandError {
        let end = self.characters.last().map_or(0, |&(offset, c)| offset + c.len_utf8());
        let offset = self.characters.get(self.index).map_or(end, |&(offset, _)| offset);
        ExpandError { offset, message: message.into() }
    }

    fn check_length(&self, result: &str) -> Result<(), ExpandError> {
        if result.len() > VALUE_BYTES_MAX {
            return Err(self.error(format!("it comes to more than {VALUE_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    /// Reads to `stop`, which is taken, or to the end.
    fn until(&mut self, stop: Option<char>, keep_escapes: bool, words: &mut Words) -> Result<String, ExpandError> {
        let mut result = String::new();
        while let Some(c) = self.peek() {
            self.check_length(&result)?;
            if Some(c) == stop {
                self.index += 1;
                return Ok(result);
            }
            let raw = match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    result.push_str(&value);
                    continue;
                }
                '<' => self.angle(),
                '\'' if !self.rules.ignore_quotes => self.single_quoted()?,
                '"' if !self.rules.ignore_quotes => self.double_quoted(keep_escapes)?,
                _ if c == self.escape => self.escaped(keep_escapes),
                _ => {
                    self.index += 1;
                    words.push(c);
                    result.push(c);
                    continue;
                }
            };
            words.open.push_str(&raw);
            result.push_str(&raw);
        }
        self.check_length(&result)?;
        match stop {
            None => Ok(result),
            Some(stop) => Err(self.error(format!("`{stop}` is missing at the end of a `${{`"))),
        }
    }

    fn escaped(&mut self, keep_escapes: bool) -> String {
        let escape = self.next();
        let escaped = self.next();
        escape.filter(|_| keep_escapes).into_iter().chain(escaped).collect()
    }

    /// `<`, or `<<` with the blanks behind it: the name of a heredoc may follow after blanks.
    fn angle(&mut self) -> String {
        let mut result = String::from("<");
        self.index += 1;
        if self.peek() != Some('<') {
            return result;
        }
        self.index += 1;
        result.push('<');
        while let Some(c) = self.peek().filter(|c| matches!(c, ' ' | '\t' | '\r')) {
            result.push(c);
            self.index += 1;
        }
        result
    }

    fn quote(&mut self, result: &mut String) {
        let quote = self.next();
        result.extend(quote.filter(|_| self.rules.keep_quotes));
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let mut result = String::new();
        let start = self.index;
        self.quote(&mut result);
        while let Some(c) = self.peek() {
            if c == '\'' {
                self.quote(&mut result);
                return Ok(result);
            }
            result.push(c);
            self.index += 1;
        }
        self.index = start;
        Err(self.error("a single quote (') is not closed"))
    }

    fn double_quoted(&mut self, keep_escapes: bool) -> Result<String, ExpandError> {
        let mut result = String::new();
        let start = self.index;
        self.quote(&mut result);
        while let Some(c) = self.peek() {
            self.check_length(&result)?;
            match c {
                '"' => {
                    self.quote(&mut result);
                    return Ok(result);
                }
                '$' => result.push_str(&self.dollar()?),
                _ if c == self.escape => {
                    self.index += 1;
                    result.extend(Some(c).filter(|_| keep_escapes));
                    match self.peek() {
                        // An escape at the very end means nothing; the missing quote is told.
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == self.escape => {
                            result.push(next);
                            self.index += 1;
                        }
                        Some(_) => result.push(c),
                    }
                }
                _ => {
                    result.push(c);
                    self.index += 1;
                }
            }
        }
        self.index = start;
        Err(self.error("a double quote (\") is not closed"))
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        self.index += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(self.value(&name)?.map_or_else(|| self.unset(|| format!("${name}")), str::to_owned));
        }
        self.index += 1;
        match self.peek() {
            None => return Err(self.error("`}` is missing at the end of a `${`")),
            Some('{' | '}' | ':') => return Err(self.error("a variable's name must follow on `${`")),
            Some(_) => {}
        }
        if self.depth == NESTING_MAX {
            return Err(self.error(format!("`${{` is nested more than {NESTING_MAX} times")));
        }
        self.depth += 1;
        let value = self.substitution();
        self.depth -= 1;
        value
    }

    /// What follows on `${`.
    fn substitution(&mut self) -> Result<String, ExpandError> {
        let name = self.name();
        let Some(modifier) = self.next() else { return Err(self.error("`}` is missing at the end of a `${`")) };
        match modifier {
            '}' => Ok(self.value(&name)?.map_or_else(|| self.unset(|| format!("${{{name}}}")), str::to_owned)),
            '/' => self.replaced(&name),
            '#' | '%' => self.trimmed(&name, modifier),
            '-' | '+' | '?' => self.conditional(&name, modifier, false),
            ':' => match self.next() {
                Some(modifier @ ('-' | '+' | '?')) => self.conditional(&name, modifier, true),
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    Err(self.error(format!("`:{other}` is no modifier of a variable; there are :- :+ and :?")))
                }
            },
            _ => Err(self.error(format!("`{modifier}` is no modifier of a variable"))),
        }
    }

    fn conditional(&mut self, name: &str, modifier: char, empty_is_unset: bool) -> Result<String, ExpandError> {
        let word = self.until(Some('}'), false, &mut Words::default())?;
        let value = self.value(name)?;
        let colon = if empty_is_unset { ":" } else { "" };
        if value.is_none() && self.rules.keep_unset {
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let is_set = value.is_some_and(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' => Ok(if is_set { value.unwrap_or_default().to_owned() } else { word }),
            '+' => Ok(if is_set { word } else { String::new() }),
            _ if is_set => Ok(value.unwrap_or_default().to_owned()),
            _ if !word.is_empty() => Err(self.error(format!("{name}: {word}"))),
            _ if value.is_none() => Err(self.error(format!("{name}: must be set"))),
            _ => Err(self.error(format!("{name}: must not be empty"))),
        }
    }

    fn trimmed(&mut self, name: &str, modifier: char) -> Result<String, ExpandError> {
        let word = self.until(Some('}'), true, &mut Words::default())?;
        let Some(value) = self.pattern_value(name)? else {
            return Ok(self.unset(|| format!("${{{name}{modifier}{word}}}")));
        };
        let (pattern, is_greedy) = match word.strip_prefix(modifier) {
            Some(rest) => (rest, true),
            None => (word.as_str(), false),
        };
        let trim = if modifier == '%' { remove_suffix } else { remove_prefix };
        trim(value, pattern, is_greedy).map_err(|problem| self.error(problem))
    }

    fn replaced(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.peek() == Some('/');
        self.index += usize::from(all);
        let pattern = self.until(Some('/'), true, &mut Words::default())?;
        let replacement = self.until(Some('}'), true, &mut Words::default())?;
        let Some(value) = self.pattern_value(name)? else {
            return Ok(self.unset(|| format!("${{{name}/{pattern}/{replacement}}}")));
        };
        replace(value, &pattern, &replacement, all).map_err(|problem| self.error(problem))
    }

    fn unset(&self, written: impl Fn() -> String) -> String {
        if self.rules.keep_unset { written() } else { String::new() }
    }

    fn value(&mut self, name: &str) -> Result<Option<&'a str>, ExpandError> {
        let value = (self.lookup)(name);
        let names = if value.is_some() { &mut self.found.matched } else { &mut self.found.unmatched };
        names.insert(name.to_owned());
        self.work(value.map_or(0, str::len))?;
        Ok(value)
    }

    /// The value of a variable that a pattern is applied to.
    fn pattern_value(&mut self, name: &str) -> Result<Option<&'a str>, ExpandError> {
        self.work(PATTERN_BYTES)?;
        self.value(name)
    }

    fn work(&mut self, bytes: usize) -> Result<(), ExpandError> {
        self.found.work += bytes;
        if self.found.work > WORK_BYTES_MAX {
            return Err(self.error(format!("it looks at more than {WORK_BYTES_MAX} bytes of values")));
        }
        Ok(())
    }

    /// Letters, digits and `_`; or digits only; or one of the shell's special parameters.
    fn name(&mut self) -> String {
        match self.peek() {
            Some(c) if c.is_numeric() => self.take_while(char::is_numeric),
            Some(c) if "@*#?-$!".contains(c) => {
                self.index += 1;
                c.to_string()
            }
            _ => self.take_while(|c| c.is_alphanumeric() || c == '_'),
        }
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.peek().filter(|&c| belongs(c)) {
            taken.push(c);
            self.index += 1;
        }
        taken
    }
}

#[cfg(test)]
mod tests;
