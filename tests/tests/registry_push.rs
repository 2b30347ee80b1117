//! What a push sends, and what it leaves out: seen by the registry's own list of requests.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use ampoule_client::types::{Problem, PushResult};
use ampoule_tests::registry::{Contents, Registry, Reply, digest};
use ampoule_tests::{Options, Service, archive};
use serde_json::{Value, json};

#[track_caller]
fn push(service: &Service, image: &str, target: &str) -> PushResult {
    let answer = service.post("/v1/images:push", &json!({"reference": image, "target": target}));
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), service.log());
    answer.json()
}

/// The manifest that a registry has, all of whose parts it has as well.
#[track_caller]
fn check_whole(contents: &Contents, name: &str) -> Vec<u8> {
    let (_, bytes) = contents.manifest(name).unwrap_or_else(|| panic!("no manifest {name}"));
    let manifest: Value = serde_json::from_slice(&bytes).expect("a manifest is JSON");
    let layers = manifest["layers"].as_array().expect("it has layers").iter();
    for part in layers.chain([&manifest["config"]]) {
        let stated = part["digest"].as_str().expect("it has a digest");
        let blob = contents.blob(stated).unwrap_or_else(|| panic!("no blob {stated}"));
        assert_eq!((digest(&blob).as_str(), Some(blob.len() as u64)), (stated, part["size"].as_u64()));
    }
    bytes
}

#[test]
fn what_a_registry_has_is_not_sent_again_and_the_manifest_is_as_stored() {
    let (service, registry) = (Service::start(), Registry::start());
    let pushed = push(&service, "busybox", &format!("{}/app:1", registry.host()));
    let bytes = check_whole(&registry.contents, "app:1");
    assert_eq!(digest(&bytes), pushed.digest);
    let blob = service.state().join("oci/blobs/sha256").join(pushed.digest.trim_start_matches("sha256:"));
    assert_eq!(fs::read(blob).expect("we are root"), bytes);
    let sent = registry.contents.count(|request| request.method == "PUT" && request.path.contains("/blobs/"));
    assert_eq!(sent, 2);
    push(&service, "busybox", &format!("{}/app:2", registry.host()));
    assert_eq!(registry.contents.count(|request| request.method == "PUT" && request.path.contains("/blobs/")), sent);
}

#[test]
fn what_another_repository_of_the_registry_has_is_taken_over() {
    let service = Service::with(Options { without_image: true, ..Options::default() });
    // Blobs belong to their repositories: it has to be mounted.
    let strict = Registry::with(|request, contents| {
        let is_probe = request.method == "HEAD" && request.path.starts_with("/v2/ours/blobs/");
        let was_mounted = contents.count(|request| !request.values("mount").is_empty()) > 0;
        (is_probe && !was_mounted).then(|| Reply::new(404))
    });
    strict.contents.add_image("theirs", "1", &[&archive::busybox()]);
    let name = format!("{}/theirs:1", strict.host());
    assert_eq!(service.post("/v1/images:pull", &json!({ "reference": name })).status, 200);
    push(&service, &name, &format!("{}/ours:1", strict.host()));
    let mounts = strict.contents.requests().into_iter().filter(|request| request.values("from") == ["theirs"]).count();
    assert!(mounts >= 1, "{:#?}", strict.contents.requests());
    assert_eq!(strict.contents.count(|request| matches!(request.method.as_str(), "PATCH")), 0);
    assert_eq!(strict.contents.count(|request| request.method == "PUT" && request.path.contains("/blobs/")), 0);
    check_whole(&strict.contents, "ours:1");
}

