//! The description of the API is what is served, and its committed copy is what is described.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::Value;

use ampoule_api::router::Entrance;

use crate::stage::{Service, prints};

const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk/openapi.json");

#[tokio::test]
async fn every_route_that_is_described_is_served() {
    let service = Service::with([prints("")]).await;
    let description: Value = service.get("/openapi.json").await.json();
    assert!(description["openapi"].as_str().expect("a version").starts_with("3.1"));
    for (path, methods) in description["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let uri = path.replace("{id}", "00000000-0000-0000-0000-000000000000").replace(['{', '}'], "");
            let request = Request::builder().method(method.clone()).uri(&uri).body(Body::empty()).expect("a request");
            let answer = service.send(request, Entrance::Unix).await;
            assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            let code = answer.status.is_client_error().then(|| answer.problem().code);
            assert_ne!(code.as_deref(), Some("no-such-route"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn every_operation_has_a_name_of_its_own_and_every_answer_a_description() {
    let description: Value = serde_json::from_str(ampoule_api::openapi::json()).expect("JSON");
    let mut names = std::collections::BTreeSet::new();
    for (path, methods) in description["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let name = operation["operationId"].as_str().expect("a name");
            assert!(names.insert(name.to_owned()), "{method} {path}: there are two `{name}`");
            for (status, answer) in operation["responses"].as_object().expect("answers") {
                assert!(answer["description"].is_string(), "{method} {path}: {status} is not described");
            }
        }
    }
}

#[test]
fn the_committed_description_is_the_one_that_is_served() {
    let served = format!("{}\n", ampoule_api::openapi::json());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(COPY, &served).expect("the copy is written");
    }
    let copy = std::fs::read_to_string(COPY).unwrap_or_default();
    assert!(
        copy == served,
        "sdk/openapi.json is not what is served\nhint: run this test with UPDATE=1 and look at the difference"
    );
}

#[tokio::test]
async fn metrics_tell_how_jobs_ended() {
    let service = Service::with([prints("")]).await;
    service.submit("?wait=20", serde_json::json!({})).await;
    let text = String::from_utf8(service.get("/metrics").await.body.to_vec()).expect("text");
    for line in [
        "ampoule_jobs_ended_total{ending=\"exited\"} 1\n",
        "ampoule_job_seconds_count 1\n",
        "ampoule_queue_jobs 0\n",
        "ampoule_launches_total{kind=\"cold\"} 1\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");

#[test]
fn every_code_of_a_problem_is_on_the_page_with_its_status() {
    let page = std::fs::read_to_string(PAGE).expect("the page exists");
    for kind in ampoule_api::problem::ALL {
        let (code, status) = (format!("`{}`", kind.code), kind.status.as_str().to_owned());
        let is_there =
            page.lines().any(|line| line.starts_with("| ") && line.contains(&code) && line.contains(&status));
        assert!(is_there, "docs/api.md does not list {code} with {status}");
    }
}

#[tokio::test]
async fn the_configuration_on_the_page_is_the_default_one() {
    let page = std::fs::read_to_string(PAGE).expect("the page exists");
    let shown = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a configuration");
    let folder = tempfile::tempdir().expect("a folder");
    let load = |text: &str| {
        let file = folder.path().join("ampoule.toml");
        std::fs::write(&file, text).expect("a file");
        let flags = ampoule_api::config::Flags { config: Some(file), ..Default::default() };
        format!("{:?}", ampoule_api::config::Config::load(&flags).expect("the configuration loads"))
    };
    assert_eq!(load(shown), load(""));
}
