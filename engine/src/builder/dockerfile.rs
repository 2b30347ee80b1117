//! Dockerfiles as text: a scanner that goes by lines, as BuildKit's does, and a tree of typed instructions in which
//! every word knows its place. Nothing is expanded here and nothing is looked up.

use serde::{Deserialize, Serialize};

pub use directive::{Checks, Directives};
pub use heredoc::Heredoc;
pub use instruction::{
    Argument, Command, CommandLine, Copy, CopySource, Flag, From, Healthcheck, Instruction, KeyValue, Probe, Run,
};

use super::source::{Complaint, Source, Span};

mod directive;
mod duration;
mod heredoc;
mod instruction;
mod line;
pub mod mount;
mod print;
mod read;
mod scan;
mod words;

/// Longest Dockerfile, in bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// Longest line, in bytes; BuildKit takes no longer ones either.
pub const LINE_BYTES_MAX: usize = 65_535;
/// Longest instruction with all its continuation lines, in bytes.
pub const INSTRUCTION_BYTES_MAX: usize = 1 << 20;
/// Most instructions.
pub const INSTRUCTIONS_MAX: usize = 10_000;
/// Most heredocs of one instruction.
pub const HEREDOCS_MAX: usize = 64;
/// Most words of one instruction that is split into words.
pub const WORDS_MAX: usize = 10_000;
/// Most flags of one instruction.
pub const FLAGS_MAX: usize = 256;

/// A Dockerfile that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dockerfile {
    /// What stands in the first comments.
    pub directives: Directives,
    /// The instructions in their order.
    pub instructions: Vec<Instruction>,
}

/// Whether a whole text is the start of a heredoc, as in `RUN <<EOF`.
pub(super) fn is_heredoc(text: &str) -> bool {
    heredoc::start(text.trim()).is_some()
}

/// Reads the text of a Dockerfile.
///
/// # Errors
/// The first thing in it that is no Dockerfile, or that is more than a bound allows.
pub fn parse(source: &Source) -> Result<Dockerfile, Complaint> {
    let text = source.text();
    if text.len() > FILE_BYTES_MAX {
        return Err(Complaint::new(Span::default(), format!("the file has more than {FILE_BYTES_MAX} bytes"))
            .hint("generate files in a RUN instruction, or COPY them from the context"));
    }
    let mut scanner = scan::Scanner::new(text);
    let directives = directive::read(&mut scanner)?;
    let mut instructions = Vec::new();
    while let Some(line) = scanner.next_line(directives.escape)? {
        if instructions.len() == INSTRUCTIONS_MAX {
            let message = format!("the file has more than {INSTRUCTIONS_MAX} instructions");
            return Err(Complaint::new(line.whole(), message).hint("do the work in fewer RUN instructions"));
        }
        let mut instruction = read::instruction(&line, directives.escape)?;
        scanner.take_heredocs(&mut instruction)?;
        read::finish(&mut instruction, &line)?;
        instructions.push(instruction);
    }
    if instructions.is_empty() {
        let end = Span { start: 0, end: text.len().min(1) };
        return Err(Complaint::new(end, "the file has no instructions").hint("the first instruction is `FROM image`"));
    }
    Ok(Dockerfile { directives, instructions })
}
