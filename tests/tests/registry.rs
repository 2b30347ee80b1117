//! Images come from registries and go to them: Debian's own registry, with skopeo on the other side, and one of ours
//! that misbehaves in every way that a registry can. Whatever goes wrong, the store is as it was.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_client::types::{EndingKind, ImageList, JobRequest, Problem, PullResult, PushResult, TransferEvent};
use ampoule_tests::archive::{self, Archive};
use ampoule_tests::distribution::{Distribution, PASSWORD, USER, login};
use ampoule_tests::http::Answer;
use ampoule_tests::registry::{Contents, INDEX_TYPE, MANIFEST_TYPE, Registry, Reply, Request, digest};
use ampoule_tests::service::{command, kind, stdout};
use ampoule_tests::{Options, Service, ampoule_program, patience};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// How long a store may take to be as it was: what was unpacked for nothing goes a little later.
const SETTLE_TIME: Duration = Duration::from_secs(20);

fn empty() -> Service {
    Service::with(Options { without_image: true, ..Options::default() })
}

/// What the store holds: names and lengths of its files, and the unpacked layers.
fn listing(service: &Service) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![service.state().join("oci")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("we are root").filter_map(Result::ok) {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => {
                    found.insert(entry.path().display().to_string());
                    folders.push(entry.path());
                }
                Ok(metadata) => drop(found.insert(format!("{} {}", entry.path().display(), metadata.len()))),
                // It went while it was looked at.
                Err(_) => {}
            }
        }
    }
    for entry in fs::read_dir(service.state().join("layers")).into_iter().flatten().filter_map(Result::ok) {
        found.insert(entry.path().display().to_string());
    }
    found
}

#[track_caller]
fn check_as_before(service: &Service, before: &BTreeSet<String>) {
    let deadline = Instant::now() + patience(SETTLE_TIME);
    loop {
        let now = listing(service);
        if now == *before {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the store changed:\n{:#?}\n{}",
            now.symmetric_difference(before),
            service.log()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn try_pull(service: &Service, reference: &str, login: Option<&Value>) -> Answer {
    ask(service, "/v1/images:pull", &json!({ "reference": reference }), login)
}

fn ask(service: &Service, target: &str, body: &Value, who: Option<&Value>) -> Answer {
    let header = who.map(login);
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(header.as_deref().map(|header| ("x-registry-auth", header)));
    service.send("POST", target, &headers, body.to_string().as_bytes())
}

#[track_caller]
fn pull(service: &Service, reference: &str) -> PullResult {
    pull_as(service, reference, None)
}

#[track_caller]
fn pull_as(service: &Service, reference: &str, login: Option<&Value>) -> PullResult {
    let answer = try_pull(service, reference, login);
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), service.log());
    answer.json()
}

#[track_caller]
fn push_as(service: &Service, image: &str, target: &str, login: Option<&Value>) -> PushResult {
    let answer = ask(service, "/v1/images:push", &json!({"reference": image, "target": target}), login);
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), service.log());
    answer.json()
}

/// Pulls what cannot be pulled: the code is as expected, the sentence says what is wrong, and nothing is left.
#[track_caller]
fn check_refused(service: &Service, reference: &str, code: &str, says: &str) -> Problem {
    let before = listing(service);
    let answer = try_pull(service, reference, None);
    let problem: Problem = answer.json();
    assert!(problem.code == code && problem.detail.contains(says), "{problem:#?}\n{}", service.log());
    check_as_before(service, &before);
    problem
}

fn hello_in(service: &Service, image: &str) {
    let job = service.run(&JobRequest { image: image.to_owned(), ..command(&["/bin/echo", "hello"]) });
    assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, "hello\n"), "{:?}", job.ending);
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Output {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}\nhint: make setup"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A layer with one file of so many bytes that no compression makes small.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let content: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    Archive::default().file("noise", 0o644, 0, &content).finish()
}

/// Adds an image of busybox and some noise.
fn add_image(contents: &Contents, repository: &str, tag: &str) -> String {
    contents.add_image(repository, tag, &[&archive::busybox(), &noise(600_000)])
}

