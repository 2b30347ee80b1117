//! A planned build as the question that policies are asked about it.

use std::collections::BTreeMap;

use ampoule_engine::builder::context::{Context, Kind};
use ampoule_engine::builder::plan::{
    Action, Base, CopyAction, CopyFrom, ImageSource, MountAction, Network, Options, Origin, Plan, RunAction, Stage,
    Step,
};
use ampoule_plugins::{
    BuildAction, BuildBase, BuildContext, BuildCopy, BuildCopySource, BuildImage, BuildMount, BuildOrigin,
    BuildRequest, BuildRun, BuildStage, BuildStep,
};

/// Most names of the context's files that policies see.
const CONTEXT_NAMES_MAX: usize = 1000;
/// Most bytes of those names together.
const CONTEXT_NAMES_BYTES_MAX: usize = 64 * 1024;

/// The question about a plan. Values of arguments are left out, since they may be secrets that no policy is to repeat.
pub fn request(dockerfile: &str, plan: &Plan, options: &Options, context: Option<&Context>) -> BuildRequest {
    let asker = Asker { options };
    BuildRequest {
        dockerfile: dockerfile.to_owned(),
        stages: plan.stages.iter().map(|stage| asker.stage(stage)).collect(),
        target: number(plan.target),
        platform: plan.platform.to_string(),
        build_args: options.build_args.keys().cloned().collect(),
        labels: labels(plan),
        context: context.map(summary).unwrap_or_default(),
    }
}

/// The labels of the target and of the stages below it, the later ones last word.
fn labels(plan: &Plan) -> Vec<(String, String)> {
    let mut chain = Vec::new();
    let mut index = Some(plan.target);
    // Stages come after what they need, so that no chain is longer than all of them.
    while let Some(stage) = index.and_then(|index| plan.stages.iter().find(|stage| stage.index == index)) {
        chain.push(stage);
        index = match stage.base {
            Base::Stage(below) if chain.len() < plan.stages.len() => Some(below),
            _ => None,
        };
    }
    let steps = chain.iter().rev().flat_map(|stage| &stage.steps);
    let pairs = steps.filter_map(|step| match &step.action {
        Action::Labels(pairs) => Some(pairs),
        _ => None,
    });
    let labels: BTreeMap<String, String> = pairs.flatten().cloned().collect();
    labels.into_iter().collect()
}

fn summary(context: &Context) -> BuildContext {
    let mut summary = BuildContext { is_complete: true, ..BuildContext::default() };
    let mut names_bytes = 0;
    for (path, entry) in context.entries().filter(|(_, entry)| entry.kind != Kind::Folder) {
        summary.files += 1;
        summary.bytes = summary.bytes.saturating_add(entry.size);
        names_bytes += path.len();
        summary.is_complete &= summary.names.len() < CONTEXT_NAMES_MAX && names_bytes <= CONTEXT_NAMES_BYTES_MAX;
        if summary.is_complete {
            summary.names.push(String::from_utf8_lossy(path).into_owned());
        }
    }
    summary
}

struct Asker<'a> {
    options: &'a Options,
}

