//! How images come into the store: a root file system, what `docker save` writes, an OCI layout. First everything is
//! put aside and verified, then the layers are unpacked, then the content is taken over, and last the names are set.
//! Whatever fails on the way, nothing is left of it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use tokio::runtime::Handle;

use super::blobs::{Arrived, Incoming};
use super::index::{self, Entry};
use super::members::{self, Members, Shape};
use super::refusal::ImportError;
use super::unpacking::{Outcome, unpack, unpack_all};
use super::{Hold, Image, ImageSummary, Leases, Record, RemoveError, Store, in_one_line};
use crate::image::compression::{Bounds, Decompressed, Format, Refused};
use crate::image::config::{Config, ConfigError};
use crate::image::digest::Digest;
use crate::image::layer::Skipped;
use crate::image::manifest::{
    self, CONFIG_BYTES_MAX, CONFIG_TYPE, Content, Document, IndexEntry, MANIFEST_BYTES_MAX, Manifest,
};
use crate::image::reference::Reference;
use crate::runtime::Runtime;
use crate::spec::LayerId;

/// Most bytes of an archive as it arrives.
const ARCHIVE_BYTES_MAX: u64 = 16 << 30;
/// How many lists of manifests may lead from one to the next.
const INDEX_DEPTH_MAX: usize = 4;

/// An image that was verified and put aside, and is not in the store yet.
pub(super) struct Candidate {
    names: Vec<Reference>,
    manifest: Manifest,
    manifest_file: Arrived,
    pub(super) config: Config,
    config_file: Arrived,
    /// The layers as they arrived, lowest first.
    pub(super) layers: Vec<Arrived>,
}

/// One line of the `manifest.json` that `docker save` writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What an archive brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The images, once for each name.
    pub images: Vec<ImageSummary>,
    /// What it holds besides them.
    pub left_out: Vec<LeftOut>,
}

/// An image of an archive that this machine cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name, if it says one.
    pub reference: Option<String>,
    /// The digest of its manifest, if it has one.
    pub digest: Option<String>,
    /// What it is for, as in `linux/arm64`.
    pub platform: String,
}

/// What was found in an archive.
#[derive(Default)]
struct Inventory {
    candidates: Vec<Candidate>,
    left_out: Vec<LeftOut>,
}

