//! How images come from a registry. Layers are unpacked while they arrive; several at once, each content once however
//! many pulls want it. The name is set last; until then nothing of the image counts, and if anything fails nothing is
//! left of it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::blobs::{Arrived, Incoming};
use super::import::{Lease, with_imported};
use super::index::{self, Entry, Origin};
use super::transfer::{BLOBS_AT_ONCE, LayerState, Meter, Progress, Stop};
use super::{Image, ImageSummary, Record, RemoveError, Store, StoreError, in_one_line, system};
use crate::image::config::{Config, ConfigError};
use crate::image::digest::{Digest, Hasher};
use crate::image::manifest::{self, CONFIG_BYTES_MAX, Content, Document, IndexEntry, Manifest, ManifestError};
use crate::image::reference::Reference;
use crate::image::registry::{Credentials, Errand, Fetched, Registry, RegistryError, Repository};
use crate::runtime::{Runtime, RuntimeError, Unpacked};
use crate::spec::LayerId;

/// How many lists of manifests may lead from one to the next.
const INDEX_DEPTH_MAX: usize = 4;
/// How the types of Docker's first format begin, which is signed JSON or not.
const SCHEMA_ONE_PREFIX: &str = "application/vnd.docker.distribution.manifest.v1+";
/// Pieces of a layer that wait for the disk.
const CHUNKS_MAX: usize = 16;
/// Bytes of a layer that wait for being unpacked.
const PIPE_BYTES: usize = 1024 * 1024;
/// Bytes read from a stored layer at a time.
const REPLAY_BYTES: usize = 256 * 1024;

/// What is to be pulled.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The name.
    pub reference: Reference,
    /// `os/architecture`, or with `/variant`; this machine's when absent.
    pub platform: Option<String>,
    /// Who pulls; the service's own credentials count when absent.
    pub credentials: Option<Credentials>,
}

/// What a pull did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The image as it is in the store now.
    pub image: ImageSummary,
    /// The digest of what the name leads to: the manifest, or the index that it was chosen from.
    pub digest: Digest,
    /// Whether the image was here before, and nothing had to be fetched.
    pub was_here: bool,
}

