//! Instructions to steps: what a stage's variables, folder, user and shell are at each of them.

use std::collections::BTreeMap;

use super::action::{Action, HealthcheckAction, Step};
use super::copy::shortened;
use super::globals::PREDEFINED;
use super::scope::{NO_RULES, Scope, expand_word};
use super::stages::{Graph, Placed};
use super::{Base, Globals, Note, NoteKind, Options, PLAN_BYTES_MAX, Stage, port};
use crate::builder::dockerfile::{Argument, Command, CommandLine, Dockerfile, Healthcheck, KeyValue, Probe};
use crate::builder::expand::{Expanded, Rules};
use crate::builder::glob;
use crate::builder::source::{Complaint, Source, Span, Word};
use crate::builder::suggest::closest;
use crate::spec::DEFAULT_PATH;

/// What runs commands in shell form unless SHELL says otherwise.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Highest number of a signal.
const SIGNAL_MAX: u8 = 64;
/// Most bytes of values that all variables of a build may have looked at.
const WORK_BYTES_MAX: usize = 256 << 20;
/// Most notes of a plan.
const NOTES_MAX: usize = 1000;
/// Names of signals without `SIG`; real-time ones besides.
const SIGNALS: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "UNUSED",
];

/// A stage that was planned, with what the stages on top of it start with.
pub(super) struct Finished {
    pub(super) stage: Stage,
    state: State,
}

/// What instructions change and the next ones see.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) scope: Scope,
    pub(super) working_dir: String,
    /// Whether the Dockerfile named an absolute folder.
    is_dir_known: bool,
    pub(super) user: String,
    pub(super) shell: Vec<String>,
    is_base_known: bool,
}

