//! One job: what was admitted (never changes), where it is in its life, and what it has written so far.
//!
//! ```text
//!            ┌──────── tried again after a failure of the infrastructure ────────┐
//!            ▼                                                                   │
//! taken ─▶ Queued ─▶ Running ─▶ Ended (exited, signaled, a limit, cancelled, failed)
//!            │
//!            └─▶ Ended (cancelled, expired)        refused by a policy: Ended (denied) at once
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ampoule_client::types::{
    Artifact, Decision, Ending, EndingKind, Figures, Gap, JobState, Output, Phases, SpecFile, Stream,
};
use ampoule_engine::image::store::HeldImage;
use ampoule_engine::spec::{Artifacts, Command, Frame, LayerId, Limits, Network, SandboxSpec, WritablePath};
use ampoule_plugins::AdmissionLimits;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::log::{Kept, Log, Piece};

/// The host name in every sandbox: the same, so that sandboxes can be made ahead.
const HOSTNAME: &str = "ampoule";
/// The network that is loopback alone.
pub const NO_NETWORK: &str = "none";
/// The network that is the world without the machine.
pub const EGRESS: &str = "default";

/// What is executed, after defaults and policies. Stored with the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The digest of the image's manifest.
    pub image_digest: String,
    /// The image's layers, lowest first.
    pub layers: Vec<LayerId>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// Whom it runs as.
    pub user: String,
    /// Its bounds.
    pub limits: AdmissionLimits,
    /// Its network.
    pub network: String,
    /// Its writable paths.
    pub writable: Vec<WritablePath>,
    /// Which files are kept.
    pub artifacts: Artifacts,
    /// The files that come with it; those of an uploaded tar are not listed.
    pub files: Vec<SpecFile>,
    /// Whether there is a tar of files at all.
    pub has_files: bool,
    /// Bytes of standard input.
    pub stdin_bytes: u64,
}

impl Spec {
    /// What the engine needs to launch it. The time that is left until the deadline bounds the wall time.
    pub fn sandbox(&self, id: String, left_ms: Option<u64>) -> SandboxSpec {
        let limits = &self.limits;
        SandboxSpec {
            id,
            frame: Frame {
                layers: self.layers.clone(),
                writable: self.writable.clone(),
                user: self.user.clone(),
                hostname: HOSTNAME.to_owned(),
                network: if self.network == EGRESS { Network::Egress } else { Network::None },
            },
            command: Command {
                argv: self.argv.clone(),
                env: self.env.clone(),
                cwd: self.cwd.clone(),
                artifacts: self.artifacts.clone(),
            },
            limits: Limits {
                memory_bytes: limits.memory_bytes,
                cpu_milli: limits.cpu_milli,
                pids: limits.pids,
                cpu_time_ms: limits.cpu_time_ms,
                wall_time_ms: left_ms.map_or(limits.wall_time_ms, |left| limits.wall_time_ms.min(left.max(1))),
                open_files: limits.open_files,
                file_bytes: limits.file_bytes,
            },
        }
    }
}

/// What was taken, or refused by a policy. It never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The job's id.
    pub id: Uuid,
    /// A name for people.
    pub name: Option<String>,
    /// The image as it was asked for.
    pub image: String,
    /// What is executed.
    pub spec: Spec,
    /// What the policies said.
    pub decision: Decision,
    /// Whose it is: a token's name, or `local`.
    pub token: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Higher goes first.
    pub priority: i32,
    /// When it must be done.
    pub deadline: Option<Timestamp>,
    /// How often it may be run again after a failure of the infrastructure.
    pub retries: u32,
    /// When it was taken.
    pub created: Timestamp,
    /// The key that makes a second request find this job.
    pub idempotency_key: Option<String>,
    /// SHA-256 of the request's body, to tell another request with the same key; empty without a key.
    pub request_sha256: String,
}

