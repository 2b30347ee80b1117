//! One policy, bound: its code, its settings and how much its word weighs. Everything that can be wrong with it is
//! found while it is loaded, by trying it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasmtime::Engine;

use crate::admission::Admission;
use crate::binding::{Binding, Hook, Limits};
use crate::build::BuildRequest;
use crate::build::verdict::Answer as BuildAnswer;
use crate::decide::Voice;
use crate::engine::Room;
use crate::failure::Asked;
use crate::precompiled::Cache;
use crate::verdict::{Answer, Mode, OnFailure};
use crate::{command, component, host};

/// Largest policy file, in bytes; the largest interpreter that was measured takes 18 MB.
const WASM_BYTES_MAX: u64 = 128 << 20;
/// How every WebAssembly begins.
const MAGIC: &[u8] = b"\0asm";
/// Where a file says whether it is a core module (1) or a component (13, with the layer in the upper half).
const VERSION_BYTES: std::ops::Range<usize> = 4..8;
const CORE_MODULE: [u8; 4] = [1, 0, 0, 0];
/// What a policy gets that has nothing set.
const NO_SETTINGS: &str = "{}";

/// A policy, bound and tried.
pub(crate) struct Policy {
    pub(crate) name: Arc<str>,
    pub(crate) digest: String,
    pub(crate) mode: Mode,
    pub(crate) on_failure: OnFailure,
    hooks: Vec<Hook>,
    limits: Limits,
    settings: String,
    source: PathBuf,
    guest: Guest,
}

enum Guest {
    Component(component::Guest),
    Command(command::Guest),
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

/// Why a policy cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Its file cannot be read.
    #[error("cannot read {file}\nhint: policies are built by `make policies`")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its file is larger than any policy.
    #[error("{file} is larger than {WASM_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// It is no WebAssembly, or imports what policies are not given.
    #[error("{file} is not a policy: {problem}")]
    NotAPolicy {
        /// The file.
        file: PathBuf,
        /// What wasmtime says of it.
        problem: String,
    },
    /// It answers none of the questions that are asked, or not the one that it is bound to.
    #[error(
        "{file} does not answer `{hook}`; it exports: {exports}\nhint: this host asks ampoule:policy/admission@1.0.0 and ampoule:policy/build@1.0.0"
    )]
    NoHook {
        /// The file.
        file: PathBuf,
        /// The hook.
        hook: &'static str,
        /// The interfaces that it exports.
        exports: String,
    },
    /// A command cannot be looked into.
    #[error(
        "a WASI command does not show what it answers\nhint: add hooks = [\"admission\"] or hooks = [\"build\"] to its binding"
    )]
    HooksUnknown,
    /// It did not survive being tried.
    #[error("it cannot be asked: {0}")]
    Trial(String),
    /// It does not accept its settings.
    #[error("settings: {0}")]
    Settings(String),
}

/// Binds policies: all that is needed for that and no longer afterwards.
pub(crate) struct Binder<'a> {
    room: &'a Room,
    cache: &'a Cache,
    components: wasmtime::component::Linker<host::State>,
    commands: wasmtime::Linker<command::State>,
}

impl<'a> Binder<'a> {
    /// For policies that will be asked in this room.
    pub(crate) fn new(room: &'a Room, cache: &'a Cache) -> wasmtime::Result<Binder<'a>> {
        let (components, commands) = (host::linker(&room.engine)?, command::linker(&room.engine)?);
        Ok(Binder { room, cache, components, commands })
    }

    /// Loads a policy and tries everything that will be asked of it but the question itself.
    ///
    /// # Errors
    /// What is wrong with its file, its hooks or its settings.
    pub(crate) fn bind(&self, binding: Binding) -> Result<Policy, PolicyError> {
        let wasm = read(&binding.file)?;
        let digest = digest(&wasm);
        let name: Arc<str> = binding.name.as_str().into();
        let (guest, hooks) = if wasm.get(VERSION_BYTES) == Some(&CORE_MODULE) {
            let guest = self.command(&binding, &wasm, &digest)?;
            (Guest::Command(guest), binding.hooks.ok_or(PolicyError::HooksUnknown)?)
        } else {
            let (guest, hooks) = self.component(&binding, &wasm, &digest)?;
            let tried = guest.try_hooks(self.room, &name, &binding.limits);
            tried.map_err(|failure| PolicyError::Trial(failure.describe()))?;
            (Guest::Component(guest), hooks)
        };
        let has_settings = binding.settings.is_some();
        let policy = Policy {
            name,
            digest,
            mode: binding.mode,
            on_failure: binding.on_failure,
            hooks,
            limits: binding.limits,
            settings: binding.settings.unwrap_or_else(|| NO_SETTINGS.to_owned()),
            source: binding.file,
            guest,
        };
        if has_settings {
            policy.validate(self.room)?;
        }
        Ok(policy)
    }

    fn command(&self, binding: &Binding, wasm: &[u8], digest: &str) -> Result<command::Guest, PolicyError> {
        let module = self.cache.module(&self.room.engine, wasm, digest);
        module.and_then(|module| command::Guest::link(&self.commands, &module)).map_err(not_a_policy(binding))
    }

    fn component(
        &self,
        binding: &Binding,
        wasm: &[u8],
        digest: &str,
    ) -> Result<(component::Guest, Vec<Hook>), PolicyError> {
        let engine = &self.room.engine;
        let component = self.cache.component(engine, wasm, digest).map_err(not_a_policy(binding))?;
        let guest = component::Guest::link(&self.components, &component).map_err(not_a_policy(binding))?;
        let hooks = choose(&guest.hooks(), binding.hooks.clone()).map_err(|hook| PolicyError::NoHook {
            file: binding.file.clone(),
            hook: hook.name(),
            exports: exports(engine, &component),
        })?;
        Ok((guest, hooks))
    }
}