impl Store {
    /// Loads the images of an archive: what `docker save` wrote or an OCI layout; plain, gzip or zstd, told by looking.
    /// It is put aside as it arrives, once, whatever its size. Of an image for several platforms this machine's is
    /// taken, and what is left out is told. Blocks; to be called where tokio allows it (`spawn_blocking`).
    ///
    /// # Errors
    /// An archive that holds no image, is damaged, hostile or for other machines; a runtime or a store that fails.
    /// Nothing is left.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn load(&self, runtime: &dyn Runtime, archive: impl Read) -> Result<Loaded, ImportError> {
        let members = Members::of_images(self.blobs.incoming()?, archive)?;
        self.import_members(runtime, &members, None)
    }

    /// Imports an archive: a root file system, what `docker save` wrote, or an OCI layout; plain, gzip or zstd. All of
    /// that is told by looking. The images are called what the archive calls them, or `name` if there is but one.
    /// Blocks; to be called where tokio allows it (`spawn_blocking`).
    ///
    /// # Errors
    /// An archive that is damaged, hostile or for other machines; a runtime or a store that fails. Nothing is left.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn import(
        &self,
        runtime: &dyn Runtime,
        mut archive: impl Read,
        name: Option<&Reference>,
    ) -> Result<Vec<ImageSummary>, ImportError> {
        let incoming = self.blobs.incoming()?;
        let arrived = incoming.receive(&mut archive, ARCHIVE_BYTES_MAX);
        let arrived = arrived.map_err(|error| ImportError::arrival("the whole", error))?;
        let open = || File::open(&arrived.path).map_err(ImportError::Read);
        match members::shape(open()?)? {
            Shape::Root => self.import_root(runtime, &incoming, arrived, name),
            Shape::Images => {
                let members = Members::from_archive(self.blobs.incoming()?, open()?)?;
                Ok(self.import_members(runtime, &members, name)?.images)
            }
        }
    }

    /// Imports an OCI layout that is a folder, as `import` does.
    ///
    /// # Errors
    /// As `import`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn import_layout(
        &self,
        runtime: &dyn Runtime,
        folder: &Path,
        name: Option<&Reference>,
    ) -> Result<Vec<ImageSummary>, ImportError> {
        let members = Members::from_folder(self.blobs.incoming()?, folder)?;
        Ok(self.import_members(runtime, &members, name)?.images)
    }

    fn import_root(
        &self,
        runtime: &dyn Runtime,
        incoming: &Incoming,
        archive: Arrived,
        name: Option<&Reference>,
    ) -> Result<Vec<ImageSummary>, ImportError> {
        let names = name.map(own_name).transpose()?.into_iter().collect();
        let (candidate, lease, unpacked) = {
            // What the layer will be called is known when it is unpacked; until its lease is taken, nothing may go.
            let _unnamed_layer = self.unnamed_layers.read().unwrap_or_else(PoisonError::into_inner);
            let unpacked = Handle::current().block_on(unpack(runtime, &archive, 1))?;
            let candidate = Candidate::for_root(incoming, archive, &unpacked.layer, names)?;
            let lease = Lease::take(self, std::slice::from_ref(&candidate));
            (candidate, lease, unpacked)
        };
        self.conclude(runtime, lease, &[candidate], Outcome { unpacked: vec![unpacked], ..Outcome::default() })
    }

    fn import_members(
        &self,
        runtime: &dyn Runtime,
        members: &Members,
        name: Option<&Reference>,
    ) -> Result<Loaded, ImportError> {
        let Inventory { mut candidates, left_out } = match (members.get("index.json"), members.get("manifest.json")) {
            (Some(_), _) if members.get("oci-layout").is_some() => layout_inventory(members)?,
            (_, Some(_)) => saved_inventory(members)?,
            _ => return Err(ImportError::NotAnImage("the archive has neither `manifest.json` nor `index.json`")),
        };
        match (name, &mut candidates[..]) {
            (Some(name), [only]) => only.names = vec![own_name(name)?],
            (Some(_), several) => {
                let problem = format!("the archive holds {} images, and one name was given", several.len());
                return Err(ImportError::Name(format!("{problem}\nhint: leave the name out; each has its own")));
            }
            (None, _) => {}
        }
        let lease = Lease::take(self, &candidates);
        let outcome = unpack_all(runtime, &candidates)?;
        Ok(Loaded { images: self.conclude(runtime, lease, &candidates, outcome)?, left_out })
    }

    /// Takes the content over and sets the names; or takes everything back.
    fn conclude(
        &self,
        runtime: &dyn Runtime,
        lease: Lease<'_>,
        candidates: &[Candidate],
        outcome: Outcome,
    ) -> Result<Vec<ImageSummary>, ImportError> {
        let Outcome { unpacked, failure, unwanted } = outcome;
        let kept = failure.map_or_else(|| self.keep(candidates), Err);
        drop(lease);
        if kept.is_err()
            && let Err(discard_error) = self.discard(runtime, candidates, unwanted)
        {
            // The import's own error is what the caller wants to know; what is left goes at the next start.
            tracing::warn!(error = in_one_line(&discard_error), "a failed import left something behind");
        }
        let mut summaries = kept?;
        let mut skipped = Skipped::default();
        for unpacked in &unpacked {
            self.sizes.note(unpacked);
            skipped.devices += unpacked.skipped.devices;
            skipped.xattrs += unpacked.skipped.xattrs;
        }
        for summary in &mut summaries {
            summary.skipped = Some(skipped);
        }
        Ok(summaries)
    }

    pub(super) fn keep(&self, candidates: &[Candidate]) -> Result<Vec<ImageSummary>, ImportError> {
        let files = candidates.iter().flat_map(Candidate::files);
        let files: BTreeMap<&Digest, &Arrived> = files.map(|file| (&file.digest, file)).collect();
        for file in files.values() {
            self.blobs.adopt(file)?;
        }
        let _changes = self.leases();
        let current = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let imported =
            candidates.iter().map(|candidate| candidate.records(&current)).collect::<Result<Vec<_>, _>>()?.concat();
        let next = with_imported(&current, &imported);
        index::write(&self.folder, next.iter().map(|record| &record.entry))?;
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(imported.iter().map(Record::summary).collect())
    }

    /// Removes what a failed import brought, as far as nobody else has it.
    fn discard(
        &self,
        runtime: &dyn Runtime,
        candidates: &[Candidate],
        unwanted: Vec<LayerId>,
    ) -> Result<(), RemoveError> {
        let _no_unnamed_layers = self.unnamed_layers.write().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases();
        let expected = candidates.iter().flat_map(|candidate| candidate.config.diff_ids.clone());
        let layers: HashSet<_> = expected.chain(unwanted).collect();
        let blobs = candidates.iter().flat_map(Candidate::files).map(|file| file.digest.clone()).collect();
        self.collect_blobs(&leases, blobs)?;
        self.collect_layers(&leases, runtime, layers)?;
        Ok(())
    }
}

