//! Refusals as RFC 9457 problem documents. A caller sees a status, a stable code and a sentence; the log sees the cause.

use ampoule_client::types::Problem;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::state::StateError;

/// A kind of problem: what stays the same for all its occurrences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The stable name.
    pub code: &'static str,
    /// The HTTP status.
    pub status: StatusCode,
    /// What it is, in a few words.
    pub title: &'static str,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $status:ident $code:literal $title:literal;)*) => {
        $($(#[$doc])* pub const $name: Kind = Kind { code: $code, status: StatusCode::$status, title: $title };)*
        /// Every kind of problem, for the documentation and its test.
        pub const ALL: &[Kind] = &[$($name),*];
    };
}

kinds! {
    /// The body is not the JSON that was expected.
    INVALID_JSON = BAD_REQUEST "invalid-json" "The body is not what was expected";
    /// The parts of the body are not those that were expected.
    INVALID_FORM = BAD_REQUEST "invalid-form" "The parts of the body are not what was expected";
    /// A part of the query cannot be used.
    INVALID_QUERY = BAD_REQUEST "invalid-query" "The query is not what was expected";
    /// A header cannot be used.
    INVALID_HEADER = BAD_REQUEST "invalid-header" "A header is not what was expected";
    /// The body did not arrive whole.
    BODY_BROKEN = BAD_REQUEST "body-broken" "The body did not arrive";
    /// There is no valid token.
    UNAUTHORIZED = UNAUTHORIZED "unauthorized" "A token is needed";
    /// The token does not reach so far.
    FORBIDDEN = FORBIDDEN "forbidden" "This is not allowed here";
    /// A policy refused the job.
    DENIED = FORBIDDEN "denied-by-policy" "A policy refused the job";
    /// There is no such route.
    NO_ROUTE = NOT_FOUND "no-such-route" "There is nothing here";
    /// There is no such job.
    NO_JOB = NOT_FOUND "job-not-found" "There is no such job";
    /// There is no such build.
    NO_BUILD = NOT_FOUND "build-not-found" "There is no such build";
    /// There is no such image.
    NO_IMAGE = NOT_FOUND "image-not-found" "There is no such image";
    /// There is no such artifact.
    NO_ARTIFACT = NOT_FOUND "artifact-not-found" "There is no such artifact";
    /// There is no such token.
    NO_TOKEN = NOT_FOUND "token-not-found" "There is no such token";
    /// There is no such upload.
    NO_UPLOAD = NOT_FOUND "upload-not-found" "There is no such upload";
    /// The route does not do this.
    NO_METHOD = METHOD_NOT_ALLOWED "method-not-allowed" "This cannot be done here";
    /// The job has not ended yet.
    NOT_ENDED = CONFLICT "job-not-ended" "The job has not ended";
    /// The name is taken.
    TOKEN_EXISTS = CONFLICT "token-exists" "A token of this name exists";
    /// Jobs need the image.
    IMAGE_IN_USE = CONFLICT "image-in-use" "The image is in use";
    /// A digest stands for an image with several names.
    SEVERAL_NAMES = CONFLICT "image-has-several-names" "The image has several names";
    /// What would be pruned is not what was shown.
    PLAN_CHANGED = CONFLICT "prune-plan-changed" "The images have changed";
    /// The body is longer than allowed.
    TOO_LARGE = PAYLOAD_TOO_LARGE "body-too-large" "The body is too large";
    /// The body is of another type.
    WRONG_TYPE = UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" "The body is of another type";
    /// A field cannot be used.
    INVALID_FIELD = UNPROCESSABLE_ENTITY "invalid-field" "A field cannot be used";
    /// A limit is above the ceiling.
    ABOVE_CEILING = UNPROCESSABLE_ENTITY "limit-above-ceiling" "A limit is too high";
    /// The same key was used for another request.
    KEY_REUSED = UNPROCESSABLE_ENTITY "idempotency-key-reused" "The idempotency key belongs to another request";
    /// The image cannot be read.
    IMAGE_DAMAGED = CONFLICT "image-damaged" "The image is damaged";
    /// The archive is no image.
    INVALID_IMAGE = UNPROCESSABLE_ENTITY "invalid-image" "The archive cannot be imported";
    /// The Dockerfile cannot be used, or a step of it failed.
    BUILD_FAILED = UNPROCESSABLE_ENTITY "build-failed" "The image cannot be built";
    /// Somebody stopped the build.
    BUILD_CANCELLED = CONFLICT "build-cancelled" "The build was cancelled";
    /// The service was stopped while the build was under way.
    BUILD_INTERRUPTED = SERVICE_UNAVAILABLE "build-interrupted" "The build was interrupted";
    /// The registry does not let whoever asks do this.
    REGISTRY_DENIED = FORBIDDEN "registry-denied" "The registry does not allow it";
    /// The tag leads elsewhere than it is pinned to.
    TAG_MOVED = CONFLICT "tag-moved" "The tag was moved";
    /// The registry asks to wait.
    REGISTRY_LIMITED = TOO_MANY_REQUESTS "registry-limited" "The registry has had too many requests";
    /// The registry failed, or cannot be reached.
    REGISTRY_FAILED = BAD_GATEWAY "registry-failed" "The registry failed";
    /// The disk is full.
    /// The queue is full.
    QUEUE_FULL = TOO_MANY_REQUESTS "queue-full" "The queue is full";
    /// Something broke.
    INTERNAL = INTERNAL_SERVER_ERROR "internal" "The service failed";
    /// The service is being stopped.
    DRAINING = SERVICE_UNAVAILABLE "draining" "The service is being stopped";
    /// The disk is full.
    DISK_FULL = INSUFFICIENT_STORAGE "disk-full" "There is no room for it";
    /// The database has too much to do.
    BUSY = SERVICE_UNAVAILABLE "busy" "The service has too much to do";
}

