//! The build's question and answers in the contract's types.

use super::verdict::{Answer, BuildChange, Refusal, Verdict, Warning};
use super::{
    BuildAction, BuildBase, BuildCopy, BuildCopySource, BuildImage, BuildMount, BuildOrigin, BuildRequest, BuildRun,
    BuildStage, BuildStep,
};
use crate::bindings::build;

impl From<&BuildRequest> for build::Request {
    fn from(request: &BuildRequest) -> build::Request {
        build::Request {
            dockerfile: request.dockerfile.clone(),
            stages: request.stages.iter().map(stage).collect(),
            target: request.target,
            platform: request.platform.clone(),
            build_args: request.build_args.clone(),
            labels: request.labels.clone(),
            context: build::ContextSummary {
                files: request.context.files,
                bytes: request.context.bytes,
                names: request.context.names.clone(),
                is_complete: request.context.is_complete,
            },
            extensions: Vec::new(),
        }
    }
}

fn stage(stage: &BuildStage) -> build::Stage {
    build::Stage {
        index: stage.index,
        name: stage.name.clone(),
        line: stage.line,
        column: stage.column,
        base: match &stage.base {
            BuildBase::Scratch => build::Base::Scratch,
            BuildBase::Image(of) => build::Base::Image(image(of)),
            BuildBase::Stage(index) => build::Base::Stage(*index),
            BuildBase::Context(name) => build::Base::Context(name.clone()),
        },
        platform: stage.platform.clone(),
        steps: stage.steps.iter().map(step).collect(),
        user: stage.user.clone(),
    }
}

fn image(image: &BuildImage) -> build::SourceImage {
    build::SourceImage {
        reference: image.reference.clone(),
        digest: image.digest.clone(),
        is_pinned: image.is_pinned,
        platform: image.platform.clone(),
    }
}

fn origin(origin: &BuildOrigin) -> build::Origin {
    match origin {
        BuildOrigin::Context => build::Origin::Context,
        BuildOrigin::Named(name) => build::Origin::Named(name.clone()),
        BuildOrigin::Stage(index) => build::Origin::Stage(*index),
        BuildOrigin::Image(of) => build::Origin::Image(image(of)),
    }
}

fn step(step: &BuildStep) -> build::Step {
    build::Step {
        line: step.line,
        column: step.column,
        text: step.text.clone(),
        is_trigger: step.is_trigger,
        action: match &step.action {
            BuildAction::Run(of) => build::Action::Run(run(of)),
            BuildAction::Copy(of) => build::Action::Copy(copy(of)),
            BuildAction::Arguments(names) => build::Action::Arguments(names.clone()),
            BuildAction::Environment(pairs) => build::Action::Environment(pairs.clone()),
            BuildAction::Labels(pairs) => build::Action::Labels(pairs.clone()),
            BuildAction::User(user) => build::Action::User(user.clone()),
            BuildAction::Other(name) => build::Action::Other(name.clone()),
        },
    }
}

fn run(run: &BuildRun) -> build::Run {
    let mount = |mount: &BuildMount| build::Mount {
        kind: mount.kind.clone(),
        target: mount.target.clone(),
        from: mount.from.as_ref().map(origin),
    };
    build::Run {
        argv: run.argv.clone(),
        script: run.script.clone(),
        mounts: run.mounts.iter().map(mount).collect(),
        network: run.network.clone(),
        working_dir: run.working_dir.clone(),
        user: run.user.clone(),
    }
}

fn copy(copy: &BuildCopy) -> build::CopiedFiles {
    let source = |source: &BuildCopySource| match source {
        BuildCopySource::Path(path) => build::CopySource::Path(path.clone()),
        BuildCopySource::Inline(name) => build::CopySource::Inline(name.clone()),
        BuildCopySource::Url(url) => build::CopySource::Url(url.clone()),
        BuildCopySource::Git(remote) => build::CopySource::Git(remote.clone()),
    };
    build::CopiedFiles {
        is_add: copy.is_add,
        from: origin(&copy.from),
        sources: copy.sources.iter().map(source).collect(),
        destination: copy.destination.clone(),
        chown: copy.chown.clone(),
        checksum: copy.checksum.clone(),
    }
}

/// Takes over an answer.
///
/// # Errors
/// A change of a later contract that this host does not know.
pub(crate) fn answer(verdict: build::Verdict) -> Result<Answer, String> {
    let warning = |of: build::BuildWarning| Warning { code: of.code, message: of.message, line: of.line };
    let warnings = verdict.warnings.into_iter().map(warning).collect();
    let verdict = match verdict.decision {
        build::Decision::Allow => Verdict::Allow,
        build::Decision::Deny(of) => {
            Verdict::Deny(Refusal { code: of.code, reason: of.reason, hint: of.hint, line: of.line })
        }
        build::Decision::Change(changes) => {
            Verdict::Change(changes.into_iter().map(change).collect::<Result<_, String>>()?)
        }
    };
    Ok(Answer { verdict, warnings })
}

fn change(change: build::Change) -> Result<BuildChange, String> {
    Ok(match change {
        build::Change::AddLabel((name, value)) => BuildChange::AddLabel { name, value },
        build::Change::PinDigest((reference, digest)) => BuildChange::PinDigest { reference, digest },
        build::Change::ForceUser(user) => BuildChange::ForceUser(user),
        build::Change::Other((name, _)) => return Err(format!("this host knows no change `{name:.80}`")),
    })
}
