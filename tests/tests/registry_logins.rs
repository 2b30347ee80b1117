//! The ways of signing in of the large registries, each imitated on loopback: what their token servers want to see is
//! checked here as they check it, and what they answer is answered in their words.

use std::fs;
use std::process::Command;

use ampoule_client::types::PullResult;
use ampoule_tests::distribution::login;
use ampoule_tests::registry::{Contents, Registry, Reply, Request};
use ampoule_tests::{Options, Service, ampoule_program, archive};
use serde_json::{Value, json};

fn empty() -> Service {
    Service::with(Options { without_image: true, ..Options::default() })
}

fn try_pull(service: &Service, reference: &str, who: Option<&Value>) -> u16 {
    let header = who.map(login);
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(header.as_deref().map(|header| ("x-registry-auth", header)));
    let body = json!({ "reference": reference }).to_string();
    let answer = service.send("POST", "/v1/images:pull", &headers, body.as_bytes());
    assert!(answer.status != 500, "{}\n{}", answer.text(), service.log());
    answer.status
}

/// A registry that wants a token of its own token server, which `gives` looks at requests for. Content needs the token.
fn with_tokens(
    service: &'static str,
    path: &'static str,
    gives: impl Fn(&Request) -> Option<Value> + Send + Sync + 'static,
) -> Registry {
    let registry = Registry::with(move |request, _| {
        let host = request.header("host").unwrap_or_default();
        if request.path == path {
            return Some(gives(request).map_or_else(|| Reply::new(401), |given| Reply::json(&given)));
        }
        let repository = request.path.strip_prefix("/v2/").and_then(|rest| rest.split("/manifests/").next());
        let repository = repository.and_then(|rest| rest.split("/blobs/").next()).unwrap_or_default();
        (request.bearer() != Some("the-token")).then(|| {
            let realm = format!("http://{host}{path}");
            Reply::challenge(format!(
                "Bearer realm=\"{realm}\",service=\"{service}\",scope=\"repository:{repository}:pull\""
            ))
        })
    });
    add(&registry.contents);
    registry
}

fn add(contents: &Contents) {
    contents.add_image("team/app", "1", &[&archive::Archive::default().file("file", 0o644, 0, b"text").finish()]);
}

/// Whether it is asked for just what is pulled.
fn asks_well(request: &Request, service: &str) -> bool {
    request.values("service") == [service] && request.values("scope") == ["repository:team/app:pull"]
}

fn name(registry: &Registry) -> String {
    format!("{}/team/app:1", registry.host())
}

fn user(username: &str, password: &str) -> Value {
    json!({"username": username, "password": password})
}

#[test]
fn docker_hub_gives_tokens_to_anybody_and_to_users_by_name() {
    let hub = with_tokens("registry.docker.io", "/token", |request| {
        let is_user =
            request.basic() == Some(("me".into(), "dckr_pat_secret".into())) && request.values("account") == ["me"];
        let is_anybody = request.header("authorization").is_none();
        (request.method == "GET" && asks_well(request, "registry.docker.io") && (is_user || is_anybody)).then(|| {
            let issued = "2026-01-01T00:00:00Z";
            json!({"token": "the-token", "access_token": "the-token", "expires_in": 300, "issued_at": issued})
        })
    });
    let service = empty();
    assert_eq!(try_pull(&service, &name(&hub), None), 200);
    assert_eq!(try_pull(&service, &name(&hub), Some(&user("me", "dckr_pat_secret"))), 200);
    assert_eq!(try_pull(&service, &name(&hub), Some(&user("me", "wrong"))), 403);
    // A token is used until it expires, but never for another user.
    let tokens = hub.contents.count(|request| request.path == "/token");
    assert_eq!(try_pull(&service, &name(&hub), None), 200);
    assert_eq!(hub.contents.count(|request| request.path == "/token"), tokens);
}

#[test]
fn github_takes_any_user_with_a_personal_access_token() {
    let github = with_tokens("ghcr.io", "/token", |request| {
        let password = request.basic().map(|(_, password)| password);
        (asks_well(request, "ghcr.io") && password.as_deref() == Some("ghp_secret"))
            .then(|| json!({"token": "the-token"}))
    });
    let service = empty();
    assert_eq!(try_pull(&service, &name(&github), Some(&user("whoever", "ghp_secret"))), 200);
    assert_eq!(try_pull(&service, &name(&github), Some(&user("whoever", "ghp_wrong"))), 403);
    assert_eq!(try_pull(&service, &name(&github), None), 403);
}