/// A request that was refused. As a response it carries the document; `finish` of the router writes it down.
#[derive(Clone, Debug)]
pub struct Refused {
    /// What the caller is told.
    pub problem: Box<Problem>,
    /// When another try makes sense, in seconds.
    pub retry_after_s: Option<u64>,
}

impl Refused {
    /// A refusal of a kind, with a sentence on this occurrence.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Refused {
        let problem = Problem {
            kind: format!("urn:ampoule:problem:{}", kind.code),
            title: kind.title.to_owned(),
            status: kind.status.as_u16(),
            code: kind.code.to_owned(),
            detail: detail.into(),
            hint: None,
            field: None,
            policy: None,
            policy_code: None,
            job_id: None,
            request_id: None,
        };
        Refused { problem: Box::new(problem), retry_after_s: None }
    }

    /// A failure of the service. The cause goes to the log, and not to the caller.
    pub fn internal(cause: &dyn std::error::Error) -> Refused {
        tracing::error!(cause = chain(cause), "a request failed");
        Refused::new(INTERNAL, "the service could not do this; its log says why")
            .hint("look for the request's id in the log")
    }

    /// A field that cannot be used.
    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Refused {
        let mut refused = Refused::new(INVALID_FIELD, detail);
        refused.problem.field = Some(field.into());
        refused
    }

    /// Adds what the reader can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Refused {
        self.problem.hint = Some(hint.into());
        self
    }

    /// Adds when another try makes sense.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Refused {
        self.retry_after_s = Some(seconds);
        self
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Document(self.problem));
        response
    }
}

/// The document of a response that has no body yet.
#[derive(Clone, Debug)]
pub struct Document(pub Box<Problem>);

impl From<StateError> for Refused {
    fn from(error: StateError) -> Refused {
        match error {
            StateError::Busy => Refused::new(BUSY, error.to_string()).retry_after(1),
            StateError::Closed => Refused::new(DRAINING, "the service is being stopped").retry_after(5),
            error => Refused::internal(&error),
        }
    }
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// An error with all its causes in one line, and the first hint that one of them has: what its reader can do.
pub fn sentence(error: &dyn std::error::Error) -> (String, Option<String>) {
    let mut parts: Vec<String> = Vec::new();
    let mut hint = None;
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        let (said, advice) =
            text.split_once("\nhint: ").map_or((text.as_str(), None), |(said, hint)| (said, Some(hint)));
        hint = hint.or_else(|| advice.map(str::to_owned));
        // A transparent error says what its source says.
        if parts.last().is_none_or(|last| last != said) {
            parts.push(said.to_owned());
        }
        cause = error.source();
    }
    (parts.join(": "), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not take it\nhint: {hint}")]
    struct Outer {
        hint: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn a_hint_is_told_apart_from_the_causes() {
        let error = Outer { hint: "try again", source: std::io::Error::other("it was hot") };
        assert_eq!(sentence(&error), ("could not take it: it was hot".to_owned(), Some("try again".to_owned())));
    }

    #[test]
    fn every_kind_of_problem_has_a_code_of_its_own() {
        let codes: std::collections::BTreeSet<_> = ALL.iter().map(|kind| kind.code).collect();
        assert_eq!(codes.len(), ALL.len());
    }
}
