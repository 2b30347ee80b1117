//! A client of the service's HTTP API: one method a route, over a unix socket, TCP or TLS, with connections that are
//! kept for the next request. It retries nothing by itself; whoever calls knows what may be done twice.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::types::{
    ArtifactList, Batch, BatchResult, Event, Health, Job, JobList, JobRequest, PolicyList, Problem, Stream,
    TokenCreated, TokenList, TokenRequest, Upload, Version,
};

mod builds;
mod caches;
mod connection;
mod endpoint;
mod images;
mod sse;
mod tls;
mod transfer;
mod trees;

pub use builds::BuildQuery;
pub use connection::ConnectionError;
pub use endpoint::{Endpoint, EndpointError};
pub use images::{ImageQuery, PruneQuery};
pub use sse::{DATA_BYTES_MAX, LINE_BYTES_MAX, SseError, SseEvent, SseParser};
pub use tls::TlsError;
pub use transfer::Transfer;

use connection::{Body, Pool};

/// Largest answer that is kept in memory, in bytes; logs and artifacts stream and have no bound here.
pub const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Longest time until an ordinary request is answered.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest time for a request that sends or unpacks an archive.
pub const TRANSFER_TIME_MAX: Duration = Duration::from_secs(3600);
/// Longest silence of a stream: the service sends a comment every few seconds when it has nothing to say.
pub const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Bytes of one piece of a body that is read from a file.
const PIECE_BYTES: usize = 64 * 1024;
/// Bytes of an answer that was not understood which are shown.
const EXCERPT_BYTES: usize = 200;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The service could not be reached, or the connection broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The service refused, and says why.
    #[error("{}", problem.detail)]
    Refused {
        /// What the service says.
        problem: Box<Problem>,
        /// When the service asks to try again, if it does.
        retry_after: Option<Duration>,
    },
    /// An answer that is none of the service's: another server listens there, or a proxy answered.
    #[error("the answer is not the service's: status {status}, {excerpt}")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// The start of the answer.
        excerpt: String,
    },
    /// An answer of a known kind that cannot be read.
    #[error("could not read the answer to {request}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The answer does not fit into memory.
    #[error("the answer to {request} is larger than {ANSWER_BYTES_MAX} bytes")]
    Large {
        /// Method and path.
        request: String,
    },
    /// The service did not answer in time.
    #[error("no answer to {request} within {} s", after.as_secs())]
    Silent {
        /// Method and path.
        request: String,
        /// How long was waited.
        after: Duration,
    },
    /// The stream of events cannot be read on.
    #[error(transparent)]
    Events(#[from] SseError),
    /// What was to be uploaded could not be read to its end; the sentence is its reader's own.
    #[error("{0}")]
    Content(String),
    /// A value that cannot stand in a request: a token with a line feed, for instance.
    #[error("{0} cannot be sent in a request")]
    Unsendable(&'static str),
}

impl ClientError {
    /// What the service said, when it refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ClientError::Refused { problem, .. } => Some(problem),
            _ => None,
        }
    }
}

/// The body of an upload.
pub enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// Whatever the reader gives, in pieces; with its length when that is known.
    Reader {
        /// Where the bytes come from.
        reader: Box<dyn AsyncRead + Send + Unpin>,
        /// How many there are.
        length: Option<u64>,
    },
}

impl Content {
    /// As a body, with its length when that is known.
    fn into_body(self) -> (Body, Option<u64>) {
        match self {
            Content::Bytes(bytes) => {
                let length = bytes.len() as u64;
                (whole(bytes), Some(length))
            }
            Content::Reader { reader, length } => (streamed(reader), length),
        }
    }
}

/// Which jobs are listed; the default is all, newest first.
#[derive(Clone, Debug, Default)]
pub struct JobQuery {
    /// Only those in this state, as in `running`.
    pub state: Option<String>,
    /// Only those that ended so, as in `out_of_memory`.
    pub ending: Option<String>,
    /// Only those with this label, as in `key=value`.
    pub label: Option<String>,
    /// At most so many.
    pub limit: Option<u32>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// A client; cheap requests at any number at once, each on a connection of its own, kept for later ones.
pub struct Client {
    pool: Pool,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// A client of the service at `endpoint`; connects when something is asked. With TLS the certificates of the
    /// PEM file `certificates` are trusted, or those that the machine trusts.
    ///
    /// # Errors
    /// When the token or the host cannot stand in a header, or TLS is wanted and no certificate can be read.
    pub fn new(endpoint: Endpoint, token: Option<&str>, certificates: Option<&Path>) -> Result<Client, ClientError> {
        let host = HeaderValue::try_from(endpoint.authority()).map_err(|_| ClientError::Unsendable("the host"))?;
        let authorization = match token {
            Some(token) => Some(bearer(token)?),
            None => None,
        };
        let pool = Pool::new(endpoint, certificates).map_err(ConnectionError::from)?;
        Ok(Client { pool, host, authorization })
    }

