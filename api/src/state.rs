//! The database: one SQLite file, written in batches through one connection, read through a few others.
//!
//! A commit is in the operating system's hands and survives a kill -9 of the service; `write_durable` waits until
//! the disk has it too. Checkpoints are made by a thread of their own, so that no answer waits for one.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

/// Most changes that wait for the writer; more are refused.
const PENDING_MAX: usize = 16_384;
/// Most changes in one commit.
const BATCH_MAX: usize = 256;
/// Reading connections that are kept open.
const READERS_MAX: usize = 4;
/// After so many changes the log of changes is moved into the database file; a change takes some 10 KiB of it.
const UNMOVED_MAX: usize = 1000;
/// How often it is looked whether there are so many.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(1);
/// The layout that this program writes: as many as there are schemas.
const LAYOUT: i64 = SCHEMAS.len() as i64;

/// What each layout adds to the one before.
const SCHEMAS: [&str; 2] = [JOBS_SCHEMA, BUILDS_SCHEMA];

const JOBS_SCHEMA: &str = "
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    ending TEXT,
    token TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    started_us INTEGER,
    ended_us INTEGER,
    attempt INTEGER NOT NULL,
    idempotency_key TEXT,
    record TEXT NOT NULL,
    conclusion TEXT,
    stdin BLOB,
    files BLOB,
    stdout BLOB,
    stderr BLOB
) STRICT;
CREATE INDEX jobs_unfinished ON jobs(state) WHERE state < 2;
CREATE UNIQUE INDEX jobs_idempotency ON jobs(token, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE job_labels (
    job BLOB NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (job, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_labels_by_value ON job_labels(name, value, job);
CREATE TABLE tokens (
    name TEXT PRIMARY KEY,
    sha256 BLOB NOT NULL UNIQUE,
    created_us INTEGER NOT NULL,
    expires_us INTEGER
) STRICT;
";

const BUILDS_SCHEMA: &str = "
CREATE TABLE builds (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    state TEXT NOT NULL,
    token TEXT NOT NULL,
    record TEXT NOT NULL,
    conclusion TEXT,
    log_bytes INTEGER NOT NULL
) STRICT;
";

/// Why something was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The database cannot be opened.
    #[error("could not open {file}")]
    Open {
        /// Its file.
        file: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The database was written by a newer program.
    #[error(
        "{file} has layout {layout}, newer than the {LAYOUT} that is known here\nhint: start the version of ampoule that wrote it"
    )]
    Newer {
        /// Its file.
        file: PathBuf,
        /// Its layout.
        layout: i64,
    },
    /// A part of it cannot be made.
    #[error("could not {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("the database refused")]
    Refused(#[from] rusqlite::Error),
    /// The writer has more to do than it may keep.
    #[error("{PENDING_MAX} changes wait for the database")]
    Busy,
    /// The database is being closed.
    #[error("the database is closed")]
    Closed,
}

/// Where a change is made.
pub type Change<T> = Box<dyn FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send>;

/// The database. Cloning shares it; the last one dropped closes it after all changes are written.
#[derive(Clone)]
pub struct State {
    shared: Arc<Shared>,
    _threads: Arc<Threads>,
}

struct Shared {
    file: PathBuf,
    pending: Mutex<Pending>,
    some_pending: Condvar,
    /// Whoever holds it takes what is pending and commits it, so that changes are made in the order of their coming.
    writer: Mutex<Connection>,
    keeping: Mutex<Keeping>,
    some_keeping: Condvar,
    readers: Mutex<Vec<Connection>>,
    /// Changes that were made since the log was moved last.
    unmoved: AtomicUsize,
}

#[derive(Default)]
struct Pending {
    changes: VecDeque<Box<dyn Entry>>,
    closing: bool,
}

#[derive(Default)]
struct Keeping {
    waiting: Vec<Box<dyn FnOnce(bool) + Send>>,
    closing: bool,
}

struct Threads {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
}

/// A change in the writer's hands.
trait Entry: Send {
    /// Makes the change; may be called again after a rollback.
    fn apply(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()>;
    /// Says how it went, after the commit or the failure of it.
    fn settle(self: Box<Self>, outcome: rusqlite::Result<()>, shared: &Shared);
}

struct Asked<T> {
    change: Change<T>,
    value: Option<T>,
    answer: oneshot::Sender<Result<T, StateError>>,
    durable: bool,
}

impl<T: Send + 'static> Entry for Asked<T> {
    fn apply(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        self.value = Some((self.change)(transaction)?);
        Ok(())
    }

    fn settle(self: Box<Self>, outcome: rusqlite::Result<()>, shared: &Shared) {
        let Asked { value, answer, durable, .. } = *self;
        // Whoever asked may have gone away; the change is made all the same.
        match (outcome, value) {
            (Ok(()), Some(value)) if durable => shared.keep(Box::new(move |is_kept| {
                let _ = answer.send(if is_kept { Ok(value) } else { Err(StateError::Closed) });
            })),
            (Ok(()), Some(value)) => drop(answer.send(Ok(value))),
            (Ok(()), None) => drop(answer.send(Err(StateError::Closed))),
            (Err(error), _) => drop(answer.send(Err(error.into()))),
        }
    }
}

impl Shared {
    fn keep(&self, then: Box<dyn FnOnce(bool) + Send>) {
        lock(&self.keeping).waiting.push(then);
        self.some_keeping.notify_one();
    }
}

/// A change that was handed to the writer; await it to know that it is committed.
pub struct Written<T>(oneshot::Receiver<Result<T, StateError>>);

impl<T> Written<T> {
    /// Waits for the commit.
    ///
    /// # Errors
    /// The change was not made.
    pub async fn committed(self) -> Result<T, StateError> {
        self.0.await.unwrap_or(Err(StateError::Closed))
    }
}

impl State {
    /// Opens the database in `folder`, or makes it.
    ///
    /// # Errors
    /// The file cannot be opened, is of a newer layout, or the threads cannot be started.
    pub fn open(folder: &Path) -> Result<State, StateError> {
        let file = folder.join("state.db");
        let writer = open_writer(&file)?;
        let wal = open_wal(&file)?;
        let shared = Arc::new(Shared {
            file,
            pending: Mutex::default(),
            some_pending: Condvar::new(),
            writer: Mutex::new(writer),
            keeping: Mutex::default(),
            some_keeping: Condvar::new(),
            readers: Mutex::default(),
            unmoved: AtomicUsize::new(0),
        });
        let mut threads = Threads { shared: shared.clone(), writer: None, keeper: None };
        threads.writer = Some(start_thread("state-writer", shared.clone(), write)?);
        threads.keeper = Some(start_thread("state-keeper", shared.clone(), move |shared| keep(shared, &wal))?);
        Ok(State { shared, _threads: Arc::new(threads) })
    }

    /// Hands a change to the writer and returns at once; changes are made in the order in which they come here.
    /// It may be run twice when another one of its batch fails, so it must do nothing but change the database.
    ///
    /// # Errors
    /// The writer has too much to do, or the database is closed.
    pub fn write<T: Send + 'static>(
        &self,
        change: impl FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Written<T>, StateError> {
        self.push(Box::new(change), false)
    }

    /// The same, and `committed` waits until the disk has it.
    ///
    /// # Errors
    /// The writer has too much to do, or the database is closed.
    pub fn write_durable<T: Send + 'static>(
        &self,
        change: impl FnMut(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Written<T>, StateError> {
        self.push(Box::new(change), true)
    }

    /// Has everything made that was handed in: on this thread when nobody is at it, since a commit costs less than
    /// two changes of threads; else by the writer.
    fn flush(&self) {
        match self.shared.writer.try_lock() {
            Ok(mut connection) => self.shared.commit_pending(&mut connection),
            Err(TryLockError::Poisoned(poisoned)) => self.shared.commit_pending(&mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => self.shared.some_pending.notify_one(),
        }
    }

    fn push<T: Send + 'static>(&self, change: Change<T>, durable: bool) -> Result<Written<T>, StateError> {
        let (answer, written) = oneshot::channel();
        let mut pending = lock(&self.shared.pending);
        if pending.closing {
            return Err(StateError::Closed);
        }
        if pending.changes.len() >= PENDING_MAX {
            return Err(StateError::Busy);
        }
        pending.changes.push_back(Box::new(Asked { change, value: None, answer, durable }));
        drop(pending);
        self.flush();
        Ok(Written(written))
    }

    /// Reads on a thread for blocking work.
    ///
    /// # Errors
    /// SQLite refused.
    pub async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StateError> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || shared.read(question)).await.map_err(|_| StateError::Closed)?
    }

    /// Reads on this thread, which may block.
    ///
    /// # Errors
    /// SQLite refused.
    pub fn read_now<T>(&self, question: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        self.shared.read(question)
    }
}

impl Shared {
    fn read<T>(&self, question: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        let kept = lock(&self.readers).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => open_reader(&self.file)?,
        };
        let answer = question(&connection);
        let mut readers = lock(&self.readers);
        if readers.len() < READERS_MAX {
            readers.push(connection);
        }
        Ok(answer?)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        lock(&self.shared.pending).closing = true;
        self.shared.some_pending.notify_all();
        join(self.writer.take());
        lock(&self.shared.keeping).closing = true;
        self.shared.some_keeping.notify_all();
        join(self.keeper.take());
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the database panicked");
    }
}

