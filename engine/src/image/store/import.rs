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
use super::{Hold, Image, ImageSummary, Record, RemoveError, Store, in_one_line};
use crate::image::compression::{Bounds, Decompressed, Format};
use crate::image::config::Config;
use crate::image::digest::Digest;
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
struct Candidate {
    names: Vec<Reference>,
    manifest: Manifest,
    manifest_file: Arrived,
    config: Config,
    config_file: Arrived,
    /// The layers as they arrived, lowest first.
    layers: Vec<Arrived>,
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

impl Store {
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
                self.import_members(runtime, &members, name)
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
        self.import_members(runtime, &members, name)
    }

    fn import_root(
        &self,
        runtime: &dyn Runtime,
        incoming: &Incoming,
        archive: Arrived,
        name: Option<&Reference>,
    ) -> Result<Vec<ImageSummary>, ImportError> {
        let names = name.map(own_name).transpose()?.into_iter().collect();
        let (candidate, lease) = {
            // What the layer will be called is known when it is unpacked; until its lease is taken, nothing may go.
            let _unnamed_layer = self.unnamed_layers.read().unwrap_or_else(PoisonError::into_inner);
            let layer = unpack(runtime, &archive, 1)?;
            let candidate = Candidate::for_root(incoming, archive, &layer, names)?;
            let lease = Lease::take(self, std::slice::from_ref(&candidate));
            (candidate, lease)
        };
        self.conclude(runtime, lease, &[candidate], Ok(()))
    }

