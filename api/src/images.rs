//! Images over HTTP. The store does the work, and blocks.

use std::io;
use std::path::Path;
use std::sync::Arc;

use ampoule_engine::image::registry::Registry;
use ampoule_engine::image::store::{Caches, HeldImage, ResolveError, Store};
use ampoule_engine::runtime::Runtime;
use ampoule_engine::sandbox::launcher::EgressTerms;
use tokio::sync::Semaphore;

use crate::problem::{IMAGE_DAMAGED, Kind, NO_IMAGE, Refused, sentence};

pub mod builds;
pub mod caches;
pub mod catalog;
mod conditions;
mod document;
pub mod intake;
pub mod removal;
pub mod save;
pub mod tags;
pub mod transfers;
pub mod trees;

/// Imports under way at once; more are told to come back.
const IMPORTS_MAX: usize = 2;
/// Archives on their way out at once; more are told to come back.
const SAVES_MAX: usize = 4;

/// The images. Cloning shares them.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
    runtime: Arc<dyn Runtime>,
    bytes_max: u64,
    imports: Arc<Semaphore>,
    saves: Arc<Semaphore>,
    registry: Registry,
    transfers: Arc<Semaphore>,
    builds: Arc<Semaphore>,
    /// What builds reach, RUN and ADD alike; `None` when nothing.
    reach: Option<Arc<EgressTerms>>,
    caches: Arc<Caches>,
    build_readers: Arc<Semaphore>,
    /// Where the files of contexts lie while they are used.
    spools: Arc<Path>,
}

impl Images {
    /// Opens the store of a state folder and mends it. Archives may have so many bytes, and the caches of builds together
    /// so many; builds reach so much.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn open(
        state: &Path,
        runtime: Arc<dyn Runtime>,
        registry: Registry,
        bytes_max: u64,
        cache_bytes_max: u64,
        reach: Option<EgressTerms>,
    ) -> io::Result<Images> {
        let store = Arc::new(Store::open(state).map_err(io::Error::other)?);
        let caches = Caches::open(state, runtime.clone(), cache_bytes_max).await.map_err(io::Error::other)?;
        let permits = |most| Arc::new(Semaphore::new(most));
        let images = Images {
            store,
            runtime,
            bytes_max,
            imports: permits(IMPORTS_MAX),
            saves: permits(SAVES_MAX),
            registry,
            transfers: permits(transfers::TRANSFERS_MAX),
            builds: permits(builds::BUILDS_MAX),
            reach: reach.map(Arc::new),
            caches,
            build_readers: permits(builds::READERS_MAX),
            spools: state.into(),
        };
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
