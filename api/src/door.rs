//! What every request passes: a name for the log, a measurement, the question whose it is, and a problem document
//! for every refusal, wherever it was made.

use std::sync::Arc;
use std::time::Instant;

use ampoule_client::types::Problem;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::problem::{Document, INTERNAL, NO_METHOD, NO_ROUTE, Refused, UNAUTHORIZED};
use crate::request::Caller;
use crate::tokens::Tokens;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 64;
/// What needs no token: nothing here tells of a job.
const PUBLIC: [&str; 4] = ["/healthz", "/readyz", "/v1/version", "/openapi.json"];

/// The name of a request in answers and in the log.
#[derive(Clone, Debug)]
struct RequestId(HeaderValue);

/// Names, measures and finishes a request.
pub async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let id = request_id(request.headers());
    let mut response = next.run(request).await;
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let status = response.status().as_u16();
    metrics.request(known_method(&method), route, status, start.elapsed());
    if let Some(Document(problem)) = response.extensions_mut().remove::<Document>() {
        response = write_problem(response, *problem, &id);
    }
    let id_text = id.0.to_str().unwrap_or_default();
    tracing::debug!(request.id = id_text, %method, route, status, micros = start.elapsed().as_micros() as u64, "answered");
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

/// Methods are labels of metrics; a client cannot make new ones.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}

fn request_id(headers: &HeaderMap) -> RequestId {
    let is_plain = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        !bytes.is_empty() && bytes.len() <= REQUEST_ID_BYTES_MAX && bytes.iter().all(plain)
    };
    let given = headers.get(REQUEST_ID).filter(is_plain).cloned();
    RequestId(given.unwrap_or_else(|| {
        let mut buffer = Uuid::encode_buffer();
        let text = Uuid::now_v7().simple().encode_lower(&mut buffer);
        HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    }))
}

fn write_problem(response: Response, mut problem: Problem, id: &RequestId) -> Response {
    problem.request_id = id.0.to_str().ok().map(str::to_owned);
    let (mut parts, _) = response.into_parts();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    Response::from_parts(parts, Body::from(body))
}

/// Lets a request in that came over the unix socket: its permissions have said who may.
pub async fn unix(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Caller::Local);
    next.run(request).await
}

/// Lets a request in that came over TCP with a token, or asks for nothing secret.
pub async fn tcp(State(tokens): State<Tokens>, mut request: Request, next: Next) -> Response {
    let name = bearer(request.headers()).and_then(|secret| tokens.name_of(secret));
    match name {
        Some(name) => drop(request.extensions_mut().insert(Caller::Token(name))),
        None if PUBLIC.contains(&request.uri().path()) => {}
        None => {
            let refused = Refused::new(UNAUTHORIZED, "there is no valid token in Authorization");
            return refused
                .hint("send `Authorization: Bearer` with the secret of `ampoule token create`")
                .into_response();
        }
    }
    next.run(request).await
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

/// Answers where there is no route.
pub async fn no_route(uri: Uri) -> Refused {
    Refused::new(NO_ROUTE, format!("there is nothing at `{}`", uri.path())).hint("GET /openapi.json has all routes")
}

/// Answers where the route does not know the method.
pub async fn no_method(method: Method, uri: Uri) -> Refused {
    Refused::new(NO_METHOD, format!("`{method}` cannot be done at `{}`", uri.path())).hint("Allow names what can be")
}

/// Answers when a handler panicked; one failed request does not end the service.
pub fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let text = cause.downcast_ref::<&str>().copied().or_else(|| cause.downcast_ref::<String>().map(String::as_str));
    tracing::error!(cause = text.unwrap_or("no words"), "a handler panicked");
    let refused = Refused::new(INTERNAL, "the service could not do this; its log says why");
    refused.into_response()
}
