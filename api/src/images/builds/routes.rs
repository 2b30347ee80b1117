//! The routes of builds: asked for, listed, looked at, followed and stopped.

use std::sync::Arc;

use ampoule_client::types::{self, BuildEvent, BuildList, BuildRequest, BuildState, BuildStepStatus, Problem};
use ampoule_plugins::Policies;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::super::Images;
use super::super::transfers::KEEP_ALIVE;
use super::form;
use super::kept::{Builds, HangingUp, Kept};
use super::log::Follower;
use super::records::{Conclusion, Filter, Record};
use crate::problem::{INVALID_HEADER, INVALID_QUERY, Refused};
use crate::request::{Caller, Query};

/// Builds of one page when nothing is said, and at most.
const PAGE: (usize, usize) = (50, 500);

/// What the body of a build holds, for the description.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the form, which is read part by part")]
pub struct BuildForm {
    /// What is asked for, as JSON. Comes first.
    request: BuildRequest,
    /// The files that the build may use: a plain tar. What `NAME.dockerignore` beside the Dockerfile, or else
    /// `.dockerignore`, leaves out is left out here.
    #[schema(value_type = String, format = Binary, content_media_type = "application/x-tar")]
    context: Vec<u8>,
}

/// Builds an image.
///
/// The answer is the progress; its status is 200 as soon as the body is here, whatever becomes of the build, whose last
/// event is `built` or `failed`. Hanging up stops the build, and leaves nothing of it but steps that need not be run again.
/// With `detach` the answer is the build (202), which goes on by itself. `Location` is where it is, in both cases.
#[utoipa::path(post, operation_id = "buildImage", path = "/v1/builds", tag = "builds",
    request_body(content = BuildForm, content_type = "multipart/form-data", description = "The request and then the context"),
    responses((status = 200, description = "The progress", content_type = "text/event-stream", body = BuildEvent),
        (status = 202, description = "The build was taken", body = types::Build),
        (status = 400, description = "The parts of the body are not what was expected", body = Problem),
        (status = 413, description = "The context is too large", body = Problem),
        (status = 415, description = "The body is no form", body = Problem),
        (status = 422, description = "The context is no tar, has no Dockerfile, or a field cannot be used", body = Problem),
        (status = 503, description = "Other builds are under way", body = Problem)))]
