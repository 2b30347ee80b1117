//! What comes with `POST /v1/builds`: a form of two parts, first `request` as JSON and then `context` as a tar. The tar
//! goes to disk as it comes. Reading has bounds of its own, so that whoever sends slowly takes no place of a build.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use ampoule_client::types::{BuildRequest, BuildSecret};
use ampoule_engine::builder::context::{Context, ContextError, Limits};
use ampoule_engine::builder::dockerfile::FILE_BYTES_MAX;
use ampoule_engine::builder::execute::Secret;
use ampoule_engine::builder::ignore::{self, Ignore};
use ampoule_engine::builder::source::Source;
use ampoule_engine::image::reference::Reference;
use axum::body::{Body, BodyDataStream};
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest, Request};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};

use super::super::intake::{DISCARD_TIME, disk_full, is_disk_full};
use super::super::{Images, told};
use crate::problem::{BODY_BROKEN, BUILD_FAILED, BUSY, INVALID_FORM, INVALID_JSON, Refused, WRONG_TYPE, chain};
use crate::request::too_large;

/// Requests that are read at once; more are told to come back.
pub(in crate::images) const READERS_MAX: usize = 16;
/// How long a request may take to arrive.
const READ_TIME: Duration = Duration::from_secs(30 * 60);
/// Longest `request`, in bytes: the longest Dockerfile, escaped, and room for arguments.
const REQUEST_BYTES_MAX: u64 = 4 * FILE_BYTES_MAX as u64;
/// Most bytes between and around the parts.
const MARGIN_BYTES_MAX: u64 = 1 << 20;
/// What is built when no other Dockerfile is named.
const DOCKERFILE: &str = "Dockerfile";
/// What a form has to look like.
const FORM_HINT: &str =
    "as in: curl -F 'request={\"tags\": [\"app\"]};type=application/json' -F context=@context.tar …/v1/builds";

/// A build that was read whole.
pub(super) struct Asked {
    pub(super) request: BuildRequest,
    pub(super) names: Vec<Reference>,
    pub(super) secrets: BTreeMap<String, Secret>,
    pub(super) source: Source,
    /// Without what `.dockerignore` leaves out.
    pub(super) context: Context,
}

/// Reads a request.
///
/// # Errors
/// Others are being read, it does not arrive, or it is not what was expected.
pub(super) async fn receive(images: &Images, request: Request) -> Result<Asked, Refused> {
    let busy = |_| Refused::new(BUSY, format!("{READERS_MAX} builds are being sent")).retry_after(5);
    let _reader = images.build_readers.try_acquire().map_err(busy)?;
    let late = |_| Refused::new(BODY_BROKEN, format!("the body did not arrive within {} s", READ_TIME.as_secs()));
    tokio::time::timeout(READ_TIME, read(images, request)).await.map_err(late)?
}

async fn read(images: &Images, request: Request) -> Result<Asked, Refused> {
    let gate = Gate::default();
    let (head, body) = request.into_parts();
    let request = Request::from_parts(head, Body::from_stream(gate.stream(body.into_data_stream())));
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|_| Refused::new(WRONG_TYPE, "the body is no multipart/form-data with a boundary").hint(FORM_HINT))?;
    let asked = parts(images, &mut form, &gate).await;
    if asked.is_err() {
        // Many clients read the answer only when they have sent everything.
        gate.allow(images.bytes_max);
        let rest = async { while let Ok(Some(_)) = form.next_field().await {} };
        let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
    }
    asked
}

async fn parts(images: &Images, form: &mut Multipart, gate: &Gate) -> Result<Asked, Refused> {
    gate.allow(REQUEST_BYTES_MAX + MARGIN_BYTES_MAX);
    let field = next(form, gate, "request").await?;
    let request = read_request(field, gate).await?;
    let names = request.tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|error| Refused::field("tags", error.to_string()))?;
    let secrets = secrets(&request)?;
    gate.allow(REQUEST_BYTES_MAX + MARGIN_BYTES_MAX);
    let field = next(form, gate, "context").await?;
    gate.allow(images.bytes_max.saturating_add(MARGIN_BYTES_MAX));
    let folder = images.spools.clone();
    let chunks = field.map(|chunk| chunk.map_err(|error| chain(&error)));
    let taken = images.read(chunks, move |_, tar| -> Result<Asked, Refused> {
        let spool = tempfile::tempfile_in(&*folder).map_err(|error| Refused::internal(&error))?;
        // All of it, since `.dockerignore` may come last.
        let context = Context::keep_tar(tar, spool, Ignore::default(), Limits::default());
        let context = context.map_err(|error| unread(&error))?;
        let source = read_dockerfile(&request, &context)?;
        let ignored = read_ignore(&request, source.name(), &context)?;
        Ok(Asked { request, names, secrets, source, context: context.leaving_out(ignored) })
    });
    let asked = taken.await??;
    gate.allow(MARGIN_BYTES_MAX);
    match form.next_field().await.map_err(|error| broken(&error, gate))? {
        None => Ok(asked),
        Some(field) => Err(unexpected(&field, "the end of the form")),
    }
}

/// The next part, which has to have this name.
async fn next<'a>(form: &'a mut Multipart, gate: &Gate, name: &str) -> Result<Field<'a>, Refused> {
    match form.next_field().await.map_err(|error| broken(&error, gate))? {
        Some(field) if field.name() == Some(name) => Ok(field),
        Some(field) => Err(unexpected(&field, &format!("the part `{name}`"))),
        None => Err(Refused::new(INVALID_FORM, format!("the form has no part `{name}`")).hint(FORM_HINT)),
    }
}

