//! Jobs over HTTP: what is promised of requests, lists, events, files and artifacts, seen on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ampoule_client::types::{
    ArtifactList, ArtifactsRequest, Batch, BatchResult, EndingKind, Event, Job, JobFile, JobList, JobRequest, JobState,
    Problem, Upload,
};
use ampoule_tests::archive::Archive;
use ampoule_tests::service::{command, kind, shell, stderr, stdout};
use ampoule_tests::{Options, Service, events, patience};

fn problem(service: &Service, body: &str, status: u16) -> Problem {
    let answer = service.send("POST", "/v1/jobs", &[("content-type", "application/json")], body.as_bytes());
    let answer = answer.expect_status(status);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    answer.json()
}

#[test]
fn waiting_gives_the_end_and_not_waiting_the_id() {
    let service = Service::start();
    let waited: Job = service.post("/v1/jobs?wait=30", &shell("sleep 0.1; echo done")).json();
    assert_eq!((waited.state, stdout(&waited)), (JobState::Ended, "done\n"));
    let answer = service.post("/v1/jobs", &shell("sleep 0.1; echo done"));
    let job: Job = answer.json();
    assert!(job.state != JobState::Ended && job.stdout.is_none());
    let later: Job = service.get(&format!("/v1/jobs/{}?wait=30", job.id)).json();
    assert_eq!((later.state, stdout(&later)), (JobState::Ended, "done\n"));
}

#[test]
fn waiting_ends_after_the_time_that_was_asked_for() {
    let service = Service::start();
    let started = Instant::now();
    let job: Job = service.post("/v1/jobs?wait=0.3", &command(&["sleep", "1000"])).json();
    assert_eq!(job.state, JobState::Running);
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(300) && took < patience(Duration::from_secs(3)), "{took:?}");
    service.post(&format!("/v1/jobs/{}/cancel", job.id), &serde_json::json!({}));
    service.wait(&job.id);
}

