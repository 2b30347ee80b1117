//! One line to one typed instruction.

use flags::Flags;

use super::heredoc;
use super::instruction::{
    Argument, Command, CommandLine, Copy, CopySource, From, Healthcheck, Instruction, KeyValue, Probe, Run,
};
use super::line::{Line, Part};
use super::mount::Mount;
use super::{duration, words};
use crate::builder::source::{Complaint, Span, Spanned, Word};
use crate::builder::suggest::closest;

mod flags;

/// All keywords.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];
/// Shortest time between two probes.
const INTERVAL_NANOS_MIN: u64 = 1_000_000;

/// Reads an instruction; its heredocs stand in the lines below it and are read by the scanner.
///
/// # Errors
/// An unknown keyword, a flag that the instruction does not have, words that are too few or too many.
pub(super) fn instruction(line: &Line, escape: char) -> Result<Instruction, Complaint> {
    let mut instruction = read(line.part(), escape, false)?;
    instruction.comments.clone_from(&line.comments);
    instruction.empty_continuation = line.empty_continuation;
    Ok(instruction)
}

/// What can be said only when the heredocs are known.
///
/// # Errors
/// A heredoc where none can be.
pub(super) fn finish(instruction: &mut Instruction, line: &Line) -> Result<(), Complaint> {
    let command = match &instruction.command {
        Command::Onbuild(inner) => &inner.command,
        other => other,
    };
    let (Command::Copy(copy) | Command::Add(copy)) = command else { return Ok(()) };
    let words = copy.sources.iter().filter(|source| matches!(source, CopySource::Heredoc(_))).count();
    if words != instruction.heredocs.len() {
        return Err(Complaint::new(line.whole(), "a heredoc of the instruction is not one of its sources")
            .hint("write the quotes of a heredoc's word without blanks in them"));
    }
    Ok(())
}

fn read(part: Part, escape: char, is_trigger: bool) -> Result<Instruction, Complaint> {
    let (keyword, rest) = part.split_word();
    let name = keyword.text().to_ascii_uppercase();
    if !KEYWORDS.contains(&name.as_str()) {
        return Err(unknown(keyword, &name));
    }
    let (flags, arguments) = words::take_flags(rest, escape)?;
    let reader = Reader { keyword, arguments, escape };
    let mut flags = Flags::new(flags);
    let command = reader.command(&name, &mut flags, is_trigger)?;
    flags.check_empty()?;
    Ok(Instruction {
        span: part.span(),
        keyword: keyword.word(),
        comments: Vec::new(),
        empty_continuation: None,
        command,
        heredocs: Vec::new(),
    })
}

fn unknown(keyword: Part, name: &str) -> Complaint {
    let complaint = Complaint::new(keyword.span(), format!("unknown instruction `{}`", shorten(keyword.text())));
    match closest(name, KEYWORDS) {
        Some(meant) => complaint.hint(format!("did you mean {meant}?")),
        None => complaint.hint("when this line belongs to the one above, end that one with the escape character"),
    }
}

/// A word for a message.
fn shorten(text: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 60;
    text.chars().take(SHOWN_CHARACTERS_MAX).collect()
}

struct Reader<'a> {
    keyword: Part<'a>,
    arguments: Part<'a>,
    escape: char,
}

