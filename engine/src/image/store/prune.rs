//! What may go, worked out before anything goes: the same plan is shown and carried out. An image that a job or a lease
//! holds is never in it.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::removal::user_of;
use super::{Filter, ImageSummary, Leases, Record, RemoveError, Store, distinct, index, usage};
use crate::image::digest::{Digest, Hasher};
use crate::runtime::Runtime;
use crate::spec::LayerId;

/// What is to go.
#[derive(Clone, Debug, Default)]
pub struct PruneRequest {
    /// Whether images with names go as well, if no job needs them.
    pub all: bool,
    /// Which images are meant.
    pub filter: Filter,
}

/// An image that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Its digest.
    pub digest: String,
    /// The names that go with it.
    pub names: Vec<String>,
    /// Bytes of its manifest, config and layers as stored; others may have some of them.
    pub size_bytes: u64,
}

/// An image that was meant and stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its digest.
    pub digest: String,
    /// Its names.
    pub names: Vec<String>,
    /// Who uses it.
    pub by: String,
}

/// What goes, and what that frees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrunePlan {
    /// Stands for exactly these images.
    pub id: String,
    /// The images that go, in the order of the list.
    pub images: Vec<Pruned>,
    /// Those that were meant, and stay since somebody uses them.
    pub kept: Vec<Kept>,
    /// The digests of stored content that goes: all that no image that stays has.
    pub removed: Vec<String>,
    /// Bytes of it.
    pub freed_bytes: u64,
    /// Bytes of the unpacked layers that go with it, as far as they are known.
    pub freed_unpacked_bytes: u64,
}

/// Why nothing was pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// What would go is not what was shown.
    #[error("the images have changed since the plan `{0}` was made\nhint: look at what would go now")]
    Changed(String),
    /// Removing failed; what is left goes with the next start.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// An image as the plan sees it.
#[derive(Clone, Debug)]
struct Candidate {
    summary: ImageSummary,
    names: Vec<String>,
    user: Option<String>,
    blobs: BTreeMap<Digest, u64>,
    layers: BTreeMap<LayerId, u64>,
}

impl Store {
    /// Says what would go. Blocks for as long as layers have to be measured of which no size is known.
    pub fn plan_prune(&self, request: &PruneRequest) -> PrunePlan {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.measure(&records);
        plan(&self.candidates(&self.leases(), &records), request)
    }

    /// Lets go what `plan_prune` says. With the id of a plan only if that is still the plan. Blocks.
    ///
    /// # Errors
    /// Another plan than expected; a store or runtime that fails.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn prune(
        &self,
        runtime: &dyn Runtime,
        request: &PruneRequest,
        expected: Option<&str>,
    ) -> Result<PrunePlan, PruneError> {
        self.measure(&self.records.read().unwrap_or_else(PoisonError::into_inner).clone());
        let _no_unnamed_layers = self.unnamed_layers.write().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases();
        let (plan, gone) = {
            // Held from the question who uses the images to the end, so that nobody is given one in between.
            let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
            let plan = plan(&self.candidates(&leases, &records), request);
            if let Some(expected) = expected.filter(|expected| *expected != plan.id) {
                return Err(PruneError::Changed(expected.to_owned()));
            }
            let goes = |record: &Record| {
                let digest = record.entry.digest.to_string();
                plan.images.iter().any(|image| image.digest == digest)
            };
            let (gone, kept): (Vec<_>, Vec<_>) = records.iter().cloned().partition(goes);
            if !gone.is_empty() {
                index::write(&self.folder, kept.iter().map(|record| &record.entry)).map_err(RemoveError::from)?;
                *records = kept;
            }
            (plan, gone)
        };
        let removed = self.collect(&leases, runtime, &gone)?;
        let (freed_bytes, freed_unpacked_bytes) = (removed.freed_bytes, removed.freed_unpacked_bytes);
        Ok(PrunePlan { removed: removed.removed, freed_bytes, freed_unpacked_bytes, ..plan })
    }

    fn candidates(&self, leases: &Leases, records: &[Record]) -> Vec<Candidate> {
        let candidate = |image: super::Distinct| {
            let lines: Vec<_> = records.iter().filter(|record| record.entry.digest == image.digest).collect();
            let size = |layer: &LayerId| self.sizes.get(layer).map_or(0, |size| size.tar_bytes);
            // What an import under way needs as well stays, and frees nothing.
            let blobs = image.blobs.into_iter().filter(|(digest, _)| !leases.blobs.contains_key(digest));
            let layers = image.layers.into_iter().map(|(_, layer)| layer);
            let layers = layers.filter(|layer| !leases.layers.contains_key(layer));
            Some(Candidate {
                summary: lines.first()?.summary(),
                names: lines.iter().filter_map(|line| line.entry.name.as_ref()).map(ToString::to_string).collect(),
                user: user_of(leases, &image.digest, &lines),
                blobs: blobs.collect(),
                layers: layers.map(|layer| (layer.clone(), size(&layer))).collect(),
            })
        };
        distinct(records).into_iter().filter_map(candidate).collect()
    }
}

