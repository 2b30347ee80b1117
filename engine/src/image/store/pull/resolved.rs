//! What a name leads to in a registry: a manifest, at once or by way of lists for several platforms.

use std::collections::HashSet;

use serde::Deserialize;

use super::{PullError, PullRequest};
use crate::image::digest::Digest;
use crate::image::manifest::{self, Content, Document, IndexEntry, Manifest};
use crate::image::registry::{Fetched, Repository};

/// How many lists of manifests may lead from one to the next.
const INDEX_DEPTH_MAX: usize = 4;
/// How the types of Docker's first format begin, which is signed JSON or not.
const SCHEMA_ONE_PREFIX: &str = "application/vnd.docker.distribution.manifest.v1+";

/// What a name leads to.
pub(super) struct Resolved {
    /// What the name itself leads to, when that is a list.
    pub(super) index: Option<Fetched>,
    pub(super) manifest: Manifest,
    pub(super) fetched: Fetched,
}

impl Resolved {
    /// Everything that the image consists of.
    pub(super) fn blobs(&self) -> HashSet<Digest> {
        let parts = self.manifest.layers.iter().chain([&self.manifest.config]).map(|part| part.digest.clone());
        let documents = [Some(&self.fetched), self.index.as_ref()].into_iter().flatten();
        parts.chain(documents.map(|document| document.digest.clone())).collect()
    }
}

/// Finds the manifest that a name leads to.
pub(super) async fn resolve(repository: &Repository, request: &PullRequest) -> Result<Resolved, PullError> {
    let reference = &request.reference;
    let pin = reference.digest().map(ToString::to_string);
    // A tag with a pin is asked for by its tag: only so can be seen that it has moved.
    let name = reference.tag().or(pin.as_deref()).unwrap_or_default();
    let first = repository.manifest(name).await?;
    if reference.digest().is_some_and(|pin| *pin != first.digest) {
        return Err(PullError::Moved { reference: reference.to_string(), found: first.digest });
    }
    let mut index = None;
    let mut fetched = first;
    for _ in 0..=INDEX_DEPTH_MAX {
        let digest = fetched.digest.clone();
        if fetched.media_type.starts_with(SCHEMA_ONE_PREFIX) {
            return Err(PullError::SchemaOne(reference.to_string()));
        }
        let document = manifest::parse(&fetched.bytes).map_err(|source| PullError::Manifest { digest, source })?;
        match document {
            Document::Manifest(manifest) => {
                refuse_foreign_layers(&fetched.bytes, &manifest)?;
                return Ok(Resolved { index, manifest, fetched });
            }
            Document::Index(entries) => {
                let content = choose(&entries, request.platform.as_deref())?;
                let next = repository.manifest(&content.digest.to_string()).await?;
                if next.bytes.len() as u64 != content.size {
                    return Err(PullError::Mismatch(format!(
                        "`{}` has another size than the list says",
                        content.digest
                    )));
                }
                index = index.or(Some(fetched));
                fetched = next;
            }
        }
    }
    Err(PullError::Endless(reference.to_string()))
}

/// The entry of a list for a platform; without a variant, the one for all machines of the architecture.
fn choose<'list>(entries: &'list [IndexEntry], wanted: Option<&str>) -> Result<&'list Content, PullError> {
    let own = manifest::own_platform();
    let variant = wanted.and_then(|wanted| wanted.strip_prefix(&own)?.strip_prefix('/'));
    let fitting: Vec<_> = entries.iter().filter(|entry| entry.platform.as_ref() == Some(&own)).collect();
    let exact = fitting.iter().find(|entry| entry.variant.as_deref() == variant);
    // Who names no variant is well served by any that is not made for newer processors only.
    let usual = || fitting.iter().find(|entry| entry.variant.as_deref() == Some("v1")).or(fitting.first());
    let chosen = exact.or_else(|| usual().filter(|_| variant.is_none())).copied();
    let chosen = chosen.or_else(|| entries.iter().find(|entry| entry.platform.is_none()));
    chosen.map(|entry| &entry.content).ok_or_else(|| {
        let name = |entry: &IndexEntry| {
            let platform = entry.platform.clone().filter(|platform| platform != "unknown/unknown")?;
            Some(entry.variant.as_ref().map_or_else(|| platform.clone(), |variant| format!("{platform}/{variant}")))
        };
        let found: Vec<_> = entries.iter().filter_map(name).collect();
        PullError::Platform { wanted: wanted.unwrap_or(&own).to_owned(), found: found.join(", ") }
    })
}

