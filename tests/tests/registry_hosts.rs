//! Where registries are: behind mirrors, behind a certificate of one's own, and out of reach of whoever may not know them.
//! And what becomes of a layer that takes longer than a layer may.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ampoule_client::types::{EndingKind, JobRequest, Problem, PullResult};
use ampoule_tests::distribution::{Distribution, login};
use ampoule_tests::http::Answer;
use ampoule_tests::registry::{Registry, Reply};
use ampoule_tests::service::{command, kind};
use ampoule_tests::{Options, Service, archive};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A service with these settings of registries, and with more arguments.
fn service(settings: Option<&str>, more: &[&str]) -> (Service, TempDir) {
    let arguments = more.iter().map(|&argument| argument.to_owned()).collect();
    Service::with_registries(
        settings.unwrap_or_default(),
        Options { without_image: true, arguments, ..Options::default() },
    )
}

fn ask(service: &Service, target: &str, body: &Value, who: Option<&Value>) -> Answer {
    let header = who.map(login);
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(header.as_deref().map(|header| ("x-registry-auth", header)));
    service.send("POST", target, &headers, body.to_string().as_bytes())
}

#[track_caller]
fn pull(service: &Service, reference: &str, who: Option<&Value>) -> PullResult {
    let answer = ask(service, "/v1/images:pull", &json!({ "reference": reference }), who);
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), service.log());
    answer.json()
}

/// What the service keeps: names of its files and layers.
fn kept(service: &Service) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["oci", "oci/blobs/sha256", "oci/.incoming", "layers"] {
        let entries = fs::read_dir(service.state().join(folder)).expect("we are root").filter_map(Result::ok);
        found.extend(entries.map(|entry| entry.path().display().to_string()));
    }
    found.sort();
    found
}

#[track_caller]
fn check_as_before(service: &Service, before: &[String]) {
    let deadline = std::time::Instant::now() + ampoule_tests::patience(Duration::from_secs(20));
    while kept(service) != before {
        assert!(std::time::Instant::now() < deadline, "{before:#?}\n{:#?}\n{}", kept(service), service.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mirror_is_asked_first_and_sees_no_login_and_the_registry_itself_when_the_mirror_has_nothing() {
    let (registry, mirror, broken) =
        (Registry::start(), Registry::start(), Registry::with(|_, _| Some(Reply::new(404))));
    for contents in [&registry.contents, &mirror.contents] {
        contents.add_image("team/app", "1", &[&archive::busybox()]);
    }
    let settings = format!(
        "[registry.\"{}\"]\nmirrors = [\"http://{}\", \"http://{}\"]\n",
        registry.host(),
        broken.host(),
        mirror.host()
    );
    let (service, _folder) = service(Some(&settings), &[]);
    let name = format!("{}/team/app:1", registry.host());
    let who = json!({"username": "somebody", "password": "secret"});
    pull(&service, &name, Some(&who));
    assert_eq!(registry.contents.requests().len(), 0, "the mirror has all of it");
    assert!(broken.contents.requests().iter().any(|request| request.path.contains("/manifests/1")));
    for seen in [&broken.contents, &mirror.contents] {
        assert!(seen.requests().iter().all(|request| request.header("authorization").is_none()));
    }
    let job = service.run(&JobRequest { image: name, ..command(&["/bin/true"]) });
    assert_eq!(kind(&job), EndingKind::Exited);
    registry.contents.add_image("team/other", "1", &[&archive::busybox()]);
    pull(&service, &format!("{}/team/other:1", registry.host()), None);
    assert!(registry.contents.count(|request| request.path.contains("/team/other/manifests/1")) > 0);
}

#[test]
fn a_registry_with_a_certificate_of_ones_own_is_trusted_when_the_settings_say_so_and_only_then() {
    let registry = Distribution::with_tls();
    let public = TempDir::with_prefix("ampoule-certificates-").expect("the temporary folder can be written");
    // The service reads it when it is another user already.
    fs::set_permissions(public.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let authority = public.path().join("authority.pem");
    fs::copy(registry.authority(), &authority).expect("the registry made it");
    let name = format!("{}/team/app:1", registry.host());
    let settings = |certificates: Option<&Path>| {
        let certificates = certificates.map(|path| format!("certificates = \"{}\"\n", path.display()));
        format!("[registry.\"{}\"]\ninsecure = false\n{}", registry.host(), certificates.unwrap_or_default())
    };
    let (trusting, _folder) = service(Some(&settings(Some(&authority))), &[]);
    trusting.import(&archive::busybox(), "busybox");
    let pushed = ask(&trusting, "/v1/images:push", &json!({ "reference": "busybox", "target": name }), None);
    assert_eq!(pushed.status, 200, "{}\n{}", pushed.text(), trusting.log());
    let image = pull(&trusting, &name, None).image;
    drop(trusting);
    let (wary, _folder) = service(Some(&settings(None)), &[]);
    let before = kept(&wary);
    let refused = ask(&wary, "/v1/images:pull", &json!({ "reference": name }), None);
    let problem: Problem = refused.json();
    assert_eq!((refused.status, problem.code.as_str()), (502, "registry-failed"), "{problem:?}");
    assert!(problem.detail.contains("certificate"), "{problem:?}");
    check_as_before(&wary, &before);
    drop(wary);
    let (again, _folder) = service(Some(&settings(Some(&authority))), &[]);
    assert_eq!(pull(&again, &name, None).image.digest, image.digest);
}

#[test]
fn a_layer_that_takes_longer_than_a_layer_may_is_refused_and_leaves_nothing() {
    let registry = Registry::with(|request, contents| {
        let slowly = Some((50_000, Duration::from_millis(300)));
        request.is_blob().then(|| Reply { slowly, ..contents.usual(request) })
    });
    let noise: Vec<u8> = (0..400_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let layer = archive::Archive::default().file("noise", 0o644, 0, &noise).finish();
    registry.contents.add_image("team/app", "1", &[&layer]);
    let (service, _folder) = service(None, &["--work-time", "1s"]);
    let before = kept(&service);
    let body = json!({ "reference": format!("{}/team/app:1", registry.host()) });
    let problem: Problem = ask(&service, "/v1/images:pull", &body, None).json();
    assert!(problem.detail.contains("took longer than 1 s"), "{problem:?}");
    assert!(problem.hint.is_some_and(|hint| hint.contains("--work-time")), "{}", problem.detail);
    check_as_before(&service, &before);
}

#[test]
fn a_layer_that_takes_more_processor_time_than_a_layer_may_is_refused_and_leaves_nothing() {
    let mut layer = archive::Archive::default();
    for number in 0..150_000 {
        layer = layer.file(&format!("d{}/f{number}", number % 100), 0o644, 0, b"");
    }
    let (service, _folder) = service(None, &["--work-cpu-time", "1s"]);
    let before = kept(&service);
    let problem: Problem = service.try_import(&layer.finish(), "many").json();
    assert!(problem.detail.contains("used up 1 s of processor time"), "{problem:?}");
    assert!(problem.hint.is_some_and(|hint| hint.contains("--work-cpu-time")), "{}", problem.detail);
    check_as_before(&service, &before);
    // What is small enough still comes.
    service.import(&archive::busybox(), "busybox");
}