impl Reader<'_> {
    fn command(&self, name: &str, flags: &mut Flags, is_trigger: bool) -> Result<Command, Complaint> {
        if self.arguments.text().is_empty() {
            return Err(self.complain("needs at least one argument", example(name)));
        }
        Ok(match name {
            "FROM" => Command::From(self.from(flags)?),
            "ARG" => Command::Arg(self.arguments_with_defaults()?),
            "ENV" => Command::Env(self.pairs()?),
            "LABEL" => Command::Label(self.pairs()?),
            "RUN" => Command::Run(self.run(flags)?),
            "COPY" => Command::Copy(self.copy(flags, false)?),
            "ADD" => Command::Add(self.copy(flags, true)?),
            "WORKDIR" => Command::Workdir(self.arguments.word()),
            "USER" => Command::User(self.arguments.word()),
            "STOPSIGNAL" => Command::StopSignal(self.arguments.word()),
            "MAINTAINER" => Command::Maintainer(self.arguments.word()),
            "EXPOSE" => Command::Expose(words::split_blanks(self.arguments)?),
            "VOLUME" => Command::Volume(self.volumes()?),
            "SHELL" => Command::Shell(self.shell()?),
            "HEALTHCHECK" => Command::Healthcheck(self.healthcheck(flags)?),
            "ONBUILD" => Command::Onbuild(Box::new(self.onbuild(is_trigger)?)),
            "ENTRYPOINT" => Command::Entrypoint(command_line(self.arguments)?),
            _ => Command::Cmd(command_line(self.arguments)?),
        })
    }

    fn complain(&self, problem: &str, hint: &str) -> Complaint {
        let span =
            Span { start: self.keyword.span().start, end: self.arguments.span().end.max(self.keyword.span().end) };
        Complaint::new(span, format!("{} {problem}", self.keyword.text().to_ascii_uppercase())).hint(hint)
    }

    fn from(&self, flags: &mut Flags) -> Result<From, Complaint> {
        let platform = flags.text("platform")?;
        let words = words::split_blanks(self.arguments)?;
        match words.as_slice() {
            [base] => Ok(From { platform, base: base.clone(), as_keyword: None, name: None }),
            [base, as_keyword, name] if as_keyword.value.eq_ignore_ascii_case("as") => {
                if !is_stage_name(&name.value) {
                    let message = format!("`{}` cannot be the name of a stage", shorten(&name.value));
                    return Err(Complaint::new(name.span, message)
                        .hint("a name starts with a letter, and goes on with letters, digits, `-`, `_` and `.`"));
                }
                let (as_keyword, name) = (Some(as_keyword.clone()), Some(name.clone()));
                Ok(From { platform, base: base.clone(), as_keyword, name })
            }
            _ => {
                Err(self
                    .complain("takes one or three arguments", "as in `FROM debian:13` or `FROM debian:13 AS build`"))
            }
        }
    }

    fn arguments_with_defaults(&self) -> Result<Vec<Argument>, Complaint> {
        let split = words::split_quoted(self.arguments, self.escape)?;
        split
            .into_iter()
            .map(|word| {
                let (name, default) = match split_equals(&word) {
                    Some((name, default)) => (name, Some(default)),
                    None => (word, None),
                };
                check_name(&name, "ARG")?;
                Ok(Argument { name, default })
            })
            .collect()
    }

    fn pairs(&self) -> Result<Vec<KeyValue>, Complaint> {
        let name = self.keyword.text().to_ascii_uppercase();
        let split = words::split_quoted(self.arguments, self.escape)?;
        if split.first().is_some_and(|first| !first.value.contains('=')) {
            let Some((key, value)) = words::split_once_blank(self.arguments) else {
                return Err(self.complain("needs a name and a value", "as in `NAME=value`"));
            };
            return Ok(vec![KeyValue { key: key.word(), value: value.word(), is_legacy: true }]);
        }
        split
            .iter()
            .map(|word| {
                let Some((key, value)) = split_equals(word) else {
                    return Err(Complaint::new(word.span, format!("`{}` has no `=`", shorten(&word.value)))
                        .hint("write NAME=value; a value with blanks needs quotes"));
                };
                check_name(&key, &name)?;
                Ok(KeyValue { key, value, is_legacy: false })
            })
            .collect()
    }

    fn run(&self, flags: &mut Flags) -> Result<Run, Complaint> {
        let mounts = flags.texts("mount")?;
        for mount in mounts.iter().filter(|mount| !mount.value.contains('$')) {
            Mount::parse(mount, &|value| Ok(value.to_owned()))?;
        }
        let (network, security) = (flags.text("network")?, flags.text("security")?);
        if let Some(device) = flags.texts("device")?.first() {
            return Err(Complaint::new(device.span, "devices are not given to builds")
                .hint("build without the device, or run a job that has what it needs"));
        }
        check_entitlements(network.as_ref(), security.as_ref())?;
        let command = command_line(self.arguments)?;
        if matches!(&command, CommandLine::Exec(words) if words.is_empty()) {
            return Err(self.complain("needs a command", example("RUN")));
        }
        Ok(Run { mounts, network, security, command })
    }

    fn copy(&self, flags: &mut Flags, is_add: bool) -> Result<Copy, Complaint> {
        let mut copy = Copy {
            chown: flags.text("chown")?,
            chmod: flags.text("chmod")?,
            link: flags.switch("link")?,
            exclude: flags.texts("exclude")?,
            ..Copy::default()
        };
        if is_add {
            copy.checksum = flags.text("checksum")?;
            copy.keep_git_dir = flags.switch("keep-git-dir")?;
            copy.unpack = flags.switch("unpack")?;
        } else {
            copy.from = flags.text("from")?;
            copy.parents = flags.switch("parents")?;
        }
        let (words, is_json) = self.words_or_json()?;
        copy.is_json = is_json;
        let Some((destination, sources)) = words.split_last().filter(|(_, sources)| !sources.is_empty()) else {
            return Err(self.complain("needs a source and a destination", "as in `COPY app /usr/bin/`"));
        };
        if !is_json && heredoc::start(&destination.value).is_some() {
            return Err(Complaint::new(destination.span, "a heredoc cannot be the destination")
                .hint("the last word is where the copy goes"));
        }
        copy.destination = destination.clone();
        let source = |word: &Word| match heredoc::start(&word.value) {
            Some(_) if !is_json => CopySource::Heredoc(word.clone()),
            _ => CopySource::Path(word.clone()),
        };
        copy.sources = sources.iter().map(source).collect();
        Ok(copy)
    }

    fn words_or_json(&self) -> Result<(Vec<Word>, bool), Complaint> {
        match words::json_array(self.arguments)? {
            Some(words) => Ok((words, true)),
            None => Ok((words::split_blanks(self.arguments)?, false)),
        }
    }

    fn volumes(&self) -> Result<Vec<Word>, Complaint> {
        let (words, _) = self.words_or_json()?;
        if words.is_empty() || words.iter().any(|word| word.value.trim().is_empty()) {
            return Err(self.complain("has a path that is empty", "as in `VOLUME /data`"));
        }
        Ok(words)
    }

    fn shell(&self) -> Result<Vec<Word>, Complaint> {
        match words::json_array(self.arguments)? {
            Some(words) if !words.is_empty() => Ok(words),
            _ => Err(self.complain("takes a JSON array", "as in `SHELL [\"/bin/bash\", \"-c\"]`")),
        }
    }

    fn healthcheck(&self, flags: &mut Flags) -> Result<Healthcheck, Complaint> {
        let (kind, rest) = self.arguments.split_word();
        let probe = match kind.text().to_ascii_uppercase().as_str() {
            "NONE" if rest.text().is_empty() => Probe::None,
            "NONE" => return Err(Complaint::new(rest.span(), "HEALTHCHECK NONE takes no arguments")),
            "CMD" if rest.text().is_empty() => {
                return Err(self.complain("CMD needs a command", example("HEALTHCHECK")));
            }
            "CMD" => Probe::Cmd(command_line(rest)?),
            _ => {
                return Err(Complaint::new(
                    kind.span(),
                    format!("`{}` is no kind of HEALTHCHECK", shorten(kind.text())),
                )
                .hint("there are CMD and NONE"));
            }
        };
        let retries = match flags.text("retries")? {
            Some(word) => word.value.parse().map_err(|_| {
                Complaint::new(word.span, format!("`{}` is no number of retries", shorten(&word.value)))
            })?,
            None => 0,
        };
        Ok(Healthcheck {
            interval_nanos: interval(flags, "interval")?,
            timeout_nanos: interval(flags, "timeout")?,
            start_period_nanos: interval(flags, "start-period")?,
            start_interval_nanos: interval(flags, "start-interval")?,
            retries,
            probe,
        })
    }

    fn onbuild(&self, is_trigger: bool) -> Result<Instruction, Complaint> {
        let keyword = self.arguments.split_word().0;
        let name = keyword.text().to_ascii_uppercase();
        if is_trigger || matches!(name.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            return Err(Complaint::new(keyword.span(), format!("{name} cannot be what ONBUILD triggers")));
        }
        read(self.arguments, self.escape, true)
    }
}

