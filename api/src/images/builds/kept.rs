//! Builds that are under way or were. One under way is in memory, with its row in the database and its events in a file;
//! what has ended is on disk alone, the newest of them.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ampoule_client::types::{BuildEvent, BuildState};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::log::{Follower, Journal, Progress};
use super::records::{Conclusion, Filter, Record, Store, Stored};
use crate::problem::{BUILD_CANCELLED, BUILD_INTERRUPTED, DRAINING, NO_BUILD, Refused};
use crate::state::{State, StateError};

/// Builds that ended and are kept, and bytes of their events together; the oldest go first.
const KEPT_MAX: u32 = 1000;
const KEPT_BYTES_MAX: u64 = 1 << 30;
/// How long builds may take to stop when the service does.
const LEAVE_TIME: Duration = Duration::from_secs(10);

/// All builds. Cloning shares them.
#[derive(Clone)]
pub struct Builds(Arc<Inner>);

struct Inner {
    store: Store,
    folder: PathBuf,
    present: Mutex<HashMap<Uuid, Arc<Kept>>>,
    /// How many are under way.
    running: watch::Sender<usize>,
    leaving: CancellationToken,
}

/// A build that is kept.
pub struct Kept {
    /// What was asked for.
    pub record: Record,
    /// How it ended.
    pub conclusion: OnceLock<Conclusion>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    why: OnceLock<Refused>,
}

impl Kept {
    fn new(record: Record) -> Kept {
        let (conclusion, why) = (OnceLock::new(), OnceLock::new());
        Kept { record, conclusion, progress: watch::Sender::default(), stop: CancellationToken::new(), why }
    }

    fn from_store(stored: Stored) -> Kept {
        let kept = Kept::new(stored.record);
        if let Some(conclusion) = stored.conclusion {
            let last = Some(Box::new(conclusion.last.clone()));
            kept.progress.send_replace(Progress { bytes: stored.log_bytes, last });
            // It was made just now.
            let _ = kept.conclusion.set(conclusion);
        }
        kept
    }

    /// Asks the build to end, for a reason; one that has ended stays as it is.
    fn stop_for(&self, reason: Refused) {
        // The first one counts.
        let _ = self.why.set(reason);
        self.stop.cancel();
    }

    /// Asks the build to end since somebody wants it to.
    pub fn cancel(&self) {
        self.stop_for(Refused::new(BUILD_CANCELLED, "the build was cancelled"));
    }

    /// Waits until the build is asked to end, and says why.
    pub async fn stopped(&self) -> Refused {
        self.stop.cancelled().await;
        self.why.get().cloned().unwrap_or_else(|| Refused::new(BUILD_CANCELLED, "the build was cancelled"))
    }

    /// Whether it belongs to what somebody may see.
    fn is_of(&self, token: Option<&str>) -> bool {
        token.is_none_or(|token| token == self.record.token)
    }
}

/// Stops a build when nobody listens any more.
pub(super) struct HangingUp(pub(super) Arc<Kept>);

impl Drop for HangingUp {
    fn drop(&mut self) {
        self.0.stop_for(Refused::new(BUILD_CANCELLED, "whoever asked for the build hung up"));
    }
}

fn interrupted() -> Refused {
    Refused::new(BUILD_INTERRUPTED, "the service was stopped while the build was under way")
        .hint("build again: steps that were done need not be run again")
}

impl Builds {
    /// Opens the builds of a state folder. Those that were under way in a former life have failed.
    ///
    /// # Errors
    /// The database or the folder cannot be used.
    pub async fn open(state: &State, folder: &Path) -> Result<Builds, StateError> {
        let failed = |action| move |source| StateError::System { action, source };
        let folder = folder.join("builds");
        std::fs::create_dir_all(&folder).map_err(failed("make the folder of builds"))?;
        let (store, running) = (Store(state.clone()), watch::Sender::new(0));
        let inner = Inner { store, folder, present: Mutex::default(), running, leaving: CancellationToken::new() };
        let builds = Builds(Arc::new(inner));
        let unfinished = builds.0.store.unfinished()?;
        if !unfinished.is_empty() {
            tracing::info!(builds = unfinished.len(), "builds were under way when the service was stopped");
        }
        for Stored { record, .. } in unfinished {
            let bytes = super::log::mend(&builds.log(record.id)).map_err(failed("mend the log of a build"))?;
            let last = BuildEvent::Failed { problem: interrupted().problem, place: None };
            let conclusion = Conclusion { state: BuildState::Failed, ended: Timestamp::now(), last };
            builds.0.store.ended(record.id, &conclusion, bytes)?.committed().await?;
        }
        builds.sweep().map_err(failed("remove the logs of builds that are not kept"))?;
        Ok(builds)
    }

