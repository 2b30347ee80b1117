//! The layers of an import, several at once: each is unpacked in a throw-away sandbox of its own.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::pin::pin;

use futures_util::future::ready;
use futures_util::stream::{self, StreamExt};
use tokio::runtime::Handle;

use super::blobs::Arrived;
use super::import::Candidate;
use super::refusal::{ImportError, LayerError};
use crate::runtime::{Runtime, Unpacked};
use crate::spec::LayerId;

/// Layers of one import that are unpacked at a time.
const LAYERS_AT_ONCE: usize = 4;

/// What became of the layers of an import.
#[derive(Default)]
pub(super) struct Outcome {
    /// What was unpacked, in no order.
    pub(super) unpacked: Vec<Unpacked>,
    /// Why not all of them were; those that were under way have ended as well.
    pub(super) failure: Option<ImportError>,
    /// What came out of layers that are not what the configs say.
    pub(super) unwanted: Vec<LayerId>,
}

/// Unpacks the layers of images, each once, and checks that they are what the configs say. None is begun after one has
/// failed.
pub(super) fn unpack_all(runtime: &dyn Runtime, candidates: &[Candidate]) -> Result<Outcome, ImportError> {
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
    let has_failed = Cell::new(false);
    let unpacking = stream::iter(wanted).take_while(|_| ready(!has_failed.get()));
    let unpacking = unpacking.map(|(number, layer, expected)| async move {
        let unpacked = unpack(runtime, layer, number).await?;
        Ok((number, expected, unpacked))
    });
    let mut outcome = Outcome::default();
    let mut unpacking = pin!(unpacking.buffer_unordered(LAYERS_AT_ONCE));
    while let Some(done) = Handle::current().block_on(unpacking.next()) {
        let failure = match done {
            Ok((_, expected, unpacked)) if unpacked.layer == *expected => {
                outcome.unpacked.push(unpacked);
                continue;
            }
            Ok((number, expected, Unpacked { layer: actual, .. })) => {
                outcome.unwanted.push(actual.clone());
                LayerError::DiffId { number, expected: expected.clone(), actual }.into()
            }
            Err(error) => error,
        };
        has_failed.set(true);
        outcome.failure.get_or_insert(failure);
    }
    Ok(outcome)
}

/// Unpacks one layer; `number` is for messages.
pub(super) async fn unpack(runtime: &dyn Runtime, layer: &Arrived, number: usize) -> Result<Unpacked, ImportError> {
    let file = File::open(&layer.path).map_err(ImportError::Read)?;
    let failed = |source| LayerError::Unpack { number, blob: layer.digest.clone(), source }.into();
    runtime.unpack_layer(file).await.map_err(failed)
}
