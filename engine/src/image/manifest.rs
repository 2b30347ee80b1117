//! Manifests and indexes: what an image consists of. They are kept and hashed as the bytes that came; this reads them.

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::digest::Digest;
use crate::spec::LAYERS_MAX;

/// Longest manifest or index, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Longest config, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// The media type of a manifest that we write.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of a list of manifests.
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of a config that we write.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// Something that a manifest consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its own media type, as it says.
    pub media_type: String,
    /// Its config.
    pub config: Content,
    /// Its layers, lowest first.
    pub layers: Vec<Content>,
}

/// One entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// What it leads to: a manifest or another index.
    pub content: Content,
    /// `os/architecture`, if it says.
    pub platform: Option<String>,
    /// Which machines of the architecture, as in `v3`, if it says.
    pub variant: Option<String>,
    /// The name that it has, of those that archives use: containerd's full one, or that of the image layout.
    pub name: Option<String>,
}

/// What a document turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A list of manifests.
    Index(Vec<IndexEntry>),
}

/// Why a manifest is not used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no JSON, or not of the right shape.
    #[error("it is not a manifest")]
    Malformed(#[from] serde_json::Error),
    /// It is something that cannot be run.
    #[error("{0}")]
    Unsupported(String),
}

/// The parts that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    schema_version: u32,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

/// Reads a manifest or an index.
///
/// # Errors
/// A document that is neither, or both (two programs would run two images), or an image that cannot be mounted.
pub fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    let outline: Outline = serde_json::from_slice(bytes)?;
    if outline.schema_version != 2 {
        let problem = format!("its schema version is {}, and only 2 is supported", outline.schema_version);
        return Err(ManifestError::Unsupported(format!("{problem}\nhint: save the image with a current program")));
    }
    let is_manifest = outline.config.is_some() || outline.layers.is_some();
    match (is_manifest, outline.manifests.is_some()) {
        (true, false) => parse_manifest(bytes).map(Document::Manifest),
        (false, true) => parse_index(bytes).map(Document::Index),
        (true, true) => Err(ManifestError::Unsupported("it is a manifest and an index at once".into())),
        (false, false) => Err(ManifestError::Unsupported("it names neither layers nor manifests".into())),
    }
}

fn parse_manifest(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let manifest: ImageManifest = serde_json::from_slice(bytes)?;
    let media_type = manifest.media_type().as_ref().map_or_else(|| MANIFEST_TYPE.to_owned(), ToString::to_string);
    let config = content(manifest.config())?;
    if !matches!(config.media_type.as_str(), CONFIG_TYPE | "application/vnd.docker.container.image.v1+json") {
        return Err(ManifestError::Unsupported(format!("it is no image: its config is a `{}`", config.media_type)));
    }
    let layers: Vec<Content> = manifest.layers().iter().map(content).collect::<Result<_, _>>()?;
    if layers.is_empty() || layers.len() > LAYERS_MAX {
        let problem = format!("it has {} layers, and 1 to {LAYERS_MAX} can be mounted", layers.len());
        return Err(ManifestError::Unsupported(problem));
    }
    if let Some(layer) = layers.iter().find(|layer| !is_layer_type(&layer.media_type)) {
        return Err(ManifestError::Unsupported(format!("it has a layer that is a `{}`", layer.media_type)));
    }
    Ok(Manifest { media_type, config, layers })
}

/// Layers are told apart by their first bytes; the type only has to say that it is one.
fn is_layer_type(media_type: &str) -> bool {
    const PREFIXES: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let compression = PREFIXES.iter().find_map(|prefix| media_type.strip_prefix(prefix));
    matches!(compression, Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
}

fn parse_index(bytes: &[u8]) -> Result<Vec<IndexEntry>, ManifestError> {
    let index: ImageIndex = serde_json::from_slice(bytes)?;
    index.manifests().iter().map(index_entry).collect()
}

fn index_entry(descriptor: &Descriptor) -> Result<IndexEntry, ManifestError> {
    let platform =
        descriptor.platform().as_ref().map(|platform| format!("{}/{}", platform.os(), platform.architecture()));
    let annotation =
        |key: &str| descriptor.annotations().as_ref().and_then(|annotations| annotations.get(key)).cloned();
    let name = annotation("io.containerd.image.name").or_else(|| annotation(oci_spec::image::ANNOTATION_REF_NAME));
    let variant = descriptor.platform().as_ref().and_then(|platform| platform.variant().clone());
    Ok(IndexEntry { content: content(descriptor)?, platform, variant, name })
}

fn content(descriptor: &Descriptor) -> Result<Content, ManifestError> {
    let digest = descriptor.digest().to_string();
    let digest = Digest::parse(&digest).map_err(|error| ManifestError::Unsupported(error.to_string()))?;
    Ok(Content { media_type: descriptor.media_type().to_string(), digest, size: descriptor.size() })
}

/// The platform that images are run on here, as in `linux/amd64`.
pub fn own_platform() -> String {
    format!("{}/{}", Os::Linux, Arch::default())
}

/// The bytes of a manifest for these parts; equal parts give equal bytes.
pub(super) fn compose(config: &Content, layers: &[Content]) -> Vec<u8> {
    let descriptor = |content: &Content| {
        serde_json::json!({
            "mediaType": content.media_type,
            "digest": content.digest.to_string(),
            "size": content.size,
        })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageManifest.to_string(),
        "config": descriptor(config),
        "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(media_type: &str) -> Content {
        Content { media_type: media_type.into(), digest: Digest::of(media_type.as_bytes()), size: 7 }
    }

    fn problem(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn what_is_composed_is_what_is_read() {
        let (config, layer) = (part(CONFIG_TYPE), part("application/vnd.oci.image.layer.v1.tar+gzip"));
        let bytes = compose(&config, std::slice::from_ref(&layer));
        let manifest = Manifest { media_type: MANIFEST_TYPE.into(), config, layers: vec![layer] };
        assert_eq!(parse(&bytes).unwrap(), Document::Manifest(manifest));
    }

    #[test]
    fn an_index_says_platforms_and_names() {
        let digest = Digest::of(b"x");
        let bytes = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST_TYPE}","digest":"{digest}","size":3,
            "platform":{{"os":"linux","architecture":"arm64"}},"annotations":{{"org.opencontainers.image.ref.name":"a:1"}}}}]}}"#
        );
        let Document::Index(entries) = parse(bytes.as_bytes()).unwrap() else { panic!("an index") };
        assert_eq!(entries[0].platform.as_deref(), Some("linux/arm64"));
        assert_eq!(entries[0].name.as_deref(), Some("a:1"));
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let layer = part("application/vnd.oci.image.layer.v1.tar");
        let config = part(CONFIG_TYPE);
        assert!(problem(b"{}").contains("not a manifest"));
        assert!(problem(br#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema version is 1"));
        assert!(problem(br#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}"#).contains("at once"));
        assert!(problem(br#"{"schemaVersion":2}"#).contains("neither layers nor manifests"));
        assert!(problem(&compose(&config, &[])).contains("0 layers"));
        assert!(problem(&compose(&config, &vec![layer.clone(); 128])).contains("128 layers"));
        assert!(problem(&compose(&part("application/vnd.oci.empty.v1+json"), &[layer])).contains("no image"));
        let encrypted = part("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        assert!(problem(&compose(&config, &[encrypted])).contains("encrypted"));
        let other = String::from_utf8(compose(&config, &[part("application/vnd.oci.image.layer.v1.tar")])).unwrap();
        let other = other.replace("sha256:", "sha512:");
        assert!(parse(other.as_bytes()).is_err());
    }
}
