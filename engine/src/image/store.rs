//! The images of this machine: content by digest in a folder that is a plain OCI image layout (`skopeo` can read it),
//! and names for it. The layers on disk are the runtime's; the store says which there have to be.
//!
//! All changes go through one lock and end with the renaming of `index.json`: a crash leaves the old state or the new
//! one, and content that neither names goes when the store is opened next. Looking up a name takes no disk access.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use jiff::Timestamp;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::config::{Config, ImageConfig};
use super::digest::Digest;
use super::layer::Skipped;
use super::manifest::{self, Document, Manifest};
use super::reference::{Reference, ReferenceError};
use crate::runtime::{Runtime, RuntimeError};
use crate::spec::LayerId;
use blobs::Blobs;
pub use built::{ArrivedLayer, BuiltLayer, Foundation, STEP_LAYER_BYTES_MAX, Workshop, WorkshopError};
pub use caches::{CacheInfo, CacheSharing, CacheUse, Caches, WantedCache};
pub use detail::{Detail, LayerDetail, StepDetail};
pub use filter::{Filter, FilterError, LabelCondition, NamePattern};
pub use import::{LeftOut, Loaded};
use index::Entry;
pub use lease::{Lease, LeaseError, LeaseKind};
pub use names::{TagError, Tagged};
pub use prune::{Kept, PruneError, PrunePlan, PruneRequest, Pruned};
pub use pull::{PullError, PullRequest, Pulled};
pub use push::{PushError, PushRequest, Pushed};
pub use refusal::{ImportError, LayerError};
pub use removal::{RemoveError, Removed};
pub use save::{ArchiveFormat, SaveError, Saving};
use sizes::Sizes;
pub use steps::{StepResult, StepTurn};
pub use stock::{DiskUsage, ImageUsage, Reclaimable};
pub use transfer::{LayerState, Progress, Stop, UNPACKS_AT_ONCE};
pub use usage::{Account, Share};
pub use verify::{Verified, VerifiedImage, VerifyError, VerifyOptions};

mod blobs;
mod built;
mod caches;
mod detail;
mod filter;
mod import;
mod index;
mod lease;
mod members;
mod names;
mod prune;
mod pull;
mod push;
mod refusal;
mod removal;
mod save;
mod sizes;
mod steps;
mod stock;
mod transfer;
mod unpacking;
mod usage;
mod verify;

/// Fewest hexadecimal digits that may stand for an image.
const ID_PREFIX_MIN: usize = 12;

/// An image that is ready to run.
#[derive(Debug)]
pub struct Image {
    /// The digest of its manifest, as in `sha256:…`.
    pub digest: String,
    /// The name under which it is known, as in `busybox:latest`.
    pub reference: Option<String>,
    /// Its layers, lowest first, each once.
    pub layers: Vec<LayerId>,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Bytes of its manifest, config and layers as stored.
    pub size_bytes: u64,
    /// When it was made, as its config says.
    pub created: Option<String>,
    /// When it came into the store, in seconds since 1970.
    pub imported_unix: Option<u64>,
    contents: Contents,
    /// Shared by all that is one image under several names.
    hold: Hold,
}

/// An image that somebody uses: as long as one of these is there, the image cannot be removed.
#[derive(Clone, Debug)]
pub struct HeldImage {
    image: Arc<Image>,
    _hold: Hold,
}

impl Deref for HeldImage {
    type Target = Image;
    fn deref(&self) -> &Image {
        &self.image
    }
}

/// Counts who has an image: each line of the list that stands for it, and each user.
type Hold = Arc<()>;

/// What in the store belongs to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Contents {
    /// Manifest, config and layers, with their sizes in bytes.
    blobs: BTreeMap<Digest, u64>,
    /// Each layer as stored, and the id of what comes out of it; lowest first.
    layers: Vec<(Digest, LayerId)>,
}

/// An image in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// The name under which it is known; one line for each.
    pub reference: Option<String>,
    /// The digest of its manifest.
    pub digest: String,
    /// Bytes of its manifest, config and layers as stored.
    pub size_bytes: u64,
    /// How many layers it has.
    pub layers: usize,
    /// When it was made, as its config says.
    pub created: Option<String>,
    /// When it came into the store, in seconds since 1970.
    pub imported_unix: Option<u64>,
    /// What is wrong with it, if its manifest or config cannot be read.
    pub damage: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What of its layers was left out, in the answer to an import.
    pub skipped: Option<Skipped>,
}

