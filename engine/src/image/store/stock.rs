//! What the store takes on disk, told apart by what images share and what they have alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use super::usage::{Account, Share, account};
use super::{PruneRequest, Record, Store, distinct};
use crate::spec::LayerId;

/// What the store takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Each image once.
    pub images: Vec<ImageUsage>,
    /// Stored content, each blob once.
    pub blobs: Account,
    /// Unpacked layers, each once.
    pub layers: Account,
    /// Layers whose size nobody could find out; they count as nothing.
    pub layers_unknown: usize,
    /// What would go without the images that have no name and that nobody uses.
    pub dangling: Reclaimable,
    /// What would go without all images that nobody uses.
    pub unused: Reclaimable,
}

/// What an image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    /// Its digest.
    pub digest: String,
    /// Its names.
    pub names: Vec<String>,
    /// Stored content.
    pub stored: Share,
    /// Unpacked layers.
    pub unpacked: Share,
}

/// What can be had back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimable {
    /// Images that would go.
    pub images: usize,
    /// Bytes of stored content.
    pub stored_bytes: u64,
    /// Bytes of unpacked layers.
    pub unpacked_bytes: u64,
}

impl Store {
    /// Takes stock. Layers of which no size is known yet are measured, and it blocks for as long as that takes.
    pub fn disk_usage(&self) -> DiskUsage {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.measure(&records);
        let images = distinct(&records);
        let mut unknown = std::collections::HashSet::new();
        let unpacked: Vec<BTreeMap<LayerId, u64>> = images
            .iter()
            .map(|image| {
                let size = |layer: &LayerId| self.sizes.get(layer).map(|size| size.tar_bytes);
                unknown.extend(image.layers.iter().map(|(_, layer)| layer).filter(|layer| size(layer).is_none()));
                image.layers.iter().map(|(_, layer)| (layer.clone(), size(layer).unwrap_or(0))).collect()
            })
            .collect();
        let blobs = super::account_of(&images);
        let layers = account(&unpacked);
        let mut names: HashMap<_, Vec<String>> = HashMap::new();
        for record in &records {
            let name = record.entry.name.as_ref().map(ToString::to_string);
            names.entry(&record.entry.digest).or_default().extend(name);
        }
        let shares = blobs.shares.iter().zip(&layers.shares);
        let usage = |(image, (stored, unpacked)): (&super::Distinct, (&Share, &Share))| ImageUsage {
            digest: image.digest.to_string(),
            names: names.get(&image.digest).cloned().unwrap_or_default(),
            stored: *stored,
            unpacked: *unpacked,
        };
        DiskUsage {
            images: images.iter().zip(shares).map(usage).collect(),
            layers_unknown: unknown.len(),
            dangling: self.reclaimable(false),
            unused: self.reclaimable(true),
            blobs,
            layers,
        }
    }

    fn reclaimable(&self, all: bool) -> Reclaimable {
        let plan = self.plan_prune(&PruneRequest { all, ..PruneRequest::default() });
        Reclaimable {
            images: plan.images.len(),
            stored_bytes: plan.freed_bytes,
            unpacked_bytes: plan.freed_unpacked_bytes,
        }
    }

    /// Finds out the size of each layer of which none is known.
    pub(super) fn measure(&self, records: &[Record]) {
        for image in records.iter().filter_map(|record| record.image.as_ref().ok()) {
            for (blob, layer) in &image.contents.layers {
                self.sizes.get_or_measure(&self.blobs, blob, layer);
            }
        }
    }
}
