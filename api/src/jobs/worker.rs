//! What carries a job through its run: one task for each slot that is taken. It starts the job, runs it, stores how
//! it ended, and only then tells; the slot goes to the next job as soon as the sandbox is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ampoule_client::types::EndingKind;
use bytes::Bytes;
use jiff::Timestamp;

use super::Jobs;
use super::job::{Conclusion, Job, Status, Written, failed_ending, now, plain_ending};
use super::log::Kept;
use super::payload::Payload;
use super::run::{self, Ran};
use super::store::{INLINE_BYTES_MAX, Keeping, Life};
use crate::problem::chain;
use crate::state::StateError;

/// How long a job may run before it is stored that it runs, when nobody has been told of it.
const SHOW_AFTER: Duration = Duration::from_millis(10);

impl Jobs {
    /// Starts waiting jobs while there are free slots.
    pub fn dispatch(&self) {
        loop {
            let Some(next) = self.schedule().take_next() else { return };
            let job = self.present().get(&next.id).cloned();
            match job {
                Some(job) => self.spawn(job, None),
                // Its insert failed between its push and now.
                None => self.schedule().finished(Duration::ZERO),
            }
        }
    }

    /// Runs a job that has a slot. One that waited finds its payload in the store.
    pub(super) fn spawn(&self, job: Arc<Job>, payload: Option<Payload>) {
        let jobs = self.clone();
        tokio::spawn(async move { jobs.carry(job, payload).await });
    }

    async fn carry(self, job: Arc<Job>, payload: Option<Payload>) {
        let slot = Slot { jobs: self.clone(), started: Instant::now() };
        let has_waited = payload.is_none();
        let now = now();
        let attempt = job.start(now);
        let waited = Duration::try_from(now.duration_since(job.record.created)).unwrap_or_default();
        self.0.metrics.started(waited);
        let (ran, payload) = match self.prepare(&job, payload, has_waited.then_some((attempt, now))).await {
            Ok(payload) => (self.run_and_show(&job, &payload, now).await, payload),
            Err(reason) => (run::unstarted(failed_ending(true, reason)), Payload::default()),
        };
        let time = slot.started.elapsed();
        self.0.metrics.ran(time, ran.phases.as_ref());
        if ran.is_runtime_gone {
            // Whoever watches the runtime stops the service; until then no other job is to be lost the same way.
            self.close();
        }
        let ran = self.judge(&job, ran);
        if ran.ending.retryable && attempt <= job.record.retries {
            self.store_running(&job, &payload);
            self.try_again(&job, slot).await;
            return;
        }
        drop(slot);
        self.conclude(&job, ran).await;
    }

    /// Stores that a job which waited starts, and fetches its payload.
    async fn prepare(
        &self,
        job: &Job,
        payload: Option<Payload>,
        start: Option<(u32, Timestamp)>,
    ) -> Result<Payload, String> {
        if let Some((attempt, now)) = start {
            let started = async { self.store().started(job.id(), attempt, now)?.committed().await };
            started.await.map_err(|error| format!("the start could not be stored: {}", chain(&error)))?;
        }
        let spec = &job.record.spec;
        match payload {
            Some(payload) => Ok(payload),
            None if spec.stdin_bytes == 0 && !spec.has_files => Ok(Payload::default()),
            None => {
                let inputs = self.store().inputs(job.id()).await;
                let inputs = inputs.map_err(|error| format!("the input could not be read: {}", chain(&error)))?;
                Ok(Payload::from_store(inputs, &self.store().folder(job.id())))
            }
        }
    }

    /// Runs a job; one that does not end at once is stored, so that lists show it and a next life knows of it.
    async fn run_and_show(&self, job: &Job, payload: &Payload, now: Timestamp) -> Ran {
        let mut run = std::pin::pin!(self.run(job, payload, now));
        match tokio::time::timeout(SHOW_AFTER, &mut run).await {
            Ok(ran) => ran,
            Err(_) => {
                self.store_running(job, payload);
                run.await
            }
        }
    }

    /// Stores a job that was put off and runs longer than expected.
    fn store_running(&self, job: &Job, payload: &Payload) {
        if job.mark_stored() {
            return;
        }
        let keeping = Keeping { is_running: true, is_waited_for: true };
        // Changes are made in the order of their coming: its ending fails when this does, and says so.
        if let Err(error) = self.store().insert(&job.record, payload.inline(), keeping) {
            tracing::error!(job.id = %job.id(), error = chain(&error), "could not store that a job runs");
        }
    }

