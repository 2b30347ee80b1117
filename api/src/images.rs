//! Images over HTTP. The store does the work, and blocks; bodies are handed to it chunk by chunk, so that an archive
//! of any length needs no memory.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ampoule_client::types::{self, ImageList, ImageRemoved, Problem};
use ampoule_engine::image::reference::Reference;
use ampoule_engine::image::registry::Registry;
use ampoule_engine::image::store::{HeldImage, ImageSummary, ImportError, RemoveError, ResolveError, Store};
use ampoule_engine::runtime::{Runtime, RuntimeError};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path as PathOf, State};
use axum::http::StatusCode;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use utoipa::IntoParams;

use crate::problem::{
    BODY_BROKEN, BUSY, IMAGE_DAMAGED, IMAGE_IN_USE, INVALID_IMAGE, Kind, NO_IMAGE, Refused, sentence,
};
use crate::request::{Query, too_large};

pub mod transfers;

/// Imports under way at once; more are told to come back.
const IMPORTS_MAX: usize = 2;
/// Chunks of a body that wait for the store.
const CHUNKS_MAX: usize = 16;
/// How long a client may pause while it sends an archive.
const CHUNK_TIME: Duration = Duration::from_secs(60);

/// The images. Cloning shares them.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
    runtime: Arc<dyn Runtime>,
    bytes_max: u64,
    imports: Arc<Semaphore>,
    registry: Registry,
    transfers: Arc<Semaphore>,
}

impl Images {
    /// Opens the store of a state folder and mends it. Archives may have so many bytes.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn open(
        state: &Path,
        runtime: Arc<dyn Runtime>,
        registry: Registry,
        bytes_max: u64,
    ) -> io::Result<Images> {
        let store = Arc::new(Store::open(state).map_err(io::Error::other)?);
        let (imports, transfers) = (Semaphore::new(IMPORTS_MAX), Semaphore::new(transfers::TRANSFERS_MAX));
        let (imports, transfers) = (Arc::new(imports), Arc::new(transfers));
        let images = Images { store, runtime, bytes_max, imports, registry, transfers };
        let reconciled = images.blocking(|images| images.store.reconcile(images.runtime.as_ref())).await?;
        let reconciled = reconciled.map_err(io::Error::other)?;
        let (removed, unpacked, damaged) =
            (reconciled.removed.len(), reconciled.unpacked.len(), reconciled.damaged.len());
        if removed + unpacked + damaged > 0 {
            tracing::info!(removed, unpacked, damaged, "mended the layers of images");
        }
        Ok(images)
    }

    /// Finds an image; it stays as long as the answer is kept. Takes no disk access.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn resolve(&self, reference: &str) -> Result<HeldImage, Refused> {
        self.store.resolve(reference).map_err(|error| unresolved(&error))
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Images) -> T + Send + 'static) -> io::Result<T> {
        let images = self.clone();
        tokio::task::spawn_blocking(move || work(&images)).await.map_err(io::Error::other)
    }

    async fn import(&self, body: Body, name: Option<Reference>) -> Result<Vec<ImageSummary>, Refused> {
        let busy = || Refused::new(BUSY, format!("{IMPORTS_MAX} imports are under way")).retry_after(5);
        let _permit = self.imports.try_acquire().map_err(|_| busy())?;
        let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
        let sent = send(body, sender, self.bytes_max);
        let imported = self.blocking(move |images| {
            let archive = Chunks { receiver, current: Bytes::new() };
            images.store.import(images.runtime.as_ref(), archive, name.as_ref())
        });
        let (sent, imported) = tokio::join!(sent, imported);
        // A body that broke off is the cause of whatever the store says of it.
        sent?;
        imported.map_err(|error| Refused::internal(&error))?.map_err(|error| unimported(&error))
    }
}

/// Hands a body to the store. A store that listens no more has its own reason.
async fn send(body: Body, sender: mpsc::Sender<io::Result<Bytes>>, bytes_max: u64) -> Result<(), Refused> {
    let mut chunks = body.into_data_stream();
    let mut bytes = 0u64;
    loop {
        let refused = match tokio::time::timeout(CHUNK_TIME, chunks.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(chunk))) => {
                bytes += chunk.len() as u64;
                if bytes <= bytes_max {
                    if sender.send(Ok(chunk)).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                too_large(bytes_max)
            }
            Ok(Some(Err(error))) => Refused::new(BODY_BROKEN, error.to_string()),
            Err(_) => Refused::new(BODY_BROKEN, format!("nothing arrived for {} s", CHUNK_TIME.as_secs())),
        };
        // Without this the store would take the end for the end of the archive.
        let _ = sender.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
        return Err(refused);
    }
}

