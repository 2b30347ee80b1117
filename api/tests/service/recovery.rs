//! What a kill -9 leaves, and what the next start makes of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ampoule_client::types::{EndingKind, JobList, JobState};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::json;

use crate::stage::{Service, goes_on, prints};

const SETTINGS: &str = "concurrency = 1\nqueue = 10\n";

#[tokio::test]
async fn what_waited_runs_and_what_ran_has_failed_and_may_be_sent_again() {
    let before = Service::with([goes_on()]).await;
    let running = before.submit("", json!({})).await.job();
    before.start_of(&running.id).await;
    let waiting = [
        before.submit("", json!({ "stdin": "kept" })).await.job(),
        before.submit("", json!({ "files": [{ "path": "a", "content": "b" }] })).await.job(),
    ];
    let folder = before.killed();
    before.cancel_all().await;

    let after = Service::open(folder, SETTINGS, [prints("done")]).await;
    for job in &waiting {
        let ended = after.end_of(&job.id).await;
        assert_eq!(ended.stdout.expect("an output").text.as_deref(), Some("done"));
    }
    let ending = after.end_of(&running.id).await.ending.expect("an ending");
    assert_eq!((ending.kind, ending.retryable), (EndingKind::Failed, true));
    let ran: Vec<String> = after.runtime.0.asked().into_iter().map(|spec| spec.id).collect();
    assert_eq!(ran, waiting.map(|job| job.id), "in their order, and what ran before is not run again");
}

#[tokio::test]
async fn what_ran_is_run_again_when_its_retries_say_so() {
    let before = Service::with([goes_on()]).await;
    let job = before.submit("", json!({ "retries": 1, "stdin": "kept" })).await.job();
    before.start_of(&job.id).await;
    let folder = before.killed();
    before.cancel_all().await;

    let after = Service::open(folder, SETTINGS, [prints("second try")]).await;
    let ended = after.end_of(&job.id).await;
    assert_eq!((ended.attempt, ended.stdout.expect("an output").text.as_deref()), (2, Some("second try")));
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_kill() {
    let before = Service::with([prints("x".repeat(300_000))]).await;
    let small = before.submit("?wait=20", json!({ "limits": { "output_bytes": 100 } })).await.job();
    let large = before.submit("?wait=20", json!({ "labels": { "size": "large" } })).await.job();
    let after = Service::open(before.killed(), SETTINGS, [prints("")]).await;
    for job in [small, large] {
        assert_eq!(after.get(&format!("/v1/jobs/{}", job.id)).await.job(), job);
    }
}

#[tokio::test]
async fn a_key_finds_its_job_after_a_kill() {
    let before = Service::with([prints("once")]).await;
    let first = before.submit("?wait=20", json!({ "idempotency_key": "k" })).await.job();
    let after = Service::open(before.killed(), SETTINGS, [prints("twice")]).await;
    let second = after.submit("?wait=20", json!({ "idempotency_key": "k" })).await.job();
    assert_eq!(second, first);
    assert!(after.runtime.0.asked().is_empty());
}

#[tokio::test]
async fn running_jobs_that_a_stop_interrupts_wait_for_the_next_start() {
    let before = Service::with([goes_on()]).await;
    let kept = before.submit("", json!({ "retries": 1 })).await.job();
    before.start_of(&kept.id).await;
    let waiting = before.submit("", json!({})).await.job();
    let jobs = before.app.desk.jobs.clone();
    jobs.close();
    jobs.interrupt();
    while !jobs.is_idle() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!(before.get(&format!("/v1/jobs/{}", kept.id)).await.job().state, JobState::Queued);
    let folder = before.killed();
    before.cancel_all().await;

    let after = Service::open(folder, SETTINGS, [prints("")]).await;
    for id in [&kept.id, &waiting.id] {
        assert_eq!(after.end_of(id).await.ending.expect("an ending").kind, EndingKind::Exited);
    }
}

#[tokio::test]
async fn a_runtime_that_is_gone_costs_one_try_and_no_other_job() {
    let before = Service::with([prints("")]).await;
    before.runtime.1.store(true, Ordering::Relaxed);
    let tried = before.submit("", json!({ "retries": 1 })).await.job();
    while !before.app.desk.jobs.is_idle() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(before.get(&format!("/v1/jobs/{}", tried.id)).await.job().state, JobState::Queued);
    assert_eq!(before.submit("", json!({})).await.problem().code, "draining");
    let folder = before.killed();
    before.cancel_all().await;

    let after = Service::open(folder, SETTINGS, [prints("back")]).await;
    let ended = after.end_of(&tried.id).await;
    assert_eq!((ended.attempt, ended.stdout.expect("an output").text.as_deref()), (2, Some("back")));
}

#[tokio::test]
async fn old_jobs_are_forgotten_by_age_and_by_number() {
    let service = Service::with([prints("x".repeat(200_000))]).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(service.submit("?wait=20", json!({ "labels": { "a": "b" } })).await.job().id);
    }
    let kept = async || {
        let list: JobList = service.get("/v1/jobs?label=a").await.json();
        list.jobs.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    let jobs = &service.app.desk.jobs;
    jobs.remove_outdated(Timestamp::UNIX_EPOCH, 3).await.expect("removes");
    assert_eq!(kept().await, [ids[4].clone(), ids[3].clone(), ids[2].clone()]);
    let folders = std::fs::read_dir(service.folder.path().join("state/jobs")).expect("a folder").count();
    assert_eq!(folders, 3, "their files are gone too");
    jobs.remove_outdated(Timestamp::now(), 100).await.expect("removes");
    assert!(kept().await.is_empty());
}

#[tokio::test]
async fn who_waits_for_a_job_that_will_not_run_is_told_when_the_service_leaves() {
    let service = Service::with([goes_on()]).await;
    let running = service.submit("", json!({})).await.job();
    service.start_of(&running.id).await;
    let leave = async {
        while service.app.desk.jobs.count().0 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        service.app.desk.jobs.leave();
    };
    let (answer, ()) = tokio::join!(service.submit("?wait=60", json!({})), leave);
    assert_eq!((answer.status, answer.job().state), (StatusCode::ACCEPTED, JobState::Queued));
    for id in [&answer.job().id, &running.id] {
        service.post(&format!("/v1/jobs/{id}/cancel"), json!(null)).await;
    }
    while !service.app.desk.jobs.is_idle() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
