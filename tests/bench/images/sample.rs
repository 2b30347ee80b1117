//! The images that are moved around: made once of what `setup/bench-images.sh` brought, packed as registries have them,
//! and kept as OCI layouts.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ampoule_tests::{archive, test_data};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Layers that the Debian root is split into.
const DEBIAN_LAYERS: u64 = 6;
/// Fewest files that npm has to have brought.
const NODE_FILES_MIN: usize = 20_000;
/// The blocks of zeros that end a tar.
const TAR_END: [u8; 1024] = [0; 1024];
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Which image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// A Debian root with python3, numpy and pip, in several layers
    Debian,
    /// Very many small files: what npm installs for a web application
    Node,
}

/// An image as an OCI layout.
pub(crate) struct Sample {
    /// Its short name.
    pub(crate) name: &'static str,
    /// The folder of the layout; its image is tagged `bench`.
    pub(crate) layout: PathBuf,
    /// Its layers.
    pub(crate) layers: usize,
    /// Bytes of the layers as they are stored.
    pub(crate) packed_bytes: u64,
    /// Bytes of the layers as tars.
    pub(crate) plain_bytes: u64,
    /// Entries of the layers.
    pub(crate) entries: usize,
}

/// A part of a tar file that can be a layer.
struct Span {
    from: u64,
    to: u64,
}

/// What a tar file holds.
struct Outline {
    /// Where each entry ends, with its content.
    ends: Vec<u64>,
    /// Between which entries it must not be cut, since one is a link to the other.
    ties: Vec<(usize, usize)>,
}

/// Makes an image, unless it was made before.
pub(crate) fn sample(which: Which) -> Result<Sample> {
    let (name, file, parts) = match which {
        Which::Debian => ("debian", "debian-python.tar", DEBIAN_LAYERS),
        Which::Node => ("node", "node-modules.tar", 1),
    };
    let path = test_data().join(file);
    let tar = File::open(&path).with_context(|| format!("{}\nhint: setup/bench-images.sh", path.display()))?;
    let outline = outline(&tar)?;
    let entries = outline.ends.len();
    ensure!(which != Which::Node || entries > NODE_FILES_MIN, "npm brought only {entries} files");
    let layout = test_data().join(format!("bench-{name}"));
    let spans = outline.cut(parts);
    if !layout.join("index.json").exists() {
        eprintln!("packing {name}");
        pack(&layout, &tar, &spans)?;
    }
    let packed = fs::read_dir(layout.join("blobs/sha256"))?.map(|entry| Ok(entry?.metadata()?.len()));
    let plain_bytes = spans.iter().map(|span| span.to - span.from).sum();
    let layers = spans.len() + 1;
    Ok(Sample { name, layout, layers, packed_bytes: packed.sum::<Result<u64>>()?, plain_bytes, entries })
}

fn outline(mut tar: &File) -> Result<Outline> {
    tar.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(tar);
    let (mut ends, mut ties) = (Vec::new(), Vec::new());
    let mut numbers = std::collections::HashMap::new();
    for (number, entry) in archive.entries_with_seek()?.enumerate() {
        let entry = entry?;
        ends.push(entry.raw_file_position() + entry.header().entry_size()?.next_multiple_of(512));
        if entry.header().entry_type() == tar::EntryType::Link
            && let Some(target) = entry.link_name_bytes().and_then(|target| numbers.get(&*target).copied())
        {
            ties.push((target, number));
        }
        numbers.insert(entry.path_bytes().into_owned(), number);
    }
    Ok(Outline { ends, ties })
}

impl Outline {
    /// Parts of about equal length.
    fn cut(&self, parts: u64) -> Vec<Span> {
        let whole = self.ends.last().copied().unwrap_or_default();
        let mut spans = Vec::new();
        let mut from = 0;
        for (number, &end) in self.ends.iter().enumerate() {
            let is_tied = self.ties.iter().any(|(target, link)| (*target..*link).contains(&number));
            let is_enough = end - from >= whole / parts && !is_tied;
            if is_enough || end == whole {
                spans.push(Span { from, to: end });
                from = end;
            }
        }
        spans
    }
}

/// Writes a layout: busybox, so that jobs can run, and the parts on top.
fn pack(layout: &Path, mut tar: &File, spans: &[Span]) -> Result<()> {
    if layout.exists() {
        fs::remove_dir_all(layout)?;
    }
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (mut layers, mut ids) = (Vec::new(), Vec::new());
    for number in 0..=spans.len() {
        let layer = match number.checked_sub(1) {
            None => archive::busybox(),
            Some(at) => {
                let span = &spans[at];
                tar.seek(SeekFrom::Start(span.from))?;
                let mut layer = Vec::new();
                tar.take(span.to - span.from).read_to_end(&mut layer)?;
                layer.extend_from_slice(&TAR_END);
                layer
            }
        };
        ids.push(digest(&layer));
        layers.push(put(&blobs, LAYER_TYPE, &archive::gzip(&layer))?);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Env": ["PATH=/bin:/usr/bin"] },
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let config = put(&blobs, CONFIG_TYPE, config.to_string().as_bytes())?;
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers });
    let mut manifest = put(&blobs, MANIFEST_TYPE, manifest.to_string().as_bytes())?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "bench" });
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    Ok(fs::write(layout.join("index.json"), index.to_string())?)
}

fn put(blobs: &Path, media_type: &str, bytes: &[u8]) -> Result<serde_json::Value> {
    let digest = digest(bytes);
    let name = digest.trim_start_matches("sha256:");
    File::create(blobs.join(name))?.write_all(bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl Sample {
    /// Puts the image into a registry, as it is.
    pub(crate) fn publish(&self, reference: &str) -> Result<()> {
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:bench", self.layout.display()))
            .arg(format!("docker://{reference}"))
            .stdin(Stdio::null())
            .status()
            .context("skopeo is installed by `make setup`")?;
        ensure!(status.success(), "skopeo copy: {status}");
        Ok(())
    }
}
