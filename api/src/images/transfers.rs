//! Pulls and pushes over HTTP: as one answer at the end, or as server-sent events for whoever asks for them. Whoever
//! hangs up stops the work. Logins come with a request, are passed on, and are kept nowhere.

use std::time::Duration;

use ampoule_client::types::{
    self, PullRequest, PullResult, PushRequest, PushResult, RegistryLogin, TransferEvent, TransferLayer,
};
use ampoule_engine::image::reference::Reference;
use ampoule_engine::image::registry::{Credentials, RegistryError};
use ampoule_engine::image::store::{self, LayerError, LayerState, Progress, PullError, PushError, Stop, StoreError};
use ampoule_engine::runtime::RuntimeError;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::document::document;
use super::{Images, told, unresolved};
use crate::problem::{
    BUSY, DISK_FULL, DRAINING, INVALID_HEADER, INVALID_IMAGE, Kind, NO_IMAGE, REGISTRY_DENIED, REGISTRY_FAILED,
    REGISTRY_LIMITED, Refused, TAG_MOVED,
};
use crate::request::JsonBody;

/// Pulls and pushes under way at once; more are told to come back.
pub(super) const TRANSFERS_MAX: usize = 8;
/// Events that wait for a slow reader; progress beyond is left out.
const EVENTS_MAX: usize = 64;
/// How often a silent stream says that it is still there.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Longest login header, in bytes.
const LOGIN_BYTES_MAX: usize = 128 * 1024;
/// What a helper of Docker says instead of a user name when the secret is a refresh token.
const TOKEN_USER: &str = "<token>";

/// Pulls an image from a registry. With `Accept: text/event-stream` the answer is its progress, as `TransferEvent`s, and
/// the status is 200 whatever becomes of it; without, the answer comes at the end. Hanging up stops the pull, and leaves
/// nothing of it.
#[utoipa::path(post, operation_id = "pullImage", path = "/v1/images:pull", tag = "images", request_body = PullRequest,
    params(("X-Registry-Auth" = Option<String>, Header, description = "Who pulls, as Docker's clients write it: JSON in base64")),
    responses((status = 200, description = "The image is here", content(
            (PullResult = "application/json"), (TransferEvent = "text/event-stream"))),
        (status = 403, description = "The registry does not allow it", body = types::Problem),
        (status = 404, description = "The registry has no such image", body = types::Problem),
        (status = 409, description = "The tag is not what it is pinned to", body = types::Problem),
        (status = 422, description = "The image cannot be taken", body = types::Problem),
        (status = 429, description = "The registry has had too many requests", body = types::Problem),
        (status = 502, description = "The registry failed, or cannot be reached", body = types::Problem),
        (status = 503, description = "Other transfers are under way", body = types::Problem),
        (status = 507, description = "There is no room for it", body = types::Problem)))]
pub async fn pull(
    State(images): State<Images>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<PullRequest>,
) -> Result<Response, Refused> {
    let reference = parse("reference", &request.reference)?;
    let credentials = login(&headers)?;
    let resolving = TransferEvent::Resolving { reference: reference.to_string() };
    let wanted = store::PullRequest { reference, platform: request.platform, credentials };
    let work = images.transfer(move |images, told, stop| {
        let pulled = images.store.pull(images.runtime.as_ref(), &images.registry, &wanted, told, stop);
        pulled.map_err(|error| unpulled(&error)).map(|pulled| PullResult {
            image: document(pulled.image),
            digest: pulled.digest.to_string(),
            was_here: pulled.was_here,
        })
    })?;
    Ok(work.answer(&headers, resolving, TransferEvent::Pulled).await)
}

/// Pushes an image to a registry; answers as a pull does.
#[utoipa::path(post, operation_id = "pushImage", path = "/v1/images:push", tag = "images", request_body = PushRequest,
    params(("X-Registry-Auth" = Option<String>, Header, description = "Who pushes, as Docker's clients write it: JSON in base64")),
    responses((status = 200, description = "The image is there", content(
            (PushResult = "application/json"), (TransferEvent = "text/event-stream"))),
        (status = 403, description = "The registry does not allow it", body = types::Problem),
        (status = 404, description = "There is no such image", body = types::Problem),
        (status = 429, description = "The registry has had too many requests", body = types::Problem),
        (status = 502, description = "The registry failed, or cannot be reached", body = types::Problem),
        (status = 503, description = "Other transfers are under way", body = types::Problem)))]
