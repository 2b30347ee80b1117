//! Following a job while it runs, and again from any event.

use ampoule_client::types::{EndingKind, Event, JobState, Stream};
use axum::body::Body;
use axum::http::Request;
use base64::Engine;
use serde_json::json;
use std::time::Duration;

use ampoule_api::router::Entrance;
use ampoule_engine::runtime::scripted::Scene;

use crate::stage::{Service, fails, prints};

/// The events of a stream that came to its end, each with its id.
async fn events(service: &Service, id: &str, last: Option<&str>) -> Vec<(String, Event)> {
    let mut request = Request::get(format!("/v1/jobs/{id}/events"));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let answer = service.send(request.body(Body::empty()).expect("a request"), Entrance::Unix).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream", "{answer:?}");
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    let line = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned()).unwrap_or_default()
    };
    text.split("\n\n")
        .filter(|event| event.contains("data:"))
        .map(|event| (line(event, "id:"), serde_json::from_str(&line(event, "data:")).expect("an event")))
        .collect()
}

fn stdout_of(events: &[(String, Event)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (_, event) in events {
        if let Event::Log(chunk) = event
            && chunk.stream == Stream::Stdout
        {
            bytes.extend(base64::engine::general_purpose::STANDARD.decode(&chunk.base64).expect("base64"));
        }
    }
    bytes
}

#[tokio::test]
async fn a_follower_sees_states_all_output_and_then_the_end() {
    let written: Vec<u8> = (0..200_000u32).map(|index| (index % 251) as u8).collect();
    let service = Service::with([Scene { lasts: Duration::from_millis(50), ..prints(written.clone()) }]).await;
    let job = service.submit("", json!({})).await.job();
    let events = events(&service, &job.id, None).await;
    assert!(stdout_of(&events) == written);
    let (_, last) = events.last().expect("events");
    assert!(matches!(last, Event::Ended { ending } if ending.kind == EndingKind::Exited));
    assert_eq!(events.iter().filter(|(_, event)| matches!(event, Event::Ended { .. })).count(), 1);
    service.end_of(&job.id).await;
}

#[tokio::test]
async fn a_stream_that_broke_off_goes_on_after_any_event() {
    let written = vec![b'x'; 300_000];
    let service = Service::with([prints(written.clone())]).await;
    let job = service.submit("?wait=20", json!({})).await.job();
    let whole = events(&service, &job.id, None).await;
    assert!(whole.len() >= 4, "the output comes in pieces");
    for (index, (id, _)) in whole.iter().enumerate() {
        assert_eq!(events(&service, &job.id, Some(id)).await, whole[index + 1..]);
    }
}

#[tokio::test]
async fn a_gap_is_told_where_it_is() {
    let service = Service::with([prints(vec![b'x'; 10_000])]).await;
    let job = service.submit("?wait=20", json!({ "limits": { "output_bytes": 100 } })).await.job();
    let told = events(&service, &job.id, None).await;
    let gaps: Vec<_> = told
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Gap { stream, gap } => Some((*stream, gap.offset, gap.bytes)),
            _ => None,
        })
        .collect();
    assert_eq!(gaps, [(Stream::Stdout, 50, 9900)]);
    assert_eq!(stdout_of(&told).len(), 100);
}

#[tokio::test]
async fn another_try_starts_its_output_anew() {
    let service = Service::with([fails(), prints("whole")]).await;
    let job = service.submit("?wait=20", json!({ "retries": 1 })).await.job();
    // As if the connection had broken in the first attempt, after seven bytes.
    let told = events(&service, &job.id, Some("1-2-7-0")).await;
    assert_eq!(stdout_of(&told), b"whole");
    assert!(!told.iter().any(|(_, event)| matches!(event, Event::State { state: JobState::Ended, .. })));
}

#[tokio::test]
async fn raw_output_can_be_followed_to_its_end() {
    let service = Service::with([Scene { lasts: Duration::from_millis(50), ..prints("line 1\nline 2\n") }]).await;
    let job = service.submit("", json!({})).await.job();
    let answer = service.get(&format!("/v1/jobs/{}/logs?follow=true", job.id)).await;
    assert_eq!(&answer.body[..], b"line 1\nline 2\n");
    service.end_of(&job.id).await;
}

#[tokio::test]
async fn an_id_that_no_event_had_is_refused() {
    let service = Service::with([prints("")]).await;
    let job = service.submit("?wait=20", json!({})).await.job();
    let request = Request::get(format!("/v1/jobs/{}/events", job.id)).header("last-event-id", "yesterday");
    let answer = service.send(request.body(Body::empty()).expect("a request"), Entrance::Unix).await;
    assert_eq!(answer.problem().code, "invalid-header");
}
