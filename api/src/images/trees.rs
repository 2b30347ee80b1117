//! What images come to, over HTTP: exported as one tar, compared, verified. Their files are read in throw-away
//! sandboxes; what comes out of those is passed on, or read as something hostile.

use std::fs::File;
use std::io::{self, BufReader, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ampoule_client::types::{
    ChangeKind, FileFacts, FileKind, ImageChange, ImageDiff, Problem, Verification, VerifiedImage, VerifyRequest,
};
use ampoule_engine::image::store::{HeldImage, VerifyError, VerifyOptions};
use ampoule_engine::image::tree::{Change, Changes, Facts, NodeKind};
use ampoule_engine::runtime::{Exported, RuntimeError};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tokio_util::io::ReaderStream;
use utoipa::IntoParams;

use super::{Images, unresolved};
use crate::problem::{BUSY, Refused};
use crate::request::{JsonBody, Query};

/// Exports, comparisons and verifications at once; more are told to come back.
const READERS_MAX: usize = 4;
/// Who reads trees now.
static READERS: Semaphore = Semaphore::const_new(READERS_MAX);
/// Bytes of an export that are passed on at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// Most changes that are told.
const CHANGES_MAX: usize = 50_000;
/// Most bytes that are read of changes.
const CHANGES_BYTES_MAX: u64 = 16 << 20;

fn reader() -> Result<SemaphorePermit<'static>, Refused> {
    let busy = |_| Refused::new(BUSY, format!("{READERS_MAX} others read images now")).retry_after(5);
    READERS.try_acquire().map_err(busy)
}

/// Whose file system is exported.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    /// A name, a digest, or the first 12 or more digits of one.
    image: String,
}

/// The file system of an image as one flat tar, the same bytes every time. A connection that breaks off before the end
/// of the chunks says that the image could not be read to its end.
#[utoipa::path(get, operation_id = "exportImage", path = "/v1/images:export", tag = "images", params(ExportQuery),
    responses((status = 200, description = "The tar", content_type = "application/x-tar", body = Vec<u8>),
        (status = 404, description = "There is no such image", body = Problem),
        (status = 503, description = "Others read images now", body = Problem)))]
pub async fn export(State(images): State<Images>, Query(query): Query<ExportQuery>) -> Result<Response, Refused> {
    let image = images.resolve(&query.image)?;
    let permit = reader()?;
    let internal = |error: io::Error| Refused::internal(&error);
    let (reader, writer) = io::pipe().map_err(internal)?;
    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(internal)?;
    let (runtime, layers) = (Arc::clone(&images.runtime), image.layers.clone());
    let task = tokio::spawn(async move { runtime.export_tree(layers, OwnedFd::from(writer)).await });
    let mut chunks = ReaderStream::with_capacity(reader, CHUNK_BYTES);
    // Nothing is promised before the first bytes are there.
    let first = match chunks.next().await {
        Some(first) => first.map_err(internal)?,
        None => return Err(task.await.map_or_else(|error| Refused::internal(&error), ended_early)),
    };
    let rest = Export { chunks, task: Some(task), _image: image, _permit: permit };
    let body = stream::iter([Ok(first)]).chain(rest.into_stream());
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(body)).into_response())
}

fn ended_early(result: Result<Exported, RuntimeError>) -> Refused {
    let nothing = || io::Error::from(io::ErrorKind::UnexpectedEof);
    result.map_or_else(|error| Refused::internal(&error), |_| Refused::internal(&nothing()))
}

/// An export on its way out; holds the image.
struct Export {
    chunks: ReaderStream<pipe::Receiver>,
    task: Option<JoinHandle<Result<Exported, RuntimeError>>>,
    _image: HeldImage,
    _permit: SemaphorePermit<'static>,
}

impl Export {
    fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        stream::unfold(self, |mut export| async move {
            if let Some(chunk) = export.chunks.next().await {
                return Some((chunk, export));
            }
            // The worker has the last word: a tar that only stops is not one that is whole.
            match export.task.take()?.await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some((Err(io::Error::other(error)), export)),
                Err(error) => Some((Err(io::Error::other(error)), export)),
            }
        })
    }
}

/// Which images are compared.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DiffQuery {
    /// The first image.
    before: String,
    /// The second image.
    after: String,
}

/// How the file systems of two images differ: kind, mode, owner, size, content, target and extended attributes.
#[utoipa::path(get, operation_id = "compareImages", path = "/v1/images:diff", tag = "images", params(DiffQuery),
    responses((status = 200, description = "What differs", body = ImageDiff),
        (status = 404, description = "There is no such image", body = Problem),
        (status = 503, description = "Others read images now", body = Problem)))]
