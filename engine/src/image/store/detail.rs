//! All that is known of one image: its names, its layers with both their digests, the steps that made it.

use super::usage::Share;
use super::{ImageSummary, ResolveError, Store, account_of, find};
use crate::image::config::{Config, ConfigError, ImageConfig, Origin, Step};
use crate::image::digest::Digest;
use crate::image::manifest::{self, Document, Manifest};
use crate::spec::LayerId;
use std::sync::PoisonError;

/// All that is known of an image.
#[derive(Clone, Debug)]
pub struct Detail {
    /// What a list shows of it.
    pub summary: ImageSummary,
    /// Every name that it has.
    pub names: Vec<String>,
    /// The media type of its manifest.
    pub media_type: String,
    /// The digest of its config, which other programs call the id of the image.
    pub config_digest: String,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Who made it, if it says.
    pub author: Option<String>,
    /// What it runs on, as in `linux/amd64`.
    pub platform: String,
    /// Its layers, lowest first.
    pub layers: Vec<LayerDetail>,
    /// The steps that made it, oldest first.
    pub history: Vec<StepDetail>,
    /// What it takes in the store.
    pub stored: Share,
    /// Whether jobs or leases hold it.
    pub is_held: bool,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDetail {
    /// The digest of what is stored.
    pub digest: String,
    /// The digest of the uncompressed tar.
    pub diff_id: String,
    /// Its media type.
    pub media_type: String,
    /// Bytes as stored.
    pub size_bytes: u64,
    /// Bytes of the uncompressed tar, if they are known.
    pub unpacked_bytes: Option<u64>,
    /// Entries of the tar, if they are known.
    pub entries: Option<u64>,
}

/// A step, and the layer that came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepDetail {
    /// What the config says.
    pub step: Step,
    /// The layer, unless the step changed no file.
    pub layer: Option<LayerDetail>,
}

impl Store {
    /// Tells all that is known of an image. Reads its manifest and config, and blocks.
    ///
    /// # Errors
    /// As `resolve`.
    pub fn inspect(&self, reference: &str) -> Result<Detail, ResolveError> {
        let image = self.resolve(reference)?;
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let found = find(&records, reference)?;
        let lines: Vec<_> = records.iter().filter(|record| record.entry.digest == found.digest).collect();
        let damaged = |damage: String| ResolveError::Damaged { reference: reference.to_owned(), damage };
        let manifest = self.manifest(&found.digest).map_err(damaged)?;
        let config = self.blobs.read(&manifest.config.digest, manifest::CONFIG_BYTES_MAX).map_err(damaged)?;
        let told = |error: ConfigError| damaged(super::in_one_line(&error));
        let (origin, diff_ids) =
            (Origin::parse(&config).map_err(told)?, Config::parse(&config).map_err(told)?.diff_ids);
        let layers = self.layer_details(&manifest, &diff_ids);
        let distinct = super::distinct(&records);
        let at = distinct.iter().position(|image| image.digest == found.digest);
        let shares = account_of(&distinct).shares;
        // One hold is ours.
        let is_held = super::users(&lines) > 1 || self.is_leased(&found.digest);
        Ok(Detail {
            summary: records[found.records[0]].summary(),
            names: lines.iter().filter_map(|record| record.entry.name.as_ref()).map(ToString::to_string).collect(),
            media_type: manifest.media_type.clone(),
            config_digest: manifest.config.digest.to_string(),
            config: image.config.clone(),
            author: origin.author.clone().filter(|author| !author.is_empty()),
            platform: origin.platform(),
            history: steps(origin.history, &layers),
            layers,
            stored: at.and_then(|at| shares.get(at).copied()).unwrap_or_default(),
            is_held,
        })
    }

    /// Reads the manifest of an image that is in the list.
    pub(super) fn manifest(&self, digest: &Digest) -> Result<Manifest, String> {
        let bytes = self.blobs.read(digest, manifest::MANIFEST_BYTES_MAX)?;
        match manifest::parse(&bytes) {
            Ok(Document::Manifest(manifest)) => Ok(manifest),
            Ok(Document::Index(_)) => Err("its manifest is a list of manifests".into()),
            Err(error) => Err(super::in_one_line(&error)),
        }
    }

    fn layer_details(&self, manifest: &Manifest, diff_ids: &[LayerId]) -> Vec<LayerDetail> {
        let detail = |(content, diff_id): (&manifest::Content, &LayerId)| {
            let size = self.sizes.get_or_measure(&self.blobs, &content.digest, diff_id);
            LayerDetail {
                digest: content.digest.to_string(),
                diff_id: format!("sha256:{}", diff_id.hex()),
                media_type: content.media_type.clone(),
                size_bytes: content.size,
                unpacked_bytes: size.map(|size| size.tar_bytes),
                entries: size.map(|size| size.entries),
            }
        };
        manifest.layers.iter().zip(diff_ids).map(detail).collect()
    }
}

/// Gives each step its layer. A history may be missing or lie about how many layers there are: each layer is told
/// once, and a step for which none is left has none.
fn steps(history: Vec<Step>, layers: &[LayerDetail]) -> Vec<StepDetail> {
    let mut rest = layers.iter().cloned();
    let mut steps: Vec<_> = history
        .into_iter()
        .map(|step| {
            let layer = if step.is_empty { None } else { rest.next() };
            StepDetail { step, layer }
        })
        .collect();
    steps.extend(rest.map(|layer| StepDetail { step: Step::default(), layer: Some(layer) }));
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer(number: usize) -> LayerDetail {
        LayerDetail {
            digest: number.to_string(),
            diff_id: String::new(),
            media_type: String::new(),
            size_bytes: 1,
            unpacked_bytes: None,
            entries: None,
        }
    }

    proptest! {
        #[test]
        fn each_layer_is_told_once_and_in_order(empty in proptest::collection::vec(any::<bool>(), 0..10), count in 0usize..6) {
            let layers: Vec<_> = (0..count).map(layer).collect();
            let history = empty.iter().map(|&is_empty| Step { is_empty, ..Step::default() }).collect();
            let steps = steps(history, &layers);
            let told: Vec<_> = steps.iter().filter_map(|step| step.layer.clone()).collect();
            prop_assert_eq!(told, layers);
            prop_assert!(steps.iter().all(|step| !step.step.is_empty || step.layer.is_none()));
            prop_assert!(steps.len() >= empty.len());
        }
    }
}
