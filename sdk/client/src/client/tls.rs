//! TLS towards the service: the certificates that are trusted, and the handshake. Never without verification.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where distributions keep the certificates that the machine trusts.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of trusted certificates cannot be used.
    #[error("could not read certificates from {}: {problem}", file.display())]
    Certificates {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// This machine has no certificates in any of the usual places.
    #[error(
        "this machine keeps no trusted certificates where they are expected\nhint: name the file with the service's certificate in AMPOULE_CA"
    )]
    NoBundle,
    /// TLS cannot be set up at all.
    #[error("could not set TLS up")]
    Setup(#[from] rustls::Error),
}

/// What connections are made with: the certificates of `file`, or those that the machine trusts.
pub(super) fn connector(file: Option<&Path>) -> Result<TlsConnector, TlsError> {
    let file = match file {
        Some(file) => file,
        None => SYSTEM_BUNDLES.iter().map(Path::new).find(|bundle| bundle.exists()).ok_or(TlsError::NoBundle)?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(trusted(file)?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn trusted(file: &Path) -> Result<RootCertStore, TlsError> {
    let wrong = |problem: String| TlsError::Certificates { file: file.to_owned(), problem };
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if store.is_empty() { Err(wrong("there is none in it".to_owned())) } else { Ok(store) }
}

/// Shakes hands over a connection that stands; the certificate must be for `host`.
pub(super) async fn shake_hands(
    connector: &TlsConnector,
    host: &str,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    connector.connect(name, stream).await
}