pub async fn push(
    State(images): State<Images>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<PushRequest>,
) -> Result<Response, Refused> {
    let (field, name) = match &request.target {
        Some(target) => ("target", target),
        None => ("reference", &request.reference),
    };
    let target = parse(field, name)?;
    let credentials = login(&headers)?;
    let resolving = TransferEvent::Resolving { reference: target.to_string() };
    let wanted = store::PushRequest { image: request.reference, target, credentials };
    let work = images.transfer(move |images, told, stop| {
        let pushed = images.store.push(&images.registry, &wanted, told, stop);
        pushed.map_err(|error| unpushed(&error)).map(|pushed| PushResult {
            target: pushed.target,
            digest: pushed.digest.to_string(),
            index_left_out: pushed.index_left_out,
        })
    })?;
    Ok(work.answer(&headers, resolving, TransferEvent::Pushed).await)
}

fn parse(field: &'static str, text: &str) -> Result<Reference, Refused> {
    Reference::parse(text).map_err(|error| Refused::field(field, error.to_string()))
}

/// A pull or a push that is under way. Dropping it stops the work.
struct Work<T> {
    progress: mpsc::Receiver<Progress>,
    done: JoinHandle<Result<T, Refused>>,
    _stops: StopsWhenDropped,
    _permit: OwnedSemaphorePermit,
}

pub(super) struct StopsWhenDropped(pub(super) Stop);

impl Drop for StopsWhenDropped {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Images {
    fn transfer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Images, &(dyn Fn(Progress) + Sync), &Stop) -> Result<T, Refused> + Send + 'static,
    ) -> Result<Work<T>, Refused> {
        let busy = |_| Refused::new(BUSY, format!("{TRANSFERS_MAX} pulls and pushes are under way")).retry_after(5);
        let permit = self.transfers.clone().try_acquire_owned().map_err(busy)?;
        let (sender, progress) = mpsc::channel(EVENTS_MAX);
        let stop = Stop::default();
        let (images, asked) = (self.clone(), stop.clone());
        let done = tokio::task::spawn_blocking(move || {
            // Whoever reads slowly, or not at all, does not hold up the work.
            let told = |progress| drop(sender.try_send(progress));
            work(&images, &told, &asked)
        });
        Ok(Work { progress, done, _stops: StopsWhenDropped(stop), _permit: permit })
    }
}

impl<T: serde::Serialize + Send + 'static> Work<T> {
    async fn answer(mut self, headers: &HeaderMap, first: TransferEvent, last: fn(T) -> TransferEvent) -> Response {
        let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        if !accepts.into_iter().any(|accepts| accepts.contains("text/event-stream")) {
            // Nobody wants to know before the end.
            self.progress.close();
            return match self.end().await {
                Ok(done) => Json(done).into_response(),
                Err(refused) => refused.into_response(),
            };
        }
        let following = Following { work: Some(self), first: Some(first), last };
        let events = stream::unfold(following, |mut following| async {
            let event = following.next().await?;
            Some((sse::Event::default().event(name(&event)).json_data(&event), following))
        });
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }

    async fn end(&mut self) -> Result<T, Refused> {
        (&mut self.done).await.map_err(|error| Refused::internal(&error))?
    }
}

/// Somebody who watches a transfer.
struct Following<T> {
    work: Option<Work<T>>,
    first: Option<TransferEvent>,
    last: fn(T) -> TransferEvent,
}

impl<T: serde::Serialize + Send + 'static> Following<T> {
    async fn next(&mut self) -> Option<TransferEvent> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let work = self.work.as_mut()?;
        if let Some(progress) = work.progress.recv().await {
            return Some(event(progress));
        }
        // The work lets go of its end of the channel when it is done.
        let ended = work.end().await;
        self.work = None;
        Some(match ended {
            Ok(done) => (self.last)(done),
            Err(refused) => TransferEvent::Failed { problem: refused.problem },
        })
    }
}

