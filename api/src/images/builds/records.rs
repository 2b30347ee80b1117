//! Builds in the database: one row each, the record as it was taken and the conclusion as it came. What was told of one
//! is in a file beside the database.

use ampoule_client::types::{BuildEvent, BuildState};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::state::{State, StateError, Written};

/// What was asked for, as far as it is kept: no values of arguments, which may be secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: Uuid,
    /// The token it came with.
    pub token: String,
    /// When it was taken.
    pub created: Timestamp,
    /// The path of its Dockerfile.
    pub dockerfile: String,
    /// The names that it gives.
    pub tags: Vec<String>,
    /// The stage to build.
    pub target: Option<String>,
}

/// How a build ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Conclusion {
    /// Where it is now.
    pub state: BuildState,
    /// Since when.
    pub ended: Timestamp,
    /// The last event: `built` or `failed`.
    pub last: BuildEvent,
}

/// A build as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What was asked for.
    pub record: Record,
    /// How it ended; nothing while it is under way.
    pub conclusion: Option<Conclusion>,
    /// Bytes of its events, once it ended.
    pub log_bytes: u64,
}

/// Which builds are listed.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those in this state.
    pub state: Option<BuildState>,
    /// Only those of this token.
    pub token: Option<String>,
    /// Only those that are older than this one.
    pub before: Option<Uuid>,
    /// At most so many.
    pub count: usize,
}

/// The builds of a database. Cloning shares it.
#[derive(Clone)]
pub(super) struct Store(pub(super) State);

impl Store {
    /// Stores a build that was taken; when it is `durable`, `committed` waits for the disk.
    ///
    /// # Errors
    /// The database has too much to do.
    pub(super) fn insert(&self, record: &Record, durable: bool) -> Result<Written<()>, StateError> {
        let (id, token, record) = (record.id, record.token.clone(), to_json(record));
        let change = move |transaction: &rusqlite::Transaction<'_>| {
            let sql = "INSERT INTO builds (id, state, token, record, log_bytes) VALUES (?1, 'running', ?2, ?3, 0)";
            transaction.prepare_cached(sql)?.execute(params![id.as_bytes(), token, record]).map(drop)
        };
        if durable { self.0.write_durable(change) } else { self.0.write(change) }
    }

    /// Stores how a build ended, with so many bytes of events.
    ///
    /// # Errors
    /// The database has too much to do.
    pub(super) fn ended(&self, id: Uuid, conclusion: &Conclusion, log_bytes: u64) -> Result<Written<()>, StateError> {
        let (state, conclusion) = (conclusion.state.as_str(), to_json(conclusion));
        self.0.write(move |transaction| {
            let sql = "UPDATE builds SET state = ?2, conclusion = ?3, log_bytes = ?4 WHERE id = ?1";
            let bytes = i64::try_from(log_bytes).unwrap_or(i64::MAX);
            transaction.prepare_cached(sql)?.execute(params![id.as_bytes(), state, conclusion, bytes]).map(drop)
        })
    }

    /// Finds a build.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) async fn find(&self, id: Uuid) -> Result<Option<Stored>, StateError> {
        self.0
            .read(move |connection| {
                let sql = "SELECT record, conclusion, log_bytes FROM builds WHERE id = ?1";
                connection.prepare_cached(sql)?.query_row(params![id.as_bytes()], stored).optional()
            })
            .await
    }

    /// Lists builds, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) async fn list(&self, filter: Filter) -> Result<Vec<Stored>, StateError> {
        self.0.read(move |connection| list(connection, &filter)).await
    }

    /// All builds that have not ended. Blocks.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) fn unfinished(&self) -> Result<Vec<Stored>, StateError> {
        let filter = Filter { state: Some(BuildState::Running), count: usize::MAX, ..Filter::default() };
        self.0.read_now(|connection| list(connection, &filter))
    }

    /// The ids of all builds. Blocks.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) fn ids(&self) -> Result<Vec<Uuid>, StateError> {
        self.0.read_now(|connection| connection.prepare("SELECT id FROM builds")?.query_map([], id)?.collect())
    }

    /// Forgets the oldest of those that ended beyond so many, and beyond so many bytes of events together. Returns which.
    ///
    /// # Errors
    /// The database refused.
    pub(super) async fn trim(&self, count: u32, bytes: u64) -> Result<Vec<Uuid>, StateError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let written = self.0.write(move |transaction| {
            let sql = "DELETE FROM builds WHERE number IN (
                 SELECT number FROM (
                     SELECT number, row_number() OVER newest AS age, sum(log_bytes) OVER newest AS bytes
                     FROM builds WHERE state <> 'running' WINDOW newest AS (ORDER BY number DESC))
                 WHERE age > ?1 OR bytes > ?2) RETURNING id";
            transaction.prepare_cached(sql)?.query_map(params![count, bytes], id)?.collect()
        })?;
        written.committed().await
    }
}