/// A body, read on a thread that may block.
struct Chunks {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

fn told(kind: Kind, error: &dyn std::error::Error) -> Refused {
    let (detail, hint) = sentence(error);
    let refused = Refused::new(kind, detail);
    match hint {
        Some(hint) => refused.hint(hint),
        None => refused,
    }
}

fn unresolved(error: &ResolveError) -> Refused {
    match error {
        ResolveError::Invalid(_) | ResolveError::Ambiguous { .. } => {
            let (detail, hint) = sentence(error);
            Refused::field("image", detail).hint(hint.unwrap_or_else(|| "`debian:12` is a name".to_owned()))
        }
        ResolveError::NotFound { .. } | ResolveError::Moved { .. } => told(NO_IMAGE, error),
        ResolveError::Damaged { .. } => told(IMAGE_DAMAGED, error),
    }
}

fn unimported(error: &ImportError) -> Refused {
    match error {
        ImportError::Store(_)
        | ImportError::Unpack { source: RuntimeError::Gone | RuntimeError::System { .. }, .. } => {
            Refused::internal(error)
        }
        error => told(INVALID_IMAGE, error),
    }
}

fn unremoved(error: &RemoveError) -> Refused {
    match error {
        RemoveError::Resolve(error) => unresolved(error),
        RemoveError::InUse { .. } => told(IMAGE_IN_USE, error),
        RemoveError::Store(_) | RemoveError::Layer { .. } => Refused::internal(error),
    }
}

fn document(summary: ImageSummary) -> types::Image {
    types::Image {
        reference: summary.reference,
        digest: summary.digest,
        size_bytes: summary.size_bytes,
        layers: u32::try_from(summary.layers).unwrap_or(u32::MAX),
        created: summary.created.and_then(|time| time.parse().ok()),
        damage: summary.damage,
        config: None,
    }
}

fn detailed(image: &HeldImage) -> types::Image {
    let config = &image.config;
    types::Image {
        reference: image.reference.clone(),
        digest: image.digest.clone(),
        size_bytes: image.size_bytes,
        layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
        created: image.created.as_ref().and_then(|time| time.parse().ok()),
        damage: None,
        config: Some(types::ImageConfig {
            env: config.env.iter().cloned().collect(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            working_dir: config.working_dir.clone(),
            user: config.user.clone(),
            labels: config.labels.clone(),
        }),
    }
}

/// Lists the images, by name. One with several names comes several times.
#[utoipa::path(get, operation_id = "listImages", path = "/v1/images", tag = "images",
    responses((status = 200, description = "The images", body = ImageList)))]
pub async fn list(State(images): State<Images>) -> Json<ImageList> {
    Json(ImageList { images: images.store.list().into_iter().map(document).collect() })
}

/// What an imported image is called.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct ImportQuery {
    /// The name; without it, those that the archive says.
    name: Option<String>,
}

/// Imports an archive: the tar of a root file system, what `docker save` writes, or an OCI image layout; plain, gzip
/// or zstd. All of that is told by looking.
#[utoipa::path(post, operation_id = "importImage", path = "/v1/images/import", tag = "images", params(ImportQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "The archive"),
    responses((status = 201, description = "The images that came", body = ImageList),
        (status = 413, description = "The archive is too large", body = Problem),
        (status = 422, description = "The archive holds no image that can be taken", body = Problem),
        (status = 503, description = "Other imports are under way", body = Problem)))]
pub async fn import(
    State(images): State<Images>,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Result<(StatusCode, Json<ImageList>), Refused> {
    let name = query.name.as_deref().map(Reference::parse).transpose();
    let name = name.map_err(|error| Refused::field("name", error.to_string()))?;
    let imported = images.import(body, name).await?;
    Ok((StatusCode::CREATED, Json(ImageList { images: imported.into_iter().map(document).collect() })))
}

/// Tells all that is known of an image. The name is the rest of the path; slashes need no escape.
#[utoipa::path(get, operation_id = "getImage", path = "/v1/images/{reference}", tag = "images",
    params(("reference" = String, Path, description = "A name, a digest, or the first 12 or more digits of one")),
    responses((status = 200, description = "The image", body = types::Image),
        (status = 404, description = "There is none", body = Problem)))]
pub async fn get(
    State(images): State<Images>,
    PathOf(reference): PathOf<String>,
) -> Result<Json<types::Image>, Refused> {
    Ok(Json(detailed(&images.resolve(&reference)?)))
}

/// Takes a name away, and the image with it when that was its last one; a digest takes all names of an image.
#[utoipa::path(delete, operation_id = "removeImage", path = "/v1/images/{reference}", tag = "images",
    params(("reference" = String, Path, description = "A name, a digest, or the first 12 or more digits of one")),
    responses((status = 200, description = "What is gone", body = ImageRemoved),
        (status = 404, description = "There is none", body = Problem),
        (status = 409, description = "Jobs need it", body = Problem)))]
pub async fn remove(
    State(images): State<Images>,
    PathOf(reference): PathOf<String>,
) -> Result<Json<ImageRemoved>, Refused> {
    let removed = images.blocking(move |images| images.store.remove(images.runtime.as_ref(), &reference)).await;
    let removed = removed.map_err(|error| Refused::internal(&error))?.map_err(|error| unremoved(&error))?;
    Ok(Json(ImageRemoved { untagged: removed.untagged, removed: removed.removed, freed_bytes: removed.freed_bytes }))
}
