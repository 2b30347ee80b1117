//! What is known of each registry before it is asked: where it is, whether it may be plain HTTP, which mirrors stand in
//! for it, and which hosts may see what its users sign in with. Decides; connects to nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::Url;

use super::credentials::Credentials;

/// The name of the registry of Docker Hub in references.
const HUB: &str = "docker.io";
/// The host that answers for it.
const HUB_HOST: &str = "registry-1.docker.io";
/// Token servers that are not of their registry's own domain, and are known to belong to it.
const KNOWN_REALMS: [(&str, &str); 2] = [("lscr.io", "ghcr.io"), ("registry.connect.redhat.com", "sso.redhat.com")];
/// Domains whose neighbours are strangers to each other, besides those that the list of public suffixes has.
const SHARED_DOMAINS: [&str; 4] = ["azurecr.io", "pkg.dev", "amazonaws.com", "gcr.io"];

/// Settings of all registries. The default knows none: each is asked by its own name, over HTTPS.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// The registries that may be talked to, as in `ghcr.io`; all when there is no list.
    pub only: Option<Vec<String>>,
    /// Settings by the name of the registry in references, as in `docker.io` or `registry.lan:5000`.
    pub hosts: BTreeMap<String, HostConfig>,
}

/// Settings of one registry.
#[derive(Clone, Debug, Default)]
pub struct HostConfig {
    /// Registries that are asked first, as `https://host[:port]` or `http://…`, in their order.
    pub mirrors: Vec<String>,
    /// Whether it speaks plain HTTP; loopback addresses do unless this is false.
    pub insecure: Option<bool>,
    /// Certificates (PEM) that are trusted besides the machine's.
    pub certificates: Option<PathBuf>,
    /// Hosts, besides its own, that may be shown the credentials when it names one of them as its token server.
    pub realms: Vec<String>,
    /// Who the service is there, when a caller says nothing.
    pub credentials: Option<Credentials>,
    /// Largest piece of an upload, for registries behind a proxy that bounds bodies; the whole at once when absent.
    pub chunk_bytes: Option<u64>,
    /// Most requests to it at once.
    pub connections: Option<usize>,
}

/// Why the settings of registries cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// It is no address of a mirror.
    #[error(
        "`{mirror}` is not the address of a mirror\nhint: write `https://host` or `http://host:port`, without a path"
    )]
    Mirror {
        /// What was written.
        mirror: String,
    },
    /// It may not be talked to.
    #[error(
        "the registry `{registry}` may not be used here\nhint: `only` in the service's registries.toml lists those that may"
    )]
    Forbidden {
        /// The registry.
        registry: String,
    },
    /// It has no address.
    #[error("`{registry}` is not the address of a registry")]
    Address {
        /// The registry.
        registry: String,
    },
}

/// A place that is asked for a registry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// The name by which settings and messages know it, as in `registry.lan:5000`.
    pub(super) name: String,
    /// Scheme, host and port.
    pub(super) base: Url,
    /// Whether it stands in for another registry.
    pub(super) is_mirror: bool,
}

impl Site {
    /// Whether it is spoken to without TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }
}

impl RegistryConfig {
    /// Checks what does not depend on a request.
    ///
    /// # Errors
    /// A mirror that has no proper address.
    pub fn check(&self) -> Result<(), HostsError> {
        self.hosts.values().flat_map(|host| &host.mirrors).try_for_each(|mirror| mirror_site(mirror).map(drop))
    }

    /// Settings of a registry.
    pub(super) fn host(&self, name: &str) -> Option<&HostConfig> {
        self.hosts.get(name)
    }

    /// Where a registry is, its mirrors first.
    pub(super) fn sites(&self, registry: &str) -> Result<Vec<Site>, HostsError> {
        if self.only.as_ref().is_some_and(|only| !only.iter().any(|name| name == registry)) {
            return Err(HostsError::Forbidden { registry: registry.to_owned() });
        }
        let mirrors = self.host(registry).map_or(&[][..], |host| &host.mirrors);
        let mut sites = mirrors.iter().map(|mirror| mirror_site(mirror)).collect::<Result<Vec<_>, _>>()?;
        sites.push(self.own_site(registry)?);
        Ok(sites)
    }