#[test]
fn what_skopeo_pushes_is_pulled_and_what_is_pushed_skopeo_pulls() {
    let (service, registry) = (Service::start(), Distribution::open());
    let (folder, host) = (service.folder(), registry.host());
    let store = format!("oci:{}:docker.io/library/busybox:latest", service.state().join("oci").display());
    let digests = |name: &str| {
        let from = format!("docker://{host}/{name}");
        digest(&run("skopeo", &["inspect", "--raw", "--tls-verify=false", &from], folder).stdout)
    };
    for (name, format) in [("theirs/oci:1", "oci"), ("theirs/docker:1", "v2s2")] {
        let to = format!("docker://{host}/{name}");
        run("skopeo", &["copy", "--insecure-policy", "--dest-tls-verify=false", "-f", format, &store, &to], folder);
        let pulled = pull(&service, &format!("{host}/{name}"));
        assert_eq!((&pulled.digest, &pulled.image.digest), (&digests(name), &digests(name)));
        hello_in(&service, &format!("{host}/{name}"));
        let ours = name.replace("theirs", "ours");
        let pushed = push_as(&service, &format!("{host}/{name}"), &format!("{host}/{ours}"), None);
        assert_eq!((&pushed.digest, &pushed.digest), (&digests(name), &digests(&ours)));
        let (from, to) = (format!("docker://{host}/{ours}"), format!("dir:{format}"));
        run("skopeo", &["copy", "--insecure-policy", "--src-tls-verify=false", &from, &to], folder);
        let manifest = fs::read(folder.join(format).join("manifest.json")).expect("skopeo wrote it");
        assert_eq!(digest(&manifest), pulled.digest);
    }
    assert!(pull(&service, &format!("{host}/theirs/oci:1")).was_here);
}

#[test]
fn a_registry_with_a_password_file_lets_in_only_who_has_the_password() {
    let (service, registry) = (Service::start(), Distribution::with_password());
    let name = format!("{}/private:1", registry.host());
    let right = json!({"username": USER, "password": PASSWORD});
    let wrong = json!({"username": USER, "password": "guess"});
    for login in [None, Some(&wrong)] {
        let answer = ask(&service, "/v1/images:push", &json!({"reference": "busybox", "target": name}), login);
        let problem: Problem = answer.json();
        assert_eq!((answer.status, problem.code.as_str()), (403, "registry-denied"), "{problem:?}");
        assert!(problem.hint.is_some_and(|hint| hint.contains("docker login")));
    }
    let pushed = push_as(&service, "busybox", &name, Some(&right));
    assert_eq!(try_pull(&service, &name, Some(&wrong)).status, 403);
    assert_eq!(pull_as(&service, &name, Some(&right)).digest, pushed.digest);
    assert!(!service.log().contains(PASSWORD), "the log holds the password");
}

#[test]
fn a_registry_with_a_token_server_is_pulled_from_and_pushed_to() {
    let (service, registry) = (Service::start(), Distribution::with_tokens());
    let name = format!("{}/team/private:1", registry.host());
    let right = json!({"username": USER, "password": PASSWORD});
    assert_eq!(ask(&service, "/v1/images:push", &json!({"reference": "busybox", "target": name}), None).status, 403);
    let pushed = push_as(&service, "busybox", &name, Some(&right));
    assert_eq!(try_pull(&service, &name, None).status, 403, "{}", registry.log());
    assert_eq!(pull_as(&service, &name, Some(&right)).digest, pushed.digest);
    // The same content in another repository of the registry is taken over, not sent again.
    let mounted = ask(
        &service,
        "/v1/images:push",
        &json!({"reference": name, "target": name.replace("private", "other")}),
        Some(&right),
    );
    assert_eq!(mounted.status, 200, "{}", mounted.text());
}

/// The program as a user calls it, with Docker's file of logins.
fn ampoule(service: &Service, docker: &Path, arguments: &[&str]) -> Output {
    let folder = format!("{}:{}", docker.display(), std::env::var("PATH").unwrap_or_default());
    Command::new(ampoule_program())
        .args(arguments)
        .env("AMPOULE_HOST", format!("unix://{}", service.socket().display()))
        .env("DOCKER_CONFIG", docker)
        .env("PATH", folder)
        .output()
        .expect("the program can be run")
}

