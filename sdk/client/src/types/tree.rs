//! What images come to, file by file: how two differ, and whether one is still what it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the file systems of two images differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageDiff {
    /// The digest of the first image.
    pub before: String,
    /// The digest of the second image.
    pub after: String,
    /// What differs, in the order of the paths' bytes; times do not count.
    pub changes: Vec<ImageChange>,
    /// Whether there is more than can be told at once.
    pub is_truncated: bool,
}

/// Something that only one of two images has, or that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageChange {
    /// Its path, from the root; bytes that are no text are shown as �.
    pub path: String,
    /// What happened to it.
    pub change: ChangeKind,
    /// What the first image has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<FileFacts>,
    /// What the second image has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<FileFacts>,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Only the second image has it.
    Added,
    /// Only the first image has it.
    Removed,
    /// Both have it, and it is not the same.
    Changed,
}

/// What a file of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Pipe,
    /// Something else.
    Other,
}

/// All that counts of a file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileFacts {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky, in octal digits.
    pub mode: String,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Bytes of its content.
    pub size_bytes: u64,
    /// The SHA-256 of its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Where it points, if it is a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Its extended attributes, with their values in hexadecimal digits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// What is to be verified, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyRequest {
    /// The image; without it, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether unpacked layers are compared with their archives, file by file.
    pub deep: bool,
    /// Whether damage is told only, and nothing is mended.
    pub look_only: bool,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// The images that were looked at.
    pub images: Vec<VerifiedImage>,
    /// Manifests, configs and layers that were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Unpacked layers that were looked for, or compared.
    pub layers: u64,
}

/// What was found of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifiedImage {
    /// All its names.
    pub references: Vec<String>,
    /// The digest of its manifest.
    pub digest: String,
    /// What is wrong with it; nothing when it is whole.
    pub problems: Vec<String>,
    /// What was done about it.
    pub mended: Vec<String>,
    /// Whether it can be run now.
    pub is_usable: bool,
}