impl ImageSummary {
    /// When it was made; when it came into the store, if it does not say.
    pub fn time(&self) -> Option<Timestamp> {
        let created = self.created.as_ref().and_then(|time| time.parse().ok());
        let arrived = || Timestamp::from_second(i64::try_from(self.imported_unix?).ok()?).ok();
        created.or_else(arrived)
    }
}

/// An image in a list, with what it shares with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What it is.
    pub summary: ImageSummary,
    /// What it takes in the store.
    pub stored: Share,
}

/// What `Store::reconcile` found and mended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    /// Layers that are missing and could not be unpacked again. Their images are damaged now.
    pub damaged: Vec<LayerId>,
    /// Unpacked layers that no image has, and that are gone now.
    pub removed: Vec<LayerId>,
    /// Layers of images that were not there, and are unpacked again.
    pub unpacked: Vec<LayerId>,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder of it.
    #[error("could not {action} `{path}`")]
    System {
        /// What was tried, as in `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "the image store `{path}` is in use by another process\nhint: stop the other service, or give this one another state folder"
    )]
    Locked {
        /// The store's folder.
        path: PathBuf,
    },
    /// Its list of images is damaged.
    #[error(
        "the image store's list `{path}` cannot be read: {problem}\nhint: move the folder that it is in away and import the images again"
    )]
    Index {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Why a name leads to no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// It is no name.
    #[error(transparent)]
    Invalid(#[from] ReferenceError),
    /// Nothing has it.
    #[error(
        "there is no image `{reference}` here\nhint: `ampoule image ls` shows those that are, `ampoule image import` brings one"
    )]
    NotFound {
        /// The name.
        reference: String,
    },
    /// The name is pinned to a digest, and stands for another.
    #[error("the image `{reference}` is `{found}` here, not what it is pinned to")]
    Moved {
        /// The name with its pin.
        reference: String,
        /// The digest that the name stands for.
        found: String,
    },
    /// The beginning of an id fits several images.
    #[error("several images have an id that begins with `{prefix}`\nhint: write more of the digest")]
    Ambiguous {
        /// The digits.
        prefix: String,
    },
    /// It is here and cannot be read.
    #[error("the image `{reference}` is damaged: {damage}\nhint: import it again")]
    Damaged {
        /// The name.
        reference: String,
        /// What is wrong.
        damage: String,
    },
}

/// One line of the list of images.
#[derive(Clone, Debug)]
struct Record {
    entry: Entry,
    /// The image, or what is wrong with it.
    image: Result<Arc<Image>, String>,
}

/// The image store.
pub struct Store {
    folder: PathBuf,
    /// The unpacked layers, which the runtime keeps beside the store.
    layers_folder: PathBuf,
    blobs: Blobs,
    sizes: Sizes,
    /// Held by whoever changes the index or removes content, and never for as long as an import takes.
    changes: Mutex<Leases>,
    /// Held for reading while a layer is unpacked whose id is not known yet, so that no lease can name it; and for
    /// writing while layers are removed.
    unnamed_layers: RwLock<()>,
    records: RwLock<Vec<Record>>,
    /// What is being pulled.
    flights: pull::Flights,
    /// Held by whoever unpacks what is being pulled.
    unpacks: Semaphore,
    /// What steps of builds came to.
    steps: steps::Steps,
    /// Keeps other processes out; released when closed.
    _lock: File,
}

/// What may not go. Of imports under way: content that no image has yet, counted, since two may need the same.
struct Leases {
    blobs: HashMap<Digest, usize>,
    layers: HashMap<LayerId, usize>,
    /// Images that somebody wants to stay, by records on disk.
    standing: lease::Standing,
}

