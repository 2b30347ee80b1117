//! Carries a plan out: stages side by side as far as none needs another, steps one after the other, each known from before
//! or run in a sandbox; and at the end one image under its names. Nothing is named before all of it is there; whoever
//! drops the future stops everything.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::context::{AppendError, Context, ContextError, SelectError};
use super::fetch::{Download, Downloads};
use super::ignore::Ignore;
use super::plan::{BaseFacts, ImageSource, Input, Plan, Platform, Stage, Step};
use super::source::Position;
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::store::{Caches, HeldImage, ImageSummary, StoreError, Workshop, WorkshopError};
use crate::runtime::RuntimeError;
use crate::spec::{Exit, Limits, Network};
use stage::Tree;

mod config;
mod copy;
mod mounts;
mod run;
mod stage;

/// Steps of one build that run at a time.
const STEPS_AT_ONCE: usize = 4;
/// Copies of all stages of one build at a time: each takes up to two workers.
const COPIES_AT_ONCE: usize = 2;

/// A build with all that it needs.
pub struct Build {
    /// What is done.
    pub plan: Plan,
    /// The files that it may use.
    pub contexts: Contexts,
    /// The images of `Plan::images`.
    pub images: BTreeMap<ImageSource, HeldImage>,
    /// What the image is called; it may have no name.
    pub names: Vec<Reference>,
    /// Labels besides those of the Dockerfile, which these win over.
    pub labels: BTreeMap<String, String>,
    /// What is made is no younger than this, in seconds since 1970, and depends on no clock.
    pub epoch: Option<i64>,
    /// Bounds of each RUN.
    pub limits: Limits,
    /// What was downloaded for it.
    pub downloads: Downloads,
    /// What a RUN reaches that asks for nothing else.
    pub network: Network,
    /// Whether steps that are known need not be run.
    pub uses_known_steps: bool,
    /// What `RUN --mount=type=secret` may show, by its id.
    pub secrets: BTreeMap<String, Secret>,
    /// What `RUN --mount=type=cache` keeps.
    pub caches: Arc<Caches>,
}

/// A value that is shown to commands of a build, and to nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Keeps a value.
    pub fn new(value: Vec<u8>) -> Secret {
        Secret(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

/// The files that a build may use.
#[derive(Clone, Debug)]
pub struct Contexts {
    /// The main context.
    pub main: Arc<Context>,
    /// Those with names.
    pub named: BTreeMap<String, Arc<Context>>,
}

/// What is told while a build goes on. Steps are numbered from 0 over all stages, in the order of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Comes first: what will be done.
    Planned {
        /// All steps.
        steps: Vec<StepInfo>,
    },
    /// Something that the user should know, and that stops nothing.
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
    /// A step was known.
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
}

/// A step, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// Its number.
    pub step: usize,
    /// Its stage: its name, or its index in the Dockerfile.
    pub stage: String,
    /// Its number in the stage, from 1.
    pub of_stage: usize,
    /// How many steps the stage has.
    pub stage_steps: usize,
    /// How it is written.
    pub text: String,
    /// Where it stands.
    pub position: Position,
}

/// An image that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// What it is.
    pub image: ImageSummary,
    /// The digest of its config.
    pub config_digest: Digest,
}

/// Why nothing was built, and where in the Dockerfile.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct BuildError {
    /// The step.
    pub step: Option<usize>,
    /// Where it stands.
    pub position: Option<Position>,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

/// What keeps a step, or a build, from being done.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A command did not end well.
    #[error("{}", ended(command, exit))]
    Command {
        /// The step as it is written.
        command: String,
        /// How it ended.
        exit: Box<Exit>,
    },
    /// Files are not there.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// Files cannot be read.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A worker or the launcher failed; its own sentence.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The store failed.
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
    /// A cache cannot be used.
    #[error(transparent)]
    Cache(#[from] StoreError),
    /// Something that cannot be done here.
    #[error("{0}")]
    Unsupported(String),
    /// Reading or writing failed.
    #[error("could not {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Something that was promised is not there.
    #[error("{0}")]
    Missing(String),
}

