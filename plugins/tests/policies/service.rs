//! A service's policies in a folder that vanishes.

use std::path::{Path, PathBuf};

use ampoule_plugins::{Admission, Decision, Denial, LoadError, Outcome, Policies};
use tempfile::TempDir;

/// A folder with a `policies.toml` and a cache.
pub(crate) struct Service {
    pub(crate) folder: TempDir,
}

impl Service {
    pub(crate) fn new() -> Service {
        Service { folder: tempfile::tempdir().expect("a folder for the test") }
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Loads policies bound by this text.
    pub(crate) fn load(&self, bindings: &str) -> Result<Policies, LoadError> {
        let file = self.folder.path().join("policies.toml");
        std::fs::write(&file, bindings).expect("policies.toml can be written");
        Policies::load(&file, &self.cache())
    }

    /// Puts a module or component, written as text, into the folder.
    pub(crate) fn add_wat(&self, name: &str, text: &str) {
        let wasm = wat::parse_str(text).expect("the text is WebAssembly");
        std::fs::write(self.folder.path().join(name), wasm).expect("the module can be written");
    }
}

/// A policy that `make policies` builds.
pub(crate) fn built(policy: &str) -> PathBuf {
    let file = policies_folder().join(policy);
    assert!(file.exists(), "there is no {}: run `make policies` first", file.display());
    file
}

/// Where the policies are.
pub(crate) fn policies_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

/// The ordinary job of the cases.
pub(crate) fn job() -> Admission {
    let file = policies_folder().join("job-baseline/cases/ordinary.json");
    let text = std::fs::read_to_string(&file).expect("the ordinary job can be read");
    serde_json::from_str(&text).expect("the ordinary job is a job")
}

/// What a load failed with, causes included.
pub(crate) fn failure(loaded: Result<Policies, LoadError>) -> String {
    match loaded {
        Ok(policies) => panic!("these were bound: {:?}", policies.list()),
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        }
    }
}

/// The refusal of a decision.
pub(crate) fn denial(decision: &Decision) -> &Denial {
    match &decision.outcome {
        Outcome::Denied(denial) => denial,
        Outcome::Admitted(_) => panic!("the job was admitted: {decision:?}"),
    }
}

/// The job that a decision admitted.
pub(crate) fn admitted(decision: &Decision) -> &Admission {
    match &decision.outcome {
        Outcome::Admitted(job) => job,
        Outcome::Denied(denial) => panic!("the job was refused: {denial:?}"),
    }
}
