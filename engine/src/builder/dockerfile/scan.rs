//! Lines of the file to lines of instructions: continuation, comments and empty lines between, bodies of heredocs.

use super::heredoc::{self, Heredoc};
use super::instruction::Instruction;
use super::line::Line;
use super::{HEREDOCS_MAX, INSTRUCTION_BYTES_MAX, LINE_BYTES_MAX};
use crate::builder::source::{Complaint, Span, Spanned};

/// Goes through the lines of a file.
pub(super) struct Scanner<'a> {
    text: &'a str,
    offset: usize,
}

/// A line of the file with its end, and its offset.
#[derive(Clone, Copy)]
pub(super) struct Physical<'a> {
    pub(super) text: &'a str,
    pub(super) offset: usize,
}

impl<'a> Physical<'a> {
    /// Without the end of the line.
    pub(super) fn content(self) -> &'a str {
        self.text.trim_end_matches(['\r', '\n'])
    }

    pub(super) fn span(self) -> Span {
        Span { start: self.offset, end: self.offset + self.content().len() }
    }

    /// Without blanks in front.
    fn trim_start(self) -> Physical<'a> {
        let text = self.text.trim_start();
        Physical { text, offset: self.offset + self.text.len() - text.len() }
    }

    /// The text of a comment.
    pub(super) fn comment(self) -> Option<&'a str> {
        self.content().trim_start().strip_prefix('#')
    }
}

impl<'a> Scanner<'a> {
    /// Starts behind a byte order mark.
    pub(super) fn new(text: &'a str) -> Scanner<'a> {
        Scanner { text, offset: text.len() - text.strip_prefix('\u{feff}').unwrap_or(text).len() }
    }

    /// The next line, which stays the next one.
    pub(super) fn peek(&self) -> Option<Physical<'a>> {
        let rest = &self.text[self.offset..];
        let length = rest.find('\n').map_or(rest.len(), |end| end + 1);
        (length > 0).then(|| Physical { text: &rest[..length], offset: self.offset })
    }

    pub(super) fn skip(&mut self, line: Physical) {
        self.offset = line.offset + line.text.len();
    }

    fn next(&mut self) -> Result<Option<Physical<'a>>, Complaint> {
        let Some(line) = self.peek() else { return Ok(None) };
        self.skip(line);
        if line.content().len() > LINE_BYTES_MAX {
            return Err(Complaint::new(line.span(), format!("the line has more than {LINE_BYTES_MAX} bytes"))
                .hint("break it with the escape character at the end of a line, or COPY the text from the context"));
        }
        if let Some(nul) = line.text.find('\0') {
            let span = Span { start: line.offset + nul, end: line.offset + nul + 1 };
            return Err(Complaint::new(span, "the line holds a NUL byte").hint("is this file text in UTF-8?"));
        }
        Ok(Some(line))
    }

    /// The next instruction's line; `None` at the end.
    ///
    /// # Errors
    /// A line that is longer than a bound.
    pub(super) fn next_line(&mut self, escape: char) -> Result<Option<Line>, Complaint> {
        let mut comments: Vec<String> = Vec::new();
        while let Some(first) = self.next()? {
            if let Some(comment) = first.comment() {
                match comment.trim() {
                    "" => comments.clear(),
                    text => comments.push(text.to_owned()),
                }
                continue;
            }
            let first = first.trim_start();
            let (content, mut goes_on) = trim_continuation(first.content(), escape);
            if content.is_empty() && !goes_on {
                comments.clear();
                continue;
            }
            let mut line = Line::below(comments);
            line.push(content, first.offset);
            while goes_on {
                let Some(next) = self.next()? else { break };
                goes_on = add(&mut line, next, escape)?;
            }
            if line.text().trim().is_empty() {
                comments = Vec::new();
                continue;
            }
            return Ok(Some(line));
        }
        Ok(None)
    }

    /// Reads the bodies of an instruction's heredocs, which stand below it.
    ///
    /// # Errors
    /// A heredoc that does not end, or too many of them.
    pub(super) fn take_heredocs(&mut self, instruction: &mut Instruction) -> Result<(), Complaint> {
        let Some(text) = instruction.text_with_heredocs() else { return Ok(()) };
        let starts = heredoc::starts(&text.value);
        if starts.len() > HEREDOCS_MAX {
            return Err(Complaint::new(text.span, format!("the instruction has more than {HEREDOCS_MAX} heredocs")));
        }
        for start in starts {
            let body = self.body(&start, text.span)?;
            instruction.heredocs.push(Heredoc { body, ..start });
        }
        Ok(())
    }

    fn body(&mut self, heredoc: &Heredoc, instruction: Span) -> Result<Spanned<String>, Complaint> {
        let start = self.offset;
        while let Some(line) = self.next()? {
            let content = line.content();
            let candidate = if heredoc.strip_tabs { content.trim_start_matches('\t') } else { content };
            if candidate == heredoc.name {
                let body = self.text[start..line.offset].to_owned();
                return Ok(Spanned::new(body, Span { start, end: line.offset }));
            }
        }
        let message = format!("the heredoc `{}` has no end", heredoc.name);
        Err(Complaint::new(instruction, message)
            .hint(format!("a line that holds nothing but `{}` ends it", heredoc.name)))
    }
}

/// Adds a line that continues an instruction; says whether the next one does too.
fn add(line: &mut Line, next: Physical, escape: char) -> Result<bool, Complaint> {
    if next.comment().is_some() {
        return Ok(true);
    }
    if next.content().trim().is_empty() {
        line.empty_continuation.get_or_insert(next.span());
        return Ok(true);
    }
    let (content, goes_on) = trim_continuation(next.content(), escape);
    line.push(content, next.offset);
    if line.text().len() > INSTRUCTION_BYTES_MAX {
        return Err(Complaint::new(
            line.whole(),
            format!("the instruction has more than {INSTRUCTION_BYTES_MAX} bytes"),
        )
        .hint("COPY the text from the context as a file"));
    }
    Ok(goes_on)
}

/// Takes the escape character off the end of a line that the next one continues. One that is itself escaped is none.
pub(super) fn trim_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}
