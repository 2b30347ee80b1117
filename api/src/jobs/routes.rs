//! The routes of jobs: what they take from a request and what they answer. Everything else is `Jobs` and `Desk`.

use std::sync::Arc;
use std::time::Duration;

use ampoule_client::types::{
    Artifact, ArtifactList, Batch, BatchItem, BatchResult, EndingKind, Job as JobDocument, JobList, JobRequest,
    JobState, Problem, Stream,
};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio_util::io::ReaderStream;
use utoipa::IntoParams;
use uuid::Uuid;

use super::events::{self, Place};
use super::job::Job;
use super::store::Filter;
use super::submit::{Desk, WAIT_MAX, wait};
use super::{document, no_job};
use crate::problem::{INVALID_HEADER, INVALID_QUERY, NO_ARTIFACT, Refused};
use crate::request::{Caller, JsonBody, JsonBytes, Query};

/// Most jobs of one batch.
const BATCH_MAX: usize = 100;
/// Jobs of one page when nothing is said, and at most.
const PAGE: (usize, usize) = (50, 500);
/// How often a quiet stream of events shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long an answer may wait.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// Seconds to wait for the end of the job, at most 3600; without it the answer comes at once.
    wait: Option<f64>,
}

impl Wait {
    fn time(self) -> Result<Option<Duration>, Refused> {
        let Some(seconds) = self.wait else { return Ok(None) };
        let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= WAIT_MAX);
        let refused = || Refused::new(INVALID_QUERY, format!("wait: {seconds} is not a time of 0 to 3600 seconds"));
        time.map(Some).ok_or_else(refused)
    }
}

/// Hands in a job.
///
/// With `wait` the answer comes when the job ended (200), or after that time (202). Without it, at once (202).
#[utoipa::path(post, operation_id = "createJob", path = "/v1/jobs", tag = "jobs", params(Wait, ("Idempotency-Key" = Option<String>, Header, description = "The same as the field `idempotency_key`")),
    request_body = JobRequest,
    responses((status = 200, description = "The job ended", body = JobDocument),
        (status = 202, description = "The job was taken; `Location` is where it is", body = JobDocument),
        (status = 400, description = "The request is not what was expected", body = Problem), (status = 403, description = "A policy refused it", body = Problem),
        (status = 404, description = "There is no such image", body = Problem), (status = 413, description = "The body is too large", body = Problem),
        (status = 422, description = "A field cannot be used", body = Problem),
        (status = 429, description = "The queue is full", body = Problem), (status = 503, description = "The service is being stopped, or has too much to do", body = Problem)))]
pub async fn create(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Query(query): Query<Wait>,
    headers: HeaderMap,
    JsonBytes(mut request, body): JsonBytes<JobRequest>,
) -> Result<Response, Refused> {
    let time = query.time()?;
    take_key(&mut request, &headers)?;
    let job = desk.submit(request, &body, &caller, time.is_some()).await?;
    let has_ended = match time {
        Some(time) => wait(&desk.jobs, &job, time).await,
        None => false,
    };
    Ok(answer(&job, if has_ended { StatusCode::OK } else { StatusCode::ACCEPTED }))
}

fn take_key(request: &mut JobRequest, headers: &HeaderMap) -> Result<(), Refused> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(()) };
    let key =
        value.to_str().map_err(|_| Refused::new(INVALID_HEADER, "Idempotency-Key has other than visible ASCII"))?;
    if request.idempotency_key.as_deref().is_some_and(|other| other != key) {
        return Err(Refused::new(INVALID_HEADER, "Idempotency-Key and `idempotency_key` differ"));
    }
    request.idempotency_key = Some(key.to_owned());
    Ok(())
}

fn answer(job: &Job, status: StatusCode) -> Response {
    let document = document::job(job);
    let place = HeaderValue::from_str(&format!("/v1/jobs/{}", document.id));
    let mut response = (status, Json(document)).into_response();
    if let Ok(place) = place {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// Hands in up to 100 jobs; each is taken or refused for itself.
#[utoipa::path(post, operation_id = "createJobs", path = "/v1/jobs:batch", tag = "jobs", request_body = Batch,
    responses((status = 200, description = "What became of each", body = BatchResult), (status = 422, description = "A field cannot be used", body = Problem)))]
