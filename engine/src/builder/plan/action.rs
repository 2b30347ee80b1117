//! What one step does, with everything expanded.

use serde::{Deserialize, Serialize};

use super::{ImageSource, mode::Mode};
use crate::builder::dockerfile::mount::Mount;
use crate::builder::source::Position;
use crate::image::digest::Digest;

/// One step of a stage: an instruction, or a trigger of its base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Where it stands; for a trigger of a base image, where the FROM does.
    pub position: Position,
    /// The instruction, by its index in the Dockerfile.
    pub instruction: usize,
    /// How it is written, for people; of a long one, the beginning.
    pub written: String,
    /// How it reads when it is expanded, for the history; of a long one, the beginning.
    pub text: String,
    /// Whether it comes from an ONBUILD of the base.
    pub is_trigger: bool,
    /// What it does.
    pub action: Action,
    /// All that its result depends on besides the step before it and what it says itself.
    pub inputs: Vec<Input>,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Runs a command; its changes are a layer.
    Run(Box<RunAction>),
    /// Copies files; they are a layer.
    Copy(Box<CopyAction>),
    /// Sets the working directory, and makes it when it is not there: then it is a layer.
    Workdir(String),
    /// Declares arguments: names, and values where there are any.
    Arguments(Vec<(String, Option<String>)>),
    /// Sets variables of the image.
    Environment(Vec<(String, String)>),
    /// Sets labels of the image.
    Labels(Vec<(String, String)>),
    /// Sets the user; names are looked up in the image when something runs.
    User(String),
    /// Sets the shell of commands in shell form.
    Shell(Vec<String>),
    /// Adds ports, as in `80/tcp`.
    Expose(Vec<String>),
    /// Adds volumes.
    Volumes(Vec<String>),
    /// Sets the signal that ends a container.
    StopSignal(String),
    /// Sets how a container is probed.
    Healthcheck(HealthcheckAction),
    /// Adds a trigger for builds on top of this one.
    Onbuild(String),
    /// Sets the first part of the command.
    Entrypoint(Vec<String>),
    /// Sets the last part of the command.
    Cmd(Vec<String>),
    /// Sets the author.
    Author(String),
}

/// A command that a build runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAction {
    /// The command with its arguments; the shell is among them.
    pub argv: Vec<String>,
    /// A file that must be there for it: a heredoc that says itself what runs it.
    pub script: Option<Script>,
    /// What is mounted.
    pub mounts: Vec<MountAction>,
    /// Which network it has.
    pub network: Network,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// What is added to its environment and must not change its key: proxies.
    pub proxy: Vec<(String, String)>,
    /// Where it starts.
    pub working_dir: String,
    /// Whom it runs as; empty for the base's own.
    pub user: String,
}

/// Something that is mounted for a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAction {
    /// What it is; its target is absolute.
    pub mount: Mount,
    /// Where its files are, when it has some to start with.
    pub from: Option<Origin>,
}

/// A file for one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Where the command finds it.
    pub path: String,
    /// What is in it; it is executable.
    pub content: String,
}

/// The network of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// What builds have unless told otherwise.
    #[default]
    Default,
    /// The loopback interface only.
    None,
}

/// Files that are copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyAction {
    /// Whether it is ADD, which also downloads and unpacks.
    pub is_add: bool,
    /// Where paths are looked for.
    pub from: Origin,
    /// What is copied.
    pub sources: Vec<CopyFrom>,
    /// Where to: absolute, with a slash behind it when it is a folder by its name.
    pub destination: String,
    /// The owner, as `user[:group]` by names or numbers; looked up in the image.
    pub chown: Option<String>,
    /// The mode.
    pub chmod: Option<Mode>,
    /// Whether the layer needs nothing below it.
    pub link: bool,
    /// Whether folders of the sources' paths are made.
    pub parents: bool,
    /// Patterns of what is left out, as in `.dockerignore`.
    pub exclude: Vec<String>,
    /// The digest that a download must have.
    pub checksum: Option<String>,
    /// Whether `.git` is kept.
    pub keep_git_dir: bool,
    /// Whether archives are unpacked; without it local ones are and downloads are not.
    pub unpack: Option<bool>,
}

/// Where paths of a copy or a mount are looked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The main context.
    Context,
    /// A context with a name.
    Named(String),
    /// A stage, by its index.
    Stage(usize),
    /// An image.
    Image(ImageSource),
}

/// One thing that is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyFrom {
    /// A path or pattern, relative to the root of its origin.
    Path(String),
    /// A file of the Dockerfile itself.
    Inline {
        /// Its name.
        name: String,
        /// What is in it.
        content: String,
    },
    /// A download.
    Url(String),
    /// A repository.
    Git {
        /// Its address.
        remote: String,
        /// Branch, tag or commit.
        reference: Option<String>,
        /// Folder in it.
        folder: Option<String>,
    },
}

/// How a container is probed; durations in nanoseconds, 0 for the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthcheckAction {
    /// `NONE`, `CMD` with words, or `CMD-SHELL` with a text.
    pub test: Vec<String>,
    /// Time between two probes.
    pub interval_nanos: u64,
    /// How long a probe may take.
    pub timeout_nanos: u64,
    /// Time in which failures do not count.
    pub start_period_nanos: u64,
    /// Time between two probes in that time.
    pub start_interval_nanos: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
}

/// Something that a step's result depends on, by its content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Files of a context; `context` is its name, nothing for the main one.
    Files {
        /// The context.
        context: Option<String>,
        /// Paths and patterns.
        sources: Vec<String>,
        /// Patterns of what is left out.
        exclude: Vec<String>,
    },
    /// Files of another stage.
    Stage {
        /// Its index.
        stage: usize,
        /// Paths and patterns.
        sources: Vec<String>,
    },
    /// Files of an image.
    Image {
        /// The image.
        image: ImageSource,
        /// Paths and patterns.
        sources: Vec<String>,
    },
    /// A download.
    Url {
        /// Its address.
        url: String,
        /// The digest that it must have.
        checksum: Option<String>,
    },
    /// A commit of a repository.
    Git {
        /// Its address.
        remote: String,
        /// Branch, tag or commit.
        reference: Option<String>,
        /// The commit that it must be.
        checksum: Option<String>,
    },
    /// Text of the Dockerfile.
    Inline {
        /// Its digest.
        digest: Digest,
    },
}
