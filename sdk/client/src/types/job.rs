//! Jobs as they are asked for and as they are told of.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::policy::Decision;
use super::problem::Problem;

/// A job that is wanted. Unknown fields are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The image to run in: a name in the store, or a digest.
    pub image: String,
    /// The program and its arguments, exactly as they are executed. Empty, and no `shell`: the image's own command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// A command line for `/bin/sh -c`, instead of `argv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Standard input, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Standard input, any bytes in base64, instead of `stdin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_base64: Option<String>,
    /// Environment variables, above those of the image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Files to put into writable paths before the command starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<JobFile>,
    /// An uploaded tar to unpack into writable paths, as `PUT /v1/uploads` named it, instead of `files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_upload: Option<String>,
    /// Working directory. Default: `/work`, a writable tmpfs, when files or artifacts have relative paths; else the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `uid`, `uid:gid`, `name` or `name:group`. Default: the image's user, else `0:0`, which has no capability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Bounds that differ from the service's defaults.
    #[serde(default, skip_serializing_if = "LimitsRequest::is_empty")]
    pub limits: LimitsRequest,
    /// `none`, which is loopback alone and the default; or `default`, the world without the machine, where the operator
    /// grants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Writable paths besides `/tmp`: each a tmpfs of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writable: Vec<Writable>,
    /// Which files are kept after the command ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<ArtifactsRequest>,
    /// Labels to find the job by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// -100 to 100; higher goes first. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// When the job must be done: one that has not started by then never does, one that runs then is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline: Option<Timestamp>,
    /// A second request with the same key and token gets the first one's job. `Idempotency-Key` says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// How often the job is run again after a failure of the infrastructure. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A file that comes with a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// Absolute, or relative to the working directory.
    pub path: String,
    /// Its content, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Its content, any bytes in base64, instead of `content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<String>,
    /// Permission bits in octal, as in `0755`. Default `0644`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// Bounds as a client may ask for them; what is absent is the service's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsRequest {
    /// Memory with page cache and writable paths, in bytes; swap is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processors, as in `0.5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Processes and threads at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Processor time of all processes together, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_time_ms: Option<u64>,
    /// Time from start to end, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_time_ms: Option<u64>,
    /// Open descriptors of one process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Largest file that may be written, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Bytes of each output stream that are kept: half from its start, half from its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Bytes that both output streams may take together before the job is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_total_bytes: Option<u64>,
}

impl LimitsRequest {
    /// Whether every bound is left to the service.
    pub fn is_empty(&self) -> bool {
        *self == LimitsRequest::default()
    }
}

/// The bounds that a job has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    /// Memory with page cache and writable paths, in bytes; swap is none.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: f64,
    /// Processes and threads at once.
    pub pids: u32,
    /// Processor time of all processes together, in milliseconds.
    pub cpu_time_ms: u64,
    /// Time from start to end, in milliseconds.
    pub wall_time_ms: u64,
    /// Open descriptors of one process.
    pub open_files: u64,
    /// Largest file that may be written, in bytes.
    pub file_bytes: u64,
    /// Bytes of each output stream that are kept.
    pub output_bytes: u64,
    /// Bytes that both output streams may take together before the job is stopped.
    pub output_total_bytes: u64,
}

/// A writable path: a tmpfs of its own that is gone with the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Writable {
    /// Absolute path.
    pub path: String,
    /// Most bytes it may hold; they count towards the memory limit too.
    pub size_bytes: u64,
    /// Most files, folders and links it may hold. Default 16384.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
}

/// Which files are kept after the command ended, and how much of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArtifactsRequest {
    /// Glob patterns (`*`, `?`, `[…]`, `**`), absolute or relative to the working directory.
    pub globs: Vec<String>,
    /// Largest single file, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes_max: Option<u64>,
    /// Most bytes of all files together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes_max: Option<u64>,
    /// Most files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_max: Option<u64>,
}

/// Several jobs in one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// The jobs.
    pub jobs: Vec<JobRequest>,
}