pub async fn diff(State(images): State<Images>, Query(query): Query<DiffQuery>) -> Result<Json<ImageDiff>, Refused> {
    let (before, after) = (images.resolve(&query.before)?, images.resolve(&query.after)?);
    let _permit = reader()?;
    let internal = |error: io::Error| Refused::internal(&error);
    let (reader, writer) = io::pipe().map_err(internal)?;
    let compared = images.runtime.compare_trees(before.layers.clone(), after.layers.clone(), OwnedFd::from(writer));
    let told = tokio::task::spawn_blocking(move || read_changes(reader));
    let (compared, told) = tokio::join!(compared, told);
    let (changes, is_truncated) = told.map_err(io::Error::other).and_then(|told| told).map_err(internal)?;
    // Whoever writes to a reader that went away fails, as it should.
    if !is_truncated {
        compared.map_err(|error| Refused::internal(&error))?;
    }
    let (before, after) = (before.digest.clone(), after.digest.clone());
    Ok(Json(ImageDiff { before, after, changes, is_truncated }))
}

/// Reads changes up to what is told at once; says whether there are more.
fn read_changes(reader: PipeReader) -> io::Result<(Vec<ImageChange>, bool)> {
    let input = BufReader::new(File::from(OwnedFd::from(reader)));
    // The bound cuts a change in two, which is an error of reading.
    let mut changes = Changes::new(input.take(CHANGES_BYTES_MAX));
    let mut told = Vec::new();
    loop {
        match changes.next_change() {
            Ok(None) => return Ok((told, false)),
            Ok(Some(_)) if told.len() == CHANGES_MAX => return Ok((told, true)),
            Ok(Some(change)) => told.push(shown(change)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !told.is_empty() => return Ok((told, true)),
            Err(error) => return Err(error),
        }
    }
}

fn shown(change: Change) -> ImageChange {
    let kind = match (&change.before, &change.after) {
        (None, _) => ChangeKind::Added,
        (_, None) => ChangeKind::Removed,
        (Some(_), Some(_)) => ChangeKind::Changed,
    };
    ImageChange {
        path: format!("/{}", String::from_utf8_lossy(&change.path)),
        change: kind,
        before: change.before.map(facts),
        after: change.after.map(facts),
    }
}

fn facts(facts: Facts) -> FileFacts {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    FileFacts {
        kind: match facts.kind {
            NodeKind::File => FileKind::File,
            NodeKind::Folder => FileKind::Folder,
            NodeKind::Symlink => FileKind::Symlink,
            NodeKind::Pipe => FileKind::Pipe,
            NodeKind::Whiteout | NodeKind::Other => FileKind::Other,
        },
        mode: format!("{:04o}", facts.mode),
        uid: facts.uid,
        gid: facts.gid,
        size_bytes: facts.size,
        sha256: facts.sha256,
        target: facts.target.map(text),
        attributes: facts.attributes.into_iter().map(|(name, value)| (text(name), hex(value))).collect(),
    }
}

/// Reads images again to see whether they are still what they were: every blob is hashed, every layer looked for.
#[utoipa::path(post, operation_id = "verifyImages", path = "/v1/images:verify", tag = "images",
    request_body = VerifyRequest,
    responses((status = 200, description = "What was found; damage is no error", body = Verification),
        (status = 404, description = "There is no such image", body = Problem),
        (status = 503, description = "Others read images now", body = Problem)))]
pub async fn verify(
    State(images): State<Images>,
    JsonBody(request): JsonBody<VerifyRequest>,
) -> Result<Json<Verification>, Refused> {
    let _permit = reader()?;
    let options = VerifyOptions { deep: request.deep, mends: !request.look_only };
    let verified = images
        .blocking(move |images| images.store.verify(images.runtime.as_ref(), request.image.as_deref(), options))
        .await
        .map_err(|error| Refused::internal(&error))?
        .map_err(|error| match error {
            VerifyError::Resolve(error) => unresolved(&error),
            error => Refused::internal(&error),
        })?;
    let image = |image: ampoule_engine::image::store::VerifiedImage| VerifiedImage {
        references: image.references,
        digest: image.digest,
        problems: image.problems,
        mended: image.mended,
        is_usable: image.is_usable,
    };
    Ok(Json(Verification {
        images: verified.images.into_iter().map(image).collect(),
        blobs: verified.blobs,
        bytes: verified.bytes,
        layers: verified.layers,
    }))
}