/// Plans one stage after the other.
pub(super) struct Planner<'a> {
    source: &'a Source,
    pub(super) options: &'a Options,
    globals: &'a Globals,
    pub(super) graph: &'a Graph,
    pub(super) escape: char,
    bytes: usize,
    work: usize,
    pub(super) notes: Vec<Note>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        source: &'a Source,
        dockerfile: &Dockerfile,
        options: &'a Options,
        globals: &'a Globals,
        graph: &'a Graph,
    ) -> Planner<'a> {
        let escape = dockerfile.directives.escape;
        Planner { source, options, globals, graph, escape, bytes: 0, work: 0, notes: Vec::new() }
    }

    /// Plans a stage; those that it needs are done.
    ///
    /// # Errors
    /// An instruction that cannot be done as it is written.
    pub(super) fn stage(&mut self, index: usize, done: &BTreeMap<usize, Finished>) -> Result<Finished, Complaint> {
        let node = &self.graph.nodes[index];
        let mut state = self.first_state(&node.base, done);
        let mut steps = Vec::new();
        for placed in &node.instructions {
            let at = At { placed, stage: index };
            let action = self.action(at, &mut state)?;
            let inputs = action.inputs();
            let step = Step {
                position: self.source.position(placed.span.start),
                instruction: placed.index,
                written: shortened(placed.instruction.written(self.escape)),
                text: shortened(action.text()),
                is_trigger: placed.is_trigger,
                action,
                inputs,
            };
            self.count(placed.span, step.bytes())?;
            steps.push(step);
        }
        // The stage keeps its variables twice: for itself, and for stages on top of it.
        self.count(node.from_span, 2 * state.scope.bytes())?;
        let stage = Stage {
            index,
            name: node.name.clone(),
            position: self.source.position(node.from_span.start),
            base: node.base.clone(),
            platform: node.platform.clone(),
            needs: self.graph.needs(index),
            steps,
            is_base_known: state.is_base_known,
            user: state.user.clone(),
            working_dir: state.working_dir.clone(),
            environment: state.scope.environment().to_vec(),
        };
        Ok(Finished { stage, state })
    }

    fn count(&mut self, span: Span, bytes: usize) -> Result<(), Complaint> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > PLAN_BYTES_MAX {
            return Err(Complaint::new(span, format!("the steps come to more than {PLAN_BYTES_MAX} bytes"))
                .hint("long values are in the environment of every RUN; COPY them as files"));
        }
        Ok(())
    }

    fn work(&mut self, span: Span, bytes: usize) -> Result<(), Complaint> {
        self.work = self.work.saturating_add(bytes);
        if self.work > WORK_BYTES_MAX {
            return Err(Complaint::new(
                span,
                format!("the variables look at more than {WORK_BYTES_MAX} bytes of values"),
            ));
        }
        Ok(())
    }

    fn first_state(&self, base: &Base, done: &BTreeMap<usize, Finished>) -> State {
        let blank = State {
            working_dir: "/".to_owned(),
            shell: SHELL.map(str::to_owned).to_vec(),
            is_base_known: true,
            ..State::default()
        };
        match base {
            Base::Stage(stage) => done.get(stage).map(|finished| finished.state.clone()).unwrap_or(blank),
            Base::Scratch | Base::Context(_) => blank,
            Base::Image(image) => match self.options.bases.get(image) {
                None => State { is_base_known: false, ..blank },
                Some(facts) => State {
                    scope: Scope::of_base(&facts.env),
                    is_dir_known: facts.working_dir.is_some(),
                    working_dir: facts.working_dir.clone().unwrap_or(blank.working_dir),
                    user: facts.user.clone().unwrap_or_default(),
                    shell: if facts.shell.is_empty() { blank.shell } else { facts.shell.clone() },
                    is_base_known: true,
                },
            },
        }
    }

    fn action(&mut self, at: At, state: &mut State) -> Result<Action, Complaint> {
        let command = &at.placed.instruction.command;
        Ok(match command {
            Command::Arg(arguments) => self.arguments(at, state, arguments)?,
            Command::Env(pairs) => {
                let pairs = self.pairs(at, state, pairs)?;
                for (name, value) in &pairs {
                    state.scope.set(at.placed.span, name, value.clone())?;
                }
                Action::Environment(pairs)
            }
            Command::Label(pairs) => Action::Labels(self.pairs(at, state, pairs)?),
            Command::Run(run) => self.run(at, state, run)?,
            Command::Copy(copy) => self.copy(at, state, copy, false)?,
            Command::Add(copy) => self.copy(at, state, copy, true)?,
            Command::Workdir(word) => self.workdir(at, state, word)?,
            Command::User(word) => {
                state.user = self.filled(at, state, word, "the user")?;
                Action::User(state.user.clone())
            }
            Command::Shell(words) => {
                state.shell = texts(words);
                Action::Shell(state.shell.clone())
            }
            Command::Expose(words) => self.expose(at, state, words)?,
            Command::Volume(words) => {
                let expanded = words.iter().map(|word| self.filled(at, state, word, "the volume"));
                Action::Volumes(expanded.collect::<Result<_, _>>()?)
            }
            Command::StopSignal(word) => self.stop_signal(at, state, word)?,
            Command::Healthcheck(healthcheck) => Action::Healthcheck(healthcheck_action(healthcheck)),
            Command::Onbuild(inner) => Action::Onbuild(self.trigger_text(at, inner.span)),
            Command::Entrypoint(line) => Action::Entrypoint(argv(line, &state.shell)),
            Command::Cmd(line) => Action::Cmd(argv(line, &state.shell)),
            Command::Maintainer(word) => Action::Author(word.value.clone()),
            Command::From(_) => return Err(Complaint::new(at.placed.span, "FROM cannot stand inside of a stage")),
        })
    }

    /// A trigger as it is kept in the image: the lines of the file.
    fn trigger_text(&self, at: At, span: Span) -> String {
        let mut text = self.source.text().get(span.start..span.end).unwrap_or_default().to_owned();
        for heredoc in &at.placed.instruction.heredocs {
            text.push('\n');
            text.push_str(&heredoc.body.value);
            text.push_str(&heredoc.name);
        }
        text
    }

    /// Resolves the variables of a word at an instruction.
    pub(super) fn expand(&mut self, at: At, state: &State, word: &Word) -> Result<Expanded, Complaint> {
        self.expand_with(at, state, word, self.escape, NO_RULES)
    }

    pub(super) fn expand_with(
        &mut self,
        at: At,
        state: &State,
        word: &Word,
        escape: char,
        rules: Rules,
    ) -> Result<Expanded, Complaint> {
        let default_path = (!state.is_base_known).then_some(DEFAULT_PATH);
        let lookup = |name: &str| state.scope.get(name).or_else(|| if name == "PATH" { default_path } else { None });
        let expanded = expand_word(word, escape, rules, &lookup).map_err(|complaint| at.point(complaint))?;
        self.count(word.span, expanded.text.len())?;
        self.work(word.span, expanded.work)?;
        let unmatched = expanded.unmatched.iter().filter(|name| !state.scope.is_argument(name));
        for name in unmatched.take(NOTES_MAX.saturating_sub(self.notes.len())) {
            let meant = closest(name, state.scope.names()).map(str::to_owned);
            // A base that is not known may define it; a name that is nearly another one is told all the same.
            if state.is_base_known || meant.is_some() {
                let span = if at.placed.is_trigger { at.placed.span } else { word.span };
                let kind = NoteKind::UndefinedVariable(name.clone(), meant);
                self.notes.push(Note { span, instruction: at.placed.index, kind });
            }
        }
        Ok(expanded)
    }

    /// The same for a word that cannot be empty.
    fn filled(&mut self, at: At, state: &State, word: &Word, what: &str) -> Result<String, Complaint> {
        let text = self.expand(at, state, word)?.text;
        if text.trim().is_empty() {
            return Err(at.complain(word.span, format!("{what} is empty")).hint("give the variable in it a value"));
        }
        Ok(text)
    }

    fn arguments(&mut self, at: At, state: &mut State, arguments: &[Argument]) -> Result<Action, Complaint> {
        let mut declared = Vec::new();
        for argument in arguments {
            let name = self.expand(at, state, &argument.name)?.text;
            let given = self.options.build_args.get(&name).cloned();
            let value = match (given, &argument.default) {
                (Some(value), _) => Some(value),
                (None, Some(default)) => Some(self.expand(at, state, default)?.text),
                (None, None) => self.globals.get(&name).cloned(),
            };
            state.scope.declare(at.placed.span, &name, value.clone())?;
            declared.push((name, value));
        }
        Ok(Action::Arguments(declared))
    }

    /// All pairs see the variables as they were before the instruction.
    fn pairs(&mut self, at: At, state: &State, pairs: &[KeyValue]) -> Result<Vec<(String, String)>, Complaint> {
        let mut expanded = Vec::new();
        for pair in pairs {
            let key = self.expand(at, state, &pair.key)?.text;
            if key.is_empty() {
                return Err(at.complain(pair.key.span, "the name is empty".to_owned()));
            }
            expanded.push((key, self.expand(at, state, &pair.value)?.text));
        }
        Ok(expanded)
    }

    fn workdir(&mut self, at: At, state: &mut State, word: &Word) -> Result<Action, Complaint> {
        let path = self.filled(at, state, word, "the folder")?;
        if path.starts_with('/') {
            state.is_dir_known = true;
        } else if !state.is_dir_known {
            let span = if at.placed.is_trigger { at.placed.span } else { word.span };
            let kind = NoteKind::RelativeWorkdir(path.clone());
            self.notes.push(Note { span, instruction: at.placed.index, kind });
        }
        state.working_dir = absolute(&state.working_dir, &path);
        Ok(Action::Workdir(state.working_dir.clone()))
    }

    fn expose(&mut self, at: At, state: &State, words: &[Word]) -> Result<Action, Complaint> {
        let mut ports = Vec::new();
        for word in words {
            for text in self.expand(at, state, word)?.words {
                let read = port::parse(&text).map_err(|problem| {
                    at.complain(word.span, format!("`{text}` is no port: {problem}"))
                        .hint("as in 80, 53/udp or 8000-8010")
                })?;
                let note = |kind| Note { span: word.span, instruction: at.placed.index, kind };
                self.notes.extend(read.has_upper_case.then(|| note(NoteKind::PortCasing(text.clone()))));
                self.notes.extend(read.has_mapping.then(|| note(NoteKind::PortMapping(text.clone()))));
                self.count(word.span, read.ports.len() * 8)?;
                ports.extend(read.ports);
            }
        }
        Ok(Action::Expose(ports))
    }

    fn stop_signal(&mut self, at: At, state: &State, word: &Word) -> Result<Action, Complaint> {
        let signal = self.filled(at, state, word, "the signal")?;
        let upper = signal.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let is_number = signal.parse::<u8>().is_ok_and(|number| (1..=SIGNAL_MAX).contains(&number));
        let is_real_time = ["RTMIN", "RTMAX"].iter().any(|real_time| {
            name.strip_prefix(real_time).is_some_and(|rest| {
                rest.is_empty() || rest[1..].parse::<u8>().is_ok_and(|n| n < 16) && rest.starts_with(['+', '-'])
            })
        });
        if !(is_number || is_real_time || SIGNALS.contains(&name)) {
            return Err(at.complain(word.span, format!("`{signal}` is no signal")).hint("as in SIGTERM or 15"));
        }
        Ok(Action::StopSignal(signal))
    }

    /// What the environment of a command has besides, and must not matter: proxies that the build was given.
    pub(super) fn proxy(&self) -> Vec<(String, String)> {
        let given = |name: &&str| self.options.build_args.get(*name).map(|value| ((*name).to_owned(), value.clone()));
        PREDEFINED.iter().filter_map(given).collect()
    }
}

