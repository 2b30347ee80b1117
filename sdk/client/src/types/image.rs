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
    /// What of its layers was left out when they were unpacked; only in the answer to an import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<ImageLeftOut>,
    /// What its config asks for; only when a single image is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
}

/// What unpacked layers do not have although their archives do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageLeftOut {
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
}

/// All images of the store, or those that an archive brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images, by name.
    pub images: Vec<Image>,
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
}