pub async fn create_batch(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    JsonBody(batch): JsonBody<Batch>,
) -> Result<Json<BatchResult>, Refused> {
    if batch.jobs.len() > BATCH_MAX {
        return Err(Refused::field("jobs", format!("{} jobs in a batch, at most {BATCH_MAX}", batch.jobs.len())));
    }
    let submissions = batch.jobs.into_iter().map(|request| submit_one(&desk, &caller, request));
    Ok(Json(BatchResult { items: futures_util::future::join_all(submissions).await }))
}

async fn submit_one(desk: &Desk, caller: &Caller, request: JobRequest) -> BatchItem {
    // Only the same fields with the same values make the same bytes.
    let body = serde_json::to_vec(&request).unwrap_or_default();
    match desk.submit(request, &body, caller, false).await {
        Ok(job) => BatchItem { job: Some(document::job(&job)), problem: None },
        Err(refused) => BatchItem { job: None, problem: Some(*refused.problem) },
    }
}

/// Which jobs are listed.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct ListQuery {
    /// Only those in this state.
    state: Option<JobState>,
    /// Only those that ended so.
    ending: Option<EndingKind>,
    /// Only those of this token; on TCP there are no others than one's own.
    token: Option<String>,
    /// Only those with these labels: `name` or `name=value`, several with commas between.
    label: Option<String>,
    /// Goes on where a page ended.
    cursor: Option<String>,
    /// At most so many, 1 to 500. Default 50.
    limit: Option<usize>,
}

/// Lists jobs, newest first.
#[utoipa::path(get, operation_id = "listJobs", path = "/v1/jobs", tag = "jobs", params(ListQuery),
    responses((status = 200, description = "What was asked for", body = JobList), (status = 400, description = "The request is not what was expected", body = Problem)))]
pub async fn list(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<JobList>, Refused> {
    let limit = query.limit.unwrap_or(PAGE.0).clamp(1, PAGE.1);
    let filter = filter(query, &caller, limit + 1)?;
    let mut jobs = desk.jobs.list(filter).await?;
    let is_last = jobs.len() <= limit;
    jobs.truncate(limit);
    let next = jobs.last().filter(|_| !is_last).map(|last| last.record.id.to_string());
    Ok(Json(JobList { jobs: jobs.iter().map(document::summary).collect(), next }))
}

fn filter(query: ListQuery, caller: &Caller, count: usize) -> Result<Filter, Refused> {
    let cursor = query.cursor.as_deref().map(|cursor| {
        Uuid::try_parse(cursor)
            .map_err(|_| Refused::new(INVALID_QUERY, format!("cursor: `{cursor}` was not given by a page")))
    });
    let label = |text: &str| match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (text.to_owned(), None),
    };
    Ok(Filter {
        state: query.state,
        ending: query.ending,
        token: caller.scope().map(str::to_owned).or(query.token),
        labels: query
            .label
            .iter()
            .flat_map(|labels| labels.split(','))
            .filter(|text| !text.is_empty())
            .map(label)
            .collect(),
        before: cursor.transpose()?,
        count,
    })
}

async fn find(desk: &Desk, caller: &Caller, id: &str) -> Result<Arc<Job>, Refused> {
    let parsed = Uuid::try_parse(id).map_err(|_| no_job(id))?;
    desk.jobs.find(parsed, caller.scope()).await
}

/// Tells all that is known of a job.
#[utoipa::path(get, operation_id = "getJob", path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job"), Wait),
    responses((status = 200, description = "What was asked for", body = JobDocument), (status = 404, description = "There is none", body = Problem)))]
pub async fn get(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<Wait>,
) -> Result<Json<JobDocument>, Refused> {
    let job = find(&desk, &caller, &id).await?;
    if let Some(time) = query.time()? {
        wait(&desk.jobs, &job, time).await;
    }
    Ok(Json(document::job(&job)))
}

/// Asks a job to end. One that has ended stays as it is.
#[utoipa::path(post, operation_id = "cancelJob", path = "/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = String, Path, description = "The job")),
    responses((status = 202, description = "It was asked to", body = JobDocument), (status = 404, description = "There is none", body = Problem)))]
