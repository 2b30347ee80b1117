//! Downloads of ADD: each is brought once a build, before any step runs, to a file without a name; its content is what a
//! step depends on. The service itself asks for them, so that they reach no more than a RUN does: not this machine,
//! whichever of its addresses is tried, and not what the operator denies, redirects and names included.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use jiff::fmt::rfc2822;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url, header, redirect};

use super::plan::{Input, Plan};
use super::source::Position;
use crate::image::digest::{Digest, Hasher};
use crate::sys::in_one_line;

/// Most bytes of one download.
const BYTES_MAX: u64 = 4 << 30;
/// How long one download may take.
const TIME: Duration = Duration::from_secs(30 * 60);
/// How long an answer may pause, its beginning included.
const PAUSE: Duration = Duration::from_secs(60);
/// How many redirects lead to an answer.
const REDIRECTS_MAX: usize = 10;

/// Downloads for builds, from where they may reach.
pub struct Fetcher {
    client: Client,
    limits: Limits,
    /// The folder whose file system takes the files.
    spools: PathBuf,
}

/// A file that was downloaded.
#[derive(Debug)]
pub struct Download {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) digest: Digest,
    /// The last part of its path; absent when there is none.
    pub(super) name: Option<String>,
    /// When the server says that it changed, in seconds since 1970.
    pub(super) modified: i64,
}

/// The downloads of a build, by their addresses as the plan has them.
pub type Downloads = BTreeMap<String, Arc<Download>>;

/// Why something was not downloaded.
#[derive(Debug, thiserror::Error)]
#[error("`{url}` {problem}")]
pub struct FetchError {
    /// The address.
    pub url: String,
    /// What is wrong with it, with a hint where there is one.
    pub problem: String,
}

/// What a plan downloads: addresses, what each is said to be, and the steps that want it.
pub fn wanted(plan: &Plan) -> impl Iterator<Item = (&str, Option<&str>, Position)> {
    let steps = plan.stages.iter().flat_map(|stage| &stage.steps);
    steps.flat_map(|step| {
        step.inputs.iter().filter_map(|input| match input {
            Input::Url { url, checksum } => Some((url.as_str(), checksum.as_deref(), step.position)),
            _ => None,
        })
    })
}

impl Download {
    /// Whether it is what it is said to be.
    ///
    /// # Errors
    /// It is something else.
    pub fn check(&self, url: &str, checksum: &str) -> Result<(), FetchError> {
        if checksum == self.digest.to_string() {
            return Ok(());
        }
        let problem = format!(
            "is {}, not what --checksum says\nhint: either the file has changed, or the checksum is that of another one",
            self.digest
        );
        Err(FetchError { url: url.to_owned(), problem })
    }
}

impl Fetcher {
    /// One that reaches none of these addresses, and puts files on the file system of this folder.
    ///
    /// # Errors
    /// The machine's certificates cannot be used.
    pub fn new(denied: &[Ipv4Net], spools: PathBuf) -> Result<Fetcher, reqwest::Error> {
        let limits = Limits(Arc::new(denied.to_vec()));
        Ok(Fetcher { client: client(&limits)?, limits, spools })
    }

    /// Downloads a file.
    ///
    /// # Errors
    /// An address that may not be reached, an answer that is none, a full disk.
    pub async fn fetch(&self, url: &str) -> Result<Download, FetchError> {
        let failed = |problem: String| FetchError { url: url.to_owned(), problem };
        let parsed = Url::parse(url).map_err(|error| failed(format!("is no address: {error}")))?;
        self.limits.check_literal(&parsed).map_err(failed)?;
        let name = parsed.path_segments().and_then(|mut parts| parts.next_back()).filter(|name| !name.is_empty());
        let name = name.map(percent_decoded);
        let name = name.filter(|name| !matches!(name.as_str(), "." | "..") && !name.contains(['/', '\0']));
        let download = tokio::time::timeout(TIME, self.receive(parsed, name)).await;
        download.unwrap_or_else(|_| Err(format!("did not come within {} s", TIME.as_secs()))).map_err(failed)
    }