#[test]
fn the_command_line_signs_in_with_docker_s_file_and_with_its_helpers() {
    let (service, registry) = (Service::start(), Distribution::with_password());
    let docker = tempfile::tempdir().expect("a folder");
    let name = format!("{}/cli:1", registry.host());
    let refused = ampoule(&service, docker.path(), &["image", "push", "busybox", &name]);
    assert_eq!(refused.status.code(), Some(125));
    let auth = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{USER}:{PASSWORD}"));
    let file = docker.path().join("config.json");
    fs::write(&file, json!({"auths": {registry.host(): {"auth": auth}}}).to_string()).expect("it can be written");
    let pushed = ampoule(&service, docker.path(), &["image", "push", "busybox", &name, "--quiet"]);
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    fs::write(&file, json!({"credHelpers": {registry.host(): "tests"}}).to_string()).expect("it can be written");
    let helper = docker.path().join("docker-credential-tests");
    let answer = json!({"ServerURL": registry.host(), "Username": USER, "Secret": PASSWORD});
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = 'get {}' ] || exit 1\necho '{answer}'\n",
        registry.host()
    );
    fs::write(&helper, script).expect("it can be written");
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let pulled = ampoule(&service, docker.path(), &["image", "pull", &name]);
    let text = String::from_utf8_lossy(&pulled.stderr);
    assert!(pulled.status.success() && text.contains("looking for") && text.contains("layers"), "{text}");
    let digest = String::from_utf8_lossy(&pushed.stdout).trim().to_owned();
    assert!(String::from_utf8_lossy(&pulled.stdout).contains(&digest));
    let json = ampoule(&service, docker.path(), &["image", "pull", &name, "--json"]);
    let result: PullResult = serde_json::from_slice(&json.stdout).expect("one document");
    assert!(result.was_here && result.digest == digest && json.stderr.is_empty());
}

#[test]
fn progress_is_told_by_layer_and_a_failure_as_a_problem() {
    let (service, registry) = (empty(), Registry::start());
    add_image(&registry.contents, "app", "1");
    let events = |tag: &str| -> Vec<TransferEvent> {
        let body = json!({"reference": format!("{}/app:{tag}", registry.host())}).to_string();
        let headers = [("content-type", "application/json"), ("accept", "text/event-stream")];
        let text = service.send("POST", "/v1/images:pull", &headers, body.as_bytes()).expect_status(200).text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))).collect()
    };
    let good = events("1");
    assert!(matches!(good.first(), Some(TransferEvent::Resolving { .. })), "{good:?}");
    assert!(good.iter().any(|event| matches!(event, TransferEvent::Resolved { layers, .. } if layers.len() == 2)));
    assert!(
        good.iter()
            .any(|event| matches!(event, TransferEvent::Layer { bytes, total_bytes, .. } if bytes == total_bytes))
    );
    assert!(matches!(good.last(), Some(TransferEvent::Pulled(pulled)) if !pulled.was_here), "{good:?}");
    let bad = events("2");
    assert!(matches!(bad.last(), Some(TransferEvent::Failed { problem }) if problem.status == 404), "{bad:?}");
}

#[test]
fn the_image_for_this_machine_is_taken_from_a_list_and_the_list_is_pushed_where_it_is_complete() {
    let (service, registry) = (empty(), Registry::start());
    let contents = &registry.contents;
    let own = add_image(contents, "app", "amd64");
    let manifest = contents.manifest("app:amd64").expect("it is there").1;
    let other = contents.add_image_with(
        "app",
        "arm64",
        &[&noise(10)],
        &json!({
            "architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(&noise(10))]},
        }),
    );
    let other_size = contents.manifest("app:arm64").expect("it is there").1.len();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [
        {"mediaType": MANIFEST_TYPE, "digest": other, "size": other_size, "platform": {"os": "linux", "architecture": "arm64"}},
        {"mediaType": MANIFEST_TYPE, "digest": own, "size": manifest.len(), "platform": {"os": "linux", "architecture": "amd64"}},
    ]});
    let listed = contents.add_manifest("app", "1", INDEX_TYPE, index.to_string().as_bytes());
    let name = format!("{}/app:1", registry.host());
    let pulled = pull(&service, &name);
    assert_eq!((&pulled.digest, &pulled.image.digest), (&listed, &own));
    // Whoever pins the list gets the image, before and after a restart.
    let pinned = format!("{}/app@{listed}", registry.host());
    hello_in(&service, &pinned);
    hello_in(&service, &format!("{name}@{listed}"));
    assert_eq!(pull(&service, &format!("{name}@{listed}")).digest, listed);
    let there = push_as(&service, &name, &format!("{}/app:again", registry.host()), None);
    assert_eq!((&there.digest, there.index_left_out), (&listed, false));
    let elsewhere = push_as(&service, &name, &format!("{}/elsewhere:1", registry.host()), None);
    assert_eq!((&elsewhere.digest, elsewhere.index_left_out), (&own, true));
    let foreign = ask(&service, "/v1/images:pull", &json!({"reference": name, "platform": "linux/arm64"}), None);
    let problem: Problem = foreign.json();
    assert_eq!((foreign.status, problem.field.as_deref()), (422, Some("platform")));
    check_refused(&service, &format!("{}/app@{other}", registry.host()), "invalid-image", "linux/arm64");
}

