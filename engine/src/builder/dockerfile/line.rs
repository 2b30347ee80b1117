//! One instruction as one line: what its continuation lines come to, and where each byte of it stands in the file.

use crate::builder::source::{Span, Spanned, Word};

/// A line put together from the lines that continue it.
#[derive(Debug, Default)]
pub(super) struct Line {
    text: String,
    /// Offsets in `text`, and the offsets in the file from which on its bytes were taken.
    pieces: Vec<(usize, usize)>,
    end: usize,
    /// The comments directly above it, without `#`.
    pub(super) comments: Vec<String>,
    /// The first line between its lines that is empty.
    pub(super) empty_continuation: Option<Span>,
}

impl Line {
    /// An empty line with the comments above it.
    pub(super) fn below(comments: Vec<String>) -> Line {
        Line { comments, ..Line::default() }
    }

    pub(super) fn push(&mut self, text: &str, offset: usize) {
        self.pieces.push((self.text.len(), offset));
        self.text.push_str(text);
        self.end = offset + text.len();
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// All of it, from its first to its last byte in the file.
    pub(super) fn whole(&self) -> Span {
        self.span(0, self.text.len())
    }

    /// Where a range of the line stands in the file.
    pub(super) fn span(&self, start: usize, end: usize) -> Span {
        let start_in_file = self.offset(start);
        let end_in_file = if end > start { self.offset(end - 1) + 1 } else { start_in_file };
        Span { start: start_in_file, end: end_in_file }
    }

    fn offset(&self, at: usize) -> usize {
        let index = self.pieces.partition_point(|&(start, _)| start <= at);
        let &(start, offset) = index.checked_sub(1).and_then(|index| self.pieces.get(index)).unwrap_or(&(0, 0));
        (offset + at - start).min(self.end.max(offset))
    }

    /// The line without blanks around it.
    pub(super) fn part(&self) -> Part<'_> {
        Part { line: self, start: 0, end: self.text.len() }.trim()
    }
}

/// A range of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    line: &'a Line,
    start: usize,
    end: usize,
}

impl<'a> Part<'a> {
    pub(super) fn text(self) -> &'a str {
        &self.line.text[self.start..self.end]
    }

    pub(super) fn span(self) -> Span {
        self.line.span(self.start, self.end)
    }

    pub(super) fn word(self) -> Word {
        Spanned::new(self.text().to_owned(), self.span())
    }

    /// A range of this range.
    pub(super) fn slice(self, start: usize, end: usize) -> Part<'a> {
        Part { line: self.line, start: self.start + start, end: self.start + end }
    }

    pub(super) fn trim(self) -> Part<'a> {
        let text = self.text();
        let start = text.len() - text.trim_start().len();
        self.slice(start, start + text.trim().len())
    }

    /// The first word, and what follows on the blanks behind it.
    pub(super) fn split_word(self) -> (Part<'a>, Part<'a>) {
        let text = self.text();
        let end = text.find(is_blank).unwrap_or(text.len());
        let rest = end + (text[end..].len() - text[end..].trim_start_matches(is_blank).len());
        (self.slice(0, end), self.slice(rest, text.len()))
    }
}

/// What separates words: not all that Unicode calls white, as in BuildKit.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}