fn event(progress: Progress) -> TransferEvent {
    match progress {
        Progress::Resolved { digest, layers } => {
            let layers = layers.into_iter();
            let layers = layers.map(|(digest, size_bytes)| TransferLayer { digest: digest.to_string(), size_bytes });
            TransferEvent::Resolved { digest: digest.to_string(), layers: layers.collect() }
        }
        Progress::Layer { digest, state, bytes, total } => TransferEvent::Layer {
            digest: digest.to_string(),
            state: match state {
                LayerState::Present => types::LayerState::Present,
                LayerState::Moving => types::LayerState::Moving,
                LayerState::Unpacked => types::LayerState::Unpacked,
                LayerState::Mounted => types::LayerState::Mounted,
                LayerState::Sent => types::LayerState::Sent,
            },
            bytes,
            total_bytes: total,
        },
    }
}

fn name(event: &TransferEvent) -> &'static str {
    match event {
        TransferEvent::Resolving { .. } => "resolving",
        TransferEvent::Resolved { .. } => "resolved",
        TransferEvent::Layer { .. } => "layer",
        TransferEvent::Pulled(_) => "pulled",
        TransferEvent::Pushed(_) => "pushed",
        TransferEvent::Failed { .. } => "failed",
    }
}

/// Who somebody is to a registry, from Docker's header; both alphabets of base64, with padding or without, are in use.
fn login(headers: &HeaderMap) -> Result<Option<Credentials>, Refused> {
    let Some(value) = headers.get("x-registry-auth") else { return Ok(None) };
    // The value itself is never told: it is a secret.
    let wrong = |problem: &str| {
        Refused::new(INVALID_HEADER, format!("X-Registry-Auth {problem}"))
            .hint("it is JSON in base64, as in {\"username\": …, \"password\": …}")
    };
    if value.len() > LOGIN_BYTES_MAX {
        return Err(wrong("is too long"));
    }
    let text: String = value.to_str().map_err(|_| wrong("is no base64"))?.replace('+', "-").replace('/', "_");
    let json = base64(&text).ok_or_else(|| wrong("is no base64"))?;
    if json.is_empty() {
        return Ok(None);
    }
    let login: RegistryLogin = serde_json::from_slice(&json).map_err(|_| wrong("is not the JSON of a login"))?;
    let credentials = credentials(login).ok_or_else(|| wrong("has an `auth` that is not `user:password` in base64"))?;
    match credentials {
        Some(credentials) if !credentials.is_bounded() => Err(wrong("is too long")),
        credentials => Ok(credentials),
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&alphabet::URL_SAFE, config).decode(text.trim()).ok()
}

/// What of a login counts; the inner `None` is nobody.
fn credentials(login: RegistryLogin) -> Option<Option<Credentials>> {
    if !login.identitytoken.is_empty() {
        return Some(Some(Credentials::Identity(login.identitytoken)));
    }
    if !login.registrytoken.is_empty() {
        return Some(Some(Credentials::Bearer(login.registrytoken)));
    }
    let (username, password) = if login.username.is_empty() && !login.auth.is_empty() {
        let plain = String::from_utf8(base64(&login.auth.replace('+', "-").replace('/', "_"))?).ok()?;
        let (username, password) = plain.split_once(':')?;
        (username.to_owned(), password.trim_end_matches('\0').to_owned())
    } else {
        (login.username, login.password)
    };
    Some(match username.as_str() {
        "" => None,
        TOKEN_USER => Some(Credentials::Identity(password)),
        _ => Some(Credentials::Password { username, password }),
    })
}