/// Why an image was not pulled. The store is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The tag does not lead to what it is pinned to.
    #[error(
        "`{reference}` is {found} in the registry, not what it is pinned to\nhint: somebody moved the tag; leave the tag out to get the pinned content, if the registry still has it"
    )]
    Moved {
        /// The name with its pin.
        reference: String,
        /// What the tag leads to.
        found: Digest,
    },
    /// It is in the format of before 2016, which has no digests to rely on.
    #[error(
        "`{0}` is an image in Docker's schema 1, which is not supported\nhint: push it again with a current program"
    )]
    SchemaOne(String),
    /// A manifest is refused.
    #[error("the manifest `{digest}` is refused")]
    Manifest {
        /// Its digest.
        digest: Digest,
        /// Why.
        source: ManifestError,
    },
    /// Its lists lead nowhere.
    #[error("the lists of manifests of `{0}` do not end")]
    Endless(String),
    /// There is none for the platform.
    #[error("there is no image for {wanted} behind this name, only for {found}")]
    Platform {
        /// What was wanted.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The platform cannot be run here.
    #[error("images for `{wanted}` do not run here: this machine runs {}", manifest::own_platform())]
    ForeignPlatform {
        /// What was wanted.
        wanted: String,
    },
    /// A layer is to be fetched from somewhere else.
    #[error("its layer `{0}` is to be fetched from other hosts, which is never done: they could be anybody's")]
    ForeignLayer(Digest),
    /// A config is refused.
    #[error("the image is refused")]
    Config(#[from] ConfigError),
    /// The parts do not fit together.
    #[error("the image is refused: {0}")]
    Mismatch(String),
    /// A layer is not what it is called.
    #[error("layer {number} is refused: the registry sent {actual} for {expected}")]
    Corrupt {
        /// Which, from 1, lowest first.
        number: usize,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// A layer could not be unpacked.
    #[error("could not unpack layer {number} (`{blob}`)")]
    Unpack {
        /// Which, from 1, lowest first.
        number: usize,
        /// Its digest.
        blob: Digest,
        /// Why.
        source: RuntimeError,
    },
    /// A layer is not what the config says.
    #[error("layer {number} is refused: its content is {}, and the config of the image says {}", actual.hex(), expected.hex())]
    DiffId {
        /// Which, from 1, lowest first.
        number: usize,
        /// What the config says.
        expected: LayerId,
        /// What came out.
        actual: LayerId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody asked for the end.
    #[error("the pull was stopped")]
    Stopped,
}

/// Layers that are being fetched, so that each is fetched once.
#[derive(Default)]
pub(super) struct Flights {
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
struct Means<'pull> {
    runtime: &'pull dyn Runtime,
    repository: &'pull Repository,
    incoming: &'pull Incoming,
    on_disk: &'pull HashSet<LayerId>,
    told: &'pull (dyn Fn(Progress) + Sync),
    /// That of the caller.
    stop: &'pull Stop,
    /// Ends the other layers when one has failed.
    failed: Stop,
    /// What was unpacked.
    unpacked: Mutex<Vec<Unpacked>>,
}

/// What a name leads to.
struct Resolved {
    /// What the name itself leads to, when that is a list.
    index: Option<Fetched>,
    manifest: Manifest,
    fetched: Fetched,
}

/// An image whose layers are here.
struct Whole {
    resolved: Resolved,
    config: Config,
    config_bytes: Bytes,
}

/// What a failed pull may have left.
#[derive(Default)]
struct Debris {
    blobs: HashSet<Digest>,
    layers: HashSet<LayerId>,
}

impl Store {
    /// Pulls an image, and tells how far it is. Blocks; to be called where tokio allows it (`spawn_blocking`).
    ///
    /// # Errors
    /// A registry that does not give it, content that is not what it is called, a runtime or a store that fails.
    /// Nothing is left.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn pull(
        &self,
        runtime: &dyn Runtime,
        registry: &Registry,
        request: &PullRequest,
        told: &(dyn Fn(Progress) + Sync),
        stop: &Stop,
    ) -> Result<Pulled, PullError> {
        let mut debris = Debris::default();
        let pulled = Handle::current().block_on(self.pull_all(runtime, registry, request, told, stop, &mut debris));
        if pulled.is_err()
            && let Err(error) = self.clear(runtime, debris)
        {
            // The pull's own error is what the caller wants to know; what is left goes at the next start.
            tracing::warn!(error = in_one_line(&error), "a failed pull left something behind");
        }
        pulled
    }

    async fn pull_all(
        &self,
        runtime: &dyn Runtime,
        registry: &Registry,
        request: &PullRequest,
        told: &(dyn Fn(Progress) + Sync),
        stop: &Stop,
        debris: &mut Debris,
    ) -> Result<Pulled, PullError> {
        check_platform(request)?;
        let repository = registry.repository(&request.reference, request.credentials.clone(), &Errand::Pull)?;
        let resolved = until(stop, resolve(&repository, request)).await?;
        let layers = &resolved.manifest.layers;
        let listed = layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
        told(Progress::Resolved { digest: resolved.fetched.digest.clone(), layers: listed });
        debris.blobs = resolved.blobs();
        let _blobs_lease = Lease::of(self, debris.blobs.iter().cloned().collect(), Vec::new());
        let config_bytes = until(stop, self.config(&repository, &resolved.manifest.config)).await?;
        let config = Config::parse(&config_bytes)?;
        if config.diff_ids.len() != layers.len() {
            let (ids, layers) = (config.diff_ids.len(), layers.len());
            return Err(PullError::Mismatch(format!("its config names {ids} layers and its manifest {layers}")));
        }
        debris.layers = config.diff_ids.iter().cloned().collect();
        let _layers_lease = Lease::of(self, Vec::new(), config.diff_ids.clone());
        let incoming = self.blobs.incoming()?;
        let (on_disk, failed) = (self.layers_on_disk()?, Stop::default());
        let means = Means {
            runtime,
            repository: &repository,
            incoming: &incoming,
            on_disk: &on_disk,
            told,
            stop,
            failed,
            unpacked: Mutex::default(),
        };
        let fetched = self.fetch_layers(&means, &resolved.manifest, &config, debris).await?;
        if stop.is_stopped() {
            return Err(PullError::Stopped);
        }
        let whole = Whole { resolved, config, config_bytes };
        let was_here = fetched == 0 && self.knows(&whole.resolved.fetched.digest);
        let image = self.admit(&incoming, request, &whole)?;
        for unpacked in &*means.unpacked.lock().unwrap_or_else(PoisonError::into_inner) {
            self.sizes.note(unpacked);
        }
        let digest = whole.resolved.index.as_ref().unwrap_or(&whole.resolved.fetched).digest.clone();
        Ok(Pulled { image, digest, was_here })
    }

    /// The config: from the store, if it is there and whole.
    async fn config(&self, repository: &Repository, content: &Content) -> Result<Bytes, RegistryError> {
        if let Ok(bytes) = self.blobs.read(&content.digest, CONFIG_BYTES_MAX) {
            return Ok(bytes.into());
        }
        repository.small_blob(content, CONFIG_BYTES_MAX).await
    }

    /// Brings all layers here; returns how many had to be fetched. When one fails the others are stopped, and all have
    /// ended when this returns.
    async fn fetch_layers(
        &self,
        means: &Means<'_>,
        manifest: &Manifest,
        config: &Config,
        debris: &mut Debris,
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
                    if let PullError::DiffId { actual, .. } = &error {
                        debris.layers.insert(actual.clone());
                    }
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
            return Err(PullError::DiffId { number, expected: expected.clone(), actual });
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
        let failed = |source| PullError::Unpack { number, blob: content.digest.clone(), source };
        match unpacked {
            Ok(unpacked) if is_whole => Ok(Some(means.unpacked(unpacked))),
            Err(source @ RuntimeError::Gone) => Err(failed(source)),
            Err(source) if is_whole => Err(failed(source)),
            // Decayed content that still unpacks to something: nobody's layer.
            Ok(unpacked) => {
                let removed = means.runtime.remove_layer(unpacked.layer).await;
                removed.map_err(failed).map(|()| None)
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
            if actual == expected { Ok(()) } else { Err(PullError::Corrupt { number, expected, actual }) }
        });
        match (verified, unpacked) {
            (Ok(()), Ok(unpacked)) => {
                self.blobs.adopt(&Arrived { path, digest: content.digest.clone(), size: content.size })?;
                Ok(means.unpacked(unpacked))
            }
            (Ok(()), Err(source)) => Err(PullError::Unpack { number, blob: content.digest.clone(), source }),
            (Err(error), Ok(unpacked)) => {
                self.forget(means.runtime, unpacked.layer).await;
                Err(error)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Removes a layer that came out of refused content, if nobody has one like it.
    async fn forget(&self, runtime: &dyn Runtime, layer: LayerId) {
        let is_needed = {
            let leases = self.leases();
            let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
            leases.layers.contains_key(&layer) || super::reachable_layers(&records).contains(&layer)
        };
        if !is_needed && let Err(error) = runtime.remove_layer(layer).await {
            tracing::warn!(error = in_one_line(&error), "a refused layer is left until the next start");
        }
    }

    fn knows(&self, digest: &Digest) -> bool {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        records.iter().any(|record| record.entry.digest == *digest && record.image.is_ok())
    }

    /// Takes over what describes the image, and sets its name.
    fn admit(&self, incoming: &Incoming, request: &PullRequest, whole: &Whole) -> Result<ImageSummary, PullError> {
        let Whole { resolved, config, config_bytes } = whole;
        let index = resolved.index.as_ref().map(|index| &index.bytes);
        for bytes in [Some(&resolved.fetched.bytes), Some(config_bytes), index].into_iter().flatten() {
            self.blobs.adopt(&incoming.keep(bytes)?)?;
        }
        let pinned = || request.reference.clone();
        let name = request.reference.without_digest().unwrap_or_else(pinned);
        let entry = Entry {
            digest: resolved.fetched.digest.clone(),
            size: resolved.fetched.bytes.len() as u64,
            media_type: resolved.manifest.media_type.clone(),
            name: Some(name),
            imported_unix: SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs()),
            origin: Some(Origin {
                repository: request.reference.repository(),
                index: resolved.index.as_ref().map(|index| (index.digest.clone(), index.bytes.len() as u64)),
            }),
        };
        let _changes = self.leases();
        let current = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let same = current.iter().filter(|record| record.entry.digest == entry.digest);
        let hold = same.filter_map(|record| record.image.as_ref().ok()).map(|image| Arc::clone(&image.hold)).next();
        let image = Image::assemble(&entry, &resolved.manifest, config.clone(), hold.unwrap_or_default());
        let record = Record { entry, image: Ok(Arc::new(image.map_err(PullError::Mismatch)?)) };
        let next = mended(with_imported(&current, std::slice::from_ref(&record)), &record);
        index::write(&self.folder, next.iter().map(|record| &record.entry))?;
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(record.summary())
    }

    /// Removes what a failed pull brought, as far as nobody else has it.
    fn clear(&self, runtime: &dyn Runtime, debris: Debris) -> Result<(), RemoveError> {
        let _no_unnamed_layers = self.unnamed_layers.write().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases();
        self.collect_blobs(&leases, debris.blobs)?;
        self.collect_layers(&leases, runtime, debris.layers)?;
        Ok(())
    }
}

/// The list of images in which all names of an image that was damaged are sound again.
fn mended(mut records: Vec<Record>, sound: &Record) -> Vec<Record> {
    let Ok(image) = &sound.image else { return records };
    for record in &mut records {
        if record.entry.digest == sound.entry.digest && record.image.is_err() {
            record.image = Ok(Arc::new(image.under(record.entry.name.as_ref())));
        }
    }
    records
}

impl Means<'_> {
    /// Remembers what a layer turned out to be, and says its name.
    fn unpacked(&self, unpacked: Unpacked) -> LayerId {
        let layer = unpacked.layer.clone();
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).push(unpacked);
        layer
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

impl Resolved {
    /// Everything that the image consists of.
    fn blobs(&self) -> HashSet<Digest> {
        let parts = self.manifest.layers.iter().chain([&self.manifest.config]).map(|part| part.digest.clone());
        let documents = [Some(&self.fetched), self.index.as_ref()].into_iter().flatten();
        parts.chain(documents.map(|document| document.digest.clone())).collect()
    }
}

/// Does something unless the end is asked for before it is done.
async fn until<T, E>(stop: &Stop, work: impl Future<Output = Result<T, E>>) -> Result<T, PullError>
where
    PullError: From<E>,
{
    tokio::select! {
        done = work => Ok(done?),
        () = stop.stopped() => Err(PullError::Stopped),
    }
}

fn check_platform(request: &PullRequest) -> Result<(), PullError> {
    let Some(wanted) = &request.platform else { return Ok(()) };
    let own = manifest::own_platform();
    let is_own = *wanted == own || wanted.strip_prefix(&own).is_some_and(|variant| variant.starts_with('/'));
    if is_own { Ok(()) } else { Err(PullError::ForeignPlatform { wanted: wanted.clone() }) }
}

/// Finds the manifest that a name leads to.
async fn resolve(repository: &Repository, request: &PullRequest) -> Result<Resolved, PullError> {
    let reference = &request.reference;
    let pin = reference.digest().map(ToString::to_string);
    // A tag with a pin is asked for by its tag: only so can be seen that it has moved.
    let name = reference.tag().or(pin.as_deref()).unwrap_or_default();
    let first = repository.manifest(name).await?;
    if reference.digest().is_some_and(|pin| *pin != first.digest) {
        return Err(PullError::Moved { reference: reference.to_string(), found: first.digest });
    }
    let mut index = None;
    let mut fetched = first;
    for _ in 0..=INDEX_DEPTH_MAX {
        let digest = fetched.digest.clone();
        if fetched.media_type.starts_with(SCHEMA_ONE_PREFIX) {
            return Err(PullError::SchemaOne(reference.to_string()));
        }
        let document = manifest::parse(&fetched.bytes).map_err(|source| PullError::Manifest { digest, source })?;
        match document {
            Document::Manifest(manifest) => {
                refuse_foreign_layers(&fetched.bytes, &manifest)?;
                return Ok(Resolved { index, manifest, fetched });
            }
            Document::Index(entries) => {
                let content = choose(&entries, request.platform.as_deref())?;
                let next = repository.manifest(&content.digest.to_string()).await?;
                if next.bytes.len() as u64 != content.size {
                    return Err(PullError::Mismatch(format!(
                        "`{}` has another size than the list says",
                        content.digest
                    )));
                }
                index = index.or(Some(fetched));
                fetched = next;
            }
        }
    }
    Err(PullError::Endless(reference.to_string()))
}

/// The entry of a list for a platform; without a variant, the one for all machines of the architecture.
fn choose<'list>(entries: &'list [IndexEntry], wanted: Option<&str>) -> Result<&'list Content, PullError> {
    let own = manifest::own_platform();
    let variant = wanted.and_then(|wanted| wanted.strip_prefix(&own)?.strip_prefix('/'));
    let fitting: Vec<_> = entries.iter().filter(|entry| entry.platform.as_ref() == Some(&own)).collect();
    let exact = fitting.iter().find(|entry| entry.variant.as_deref() == variant);
    // Who names no variant is well served by any that is not made for newer processors only.
    let usual = || fitting.iter().find(|entry| entry.variant.as_deref() == Some("v1")).or(fitting.first());
    let chosen = exact.or_else(|| usual().filter(|_| variant.is_none())).copied();
    let chosen = chosen.or_else(|| entries.iter().find(|entry| entry.platform.is_none()));
    chosen.map(|entry| &entry.content).ok_or_else(|| {
        let name = |entry: &IndexEntry| {
            let platform = entry.platform.clone().filter(|platform| platform != "unknown/unknown")?;
            Some(entry.variant.as_ref().map_or_else(|| platform.clone(), |variant| format!("{platform}/{variant}")))
        };
        let found: Vec<_> = entries.iter().filter_map(name).collect();
        PullError::Platform { wanted: wanted.unwrap_or(&own).to_owned(), found: found.join(", ") }
    })
}

/// Refuses layers that name other hosts: who fetches those asks whom a stranger chose.
fn refuse_foreign_layers(bytes: &[u8], manifest: &Manifest) -> Result<(), PullError> {
    #[derive(Deserialize)]
    struct Outline {
        layers: Vec<Urls>,
    }
    #[derive(Deserialize)]
    struct Urls {
        urls: Option<Vec<serde::de::IgnoredAny>>,
    }
    let digest = Digest::of(bytes);
    let outline: Outline =
        serde_json::from_slice(bytes).map_err(|source| PullError::Manifest { digest, source: source.into() })?;
    let foreign = outline.layers.iter().position(|layer| layer.urls.as_ref().is_some_and(|urls| !urls.is_empty()));
    match foreign.and_then(|at| manifest.layers.get(at)) {
        Some(layer) => Err(PullError::ForeignLayer(layer.digest.clone())),
        None => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: Option<&str>, variant: Option<&str>) -> IndexEntry {
        let name = format!("{platform:?}{variant:?}");
        let content = Content { media_type: String::new(), digest: Digest::of(name.as_bytes()), size: 1 };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        IndexEntry { content, platform: owned(platform), variant: owned(variant), name: None }
    }

    #[test]
    fn the_platform_decides_which_image_of_a_list_is_taken() {
        let own = manifest::own_platform();
        let list = [
            entry(Some("linux/s390x"), None),
            entry(Some(&own), Some("v3")),
            entry(Some(&own), None),
            entry(Some("unknown/unknown"), None),
        ];
        let chosen =
            |list: &[IndexEntry], wanted: Option<&str>| choose(list, wanted).map(|content| content.digest.clone());
        assert_eq!(chosen(&list, None).unwrap(), list[2].content.digest);
        assert_eq!(chosen(&list, Some(&own)).unwrap(), list[2].content.digest);
        assert_eq!(chosen(&list, Some(&format!("{own}/v3"))).unwrap(), list[1].content.digest);
        let error = chosen(&list, Some(&format!("{own}/v9"))).unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && !error.contains("unknown"), "{error}");
        assert_eq!(chosen(&list[..2], None).unwrap(), list[1].content.digest);
        let anonymous = [entry(None, None)];
        assert_eq!(chosen(&anonymous, None).unwrap(), anonymous[0].content.digest);
    }

    #[test]
    fn layers_from_other_hosts_are_refused() {
        let layer = Content {
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            digest: Digest::of(b"layer"),
            size: 1,
        };
        let config = Content { media_type: manifest::CONFIG_TYPE.into(), digest: Digest::of(b"config"), size: 1 };
        let bytes = manifest::compose(&config, std::slice::from_ref(&layer));
        let Document::Manifest(parsed) = manifest::parse(&bytes).unwrap() else { panic!("a manifest") };
        assert!(refuse_foreign_layers(&bytes, &parsed).is_ok());
        let text = String::from_utf8(bytes).unwrap();
        let text = text.replace("\"layers\":[{", "\"layers\":[{\"urls\":[\"https://elsewhere.example/x\"],");
        let refused = refuse_foreign_layers(text.as_bytes(), &parsed);
        assert!(matches!(refused, Err(PullError::ForeignLayer(digest)) if digest == layer.digest));
    }
}