#[test]
fn a_pin_holds_and_a_tag_that_moved_beneath_it_is_an_error() {
    let (service, registry) = (empty(), Registry::start());
    let first = add_image(&registry.contents, "app", "1");
    let pinned = format!("{}/app:1@{first}", registry.host());
    assert_eq!(pull(&service, &pinned).digest, first);
    let moved = registry.contents.add_image("app", "1", &[&noise(100)]);
    let problem = check_refused(&service, &pinned, "tag-moved", &moved);
    assert_eq!(problem.status, 409);
    // The content itself is still there, and found by its digest alone.
    let by_digest = format!("{}/app@{first}", registry.host());
    assert_eq!(pull(&service, &by_digest).digest, first);
    hello_in(&service, &by_digest);
}

#[test]
fn pulls_of_the_same_content_at_once_fetch_it_once() {
    let registry = Registry::with(|request, contents| {
        let slow = Some((40_000, Duration::from_millis(20)));
        request.is_blob().then(|| Reply { slowly: slow, ..contents.usual(request) })
    });
    add_image(&registry.contents, "app", "1");
    let service = empty();
    let name = format!("{}/app:1", registry.host());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| pull(&service, &name));
        }
    });
    for layer in [archive::busybox(), noise(600_000)] {
        let digest = digest(&layer);
        assert_eq!(registry.contents.count(|request| request.is_blob() && request.path.ends_with(&digest)), 1);
    }
    hello_in(&service, &name);
}

#[test]
fn a_damaged_blob_is_fetched_again() {
    let (mut service, registry) = (empty(), Registry::start());
    let layer = noise(600_000);
    let image = add_image(&registry.contents, "app", "1");
    let name = format!("{}/app:1", registry.host());
    pull(&service, &name);
    let blob = service.state().join("oci/blobs/sha256").join(digest(&layer).trim_start_matches("sha256:"));
    service.stop();
    // A shorter blob is seen when the store is opened, and the image is damaged then.
    fs::write(&blob, &layer[..1000]).expect("we are root");
    service.spawn();
    let listed: ImageList = service.get("/v1/images").json();
    assert!(listed.images[0].damage.is_some(), "{listed:?}");
    assert_eq!(pull(&service, &name).image.digest, image);
    assert_eq!(digest(&fs::read(&blob).expect("it is there")), digest(&layer));
    let listed: ImageList = service.get("/v1/images").json();
    assert!(listed.images[0].damage.is_none(), "{listed:?}");
    hello_in(&service, &name);
}

#[test]
fn connections_that_break_in_the_middle_of_a_blob_are_taken_up_where_they_broke() {
    let pieces = AtomicUsize::new(0);
    let registry = Registry::with(move |request, contents| {
        let is_layer = request.is_blob() && request.path.ends_with(&digest(&noise(600_000)));
        if !is_layer || pieces.fetch_add(1, Ordering::Relaxed) >= 3 {
            return None;
        }
        Some(Reply { cut_after: Some(150_000), ..contents.usual(request) })
    });
    add_image(&registry.contents, "app", "1");
    let service = empty();
    let name = format!("{}/app:1", registry.host());
    pull(&service, &name);
    hello_in(&service, &name);
    let ranges: Vec<_> =
        registry.contents.requests().iter().filter_map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(registry.contents.count(|request| request.header("if-range").is_some()) >= 1);
}