#[test]
fn a_request_that_is_not_understood_names_what_is_wrong() {
    let service = Service::start();
    let unknown = problem(&service, r#"{"image":"busybox","argv":["true"],"privileged":true}"#, 400);
    assert!(unknown.detail.contains("privileged"), "{unknown:?}");
    let nested = problem(&service, r#"{"image":"busybox","argv":["true"],"limits":{"memory":1}}"#, 400);
    assert!(nested.detail.contains("memory"), "{nested:?}");
    problem(&service, r#"{"image":"busybox","argv":["#, 400);
    let missing = problem(&service, r#"{"image":"no-such-image","argv":["true"]}"#, 404);
    assert!(missing.hint.is_some(), "{missing:?}");
    let twice = problem(&service, r#"{"image":"busybox","argv":["true"],"shell":"true"}"#, 422);
    assert!(twice.field.is_some(), "{twice:?}");
    let answer = service.send("GET", "/v1/jobs/no-such-job", &[], b"").expect_status(404);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
}

#[test]
fn a_second_request_with_the_same_key_gets_the_first_ones_job() {
    let service = Service::start();
    let request = JobRequest { idempotency_key: Some("key-1".to_owned()), ..shell("echo once") };
    let first: Job = service.post("/v1/jobs?wait=30", &request).json();
    let second: Job = service.post("/v1/jobs?wait=30", &request).json();
    assert_eq!(first.id, second.id);
    let body = serde_json::to_vec(&shell("echo once")).expect("it is JSON");
    let headers = [("content-type", "application/json"), ("idempotency-key", "key-2")];
    let third: Job = service.send("POST", "/v1/jobs", &headers, &body).json();
    let fourth: Job = service.send("POST", "/v1/jobs", &headers, &body).json();
    assert!(third.id == fourth.id && third.id != first.id);
    let other = JobRequest { idempotency_key: Some("key-1".to_owned()), ..shell("echo something else") };
    let answer = service.post("/v1/jobs", &other);
    assert!(
        matches!(answer.status, 409 | 422),
        "another request with the same key: {} {}",
        answer.status,
        answer.text()
    );
}

#[test]
fn a_key_used_at_the_same_moment_makes_one_job() {
    let service = Service::start();
    let request = JobRequest { idempotency_key: Some("same".to_owned()), ..shell("echo once") };
    let ids: BTreeSet<String> = std::thread::scope(|scope| {
        let posts: Vec<_> = (0..8).map(|_| scope.spawn(|| service.run(&request).id)).collect();
        posts.into_iter().map(|post| post.join().expect("it answers")).collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[test]
fn a_batch_takes_each_job_or_says_why_not() {
    let service = Service::start();
    let bad = JobRequest { image: "no-such-image".to_owned(), ..command(&["true"]) };
    let batch = Batch { jobs: vec![shell("echo 0"), bad, shell("echo 2")] };
    let result: BatchResult = service.post("/v1/jobs:batch", &batch).json();
    assert_eq!(result.items.len(), 3);
    assert!(result.items[1].job.is_none() && result.items[1].problem.is_some());
    for index in [0, 2] {
        let job = service.wait(&result.items[index].job.as_ref().expect("it was taken").id);
        assert_eq!(stdout(&job), format!("{index}\n"));
    }
}

#[test]
fn pages_of_a_list_give_every_job_once_newest_first() {
    let service = Service::start();
    let mut expected: Vec<String> = (0..25).map(|_| service.run(&command(&["true"])).id).collect();
    expected.reverse();
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page: JobList = service.get(&format!("/v1/jobs?limit=10{cursor}")).json();
        assert!(page.jobs.len() <= 10);
        listed.extend(page.jobs.into_iter().map(|job| job.id));
        match page.next {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
        // A job that comes while one pages does not move the pages.
        service.run(&command(&["true"]));
    }
    assert_eq!(listed, expected);
}

#[test]
fn a_list_can_be_narrowed_by_state_ending_and_label() {
    let service = Service::start();
    let labelled = JobRequest { labels: BTreeMap::from([("suite".to_owned(), "unit".to_owned())]), ..shell("exit 0") };
    let first = service.run(&labelled);
    service.run(&shell("kill -9 $$"));
    let sleeping = service.submit(&command(&["sleep", "1000"]));
    service.wait_for(&sleeping.id, |job| job.state == JobState::Running);
    let ids = |query: &str| -> Vec<String> {
        service.get(&format!("/v1/jobs?{query}")).json::<JobList>().jobs.into_iter().map(|job| job.id).collect()
    };
    assert_eq!(ids("label=suite%3Dunit"), [first.id.as_str()]);
    assert_eq!(ids("state=running"), [sleeping.id.as_str()]);
    assert_eq!(ids("ending=signaled").len(), 1);
    service.send("GET", "/v1/jobs?colour=red", &[], b"").expect_status(400);
    service.post(&format!("/v1/jobs/{}/cancel", sleeping.id), &serde_json::json!({}));
    service.wait(&sleeping.id);
}

#[test]
fn events_can_be_taken_up_again_after_any_of_them() {
    let service = Service::start();
    let job = service.submit(&shell("for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done"));
    // Followed while it runs, so that the output comes in several events.
    let all: Vec<_> = events(&service, &job.id, None).collect();
    assert!(all.len() >= 4, "{all:?}");
    assert!(matches!(all.last().map(|sent| &sent.data), Some(Event::Ended { .. })), "{all:?}");
    let ids: BTreeSet<&str> = all.iter().map(|sent| sent.id.as_str()).collect();
    assert_eq!(ids.len(), all.len(), "ids are not distinct: {all:?}");
    for (index, sent) in all.iter().enumerate() {
        let rest: Vec<_> = events(&service, &job.id, Some(&sent.id)).collect();
        assert_eq!(written(&rest), written(&all[index + 1..]), "after {}", sent.id);
    }
}

/// What the log events tell, in order, however it is cut into chunks.
fn written(events: &[ampoule_tests::Sent]) -> Vec<u8> {
    use base64::Engine;
    let mut bytes = Vec::new();
    for sent in events {
        if let Event::Log(chunk) = &sent.data {
            bytes.extend(base64::engine::general_purpose::STANDARD.decode(&chunk.base64).expect("it is base64"));
        }
    }
    bytes
}

#[test]
fn files_arrive_with_their_modes_and_belong_to_the_jobs_user() {
    let service = Service::start();
    let request = JobRequest {
        files: vec![
            JobFile { path: "data/in.txt".to_owned(), content: Some("text\n".to_owned()), ..JobFile::default() },
            JobFile {
                path: "run.sh".to_owned(),
                content: Some("#!/bin/sh\ncat data/in.txt\nid -un\npwd\n".to_owned()),
                mode: Some("0755".to_owned()),
                ..JobFile::default()
            },
            JobFile { path: "bytes".to_owned(), content_base64: Some("AP8=".to_owned()), ..JobFile::default() },
        ],
        user: Some("worker".to_owned()),
        ..shell("./run.sh; stat -c '%U %a' data/in.txt run.sh; wc -c <bytes")
    };
    let job = service.run(&request);
    assert_eq!(stdout(&job), "text\nworker\n/work\nworker 644\nworker 755\n2\n", "{}", stderr(&job));
}

#[test]
fn an_uploaded_tar_is_unpacked_before_the_command_starts() {
    let service = Service::start();
    let tar = Archive::default().folder("src", 0o755, 0).file("src/a", 0o640, 0, b"A").link("b", "src/a").finish();
    let headers = [("content-type", "application/x-tar")];
    let upload: Upload = service.send("PUT", "/v1/uploads", &headers, &tar).json();
    assert_eq!(upload.size_bytes, tar.len() as u64);
    let request = JobRequest { files_upload: Some(upload.id), ..shell("cat src/a b; stat -c %a src/a; echo x >new") };
    let job = service.run(&request);
    assert_eq!(stdout(&job), "AA640\n", "{}", stderr(&job));
}

#[test]
fn a_hostile_upload_reaches_nothing_but_writable_paths() {
    let service = Service::start();
    let through_link = Archive::default().link("door", "/etc").file("door/passwd", 0o644, 0, b"owned").finish();
    let upload: Upload =
        service.send("PUT", "/v1/uploads", &[("content-type", "application/x-tar")], &through_link).json();
    let job = service.run(&JobRequest { files_upload: Some(upload.id), ..shell("grep -c owned /etc/passwd") });
    let wrote = job.stdout.as_ref().and_then(|output| output.text.clone()).unwrap_or_default();
    assert!(kind(&job) == EndingKind::Failed || wrote == "0\n", "{:?} {wrote}", job.ending);
    assert_eq!(stdout(&service.run(&shell("grep -c owned /etc/passwd; true"))), "0\n");
}

#[test]
fn artifacts_come_back_whole_and_those_too_large_are_named() {
    let service = Service::start();
    let request = JobRequest {
        artifacts: Some(ArtifactsRequest {
            globs: vec!["out/**".to_owned(), "/tmp/*.xml".to_owned()],
            file_bytes_max: Some(100_000),
            ..ArtifactsRequest::default()
        }),
        ..shell(
            "mkdir -p out/deep; inside pattern 5000 >out/deep/bytes; echo '<x/>' >/tmp/junit.xml; echo no >/tmp/no.txt; \
             dd if=/dev/zero of=out/large bs=1k count=200 2>/dev/null; ln -s /etc/passwd out/link; exit 3",
        )
    };
    let job = service.run(&request);
    assert_eq!(job.ending.as_ref().and_then(|ending| ending.exit_code), Some(3), "a failed job has artifacts too");
    let list: ArtifactList = service.get(&format!("/v1/jobs/{}/artifacts", job.id)).json();
    let by_path: BTreeMap<&str, _> = list.artifacts.iter().map(|artifact| (artifact.path.as_str(), artifact)).collect();
    let large = by_path.get("/work/out/large").unwrap_or_else(|| panic!("{by_path:#?}"));
    assert!(large.left_out.is_some() && large.sha256.is_none(), "{by_path:#?}");
    assert!(!by_path.contains_key("/tmp/no.txt"), "{by_path:#?}");
    assert!(by_path.get("/work/out/link").is_none_or(|link| link.left_out.is_some()), "{by_path:#?}");
    assert_eq!(service.get(&format!("/v1/jobs/{}/artifacts/tmp/junit.xml", job.id)).text(), "<x/>\n");
    assert_eq!(service.get(&format!("/v1/jobs/{}/artifacts/work/out/deep/bytes", job.id)).body.len(), 5000);
    service.send("GET", &format!("/v1/jobs/{}/artifacts/etc/passwd", job.id), &[], b"").expect_status(404);
}

#[test]
fn a_deleted_job_is_gone_and_a_running_one_cannot_be_deleted() {
    let service = Service::start();
    let job = service.run(&shell("echo x"));
    let answer = service.send("DELETE", &format!("/v1/jobs/{}", job.id), &[], b"");
    assert!((200..300).contains(&answer.status), "{}", answer.text());
    service.send("GET", &format!("/v1/jobs/{}", job.id), &[], b"").expect_status(404);
    let running = service.submit(&command(&["sleep", "1000"]));
    service.wait_for(&running.id, |job| job.state == JobState::Running);
    service.send("DELETE", &format!("/v1/jobs/{}", running.id), &[], b"").expect_status(409);
    service.post(&format!("/v1/jobs/{}/cancel", running.id), &serde_json::json!({}));
    service.wait(&running.id);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let arguments = ["--concurrency", "1", "--queue", "2"].map(str::to_owned).to_vec();
    let service = Service::with(Options { arguments, ..Options::default() });
    let running = service.submit(&command(&["sleep", "1000"]));
    service.wait_for(&running.id, |job| job.state == JobState::Running);
    let waiting: Vec<Job> = (0..2).map(|_| service.submit(&command(&["true"]))).collect();
    let refused = service.post("/v1/jobs", &command(&["true"])).expect_status(429);
    assert!(
        refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()),
        "{:?}",
        refused.headers
    );
    service.post(&format!("/v1/jobs/{}/cancel", running.id), &serde_json::json!({}));
    for job in waiting {
        assert_eq!(kind(&service.wait(&job.id)), EndingKind::Exited);
    }
}

#[test]
fn a_higher_priority_goes_first() {
    let arguments = ["--concurrency", "1"].map(str::to_owned).to_vec();
    let service = Service::with(Options { arguments, ..Options::default() });
    let running = service.submit(&command(&["sleep", "1000"]));
    service.wait_for(&running.id, |job| job.state == JobState::Running);
    let with = |priority| service.submit(&JobRequest { priority: Some(priority), ..command(&["true"]) }).id;
    let (low, usual, high) = (with(-10), with(0), with(10));
    service.post(&format!("/v1/jobs/{}/cancel", running.id), &serde_json::json!({}));
    let started = |id: &str| service.wait(id).times.started.expect("it started");
    assert!(started(&high) <= started(&usual) && started(&usual) <= started(&low));
}

#[test]
fn a_cancelled_job_that_waits_never_starts() {
    let arguments = ["--concurrency", "1"].map(str::to_owned).to_vec();
    let service = Service::with(Options { arguments, ..Options::default() });
    let running = service.submit(&command(&["sleep", "1000"]));
    service.wait_for(&running.id, |job| job.state == JobState::Running);
    let waiting = service.submit(&shell("echo never"));
    for job in [&waiting, &running] {
        service.post(&format!("/v1/jobs/{}/cancel", job.id), &serde_json::json!({}));
    }
    let waiting = service.wait(&waiting.id);
    assert_eq!((kind(&waiting), waiting.times.started), (EndingKind::Cancelled, None));
    service.wait(&running.id);
}

#[test]
fn stopping_lets_running_jobs_end_and_keeps_those_that_wait() {
    let arguments = ["--concurrency", "1", "--drain", "20s"].map(str::to_owned).to_vec();
    let mut service = Service::with(Options { arguments, ..Options::default() });
    let running = service.submit(&shell("sleep 1; echo finished"));
    service.wait_for(&running.id, |job| job.state == JobState::Running);
    let waiting = service.submit(&shell("echo later"));
    service.stop();
    service.spawn();
    let running = service.wait(&running.id);
    assert_eq!((kind(&running), stdout(&running)), (EndingKind::Exited, "finished\n"));
    let waiting = service.wait(&waiting.id);
    assert_eq!((kind(&waiting), stdout(&waiting)), (EndingKind::Exited, "later\n"));
}

#[test]
fn health_metrics_and_the_description_of_the_api_are_there() {
    let service = Service::start();
    service.run(&shell("exit 0"));
    service.get("/healthz");
    service.get("/readyz");
    let openapi: serde_json::Value = service.get("/openapi.json").json();
    assert!(openapi["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    assert!(openapi["paths"]["/v1/jobs"]["post"].is_object());
    let metrics = service.get("/metrics").text();
    for line in metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let value = line.rsplit(' ').next().unwrap_or("");
        assert!(value.parse::<f64>().is_ok(), "not the text format: {line}");
    }
    // The state of a launch, phase by phase, so that a regression shows where.
    for phase in ["clone", "cgroup", "network", "mounts", "credentials", "seccomp", "exec", "drain"] {
        let has = |line: &str| line.starts_with("ampoule_launch_phase_seconds_count") && line.contains(phase);
        assert!(metrics.lines().any(has), "{phase}: {metrics}");
    }
    for name in ["ampoule_jobs_ended_total", "ampoule_queue_jobs", "ampoule_sandboxes_warm"] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}

#[test]
fn a_body_that_is_too_long_is_refused_without_being_read_to_its_end() {
    let service = Service::start();
    let body = vec![b' '; 40 * 1024 * 1024];
    // The service may answer and close while we still write, so a broken pipe is an answer as well.
    match service.try_send("POST", "/v1/jobs", &[("content-type", "application/json")], &body) {
        Ok(answer) => assert_eq!(answer.status, 413, "{}", answer.text()),
        Err(error) => assert!(
            matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset),
            "{error}"
        ),
    }
    service.get("/healthz");
}
