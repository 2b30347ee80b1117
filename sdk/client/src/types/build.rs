//! Builds: what is asked for besides the context, and what is told while one goes on.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Image, Problem};

/// A build, besides its context. Everything has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BuildRequest {
    /// Path of the Dockerfile in the context; `Dockerfile` without one.
    pub dockerfile: Option<String>,
    /// The text of the Dockerfile, when it is not in the context.
    pub dockerfile_text: Option<String>,
    /// The patterns of what is left out of the context, instead of those in `NAME.dockerignore` or `.dockerignore` of it.
    pub dockerignore_text: Option<String>,
    /// Names for the image.
    pub tags: Vec<String>,
    /// The stage to build; the last one without it.
    pub target: Option<String>,
    /// Values of arguments.
    pub build_args: BTreeMap<String, String>,
    /// Labels for the image, which win over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// Runs every step, also those that were run before.
    pub no_cache: bool,
    /// Asks the registries for the base images again, also for those that are here.
    pub pull: bool,
    /// What is made is no younger than this, in seconds since 1970, and depends on no clock.
    pub source_date_epoch: Option<i64>,
    /// Answers at once with the build, which goes on when whoever asked hangs up.
    pub detach: bool,
    /// What `RUN --mount=type=secret` may show, by its id, in base64. It is kept nowhere.
    pub secrets: BTreeMap<String, BuildSecret>,
}

/// The value of a secret in base64, which nothing that is written for people shows.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct BuildSecret(pub String);

impl fmt::Debug for BuildSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BuildSecret")
    }
}

/// A cache of builds: what `RUN --mount=type=cache` keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildCache {
    /// Its id in the Dockerfile. Several can have the same: of another owner, or for commands that wanted their own.
    pub id: String,
    /// The name of its folder.
    pub folder: String,
    /// What it takes on disk; absent as long as it is used for the first time.
    pub size_bytes: Option<u64>,
    /// When it was made.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub created: Option<Timestamp>,
    /// When it was used last.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used: Option<Timestamp>,
    /// Whether a command uses it now.
    pub in_use: bool,
}

/// The caches of builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildCacheList {
    /// All of them.
    pub caches: Vec<BuildCache>,
    /// What they take on disk together.
    pub size_bytes: u64,
    /// What they may take together; what was not used for the longest time goes first.
    pub size_bytes_max: u64,
}

/// Caches of builds that were removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildCachesRemoved {
    /// Those that are gone.
    pub removed: Vec<BuildCache>,
    /// Those that stay since a command uses them.
    pub kept: Vec<BuildCache>,
    /// What was freed on disk.
    pub freed_bytes: u64,
}

/// Where a build is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    /// Under way.
    Running,
    /// There is an image.
    Built,
    /// There is none.
    Failed,
    /// Somebody stopped it, or hung up.
    Cancelled,
}

impl BuildState {
    /// The name as it travels.
    pub fn as_str(self) -> &'static str {
        match self {
            BuildState::Running => "running",
            BuildState::Built => "built",
            BuildState::Failed => "failed",
            BuildState::Cancelled => "cancelled",
        }
    }
}

/// A build that is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Build {
    /// Its id.
    pub id: String,
    /// Where it is in its life.
    pub state: BuildState,
    /// The path of its Dockerfile.
    pub dockerfile: String,
    /// The names that it gives.
    pub tags: Vec<String>,
    /// The stage to build; the last one without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The token it came with; `local` for the unix socket.
    pub token: String,
    /// When it was taken.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// What it came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<BuildResult>,
    /// Why there is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Box<Problem>>,
    /// The place in the Dockerfile that the problem is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<BuildPlace>,
    /// Its steps; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<BuildStepStatus>>,
}

/// One page of builds, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuildList {
    /// The builds.
    pub builds: Vec<Build>,
    /// What `cursor` takes to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Where a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildStepState {
    /// Not begun.
    Waiting,
    /// Being run, or it was when the build ended.
    Started,
    /// Run before.
    Cached,
    /// Done.
    Done,
}

/// A step, and how far it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildStepStatus {
    /// The step.
    pub step: BuildStep,
    /// Where it is.
    pub state: BuildStepState,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
}

/// A step of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildStep {
    /// Its number over all stages, from 0.
    pub step: usize,
    /// Its stage: its name, or `stage-` and its index.
    pub stage: String,
    /// Its number in the stage, from 1.
    pub of_stage: usize,
    /// How many steps the stage has.
    pub stage_steps: usize,
    /// How it is written, in one line; of a long one, the beginning.
    pub text: String,
    /// Its line in the Dockerfile, from 1.
    pub line: usize,
}

/// A place in a Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildPlace {
    /// Its line, from 1.
    pub line: usize,
    /// Its column, from 1, in characters.
    pub column: usize,
    /// Its length in characters, with the ends of lines; nothing where an instruction as a whole is meant.
    pub length: Option<usize>,
}

/// What a build came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuildResult {
    /// The image.
    pub image: Image,
    /// The digest of its config.
    pub config_digest: String,
}

/// The data of one server-sent event of a build; its `event:` field names the same kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and the large one is the last")]
pub enum BuildEvent {
    /// A base image is being brought in from its registry, or what ADD downloads from its address.
    Pulling {
        /// Its name, or the address.
        reference: String,
    },
    /// What will be done. Comes several times when there are many steps.
    Planned {
        /// Some more steps.
        steps: Vec<BuildStep>,
    },
    /// Something that should be known, and that stops nothing.
    Warning {
        /// The step that it is about.
        step: Option<usize>,
        /// What.
        message: String,
    },
    /// A step is being run.
    Started {
        /// Which.
        step: usize,
    },
    /// A step was run before.
    Cached {
        /// Which.
        step: usize,
    },
    /// A command wrote something.
    Output {
        /// The step.
        step: usize,
        /// Whether to its standard error.
        is_error: bool,
        /// What; bytes that are no text are replaced.
        text: String,
        /// When, in milliseconds since the step was started.
        step_ms: u64,
    },
    /// A step is done.
    Done {
        /// Which.
        step: usize,
        /// How long it took, in milliseconds.
        wall_ms: u64,
    },
    /// The image is there. The last event.
    Built(BuildResult),
    /// Nothing was built. The last event.
    Failed {
        /// Why.
        problem: Box<Problem>,
        /// The place in the Dockerfile that it is about.
        place: Option<BuildPlace>,
    },
}
