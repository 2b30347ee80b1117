//! Who may ask over TCP, and for what.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use ampoule_api::router::Entrance;

use crate::stage::{Answer, Service, order, prints};

async fn token(service: &Service, body: Value) -> String {
    let answer = service.post("/v1/tokens", body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    answer.json::<Value>()["secret"].as_str().expect("a secret").to_owned()
}

async fn ask(service: &Service, method: Method, path: &str, secret: &str, body: Value) -> Answer {
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {secret}"));
    service.send(request.body(Body::from(body.to_string())).expect("a request"), Entrance::Tcp).await
}

#[tokio::test]
async fn tcp_needs_a_token_for_all_but_health_and_version() {
    let service = Service::with([prints("")]).await;
    for path in ["/v1/jobs", "/metrics", "/v1/images", "/v1/policies", "/v1/tokens", "/nothing"] {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let answer = service.send(request, Entrance::Tcp).await;
        assert_eq!(
            (answer.status, answer.problem().code.as_str()),
            (StatusCode::UNAUTHORIZED, "unauthorized"),
            "{path}"
        );
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    for path in ["/healthz", "/readyz", "/v1/version", "/openapi.json"] {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        assert_eq!(service.send(request, Entrance::Tcp).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_token_sees_its_own_jobs_only() {
    let service = Service::with([prints("")]).await;
    let alice = token(&service, json!({ "name": "alice" })).await;
    let bob = token(&service, json!({ "name": "bob" })).await;
    let answer = ask(&service, Method::POST, "/v1/jobs?wait=20", &alice, order(json!({}))).await;
    let job = answer.job();
    assert_eq!(job.token, "alice");
    let path = format!("/v1/jobs/{}", job.id);
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::DELETE, path.clone()),
        (Method::POST, format!("{path}/cancel")),
        (Method::GET, format!("{path}/logs")),
    ] {
        assert_eq!(ask(&service, method, &path, &bob, Value::Null).await.problem().code, "job-not-found", "{path}");
    }
    let seen = async |secret: &str| -> usize {
        let answer = ask(&service, Method::GET, "/v1/jobs?token=alice", secret, Value::Null).await;
        answer.json::<Value>()["jobs"].as_array().expect("a list").len()
    };
    assert_eq!((seen(&alice).await, seen(&bob).await), (1, 0));
    assert_eq!(service.get(&path).await.status, StatusCode::OK, "the unix socket sees all");
}

#[tokio::test]
async fn tokens_are_managed_over_the_unix_socket_only() {
    let service = Service::with([prints("")]).await;
    let secret = token(&service, json!({ "name": "ci" })).await;
    let answer = ask(&service, Method::POST, "/v1/tokens", &secret, json!({ "name": "more" })).await;
    assert_eq!((answer.status, answer.problem().code.as_str()), (StatusCode::FORBIDDEN, "forbidden"));
    assert_eq!(ask(&service, Method::GET, "/v1/tokens", &secret, Value::Null).await.status, StatusCode::FORBIDDEN);
    let list: Value = service.get("/v1/tokens").await.json();
    assert_eq!(list["tokens"][0]["name"], "ci");
    assert!(!list.to_string().contains(&secret));
    assert_eq!(service.post("/v1/tokens", json!({ "name": "ci" })).await.problem().code, "token-exists");
    assert_eq!(service.post("/v1/tokens", json!({ "name": "a b" })).await.problem().field.as_deref(), Some("name"));
}

#[tokio::test]
async fn a_revoked_or_expired_token_is_none() {
    let service = Service::with([prints("")]).await;
    let secret = token(&service, json!({ "name": "ci" })).await;
    assert_eq!(ask(&service, Method::GET, "/v1/jobs", &secret, Value::Null).await.status, StatusCode::OK);
    assert_eq!(service.call(Method::DELETE, "/v1/tokens/ci", None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(ask(&service, Method::GET, "/v1/jobs", &secret, Value::Null).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(service.call(Method::DELETE, "/v1/tokens/ci", None).await.problem().code, "token-not-found");
    let past = Timestamp::now() - SignedDuration::from_secs(1);
    let expired = token(&service, json!({ "name": "old", "expires": past.to_string() })).await;
    assert_eq!(ask(&service, Method::GET, "/v1/jobs", &expired, Value::Null).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_works_after_a_restart_and_its_secret_is_nowhere_on_disk() {
    let before = Service::with([prints("")]).await;
    let secret = token(&before, json!({ "name": "ci" })).await;
    let folder = before.killed();
    for file in ["state.db", "state.db-wal"] {
        let bytes = std::fs::read(folder.path().join("state").join(file)).expect("a file");
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
    let after = Service::open(folder, "", [prints("")]).await;
    assert_eq!(ask(&after, Method::GET, "/v1/jobs", &secret, Value::Null).await.status, StatusCode::OK);
}
