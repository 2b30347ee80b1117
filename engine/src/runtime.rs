//! What runs sandboxes, as the service sees it. `Runtime` is the one seam of the project: the real one is
//! `sandbox::client::Client`; `scripted::Scripted` plays endings that no kernel gives on demand.

use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use tokio::net::unix::pipe;

use crate::spec::{
    CacheFolder, Exit, LayerId, PlaceOrder, SandboxSpec, Skipped, StepMount, StepTerms, StopReason, Wanted,
};

pub mod scripted;

/// A future that a trait object can return.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What runs sandboxes.
pub trait Runtime: Send + Sync + 'static {
    /// Starts a sandbox and returns as soon as the request is with the launcher. A failure to start is the
    /// `Failed` ending of the run; only a runtime that is gone or a spec that breaks the rules is an error here.
    fn launch(&self, spec: SandboxSpec, input: Input) -> Pending<'_, Result<Running, RuntimeError>>;

    /// Unpacks the layer in `archive` (tar; plain, gzip or zstd, told apart by its first bytes) in a throw-away
    /// sandbox. The layer appears whole under its diff id, or not at all. A layer that is there already is kept. Only
    /// so many are unpacked at a time; an archive that is a pipe is not read before its turn.
    fn unpack_layer(&self, archive: File) -> Pending<'_, Result<Unpacked, RuntimeError>>;

    /// Removes an unpacked layer. One that is not there is no error.
    fn remove_layer(&self, layer: LayerId) -> Pending<'_, Result<(), RuntimeError>>;

    /// Writes what these layers come to, lowest first, to `output` as one flat tar, always the same for the same
    /// layers. It is read in a throw-away sandbox.
    fn export_tree(&self, layers: Vec<LayerId>, output: OwnedFd) -> Pending<'_, Result<Exported, RuntimeError>> {
        let _ = (layers, output);
        Box::pin(async { Err(RuntimeError::Layer(NO_TREES.to_owned())) })
    }

    /// Writes how what the layers `after` come to differs from what `before` do to `output`, in the form that
    /// `image::tree::Changes` reads. Both are read in a throw-away sandbox.
    fn compare_trees(
        &self,
        before: Vec<LayerId>,
        after: Vec<LayerId>,
        output: OwnedFd,
    ) -> Pending<'_, Result<(), RuntimeError>> {
        let _ = (before, after, output);
        Box::pin(async { Err(RuntimeError::Layer(NO_TREES.to_owned())) })
    }

    /// Compares an unpacked layer with what its archive unpacks to, in a throw-away sandbox. With `mends`, a layer
    /// that differs is replaced, unless a job runs on it.
    fn check_layer(&self, layer: LayerId, archive: File, mends: bool) -> Pending<'_, Result<Checked, RuntimeError>> {
        let _ = (layer, archive, mends);
        Box::pin(async { Err(RuntimeError::Layer(NO_TREES.to_owned())) })
    }

    /// Runs a command of a build on a root that it may change. What it changed becomes a layer when it ends with 0.
    fn run_step(
        &self,
        spec: SandboxSpec,
        input: Input,
        mounts: Mounts,
        terms: StepTerms,
    ) -> Pending<'_, Result<RunningStep, RuntimeError>> {
        let _ = (spec, input, mounts, terms);
        Box::pin(async { Err(RuntimeError::Layer(NO_TREES.to_owned())) })
    }

    /// Puts files on top of the layers `base`, lowest first, in a throw-away sandbox. `files` is a tar in the form that
    /// `PlaceOrder` describes; the tar of the layer goes to `output`, and the layer appears whole or not at all.
    fn place_files(
        &self,
        base: Vec<LayerId>,
        order: PlaceOrder,
        files: OwnedFd,
        output: OwnedFd,
    ) -> Pending<'_, Result<Unpacked, RuntimeError>> {
        let _ = (base, order, files, output);
        Box::pin(async { Err(RuntimeError::Layer(NO_TREES.to_owned())) })
    }

    /// Writes a part of what these layers come to, lowest first, to `output` in the form that `place_files` takes. It
    /// is read in a throw-away sandbox.
    fn select_files(
        &self,
        layers: Vec<LayerId>,
        wanted: Wanted,
        output: OwnedFd,
    ) -> Pending<'_, Result<(), RuntimeError>> {
        let _ = (layers, wanted, output);
        Box::pin(async { Err(RuntimeError::Layer(NO_TREES.to_owned())) })
    }

    /// Says how much a cache of builds takes on disk, in bytes.
    fn measure_cache(&self, folder: CacheFolder) -> Pending<'_, Result<u64, RuntimeError>> {
        let _ = folder;
        Box::pin(async { Err(RuntimeError::Layer(NO_TREES.to_owned())) })
    }

    /// Removes a cache of builds that no command uses. One that is not there is no error.
    fn remove_cache(&self, folder: CacheFolder) -> Pending<'_, Result<(), RuntimeError>> {
        let _ = folder;
        Box::pin(async { Err(RuntimeError::Layer(NO_TREES.to_owned())) })
    }

    /// What the runtime holds at this moment, for metrics.
    fn census(&self) -> Census;
}