fn start_thread(
    name: &'static str,
    shared: Arc<Shared>,
    body: impl FnOnce(&Shared) + Send + 'static,
) -> Result<JoinHandle<()>, StateError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || body(&shared))
        .map_err(|source| StateError::System { action: "start a thread for the database", source })
}

/// The writer: has what is pending committed when nobody else does, and waits for more.
fn write(shared: &Shared) {
    loop {
        let mut pending = lock(&shared.pending);
        while pending.changes.is_empty() && !pending.closing {
            pending = shared.some_pending.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        if pending.changes.is_empty() {
            return;
        }
        drop(pending);
        shared.commit_pending(&mut lock(&shared.writer));
    }
}

impl Shared {
    /// Commits a batch of what is pending as one, and says so.
    fn commit_pending(&self, connection: &mut Connection) {
        let mut pending = lock(&self.pending);
        let count = pending.changes.len().min(BATCH_MAX);
        let mut batch: Vec<_> = pending.changes.drain(..count).collect();
        let is_more = !pending.changes.is_empty();
        drop(pending);
        if is_more {
            self.some_pending.notify_one();
        }
        if batch.is_empty() {
            return;
        }
        self.unmoved.fetch_add(count, Ordering::Relaxed);
        match commit(connection, &mut batch) {
            Ok(()) => batch.into_iter().for_each(|entry| entry.settle(Ok(()), self)),
            // One of them is at fault; alone, each fails or succeeds for itself.
            Err(_) => batch.into_iter().for_each(|entry| commit_alone(connection, entry, self)),
        }
    }
}

fn commit(connection: &mut Connection, batch: &mut [Box<dyn Entry>]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for entry in batch {
        entry.apply(&transaction)?;
    }
    transaction.commit()
}

fn commit_alone(connection: &mut Connection, entry: Box<dyn Entry>, shared: &Shared) {
    let mut batch = [entry];
    let outcome = commit(connection, &mut batch);
    let [entry] = batch;
    entry.settle(outcome, shared);
}

/// The keeper: brings the log of changes to the disk for those who wait for that, and moves a long one into the
/// database file.
fn keep(shared: &Shared, wal: &File) {
    let mut checkpointer = None;
    loop {
        let mut keeping = lock(&shared.keeping);
        if keeping.waiting.is_empty() && !keeping.closing {
            let waited = shared.some_keeping.wait_timeout(keeping, CHECKPOINT_PERIOD);
            keeping = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let waiting = std::mem::take(&mut keeping.waiting);
        let closing = keeping.closing;
        drop(keeping);
        if !waiting.is_empty() {
            let synced = wal.sync_data();
            if let Err(error) = &synced {
                tracing::error!(%error, "could not bring the database's log to the disk");
            }
            waiting.into_iter().for_each(|then| then(synced.is_ok()));
        } else if closing {
            return;
        }
        checkpoint_if_long(shared, &mut checkpointer);
    }
}

fn checkpoint_if_long(shared: &Shared, checkpointer: &mut Option<Connection>) {
    if shared.unmoved.load(Ordering::Relaxed) < UNMOVED_MAX {
        return;
    }
    shared.unmoved.store(0, Ordering::Relaxed);
    if let Err(error) = checkpoint(shared, checkpointer) {
        tracing::warn!(error = %error, "could not move the database's log into its file");
    }
}

/// Moves the log into the file. PASSIVE waits for nobody; once all of the log is in the file, the writer starts again
/// at the log's beginning.
fn checkpoint(shared: &Shared, checkpointer: &mut Option<Connection>) -> Result<(), StateError> {
    let connection = match checkpointer.take() {
        Some(connection) => connection,
        None => open_checkpointer(&shared.file)?,
    };
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    *checkpointer = Some(connection);
    Ok(())
}

fn open_writer(file: &Path) -> Result<Connection, StateError> {
    let failed = |source| StateError::Open { file: file.to_owned(), source };
    let mut connection = Connection::open(file).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;
             PRAGMA trusted_schema = OFF; PRAGMA wal_autocheckpoint = 0; PRAGMA busy_timeout = 5000;",
        )
        .map_err(failed)?;
    migrate(&mut connection, file)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, file: &Path) -> Result<(), StateError> {
    let layout: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(layout).unwrap_or(usize::MAX);
    let Some(missing) = SCHEMAS.get(done..) else { return Err(StateError::Newer { file: file.to_owned(), layout }) };
    if missing.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    missing.iter().try_for_each(|schema| transaction.execute_batch(schema))?;
    transaction.pragma_update(None, "user_version", LAYOUT)?;
    Ok(transaction.commit()?)
}

fn open_reader(file: &Path) -> Result<Connection, StateError> {
    let failed = |source| StateError::Open { file: file.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    connection.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA busy_timeout = 5000;").map_err(failed)?;
    Ok(connection)
}

fn open_checkpointer(file: &Path) -> Result<Connection, StateError> {
    let failed = |source| StateError::Open { file: file.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0;").map_err(failed)?;
    Ok(connection)
}

/// Opens the log of changes. SQLite's locks are on the database and its index file, never on the log, so closing
/// this descriptor takes no lock away.
fn open_wal(file: &Path) -> Result<File, StateError> {
    let mut name = file.as_os_str().to_owned();
    name.push("-wal");
    File::open(name).map_err(|source| StateError::System { action: "open the database's log", source })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make a list of changes wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add_token(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<usize> {
        let sql = "INSERT INTO tokens (name, sha256, created_us) VALUES (?1, ?2, 0)";
        transaction.execute(sql, (name, name.as_bytes()))
    }

    #[tokio::test]
    async fn one_bad_change_does_not_take_the_rest_of_its_batch_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opens");
        let names = ["a", "b", "a", "c"];
        let written: Vec<_> = names
            .map(|name| state.write_durable(move |transaction| add_token(transaction, name)).expect("room"))
            .into_iter()
            .collect();
        let mut outcomes = Vec::new();
        for change in written {
            outcomes.push(change.committed().await.is_ok());
        }
        assert_eq!(outcomes, [true, true, false, true]);
        let count = "SELECT count(*) FROM tokens";
        let rows: i64 =
            state.read(|connection| connection.query_row(count, [], |row| row.get(0))).await.expect("reads");
        assert_eq!(rows, 3);
    }

    #[tokio::test]
    async fn closing_writes_what_is_pending() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opens");
        for index in 0..500 {
            drop(state.write(move |transaction| add_token(transaction, &index.to_string())).expect("room"));
        }
        drop(state);
        let state = State::open(folder.path()).expect("opens again");
        let rows: i64 = state
            .read_now(|connection| connection.query_row("SELECT count(*) FROM tokens", [], |row| row.get(0)))
            .expect("reads");
        assert_eq!(rows, 500);
    }

    #[tokio::test]
    async fn the_log_of_changes_does_not_grow_without_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(folder.path()).expect("opens");
        let log = folder.path().join("state.db-wal");
        let mut lengths = Vec::new();
        for round in 0..6 {
            for index in 0..UNMOVED_MAX {
                let name = format!("{round}-{index}");
                drop(state.write(move |transaction| add_token(transaction, &name)).expect("room"));
            }
            state.write(|_| Ok(())).expect("room").committed().await.expect("commits");
            checkpoint(&state.shared, &mut None).expect("moves the log");
            lengths.push(std::fs::metadata(&log).expect("a log").len());
        }
        // The rounds are alike: a log that is begun anew after each is as long after the last as after one.
        assert!(lengths[5] < lengths[1] * 3 / 2, "{lengths:?} bytes of log after each round");
    }

    #[test]
    fn a_database_of_an_older_layout_gets_what_it_lacks() {
        let folder = tempfile::tempdir().expect("a folder");
        let old = Connection::open(folder.path().join("state.db")).expect("opens");
        old.execute_batch(SCHEMAS[0]).and_then(|()| old.pragma_update(None, "user_version", 1)).expect("is made");
        drop(old);
        for _ in 0..2 {
            let state = State::open(folder.path()).expect("opens");
            let count = "SELECT (SELECT count(*) FROM builds) + (SELECT count(*) FROM tokens)";
            let rows: i64 =
                state.read_now(|connection| connection.query_row(count, [], |row| row.get(0))).expect("reads");
            assert_eq!(rows, 0);
        }
    }

    #[test]
    fn a_database_of_a_newer_layout_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(State::open(folder.path()).expect("opens"));
        let connection = Connection::open(folder.path().join("state.db")).expect("opens");
        connection.pragma_update(None, "user_version", LAYOUT + 1).expect("updates");
        drop(connection);
        assert!(matches!(State::open(folder.path()), Err(StateError::Newer { .. })));
    }
}