/// The list of images after an import. A name that meant another image moves; that image stays without a name.
pub(super) fn with_imported(records: &[Record], imported: &[Record]) -> Vec<Record> {
    let mut next = records.to_vec();
    for new in imported {
        for old in &mut next {
            if new.entry.name.is_some() && old.entry.name == new.entry.name {
                *old = old.without_name();
            }
        }
        next.push(new.clone());
    }
    let named: HashSet<_> =
        next.iter().filter(|record| record.entry.name.is_some()).map(|record| record.entry.digest.clone()).collect();
    let mut nameless = HashSet::new();
    next.retain(|record| {
        let digest = &record.entry.digest;
        record.entry.name.is_some() || (!named.contains(digest) && nameless.insert(digest.clone()))
    });
    next
}

/// A name for an image of our own: a tag, and no digest.
fn own_name(name: &Reference) -> Result<Reference, ImportError> {
    let hint = "hint: the digest of an image follows from its content";
    let tagged = name.without_digest().filter(|_| name.digest().is_none());
    tagged.ok_or_else(|| ImportError::Name(format!("`{name}` has a digest and cannot be given as a name\n{hint}")))
}

/// The images that `docker save` wrote.
fn saved_inventory(members: &Members) -> Result<Inventory, ImportError> {
    const LIST: &str = "manifest.json";
    let bytes = members.read(LIST, MANIFEST_BYTES_MAX)?;
    let saved: Vec<Saved> = serde_json::from_slice(&bytes)
        .map_err(|error| ImportError::member(LIST, format!("it is not a list of images: {error}")))?;
    let mut inventory = Inventory::default();
    for saved in &saved {
        let reference = saved.repo_tags.iter().flatten().next().cloned();
        inventory.add(saved_candidate(members, saved), reference, None)?;
    }
    inventory.whole()
}

impl Inventory {
    /// Takes an image, or notes that it is for other machines.
    fn add(
        &mut self,
        candidate: Result<Candidate, ImportError>,
        reference: Option<String>,
        digest: Option<&Digest>,
    ) -> Result<(), ImportError> {
        let mut candidate = match candidate {
            Err(ImportError::Config(ConfigError::Platform { found: platform })) => {
                self.left_out.push(LeftOut { reference, digest: digest.map(ToString::to_string), platform });
                return Ok(());
            }
            candidate => candidate?,
        };
        // One that is listed under several names is one image: its users are counted together.
        let is_same = |other: &&mut Candidate| other.manifest_file.digest == candidate.manifest_file.digest;
        match self.candidates.iter_mut().find(is_same) {
            Some(same) => {
                candidate.names.retain(|name| !same.names.contains(name));
                same.names.append(&mut candidate.names);
            }
            None => self.candidates.push(candidate),
        }
        Ok(())
    }

