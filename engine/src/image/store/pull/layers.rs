//! Layers on their way from a registry: several at once, each content once however many pulls want it, each into a file
//! and at once into the worker that unpacks it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::PullError;
use crate::image::config::Config;
use crate::image::digest::{Digest, Hasher};
use crate::image::manifest::{Content, Manifest};
use crate::image::registry::Repository;
use crate::image::store::blobs::{Arrived, Incoming};
use crate::image::store::refusal::LayerError;
use crate::image::store::transfer::{BLOBS_AT_ONCE, LayerState, Meter, Progress, Stop};
use crate::image::store::{Store, system};
use crate::runtime::{Runtime, RuntimeError, Unpacked};
use crate::spec::LayerId;

/// Pieces of a layer that wait for the disk.
const CHUNKS_MAX: usize = 16;
/// Bytes of a layer that wait for being unpacked.
const PIPE_BYTES: usize = 1024 * 1024;
/// Bytes read from a stored layer at a time.
const REPLAY_BYTES: usize = 256 * 1024;

/// Layers that are being fetched, so that each is fetched once.
#[derive(Default)]
pub(in crate::image::store) struct Flights {
    known: Mutex<HashMap<Digest, Weak<Flight>>>,
}

/// Held by whoever fetches a layer; then what came out of it, for those who waited.
type Flight = tokio::sync::Mutex<Option<LayerId>>;

impl Flights {
    fn of(&self, digest: &Digest) -> Arc<Flight> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = known.get(digest).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::default();
        known.insert(digest.clone(), Arc::downgrade(&flight));
        flight
    }
}

/// What the layers of one pull need.
pub(super) struct Means<'pull> {
    pub(super) runtime: &'pull dyn Runtime,
    pub(super) repository: &'pull Repository,
    pub(super) incoming: &'pull Incoming,
    pub(super) on_disk: &'pull HashSet<LayerId>,
    pub(super) told: &'pull (dyn Fn(Progress) + Sync),
    /// That of the caller.
    pub(super) stop: &'pull Stop,
    /// Ends the other layers when one has failed.
    pub(super) failed: Stop,
    /// What was unpacked.
    pub(super) unpacked: Mutex<Vec<Unpacked>>,
    /// What came out of content that was not what it should be.
    pub(super) unwanted: Mutex<HashSet<LayerId>>,
}

impl Store {
    /// Brings all layers here; returns how many had to be fetched. When one fails the others are stopped, and all have
    /// ended when this returns.
    pub(super) async fn fetch_layers(
        &self,
        means: &Means<'_>,
        manifest: &Manifest,
        config: &Config,
    ) -> Result<usize, PullError> {
        let layers = manifest.layers.iter().zip(&config.diff_ids).enumerate();
        let layers = layers.map(|(at, (content, expected))| self.layer(means, at + 1, content, expected));
        let outcomes: Vec<_> = stream::iter(layers).buffer_unordered(BLOBS_AT_ONCE).collect().await;
        let mut fetched = 0;
        let mut failure = None;
        for outcome in outcomes {
            match outcome {
                Ok(is_new) => fetched += usize::from(is_new),
                Err(error) => {
                    // What was stopped because another failed is not the reason.
                    if failure.as_ref().is_none_or(|known| matches!(known, PullError::Stopped)) {
                        failure = Some(error);
                    }
                }
            }
        }
        failure.map_or(Ok(fetched), Err)
    }

    /// Brings one layer here; true when it had to be fetched.
    async fn layer(
        &self,
        means: &Means<'_>,
        number: usize,
        content: &Content,
        expected: &LayerId,
    ) -> Result<bool, PullError> {
        let brought = self.bring(means, number, content, expected).await;
        if brought.is_err() {
            means.failed.stop();
        }
        brought
    }

    async fn bring(
        &self,
        means: &Means<'_>,
        number: usize,
        content: &Content,
        expected: &LayerId,
    ) -> Result<bool, PullError> {
        let flight = self.flights.of(&content.digest);
        let mut landed = means.unless_stopped(async { Ok(flight.lock().await) }).await?;
        let is_stored = self.blobs.size(&content.digest) == Some(content.size);
        let known = landed.clone().filter(|_| is_stored);
        let known =
            known.or_else(|| (is_stored && self.has_unpacked(means, content, expected)).then(|| expected.clone()));
        let (actual, is_new) = match known {
            Some(layer) => {
                let state = LayerState::Present;
                let (digest, total) = (content.digest.clone(), content.size);
                (means.told)(Progress::Layer { digest, state, bytes: total, total });
                (layer, false)
            }
            None => {
                let meter = Meter::new(means.told, &content.digest, content.size);
                // Taken before a connection is, so that nobody holds a connection who waits for somebody without one.
                let _permit = means.unless_stopped(async { Ok(self.unpacks.acquire().await) }).await?;
                let replayed = if is_stored { self.replay(means, number, content).await? } else { None };
                let is_new = replayed.is_none();
                let layer = match replayed {
                    Some(layer) => layer,
                    None => self.fetch(means, number, content, &meter).await?,
                };
                meter.tell(LayerState::Unpacked, content.size);
                (layer, is_new)
            }
        };
        *landed = Some(actual.clone());
        if actual != *expected {
            means.unwanted(actual.clone());
            return Err(LayerError::DiffId { number, expected: expected.clone(), actual }.into());
        }
        Ok(is_new)
    }