#[test]
fn aws_takes_a_password_that_its_helper_fetches() {
    let amazon = Registry::with(|request, _| {
        (request.basic() != Some(("AWS".into(), "twelve-hours".into()))).then(|| {
            Reply::challenge("Basic realm=\"https://1.dkr.ecr.eu-west-1.amazonaws.com/\",service=\"ecr.amazonaws.com\"")
        })
    });
    add(&amazon.contents);
    let service = empty();
    assert_eq!(try_pull(&service, &name(&amazon), None), 403);
    let folder = tempfile::tempdir().expect("a folder");
    let helper = folder.path().join("docker-credential-ecr-login");
    let answer = json!({"ServerURL": amazon.host(), "Username": "AWS", "Secret": "twelve-hours"});
    fs::write(
        &helper,
        format!("#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {} ] && echo '{answer}'\n", amazon.host()),
    )
    .expect("it can be written");
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let config = json!({"credHelpers": {amazon.host(): "ecr-login"}}).to_string();
    fs::write(folder.path().join("config.json"), config).expect("it can be written");
    let output = Command::new(ampoule_program())
        .args(["image", "pull", "--json", &name(&amazon)])
        .env("AMPOULE_HOST", format!("unix://{}", service.socket().display()))
        .env("DOCKER_CONFIG", folder.path())
        .env("PATH", format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default()))
        .output()
        .expect("the program can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pulled: PullResult = serde_json::from_slice(&output.stdout).expect("one document");
    assert!(!pulled.was_here);
}

#[test]
fn google_takes_access_tokens_and_key_files_as_passwords() {
    let key =
        json!({"type": "service_account", "private_key": "-----BEGIN\nsecret: with colons\nEND-----\n"}).to_string();
    let right = key.clone();
    let google = with_tokens("europe-docker.pkg.dev", "/v2/token", move |request| {
        let is_in = match request.basic()? {
            (user, password) if user == "oauth2accesstoken" => password == "ya29.secret",
            (user, password) => user == "_json_key" && password == right,
        };
        (is_in && asks_well(request, "europe-docker.pkg.dev"))
            .then(|| json!({"token": "the-token", "expires_in": 3600}))
    });
    for login in [user("oauth2accesstoken", "ya29.secret"), user("_json_key", &key)] {
        assert_eq!(try_pull(&empty(), &name(&google), Some(&login)), 200);
    }
    assert_eq!(try_pull(&empty(), &name(&google), Some(&user("_json_key", "{}"))), 403);
}

#[test]
fn azure_exchanges_a_refresh_token_for_an_access_token() {
    let azure = with_tokens("me.azurecr.io", "/oauth2/token", |request| {
        let is_exchange = request.method == "POST"
            && request.header("content-type") == Some("application/x-www-form-urlencoded")
            && request.values("grant_type") == ["refresh_token"]
            && request.values("refresh_token") == ["refresh+secret/="]
            && request.values("client_id").len() == 1;
        let is_principal = request.method == "GET" && request.basic() == Some(("id".into(), "client secret".into()));
        (asks_well(request, "me.azurecr.io") && (is_exchange || is_principal))
            .then(|| json!({"access_token": "the-token"}))
    });
    let null_user = "00000000-0000-0000-0000-000000000000";
    let exchanged = json!({"username": null_user, "identitytoken": "refresh+secret/="});
    assert_eq!(try_pull(&empty(), &name(&azure), Some(&exchanged)), 200);
    assert_eq!(try_pull(&empty(), &name(&azure), Some(&user("id", "client secret"))), 200);
    assert_eq!(try_pull(&empty(), &name(&azure), Some(&json!({"identitytoken": "expired"}))), 403);
}

#[test]
fn quay_takes_robots_by_their_names_with_a_plus() {
    let quay = with_tokens("quay.io", "/v2/auth", |request| {
        let is_robot =
            request.basic() == Some(("team+ci".into(), "ROBOT".into())) && request.values("account") == ["team+ci"];
        (is_robot && asks_well(request, "quay.io")).then(|| json!({"token": "the-token"}))
    });
    assert_eq!(try_pull(&empty(), &name(&quay), Some(&user("team+ci", "ROBOT"))), 200);
    assert_eq!(try_pull(&empty(), &name(&quay), Some(&user("team", "ROBOT"))), 403);
}
