//! The client against a small server of hyper that answers what each test wants: over real sockets, without the
//! service.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ampoule_client::client::{ConnectionError, Content, JobQuery};
use ampoule_client::types::{Event, JobRequest, JobState, Stream};
use ampoule_client::{Client, ClientError, Endpoint};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

type Answer = Response<BoxBody<Bytes, Infallible>>;

const JOB: &str = r#"{"id":"j1","state":"ended","image":"i","ending":{"kind":"exited","exit_code":3,"retryable":false},
    "times":{"created":"2026-01-01T00:00:00Z"},"attempt":1,"retries":0,"priority":0,"token":"local"}"#;
const PROBLEM: &str = r#"{"type":"urn:ampoule:problem:queue-full","title":"Queue full","status":429,"code":"queue-full",
    "detail":"10 jobs wait","hint":"try again"}"#;

/// A request as it arrived.
#[derive(Debug)]
struct Seen {
    line: String,
    headers: hyper::HeaderMap,
    body: Bytes,
}

/// A server on a unix socket in a folder of its own; it ends with the test's runtime.
struct Server {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    connections: Arc<AtomicUsize>,
    cut: Arc<Notify>,
    gone: Arc<Notify>,
}

impl Server {
    /// Answers every request with `answer`.
    fn start(answer: impl Fn(Seen) -> Answer + Send + Sync + 'static) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server =
            Server { _folder: folder, socket, connections: Arc::default(), cut: Arc::default(), gone: Arc::default() };
        let (count, cut, gone) = (server.connections.clone(), server.cut.clone(), server.gone.clone());
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (answer, cut, gone) = (answer.clone(), cut.clone(), gone.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve(stream, answer) => {}
                        () = cut.notified() => {}
                    }
                    gone.notify_one();
                });
            }
        });
        server
    }

    fn client(&self) -> Client {
        Client::new(Endpoint::Unix(self.socket.clone()), Some("secret"), None).expect("a client")
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Closes the only connection without a word, as a server does that has waited long enough.
    async fn cut_connection(&self) {
        self.cut.notify_one();
        self.gone.notified().await;
    }
}

async fn serve(stream: UnixStream, answer: Arc<impl Fn(Seen) -> Answer + Send + Sync + 'static>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (head, body) = request.into_parts();
            let line = format!("{} {}", head.method, head.uri);
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(answer(Seen { line, headers: head.headers, body }))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A client that goes away in the middle is no failure of the server.
    drop(connection.await);
}

fn json(status: u16, text: &'static str) -> Answer {
    Response::builder().status(status).body(Full::from(text).boxed()).expect("an answer")
}