/// The answer to a batch: one item a job, in the same order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchResult {
    /// What became of each job.
    pub items: Vec<BatchItem>,
}

/// What became of one job of a batch: either it was taken, or there is a problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchItem {
    /// The job, when it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Stored, and waiting for its turn.
    Queued,
    /// In its sandbox.
    Running,
    /// Over; nothing changes any more.
    Ended,
}

impl JobState {
    /// The name as it travels.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Ended => "ended",
        }
    }
}

/// Why a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndingKind {
    /// The command returned; `exit_code` says what.
    Exited,
    /// A signal that none of the limits sent; `signal` says which.
    Signaled,
    /// The processor time was used up.
    CpuLimit,
    /// The time was used up, or the deadline came.
    WallLimit,
    /// The memory limit was reached.
    OutOfMemory,
    /// The command failed after it had been refused a process.
    PidsLimit,
    /// It wrote more output than it may.
    OutputLimit,
    /// The command failed and a writable path was full.
    DiskLimit,
    /// Somebody stopped it.
    Cancelled,
    /// The deadline came before its turn.
    Expired,
    /// A policy refused it; it never ran.
    Denied,
    /// The service could not run it or lost it; `retryable` says whether another try may help.
    Failed,
}

impl EndingKind {
    /// Every kind, for tables and metrics.
    pub const ALL: [EndingKind; 12] = [
        EndingKind::Exited,
        EndingKind::Signaled,
        EndingKind::CpuLimit,
        EndingKind::WallLimit,
        EndingKind::OutOfMemory,
        EndingKind::PidsLimit,
        EndingKind::OutputLimit,
        EndingKind::DiskLimit,
        EndingKind::Cancelled,
        EndingKind::Expired,
        EndingKind::Denied,
        EndingKind::Failed,
    ];

    /// The name as it travels.
    pub fn as_str(self) -> &'static str {
        match self {
            EndingKind::Exited => "exited",
            EndingKind::Signaled => "signaled",
            EndingKind::CpuLimit => "cpu_limit",
            EndingKind::WallLimit => "wall_limit",
            EndingKind::OutOfMemory => "out_of_memory",
            EndingKind::PidsLimit => "pids_limit",
            EndingKind::OutputLimit => "output_limit",
            EndingKind::DiskLimit => "disk_limit",
            EndingKind::Cancelled => "cancelled",
            EndingKind::Expired => "expired",
            EndingKind::Denied => "denied",
            EndingKind::Failed => "failed",
        }
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ending {
    /// Why.
    pub kind: EndingKind,
    /// What the command returned, 0 to 255, when it `exited`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal's number, when it was `signaled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The policy that refused, when it was `denied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Whether the same request may work on another try; only `failed` ones may.
    pub retryable: bool,
    /// The cause, for people; absent when the kind says it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A stream that was written, as far as it was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Output {
    /// What was kept, when it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What was kept, in base64, when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// Bytes that were written, kept or not.
    pub bytes: u64,
    /// SHA-256 of all that was written, kept or not, in hexadecimal.
    pub sha256: String,
    /// What was left out between the start and the end that were kept; absent when all was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
}

/// A part of a stream that was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// Where it begins, in bytes from the start of the stream; as many bytes of what was kept stand before it.
    pub offset: u64,
    /// How many bytes are missing.
    pub bytes: u64,
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// From the start of the command to its end, in microseconds.
    pub wall_us: u64,
    /// Processor time in user mode, in microseconds.
    pub cpu_user_us: u64,
    /// Processor time in the kernel, in microseconds.
    pub cpu_system_us: u64,
    /// Highest memory use, in bytes.
    pub memory_peak_bytes: u64,
    /// Processes that the kernel killed for memory.
    pub oom_kills: u64,
    /// How often a process was refused by the pids limit.
    pub pids_refused: u64,
    /// Time in which the processor share held the job back, in microseconds.
    pub throttled_us: u64,
}

