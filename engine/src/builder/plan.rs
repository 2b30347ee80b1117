//! What a build will do, before it does it: only the stages that the target needs, in the order of their dependencies,
//! each a row of steps with everything expanded and every input named. A plan is plain data: policies read it, the
//! cache takes its keys from it, and what runs it needs nothing else but the base images and the contexts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use action::{
    Action, CopyAction, CopyFrom, HealthcheckAction, Input, MountAction, Network, Origin, RunAction, Script, Step,
};
pub use globals::{Globals, Resolved};
pub use platform::Platform;

use super::dockerfile::Dockerfile;
use super::source::{Complaint, Position, Source, Span};
use crate::image::digest::Digest;
use crate::image::reference::Reference;

mod action;
mod copy;
mod globals;
pub mod key;
mod mode;
mod platform;
mod port;
mod run;
mod scope;
mod stages;
mod steps;

/// Most stages.
pub const STAGES_MAX: usize = 1000;
/// Most steps of all stages, those that ONBUILD adds counted.
pub const STEPS_MAX: usize = 20_000;
/// Most ONBUILD triggers that a base image can have.
pub const TRIGGERS_MAX: usize = 256;
/// Longest environment of a stage, in bytes.
pub const ENVIRONMENT_BYTES_MAX: usize = 1 << 20;
/// Most bytes of all environments, commands and files in a plan.
pub const PLAN_BYTES_MAX: usize = 64 << 20;

/// What a build was asked for besides its Dockerfile.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stage to build; the last one without it.
    pub target: Option<String>,
    /// Values of arguments.
    pub build_args: BTreeMap<String, String>,
    /// The platform that the image is for.
    pub platform: Platform,
    /// The platform that the build runs on.
    pub build_platform: Platform,
    /// Contexts by name, besides the main one.
    pub contexts: BTreeMap<String, NamedContext>,
    /// Whether stages that the target does not need are planned too; for checks.
    pub all_stages: bool,
    /// What is known of base images. A plan can be made without; what depends on it is then marked as such.
    pub bases: BTreeMap<ImageSource, BaseFacts>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            target: None,
            build_args: BTreeMap::new(),
            platform: Platform::own(),
            build_platform: Platform::own(),
            contexts: BTreeMap::new(),
            all_stages: false,
            bases: BTreeMap::new(),
        }
    }
}

/// What a name stands for that was given with `--build-context`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedContext {
    /// A folder.
    Folder(String),
    /// An image.
    Image(String),
}

/// An image for a platform.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageSource {
    /// Its canonical name, with a digest when it was pinned.
    pub reference: String,
    /// For which platform.
    pub platform: Platform,
}

impl ImageSource {
    /// The name taken apart.
    pub fn parsed(&self) -> Option<Reference> {
        Reference::parse(&self.reference).ok()
    }
}

/// What a plan needs to know of a base image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseFacts {
    /// Its content.
    pub digest: Digest,
    /// The platform that it really is for.
    pub platform: Platform,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub working_dir: Option<String>,
    /// Its user.
    pub user: Option<String>,
    /// Its shell.
    pub shell: Vec<String>,
    /// Its ONBUILD triggers, as written.
    pub on_build: Vec<String>,
}

/// A build as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The stages in an order in which each comes after all that it needs.
    pub stages: Vec<Stage>,
    /// The index, in the Dockerfile, of the stage that becomes the image.
    pub target: usize,
    /// The platform that it is for.
    pub platform: Platform,
    /// What was noticed on the way, for checks.
    #[serde(skip)]
    pub notes: Vec<Note>,
}

/// One stage of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its index in the Dockerfile, from 0.
    pub index: usize,
    /// Its name in lower case.
    pub name: Option<String>,
    /// Where its FROM stands.
    pub position: Position,
    /// What it starts with.
    pub base: Base,
    /// The platform that it is for.
    pub platform: Platform,
    /// Indices of the stages that must be done before it.
    pub needs: Vec<usize>,
    /// What is done, in this order.
    pub steps: Vec<Step>,
    /// Whether the base's own config was known, so that everything that depends on it is as it will be.
    pub is_base_known: bool,
    /// What the image would run as.
    pub user: String,
    /// Where the image would start.
    pub working_dir: String,
    /// What the image would have in its environment.
    pub environment: Vec<(String, String)>,
}

/// What a stage starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An image.
    Image(ImageSource),
    /// A stage, by its index.
    Stage(usize),
    /// A named context that is a folder.
    Context(String),
}

/// Something that was noticed while planning and is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where.
    pub span: Span,
    /// The instruction, by its index in the Dockerfile.
    pub instruction: usize,
    /// What.
    pub kind: NoteKind,
}

/// What was noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// A variable that is not defined, and the name that may have been meant.
    UndefinedVariable(String, Option<String>),
    /// The same in FROM, where only global arguments are defined.
    UndefinedArgument(String, Option<String>),
    /// A WORKDIR that is relative to a folder that the Dockerfile does not name.
    RelativeWorkdir(String),
    /// A port with an address or a port of the host.
    PortMapping(String),
    /// A protocol of a port that is not in lower case.
    PortCasing(String),
    /// A base that is for another platform: its name, the platform wanted, the one that it is for.
    BasePlatform(String, Platform, Platform),
}

/// Plans a build.
///
/// # Errors
/// What cannot be built: a variable that must be set, a stage or an image that there cannot be, stages that need each
/// other, a value that an instruction cannot have, more steps than a bound allows.
pub fn plan(source: &Source, dockerfile: &Dockerfile, options: &Options) -> Result<Plan, Complaint> {
    let globals = Globals::read(dockerfile, options)?;
    let graph = stages::Graph::read(dockerfile, options, &globals)?;
    let target = graph.target(options)?;
    let order = graph.order(target, options.all_stages)?;
    let mut planner = steps::Planner::new(source, dockerfile, options, &globals, &graph);
    let mut done: BTreeMap<usize, steps::Finished> = BTreeMap::new();
    for index in &order {
        let finished = planner.stage(*index, &done)?;
        done.insert(*index, finished);
    }
    let mut notes = graph.notes.clone();
    notes.extend(planner.notes);
    let platform = done.get(&target).map_or_else(|| options.platform.clone(), |stage| stage.stage.platform.clone());
    let stages = order.iter().filter_map(|index| done.remove(index)).map(|finished| finished.stage).collect();
    Ok(Plan { stages, target, platform, notes })
}

impl Plan {
    /// The images that must be there before anything runs, each once.
    pub fn images(&self) -> Vec<&ImageSource> {
        let bases = self.stages.iter().filter_map(|stage| match &stage.base {
            Base::Image(image) => Some(image),
            _ => None,
        });
        let inputs = self.stages.iter().flat_map(|stage| &stage.steps).flat_map(|step| &step.inputs);
        let inputs = inputs.filter_map(|input| match input {
            Input::Image { image, .. } => Some(image),
            _ => None,
        });
        let mut images: Vec<&ImageSource> = bases.chain(inputs).collect();
        images.sort();
        images.dedup();
        images
    }
}
