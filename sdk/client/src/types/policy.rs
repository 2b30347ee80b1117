//! Policies and their decisions as the API shows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A policy that is bound in this service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Its name in `policies.toml`.
    pub name: String,
    /// The digest of its component.
    pub digest: String,
    /// The questions that it answers, as in `admission`.
    pub hooks: Vec<String>,
    /// `enforce`, `warn` or `shadow`.
    pub mode: String,
    /// What its own failure means: `deny` or `allow`.
    pub on_failure: String,
    /// Where its component came from.
    pub source: String,
    /// The digest of its settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings_digest: Option<String>,
}

/// The policies in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyList {
    /// The policies.
    pub policies: Vec<Policy>,
}

/// What all policies together said of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// Whether the job was let in.
    pub outcome: Outcome,
    /// Who refused it and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denial: Option<Denial>,
    /// What policies had to remark without refusing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<PolicyWarning>,
    /// What each policy said, in the order in which they were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<Verdict>,
}

/// Whether a job was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was.
    Admitted,
    /// It was not.
    Denied,
}

/// A policy's refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Denial {
    /// The policy that refused.
    pub policy: String,
    /// Its stable code.
    pub code: String,
    /// Its reason, for people.
    pub reason: String,
    /// What the reader can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A remark of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyWarning {
    /// The policy.
    pub policy: String,
    /// Its stable code.
    pub code: String,
    /// The remark.
    pub message: String,
}

/// What one policy said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// The policy.
    pub policy: String,
    /// The digest of its component.
    pub digest: String,
    /// `enforce`, `warn` or `shadow`.
    pub mode: String,
    /// `allow`, `deny`, `change` or `error`.
    pub verdict: String,
    /// The fields that it changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
    /// Its stable code, when it refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Its reason, when it refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Instructions that it used, in units of fuel.
    pub fuel: u64,
    /// Time that it took, in microseconds.
    pub micros: u64,
}
