//! Which service is talked to, from flags and environment.

use std::path::{Path, PathBuf};

use ampoule_client::{Client, Endpoint};
use anyhow::{Context as _, Result};
use clap::Args;

use crate::config;

/// The socket of a service that root started; users without one of their own talk to it.
const SYSTEM_SOCKET: &str = "/run/ampoule/ampoule.sock";

/// How the service is reached.
#[derive(Args, Debug)]
pub(super) struct Reach {
    /// Where the service listens: unix:///path, http://host:port or https://host:port
    /// [default: the socket of a service on this machine]
    #[arg(long, global = true, env = "AMPOULE_HOST", value_name = "ADDRESS", help_heading = "Service")]
    host: Option<String>,
    /// Token for a service that is reached by TCP
    #[arg(
        long,
        global = true,
        env = "AMPOULE_TOKEN",
        hide_env_values = true,
        value_name = "SECRET",
        help_heading = "Service"
    )]
    token: Option<String>,
    /// Certificates (PEM) that are trusted with https [default: those that this machine trusts]
    #[arg(long, global = true, env = "AMPOULE_CA", value_name = "FILE", help_heading = "Service")]
    ca: Option<PathBuf>,
}

/// A client of the service that is meant. Does not connect yet.
pub(super) fn client(reach: &Reach) -> Result<Client> {
    let endpoint = match reach.host.as_deref().filter(|host| !host.is_empty()) {
        Some(host) => Endpoint::parse(host)?,
        None => Endpoint::Unix(usual_socket(config::default_socket(), Path::new(SYSTEM_SOCKET))),
    };
    let token = reach.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
    let shown = endpoint.to_string();
    Client::new(endpoint, token, reach.ca.as_deref()).with_context(|| format!("could not prepare talking to {shown}"))
}

/// The user's own service when there is one, else the system's when there is one.
fn usual_socket(own: PathBuf, system: &Path) -> PathBuf {
    if !own.exists() && system.exists() { system.to_owned() } else { own }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_of_ones_own_goes_before_the_system_s() {
        let folder = tempfile::tempdir().expect("a folder");
        let (own, system) = (folder.path().join("own"), folder.path().join("system"));
        assert_eq!(usual_socket(own.clone(), &system), own);
        std::fs::write(&system, "").expect("a file");
        assert_eq!(usual_socket(own.clone(), &system), system);
        std::fs::write(&own, "").expect("a file");
        assert_eq!(usual_socket(own.clone(), &system), own);
    }
}
