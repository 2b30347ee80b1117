//! Who somebody is to a registry. Secrets are never printed: `Debug` hides them, and no error holds one.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use sha2::Digest as _;

/// Longest user name or secret, in bytes; a token of a cloud is a few thousand.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;

/// How somebody signs in at a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user with a password, or with a token that stands in for one.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token, which the token server gives access tokens for; Docker calls it identity token.
    Identity(String),
    /// An access token that is sent to the registry as it is.
    Bearer(String),
}

/// Names one's credentials without telling them, so that a token that was given for one is never used for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint([u8; 32]);

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { username, .. } => write!(formatter, "Password {{ {username:?}, … }}"),
            Credentials::Identity(_) => formatter.write_str("Identity(…)"),
            Credentials::Bearer(_) => formatter.write_str("Bearer(…)"),
        }
    }
}

impl Credentials {
    /// Whether no part is longer than `SECRET_BYTES_MAX`.
    pub fn is_bounded(&self) -> bool {
        match self {
            Credentials::Password { username, password } => username.len().max(password.len()) <= SECRET_BYTES_MAX,
            Credentials::Identity(token) | Credentials::Bearer(token) => token.len() <= SECRET_BYTES_MAX,
        }
    }

    pub(super) fn fingerprint(credentials: Option<&Credentials>) -> Fingerprint {
        let mut hasher = sha2::Sha256::new();
        let parts = match credentials {
            None => ["", "", ""],
            Some(Credentials::Password { username, password }) => ["password", username, password],
            Some(Credentials::Identity(token)) => ["identity", token, ""],
            Some(Credentials::Bearer(token)) => ["bearer", token, ""],
        };
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Fingerprint(hasher.finalize().into())
    }
}

/// The header of Basic authentication.
pub(super) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

/// The header for an access token; `None` when it cannot stand in one.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_printed_and_headers_are_marked() {
        let all = [
            Credentials::Password { username: "me".into(), password: "secret".into() },
            Credentials::Identity("secret".into()),
            Credentials::Bearer("secret".into()),
        ];
        assert!(!format!("{all:?}").contains("secret"), "{all:?}");
        assert!(!format!("{:?}", basic("me", "secret").unwrap()).contains("bWU6"));
        assert!(bearer("a\nb").is_none());
    }

    #[test]
    fn different_credentials_have_different_fingerprints() {
        let password = |username: &str, password: &str| Credentials::Password {
            username: username.into(),
            password: password.into(),
        };
        let all = [Some(password("a", "bc")), Some(password("ab", "c")), Some(Credentials::Bearer("a".into())), None];
        let prints: std::collections::HashSet<_> =
            all.iter().map(|one| Credentials::fingerprint(one.as_ref())).collect();
        assert_eq!(prints.len(), all.len());
    }
}