pub async fn create(
    State(images): State<Images>,
    State(builds): State<Builds>,
    State(policies): State<Arc<Policies>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Refused> {
    let asked = form::receive(&images, request).await?;
    let detach = asked.request.detach;
    let record = Record {
        id: Uuid::now_v7(),
        token: caller.name().to_owned(),
        created: jiff::Timestamp::now(),
        dockerfile: asked.source.name().to_owned(),
        tags: asked.request.tags.clone(),
        target: asked.request.target.clone(),
    };
    let taken = {
        let builds = builds.clone();
        // Not on this task, which ends when the client hangs up.
        tokio::spawn(async move {
            let kept = super::start(&images, &builds, policies, asked, record).await?;
            let hanging_up = (!detach).then(|| HangingUp(kept.clone()));
            Ok::<_, Refused>((kept, hanging_up))
        })
    };
    let (kept, hanging_up) = taken.await.map_err(|error| Refused::internal(&error))??;
    let mut response = match hanging_up {
        None => (StatusCode::ACCEPTED, Json(document(&kept.record, None, None))).into_response(),
        Some(hanging_up) => {
            let follower = builds.follow(&kept, 0, true).map_err(|error| Refused::internal(&error))?;
            told(follower, Some(hanging_up))
        }
    };
    let place = HeaderValue::try_from(format!("/v1/builds/{}", kept.record.id));
    response.headers_mut().extend(place.ok().map(|place| (header::LOCATION, place)));
    Ok(response)
}

/// Events as an answer.
fn told(follower: Option<Follower>, hanging_up: Option<HangingUp>) -> Response {
    let events = stream::unfold((follower, hanging_up), |(mut follower, hanging_up)| async {
        let (id, event) = follower.as_mut()?.next().await?;
        let written = sse::Event::default().id(id.to_string()).event(super::name(&event)).json_data(&event);
        Some((written, (follower, hanging_up)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// Which builds are listed.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct ListQuery {
    /// Only those in this state.
    state: Option<BuildState>,
    /// Goes on where a page ended.
    cursor: Option<String>,
    /// At most so many, 1 to 500. Default 50.
    limit: Option<usize>,
}

/// Lists builds, newest first.
#[utoipa::path(get, operation_id = "listBuilds", path = "/v1/builds", tag = "builds", params(ListQuery),
    responses((status = 200, description = "What was asked for", body = BuildList),
        (status = 400, description = "The query is not what was expected", body = Problem)))]
pub async fn list(
    State(builds): State<Builds>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<BuildList>, Refused> {
    let limit = query.limit.unwrap_or(PAGE.0).clamp(1, PAGE.1);
    let cursor = query.cursor.as_deref().map(|cursor| {
        Uuid::try_parse(cursor)
            .map_err(|_| Refused::new(INVALID_QUERY, format!("cursor: `{cursor}` was not given by a page")))
    });
    let (token, before) = (caller.scope().map(str::to_owned), cursor.transpose()?);
    let mut found = builds.list(Filter { state: query.state, token, before, count: limit + 1 }).await?;
    let is_last = found.len() <= limit;
    found.truncate(limit);
    let next = found.last().filter(|_| !is_last).map(|last| last.record.id.to_string());
    let documents = found.iter().map(|stored| document(&stored.record, stored.conclusion.as_ref(), None));
    Ok(Json(BuildList { builds: documents.collect(), next }))
}

/// Tells all that is known of a build.
#[utoipa::path(get, operation_id = "getBuild", path = "/v1/builds/{id}", tag = "builds", params(("id" = String, Path, description = "The build")),
    responses((status = 200, description = "What was asked for", body = types::Build), (status = 404, description = "There is none", body = Problem)))]
pub async fn get(
    State(builds): State<Builds>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<types::Build>, Refused> {
    let kept = builds.find(&id, caller.scope()).await?;
    Ok(Json(whole(builds, kept).await?))
}

async fn whole(builds: Builds, kept: Arc<Kept>) -> Result<types::Build, Refused> {
    let looked = tokio::task::spawn_blocking(move || {
        let steps = builds.steps(&kept)?;
        Ok::<_, std::io::Error>(document(&kept.record, kept.conclusion.get(), Some(steps)))
    });
    let document = looked.await.map_err(|error| Refused::internal(&error))?;
    document.map_err(|error| Refused::internal(&error))
}

/// Asks a build to end. One that has ended stays as it is.
#[utoipa::path(delete, operation_id = "cancelBuild", path = "/v1/builds/{id}", tag = "builds", params(("id" = String, Path, description = "The build")),
    responses((status = 202, description = "It was asked to", body = types::Build), (status = 404, description = "There is none", body = Problem)))]
pub async fn cancel(
    State(builds): State<Builds>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<types::Build>), Refused> {
    let kept = builds.find(&id, caller.scope()).await?;
    kept.cancel();
    Ok((StatusCode::ACCEPTED, Json(whole(builds, kept).await?)))
}

/// How far the events of a build are read.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct LogsQuery {
    /// Whether to go on until the build ended.
    follow: bool,
}

/// Tells what a build told, from its start, as server-sent events; `Last-Event-ID` takes it up again after any of them.
#[utoipa::path(get, operation_id = "readBuildLog", path = "/v1/builds/{id}/logs", tag = "builds",
    params(("id" = String, Path, description = "The build"), LogsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen")),
    responses((status = 200, description = "The events", body = BuildEvent, content_type = "text/event-stream"),
        (status = 404, description = "There is none", body = Problem)))]
pub async fn logs(
    State(builds): State<Builds>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let kept = builds.find(&id, caller.scope()).await?;
    let wrong = || Refused::new(INVALID_HEADER, "Last-Event-ID is not the id of an event of this build");
    let place = match headers.get("last-event-id") {
        None => 0,
        Some(value) => value.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(wrong)?,
    };
    let follower = builds.follow(&kept, place, query.follow).map_err(|error| Refused::internal(&error))?;
    Ok(told(Some(follower.ok_or_else(wrong)?), None))
}

/// A build as it travels.
fn document(record: &Record, conclusion: Option<&Conclusion>, steps: Option<Vec<BuildStepStatus>>) -> types::Build {
    let (result, problem, place) = match conclusion.map(|conclusion| &conclusion.last) {
        Some(BuildEvent::Built(result)) => (Some(result.clone()), None, None),
        Some(BuildEvent::Failed { problem, place }) => (None, Some(problem.clone()), *place),
        _ => (None, None, None),
    };
    types::Build {
        id: record.id.to_string(),
        state: conclusion.map_or(BuildState::Running, |conclusion| conclusion.state),
        dockerfile: record.dockerfile.clone(),
        tags: record.tags.clone(),
        target: record.target.clone(),
        token: record.token.clone(),
        created: record.created,
        ended: conclusion.map(|conclusion| conclusion.ended),
        result,
        problem,
        place,
        steps,
    }
}
