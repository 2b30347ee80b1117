//! Jobs in the database and in the state folder: one row a job, large bytes in files beside it.
//! Times are stored in microseconds since 1970.

use std::path::{Path, PathBuf};

use ampoule_client::types::{EndingKind, JobState};
use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::job::{Conclusion, Record, Status};
use super::log::Kept;
use crate::state::{State, StateError, Written};

/// Bytes of one input or output that still go into the database; more go into a file.
pub const INLINE_BYTES_MAX: usize = 128 * 1024;

/// Where jobs are kept.
#[derive(Clone)]
pub struct Store {
    state: State,
    folder: PathBuf,
}

/// What a job needs besides its record, when it is small enough for the database.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Standard input.
    pub stdin: Option<Bytes>,
    /// A tar of files.
    pub files: Option<Bytes>,
}

/// A job as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What was taken.
    pub record: Record,
    /// Where it was.
    pub status: Status,
    /// Its standard output.
    pub stdout: Kept,
    /// Its standard error.
    pub stderr: Kept,
}

/// How a job that was taken is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// Whether it starts at once.
    pub is_running: bool,
    /// Whether its ending is stored before anybody learns of it.
    pub is_waited_for: bool,
}

/// When a job ran, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Which try it was, from 1; 0 when there was none.
    pub attempt: u32,
    /// When that started.
    pub started: Option<Timestamp>,
    /// When the job ended.
    pub ended: Timestamp,
}

/// Which jobs are listed.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those that ended so.
    pub ending: Option<EndingKind>,
    /// Only those of this token.
    pub token: Option<String>,
    /// Only those with all these labels; an absent value takes any.
    pub labels: Vec<(String, Option<String>)>,
    /// Only those that are older than this one.
    pub before: Option<Uuid>,
    /// At most so many.
    pub count: usize,
}

/// A job in a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What was taken.
    pub record: Record,
    /// Where it was.
    pub status: Status,
}

/// A change of a job that is not where it was thought to be.
fn not_one() -> rusqlite::Error {
    rusqlite::Error::StatementChangedRows(0)
}

impl Store {
    /// The jobs of a state folder.
    pub fn new(state: State, folder: &Path) -> Store {
        Store { state, folder: folder.join("jobs") }
    }

