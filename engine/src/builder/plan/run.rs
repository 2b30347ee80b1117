//! RUN to a command: heredocs, mounts, environment.

use super::action::{Action, MountAction, Network, Origin, RunAction, Script};
use super::steps::{At, Planner, State, absolute, argv};
use crate::builder::dockerfile::mount::Mount;
use crate::builder::dockerfile::{CommandLine, Heredoc, Run, is_heredoc};
use crate::builder::source::{Complaint, Word};

/// Folder in which a command finds the script that it is.
const SCRIPTS: &str = "/dev/pipes";

impl Planner<'_> {
    pub(super) fn run(&mut self, at: At, state: &State, run: &Run) -> Result<Action, Complaint> {
        let mut mounts = Vec::new();
        for word in &run.mounts {
            mounts.push(self.mount(at, state, word)?);
        }
        let (argv, script) = command(&run.command, &at.placed.instruction.heredocs, &state.shell);
        let is_offline = run.network.as_ref().is_some_and(|network| network.value == "none");
        Ok(Action::Run(Box::new(RunAction {
            argv,
            script,
            mounts,
            network: if is_offline { Network::None } else { Network::Default },
            environment: state.scope.for_commands(),
            proxy: self.proxy(),
            working_dir: state.working_dir.clone(),
            user: state.user.clone(),
        })))
    }

    fn mount(&mut self, at: At, state: &State, word: &Word) -> Result<MountAction, Complaint> {
        // Everything is expanded once, so that what is not defined is noticed and told.
        let values = std::cell::RefCell::new(Vec::new());
        let read = Mount::parse(word, &|value| {
            let value = Word::new(value.to_owned(), word.span);
            let lookup = |name: &str| state.scope.get(name);
            let expanded = super::scope::expand_word(&value, self.escape, super::scope::NO_RULES, &lookup);
            values.borrow_mut().push(value);
            expanded.map(|expanded| expanded.text).map_err(|complaint| complaint.message)
        });
        let mut mount = read.map_err(|complaint| at.point(complaint))?;
        for value in values.into_inner() {
            self.expand(at, state, &value)?;
        }
        let from = match (mount.from(), &mount) {
            (Some(from), _) => {
                let from = Word::new(from.to_owned(), word.span);
                let platform = &self.graph.nodes[at.stage].platform;
                Some(self.graph.origin(&from, platform).map_err(|complaint| at.point(complaint))?)
            }
            (None, Mount::Bind { .. }) => Some(Origin::Context),
            (None, _) => None,
        };
        match &mut mount {
            Mount::Bind { target, .. } | Mount::Cache { target, .. } | Mount::Tmpfs { target, .. } => {
                *target = absolute(&state.working_dir, target);
            }
            Mount::Secret { target, .. } | Mount::Ssh { target, .. } => {
                *target = target.as_ref().map(|target| absolute(&state.working_dir, target));
            }
        }
        Ok(MountAction { mount, from })
    }
}

/// What is executed, and the file that it is when its heredoc says what runs it.
fn command(line: &CommandLine, heredocs: &[Heredoc], shell: &[String]) -> (Vec<String>, Option<Script>) {
    let (CommandLine::Shell(text), Some(first)) = (line, heredocs.first()) else { return (argv(line, shell), None) };
    let with_shell = |text: String| shell.iter().cloned().chain([text]).collect();
    let is_alone = heredocs.len() == 1 && is_heredoc(&text.value);
    if !is_alone {
        // The shell knows heredocs; it gets them as they were written.
        let mut whole = text.value.clone();
        for heredoc in heredocs {
            whole.push('\n');
            whole.push_str(&heredoc.body.value);
            whole.push_str(&heredoc.name);
        }
        return (with_shell(whole), None);
    }
    let content = first.content();
    if !content.starts_with("#!") {
        return (with_shell(content), None);
    }
    let path = format!("{SCRIPTS}/{}", first.name.replace('/', "_"));
    (vec![path.clone()], Some(Script { path, content }))
}
