//! The text of a Dockerfile with its lines, and what can be said about a place in it: where it is, how it reads, what
//! is wrong there and how to mend it.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// Lines shown before and after the one that a message is about.
const AROUND_LINES: usize = 2;
/// Lines of one place that are shown; a heredoc may have thousands.
const SHOWN_LINES_MAX: usize = 8;
/// Bytes of one line that are shown.
const SHOWN_BYTES_MAX: usize = 400;

/// A range of bytes in the text of a Dockerfile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
}

/// A place in a text as people count: both from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// A value and the text that it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

/// A word of a Dockerfile.
pub type Word = Spanned<String>;

impl<T> Spanned<T> {
    /// The value with its place.
    pub fn new(value: T, span: Span) -> Spanned<T> {
        Spanned { value, span }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.line, self.column)
    }
}

/// What is wrong at a place in a Dockerfile. The message is for people, the place for whoever points at it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", .hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default())]
pub struct Complaint {
    /// Where.
    pub span: Span,
    /// What, in lower case and without a full stop.
    pub message: String,
    /// What the reader can do.
    pub hint: Option<String>,
}

impl Complaint {
    /// A complaint without a hint.
    pub fn new(span: Span, message: impl Into<String>) -> Complaint {
        Complaint { span, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Complaint {
        Complaint { hint: Some(hint.into()), ..self }
    }
}

/// A text with a name, and where its lines start.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    text: String,
    starts: Vec<usize>,
}

impl Source {
    /// Counts the lines of `text`.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Source {
        let text = text.into();
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(offset, _)| offset + 1)).collect();
        Source { name: name.into(), text, starts }
    }

    /// The name, as messages show it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of an offset; of the end, when it is behind it.
    pub fn position(&self, offset: usize) -> Position {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|&start| start <= offset);
        let start = self.starts[line - 1];
        // A byte order mark is no column that an editor would count.
        let before = self.text.get(start..offset).unwrap_or_default().trim_start_matches('\u{feff}');
        Position { line, column: before.chars().count() + 1 }
    }

    /// A line by its number, without its end.
    pub fn line(&self, number: usize) -> &str {
        let Some(&start) = number.checked_sub(1).and_then(|index| self.starts.get(index)) else { return "" };
        let end = self.starts.get(number).copied().unwrap_or(self.text.len());
        self.text[start..end].trim_end_matches(['\r', '\n']).trim_start_matches('\u{feff}')
    }

    /// The place that a whole line is; `None` when there is no such line.
    pub fn line_span(&self, number: usize) -> Option<Span> {
        let start = *self.starts.get(number.checked_sub(1)?)?;
        let end = self.starts.get(number).copied().unwrap_or(self.text.len());
        Some(Span { start, end: start + self.text[start..end].trim_end().len() })
    }

    /// The lines around a place, the place marked, between two rulers as BuildKit prints them.
    pub fn excerpt(&self, span: Span) -> String {
        const RULER: &str = "--------------------\n";
        let start = self.position(span.start);
        // An end at the start of a line belongs to the line before.
        let end = self.position(span.end.max(span.start + 1) - 1).line.max(start.line);
        let end_shown = end.min(start.line + SHOWN_LINES_MAX - 1);
        let lines = self.starts.len() - usize::from(self.text.ends_with('\n') && self.starts.len() > 1);
        let mut text = format!("{}:{start}\n{RULER}", self.name);
        for number in start.line.saturating_sub(AROUND_LINES).max(1)..=(end_shown + AROUND_LINES).min(lines) {
            let is_meant = (start.line..=end).contains(&number);
            let line = shown(self.line(number));
            let row = format!("{number:4} | {} {line}", if is_meant { ">>>" } else { "   " });
            let _ = writeln!(text, "{}", row.trim_end());
            if number == start.line && end == start.line {
                self.underline(&mut text, span, start);
            }
        }
        text + RULER
    }

    /// Marks the columns of a place that is shorter than its line.
    fn underline(&self, text: &mut String, span: Span, start: Position) {
        let width = self.text.get(span.start..span.end).map_or(1, |part| part.trim_end().chars().count()).max(1);
        let line = self.line(start.line);
        let is_whole_line = start.column == 1 && width >= line.trim_end().chars().count();
        if is_whole_line || start.column + width > SHOWN_BYTES_MAX {
            return;
        }
        // Tabs stay tabs, so that the mark stands under what it marks.
        let indent: String = line.chars().take(start.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let _ = writeln!(text, "     |     {indent}{}", "^".repeat(width));
    }
}

/// A line for a terminal: nothing that moves its cursor, not endless.
fn shown(line: &str) -> String {
    let mut end = line.len().min(SHOWN_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let clean = line[..end].chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c });
    clean.chain((end < line.len()).then_some('…')).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_as_editors_do() {
        let source = Source::new("f", "\u{feff}FROM ä\r\nRUN x\n");
        assert_eq!(source.position(3), Position { line: 1, column: 1 });
        assert_eq!(source.position(8), Position { line: 1, column: 6 });
        assert_eq!(source.position(12), Position { line: 2, column: 1 });
        assert_eq!(source.position(999), Position { line: 3, column: 1 });
        assert_eq!((source.line(1), source.line(2), source.line(3), source.line(0)), ("FROM ä", "RUN x", "", ""));
    }

    #[test]
    fn an_excerpt_shows_the_line_and_marks_the_place() {
        let source = Source::new("Dockerfile", "FROM a\n\tRUN x y\nCMD z\n");
        let start = "FROM a\n\tRUN ".len();
        let shown = source.excerpt(Span { start, end: start + 1 });
        let expected = "Dockerfile:2:6\n--------------------\n   1 |     FROM a\n   2 | >>> \tRUN x y\n     |     \t    ^\n   \
            3 |     CMD z\n--------------------\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_hostile_line_is_shown_short_and_harmless() {
        let source = Source::new("f", format!("\u{1b}[2J{}", "x".repeat(100_000)));
        let shown = source.excerpt(Span { start: 0, end: 100_000 });
        assert!(!shown.contains('\u{1b}') && shown.len() < 600, "{shown}");
    }
}
