//! The question of the `admission` hook: a job as it would be executed, after images and defaults were settled.
//! These are the host's own types; `bindings` turns them into the contract's, `command` into JSON.

use serde::{Deserialize, Serialize};

/// A job as it would be executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// The image, pinned.
    pub image: AdmissionImage,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The whole environment, that of the image included.
    pub env: Vec<(String, String)>,
    /// Absolute working directory.
    pub cwd: String,
    /// Whom the program runs as: `uid`, `uid:gid`, `name` or `name:group`.
    pub user: String,
    /// The limits that will be applied.
    pub limits: AdmissionLimits,
    /// The limits that the client wrote, so that a policy can tell wishes from defaults.
    pub requested_limits: RequestedLimits,
    /// What the job may reach: `none` is nothing but its own loopback.
    pub network: String,
    /// Where the job may write.
    pub writable: Vec<AdmissionWritable>,
    /// Glob patterns of the files that are brought out.
    pub artifacts: Vec<String>,
    /// Files that the client sent along.
    pub files: Vec<AdmissionFile>,
    /// Length of the standard input, in bytes.
    pub stdin_bytes: u64,
    /// The job's labels.
    pub labels: Vec<(String, String)>,
    /// Higher runs earlier.
    pub priority: i32,
    /// Name of the token that asked, or `local` for the unix socket.
    pub token: String,
}

/// An image that has been resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionImage {
    /// The name that the client wrote, normalised.
    pub reference: String,
    /// Digest of the manifest, as in `sha256:…`.
    pub digest: String,
    /// All layers together, compressed, in bytes.
    pub size_bytes: u64,
}

/// The limits of a job, none of them optional.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionLimits {
    /// Memory with page cache and tmpfs, in bytes.
    pub memory_bytes: u64,
    /// Processor share in thousandths of a processor.
    pub cpu_milli: u32,
    /// Most processes and threads at once.
    pub pids: u32,
    /// Processor time of all processes together, in milliseconds.
    pub cpu_time_ms: u64,
    /// Time from start to end, in milliseconds.
    pub wall_time_ms: u64,
    /// Open descriptors of one process.
    pub open_files: u64,
    /// Largest file that may be written, in bytes.
    pub file_bytes: u64,
    /// Most output that is kept of each stream, in bytes.
    pub output_bytes: u64,
    /// Most output before the job is stopped, in bytes.
    pub output_total_bytes: u64,
}

/// The limits that a client wrote; `None` where it left the choice to the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestedLimits {
    /// See [`AdmissionLimits::memory_bytes`].
    pub memory_bytes: Option<u64>,
    /// See [`AdmissionLimits::cpu_milli`].
    pub cpu_milli: Option<u32>,
    /// See [`AdmissionLimits::pids`].
    pub pids: Option<u32>,
    /// See [`AdmissionLimits::cpu_time_ms`].
    pub cpu_time_ms: Option<u64>,
    /// See [`AdmissionLimits::wall_time_ms`].
    pub wall_time_ms: Option<u64>,
    /// See [`AdmissionLimits::open_files`].
    pub open_files: Option<u64>,
    /// See [`AdmissionLimits::file_bytes`].
    pub file_bytes: Option<u64>,
    /// See [`AdmissionLimits::output_bytes`].
    pub output_bytes: Option<u64>,
    /// See [`AdmissionLimits::output_total_bytes`].
    pub output_total_bytes: Option<u64>,
}

/// A place that a job may write to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionWritable {
    /// Absolute path inside the sandbox.
    pub path: String,
    /// Most bytes it may hold.
    pub size_bytes: u64,
    /// Most files, folders and links it may hold.
    pub inodes: u64,
}

/// A file that a client sent along; its content is not shown to policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionFile {
    /// Absolute path inside the sandbox.
    pub path: String,
    /// Its length, in bytes.
    pub size_bytes: u64,
}
