//! The client against a TLS server: a trusted certificate is needed, and the right name.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ampoule_client::client::ConnectionError;
use ampoule_client::{Client, ClientError, Endpoint};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A server for `localhost` whose certificate is signed by an authority of its own.
struct Server {
    _folder: tempfile::TempDir,
    authority: PathBuf,
    stranger: PathBuf,
    port: u16,
}

fn authority() -> (Certificate, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("an authority");
    (certificate, Issuer::new(params, key))
}

fn acceptor(issuer: &Issuer<'static, KeyPair>) -> TlsAcceptor {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a certificate with its key");
    TlsAcceptor::from(Arc::new(config))
}

/// Answers every request with a version.
async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from(r#"{"version":"1","api":"v1"}"#)))
}

impl Server {
    async fn start() -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let ((certificate, issuer), (other, _)) = (authority(), authority());
        let (authority, stranger) = (folder.path().join("authority.pem"), folder.path().join("stranger.pem"));
        std::fs::write(&authority, certificate.pem()).expect("a file");
        std::fs::write(&stranger, other.pem()).expect("a file");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let acceptor = acceptor(&issuer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Clients that do not trust us hang up here.
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        });
        Server { _folder: folder, authority, stranger, port }
    }

    fn client(&self, host: &str, certificates: &Path) -> Client {
        let endpoint = Endpoint::Tcp { host: host.to_owned(), port: self.port, tls: true };
        Client::new(endpoint, None, Some(certificates)).expect("a client")
    }
}

async fn check_refused(client: &Client) {
    let answer = client.version().await;
    assert!(matches!(answer, Err(ClientError::Connection(ConnectionError::Connect { .. }))), "{answer:?}");
}

#[tokio::test]
async fn a_service_with_a_trusted_certificate_is_talked_to() {
    let server = Server::start().await;
    let client = server.client("localhost", &server.authority);
    assert_eq!(client.version().await.expect("a version").api, "v1");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let server = Server::start().await;
    check_refused(&server.client("127.0.0.1", &server.authority)).await;
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let server = Server::start().await;
    check_refused(&server.client("localhost", &server.stranger)).await;
}

#[tokio::test]
async fn a_file_without_certificates_is_named() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let endpoint = Endpoint::Tcp { host: "localhost".to_owned(), port: 1, tls: true };
    let Err(error) = Client::new(endpoint, None, Some(file.path())) else { panic!("an empty file is none") };
    assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
}
