//! Builds of callers who must not see each other's.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use ampoule_api::router::Entrance;

use crate::stage::{Answer, Service, prints};

async fn ask(service: &Service, method: Method, path: &str, secret: &str, body: Body) -> Answer {
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {secret}"));
    let request = request.header("content-type", "multipart/form-data; boundary=b");
    service.send(request.body(body).expect("a request"), Entrance::Tcp).await
}

/// A build that fails, since there is nothing to run.
fn form() -> Body {
    let request = json!({"detach": true, "dockerfile_text": "FROM scratch\nARG SECRET\nRUN x\n", "build_args": {"SECRET": "hidden"}});
    let part =
        |name: &str, text: &str| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n");
    let empty = "\0".repeat(1024);
    Body::from(format!("{}{}--b--\r\n", part("request", &request.to_string()), part("context", &empty)))
}

#[tokio::test]
async fn builds_of_another_token_are_not_seen() {
    let service = Service::with([prints("")]).await;
    let mut secrets = Vec::new();
    for name in ["alice", "bob"] {
        let made = service.post("/v1/tokens", json!({ "name": name })).await;
        secrets.push(made.json::<Value>()["secret"].as_str().expect("a secret").to_owned());
    }
    let taken = ask(&service, Method::POST, "/v1/builds", &secrets[0], form()).await;
    assert_eq!(taken.status, StatusCode::ACCEPTED, "{taken:?}");
    let build: Value = taken.json();
    let path = format!("/v1/builds/{}", build["id"].as_str().expect("an id"));
    assert_eq!((build["token"].as_str(), taken.headers["location"].to_str().ok()), (Some("alice"), Some(&*path)));
    let follow = format!("{path}/logs?follow=true");
    for (method, path) in [(Method::GET, &path), (Method::DELETE, &path), (Method::GET, &follow)] {
        let answer = ask(&service, method, path, &secrets[1], Body::empty()).await;
        assert_eq!((answer.status, &*answer.problem().code), (StatusCode::NOT_FOUND, "build-not-found"), "{path}");
    }
    let told = ask(&service, Method::GET, &follow, &secrets[0], Body::empty()).await;
    assert!(String::from_utf8_lossy(&told.body).contains("event: failed"), "{told:?}");
    let mut seen = Vec::new();
    for secret in &secrets {
        let list: Value = ask(&service, Method::GET, "/v1/builds", secret, Body::empty()).await.json();
        seen.push(list["builds"].as_array().expect("a list").len());
    }
    assert_eq!(seen, [1, 0]);
    let everybody: Value = service.get("/v1/builds").await.json();
    assert_eq!(everybody["builds"][0]["state"], "failed", "the unix socket sees all");
}
