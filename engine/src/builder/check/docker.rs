//! Docker's build checks: the same names, the same sentences, the same conditions.

use std::collections::{BTreeMap, BTreeSet};

use super::{Case, Rule};
use crate::builder::dockerfile::{Command, CommandLine, From, Instruction};
use crate::builder::glob;
use crate::builder::plan::{Action, CopyFrom, Globals, NoteKind, Options, Origin, Platform};
use crate::builder::source::Spanned;
use crate::image::reference::Reference;

/// Words of a name that say that its value is a secret.
const SECRET_WORDS: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
/// Words of a name that say that it is not, after all.
const PUBLIC_WORDS: [&str; 3] = ["public", "file", "version"];
/// Names that mean something already.
const RESERVED_STAGES: [&str; 2] = ["context", "scratch"];

impl<'a> Case<'a> {
    pub(super) fn docker(&mut self) {
        let instructions: &'a [Instruction] = &self.dockerfile.instructions;
        self.casing(instructions);
        self.stage_names(instructions);
        // As it is, and as if no argument had been given.
        let plain = Options { build_args: BTreeMap::new(), ..self.options.clone() };
        let globals = Globals::read(self.dockerfile, self.options);
        let defaults = Globals::read(self.dockerfile, &plain);
        for (index, instruction) in instructions.iter().enumerate() {
            self.form(index, instruction);
            match &instruction.command {
                Command::From(from) => {
                    self.from(index, instruction, from);
                    if let Ok(globals) = &globals {
                        self.platform(index, from, globals);
                    }
                    if let Ok(defaults) = &defaults {
                        self.default_base(index, from, defaults);
                    }
                }
                Command::Onbuild(inner) => self.form(index, inner),
                _ => {}
            }
        }
        self.used_once(instructions);
        self.notes();
        self.ignored_files();
    }

    /// How an instruction is written.
    fn form(&mut self, index: usize, instruction: &Instruction) {
        if let Some(span) = instruction.empty_continuation {
            self.find(index, span, Rule::NoEmptyContinuation, "Empty continuation line");
        }
        let name = instruction.command.name();
        match &instruction.command {
            Command::Maintainer(_) => {
                let message = "Maintainer instruction is deprecated in favor of using label";
                self.find(index, instruction.span, Rule::MaintainerDeprecated, message);
            }
            Command::Env(pairs) | Command::Label(pairs) => {
                for pair in pairs.iter().filter(|pair| pair.is_legacy) {
                    let message =
                        format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
                    self.find(index, pair.key.span, Rule::LegacyKeyValueFormat, message);
                }
                if name == "ENV" {
                    pairs.iter().for_each(|pair| self.secret(index, "ENV", &pair.key));
                }
            }
            Command::Arg(arguments) => {
                arguments.iter().for_each(|argument| self.secret(index, "ARG", &argument.name));
                let names: Vec<&str> = arguments.iter().map(|argument| argument.name.value.as_str()).collect();
                self.description(index, instruction, &names);
            }
            Command::Cmd(CommandLine::Shell(text)) | Command::Entrypoint(CommandLine::Shell(text))
                if !self.has_shell(index) =>
            {
                let message = format!(
                    "JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
                );
                self.find(index, text.span, Rule::JSONArgsRecommended, message);
            }
            _ => {}
        }
    }

    /// Whether the stage chose its shell before an instruction: then it is meant to be used.
    fn has_shell(&self, index: usize) -> bool {
        let before = self.dockerfile.instructions[..index].iter().rev();
        let mut stage = before.take_while(|instruction| !matches!(instruction.command, Command::From(_)));
        stage.any(|instruction| matches!(instruction.command, Command::Shell(_)))
    }

