//! Pulling and pushing images, as the API shows it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::image::Image;
use super::problem::Problem;

/// What is to be pulled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The name, as in `alpine`, `ghcr.io/user/app:1` or `host:5000/x@sha256:…`.
    pub reference: String,
    /// `os/architecture`, or with `/variant`, as in `linux/amd64`; that of the service when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// What is to be pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushRequest {
    /// The image, as it is known to the service.
    pub reference: String,
    /// Where it goes; its own name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What a pull did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PullResult {
    /// The image as it is now.
    pub image: Image,
    /// The digest of what the name leads to in the registry: the manifest, or the list that it was chosen from.
    pub digest: String,
    /// Whether all of it was here before.
    pub was_here: bool,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PushResult {
    /// The name in the registry.
    pub target: String,
    /// The digest of what that name leads to.
    pub digest: String,
    /// Whether the list for several platforms that the image came with was left out, since the registry lacks the others.
    pub index_left_out: bool,
}

/// A layer of an image that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferLayer {
    /// Its digest, as stored.
    pub digest: String,
    /// Its length in bytes, as stored.
    pub size_bytes: u64,
}

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// It is where it was to go already.
    Present,
    /// It is on its way.
    Moving,
    /// It came, and is unpacked.
    Unpacked,
    /// The registry took it over from another repository.
    Mounted,
    /// It is sent.
    Sent,
}

/// The data of one server-sent event of a pull or a push; its `event:` field names the same kind. Progress may be left
/// out when a reader is slow; the last event never is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and the large ones are the last of a transfer")]
pub enum TransferEvent {
    /// The registry is being asked what the name leads to.
    Resolving {
        /// The name.
        reference: String,
    },
    /// The manifest is known.
    Resolved {
        /// Its digest.
        digest: String,
        /// The layers, lowest first.
        layers: Vec<TransferLayer>,
    },
    /// Something happened to a layer, or to the config.
    Layer {
        /// Which.
        digest: String,
        /// What.
        state: LayerState,
        /// Bytes that have come or gone.
        bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// The image is here. The last event of a pull.
    Pulled(PullResult),
    /// The image is there. The last event of a push.
    Pushed(PushResult),
    /// It failed, and nothing is left of it. The last event.
    Failed {
        /// Why.
        problem: Box<Problem>,
    },
}

/// Who somebody is to a registry, as Docker's `X-Registry-Auth` header has it: this as JSON, in base64.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryLogin {
    /// User name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password, or a token that stands in for one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// `username:password` in base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth: String,
    /// A refresh token.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identitytoken: String,
    /// An access token.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub registrytoken: String,
}

/// Secrets are never printed.
impl fmt::Debug for RegistryLogin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RegistryLogin").field("username", &self.username).finish_non_exhaustive()
    }
}
