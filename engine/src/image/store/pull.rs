//! How images come from a registry. Layers are unpacked while they arrive; several at once, each content once however
//! many pulls want it. The name is set last; until then nothing of the image counts, and if anything fails nothing is
//! left of it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::blobs::Incoming;
use super::import::{Lease, with_imported};
use super::index::{self, Entry, Origin};
use super::refusal::LayerError;
use super::transfer::{Progress, Stop};
use super::{Image, ImageSummary, Record, RemoveError, Store, StoreError, in_one_line};
use crate::image::config::{Config, ConfigError};
use crate::image::digest::Digest;
use crate::image::manifest::{self, CONFIG_BYTES_MAX, Content, ManifestError};
use crate::image::reference::Reference;
use crate::image::registry::{Credentials, Errand, Registry, RegistryError, Repository};
use crate::runtime::Runtime;
use crate::spec::LayerId;
pub(super) use layers::Flights;
use layers::Means;
use resolved::{Resolved, resolve};

mod layers;
mod resolved;

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
    /// A layer is refused, or could not be unpacked.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody asked for the end.
    #[error("the pull was stopped")]
    Stopped,
}

/// An image whose layers are here.
struct Whole {
    resolved: Resolved,
    config: Config,
    config_bytes: Bytes,
}

/// What a pull may have left that nobody has: all that it brought, if it failed.
#[derive(Default)]
struct Debris {
    blobs: HashSet<Digest>,
    layers: HashSet<LayerId>,
    /// What came out of content that was not what it should be.
    unwanted: HashSet<LayerId>,
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
        if pulled.is_ok() {
            debris = Debris { unwanted: debris.unwanted, ..Debris::default() };
        }
        if let Err(error) = self.clear(runtime, debris) {
            // What became of the pull is what the caller wants to know; what is left goes at the next start.
            tracing::warn!(error = in_one_line(&error), "a pull left something behind");
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
        let on_disk = self.layers_on_disk()?;
        let means = Means {
            runtime,
            repository: &repository,
            incoming: &incoming,
            on_disk: &on_disk,
            told,
            stop,
            failed: Stop::default(),
            unpacked: Mutex::default(),
            unwanted: Mutex::default(),
        };
        let fetched = self.fetch_layers(&means, &resolved.manifest, &config).await;
        let Means { unpacked, unwanted, .. } = means;
        debris.unwanted = unwanted.into_inner().unwrap_or_else(PoisonError::into_inner);
        let fetched = fetched?;
        if stop.is_stopped() {
            return Err(PullError::Stopped);
        }
        let whole = Whole { resolved, config, config_bytes };
        let was_here = fetched == 0 && self.knows(&whole.resolved.fetched.digest);
        let image = self.admit(&incoming, request, &whole)?;
        for unpacked in &unpacked.into_inner().unwrap_or_else(PoisonError::into_inner) {
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

    /// Removes what a pull left, as far as nobody else has it.
    fn clear(&self, runtime: &dyn Runtime, debris: Debris) -> Result<(), RemoveError> {
        let Debris { blobs, mut layers, unwanted } = debris;
        layers.extend(unwanted);
        if blobs.is_empty() && layers.is_empty() {
            return Ok(());
        }
        let _no_unnamed_layers = self.unnamed_layers.write().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases();
        self.collect_blobs(&leases, blobs)?;
        self.collect_layers(&leases, runtime, layers)?;
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
