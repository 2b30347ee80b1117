//! Images that are made here, layer by layer. What a build needs is kept for as long as its workshop is there; then what
//! no image took goes. An image is in the list when all of it is on disk, and not before.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::blobs::{ArrivalError, Arrived, Incoming};
use super::import::Candidate;
use super::refusal::ImportError;
use super::{HeldImage, ImageSummary, RemoveError, Store, StoreError, in_one_line};
use crate::image::config::Config;
use crate::image::digest::Digest;
use crate::image::manifest::{self, CONFIG_BYTES_MAX, CONFIG_TYPE, Content, Document, MANIFEST_BYTES_MAX};
use crate::image::reference::Reference;
use crate::runtime::{Runtime, RuntimeError, Unpacked};
use crate::spec::LayerId;

/// Media type of the layers that are made here: as they are, since they are read back sooner than sent away.
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Largest layer that a step may make, in bytes.
pub const STEP_LAYER_BYTES_MAX: u64 = 16 << 30;

/// A layer of an image that is being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltLayer {
    /// What is stored of it.
    pub content: Content,
    /// What comes out of that.
    pub layer: LayerId,
}

/// What an image is made from that comes from another one.
#[derive(Clone, Debug)]
pub struct Foundation {
    /// Its layers, lowest first.
    pub layers: Vec<BuiltLayer>,
    /// Its config, as it was written.
    pub config: Vec<u8>,
}

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
pub enum WorkshopError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer could not be taken in.
    #[error("could not take in the layer")]
    Arrival(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A layer could not be made.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The layer on disk is not what was told of it.
    #[error("the layer that was made is {made}, and {told} was sent")]
    Mismatch {
        /// What the worker says.
        made: String,
        /// What arrived.
        told: Digest,
    },
    /// A base image cannot be read.
    #[error("the base image cannot be read: its {0}")]
    Base(String),
    /// The image cannot be put into the list.
    #[error(transparent)]
    Admit(#[from] Box<ImportError>),
    /// A thread ended before its time.
    #[error("the work was given up")]
    GivenUp,
}

/// Where one build keeps what it has made so far.
pub struct Workshop {
    keeper: Arc<Keeper>,
}

/// What a build holds, until nobody adds to it any more.
struct Keeper {
    store: Arc<Store>,
    runtime: Arc<dyn Runtime>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    blobs: Vec<Digest>,
    layers: Vec<LayerId>,
}

/// The tar of a layer that arrived.
pub struct ArrivedLayer {
    file: Arrived,
    _incoming: Incoming,
}

impl Workshop {
    /// An empty one. To be used and dropped within the tokio runtime.
    pub fn new(store: Arc<Store>, runtime: Arc<dyn Runtime>) -> Workshop {
        Workshop { keeper: Arc::new(Keeper { store, runtime, kept: Mutex::default() }) }
    }

    /// The store that images come from and go to.
    pub fn store(&self) -> &Arc<Store> {
        &self.keeper.store
    }

    /// What runs steps.
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.keeper.runtime
    }

    /// What an image gives to one that is made from it. Blocks for as long as two small files take.
    ///
    /// # Errors
    /// An image that has decayed.
    pub fn foundation(&self, image: &HeldImage) -> Result<Foundation, WorkshopError> {
        let digest = Digest::parse(&image.digest).map_err(|error| WorkshopError::Base(error.to_string()))?;
        let read = |digest: &Digest, most| self.keeper.store.blobs.read(digest, most).map_err(WorkshopError::Base);
        let Ok(Document::Manifest(manifest)) = manifest::parse(&read(&digest, MANIFEST_BYTES_MAX)?) else {
            return Err(WorkshopError::Base("manifest is none".to_owned()));
        };
        let config = read(&manifest.config.digest, CONFIG_BYTES_MAX)?;
        let parsed = Config::parse(&config).map_err(|error| WorkshopError::Base(format!("config: {error}")))?;
        if parsed.diff_ids.len() != manifest.layers.len() {
            return Err(WorkshopError::Base("config tells of other layers than its manifest".to_owned()));
        }
        let layers = manifest.layers.into_iter().zip(parsed.diff_ids);
        Ok(Foundation { layers: layers.map(|(content, layer)| BuiltLayer { content, layer }).collect(), config })
    }

    /// Takes in the tar of a layer while it is made.
    ///
    /// # Errors
    /// A layer that is too large, and a store that fails.
    pub async fn receive(&self, tar: pipe::Receiver) -> Result<ArrivedLayer, WorkshopError> {
        let store = Arc::clone(&self.keeper.store);
        let receive = move || {
            let failed = |source: io::Error| WorkshopError::Arrival(Box::new(ArrivalError::Source(source)));
            let mut tar = File::from(tar.into_blocking_fd().map_err(failed)?);
            let incoming = store.blobs.incoming()?;
            let file = incoming.receive(&mut tar, STEP_LAYER_BYTES_MAX);
            let file = file.map_err(|error| WorkshopError::Arrival(Box::new(error)))?;
            Ok(ArrivedLayer { file, _incoming: incoming })
        };
        spawn_blocking(receive).await.map_err(|_| WorkshopError::GivenUp)?
    }

    /// Keeps a layer that was made and whose tar arrived.
    ///
    /// # Errors
    /// A tar that is not the layer's, and a store that fails.
    pub async fn keep(&self, arrived: ArrivedLayer, made: Unpacked) -> Result<BuiltLayer, WorkshopError> {
        let digest = arrived.file.digest.clone();
        self.hold(&digest, &made.layer).await?;
        if digest.hex() != made.layer.hex() {
            return Err(WorkshopError::Mismatch { made: made.layer.hex().to_owned(), told: digest });
        }
        let size = arrived.file.size;
        let store = Arc::clone(&self.keeper.store);
        let layer = made.layer.clone();
        let adopted = spawn_blocking(move || {
            store.sizes.note(&made);
            store.blobs.adopt(&arrived.file)?;
            store.layers_on_disk()
        });
        let on_disk = adopted.await.map_err(|_| WorkshopError::GivenUp)??;
        if !on_disk.contains(&layer) {
            // The same layer of another image was removed before this one was held.
            let archive = self.keeper.store.blobs.open_blob(&digest)?;
            self.keeper.runtime.unpack_layer(archive).await?;
        }
        Ok(BuiltLayer { content: Content { media_type: LAYER_TYPE.to_owned(), digest, size }, layer })
    }

    /// Counts as a user of what nobody may remove while the build goes on. Whoever removes something at this moment waits
    /// for the launcher, and for him is not waited on a thread that hears the launcher.
    ///
    /// # Errors
    /// tokio is on its way out.
    pub(crate) async fn hold(&self, blob: &Digest, layer: &LayerId) -> Result<(), WorkshopError> {
        let (keeper, blob, layer) = (Arc::clone(&self.keeper), blob.clone(), layer.clone());
        let hold = move || {
            // `give_back` ends the count.
            keeper.store.leases().count(std::slice::from_ref(&blob), std::slice::from_ref(&layer));
            let mut kept = keeper.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.blobs.push(blob);
            kept.layers.push(layer);
        };
        spawn_blocking(hold).await.map_err(|_| WorkshopError::GivenUp)
    }

    /// Puts a finished image into the list, under these names.
    ///
    /// # Errors
    /// A config that makes no image, and a store that fails.
    pub async fn admit(
        &self,
        names: Vec<Reference>,
        config: Vec<u8>,
        layers: Vec<BuiltLayer>,
    ) -> Result<ImageSummary, WorkshopError> {
        let store = Arc::clone(&self.keeper.store);
        let admitted = spawn_blocking(move || store.admit_built(names, &config, &layers));
        Ok(admitted.await.map_err(|_| WorkshopError::GivenUp)?.map_err(Box::new)?)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        // Without tokio, which is on its way out then, what is left goes at the next start.
        let (Ok(tasks), false) = (Handle::try_current(), kept.blobs.is_empty()) else { return };
        let (store, runtime) = (Arc::clone(&self.store), Arc::clone(&self.runtime));
        tasks.spawn_blocking(move || {
            if let Err(error) = store.give_back(&*runtime, kept) {
                tracing::warn!(error = in_one_line(&error), "a build left something behind until the next start");
            }
        });
    }
}

