//! Signing in: what a challenge asks for is fetched from the token server that it names, if that may be trusted with
//! the login; what came is used until it expires, by all requests of the same user for the same thing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{self, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use tokio::time::sleep;

use super::challenge::Challenge;
use super::credentials::{self, Credentials, Fingerprint};
use super::failure::{RegistryError, told};
use super::hosts::{RegistryConfig, is_loopback};
use super::transport::{Line, TRIES_MAX, backoff, collect};

/// Longest answer of a token server, in bytes.
const TOKEN_BYTES_MAX: u64 = 256 * 1024;
/// How long a token server may take.
const TOKEN_TIME: Duration = Duration::from_secs(30);
/// How long a token lasts that does not say: so the specification.
const TOKEN_SECONDS_DEFAULT: u64 = 60;
/// The longest time for which a token is kept.
const TOKEN_SECONDS_MAX: u64 = 24 * 3600;
/// Most tokens that are kept.
const TOKENS_MAX: usize = 1024;
/// Who we are to a token server.
const CLIENT_ID: &str = "ampoule";

/// Tokens that were given, for the requests to come.
#[derive(Default)]
pub(super) struct Tokens {
    known: Mutex<HashMap<Key, Token>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    origin: String,
    scopes: Vec<String>,
    whose: Fingerprint,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

impl Tokens {
    fn get(&self, key: &Key) -> Option<Token> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|token| token.until > Instant::now()).cloned()
    }

    fn put(&self, key: Key, token: Token) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TOKENS_MAX {
            let now = Instant::now();
            known.retain(|_, token| token.until > now);
        }
        if known.len() >= TOKENS_MAX {
            known.clear();
        }
        known.insert(key, token);
    }
}

/// The login of one line.
pub(super) struct Gate {
    credentials: Option<Credentials>,
    /// What is asked for, as in `repository:library/alpine:pull`.
    scopes: Vec<String>,
    tokens: Arc<Tokens>,
    config: Arc<RegistryConfig>,
    /// Held while a token is fetched, on purpose: whoever comes meanwhile gets that one.
    pass: tokio::sync::Mutex<Pass>,
}

/// What is shown to the registry.
#[derive(Default)]
struct Pass {
    header: Option<HeaderValue>,
    /// When the header is worthless.
    until: Option<Instant>,
    /// What it was given for.
    challenge: Option<Challenge>,
    /// Whether the tokens of earlier requests were looked through.
    is_looked_up: bool,
}