    /// Itself, when there is an image for this machine in it.
    fn whole(self) -> Result<Inventory, ImportError> {
        if self.candidates.is_empty() {
            return Err(no_platform(self.left_out.iter().map(|left_out| left_out.platform.clone()).collect()));
        }
        Ok(self)
    }
}

fn saved_candidate(members: &Members, saved: &Saved) -> Result<Candidate, ImportError> {
    let config_file = members.need(&saved.config)?.clone();
    let file_name = saved.config.rsplit('/').next().unwrap_or_default();
    if members::named_digest(file_name).is_some_and(|stated| stated != config_file.digest) {
        return Err(ImportError::member(&saved.config, format!("its content is {}", config_file.digest)));
    }
    let config = Config::parse(&members.read(&saved.config, CONFIG_BYTES_MAX)?)?;
    let layers = saved.layers.iter().map(|layer| members.need(layer).cloned()).collect::<Result<Vec<_>, _>>()?;
    let tags = saved.repo_tags.iter().flatten().map(|tag| Reference::parse(tag));
    let names = tags.collect::<Result<Vec<_>, _>>().map_err(|error| ImportError::Name(error.to_string()))?;
    let names = names.iter().map(own_name).collect::<Result<_, _>>()?;
    Candidate::compose(members.incoming(), names, config, config_file, layers)
}

/// The images of an OCI layout, and which of them this machine can run.
fn layout_inventory(members: &Members) -> Result<Inventory, ImportError> {
    let bytes = members.read("index.json", MANIFEST_BYTES_MAX)?;
    let parsed =
        manifest::parse(&bytes).map_err(|source| ImportError::Manifest { digest: "index.json".into(), source })?;
    let Document::Index(entries) = parsed else {
        return Err(ImportError::NotAnImage("its `index.json` is not an index"));
    };
    let mut inventory = Inventory::default();
    for entry in &entries {
        if !may_run_here(entry) {
            inventory.left_out.push(left_out(entry, entry.name.as_deref()));
            continue;
        }
        let names = entry.name.as_deref().and_then(archive_name).into_iter().collect();
        let mut passed_over = Vec::new();
        let candidate = layout_candidate(members, entry, names, &mut passed_over, 0);
        inventory.left_out.append(&mut passed_over);
        inventory.add(candidate, entry.name.clone(), Some(&entry.content.digest))?;
    }
    inventory.whole()
}

fn layout_candidate(
    members: &Members,
    entry: &IndexEntry,
    names: Vec<Reference>,
    passed_over: &mut Vec<LeftOut>,
    depth: usize,
) -> Result<Candidate, ImportError> {
    let content = &entry.content;
    let bytes = members.read(&blob_name(content), MANIFEST_BYTES_MAX)?;
    let manifest_file = blob(members, content)?;
    match manifest::parse(&bytes).map_err(ImportError::manifest(&content.digest))? {
        Document::Manifest(manifest) => {
            let config = Config::parse(&members.read(&blob_name(&manifest.config), CONFIG_BYTES_MAX)?)?;
            let config_file = blob(members, &manifest.config)?;
            let layers = manifest.layers.iter().map(|layer| blob(members, layer)).collect::<Result<_, _>>()?;
            Ok(Candidate { names, manifest, manifest_file, config, config_file, layers })
        }
        Document::Index(_) if depth == INDEX_DEPTH_MAX => {
            Err(ImportError::NotAnImage("its lists of manifests do not end"))
        }
        Document::Index(entries) => {
            let own = Some(manifest::own_platform());
            let fitting = entries.iter().position(|entry| entry.platform == own);
            let Some(chosen) = fitting.or_else(|| entries.iter().position(|entry| entry.platform.is_none())) else {
                return Err(no_platform(entries.into_iter().filter_map(|entry| entry.platform).collect()));
            };
            let name = names.first().map(ToString::to_string);
            let others = entries.iter().enumerate().filter(|(at, _)| *at != chosen);
            passed_over.extend(others.map(|(_, other)| left_out(other, name.as_deref())));
            layout_candidate(members, &entries[chosen], names, passed_over, depth + 1)
        }
    }
}