fn list(connection: &Connection, filter: &Filter) -> rusqlite::Result<Vec<Stored>> {
    let sql = "SELECT record, conclusion, log_bytes FROM builds WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR token = ?2)
         AND (?3 IS NULL OR id < ?3) ORDER BY id DESC LIMIT ?4";
    let (state, before) = (filter.state.map(BuildState::as_str), filter.before.map(|id| id.as_bytes().to_vec()));
    let count = i64::try_from(filter.count).unwrap_or(i64::MAX);
    connection.prepare_cached(sql)?.query_map(params![state, filter.token, before, count], stored)?.collect()
}

fn id(row: &Row<'_>) -> rusqlite::Result<Uuid> {
    Ok(Uuid::from_bytes(row.get::<_, [u8; 16]>(0)?))
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let conclusion = row.get::<_, Option<String>>(1)?;
    Ok(Stored {
        record: from_json(0, &row.get::<_, String>(0)?)?,
        conclusion: conclusion.map(|text| from_json(1, &text)).transpose()?,
        log_bytes: row.get::<_, i64>(2)?.unsigned_abs(),
    })
}

fn to_json(value: &impl Serialize) -> String {
    // Plain structs with string keys: there is nothing that JSON could not say.
    serde_json::to_string(value).expect("records are plain data")
}

fn from_json<T: DeserializeOwned>(index: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|cause| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(cause)))
}

#[cfg(test)]
mod tests {
    use crate::problem::{BUILD_FAILED, Refused};

    use super::*;

    fn record(number: u128) -> Record {
        let (token, dockerfile) = ("local".to_owned(), "Dockerfile".to_owned());
        Record {
            id: Uuid::from_u128(number),
            token,
            created: Timestamp::UNIX_EPOCH,
            dockerfile,
            tags: Vec::new(),
            target: None,
        }
    }

    async fn add(store: &Store, number: u128, log_bytes: u64) {
        store.insert(&record(number), false).expect("room").committed().await.expect("is stored");
        let last = BuildEvent::Failed { problem: Refused::new(BUILD_FAILED, "no").problem, place: None };
        let conclusion = Conclusion { state: BuildState::Failed, ended: Timestamp::UNIX_EPOCH, last };
        let written = store.ended(Uuid::from_u128(number), &conclusion, log_bytes).expect("room");
        written.committed().await.expect("is stored");
    }

    #[tokio::test]
    async fn the_oldest_go_first_when_there_are_too_many_or_they_are_too_long() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store(State::open(folder.path()).expect("opens"));
        store.insert(&record(1), true).expect("room").committed().await.expect("is stored");
        for number in 2..=6 {
            add(&store, number, 10).await;
        }
        let kept = async || {
            let listed = store.list(Filter { count: 100, ..Filter::default() }).await.expect("reads");
            listed.iter().map(|stored| stored.record.id.as_u128()).collect::<Vec<_>>()
        };
        assert!(store.trim(5, 50).await.expect("trims").is_empty());
        assert_eq!(store.trim(4, 50).await.expect("trims"), [Uuid::from_u128(2)]);
        assert_eq!(kept().await, [6, 5, 4, 3, 1]);
        assert_eq!(store.trim(4, 29).await.expect("trims").len(), 2);
        // What is under way stays, however old it is.
        assert_eq!(kept().await, [6, 5, 1]);
        assert_eq!(store.unfinished().expect("reads").len(), 1);
        let page =
            Filter { before: Some(Uuid::from_u128(6)), state: Some(BuildState::Failed), count: 1, ..Filter::default() };
        let found = store.list(page).await.expect("reads");
        assert_eq!(found[0].record.id.as_u128(), 5);
        let others = Filter { token: Some("other".to_owned()), count: 9, ..Filter::default() };
        assert!(store.list(others).await.expect("reads").is_empty());
    }
}