impl Store {
    /// Opens the store in `<state>/oci`; makes it where there is none. Content that no image has is removed.
    ///
    /// # Errors
    /// A folder that cannot be used, is used by another process, or whose list of images is damaged.
    pub fn open(state: &Path) -> Result<Store, StoreError> {
        let folder = state.join("oci");
        fs::create_dir_all(&folder).map_err(system("make", &folder))?;
        let lock = lock(&folder)?;
        let blobs = Blobs::open(&folder)?;
        let (entries, is_new) = index::open(&folder)?;
        let mut holds = HashMap::new();
        let records: Vec<Record> = entries.into_iter().map(|entry| load(&blobs, entry, &mut holds)).collect();
        for record in &records {
            if let Err(damage) = &record.image {
                tracing::warn!(image = %record.entry.label(), damage, "an image is damaged");
            }
        }
        let on_disk = list_layers(&state.join("layers"))?;
        let steps = steps::Steps::open(&folder, &blobs, &on_disk)?;
        let (step_blobs, step_layers) = steps.contents();
        // Without an index, or with a manifest that cannot be read, nobody knows what belongs to an image.
        if !is_new && records.iter().all(|record| record.image.is_ok()) {
            let swept =
                blobs.sweep(&reachable_blobs(&records).into_iter().chain(step_blobs.iter().cloned()).collect())?;
            if swept > 0 {
                tracing::info!(blobs = swept, "removed content that no image has");
            }
        }
        let standing = lease::Standing::open(&folder)?;
        let mut leases = Leases { blobs: HashMap::new(), layers: HashMap::new(), standing };
        leases.count(&step_blobs, &step_layers);
        Ok(Store {
            steps,
            sizes: Sizes::open(&folder),
            folder,
            layers_folder: state.join("layers"),
            blobs,
            changes: Mutex::new(leases),
            unnamed_layers: RwLock::default(),
            records: RwLock::new(records),
            flights: pull::Flights::default(),
            unpacks: Semaphore::new(UNPACKS_AT_ONCE as usize),
            _lock: lock,
        })
    }

    /// All images, by name; an image with several names comes several times, one without a name last.
    pub fn list(&self) -> Vec<ImageSummary> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let mut summaries: Vec<_> = records.iter().map(Record::summary).collect();
        summaries.sort_by(|a, b| {
            (a.reference.is_none(), &a.reference, &a.digest).cmp(&(b.reference.is_none(), &b.reference, &b.digest))
        });
        summaries
    }

    /// The images that are meant, as in `list`, with what each shares with the others.
    pub fn find_all(&self, filter: &Filter) -> Vec<Listed> {
        let distinct = distinct(&self.records.read().unwrap_or_else(PoisonError::into_inner));
        let shares = account_of(&distinct).shares;
        let shares: HashMap<String, Share> =
            distinct.iter().map(|image| image.digest.to_string()).zip(shares).collect();
        let meant = self.list().into_iter().filter(|summary| filter.fits(summary));
        meant
            .map(|summary| Listed { stored: shares.get(&summary.digest).copied().unwrap_or_default(), summary })
            .collect()
    }

    /// Finds the image that a name, a digest (`sha256:…`) or the first 12 or more digits of one stand for. Takes no
    /// disk access.
    ///
    /// # Errors
    /// A name that is malformed, that nothing has, or that is pinned to another digest.
    pub fn resolve(&self, reference: &str) -> Result<HeldImage, ResolveError> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let found = find(&records, reference)?;
        let damaged = |damage: &String| ResolveError::Damaged { reference: reference.into(), damage: damage.clone() };
        let image = records[found.records[0]].image.as_ref().map_err(damaged)?;
        Ok(HeldImage { image: Arc::clone(image), _hold: Arc::clone(&image.hold) })
    }

    /// Brings the unpacked layers into line with the images: removes those that no image has, and unpacks those again
    /// that are missing. An image that cannot be mended counts as damaged from then on. To be called once at start,
    /// where tokio allows blocking.
    ///
    /// # Errors
    /// A folder of layers that cannot be listed, and a runtime that is gone.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn reconcile(&self, runtime: &dyn Runtime) -> Result<Reconciled, RemoveError> {
        let _no_unnamed_layers = self.unnamed_layers.write().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases();
        let on_disk = self.layers_on_disk()?;
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut reconciled = Reconciled::default();
        for (blob, layer) in missing_layers(&records, &on_disk) {
            match self.unpack_again(runtime, &blob, &layer) {
                Ok(()) => reconciled.unpacked.push(layer),
                Err(source @ RuntimeError::Gone) => {
                    return Err(RemoveError::Layer { layer: layer.hex().to_owned(), source });
                }
                Err(error) => {
                    self.mark_damaged(&layer, &in_one_line(&error));
                    reconciled.damaged.push(layer);
                }
            }
        }
        if records.iter().all(|record| record.image.is_ok()) {
            self.sizes.retain(&reachable_layers(&records));
            reconciled.removed = self.collect_layers(&leases, runtime, on_disk)?;
        }
        Ok(reconciled)
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpack_again(&self, runtime: &dyn Runtime, blob: &Digest, layer: &LayerId) -> Result<(), RuntimeError> {
        let archive = self.blobs.open_blob(blob).map_err(|error| RuntimeError::Layer(in_one_line(&error)))?;
        let unpacked = Handle::current().block_on(runtime.unpack_layer(archive))?;
        self.sizes.note(&unpacked);
        if unpacked.layer == *layer {
            return Ok(());
        }
        // What came out belongs to nobody; the next call removes it.
        Err(RuntimeError::Layer(format!("its stored content has decayed to {}", unpacked.layer.hex())))
    }

    fn mark_damaged(&self, layer: &LayerId, problem: &str) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        for record in records.iter_mut() {
            if record.image.as_ref().is_ok_and(|image| image.layers.contains(layer)) {
                record.image = Err(format!("its layer {} cannot be unpacked: {problem}", layer.hex()));
            }
        }
    }

    fn layers_on_disk(&self) -> Result<HashSet<LayerId>, StoreError> {
        list_layers(&self.layers_folder)
    }
}