impl Asker<'_> {
    fn stage(&self, stage: &Stage) -> BuildStage {
        BuildStage {
            index: number(stage.index),
            name: stage.name.clone(),
            line: number(stage.position.line),
            column: number(stage.position.column),
            base: match &stage.base {
                Base::Scratch => BuildBase::Scratch,
                Base::Image(image) => BuildBase::Image(self.image(image)),
                Base::Stage(index) => BuildBase::Stage(number(*index)),
                Base::Context(name) => BuildBase::Context(name.clone()),
            },
            platform: stage.platform.to_string(),
            steps: stage.steps.iter().map(|step| self.step(step)).collect(),
            user: stage.user.clone(),
        }
    }

    fn image(&self, image: &ImageSource) -> BuildImage {
        let written = image.parsed().and_then(|reference| reference.digest().map(ToString::to_string));
        let is_pinned = written.is_some();
        let resolved = || self.options.bases.get(image).map(|facts| facts.digest.to_string());
        BuildImage {
            reference: image.reference.clone(),
            digest: written.or_else(resolved),
            is_pinned,
            platform: image.platform.to_string(),
        }
    }

    fn origin(&self, origin: &Origin) -> BuildOrigin {
        match origin {
            Origin::Context => BuildOrigin::Context,
            Origin::Named(name) => BuildOrigin::Named(name.clone()),
            Origin::Stage(index) => BuildOrigin::Stage(number(*index)),
            Origin::Image(image) => BuildOrigin::Image(self.image(image)),
        }
    }

    fn step(&self, step: &Step) -> BuildStep {
        let action = match &step.action {
            Action::Run(run) => BuildAction::Run(self.run(run)),
            Action::Copy(copy) => BuildAction::Copy(self.copy(copy)),
            Action::Arguments(pairs) => BuildAction::Arguments(pairs.iter().map(|(name, _)| name.clone()).collect()),
            Action::Environment(pairs) => BuildAction::Environment(pairs.clone()),
            Action::Labels(pairs) => BuildAction::Labels(pairs.clone()),
            Action::User(user) => BuildAction::User(user.clone()),
            _ => BuildAction::Other(step.text.split_whitespace().next().unwrap_or_default().to_owned()),
        };
        let text = match &action {
            BuildAction::Arguments(names) => format!("ARG {}", names.join(" ")),
            _ => step.text.clone(),
        };
        let (line, column) = (number(step.position.line), number(step.position.column));
        BuildStep { line, column, text, is_trigger: step.is_trigger, action }
    }

    fn run(&self, run: &RunAction) -> BuildRun {
        BuildRun {
            argv: run.argv.clone(),
            script: run.script.as_ref().map(|script| script.content.clone()),
            mounts: run.mounts.iter().map(|mount| self.mount(mount)).collect(),
            network: match run.network {
                Network::Default => "default".to_owned(),
                Network::None => "none".to_owned(),
            },
            working_dir: run.working_dir.clone(),
            user: run.user.clone(),
        }
    }

    fn mount(&self, mount: &MountAction) -> BuildMount {
        BuildMount {
            kind: mount.mount.kind().to_owned(),
            target: mount.mount.target().unwrap_or_default().to_owned(),
            from: mount.from.as_ref().map(|origin| self.origin(origin)),
        }
    }

    fn copy(&self, copy: &CopyAction) -> BuildCopy {
        let source = |source: &CopyFrom| match source {
            CopyFrom::Path(path) => BuildCopySource::Path(path.clone()),
            CopyFrom::Inline { name, .. } => BuildCopySource::Inline(name.clone()),
            CopyFrom::Url(url) => BuildCopySource::Url(url.clone()),
            CopyFrom::Git { remote, .. } => BuildCopySource::Git(remote.clone()),
        };
        BuildCopy {
            is_add: copy.is_add,
            from: self.origin(&copy.from),
            sources: copy.sources.iter().map(source).collect(),
            destination: copy.destination.clone(),
            chown: copy.chown.clone(),
            checksum: copy.checksum.clone(),
        }
    }
}

/// Lines and indices are far below what this could cut off.
fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use ampoule_engine::builder::dockerfile;
    use ampoule_engine::builder::plan::plan;
    use ampoule_engine::builder::source::Source;

    use super::*;

    fn asked(text: &str, build_args: &[(&str, &str)]) -> BuildRequest {
        let source = Source::new("Dockerfile", text);
        let pairs = build_args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let options = Options { build_args: pairs.collect(), ..Options::default() };
        let file = dockerfile::parse(&source).expect("it is a Dockerfile");
        let plan = plan(&source, &file, &options).expect("it can be planned");
        request("Dockerfile", &plan, &options, None)
    }

    #[test]
    fn values_of_arguments_are_not_shown() {
        let request = asked("FROM scratch\nARG TOKEN=lesson\nARG OTHER\n", &[("TOKEN", "geheim"), ("OTHER", "geheim")]);
        let text = serde_json::to_string(&request).expect("it is JSON");
        assert!(!text.contains("geheim") && !text.contains("lesson"), "{text}");
        assert_eq!(request.build_args, ["OTHER", "TOKEN"]);
    }

    #[test]
    fn every_step_has_its_place_and_every_image_its_name() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(
            "FROM debian:12 AS a\nLABEL x=1 y=1\nFROM a\nLABEL x=2\nCOPY --from=busybox@{digest} /bin /bin\n\
             RUN --mount=type=cache,target=/c --network=none true\nUSER app\n"
        );
        let request = asked(&text, &[]);
        let [first, second] = &request.stages[..] else { panic!("two stages: {request:?}") };
        let BuildBase::Image(image) = &first.base else { panic!("an image: {first:?}") };
        assert_eq!((image.reference.as_str(), image.is_pinned), ("docker.io/library/debian:12", false));
        let lines: Vec<u32> = second.steps.iter().map(|step| step.line).collect();
        assert_eq!((lines, second.user.as_str()), (vec![4, 5, 6, 7], "app"));
        let BuildAction::Copy(BuildCopy { from: BuildOrigin::Image(image), .. }) = &second.steps[1].action else {
            panic!("a copy from an image: {second:?}")
        };
        assert_eq!((image.digest.as_deref(), image.is_pinned), (Some(digest.as_str()), true));
        let BuildAction::Run(run) = &second.steps[2].action else { panic!("a command: {second:?}") };
        assert_eq!(
            (run.network.as_str(), run.mounts[0].kind.as_str(), run.mounts[0].target.as_str()),
            ("none", "cache", "/c")
        );
        assert_eq!(request.labels, [("x".to_owned(), "2".to_owned()), ("y".to_owned(), "1".to_owned())]);
    }
}
