//! Builds: a context comes in, the plan is made and judged and carried out, and what is done is written down as it
//! happens, for whoever follows.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use ampoule_client::types::{BuildEvent, BuildPlace, BuildRequest, BuildResult, BuildStep};
use ampoule_engine::builder::context::Context;
use ampoule_engine::builder::dockerfile;
use ampoule_engine::builder::execute::{self, Build, BuildError, Contexts, Event, Secret, execute, facts_of};
use ampoule_engine::builder::fetch::{self, Downloads, FetchError, Fetcher};
use ampoule_engine::builder::plan::{BaseFacts, ImageSource, Options, Plan, Platform, plan};
use ampoule_engine::builder::source::{Complaint, Position, Source, Span};
use ampoule_engine::image::reference::Reference;
use ampoule_engine::image::store::{self, HeldImage, ResolveError, Stop, Workshop};
use ampoule_engine::runtime::RuntimeError;
use ampoule_engine::spec::{Limits, Network};
use ampoule_plugins::{BuildChange, Policies};
use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::document::document;
use super::intake::{disk_full, is_disk_full};
use super::transfers::{StopsWhenDropped, unpulled};
use super::{Images, told, unresolved};
use crate::problem::{BUILD_FAILED, BUSY, DENIED, INTERNAL, Refused};
use crate::review;
use form::Asked;
pub(super) use form::READERS_MAX;
pub use kept::Builds;
use kept::Kept;
use log::Journal;
use records::Record;

mod form;
mod kept;
mod log;
mod records;
pub mod routes;

/// Builds under way at once; more are told to come back.
pub(super) const BUILDS_MAX: usize = 4;
/// Events that wait to be written down.
const EVENTS_MAX: usize = 256;
/// Steps that are told at once, and letters of each: clients bound what they read as one event.
const PLANNED_MAX: usize = 200;
const STEP_LETTERS_MAX: usize = 500;
/// Times that a plan is made anew because a base image turned out to need others.
const PLANS_MAX: usize = 16;
/// Bounds of each RUN: those of a patient CI system.
const STEP_LIMITS: Limits = Limits {
    memory_bytes: 4 << 30,
    cpu_milli: 64_000,
    pids: 4096,
    cpu_time_ms: 4 * 3_600_000,
    wall_time_ms: 3_600_000,
    open_files: 1024,
    file_bytes: 8 << 30,
};

/// Starts a build, which then goes on by itself.
///
/// # Errors
/// Others are under way, the service is being stopped, or it cannot be stored.
async fn start(
    images: &Images,
    builds: &Builds,
    policies: Arc<Policies>,
    asked: Asked,
    record: Record,
) -> Result<Arc<Kept>, Refused> {
    let busy = |_| Refused::new(BUSY, format!("{BUILDS_MAX} builds are under way")).retry_after(5);
    let permit = images.builds.clone().try_acquire_owned().map_err(busy)?;
    let Asked { request, names, secrets, source, context } = asked;
    let (kept, journal) = builds.take(record, request.detach).await?;
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let (images, context) = (images.clone(), Arc::new(context));
    let work = Work { images, policies, request, names, secrets, source, context, events: sender };
    let (builds, started) = (builds.clone(), kept.clone());
    tokio::spawn(async move {
        let (journal, last) = carry_out(&builds, &kept, journal, work, events).await;
        drop(permit);
        builds.end(&kept, journal, last).await;
    });
    Ok(started)
}

/// Builds until the end, or until somebody wants it to stop, and writes down what is told.
async fn carry_out(
    builds: &Builds,
    kept: &Kept,
    mut journal: Journal,
    work: Work,
    mut events: mpsc::Receiver<BuildEvent>,
) -> (Journal, BuildEvent) {
    let done = async {
        let last = tokio::select! {
            last = AssertUnwindSafe(work.run()).catch_unwind() => last.unwrap_or_else(|_| {
                let problem = Refused::new(INTERNAL, "the service failed at this build; its log says why").problem;
                BuildEvent::Failed { problem, place: None }
            }),
            reason = kept.stopped() => BuildEvent::Failed { problem: reason.problem, place: None },
        };
        // Lets go of the other end of the events.
        drop(work);
        last
    };
    let write = async {
        while let Some(event) = events.recv().await {
            builds.tell(kept, &mut journal, event);
        }
    };
    let (last, ()) = tokio::join!(done, write);
    (journal, last)
}

/// Why nothing was built, and where in the Dockerfile.
struct Stopped {
    refused: Refused,
    place: Option<BuildPlace>,
}

impl From<Refused> for Stopped {
    fn from(refused: Refused) -> Stopped {
        Stopped { refused, place: None }
    }
}

/// A build under way.
struct Work {
    images: Images,
    policies: Arc<Policies>,
    request: BuildRequest,
    names: Vec<Reference>,
    secrets: BTreeMap<String, Secret>,
    source: Source,
    context: Arc<Context>,
    events: mpsc::Sender<BuildEvent>,
}