    /// The folder of a job's files; it is there when there are any.
    pub fn folder(&self, id: Uuid) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// Stores a job that was taken: as running when it starts at once, else as waiting.
    ///
    /// # Errors
    /// The database has too much to do.
    pub fn insert(&self, record: &Record, inputs: Inputs, keeping: Keeping) -> Result<Written<()>, StateError> {
        let id = record.id;
        let row = (
            record.token.clone(),
            micros(record.created),
            record.idempotency_key.clone(),
            to_json(record),
            record.labels.clone(),
        );
        let attempt = i64::from(keeping.is_running);
        let change = move |transaction: &Transaction<'_>| {
            let (token, created, key, record, labels) = &row;
            let started = keeping.is_running.then_some(*created);
            transaction.prepare_cached(
                "INSERT INTO jobs (id, state, token, created_us, started_us, attempt, idempotency_key, record, stdin, files)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?.execute(params![
                id.as_bytes(), attempt, token, created, started, attempt, key, record,
                inputs.stdin.as_deref(), inputs.files.as_deref(),
            ])?;
            insert_labels(transaction, id, labels)
        };
        if keeping.is_waited_for { self.state.write(change) } else { self.state.write_durable(change) }
    }

    /// Stores a job that ended before it was stored: a refused one, or one that ran for a moment only. Outputs that are
    /// in files are not passed here.
    ///
    /// # Errors
    /// The database has too much to do.
    pub fn insert_ended(
        &self,
        record: &Record,
        conclusion: &Conclusion,
        life: Life,
        outputs: [Option<Bytes>; 2],
    ) -> Result<Written<()>, StateError> {
        let (id, token, created) = (record.id, record.token.clone(), micros(record.created));
        let (key, labels) = (record.idempotency_key.clone(), record.labels.clone());
        let (record, ending, conclusion) = (to_json(record), conclusion.ending.kind.as_str(), to_json(conclusion));
        let (started, ended) = (life.started.map(micros), micros(life.ended));
        self.state.write(move |transaction| {
            let [stdout, stderr] = &outputs;
            transaction.prepare_cached(
                "INSERT INTO jobs (id, state, ending, token, created_us, started_us, ended_us, attempt, idempotency_key,
                 record, conclusion, stdout, stderr) VALUES (?1, 2, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?.execute(params![
                id.as_bytes(), ending, token, created, started, ended, life.attempt, key, record, conclusion,
                stdout.as_deref(), stderr.as_deref(),
            ])?;
            insert_labels(transaction, id, &labels)
        })
    }

    /// Stores that a waiting job starts.
    ///
    /// # Errors
    /// The database has too much to do.
    pub fn started(&self, id: Uuid, attempt: u32, now: Timestamp) -> Result<Written<()>, StateError> {
        let now = micros(now);
        self.state.write(move |transaction| {
            let sql = "UPDATE jobs SET state = 1, attempt = ?2, started_us = ?3 WHERE id = ?1 AND state = 0";
            expect_one(transaction.prepare_cached(sql)?.execute(params![id.as_bytes(), attempt, now])?)
        })
    }

    /// Stores that a job waits again after so many attempts.
    ///
    /// # Errors
    /// The database has too much to do.
    pub fn waits_again(&self, id: Uuid) -> Result<Written<()>, StateError> {
        self.state.write(move |transaction| {
            let sql = "UPDATE jobs SET state = 0 WHERE id = ?1 AND state = 1";
            expect_one(transaction.prepare_cached(sql)?.execute(params![id.as_bytes()])?)
        })
    }

    /// Stores how a job ended; its inputs are given up. Outputs that are in files are not passed here.
    ///
    /// # Errors
    /// The database has too much to do.
    pub fn ended(
        &self,
        id: Uuid,
        conclusion: &Conclusion,
        started: Option<Timestamp>,
        now: Timestamp,
        outputs: [Option<Bytes>; 2],
    ) -> Result<Written<()>, StateError> {
        let (ending, conclusion, now) = (conclusion.ending.kind.as_str(), to_json(conclusion), micros(now));
        let started = started.map(micros);
        self.state.write(move |transaction| {
            let [stdout, stderr] = &outputs;
            let changed = transaction.prepare_cached(
                "UPDATE jobs SET state = 2, ending = ?2, ended_us = ?3, conclusion = ?4, stdin = NULL, files = NULL,
                 stdout = ?5, stderr = ?6, started_us = ?7 WHERE id = ?1 AND state < 2",
            )?.execute(params![
                    id.as_bytes(),
                    ending,
                    now,
                    conclusion,
                    stdout.as_deref(),
                    stderr.as_deref(),
                    started
                ])?;
            expect_one(changed)
        })
    }

    /// Finds a job with its output.
    ///
    /// # Errors
    /// The database or a file of the job cannot be read.
    pub async fn find(&self, id: Uuid) -> Result<Option<Stored>, StateError> {
        let folder = self.folder(id);
        self.state.read(move |connection| find(connection, id, &folder)).await
    }

    /// Finds the job of a token's idempotency key.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn find_key(&self, token: &str, key: &str) -> Result<Option<(Uuid, String)>, StateError> {
        let (token, key) = (token.to_owned(), key.to_owned());
        self.state
            .read(move |connection| {
                let sql = "SELECT id, record FROM jobs WHERE token = ?1 AND idempotency_key = ?2";
                let row =
                    connection.query_row(sql, params![token, key], |row| Ok((id_of(row, 0)?, record_of(row, 1)?)));
                Ok(row.optional()?.map(|(id, record)| (id, record.request_sha256)))
            })
            .await
    }

    /// The inputs of a waiting job that are in the database.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn inputs(&self, id: Uuid) -> Result<Inputs, StateError> {
        self.state
            .read(move |connection| {
                let sql = "SELECT stdin, files FROM jobs WHERE id = ?1";
                connection.query_row(sql, params![id.as_bytes()], |row| {
                    let bytes =
                        |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<Vec<u8>>>(index)?.map(Bytes::from));
                    Ok(Inputs { stdin: bytes(0)?, files: bytes(1)? })
                })
            })
            .await
    }

    /// All jobs that have not ended, in the order in which they came. Blocks.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn unfinished(&self) -> Result<Vec<Listed>, StateError> {
        self.state.read_now(|connection| {
            let sql = format!("SELECT {LISTED} FROM jobs WHERE state < 2 ORDER BY number");
            connection.prepare(&sql)?.query_map([], listed)?.collect()
        })
    }

    /// Lists jobs, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Listed>, StateError> {
        self.state.read(move |connection| list(connection, &filter)).await
    }

    /// Forgets those of the jobs that have ended, with their files. Returns how many there were.
    ///
    /// # Errors
    /// The database refused.
    pub async fn remove(&self, ids: Vec<Uuid>) -> Result<usize, StateError> {
        let written = self.state.write(move |transaction| {
            let mut statement = transaction.prepare_cached("DELETE FROM jobs WHERE id = ?1 AND state = 2")?;
            let mut removed = Vec::new();
            for id in &ids {
                if statement.execute(params![id.as_bytes()])? == 1 {
                    removed.push(*id);
                }
            }
            Ok(removed)
        })?;
        let removed = written.committed().await?;
        let (store, count) = (self.clone(), removed.len());
        let folders = move || removed.into_iter().for_each(|id| remove_folder(&store.folder(id)));
        tokio::task::spawn_blocking(folders).await.map_err(|_| StateError::Closed)?;
        Ok(count)
    }

    /// Ended jobs that need not be kept: those that ended before `before`, and the oldest beyond `kept` in number.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn outdated(&self, before: Timestamp, kept: u64, count: u32) -> Result<Vec<Uuid>, StateError> {
        let before = micros(before);
        let kept = i64::try_from(kept).unwrap_or(i64::MAX);
        self.state
            .read(move |connection| {
                let total: i64 = connection.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?;
                let excess = (total - kept).clamp(0, i64::from(count));
                let mut statement = connection.prepare_cached(
                    "SELECT id FROM (SELECT id, ended_us, row_number() OVER (ORDER BY number) AS age FROM jobs
                 WHERE state = 2 ORDER BY number LIMIT ?3) WHERE ended_us < ?1 OR age <= ?2",
                )?;
                statement.query_map(params![before, excess, count], |row| id_of(row, 0))?.collect()
            })
            .await
    }

    /// Removes folders of jobs that are not in the database; returns how many. Blocks.
    ///
    /// # Errors
    /// The folders cannot be listed.
    pub fn sweep(&self) -> Result<u64, StateError> {
        let failed = |source| StateError::System { action: "list the folders of jobs", source };
        let mut swept = 0;
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some(id) = name.to_str().and_then(|name| Uuid::try_parse(name).ok()) else { continue };
            let sql = "SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ?1)";
            let is_known: bool = self
                .state
                .read_now(|connection| connection.query_row(sql, params![id.as_bytes()], |row| row.get(0)))?;
            if !is_known {
                std::fs::remove_dir_all(self.folder(id)).map_err(failed)?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

fn remove_folder(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "could not remove a job's files; the next start will");
        }
        _ => {}
    }
}

