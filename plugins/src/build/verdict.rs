//! Answers to the `build` hook: what one policy says, and what all of them come to. The same types are its JSON.

use serde::{Deserialize, Serialize};

use super::BuildRequest;
use crate::verdict::PolicyVerdict;

/// What all policies together came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildDecision {
    /// The refusal that ended it, if there was one.
    pub denial: Option<BuildDenial>,
    /// The changes that are to be made to the build, in order: those of enforced policies, those without effect left out.
    pub changes: Vec<BuildChange>,
    /// What should be known although nothing was refused.
    pub warnings: Vec<BuildWarning>,
    /// Every policy that was asked, in order.
    pub verdicts: Vec<PolicyVerdict>,
    /// The build as the policies left it.
    #[serde(skip)]
    pub request: Option<Box<BuildRequest>>,
}

/// A refusal, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildDenial {
    /// Name of the policy that refused, or that failed.
    pub policy: String,
    /// Stable code: the policy's own, or `policy-…` where the policy failed.
    pub code: String,
    /// What is refused, as a sentence.
    pub reason: String,
    /// What can be done about it; empty when there is nothing.
    pub hint: String,
    /// Line of the Dockerfile; 0 when it is about none.
    pub line: u32,
}

/// Something that should be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildWarning {
    /// Name of the policy that warns.
    pub policy: String,
    /// Stable code.
    pub code: String,
    /// The warning, as a sentence.
    pub message: String,
    /// Line of the Dockerfile; 0 when it is about none.
    pub line: u32,
}

/// One change that a policy makes to a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BuildChange {
    /// Sets a label of the image.
    AddLabel {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Pins every use of an image.
    PinDigest {
        /// The image, as the request has it.
        reference: String,
        /// Its digest, as in `sha256:…`.
        digest: String,
    },
    /// Sets whom the image runs as.
    ForceUser(String),
}

/// What one policy answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) verdict: Verdict,
    pub(crate) warnings: Vec<Warning>,
}

/// The verdict of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Deny(Refusal),
    Change(Vec<BuildChange>),
}

/// Why a policy refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    pub(crate) reason: String,
    pub(crate) hint: String,
    pub(crate) line: u32,
}

/// A warning by one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Warning {
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) line: u32,
}

/// The answer as a command writes it.
#[derive(Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Written {
    Allow {
        #[serde(default)]
        warnings: Vec<Warning>,
    },
    Deny {
        code: String,
        reason: String,
        #[serde(default)]
        hint: String,
        #[serde(default)]
        line: u32,
        #[serde(default)]
        warnings: Vec<Warning>,
    },
    Change {
        changes: Vec<BuildChange>,
        #[serde(default)]
        warnings: Vec<Warning>,
    },
}

impl From<Written> for Answer {
    fn from(written: Written) -> Answer {
        match written {
            Written::Allow { warnings } => Answer { verdict: Verdict::Allow, warnings },
            Written::Deny { code, reason, hint, line, warnings } => {
                Answer { verdict: Verdict::Deny(Refusal { code, reason, hint, line }), warnings }
            }
            Written::Change { changes, warnings } => Answer { verdict: Verdict::Change(changes), warnings },
        }
    }
}
