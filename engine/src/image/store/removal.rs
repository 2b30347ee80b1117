//! Taking names away, and with an image's last name what nobody else needs. What somebody holds, or has a lease on,
//! stays; at most it loses its names.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use serde::Serialize;
use tokio::runtime::Handle;

use super::{Leases, Record, ResolveError, Store, StoreError, find, index, reachable_blobs, reachable_layers, users};
use crate::image::digest::Digest;
use crate::runtime::{Runtime, RuntimeError};
use crate::spec::LayerId;

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The names that were taken away.
    pub untagged: Vec<String>,
    /// The digests of manifests, configs and layers that are gone with them.
    pub removed: Vec<String>,
    /// Bytes that they took in the store, without the unpacked layers.
    pub freed_bytes: u64,
    /// Bytes of the unpacked layers that are gone, as far as they are known.
    pub freed_unpacked_bytes: u64,
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The name leads to no image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Jobs run from it, or somebody has a lease on it.
    #[error(
        "the image `{reference}` is in use by {by}\nhint: wait until it is free, or take only its names with `--force`"
    )]
    InUse {
        /// The name.
        reference: String,
        /// Whom it is used by.
        by: String,
    },
    /// A digest stands for an image with several names.
    #[error("the image `{reference}` has several names: {}\nhint: remove them one by one, or all of them with `--force`", names.join(", "))]
    SeveralNames {
        /// What was given.
        reference: String,
        /// Its names.
        names: Vec<String>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An unpacked layer could not be removed or unpacked. What is left goes with the next `Store::reconcile`.
    #[error("could not remove or unpack the layer {layer}")]
    Layer {
        /// The layer.
        layer: String,
        /// Why.
        source: RuntimeError,
    },
}

/// What of the list was taken away.
struct Untagged {
    names: Vec<String>,
    /// The lines of images that are in the list no more.
    gone: Vec<Record>,
}

