//! Every image that a build uses is named by its digest, or gets it pinned where it is known. README.md lists the settings.

use std::collections::BTreeMap;

use ampoule_policy::build::{BuildPolicy, Change, Request, Verdict};
use serde::Deserialize;

/// Most entries of `digests`.
const DIGESTS_MAX: usize = 1024;
/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

struct PinnedBases;

/// The table `[policy.settings]`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// Whether an image whose digest is known is pinned instead of refused.
    #[serde(default)]
    pin: bool,
    /// Digests by reference, for `pin`, where the service has resolved none.
    #[serde(default)]
    digests: BTreeMap<String, String>,
}

impl BuildPolicy for PinnedBases {
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<(), String> {
        if settings.digests.len() > DIGESTS_MAX {
            return Err(format!("`digests` has more than {DIGESTS_MAX} entries"));
        }
        if !settings.pin && !settings.digests.is_empty() {
            return Err("`digests` has no effect without `pin = true`".to_owned());
        }
        match settings.digests.iter().find(|(_, digest)| !is_digest(digest)) {
            Some((reference, _)) => {
                Err(format!("`digests.\"{reference}\"` is not `sha256:` with {SHA256_DIGITS} hexadecimal digits"))
            }
            None => Ok(()),
        }
    }

    fn review_plan(build: &Request, settings: &Settings) -> Verdict {
        let mut changes: BTreeMap<&str, &str> = BTreeMap::new();
        for (line, image) in build.images().into_iter().filter(|(_, image)| !image.is_pinned) {
            let reference = image.reference.as_str();
            let known = image.digest.as_ref().or_else(|| settings.digests.get(reference));
            match known.filter(|_| settings.pin) {
                Some(digest) => {
                    changes.insert(reference, digest);
                }
                None => {
                    let reason = format!("`{reference}` is not pinned: its tag can name another image tomorrow");
                    let hint = format!("write {reference}@sha256:…, with the digest that was tested");
                    return Verdict::deny("base-not-pinned", line, reason).hint(hint);
                }
            }
        }
        let pin = |(reference, digest): (&str, &str)| Change::PinDigest((reference.to_owned(), digest.to_owned()));
        Verdict::change(changes.into_iter().map(pin).collect())
    }
}

ampoule_policy::build_policy!(PinnedBases);

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == SHA256_DIGITS && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}
