//! Jobs from their request to their end.

use ampoule_client::types::{EndingKind, Gap, JobList, JobState, Outcome};
use ampoule_engine::runtime::scripted::Scene;
use ampoule_engine::spec::Ending;
use axum::http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::stage::{FOREVER, IMAGE, Service, fails, goes_on, prints};

#[tokio::test]
async fn a_job_that_is_waited_for_answers_with_everything_it_did() {
    let scene = Scene { stderr: b"a warning\n".to_vec(), ending: Ending::Exited(3), ..prints("hello\n") };
    let service = Service::with([scene]).await;
    let fields =
        json!({ "env": { "A": "b" }, "labels": { "suite": "unit" }, "name": "first", "limits": { "cpus": 0.5 } });
    let answer = service.submit("?wait=20", fields).await;
    assert_eq!(answer.status, StatusCode::OK);
    let job = answer.job();
    assert_eq!(answer.headers["location"], format!("/v1/jobs/{}", job.id));
    let ending = job.ending.clone().expect("an ending");
    assert_eq!((ending.kind, ending.exit_code), (EndingKind::Exited, Some(3)));
    let stdout = job.stdout.clone().expect("an output");
    assert_eq!((stdout.text.as_deref(), stdout.bytes, stdout.gap), (Some("hello\n"), 6, None));
    assert_eq!(stdout.sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    assert_eq!(job.stderr.clone().expect("an output").text.as_deref(), Some("a warning\n"));
    assert_eq!(job.decision.clone().expect("a decision").outcome, Outcome::Admitted);
    let spec = job.spec.clone().expect("a spec");
    assert_eq!((spec.limits.cpus, spec.cwd.as_str(), spec.user.as_str()), (0.5, "/", "0:0"));
    assert_eq!(spec.env.keys().collect::<Vec<_>>(), ["A", "PATH"]);
    assert_eq!(service.get(&format!("/v1/jobs/{}", job.id)).await.job(), job, "what is stored is what was answered");
}

#[tokio::test]
async fn what_is_launched_is_what_was_asked_for() {
    let service = Service::with([prints("")]).await;
    let fields = json!({
        "argv": ["sort", "-r"], "stdin": "b\na\n", "user": "1000:1000",
        "files": [{ "path": "in/a.txt", "content": "x" }, { "path": "/tmp/b", "content_base64": "AAE=", "mode": "0755" }],
        "artifacts": { "globs": ["out/*.xml"] },
        "writable": [{ "path": "/data", "size_bytes": 1_048_576 }],
        "limits": { "memory_bytes": 33_554_432, "wall_time_ms": 5000 },
    });
    let job = service.submit("?wait=20", fields).await.job();
    let asked = service.runtime.0.asked();
    let spec = asked.last().expect("a launch");
    assert_eq!(spec.id, job.id);
    assert_eq!(spec.command.argv, ["sort", "-r"]);
    assert_eq!((spec.command.cwd.as_str(), spec.frame.user.as_str()), ("/work", "1000:1000"));
    assert_eq!(spec.command.artifacts.globs, ["/work/out/*.xml"]);
    let writable: Vec<_> = spec.frame.writable.iter().map(|place| place.path.as_str()).collect();
    assert_eq!(writable, ["/data", "/tmp", "/work"]);
    assert_eq!((spec.limits.memory_bytes, spec.limits.wall_time_ms, spec.limits.cpu_milli), (33_554_432, 5000, 1000));
    assert_eq!(spec.frame.layers.len(), 1);
}

#[tokio::test]
async fn output_that_is_no_text_comes_in_base64() {
    let service = Service::with([prints([0xff, 0x00, 0xfe])]).await;
    let stdout = service.submit("?wait=20", json!({})).await.job().stdout.expect("an output");
    assert_eq!((stdout.text, stdout.base64.as_deref()), (None, Some("/wD+")));
}

#[tokio::test]
async fn long_output_keeps_its_start_and_its_end_and_an_exact_gap() {
    let written: String = (0..2000).map(|line| format!("line {line}\n")).collect();
    let service = Service::with([prints(written.clone())]).await;
    let job = service.submit("?wait=20", json!({ "limits": { "output_bytes": 1000 } })).await.job();
    let stdout = job.stdout.expect("an output");
    let gap = Gap { offset: 500, bytes: written.len() as u64 - 1000 };
    assert_eq!((stdout.bytes, stdout.gap), (written.len() as u64, Some(gap)));
    assert_eq!(stdout.text, Some(format!("{}{}", &written[..500], &written[written.len() - 500..])));
}

#[tokio::test]
async fn large_output_is_kept_whole_and_read_back_raw() {
    let written = "0123456789abcdef".repeat(40_000);
    let service = Service::with([prints(written.clone())]).await;
    let job = service.submit("?wait=20", json!({})).await.job();
    assert_eq!(job.stdout.as_ref().and_then(|stdout| stdout.text.as_ref()), Some(&written));
    let raw = service.get(&format!("/v1/jobs/{}/logs?stream=stdout", job.id)).await;
    assert_eq!(raw.headers["content-type"], "application/octet-stream");
    assert!(raw.body == written.as_bytes());
}

#[tokio::test]
async fn who_writes_too_much_is_stopped_for_it() {
    let service = Service::with([Scene { lasts: FOREVER, ..prints("x".repeat(5000)) }]).await;
    let job = service.submit("?wait=20", json!({ "limits": { "output_total_bytes": 4096 } })).await.job();
    assert_eq!(job.ending.expect("an ending").kind, EndingKind::OutputLimit);
    assert_eq!(job.stdout.expect("an output").bytes, 5000);
}

#[tokio::test]
async fn every_ending_of_the_engine_has_its_name() {
    let endings = [
        (Ending::Signaled(11), EndingKind::Signaled),
        (Ending::CpuLimit, EndingKind::CpuLimit),
        (Ending::WallLimit, EndingKind::WallLimit),
        (Ending::OutOfMemory, EndingKind::OutOfMemory),
        (Ending::PidsLimit, EndingKind::PidsLimit),
        (Ending::DiskLimit, EndingKind::DiskLimit),
        (Ending::Failed { reason: "no room".to_owned(), retryable: false }, EndingKind::Failed),
    ];
    let scenes = endings.clone().map(|(ending, _)| Scene { ending, ..prints("") });
    let service = Service::with(scenes).await;
    for (_, kind) in endings {
        let ending = service.submit("?wait=20", json!({})).await.job().ending.expect("an ending");
        assert_eq!(ending.kind, kind);
        assert!(!ending.retryable);
    }
}

#[tokio::test]
async fn a_job_that_is_not_waited_for_is_taken_at_once_and_found_later() {
    let service = Service::with([prints("later")]).await;
    let answer = service.submit("", json!({})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let job = service.end_of(&answer.job().id).await;
    assert_eq!(job.stdout.expect("an output").text.as_deref(), Some("later"));
}

#[tokio::test]
async fn a_full_queue_answers_429_and_says_when_to_come_back() {
    let service = Service::with([goes_on()]).await;
    let running = service.submit("", json!({})).await.job();
    service.start_of(&running.id).await;
    for _ in 0..2 {
        assert_eq!(service.submit("?wait=0", json!({})).await.job().state, JobState::Queued);
    }
    let answer = service.submit("", json!({})).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.problem().code, "queue-full");
    assert!(answer.headers["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds") >= 1);
    service.cancel_all().await;
}

#[tokio::test]
async fn a_higher_priority_is_served_first_when_a_slot_is_free() {
    let service = Service::with([goes_on(), prints("")]).await;
    let first = service.submit("", json!({})).await.job();
    service.start_of(&first.id).await;
    let low = service.submit("", json!({ "priority": -5 })).await.job();
    let high = service.submit("", json!({ "priority": 5 })).await.job();
    service.post(&format!("/v1/jobs/{}/cancel", first.id), Value::Null).await;
    service.end_of(&low.id).await;
    service.end_of(&high.id).await;
    let order: Vec<String> = service.runtime.0.asked().iter().map(|spec| spec.id.clone()).collect();
    assert_eq!(order, [first.id, high.id, low.id]);
}

#[tokio::test]
async fn a_cancelled_job_ends_so_whether_it_ran_or_waited() {
    let service = Service::with([goes_on()]).await;
    let running = service.submit("", json!({})).await.job();
    service.start_of(&running.id).await;
    let waiting = service.submit("", json!({})).await.job();
    for id in [&waiting.id, &running.id] {
        assert_eq!(service.post(&format!("/v1/jobs/{id}/cancel"), Value::Null).await.status, StatusCode::ACCEPTED);
        assert_eq!(service.end_of(id).await.ending.expect("an ending").kind, EndingKind::Cancelled);
    }
    assert_eq!(service.runtime.0.asked().len(), 1, "what was cancelled while it waited never ran");
}

#[tokio::test]
async fn a_job_that_waits_past_its_deadline_never_runs() {
    let service = Service::with([goes_on()]).await;
    let running = service.submit("", json!({})).await.job();
    let deadline = Timestamp::now() + SignedDuration::from_millis(150);
    let late = service.submit("", json!({ "deadline": deadline.to_string() })).await.job();
    assert_eq!(service.end_of(&late.id).await.ending.expect("an ending").kind, EndingKind::Expired);
    service.post(&format!("/v1/jobs/{}/cancel", running.id), Value::Null).await;
    service.end_of(&running.id).await;
    assert_eq!(service.runtime.0.asked().len(), 1);
}

#[tokio::test]
async fn a_run_that_the_infrastructure_spoils_is_tried_again_as_often_as_it_may() {
    let service = Service::with([fails(), fails(), prints("whole\n")]).await;
    let job = service.submit("?wait=20", json!({ "retries": 2 })).await.job();
    assert_eq!((job.attempt, job.ending.expect("an ending").exit_code), (3, Some(0)));
    assert_eq!(job.stdout.expect("an output").text.as_deref(), Some("whole\n"), "only the last try counts");
}

#[tokio::test]
async fn a_run_that_is_spoiled_too_often_has_failed_and_may_be_sent_again() {
    let service = Service::with([fails()]).await;
    let job = service.submit("?wait=20", json!({ "retries": 1 })).await.job();
    let ending = job.ending.expect("an ending");
    assert_eq!((job.attempt, ending.kind, ending.retryable), (2, EndingKind::Failed, true));
    assert_eq!(ending.detail.as_deref(), Some("the machine hiccuped"));
}

#[tokio::test]
async fn requests_with_the_same_key_come_to_one_job() {
    let service = Service::with([prints("once")]).await;
    let ask = || service.submit("?wait=20", json!({ "idempotency_key": "k1" }));
    let (one, other, third) = tokio::join!(ask(), ask(), ask());
    assert_eq!(one.job().id, other.job().id);
    assert_eq!(one.job().id, third.job().id);
    assert_eq!(service.runtime.0.asked().len(), 1);
    let answer = service.submit("", json!({ "idempotency_key": "k1", "argv": ["other"] })).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer.problem().code, "idempotency-key-reused");
}