#[test]
fn a_registry_that_wants_pieces_gets_them_as_long_as_it_wants() {
    let registry = Registry::with(|request, contents| {
        let usual = contents.usual(request);
        let begins = request.method == "POST" && request.path.ends_with("/blobs/uploads/");
        Some(if begins { usual.header("OCI-Chunk-Min-Length", "262144") } else { usual })
    });
    let service = Service::start();
    push(&service, "busybox", &format!("{}/app:1", registry.host()));
    check_whole(&registry.contents, "app:1");
    let pieces: Vec<_> = registry.contents.requests().into_iter().filter(|request| request.method == "PATCH").collect();
    assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.body.len() == 262_144), "{} pieces", pieces.len());
    assert_eq!(pieces[1].header("content-range"), Some("262144-524287"));
}

#[test]
fn an_upload_that_breaks_is_taken_up_where_the_registry_says() {
    let tries = AtomicUsize::new(0);
    let registry = Registry::with(move |request, contents| {
        let is_large =
            request.method == "PUT" && request.path.contains("/blobs/uploads/") && request.body.len() > 100_000;
        if !is_large || tries.fetch_add(1, Ordering::Relaxed) > 0 {
            return None;
        }
        // It has taken a part when it fails.
        contents.add_to_upload(&request.path, &request.body[..50_000]);
        Some(Reply::new(502))
    });
    let service = Service::start();
    push(&service, "busybox", &format!("{}/app:1", registry.host()));
    check_whole(&registry.contents, "app:1");
    let rest = registry
        .contents
        .requests()
        .into_iter()
        .filter(|request| request.header("content-range").is_some_and(|range| range.starts_with("50000-")));
    assert_eq!(rest.count(), 1);
}

#[test]
fn an_upload_that_the_registry_has_forgotten_begins_anew() {
    let tries = AtomicUsize::new(0);
    let registry = Registry::with(move |request, _| {
        let is_upload = request.path.contains("/blobs/uploads/upload-");
        (is_upload && tries.fetch_add(1, Ordering::Relaxed) < 2).then(|| Reply::new(404))
    });
    let service = Service::start();
    push(&service, "busybox", &format!("{}/app:1", registry.host()));
    check_whole(&registry.contents, "app:1");
}

#[test]
fn a_registry_that_refuses_is_quoted_and_keeps_its_tag() {
    let registry = Registry::with(|request, _| {
        let words = r#"{"errors":[{"code":"DENIED","message":"the quota of this project is used up"}]}"#;
        (request.method == "PUT" && request.path.contains("/manifests/")).then(|| Reply::new(403).body(words))
    });
    let service = Service::start();
    let target = format!("{}/app:1", registry.host());
    let answer = service.post("/v1/images:push", &json!({"reference": "busybox", "target": target}));
    let problem: Problem = answer.json();
    assert!(answer.status == 403 && problem.detail.contains("quota of this project"), "{problem:?}");
    assert!(registry.contents.manifest("app:1").is_none());
    let missing = service.post("/v1/images:push", &json!({"reference": "nothing", "target": target}));
    assert_eq!(missing.status, 404);
}

#[test]
fn what_an_image_is_about_is_written_down_where_the_registry_does_not() {
    let (service, registry) = (Service::with(Options { without_image: true, ..Options::default() }), Registry::start());
    let contents = &registry.contents;
    let subject = contents.add_image("app", "subject", &[&archive::busybox()]);
    contents.add_image("app", "plain", &[&archive::busybox()]);
    let (kind, bytes) = contents.manifest("app:plain").expect("it is there");
    let mut manifest: Value = serde_json::from_slice(&bytes).expect("JSON");
    let size = contents.manifest("app:subject").expect("it is there").1.len();
    manifest["subject"] = json!({"mediaType": kind, "digest": subject, "size": size});
    let about = contents.add_manifest("app", "about", &kind, manifest.to_string().as_bytes());
    let name = format!("{}/app:about", registry.host());
    assert_eq!(service.post("/v1/images:pull", &json!({ "reference": name })).status, 200);
    push(&service, &name, &format!("{}/app:again", registry.host()));
    let (_, list) = contents.manifest(&format!("app:{}", subject.replace(':', "-"))).expect("the list under its tag");
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(list["manifests"][0]["digest"], json!(about), "{list}");
}
