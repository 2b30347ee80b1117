//! Names of images as people write them: `alpine`, `user/app:1`, `host:5000/x/y@sha256:…`. One parser gives every
//! name one meaning; two names that mean the same are equal.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// The registry that a name without one belongs to.
const DEFAULT_DOMAIN: &str = "docker.io";
/// An older name of it.
const LEGACY_DOMAIN: &str = "index.docker.io";
/// Where the official images are.
const OFFICIAL_PREFIX: &str = "library/";
/// What a name without tag and digest means.
const DEFAULT_TAG: &str = "latest";
/// Longest repository with its registry, in bytes.
const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

/// The name of an image: registry, path, and a tag, a digest or both. Displayed the way people write it; `canonical`
/// leaves nothing out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the name of an image: {problem}")]
pub struct ReferenceError {
    /// The text, made printable and shortened.
    pub text: String,
    /// What is wrong with it, with a hint if there is one.
    pub problem: &'static str,
}

impl Reference {
    /// Takes a name apart and completes it: `alpine` means `docker.io/library/alpine:latest`.
    ///
    /// # Errors
    /// A text that no image can have as its name; the error says which part is wrong.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { text: super::archive::printable(text.as_bytes()), problem })
    }

    /// The registry, as in `docker.io` or `host:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The path in the registry, as in `library/alpine`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and path, as in `docker.io/library/alpine`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag. `None` only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the name is pinned to.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same name without its pin; a name without a tag has none of this form.
    pub fn without_digest(&self) -> Option<Reference> {
        self.tag.is_some().then(|| Reference { digest: None, ..self.clone() })
    }

    /// The whole name, as in `docker.io/library/alpine:latest`; parses to the same reference.
    pub fn canonical(&self) -> String {
        format!("{}/{}{}", self.domain, self.path, self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

/// The short form that people know, with the tag: `alpine:latest`, `user/app:1`, `host:5000/x/y:2`.
impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.domain != DEFAULT_DOMAIN {
            return formatter.write_str(&self.canonical());
        }
        let short = self.path.strip_prefix(OFFICIAL_PREFIX).filter(|rest| !rest.contains('/'));
        match short {
            // `localhost` and the like would be read as a registry, were there a path behind them; alone they are not.
            Some(short) => write!(formatter, "{short}{}", self.suffix()),
            None if names_a_domain(self.path.split('/').next().unwrap_or_default()) => {
                formatter.write_str(&self.canonical())
            }
            None => write!(formatter, "{}{}", self.path, self.suffix()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text)
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (text, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            (rest, Some(Digest::parse(digest).map_err(|_| "its digest is not `sha256:` with 64 hexadecimal digits")?))
        }
        None => (text, None),
    };
    let last_part = text.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match text[last_part..].rfind(':') {
        Some(colon) => (&text[..last_part + colon], Some(&text[last_part + colon + 1..])),
        None => (text, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("a tag has 1 to 128 letters, digits, `_`, `.` and `-`, and starts with none of the last two");
    }
    let (domain, path) = split_domain(name)?;
    if domain.len() + 1 + path.len() > REPOSITORY_BYTES_MAX {
        return Err("it is longer than 255 bytes");
    }
    let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
    Ok(Reference { domain, path, tag, digest })
}

fn split_domain(name: &str) -> Result<(String, String), &'static str> {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if names_a_domain(first) => (first, rest.to_owned()),
        Some(_) => (DEFAULT_DOMAIN, name.to_owned()),
        None => (DEFAULT_DOMAIN, format!("{OFFICIAL_PREFIX}{name}")),
    };
    let domain = if domain == LEGACY_DOMAIN { DEFAULT_DOMAIN } else { domain };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("{OFFICIAL_PREFIX}{path}") } else { path };
    if domain == DEFAULT_DOMAIN
        && path.strip_prefix(OFFICIAL_PREFIX).is_some_and(|name| Digest::from_hex(name).is_some())
    {
        return Err("64 hexadecimal digits are an id, not a name");
    }
    if !is_domain(domain) {
        return Err("its registry is not a host name with an optional port");
    }
    if name.is_empty() || !path.split('/').all(is_path_part) {
        return Err(
            "a name has lower-case letters and digits, and between them single `.`, one or two `_`, or any number of `-`",
        );
    }
    Ok((domain.to_owned(), path))
}