    /// Where a registry itself is.
    pub(super) fn own_site(&self, registry: &str) -> Result<Site, HostsError> {
        let address = if registry == HUB { HUB_HOST } else { registry };
        let wrong = || HostsError::Address { registry: registry.to_owned() };
        let https = Url::parse(&format!("https://{address}/")).map_err(|_| wrong())?;
        let is_plain = self.host(registry).and_then(|host| host.insecure).unwrap_or_else(|| is_loopback(&https));
        let base = if is_plain { Url::parse(&format!("http://{address}/")).map_err(|_| wrong())? } else { https };
        Ok(Site { name: registry.to_owned(), base, is_mirror: false })
    }

    /// Whether what a user of `site` signs in with may be shown to its token server at `realm`.
    pub(super) fn trusts(&self, site: &Site, realm: &Url) -> bool {
        let (Some(own), Some(host)) = (site.base.host_str(), realm.host_str()) else { return false };
        // What travels in the clear is anybody's, unless the registry itself is spoken to like that.
        if realm.scheme() != "https" && !(realm.scheme() == "http" && site.is_plain()) {
            return false;
        }
        let listed = self.host(&site.name).map_or(&[][..], |settings| &settings.realms);
        let with_port = realm.port().map(|port| format!("{host}:{port}"));
        listed.iter().any(|name| name == host || with_port.as_deref() == Some(name))
            || is_family(own, host)
            || KNOWN_REALMS.contains(&(site.name.as_str(), host))
    }
}

/// Whether a host is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn mirror_site(text: &str) -> Result<Site, HostsError> {
    let wrong = || HostsError::Mirror { mirror: text.to_owned() };
    let base = Url::parse(text).map_err(|_| wrong())?;
    let is_bare =
        base.path() == "/" && base.query().is_none() && base.fragment().is_none() && base.username().is_empty();
    let host = base.host_str().filter(|_| is_bare && matches!(base.scheme(), "http" | "https")).ok_or_else(wrong)?;
    let name = base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok(Site { name, base, is_mirror: true })
}