/// How long each phase of a launch took, in microseconds; 0 where a warm sandbox had it behind itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Phases {
    /// Whether the sandbox had been made ahead.
    pub warm: bool,
    /// New process with its namespaces.
    pub clone_us: u64,
    /// Joining the control groups.
    pub cgroup_us: u64,
    /// Network namespace and loopback.
    pub network_us: u64,
    /// Root, `/proc`, `/dev`, writable paths.
    pub mounts_us: u64,
    /// User namespace, ids, capabilities.
    pub credentials_us: u64,
    /// Installing the filter.
    pub seccomp_us: u64,
    /// From the request in pid 1 to the program's first instruction.
    pub exec_us: u64,
    /// From the end of the command to the end of its output and artifacts.
    pub drain_us: u64,
}

/// When a job came, started and ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Times {
    /// When it was taken.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When its last run started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
    /// When it must be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline: Option<Timestamp>,
}

/// A file that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Artifact {
    /// Absolute path in the sandbox.
    pub path: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of its content, in hexadecimal; absent when it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Why it was not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// The artifacts of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactList {
    /// The files, by path.
    pub artifacts: Vec<Artifact>,
}

/// A file of a spec, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpecFile {
    /// Absolute path.
    pub path: String,
    /// Its length in bytes.
    pub size_bytes: u64,
}

/// What is really executed: the request with all defaults, after the policies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobSpec {
    /// The digest of the image's manifest.
    pub image_digest: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The whole environment, in order.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: String,
    /// Whom it runs as.
    pub user: String,
    /// Its bounds.
    pub limits: Limits,
    /// Its network.
    pub network: String,
    /// Its writable paths.
    pub writable: Vec<Writable>,
    /// Which files are kept, and how much of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<ArtifactsRequest>,
    /// The files that came with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<SpecFile>,
    /// Bytes of standard input.
    pub stdin_bytes: u64,
}

/// All that is known of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its id: a UUID of version 7, so that ids sort by time.
    pub id: String,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it is in its life.
    pub state: JobState,
    /// The image as it was asked for.
    pub image: String,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// What it wrote to standard output; once it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Output>,
    /// What it wrote to standard error; once it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Output>,
    /// The files that were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<Figures>,
    /// How its launch went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phases: Option<Phases>,
    /// When it came, started and ended.
    pub times: Times,
    /// Which try this is, from 1; 0 before the first.
    pub attempt: u32,
    /// How often it may be run again after a failure of the infrastructure.
    pub retries: u32,
    /// Higher goes first.
    pub priority: i32,
    /// The token it came with; `local` for the unix socket.
    pub token: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What the policies said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// What is executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<JobSpec>,
}

/// A job in a list: without output, spec and decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobSummary {
    /// Its id.
    pub id: String,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it is in its life.
    pub state: JobState,
    /// The image as it was asked for.
    pub image: String,
    /// The program and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// When it came, started and ended.
    pub times: Times,
    /// Higher goes first.
    pub priority: i32,
    /// The token it came with; `local` for the unix socket.
    pub token: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// One page of jobs, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// The jobs.
    pub jobs: Vec<JobSummary>,
    /// What `cursor` takes to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An uploaded tar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Upload {
    /// `sha256:…` of its bytes: what `files_upload` takes.
    pub id: String,
    /// Its length in bytes.
    pub size_bytes: u64,
}

/// One of a job's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The data of one server-sent event of `GET /v1/jobs/{id}/events`; its `event:` field names the same kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The job changed its state.
    State {
        /// The new state.
        state: JobState,
        /// Which try it is.
        attempt: u32,
    },
    /// The job wrote something.
    Log(LogChunk),
    /// A part of a stream was not kept and cannot be told any more.
    Gap {
        /// The stream.
        stream: Stream,
        /// What is missing.
        gap: Gap,
    },
    /// The job ended; all output has been told before. The last event.
    Ended {
        /// How.
        ending: Ending,
    },
}

/// Some bytes of an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogChunk {
    /// The stream.
    pub stream: Stream,
    /// Where it begins, in bytes from the start of the stream.
    pub offset: u64,
    /// The bytes, in base64.
    pub base64: String,
}