    /// Where the service is.
    pub fn endpoint(&self) -> &Endpoint {
        self.pool.endpoint()
    }

    /// Asks for a job. With `wait` the answer comes when the job ended, or when that time is over.
    pub async fn submit(&self, job: &JobRequest, wait: Option<Duration>) -> Result<Job, ClientError> {
        let path = match wait {
            Some(wait) => format!("/v1/jobs?wait={}", wait.as_secs_f64()),
            None => "/v1/jobs".to_owned(),
        };
        let answer_time = ANSWER_TIME_MAX + wait.unwrap_or_default();
        self.json(Call::post(&path).within(answer_time), Some(job)).await
    }

    /// Asks for several jobs at once; each is taken or refused for itself.
    pub async fn submit_batch(&self, batch: &Batch) -> Result<BatchResult, ClientError> {
        self.json(Call::post("/v1/jobs:batch"), Some(batch)).await
    }

    /// One page of jobs.
    pub async fn jobs(&self, query: &JobQuery) -> Result<JobList, ClientError> {
        let limit = query.limit.map(|limit| limit.to_string());
        let path = with_query(
            "/v1/jobs",
            &[
                ("state", query.state.as_deref()),
                ("ending", query.ending.as_deref()),
                ("label", query.label.as_deref()),
                ("limit", limit.as_deref()),
                ("cursor", query.cursor.as_deref()),
            ],
        );
        self.get(&path).await
    }

    /// All that is known of a job. With `wait` the answer comes when the job ended, or when that time is over.
    pub async fn job(&self, id: &str, wait: Option<Duration>) -> Result<Job, ClientError> {
        let seconds = wait.map(|wait| wait.as_secs_f64().to_string());
        let path = with_query(&format!("/v1/jobs/{}", encoded(id)), &[("wait", seconds.as_deref())]);
        self.json(Call::get(&path).within(ANSWER_TIME_MAX + wait.unwrap_or_default()), None::<&()>).await
    }

    /// Stops a job that waits or runs.
    pub async fn cancel(&self, id: &str) -> Result<Job, ClientError> {
        self.json(Call::post(&format!("/v1/jobs/{}/cancel", encoded(id))), None::<&()>).await
    }

    /// Forgets a job that ended, with its output and artifacts.
    pub async fn delete_job(&self, id: &str) -> Result<(), ClientError> {
        self.nothing(Call::delete(&format!("/v1/jobs/{}", encoded(id)))).await
    }

    /// The bytes of one stream of a job; with `follow` until the job ended.
    pub async fn log(&self, id: &str, stream: Stream, follow: bool) -> Result<Download, ClientError> {
        let stream = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let follow = follow.then_some("true");
        let path = format!("/v1/jobs/{}/logs", encoded(id));
        self.download(Call::get(&with_query(&path, &[("stream", Some(stream)), ("follow", follow)]))).await
    }

    /// What happens to a job, from its start or after the event `after`, until it ended.
    pub async fn events(&self, id: &str, after: Option<&str>) -> Result<Events, ClientError> {
        let path = format!("/v1/jobs/{}/events", encoded(id));
        let call = Call { accept: "text/event-stream", after: after.map(str::to_owned), ..Call::get(&path) };
        Ok(Events { download: self.download(call).await?, parser: SseParser::new(), ready: VecDeque::new() })
    }

    /// The files that were kept of a job.
    pub async fn artifacts(&self, id: &str) -> Result<ArtifactList, ClientError> {
        self.get(&format!("/v1/jobs/{}/artifacts", encoded(id))).await
    }

    /// The bytes of one artifact, by its path in the sandbox.
    pub async fn artifact(&self, id: &str, path: &str) -> Result<Download, ClientError> {
        let path = path.split('/').filter(|part| !part.is_empty()).map(encoded).collect::<Vec<_>>().join("/");
        self.download(Call::get(&format!("/v1/jobs/{}/artifacts/{path}", encoded(id)))).await
    }

    /// Uploads a tar for the files of a job.
    pub async fn upload(&self, tar: Content) -> Result<Upload, ClientError> {
        self.transfer(Call::put("/v1/uploads").sends("application/x-tar"), tar).await
    }

    /// The policies in the order in which they are asked.
    pub async fn policies(&self) -> Result<PolicyList, ClientError> {
        self.get("/v1/policies").await
    }

