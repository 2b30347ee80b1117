//! Hosts policies: WebAssembly components, or WASI commands, that are asked whether a job may run, and as what.
//! A policy is a pure function of its question and its settings: it sees no file, no network, no clock and no chance,
//! and every call is bounded in steps, time, memory, stack and answer. Everything here is synchronous.

mod admission;
mod binding;
mod bindings;
mod command;
mod component;
mod decide;
mod failure;
mod host;
mod patch;
mod policy;
mod precompiled;
#[cfg(test)]
mod testing;
mod verdict;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use admission::{Admission, AdmissionFile, AdmissionImage, AdmissionLimits, AdmissionWritable, RequestedLimits};
pub use binding::BindingError;
pub use policy::PolicyError;
pub use precompiled::CacheError;
pub use verdict::{Decision, Denial, Mode, OnFailure, Outcome, PolicyVerdict, PolicyWarning, VerdictKind};

use binding::{Binding, Hook};
use decide::{Docket, Voice};
use host::Host;
use policy::Policy;
use precompiled::Cache;

/// All policies of a service: loaded once, never changed, shared by all threads. Each call gets an instance of its
/// own, so that a policy can neither remember one job nor see another.
pub struct Policies {
    bound: Vec<Policy>,
    /// `None` where there is no policy: no engine, no thread.
    host: Option<Host>,
}

/// A policy as it is shown to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySummary {
    /// Its name in `policies.toml`.
    pub name: String,
    /// Digest of its file, as in `sha256:…`.
    pub digest: String,
    /// The hooks that it is asked, as in `admission`.
    pub hooks: Vec<String>,
    /// How it is bound.
    pub mode: Mode,
    /// What its failure means.
    pub on_failure: OnFailure,
    /// The file that it was loaded from.
    pub source: PathBuf,
    /// Digest of its settings as JSON, as in `sha256:…`.
    pub settings_digest: String,
}

/// Why policies cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// `policies.toml` is wrong.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// One policy cannot be bound.
    #[error("policy `{policy}` cannot be bound")]
    Policy {
        /// Its name.
        policy: String,
        /// Why.
        source: PolicyError,
    },
    /// The folder of compiled policies cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// This machine cannot run policies.
    #[error("cannot start the engine for policies: {0}")]
    Engine(String),
}

impl Policies {
    /// No policy: everything is admitted as it is.
    pub fn empty() -> Policies {
        Policies { bound: Vec::new(), host: None }
    }

    /// Loads and tries every policy that `file` (a `policies.toml`) binds; compiled code is kept in the folder `cache`.
    ///
    /// # Errors
    /// The first policy that cannot be bound, and why.
    pub fn load(file: &Path, cache: &Path) -> Result<Policies, LoadError> {
        let bindings = binding::read(file)?;
        if bindings.is_empty() {
            return Ok(Policies::empty());
        }
        let cache = Cache::open(cache)?;
        let host = new_host()?;
        let bound = bindings.into_iter().map(|binding| bind(&host, &cache, binding)).collect::<Result<Vec<_>, _>>()?;
        let digests: Vec<&str> = bound.iter().map(|policy| policy.digest.as_str()).collect();
        if let Err(error) = cache.keep_only(&host.engine, &digests) {
            tracing::warn!(%error, "code of former policies cannot be removed");
        }
        Ok(Policies { bound, host: Some(host) })
    }

    /// Asks the policies about a job, in order. Each sees what the ones before it left; the first refusal ends it.
    /// Takes some tens of microseconds for a compiled policy, and at most the sum of their deadlines.
    pub fn admit(&self, request: Admission) -> Decision {
        let mut docket = Docket::new(request);
        let Some(host) = &self.host else { return docket.admit() };
        for policy in self.bound.iter().filter(|policy| policy.is_asked_about_jobs()) {
            let (asked, micros) = policy.admit(host, docket.job());
            let voice =
                Voice { name: &policy.name, digest: &policy.digest, mode: policy.mode, on_failure: policy.on_failure };
            if let Err(denial) = docket.hear(voice, asked, micros) {
                return docket.deny(denial);
            }
        }
        docket.admit()
    }

    /// The policies in the order in which they are asked.
    pub fn list(&self) -> Vec<PolicySummary> {
        self.bound.iter().map(Policy::summary).collect()
    }
}

/// Loads one policy file with no settings, as component or as command, and says what it would be bound as. A
/// `policies.toml` is checked by [`Policies::load`].
///
/// # Errors
/// Why it could not be bound.
pub fn check(file: &Path, cache: &Path) -> Result<PolicySummary, LoadError> {
    let (host, cache) = (new_host()?, Cache::open(cache)?);
    let policy = match bind(&host, &cache, Binding::of_file(file, None)) {
        Err(LoadError::Policy { source: PolicyError::HooksUnknown, .. }) => {
            bind(&host, &cache, Binding::of_file(file, Some(vec![Hook::Admission])))?
        }
        bound => bound?,
    };
    Ok(policy.summary())
}

fn new_host() -> Result<Host, LoadError> {
    Host::new().map_err(|error| LoadError::Engine(format!("{error:#}")))
}

fn bind(host: &Host, cache: &Cache, binding: Binding) -> Result<Policy, LoadError> {
    let policy = binding.name.clone();
    Policy::load(host, cache, binding).map_err(|source| LoadError::Policy { policy, source })
}
