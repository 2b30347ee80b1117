//! Builds over HTTP: a context comes in, the plan is made and judged, and what is done is told as server-sent events.
//! Whoever hangs up stops the build.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use ampoule_client::types::{self, BuildEvent, BuildRequest, BuildResult, BuildSecret, BuildStep, Problem};
use ampoule_engine::builder::context::{Context, Limits as ContextLimits};
use ampoule_engine::builder::dockerfile::{self, FILE_BYTES_MAX};
use ampoule_engine::builder::execute::{self, Build, BuildError, Contexts, Event, Secret, execute, facts_of};
use ampoule_engine::builder::ignore::Ignore;
use ampoule_engine::builder::plan::{BaseFacts, ImageSource, Options, Plan, Platform, plan};
use ampoule_engine::builder::source::{Complaint, Source};
use ampoule_engine::image::reference::Reference;
use ampoule_engine::image::store::{self, HeldImage, ResolveError, Stop, Workshop};
use ampoule_engine::runtime::RuntimeError;
use ampoule_engine::spec::Limits;
use ampoule_plugins::{BuildChange, Policies};
use axum::body::Body;
use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use utoipa::IntoParams;

use super::document::document;
use super::intake::{disk_full, is_disk_full};
use super::transfers::{KEEP_ALIVE, StopsWhenDropped, unpulled};
use super::{Images, told, unresolved};
use crate::problem::{BUILD_FAILED, BUSY, DENIED, INVALID_QUERY, Refused};
use crate::request::Query;
use crate::review;

/// Builds under way at once; more are told to come back.
pub(super) const BUILDS_MAX: usize = 4;
/// Events that wait for a slow reader, who holds the build up then.
const EVENTS_MAX: usize = 256;
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

/// How an image is built.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct BuildQuery {
    /// A `BuildRequest` as JSON.
    options: Option<String>,
}

/// Builds an image. The body is the context, a plain tar that `.dockerignore` was applied to. The answer is the progress;
/// its status is 200 as soon as the context is here, whatever becomes of the build, whose last event is `built` or
/// `failed`. Hanging up stops the build, and leaves nothing of it but steps that need not be run again.
#[utoipa::path(post, operation_id = "buildImage", path = "/v1/builds", tag = "images", params(BuildQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "The context"),
    responses((status = 200, description = "The progress", content_type = "text/event-stream", body = BuildEvent),
        (status = 400, description = "The options cannot be read", body = Problem),
        (status = 413, description = "The context is too large", body = Problem),
        (status = 422, description = "The context is no tar, or an option cannot be used", body = Problem),
        (status = 503, description = "Other builds are under way", body = Problem)))]