fn list_layers(folder: &Path) -> Result<HashSet<LayerId>, StoreError> {
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        listed => listed.map_err(system("list", folder))?,
    };
    let mut layers = HashSet::new();
    for entry in listed {
        let entry = entry.map_err(system("list", folder))?;
        layers.extend(entry.file_name().to_str().and_then(|name| LayerId::parse(name).ok()));
    }
    Ok(layers)
}

impl Record {
    fn summary(&self) -> ImageSummary {
        let image = self.image.as_ref().ok();
        ImageSummary {
            reference: self.entry.name.as_ref().map(ToString::to_string),
            digest: self.entry.digest.to_string(),
            size_bytes: image.map_or(self.entry.size, |image| image.size_bytes),
            layers: image.map_or(0, |image| image.layers.len()),
            created: image.and_then(|image| image.created.clone()),
            imported_unix: self.entry.imported_unix,
            damage: self.image.as_ref().err().cloned(),
            labels: image.map(|image| image.config.labels.clone()).unwrap_or_default(),
            skipped: None,
        }
    }
}

impl Image {
    /// Puts an image together from the bytes of its manifest and its config, which were verified.
    fn assemble(entry: &Entry, manifest: &Manifest, config: Config, hold: Hold) -> Result<Image, String> {
        if config.diff_ids.len() != manifest.layers.len() {
            let (ids, layers) = (config.diff_ids.len(), manifest.layers.len());
            return Err(format!("its config names {ids} layers and its manifest {layers}"));
        }
        let contents = Contents::of(entry, manifest, &config.diff_ids);
        Ok(Image {
            digest: entry.digest.to_string(),
            reference: entry.name.as_ref().map(ToString::to_string),
            layers: topmost_of_each(&config.diff_ids),
            config: config.run,
            size_bytes: contents.blobs.values().sum(),
            created: config.created,
            imported_unix: entry.imported_unix,
            contents,
            hold,
        })
    }

    /// The same image as another line of the list shows it.
    fn under(&self, name: Option<&Reference>) -> Image {
        Image {
            digest: self.digest.clone(),
            reference: name.map(ToString::to_string),
            layers: self.layers.clone(),
            config: self.config.clone(),
            size_bytes: self.size_bytes,
            created: self.created.clone(),
            imported_unix: self.imported_unix,
            contents: self.contents.clone(),
            hold: Arc::clone(&self.hold),
        }
    }
}