fn insert_labels(
    transaction: &Transaction<'_>,
    id: Uuid,
    labels: &std::collections::BTreeMap<String, String>,
) -> rusqlite::Result<()> {
    for (name, value) in labels {
        transaction
            .prepare_cached("INSERT INTO job_labels (job, name, value) VALUES (?1, ?2, ?3)")?
            .execute(params![id.as_bytes(), name, value])?;
    }
    Ok(())
}

fn expect_one(changed: usize) -> rusqlite::Result<()> {
    if changed == 1 { Ok(()) } else { Err(not_one()) }
}

/// The columns of a `Listed`.
const LISTED: &str = "record, state, attempt, started_us, ended_us, conclusion";

fn state_number(state: JobState) -> i64 {
    match state {
        JobState::Queued => 0,
        JobState::Running => 1,
        JobState::Ended => 2,
    }
}

fn listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    let state = match row.get::<_, i64>(1)? {
        0 => JobState::Queued,
        1 => JobState::Running,
        _ => JobState::Ended,
    };
    let conclusion: Option<String> = row.get(5)?;
    let conclusion: Option<Conclusion> = conclusion.map(|text| from_json(5, &text)).transpose()?;
    let status = Status {
        state,
        attempt: row.get(2)?,
        started: row.get::<_, Option<i64>>(3)?.map(timestamp),
        ended: row.get::<_, Option<i64>>(4)?.map(timestamp),
        conclusion: conclusion.map(std::sync::Arc::new),
    };
    Ok(Listed { record: record_of(row, 0)?, status })
}