/// Whether the part in front of the first slash is a registry rather than a user.
fn names_a_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
            return is_address && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
        }
        None => domain.split_once(':').map_or((domain, None), |(host, port)| (host, Some(port))),
    };
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn is_path_part(part: &str) -> bool {
    let is_alphanumeric = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let bytes = part.as_bytes();
    let mut separators = bytes.split(|&byte| is_alphanumeric(byte)).filter(|run| !run.is_empty());
    bytes.first().copied().is_some_and(is_alphanumeric)
        && bytes.last().copied().is_some_and(is_alphanumeric)
        && separators.all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|&byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(text: &str, canonical: &str, familiar: &str) {
        let reference = Reference::parse(text).unwrap();
        assert_eq!((reference.canonical(), reference.to_string()), (canonical.to_owned(), familiar.to_owned()));
    }

    #[test]
    fn names_mean_what_docker_users_expect() {
        check("alpine", "docker.io/library/alpine:latest", "alpine:latest");
        check("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20");
        check("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest");
        check("index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine:latest");
        check("user/app:1", "docker.io/user/app:1", "user/app:1");
        check("localhost/app", "localhost/app:latest", "localhost/app:latest");
        check("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest");
        check("localhost", "docker.io/library/localhost:latest", "localhost:latest");
        check("host:5000", "docker.io/library/host:5000", "host:5000");
        check("ghcr.io/a/b/c:v1.2-rc_3", "ghcr.io/a/b/c:v1.2-rc_3", "ghcr.io/a/b/c:v1.2-rc_3");
        check("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest");
        check("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest");
        check("docker.io/my.user/app", "docker.io/my.user/app:latest", "docker.io/my.user/app:latest");
        check("docker.io/localhost/app", "docker.io/localhost/app:latest", "docker.io/localhost/app:latest");
        check("a--b/c__d.e", "docker.io/a--b/c__d.e:latest", "a--b/c__d.e:latest");
    }

    #[test]
    fn a_digest_pins_a_name_with_or_without_a_tag() {
        let pinned = Reference::parse(&format!("host:5000/x/y@sha256:{HEX}")).unwrap();
        assert_eq!((pinned.tag(), pinned.digest().unwrap().hex()), (None, HEX));
        assert_eq!(pinned.without_digest(), None);
        let both = Reference::parse(&format!("alpine:3@sha256:{HEX}")).unwrap();
        assert_eq!((both.tag(), both.digest().unwrap().hex()), (Some("3"), HEX));
        assert_eq!(both.without_digest().unwrap().to_string(), "alpine:3");
        assert_eq!(both.to_string(), format!("alpine:3@sha256:{HEX}"));
    }

    #[test]
    fn what_no_image_can_be_called_is_refused() {
        let long = "a".repeat(256);
        let texts = [
            "",
            " ",
            "Alpine",
            "alpine:",
            "alpine:.x",
            "alpine:-x",
            "alpine@",
            "alpine@sha256:12",
            "alpine@md5:12",
            "/alpine",
            "alpine/",
            "a//b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a b",
            "a\nb",
            "../x",
            "host:99999/x",
            "host:/x",
            "-host.io/x",
            "x.io/",
            "[::1/x",
            "[zz]/x",
            HEX,
            long.as_str(),
            "a:b:c",
            "ä",
            "a/B",
            "docker.io/",
        ];
        for text in texts {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn both_written_forms_parse_to_the_same_reference(
            domain in proptest::option::of("(localhost|[a-z0-9]{1,8}(\\.[a-z0-9]{1,5}){1,2})(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,6}(/[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){0,3}",
            tag in proptest::option::of("[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}"),
            pinned in any::<bool>(),
        ) {
            let domain = domain.map(|domain| format!("{domain}/")).unwrap_or_default();
            let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
            let digest = if pinned { format!("@sha256:{HEX}") } else { String::new() };
            let reference = Reference::parse(&format!("{domain}{path}{tag}{digest}")).unwrap();
            prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
            prop_assert_eq!(&Reference::parse(&reference.canonical()).unwrap(), &reference);
        }

        #[test]
        fn any_text_is_a_reference_that_comes_back_or_an_error(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}|\\PC{0,20}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.canonical()).unwrap(), &reference);
            }
        }
    }
}