fn unexpected(field: &Field<'_>, wanted: &str) -> Refused {
    let name = field.name().unwrap_or_default();
    let problem = match name {
        "request" | "context" => format!("the part `{name}` comes where {wanted} is expected"),
        _ => format!("there is no part `{name}` in a build, and {wanted} is expected"),
    };
    Refused::new(INVALID_FORM, problem).hint("one part `request` comes first, and then one part `context`")
}

async fn read_request(mut field: Field<'_>, gate: &Gate) -> Result<BuildRequest, Refused> {
    let mut json = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| broken(&error, gate))? {
        json.extend_from_slice(&chunk);
        if json.len() as u64 > REQUEST_BYTES_MAX {
            return Err(too_large(REQUEST_BYTES_MAX));
        }
    }
    serde_json::from_slice(&json).map_err(|error| {
        Refused::new(INVALID_JSON, format!("request: {error}")).hint("GET /openapi.json describes every field")
    })
}

fn secrets(request: &BuildRequest) -> Result<BTreeMap<String, Secret>, Refused> {
    let decoded = request.secrets.iter().map(|(id, BuildSecret(value))| match BASE64.decode(value) {
        Ok(value) => Ok((id.clone(), Secret::new(value))),
        // What is wrong with it would show a part of it.
        Err(_) => Err(Refused::field("secrets", format!("the value of `{id}` is not base64"))),
    });
    decoded.collect()
}

fn broken(error: &MultipartError, gate: &Gate) -> Refused {
    if gate.is_shut() {
        return Refused::new(INVALID_FORM, "too much comes around the parts of the form, or as `request`")
            .hint(FORM_HINT);
    }
    Refused::new(BODY_BROKEN, chain(error))
}

fn unread(error: &ContextError) -> Refused {
    if is_disk_full(error) { disk_full() } else { told(BUILD_FAILED, error) }
}

/// The Dockerfile: what came with the request, or a file of the context.
fn read_dockerfile(request: &BuildRequest, context: &Context) -> Result<Source, Refused> {
    let name = request.dockerfile.as_deref().unwrap_or(DOCKERFILE);
    if let Some(text) = &request.dockerfile_text {
        return Ok(Source::new(name, text.clone()));
    }
    let bytes = read_file(context, name, FILE_BYTES_MAX)?.ok_or_else(|| {
        Refused::field("dockerfile", format!("there is no file `{name}` in the context"))
            .hint("it is a path in the context, or comes as dockerfile_text")
    })?;
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| Refused::field("dockerfile", format!("`{name}` is no text in UTF-8")))?;
    Ok(Source::new(name, text))
}

/// What is left out: as the request says, or `NAME.dockerignore` beside the Dockerfile, or `.dockerignore`.
fn read_ignore(request: &BuildRequest, dockerfile: &str, context: &Context) -> Result<Ignore, Refused> {
    let parse = |name: &str, text: &str| {
        Ignore::parse(text).map_err(|error| {
            let mut refused = told(BUILD_FAILED, &error);
            refused.problem.detail = format!("{name}: {}", refused.problem.detail);
            refused
        })
    };
    if let Some(text) = &request.dockerignore_text {
        return parse("dockerignore_text", text);
    }
    for name in [&format!("{dockerfile}.dockerignore"), ".dockerignore"] {
        if let Some(bytes) = read_file(context, name, ignore::FILE_BYTES_MAX)? {
            return parse(name, &String::from_utf8_lossy(&bytes));
        }
    }
    Ok(Ignore::default())
}

/// A file of the context, and one byte more than is allowed: what is too long is told by whoever reads it.
fn read_file(context: &Context, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, Refused> {
    let content = match context.content(path.strip_prefix("./").unwrap_or(path).as_bytes()) {
        Ok(content) => content,
        Err(ContextError::NoFile { .. }) => return Ok(None),
        Err(error) => return Err(unread(&error)),
    };
    let mut bytes = Vec::new();
    let read = content.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Refused::internal(&error))?;
    Ok(Some(bytes))
}

/// How much of a body may still come. What the reader of forms has not understood yet it keeps in memory, so no more is
/// let through than the part at hand may have.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicU64>);

/// More came than may.
#[derive(Debug, thiserror::Error)]
#[error("more arrived than may")]
struct Shut;

impl Gate {
    fn allow(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    fn is_shut(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn stream(&self, mut body: BodyDataStream) -> impl Stream<Item = Result<Bytes, axum::BoxError>> + use<> {
        let left = self.0.clone();
        let mut rests = true;
        stream::poll_fn(move |context| {
            // The reader takes all that is there before it looks at any of it; so there is never more than one chunk.
            rests = !rests;
            if rests {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let chunk = std::task::ready!(body.poll_next_unpin(context).map(|chunk| {
                let chunk = chunk.map(|chunk| chunk.map_err(axum::BoxError::from));
                let Some(Ok(bytes)) = &chunk else { return chunk };
                let (before, length) = (left.load(Ordering::Relaxed), bytes.len() as u64);
                left.store(before.saturating_sub(length), Ordering::Relaxed);
                if length < before { chunk } else { Some(Err(Shut.into())) }
            }));
            Poll::Ready(chunk)
        })
    }
}