/// An instruction in its stage.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) placed: &'a Placed,
    pub(super) stage: usize,
}

impl At<'_> {
    /// A complaint about a place; for triggers, which may stand elsewhere, about the whole of them.
    pub(super) fn complain(&self, span: Span, message: String) -> Complaint {
        self.point(Complaint::new(span, message))
    }

    pub(super) fn point(&self, complaint: Complaint) -> Complaint {
        if !self.placed.is_trigger {
            return complaint;
        }
        let message = format!("in an ONBUILD trigger: {}", complaint.message);
        Complaint { span: self.placed.span, message, ..complaint }
    }
}

/// A path from a folder; a slash at its end stays.
pub(super) fn absolute(folder: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    glob::clean(&joined)
}

/// The words of a command line, with the shell in front of one in shell form.
pub(super) fn argv(line: &CommandLine, shell: &[String]) -> Vec<String> {
    match line {
        CommandLine::Exec(words) => texts(words),
        CommandLine::Shell(text) => shell.iter().cloned().chain([text.value.clone()]).collect(),
    }
}

fn texts(words: &[Word]) -> Vec<String> {
    words.iter().map(|word| word.value.clone()).collect()
}

fn healthcheck_action(healthcheck: &Healthcheck) -> HealthcheckAction {
    let test = match &healthcheck.probe {
        Probe::None => vec!["NONE".to_owned()],
        Probe::Cmd(CommandLine::Exec(words)) => std::iter::once("CMD".to_owned()).chain(texts(words)).collect(),
        Probe::Cmd(CommandLine::Shell(text)) => vec!["CMD-SHELL".to_owned(), text.value.clone()],
    };
    HealthcheckAction {
        test,
        interval_nanos: healthcheck.interval_nanos,
        timeout_nanos: healthcheck.timeout_nanos,
        start_period_nanos: healthcheck.start_period_nanos,
        start_interval_nanos: healthcheck.start_interval_nanos,
        retries: healthcheck.retries,
    }
}
