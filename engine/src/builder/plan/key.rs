//! Keys of the cache: a digest over everything that a step's result depends on, by content and never by time. Two steps
//! with the same key have the same result, whichever build they are part of.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Action, Base, Input, Origin, Plan, Stage, Step};
use crate::builder::dockerfile::mount::Mount;
use crate::image::digest::{Digest, Hasher};

/// Changes when keys mean something else, so that no old result is taken for a new one.
const VERSION: &str = "ampoule build key 1";

/// The keys of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageKeys {
    /// The index of the stage in the Dockerfile.
    pub index: usize,
    /// What stands for its base.
    pub base: Digest,
    /// One for each step.
    pub steps: Vec<Digest>,
}

impl StageKeys {
    /// What stands for the finished stage.
    pub fn last(&self) -> &Digest {
        self.steps.last().unwrap_or(&self.base)
    }
}

impl Plan {
    /// The keys of all stages, in the order of the plan. `content` tells the digest of what an input holds now; it is
    /// asked for base images, files, downloads and commits, and never for stages, whose own keys are used.
    ///
    /// # Errors
    /// Whatever `content` fails with.
    pub fn keys<E>(&self, mut content: impl FnMut(&Input) -> Result<Digest, E>) -> Result<Vec<StageKeys>, E> {
        let mut finished: BTreeMap<usize, Digest> = BTreeMap::new();
        let mut keys = Vec::new();
        for stage in &self.stages {
            let base = base_key(stage, &finished, &mut content)?;
            let mut last = base.clone();
            let mut steps = Vec::new();
            for step in &stage.steps {
                let mut inputs = Vec::new();
                for input in &step.inputs {
                    inputs.push(match input {
                        Input::Inline { digest } => digest.clone(),
                        Input::Stage { stage, .. } => stage_key(&finished, *stage),
                        other => content(other)?,
                    });
                }
                last = step_key(&last, step, &inputs);
                steps.push(last.clone());
            }
            finished.insert(stage.index, last);
            keys.push(StageKeys { index: stage.index, base, steps });
        }
        Ok(keys)
    }
}

/// The key of a step from that of the step before it and the contents of its inputs, in their order.
pub fn step_key(before: &Digest, step: &Step, inputs: &[Digest]) -> Digest {
    let mut action = step.action.clone();
    match &mut action {
        Action::Run(run) => {
            // A proxy is how something was reached, not what it was.
            run.proxy.clear();
            for mount in &mut run.mounts {
                if let Mount::Bind { from, .. } | Mount::Cache { from, .. } = &mut mount.mount {
                    (*from, mount.from) = (None, None);
                }
            }
        }
        // By which name files were found is of no matter: what they are is among the inputs.
        Action::Copy(copy) => copy.from = Origin::Context,
        _ => {}
    }
    digest_of(&("step", before, &action, inputs))
}

fn base_key<E>(
    stage: &Stage,
    finished: &BTreeMap<usize, Digest>,
    content: &mut impl FnMut(&Input) -> Result<Digest, E>,
) -> Result<Digest, E> {
    let all = || vec!["/".to_owned()];
    let digest = match &stage.base {
        Base::Scratch => None,
        Base::Stage(base) => Some(stage_key(finished, *base)),
        Base::Image(image) => Some(content(&Input::Image { image: image.clone(), sources: all() })?),
        Base::Context(name) => {
            let exclude = Vec::new();
            Some(content(&Input::Files { context: Some(name.clone()), sources: all(), exclude })?)
        }
    };
    Ok(digest_of(&("base", &stage.platform, digest)))
}

/// The plan's order gives every stage after those that it needs.
fn stage_key(finished: &BTreeMap<usize, Digest>, stage: usize) -> Digest {
    finished.get(&stage).cloned().unwrap_or_else(|| digest_of(&("unplanned stage", stage)))
}

/// A digest of a value's JSON, which is the same for equal values: structures are written in the order of their
/// fields, and there are no maps without an order in a plan.
fn digest_of(value: &impl Serialize) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(VERSION.as_bytes());
    hasher.update(&serde_json::to_vec(value).expect("plain data can be written"));
    hasher.finish()
}
