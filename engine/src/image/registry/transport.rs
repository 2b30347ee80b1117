//! Requests to one place: bounded in time, number and size; tried again when that can help, with the registry's own
//! wish when to; signed in when asked; redirected without taking the login along.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::challenge::{self, Challenge};
use super::failure::{RegistryError, told};
use super::hosts::{Site, is_loopback};
use super::tokens::Gate;
use crate::image::archive::printable;

/// How often a request is tried.
pub(super) const TRIES_MAX: u32 = 5;
/// How often a request may ask for a login.
const LOGINS_MAX: u32 = 2;
/// How many redirects lead to an answer.
const REDIRECTS_MAX: usize = 5;
/// How long an answer may take to begin.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// The slowest upload that is waited for, in bytes a second.
const UPLOAD_BYTES_A_SECOND_MIN: u64 = 16 * 1024;
/// How long a body may pause.
pub(super) const PAUSE_TIME: Duration = Duration::from_secs(60);
/// The first wait before another try; each further one is twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// The longest wait that we choose.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The longest wait that a registry may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Bytes of a refusal that are read.
const SAID_BYTES_MAX: u64 = 16 * 1024;

/// A way to one place, for one repository.
pub(super) struct Line {
    pub(super) site: Site,
    pub(super) gate: Gate,
    pub(super) permits: Arc<Semaphore>,
    pub(super) clients: Clients,
}

/// The HTTP clients for a site, and for where it redirects to.
#[derive(Clone)]
pub(super) struct Clients {
    /// As the machine is set up, with its proxies.
    pub(super) usual: Client,
    /// Without a proxy: for this machine's own addresses.
    pub(super) direct: Client,
}

/// A request that can be made several times.
pub(super) struct Call<'call> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: CallBody<'call>,
    /// What is asked for, as in `manifest alpine:3`.
    pub(super) what: String,
}

/// What a request carries.
pub(super) enum CallBody<'call> {
    Empty,
    Bytes(Bytes),
    /// So many bytes, from the start again for each try.
    Stream(u64, &'call (dyn Fn() -> io::Result<Body> + Send + Sync)),
}

/// An answer whose body was not read. Counts as a request as long as it is kept.
pub(super) struct Answer {
    pub(super) response: Response,
    _permit: OwnedSemaphorePermit,
}

/// Why one try brought no answer.
enum Trouble {
    /// Another try may help.
    Passing(String),
    Lasting(RegistryError),
}

impl From<RegistryError> for Trouble {
    fn from(error: RegistryError) -> Trouble {
        Trouble::Lasting(error)
    }
}

impl Clients {
    pub(super) fn for_url(&self, url: &Url) -> &Client {
        if is_loopback(url) { &self.direct } else { &self.usual }
    }
}