    fn secret(&mut self, index: usize, instruction: &str, name: &Spanned<String>) {
        let lower = name.value.to_ascii_lowercase();
        let holds = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
        if holds(&SECRET_WORDS) && !holds(&PUBLIC_WORDS) {
            let message =
                format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {:?})", name.value);
            self.find(index, name.span, Rule::SecretsUsedInArgOrEnv, message);
        }
    }

    fn description(&mut self, index: usize, instruction: &Instruction, names: &[&str]) {
        let (Some(comment), Some(first)) = (instruction.comments.last(), names.first()) else { return };
        if names.contains(&comment.split(' ').next().unwrap_or_default()) {
            return;
        }
        let name = if names.len() > 1 { "<arg_key>" } else { first };
        let message =
            format!("Comment for {} should follow the format: `# {name} <description>`", instruction.command.name());
        self.find(index, instruction.keyword.span, Rule::InvalidDefinitionDescription, message);
    }

    /// All in capitals or all in lower case, as most are.
    fn casing(&mut self, instructions: &[Instruction]) {
        // Arguments above the first FROM are not counted.
        let from = instructions.iter().position(|instruction| matches!(instruction.command, Command::From(_)));
        let from = from.unwrap_or(0);
        let is_lower = |word: &str| word == word.to_ascii_lowercase();
        let is_upper = |word: &str| word == word.to_ascii_uppercase();
        let words = instructions[from..].iter().map(|instruction| instruction.keyword.value.as_str());
        let lower = words.clone().filter(|word| is_lower(word)).count();
        let wants_lower = lower > words.filter(|word| is_upper(word)).count();
        for (index, instruction) in instructions.iter().enumerate().skip(from) {
            let word = &instruction.keyword;
            let fits = if wants_lower { is_lower(&word.value) } else { is_upper(&word.value) };
            if !fits {
                let casing = if wants_lower { "lowercase" } else { "uppercase" };
                let message =
                    format!("Command '{}' should match the case of the command majority ({casing})", word.value);
                self.find(index, word.span, Rule::ConsistentInstructionCasing, message);
            }
        }
    }

    fn stage_names(&mut self, instructions: &[Instruction]) {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for (index, instruction) in instructions.iter().enumerate() {
            let Command::From(From { name: Some(word), .. }) = &instruction.command else { continue };
            let name = word.value.to_ascii_lowercase();
            if word.value != name {
                let message = format!("Stage name '{}' should be lowercase", word.value);
                self.find(index, word.span, Rule::StageNameCasing, message);
            }
            if RESERVED_STAGES.contains(&name.as_str()) {
                let message = format!("Stage name should not use the same name as reserved stage {name:?}");
                self.find(index, word.span, Rule::ReservedStageName, message);
            }
            if !seen.insert(name.clone()) {
                let message = format!("Duplicate stage name {name:?}, stage names should be unique");
                self.find(index, word.span, Rule::DuplicateStageName, message);
            }
            self.description(index, instruction, &[name.as_str()]);
        }
    }

    fn from(&mut self, index: usize, instruction: &Instruction, from: &From) {
        let keyword = instruction.keyword.value.as_str();
        if let Some(word) = &from.as_keyword {
            let is_lower = keyword == keyword.to_ascii_lowercase();
            let is_upper = keyword == keyword.to_ascii_uppercase();
            let expected = if is_lower { "as" } else { "AS" };
            if (is_lower || is_upper) && word.value != expected {
                let message = format!("'{}' and '{keyword}' keywords' casing do not match", word.value);
                self.find(index, word.span, Rule::FromAsCasing, message);
            }
        }
    }

    fn default_base(&mut self, index: usize, from: &From, defaults: &Globals) {
        let Ok(resolved) = defaults.resolve(&from.base) else { return };
        let is_stage = |name: &str| {
            self.plan.stages.iter().any(|stage| stage.name.as_deref() == Some(name.to_ascii_lowercase().as_str()))
        };
        if Reference::parse(&resolved.text).is_err() && !is_stage(&resolved.text) {
            let message =
                format!("Default value for ARG {} results in empty or invalid base image name", from.base.value);
            self.find(index, from.base.span, Rule::InvalidDefaultArgInFrom, message);
        }
    }

    fn platform(&mut self, index: usize, from: &From, globals: &Globals) {
        let Some(word) = &from.platform else { return };
        let Ok(resolved) = globals.resolve(word) else { return };
        let is_constant = resolved.matched.is_empty() && resolved.unmatched.is_empty();
        if is_constant {
            let Ok(platform) = Platform::parse(&resolved.text) else { return };
            let name = from.name.as_ref().map(|name| name.value.to_ascii_lowercase()).unwrap_or_default();
            if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
                let message = format!("FROM --platform flag should not use constant value {:?}", resolved.text);
                self.find(index, word.span, Rule::FromPlatformFlagConstDisallowed, message);
            }
            return;
        }
        let is_target = resolved.unmatched.is_empty()
            && resolved.matched.iter().eq(["TARGETPLATFORM"])
            && globals.get("TARGETPLATFORM") == Some(&resolved.text);
        if is_target {
            let message = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                word.value
            );
            self.find(index, word.span, Rule::RedundantTargetPlatform, message);
        }
    }

    /// CMD, ENTRYPOINT and HEALTHCHECK: the one that has no effect is pointed at.
    fn used_once(&mut self, instructions: &[Instruction]) {
        let mut last: [Option<(usize, &Instruction)>; 3] = [None; 3];
        for (index, instruction) in instructions.iter().enumerate() {
            let slot = match &instruction.command {
                Command::From(_) => {
                    last = [None; 3];
                    continue;
                }
                Command::Cmd(_) => 0,
                Command::Entrypoint(_) => 1,
                Command::Healthcheck(_) => 2,
                _ => continue,
            };
            if let Some((index, earlier)) = last[slot].replace((index, instruction)) {
                let message = format!(
                    "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                    earlier.command.name()
                );
                self.find(index, earlier.span, Rule::MultipleInstructionsDisallowed, message);
            }
        }
    }

    /// What was noticed while planning.
    fn notes(&mut self) {
        let meant = |name: &Option<String>, sign: &str| {
            name.as_ref().map(|name| format!(" (did you mean {sign}{name}?)")).unwrap_or_default()
        };
        let plan = self.plan;
        for note in &plan.notes {
            let (rule, message) = match &note.kind {
                NoteKind::UndefinedVariable(name, other) => {
                    (Rule::UndefinedVar, format!("Usage of undefined variable '${name}'{}", meant(other, "$")))
                }
                NoteKind::UndefinedArgument(name, other) => {
                    (Rule::UndefinedArgInFrom, format!("FROM argument '{name}' is not declared{}", meant(other, "")))
                }
                NoteKind::RelativeWorkdir(path) => (
                    Rule::WorkdirRelativePath,
                    format!("Relative workdir {path:?} can have unexpected results if the base image changes"),
                ),
                NoteKind::PortMapping(port) => (
                    Rule::ExposeInvalidFormat,
                    format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"),
                ),
                NoteKind::PortCasing(port) => (
                    Rule::ExposeProtoCasing,
                    format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase"),
                ),
                NoteKind::BasePlatform(name, wanted, actual) => (
                    Rule::InvalidBaseImagePlatform,
                    format!(
                        "Base image {name} was pulled with platform \"{actual}\", expected \"{wanted}\" for current build"
                    ),
                ),
            };
            self.find(note.instruction, note.span, rule, message);
        }
    }

    /// Sources of the context that `.dockerignore` leaves out. With exceptions it cannot be known, and is not said.
    fn ignored_files(&mut self) {
        let Some(ignored) = self.context.map(|context| context.ignored()) else { return };
        if ignored.is_empty() || ignored.has_exceptions() {
            return;
        }
        let plan = self.plan;
        for step in plan.stages.iter().flat_map(|stage| &stage.steps) {
            let Action::Copy(copy) = &step.action else { continue };
            if copy.from != Origin::Context {
                continue;
            }
            for source in &copy.sources {
                let CopyFrom::Path(path) = source else { continue };
                let clean = glob::clean(path);
                let is_root = matches!(clean.as_str(), "." | "/");
                let is_left_out =
                    if is_root { ignored.excludes_all() } else { ignored.excludes(clean.trim_start_matches('/')) };
                if is_left_out {
                    let name = if copy.is_add { "Add" } else { "Copy" };
                    let message = format!("Attempting to {name} file {clean:?} that is excluded by .dockerignore");
                    let span = self.dockerfile.instructions[step.instruction].span;
                    self.find(step.instruction, span, Rule::CopyIgnoredFile, message);
                }
            }
        }
    }
}