/// How a job ended, and all that is kept of its run besides its output. Stored with the job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conclusion {
    /// Why.
    pub ending: Ending,
    /// What it used.
    pub figures: Option<Figures>,
    /// How its launch went.
    pub phases: Option<Phases>,
    /// Its standard output; absent when it never ran.
    pub stdout: Option<Written>,
    /// Its standard error; absent when it never ran.
    pub stderr: Option<Written>,
    /// The files that were kept, and those that were left out.
    pub artifacts: Vec<Artifact>,
}

/// A finished output, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Bytes that were written.
    pub total_bytes: u64,
    /// SHA-256 of all that was written, in hexadecimal.
    pub sha256: String,
    /// What was not kept.
    pub gap: Option<Gap>,
    /// Whether the bytes are in a file of the job's folder instead of the database.
    pub in_file: bool,
}

impl Conclusion {
    /// A conclusion of a job that did not run.
    pub fn unrun(ending: Ending) -> Conclusion {
        Conclusion { ending, figures: None, phases: None, stdout: None, stderr: None, artifacts: Vec::new() }
    }
}

/// The time, in the microseconds that are stored.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Makes the ending of a kind that needs no more words.
pub fn plain_ending(kind: EndingKind, detail: Option<String>) -> Ending {
    Ending { kind, exit_code: None, signal: None, policy: None, retryable: false, detail }
}

/// Makes the ending of a job that the service could not run or lost.
pub fn failed_ending(retryable: bool, reason: impl Into<String>) -> Ending {
    Ending { retryable, ..plain_ending(EndingKind::Failed, Some(reason.into())) }
}

/// Where a job is in its life.
#[derive(Clone, Debug)]
pub struct Status {
    /// The state.
    pub state: JobState,
    /// Which try, from 1; 0 before the first.
    pub attempt: u32,
    /// When the last run started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How, when it ended.
    pub conclusion: Option<Arc<Conclusion>>,
}

/// What a job has written.
#[expect(clippy::large_enum_variant, reason = "there is one for each job in memory, and it is nearly always open")]
pub enum Book {
    /// It may still write, in this attempt.
    Open {
        /// The attempt.
        attempt: u32,
        /// Standard output.
        stdout: Log,
        /// Standard error.
        stderr: Log,
    },
    /// It has ended after so many attempts.
    Closed {
        /// The last attempt.
        attempt: u32,
        /// Standard output.
        stdout: Kept,
        /// Standard error.
        stderr: Kept,
    },
}

impl Book {
    /// The attempt that wrote it.
    pub fn attempt(&self) -> u32 {
        match self {
            Book::Open { attempt, .. } | Book::Closed { attempt, .. } => *attempt,
        }
    }

    /// What follows an offset of a stream.
    pub fn after(&self, stream: Stream, offset: u64) -> Piece {
        match (self, stream) {
            (Book::Open { stdout, .. }, Stream::Stdout) => stdout.after(offset),
            (Book::Open { stderr, .. }, Stream::Stderr) => stderr.after(offset),
            (Book::Closed { stdout, .. }, Stream::Stdout) => stdout.after(offset),
            (Book::Closed { stderr, .. }, Stream::Stderr) => stderr.after(offset),
        }
    }
}

/// A job in memory: waiting, running, or just looked up.
pub struct Job {
    /// What was taken.
    pub record: Record,
    /// Where it is; a change is also sent when it has written something.
    pub status: watch::Sender<Status>,
    /// Cancelled when somebody wants it to stop.
    pub stop: CancellationToken,
    book: Mutex<Book>,
    /// Whether the database knows of it.
    is_stored: AtomicBool,
    /// Its image, which stays as long as the job may need it.
    image: Mutex<Option<HeldImage>>,
}

impl Job {
    /// A job that has just been taken, or is waiting again after so many attempts.
    pub fn waiting(record: Record, attempt: u32, image: HeldImage) -> Job {
        let book = open_book(&record, attempt);
        let status = Status { state: JobState::Queued, attempt, started: None, ended: None, conclusion: None };
        Job::new(record, status, book, Some(image))
    }

