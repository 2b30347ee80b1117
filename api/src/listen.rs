//! Listeners: a unix socket with its permissions, and TCP with TLS. They are bound while there is still the right to;
//! afterwards they serve, with a bound on everything that a slow or greedy client could stretch.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum_server::accept::{Accept, DefaultAcceptor, NoDelayAcceptor};
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Address, Handle, Server};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{Socket, Tcp, Tls};

/// How long a client may take for the head of a request, and for its first one.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long a client may take for the handshake of TLS.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 128;
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Why nobody can be listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("another service listens on {socket}\nhint: stop it, or choose another --socket and --state")]
    Taken {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be made.
    #[error("could not {action} {socket}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no such group.
    #[error("there is no group `{0}`\nhint: make it with `groupadd`, or choose another --socket-group")]
    NoGroup(String),
    /// The address cannot be listened on.
    #[error("could not listen on {listen}")]
    Tcp {
        /// The address.
        listen: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A certificate or key cannot be used.
    #[error("could not use {file} for TLS: {problem}")]
    Tls {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Listeners that are bound.
#[derive(Debug)]
pub struct Bound {
    unix: UnixListener,
    tcp: Option<(std::net::TcpListener, Option<Arc<ServerConfig>>)>,
}

/// Binds everything. `owner` is the service's user and group, when it is another than ours.
///
/// # Errors
/// The first listener that cannot be bound.
pub fn bind(socket: &Socket, tcp: Option<&Tcp>, owner: Option<(u32, u32)>) -> Result<Bound, ListenError> {
    let unix = bind_unix(socket, owner)?;
    let tcp = tcp.map(|tcp| {
        let tls = tcp.tls.as_ref().map(tls_config).transpose()?;
        let failed = |source| ListenError::Tcp { listen: tcp.listen, source };
        Ok((std::net::TcpListener::bind(tcp.listen).map_err(failed)?, tls))
    });
    Ok(Bound { unix, tcp: tcp.transpose()? })
}

fn bind_unix(socket: &Socket, owner: Option<(u32, u32)>) -> Result<UnixListener, ListenError> {
    let path = &socket.path;
    let failed = |action| move |source| ListenError::Socket { action, socket: path.clone(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        if let Some((uid, gid)) = owner {
            // So that the service can take its socket away when it ends.
            chown(folder, Some(uid), Some(gid)).map_err(failed("hand over the folder of"))?;
        }
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    let group = socket.group.as_deref().map(group_id).transpose()?;
    let gid = group.or(owner.map(|(_, gid)| gid));
    chown(path, owner.map(|(uid, _)| uid), gid).map_err(failed("give away"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(socket.mode))
        .map_err(failed("set permissions of"))?;
    Ok(listener)
}

/// Removes a socket that nobody listens on any more, and nothing else.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ListenError::Taken { socket: path.to_owned() });
    }
    let failed = |source| ListenError::Socket { action: "remove the stale", socket: path.to_owned(), source };
    std::fs::remove_file(path).map_err(failed)
}

fn group_id(name: &str) -> Result<u32, ListenError> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let group = nix::unistd::Group::from_name(name).ok().flatten();
    group.map(|group| group.gid.as_raw()).ok_or_else(|| ListenError::NoGroup(name.to_owned()))
}

fn tls_config(tls: &Tls) -> Result<Arc<ServerConfig>, ListenError> {
    let failed = |file: &Path, problem: String| ListenError::Tls { file: file.to_owned(), problem };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&tls.certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|error| failed(&tls.certificate, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| failed(&tls.key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| failed(&tls.certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Listeners that serve.
pub struct Serving {
    unix: Handle<UnixAddress>,
    tcp: Handle<std::net::SocketAddr>,
}

/// Serves on everything that is bound. The future ends when a listener breaks, or after `shutdown`.
///
/// # Errors
/// A listener cannot be taken over by the runtime.
pub fn serve(
    bound: Bound,
    unix_routes: Router,
    tcp_routes: Router,
    connections_max: u32,
) -> io::Result<(Serving, impl Future<Output = io::Result<()>>)> {
    let permits = Arc::new(Semaphore::new(connections_max as usize));
    let serving = Serving { unix: Handle::new(), tcp: Handle::new() };
    let counted = Counted { inner: DefaultAcceptor::new(), permits: permits.clone() };
    let unix = bounded(axum_server::from_unix(bound.unix)?).handle(serving.unix.clone()).acceptor(counted);
    let unix = unix.serve(unix_routes.into_make_service());
    let tcp: Pin<Box<dyn Future<Output = io::Result<()>> + Send>> = match bound.tcp {
        None => Box::pin(std::future::pending()),
        Some((listener, None)) => {
            let server = bounded(axum_server::from_tcp(listener)?).handle(serving.tcp.clone());
            let server = server.acceptor(Counted { inner: NoDelayAcceptor::new(), permits });
            Box::pin(server.serve(tcp_routes.into_make_service()))
        }
        Some((listener, Some(config))) => {
            let tls = RustlsAcceptor::new(RustlsConfig::from_config(config)).handshake_timeout(HANDSHAKE_TIME);
            let server = bounded(axum_server::from_tcp(listener)?).handle(serving.tcp.clone());
            let server = server.acceptor(Counted { inner: tls.acceptor(NoDelayAcceptor::new()), permits });
            Box::pin(server.serve(tcp_routes.into_make_service()))
        }
    };
    let both = async {
        tokio::select! {
            ended = unix => ended,
            ended = tcp => ended,
        }
    };
    Ok((serving, both))
}

fn bounded<A: Address, P>(mut server: Server<A, P>) -> Server<A, P> {
    let builder = server.http_builder();
    builder.http1().header_read_timeout(Some(HEAD_TIME)).max_buf_size(HEAD_BYTES_MAX);
    builder.http2().max_concurrent_streams(STREAMS_MAX).max_header_list_size(64 * 1024);
    server.first_request_timeout(HEAD_TIME)
}

impl Serving {
    /// Takes no more connections; those that are there may finish their requests.
    pub fn stop_accepting(&self) {
        self.unix.graceful_shutdown(None);
        self.tcp.graceful_shutdown(None);
    }

    /// Connections that are there.
    pub fn connections(&self) -> usize {
        self.unix.connection_count() + self.tcp.connection_count()
    }

    /// Ends all connections.
    pub fn shutdown(&self) {
        self.unix.shutdown();
        self.tcp.shutdown();
    }
}

/// Accepts as `inner` does, while there are permits; a connection holds one until it ends.
#[derive(Clone, Debug)]
struct Counted<A> {
    inner: A,
    permits: Arc<Semaphore>,
}

impl<A, I, S> Accept<I, S> for Counted<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
    A::Stream: 'static,
    A::Service: 'static,
{
    type Stream = Held<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let permit = self.permits.clone().try_acquire_owned();
        let accepted = self.inner.accept(stream, service);
        Box::pin(async move {
            let permit = permit.map_err(|_| io::Error::other("there are as many connections as may be"))?;
            let (stream, service) = accepted.await?;
            Ok((Held { stream, _permit: permit }, service))
        })
    }
}

/// A connection that is counted.
#[derive(Debug)]
struct Held<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