pub async fn build(
    State(images): State<Images>,
    State(policies): State<Arc<Policies>>,
    Query(query): Query<BuildQuery>,
    body: Body,
) -> Result<Response, Refused> {
    let request: BuildRequest = serde_json::from_str(query.options.as_deref().unwrap_or("{}"))
        .map_err(|error| Refused::new(INVALID_QUERY, format!("options: {error}")))?;
    let names = request.tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|error| Refused::field("tags", error.to_string()))?;
    let secrets = secrets(&request)?;
    let busy = |_| Refused::new(BUSY, format!("{BUILDS_MAX} builds are under way")).retry_after(5);
    let permit = images.builds.clone().try_acquire_owned().map_err(busy)?;
    let context = Arc::new(images.context(body).await?);
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let work = Work { images, policies, request, names, secrets, context, events: sender };
    let task = tokio::spawn(async move {
        let last = work.run().await;
        // Nobody listens when this fails.
        let _ = work.events.send(last).await;
        drop(permit);
    });
    let following = (events, AbortOnDropHandle::new(task));
    let events = stream::unfold(following, |mut following| async {
        let event = following.0.recv().await?;
        Some((sse::Event::default().event(name(&event)).json_data(&event), following))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn secrets(request: &BuildRequest) -> Result<BTreeMap<String, Secret>, Refused> {
    let decoded = request.secrets.iter().map(|(id, BuildSecret(value))| match BASE64.decode(value) {
        Ok(value) => Ok((id.clone(), Secret::new(value))),
        // What is wrong with it would show a part of it.
        Err(_) => Err(Refused::field("secrets", format!("the value of `{id}` is not base64"))),
    });
    decoded.collect()
}

impl Images {
    /// Takes a context in, into a file without a name.
    async fn context(&self, body: Body) -> Result<Context, Refused> {
        let folder = self.spools.clone();
        let read = move |_: &Images, tar| {
            let spool = tempfile::tempfile_in(&*folder).map_err(|error| Refused::internal(&error))?;
            let context = Context::keep_tar(tar, spool, Ignore::default(), ContextLimits::default());
            context.map_err(|error| if is_disk_full(&error) { disk_full() } else { told(BUILD_FAILED, &error) })
        };
        self.read(body, read).await?
    }
}

/// Why nothing was built, and where in the Dockerfile.
struct Stopped {
    refused: Refused,
    line: Option<usize>,
}

impl From<Refused> for Stopped {
    fn from(refused: Refused) -> Stopped {
        Stopped { refused, line: None }
    }
}

/// A build under way.
struct Work {
    images: Images,
    policies: Arc<Policies>,
    request: BuildRequest,
    names: Vec<Reference>,
    secrets: BTreeMap<String, Secret>,
    context: Arc<Context>,
    events: mpsc::Sender<BuildEvent>,
}

impl Work {
    async fn run(&self) -> BuildEvent {
        match self.build().await {
            Ok(result) => BuildEvent::Built(result),
            Err(Stopped { refused, line }) => BuildEvent::Failed { problem: refused.problem, line },
        }
    }

    async fn build(&self) -> Result<BuildResult, Stopped> {
        let source = self.source()?;
        let mut options = Options {
            target: self.request.target.clone(),
            build_args: self.request.build_args.clone(),
            ..Options::default()
        };
        let (plan, images) = self.plan(&source, &mut options).await?;
        let labels = self.judge(&source, &plan, &options).await?;
        let build = Build {
            plan,
            contexts: Contexts { main: self.context.clone(), named: BTreeMap::new() },
            images,
            names: self.names.clone(),
            labels,
            epoch: self.request.source_date_epoch,
            limits: STEP_LIMITS,
            network: self.images.network,
            uses_known_steps: !self.request.no_cache,
            secrets: self.secrets.clone(),
            caches: self.images.caches.clone(),
        };
        let workshop = Workshop::new(self.images.store.clone(), self.images.runtime.clone());
        let (sender, mut progress) = mpsc::channel(EVENTS_MAX);
        let forward = async {
            while let Some(event) = progress.recv().await {
                let _ = self.events.send(event_of(event)).await;
            }
        };
        let (built, ()) = tokio::join!(execute(workshop, build, sender), forward);
        let built = built.map_err(|error| unbuilt(&error))?;
        Ok(BuildResult { image: document(built.image), config_digest: built.config_digest.to_string() })
    }

    /// The Dockerfile: what came with the request, or a file of the context.
    fn source(&self) -> Result<Source, Refused> {
        let name = self.request.dockerfile.clone().unwrap_or_else(|| "Dockerfile".to_owned());
        if let Some(text) = &self.request.dockerfile_text {
            return Ok(Source::new(name, text.clone()));
        }
        let mut bytes = Vec::new();
        let content = self.context.content(name.as_bytes()).map_err(|error| {
            Refused::field("dockerfile", error.to_string())
                .hint("it is a path in the context, or comes as dockerfile_text")
        })?;
        let read = content.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| Refused::internal(&error))?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| Refused::field("dockerfile", format!("`{name}` is no text in UTF-8")))?;
        Ok(Source::new(name, text))
    }

    /// Plans, with the base images at hand; each may have triggers that need others.
    async fn plan(
        &self,
        source: &Source,
        options: &mut Options,
    ) -> Result<(Plan, BTreeMap<ImageSource, HeldImage>), Stopped> {
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

    /// An image that is here, or is brought here.
    async fn image(&self, image: &ImageSource) -> Result<HeldImage, Refused> {
        if image.platform != Platform::own() {
            let own = Platform::own();
            let problem =
                format!("`{}` is wanted for {}, and only {own} can be built here", image.reference, image.platform);
            return Err(Refused::new(BUILD_FAILED, problem));
        }
        match self.images.store.resolve(&image.reference) {
            Err(ResolveError::NotFound { .. }) => {}
            found => return found.map_err(|error| unresolved(&error)),
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
    async fn judge(
        &self,
        source: &Source,
        plan: &Plan,
        options: &Options,
    ) -> Result<BTreeMap<String, String>, Stopped> {
        let question = review::request(source.name(), plan, options, Some(&self.context));
        let policies = self.policies.clone();
        let decision = tokio::task::spawn_blocking(move || policies.review_build(question)).await;
        let decision = decision.map_err(|error| Refused::internal(&error))?;
        if let Some(denial) = decision.denial {
            let mut refused = Refused::new(DENIED, denial.reason);
            refused.problem.hint = Some(denial.hint).filter(|hint| !hint.is_empty());
            refused.problem.policy = Some(denial.policy);
            refused.problem.policy_code = Some(denial.code);
            return Err(Stopped { refused, line: usize::try_from(denial.line).ok().filter(|line| *line > 0) });
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
    let line = source.position(complaint.span.start).line;
    let mut refused = Refused::new(BUILD_FAILED, format!("{}:{line}: {}", source.name(), complaint.message));
    refused.problem.hint = complaint.hint;
    Stopped { refused, line: Some(line) }
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
    Stopped { refused, line: error.position.map(|position| position.line) }
}

fn event_of(event: Event) -> BuildEvent {
    match event {
        Event::Planned { steps } => {
            let steps = steps.into_iter().map(|info| BuildStep {
                step: info.step,
                stage: info.stage,
                of_stage: info.of_stage,
                stage_steps: info.stage_steps,
                text: info.text,
                line: info.position.line,
            });
            BuildEvent::Planned { steps: steps.collect() }
        }
        Event::Warning { step, message } => BuildEvent::Warning { step, message },
        Event::Started { step } => BuildEvent::Started { step },
        Event::Cached { step } => BuildEvent::Cached { step },
        Event::Output { step, is_error, text } => BuildEvent::Output { step, is_error, text },
        Event::Done { step, wall_ms } => BuildEvent::Done { step, wall_ms },
    }
}

fn name(event: &types::BuildEvent) -> &'static str {
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
