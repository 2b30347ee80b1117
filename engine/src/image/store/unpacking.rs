//! The layers of an import, several at once: each is unpacked in a throw-away sandbox of its own.

use std::collections::HashSet;
use std::fs::File;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::runtime::Handle;

use super::Store;
use super::blobs::Arrived;
use super::import::Candidate;
use super::refusal::ImportError;
use crate::image::layer::Skipped;
use crate::runtime::{Runtime, Unpacked};
use crate::spec::LayerId;

/// Layers of one import that are unpacked at a time.
const LAYERS_AT_ONCE: usize = 4;

/// Unpacks the layers of images, each once, and checks that they are what the configs say. Says what was left out.
pub(super) fn unpack_all(
    store: &Store,
    runtime: &dyn Runtime,
    candidates: &[Candidate],
) -> Result<Skipped, ImportError> {
    let mut wanted = Vec::new();
    let mut seen = HashSet::new();
    for candidate in candidates {
        if candidate.layers.len() != candidate.config.diff_ids.len() {
            let (layers, ids) = (candidate.layers.len(), candidate.config.diff_ids.len());
            return Err(ImportError::Mismatch(format!("it has {layers} layers, and its config names {ids}")));
        }
        for (at, (layer, expected)) in candidate.layers.iter().zip(&candidate.config.diff_ids).enumerate() {
            if seen.insert((&layer.digest, expected)) {
                wanted.push((at + 1, layer, expected));
            }
        }
    }
    let unpacking =
        stream::iter(wanted).map(|(number, layer, expected)| unpack_as(store, runtime, layer, number, expected));
    let sum = |sum: Skipped, skipped: Skipped| async move {
        Ok(Skipped { devices: sum.devices + skipped.devices, xattrs: sum.xattrs + skipped.xattrs })
    };
    Handle::current().block_on(unpacking.buffer_unordered(LAYERS_AT_ONCE).try_fold(Skipped::default(), sum))
}

async fn unpack_as(
    store: &Store,
    runtime: &dyn Runtime,
    layer: &Arrived,
    number: usize,
    expected: &LayerId,
) -> Result<Skipped, ImportError> {
    let Unpacked { layer: actual, skipped, .. } = unpack(store, runtime, layer, number).await?;
    if actual == *expected {
        return Ok(skipped);
    }
    Err(ImportError::DiffId { number, expected: expected.clone(), actual })
}

/// Unpacks one layer; `number` is for messages.
pub(super) async fn unpack(
    store: &Store,
    runtime: &dyn Runtime,
    layer: &Arrived,
    number: usize,
) -> Result<Unpacked, ImportError> {
    let file = File::open(&layer.path).map_err(ImportError::Read)?;
    let failed = |source| ImportError::Unpack { number, blob: layer.digest.to_string(), source };
    let unpacked = runtime.unpack_layer(file).await.map_err(failed)?;
    store.sizes.note(&unpacked);
    Ok(unpacked)
}
