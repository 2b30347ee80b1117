//! Connections to the service: made when needed, kept for the next request, given up when the service closed them.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::endpoint::Endpoint;
use super::tls::{self, TlsError};

/// Longest time that connecting may take, with TLS.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Connections that are kept for later at most; more are closed after use.
const IDLE_MAX: usize = 16;

/// The body of a request.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Nobody listens, or may be reached, there.
    #[error("could not connect to {endpoint}")]
    Connect {
        /// The address.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection broke.
    #[error("the connection to the service broke")]
    Broken(#[from] hyper::Error),
}

/// A way to the service with connections that wait for their next request.
pub(super) struct Pool {
    endpoint: Endpoint,
    connector: Option<TlsConnector>,
    idle: Mutex<VecDeque<SendRequest<Body>>>,
}

impl Pool {
    pub(super) fn new(endpoint: Endpoint, certificates: Option<&Path>) -> Result<Pool, TlsError> {
        let speaks_tls = matches!(endpoint, Endpoint::Tcp { tls: true, .. });
        let connector = if speaks_tls { Some(tls::connector(certificates)?) } else { None };
        Ok(Pool { endpoint, connector, idle: Mutex::new(VecDeque::new()) })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a request and returns the head of the answer, with the connection to give back once its body was read.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, SendRequest<Body>), ConnectionError> {
        let mut request = request;
        // A kept connection may have been closed by the service in the meantime. Hyper returns the request when not a
        // byte of it was sent, so that trying again cannot do anything twice.
        while let Some(mut sender) = self.take_idle() {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await?;
        Ok((response, sender))
    }

    /// Keeps a connection whose last answer was read to its end.
    pub(super) fn give_back(&self, sender: SendRequest<Body>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push_back(sender);
        }
    }

    fn take_idle(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop_back() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    async fn connect(&self) -> Result<SendRequest<Body>, ConnectionError> {
        let failed = |source| ConnectionError::Connect { endpoint: self.endpoint.to_string(), source };
        let connecting = async {
            match &self.endpoint {
                Endpoint::Unix(path) => handshake(UnixStream::connect(path).await.map_err(failed)?).await,
                Endpoint::Tcp { host, port, .. } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
                    stream.set_nodelay(true).map_err(failed)?;
                    match &self.connector {
                        Some(connector) => {
                            handshake(tls::shake_hands(connector, host, stream).await.map_err(failed)?).await
                        }
                        None => handshake(stream).await,
                    }
                }
            }
        };
        timeout(CONNECT_TIME_MAX, connecting).await.unwrap_or_else(|_| Err(failed(io::ErrorKind::TimedOut.into())))
    }
}

/// Starts HTTP/1.1 on a stream; a task drives it until both sides are done with it.
async fn handshake<S>(stream: S) -> Result<SendRequest<Body>, ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // How the connection ended is told to the request that was on it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