fn command_line(part: Part) -> Result<CommandLine, Complaint> {
    Ok(match words::json_array(part)? {
        Some(words) => CommandLine::Exec(words),
        None => CommandLine::Shell(part.word()),
    })
}

/// Name and value of a word with `=` in it.
fn split_equals(word: &Word) -> Option<(Word, Word)> {
    let equals = word.value.find('=')?;
    let (name, value) = (&word.value[..equals], &word.value[equals + 1..]);
    // A word that a continuation line broke is longer in the file; the error is of no consequence.
    let middle = (word.span.start + equals).min(word.span.end);
    let name = Spanned::new(name.to_owned(), Span { start: word.span.start, end: middle });
    Some((name, Spanned::new(value.to_owned(), Span { start: (middle + 1).min(word.span.end), end: word.span.end })))
}

fn check_name(name: &Word, instruction: &str) -> Result<(), Complaint> {
    if name.value.is_empty() {
        return Err(Complaint::new(name.span, format!("a name of {instruction} is empty"))
            .hint("write NAME=value without blanks around `=`"));
    }
    Ok(())
}

/// Whether a word can name a stage.
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn check_entitlements(network: Option<&Word>, security: Option<&Word>) -> Result<(), Complaint> {
    let refuse = |word: &Word, message: String, hint: &str| Err(Complaint::new(word.span, message).hint(hint));
    match network {
        Some(word) if word.value == "host" => {
            return refuse(
                word,
                "the host's network is not given to builds".into(),
                "`--network=default` has a way out",
            );
        }
        Some(word) if !matches!(word.value.as_str(), "none" | "default") => {
            let message = format!("`{}` is no network of RUN", shorten(&word.value));
            return refuse(word, message, "there are `none` and `default`");
        }
        _ => {}
    }
    match security {
        Some(word) if word.value == "insecure" => refuse(
            word,
            "RUN without a sandbox is not given to builds".into(),
            "every RUN has a user namespace, a filter of system calls and limits; remove the flag",
        ),
        Some(word) if word.value != "sandbox" => {
            refuse(word, format!("`{}` is no security of RUN", shorten(&word.value)), "there is `sandbox`")
        }
        _ => Ok(()),
    }
}

