//! How a request becomes a job: one straight line from what was decoded to what is taken. What the policies see is
//! what is executed; there is no second reading of the request.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use ampoule_client::types::{Ending, EndingKind, JobRequest, JobState};
use ampoule_engine::image::digest::Digest;
use ampoule_engine::spec::Artifacts;
use ampoule_plugins::{Admission, AdmissionLimits, Denial, Outcome, Policies};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::admit::{self, Wish};
use super::job::{Job, Record, Spec, now, plain_ending};
use super::payload::{Content, Payload};
use super::{Jobs, bundle, document};
use crate::images::Images;
use crate::metrics::Metrics;
use crate::problem::{DENIED, KEY_REUSED, Refused};
use crate::request::Caller;
use crate::uploads::Uploads;

/// Longest time that an answer waits for a job's end.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How many requests with idempotency keys can be under way at once without waiting for each other.
const KEY_LOCKS: usize = 64;

/// Where jobs are handed in.
pub struct Desk {
    /// The jobs.
    pub jobs: Jobs,
    images: Images,
    policies: Arc<Policies>,
    uploads: Uploads,
    metrics: Arc<Metrics>,
    limits_default: AdmissionLimits,
    limits_ceiling: AdmissionLimits,
    grants_network: bool,
    key_locks: [Mutex<()>; KEY_LOCKS],
}

/// What a desk works with.
pub struct Means {
    /// The jobs.
    pub jobs: Jobs,
    /// The images.
    pub images: Images,
    /// The policies.
    pub policies: Arc<Policies>,
    /// The uploads.
    pub uploads: Uploads,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Bounds of a job that does not ask for its own.
    pub limits_default: AdmissionLimits,
    /// Highest bounds that a job can have.
    pub limits_ceiling: AdmissionLimits,
    /// Whether a job gets a network that asks for it.
    pub grants_network: bool,
}

impl Desk {
    /// A desk with everything that it needs.
    pub fn new(means: Means) -> Desk {
        Desk {
            jobs: means.jobs,
            images: means.images,
            policies: means.policies,
            uploads: means.uploads,
            metrics: means.metrics,
            limits_default: means.limits_default,
            limits_ceiling: means.limits_ceiling,
            grants_network: means.grants_network,
            key_locks: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// Hands a job in. `body` is what the request was decoded from: a second one with the same key must be the same.
    ///
    /// # Errors
    /// A field that cannot be used, a policy's refusal, a full queue, a key of another request, a failed store.
    pub async fn submit(
        &self,
        request: JobRequest,
        body: &[u8],
        caller: &Caller,
        is_waited_for: bool,
    ) -> Result<Arc<Job>, Refused> {
        let Some(key) = request.idempotency_key.clone() else {
            return self.admit(request, String::new(), caller, is_waited_for).await;
        };
        // Held until the job is stored, so that of two requests at once the second finds the first one's job.
        let _turn = self.key_locks[place_of(caller.name(), &key)].lock().await;
        let sha256 = Digest::of(body).hex().to_owned();
        match self.jobs.find_key(caller.name(), &key).await? {
            None => self.admit(request, sha256, caller, false).await,
            Some((id, known)) if known == sha256 => self.jobs.find(id, caller.scope()).await,
            Some((id, _)) => {
                let detail = format!("job {id} was made by another request with the key `{key}`");
                Err(Refused::new(KEY_REUSED, detail).hint("use a new key for a new request"))
            }
        }
    }

    async fn admit(
        &self,
        request: JobRequest,
        request_sha256: String,
        caller: &Caller,
        is_waited_for: bool,
    ) -> Result<Arc<Job>, Refused> {
        let image = self.images.resolve(&request.image)?;
        let wish = admit::wish(&request, &image, &self.limits_default, caller.name())?;
        let upload = self.uploads.find(request.files_upload.as_deref()).await?;
        let Wish { admission, artifacts, stdin, files } = wish;
        let asked = admission.clone();
        // About 50 microseconds, bounded by fuel and an epoch deadline: less than a change of threads would cost.
        let decision = self.policies.admit(admission);
        let told = document::decision(&decision);
        self.metrics.decided(&told);
        let settle = |admission: &Admission, artifacts: Artifacts| {
            let has_upload = upload.is_some();
            admit::settle(admission, artifacts, &image, &self.limits_ceiling, has_upload, self.grants_network)
        };
        let record = |spec: Spec, admission: &Admission| record(&request, request_sha256, told, spec, admission);
        match decision.outcome {
            Outcome::Admitted(admitted) => {
                let artifacts = Artifacts { globs: admitted.artifacts.clone(), ..artifacts };
                let record = record(settle(&admitted, artifacts)?, &admitted);
                let files = match upload {
                    Some(upload) => Some(Content::Upload(upload)),
                    None => (!files.is_empty()).then(|| Content::Bytes(bundle::tar(&files).into())),
                };
                let stdin = (!stdin.is_empty()).then_some(Content::Bytes(stdin));
                self.jobs.take(record, image.clone(), Payload { stdin, files }, is_waited_for).await
            }
            Outcome::Denied(denial) => {
                let record = record(settle(&asked, artifacts)?, &asked);
                self.deny(&record, denial).await
            }
        }
    }

    /// A refused job is kept like one that ran, and its document says where.
    async fn deny(&self, record: &Record, denial: Denial) -> Result<Arc<Job>, Refused> {
        let ending = Ending {
            policy: Some(denial.policy.clone()),
            ..plain_ending(EndingKind::Denied, Some(denial.reason.clone()))
        };
        self.jobs.record_denied(record, ending).await?;
        let mut refused = Refused::new(DENIED, denial.reason);
        refused.problem.hint = Some(denial.hint).filter(|hint| !hint.is_empty());
        refused.problem.policy = Some(denial.policy);
        refused.problem.policy_code = Some(denial.code);
        refused.problem.job_id = Some(record.id.to_string());
        Err(refused)
    }
}

fn record(
    request: &JobRequest,
    request_sha256: String,
    decision: ampoule_client::types::Decision,
    spec: Spec,
    admission: &Admission,
) -> Record {
    Record {
        id: Uuid::now_v7(),
        name: request.name.clone(),
        image: request.image.clone(),
        spec,
        decision,
        token: admission.token.clone(),
        labels: admission.labels.iter().cloned().collect(),
        priority: admission.priority,
        deadline: request.deadline,
        retries: request.retries.unwrap_or(0),
        created: now(),
        idempotency_key: request.idempotency_key.clone(),
        request_sha256,
    }
}

fn place_of(token: &str, key: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    (token, key).hash(&mut hasher);
    (hasher.finish() % KEY_LOCKS as u64) as usize
}

/// Waits for a job's end, but not when the service leaves; returns whether it came.
pub async fn wait(jobs: &Jobs, job: &Job, time: Duration) -> bool {
    let mut status = job.status.subscribe();
    let ended = status.wait_for(|status| status.state == JobState::Ended);
    tokio::select! {
        biased;
        ended = ended => ended.is_ok(),
        () = jobs.leaving() => false,
        () = tokio::time::sleep(time) => false,
    }
}