fn plan(candidates: &[Candidate], request: &PruneRequest) -> PrunePlan {
    let is_meant =
        |candidate: &&Candidate| (request.all || candidate.names.is_empty()) && request.filter.fits(&candidate.summary);
    let (meant, others): (Vec<_>, Vec<_>) = candidates.iter().partition(is_meant);
    let (going, held): (Vec<_>, Vec<_>) = meant.into_iter().partition(|candidate| candidate.user.is_none());
    let staying = || others.iter().chain(&held);
    let blobs = usage::freed(going.iter().map(|image| &image.blobs), staying().map(|image| &image.blobs));
    let layers = usage::freed(going.iter().map(|image| &image.layers), staying().map(|image| &image.layers));
    let mut id = Hasher::default();
    for image in &going {
        id.update(image.summary.digest.as_bytes());
        image.names.iter().for_each(|name| id.update(format!(" {name}\n").as_bytes()));
    }
    PrunePlan {
        id: id.finish().hex()[..16].to_owned(),
        images: going
            .iter()
            .map(|image| Pruned {
                digest: image.summary.digest.clone(),
                names: image.names.clone(),
                size_bytes: image.summary.size_bytes,
            })
            .collect(),
        kept: held
            .iter()
            .map(|image| Kept {
                digest: image.summary.digest.clone(),
                names: image.names.clone(),
                by: image.user.clone().unwrap_or_default(),
            })
            .collect(),
        removed: blobs.keys().map(ToString::to_string).collect(),
        freed_bytes: blobs.values().sum(),
        freed_unpacked_bytes: layers.values().sum(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Images whose content is among nine things; some have names, some are used.
    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (proptest::collection::btree_set(0u8..9, 1..5), any::<bool>(), any::<bool>(), any::<u8>());
        let made =
            |(at, (things, is_named, is_used, age)): (usize, (std::collections::BTreeSet<u8>, bool, bool, u8))| {
                let summary = ImageSummary {
                    reference: is_named.then(|| format!("image-{at}:latest")),
                    digest: Digest::of(&[u8::try_from(at).unwrap_or(0)]).to_string(),
                    size_bytes: 1,
                    layers: 1,
                    created: None,
                    imported_unix: Some(u64::from(age)),
                    damage: None,
                    labels: BTreeMap::new(),
                    skipped: None,
                };
                let sized = |thing: &u8| (Digest::of(&[*thing]), 1u64 << thing);
                let layer = |thing: &u8| (LayerId::parse(Digest::of(&[*thing]).hex()).unwrap(), 1u64 << thing);
                Candidate {
                    names: summary.reference.iter().cloned().collect(),
                    summary,
                    user: is_used.then(|| "jobs".to_owned()),
                    blobs: things.iter().map(sized).collect(),
                    layers: things.iter().map(layer).collect(),
                }
            };
        proptest::collection::vec(one, 0..7).prop_map(move |ones| ones.into_iter().enumerate().map(made).collect())
    }

    proptest! {
        #[test]
        fn what_is_used_or_named_stays_with_all_that_it_needs(candidates in candidates(), all in any::<bool>()) {
            let plan = plan(&candidates, &PruneRequest { all, ..PruneRequest::default() });
            let goes = |candidate: &Candidate| plan.images.iter().any(|image| image.digest == candidate.summary.digest);
            for candidate in &candidates {
                let may_go = candidate.user.is_none() && (all || candidate.names.is_empty());
                prop_assert_eq!(goes(candidate), may_go);
                if !may_go {
                    prop_assert!(candidate.blobs.keys().all(|blob| !plan.removed.contains(&blob.to_string())));
                }
            }
            let before: BTreeMap<_, _> = candidates.iter().flat_map(|image| image.blobs.clone()).collect();
            let after: BTreeMap<_, _> =
                candidates.iter().filter(|image| !goes(image)).flat_map(|image| image.blobs.clone()).collect();
            let freed = before.values().sum::<u64>() - after.values().sum::<u64>();
            prop_assert_eq!((plan.freed_bytes, plan.freed_unpacked_bytes), (freed, freed));
        }

        #[test]
        fn a_plan_has_one_id_and_another_plan_another(candidates in candidates(), at in any::<u8>()) {
            let before = jiff::Timestamp::from_second(i64::from(at)).ok();
            let filter = Filter { before, ..Filter::default() };
            let (some, every) = (
                plan(&candidates, &PruneRequest { all: true, filter }),
                plan(&candidates, &PruneRequest { all: true, ..PruneRequest::default() }),
            );
            prop_assert_eq!(some.id == every.id, some.images == every.images);
            prop_assert!(some.images.iter().all(|image| every.images.contains(image)));
        }
    }
}