fn interval(flags: &mut Flags, name: &'static str) -> Result<u64, Complaint> {
    let Some(word) = flags.text(name)? else { return Ok(0) };
    match duration::nanos(&word.value) {
        Some(nanos) if nanos == 0 || nanos >= INTERVAL_NANOS_MIN => Ok(nanos),
        Some(_) => Err(Complaint::new(word.span, format!("--{name} is shorter than a millisecond"))),
        None => Err(Complaint::new(word.span, format!("`{}` is no duration", shorten(&word.value)))
            .hint("as in 30s, 1m30s or 500ms")),
    }
}

/// How an instruction is written.
fn example(name: &str) -> &'static str {
    match name {
        "FROM" => "as in `FROM debian:13`",
        "ARG" => "as in `ARG VERSION=1.0`",
        "ENV" | "LABEL" => "as in `NAME=value`",
        "RUN" => "as in `RUN make`",
        "COPY" | "ADD" => "as in `COPY app /usr/bin/`",
        "WORKDIR" => "as in `WORKDIR /app`",
        "USER" => "as in `USER app`",
        "SHELL" => "as in `SHELL [\"/bin/bash\", \"-c\"]`",
        "EXPOSE" => "as in `EXPOSE 8080`",
        "VOLUME" => "as in `VOLUME /data`",
        "STOPSIGNAL" => "as in `STOPSIGNAL SIGINT`",
        "HEALTHCHECK" => "as in `HEALTHCHECK CMD curl -f localhost`",
        "ONBUILD" => "as in `ONBUILD RUN make`",
        _ => "as in `CMD [\"app\"]`",
    }
}