/// Refuses layers that name other hosts: who fetches those asks whom a stranger chose.
fn refuse_foreign_layers(bytes: &[u8], manifest: &Manifest) -> Result<(), PullError> {
    #[derive(Deserialize)]
    struct Outline {
        layers: Vec<Urls>,
    }
    #[derive(Deserialize)]
    struct Urls {
        urls: Option<Vec<serde::de::IgnoredAny>>,
    }
    let digest = Digest::of(bytes);
    let outline: Outline =
        serde_json::from_slice(bytes).map_err(|source| PullError::Manifest { digest, source: source.into() })?;
    let foreign = outline.layers.iter().position(|layer| layer.urls.as_ref().is_some_and(|urls| !urls.is_empty()));
    match foreign.and_then(|at| manifest.layers.get(at)) {
        Some(layer) => Err(PullError::ForeignLayer(layer.digest.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: Option<&str>, variant: Option<&str>) -> IndexEntry {
        let name = format!("{platform:?}{variant:?}");
        let content = Content { media_type: String::new(), digest: Digest::of(name.as_bytes()), size: 1 };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        IndexEntry { content, platform: owned(platform), variant: owned(variant), name: None }
    }

    #[test]
    fn the_platform_decides_which_image_of_a_list_is_taken() {
        let own = manifest::own_platform();
        let list = [
            entry(Some("linux/s390x"), None),
            entry(Some(&own), Some("v3")),
            entry(Some(&own), None),
            entry(Some("unknown/unknown"), None),
        ];
        let chosen =
            |list: &[IndexEntry], wanted: Option<&str>| choose(list, wanted).map(|content| content.digest.clone());
        assert_eq!(chosen(&list, None).unwrap(), list[2].content.digest);
        assert_eq!(chosen(&list, Some(&own)).unwrap(), list[2].content.digest);
        assert_eq!(chosen(&list, Some(&format!("{own}/v3"))).unwrap(), list[1].content.digest);
        let error = chosen(&list, Some(&format!("{own}/v9"))).unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && !error.contains("unknown"), "{error}");
        assert_eq!(chosen(&list[..2], None).unwrap(), list[1].content.digest);
        let anonymous = [entry(None, None)];
        assert_eq!(chosen(&anonymous, None).unwrap(), anonymous[0].content.digest);
    }

    #[test]
    fn layers_from_other_hosts_are_refused() {
        let layer = Content {
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            digest: Digest::of(b"layer"),
            size: 1,
        };
        let config = Content { media_type: manifest::CONFIG_TYPE.into(), digest: Digest::of(b"config"), size: 1 };
        let bytes = manifest::compose(&config, std::slice::from_ref(&layer));
        let Document::Manifest(parsed) = manifest::parse(&bytes).unwrap() else { panic!("a manifest") };
        assert!(refuse_foreign_layers(&bytes, &parsed).is_ok());
        let text = String::from_utf8(bytes).unwrap();
        let text = text.replace("\"layers\":[{", "\"layers\":[{\"urls\":[\"https://elsewhere.example/x\"],");
        let refused = refuse_foreign_layers(text.as_bytes(), &parsed);
        assert!(matches!(refused, Err(PullError::ForeignLayer(digest)) if digest == layer.digest));
    }
}
