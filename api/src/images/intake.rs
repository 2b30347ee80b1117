//! Archives that come in as bodies; they are handed to the store chunk by chunk, so that one of any length needs no
//! memory.

use std::fmt::Display;
use std::io::{self, Read};
use std::time::Duration;

use ampoule_client::types::{ImageList, ImagesLoaded, Problem};
use ampoule_engine::image::reference::Reference;
use ampoule_engine::image::store::{ImageSummary, ImportError, LayerError, StoreError};
use ampoule_engine::runtime::RuntimeError;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::document::{document, loaded};
use super::{IMPORTS_MAX, Images, told};
use crate::problem::{BODY_BROKEN, BUSY, DISK_FULL, INVALID_IMAGE, Refused};
use crate::request::{Query, too_large};

/// Chunks of a body that wait for the store.
const CHUNKS_MAX: usize = 16;
/// How long a client may pause while it sends an archive.
const CHUNK_TIME: Duration = Duration::from_secs(60);
/// How long the rest of a body is read that was refused.
pub(super) const DISCARD_TIME: Duration = Duration::from_secs(10);

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
    Ok((StatusCode::CREATED, Json(ImageList { images: imported.into_iter().map(document).collect(), next: None })))
}

/// Loads the images of an archive: what `docker save` writes, or an OCI image layout; plain, gzip or zstd, told by
/// looking. Of an image for several platforms this machine's is taken, and the answer says what was left out.
#[utoipa::path(post, operation_id = "loadImages", path = "/v1/images:load", tag = "images",
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "The archive"),
    responses((status = 201, description = "The images that came", body = ImagesLoaded),
        (status = 413, description = "The archive is too large", body = Problem),
        (status = 422, description = "The archive holds no image that can be taken", body = Problem),
        (status = 503, description = "Other imports are under way", body = Problem),
        (status = 507, description = "The disk is full", body = Problem)))]
pub async fn load(State(images): State<Images>, body: Body) -> Result<(StatusCode, Json<ImagesLoaded>), Refused> {
    let found = images.take_in(body, |images, archive| images.store.load(images.runtime.as_ref(), archive)).await?;
    Ok((StatusCode::CREATED, Json(loaded(found))))
}

impl Images {
    async fn import(&self, body: Body, name: Option<Reference>) -> Result<Vec<ImageSummary>, Refused> {
        let import = move |images: &Images, archive: Chunks| {
            images.store.import(images.runtime.as_ref(), archive, name.as_ref())
        };
        self.take_in(body, import).await
    }

    /// Hands a body to the store, which does `work` with it.
    async fn take_in<T: Send + 'static>(
        &self,
        body: Body,
        work: impl FnOnce(&Images, Chunks) -> Result<T, ImportError> + Send + 'static,
    ) -> Result<T, Refused> {
        let busy = || Refused::new(BUSY, format!("{IMPORTS_MAX} imports are under way")).retry_after(5);
        let _permit = self.imports.try_acquire().map_err(|_| busy())?;
        self.read(body.into_data_stream(), work).await?.map_err(|error| unimported(&error))
    }

    /// Has `work` read a body, or a part of one.
    pub(crate) async fn read<T: Send + 'static, E: Display>(
        &self,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        work: impl FnOnce(&Images, Chunks) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
        let sent = send(body, sender, self.bytes_max);
        let done = self.blocking(move |images| work(images, Chunks { receiver, current: Bytes::new() }));
        let (sent, done) = tokio::join!(sent, done);
        // A body that broke off is the cause of whatever is said of it.
        sent?;
        done.map_err(|error| Refused::internal(&error))
    }
}

/// Hands a body to the store. A store that listens no more has its own reason.
async fn send<E: Display>(
    mut chunks: impl Stream<Item = Result<Bytes, E>> + Unpin,
    sender: mpsc::Sender<io::Result<Bytes>>,
    bytes_max: u64,
) -> Result<(), Refused> {
    let mut bytes = 0u64;
    loop {
        let refused = match tokio::time::timeout(CHUNK_TIME, chunks.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(chunk))) => {
                bytes += chunk.len() as u64;
                if bytes <= bytes_max {
                    if sender.send(Ok(chunk)).await.is_err() {
                        discard(chunks).await;
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

/// Reads on for a while though nobody wants it: many clients read the answer only when they have sent everything, and
/// one that is cut off in the middle would never learn why it was refused.
async fn discard<E>(mut chunks: impl Stream<Item = Result<Bytes, E>> + Unpin) {
    let rest = async { while let Some(Ok(_)) = chunks.next().await {} };
    let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
}

/// A body, read on a thread that may block.
pub(crate) struct Chunks {
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

fn unimported(error: &ImportError) -> Refused {
    match error {
        error if is_disk_full(error) => disk_full(),
        ImportError::Store(_)
        | ImportError::Layer(LayerError::Unpack { source: RuntimeError::Gone | RuntimeError::System { .. }, .. }) => {
            Refused::internal(error)
        }
        error => told(INVALID_IMAGE, error),
    }
}

/// Something that the store could not do.
pub(super) fn unstored(error: &StoreError) -> Refused {
    if is_disk_full(error) { disk_full() } else { Refused::internal(error) }
}

pub(super) fn disk_full() -> Refused {
    Refused::new(DISK_FULL, "there is no room left where the service keeps its images; nothing was changed")
        .hint("`ampoule image prune` lets go what nobody needs; then try again")
}

pub(super) fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.into_iter().any(|cause| match cause.downcast_ref::<io::Error>() {
        Some(error) => matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
        // A worker is another process, and all that comes from it is its sentence.
        None => {
            matches!(cause.downcast_ref(), Some(RuntimeError::Layer(said)) if said.contains("No space left on device"))
        }
    })
}
