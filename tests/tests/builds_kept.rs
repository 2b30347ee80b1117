//! Builds are kept: listed, looked at, followed from any event, stopped, and told of truthfully after a stop or a kill of
//! the service.

use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_client::types::{Build, BuildEvent, BuildList, BuildState, BuildStepState, JobRequest};
use ampoule_tests::builds::{FORM_TYPE, build, check_built, client, events, folder_of, follow, form, said, tar_of};
use ampoule_tests::service::command;
use ampoule_tests::{Service, patience};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// How long something may take to come.
const SETTLE_TIME: Duration = Duration::from_secs(20);

/// Starts a build that goes on by itself.
fn detach(service: &Service, request: Value, files: &[(&str, &str)]) -> Build {
    let mut request = request;
    request["detach"] = json!(true);
    let body = form(&[("request", request.to_string().as_bytes()), ("context", &tar_of(files))]);
    let answer = service.send("POST", "/v1/builds", &[("content-type", FORM_TYPE)], &body).expect_status(202);
    let build: Build = answer.json();
    assert_eq!(answer.header("location"), Some(&*format!("/v1/builds/{}", build.id)));
    build
}

fn look(service: &Service, id: &str) -> Build {
    service.get(&format!("/v1/builds/{id}")).json()
}

fn wait_for(service: &Service, id: &str, is_so: impl Fn(&Build) -> bool) -> Build {
    let deadline = Instant::now() + patience(SETTLE_TIME);
    loop {
        let build = look(service, id);
        if is_so(&build) {
            return build;
        }
        assert!(Instant::now() < deadline, "{build:#?}\n{}", service.log());
        thread::sleep(Duration::from_millis(50));
    }
}

fn ended(service: &Service, id: &str) -> Build {
    wait_for(service, id, |build| build.state != BuildState::Running)
}

fn log(service: &Service, id: &str, query: &str, after: Option<&str>) -> String {
    let headers: Vec<_> = after.map(|id| ("last-event-id", id)).into_iter().collect();
    service.send("GET", &format!("/v1/builds/{id}/logs{query}"), &headers, b"").expect_status(200).text()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a client of the command line says of the service's builds.
fn ampoule(service: &Service, arguments: &[&str]) -> Output {
    client(service, arguments).output().expect("the program can be run")
}

const SLEEPS: &str = "FROM busybox\nRUN --network=none echo first\nRUN --network=none echo up; sleep 600\n";

/// A build in the middle of its second step.
fn sleeping(service: &Service) -> Build {
    let build = detach(service, json!({}), &[("Dockerfile", SLEEPS)]);
    wait_for(service, &build.id, |_| log(service, &build.id, "", None).contains("\"up"));
    build
}

#[test]
fn a_detached_build_is_listed_looked_at_and_followed_from_any_event() {
    let service = Service::start();
    let dockerfile =
        "FROM busybox\nARG WORD\nRUN --network=none echo one; sleep 0.2; echo two\nRUN --network=none test -n $WORD\n";
    let request = json!({"tags": ["app"], "build_args": {"WORD": "a-secret-word"}});
    let id = detach(&service, request, &[("Dockerfile", dockerfile)]).id;
    let whole = log(&service, &id, "?follow=true", None);
    let told = events(&whole);
    assert!(matches!(told.last(), Some(BuildEvent::Built(_))), "{whole}");
    let build = look(&service, &id);
    assert_eq!(
        (build.state, build.token.as_str(), build.tags.as_slice()),
        (BuildState::Built, "local", &["app".to_owned()][..])
    );
    assert!(build.ended.is_some_and(|ended| ended > build.created));
    let steps = build.steps.expect("steps are told of one build");
    let texts: Vec<&str> = steps.iter().map(|status| status.step.text.as_str()).collect();
    assert_eq!(
        texts,
        ["ARG WORD", "RUN --network=none echo one; sleep 0.2; echo two", "RUN --network=none test -n $WORD"]
    );
    assert!(
        steps
            .iter()
            .filter(|status| status.step.text.starts_with("RUN"))
            .all(|status| status.state == BuildStepState::Done)
    );
    let late = told.iter().filter_map(|event| match event {
        BuildEvent::Output { text, step_ms, .. } if text.contains("two") => Some(*step_ms),
        _ => None,
    });
    assert!(late.into_iter().any(|step_ms| step_ms >= 200), "{whole}");
    let ids: Vec<&str> = whole.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(ids.len(), told.len());
    for (index, after) in ids.iter().enumerate() {
        assert_eq!(events(&log(&service, &id, "?follow=true", Some(after))), told[index + 1..], "after {after}");
    }
    let wrong = service.send("GET", &format!("/v1/builds/{id}/logs"), &[("last-event-id", "1")], b"");
    wrong.expect_status(400);
    // Of what came as a value nothing is kept.
    let kept = std::fs::read_to_string(service.state().join("builds").join(&id)).expect("we are root");
    let database = std::fs::read(service.state().join("state.db-wal")).expect("we are root");
    assert!(!kept.contains("a-secret-word") && !String::from_utf8_lossy(&database).contains("a-secret-word"));
}

#[test]
fn builds_are_listed_page_by_page_and_by_their_state() {
    let service = Service::start();
    check_built(&build(&service, &[("Dockerfile", "FROM busybox\n")], &[]));
    check_built(&build(&service, &[("Dockerfile", "FROM busybox\n")], &["-t", "second"]));
    build(&service, &[("Dockerfile", "FROM busybox\nRUN --network=none false\n")], &[]);
    let states = |query: &str| {
        let list: BuildList = service.get(&format!("/v1/builds{query}")).json();
        (list.builds.iter().map(|build| build.state).collect::<Vec<_>>(), list.next)
    };
    let all = [BuildState::Failed, BuildState::Built, BuildState::Built];
    assert_eq!(states(""), (all.to_vec(), None));
    let (first, next) = states("?limit=2");
    assert_eq!(first, all[..2]);
    assert_eq!(states(&format!("?limit=2&cursor={}", next.expect("a second page"))), (all[2..].to_vec(), None));
    assert_eq!(states("?state=failed").0, all[..1]);
    service.send("GET", "/v1/builds?state=asleep", &[], b"").expect_status(400);
    service.send("GET", "/v1/builds/nothing", &[], b"").expect_status(404);
}

#[test]
fn a_cancelled_build_ends_at_once_and_whoever_hung_up_finds_his_so() {
    let service = Service::start();
    let id = sleeping(&service).id;
    service.send("DELETE", &format!("/v1/builds/{id}"), &[], b"").expect_status(202);
    let build = ended(&service, &id);
    assert_eq!(build.state, BuildState::Cancelled);
    assert_eq!(build.problem.expect("a problem").code, "build-cancelled");
    let after: Build = service.send("DELETE", &format!("/v1/builds/{id}"), &[], b"").expect_status(202).json();
    assert_eq!(after.state, BuildState::Cancelled, "one that ended stays as it is");
    let tar = tar_of(&[("Dockerfile", "FROM busybox\nRUN echo up; sleep 600\n")]);
    let mut lines = follow(&service, &json!({}), &tar).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("\"up")), "the command does not run");
    let running: BuildList = service.get("/v1/builds?state=running").json();
    drop(lines);
    let build = ended(&service, &running.builds[0].id);
    assert_eq!(
        (build.state, build.problem.expect("a problem").detail.contains("hung up")),
        (BuildState::Cancelled, true)
    );
}