impl Contents {
    fn of(entry: &Entry, manifest: &Manifest, diff_ids: &[LayerId]) -> Contents {
        let parts = manifest.layers.iter().chain([&manifest.config]);
        let mut blobs: BTreeMap<_, _> = parts.map(|part| (part.digest.clone(), part.size)).collect();
        blobs.insert(entry.digest.clone(), entry.size);
        blobs.extend(entry.origin.as_ref().and_then(|origin| origin.index.clone()));
        let layers = manifest.layers.iter().map(|layer| layer.digest.clone()).zip(diff_ids.iter().cloned()).collect();
        Contents { blobs, layers }
    }
}

/// The layers without repetitions, which overlayfs refuses. Where a layer comes twice, what the lower one brings is
/// hidden by the same things in the upper one, so the lower one can go.
fn topmost_of_each(diff_ids: &[LayerId]) -> Vec<LayerId> {
    let is_last = |at: usize| !diff_ids[at + 1..].contains(&diff_ids[at]);
    (0..diff_ids.len()).filter(|&at| is_last(at)).map(|at| diff_ids[at].clone()).collect()
}

/// An image that counts once, however many names it has.
struct Distinct {
    digest: Digest,
    /// What belongs to it; only its manifest when it is damaged.
    blobs: BTreeMap<Digest, u64>,
    /// Each layer as stored, and the id of what comes out of it.
    layers: Vec<(Digest, LayerId)>,
}

/// Every image once, in the order of the list.
fn distinct(records: &[Record]) -> Vec<Distinct> {
    let mut seen = HashSet::new();
    let first_of_each = records.iter().filter(|record| seen.insert(&record.entry.digest));
    let one = |record: &Record| match &record.image {
        Ok(image) => Distinct {
            digest: record.entry.digest.clone(),
            blobs: image.contents.blobs.clone(),
            layers: image.contents.layers.clone(),
        },
        Err(_) => Distinct {
            digest: record.entry.digest.clone(),
            blobs: BTreeMap::from([(record.entry.digest.clone(), record.entry.size)]),
            layers: Vec::new(),
        },
    };
    first_of_each.map(one).collect()
}

fn account_of(distinct: &[Distinct]) -> Account {
    usage::account(&distinct.iter().map(|image| image.blobs.clone()).collect::<Vec<_>>())
}

/// How many use the image that these lines of the list stand for: all lines of one image have one hold in common,
/// and each counts once in it; whoever counts besides them is using the image.
fn users(lines: &[&Record]) -> usize {
    let hold = lines.iter().find_map(|line| line.image.as_ref().ok()).map(|image| &image.hold);
    hold.map_or(0, |hold| Arc::strong_count(hold).saturating_sub(lines.len()))
}

/// Where a name leads.
struct Found {
    digest: Digest,
    /// The lines of the list that it stands for.
    records: Vec<usize>,
}

fn find(records: &[Record], text: &str) -> Result<Found, ResolveError> {
    if text.starts_with("sha256:") {
        let not_found = || ResolveError::NotFound { reference: text.to_owned() };
        return Digest::parse(text).ok().and_then(|digest| with_digest(records, &digest)).ok_or_else(not_found);
    }
    if let Some(digest) = Digest::from_hex(text) {
        let not_found = || ResolveError::NotFound { reference: text.to_owned() };
        return with_digest(records, &digest).ok_or_else(not_found);
    }
    let reference = Reference::parse(text)?;
    match find_name(records, &reference) {
        Err(ResolveError::NotFound { .. }) if is_id_prefix(text) => find_prefix(records, text),
        found => found,
    }
}

fn with_digest(records: &[Record], digest: &Digest) -> Option<Found> {
    let first = records.iter().find(|record| record.entry.stands_for(digest))?.entry.digest.clone();
    let fitting: Vec<_> = (0..records.len()).filter(|&at| records[at].entry.digest == first).collect();
    Some(Found { digest: first, records: fitting })
}

