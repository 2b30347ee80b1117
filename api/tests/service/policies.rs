//! What policies say is what happens, and it is kept with the job.

use ampoule_client::types::{EndingKind, Outcome, PolicyList};
use axum::http::StatusCode;
use serde_json::json;

use crate::stage::Service;

#[tokio::test]
async fn a_refused_job_names_its_policy_never_runs_and_is_kept() {
    let answer = r#"{"verdict":"deny","code":"no-jobs","reason":"it is Monday","hint":"wait"}"#;
    let service = Service::with_policy(answer).await;
    let answer = service.submit("?wait=20", json!({ "labels": { "a": "b" } })).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let problem = answer.problem();
    assert_eq!((problem.code.as_str(), problem.policy.as_deref()), ("denied-by-policy", Some("house-rules")));
    assert_eq!((problem.policy_code.as_deref(), problem.detail.as_str()), (Some("no-jobs"), "it is Monday"));
    assert_eq!(problem.hint.as_deref(), Some("wait"));
    let job = service.get(&format!("/v1/jobs/{}", problem.job_id.expect("an id"))).await.job();
    let ending = job.ending.expect("an ending");
    assert_eq!((ending.kind, ending.policy.as_deref()), (EndingKind::Denied, Some("house-rules")));
    let decision = job.decision.expect("a decision");
    assert_eq!((decision.outcome, decision.verdicts[0].verdict.as_str()), (Outcome::Denied, "deny"));
    assert_eq!(decision.denial.expect("a denial").reason, "it is Monday");
    assert_eq!((job.attempt, job.stdout), (0, None));
    assert!(service.runtime.0.asked().is_empty());
}

#[tokio::test]
async fn what_a_policy_changes_is_what_runs() {
    let answer = r#"{"verdict":"change","changes":[{"set_limit":{"name":"pids","value":7}},{"set_user":"1000"},
        {"set_argv":["echo","changed"]},{"set_label":{"name":"seen","value":"yes"}},{"set_priority":5}],
        "warnings":[{"code":"mind","message":"fewer processes"}]}"#;
    let service = Service::with_policy(answer).await;
    let job = service.submit("?wait=20", json!({})).await.job();
    let asked = service.runtime.0.asked();
    assert_eq!((asked[0].limits.pids, asked[0].frame.user.as_str()), (7, "1000"));
    assert_eq!(asked[0].command.argv, ["echo", "changed"]);
    assert_eq!((job.priority, job.labels["seen"].as_str()), (5, "yes"));
    let decision = job.decision.expect("a decision");
    assert_eq!(decision.verdicts[0].changed, ["limits.pids", "user", "argv", "labels.seen", "priority"]);
    assert_eq!(decision.warnings[0].message, "fewer processes");
    let listed = service.get("/v1/jobs?label=seen=yes").await;
    assert!(String::from_utf8_lossy(&listed.body).contains(&job.id), "labels of policies are found too");
}

#[tokio::test]
async fn what_a_policy_changed_is_checked_like_a_request() {
    let answer = r#"{"verdict":"change","changes":[{"set_limit":{"name":"memory_bytes","value":1125899906842624}}]}"#;
    let service = Service::with_policy(answer).await;
    let problem = service.submit("?wait=20", json!({})).await.problem();
    assert_eq!((problem.code.as_str(), problem.field.as_deref()), ("limit-above-ceiling", Some("limits.memory_bytes")));
    assert!(service.runtime.0.asked().is_empty());
}

#[tokio::test]
async fn the_bound_policies_are_listed() {
    let service = Service::with_policy(r#"{"verdict":"allow"}"#).await;
    let list: PolicyList = service.get("/v1/policies").await.json();
    let policy = &list.policies[0];
    assert_eq!(
        (policy.name.as_str(), policy.mode.as_str(), policy.on_failure.as_str()),
        ("house-rules", "enforce", "deny")
    );
    let job = service.submit("?wait=20", json!({})).await.job();
    assert_eq!(job.decision.expect("a decision").verdicts[0].verdict, "allow");
    let metrics = String::from_utf8(service.get("/metrics").await.body.to_vec()).expect("text");
    assert!(metrics.contains("ampoule_policy_seconds_count{policy=\"house-rules\"} 1\n"));
}
