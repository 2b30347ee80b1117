//! Jobs: taken, queued, run, told of, forgotten. `Jobs` is the whole of it for the routes; the submodules are its
//! parts. A job in memory is waiting or running; one that ended is in the database.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ampoule_client::types::{EndingKind, JobState};
use ampoule_engine::image::store::HeldImage;
use ampoule_engine::runtime::Runtime;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Retention;
use crate::images::Images;
use crate::metrics::Metrics;
use crate::problem::{DRAINING, NO_JOB, NOT_ENDED, QUEUE_FULL, Refused};
use crate::state::{State, StateError, Written};

use job::{Conclusion, Job, Record, failed_ending, now, plain_ending};
use payload::Payload;
use queue::Waiting;
use schedule::{NoPlace, Place, Schedule};
use store::{Filter, Keeping, Life, Listed, Store, Stored};

pub mod admit;
pub mod artifacts;
pub mod bundle;
pub mod document;
pub mod events;
pub mod job;
pub mod log;
pub mod payload;
pub mod queue;
pub mod routes;
pub mod run;
pub mod schedule;
pub mod store;
pub mod submit;
pub mod worker;

/// How often deadlines are looked at.
const DEADLINE_PERIOD: Duration = Duration::from_millis(100);
/// How often outdated jobs are removed, how many at once, and how often in a row.
const RETENTION_PERIOD: Duration = Duration::from_secs(60);
const OUTDATED_MAX: u32 = 500;
const OUTDATED_ROUNDS_MAX: u32 = 1000;
/// Longest time that a full queue tells its clients to stay away, in seconds.
const RETRY_AFTER_MAX_S: u64 = 60;

/// All jobs of the service. Cloning shares them.
#[derive(Clone)]
pub struct Jobs(Arc<Inner>);

struct Inner {
    store: Store,
    runtime: Arc<dyn Runtime>,
    metrics: Arc<Metrics>,
    folder: PathBuf,
    schedule: Mutex<Schedule>,
    present: Mutex<HashMap<Uuid, Arc<Job>>>,
    leaving: CancellationToken,
}

/// What jobs are run with.
pub struct RunMeans {
    /// What runs sandboxes.
    pub runtime: Arc<dyn Runtime>,
    /// Where runs are counted and measured.
    pub metrics: Arc<Metrics>,
    /// Jobs that run at once.
    pub concurrency: u32,
    /// Jobs that may wait.
    pub queue: u32,
}

/// What was found of a former life of the service, and mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Jobs that waited and wait again.
    pub queued: u64,
    /// Jobs that ran and wait for another try.
    pub requeued: u64,
    /// Jobs that ran and have now failed.
    pub failed: u64,
    /// Folders of jobs that nobody knew.
    pub folders: u64,
}

