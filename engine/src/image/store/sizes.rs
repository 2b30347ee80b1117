//! How large layers are when they are unpacked. The service cannot look into them; it keeps what the runtime said, and
//! reads the stored archive again when nobody said anything.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::blobs::{Blobs, write_atomically};
use super::{StoreError, in_one_line};
use crate::image::archive::{Limits, Reader};
use crate::image::compression::{Bounds, Decompressed};
use crate::image::digest::Digest;
use crate::runtime::Unpacked;
use crate::spec::LayerId;

/// The file that keeps them, in the folder of the store.
const FILE: &str = ".unpacked.json";
/// Longest such file, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// How large a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerSize {
    /// Bytes of the uncompressed tar.
    pub tar_bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
}

/// What is known of layers. It can be lost without harm.
pub(super) struct Sizes {
    folder: PathBuf,
    known: Mutex<BTreeMap<String, LayerSize>>,
}

impl Sizes {
    /// Reads what was known. What cannot be read is found out again.
    pub(super) fn open(folder: &Path) -> Sizes {
        let path = folder.join(FILE);
        let is_small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= FILE_BYTES_MAX);
        let bytes = if is_small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        let known = serde_json::from_slice(&bytes).unwrap_or_default();
        Sizes { folder: folder.to_owned(), known: Mutex::new(known) }
    }

    /// Keeps what the runtime said of a layer.
    pub(super) fn note(&self, unpacked: &Unpacked) {
        let size = LayerSize { tar_bytes: unpacked.tar_bytes, entries: unpacked.entries };
        self.keep(&unpacked.layer, size);
    }

    fn keep(&self, layer: &LayerId, size: LayerSize) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.insert(layer.hex().to_owned(), size) != Some(size) {
            self.write(&known);
        }
    }

    /// Forgets a layer that is gone.
    pub(super) fn forget(&self, layer: &LayerId) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.remove(layer.hex()).is_some() {
            self.write(&known);
        }
    }

    /// Forgets all layers but these.
    pub(super) fn retain(&self, layers: &HashSet<LayerId>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.len();
        known.retain(|hex, _| LayerId::parse(hex).is_ok_and(|layer| layers.contains(&layer)));
        if known.len() < before {
            self.write(&known);
        }
    }

    fn write(&self, known: &BTreeMap<String, LayerSize>) {
        let bytes = serde_json::to_vec(known).unwrap_or_default();
        if let Err(error) = write_atomically(&self.folder, FILE, &bytes) {
            // They are found out again when somebody asks.
            tracing::debug!(error = in_one_line(&error), "could not keep the sizes of layers");
        }
    }

    /// What is known of a layer.
    pub(super) fn get(&self, layer: &LayerId) -> Option<LayerSize> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(layer.hex()).copied()
    }

    /// What is known of a layer, or found out from what is stored of it. Blocks for as long as that takes to read.
    pub(super) fn get_or_measure(&self, blobs: &Blobs, blob: &Digest, layer: &LayerId) -> Option<LayerSize> {
        if let Some(size) = self.get(layer) {
            return Some(size);
        }
        let size = measure(blobs, blob).ok()?;
        self.keep(layer, size);
        Some(size)
    }
}

fn measure(blobs: &Blobs, blob: &Digest) -> Result<LayerSize, MeasureError> {
    let archive = Decompressed::new(blobs.open_blob(blob)?, Bounds::default())?;
    let mut reader = Reader::new(archive, Limits::default());
    while reader.next_entry().map_err(io::Error::from)?.is_some() {}
    let entries = reader.entries();
    let tar_bytes = reader.drain().map_err(io::Error::from)?.produced();
    Ok(LayerSize { tar_bytes, entries })
}

/// Why a layer could not be measured; its size is then not told.
#[derive(Debug, thiserror::Error)]
enum MeasureError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Read(#[from] io::Error),
}