/// Whether two hosts are one, or of one owner: the same registrable parent, as in `auth.docker.io` and
/// `registry-1.docker.io`, where that parent does not lend its names to strangers.
fn is_family(own: &str, other: &str) -> bool {
    if own.eq_ignore_ascii_case(other) {
        return true;
    }
    let parent = |host: &str| {
        // An address is not of anybody's domain.
        let is_address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
        let domain = psl::domain_str(host).filter(|_| !is_address && host.contains('.'))?;
        let suffix = psl::suffix(domain.as_bytes()).filter(|suffix| suffix.is_known());
        (suffix.is_some() && !SHARED_DOMAINS.contains(&domain)).then(|| domain.to_ascii_lowercase())
    };
    parent(own).is_some_and(|domain| parent(other) == Some(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusts(registry: &str, realm: &str) -> bool {
        let config = RegistryConfig::default();
        config.trusts(&config.own_site(registry).unwrap(), &Url::parse(realm).unwrap())
    }

    #[test]
    fn a_registry_is_where_docker_looks_for_it() {
        let base = |registry: &str| RegistryConfig::default().own_site(registry).unwrap().base.to_string();
        assert_eq!(base("docker.io"), "https://registry-1.docker.io/");
        assert_eq!(base("ghcr.io"), "https://ghcr.io/");
        assert_eq!(base("localhost:5000"), "http://localhost:5000/");
        assert_eq!(base("127.0.0.9"), "http://127.0.0.9/");
        assert_eq!(base("[::1]:5000"), "http://[::1]:5000/");
        assert_eq!(base("registry.lan:5000"), "https://registry.lan:5000/");
        let insecure = HostConfig { insecure: Some(true), ..HostConfig::default() };
        let secure = HostConfig { insecure: Some(false), ..HostConfig::default() };
        let hosts = [("registry.lan:5000".to_owned(), insecure), ("localhost".to_owned(), secure)].into();
        let config = RegistryConfig { only: None, hosts };
        assert_eq!(config.own_site("registry.lan:5000").unwrap().base.as_str(), "http://registry.lan:5000/");
        assert_eq!(config.own_site("localhost").unwrap().base.as_str(), "https://localhost/");
    }

    #[test]
    fn credentials_stay_in_the_family_of_the_registry() {
        assert!(trusts("docker.io", "https://auth.docker.io/token"));
        assert!(trusts("ghcr.io", "https://ghcr.io/token"));
        assert!(trusts("registry.gitlab.com", "https://gitlab.com/jwt/auth"));
        assert!(trusts("quay.io", "https://quay.io/v2/auth"));
        assert!(trusts("me.azurecr.io", "https://me.azurecr.io/oauth2/token"));
        assert!(trusts("127.0.0.1:5000", "http://127.0.0.1:5001/token"));
        assert!(!trusts("me.azurecr.io", "https://you.azurecr.io/oauth2/token"));
        assert!(!trusts("1.dkr.ecr.eu-west-1.amazonaws.com", "https://2.dkr.ecr.eu-west-1.amazonaws.com/"));
        assert!(!trusts("me.github.io", "https://you.github.io/"));
        assert!(!trusts("docker.io", "https://auth.docker.io.evil.example/token"));
        assert!(!trusts("docker.io", "http://auth.docker.io/token"));
        assert!(!trusts("a.co.uk", "https://b.co.uk/"));
        assert!(!trusts("127.0.0.1:5000", "http://localhost:5001/token"));
        assert!(!trusts("10.0.0.1", "https://11.0.0.1/"));
        assert!(!trusts("registry.lan", "https://auth.lan/"));
        assert!(!trusts("registry", "https://auth/"));
    }

    #[test]
    fn more_token_servers_are_trusted_when_the_settings_say_so() {
        let realms = vec!["auth.lan".to_owned(), "sso.lan:8443".to_owned()];
        let host = HostConfig { realms, ..HostConfig::default() };
        let config = RegistryConfig { only: None, hosts: [("registry.lan".to_owned(), host)].into() };
        let site = config.own_site("registry.lan").unwrap();
        for (realm, expected) in [
            ("https://auth.lan/t", true),
            ("https://sso.lan:8443/t", true),
            ("https://sso.lan/t", false),
            ("http://auth.lan/t", false),
            ("ftp://auth.lan/t", false),
        ] {
            assert_eq!(config.trusts(&site, &Url::parse(realm).unwrap()), expected, "{realm}");
        }
    }

    #[test]
    fn mirrors_come_first_and_need_a_proper_address() {
        let host = HostConfig {
            mirrors: vec!["http://127.0.0.1:5001".into(), "https://mirror.lan".into()],
            ..HostConfig::default()
        };
        let config = RegistryConfig { only: None, hosts: [("docker.io".to_owned(), host)].into() };
        let names: Vec<_> =
            config.sites("docker.io").unwrap().into_iter().map(|site| (site.name, site.is_mirror)).collect();
        let expected =
            [("127.0.0.1:5001".to_owned(), true), ("mirror.lan".to_owned(), true), ("docker.io".to_owned(), false)];
        assert_eq!(names, expected);
        for wrong in
            ["mirror.lan", "https://mirror.lan/v2/", "ftp://mirror.lan", "https://me@mirror.lan", "https://a?b"]
        {
            assert!(mirror_site(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_list_of_registries_keeps_all_others_out() {
        let config = RegistryConfig { only: Some(vec!["ghcr.io".into()]), ..RegistryConfig::default() };
        assert!(config.sites("ghcr.io").is_ok());
        assert_eq!(config.sites("docker.io"), Err(HostsError::Forbidden { registry: "docker.io".into() }));
    }
}
