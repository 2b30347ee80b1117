//! How images go to a registry: blobs first, several at once, what is there already left out; then the manifest, exactly
//! the bytes that are stored; then the list that it was chosen from, where all that the list names is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval};

use super::index::Entry;
use super::transfer::{BLOBS_AT_ONCE, LayerState, Meter, Progress, Stop};
use super::{HeldImage, ResolveError, Store};
use crate::image::digest::Digest;
use crate::image::manifest::{self, Content, Document, MANIFEST_BYTES_MAX, Manifest};
use crate::image::reference::Reference;
use crate::image::registry::{BlobSource, Credentials, Errand, Registry, RegistryError, Repository, Sent};

/// Bytes read from a blob at a time.
const PIECE_BYTES: usize = 128 * 1024;
/// How often it is told how much was sent.
const TOLD_EVERY: Duration = Duration::from_millis(200);
/// Repositories of the same registry that are asked for a blob before it is uploaded.
const NEIGHBOURS_MAX: usize = 3;

/// What is to be pushed.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// The image, as it is known here.
    pub image: String,
    /// Where it goes.
    pub target: Reference,
    /// Who pushes; the service's own credentials count when absent.
    pub credentials: Option<Credentials>,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Where it is now.
    pub target: String,
    /// The digest of what the name leads to there.
    pub digest: Digest,
    /// Whether the image came with a list for several platforms that was left out, since the registry has not all of
    /// what the list names.
    pub index_left_out: bool,
}

/// Why an image was not pushed. Its name in the registry is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// There is no such image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The registry did not take it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The target cannot be pushed to.
    #[error("`{0}` cannot be pushed to: its digest follows from the image\nhint: give a name with a tag")]
    Target(Reference),
    /// What is stored cannot be read.
    #[error("the image `{image}` is damaged: {damage}\nhint: pull or import it again")]
    Damaged {
        /// The image.
        image: String,
        /// What is wrong.
        damage: String,
    },
    /// Somebody asked for the end.
    #[error("the push was stopped")]
    Stopped,
}

/// The bytes of a stored blob, for a registry.
struct Stored {
    path: PathBuf,
    /// How far it was read, for those who watch.
    position: Arc<AtomicU64>,
}

impl BlobSource for Stored {
    fn body(&self, start: u64, length: u64) -> io::Result<reqwest::Body> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        let reader = tokio::fs::File::from_std(file).take(length);
        let position = Arc::clone(&self.position);
        position.store(start, Ordering::Relaxed);
        let pieces = stream::try_unfold((reader, position), |(mut reader, position)| async move {
            let mut piece = vec![0; PIECE_BYTES];
            let count = reader.read(&mut piece).await?;
            piece.truncate(count);
            position.fetch_add(count as u64, Ordering::Relaxed);
            io::Result::Ok((count > 0).then(|| (Bytes::from(piece), (reader, position))))
        });
        Ok(reqwest::Body::wrap_stream(pieces))
    }
}