    async fn receive(&self, url: Url, name: Option<String>) -> Result<Download, String> {
        let told = |error: reqwest::Error| format!("cannot be downloaded: {}", in_one_line(&error.without_url()));
        let mut answer = self.client.get(url).send().await.map_err(told)?;
        if !answer.status().is_success() {
            return Err(format!("cannot be downloaded: the server answered {}", answer.status()));
        }
        let modified = answer.headers().get(header::LAST_MODIFIED).and_then(|value| value.to_str().ok());
        let modified = modified.and_then(|text| rfc2822::parse(text).ok());
        let modified = modified.map_or(0, |time| time.timestamp().as_second());
        let unwritten = |error: io::Error| format!("cannot be kept: {error}");
        let mut file = tempfile::tempfile_in(&self.spools).map_err(unwritten)?;
        let mut hasher = Hasher::default();
        while let Some(chunk) = answer.chunk().await.map_err(told)? {
            hasher.update(&chunk);
            if hasher.bytes() > BYTES_MAX {
                return Err(format!("has more than {BYTES_MAX} bytes"));
            }
            // A chunk is some kilobytes, which the page cache takes at once.
            file.write_all(&chunk).map_err(unwritten)?;
        }
        Ok(Download { file, size: hasher.bytes(), digest: hasher.finish(), name, modified })
    }
}

fn client(limits: &Limits) -> Result<Client, reqwest::Error> {
    // Another part of the process may have chosen the same provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let follow = limits.clone();
    let policy = redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("too many redirects");
        }
        match follow.check_literal(attempt.url()) {
            Ok(()) => attempt.follow(),
            Err(problem) => attempt.error(problem),
        }
    });
    // A proxy would reach more than may be reached.
    Client::builder()
        .user_agent(concat!("ampoule/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(policy)
        .dns_resolver(limits.clone())
        .connect_timeout(PAUSE)
        .read_timeout(PAUSE)
        .build()
}

/// Which addresses may be reached.
#[derive(Clone)]
struct Limits(Arc<Vec<Ipv4Net>>);

impl Limits {
    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_denied = match address {
            IpAddr::V4(address) => address.is_link_local() || self.0.iter().any(|network| network.contains(&address)),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        // Only an address of this machine can be bound.
        let is_own = || UdpSocket::bind((address, 0)).is_ok();
        !(is_denied || address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_own())
    }

    /// An address that is written as one is not looked up.
    fn check_literal(&self, url: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        let literal: Result<IpAddr, _> = host.trim_start_matches('[').trim_end_matches(']').parse();
        match literal {
            Ok(address) if !self.allows(address) => Err(forbidden(&address.to_string())),
            _ => Ok(()),
        }
    }
}

fn forbidden(host: &str) -> String {
    format!("cannot be downloaded: builds must not reach `{host}`\nhint: put the file into the context")
}

impl Resolve for Limits {
    fn resolve(&self, name: Name) -> Resolving {
        let limits = self.clone();
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> = found.into_iter().filter(|address| limits.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err(io::Error::other(forbidden(&name)).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The bytes that `%41` and the like stand for; what is no text stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_cannot_reach_cannot_be_downloaded_from() {
        let limits = Limits(Arc::new(vec!["10.1.0.0/16".parse().expect("a network")]));
        for denied in
            ["127.0.0.1", "0.0.0.0", "169.254.169.254", "10.1.2.3", "::1", "::ffff:127.0.0.1", "fe80::1", "224.0.0.1"]
        {
            assert!(!limits.allows(denied.parse().expect("an address")), "{denied}");
        }
        assert!(limits.allows("198.51.100.77".parse().expect("an address")));
        let check = |url: &str| limits.check_literal(&Url::parse(url).expect("an address"));
        assert!(check("http://[::1]:7070/x").is_err());
        assert!(check("http://2130706433/x").is_err());
        assert!(check("https://198.51.100.77/x").is_ok());
    }

    #[test]
    fn a_name_is_what_its_escapes_stand_for() {
        assert_eq!(percent_decoded("a%20b"), "a b");
        assert_eq!(percent_decoded("100%"), "100%");
        assert_eq!(percent_decoded("%ff"), "%ff");
    }
}