#[test]
fn a_registry_that_knows_no_ranges_is_asked_from_the_start() {
    let pieces = AtomicUsize::new(0);
    let registry = Registry::with(move |request, contents| {
        let whole = Request { headers: Vec::new(), ..request.clone() };
        let is_first = request.is_blob() && pieces.fetch_add(1, Ordering::Relaxed) == 0;
        request.is_blob().then(|| Reply { cut_after: is_first.then_some(100_000), ..contents.usual(&whole) })
    });
    add_image(&registry.contents, "app", "1");
    let service = empty();
    pull(&service, &format!("{}/app:1", registry.host()));
    hello_in(&service, &format!("{}/app:1", registry.host()));
}

/// A registry whose layers are spoilt by a script until told otherwise; then the same pull works.
#[track_caller]
fn check_spoilt(code: &str, says: &str, spoil: impl Fn(Reply) -> Reply + Send + Sync + 'static) {
    let is_spoilt = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let still = is_spoilt.clone();
    let layer = digest(&noise(600_000));
    let registry = Registry::with(move |request, contents| {
        let is_layer = request.is_blob() && request.path.ends_with(&layer);
        (is_layer && still.load(Ordering::Relaxed)).then(|| spoil(contents.usual(request)))
    });
    add_image(&registry.contents, "app", "1");
    let service = empty();
    let name = format!("{}/app:1", registry.host());
    check_refused(&service, &name, code, says);
    is_spoilt.store(false, Ordering::Relaxed);
    pull(&service, &name);
    hello_in(&service, &name);
}

#[test]
fn content_that_is_not_what_its_digest_says_is_refused() {
    check_spoilt("registry-failed", "layer 2 is refused", |mut reply| {
        let middle = reply.body.len() / 2;
        reply.body[middle] ^= 1;
        reply
    });
    check_spoilt("registry-failed", "layer 2 is refused", |reply| {
        let length = reply.body.len();
        reply.body(vec![7; length])
    });
}

#[test]
fn a_length_that_is_not_the_manifest_s_is_refused() {
    check_spoilt("registry-failed", "the manifest", |reply| {
        let longer = [reply.body.clone(), vec![0; 1000]].concat();
        reply.body(longer)
    });
    check_spoilt("registry-failed", "the manifest", |reply| {
        let shorter = reply.body[..1000].to_vec();
        reply.body(shorter)
    });
}

#[test]
fn a_blob_that_always_breaks_off_at_the_same_place_is_given_up() {
    check_spoilt("registry-failed", "does not come", |reply| match reply.status {
        200 => Reply { cut_after: Some(1000), ..reply },
        _ => Reply { cut_after: Some(0), ..reply },
    });
}

#[test]
fn a_slow_registry_is_waited_for() {
    let registry = Registry::with(|request, contents| {
        let slowly = Some((100_000, Duration::from_millis(100)));
        request.is_blob().then(|| Reply { slowly, ..contents.usual(request) })
    });
    add_image(&registry.contents, "app", "1");
    pull(&empty(), &format!("{}/app:1", registry.host()));
}

/// So many seconds from now, as HTTP writes it.
fn http_date(seconds: u64) -> String {
    let words = ["--utc", "+%a, %d %b %Y %H:%M:%S GMT", "--date", &format!("+{seconds} seconds")];
    let output = Command::new("date").args(words).env("LC_ALL", "C").output().expect("date is on every Debian");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn too_many_requests_and_passing_failures_are_tried_again_when_the_registry_says() {
    let tries = AtomicUsize::new(0);
    let registry = Registry::with(move |request, _| {
        if !request.path.contains("/manifests/") {
            return None;
        }
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Some(Reply::new(429).header("retry-after", "1")),
            1 => Some(Reply::new(503)),
            2 => Some(Reply::new(503).header("retry-after", http_date(2))),
            _ => None,
        }
    });
    add_image(&registry.contents, "app", "1");
    let (service, start) = (empty(), Instant::now());
    pull(&service, &format!("{}/app:1", registry.host()));
    assert!(start.elapsed() >= Duration::from_secs(2), "a date has no parts of seconds: at least one of two is waited");
    let patient = Registry::with(|_, _| Some(Reply::new(429).header("retry-after", "3600")));
    let answer = try_pull(&service, &format!("{}/app:1", patient.host()), None);
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("3600")), "{}", answer.text());
    assert_eq!(patient.contents.requests().len(), 1);
}

