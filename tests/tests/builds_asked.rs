//! How builds are asked for: the form that carries them, what the service makes of it, and each flag of the command line.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use ampoule_client::types::{BuildEvent, JobRequest, Problem};
use ampoule_tests::builds::{
    FORM_TYPE, build, check_built, client, events, folder_of, follow, form, said, send, tar_of,
};
use ampoule_tests::registry::Registry;
use ampoule_tests::service::{command, stdout};
use ampoule_tests::{Options, Service, archive};
use serde_json::{Value, json};

const PLAIN: &str = "FROM busybox\nRUN --network=none true\n";

/// What the image's own command prints.
fn runs(service: &Service, image: &str, argv: &[&str]) -> String {
    stdout(&service.run(&JobRequest { image: image.to_owned(), ..command(argv) })).to_owned()
}

#[track_caller]
fn check_refused(service: &Service, parts: &[(&str, &[u8])], status: u16, code: &str, says: &str) {
    let answer = send(service, parts).expect_status(status);
    let problem: Problem = answer.json();
    assert_eq!(problem.code, code, "{problem:?}");
    assert!(problem.detail.contains(says), "{problem:?}");
}

#[test]
fn a_form_that_is_none_is_refused_with_what_is_wrong_with_it() {
    let service = Service::start();
    let tar = tar_of(&[("Dockerfile", PLAIN)]);
    let (request, context) = (("request", &b"{}"[..]), ("context", &tar[..]));
    check_refused(&service, &[], 400, "invalid-form", "no part `request`");
    check_refused(&service, &[request], 400, "invalid-form", "no part `context`");
    check_refused(&service, &[context, request], 400, "invalid-form", "`context` comes where the part `request`");
    check_refused(
        &service,
        &[request, request, context],
        400,
        "invalid-form",
        "`request` comes where the part `context`",
    );
    check_refused(&service, &[request, context, context], 400, "invalid-form", "`context` comes where the end");
    check_refused(&service, &[("options", b"{}"), context], 400, "invalid-form", "no part `options`");
    check_refused(&service, &[("request", b"{\"tag\": 1}"), context], 400, "invalid-json", "unknown field `tag`");
    check_refused(&service, &[("request", br#"{"tags": ["A B"]}"#), context], 422, "invalid-field", "A B");
    check_refused(&service, &[request, ("context", b"no tar")], 422, "build-failed", "tar");
    check_refused(&service, &[request, ("context", &tar_of(&[("x", "")]))], 422, "invalid-field", "`Dockerfile`");
    let broken = tar_of(&[("Dockerfile", PLAIN), (".dockerignore", "a\n[\n")]);
    check_refused(&service, &[request, ("context", &broken)], 422, "build-failed", ".dockerignore: line 2");
    let long = vec![b' '; 17 << 20];
    check_refused(&service, &[("request", &long), context], 413, "body-too-large", "");
    let plain = service.send("POST", "/v1/builds", &[("content-type", "application/x-tar")], &tar);
    assert_eq!(plain.expect_status(415).json::<Problem>().code, "unsupported-media-type");
    let whole = form(&[request, context]);
    let cut = service.send("POST", "/v1/builds", &[("content-type", FORM_TYPE)], &whole[..whole.len() - 40]);
    assert_eq!(cut.expect_status(400).json::<Problem>().code, "body-broken");
    check_built(&build(&service, &[("Dockerfile", PLAIN)], &[]));
}

#[test]
fn the_service_leaves_out_what_the_ignore_files_of_the_context_say() {
    let service = Service::start();
    let dockerfile = "FROM busybox\nCOPY . /srv/\n";
    let files = [("Dockerfile", dockerfile), ("a", "a"), ("b", "b"), (".dockerignore", "a\n"), ("other", dockerfile)];
    let listed = |request: Value, files: &[(&str, &str)]| {
        let mut text = String::new();
        follow(&service, &request, &tar_of(files)).read_to_string(&mut text).expect("it is text");
        assert!(matches!(events(&text).last(), Some(BuildEvent::Built(_))), "{text}");
        runs(&service, "app", &["ls", "/srv"])
    };
    assert_eq!(listed(json!({"tags": ["app"]}), &files), "Dockerfile\nb\nother\n");
    let beside = [&files[..], &[("other.dockerignore", "*\n!b\n")]].concat();
    assert_eq!(listed(json!({"tags": ["app"], "dockerfile": "other"}), &beside), "b\n");
    let said = json!({"tags": ["app"], "dockerignore_text": "other*\nDockerfile\n"});
    assert_eq!(listed(said, &beside), "a\nb\n");
}

#[test]
fn whoever_sends_slowly_keeps_nobody_from_building() {
    let service = Service::start();
    let tar = tar_of(&[("Dockerfile", PLAIN)]);
    let body = form(&[("request", b"{}"), ("context", &tar)]);
    let mut slow = Vec::new();
    let refused = std::iter::repeat_with(|| {
        let mut stream = UnixStream::connect(service.socket()).expect("it listens");
        let head = format!(
            "POST /v1/builds HTTP/1.1\r\nhost: a\r\ncontent-type: {FORM_TYPE}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..300])).expect("it reads");
        slow.push(stream);
        send(&service, &[("request", b"{}"), ("context", &tar)])
    });
    // A slow one may come when one of ours is being read, and is refused itself.
    let refused = refused.take(100).find(|answer| answer.status == 503).expect("so many are not read at once");
    assert!(refused.header("retry-after").is_some() && refused.text().contains("are being sent"), "{}", refused.text());
    assert!(slow.len() >= 16, "as many as builds at once are not many: {}", slow.len());
    slow.truncate(8);
    let built = std::iter::repeat_with(|| build(&service, &[("Dockerfile", PLAIN)], &[]));
    assert!(built.take(50).any(|output| output.status.success()), "{}", service.log());
}

#[test]
fn a_fifth_build_at_once_is_told_to_come_back() {
    let service = Service::start();
    let sleeps = |word: &str| tar_of(&[("Dockerfile", &format!("FROM busybox\nRUN echo up {word}; sleep 600\n"))]);
    let running: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|word| {
            let mut lines = follow(&service, &json!({}), &sleeps(word)).lines().map_while(Result::ok);
            assert!(lines.any(|line| line.contains("\"up ")), "the command does not run");
            lines
        })
        .collect();
    let answer = send(&service, &[("request", b"{}"), ("context", &sleeps("e"))]).expect_status(503);
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert!(answer.text().contains("4 builds are under way"), "{}", answer.text());
    let output = build(&service, &[("Dockerfile", PLAIN)], &[]);
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    drop(running);
}

#[test]
fn each_flag_does_what_it_says() {
    let service = Service::start();
    let dockerfile = "FROM busybox AS first\nARG WORD=none\nARG OTHER=none\nRUN echo $WORD $OTHER > /word\n\
        LABEL a=file b=file\nFROM busybox\nRUN echo second > /word\n";
    let digests = tempfile::NamedTempFile::new().expect("the temporary folder can be written");
    let path = digests.path().to_string_lossy().into_owned();
    let folder = folder_of(&[("Dockerfile", dockerfile)]);
    let flags = [
        "-q",
        "-t",
        "app",
        "--target",
        "first",
        "--build-arg",
        "WORD=a b",
        "--build-arg",
        "OTHER",
        "--label",
        "b=flag",
    ];
    let output = client(&service, &["build"])
        .args(flags)
        .args(["--label", "c", "--iidfile", &path])
        .arg(folder.path())
        .env("OTHER", "of the environment")
        .output()
        .expect("the program can be run");
    check_built(&output);
    assert_eq!(said(&output), "", "a quiet build says nothing");
    let digest = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
    assert_eq!(std::fs::read_to_string(&path).expect("it was written"), digest);
    assert_eq!(runs(&service, &digest, &["cat", "/word"]), "a b of the environment\n");
    let labels = service.get("/v1/images/app").json::<Value>()["config"]["labels"].clone();
    assert_eq!(labels, json!({"a": "file", "b": "flag", "c": ""}));
}

#[test]
fn a_dockerfile_of_any_length_comes_through_standard_input() {
    let service = Service::start();
    let folder = folder_of(&[("a", "a")]);
    let dockerfile = format!("FROM busybox\n{}COPY a /\n", format!("# {}\n", "x".repeat(1000)).repeat(500));
    let mut child = client(&service, &["build", "-t", "app", "-f", "-"])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .expect("the program can be run");
    child.stdin.take().expect("it is piped").write_all(dockerfile.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(runs(&service, "app", &["cat", "/a"]), "a");
}

#[test]
fn a_base_that_is_not_there_is_pulled_during_the_build() {
    let service = Service::with(Options { without_image: true, ..Options::default() });
    let registry = Registry::start();
    registry.contents.add_image("base", "1", &[&archive::busybox()]);
    let dockerfile = format!("FROM {}/base:1\nRUN --network=none echo made > /made\n", registry.host());
    let output = build(&service, &[("Dockerfile", &dockerfile)], &["-t", "app"]);
    check_built(&output);
    assert!(said(&output).contains(&format!("pulling {}/base:1", registry.host())), "{}", said(&output));
    assert_eq!(runs(&service, "app", &["cat", "/made"]), "made\n");
    let missing = format!("FROM {}/nothing:1\n", registry.host());
    let output = build(&service, &[("Dockerfile", &missing)], &[]);
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    assert!(said(&output).contains("nothing"), "{}", said(&output));
}