/// What a token server says.
#[derive(Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Gate {
    pub(super) fn new(
        credentials: Option<Credentials>,
        scopes: Vec<String>,
        tokens: Arc<Tokens>,
        config: Arc<RegistryConfig>,
    ) -> Gate {
        Gate { credentials, scopes, tokens, config, pass: tokio::sync::Mutex::default() }
    }

    /// Who asks, for messages.
    pub(super) fn who(&self) -> String {
        match &self.credentials {
            None => "anybody without a login".to_owned(),
            Some(Credentials::Password { username, .. }) => {
                format!("the user `{}`", crate::image::archive::printable(username.as_bytes()))
            }
            Some(Credentials::Identity(_) | Credentials::Bearer(_)) => "the holder of this token".to_owned(),
        }
    }

    /// The header to send, if any is known.
    pub(super) async fn current(&self, line: &Line) -> Result<Option<HeaderValue>, RegistryError> {
        let mut pass = self.pass.lock().await;
        if !pass.is_looked_up {
            pass.is_looked_up = true;
            match &self.credentials {
                Some(Credentials::Bearer(token)) => pass.header = credentials::bearer(token),
                _ => pass.take(self.tokens.get(&self.key(line))),
            }
        }
        if pass.until.is_some_and(|until| until <= Instant::now()) {
            pass.header = None;
            pass.until = None;
            if let Some(challenge) = pass.challenge.clone() {
                let token = self.fetch(line, &challenge).await?;
                pass.take(token);
            }
        }
        Ok(pass.header.clone())
    }

    /// Does what a challenge asks for. False when nothing more can be done.
    pub(super) async fn renew(
        &self,
        line: &Line,
        challenges: &[Challenge],
        used: Option<&HeaderValue>,
    ) -> Result<bool, RegistryError> {
        let mut pass = self.pass.lock().await;
        if pass.header.is_some() && pass.header.as_ref() != used {
            return Ok(true);
        }
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let Some(challenge) = find("bearer") {
            if matches!(self.credentials, Some(Credentials::Bearer(_))) {
                return Ok(false);
            }
            pass.header = None;
            pass.challenge = Some(challenge.clone());
            let token = self.fetch(line, challenge).await?;
            pass.take(token);
            return Ok(pass.header.is_some());
        }
        match (find("basic"), &self.credentials) {
            (Some(_), Some(Credentials::Password { username, password })) => {
                let header = credentials::basic(username, password);
                let is_new = header.is_some() && header.as_ref() != used;
                pass.header = header;
                Ok(is_new)
            }
            _ => Ok(false),
        }
    }

    fn key(&self, line: &Line) -> Key {
        Key {
            origin: line.site.base.origin().ascii_serialization(),
            scopes: self.scopes.clone(),
            whose: Credentials::fingerprint(self.credentials.as_ref()),
        }
    }

    /// Fetches a token and keeps it. `None` when the token server knows no such user.
    async fn fetch(&self, line: &Line, challenge: &Challenge) -> Result<Option<Token>, RegistryError> {
        let realm = self.realm(line, challenge)?;
        let scopes = self.scopes_for(challenge);
        let service = challenge.parameter("service");
        let Some(bytes) = self.ask(line, &realm, service, &scopes).await? else { return Ok(None) };
        let given: Given = serde_json::from_slice(&bytes)
            .map_err(|_| line.protocol("its token server's answer is not what the specification says"))?;
        let text = given.token.or(given.access_token).filter(|token| !token.is_empty());
        let text = text.ok_or_else(|| line.protocol("its token server gives no token"))?;
        let header = credentials::bearer(&text).ok_or_else(|| line.protocol("its token cannot be sent"))?;
        let seconds = given.expires_in.unwrap_or(TOKEN_SECONDS_DEFAULT).clamp(1, TOKEN_SECONDS_MAX);
        // A little earlier, for the time that a request is on its way.
        let until = Instant::now() + Duration::from_secs(seconds) - Duration::from_secs((seconds / 10).min(30));
        let token = Token { header, until };
        self.tokens.put(self.key(line), token.clone());
        Ok(Some(token))
    }

    /// The token server, if it may be asked.
    fn realm(&self, line: &Line, challenge: &Challenge) -> Result<Url, RegistryError> {
        let realm = challenge.parameter("realm").ok_or_else(|| line.protocol("its challenge names no token server"))?;
        let url = Url::parse(realm).map_err(|_| line.protocol("its token server has no proper address"))?;
        let foreign = || RegistryError::ForeignRealm {
            registry: line.site.name.clone(),
            realm: url.host_str().unwrap_or_default().to_owned(),
        };
        if self.credentials.is_some() && !self.config.trusts(&line.site, &url) {
            return Err(foreign());
        }
        let is_secure = url.scheme() == "https" || (url.scheme() == "http" && line.site.is_plain());
        if !is_secure || (is_loopback(&url) && !is_loopback(&line.site.base)) {
            return Err(foreign());
        }
        Ok(url)
    }

    /// What we want, and what the registry says that it wants us to want.
    fn scopes_for(&self, challenge: &Challenge) -> Vec<String> {
        let asked = challenge.parameter("scope").unwrap_or_default();
        // Some registries know other kinds of scopes only; to them ours would mean nothing.
        if !asked.is_empty() && !asked.contains("repository:") {
            return asked.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect();
        }
        let mut scopes = self.scopes.clone();
        let more = asked.split(' ').filter(|scope| !scope.is_empty() && !self.has(scope));
        scopes.extend(more.map(str::to_owned));
        scopes
    }

    /// Whether one of our scopes holds another, as `…:pull,push` does `…:pull`.
    fn has(&self, scope: &str) -> bool {
        let Some((what, actions)) = scope.rsplit_once(':') else { return false };
        let held = self.scopes.iter().filter_map(|own| own.rsplit_once(':')).find(|(own, _)| *own == what);
        held.is_some_and(|(_, own)| actions.split(',').all(|action| own.split(',').any(|own| own == action)))
    }

    async fn ask(
        &self,
        line: &Line,
        realm: &Url,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<Option<Bytes>, RegistryError> {
        match &self.credentials {
            Some(Credentials::Identity(token)) => {
                let login = [("grant_type", "refresh_token"), ("refresh_token", token.as_str())];
                self.post(line, realm, service, scopes, &login).await.map(|(_, bytes)| bytes)
            }
            Some(Credentials::Password { username, password }) => {
                let mut url = with_query(realm, service, scopes);
                url.query_pairs_mut().append_pair("account", username);
                let login = credentials::basic(username, password);
                let (status, bytes) = self.request(line, Method::GET, &url, login, None).await?;
                if !matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
                    return Ok(bytes);
                }
                // The newer way of the specification, where the older one is not there.
                let login = [("grant_type", "password"), ("username", username), ("password", password)];
                self.post(line, realm, service, scopes, &login).await.map(|(_, bytes)| bytes)
            }
            Some(Credentials::Bearer(_)) | None => {
                let url = with_query(realm, service, scopes);
                self.request(line, Method::GET, &url, None, None).await.map(|(_, bytes)| bytes)
            }
        }
    }

    async fn post(
        &self,
        line: &Line,
        realm: &Url,
        service: Option<&str>,
        scopes: &[String],
        login: &[(&str, &str)],
    ) -> Result<(StatusCode, Option<Bytes>), RegistryError> {
        // Encoded as a query is, which is how forms are encoded.
        let mut form = realm.clone();
        form.set_query(None);
        form.query_pairs_mut().extend_pairs(login).append_pair("client_id", CLIENT_ID);
        form.query_pairs_mut().append_pair("service", service.unwrap_or_default());
        form.query_pairs_mut().append_pair("scope", &scopes.join(" "));
        let body = form.query().unwrap_or_default().to_owned();
        self.request(line, Method::POST, realm, None, Some(body)).await
    }

    /// One question to a token server. No bytes when it says no.
    async fn request(
        &self,
        line: &Line,
        method: Method,
        url: &Url,
        login: Option<HeaderValue>,
        form: Option<String>,
    ) -> Result<(StatusCode, Option<Bytes>), RegistryError> {
        let mut tries = 0;
        loop {
            let mut request = line.clients.for_url(url).request(method.clone(), url.clone()).timeout(TOKEN_TIME);
            if let Some(login) = &login {
                request = request.header(header::AUTHORIZATION, login.clone());
            }
            if let Some(form) = &form {
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                request = request.header(header::CONTENT_TYPE, kind).body(form.clone());
            }
            let failure = match request.send().await {
                Ok(mut response) => match response.status() {
                    StatusCode::OK => match collect(&mut response, TOKEN_BYTES_MAX).await {
                        Ok(Some(bytes)) => return Ok((StatusCode::OK, Some(bytes))),
                        Ok(None) => return Err(line.protocol("its token is too long")),
                        Err(problem) => problem,
                    },
                    status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                        format!("its token server answered {status}")
                    }
                    status if status.is_client_error() => return Ok((status, None)),
                    status => return Err(line.protocol(format!("its token server answered {status}"))),
                },
                Err(error) => told(error),
            };
            tries += 1;
            if tries >= TRIES_MAX {
                return Err(line.unreachable(failure));
            }
            sleep(backoff(tries)).await;
        }
    }
}