impl Work {
    async fn run(&self) -> BuildEvent {
        match self.build().await {
            Ok(result) => BuildEvent::Built(result),
            Err(Stopped { mut refused, place }) => {
                if let Some(BuildPlace { line, column, .. }) = place {
                    let place = format!("{}:{line}:{column}: ", self.source.name());
                    refused.problem.detail.insert_str(0, &place);
                }
                BuildEvent::Failed { problem: refused.problem, place }
            }
        }
    }

    async fn build(&self) -> Result<BuildResult, Stopped> {
        let mut options = Options {
            target: self.request.target.clone(),
            build_args: self.request.build_args.clone(),
            ..Options::default()
        };
        let (plan, images) = self.plan(&mut options).await?;
        let labels = self.judge(&plan, &options).await?;
        let downloads = self.download(&plan).await?;
        let build = Build {
            plan,
            contexts: Contexts { main: self.context.clone(), named: BTreeMap::new() },
            images,
            names: self.names.clone(),
            labels,
            epoch: self.request.source_date_epoch,
            limits: STEP_LIMITS,
            downloads,
            network: if self.images.reach.is_some() { Network::Egress } else { Network::None },
            uses_known_steps: !self.request.no_cache,
            secrets: self.secrets.clone(),
            caches: self.images.caches.clone(),
        };
        let workshop = Workshop::new(self.images.store.clone(), self.images.runtime.clone());
        let (sender, mut progress) = mpsc::channel(EVENTS_MAX);
        let forward = async {
            while let Some(event) = progress.recv().await {
                for event in events_of(event) {
                    let _ = self.events.send(event).await;
                }
            }
        };
        let (built, ()) = tokio::join!(execute(workshop, build, sender), forward);
        let built = built.map_err(|error| unbuilt(&error))?;
        Ok(BuildResult { image: document(built.image), config_digest: built.config_digest.to_string() })
    }

    /// Plans, with the base images at hand; each may have triggers that need others.
    async fn plan(&self, options: &mut Options) -> Result<(Plan, BTreeMap<ImageSource, HeldImage>), Stopped> {
        let source = &self.source;
        let complain = |complaint: Complaint| misread(source, complaint);
        let file = dockerfile::parse(source).map_err(complain)?;
        let mut held = BTreeMap::new();
        for _ in 0..PLANS_MAX {
            let planned = plan(source, &file, options).map_err(complain)?;
            let missing: Vec<ImageSource> =
                planned.images().into_iter().filter(|image| !held.contains_key(*image)).cloned().collect();
            if missing.is_empty() {
                return Ok((planned, held));
            }
            for image in missing {
                let found = self.image(&image).await?;
                if let Some(facts) = facts_of(&found) {
                    options.bases.insert(image.clone(), facts);
                }
                held.insert(image, found);
            }
        }
        Err(Refused::new(BUILD_FAILED, "the ONBUILD triggers of its base images need ever more images").into())
    }

    /// What ADD downloads.
    async fn download(&self, plan: &Plan) -> Result<Downloads, Stopped> {
        let mut downloads = Downloads::new();
        let mut wanted = fetch::wanted(plan).peekable();
        let Some(&(first, _, position)) = wanted.peek() else { return Ok(downloads) };
        let stopped = |refused, Position { line, column }| Stopped {
            refused,
            place: Some(BuildPlace { line, column, length: None }),
        };
        let Some(reach) = &self.images.reach else {
            let problem = format!("`{first}` cannot be downloaded: builds reach nothing on this service");
            let refused = Refused::new(BUILD_FAILED, problem).hint("put the file into the context");
            return Err(stopped(refused, position));
        };
        let fetcher = Fetcher::new(&reach.denied, self.images.spools.to_path_buf());
        let fetcher = fetcher.map_err(|error| Refused::internal(&error))?;
        for (url, checksum, position) in wanted {
            let failed = |error: FetchError| stopped(told(BUILD_FAILED, &error), position);
            let download = match downloads.get(url) {
                Some(download) => Arc::clone(download),
                None => {
                    let _ = self.events.send(BuildEvent::Pulling { reference: url.to_owned() }).await;
                    let download = Arc::new(fetcher.fetch(url).await.map_err(failed)?);
                    downloads.insert(url.to_owned(), Arc::clone(&download));
                    download
                }
            };
            checksum.map_or(Ok(()), |checksum| download.check(url, checksum)).map_err(failed)?;
        }
        Ok(downloads)
    }

    /// An image that is here, or is brought here.
    async fn image(&self, image: &ImageSource) -> Result<HeldImage, Refused> {
        if image.platform != Platform::own() {
            let own = Platform::own();
            let problem =
                format!("`{}` is wanted for {}, and only {own} can be built here", image.reference, image.platform);
            return Err(Refused::new(BUILD_FAILED, problem));
        }
        if !self.request.pull {
            match self.images.store.resolve(&image.reference) {
                Err(ResolveError::NotFound { .. }) => {}
                found => return found.map_err(|error| unresolved(&error)),
            }
        }
        let reference =
            Reference::parse(&image.reference).map_err(|error| Refused::new(BUILD_FAILED, error.to_string()))?;
        let _ = self.events.send(BuildEvent::Pulling { reference: image.reference.clone() }).await;
        let wanted = store::PullRequest { reference, platform: None, credentials: None };
        let stop = Stop::default();
        let _stops = StopsWhenDropped(stop.clone());
        let pulled = self.images.blocking(move |images| {
            images.store.pull(images.runtime.as_ref(), &images.registry, &wanted, &|_| {}, &stop)
        });
        pulled.await.map_err(|error| Refused::internal(&error))?.map_err(|error| unpulled(&error))?;
        self.images.resolve(&image.reference)
    }

