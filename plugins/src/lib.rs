//! Hosts policies: WebAssembly components, or WASI commands, that are asked whether a job may run or an
//! image be built, and as what.
//! A policy is a pure function of its question and its settings: it sees no file, no network, no clock and no chance,
//! and every call is bounded in steps, time, memory, stack and answer. Everything here is synchronous.

mod admission;
mod binding;
mod bindings;
mod build;
mod command;
mod component;
mod decide;
mod engine;
mod failure;
mod host;
mod patch;
mod policy;
mod precompiled;
#[cfg(test)]
mod testing;
mod verdict;

use std::path::Path;

pub use admission::{Admission, AdmissionFile, AdmissionImage, AdmissionLimits, AdmissionWritable, RequestedLimits};
pub use binding::BindingError;
pub use build::verdict::{BuildChange, BuildDecision, BuildDenial, BuildWarning};
pub use build::{
    BuildAction, BuildBase, BuildContext, BuildCopy, BuildCopySource, BuildImage, BuildMount, BuildOrigin,
    BuildRequest, BuildRun, BuildStage, BuildStep,
};
pub use policy::{PolicyError, PolicySummary};
pub use precompiled::CacheError;
pub use verdict::{Decision, Denial, Mode, OnFailure, Outcome, PolicyVerdict, PolicyWarning, VerdictKind};

use binding::{Binding, Hook};
use decide::Docket;
use engine::Room;
use policy::{Binder, Policy};
use precompiled::Cache;

/// All policies of a service: loaded once, never changed, shared by all threads. Each call gets an instance of its
/// own, so that a policy can neither remember one job nor see another.
pub struct Policies {
    bound: Vec<Policy>,
    /// `None` where there is no policy: no engine, no thread.
    room: Option<Room>,
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
        Policies { bound: Vec::new(), room: None }
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
        let room = Room::open().map_err(no_engine)?;
        let binder = Binder::new(&room, &cache).map_err(no_engine)?;
        let bound = bindings.into_iter().map(|binding| bind(&binder, binding)).collect::<Result<Vec<_>, _>>()?;
        drop(binder);
        let digests: Vec<&str> = bound.iter().map(|policy| policy.digest.as_str()).collect();
        if let Err(error) = cache.keep_only(&room.engine, &digests) {
            tracing::warn!(%error, "code of former policies cannot be removed");
        }
        Ok(Policies { bound, room: Some(room) })
    }

    /// Asks the policies about a job, in order. Each sees what the ones before it left; the first refusal ends it.
    /// Takes some tens of microseconds for a compiled policy, and at most the sum of their deadlines.
    pub fn admit(&self, request: Admission) -> Decision {
        let mut docket = Docket::new(request);
        let Some(room) = &self.room else { return docket.admit() };
        for policy in self.bound.iter().filter(|policy| policy.is_asked_about_jobs()) {
            let (asked, micros) = policy.admit(room, docket.job());
            if let Err(denial) = docket.hear(policy.voice(), asked, micros) {
                return docket.deny(denial);
            }
        }
        docket.admit()
    }

    /// Asks the policies about a build before anything of it runs, in order. Each sees what the ones before it left; the
    /// first refusal ends it. What is to be built is the plan with the decision's `changes`.
    pub fn review_build(&self, request: BuildRequest) -> BuildDecision {
        let mut docket = build::docket::Docket::new(request);
        let Some(room) = &self.room else { return docket.close(None) };
        for policy in self.bound.iter().filter(|policy| policy.is_asked_about_builds()) {
            let (asked, micros) = policy.review_plan(room, docket.request());
            if let Some(denial) = docket.hear(policy.voice(), asked, micros) {
                return docket.close(Some(denial));
            }
        }
        docket.close(None)
    }

    /// The policies in the order in which they are asked.
    pub fn list(&self) -> Vec<PolicySummary> {
        self.bound.iter().map(Policy::summary).collect()
    }
}

/// Loads one policy file, as component or as command, tries its hooks and says what it would be bound as. Its settings
/// are not asked for; a whole `policies.toml` is checked by [`Policies::load`].
///
/// # Errors
/// Why it could not be bound.
pub fn check(file: &Path, cache: &Path) -> Result<PolicySummary, LoadError> {
    let (room, cache) = (Room::open().map_err(no_engine)?, Cache::open(cache)?);
    let binder = Binder::new(&room, &cache).map_err(no_engine)?;
    let policy = match bind(&binder, Binding::of_file(file, None)) {
        Err(LoadError::Policy { source: PolicyError::HooksUnknown, .. }) => {
            bind(&binder, Binding::of_file(file, Some(vec![Hook::Admission])))?
        }
        bound => bound?,
    };
    Ok(policy.summary())
}

fn no_engine(error: wasmtime::Error) -> LoadError {
    LoadError::Engine(format!("{error:#}"))
}

fn bind(binder: &Binder<'_>, binding: Binding) -> Result<Policy, LoadError> {
    let policy = binding.name.clone();
    binder.bind(binding).map_err(|source| LoadError::Policy { policy, source })
}
