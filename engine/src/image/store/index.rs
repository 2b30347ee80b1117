//! The list of images: `index.json` of the layout, with names as the annotation that other programs look for.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use oci_spec::image::{
    ANNOTATION_REF_NAME, Descriptor, DescriptorBuilder, ImageIndex, ImageIndexBuilder, MediaType, SCHEMA_VERSION,
};

use super::blobs::write_atomically;
use super::{StoreError, system};
use crate::image::digest::Digest;
use crate::image::reference::Reference;

/// The file that says that a folder is a layout.
const LAYOUT_FILE: &str = "oci-layout";
/// Its content.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The list.
const INDEX_FILE: &str = "index.json";
/// Longest list, in bytes.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// The annotation that says when an image came into the store, in seconds since 1970.
const IMPORTED_ANNOTATION: &str = "dev.ampoule.imported-unix";
/// The annotation that says which repository it came from.
const ORIGIN_ANNOTATION: &str = "dev.ampoule.origin";
/// The annotation that says which list of manifests it was chosen from: digest and length.
const INDEX_ANNOTATION: &str = "dev.ampoule.origin-index";

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The digest of the manifest.
    pub(super) digest: Digest,
    /// Its length in bytes.
    pub(super) size: u64,
    /// Its media type.
    pub(super) media_type: String,
    /// The name of the image.
    pub(super) name: Option<Reference>,
    /// When it came into the store, in seconds since 1970.
    pub(super) imported_unix: Option<u64>,
    /// Where it came from, when that was a registry.
    pub(super) origin: Option<Origin>,
}

/// Where an image came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Registry and path.
    pub(super) repository: String,
    /// The list of manifests that it was chosen from, kept as it came, with its length in bytes.
    pub(super) index: Option<(Digest, u64)>,
}

impl Entry {
    /// Whether a digest means this image: that of its manifest, or of the list that the manifest was chosen from.
    pub(super) fn stands_for(&self, digest: &Digest) -> bool {
        let index = self.origin.as_ref().and_then(|origin| origin.index.as_ref());
        self.digest == *digest || index.is_some_and(|(index, _)| index == digest)
    }

    /// What people know the image by.
    pub(super) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| self.digest.to_string(), ToString::to_string)
    }
}

/// Reads the list of the layout in `folder`; says whether it had to be made.
pub(super) fn open(folder: &Path) -> Result<(Vec<Entry>, bool), StoreError> {
    let layout = folder.join(LAYOUT_FILE);
    let is_new = !folder.join(INDEX_FILE).try_exists().map_err(system("look for", &folder.join(INDEX_FILE)))?;
    if is_new {
        write(folder, [])?;
    }
    if !layout.try_exists().map_err(system("look for", &layout))? {
        write_atomically(folder, LAYOUT_FILE, LAYOUT)?;
    }
    Ok((read(folder)?, is_new))
}

fn read(folder: &Path) -> Result<Vec<Entry>, StoreError> {
    let path = folder.join(INDEX_FILE);
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(system("open", &path))?;
    file.take(INDEX_BYTES_MAX).read_to_end(&mut bytes).map_err(system("read", &path))?;
    let damaged = |problem: String| StoreError::Index { path: path.clone(), problem };
    let index: ImageIndex = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    index.manifests().iter().map(|descriptor| entry(descriptor).map_err(damaged)).collect()
}

fn entry(descriptor: &Descriptor) -> Result<Entry, String> {
    let annotation = |key: &str| descriptor.annotations().as_ref().and_then(|annotations| annotations.get(key));
    Ok(Entry {
        digest: Digest::parse(descriptor.digest().as_ref()).map_err(|error| error.to_string())?,
        size: descriptor.size(),
        media_type: descriptor.media_type().to_string(),
        name: annotation(ANNOTATION_REF_NAME)
            .map(|name| Reference::parse(name))
            .transpose()
            .map_err(|error| error.to_string())?,
        imported_unix: annotation(IMPORTED_ANNOTATION).and_then(|text| text.parse().ok()),
        origin: annotation(ORIGIN_ANNOTATION).map(|repository| Origin {
            repository: repository.clone(),
            index: annotation(INDEX_ANNOTATION).and_then(|text| index_of_origin(text)),
        }),
    })
}

fn index_of_origin(text: &str) -> Option<(Digest, u64)> {
    let (digest, size) = text.split_once(' ')?;
    Some((Digest::parse(digest).ok()?, size.parse().ok()?))
}

/// Replaces the list. It is on disk when this returns; if it fails, the old one stands.
pub(super) fn write<'a>(folder: &Path, entries: impl IntoIterator<Item = &'a Entry>) -> Result<(), StoreError> {
    let path = folder.join(INDEX_FILE);
    let unwritable = |problem: String| StoreError::Index { path: path.clone(), problem };
    let manifests = entries.into_iter().map(descriptor).collect::<Result<Vec<_>, _>>().map_err(unwritable)?;
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build();
    let bytes = index
        .map_err(|error| error.to_string())
        .and_then(|index| serde_json::to_vec_pretty(&index).map_err(|error| error.to_string()));
    write_atomically(folder, INDEX_FILE, &bytes.map_err(unwritable)?)
}

fn descriptor(entry: &Entry) -> Result<Descriptor, String> {
    let mut annotations = HashMap::new();
    annotations.extend(entry.name.as_ref().map(|name| (ANNOTATION_REF_NAME.to_owned(), name.canonical())));
    annotations.extend(entry.imported_unix.map(|seconds| (IMPORTED_ANNOTATION.to_owned(), seconds.to_string())));
    if let Some(origin) = &entry.origin {
        annotations.insert(ORIGIN_ANNOTATION.to_owned(), origin.repository.clone());
        let index = origin.index.as_ref().map(|(digest, size)| format!("{digest} {size}"));
        annotations.extend(index.map(|index| (INDEX_ANNOTATION.to_owned(), index)));
    }
    let digest: oci_spec::image::Digest = entry.digest.to_string().parse().map_err(|error| format!("{error}"))?;
    let descriptor = DescriptorBuilder::default()
        .media_type(MediaType::from(entry.media_type.as_str()))
        .digest(digest)
        .size(entry.size)
        .annotations(annotations);
    descriptor.build().map_err(|error| error.to_string())
}
