//! Images as one archive, written as it is sent: what `docker save` writes since version 25 (an OCI layout that also has
//! `manifest.json`), or an OCI layout alone. Blobs go out as they came in, so that all digests stay; the same images give
//! the same bytes. A blob that decayed ends the archive in its middle instead of going out.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use serde_json::{Value, json};

use super::{HeldImage, ResolveError, Store, StoreError, in_one_line};
use crate::image::digest::{Digest, Hasher};
use crate::image::manifest::Manifest;
use crate::image::reference::{Reference, ReferenceError};

/// Most images in one archive.
const IMAGES_MAX: usize = 256;
/// Bytes of a block of a tar.
const BLOCK_BYTES: u64 = 512;
/// Bytes copied at a time.
const COPY_BUFFER_BYTES: usize = 256 * 1024;
/// Where a layout has its content.
const BLOBS: &str = "blobs/sha256/";

/// What an archive is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// As `docker save` writes it, for `docker load`, podman and skopeo.
    Docker,
    /// An OCI image layout.
    Oci,
}

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A name leads to no image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// What was given is no name.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// None was asked for, or more than one archive may hold.
    #[error("an archive holds 1 to {IMAGES_MAX} images, and {0} were asked for")]
    Count(usize),
    /// Content of the store has decayed.
    #[error("the stored content {digest} is damaged: {problem}\nhint: import or pull the image again")]
    Damaged {
        /// Its digest.
        digest: String,
        /// What is wrong.
        problem: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whoever takes the archive did not take all of it.
    #[error("could not write the archive")]
    Write(#[source] io::Error),
}

/// An archive that is ready to be written. Its images stay as long as this is there.
#[derive(Debug)]
pub struct Saving {
    members: Vec<Member>,
    _held: Vec<HeldImage>,
}

#[derive(Debug)]
struct Member {
    name: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Folder,
    Bytes(Vec<u8>),
    Blob { digest: Digest, size: u64 },
}

/// An image to be saved, with the names that it was asked for by.
struct Chosen {
    image: HeldImage,
    digest: Digest,
    manifest: Manifest,
    manifest_size: u64,
    names: BTreeSet<Reference>,
}

impl Store {
    /// Prepares an archive of the images that these names stand for. One that is asked for by its digest has no name in
    /// it. Reads manifests, and blocks.
    ///
    /// # Errors
    /// A name that leads to no image, too many of them, content that is damaged.
    pub fn prepare_save(&self, references: &[String], format: ArchiveFormat) -> Result<Saving, SaveError> {
        if references.is_empty() || references.len() > IMAGES_MAX {
            return Err(SaveError::Count(references.len()));
        }
        let mut chosen: Vec<Chosen> = Vec::new();
        for reference in references {
            let image = self.resolve(reference)?;
            // A digest, or the start of one, does not lend its image a name.
            let name = image.reference.clone().filter(|_| self.is_name(reference));
            let name = name.map(|name| Reference::parse(&name)).transpose()?;
            match chosen.iter_mut().find(|chosen| chosen.image.digest == image.digest) {
                Some(same) => same.names.extend(name),
                None => chosen.push(self.choose(image, name)?),
            }
        }
        let mut members = vec![member("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        members.push(member("index.json", index(&chosen, format).to_string().into_bytes()));
        if format == ArchiveFormat::Docker {
            members.push(member("manifest.json", docker_manifest(&chosen).to_string().into_bytes()));
            members.push(member("repositories", repositories(&chosen).to_string().into_bytes()));
        }
        members.extend(["blobs/", BLOBS].map(|name| Member { name: name.to_owned(), content: Content::Folder }));
        let blobs: BTreeMap<_, _> = chosen.iter().flat_map(|chosen| chosen.image.contents.blobs.clone()).collect();
        members.extend(blobs.into_iter().map(|(digest, size)| Member {
            name: format!("{BLOBS}{}", digest.hex()),
            content: Content::Blob { digest, size },
        }));
        Ok(Saving { members, _held: chosen.into_iter().map(|chosen| chosen.image).collect() })
    }

    fn is_name(&self, text: &str) -> bool {
        let is_pin_alone = |reference: &Reference| reference.tag().is_none();
        match Reference::parse(text) {
            _ if text.starts_with("sha256:") => false,
            Ok(reference) if is_pin_alone(&reference) => false,
            Ok(reference) => {
                let name = reference.without_digest();
                self.list().iter().any(|image| image.reference == name.as_ref().map(ToString::to_string))
            }
            Err(_) => false,
        }
    }

    fn choose(&self, image: HeldImage, name: Option<Reference>) -> Result<Chosen, SaveError> {
        let damaged = |problem: String| SaveError::Damaged { digest: image.digest.clone(), problem };
        let digest = Digest::parse(&image.digest).map_err(|error| damaged(in_one_line(&error)))?;
        let manifest = self.manifest(&digest).map_err(damaged)?;
        let manifest_size = image.contents.blobs.get(&digest).copied().unwrap_or_default();
        Ok(Chosen { image, digest, manifest, manifest_size, names: name.into_iter().collect() })
    }

    /// Writes an archive.
    ///
    /// # Errors
    /// Content that has decayed, a store that fails, and a writer that does. What was written is then no whole archive.
    pub fn write_archive(&self, saving: &Saving, output: &mut dyn Write) -> Result<(), SaveError> {
        for member in &saving.members {
            output.write_all(member.header().as_bytes()).map_err(SaveError::Write)?;
            match &member.content {
                Content::Folder => {}
                Content::Bytes(bytes) => output.write_all(bytes).map_err(SaveError::Write)?,
                Content::Blob { digest, size } => self.copy_blob(digest, *size, output)?,
            }
            let padding = usize::try_from(member.size().wrapping_neg() % BLOCK_BYTES).unwrap_or_default();
            output.write_all(&[0; BLOCK_BYTES as usize][..padding]).map_err(SaveError::Write)?;
        }
        output.write_all(&[0; 2 * BLOCK_BYTES as usize]).map_err(SaveError::Write)?;
        output.flush().map_err(SaveError::Write)
    }

    fn copy_blob(&self, digest: &Digest, size: u64, output: &mut dyn Write) -> Result<(), SaveError> {
        let damaged = |problem: String| SaveError::Damaged { digest: digest.to_string(), problem };
        let mut blob = self.blobs.open_blob(digest)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        loop {
            let count = match blob.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged(error.to_string())),
            };
            hasher.update(&buffer[..count]);
            if hasher.bytes() > size {
                return Err(damaged(format!("it is longer than {size} bytes")));
            }
            // The last bytes wait until all of them are known to be right: what decayed never goes out whole.
            if hasher.bytes() == size && hasher.clone().finish() != *digest {
                return Err(damaged("it has another content than its name says".to_owned()));
            }
            output.write_all(&buffer[..count]).map_err(SaveError::Write)?;
        }
        if hasher.bytes() < size {
            return Err(damaged(format!("it has {} bytes instead of {size}", hasher.bytes())));
        }
        Ok(())
    }
}

impl Saving {
    /// How long the archive will be, in bytes.
    pub fn archive_bytes(&self) -> u64 {
        let members = self.members.iter().map(|member| BLOCK_BYTES + member.size().next_multiple_of(BLOCK_BYTES));
        members.sum::<u64>() + 2 * BLOCK_BYTES
    }
}

impl Member {
    fn size(&self) -> u64 {
        match &self.content {
            Content::Folder => 0,
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Blob { size, .. } => *size,
        }
    }

    /// Its header: nobody's, of no time.
    fn header(&self) -> tar::Header {
        let is_folder = matches!(self.content, Content::Folder);
        let mut header = tar::Header::new_ustar();
        let name = &mut header.as_old_mut().name;
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        header.set_entry_type(if is_folder { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if is_folder { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(self.size());
        header.set_cksum();
        header
    }
}

fn member(name: &str, bytes: Vec<u8>) -> Member {
    Member { name: name.to_owned(), content: Content::Bytes(bytes) }
}

/// The list of an OCI layout: each image once for each of its names.
fn index(chosen: &[Chosen], format: ArchiveFormat) -> Value {
    let mut manifests = Vec::new();
    for image in chosen {
        let descriptor = json!({
            "mediaType": image.manifest.media_type,
            "digest": image.digest.to_string(),
            "size": image.manifest_size,
        });
        for name in &image.names {
            let mut named = descriptor.clone();
            // Docker's readers take the whole name from the first, and the tag from the second; skopeo and podman take
            // the second for the name.
            let short = match format {
                ArchiveFormat::Docker => name.tag().unwrap_or_default().to_owned(),
                ArchiveFormat::Oci => name.canonical(),
            };
            named["annotations"] = json!({
                "io.containerd.image.name": name.canonical(),
                oci_spec::image::ANNOTATION_REF_NAME: short,
            });
            manifests.push(named);
        }
        if image.names.is_empty() {
            manifests.push(descriptor);
        }
    }
    json!({
        "schemaVersion": 2,
        "mediaType": oci_spec::image::MediaType::ImageIndex.to_string(),
        "manifests": manifests,
    })
}

fn docker_manifest(chosen: &[Chosen]) -> Value {
    let path = |digest: &Digest| format!("{BLOBS}{}", digest.hex());
    let line = |image: &Chosen| {
        let names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
        let layers = image.manifest.layers.iter();
        let ids = image.image.contents.layers.iter().map(|(_, id)| format!("sha256:{}", id.hex()));
        let sources: BTreeMap<_, _> = ids
            .zip(layers.clone())
            .map(|(id, layer)| {
                let source =
                    json!({ "mediaType": layer.media_type, "size": layer.size, "digest": layer.digest.to_string() });
                (id, source)
            })
            .collect();
        json!({
            "Config": path(&image.manifest.config.digest),
            "RepoTags": if names.is_empty() { Value::Null } else { json!(names) },
            "Layers": layers.map(|layer| path(&layer.digest)).collect::<Vec<_>>(),
            "LayerSources": sources,
        })
    };
    chosen.iter().map(line).collect()
}

/// The oldest of Docker's lists: repository, tag, topmost layer.
fn repositories(chosen: &[Chosen]) -> Value {
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for image in chosen {
        let Some((_, top)) = image.image.contents.layers.last() else { continue };
        for name in &image.names {
            let tag = name.tag().unwrap_or_default();
            let short = name.to_string();
            let repository = short.strip_suffix(&format!(":{tag}")).unwrap_or(&short).to_owned();
            repositories.entry(repository).or_default().insert(tag.to_owned(), top.hex().to_owned());
        }
    }
    json!(repositories)
}