    /// Whether an image that is not damaged has this layer, unpacked to what is expected.
    fn has_unpacked(&self, means: &Means<'_>, content: &Content, expected: &LayerId) -> bool {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let images = records.iter().filter_map(|record| record.image.as_ref().ok());
        let mut pairs = images.flat_map(|image| &image.contents.layers);
        means.on_disk.contains(expected) && pairs.any(|(digest, layer)| *digest == content.digest && layer == expected)
    }

    /// Unpacks a layer that is stored, and verifies it on the way. `None` when it has decayed.
    async fn replay(&self, means: &Means<'_>, number: usize, content: &Content) -> Result<Option<LayerId>, PullError> {
        let file = self.blobs.open_blob(&content.digest)?;
        let (reader, writer) = pipe()?;
        let replayed = spawn_blocking(move || replay(file, writer));
        let (unpacked, replayed) = future::join(means.runtime.unpack_layer(reader), replayed).await;
        let is_whole = matches!(replayed, Ok(Ok(digest)) if digest == content.digest);
        let failed = |source| LayerError::Unpack { number, blob: content.digest.clone(), source }.into();
        match unpacked {
            Ok(unpacked) if is_whole => Ok(Some(means.unpacked(unpacked))),
            Err(source @ RuntimeError::Gone) => Err(failed(source)),
            Err(source) if is_whole => Err(failed(source)),
            // Decayed content that still unpacks to something, which another image may have all the same.
            Ok(unpacked) => {
                means.unwanted(unpacked.layer);
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }

    /// Fetches a layer, to a file and into the worker that unpacks it at once, and takes the file over.
    async fn fetch(
        &self,
        means: &Means<'_>,
        number: usize,
        content: &Content,
        meter: &Meter<'_>,
    ) -> Result<LayerId, PullError> {
        let (path, file) = means.incoming.draft()?;
        let (reader, writer) = pipe()?;
        let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
        let writing = spawn_blocking(move || write(receiver, file, writer));
        let at = |bytes| meter.at(bytes);
        let downloading = async {
            let blob = async { Ok(means.repository.blob(content, &sender, &at).await?) };
            let downloaded = means.unless_stopped(blob).await;
            // Without a sender the writer ends, the pipe is closed, and so the worker ends.
            drop(sender);
            downloaded
        };
        let (downloaded, unpacked, written) =
            future::join3(downloading, means.runtime.unpack_layer(reader), writing).await;
        let lost = |error: io::Error| PullError::Store(system("write", &path)(error));
        let verified = written.map_err(|error| lost(io::Error::other(error))).and_then(|written| written.map_err(lost));
        let verified = verified.and_then(|digest| downloaded.map(|()| digest)).and_then(|actual| {
            let expected = content.digest.clone();
            if actual == expected { Ok(()) } else { Err(LayerError::Corrupt { number, expected, actual }.into()) }
        });
        match (verified, unpacked) {
            (Ok(()), Ok(unpacked)) => {
                self.blobs.adopt(&Arrived { path, digest: content.digest.clone(), size: content.size })?;
                Ok(means.unpacked(unpacked))
            }
            (Ok(()), Err(source)) => Err(LayerError::Unpack { number, blob: content.digest.clone(), source }.into()),
            (Err(error), Ok(unpacked)) => {
                means.unwanted(unpacked.layer);
                Err(error)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }
}

impl Means<'_> {
    /// Remembers what a layer turned out to be, and says its name.
    fn unpacked(&self, unpacked: Unpacked) -> LayerId {
        let layer = unpacked.layer.clone();
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).push(unpacked);
        layer
    }

    /// Remembers a layer that came out of content that is refused.
    fn unwanted(&self, layer: LayerId) {
        self.unwanted.lock().unwrap_or_else(PoisonError::into_inner).insert(layer);
    }

    /// Does something unless the pull is stopped, or another layer fails, before it is done.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, PullError>>) -> Result<T, PullError> {
        tokio::select! {
            done = work => done,
            () = self.stop.stopped() => Err(PullError::Stopped),
            () = self.failed.stopped() => Err(PullError::Stopped),
        }
    }
}

/// A pipe from here to a worker.
fn pipe() -> Result<(File, File), PullError> {
    let made = io::pipe().map_err(|error| PullError::Store(system("make", std::path::Path::new("a pipe"))(error)));
    let (reader, writer) = made?;
    // A smaller one does as well, only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
    Ok((OwnedFd::from(reader).into(), OwnedFd::from(writer).into()))
}

/// Writes what comes to a file that is on disk when this returns, and on to a worker as long as that listens; returns
/// the digest.
fn write(mut receiver: mpsc::Receiver<Bytes>, mut file: File, worker: File) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    let mut worker = Some(worker);
    while let Some(chunk) = receiver.blocking_recv() {
        hasher.update(&chunk);
        file.write_all(&chunk)?;
        // A worker that ends early has its own reason, and says it. What came is still compared to its digest, since
        // wrong content is the better explanation.
        worker = worker.filter(|mut worker| worker.write_all(&chunk).is_ok());
    }
    drop(worker);
    file.sync_all()?;
    Ok(hasher.finish())
}

/// Reads a stored layer, hands it to a worker, and returns its digest.
fn replay(mut file: File, worker: File) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; REPLAY_BYTES];
    let mut worker = Some(worker);
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        worker = worker.filter(|mut worker| worker.write_all(&buffer[..count]).is_ok());
    }
}
