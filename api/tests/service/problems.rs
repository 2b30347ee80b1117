//! Everything that is refused says so in the same form, with a stable code.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use ampoule_api::router::Entrance;

use crate::stage::{Service, order, prints};

/// Hands fields in and expects a problem about a field.
async fn check(service: &Service, fields: Value, code: &str, field: &str) {
    let answer = service.submit("", fields.clone()).await;
    let problem = answer.problem();
    assert_eq!((problem.code.as_str(), problem.field.as_deref()), (code, Some(field)), "{fields}: {}", problem.detail);
}

#[tokio::test]
async fn a_field_that_cannot_be_used_is_named() {
    let service = Service::with([prints("")]).await;
    let cases = [
        (json!({ "network": "host" }), "network"),
        (json!({ "argv": [""] }), "argv"),
        (json!({ "shell": "ls" }), "shell"),
        (json!({ "argv": [], "shell": null }), "argv"),
        (json!({ "stdin": "a", "stdin_base64": "YQ==" }), "stdin"),
        (json!({ "stdin_base64": "?" }), "stdin_base64"),
        (json!({ "cwd": "work" }), "cwd"),
        (json!({ "cwd": "/a/../b" }), "cwd"),
        (json!({ "files": [{ "path": "../a", "content": "" }] }), "files.path"),
        (json!({ "files": [{ "path": "/etc/passwd", "content": "" }] }), "files.path"),
        (json!({ "files": [{ "path": "a", "mode": "rwx" }] }), "files.mode"),
        (json!({ "writable": [{ "path": "/proc", "size_bytes": 1 }] }), "writable.path"),
        (json!({ "artifacts": { "globs": ["[a"] } }), "artifacts.globs"),
        (json!({ "priority": 101 }), "priority"),
        (json!({ "retries": 11 }), "retries"),
        (json!({ "env": { "A=B": "c" } }), "env"),
        (json!({ "limits": { "cpus": 0 } }), "limits.cpus"),
        (json!({ "limits": { "memory_bytes": 1 } }), "limits.memory_bytes"),
        (json!({ "labels": { "": "x" } }), "labels"),
    ];
    for (fields, field) in cases {
        check(&service, fields, "invalid-field", field).await;
    }
}

#[tokio::test]
async fn a_limit_above_its_ceiling_is_refused_with_the_ceiling() {
    let service = Service::with([prints("")]).await;
    check(&service, json!({ "limits": { "pids": 5000 } }), "limit-above-ceiling", "limits.pids").await;
    let answer = service.submit("", json!({ "limits": { "pids": 5000 } })).await;
    assert!(answer.problem().detail.contains("4096"), "{answer:?}");
}

#[tokio::test]
async fn an_unknown_field_is_refused_by_its_name() {
    let service = Service::with([prints("")]).await;
    let answer = service.submit("", json!({ "imagge": "x" })).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let problem = answer.problem();
    assert_eq!(problem.code, "invalid-json");
    assert!(problem.detail.contains("`imagge`"), "{}", problem.detail);
    let answer = service.submit("?wiat=3", json!({})).await;
    assert_eq!(answer.problem().code, "invalid-query");
}

#[tokio::test]
async fn an_image_that_is_not_there_is_named() {
    let service = Service::with([prints("")]).await;
    let answer = service.submit("", json!({ "image": "nothing:here" })).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let problem = answer.problem();
    assert_eq!(problem.code, "image-not-found");
    assert!(problem.detail.contains("nothing:here") && problem.hint.is_some());
}

#[tokio::test]
async fn routes_methods_and_bodies_that_do_not_fit_are_refused_alike() {
    let service = Service::with([prints("")]).await;
    assert_eq!(service.get("/v2/jobs").await.problem().code, "no-such-route");
    assert_eq!(service.call(Method::PATCH, "/v1/jobs", None).await.problem().code, "method-not-allowed");
    assert_eq!(service.get("/v1/jobs/not-an-id").await.problem().code, "job-not-found");
    assert_eq!(service.submit("?wait=-1", json!({})).await.problem().code, "invalid-query");
    let large = order(json!({ "stdin": "x".repeat(17 * 1024 * 1024) }));
    assert_eq!(service.post("/v1/jobs", large).await.problem().code, "body-too-large");
    let request = Request::post("/v1/jobs").header("content-type", "text/xml").body(Body::from("<job/>"));
    let answer = service.send(request.expect("a request"), Entrance::Unix).await;
    assert_eq!(
        (answer.status, answer.problem().code.as_str()),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type")
    );
}

#[tokio::test]
async fn a_request_keeps_the_id_that_its_client_gave() {
    let service = Service::with([prints("")]).await;
    let request = Request::get("/v1/nothing").header("x-request-id", "ci-4711").body(Body::empty());
    let answer = service.send(request.expect("a request"), Entrance::Unix).await;
    assert_eq!(answer.problem().request_id.as_deref(), Some("ci-4711"));
}

#[tokio::test]
async fn a_service_that_is_being_stopped_takes_no_job() {
    let service = Service::with([prints("")]).await;
    service.app.desk.jobs.close();
    let answer = service.submit("", json!({})).await;
    assert_eq!((answer.status, answer.problem().code.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "draining"));
    assert!(answer.headers.contains_key("retry-after"));
}