impl Store {
    fn admit_built(
        &self,
        names: Vec<Reference>,
        config: &[u8],
        layers: &[BuiltLayer],
    ) -> Result<ImageSummary, ImportError> {
        let incoming = self.blobs.incoming()?;
        let contents: Vec<Content> = layers.iter().map(|layer| layer.content.clone()).collect();
        let config_file = incoming.keep(config)?;
        let (digest, size) = (config_file.digest.clone(), config_file.size);
        let manifest = manifest::compose(&Content { media_type: CONFIG_TYPE.to_owned(), digest, size }, &contents);
        let candidate = Candidate::built(names, &manifest, incoming.keep(&manifest)?, config, config_file)?;
        let summaries = self.keep(std::slice::from_ref(&candidate))?;
        summaries.into_iter().next().ok_or(ImportError::NotAnImage("it was not put into the list"))
    }

    /// Ends the holds of a build, and removes what nobody else has.
    fn give_back(&self, runtime: &dyn Runtime, kept: Kept) -> Result<(), RemoveError> {
        let _no_unnamed_layers = self.unnamed_layers.write().unwrap_or_else(PoisonError::into_inner);
        let mut leases = self.leases();
        leases.uncount(&kept.blobs, &kept.layers);
        self.collect_blobs(&leases, kept.blobs.into_iter().collect())?;
        self.collect_layers(&leases, runtime, kept.layers.into_iter().collect())?;
        Ok(())
    }
}
