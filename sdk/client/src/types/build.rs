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
    /// What is made is no younger than this, in seconds since 1970, and depends on no clock.
    pub source_date_epoch: Option<i64>,
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
    /// How it reads.
    pub text: String,
    /// Its line in the Dockerfile, from 1.
    pub line: usize,
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
    /// A base image is being brought in from its registry.
    Pulling {
        /// Its name.
        reference: String,
    },
    /// What will be done.
    Planned {
        /// All steps.
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
        /// The line of the Dockerfile that it is about.
        line: Option<usize>,
    },
}
