//! Where a service listens, as people write it: `unix:///run/ampoule.sock`, `http://127.0.0.1:8080`, `https://host`.

use std::fmt;
use std::path::PathBuf;

/// The port of `http://` without one.
const HTTP_PORT: u16 = 80;
/// The port of `https://` without one.
const HTTPS_PORT: u16 = 443;

/// An address of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Name or address, without the brackets of an IPv6 address.
        host: String,
        /// Port number.
        port: u16,
        /// Whether TLS is spoken.
        tls: bool,
    },
}

/// A text that is no address of a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no address of a service: {problem}\nhint: write unix:///path/to/socket, http://host:port or https://host:port"
)]
pub struct EndpointError {
    text: String,
    problem: &'static str,
}

impl Endpoint {
    /// Reads an address. A bare absolute path is a unix socket.
    ///
    /// # Errors
    /// When it is neither `unix://` with an absolute path nor `http://` or `https://` with a host and nothing after it.
    pub fn parse(text: &str) -> Result<Endpoint, EndpointError> {
        let wrong = |problem| EndpointError { text: text.to_owned(), problem };
        if let Some(path) = text.strip_prefix("unix://").or(text.starts_with('/').then_some(text)) {
            let is_absolute = path.starts_with('/');
            return if is_absolute { Ok(Endpoint::Unix(path.into())) } else { Err(wrong("the path is not absolute")) };
        }
        let (rest, tls) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return Err(wrong("it begins neither with unix:// nor with http:// or https://")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@'])
            || authority.chars().any(|letter| letter.is_whitespace() || letter.is_control())
        {
            return Err(wrong("there is more than a host and a port"));
        }
        let (host, port) = host_and_port(authority).ok_or_else(|| wrong("the host or the port cannot be read"))?;
        let port = port.unwrap_or(if tls { HTTPS_PORT } else { HTTP_PORT });
        Ok(Endpoint::Tcp { host: host.to_owned(), port, tls })
    }

    /// What the `Host` header says.
    pub(super) fn authority(&self) -> String {
        match self {
            Endpoint::Unix(_) => "localhost".to_owned(),
            Endpoint::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }
}

/// Splits `host:port`, `host`, `[v6]:port` and `[v6]`.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match rest {
        "" => None,
        _ => Some(rest.strip_prefix(':')?.parse().ok()?),
    };
    (!host.is_empty()).then_some((host, port))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(formatter, "unix://{}", path.display()),
            Endpoint::Tcp { tls: false, .. } => write!(formatter, "http://{}", self.authority()),
            Endpoint::Tcp { tls: true, .. } => write!(formatter, "https://{}", self.authority()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, tls: bool) -> Option<Endpoint> {
        Some(Endpoint::Tcp { host: host.to_owned(), port, tls })
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, expected) in [
            ("unix:///run/ampoule.sock", Some(Endpoint::Unix("/run/ampoule.sock".into()))),
            ("/run/ampoule.sock", Some(Endpoint::Unix("/run/ampoule.sock".into()))),
            ("http://127.0.0.1:8080", tcp("127.0.0.1", 8080, false)),
            ("http://localhost", tcp("localhost", 80, false)),
            ("https://ci.example/", tcp("ci.example", 443, true)),
            ("http://[::1]:81", tcp("::1", 81, false)),
            ("https://[::1]", tcp("::1", 443, true)),
            ("unix://relative", None),
            ("http://", None),
            ("http://:80", None),
            ("http://host:port", None),
            ("http://host:99999", None),
            ("http://host/path", None),
            ("http://user@host", None),
            ("http://ho st", None),
            ("tcp://host:1", None),
            ("", None),
        ] {
            assert_eq!(Endpoint::parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn an_address_is_shown_so_that_it_can_be_read_again() {
        for text in ["unix:///a/b", "http://host:80", "https://[::1]:443"] {
            assert_eq!(Endpoint::parse(text).expect(text).to_string(), text);
        }
    }
}