#[test]
fn a_build_under_way_when_the_service_ends_has_failed_and_its_log_is_whole() {
    let mut service = Service::start();
    let killed = sleeping(&service).id;
    service.kill(Signal::SIGKILL);
    service.spawn();
    let check = |service: &Service, id: &str| {
        let build = look(service, id);
        let problem = build.problem.expect("a problem");
        assert_eq!((build.state, problem.code.as_str()), (BuildState::Failed, "build-interrupted"));
        let told = log(service, id, "?follow=true", None);
        assert!(told.contains("\"up") && told.contains("event: failed"), "{told}");
        let states: Vec<_> = build.steps.expect("steps").iter().map(|status| status.state).collect();
        assert_eq!(states.last(), Some(&BuildStepState::Started));
    };
    check(&service, &killed);
    let stopped = sleeping(&service).id;
    assert!(log(&service, &stopped, "", None).contains("event: cached"), "what was done is not done again");
    service.stop();
    service.spawn();
    check(&service, &stopped);
    check(&service, &killed);
}

#[test]
fn the_command_line_lists_follows_and_stops_builds() {
    let service = Service::start();
    let folder = folder_of(&[("Dockerfile", SLEEPS)]);
    let path = folder.path().to_string_lossy().into_owned();
    let output = ampoule(&service, &["build", "--detach", "-t", "app", &path]);
    check_built(&output);
    let id = stdout(&output).trim_end().to_owned();
    wait_for(&service, &id, |_| log(&service, &id, "", None).contains("\"up"));
    assert_eq!(stdout(&ampoule(&service, &["builds", "ls", "-q", "--state", "running"])), format!("{id}\n"));
    let listed = stdout(&ampoule(&service, &["builds", "ls"]));
    assert!(listed.contains(&id) && listed.contains("running") && listed.contains("app"), "{listed}");
    let so_far = ampoule(&service, &["builds", "logs", &id[id.len() - 12..]]);
    check_built(&so_far);
    assert!(said(&so_far).contains("first") && said(&so_far).contains("up\n"), "{}", said(&so_far));
    let cancelled = ampoule(&service, &["builds", "cancel", &id]);
    assert!(stdout(&cancelled).starts_with(&id), "{}", said(&cancelled));
    let followed = ampoule(&service, &["builds", "logs", "-f", &id]);
    assert_eq!(followed.status.code(), Some(130), "{}", said(&followed));
    let inspected: Build =
        serde_json::from_slice(&ampoule(&service, &["builds", "inspect", &id]).stdout).expect("JSON");
    assert_eq!(inspected.state, BuildState::Cancelled);
    let json: Vec<Build> =
        serde_json::from_slice(&ampoule(&service, &["builds", "ls", "--json"]).stdout).expect("JSON");
    assert_eq!(json.len(), 1);
    assert_eq!(ampoule(&service, &["builds", "logs", "nothing"]).status.code(), Some(125));
    let built = detach(&service, json!({"tags": ["app"]}), &[("Dockerfile", "FROM busybox\n")]).id;
    let followed = ampoule(&service, &["builds", "logs", "-f", &built]);
    check_built(&followed);
    assert!(stdout(&followed).contains("sha256:"), "{}", stdout(&followed));
    service.run(&JobRequest { image: "app".to_owned(), ..command(&["true"]) });
}