fn ended(command: &str, exit: &Exit) -> String {
    use crate::spec::Ending;
    let how = match &exit.ending {
        Ending::Exited(code) => format!("ended with {code}"),
        Ending::Signaled(signal) => format!("was ended by the signal {signal}"),
        Ending::CpuLimit => "used up its processor time".to_owned(),
        Ending::WallLimit => "used up its time".to_owned(),
        Ending::OutOfMemory => "reached its memory limit".to_owned(),
        Ending::PidsLimit => "reached its limit of processes".to_owned(),
        Ending::OutputLimit => "wrote more output than it may".to_owned(),
        Ending::DiskLimit => "failed, and there was no room left on the disk".to_owned(),
        Ending::Cancelled => "was cancelled".to_owned(),
        Ending::Failed { reason, .. } => format!("could not be run: {reason}"),
    };
    let detail = if exit.detail.is_empty() { String::new() } else { format!(": {}", exit.detail) };
    format!("`{command}` {how}{detail}")
}

/// What all stages of a build share.
struct Site {
    workshop: Workshop,
    build: Build,
    events: mpsc::Sender<Event>,
    steps: Semaphore,
    copies: Semaphore,
    /// What each stage comes to, once it is done.
    finished: BTreeMap<usize, watch::Sender<Option<Arc<Tree>>>>,
    /// Parts of contexts that were mounted before.
    parts: mounts::Parts,
    /// The number of the first step of each stage.
    first_steps: BTreeMap<usize, usize>,
    /// The keys of the steps, by stage.
    keys: BTreeMap<usize, Vec<Digest>>,
}

/// Builds an image, and puts it into the store that the workshop belongs to.
///
/// # Errors
/// The first step that fails, with its place. Nothing is left of the build but steps that are known for the next one.
pub async fn execute(workshop: Workshop, build: Build, events: mpsc::Sender<Event>) -> Result<Built, BuildError> {
    let plain = |problem: Problem| BuildError { step: None, position: None, problem };
    mounts::check(&build)?;
    let keys = keys(&build)?;
    let finished = build.plan.stages.iter().map(|stage| (stage.index, watch::Sender::new(None))).collect();
    let (infos, first_steps) = infos(&build.plan);
    let target = build.plan.target;
    let site = Arc::new(Site {
        workshop,
        build,
        events,
        steps: Semaphore::new(STEPS_AT_ONCE),
        copies: Semaphore::new(COPIES_AT_ONCE),
        finished,
        parts: mounts::Parts::default(),
        first_steps,
        keys,
    });
    site.tell(Event::Planned { steps: infos }).await;
    let mut stages = JoinSet::new();
    for at in 0..site.build.plan.stages.len() {
        let site = Arc::clone(&site);
        stages.spawn(async move { site.stage(at).await });
    }
    // Those that are left are stopped when the set is dropped.
    while let Some(done) = stages.join_next().await {
        done.map_err(|_| plain(Problem::Workshop(WorkshopError::GivenUp)))??;
    }
    let tree = site.finished.get(&target).and_then(|stage| stage.borrow().clone());
    let tree = tree.ok_or_else(|| plain(Problem::Missing("the stage to build was not built".to_owned())))?;
    let config = config::finish(&tree, &site.build);
    let config_digest = Digest::of(&config);
    let names = site.build.names.clone();
    let image = site.workshop.admit(names, config, tree.layers.clone()).await.map_err(|error| plain(error.into()))?;
    Ok(Built { image, config_digest })
}

impl Site {
    async fn tell(&self, event: Event) {
        // A build goes on when nobody listens; whoever wants it stopped drops it.
        let _ = self.events.send(event).await;
    }
}

/// The keys of all steps, by stage.
fn keys(build: &Build) -> Result<BTreeMap<usize, Vec<Digest>>, BuildError> {
    let content = |input: &Input| content_of(build, input);
    let keys = build.plan.keys(content).map_err(|failure| {
        let (problem, input) = *failure;
        let mut steps = build.plan.stages.iter().flat_map(|stage| &stage.steps).enumerate();
        let (step, position) =
            steps.find(|(_, step)| step.inputs.contains(&input)).map(|(at, step)| (at, step.position)).unzip();
        BuildError { step, position, problem }
    })?;
    Ok(keys.into_iter().map(|stage| (stage.index, stage.steps)).collect())
}