fn find(connection: &Connection, id: Uuid, folder: &Path) -> rusqlite::Result<Option<Stored>> {
    let sql = format!("SELECT {LISTED}, stdout, stderr FROM jobs WHERE id = ?1");
    let row = connection.prepare_cached(&sql)?.query_row(params![id.as_bytes()], |row| {
        Ok((listed(row)?, row.get::<_, Option<Vec<u8>>>(6)?, row.get::<_, Option<Vec<u8>>>(7)?))
    });
    let Some((Listed { record, status }, stdout, stderr)) = row.optional()? else { return Ok(None) };
    let written = |stream: &str, bytes: Option<Vec<u8>>| {
        let conclusion = status.conclusion.as_ref();
        let about =
            conclusion.and_then(|ended| if stream == "stdout" { ended.stdout.clone() } else { ended.stderr.clone() });
        let Some(about) = about else { return Ok::<_, rusqlite::Error>(Kept::default()) };
        let bytes = match bytes {
            None if about.in_file => std::fs::read(folder.join(stream)).map_err(|cause| unreadable(Box::new(cause)))?,
            bytes => bytes.unwrap_or_default(),
        };
        Ok(Kept { bytes: bytes.into(), gap: about.gap, total_bytes: about.total_bytes, sha256: about.sha256 })
    };
    let (stdout, stderr) = (written("stdout", stdout)?, written("stderr", stderr)?);
    Ok(Some(Stored { record, status, stdout, stderr }))
}

/// A query that is put together: each `?` of a condition takes the next value.
struct Query {
    sql: String,
    values: Vec<Box<dyn rusqlite::ToSql>>,
}

impl Query {
    fn and<const N: usize>(&mut self, condition: &str, values: [Box<dyn rusqlite::ToSql>; N]) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self.values.extend(values);
    }
}

fn list(connection: &Connection, filter: &Filter) -> rusqlite::Result<Vec<Listed>> {
    let mut query = Query { sql: format!("SELECT {LISTED} FROM jobs WHERE 1"), values: Vec::new() };
    if let Some(state) = filter.state {
        query.and("state = ?", [Box::new(state_number(state))]);
    }
    if let Some(ending) = filter.ending {
        query.and("ending = ?", [Box::new(ending.as_str())]);
    }
    if let Some(token) = &filter.token {
        query.and("token = ?", [Box::new(token.clone())]);
    }
    if let Some(before) = filter.before {
        query.and("id < ?", [Box::new(before.as_bytes().to_vec())]);
    }
    for (name, value) in &filter.labels {
        let name = Box::new(name.clone());
        match value {
            None => query.and("EXISTS (SELECT 1 FROM job_labels WHERE job = jobs.id AND name = ?)", [name]),
            Some(value) => {
                let condition = "EXISTS (SELECT 1 FROM job_labels WHERE job = jobs.id AND name = ? AND value = ?)";
                query.and(condition, [name, Box::new(value.clone())]);
            }
        }
    }
    query.sql.push_str(" ORDER BY id DESC LIMIT ?");
    query.values.push(Box::new(i64::try_from(filter.count).unwrap_or(i64::MAX)));
    connection.prepare(&query.sql)?.query_map(rusqlite::params_from_iter(query.values), listed)?.collect()
}

fn id_of(row: &Row<'_>, index: usize) -> rusqlite::Result<Uuid> {
    Ok(Uuid::from_bytes(row.get::<_, [u8; 16]>(index)?))
}

fn record_of(row: &Row<'_>, index: usize) -> rusqlite::Result<Record> {
    from_json(index, &row.get::<_, String>(index)?)
}

fn to_json(value: &impl serde::Serialize) -> String {
    // Plain structs with string keys: there is nothing that JSON could not say.
    serde_json::to_string(value).expect("records are plain data")
}

fn from_json<T: serde::de::DeserializeOwned>(index: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|cause| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(cause)))
}

fn unreadable(cause: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, cause)
}

fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

fn timestamp(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH)
}