fn find_name(records: &[Record], reference: &Reference) -> Result<Found, ResolveError> {
    let not_found = || ResolveError::NotFound { reference: reference.to_string() };
    let found = match reference.without_digest() {
        Some(name) => records.iter().position(|record| record.entry.name.as_ref() == Some(&name)),
        // A pin without a tag: any image of that repository with this content. The repository has to fit, or else a
        // policy that looks at names could be led to another image by its digest.
        None => records.iter().position(|record| {
            let names_it = |name: &Reference| (name.domain(), name.path()) == (reference.domain(), reference.path());
            let is_pinned = reference.digest().is_some_and(|pin| record.entry.stands_for(pin));
            record.entry.name.as_ref().is_some_and(names_it) && is_pinned
        }),
    };
    let at = found.ok_or_else(not_found)?;
    let digest = records[at].entry.digest.clone();
    if reference.digest().is_some_and(|pin| !records[at].entry.stands_for(pin)) {
        return Err(ResolveError::Moved { reference: reference.to_string(), found: digest.to_string() });
    }
    Ok(Found { digest, records: vec![at] })
}

fn is_id_prefix(text: &str) -> bool {
    text.len() >= ID_PREFIX_MIN && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn find_prefix(records: &[Record], prefix: &str) -> Result<Found, ResolveError> {
    let mut digests =
        records.iter().map(|record| &record.entry.digest).filter(|digest| digest.hex().starts_with(prefix));
    let not_found = || ResolveError::NotFound { reference: prefix.to_owned() };
    let first = digests.next().ok_or_else(not_found)?;
    if digests.any(|digest| digest != first) {
        return Err(ResolveError::Ambiguous { prefix: prefix.to_owned() });
    }
    with_digest(records, first).ok_or_else(not_found)
}

fn reachable_blobs(records: &[Record]) -> HashSet<Digest> {
    let named = records.iter().map(|record| record.entry.digest.clone());
    let images = records.iter().filter_map(|record| record.image.as_ref().ok());
    named.chain(images.flat_map(|image| image.contents.blobs.keys().cloned())).collect()
}

fn reachable_layers(records: &[Record]) -> HashSet<LayerId> {
    let images = records.iter().filter_map(|record| record.image.as_ref().ok());
    images.flat_map(|image| image.contents.layers.iter().map(|(_, layer)| layer.clone())).collect()
}

fn missing_layers(records: &[Record], on_disk: &HashSet<LayerId>) -> BTreeMap<Digest, LayerId> {
    let images = records.iter().filter_map(|record| record.image.as_ref().ok());
    let layers = images.flat_map(|image| image.contents.layers.iter().cloned());
    layers.filter(|(_, layer)| !on_disk.contains(layer)).collect()
}

/// Reads the image that a line of the list stands for; what is wrong with it becomes part of the record.
fn load(blobs: &Blobs, entry: Entry, holds: &mut HashMap<Digest, Hold>) -> Record {
    let hold = holds.entry(entry.digest.clone()).or_default();
    let image = read_image(blobs, &entry, Arc::clone(hold)).map(Arc::new);
    Record { entry, image }
}

fn read_image(blobs: &Blobs, entry: &Entry, hold: Hold) -> Result<Image, String> {
    let bytes =
        blobs.read(&entry.digest, manifest::MANIFEST_BYTES_MAX).map_err(|problem| format!("its manifest {problem}"))?;
    let manifest = match manifest::parse(&bytes) {
        Ok(Document::Manifest(manifest)) => manifest,
        Ok(Document::Index(_)) => return Err("its manifest is a list of manifests".into()),
        Err(error) => return Err(in_one_line(&error)),
    };
    let bytes = blobs
        .read(&manifest.config.digest, manifest::CONFIG_BYTES_MAX)
        .map_err(|problem| format!("its config {problem}"))?;
    let config = Config::parse(&bytes).map_err(|error| in_one_line(&error))?;
    if let Some(layer) = manifest.layers.iter().find(|layer| blobs.size(&layer.digest) != Some(layer.size)) {
        return Err(format!("its layer {} is missing or has another size", layer.digest));
    }
    Image::assemble(entry, &manifest, config, hold)
}

/// An error with its causes.
fn in_one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |sentence, cause| format!("{sentence}: {cause}"))
}

fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(".lock");
    let file = File::options().create(true).append(true).open(&path).map_err(system("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::Locked { path: folder.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(StoreError::System { action: "lock", path, source }),
    }
}

/// Makes the error of an action on a path.
fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::System { action, path, source }
}

#[cfg(test)]
mod tests;