/// A digest of what an input holds now.
fn content_of(build: &Build, input: &Input) -> Result<Digest, Box<(Problem, Input)>> {
    let failed = |problem: Problem| Box::new((problem, input.clone()));
    match input {
        Input::Files { context, sources, exclude } => {
            let context = build.contexts.find(context.as_deref()).map_err(failed)?;
            let exclude = parse_exclude(exclude).map_err(failed)?;
            let mut digests = String::new();
            for source in sources {
                let selection = context.select(source, &exclude).map_err(|error| failed(error.into()))?;
                let digest = context.digest_of(&selection).map_err(|error| failed(error.into()))?;
                digests.push_str(digest.hex());
            }
            Ok(Digest::of(digests.as_bytes()))
        }
        Input::Image { image, .. } => {
            let held = build.image(image).map_err(failed)?;
            Digest::parse(&held.digest).map_err(|error| failed(Problem::Missing(error.to_string())))
        }
        Input::Url { url, .. } => {
            let Download { digest, name, modified, .. } = &**build.download(url).map_err(failed)?;
            let name = name.as_deref().unwrap_or_default();
            Ok(Digest::of(format!("{digest} {modified} {name}").as_bytes()))
        }
        Input::Git { remote, .. } => Ok(Digest::of(remote.as_bytes())),
        Input::Inline { digest } => Ok(digest.clone()),
        Input::Stage { stage, .. } => Ok(Digest::of(stage.to_string().as_bytes())),
    }
}

fn parse_exclude(patterns: &[String]) -> Result<Ignore, Problem> {
    Ignore::parse(&patterns.join("\n")).map_err(|error| Problem::Unsupported(format!("--exclude: {error}")))
}

impl Contexts {
    fn find(&self, name: Option<&str>) -> Result<&Arc<Context>, Problem> {
        match name {
            None => Ok(&self.main),
            Some(name) => {
                self.named.get(name).ok_or_else(|| Problem::Missing(format!("the context `{name}` was not sent")))
            }
        }
    }
}

/// All steps for people, and the number of each stage's first.
fn infos(plan: &Plan) -> (Vec<StepInfo>, BTreeMap<usize, usize>) {
    let mut infos = Vec::new();
    let mut first = BTreeMap::new();
    for stage in &plan.stages {
        first.insert(stage.index, infos.len());
        for (at, step) in stage.steps.iter().enumerate() {
            infos.push(StepInfo {
                step: infos.len(),
                stage: label(stage),
                of_stage: at + 1,
                stage_steps: stage.steps.len(),
                text: step.written.clone(),
                position: step.position,
            });
        }
    }
    (infos, first)
}

fn label(stage: &Stage) -> String {
    stage.name.clone().unwrap_or_else(|| format!("stage-{}", stage.index))
}

/// What a plan has to know of an image that is here.
pub fn facts_of(image: &HeldImage) -> Option<BaseFacts> {
    Some(BaseFacts {
        digest: Digest::parse(&image.digest).ok()?,
        platform: Platform::own(),
        env: image.config.env.clone(),
        working_dir: image.config.working_dir.clone(),
        user: image.config.user.clone(),
        shell: image.config.shell.clone(),
        on_build: image.config.on_build.clone(),
    })
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Problem {
        match error {
            AppendError::Context(error) => Problem::Context(error),
            AppendError::Write(source) => Problem::System { action: "pass files on", source },
        }
    }
}

impl Build {
    fn image(&self, image: &ImageSource) -> Result<&HeldImage, Problem> {
        let held = self.images.get(image);
        held.ok_or_else(|| Problem::Missing(format!("the image `{}` is not here", image.reference)))
    }
}

impl Build {
    /// The time that it is said to be of.
    fn date(&self) -> Option<Timestamp> {
        self.epoch.and_then(|epoch| Timestamp::from_second(epoch).ok())
    }

    fn download(&self, url: &str) -> Result<&Arc<Download>, Problem> {
        self.downloads.get(url).ok_or_else(|| Problem::Missing(format!("`{url}` was not downloaded")))
    }
}

impl fmt::Debug for Build {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Build").field("names", &self.names).finish_non_exhaustive()
    }
}

/// The key of a step in builds that are said to be of a time: their layers are others.
fn with_epoch(key: &Digest, epoch: Option<i64>) -> Digest {
    match epoch {
        None => key.clone(),
        Some(epoch) => Digest::of(format!("{} {epoch}", key.hex()).as_bytes()),
    }
}

/// Whether a step that was run once need not be run again: all that it depends on is in its key.
fn is_repeatable(step: &Step) -> bool {
    step.inputs.iter().all(|input| !matches!(input, Input::Git { .. }))
}
