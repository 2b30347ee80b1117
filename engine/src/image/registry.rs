//! A client of registries: OCI distribution 1.1 and what Docker's registries do differently. Nothing is trusted: every
//! body has a bound, content counts by its digest only, logins stay with the registry that they are for, and a
//! connection that breaks is taken up where it broke. Knows nothing of the store.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, redirect};
use tokio::sync::Semaphore;

use super::reference::Reference;
pub use challenge::{Challenge, ChallengeError};
pub use content::Fetched;
pub use credentials::{Credentials, SECRET_BYTES_MAX};
pub use failure::RegistryError;
use hosts::Site;
pub use hosts::{HostConfig, HostsError, RegistryConfig};
use tokens::{Gate, Tokens};
use transport::{Clients, Line};
pub use upload::{BlobSource, Sent};

pub mod challenge;
mod content;
mod credentials;
mod failure;
mod hosts;
mod referrers;
mod tokens;
mod transport;
mod upload;

/// Requests to one host at once, unless its settings say otherwise.
const CONNECTIONS_DEFAULT: usize = 8;
/// How long a connection may take to be made.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// How long a peer may leave what was sent unacknowledged.
const ACKNOWLEDGE_TIME: Duration = Duration::from_secs(60);
/// Longest file of certificates, in bytes.
const CERTIFICATES_BYTES_MAX: u64 = 1024 * 1024;

/// All registries. Cloning shares connections, tokens and settings.
#[derive(Clone)]
pub struct Registry {
    config: Arc<RegistryConfig>,
    tokens: Arc<Tokens>,
    permits: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
    /// Made when first needed: reading the machine's certificates takes a while.
    clients: Arc<OnceLock<Result<Clients, String>>>,
}

/// What is to be done in a repository; the token server is asked for just that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Fetch from it.
    Pull,
    /// Bring something to it, and take blobs over from these repositories beside it.
    Push {
        /// Paths of repositories in the same registry.
        from: Vec<String>,
    },
}

/// One repository of a registry, with the registry's mirrors.
pub struct Repository {
    path: String,
    /// Mirrors first, the registry itself last.
    lines: Vec<Line>,
    chunk_bytes: Option<u64>,
}

impl Registry {
    /// Registries with these settings. Connects to nobody.
    pub fn new(config: RegistryConfig) -> Registry {
        Registry { config: Arc::new(config), tokens: Arc::default(), permits: Arc::default(), clients: Arc::default() }
    }

    /// A repository, for somebody. Without credentials the service's own are used, if it has any. Mirrors never see
    /// what a caller brings.
    ///
    /// # Errors
    /// A registry that the settings forbid, or certificates that cannot be read.
    pub fn repository(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
        errand: &Errand,
    ) -> Result<Repository, RegistryError> {
        let sites = match errand {
            Errand::Pull => self.config.sites(reference.domain())?,
            // What is pushed goes to the registry itself; `sites` says whether it may be talked to.
            Errand::Push { .. } => {
                self.config.sites(reference.domain())?.into_iter().filter(|site| !site.is_mirror).collect()
            }
        };
        let scopes = errand.scopes(reference.path());
        let lines = sites.into_iter().map(|site| {
            let brought = credentials.clone().filter(|_| !site.is_mirror);
            self.line(site, brought, scopes.clone())
        });
        let settings = self.config.host(reference.domain());
        Ok(Repository {
            path: reference.path().to_owned(),
            lines: lines.collect::<Result<_, _>>()?,
            chunk_bytes: settings.and_then(|host| host.chunk_bytes),
        })
    }

    fn line(&self, site: Site, credentials: Option<Credentials>, scopes: Vec<String>) -> Result<Line, RegistryError> {
        let settings = self.config.host(&site.name);
        let credentials = credentials.or_else(|| settings.and_then(|host| host.credentials.clone()));
        let clients = match settings.and_then(|host| host.certificates.as_deref()) {
            Some(file) => build(Some(file)).map_err(RegistryError::Setup)?,
            None => self.clients.get_or_init(|| build(None)).clone().map_err(RegistryError::Setup)?,
        };
        let connections = settings.and_then(|host| host.connections).unwrap_or(CONNECTIONS_DEFAULT).max(1);
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let permits = permits.entry(site.name.clone()).or_insert_with(|| Arc::new(Semaphore::new(connections)));
        let gate = Gate::new(credentials, scopes, Arc::clone(&self.tokens), Arc::clone(&self.config));
        Ok(Line { site, gate, permits: Arc::clone(permits), clients })
    }
}

impl Errand {
    fn scopes(&self, path: &str) -> Vec<String> {
        match self {
            Errand::Pull => vec![format!("repository:{path}:pull")],
            Errand::Push { from } => {
                let others = from.iter().filter(|other| *other != path).map(|other| format!("repository:{other}:pull"));
                std::iter::once(format!("repository:{path}:pull,push")).chain(others).collect()
            }
        }
    }
}

/// Makes the HTTP clients, with more certificates if there is a file of them.
fn build(certificates: Option<&Path>) -> Result<Clients, String> {
    // Another part of the process may have chosen the same provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let more = certificates.map(read_certificates).transpose()?.unwrap_or_default();
    let client = |is_direct: bool| {
        let builder = Client::builder()
            .user_agent(concat!("ampoule/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIME)
            .tcp_user_timeout(ACKNOWLEDGE_TIME)
            .http2_adaptive_window(true)
            .tls_certs_merge(more.clone());
        let builder = if is_direct { builder.no_proxy() } else { builder };
        builder.build().map_err(failure::told)
    };
    Ok(Clients { usual: client(false)?, direct: client(true)? })
}

fn read_certificates(file: &Path) -> Result<Vec<Certificate>, String> {
    let unreadable = |problem: String| format!("the certificates `{}` cannot be read: {problem}", file.display());
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(|error| unreadable(error.to_string()))?;
    opened.take(CERTIFICATES_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
    Certificate::from_pem_bundle(&bytes).map_err(|error| unreadable(failure::told(error)))
}
