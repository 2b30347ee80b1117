//! Whether what the store has is still what it took in: every blob is hashed again, every layer looked for, and on
//! demand compared with its archive, file by file. What is wrong is mended where that is possible from here: a damaged
//! blob is set aside, so that the next pull or import brings it again; a damaged layer is unpacked from its blob.
//!
//! No lock is held while anything is read, so that jobs, pulls and imports go on.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;

use serde::Serialize;
use tokio::runtime::Handle;

use super::index::Entry;
use super::{HeldImage, Record, ResolveError, Store, StoreError, find, in_one_line, system};
use crate::image::config::Config;
use crate::image::digest::{Digest, Hasher};
use crate::image::manifest::{self, Document};
use crate::runtime::{Runtime, RuntimeError};
use crate::spec::LayerId;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Folder of the store for damaged blobs, by digest.
const ASIDE_FOLDER: &str = ".damaged";

/// How a verification is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Unpacked layers are compared with their archives, file by file.
    pub deep: bool,
    /// What is wrong is mended where that is possible from here.
    pub mends: bool,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The images that were looked at, each once.
    pub images: Vec<VerifiedImage>,
    /// Blobs that were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Unpacked layers that were looked for, or compared.
    pub layers: u64,
}

/// What was found of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedImage {
    /// All its names.
    pub references: Vec<String>,
    /// The digest of its manifest.
    pub digest: String,
    /// What is wrong, in sentences; empty for an image that is whole.
    pub problems: Vec<String>,
    /// What was done about it, in sentences.
    pub mended: Vec<String>,
    /// Whether it can be run now.
    pub is_usable: bool,
}

/// Why nothing was verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The name leads to no image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The launcher is gone.
    #[error("could not look at the unpacked layers")]
    Runtime(#[source] RuntimeError),
}

/// What is known of a blob or a layer that was looked at; several images may have it.
#[derive(Clone, Debug, Default)]
struct Finding {
    problems: Vec<String>,
    mended: Vec<String>,
    /// What is there now cannot be used.
    is_lost: bool,
}

/// A verification under way.
struct Verification<'store> {
    store: &'store Store,
    runtime: &'store dyn Runtime,
    options: VerifyOptions,
    blobs: BTreeMap<Digest, Finding>,
    layers: BTreeMap<LayerId, Finding>,
    on_disk: HashSet<LayerId>,
    verified: Verified,
}

impl Store {
    /// Verifies one image, or all. Blocks for as long as it takes to read them; to be called where tokio allows it.
    ///
    /// # Errors
    /// A name that leads to no image, and a store or runtime that fails. What is wrong with an image is no error.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn verify(
        &self,
        runtime: &dyn Runtime,
        reference: Option<&str>,
        options: VerifyOptions,
    ) -> Result<Verified, VerifyError> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let wanted: BTreeSet<Digest> = match reference {
            Some(reference) => BTreeSet::from([find(&records, reference)?.digest]),
            None => records.iter().map(|record| record.entry.digest.clone()).collect(),
        };
        let mut verification = Verification {
            store: self,
            runtime,
            options,
            blobs: BTreeMap::new(),
            layers: BTreeMap::new(),
            on_disk: self.layers_on_disk()?,
            verified: Verified::default(),
        };
        for digest in wanted {
            let lines: Vec<&Record> = records.iter().filter(|record| record.entry.digest == digest).collect();
            // Held, so that nobody removes it meanwhile; a damaged one cannot be held, and one that is gone is not there.
            let held = self.resolve(&digest.to_string());
            if !matches!(held, Err(ResolveError::NotFound { .. })) {
                verification.image(&lines, held.ok().as_ref())?;
            }
        }
        Ok(verification.verified)
    }

    /// Moves a blob away that is not what its name says, unless it was replaced since it was read.
    fn set_aside(&self, digest: &Digest, read: &File) -> Result<bool, StoreError> {
        let _changes = self.leases();
        let path = self.folder.join("blobs").join("sha256").join(digest.hex());
        let read = read.metadata().map_err(system("look at", &path))?;
        let there = fs::symlink_metadata(&path).map_err(system("look at", &path))?;
        if (read.dev(), read.ino()) != (there.dev(), there.ino()) {
            return Ok(false);
        }
        let aside = self.folder.join(ASIDE_FOLDER);
        fs::create_dir_all(&aside).map_err(system("make", &aside))?;
        fs::rename(&path, aside.join(digest.hex())).map_err(system("set aside", &path))?;
        Ok(true)
    }

    /// Has everybody see that an image cannot be used.
    fn mark_image_damaged(&self, digest: &Digest, problem: &str) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        for record in records.iter_mut().filter(|record| record.entry.digest == *digest && record.image.is_ok()) {
            record.image = Err(problem.to_owned());
        }
    }
}