    /// All tokens, without their secrets.
    pub async fn tokens(&self) -> Result<TokenList, ClientError> {
        self.get("/v1/tokens").await
    }

    /// Makes a token; its secret is told only this once.
    pub async fn create_token(&self, request: &TokenRequest) -> Result<TokenCreated, ClientError> {
        self.json(Call::post("/v1/tokens"), Some(request)).await
    }

    /// Makes a token worthless.
    pub async fn revoke_token(&self, name: &str) -> Result<(), ClientError> {
        self.nothing(Call::delete(&format!("/v1/tokens/{}", encoded(name)))).await
    }

    /// The version of the service.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    /// Whether the service takes jobs.
    pub async fn ready(&self) -> Result<Health, ClientError> {
        self.get("/readyz").await
    }

    /// The metrics in the text format of Prometheus.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let bytes = self.exchange(Call::get("/metrics"), empty(), None).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Call::get(path), None::<&()>).await
    }

    async fn json<T: DeserializeOwned>(&self, call: Call, document: Option<&impl Serialize>) -> Result<T, ClientError> {
        let request = call.name();
        let wrong = |source| ClientError::Answer { request: request.clone(), source };
        let bytes = match document {
            Some(document) => {
                let document = Bytes::from(serde_json::to_vec(document).map_err(wrong)?);
                let call = call.sends("application/json");
                let length = document.len() as u64;
                self.exchange(call, whole(document), Some(length)).await?
            }
            None => self.exchange(call, empty(), None).await?,
        };
        serde_json::from_slice(&bytes).map_err(wrong)
    }

    async fn nothing(&self, call: Call) -> Result<(), ClientError> {
        self.exchange(call, empty(), None).await.map(drop)
    }

    async fn transfer<T: DeserializeOwned>(&self, call: Call, content: Content) -> Result<T, ClientError> {
        let call = call.within(TRANSFER_TIME_MAX);
        let request = call.name();
        let (body, length) = content.into_body();
        let bytes = self.exchange(call, body, length).await?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Answer { request, source })
    }

    /// Sends a request and reads its answer whole; the connection is kept.
    async fn exchange(&self, call: Call, body: Body, length: Option<u64>) -> Result<Bytes, ClientError> {
        let (name, after) = (call.name(), call.answer_time);
        let exchanged = timeout(after, async {
            let request = self.request(call, body, length)?;
            let (response, sender) = self.pool.send(request).await.map_err(told_by_content)?;
            let (head, body) = response.into_parts();
            let bytes = collected(body, &name).await?;
            self.pool.give_back(sender);
            accepted(head.status, &head.headers, bytes)
        });
        exchanged.await.unwrap_or_else(|_| Err(ClientError::Silent { request: name.clone(), after }))
    }

    /// Sends a request whose answer is read piece by piece; its connection is not used again.
    async fn download(&self, call: Call) -> Result<Download, ClientError> {
        self.download_of(call, empty(), None).await
    }

    async fn download_of(&self, call: Call, body: Body, length: Option<u64>) -> Result<Download, ClientError> {
        let (name, after) = (call.name(), call.answer_time);
        let request = self.request(call, body, length)?;
        let (response, _) = timeout(after, self.pool.send(request))
            .await
            .map_err(|_| ClientError::Silent { request: name.clone(), after })??;
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
            return Ok(Download { body, length, request: name });
        }
        let bytes = collected(body, &name).await?;
        Err(refusal(head.status, &head.headers, &bytes))
    }

    fn request(&self, call: Call, body: Body, length: Option<u64>) -> Result<Request<Body>, ClientError> {
        let mut request = Request::builder().method(call.method).uri(call.path).header(HOST, self.host.clone());
        request = request.header(ACCEPT, call.accept);
        if !call.content_type.is_empty() {
            request = request.header(CONTENT_TYPE, call.content_type.as_ref());
        }
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        if let Some(after) = call.after {
            request = request.header("last-event-id", after);
        }
        if let Some(login) = call.login {
            request = request.header("x-registry-auth", login);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        request.body(body).map_err(|_| ClientError::Unsendable("the path"))
    }
}

/// An answer that is read piece by piece.
pub struct Download {
    body: Incoming,
    length: Option<u64>,
    request: String,
}

impl Download {
    /// How many bytes will come in all, if the service says.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the connection broke before the end, or nothing came for `SILENCE_MAX`.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = timeout(SILENCE_MAX, self.body.frame())
                .await
                .map_err(|_| ClientError::Silent { request: self.request.clone(), after: SILENCE_MAX })?;
            match frame {
                None => return Ok(None),
                Some(frame) => match frame.map_err(ConnectionError::from)?.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    // Trailers and empty pieces say nothing; a frame follows or the end.
                    _ => {}
                },
            }
        }
    }
}