impl Store {
    /// Pushes an image, and tells how far it is. Blocks; to be called where tokio allows it (`spawn_blocking`).
    ///
    /// # Errors
    /// There is no such image, or the registry does not take it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn push(
        &self,
        registry: &Registry,
        request: &PushRequest,
        told: &(dyn Fn(Progress) + Sync),
        stop: &Stop,
    ) -> Result<Pushed, PushError> {
        if request.target.digest().is_some() {
            return Err(PushError::Target(request.target.clone()));
        }
        // Held to the end, so that nobody removes what is being sent.
        let image = self.resolve(&request.image)?;
        Handle::current().block_on(async {
            tokio::select! {
                pushed = self.push_all(registry, request, &image, told) => pushed,
                () = stop.stopped() => Err(PushError::Stopped),
            }
        })
    }

    async fn push_all(
        &self,
        registry: &Registry,
        request: &PushRequest,
        image: &HeldImage,
        told: &(dyn Fn(Progress) + Sync),
    ) -> Result<Pushed, PushError> {
        let damaged = |damage: String| PushError::Damaged { image: request.image.clone(), damage };
        let (entry, from) = self.entry_and_neighbours(image, &request.target);
        let entry = entry.ok_or_else(|| damaged("it is not in the list any more".to_owned()))?;
        let bytes = self.blobs.read(&entry.digest, MANIFEST_BYTES_MAX);
        let bytes = Bytes::from(bytes.map_err(|problem| damaged(format!("its manifest {problem}")))?);
        let manifest = match manifest::parse(&bytes) {
            Ok(Document::Manifest(manifest)) => manifest,
            _ => return Err(damaged("its manifest cannot be read".to_owned())),
        };
        let listed = manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
        told(Progress::Resolved { digest: entry.digest.clone(), layers: listed });
        let errand = Errand::Push { from: from.clone() };
        let repository = registry.repository(&request.target, request.credentials.clone(), &errand)?;
        self.send_blobs(&repository, &manifest, &from, told).await?;
        let tag = request.target.tag().unwrap_or_default();
        let (digest, index_left_out) = match self.complete_index(&repository, &entry).await? {
            Listed::Complete(index, index_bytes, index_type) => {
                send_manifest(&repository, &entry.digest.to_string(), &bytes, &entry).await?;
                repository.put_manifest(tag, &index_bytes, &index_type).await?;
                (index, false)
            }
            listed => {
                send_manifest(&repository, tag, &bytes, &entry).await?;
                (entry.digest.clone(), matches!(listed, Listed::Incomplete))
            }
        };
        Ok(Pushed { target: request.target.to_string(), digest, index_left_out })
    }

    /// The line of the list that says most of an image, and the repositories beside the target that may have its blobs.
    fn entry_and_neighbours(&self, image: &HeldImage, target: &Reference) -> (Option<Entry>, Vec<String>) {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let same = || records.iter().filter(|record| record.entry.digest.to_string() == image.digest);
        let entry = same().find(|record| record.entry.origin.is_some()).or_else(|| same().next());
        let shares = |record: &&super::Record| {
            let blobs = record.image.as_ref().map(|other| &other.contents.blobs);
            blobs.is_ok_and(|blobs| blobs.keys().any(|digest| image.contents.blobs.contains_key(digest)))
        };
        let sharing = records.iter().filter(shares);
        let names = sharing.flat_map(|record| {
            let origin = record.entry.origin.as_ref().map(|origin| origin.repository.clone());
            let name = record.entry.name.as_ref().map(Reference::repository);
            origin.into_iter().chain(name)
        });
        let prefix = format!("{}/", target.domain());
        let mut from: Vec<String> = names.filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect();
        from.sort();
        from.dedup();
        from.retain(|path| path != target.path());
        from.truncate(NEIGHBOURS_MAX);
        (entry.map(|record| record.entry.clone()), from)
    }

    async fn send_blobs(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        from: &[String],
        told: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), PushError> {
        let parts = manifest.layers.iter().chain([&manifest.config]);
        let once: BTreeMap<&Digest, &Content> = parts.map(|part| (&part.digest, part)).collect();
        let sends = once.into_values().map(|content| self.send_blob(repository, content, from, told));
        stream::iter(sends).buffer_unordered(BLOBS_AT_ONCE).try_collect().await
    }

    async fn send_blob(
        &self,
        repository: &Repository,
        content: &Content,
        from: &[String],
        told: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), PushError> {
        let meter = Meter::new(told, &content.digest, content.size);
        let position = Arc::new(AtomicU64::new(0));
        let source = Stored { path: self.blobs.path(&content.digest), position: Arc::clone(&position) };
        let at = |bytes| meter.at(bytes);
        let watch = async {
            let mut ticks = interval(TOLD_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                meter.at(position.load(Ordering::Relaxed));
            }
        };
        let sent = tokio::select! {
            sent = repository.send_blob(content, from, &source, &at) => sent?,
            () = watch => unreachable!("watching has no end"),
        };
        let state = match sent {
            Sent::Existed => LayerState::Present,
            Sent::Mounted => LayerState::Mounted,
            Sent::Uploaded => LayerState::Sent,
        };
        meter.tell(state, content.size);
        Ok(())
    }

    /// The list that an image was chosen from, if the registry has all else that it names.
    async fn complete_index(&self, repository: &Repository, entry: &Entry) -> Result<Listed, RegistryError> {
        let Some((index, _)) = entry.origin.as_ref().and_then(|origin| origin.index.as_ref()) else {
            return Ok(Listed::Nowhere);
        };
        let Ok(bytes) = self.blobs.read(index, MANIFEST_BYTES_MAX) else { return Ok(Listed::Incomplete) };
        let Ok(Document::Index(entries)) = manifest::parse(&bytes) else { return Ok(Listed::Incomplete) };
        if !entries.iter().any(|listed| listed.content.digest == entry.digest) {
            return Ok(Listed::Incomplete);
        }
        for listed in entries.iter().filter(|listed| listed.content.digest != entry.digest) {
            if !repository.has_manifest(&listed.content.digest.to_string()).await? {
                return Ok(Listed::Incomplete);
            }
        }
        let media_type = media_type(&bytes).unwrap_or_else(|| manifest::INDEX_TYPE.to_owned());
        Ok(Listed::Complete(index.clone(), bytes.into(), media_type))
    }
}

/// How it stands with the list that an image was chosen from.
enum Listed {
    /// There is none.
    Nowhere,
    /// The registry has not all of it.
    Incomplete,
    /// It can be pushed: its digest, its bytes and its type.
    Complete(Digest, Bytes, String),
}

/// Stores a manifest, and sees to it that what it is about can be found from there.
async fn send_manifest(repository: &Repository, name: &str, bytes: &Bytes, entry: &Entry) -> Result<(), RegistryError> {
    let is_tracked = repository.put_manifest(name, bytes, &entry.media_type).await?;
    match subject(bytes) {
        Some((subject, kind)) if !is_tracked => {
            let descriptor = json!({
                "mediaType": entry.media_type,
                "digest": entry.digest.to_string(),
                "size": entry.size,
                "artifactType": kind,
            });
            repository.add_referrer(&subject, descriptor).await
        }
        _ => Ok(()),
    }
}

fn media_type(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outline {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Outline>(bytes).ok()?.media_type
}

/// What a manifest is about, if it says, and what kind of thing itself is.
fn subject(bytes: &[u8]) -> Option<(Digest, String)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outline {
        subject: Option<Part>,
        config: Part,
        artifact_type: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Part {
        media_type: String,
        digest: Digest,
    }
    let outline: Outline = serde_json::from_slice(bytes).ok()?;
    Some((outline.subject?.digest, outline.artifact_type.unwrap_or(outline.config.media_type)))
}
