//! The instructions of a Dockerfile as a tree. Words are as written: quotes, escapes and variables are still in them.

use serde::{Deserialize, Serialize};

use super::heredoc::Heredoc;
use crate::builder::source::{Span, Spanned, Word};

/// One instruction with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// From its keyword to the end of its last line, heredocs left out.
    pub span: Span,
    /// The keyword as written.
    pub keyword: Word,
    /// The comments directly above, without `#`.
    pub comments: Vec<String>,
    /// An empty line between its lines.
    pub empty_continuation: Option<Span>,
    /// What it says.
    pub command: Command,
    /// The heredocs that it starts.
    pub heredocs: Vec<Heredoc>,
}

/// What an instruction says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// `FROM`
    From(From),
    /// `ARG`
    Arg(Vec<Argument>),
    /// `ENV`
    Env(Vec<KeyValue>),
    /// `RUN`
    Run(Run),
    /// `COPY`
    Copy(Copy),
    /// `ADD`
    Add(Copy),
    /// `WORKDIR`
    Workdir(Word),
    /// `USER`
    User(Word),
    /// `SHELL`
    Shell(Vec<Word>),
    /// `LABEL`
    Label(Vec<KeyValue>),
    /// `EXPOSE`
    Expose(Vec<Word>),
    /// `VOLUME`
    Volume(Vec<Word>),
    /// `STOPSIGNAL`
    StopSignal(Word),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `ONBUILD`
    Onbuild(Box<Instruction>),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `CMD`
    Cmd(CommandLine),
    /// `MAINTAINER`
    Maintainer(Word),
}

/// `FROM [--platform=P] BASE [AS NAME]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct From {
    /// The platform asked for.
    pub platform: Option<Word>,
    /// An image, a stage above or `scratch`.
    pub base: Word,
    /// The word `AS` as written.
    pub as_keyword: Option<Word>,
    /// The name of the stage as written; names are compared in lower case.
    pub name: Option<Word>,
}

/// One variable of `ARG`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argument {
    /// Its name.
    pub name: Word,
    /// Its default.
    pub default: Option<Word>,
}

/// One pair of `ENV` or `LABEL`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Its name.
    pub key: Word,
    /// Its value.
    pub value: Word,
    /// Whether it was written in the old form, without `=`.
    pub is_legacy: bool,
}

/// A flag of an instruction; its quotes and escapes are resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// Its name without dashes.
    pub name: Word,
    /// What stands behind `=`.
    pub value: Option<Word>,
}

/// `RUN`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Values of `--mount`; see `mount`.
    pub mounts: Vec<Word>,
    /// Value of `--network`.
    pub network: Option<Word>,
    /// Value of `--security`.
    pub security: Option<Word>,
    /// What is run.
    pub command: CommandLine,
}

/// A command for the shell, or the words of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandLine {
    /// One text that a shell reads.
    Shell(Word),
    /// Words that are executed as they are.
    Exec(Vec<Word>),
}

/// `COPY` and `ADD`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// A stage, an image or a named context; `COPY` only.
    pub from: Option<Word>,
    /// Owner of the copy.
    pub chown: Option<Word>,
    /// Mode of the copy, octal or symbolic.
    pub chmod: Option<Word>,
    /// Whether the copy is a layer that needs nothing below it.
    pub link: Option<Spanned<bool>>,
    /// Whether folders of the source's path are made; `COPY` only.
    pub parents: Option<Spanned<bool>>,
    /// Patterns of what is left out.
    pub exclude: Vec<Word>,
    /// The digest that a download must have; `ADD` only.
    pub checksum: Option<Word>,
    /// Whether `.git` is kept; `ADD` only.
    pub keep_git_dir: Option<Spanned<bool>>,
    /// Whether an archive is unpacked; `ADD` only.
    pub unpack: Option<Spanned<bool>>,
    /// Whether the words were a JSON array.
    pub is_json: bool,
    /// What is copied.
    pub sources: Vec<CopySource>,
    /// Where to.
    pub destination: Word,
}

/// One source of `COPY` or `ADD`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopySource {
    /// A path or pattern; for `ADD` also an address.
    Path(Word),
    /// A heredoc of the instruction; the word as written.
    Heredoc(Word),
}

/// `HEALTHCHECK`; durations in nanoseconds, 0 where the default holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// Time between two probes.
    pub interval_nanos: u64,
    /// How long a probe may take.
    pub timeout_nanos: u64,
    /// Time in which failures do not count.
    pub start_period_nanos: u64,
    /// Time between two probes in that time.
    pub start_interval_nanos: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// What is run; `None` switches the base's probe off.
    pub probe: Probe,
}

/// What `HEALTHCHECK` runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// `NONE`
    None,
    /// `CMD`
    Cmd(CommandLine),
}

impl Command {
    /// The keyword in capitals.
    pub fn name(&self) -> &'static str {
        match self {
            Command::From(_) => "FROM",
            Command::Arg(_) => "ARG",
            Command::Env(_) => "ENV",
            Command::Run(_) => "RUN",
            Command::Copy(_) => "COPY",
            Command::Add(_) => "ADD",
            Command::Workdir(_) => "WORKDIR",
            Command::User(_) => "USER",
            Command::Shell(_) => "SHELL",
            Command::Label(_) => "LABEL",
            Command::Expose(_) => "EXPOSE",
            Command::Volume(_) => "VOLUME",
            Command::StopSignal(_) => "STOPSIGNAL",
            Command::Healthcheck(_) => "HEALTHCHECK",
            Command::Onbuild(_) => "ONBUILD",
            Command::Entrypoint(_) => "ENTRYPOINT",
            Command::Cmd(_) => "CMD",
            Command::Maintainer(_) => "MAINTAINER",
        }
    }
}

impl Instruction {
    /// The text in which words may start heredocs: of RUN in shell form, and of COPY and ADD that are no JSON array.
    pub(super) fn text_with_heredocs(&self) -> Option<Word> {
        let command = match &self.command {
            Command::Onbuild(inner) => &inner.command,
            other => other,
        };
        match command {
            Command::Run(Run { command: CommandLine::Shell(text), .. }) => Some(text.clone()),
            Command::Copy(copy) | Command::Add(copy) if !copy.is_json => {
                let words = copy.sources.iter().map(|source| match source {
                    CopySource::Path(word) | CopySource::Heredoc(word) => word.value.as_str(),
                });
                let words: Vec<&str> = words.chain([copy.destination.value.as_str()]).collect();
                Some(Spanned::new(words.join(" "), self.span))
            }
            _ => None,
        }
    }
}