fn left_out(entry: &IndexEntry, reference: Option<&str>) -> LeftOut {
    LeftOut {
        reference: reference.map(str::to_owned),
        digest: Some(entry.content.digest.to_string()),
        platform: entry.platform.clone().unwrap_or_else(|| "unknown".to_owned()),
    }
}

fn may_run_here(entry: &IndexEntry) -> bool {
    entry.platform.as_ref().is_none_or(|platform| *platform == manifest::own_platform())
}

fn no_platform(found: Vec<String>) -> ImportError {
    if found.is_empty() {
        return ImportError::NotAnImage("the archive lists no images");
    }
    ImportError::Platform { wanted: manifest::own_platform(), found: found.join(", ") }
}

/// The name that an archive gives an image. A bare word is most often only a tag, as in `oci:folder:latest`, and
/// tells nothing; the image then has no name but its digest.
fn archive_name(text: &str) -> Option<Reference> {
    let name = text.contains(['/', ':']).then(|| Reference::parse(text).ok())??;
    own_name(&name).ok()
}

fn blob_name(content: &Content) -> String {
    format!("blobs/sha256/{}", content.digest.hex())
}

/// A blob of a layout, whose digest was verified as it arrived.
fn blob(members: &Members, content: &Content) -> Result<Arrived, ImportError> {
    let name = blob_name(content);
    let file = members.need(&name)?;
    if file.size != content.size {
        let problem = format!("it has {} bytes, and the manifest says {}", file.size, content.size);
        return Err(ImportError::member(&name, problem));
    }
    Ok(file.clone())
}

impl Candidate {
    /// An image of one layer of which nothing is known but its files.
    fn for_root(
        incoming: &Incoming,
        archive: Arrived,
        layer: &LayerId,
        names: Vec<Reference>,
    ) -> Result<Candidate, ImportError> {
        let bytes = Config::for_root(layer);
        let config_file = receive(incoming, &bytes)?;
        Candidate::compose(incoming, names, Config::parse(&bytes)?, config_file, vec![archive])
    }

    /// An image that comes without a manifest; it gets one.
    fn compose(
        incoming: &Incoming,
        names: Vec<Reference>,
        config: Config,
        config_file: Arrived,
        layers: Vec<Arrived>,
    ) -> Result<Candidate, ImportError> {
        let config_content =
            Content { media_type: CONFIG_TYPE.to_owned(), digest: config_file.digest.clone(), size: config_file.size };
        let layer_contents = layers.iter().map(layer_content).collect::<Result<Vec<_>, _>>()?;
        let bytes = manifest::compose(&config_content, &layer_contents);
        let manifest_file = receive(incoming, &bytes)?;
        match manifest::parse(&bytes).map_err(ImportError::manifest(&manifest_file.digest))? {
            Document::Manifest(manifest) => {
                Ok(Candidate { names, manifest, manifest_file, config, config_file, layers })
            }
            Document::Index(_) => Err(ImportError::NotAnImage("it has no manifest")),
        }
    }

    /// An image that was made here; its layers are in the store already.
    pub(super) fn built(
        names: Vec<Reference>,
        manifest: &[u8],
        manifest_file: Arrived,
        config: &[u8],
        config_file: Arrived,
    ) -> Result<Candidate, ImportError> {
        let names = names.iter().map(own_name).collect::<Result<_, _>>()?;
        let config = Config::parse(config)?;
        match manifest::parse(manifest).map_err(ImportError::manifest(&manifest_file.digest))? {
            Document::Manifest(manifest) => {
                Ok(Candidate { names, manifest, manifest_file, config, config_file, layers: Vec::new() })
            }
            Document::Index(_) => Err(ImportError::NotAnImage("it has no manifest")),
        }
    }