impl<'call> Call<'call> {
    pub(super) fn new(method: Method, url: Url, what: impl Into<String>) -> Call<'call> {
        Call { method, url, headers: HeaderMap::new(), body: CallBody::Empty, what: what.into() }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Call<'call> {
        self.headers.append(name, value);
        self
    }

    pub(super) fn body(self, body: CallBody<'call>) -> Call<'call> {
        Call { body, ..self }
    }

    /// Method and path, for messages.
    fn name(&self) -> String {
        format!("{} {}", self.method, self.url.path())
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

impl Line {
    /// The address of something in this place.
    pub(super) fn url(&self, path: &str) -> Result<Url, RegistryError> {
        self.site.base.join(path).map_err(|_| self.protocol(format!("`{path}` is no path")))
    }

    pub(super) fn protocol(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Protocol { registry: self.site.name.clone(), problem: problem.into() }
    }

    pub(super) fn unreachable(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Unreachable { registry: self.site.name.clone(), problem: problem.into() }
    }

    /// Makes a request until it is answered with something that another try would not change.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        let (mut tries, mut logins) = (0, 0);
        loop {
            let authorization = self.gate.current(self).await?;
            let (asked, failure) = match self.attempt(call, authorization.as_ref()).await {
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && logins < LOGINS_MAX => {
                    logins += 1;
                    let challenges = self.challenges(&answer)?;
                    if self.gate.renew(self, &challenges, authorization.as_ref()).await? {
                        continue;
                    }
                    return Ok(answer);
                }
                Ok(answer) if is_passing(answer.status()) => (retry_after(&answer), self.refusal(call, answer).await),
                Ok(answer) => return Ok(answer),
                Err(Trouble::Passing(problem)) => (None, self.unreachable(problem)),
                Err(Trouble::Lasting(error)) => return Err(error),
            };
            tries += 1;
            if tries >= TRIES_MAX {
                return Err(failure);
            }
            if let Some(after) = asked.filter(|after| *after > RETRY_AFTER_MAX) {
                return Err(RegistryError::Limited { registry: self.site.name.clone(), after });
            }
            sleep(asked.unwrap_or_else(|| backoff(tries))).await;
        }
    }

    /// Makes a request, and an error of any answer that is none of `expected`.
    pub(super) async fn expect(&self, call: &Call<'_>, expected: &[StatusCode]) -> Result<Answer, RegistryError> {
        let answer = self.send(call).await?;
        if expected.contains(&answer.status()) {
            return Ok(answer);
        }
        Err(self.refusal(call, answer).await)
    }

    /// Makes a request that is tried once, since what it carries may have been taken in part; only a login that is asked
    /// for is brought.
    pub(super) async fn once(&self, call: &Call<'_>, expected: &[StatusCode]) -> Result<Answer, RegistryError> {
        for _ in 0..=LOGINS_MAX {
            let authorization = self.gate.current(self).await?;
            let answer = match self.attempt(call, authorization.as_ref()).await {
                Ok(answer) => answer,
                Err(Trouble::Passing(problem)) => return Err(self.unreachable(problem)),
                Err(Trouble::Lasting(error)) => return Err(error),
            };
            if expected.contains(&answer.status()) {
                return Ok(answer);
            }
            let wants_login = answer.status() == StatusCode::UNAUTHORIZED;
            let challenges = if wants_login { self.challenges(&answer)? } else { Vec::new() };
            if !wants_login || !self.gate.renew(self, &challenges, authorization.as_ref()).await? {
                return Err(self.refusal(call, answer).await);
            }
        }
        Err(self.protocol("it asks for a login again and again"))
    }

    /// Makes a request and reads its whole answer, of at most `bytes_max`.
    pub(super) async fn read(&self, call: &Call<'_>, bytes_max: u64) -> Result<(HeaderMap, Bytes), RegistryError> {
        let mut tries = 0;
        loop {
            let mut answer = self.expect(call, &[StatusCode::OK]).await?;
            let headers = answer.response.headers().clone();
            match collect(&mut answer.response, bytes_max).await {
                Ok(Some(bytes)) => return Ok((headers, bytes)),
                Ok(None) => {
                    let registry = self.site.name.clone();
                    return Err(RegistryError::TooLarge { registry, what: call.what.clone(), bytes_max });
                }
                Err(problem) => {
                    tries += 1;
                    if tries >= TRIES_MAX {
                        return Err(self.unreachable(problem));
                    }
                    drop(answer);
                    sleep(backoff(tries)).await;
                }
            }
        }
    }

    /// One try, with its redirects.
    async fn attempt(&self, call: &Call<'_>, authorization: Option<&HeaderValue>) -> Result<Answer, Trouble> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| Trouble::Lasting(self.unreachable("it is being closed")))?;
        let mut url = call.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            // The login is for the registry itself: not for where it sends us, and not for a store behind it.
            let authorization = authorization.filter(|_| url.origin() == self.site.base.origin());
            let response = self.exchange(call, &url, authorization).await?;
            let may_follow = matches!(call.method, Method::GET | Method::HEAD) && is_redirect(response.status());
            let location = response.headers().get(header::LOCATION).filter(|_| may_follow);
            let Some(location) = location else { return Ok(Answer { response, _permit: permit }) };
            url = self.redirected(&url, location)?;
        }
        Err(self.protocol(format!("it redirects more than {REDIRECTS_MAX} times")).into())
    }

    async fn exchange(&self, call: &Call<'_>, url: &Url, login: Option<&HeaderValue>) -> Result<Response, Trouble> {
        let mut request = self.clients.for_url(url).request(call.method.clone(), url.clone());
        request = request.headers(call.headers.clone());
        if let Some(login) = login {
            request = request.header(header::AUTHORIZATION, login.clone());
        }
        let mut time = HEAD_TIME;
        request = match &call.body {
            CallBody::Empty if call.method == Method::POST || call.method == Method::PUT => {
                request.header(header::CONTENT_LENGTH, 0)
            }
            CallBody::Empty => request,
            CallBody::Bytes(bytes) => request.body(bytes.clone()),
            CallBody::Stream(length, open) => {
                time += Duration::from_secs(length / UPLOAD_BYTES_A_SECOND_MIN);
                request.header(header::CONTENT_LENGTH, *length).body(open().map_err(RegistryError::Source)?)
            }
        };
        match timeout(time, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_builder() => Err(self.protocol(told(error)).into()),
            Ok(Err(error)) => Err(Trouble::Passing(told(error))),
            Err(_) => Err(Trouble::Passing(format!("it did not answer within {} s", time.as_secs()))),
        }
    }

    fn redirected(&self, from: &Url, location: &HeaderValue) -> Result<Url, RegistryError> {
        let to = location.to_str().ok().and_then(|location| from.join(location).ok());
        let to = to.ok_or_else(|| self.protocol("it redirects to what is no address"))?;
        let is_secure = to.scheme() == "https" || (to.scheme() == "http" && self.site.is_plain());
        if !is_secure {
            return Err(self.protocol(format!("it redirects to `{}`, which is not https", shown(&to))));
        }
        // A registry elsewhere has no business with what listens on this machine only.
        if is_loopback(&to) && !is_loopback(&self.site.base) {
            return Err(self.protocol(format!("it redirects to this machine itself, `{}`", shown(&to))));
        }
        Ok(to)
    }

    fn challenges(&self, answer: &Answer) -> Result<Vec<Challenge>, RegistryError> {
        let mut challenges = Vec::new();
        for value in answer.response.headers().get_all(header::WWW_AUTHENTICATE) {
            let text = value.to_str().map_err(|_| self.protocol("its challenge is no text"))?;
            challenges.extend(challenge::parse(text).map_err(|error| self.protocol(error.to_string()))?);
        }
        Ok(challenges)
    }

    /// What an answer means that was not hoped for.
    pub(super) async fn refusal(&self, call: &Call<'_>, mut answer: Answer) -> RegistryError {
        let registry = self.site.name.clone();
        let status = answer.status();
        let after = retry_after(&answer);
        let said = said(&mut answer.response).await;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Denied { registry, who: self.gate.who(), said }
            }
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what: call.what.clone(), said },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::Limited { registry, after: after.unwrap_or(BACKOFF_MAX) },
            _ => RegistryError::Status { registry, status, request: call.name(), said },
        }
    }
}