impl Verification<'_> {
    fn image(&mut self, lines: &[&Record], held: Option<&HeldImage>) -> Result<(), VerifyError> {
        let Some(first) = lines.first() else { return Ok(()) };
        let digest = first.entry.digest.clone();
        let mut whole = Finding::default();
        self.documents(&first.entry, &mut whole)?;
        if let Some(image) = held {
            for (blob, layer) in &image.contents.layers {
                let found = self.blob(blob, image.contents.blobs.get(blob).copied())?;
                let archive_is_lost = found.is_lost;
                whole.add(&found);
                let found = self.layer(layer, blob, archive_is_lost)?;
                whole.add(&found);
            }
        } else if let Some(damage) = first.image.as_ref().err()
            && whole.problems.is_empty()
        {
            whole.problems.push(damage.clone());
            whole.is_lost = true;
        }
        if whole.is_lost && held.is_some() {
            self.store.mark_image_damaged(&digest, &whole.problems.join("; "));
        }
        let names = lines.iter().filter_map(|record| record.entry.name.as_ref()).map(ToString::to_string);
        self.verified.images.push(VerifiedImage {
            references: names.collect(),
            digest: digest.to_string(),
            problems: whole.problems,
            mended: whole.mended,
            is_usable: !whole.is_lost,
        });
        Ok(())
    }

    /// Looks at the manifest and the config, and whether they fit each other.
    fn documents(&mut self, entry: &Entry, whole: &mut Finding) -> Result<(), VerifyError> {
        let found = self.blob(&entry.digest, Some(entry.size))?;
        whole.add(&found);
        if found.is_lost {
            return Ok(());
        }
        let read = self.store.blobs.read(&entry.digest, manifest::MANIFEST_BYTES_MAX);
        let manifest = match read.map(|bytes| manifest::parse(&bytes)) {
            Ok(Ok(Document::Manifest(manifest))) => Ok(manifest),
            Ok(Ok(Document::Index(_))) => Err("its manifest is a list of manifests".to_owned()),
            Ok(Err(error)) => Err(format!("its manifest: {}", in_one_line(&error))),
            Err(problem) => Err(format!("its manifest {problem}")),
        };
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(problem) => {
                whole.lose(&problem);
                return Ok(());
            }
        };
        let found = self.blob(&manifest.config.digest, Some(manifest.config.size))?;
        whole.add(&found);
        if found.is_lost {
            return Ok(());
        }
        let read = self.store.blobs.read(&manifest.config.digest, manifest::CONFIG_BYTES_MAX);
        match read.map(|bytes| Config::parse(&bytes)) {
            Ok(Ok(config)) if config.diff_ids.len() == manifest.layers.len() => {}
            Ok(Ok(config)) => {
                let (ids, layers) = (config.diff_ids.len(), manifest.layers.len());
                whole.lose(&format!("its config names {ids} layers and its manifest {layers}"));
            }
            Ok(Err(error)) => whole.lose(&format!("its config: {}", in_one_line(&error))),
            Err(problem) => whole.lose(&format!("its config {problem}")),
        }
        Ok(())
    }

    /// Hashes a blob; once, however many images have it.
    fn blob(&mut self, digest: &Digest, size: Option<u64>) -> Result<Finding, VerifyError> {
        if let Some(found) = self.blobs.get(digest) {
            return Ok(found.clone());
        }
        let mut finding = Finding::default();
        match self.store.blobs.open_blob(digest) {
            Err(StoreError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                finding.lose(&format!("the blob {digest} is missing"));
            }
            opened => {
                let file = opened?;
                self.verified.blobs += 1;
                if let Some(problem) = self.wrong_with(&file, digest, size) {
                    finding.lose(&format!("the blob {digest} {problem}"));
                    if self.options.mends && self.store.set_aside(digest, &file)? {
                        finding.mended.push(format!("the blob {digest} was set aside; pull or import the image again"));
                    }
                }
            }
        }
        self.blobs.insert(digest.clone(), finding.clone());
        Ok(finding)
    }

    /// What is wrong with the content of a blob, as the end of a sentence.
    fn wrong_with(&mut self, file: &File, digest: &Digest, size: Option<u64>) -> Option<String> {
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let mut input = file;
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(format!("cannot be read: {error}")),
            }
        }
        let bytes = hasher.bytes();
        self.verified.bytes += bytes;
        if let Some(size) = size.filter(|&size| size != bytes) {
            return Some(format!("has {bytes} bytes, and the image says {size}"));
        }
        let found = hasher.finish();
        (found != *digest).then(|| format!("has decayed: its content is {found}"))
    }

    /// Looks for an unpacked layer, and compares it when asked to.
    fn layer(&mut self, layer: &LayerId, blob: &Digest, archive_is_lost: bool) -> Result<Finding, VerifyError> {
        if let Some(found) = self.layers.get(layer) {
            return Ok(found.clone());
        }
        let mut finding = Finding::default();
        self.verified.layers += 1;
        if !self.on_disk.contains(layer) {
            finding.lose(&format!("the layer {} is not unpacked", layer.hex()));
            if self.options.mends && !archive_is_lost {
                match self.store.unpack_again(self.runtime, blob, layer) {
                    Ok(()) => finding.mend(format!("the layer {} was unpacked again", layer.hex())),
                    Err(source @ RuntimeError::Gone) => return Err(VerifyError::Runtime(source)),
                    Err(error) => finding.problems.push(in_one_line(&error)),
                }
            }
        } else if self.options.deep && !archive_is_lost {
            self.compare(layer, blob, &mut finding)?;
        }
        self.layers.insert(layer.clone(), finding.clone());
        Ok(finding)
    }

    fn compare(&self, layer: &LayerId, blob: &Digest, finding: &mut Finding) -> Result<(), VerifyError> {
        let archive = self.store.blobs.open_blob(blob)?;
        let checked = self.runtime.check_layer(layer.clone(), archive, self.options.mends);
        let hex = layer.hex();
        match Handle::current().block_on(checked) {
            Ok(checked) if checked.differences == 0 => {}
            Ok(checked) => {
                finding.lose(&format!("the layer {hex} differs from its archive in {} files", checked.differences));
                finding.problems.extend(checked.samples.iter().map(|sample| format!("the layer {hex}: {sample}")));
                if checked.is_mended {
                    finding.mend(format!("the layer {hex} was unpacked again"));
                }
            }
            Err(source @ RuntimeError::Gone) => return Err(VerifyError::Runtime(source)),
            Err(error) => finding.lose(&format!("the layer {hex} could not be compared: {}", in_one_line(&error))),
        }
        Ok(())
    }
}

impl Finding {
    fn add(&mut self, part: &Finding) {
        self.problems.extend(part.problems.iter().cloned());
        self.mended.extend(part.mended.iter().cloned());
        self.is_lost |= part.is_lost;
    }

    fn lose(&mut self, problem: &str) {
        self.problems.push(problem.to_owned());
        self.is_lost = true;
    }

    fn mend(&mut self, what: String) {
        self.mended.push(what);
        self.is_lost = false;
    }
}
