//! A Dockerfile as text again: one line an instruction, heredocs below. Reading it gives the same instructions.

use std::fmt::{self, Write as _};

use super::Dockerfile;
use super::instruction::{Argument, Command, CommandLine, Copy, CopySource, Healthcheck, Instruction, KeyValue, Probe};
use crate::builder::source::{Spanned, Word};

impl fmt::Display for Dockerfile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directives = &self.directives;
        if let Some(syntax) = &directives.syntax {
            writeln!(formatter, "# syntax={}", syntax.value)?;
        }
        if directives.escape != '\\' {
            writeln!(formatter, "# escape={}", directives.escape)?;
        }
        if let Some(checks) = &directives.checks {
            let checks = &checks.value;
            let mut options = Vec::new();
            if !checks.skip.is_empty() {
                options.push(format!("skip={}", checks.skip.join(",")));
            }
            if !checks.experimental.is_empty() {
                options.push(format!("experimental={}", checks.experimental.join(",")));
            }
            options.push(format!("error={}", checks.error));
            writeln!(formatter, "# check={}", options.join(";"))?;
        }
        // An empty comment, so that a comment below is no directive.
        writeln!(formatter, "#")?;
        for instruction in &self.instructions {
            for comment in &instruction.comments {
                writeln!(formatter, "# {comment}")?;
            }
            print(instruction, directives.escape, formatter)?;
        }
        Ok(())
    }
}

fn print(instruction: &Instruction, escape: char, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut line = Printer { text: instruction.keyword.value.clone(), escape };
    line.command(&instruction.command);
    let Printer { mut text, .. } = line;
    if super::scan::trim_continuation(&text, escape).1 {
        // A blank that ends no continuation and belongs to no word.
        text.push('\u{b}');
    }
    writeln!(formatter, "{text}")?;
    for heredoc in &instruction.heredocs {
        writeln!(formatter, "{}{}", heredoc.body.value, heredoc.name)?;
    }
    Ok(())
}

impl Instruction {
    /// How it is written, in one line and without heredocs.
    pub fn written(&self, escape: char) -> String {
        let mut line = Printer { text: self.keyword.value.to_ascii_uppercase(), escape };
        line.command(&self.command);
        line.text
    }
}

struct Printer {
    text: String,
    escape: char,
}

impl Printer {
    fn command(&mut self, command: &Command) {
        match command {
            Command::From(from) => {
                self.flag("platform", from.platform.as_ref());
                self.words(std::iter::once(&from.base).chain(&from.as_keyword).chain(&from.name));
            }
            Command::Arg(arguments) => arguments.iter().for_each(|argument| self.argument(argument)),
            Command::Env(pairs) | Command::Label(pairs) => pairs.iter().for_each(|pair| self.pair(pair)),
            Command::Run(run) => {
                run.mounts.iter().for_each(|mount| self.flag("mount", Some(mount)));
                self.flag("network", run.network.as_ref());
                self.flag("security", run.security.as_ref());
                self.command_line(&run.command);
            }
            Command::Copy(copy) | Command::Add(copy) => self.copy(copy),
            Command::Workdir(word) | Command::User(word) | Command::StopSignal(word) | Command::Maintainer(word) => {
                self.words([word]);
            }
            Command::Expose(words) => self.words(words),
            Command::Volume(words) | Command::Shell(words) => self.json(words),
            Command::Healthcheck(healthcheck) => self.healthcheck(healthcheck),
            Command::Onbuild(inner) => {
                self.words([&inner.keyword]);
                self.command(&inner.command);
            }
            Command::Entrypoint(line) | Command::Cmd(line) => self.command_line(line),
        }
    }

    fn words<'a>(&mut self, words: impl IntoIterator<Item = &'a Word>) {
        for word in words {
            self.text.push(' ');
            self.text.push_str(&word.value);
        }
    }

    fn json(&mut self, words: &[Word]) {
        let words: Vec<serde_json::Value> = words.iter().map(|word| word.value.as_str().into()).collect();
        let _ = write!(self.text, " {}", serde_json::Value::from(words));
    }

    fn command_line(&mut self, line: &CommandLine) {
        match line {
            CommandLine::Shell(text) => self.words([text]),
            CommandLine::Exec(words) => self.json(words),
        }
    }

    fn flag(&mut self, name: &str, value: Option<&Word>) {
        let Some(value) = value else { return };
        let _ = write!(self.text, " --{name}=");
        for c in value.value.chars() {
            if c.is_whitespace() || matches!(c, '\'' | '"') || c == self.escape {
                self.text.push(self.escape);
            }
            self.text.push(c);
        }
    }

    fn switch(&mut self, name: &str, value: Option<&Spanned<bool>>) {
        if let Some(value) = value {
            let _ = write!(self.text, " --{name}={}", value.value);
        }
    }

    fn argument(&mut self, argument: &Argument) {
        self.words([&argument.name]);
        if let Some(default) = &argument.default {
            let _ = write!(self.text, "={}", default.value);
        }
    }

    fn pair(&mut self, pair: &KeyValue) {
        self.words([&pair.key]);
        let _ = write!(self.text, "{}{}", if pair.is_legacy { ' ' } else { '=' }, pair.value.value);
    }

    fn copy(&mut self, copy: &Copy) {
        self.flag("from", copy.from.as_ref());
        self.flag("chown", copy.chown.as_ref());
        self.flag("chmod", copy.chmod.as_ref());
        self.switch("link", copy.link.as_ref());
        self.switch("parents", copy.parents.as_ref());
        copy.exclude.iter().for_each(|pattern| self.flag("exclude", Some(pattern)));
        self.flag("checksum", copy.checksum.as_ref());
        self.switch("keep-git-dir", copy.keep_git_dir.as_ref());
        self.switch("unpack", copy.unpack.as_ref());
        let words = copy.sources.iter().map(|source| match source {
            CopySource::Path(word) | CopySource::Heredoc(word) => word,
        });
        let words: Vec<Word> = words.chain([&copy.destination]).cloned().collect();
        if copy.is_json { self.json(&words) } else { self.words(&words) }
    }

    fn healthcheck(&mut self, healthcheck: &Healthcheck) {
        let Probe::Cmd(line) = &healthcheck.probe else {
            self.text.push_str(" NONE");
            return;
        };
        let durations = [
            ("interval", healthcheck.interval_nanos),
            ("timeout", healthcheck.timeout_nanos),
            ("start-period", healthcheck.start_period_nanos),
            ("start-interval", healthcheck.start_interval_nanos),
        ];
        for (name, nanos) in durations.into_iter().filter(|(_, nanos)| *nanos > 0) {
            let _ = write!(self.text, " --{name}={nanos}ns");
        }
        if healthcheck.retries > 0 {
            let _ = write!(self.text, " --retries={}", healthcheck.retries);
        }
        self.text.push_str(" CMD");
        self.command_line(line);
    }
}