    /// Asks the policies; the labels of the request with those that they add.
    async fn judge(&self, plan: &Plan, options: &Options) -> Result<BTreeMap<String, String>, Stopped> {
        let question = review::request(self.source.name(), plan, options, Some(&self.context));
        let policies = self.policies.clone();
        let decision = tokio::task::spawn_blocking(move || policies.review_build(question)).await;
        let decision = decision.map_err(|error| Refused::internal(&error))?;
        if let Some(denial) = decision.denial {
            let mut refused = Refused::new(DENIED, denial.reason);
            refused.problem.hint = Some(denial.hint).filter(|hint| !hint.is_empty());
            refused.problem.policy = Some(denial.policy);
            refused.problem.policy_code = Some(denial.code);
            let line = usize::try_from(denial.line).ok().filter(|line| *line > 0);
            return Err(Stopped { refused, place: line.map(|line| BuildPlace { line, column: 1, length: None }) });
        }
        for warning in decision.warnings {
            let message = format!("{}: {}", warning.policy, warning.message);
            let _ = self.events.send(BuildEvent::Warning { step: None, message }).await;
        }
        let mut labels = self.request.labels.clone();
        for change in decision.changes {
            match change {
                BuildChange::AddLabel { name, value } => drop(labels.insert(name, value)),
                BuildChange::PinDigest { reference, digest } => {
                    let is_so = |(image, facts): (&ImageSource, &BaseFacts)| {
                        image.reference == reference && facts.digest.to_string() == digest
                    };
                    if !options.bases.iter().any(is_so) {
                        let problem =
                            format!("a policy pins `{reference}` to {digest}, which is not the image that is here");
                        return Err(Refused::new(DENIED, problem).hint("name the image with this digest").into());
                    }
                }
                BuildChange::ForceUser(user) => {
                    let problem = format!("a policy wants the image to run as `{user}`, which it does not");
                    return Err(Refused::new(DENIED, problem)
                        .hint(format!("end the Dockerfile with USER {user}"))
                        .into());
                }
            }
        }
        Ok(labels)
    }
}

fn misread(source: &Source, complaint: Complaint) -> Stopped {
    let Span { start, end } = complaint.span;
    let Position { line, column } = source.position(start);
    let length = source.text().get(start..end).map(|text| text.chars().count());
    let mut refused = Refused::new(BUILD_FAILED, complaint.message);
    refused.problem.hint = complaint.hint;
    Stopped { refused, place: Some(BuildPlace { line, column, length }) }
}

fn unbuilt(error: &BuildError) -> Stopped {
    let refused = match &error.problem {
        problem if is_disk_full(problem) => disk_full(),
        execute::Problem::Runtime(cause @ (RuntimeError::Gone | RuntimeError::System { .. })) => {
            Refused::internal(cause)
        }
        execute::Problem::System { .. } => Refused::internal(error),
        problem => told(BUILD_FAILED, problem),
    };
    let place = error.position.map(|Position { line, column }| BuildPlace { line, column, length: None });
    Stopped { refused, place }
}

/// An event as it travels; a long one as several.
fn events_of(event: Event) -> Vec<BuildEvent> {
    vec![match event {
        Event::Planned { steps } => {
            let parts = steps.chunks(PLANNED_MAX).map(|steps| {
                let steps = steps.iter().map(|info| BuildStep {
                    step: info.step,
                    stage: info.stage.clone(),
                    of_stage: info.of_stage,
                    stage_steps: info.stage_steps,
                    text: info.text.chars().take(STEP_LETTERS_MAX).collect(),
                    line: info.position.line,
                });
                BuildEvent::Planned { steps: steps.collect() }
            });
            return parts.collect();
        }
        Event::Warning { step, message } => BuildEvent::Warning { step, message },
        Event::Started { step } => BuildEvent::Started { step },
        Event::Cached { step } => BuildEvent::Cached { step },
        Event::Output { step, is_error, text } => BuildEvent::Output { step, is_error, text, step_ms: 0 },
        Event::Done { step, wall_ms } => BuildEvent::Done { step, wall_ms },
    }]
}

fn name(event: &BuildEvent) -> &'static str {
    match event {
        BuildEvent::Pulling { .. } => "pulling",
        BuildEvent::Planned { .. } => "planned",
        BuildEvent::Warning { .. } => "warning",
        BuildEvent::Started { .. } => "started",
        BuildEvent::Cached { .. } => "cached",
        BuildEvent::Output { .. } => "output",
        BuildEvent::Done { .. } => "done",
        BuildEvent::Built(_) => "built",
        BuildEvent::Failed { .. } => "failed",
    }
}