/// What happens to a job, as it happens.
pub struct Events {
    download: Download,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
}

impl Events {
    /// The next event with its id, which `Client::events` takes to go on after it; `None` at the end.
    ///
    /// # Errors
    /// When the connection broke, the stream passes a bound, or an event is of no kind that is known here.
    pub async fn next(&mut self) -> Result<Option<(Option<String>, Event)>, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                let parsed = serde_json::from_str(&event.data)
                    .map_err(|source| ClientError::Answer { request: self.download.request.clone(), source })?;
                return Ok(Some((event.id, parsed)));
            }
            match self.download.chunk().await? {
                Some(bytes) => self.parser.push(&bytes, &mut self.ready)?,
                None => return Ok(None),
            }
        }
    }
}

/// A request before it is sent.
struct Call {
    method: Method,
    path: String,
    accept: &'static str,
    content_type: Cow<'static, str>,
    after: Option<String>,
    /// Who asks, to a registry behind the service.
    login: Option<HeaderValue>,
    answer_time: Duration,
}

impl Call {
    fn new(method: Method, path: &str) -> Call {
        Call {
            method,
            path: path.to_owned(),
            accept: "*/*",
            content_type: Cow::Borrowed(""),
            after: None,
            login: None,
            answer_time: ANSWER_TIME_MAX,
        }
    }

    fn get(path: &str) -> Call {
        Call::new(Method::GET, path)
    }

    fn post(path: &str) -> Call {
        Call::new(Method::POST, path)
    }

    fn put(path: &str) -> Call {
        Call::new(Method::PUT, path)
    }

    fn delete(path: &str) -> Call {
        Call::new(Method::DELETE, path)
    }

    fn sends(self, content_type: impl Into<Cow<'static, str>>) -> Call {
        Call { content_type: content_type.into(), ..self }
    }

    fn within(self, answer_time: Duration) -> Call {
        Call { answer_time, ..self }
    }

    /// Method and path, for messages; without the query, which may be long.
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path.split('?').next().unwrap_or_default())
    }
}

/// Tells a body that could not be read from a connection that broke; hyper puts the reader's error below its own.
fn told_by_content(error: ConnectionError) -> ClientError {
    match &error {
        ConnectionError::Broken(broken) if broken.is_user() => match broken.source() {
            Some(reader) => ClientError::Content(reader.to_string()),
            None => error.into(),
        },
        _ => error.into(),
    }
}

fn bearer(token: &str) -> Result<HeaderValue, ClientError> {
    let mut value =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| ClientError::Unsendable("the token"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn empty() -> Body {
    whole(Bytes::new())
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn streamed(reader: Box<dyn AsyncRead + Send + Unpin>) -> Body {
    let pieces = stream::try_unfold(reader, |mut reader| async move {
        let mut piece = vec![0; PIECE_BYTES];
        let length = reader.read(&mut piece).await?;
        piece.truncate(length);
        io::Result::Ok((length > 0).then(|| (Frame::data(Bytes::from(piece)), reader)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

async fn collected(body: Incoming, request: &str) -> Result<Bytes, ClientError> {
    match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(broken) => Err(ConnectionError::Broken(*broken).into()),
            Err(other) => {
                debug_assert!(other.is::<LengthLimitError>());
                Err(ClientError::Large { request: request.to_owned() })
            }
        },
    }
}

fn accepted(status: StatusCode, headers: &HeaderMap, bytes: Bytes) -> Result<Bytes, ClientError> {
    if status.is_success() { Ok(bytes) } else { Err(refusal(status, headers, &bytes)) }
}

fn refusal(status: StatusCode, headers: &HeaderMap, bytes: &[u8]) -> ClientError {
    let Ok(problem) = serde_json::from_slice::<Problem>(bytes) else {
        let excerpt = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT_BYTES)]).trim().to_owned();
        return ClientError::Unexpected { status: status.as_u16(), excerpt };
    };
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    ClientError::Refused { problem: Box::new(problem), retry_after: seconds.map(Duration::from_secs) }
}

fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut path = path.to_owned();
    let mut separator = '?';
    for (name, value) in parameters {
        if let Some(value) = value {
            path.push(separator);
            path.push_str(name);
            path.push('=');
            path.push_str(&encoded(value));
            separator = '&';
        }
    }
    path
}

/// A text as one part of a path or one value of a query: everything but unreserved characters is percent-encoded.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            // Writing to a string cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}