#[tokio::test]
async fn requests_share_one_connection() {
    let server = Server::start(|_| json(200, JOB));
    let client = server.client();
    for _ in 0..50 {
        client.submit(&JobRequest::default(), Some(Duration::from_secs(1))).await.expect("a job");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_job_is_asked_for_with_its_document_and_token() {
    let server = Server::start(|seen| {
        assert_eq!(seen.line, "POST /v1/jobs?wait=1.5");
        assert_eq!(seen.headers["authorization"], "Bearer secret");
        assert_eq!(seen.headers["content-type"], "application/json");
        assert_eq!(seen.headers["host"], "localhost");
        assert_eq!(seen.body, r#"{"image":"i","argv":["true"]}"#);
        json(200, JOB)
    });
    let request = JobRequest { image: "i".to_owned(), argv: vec!["true".to_owned()], ..JobRequest::default() };
    let job = server.client().submit(&request, Some(Duration::from_millis(1500))).await.expect("a job");
    assert_eq!((job.state, job.ending.and_then(|ending| ending.exit_code)), (JobState::Ended, Some(3)));
}

#[tokio::test]
async fn a_connection_that_the_service_closed_is_replaced() {
    let server = Server::start(|_| json(200, JOB));
    let client = server.client();
    for round in 1..=3 {
        client.job("j1", None).await.expect("a job");
        assert_eq!(server.connections(), round);
        server.cut_connection().await;
    }
}

#[tokio::test]
async fn many_requests_at_once_are_all_answered() {
    let server = Server::start(|_| json(200, JOB));
    let client = server.client();
    let requests = (0..40).map(|_| client.job("j1", None));
    assert!(futures_util::future::join_all(requests).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_refusal_carries_the_problem_and_when_to_come_back() {
    let server = Server::start(|_| {
        let mut answer = json(429, PROBLEM);
        answer.headers_mut().insert("retry-after", "7".parse().expect("a value"));
        answer
    });
    match server.client().submit(&JobRequest::default(), None).await {
        Err(ClientError::Refused { problem, retry_after }) => {
            assert_eq!((problem.code.as_str(), retry_after), ("queue-full", Some(Duration::from_secs(7))));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_of_another_server_is_told_apart() {
    let server = Server::start(|_| json(502, "<html>bad gateway</html>"));
    match server.client().jobs(&JobQuery::default()).await {
        Err(ClientError::Unexpected { status: 502, excerpt }) => assert_eq!(excerpt, "<html>bad gateway</html>"),
        other => panic!("{other:?}"),
    }
    let server = Server::start(|_| json(200, "not json"));
    assert!(matches!(server.client().jobs(&JobQuery::default()).await, Err(ClientError::Answer { .. })));
}

#[tokio::test]
async fn names_are_encoded_in_paths_and_queries() {
    let server = Server::start(|seen| {
        assert!(
            ["GET /v1/images/a%2Fb%3A1%3Fx", "GET /v1/jobs?label=k%3Dv%26w&limit=5"].contains(&seen.line.as_str()),
            "{}",
            seen.line
        );
        json(404, PROBLEM)
    });
    let client = server.client();
    assert!(client.image("a/b:1?x").await.is_err());
    let query = JobQuery { label: Some("k=v&w".to_owned()), limit: Some(5), ..JobQuery::default() };
    assert!(client.jobs(&query).await.is_err());
}

#[tokio::test]
async fn events_are_read_across_pieces_and_gone_on_with() {
    let server = Server::start(|seen| {
        assert_eq!(seen.headers["last-event-id"], "4");
        let text = concat!(
            ": hello\n\nid: 5\nevent: log\ndata: {\"kind\":\"log\",\"stream\":\"stderr\",\"offset\":0,\"base64\":\"aGk=\"}\n\n",
            "id: 6\nevent: ended\ndata: {\"kind\":\"ended\",\"ending\":{\"kind\":\"cancelled\",\"retryable\":false}}\n\n"
        );
        let pieces: Vec<_> =
            text.as_bytes().chunks(7).map(|piece| Ok(Frame::data(Bytes::from_static(piece)))).collect();
        Response::new(StreamBody::new(stream::iter(pieces)).boxed())
    });
    let mut events = server.client().events("j1", Some("4")).await.expect("events");
    let (id, event) = events.next().await.expect("an event").expect("not the end");
    assert_eq!(id.as_deref(), Some("5"));
    assert!(matches!(event, Event::Log(chunk) if chunk.base64 == "aGk=" && chunk.stream == Stream::Stderr));
    assert!(matches!(events.next().await, Ok(Some((_, Event::Ended { .. })))));
    assert!(matches!(events.next().await, Ok(None)));
}

#[tokio::test]
async fn an_upload_arrives_as_it_was_read() {
    let content: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let expected = content.clone();
    let server = Server::start(move |seen| {
        assert_eq!((seen.line.as_str(), &seen.body[..]), ("PUT /v1/uploads", &expected[..]));
        assert_eq!(seen.headers["content-length"], "300000");
        json(200, r#"{"id":"sha256:00","size_bytes":300000}"#)
    });
    let reader = Box::new(std::io::Cursor::new(content));
    let upload = server.client().upload(Content::Reader { reader, length: Some(300_000) }).await.expect("an upload");
    assert_eq!(upload.size_bytes, 300_000);
}

/// Gives a few bytes, and then an error.
struct Broken(bool);

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(Err(std::io::Error::other("the disk is gone")));
        }
        buffer.put_slice(b"some");
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_upload_that_cannot_be_read_is_broken_off_and_says_why() {
    let server = Server::start(|_| json(200, r#"{"id":"sha256:00","size_bytes":4}"#));
    let upload = server.client().upload(Content::Reader { reader: Box::new(Broken(false)), length: None }).await;
    assert!(matches!(&upload, Err(ClientError::Content(why)) if why == "the disk is gone"), "{upload:?}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_named() {
    let client = Client::new(Endpoint::Unix("/no/such/socket".into()), None, None).expect("a client");
    match client.version().await {
        Err(ClientError::Connection(ConnectionError::Connect { endpoint, .. })) => {
            assert_eq!(endpoint, "unix:///no/such/socket");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_that_cannot_stand_in_a_header_is_refused() {
    let endpoint = Endpoint::Unix("/no/such/socket".into());
    assert!(matches!(Client::new(endpoint, Some("a\nb"), None), Err(ClientError::Unsendable(_))));
}