/// What a runtime says that keeps no layers.
const NO_TREES: &str = "this runtime keeps no layers";

/// What goes into a sandbox besides its spec.
#[derive(Debug, Default)]
pub struct Input {
    /// Standard input: the bytes of this file from its start, or nothing.
    pub stdin: Stdin,
    /// A tar whose entries are unpacked before the command starts, by the command's user, into writable paths;
    /// names are absolute or relative to the command's working directory.
    pub files: Option<File>,
}

/// What a command of a build has mounted.
#[derive(Debug, Default)]
pub struct Mounts {
    /// All of it.
    pub mounts: Vec<StepMount>,
    /// The values of the secrets among them, one behind the other; nobody else may have the file.
    pub secrets: Option<File>,
}

/// Where standard input comes from.
#[derive(Debug, Default)]
pub enum Stdin {
    /// Nothing: end of file at once.
    #[default]
    Empty,
    /// A file, read from its current position (a memfd for bytes that came with a request).
    File(File),
    /// A pipe whose writing end is `Running::stdin`.
    Pipe,
}

/// A sandbox that was asked for. Dropping it does not stop the sandbox; `stop` does, and so does the wall limit.
pub struct Running {
    /// What the command writes to its standard output, to end of file.
    pub stdout: pipe::Receiver,
    /// What the command writes to its standard error, to end of file.
    pub stderr: pipe::Receiver,
    /// The writing end of standard input, when it was asked for.
    pub stdin: Option<pipe::Sender>,
    /// A tar of the artifacts, written after the command ended; `None` when no globs were given.
    pub artifacts: Option<pipe::Receiver>,
    /// The last word; comes after the command ended, to whoever waits for it all the time. An error means that the
    /// launcher is gone.
    pub exit: Pending<'static, Result<Exit, RuntimeError>>,
    /// Asks for an early end; the exit follows. Asking twice, or after the end, does nothing.
    pub stop: Box<dyn Fn(StopReason) + Send + Sync>,
}

/// A command of a build that was asked for.
pub struct RunningStep {
    /// The command, as any other.
    pub running: Running,
    /// The tar of what it changed, written after it ended with 0.
    pub tar: pipe::Receiver,
    /// The layer; an error when the command ended otherwise.
    pub layer: Pending<'static, Result<Unpacked, RuntimeError>>,
}

/// A layer on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Its diff id, computed from what was read.
    pub layer: LayerId,
    /// Bytes of the uncompressed tar.
    pub tar_bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// What of the tar was left out.
    pub skipped: Skipped,
}

/// A tree that was written as a tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of the tar.
    pub bytes: u64,
}

/// A layer that was compared with its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Files that differ.
    pub differences: u64,
    /// The first few of them, each with what is wrong, as sentences.
    pub samples: Vec<String>,
    /// Whether the layer was replaced.
    pub is_mended: bool,
}

/// What a runtime holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Sandboxes with a command.
    pub live: u64,
    /// Sandboxes made ahead, waiting for a command.
    pub warm: u64,
    /// Launches that found a warm sandbox, since the start.
    pub warm_hits: u64,
    /// Launches that had to make one, since the start.
    pub cold_starts: u64,
}

/// Why the runtime could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The launcher is gone; nothing can run until the service is started again.
    #[error("the launcher is gone")]
    Gone,
    /// The spec breaks a rule.
    #[error("the sandbox cannot be launched")]
    Spec(#[from] crate::spec::SpecError),
    /// A layer could not be unpacked or removed; the sentence is the worker's own.
    #[error("{0}")]
    Layer(String),
    /// A system call of the service's side failed.
    #[error("could not {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}