pub async fn cancel(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<JobDocument>), Refused> {
    let job = find(&desk, &caller, &id).await?;
    desk.jobs.cancel(&job).await?;
    Ok((StatusCode::ACCEPTED, Json(document::job(&job))))
}

/// Forgets a job that has ended, with its output and its artifacts.
#[utoipa::path(delete, operation_id = "deleteJob", path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job")),
    responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem), (status = 409, description = "Not now", body = Problem)))]
pub async fn delete(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    let job = find(&desk, &caller, &id).await?;
    desk.jobs.remove(&job).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which output is read.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct LogsQuery {
    /// `stdout` (default) or `stderr`.
    stream: Option<Stream>,
    /// Whether to go on until the job ended.
    follow: bool,
}

/// Reads one output of a job as raw bytes, as far as it is kept.
#[utoipa::path(get, operation_id = "readJobOutput", path = "/v1/jobs/{id}/logs", tag = "jobs", params(("id" = String, Path, description = "The job"), LogsQuery),
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "There is none", body = Problem)))]
pub async fn logs(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Refused> {
    let job = find(&desk, &caller, &id).await?;
    let bytes = events::bytes(job, query.stream.unwrap_or(Stream::Stdout), query.follow);
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(bytes)).into_response())
}

/// Follows a job: its states and its output as server-sent events. The data of each is an `Event`; `Last-Event-ID`
/// takes it up again after any of them.
#[utoipa::path(get, operation_id = "followJob", path = "/v1/jobs/{id}/events", tag = "jobs", params(("id" = String, Path, description = "The job"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen")),
    responses((status = 200, description = "The events", body = ampoule_client::types::Event, content_type = "text/event-stream"),
        (status = 404, description = "There is none", body = Problem)))]
pub async fn follow(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let job = find(&desk, &caller, &id).await?;
    let place = match headers.get("last-event-id") {
        None => Place::default(),
        Some(value) => value
            .to_str()
            .ok()
            .and_then(Place::parse)
            .ok_or_else(|| Refused::new(INVALID_HEADER, "Last-Event-ID is not the id of an event of a job"))?,
    };
    let events = Sse::new(events::events(job, place)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(events.into_response())
}

fn ended_artifacts(job: &Job) -> Vec<Artifact> {
    let status = job.status.borrow();
    status.conclusion.as_ref().map(|ended| ended.artifacts.clone()).unwrap_or_default()
}

/// Lists the files that were kept of a job.
#[utoipa::path(get, operation_id = "listArtifacts", path = "/v1/jobs/{id}/artifacts", tag = "jobs", params(("id" = String, Path, description = "The job")),
    responses((status = 200, description = "What was asked for", body = ArtifactList), (status = 404, description = "There is none", body = Problem)))]
pub async fn artifacts(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<ArtifactList>, Refused> {
    let job = find(&desk, &caller, &id).await?;
    Ok(Json(ArtifactList { artifacts: ended_artifacts(&job) }))
}

/// Reads a file that was kept.
#[utoipa::path(get, operation_id = "readArtifact", path = "/v1/jobs/{id}/artifacts/{path}", tag = "jobs",
    params(("id" = String, Path, description = "The job"),
        ("path" = String, Path, description = "The path in the sandbox, without its first slash; slashes need no escape")),
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "There is none", body = Problem)))]
pub async fn artifact(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path((id, path)): Path<(String, String)>,
) -> Result<Response, Refused> {
    let job = find(&desk, &caller, &id).await?;
    let wanted = format!("/{}", path.trim_start_matches('/'));
    let artifacts = ended_artifacts(&job);
    let kept = |artifact: &Artifact| artifact.path == wanted && artifact.left_out.is_none();
    let Some(number) = artifacts.iter().position(kept) else {
        let refused = Refused::new(NO_ARTIFACT, format!("job {id} has kept no file `{wanted}`"));
        return Err(refused.hint(format!("GET /v1/jobs/{id}/artifacts lists those that it has")));
    };
    let file = tokio::fs::File::open(desk.jobs.artifact(job.id(), number)).await;
    let file = file.map_err(|error| Refused::internal(&error))?;
    let length = HeaderValue::from(artifacts[number].size_bytes);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, length),
        // What a job wrote is never to be shown by a browser as a page of ours.
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}