    fn files(&self) -> impl Iterator<Item = &Arrived> {
        self.layers.iter().chain([&self.manifest_file, &self.config_file])
    }

    /// The lines of the list that the image becomes: one for each name, or one without.
    fn records(&self, current: &[Record]) -> Result<Vec<Record>, ImportError> {
        let same = current.iter().filter(|record| record.entry.digest == self.manifest_file.digest);
        let hold = same.filter_map(|record| record.image.as_ref().ok()).map(|image| Arc::clone(&image.hold)).next();
        let hold = hold.unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
        let mut names: Vec<_> = self.names.iter().cloned().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        names.into_iter().map(|name| self.record(name, now, Arc::clone(&hold))).collect()
    }

    fn record(&self, name: Option<Reference>, imported_unix: Option<u64>, hold: Hold) -> Result<Record, ImportError> {
        let Arrived { digest, size, .. } = self.manifest_file.clone();
        let media_type = self.manifest.media_type.clone();
        let entry = Entry { digest, size, media_type, name, imported_unix, origin: None };
        let image =
            Image::assemble(&entry, &self.manifest, self.config.clone(), hold).map_err(ImportError::Mismatch)?;
        Ok(Record { entry, image: Ok(Arc::new(image)) })
    }
}

fn receive(incoming: &Incoming, mut bytes: &[u8]) -> Result<Arrived, ImportError> {
    incoming.receive(&mut bytes, CONFIG_BYTES_MAX).map_err(|error| ImportError::arrival("config", error))
}

fn layer_content(layer: &Arrived) -> Result<Content, ImportError> {
    let file = File::open(&layer.path).map_err(ImportError::Read)?;
    let media_type = match Decompressed::new(file, Bounds::default()).map_err(ImportError::Read)?.format() {
        Format::Plain => "application/vnd.oci.image.layer.v1.tar",
        Format::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Format::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        Format::Bzip2 => return Err(ImportError::Read(Refused::Unsupported("bzip2").into())),
        Format::Xz => return Err(ImportError::Read(Refused::Unsupported("xz").into())),
    };
    Ok(Content { media_type: media_type.to_owned(), digest: layer.digest.clone(), size: layer.size })
}

/// Keeps what an import needs from being removed until the image is in the list, or the import has failed.
pub(super) struct Lease<'store> {
    store: &'store Store,
    blobs: Vec<Digest>,
    layers: Vec<LayerId>,
}

impl<'store> Lease<'store> {
    fn take(store: &'store Store, candidates: &[Candidate]) -> Lease<'store> {
        let blobs: Vec<_> = candidates.iter().flat_map(Candidate::files).map(|file| file.digest.clone()).collect();
        let layers: Vec<_> = candidates.iter().flat_map(|candidate| candidate.config.diff_ids.clone()).collect();
        Lease::of(store, blobs, layers)
    }

    pub(super) fn of(store: &'store Store, blobs: Vec<Digest>, layers: Vec<LayerId>) -> Lease<'store> {
        store.leases().count(&blobs, &layers);
        Lease { store, blobs, layers }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.store.leases().uncount(&self.blobs, &self.layers);
    }
}

impl Leases {
    /// Counts one more user of each.
    pub(super) fn count(&mut self, blobs: &[Digest], layers: &[LayerId]) {
        for blob in blobs {
            *self.blobs.entry(blob.clone()).or_default() += 1;
        }
        for layer in layers {
            *self.layers.entry(layer.clone()).or_default() += 1;
        }
    }

    /// Counts one user less of each.
    pub(super) fn uncount(&mut self, blobs: &[Digest], layers: &[LayerId]) {
        for blob in blobs {
            give_back(&mut self.blobs, blob);
        }
        for layer in layers {
            give_back(&mut self.layers, layer);
        }
    }
}

fn give_back<K: Eq + std::hash::Hash>(counts: &mut std::collections::HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