impl Pass {
    fn take(&mut self, token: Option<Token>) {
        self.until = token.as_ref().map(|token| token.until);
        self.header = token.map(|token| token.header);
    }
}

fn with_query(realm: &Url, service: Option<&str>, scopes: &[String]) -> Url {
    let mut url = realm.clone();
    let mut pairs = url.query_pairs_mut();
    if let Some(service) = service {
        pairs.append_pair("service", service);
    }
    for scope in scopes {
        pairs.append_pair("scope", scope);
    }
    pairs.append_pair("client_id", CLIENT_ID);
    drop(pairs);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(scopes: &[&str]) -> Gate {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        Gate::new(None, scopes, Arc::default(), Arc::default())
    }

    fn asked(gate: &Gate, scope: &str) -> Vec<String> {
        gate.scopes_for(&Challenge { scheme: "bearer".into(), parameters: vec![("scope".into(), scope.into())] })
    }

    #[test]
    fn a_scope_that_is_held_is_not_asked_for_twice() {
        let gate = gate(&["repository:a/b:pull,push"]);
        assert_eq!(asked(&gate, "repository:a/b:pull"), ["repository:a/b:pull,push"]);
        assert_eq!(asked(&gate, ""), ["repository:a/b:pull,push"]);
        assert_eq!(asked(&gate, "repository:c:pull"), ["repository:a/b:pull,push", "repository:c:pull"]);
        assert_eq!(asked(&gate, "aws"), ["aws"]);
    }

    #[test]
    fn a_token_is_not_kept_beyond_its_time_nor_beyond_the_bound() {
        let tokens = Tokens::default();
        let key = |number: usize| Key {
            origin: number.to_string(),
            scopes: Vec::new(),
            whose: Credentials::fingerprint(None),
        };
        let token = |until| Token { header: HeaderValue::from_static("x"), until };
        tokens.put(key(0), token(Instant::now()));
        assert!(tokens.get(&key(0)).is_none());
        for number in 1..=2 * TOKENS_MAX {
            tokens.put(key(number), token(Instant::now() + Duration::from_secs(60)));
        }
        assert!(tokens.get(&key(2 * TOKENS_MAX)).is_some());
        assert!(tokens.known.lock().unwrap().len() <= TOKENS_MAX);
    }
}