    fn new(record: Record, status: Status, book: Book, image: Option<HeldImage>) -> Job {
        Job {
            record,
            status: watch::Sender::new(status),
            stop: CancellationToken::new(),
            book: Mutex::new(book),
            is_stored: AtomicBool::new(true),
            image: Mutex::new(image),
        }
    }

    /// A job that ended.
    pub fn ended(record: Record, status: Status, stdout: Kept, stderr: Kept) -> Job {
        let book = Book::Closed { attempt: status.attempt, stdout, stderr };
        Job::new(record, status, book, None)
    }

    /// Its id.
    pub fn id(&self) -> Uuid {
        self.record.id
    }

    /// Says that it is not stored before it ends, unless it lasts.
    pub fn put_off(&self) {
        self.is_stored.store(false, Ordering::Relaxed);
    }

    /// Says that it is stored now; returns whether it was before.
    pub fn mark_stored(&self) -> bool {
        self.is_stored.swap(true, Ordering::Relaxed)
    }

    /// What it has written.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an attempt wrote after an offset of a stream; nothing when the book is that of another attempt, which its
    /// status will tell at once.
    pub fn read(&self, stream: Stream, offset: u64, attempt: u32) -> Piece {
        let book = self.book();
        if book.attempt() == attempt { book.after(stream, offset) } else { Piece::Nothing }
    }

    /// Says that the next attempt starts now; returns its number.
    pub fn start(&self, now: Timestamp) -> u32 {
        let attempt = self.status.borrow().attempt + 1;
        *self.book() = open_book(&self.record, attempt);
        self.status.send_modify(|status| {
            status.state = JobState::Running;
            status.attempt = attempt;
            status.started = Some(now);
        });
        attempt
    }

    /// Says that it waits again.
    pub fn wait_again(&self) {
        self.status.send_modify(|status| status.state = JobState::Queued);
    }

    /// Takes what it wrote, and says so to those who follow.
    pub fn wrote(&self, stream: Stream, bytes: &[u8]) {
        if let Book::Open { stdout, stderr, .. } = &mut *self.book() {
            let log = if stream == Stream::Stdout { stdout } else { stderr };
            log.push(bytes);
        }
        if self.status.receiver_count() > 0 {
            self.status.send_modify(|_| ());
        }
    }

    /// Ends the book; what was written can still be read.
    pub fn close_book(&self) -> (Kept, Kept) {
        let mut book = self.book();
        if let Book::Open { attempt, stdout, stderr } = &mut *book {
            let stdout = std::mem::replace(stdout, Log::new(0)).finish();
            let stderr = std::mem::replace(stderr, Log::new(0)).finish();
            *book = Book::Closed { attempt: *attempt, stdout, stderr };
        }
        match &*book {
            Book::Closed { stdout, stderr, .. } => (stdout.clone(), stderr.clone()),
            Book::Open { .. } => (Kept::default(), Kept::default()),
        }
    }

    /// Says that it ended.
    pub fn end(&self, now: Timestamp, conclusion: Conclusion) {
        *self.image.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.status.send_modify(|status| {
            status.state = JobState::Ended;
            status.ended = Some(now);
            status.conclusion = Some(Arc::new(conclusion));
        });
    }
}

fn open_book(record: &Record, attempt: u32) -> Book {
    let kept_bytes_max = record.spec.limits.output_bytes;
    Book::Open { attempt, stdout: Log::new(kept_bytes_max), stderr: Log::new(kept_bytes_max) }
}

/// An output as it travels: text where it is text.
pub fn output(written: &Written, bytes: &[u8]) -> Output {
    let text = std::str::from_utf8(bytes).ok().map(str::to_owned);
    let base64 = text.is_none().then(|| STANDARD.encode(bytes));
    Output { text, base64, bytes: written.total_bytes, sha256: written.sha256.clone(), gap: written.gap }
}
