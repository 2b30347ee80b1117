//! Tokens: random secrets of which only the SHA-256 is kept. They are made, listed and revoked over the unix socket
//! alone, and held in memory so that a request costs no look into the database.

use std::sync::{Arc, PoisonError, RwLock};

use ampoule_client::types::{Problem, Token, TokenCreated, TokenList, TokenRequest};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rusqlite::params;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::problem::{FORBIDDEN, NO_TOKEN, Refused, TOKEN_EXISTS};
use crate::request::{Caller, JsonBody};
use crate::state::{State as Database, StateError};

/// Every secret begins so, that a leaked one is recognised.
const PREFIX: &str = "ampoule_";
const SECRET_BYTES: usize = 32;
const NAME_BYTES_MAX: usize = 64;
const TOKENS_MAX: usize = 1000;

/// All tokens. Cloning shares them.
#[derive(Clone)]
pub struct Tokens {
    database: Database,
    known: Arc<RwLock<Vec<Known>>>,
}

#[derive(Clone)]
struct Known {
    token: Token,
    sha256: [u8; 32],
}

impl Tokens {
    /// The tokens of a database. Blocks.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open(database: &Database) -> Result<Tokens, StateError> {
        let known = database.read_now(|connection| {
            let sql = "SELECT name, sha256, created_us, expires_us FROM tokens ORDER BY name";
            let mut statement = connection.prepare(sql)?;
            let rows = statement.query_map([], |row| {
                let time = |micros| Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
                let token = Token {
                    name: row.get(0)?,
                    created: time(row.get(2)?),
                    expires: row.get::<_, Option<i64>>(3)?.map(time),
                };
                Ok(Known { token, sha256: row.get(1)? })
            })?;
            rows.collect::<rusqlite::Result<Vec<Known>>>()
        })?;
        Ok(Tokens { database: database.clone(), known: Arc::new(RwLock::new(known)) })
    }

    /// The name of the token with this secret, if there is one and it has not expired. Takes as long for a wrong
    /// secret as for a right one.
    pub fn name_of(&self, secret: &str) -> Option<String> {
        let sha256: [u8; 32] = Sha256::digest(secret).into();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for other in known.iter() {
            if bool::from(other.sha256.ct_eq(&sha256)) {
                found = Some(&other.token);
            }
        }
        let now = Timestamp::now();
        found.filter(|token| token.expires.is_none_or(|expires| now < expires)).map(|token| token.name.clone())
    }

    async fn create(&self, request: TokenRequest) -> Result<TokenCreated, Refused> {
        check_name(&request.name)?;
        let (secret, sha256) = new_secret()?;
        // In the microseconds that are stored.
        let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or(Timestamp::UNIX_EPOCH);
        let token = Token { name: request.name, created: now, expires: request.expires };
        let row = token.clone();
        let inserted = self.database.write_durable(move |transaction| {
            transaction.execute(
                "INSERT OR IGNORE INTO tokens (name, sha256, created_us, expires_us)
                 SELECT ?1, ?2, ?3, ?4 WHERE (SELECT count(*) FROM tokens) < ?5",
                params![
                    row.name,
                    sha256,
                    row.created.as_microsecond(),
                    row.expires.map(Timestamp::as_microsecond),
                    i64::try_from(TOKENS_MAX).unwrap_or(i64::MAX),
                ],
            )
        })?;
        if inserted.committed().await? == 0 {
            let detail = format!("there is a token `{}`, or there are {TOKENS_MAX} already", token.name);
            return Err(Refused::new(TOKEN_EXISTS, detail).hint("revoke it first, or take another name"));
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.push(Known { token: token.clone(), sha256 });
        known.sort_by(|one, other| one.token.name.cmp(&other.token.name));
        Ok(TokenCreated { secret, token })
    }

    async fn revoke(&self, name: String) -> Result<(), Refused> {
        self.known.write().unwrap_or_else(PoisonError::into_inner).retain(|known| known.token.name != name);
        let row = name.clone();
        let sql = "DELETE FROM tokens WHERE name = ?1";
        let deleted = self.database.write_durable(move |transaction| transaction.execute(sql, params![row]))?;
        if deleted.committed().await? == 0 {
            return Err(Refused::new(NO_TOKEN, format!("there is no token `{name}`")));
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Refused> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
        let detail = format!("`{name}`: a name is 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_`, `-`");
        return Err(Refused::field("name", detail));
    }
    if name == "local" {
        return Err(Refused::field("name", "`local` is the name of the unix socket's users"));
    }
    Ok(())
}

fn new_secret() -> Result<(String, [u8; 32]), Refused> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| Refused::internal(&std::io::Error::other(error.to_string())))?;
    let secret = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
    let sha256 = Sha256::digest(&secret).into();
    Ok((secret, sha256))
}

fn only_local(caller: &Caller) -> Result<(), Refused> {
    match caller {
        Caller::Local => Ok(()),
        Caller::Token(_) => {
            let refused = Refused::new(FORBIDDEN, "tokens are managed over the unix socket only");
            Err(refused.hint("run `ampoule token` on the machine of the service"))
        }
    }
}

/// Makes a token. Its secret is told this once.
#[utoipa::path(post, operation_id = "createToken", path = "/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses((status = 201, description = "It was made", body = TokenCreated), (status = 403, description = "Not allowed", body = Problem), (status = 409, description = "Not now", body = Problem)))]
pub async fn create(
    State(tokens): State<Tokens>,
    caller: Caller,
    JsonBody(request): JsonBody<TokenRequest>,
) -> Result<(StatusCode, Json<TokenCreated>), Refused> {
    only_local(&caller)?;
    Ok((StatusCode::CREATED, Json(tokens.create(request).await?)))
}

/// Lists the tokens, without their secrets.
#[utoipa::path(get, operation_id = "listTokens", path = "/v1/tokens", tag = "tokens", responses((status = 200, description = "What was asked for", body = TokenList), (status = 403, description = "Not allowed", body = Problem)))]
pub async fn list(State(tokens): State<Tokens>, caller: Caller) -> Result<Json<TokenList>, Refused> {
    only_local(&caller)?;
    let known = tokens.known.read().unwrap_or_else(PoisonError::into_inner);
    Ok(Json(TokenList { tokens: known.iter().map(|known| known.token.clone()).collect() }))
}

/// Revokes a token; it stops working at once.
#[utoipa::path(delete, operation_id = "revokeToken", path = "/v1/tokens/{name}", tag = "tokens", params(("name" = String, Path, description = "The token")),
    responses((status = 204, description = "It is gone"), (status = 403, description = "Not allowed", body = Problem), (status = 404, description = "There is none", body = Problem)))]
pub async fn revoke(
    State(tokens): State<Tokens>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Refused> {
    only_local(&caller)?;
    tokens.revoke(name).await?;
    Ok(StatusCode::NO_CONTENT)
}
