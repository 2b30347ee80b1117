//! Uploaded tars of files: named by the SHA-256 of their bytes, kept for a while, taken over by the jobs that use them.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ampoule_client::types::{Problem, Upload};
use ampoule_engine::image::digest::Hasher;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::problem::{BODY_BROKEN, NO_UPLOAD, Refused};
use crate::request::too_large;

/// How often outdated uploads are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// How long a client may pause while it sends a body.
const CHUNK_TIME: Duration = Duration::from_secs(60);

/// The folder of uploads.
#[derive(Clone, Debug)]
pub struct Uploads {
    folder: PathBuf,
    bytes_max: u64,
}

impl Uploads {
    /// The uploads of a state folder, each of at most so many bytes.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(state: &Path, bytes_max: u64) -> std::io::Result<Uploads> {
        let folder = state.join("uploads");
        std::fs::create_dir_all(&folder)?;
        Ok(Uploads { folder, bytes_max })
    }

    /// The file of an upload; `None` is none.
    ///
    /// # Errors
    /// There is no such upload.
    pub async fn find(&self, id: Option<&str>) -> Result<Option<PathBuf>, Refused> {
        let Some(id) = id else { return Ok(None) };
        let hex = id.strip_prefix("sha256:").unwrap_or_default();
        let is_digest = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let file = self.folder.join(hex);
        if is_digest && tokio::fs::try_exists(&file).await.unwrap_or(false) {
            return Ok(Some(file));
        }
        let mut refused = Refused::new(NO_UPLOAD, format!("there is no upload `{id}`"));
        refused.problem.field = Some("files_upload".to_owned());
        Err(refused.hint("send it again with PUT /v1/uploads; uploads are kept for a limited time"))
    }

    async fn store(&self, body: Body) -> Result<Upload, Refused> {
        let internal = |error: std::io::Error| Refused::internal(&error);
        let partial = Partial(self.folder.join(format!("{}.part", Uuid::now_v7())));
        let mut file = tokio::fs::File::create(&partial.0).await.map_err(internal)?;
        let (sha256, size_bytes) = receive(body, &mut file, self.bytes_max).await?;
        file.sync_data().await.map_err(internal)?;
        let name = self.folder.join(&sha256);
        tokio::fs::rename(&partial.0, &name).await.map_err(internal)?;
        Ok(Upload { id: format!("sha256:{sha256}"), size_bytes })
    }

    /// Removes uploads that are older than `age`, until the process ends. Jobs that took one over keep it.
    pub async fn keep_retention(self, age: Duration) {
        let mut ticks = tokio::time::interval(SWEEP_PERIOD);
        loop {
            ticks.tick().await;
            let uploads = self.clone();
            let swept = tokio::task::spawn_blocking(move || uploads.sweep(age)).await;
            if let Ok(Err(error)) = swept {
                tracing::error!(%error, "could not remove outdated uploads");
            }
        }
    }

    fn sweep(&self, age: Duration) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let modified = entry.metadata()?.modified()?;
            if SystemTime::now().duration_since(modified).is_ok_and(|old| old > age) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Writes a body into a file; returns its SHA-256 in hexadecimal and its length.
///
/// # Errors
/// The body is longer than `bytes_max` or did not arrive, or the file cannot be written.
pub async fn receive(body: Body, file: &mut tokio::fs::File, bytes_max: u64) -> Result<(String, u64), Refused> {
    let mut chunks = body.into_data_stream();
    let mut hash = Hasher::default();
    let mut size_bytes = 0u64;
    while let Some(chunk) = tokio::time::timeout(CHUNK_TIME, chunks.next()).await.map_err(|_| stalled())? {
        let chunk = chunk.map_err(|error| Refused::new(BODY_BROKEN, error.to_string()))?;
        size_bytes += chunk.len() as u64;
        if size_bytes > bytes_max {
            return Err(too_large(bytes_max));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(|error| Refused::internal(&error))?;
    }
    file.flush().await.map_err(|error| Refused::internal(&error))?;
    Ok((hash.finish().hex().to_owned(), size_bytes))
}

fn stalled() -> Refused {
    Refused::new(BODY_BROKEN, format!("nothing of the body arrived for {} s", CHUNK_TIME.as_secs()))
}

/// A file that is removed unless it got another name.
#[derive(Debug)]
pub struct Partial(pub PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It is gone when it was renamed; otherwise the sweep finds what stays here.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Uploads a tar of files for jobs to come. The same bytes get the same id.
#[utoipa::path(put, operation_id = "uploadFiles", path = "/v1/uploads", tag = "jobs",
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "The tar"),
    responses((status = 201, description = "It was made", body = Upload), (status = 413, description = "The body is too large", body = Problem)))]
pub async fn create(State(uploads): State<Uploads>, body: Body) -> Result<(StatusCode, Json<Upload>), Refused> {
    Ok((StatusCode::CREATED, Json(uploads.store(body).await?)))
}