#[test]
fn a_login_that_ends_in_the_middle_is_renewed() {
    let given = AtomicUsize::new(0);
    let registry = Registry::with(move |request, _| {
        if request.path == "/token" {
            let number = given.fetch_add(1, Ordering::Relaxed);
            return Some(Reply::json(&json!({"token": format!("token-{number}"), "expires_in": 3600})));
        }
        // The first token is worthless when it comes to blobs.
        let fits = if request.is_blob() { "token-1" } else { "token-" };
        let is_in = request.bearer().is_some_and(|token| token.starts_with(fits));
        let host = request.header("host").unwrap_or_default();
        (!is_in).then(|| Reply::challenge(format!("Bearer realm=\"http://{host}/token\",service=\"tests\"")))
    });
    add_image(&registry.contents, "app", "1");
    let service = empty();
    pull(&service, &format!("{}/app:1", registry.host()));
    assert_eq!(registry.contents.count(|request| request.path == "/token"), 2);
}

#[test]
fn a_redirect_to_another_host_gets_no_login() {
    let store = std::sync::Arc::new(Registry::with(|request, contents| {
        let digest = request.path.rsplit('/').next().unwrap_or_default();
        Some(contents.blob(digest).map_or_else(|| Reply::new(404), |bytes| Reply::new(200).body(bytes)))
    }));
    let elsewhere = store.url();
    let registry = Registry::with(move |request, _| {
        if request.basic().is_none() {
            return Some(Reply::challenge("Basic realm=\"tests\""));
        }
        let digest = request.path.rsplit('/').next().unwrap_or_default();
        request.is_blob().then(|| Reply::new(307).header("location", format!("{elsewhere}/store/{digest}")))
    });
    for contents in [&registry.contents, &store.contents] {
        add_image(contents, "app", "1");
    }
    let service = empty();
    pull_as(&service, &format!("{}/app:1", registry.host()), Some(&json!({"username": "me", "password": "secret"})));
    assert!(store.contents.requests().len() >= 3);
    assert_eq!(store.contents.count(|request| request.header("authorization").is_some()), 0);
}

#[test]
fn a_login_is_not_sent_to_a_token_server_that_is_not_the_registry_s() {
    let thief = Registry::with(|_, _| Some(Reply::json(&json!({"token": "t"}))));
    // The same machine under another name is another host.
    let realm = thief.url().replace("127.0.0.1", "localhost");
    let challenge = format!("Bearer realm=\"{realm}/token\",service=\"tests\"");
    let asked = challenge.clone();
    let registry = Registry::with(move |request, _| {
        request.header("authorization").is_none().then(|| Reply::challenge(asked.clone()))
    });
    add_image(&registry.contents, "app", "1");
    let service = empty();
    let name = format!("{}/app:1", registry.host());
    let login = json!({"username": "me", "password": "secret"});
    let answer = try_pull(&service, &name, Some(&login));
    let problem: Problem = answer.json();
    assert!(answer.status == 403 && problem.detail.contains("`localhost`"), "{problem:?}");
    assert!(problem.hint.is_some_and(|hint| hint.contains("realms")));
    assert_eq!(thief.contents.requests().len(), 0);
    // Where the settings say that it belongs to the registry, it is asked. What one service leaves is looked for while
    // no other is there.
    drop(service);
    let realm = format!("[registry.'{}']\nrealms = ['localhost']\n", registry.host());
    let options = Options { without_image: true, ..Options::default() };
    let (service, _folder) = Service::with_registries(&realm, options);
    pull_as(&service, &name, Some(&login));
    assert_eq!(thief.contents.count(|request| request.basic().is_some()), 1);
}