    async fn run(&self, job: &Job, payload: &Payload, now: Timestamp) -> Ran {
        if job.stop.is_cancelled() {
            return run::unstarted(plain_ending(EndingKind::Cancelled, None));
        }
        let left = |deadline: Timestamp| u64::try_from(deadline.duration_since(now).as_millis()).unwrap_or(0);
        let left_ms = job.record.deadline.map(left);
        if left_ms == Some(0) {
            let detail = Some("the deadline came before its turn".to_owned());
            return run::unstarted(plain_ending(EndingKind::Expired, detail));
        }
        let input = match payload.open() {
            Ok(input) => input,
            Err(error) => return run::unstarted(failed_ending(true, chain(&error))),
        };
        let sandbox = job.record.spec.sandbox(job.id().to_string(), left_ms);
        run::run(self.0.runtime.as_ref(), job, sandbox, input, &self.store().folder(job.id())).await
    }

    /// A job that the service stopped, because it is itself being stopped, has failed and was not cancelled.
    fn judge(&self, job: &Job, mut ran: Ran) -> Ran {
        let is_interrupted = self.schedule().is_interrupted();
        if is_interrupted && ran.ending.kind == EndingKind::Cancelled {
            ran.ending = failed_ending(true, "the service was stopped while the job ran");
        }
        let ending = &ran.ending;
        if ending.kind == EndingKind::Failed {
            let detail = ending.detail.as_deref().unwrap_or_default();
            tracing::warn!(job.id = %job.id(), retryable = ending.retryable, detail, "a job could not be run");
        }
        ran
    }

    async fn try_again(&self, job: &Arc<Job>, slot: Slot) {
        let stored = async { self.store().waits_again(job.id())?.committed().await };
        if let Err(error) = stored.await {
            tracing::error!(job.id = %job.id(), error = chain(&error), "could not store that a job waits again");
        }
        self.0.metrics.retried();
        job.wait_again();
        self.readmit(job.clone());
        drop(slot);
    }

    async fn conclude(&self, job: &Job, ran: Ran) {
        let (stdout, stderr) = job.close_book();
        let conclusion = Conclusion {
            ending: ran.ending,
            figures: ran.figures,
            phases: ran.phases,
            stdout: Some(written(&stdout)),
            stderr: Some(written(&stderr)),
            artifacts: ran.artifacts,
        };
        let now = now();
        let kind = conclusion.ending.kind;
        let conclusion = match self.store_conclusion(job, &conclusion, now, [stdout, stderr]).await {
            Ok(()) => conclusion,
            Err(error) => {
                tracing::error!(job.id = %job.id(), error = chain(&error), "could not store how a job ended");
                // The next start will say the same of it.
                Conclusion::unrun(failed_ending(true, "how the job ended could not be stored"))
            }
        };
        self.0.metrics.ended(kind);
        // Whoever looks for it now finds it in the database; whoever waits for it is told after that.
        self.present().remove(&job.id());
        job.end(now, conclusion);
        // Whoever waits is answered first.
        tokio::task::yield_now().await;
        tracing::info!(job.id = %job.id(), token = job.record.token, ending = kind.as_str(), "a job ended");
    }

    async fn store_conclusion(
        &self,
        job: &Job,
        conclusion: &Conclusion,
        now: Timestamp,
        outputs: [Kept; 2],
    ) -> Result<(), StateError> {
        let [stdout, stderr] = outputs;
        if is_large(&stdout) || is_large(&stderr) {
            let folder = self.store().folder(job.id());
            let files = [("stdout", stdout.clone()), ("stderr", stderr.clone())];
            let stored = tokio::task::spawn_blocking(move || {
                std::fs::create_dir_all(&folder)?;
                files
                    .iter()
                    .filter(|(_, kept)| is_large(kept))
                    .try_for_each(|(name, kept)| std::fs::write(folder.join(name), &kept.bytes))
            });
            let failed = |source| StateError::System { action: "store an output", source };
            stored.await.map_err(|panicked| failed(std::io::Error::other(panicked)))?.map_err(failed)?;
        }
        let inline = [inline(stdout), inline(stderr)];
        let Status { attempt, started, .. } = *job.status.borrow();
        let written = if job.mark_stored() {
            self.store().ended(job.id(), conclusion, started, now, inline)?
        } else {
            self.store().insert_ended(&job.record, conclusion, Life { attempt, started, ended: now }, inline)?
        };
        written.committed().await
    }
}

fn is_large(kept: &Kept) -> bool {
    kept.bytes.len() > INLINE_BYTES_MAX
}

fn inline(kept: Kept) -> Option<Bytes> {
    (!kept.bytes.is_empty() && !is_large(&kept)).then_some(kept.bytes)
}

fn written(kept: &Kept) -> Written {
    Written { total_bytes: kept.total_bytes, sha256: kept.sha256.clone(), gap: kept.gap, in_file: is_large(kept) }
}

/// A slot of a running job; dropping it gives it to the next.
struct Slot {
    jobs: Jobs,
    started: Instant,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.jobs.schedule().finished(self.started.elapsed());
        self.jobs.dispatch();
    }
}
