//! What handlers take from a request: JSON bodies and queries with problem documents for what is wrong, bodies with a
//! bound, and whose request it is.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::problem::{BODY_BROKEN, INVALID_JSON, INVALID_QUERY, Refused, TOO_LARGE, UNAUTHORIZED, WRONG_TYPE};

/// How long a client may take to send a JSON body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// The longest JSON body of this service, in bytes; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct JsonBytesMax(pub u64);

/// Whose request it is; an extension of every request that has passed its door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// It came over the unix socket.
    Local,
    /// It came with the token of this name.
    Token(String),
}

impl Caller {
    /// The name in lists, policies and the log.
    pub fn name(&self) -> &str {
        match self {
            Caller::Local => "local",
            Caller::Token(name) => name,
        }
    }

    /// Whose jobs the caller can see: all, or those of one token.
    pub fn scope(&self) -> Option<&str> {
        match self {
            Caller::Local => None,
            Caller::Token(name) => Some(name),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Refused> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| Refused::new(UNAUTHORIZED, "nobody said whose request this is"))
    }
}

/// A JSON body; unknown fields are up to its type.
#[derive(Clone, Debug)]
pub struct JsonBody<T>(pub T);

/// A JSON body together with its bytes.
#[derive(Clone, Debug)]
pub struct JsonBytes<T>(pub T, pub Bytes);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<JsonBody<T>, Refused> {
        let JsonBytes(value, _) = JsonBytes::from_request(request, state).await?;
        Ok(JsonBody(value))
    }
}

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBytes<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _state: &S) -> Result<JsonBytes<T>, Refused> {
        check_type(request.headers())?;
        let JsonBytesMax(bytes_max) = request.extensions().get().copied().unwrap_or(JsonBytesMax(1024 * 1024));
        let bytes = whole(request.into_body(), bytes_max).await?;
        let value = serde_json::from_slice(&bytes).map_err(|cause| {
            Refused::new(INVALID_JSON, cause.to_string()).hint("GET /openapi.json describes every field")
        })?;
        Ok(JsonBytes(value, bytes))
    }
}

/// JSON needs no type, but another one is a mistake.
fn check_type(headers: &HeaderMap) -> Result<(), Refused> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    // curl says the second of any body unless told otherwise.
    if essence.eq_ignore_ascii_case("application/json") || essence == "application/x-www-form-urlencoded" {
        return Ok(());
    }
    Err(Refused::new(WRONG_TYPE, format!("the body is `{essence}`, not JSON"))
        .hint("send Content-Type: application/json"))
}

/// Reads a body to its end.
///
/// # Errors
/// It is longer than `bytes_max`, or did not arrive.
pub async fn whole(body: Body, bytes_max: u64) -> Result<Bytes, Refused> {
    let limited = Limited::new(body, usize::try_from(bytes_max).unwrap_or(usize::MAX));
    match tokio::time::timeout(BODY_TIME, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(bytes_max)),
        Ok(Err(error)) => Err(Refused::new(BODY_BROKEN, error.to_string())),
        Err(_) => Err(Refused::new(BODY_BROKEN, format!("the body did not arrive within {} s", BODY_TIME.as_secs()))),
    }
}

/// Says that a body is too long.
pub fn too_large(bytes_max: u64) -> Refused {
    Refused::new(TOO_LARGE, format!("the body has more than {bytes_max} bytes"))
}

/// The query of a request.
#[derive(Clone, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Refused> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Query(value)),
            Err(rejection) => Err(Refused::new(INVALID_QUERY, rejection.body_text())),
        }
    }
}

/// The fields of a query in which some come several times; each is taken out once, and what is left over is refused.
#[derive(Clone, Debug)]
pub struct Fields(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Fields {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Fields, Refused> {
        Query::<Vec<(String, String)>>::from_request_parts(parts, state).await.map(|Query(pairs)| Fields(pairs))
    }
}

impl Fields {
    /// All values of a field, in their order.
    pub fn all(&mut self, name: &str) -> Vec<String> {
        let mut values = Vec::new();
        self.0.retain_mut(|(found, value)| {
            let is_it = found == name;
            if is_it {
                values.push(std::mem::take(value));
            }
            !is_it
        });
        values
    }

    /// The value of a field that comes once at most.
    ///
    /// # Errors
    /// It comes several times, or cannot be read.
    pub fn one<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Result<Option<T>, Refused> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(Refused::new(INVALID_QUERY, format!("`{name}` is given {} times, not once", values.len())));
        }
        let parsed = values.pop().map(|value| value.parse().map_err(|error| (value, error))).transpose();
        parsed
            .map_err(|(value, error)| Refused::new(INVALID_QUERY, format!("{name}: `{value}` cannot be read: {error}")))
    }

    /// Says that there is nothing else.
    ///
    /// # Errors
    /// A field that is not known here.
    pub fn none_left(self) -> Result<(), Refused> {
        match self.0.first() {
            Some((name, _)) => Err(Refused::new(INVALID_QUERY, format!("there is no field `{name}`"))
                .hint("GET /openapi.json describes every field")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_taken_once_and_what_is_left_is_refused() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut fields = Fields(vec![pair("a", "1"), pair("b", "x"), pair("a", "2"), pair("c", "true")]);
        assert_eq!(fields.all("a"), ["1", "2"]);
        assert_eq!(fields.one::<bool>("c").expect("a flag"), Some(true));
        assert_eq!(fields.one::<u32>("d").expect("nothing"), None);
        assert!(fields.clone().one::<u32>("b").is_err());
        assert!(fields.none_left().expect_err("b is left").problem.detail.contains("`b`"));
        assert!(Fields(vec![pair("a", "1"), pair("a", "1")]).one::<u32>("a").is_err());
    }
}