pub(super) fn unpulled(error: &PullError) -> Refused {
    match error {
        PullError::Registry(registry) => unregistered(error, registry),
        PullError::Moved { .. } => told(TAG_MOVED, error),
        PullError::ForeignPlatform { .. } => Refused::field("platform", error.to_string()),
        PullError::Store(store) => unstored(store),
        PullError::Layer(LayerError::Unpack { source, .. }) => match source {
            RuntimeError::Layer(problem) if problem.contains("No space left") => told(DISK_FULL, error),
            RuntimeError::Gone | RuntimeError::System { .. } => Refused::internal(error),
            _ => told(INVALID_IMAGE, error),
        },
        PullError::Stopped => Refused::new(DRAINING, error.to_string()),
        PullError::Layer(LayerError::Corrupt { .. }) => told(REGISTRY_FAILED, error),
        _ => told(INVALID_IMAGE, error),
    }
}

fn unpushed(error: &PushError) -> Refused {
    match error {
        PushError::Resolve(error) => unresolved(error),
        PushError::Registry(registry) => unregistered(error, registry),
        PushError::Target(_) => {
            let refused = told(INVALID_IMAGE, error);
            Refused::field("target", refused.problem.detail.clone()).hint("give a name with a tag")
        }
        PushError::Damaged { .. } => told(crate::problem::IMAGE_DAMAGED, error),
        PushError::Stopped => Refused::new(DRAINING, error.to_string()),
    }
}

fn unregistered(error: &dyn std::error::Error, registry: &RegistryError) -> Refused {
    let kind: Kind = match registry {
        RegistryError::Denied { .. } | RegistryError::ForeignRealm { .. } | RegistryError::Hosts(_) => REGISTRY_DENIED,
        RegistryError::NotFound { .. } => NO_IMAGE,
        RegistryError::Limited { after, .. } => {
            return told(REGISTRY_LIMITED, error).retry_after(after.as_secs().max(1));
        }
        RegistryError::Sink(_) | RegistryError::Source(_) => return Refused::internal(registry),
        _ => REGISTRY_FAILED,
    };
    told(kind, error)
}

fn unstored(error: &StoreError) -> Refused {
    match error {
        StoreError::System { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Refused::new(DISK_FULL, "there is no room left for the image on the service's disk")
                .hint("remove images that nobody needs: `ampoule image rm`")
        }
        error => Refused::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::*;

    fn read(header: &str) -> Result<Option<Credentials>, Refused> {
        login(
            &[(header::HeaderName::from_static("x-registry-auth"), HeaderValue::try_from(header).expect("a header"))]
                .into_iter()
                .collect(),
        )
    }

    fn password(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn logins_are_read_as_docker_s_clients_write_them() {
        let plain = r#"{"username":"me","password":"p?>ss","serveraddress":"ghcr.io"}"#;
        for header in [STANDARD.encode(plain), URL_SAFE_NO_PAD.encode(plain)] {
            assert_eq!(read(&header).expect("a login"), password("me", "p?>ss"));
        }
        let auth = format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("me:a:b"));
        assert_eq!(read(&STANDARD.encode(auth)).expect("a login"), password("me", "a:b"));
        let identity = STANDARD.encode(r#"{"username":"me","identitytoken":"refresh"}"#);
        assert_eq!(read(&identity).expect("a login"), Some(Credentials::Identity("refresh".to_owned())));
        let helper = STANDARD.encode(r#"{"username":"<token>","password":"refresh"}"#);
        assert_eq!(read(&helper).expect("a login"), Some(Credentials::Identity("refresh".to_owned())));
        assert_eq!(read(&STANDARD.encode("{}")).expect("nobody"), None);
        assert_eq!(login(&HeaderMap::new()).expect("nobody"), None);
    }

    #[test]
    fn a_login_that_cannot_be_read_is_refused_without_repeating_it() {
        let long = "a".repeat(LOGIN_BYTES_MAX + 1);
        for header in ["not base64!", &STANDARD.encode("secret"), &STANDARD.encode(r#"{"auth":"c2VjcmV0"}"#), &long] {
            let refused = read(header).expect_err("refused");
            assert_eq!(refused.problem.code, "invalid-header");
            assert!(!refused.problem.detail.contains("secret"), "{refused:?}");
        }
    }
}