/// How long to wait before another try, when the registry does not say: twice as long each time, and not all at once.
pub(super) fn backoff(tries: u32) -> Duration {
    let longest = BACKOFF_FIRST.saturating_mul(1 << tries.min(10)).min(BACKOFF_MAX);
    let mut random = [0; 1];
    // Without randomness all wait equally long, which is no harm.
    let _ = getrandom::fill(&mut random);
    longest / 2 + (longest / 2) * u32::from(random[0]) / 255
}

/// Reads a body. `None` when it is longer than `bytes_max`.
pub(super) async fn collect(response: &mut Response, bytes_max: u64) -> Result<Option<Bytes>, String> {
    if response.content_length().is_some_and(|length| length > bytes_max) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(response).await? {
        if bytes.len() as u64 + chunk.len() as u64 > bytes_max {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.into()))
}

/// The next piece of a body; `None` at its end.
pub(super) async fn next_chunk(response: &mut Response) -> Result<Option<Bytes>, String> {
    match timeout(PAUSE_TIME, response.chunk()).await {
        Ok(chunk) => chunk.map_err(told),
        Err(_) => Err(format!("nothing came for {} s", PAUSE_TIME.as_secs())),
    }
}

fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn retry_after(answer: &Answer) -> Option<Duration> {
    waiting_time(answer.header("retry-after")?.trim(), Timestamp::now())
}

/// What `Retry-After` says, which is seconds or a date.
fn waiting_time(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = rfc2822::parse(text).ok()?.timestamp();
    // One that is over asks for no waiting at all.
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

fn shown(url: &Url) -> String {
    format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default())
}

/// The words of a registry on its refusal, made printable, with a colon in front; empty when it has none.
async fn said(response: &mut Response) -> String {
    #[derive(Deserialize)]
    struct Said {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Some(bytes)) = collect(response, SAID_BYTES_MAX).await else { return String::new() };
    let Ok(said) = serde_json::from_slice::<Said>(&bytes) else { return String::new() };
    let Some(first) = said.errors.first() else { return String::new() };
    let words = if first.message.is_empty() { &first.code } else { &first.message };
    if words.is_empty() { String::new() } else { format!(": {}", printable(words.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_says_in_seconds_or_by_a_date_when_to_come_back() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let waits = |text: &str| waiting_time(text, now);
        assert_eq!(waits("120"), Some(Duration::from_secs(120)));
        assert_eq!(waits("Sat, 31 Jan 2026 12:00:07 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(waits("Sat, 31 Jan 2026 11:00:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-1", "Sat, 31 Jan", "99999999999999999999999"] {
            assert_eq!(waits(nonsense), None, "{nonsense}");
        }
    }
}