fn not_a_policy(binding: &Binding) -> impl FnOnce(wasmtime::Error) -> PolicyError + '_ {
    |error| PolicyError::NotAPolicy { file: binding.file.clone(), problem: format!("{error:#}") }
}

impl Policy {
    fn validate(&self, room: &Room) -> Result<(), PolicyError> {
        if !self.hooks.contains(&Hook::Settings) {
            return Ok(());
        }
        let validated = match &self.guest {
            Guest::Component(guest) => guest.validate(room, &self.name, &self.limits, &self.settings),
            Guest::Command(guest) => guest.validate(room, &self.name, &self.limits, &self.settings),
        };
        validated.map_err(|failure| PolicyError::Trial(failure.describe()))?.map_err(PolicyError::Settings)
    }

    /// Who speaks when it answers.
    pub(crate) fn voice(&self) -> Voice<'_> {
        Voice { name: &self.name, digest: &self.digest, mode: self.mode, on_failure: self.on_failure }
    }

    /// Whether it is asked about jobs.
    pub(crate) fn is_asked_about_jobs(&self) -> bool {
        self.hooks.contains(&Hook::Admission)
    }

    /// Whether it is asked about builds.
    pub(crate) fn is_asked_about_builds(&self) -> bool {
        self.hooks.contains(&Hook::Build)
    }

    /// Asks about a build; the time is in microseconds.
    pub(crate) fn review_plan(&self, room: &Room, request: &BuildRequest) -> (Asked<BuildAnswer>, u64) {
        let start = Instant::now();
        let asked = match &self.guest {
            Guest::Component(guest) => guest.review_plan(room, &self.name, &self.limits, request, &self.settings),
            Guest::Command(guest) => guest.review_plan(room, &self.name, &self.limits, request, &self.settings),
        };
        (asked, u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Asks about a job; the time is in microseconds.
    pub(crate) fn admit(&self, room: &Room, job: &Admission) -> (Asked<Answer>, u64) {
        let start = Instant::now();
        let asked = match &self.guest {
            Guest::Component(guest) => guest.admit(room, &self.name, &self.limits, job, &self.settings),
            Guest::Command(guest) => guest.admit(room, &self.name, &self.limits, job, &self.settings),
        };
        (asked, u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// For people.
    pub(crate) fn summary(&self) -> PolicySummary {
        PolicySummary {
            name: self.name.to_string(),
            digest: self.digest.clone(),
            hooks: self.hooks.iter().map(|hook| hook.name().to_owned()).collect(),
            mode: self.mode,
            on_failure: self.on_failure,
            source: self.source.clone(),
            settings_digest: digest(self.settings.as_bytes()),
        }
    }
}

/// The hooks that a component is asked: those of its binding, or all that it answers.
fn choose(answered: &[Hook], bound: Option<Vec<Hook>>) -> Result<Vec<Hook>, Hook> {
    let hooks = bound.unwrap_or_else(|| answered.to_vec());
    match hooks.iter().find(|hook| !answered.contains(hook)) {
        Some(missing) => Err(*missing),
        None if !hooks.iter().any(|hook| *hook != Hook::Settings) => Err(Hook::Admission),
        None => Ok(hooks),
    }
}

fn exports(engine: &Engine, component: &wasmtime::component::Component) -> String {
    let interfaces = component::exported_interfaces(engine, component);
    if interfaces.is_empty() { "nothing".to_owned() } else { interfaces.join(", ") }
}

fn read(file: &Path) -> Result<Vec<u8>, PolicyError> {
    let failed = |source| PolicyError::Read { file: file.to_owned(), source };
    let mut wasm = Vec::new();
    File::open(file).and_then(|opened| opened.take(WASM_BYTES_MAX + 1).read_to_end(&mut wasm)).map_err(failed)?;
    if wasm.len() as u64 > WASM_BYTES_MAX {
        return Err(PolicyError::TooLarge { file: file.to_owned() });
    }
    if !wasm.starts_with(MAGIC) {
        return Err(PolicyError::NotAPolicy { file: file.to_owned(), problem: "it is no WebAssembly".to_owned() });
    }
    Ok(wasm)
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