#[test]
fn layers_of_other_hosts_old_formats_and_endless_manifests_are_refused() {
    let (service, registry) = (empty(), Registry::start());
    let contents = &registry.contents;
    let name = |tag: &str| format!("{}/app:{tag}", registry.host());
    add_image(contents, "app", "good");
    let good = String::from_utf8(contents.manifest("app:good").expect("it is there").1).expect("text");
    let foreign = good.replace("\"size\":", "\"urls\":[\"http://127.0.0.1:1/layer\"],\"size\":");
    contents.add_manifest("app", "foreign", MANIFEST_TYPE, foreign.as_bytes());
    check_refused(&service, &name("foreign"), "invalid-image", "other hosts");
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    contents.add_manifest("app", "old", old, br#"{"schemaVersion":1,"fsLayers":[]}"#);
    check_refused(&service, &name("old"), "invalid-image", "schema 1");
    contents.add_manifest("app", "huge", MANIFEST_TYPE, &vec![b' '; 5 << 20]);
    check_refused(&service, &name("huge"), "registry-failed", "more than 4194304 bytes");
    contents.add_manifest("app", "wrong", MANIFEST_TYPE, b"no json");
    check_refused(&service, &name("wrong"), "invalid-image", "not a manifest");
    check_refused(&service, &name("none"), "image-not-found", "manifest unknown");
    let lying = contents.add_image_with("app", "lying", &[&noise(1000)], &json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(b"something else")]},
    }));
    check_refused(&service, &format!("{}/app@{lying}", registry.host()), "invalid-image", "layer 1 is refused");
}

#[test]
fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    let registry = Registry::with(|request, contents| {
        let other = contents.manifest("app:other")?.1;
        request
            .path
            .contains("/manifests/sha256:")
            .then(|| Reply::new(200).header("content-type", MANIFEST_TYPE).body(other))
    });
    let image = add_image(&registry.contents, "app", "1");
    registry.contents.add_image("app", "other", &[&noise(10)]);
    check_refused(&empty(), &format!("{}/app@{image}", registry.host()), "registry-failed", &image);
}

#[test]
fn a_registry_that_cannot_be_reached_is_named() {
    let gone = Registry::start().host();
    check_refused(&empty(), &format!("{gone}/app:1"), "registry-failed", &gone);
}

#[test]
fn a_client_that_hangs_up_stops_the_pull_and_nothing_is_left() {
    let registry = Registry::with(|request, contents| {
        let slowly = Some((1000, Duration::from_millis(50)));
        request.is_blob().then(|| Reply { slowly, ..contents.usual(request) })
    });
    add_image(&registry.contents, "app", "1");
    let service = empty();
    let before = listing(&service);
    let connection = service.connect();
    let body = json!({"reference": format!("{}/app:1", registry.host())}).to_string();
    let mut stream = connection
        .stream_body(
            "POST",
            "/v1/images:pull",
            &[("content-type", "application/json"), ("accept", "text/event-stream")],
            body.as_bytes(),
        )
        .expect("it answers")
        .lines();
    while !stream.next().expect("it goes on").expect("it can be read").contains("\"kind\":\"layer\"") {}
    assert_ne!(listing(&service), before);
    drop(stream);
    check_as_before(&service, &before);
}

#[test]
fn a_full_disk_ends_a_pull_with_a_clear_word_and_leaves_nothing() {
    let registry = Registry::start();
    registry.contents.add_image("app", "large", &[&archive::busybox(), &noise(40 << 20)]);
    registry.contents.add_image("app", "small", &[&noise(600_000)]);
    let mut service = empty();
    service.kill(Signal::SIGTERM);
    // From here on the state folder is a disk of its own, and a small one.
    let state = service.state().to_string_lossy().into_owned();
    run("mount", &["-t", "tmpfs", "-o", "size=32m,mode=700", "tests", &state], Path::new("/"));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        service.spawn();
        let before = listing(&service);
        let answer = try_pull(&service, &format!("{}/app:large", registry.host()), None);
        let problem: Problem = answer.json();
        assert_eq!((answer.status, problem.code.as_str()), (507, "disk-full"), "{problem:?}\n{}", service.log());
        check_as_before(&service, &before);
        pull(&service, &format!("{}/app:small", registry.host()));
        service.kill(Signal::SIGTERM);
    }));
    if outcome.is_err() {
        service.kill(Signal::SIGTERM);
    }
    run("umount", &[&state], Path::new("/"));
    outcome.expect("the pull ends as it should");
}