    fn import_members(
        &self,
        runtime: &dyn Runtime,
        members: &Members,
        name: Option<&Reference>,
    ) -> Result<Vec<ImageSummary>, ImportError> {
        let mut candidates = match (members.get("index.json"), members.get("manifest.json")) {
            (Some(_), _) if members.get("oci-layout").is_some() => layout_candidates(members)?,
            (_, Some(_)) => saved_candidates(members)?,
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
        let unpacked = unpack_all(runtime, &candidates);
        self.conclude(runtime, lease, &candidates, unpacked)
    }

    /// Takes the content over and sets the names; or takes everything back.
    fn conclude(
        &self,
        runtime: &dyn Runtime,
        lease: Lease<'_>,
        candidates: &[Candidate],
        unpacked: Result<(), ImportError>,
    ) -> Result<Vec<ImageSummary>, ImportError> {
        let kept = unpacked.and_then(|()| self.keep(candidates));
        drop(lease);
        if let Err(error) = &kept
            && let Err(discard_error) = self.discard(runtime, candidates, error)
        {
            // The import's own error is what the caller wants to know; what is left goes at the next start.
            tracing::warn!(error = in_one_line(&discard_error), "a failed import left something behind");
        }
        kept
    }

    fn keep(&self, candidates: &[Candidate]) -> Result<Vec<ImageSummary>, ImportError> {
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
    fn discard(&self, runtime: &dyn Runtime, candidates: &[Candidate], error: &ImportError) -> Result<(), RemoveError> {
        let _no_unnamed_layers = self.unnamed_layers.write().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases();
        let mut layers: HashSet<_> =
            candidates.iter().flat_map(|candidate| candidate.config.diff_ids.clone()).collect();
        if let ImportError::DiffId { actual, .. } = error {
            layers.insert(actual.clone());
        }
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

impl Record {
    fn without_name(&self) -> Record {
        let image = self.image.as_ref().map(|image| Arc::new(image.under(None))).map_err(String::clone);
        Record { entry: Entry { name: None, ..self.entry.clone() }, image }
    }
}

/// A name for an image of our own: a tag, and no digest.
fn own_name(name: &Reference) -> Result<Reference, ImportError> {
    let hint = "hint: the digest of an image follows from its content";
    let tagged = name.without_digest().filter(|_| name.digest().is_none());
    tagged.ok_or_else(|| ImportError::Name(format!("`{name}` has a digest and cannot be given as a name\n{hint}")))
}

/// The images that `docker save` wrote.
fn saved_candidates(members: &Members) -> Result<Vec<Candidate>, ImportError> {
    const LIST: &str = "manifest.json";
    let bytes = members.read(LIST, MANIFEST_BYTES_MAX)?;
    let saved: Vec<Saved> = serde_json::from_slice(&bytes)
        .map_err(|error| ImportError::member(LIST, format!("it is not a list of images: {error}")))?;
    if saved.is_empty() {
        return Err(ImportError::NotAnImage("the archive lists no images"));
    }
    saved.iter().map(|saved| saved_candidate(members, saved)).collect()
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

/// The images of an OCI layout that this machine can run.
fn layout_candidates(members: &Members) -> Result<Vec<Candidate>, ImportError> {
    let bytes = members.read("index.json", MANIFEST_BYTES_MAX)?;
    let parsed =
        manifest::parse(&bytes).map_err(|source| ImportError::Manifest { digest: "index.json".into(), source })?;
    let Document::Index(entries) = parsed else {
        return Err(ImportError::NotAnImage("its `index.json` is not an index"));
    };
    let mut candidates = Vec::new();
    for entry in entries.iter().filter(|entry| may_run_here(entry)) {
        let names = entry.name.as_deref().and_then(archive_name).into_iter().collect();
        candidates.push(layout_candidate(members, &entry.content, names, 0)?);
    }
    if candidates.is_empty() {
        return Err(no_platform(&entries));
    }
    Ok(candidates)
}

fn layout_candidate(
    members: &Members,
    content: &Content,
    names: Vec<Reference>,
    depth: usize,
) -> Result<Candidate, ImportError> {
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
            let fitting = entries.iter().find(|entry| entry.platform == own);
            let chosen = fitting.or_else(|| entries.iter().find(|entry| entry.platform.is_none()));
            layout_candidate(members, &chosen.ok_or_else(|| no_platform(&entries))?.content, names, depth + 1)
        }
    }
}

fn may_run_here(entry: &IndexEntry) -> bool {
    entry.platform.as_ref().is_none_or(|platform| *platform == manifest::own_platform())
}

fn no_platform(entries: &[IndexEntry]) -> ImportError {
    let found: Vec<_> = entries.iter().filter_map(|entry| entry.platform.clone()).collect();
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

fn unpack_all(runtime: &dyn Runtime, candidates: &[Candidate]) -> Result<(), ImportError> {
    let mut verified = HashSet::new();
    for candidate in candidates {
        if candidate.layers.len() != candidate.config.diff_ids.len() {
            let (layers, ids) = (candidate.layers.len(), candidate.config.diff_ids.len());
            return Err(ImportError::Mismatch(format!("it has {layers} layers, and its config names {ids}")));
        }
        for (at, (layer, expected)) in candidate.layers.iter().zip(&candidate.config.diff_ids).enumerate() {
            if !verified.insert((&layer.digest, expected)) {
                continue;
            }
            let actual = unpack(runtime, layer, at + 1)?;
            if actual != *expected {
                return Err(ImportError::DiffId { number: at + 1, expected: expected.clone(), actual });
            }
        }
    }
    Ok(())
}

fn unpack(runtime: &dyn Runtime, layer: &Arrived, number: usize) -> Result<LayerId, ImportError> {
    let file = File::open(&layer.path).map_err(ImportError::Read)?;
    let unpacked = Handle::current().block_on(runtime.unpack_layer(file));
    let failed = |source| ImportError::Unpack { number, blob: layer.digest.to_string(), source };
    Ok(unpacked.map_err(failed)?.layer)
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
        let mut leases = store.leases();
        for blob in &blobs {
            *leases.blobs.entry(blob.clone()).or_default() += 1;
        }
        for layer in &layers {
            *leases.layers.entry(layer.clone()).or_default() += 1;
        }
        drop(leases);
        Lease { store, blobs, layers }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut leases = self.store.leases();
        for blob in &self.blobs {
            give_back(&mut leases.blobs, blob);
        }
        for layer in &self.layers {
            give_back(&mut leases.layers, layer);
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
