//! Images as the API shows them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its name, as in `debian:12`; absent when it is known by its digest only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The digest of its manifest, as in `sha256:…`.
    pub digest: String,
    /// Bytes of its layers and its config as stored.
    pub size_bytes: u64,
    /// How many layers it has.
    pub layers: u32,
    /// When it was made, as its config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub created: Option<Timestamp>,
    /// What is wrong with it, when it cannot be used any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// When it came into the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub imported: Option<Timestamp>,
    /// Bytes of it that other images have as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// Bytes of it that no other image has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_bytes: Option<u64>,
    /// What of its layers was left out when they were unpacked; only in the answer to an import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<ImageSkipped>,
    /// What its config asks for; only when a single image is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
    /// What else is known; only when a single image is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<ImageDetails>,
}

/// What is known of an image besides what lists show.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageDetails {
    /// Every name that it has.
    pub names: Vec<String>,
    /// The digest of its config; Docker's older stores call this the id of the image.
    pub config_digest: String,
    /// The media type of its manifest.
    pub media_type: String,
    /// What it runs on, as in `linux/amd64`.
    pub platform: String,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Whether jobs or leases hold it.
    pub in_use: bool,
    /// Its layers, lowest first.
    pub layers: Vec<ImageLayer>,
    /// The steps that made it, newest first.
    pub history: Vec<ImageStep>,
}

/// A layer of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageLayer {
    /// The digest of what is stored.
    pub digest: String,
    /// The digest of the uncompressed tar.
    pub diff_id: String,
    /// Its media type.
    pub media_type: String,
    /// Bytes as stored.
    pub size_bytes: u64,
    /// Bytes of the uncompressed tar, if they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked_bytes: Option<u64>,
    /// Files, folders and links in it, if their number is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
}

/// A step that made an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageStep {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub created: Option<Timestamp>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it changed no file, so that there is no layer of it.
    pub empty_layer: bool,
    /// The digest of its layer as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Bytes of its layer as stored.
    pub size_bytes: u64,
    /// Bytes of the uncompressed tar of its layer, if they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked_bytes: Option<u64>,
}

/// What unpacked layers do not have although their archives do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSkipped {
    /// Device nodes; a sandbox brings its own `/dev`.
    pub devices: u64,
    /// Extended attributes that belong to a host, or that the file cannot have.
    pub xattrs: u64,
}

/// What an image's config asks for when a job does not say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageConfig {
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// First part of the command.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Last part of the command.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Whom the command runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Labels of the image.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Ports that it listens on, as in `80/tcp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Paths that it wants to write to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// The signal that it wants to be stopped with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Docker's health check, as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub healthcheck: Option<serde_json::Value>,
    /// Docker's shell for commands in shell form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Docker's instructions for builds on top of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
}

/// All images of the store, or those that an archive brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images, by name.
    pub images: Vec<Image>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What an archive brought.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImagesLoaded {
    /// The images that are in the store now, once for each name.
    pub images: Vec<Image>,
    /// Those that this machine cannot run, and that were left out.
    #[serde(default)]
    pub left_out: Vec<ImageLeftOut>,
}

/// An image of an archive that was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageLeftOut {
    /// Its name, if the archive says one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The digest of its manifest, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What it is for, as in `linux/arm64`.
    pub platform: String,
}

/// A name for an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageTag {
    /// The image: a name, a digest, or the first 12 or more digits of one.
    pub source: String,
    /// The name that it gets.
    pub name: String,
}

/// What naming an image did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageTagged {
    /// The digest of the image.
    pub digest: String,
    /// The name that it has now.
    pub name: String,
    /// The digest of the image that lost the name, if another one had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_from: Option<String>,
}

/// The steps that made an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageHistory {
    /// The digest of the image.
    pub digest: String,
    /// The steps, newest first.
    pub steps: Vec<ImageStep>,
}

/// What pruning lets go, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagesPruned {
    /// Whether nothing was removed yet.
    pub dry_run: bool,
    /// Stands for exactly these images; sent back as `plan`, nothing else goes.
    pub plan: String,
    /// The images that go.
    pub images: Vec<ImagePruned>,
    /// Those that were meant, and stay since somebody uses them.
    #[serde(default)]
    pub kept: Vec<ImageKept>,
    /// The digests of stored content that goes.
    pub removed: Vec<String>,
    /// Bytes of that content.
    pub freed_bytes: u64,
    /// Bytes of the unpacked layers that go with it.
    pub freed_unpacked_bytes: u64,
}

/// An image that goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagePruned {
    /// Its digest.
    pub digest: String,
    /// The names that go with it.
    pub names: Vec<String>,
    /// Bytes of it as stored; other images may have some of them.
    pub size_bytes: u64,
}

/// An image that stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageKept {
    /// Its digest.
    pub digest: String,
    /// Its names.
    pub names: Vec<String>,
    /// Who uses it.
    pub by: String,
}

/// What images take on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagesUsage {
    /// Each image once.
    pub images: Vec<ImageUsage>,
    /// Stored content: manifests, configs, layers as they came.
    pub stored: UsageTotal,
    /// Unpacked layers, by the length of their tars.
    pub unpacked: UsageTotal,
    /// Layers whose length nobody could find out, and that count as nothing.
    pub unknown_layers: u32,
    /// What pruning would free.
    pub dangling: UsageReclaimable,
    /// What pruning with `all` would free.
    pub unused: UsageReclaimable,
}

/// What an image takes on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageUsage {
    /// Its digest.
    pub digest: String,
    /// Its names.
    pub names: Vec<String>,
    /// Stored content.
    pub stored: UsageShare,
    /// Unpacked layers.
    pub unpacked: UsageShare,
}

/// What one image has, with others and alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageShare {
    /// Bytes of all that it has.
    pub total_bytes: u64,
    /// Bytes of what another image has as well.
    pub shared_bytes: u64,
    /// Bytes of what no other image has.
    pub unique_bytes: u64,
}

/// What all images have, each thing counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageTotal {
    /// How many things there are.
    pub count: u32,
    /// Bytes of all of them.
    pub total_bytes: u64,
    /// Bytes of those that several images have.
    pub shared_bytes: u64,
}

/// What can be had back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageReclaimable {
    /// Images that would go.
    pub images: u32,
    /// Bytes of stored content.
    pub stored_bytes: u64,
    /// Bytes of unpacked layers.
    pub unpacked_bytes: u64,
}

/// What removing an image did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRemoved {
    /// The names that were taken away.
    pub untagged: Vec<String>,
    /// The digests of manifests, configs and layers that are gone with it.
    pub removed: Vec<String>,
    /// Bytes that were given back.
    pub freed_bytes: u64,
    /// Bytes of the unpacked layers that are gone with it, as far as they are known.
    #[serde(default)]
    pub freed_unpacked_bytes: u64,
}
