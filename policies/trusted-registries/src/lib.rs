//! Images that a build starts with, copies from or mounts come from repositories on a list. README.md lists the settings.

use ampoule_policy::build::{BuildPolicy, Request, Verdict};
use serde::Deserialize;

/// Most entries of the list.
const REPOSITORIES_MAX: usize = 256;

struct TrustedRegistries;

/// The table `[policy.settings]`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// Registries, or repositories: all that is below one is allowed as well.
    repositories: Vec<String>,
}

impl BuildPolicy for TrustedRegistries {
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<(), String> {
        let count = settings.repositories.len();
        if count == 0 || count > REPOSITORIES_MAX {
            return Err(format!("`repositories` has {count} entries, not 1 to {REPOSITORIES_MAX}"));
        }
        match settings.repositories.iter().find(|entry| !is_entry(entry)) {
            Some(entry) => Err(format!(
                "`repositories`: `{entry}` is no registry or repository, as in `registry.example.com` or \
                 `docker.io/library/debian`; it has no scheme, tag, pattern or slash at its end"
            )),
            None => Ok(()),
        }
    }

    fn review_plan(build: &Request, settings: &Settings) -> Verdict {
        let is_trusted = |reference: &str| settings.repositories.iter().any(|entry| is_below(reference, entry));
        match build.images().into_iter().find(|(_, image)| !is_trusted(&image.reference)) {
            Some((line, image)) => {
                let reason = format!("`{}` comes from no repository that is trusted here", image.reference);
                let hint = format!("trusted are: {}", settings.repositories.join(", "));
                Verdict::deny("registry-not-trusted", line, reason).hint(hint)
            }
            None => Verdict::allow(),
        }
    }
}

ampoule_policy::build_policy!(TrustedRegistries);

fn is_entry(entry: &str) -> bool {
    let path = entry.split_once('/').map_or("", |(_, path)| path);
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:[]".contains(c);
    !entry.is_empty()
        && entry.chars().all(is_plain)
        && !entry.contains("//")
        && !entry.ends_with('/')
        && !path.contains(':')
        && !entry.starts_with('/')
}

/// Whether a reference is in the repository or below it: whole parts of its path only, so that a longer name that
/// begins alike is another one.
fn is_below(reference: &str, entry: &str) -> bool {
    let name = reference.split('@').next().unwrap_or_default();
    match name.strip_prefix(entry) {
        // What follows a registry is a path, what follows a repository may be a tag as well.
        Some(rest) if entry.contains('/') => rest.is_empty() || rest.starts_with(['/', ':']),
        Some(rest) => rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{is_below, is_entry};

    #[test]
    fn an_entry_stands_for_itself_and_what_is_below_it() {
        assert!(is_below("docker.io/library/debian:12", "docker.io"));
        assert!(is_below("docker.io/library/debian:12@sha256:0", "docker.io/library"));
        assert!(is_below("docker.io/library/debian:12", "docker.io/library/debian"));
        assert!(is_below("docker.io/library/debian@sha256:0", "docker.io/library/debian"));
        assert!(!is_below("docker.io/library/debian-evil:12", "docker.io/library/debian"));
        assert!(!is_below("docker.io.evil.example/library/debian:12", "docker.io"));
        assert!(!is_below("localhost:5000/a:1", "localhost"));
        assert!(is_below("localhost:5000/a:1", "localhost:5000"));
    }

    #[test]
    fn an_entry_has_no_scheme_tag_or_pattern() {
        assert!(["docker.io", "localhost:5000", "ghcr.io/team/app", "[::1]:5000/a"].into_iter().all(is_entry));
        assert!(
            !["", "https://docker.io", "docker.io/", "docker.io/a:1", "docker.io/*", "/a"].into_iter().any(is_entry)
        );
    }
}
