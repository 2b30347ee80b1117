//! Why a registry did not do what was asked. No message holds a secret: what a registry says is shortened and made
//! printable, and addresses are shown without their queries.

use std::io;
use std::time::Duration;

use reqwest::StatusCode;

use super::hosts::HostsError;
use crate::image::digest::Digest;

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The settings do not allow it.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// There is no way to talk HTTP.
    #[error("could not prepare HTTP: {0}")]
    Setup(String),
    /// It could not be reached, or the connection broke, as often as it was tried.
    #[error("could not reach the registry `{registry}`: {problem}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What happened last.
        problem: String,
    },
    /// It failed, or answered something that nobody asked for.
    #[error("the registry `{registry}` answered {status} to {request}{said}")]
    Status {
        /// The registry.
        registry: String,
        /// What it answered.
        status: StatusCode,
        /// Method and path.
        request: String,
        /// Its own words, if it had any.
        said: String,
    },
    /// It does not have it.
    #[error(
        "the registry `{registry}` has no {what}{said}\nhint: look at the spelling; a private image may need a login"
    )]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its own words, if it had any.
        said: String,
    },
    /// It wants to know who asks, or does not let them.
    #[error(
        "the registry `{registry}` does not let {who} do this{said}\nhint: sign in with `docker login {registry}`, or give the service credentials in its registries.toml"
    )]
    Denied {
        /// The registry.
        registry: String,
        /// Who it was, without a secret.
        who: String,
        /// Its own words, if it had any.
        said: String,
    },
    /// It wants the credentials sent to a host that has no business with them.
    #[error(
        "the registry `{registry}` wants the login sent to `{realm}`, which does not belong to it\nhint: if it does, add that host to `realms` of the registry in the service's registries.toml"
    )]
    ForeignRealm {
        /// The registry.
        registry: String,
        /// The host.
        realm: String,
    },
    /// It asked to come back later than anybody would wait.
    #[error("the registry `{registry}` has had too many requests and asks to wait {} s\nhint: signing in often raises the limit", after.as_secs())]
    Limited {
        /// The registry.
        registry: String,
        /// How long.
        after: Duration,
    },
    /// It breaks the rules of the protocol.
    #[error("the registry `{registry}` cannot be understood: {problem}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What is wrong.
        problem: String,
    },
    /// It sends more than it may.
    #[error("the registry `{registry}` sends more than {bytes_max} bytes for {what}")]
    TooLarge {
        /// The registry.
        registry: String,
        /// For what.
        what: String,
        /// The bound.
        bytes_max: u64,
    },
    /// What came is not what was asked for.
    #[error("the registry `{registry}` sent {actual} for {expected}")]
    Corrupt {
        /// The registry.
        registry: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// What came could not be put anywhere.
    #[error("could not keep what arrives")]
    Sink(#[source] io::Error),
    /// What is to be sent could not be read.
    #[error("could not read what is to be sent")]
    Source(#[source] io::Error),
}

impl RegistryError {
    /// Whether another registry that has the same may do better: not when it is our own disk that fails.
    pub(super) fn may_do_better_elsewhere(&self) -> bool {
        !matches!(
            self,
            RegistryError::Sink(_) | RegistryError::Source(_) | RegistryError::Setup(_) | RegistryError::Hosts(_)
        )
    }

    /// Whether it says that the thing is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RegistryError::NotFound { .. })
    }
}

/// An error of the HTTP library in one line, without the address, whose query may hold what is nobody's business.
pub(super) fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut parts = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        parts.push(cause.to_string());
        source = cause.source();
    }
    parts.dedup();
    parts.join(": ")
}
