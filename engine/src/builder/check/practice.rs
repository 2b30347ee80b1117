//! What guides to Dockerfiles agree on, and Docker does not check.

use super::packages::{Manager, Use, uses};
use super::{Case, Rule};
use crate::builder::context::{SelectError, Selection};
use crate::builder::dockerfile::Command;
use crate::builder::dockerfile::mount::Mount;
use crate::builder::ignore::Ignore;
use crate::builder::plan::{Action, Base, CopyAction, CopyFrom, Origin, RunAction, Stage, Step};

impl Case<'_> {
    pub(super) fn practice(&mut self) {
        let plan = self.plan;
        for stage in &plan.stages {
            self.base(stage);
            for step in &stage.steps {
                match &step.action {
                    Action::Run(run) => self.packages(step, run),
                    Action::Copy(copy) => {
                        self.downloads(step, copy);
                        self.sources(step, copy);
                    }
                    _ => {}
                }
            }
        }
        if let Some(stage) = plan.stages.iter().find(|stage| stage.index == plan.target) {
            self.user(stage);
        }
    }

    /// The FROM of a stage, by its index in the Dockerfile.
    fn start_of(&self, stage: &Stage) -> Option<usize> {
        let mut froms = self.dockerfile.instructions.iter().enumerate();
        let is_from = |(_, instruction): &(usize, &crate::builder::dockerfile::Instruction)| {
            matches!(instruction.command, Command::From(_))
        };
        froms.by_ref().filter(is_from).nth(stage.index).map(|(index, _)| index)
    }

    fn base(&mut self, stage: &Stage) {
        let Base::Image(image) = &stage.base else { return };
        let Some(reference) = image.parsed().filter(|reference| reference.digest().is_none()) else { return };
        let Some(index) = self.start_of(stage) else { return };
        let Command::From(from) = &self.dockerfile.instructions[index].command else { return };
        let span = from.base.span;
        let message = match reference.tag() {
            Some("latest") | None => format!("The base image {reference} is another one whenever it is published anew"),
            Some(_) => format!("The base image {reference} is not pinned: its tag can be moved to other files"),
        };
        self.find(index, span, Rule::UnpinnedBase, message);
    }

    fn packages(&mut self, step: &Step, run: &RunAction) {
        let mut text = run.argv.join(" ");
        if let Some(script) = &run.script {
            text = script.content.clone();
        }
        let found = uses(&text);
        let span = self.dockerfile.instructions[step.instruction].span;
        let does = |manager: Manager, what: Use| found.contains(&(manager, what));
        let (updates, installs) = (does(Manager::Apt, Use::Update), does(Manager::Apt, Use::Install));
        if updates != installs {
            let message = if updates {
                "apt-get update stands in a RUN without apt-get install"
            } else {
                "apt-get install stands in a RUN without apt-get update"
            };
            self.find(step.instruction, span, Rule::AptUpdateAndInstall, message);
        }
        for (manager, lists) in
            [(Manager::Apt, "/var/lib/apt"), (Manager::Dnf, "/var/cache"), (Manager::Apk, "/var/cache/apk")]
        {
            let is_cached = run.mounts.iter().any(|mount| {
                let is_apart = matches!(mount.mount, Mount::Cache { .. } | Mount::Tmpfs { .. });
                is_apart && mount.mount.target().is_some_and(|target| target.starts_with(lists))
            });
            if does(manager, Use::Install) && !does(manager, Use::Clean) && !is_cached {
                let message = format!("The lists of packages that {} keeps stay in the layer", manager.name());
                self.find(step.instruction, span, Rule::PackageListsKept, message);
            }
        }
    }

    fn downloads(&mut self, step: &Step, copy: &CopyAction) {
        let is_loose = copy.checksum.is_none() && copy.sources.iter().any(|source| matches!(source, CopyFrom::Url(_)));
        if is_loose {
            let span = self.dockerfile.instructions[step.instruction].span;
            self.find(step.instruction, span, Rule::DownloadWithoutChecksum, "ADD takes whatever the address gives");
        }
    }

    /// Sources that are neither in the context nor left out of it.
    fn sources(&mut self, step: &Step, copy: &CopyAction) {
        let Some(context) = self.context.filter(|_| copy.from == Origin::Context) else { return };
        for source in &copy.sources {
            let CopyFrom::Path(path) = source else { continue };
            // `**` is a pattern of --parents only, and its own affair.
            if copy.parents || context.ignored().excludes(path.trim_start_matches("./").trim_matches('/')) {
                continue;
            }
            let found: Result<Selection, SelectError> = context.select(path, &Ignore::default());
            if let Err(error) = found {
                let message = error.to_string().split('\n').next().unwrap_or_default().to_owned();
                let span = self.dockerfile.instructions[step.instruction].span;
                self.find(step.instruction, span, Rule::CopySourceMissing, message);
            }
        }
    }

    fn user(&mut self, stage: &Stage) {
        let user = stage.user.split(':').next().unwrap_or_default();
        if !matches!(user, "" | "root" | "0") {
            return;
        }
        let last = stage.steps.iter().rev().find(|step| matches!(step.action, Action::User(_)));
        let Some(index) = last.map(|step| step.instruction).or_else(|| self.start_of(stage)) else { return };
        let message = match (user, stage.is_base_known) {
            ("", false) => "The image runs as root, unless its base says otherwise",
            _ => "The image runs as root",
        };
        self.find(index, self.dockerfile.instructions[index].span, Rule::RunsAsRoot, message);
    }
}