    /// Removes files of builds that are not in the database.
    fn sweep(&self) -> io::Result<()> {
        let known = self.0.store.ids().map_err(io::Error::other)?;
        for entry in std::fs::read_dir(&self.0.folder)? {
            let entry = entry?;
            let id = entry.file_name().to_str().and_then(|name| Uuid::try_parse(name).ok());
            if id.is_none_or(|id| !known.contains(&id)) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn log(&self, id: Uuid) -> PathBuf {
        self.0.folder.join(id.to_string())
    }

    fn present(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Kept>>> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a build; `durable` waits until the disk has it.
    ///
    /// # Errors
    /// The service is being stopped, or it cannot be stored.
    pub async fn take(&self, record: Record, durable: bool) -> Result<(Arc<Kept>, Journal), Refused> {
        if self.0.leaving.is_cancelled() {
            return Err(Refused::new(DRAINING, "the service is being stopped").retry_after(5));
        }
        let id = record.id;
        let kept = Arc::new(Kept::new(record));
        let journal = Journal::create(&self.log(id)).map_err(|error| Refused::internal(&error))?;
        self.0.store.insert(&kept.record, durable)?.committed().await?;
        self.present().insert(id, kept.clone());
        self.0.running.send_modify(|running| *running += 1);
        Ok((kept, journal))
    }

    /// Writes an event of a build, and wakes who follows it.
    pub fn tell(&self, kept: &Kept, journal: &mut Journal, event: BuildEvent) {
        journal.tell(event);
        kept.progress.send_modify(|progress| progress.bytes = journal.bytes());
    }

    /// Stores how a build ended, and then tells it.
    pub async fn end(&self, kept: &Kept, journal: Journal, last: BuildEvent) {
        let state = match &last {
            BuildEvent::Failed { problem, .. } if problem.code == BUILD_CANCELLED.code => BuildState::Cancelled,
            BuildEvent::Built(_) => BuildState::Built,
            _ => BuildState::Failed,
        };
        let conclusion = Conclusion { state, ended: Timestamp::now(), last: last.clone() };
        let written = self.0.store.ended(kept.record.id, &conclusion, journal.bytes());
        let stored = match written {
            Ok(written) => written.committed().await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            tracing::error!(build.id = %kept.record.id, error = crate::problem::chain(&error), "could not store the end of a build");
        }
        // Nobody else sets it.
        let _ = kept.conclusion.set(conclusion);
        kept.progress.send_modify(|progress| progress.last = Some(Box::new(last)));
        self.present().remove(&kept.record.id);
        self.0.running.send_modify(|running| *running -= 1);
        if let Err(error) = self.trim(KEPT_MAX, KEPT_BYTES_MAX).await {
            tracing::error!(error = crate::problem::chain(&error), "could not forget old builds");
        }
    }

    async fn trim(&self, count: u32, bytes: u64) -> Result<(), StateError> {
        for id in self.0.store.trim(count, bytes).await? {
            match std::fs::remove_file(self.log(id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "could not remove the log of a build; the next start will");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Finds a build; `token` limits it to those of that token.
    ///
    /// # Errors
    /// There is none, or the database cannot be read.
    pub async fn find(&self, id: &str, token: Option<&str>) -> Result<Arc<Kept>, Refused> {
        let parsed = Uuid::try_parse(id).map_err(|_| no_build(id))?;
        let present = self.present().get(&parsed).cloned();
        let found = match present {
            Some(kept) => Some(kept),
            None => self.0.store.find(parsed).await?.map(|stored| Arc::new(Kept::from_store(stored))),
        };
        found.filter(|kept| kept.is_of(token)).ok_or_else(|| no_build(id))
    }

    /// Lists builds, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Stored>, Refused> {
        Ok(self.0.store.list(filter).await?)
    }

    /// Follows a build from a place on; `None` when no event ends there.
    ///
    /// # Errors
    /// Its events cannot be read.
    pub fn follow(&self, kept: &Kept, place: u64, follows: bool) -> io::Result<Option<Follower>> {
        Follower::new(&self.log(kept.record.id), kept.progress.subscribe(), place, follows)
    }

    /// Its steps, and how far each came. Blocks.
    ///
    /// # Errors
    /// Its events cannot be read.
    pub fn steps(&self, kept: &Kept) -> io::Result<Vec<ampoule_client::types::BuildStepStatus>> {
        let bytes = kept.progress.borrow().bytes;
        super::log::steps(&self.log(kept.record.id), bytes)
    }

    /// Takes no more builds, and stops those that are under way: the service leaves.
    pub async fn leave(&self) {
        self.0.leaving.cancel();
        self.present().values().for_each(|kept| kept.stop_for(interrupted()));
        let mut running = self.0.running.subscribe();
        let idle = running.wait_for(|running| *running == 0);
        if tokio::time::timeout(LEAVE_TIME, idle).await.is_err() {
            tracing::warn!("builds did not stop in time");
        }
    }
}

fn no_build(id: &str) -> Refused {
    Refused::new(NO_BUILD, format!("there is no build `{id}`")).hint("`GET /v1/builds` lists those that are kept")
}
