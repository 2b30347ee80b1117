//! Answers: what one policy says ([`Answer`]), and what all of them come to ([`Decision`]).
//! The same types are the JSON of WASI command policies and of the stored decision.

use serde::{Deserialize, Serialize};

use crate::admission::{Admission, AdmissionWritable};

/// What all policies together came to; stored with the job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether the job runs, and as what.
    pub outcome: Outcome,
    /// What the client should know although nothing was refused.
    pub warnings: Vec<PolicyWarning>,
    /// Every policy that was asked, in order.
    pub verdicts: Vec<PolicyVerdict>,
}

/// Whether a job runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It runs, as the policies left it.
    Admitted(Box<Admission>),
    /// It does not.
    Denied(Denial),
}

/// A refusal, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// Name of the policy that refused, or that failed.
    pub policy: String,
    /// Stable code: the policy's own, or `policy-…` where the policy failed.
    pub code: String,
    /// What is refused, as a sentence.
    pub reason: String,
    /// What the client can do about it; empty when there is nothing.
    pub hint: String,
}

/// Something that the client should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyWarning {
    /// Name of the policy that warns.
    pub policy: String,
    /// Stable code.
    pub code: String,
    /// The warning, as a sentence.
    pub message: String,
}

/// What one policy said, and what asking it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVerdict {
    /// Name of the policy.
    pub policy: String,
    /// Digest of its file, as in `sha256:…`.
    pub digest: String,
    /// How it is bound.
    pub mode: Mode,
    /// What it said.
    pub verdict: VerdictKind,
    /// The fields that it changed (or, when not enforced, would have changed), as in `limits.memory_bytes`.
    pub changed: Vec<String>,
    /// The code of a refusal or of a failure; empty otherwise.
    pub code: String,
    /// The reason of a refusal or of a failure; empty otherwise.
    pub reason: String,
    /// Fuel that the call used: the same for the same question.
    pub fuel: u64,
    /// Time that the call took, in microseconds.
    pub micros: u64,
}

/// What one policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// It has no objection.
    Allow,
    /// It refuses.
    Deny,
    /// It changes the job.
    Change,
    /// It could not be asked: a trap, a limit, an answer that breaks the contract.
    Error,
}

/// How much a policy's verdict weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// A refusal becomes a warning to the client, changes are not made.
    Warn,
    /// Its verdict is recorded and nothing else.
    Shadow,
}

/// What a failing policy means for the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The job is refused.
    #[default]
    Deny,
    /// The job passes with a warning.
    Allow,
}

/// What one policy answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its verdict.
    pub(crate) verdict: Verdict,
    /// What else it wants to be known.
    pub(crate) warnings: Vec<Warning>,
}

/// The verdict of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No objection.
    Allow,
    /// A refusal.
    Deny(Refusal),
    /// Changes to be made, in order.
    Change(Vec<Change>),
}

/// Why a policy refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refusal {
    /// Stable code: small letters, digits and hyphens.
    pub(crate) code: String,
    /// What is refused, as a sentence.
    pub(crate) reason: String,
    /// What the client can do about it; may be empty.
    #[serde(default)]
    pub(crate) hint: String,
}

/// A warning by one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Warning {
    /// Stable code: small letters, digits and hyphens.
    pub(crate) code: String,
    /// The warning, as a sentence.
    pub(crate) message: String,
}

/// One change that a policy makes to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Change {
    /// Sets a limit.
    SetLimit {
        /// Which.
        name: LimitName,
        /// In the unit that its name says.
        value: u64,
    },
    /// Replaces program and arguments.
    SetArgv(Vec<String>),
    /// Sets whom the program runs as.
    SetUser(String),
    /// Sets the working directory.
    SetCwd(String),
    /// Sets an environment variable.
    SetEnv {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Removes an environment variable; it is no error when there is none.
    RemoveEnv(String),
    /// Sets a label.
    SetLabel {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Removes a label; it is no error when there is none.
    RemoveLabel(String),
    /// Sets the priority.
    SetPriority(i32),
    /// Sets what the job may reach: only `none` may be set.
    SetNetwork(String),
    /// Adds or replaces a writable path.
    SetWritable(AdmissionWritable),
    /// Removes a writable path; it is no error when there is none.
    RemoveWritable(String),
}

/// The limits by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LimitName {
    MemoryBytes,
    CpuMilli,
    Pids,
    CpuTimeMs,
    WallTimeMs,
    OpenFiles,
    FileBytes,
    OutputBytes,
    OutputTotalBytes,
}
