//! What steps of builds came to, by their keys: the cache of builds. One small file a step, written by rename, so that a
//! crash leaves a step that is known or one that is not. What is known keeps its layer from being removed.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::blobs::{Blobs, write_atomically};
use super::built::BuiltLayer;
use super::{Store, StoreError, system};
use crate::image::digest::Digest;
use crate::image::manifest::Content;
use crate::spec::LayerId;

/// The folder of steps, in that of the store.
const FOLDER: &str = ".steps";
/// Most steps that are known; the oldest make room.
const STEPS_MAX: usize = 20_000;
/// Longest record, in bytes.
const RECORD_BYTES_MAX: u64 = 4096;

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepResult {
    /// The layer that it made, if it changed a file.
    pub layer: Option<BuiltLayer>,
    /// When it was run: an image that has it says so, however often it is built again.
    pub created: Timestamp,
}

/// A record as it is on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    media_type: String,
    digest: Option<Digest>,
    size: u64,
    layer: Option<LayerId>,
    created: Timestamp,
}

impl Record {
    fn of(result: &StepResult) -> Record {
        let created = result.created;
        match &result.layer {
            None => Record { media_type: String::new(), digest: None, size: 0, layer: None, created },
            Some(BuiltLayer { content, layer }) => Record {
                media_type: content.media_type.clone(),
                digest: Some(content.digest.clone()),
                size: content.size,
                layer: Some(layer.clone()),
                created,
            },
        }
    }

    fn result(self) -> Option<StepResult> {
        let Record { media_type, digest, size, layer, created } = self;
        match (digest, layer) {
            (None, None) => Some(StepResult { layer: None, created }),
            (Some(digest), Some(layer)) => {
                let content = Content { media_type, digest, size };
                Some(StepResult { layer: Some(BuiltLayer { content, layer }), created })
            }
            _ => None,
        }
    }
}

/// All steps that are known, and those that are being run.
pub(super) struct Steps {
    folder: PathBuf,
    known: Mutex<HashMap<Digest, StepResult>>,
    running: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Steps {
    /// Reads those of the store in `folder` whose layers are there; forgets the others.
    pub(super) fn open(folder: &Path, blobs: &Blobs, on_disk: &HashSet<LayerId>) -> Result<Steps, StoreError> {
        let folder = folder.join(FOLDER);
        fs::create_dir_all(&folder).map_err(system("make", &folder))?;
        let mut known = HashMap::new();
        for entry in fs::read_dir(&folder).map_err(system("list", &folder))? {
            let path = entry.map_err(system("list", &folder))?.path();
            let key = path.file_name().and_then(|name| name.to_str()).and_then(Digest::from_hex);
            let result = read(&path).filter(|result| is_whole(result, blobs, on_disk));
            match (key, result) {
                (Some(key), Some(result)) => drop(known.insert(key, result)),
                _ => fs::remove_file(&path).map_err(system("remove", &path))?,
            }
        }
        Ok(Steps { folder, known: Mutex::new(known), running: Mutex::default() })
    }

    /// The blobs and layers that the known steps keep.
    pub(super) fn contents(&self) -> (Vec<Digest>, Vec<LayerId>) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let layers = || known.values().filter_map(|result| result.layer.as_ref());
        (
            layers().map(|layer| layer.content.digest.clone()).collect(),
            layers().map(|layer| layer.layer.clone()).collect(),
        )
    }
}

fn read(path: &Path) -> Option<StepResult> {
    let is_small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= RECORD_BYTES_MAX);
    let record: Record = serde_json::from_slice(&is_small.then(|| fs::read(path).ok())??).ok()?;
    record.result()
}

fn is_whole(result: &StepResult, blobs: &Blobs, on_disk: &HashSet<LayerId>) -> bool {
    let there = |layer: &BuiltLayer| {
        blobs.size(&layer.content.digest) == Some(layer.content.size) && on_disk.contains(&layer.layer)
    };
    result.layer.as_ref().is_none_or(there)
}

impl Store {
    /// What the step with this key came to, if it is known. Takes no disk access.
    pub fn known_step(&self, key: &Digest) -> Option<StepResult> {
        self.steps.known.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Remembers what a step came to; on disk when this returns. To be called while somebody holds its layer. Blocks.
    ///
    /// # Errors
    /// A store that fails; the step is not known then.
    pub fn remember_step(&self, key: &Digest, result: &StepResult) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(&Record::of(result)).map_err(|error| StoreError::System {
            action: "write",
            path: self.steps.folder.clone(),
            source: error.into(),
        })?;
        if self.step_count() >= STEPS_MAX {
            self.forget_steps()?;
        }
        write_atomically(&self.steps.folder, key.hex(), &bytes)?;
        let mut leases = self.leases();
        let before =
            self.steps.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), result.clone());
        if let Some(layer) = &result.layer {
            leases.count(std::slice::from_ref(&layer.content.digest), std::slice::from_ref(&layer.layer));
        }
        for layer in before.iter().filter_map(|before| before.layer.as_ref()) {
            leases.uncount(std::slice::from_ref(&layer.content.digest), std::slice::from_ref(&layer.layer));
        }
        Ok(())
    }

    /// How many steps are known.
    pub fn step_count(&self) -> usize {
        self.steps.known.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Forgets all steps. What they kept goes when the store is opened next, or with the image that has it too. Blocks.
    ///
    /// # Errors
    /// A store that fails.
    pub fn forget_steps(&self) -> Result<usize, StoreError> {
        let mut leases = self.leases();
        let known = std::mem::take(&mut *self.steps.known.lock().unwrap_or_else(PoisonError::into_inner));
        for (key, result) in &known {
            let path = self.steps.folder.join(key.hex());
            fs::remove_file(&path).map_err(system("remove", &path))?;
            if let Some(layer) = &result.layer {
                leases.uncount(std::slice::from_ref(&layer.content.digest), std::slice::from_ref(&layer.layer));
            }
        }
        Ok(known.len())
    }

    /// Waits for whoever runs the step with this key, and is then the one who does, until the result is dropped.
    pub async fn take_step(&self, key: &Digest) -> StepTurn {
        let turn = {
            let mut running = self.steps.running.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever is done and was the last needs no line any more.
            running.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(running.entry(key.clone()).or_default())
        };
        StepTurn { _turn: turn.lock_owned().await }
    }
}

/// The right to run a step.
pub struct StepTurn {
    _turn: tokio::sync::OwnedMutexGuard<()>,
}
