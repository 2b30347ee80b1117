//! The question of the `build` hook: a build as it would be executed, as plain data.
//! These are the host's own types; `contract` turns them into the contract's, and serde into JSON for commands.

use serde::{Deserialize, Serialize};

pub(crate) mod apply;
pub(crate) mod contract;
pub(crate) mod docket;
pub(crate) mod verdict;

/// A build as it would be executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// Name of the Dockerfile.
    pub dockerfile: String,
    /// The stages in an order in which each comes after all that it needs.
    pub stages: Vec<BuildStage>,
    /// Index of the stage that becomes the image.
    pub target: u32,
    /// The platform that it is for.
    pub platform: String,
    /// Names of the arguments that were given, never their values.
    pub build_args: Vec<String>,
    /// Labels that the image will have by the target stage and by policies.
    pub labels: Vec<(String, String)>,
    /// The files that the build may use.
    pub context: BuildContext,
}

/// The files that a build may use, after `.dockerignore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildContext {
    /// How many files.
    pub files: u64,
    /// Bytes in all of them.
    pub bytes: u64,
    /// Paths of the first files in the order of bytes.
    pub names: Vec<String>,
    /// Whether `names` are all.
    pub is_complete: bool,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildStage {
    /// Its index in the Dockerfile, from 0.
    pub index: u32,
    /// Its name.
    pub name: Option<String>,
    /// The line of its FROM, from 1.
    pub line: u32,
    /// The column of its FROM, from 1.
    pub column: u32,
    /// What it starts with.
    pub base: BuildBase,
    /// The platform that it is for.
    pub platform: String,
    /// Its instructions.
    pub steps: Vec<BuildStep>,
    /// Whom its image would run as; empty when that is the base's own user and not known.
    pub user: String,
}

/// An image that a build starts with or copies from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildImage {
    /// Its canonical name, with tag or digest.
    pub reference: String,
    /// Digest of its manifest, when it is pinned or has been resolved.
    pub digest: Option<String>,
    /// Whether the reference itself says the digest.
    pub is_pinned: bool,
    /// For which platform.
    pub platform: String,
}

/// What a stage starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildBase {
    /// Nothing.
    Scratch,
    /// An image.
    Image(BuildImage),
    /// Another stage, by its index.
    Stage(u32),
    /// A named context.
    Context(String),
}

/// Where paths of a copy or a mount are looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildOrigin {
    /// The main context.
    Context,
    /// A named context.
    Named(String),
    /// A stage, by its index.
    Stage(u32),
    /// An image.
    Image(BuildImage),
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildStep {
    /// Its line, from 1.
    pub line: u32,
    /// Its column, from 1.
    pub column: u32,
    /// How it reads when it is expanded.
    pub text: String,
    /// Whether it comes from an ONBUILD of the base.
    pub is_trigger: bool,
    /// What it does.
    pub action: BuildAction,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildAction {
    /// Runs a command.
    Run(BuildRun),
    /// Copies files.
    Copy(BuildCopy),
    /// Declares arguments, by their names.
    Arguments(Vec<String>),
    /// Sets variables.
    Environment(Vec<(String, String)>),
    /// Sets labels.
    Labels(Vec<(String, String)>),
    /// Sets the user.
    User(String),
    /// Anything else: the instruction in capitals.
    Other(String),
}

/// A command that a build runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRun {
    /// The command with its arguments, the shell among them.
    pub argv: Vec<String>,
    /// The file that is executed, when the Dockerfile has it as a heredoc.
    pub script: Option<String>,
    /// What is mounted.
    pub mounts: Vec<BuildMount>,
    /// `default` or `none`.
    pub network: String,
    /// Where it starts.
    pub working_dir: String,
    /// Whom it runs as; empty for the base's own.
    pub user: String,
}

/// Something that is mounted for a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildMount {
    /// `bind`, `cache`, `tmpfs`, `secret` or `ssh`.
    pub kind: String,
    /// Absolute path; empty where it has none.
    pub target: String,
    /// Where its files are, when it has some to start with.
    pub from: Option<BuildOrigin>,
}

/// Files that are copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildCopy {
    /// Whether it is ADD.
    pub is_add: bool,
    /// Where paths are looked for.
    pub from: BuildOrigin,
    /// What is copied.
    pub sources: Vec<BuildCopySource>,
    /// Where to.
    pub destination: String,
    /// The owner, as written.
    pub chown: Option<String>,
    /// The digest that a download must have.
    pub checksum: Option<String>,
}

/// One thing that is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildCopySource {
    /// A path or pattern.
    Path(String),
    /// A file of the Dockerfile itself, by its name.
    Inline(String),
    /// A download.
    Url(String),
    /// A repository, by its address.
    Git(String),
}

impl BuildRequest {
    /// Every image that the build uses, where it is used: bases, and origins of copies and mounts.
    pub(crate) fn images_mut(&mut self) -> impl Iterator<Item = &mut BuildImage> {
        self.stages.iter_mut().flat_map(|stage| {
            let base = match &mut stage.base {
                BuildBase::Image(image) => Some(image),
                _ => None,
            };
            base.into_iter().chain(stage.steps.iter_mut().flat_map(|step| step.action.images_mut()))
        })
    }
}

impl BuildAction {
    fn images_mut(&mut self) -> Vec<&mut BuildImage> {
        let origins: Vec<&mut BuildOrigin> = match self {
            BuildAction::Run(run) => run.mounts.iter_mut().filter_map(|mount| mount.from.as_mut()).collect(),
            BuildAction::Copy(copy) => vec![&mut copy.from],
            _ => Vec::new(),
        };
        let image = |origin| match origin {
            &mut BuildOrigin::Image(ref mut image) => Some(image),
            _ => None,
        };
        origins.into_iter().filter_map(image).collect()
    }
}