impl Jobs {
    /// The jobs of a state folder; those that had not ended are mended, and nothing runs before `dispatch`.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub async fn open(
        state: &State,
        folder: &Path,
        means: RunMeans,
        images: &Images,
    ) -> Result<(Jobs, Mended), StateError> {
        let store = Store::new(state.clone(), folder);
        let inner = Inner {
            store,
            runtime: means.runtime,
            metrics: means.metrics,
            folder: folder.to_owned(),
            schedule: Mutex::new(Schedule::new(means.concurrency, means.queue as usize)),
            present: Mutex::default(),
            leaving: CancellationToken::new(),
        };
        let jobs = Jobs(Arc::new(inner));
        let mended = jobs.mend(images).await?;
        Ok((jobs, mended))
    }

    async fn mend(&self, images: &Images) -> Result<Mended, StateError> {
        let mut mended = Mended { folders: self.store().sweep()?, ..Mended::default() };
        for Listed { record, status } in self.store().unfinished()? {
            let has_run = status.state == JobState::Running;
            let image = match images.resolve(&record.spec.image_digest) {
                _ if has_run && status.attempt > record.retries => {
                    Err("the service was stopped while the job ran".to_owned())
                }
                Ok(image) => Ok(image),
                Err(refused) => Err(format!("its image cannot be used any more: {}", refused.problem.detail)),
            };
            match image {
                Ok(image) => {
                    if has_run {
                        self.store().waits_again(record.id)?.committed().await?;
                    }
                    *(if has_run { &mut mended.requeued } else { &mut mended.queued }) += 1;
                    self.readmit(Arc::new(Job::waiting(record, status.attempt, image)));
                }
                Err(reason) => {
                    let conclusion = Conclusion::unrun(failed_ending(has_run, reason));
                    let ended = self.store().ended(record.id, &conclusion, status.started, now(), [None, None])?;
                    ended.committed().await?;
                    self.0.metrics.ended(EndingKind::Failed);
                    mended.failed += 1;
                }
            }
        }
        Ok(mended)
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.0.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Job>>> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readmit(&self, job: Arc<Job>) {
        let waiting = waiting(&job.record);
        self.present().insert(job.id(), job);
        self.schedule().queue.readmit(waiting);
    }

    /// Takes a job: it is stored, and runs at once when there is room, or waits. When `is_waited_for`, this returns
    /// before the job is stored if it runs at once: its ending is stored before anybody learns of it, and that is after.
    ///
    /// # Errors
    /// The queue is full, the service is being stopped, or the job could not be stored.
    pub async fn take(
        &self,
        record: Record,
        image: HeldImage,
        payload: Payload,
        is_waited_for: bool,
    ) -> Result<Arc<Job>, Refused> {
        let payload =
            payload.settle(&self.store().folder(record.id)).await.map_err(|error| Refused::internal(&error))?;
        let job = Arc::new(Job::waiting(record, 0, image));
        let (place, written) = self.place(&job, &payload, is_waited_for)?;
        if place == Place::Runs {
            self.spawn(job.clone(), Some(payload));
        }
        let Some(written) = written else { return Ok(job) };
        match written.committed().await {
            Ok(()) => Ok(job),
            Err(error) => {
                self.withdraw(&job);
                Err(error.into())
            }
        }
    }

    /// Finds a place for a job and hands it to the database, in one step: what starts it later writes after this.
    /// Nothing is written of one that runs at once and is waited for: nobody has been told of it, and most such jobs end
    /// before anybody could ask.
    fn place(&self, job: &Arc<Job>, payload: &Payload, is_waited_for: bool) -> Result<Placed, Refused> {
        let mut schedule = self.schedule();
        let place = match schedule.place(waiting(&job.record)) {
            Ok(place) => place,
            Err(NoPlace::Closed) => return Err(Refused::new(DRAINING, "the service is being stopped").retry_after(5)),
            Err(NoPlace::Full) => return Err(self.queue_is_full(&schedule)),
        };
        let keeping = Keeping { is_running: place == Place::Runs, is_waited_for };
        let written = if keeping.is_running && is_waited_for {
            job.put_off();
            None
        } else {
            let inserted = self.store().insert(&job.record, payload.inline(), keeping);
            Some(inserted.inspect_err(|_| schedule.take_back(place, job.id()))?)
        };
        self.present().insert(job.id(), job.clone());
        Ok((place, written))
    }

    fn queue_is_full(&self, schedule: &Schedule) -> Refused {
        self.0.metrics.refused_by_queue();
        let detail = format!("{} jobs wait, as many as may", schedule.queue.len());
        Refused::new(QUEUE_FULL, detail)
            .hint("try again after the time in Retry-After")
            .retry_after(schedule.queue_time().as_secs().clamp(1, RETRY_AFTER_MAX_S))
    }

    /// Gives up a job that could not be stored.
    fn withdraw(&self, job: &Job) {
        job.stop.cancel();
        if self.schedule().queue.remove(job.id()).is_some() {
            self.present().remove(&job.id());
        }
    }

    /// Stores a job that a policy refused.
    ///
    /// # Errors
    /// It could not be stored.
    pub async fn record_denied(&self, record: &Record, ending: ampoule_client::types::Ending) -> Result<(), Refused> {
        let conclusion = Conclusion::unrun(ending);
        let life = Life { attempt: 0, started: None, ended: record.created };
        self.store().insert_ended(record, &conclusion, life, [None, None])?.committed().await?;
        self.0.metrics.ended(EndingKind::Denied);
        Ok(())
    }

    /// Finds a job; `token` limits it to those of that token.
    ///
    /// # Errors
    /// There is none, or the database cannot be read.
    pub async fn find(&self, id: Uuid, token: Option<&str>) -> Result<Arc<Job>, Refused> {
        let present = self.present().get(&id).cloned();
        let found = match present {
            Some(job) => Some(job),
            None => self.store().find(id).await?.map(|stored| Arc::new(from_store(stored))),
        };
        match found {
            Some(job) if token.is_none_or(|token| token == job.record.token) => Ok(job),
            _ => Err(no_job(&id.to_string())),
        }
    }

    /// Finds the job of a token's idempotency key, with the digest of the request that made it.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn find_key(&self, token: &str, key: &str) -> Result<Option<(Uuid, String)>, Refused> {
        Ok(self.store().find_key(token, key).await?)
    }

    /// Lists jobs, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Listed>, Refused> {
        Ok(self.store().list(filter).await?)
    }

    /// Asks a job to end. One that waits ends at once, one that runs soon, one that ended stays as it is.
    ///
    /// # Errors
    /// The database refused.
    pub async fn cancel(&self, job: &Arc<Job>) -> Result<(), Refused> {
        job.stop.cancel();
        let waited = self.schedule().queue.remove(job.id());
        if waited.is_some() {
            self.end_unrun(job, plain_ending(EndingKind::Cancelled, None)).await?;
        }
        Ok(())
    }

    async fn end_unrun(&self, job: &Job, ending: ampoule_client::types::Ending) -> Result<(), StateError> {
        let now = now();
        let conclusion = Conclusion::unrun(ending);
        let written = self.store().ended(job.id(), &conclusion, None, now, [None, None])?;
        written.committed().await?;
        self.0.metrics.ended(conclusion.ending.kind);
        job.close_book();
        self.present().remove(&job.id());
        job.end(now, conclusion);
        Ok(())
    }

    /// Forgets an ended job, its output and its artifacts.
    ///
    /// # Errors
    /// It has not ended, or the database refused.
    pub async fn remove(&self, job: &Job) -> Result<(), Refused> {
        if job.status.borrow().state != JobState::Ended {
            let refused =
                Refused::new(NOT_ENDED, format!("job {} is {}", job.id(), job.status.borrow().state.as_str()));
            return Err(refused.hint("cancel it first"));
        }
        match self.store().remove(vec![job.id()]).await? {
            0 => Err(no_job(&job.id().to_string())),
            _ => Ok(()),
        }
    }

    /// How many jobs wait and run.
    pub fn count(&self) -> (usize, u32) {
        let schedule = self.schedule();
        (schedule.queue.len(), schedule.running())
    }

    /// The folder of an artifact's file.
    pub fn artifact(&self, id: Uuid, number: usize) -> PathBuf {
        artifacts::folder(&self.store().folder(id)).join(number.to_string())
    }

    /// The state folder.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Takes no more jobs and starts none: the service is being stopped.
    pub fn close(&self) {
        self.schedule().close();
    }

    /// Whether no job runs.
    pub fn is_idle(&self) -> bool {
        self.schedule().running() == 0
    }

    /// Stops all jobs that run: they fail, or wait for another try after the next start.
    pub fn interrupt(&self) {
        self.schedule().interrupt();
        for job in self.present().values() {
            if job.status.borrow().state == JobState::Running {
                job.stop.cancel();
            }
        }
    }

    /// Lets nobody wait any longer: the service leaves.
    pub fn leave(&self) {
        self.0.leaving.cancel();
    }

    /// Waits until the service leaves.
    pub async fn leaving(&self) {
        self.0.leaving.cancelled().await;
    }

    /// Ends jobs whose deadline comes while they wait, until the process ends.
    pub async fn keep_deadlines(self) {
        let mut ticks = tokio::time::interval(DEADLINE_PERIOD);
        loop {
            ticks.tick().await;
            let late = self.schedule().queue.expire(Timestamp::now());
            for waiting in late {
                let Some(job) = self.present().get(&waiting.id).cloned() else { continue };
                let ending = plain_ending(EndingKind::Expired, Some("the deadline came before its turn".to_owned()));
                if let Err(error) = self.end_unrun(&job, ending).await {
                    tracing::error!(job.id = %waiting.id, error = crate::problem::chain(&error), "could not end a late job");
                }
            }
        }
    }

    /// Removes jobs that need not be kept, until the process ends.
    pub async fn keep_retention(self, retention: Retention) {
        let age = SignedDuration::try_from(retention.age).unwrap_or(SignedDuration::MAX);
        let mut ticks = tokio::time::interval(RETENTION_PERIOD);
        loop {
            ticks.tick().await;
            let before = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
            let outcome = self.remove_outdated(before, retention.jobs).await;
            if let Err(error) = outcome {
                tracing::error!(error = crate::problem::chain(&error), "could not remove outdated jobs");
            }
        }
    }

    /// Removes jobs that ended before `before`, and the oldest beyond `kept` in number.
    ///
    /// # Errors
    /// The database refused.
    pub async fn remove_outdated(&self, before: Timestamp, kept: u64) -> Result<(), StateError> {
        let mut removed = 0;
        for _ in 0..OUTDATED_ROUNDS_MAX {
            let outdated = self.store().outdated(before, kept, OUTDATED_MAX).await?;
            if outdated.is_empty() {
                break;
            }
            removed += self.store().remove(outdated).await?;
        }
        if removed > 0 {
            tracing::info!(jobs = removed, "removed outdated jobs");
        }
        Ok(())
    }
}

/// Where a job went, and its insert, unless that is put off.
type Placed = (Place, Option<Written<()>>);

fn waiting(record: &Record) -> Waiting {
    Waiting { id: record.id, token: record.token.clone(), priority: record.priority, deadline: record.deadline }
}

fn from_store(stored: Stored) -> Job {
    Job::ended(stored.record, stored.status, stored.stdout, stored.stderr)
}

/// Says that there is no such job.
pub fn no_job(id: &str) -> Refused {
    Refused::new(NO_JOB, format!("there is no job `{id}`")).hint("`GET /v1/jobs` lists those that are kept")
}
