//! The policies that are bound, for people.

use std::sync::Arc;

use ampoule_client::types::{Policy, PolicyList};
use ampoule_plugins::{Mode, OnFailure, Policies, PolicySummary};
use axum::Json;
use axum::extract::State;

/// Lists the policies in the order in which they are asked.
#[utoipa::path(get, operation_id = "listPolicies", path = "/v1/policies", tag = "policies", responses((status = 200, description = "What was asked for", body = PolicyList)))]
pub async fn list(State(policies): State<Arc<Policies>>) -> Json<PolicyList> {
    Json(PolicyList { policies: policies.list().iter().map(policy).collect() })
}

/// A policy as it travels.
pub fn policy(summary: &PolicySummary) -> Policy {
    Policy {
        name: summary.name.clone(),
        digest: summary.digest.clone(),
        hooks: summary.hooks.clone(),
        mode: mode(summary.mode).to_owned(),
        on_failure: match summary.on_failure {
            OnFailure::Deny => "deny",
            OnFailure::Allow => "allow",
        }
        .to_owned(),
        source: summary.source.display().to_string(),
        settings_digest: Some(summary.settings_digest.clone()),
    }
}

/// How a policy is bound, as it travels.
pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Warn => "warn",
        Mode::Shadow => "shadow",
    }
}