#[tokio::test]
async fn only_a_job_that_ended_is_deleted_and_then_it_is_gone() {
    let service = Service::with([goes_on()]).await;
    let job = service.submit("", json!({})).await.job();
    let path = format!("/v1/jobs/{}", job.id);
    let answer = service.call(Method::DELETE, &path, None).await;
    assert_eq!((answer.status, answer.problem().code.as_str()), (StatusCode::CONFLICT, "job-not-ended"));
    service.cancel_all().await;
    assert_eq!(service.call(Method::DELETE, &path, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(service.get(&path).await.problem().code, "job-not-found");
    assert_eq!(service.call(Method::DELETE, &path, None).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_batch_takes_each_job_for_itself() {
    let service = Service::with([prints("")]).await;
    let jobs = json!([{ "image": IMAGE, "argv": ["a"] }, { "image": IMAGE, "argv": ["b"], "network": "host" }]);
    let answer = service.post("/v1/jobs:batch", json!({ "jobs": jobs })).await;
    let items: Value = answer.json();
    let id = items["items"][0]["job"]["id"].as_str().expect("a job");
    assert_eq!(items["items"][1]["problem"]["code"], "invalid-field");
    service.end_of(id).await;
}

#[tokio::test]
async fn lists_are_filtered_and_go_on_where_a_page_ended() {
    let service = Service::with([prints("")]).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let labels = json!({ "parity": (number % 2).to_string(), "number": number.to_string() });
        ids.push(service.submit("?wait=20", json!({ "labels": labels })).await.job().id);
    }
    ids.reverse();
    let list = async |query: &str| -> (Vec<String>, Option<String>) {
        let list: JobList = service.get(&format!("/v1/jobs?{query}")).await.json();
        (list.jobs.into_iter().map(|job| job.id).collect(), list.next)
    };
    let (first, next) = list("limit=2").await;
    assert_eq!(first, ids[..2]);
    let (second, next) = list(&format!("limit=2&cursor={}", next.expect("more"))).await;
    assert_eq!(second, ids[2..4]);
    let (third, next) = list(&format!("limit=2&cursor={}", next.expect("more"))).await;
    assert_eq!((third.as_slice(), next), (&ids[4..], None));
    assert_eq!(list("label=parity=1").await.0, [ids[1].clone(), ids[3].clone()]);
    assert_eq!(list("label=parity=1,number=3").await.0, [ids[1].clone()]);
    assert_eq!(list("state=queued").await.0, Vec::<String>::new());
    assert_eq!(list("state=ended&ending=exited&token=local").await.0, ids);
    assert_eq!(service.get("/v1/jobs?state=asleep").await.problem().code, "invalid-query");
    assert_eq!(service.get("/v1/jobs?cursor=x").await.problem().code, "invalid-query");
}

#[tokio::test]
async fn an_uploaded_tar_serves_jobs_by_its_digest() {
    let service = Service::with([prints("")]).await;
    let answer = service.call(Method::PUT, "/v1/uploads", Some(json!("any bytes"))).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let upload: Value = answer.json();
    let job = service.submit("?wait=20", json!({ "files_upload": upload["id"] })).await.job();
    assert_eq!(job.spec.expect("a spec").cwd, "/work");
    let missing = format!("sha256:{}", "0".repeat(64));
    let answer = service.submit("", json!({ "files_upload": missing })).await;
    assert_eq!(answer.problem().code, "upload-not-found");
}