impl Store {
    /// Takes a name away, and the image with it when that was its last one and nobody uses it. A digest stands for an
    /// image with one name or none. With `force` it takes all names of an image, and one that is in use stays without
    /// a name until `prune`. Blocks; to be called where tokio allows it (`spawn_blocking`).
    ///
    /// # Errors
    /// A name that leads to no image, an image that somebody uses, and a store or runtime that fails.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn remove(&self, runtime: &dyn Runtime, reference: &str, force: bool) -> Result<Removed, RemoveError> {
        let _no_unnamed_layers = self.unnamed_layers.write().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases();
        let Untagged { names, gone } = self.untag(&leases, reference, force)?;
        let mut removed = self.collect(&leases, runtime, &gone)?;
        removed.untagged = names;
        Ok(removed)
    }

    /// Removes what belonged to images that are in the list no more, as far as nobody else has it.
    pub(super) fn collect(
        &self,
        leases: &Leases,
        runtime: &dyn Runtime,
        gone: &[Record],
    ) -> Result<Removed, RemoveError> {
        let mut removed = Removed::default();
        let contents: Vec<_> =
            gone.iter().filter_map(|record| record.image.as_ref().ok()).map(|image| image.contents.clone()).collect();
        let manifests = gone.iter().map(|record| record.entry.digest.clone());
        let blobs = contents.iter().flat_map(|contents| contents.blobs.keys().cloned()).chain(manifests).collect();
        let layers =
            contents.iter().flat_map(|contents| contents.layers.iter().map(|(_, layer)| layer.clone())).collect();
        for (digest, bytes) in self.collect_blobs(leases, blobs)? {
            removed.removed.push(digest.to_string());
            removed.freed_bytes += bytes;
        }
        for layer in self.collect_layers(leases, runtime, layers)? {
            removed.freed_unpacked_bytes += self.sizes.get(&layer).map_or(0, |size| size.tar_bytes);
            self.sizes.forget(&layer);
        }
        Ok(removed)
    }

    fn untag(&self, leases: &Leases, reference: &str, force: bool) -> Result<Untagged, RemoveError> {
        // Held from the question who uses the image to the end, so that nobody is given it in between.
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        let found = find(&records, reference)?;
        let lines: Vec<_> = records.iter().filter(|record| record.entry.digest == found.digest).collect();
        let name = |record: &Record| record.entry.name.as_ref().map(ToString::to_string);
        let names: Vec<String> = found.records.iter().filter_map(|&at| name(&records[at])).collect();
        if names.len() > 1 && !force {
            return Err(RemoveError::SeveralNames { reference: reference.to_owned(), names });
        }
        let is_last = lines.len() == found.records.len();
        let user = is_last.then(|| user_of(leases, &found.digest, &lines)).flatten();
        let stays = match user {
            Some(by) if !force || names.is_empty() => {
                return Err(RemoveError::InUse { reference: reference.to_owned(), by });
            }
            Some(_) => lines.first().map(|record| record.without_name()),
            None => None,
        };
        let (gone, kept): (Vec<_>, Vec<_>) =
            records.iter().cloned().enumerate().partition(|(at, _)| found.records.contains(at));
        let gone = if stays.is_some() { Vec::new() } else { gone.into_iter().map(|(_, record)| record).collect() };
        let kept: Vec<Record> = kept.into_iter().map(|(_, record)| record).chain(stays).collect();
        index::write(&self.folder, kept.iter().map(|record| &record.entry))?;
        *records = kept;
        Ok(Untagged { names, gone })
    }

    /// Removes those of the blobs that no image has and no import needs; returns what is gone, with sizes.
    pub(super) fn collect_blobs(
        &self,
        leases: &Leases,
        candidates: HashSet<Digest>,
    ) -> Result<Vec<(Digest, u64)>, StoreError> {
        let reachable = reachable_blobs(&self.records.read().unwrap_or_else(PoisonError::into_inner));
        let mut gone = Vec::new();
        for digest in candidates {
            if !reachable.contains(&digest) && !leases.blobs.contains_key(&digest) {
                let bytes = self.blobs.remove(&digest)?;
                gone.push((digest, bytes));
            }
        }
        gone.sort();
        Ok(gone)
    }

    /// Removes those of the unpacked layers that no image has and no import needs; returns what is gone.
    pub(super) fn collect_layers(
        &self,
        leases: &Leases,
        runtime: &dyn Runtime,
        candidates: HashSet<LayerId>,
    ) -> Result<Vec<LayerId>, RemoveError> {
        let reachable = reachable_layers(&self.records.read().unwrap_or_else(PoisonError::into_inner));
        let is_garbage = |layer: &LayerId| !reachable.contains(layer) && !leases.layers.contains_key(layer);
        let mut garbage: Vec<_> = candidates.into_iter().filter(is_garbage).collect();
        garbage.sort();
        for layer in &garbage {
            let removed = Handle::current().block_on(runtime.remove_layer(layer.clone()));
            removed.map_err(|source| RemoveError::Layer { layer: layer.hex().to_owned(), source })?;
        }
        Ok(garbage)
    }
}

/// Who uses the image that these lines of the list stand for, in words; `None` is nobody.
pub(super) fn user_of(leases: &Leases, digest: &Digest, lines: &[&Record]) -> Option<String> {
    if let Some(lease) = leases.standing.on(digest).next() {
        return Some(format!("the lease `{}` of {}", lease.name, lease.holder));
    }
    (users(lines) > 0).then(|| "jobs".to_owned())
}

impl Record {
    /// The same image as one that has no name.
    pub(super) fn without_name(&self) -> Record {
        self.named(None)
    }

    /// The same image under a name.
    pub(super) fn named(&self, name: Option<&crate::image::reference::Reference>) -> Record {
        let image = self.image.as_ref().map(|image| Arc::new(image.under(name))).map_err(String::clone);
        Record { entry: super::Entry { name: name.cloned(), ..self.entry.clone() }, image }
    }
}
