//! One run of a job: launch, drain both outputs to their end, hold the bounds that the service keeps, take the
//! artifacts, and say how it ended. Nothing here knows the queue or the database.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ampoule_client::types::{Artifact, Ending, EndingKind, Figures, Phases, Stream};
use ampoule_engine::runtime::{Input, Pending, Running, Runtime, RuntimeError};
use ampoule_engine::spec::{self, Artifacts, Exit, SandboxSpec, StopReason};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, oneshot};

use super::artifacts;
use super::job::{Job, failed_ending, plain_ending};
use crate::problem::chain;

/// How long after the sandbox's own clock the service's clock stops it; and longer when artifacts are collected.
const BACKUP: Duration = Duration::from_secs(2);
const COLLECT_MAX: Duration = Duration::from_secs(60);
/// How long a sandbox may take to end after it was told to, before it is given up.
const END_MAX: Duration = Duration::from_secs(15);
/// How long outputs and artifacts may take to end after their sandbox has.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// First and largest buffer for reading an output, in bytes.
const BUFFER_BYTES: (usize, usize) = (4096, 64 * 1024);

/// How a run went.
#[derive(Debug)]
pub struct Ran {
    /// Why it ended.
    pub ending: Ending,
    /// What it used; `None` when it never started.
    pub figures: Option<Figures>,
    /// How its launch went; `None` when it never started.
    pub phases: Option<Phases>,
    /// The files that were kept.
    pub artifacts: Vec<Artifact>,
    /// Whether the runtime is gone: no other run can go better.
    pub is_runtime_gone: bool,
}

/// Runs a job once. What it writes goes into the job's book while it runs.
pub async fn run(runtime: &dyn Runtime, job: &Job, sandbox: SandboxSpec, input: Input, folder: &Path) -> Ran {
    let wanted = sandbox.command.artifacts.clone();
    let collect = if wanted.globs.is_empty() { Duration::ZERO } else { COLLECT_MAX };
    let wall = Duration::from_millis(sandbox.limits.wall_time_ms) + BACKUP + collect;
    match runtime.launch(sandbox, input).await {
        Ok(running) => follow(job, running, wall, wanted, folder).await,
        Err(error) => {
            // A runtime that is gone may be back after a restart; a spec that it refuses stays refused.
            let retryable = !matches!(error, RuntimeError::Spec(_));
            let is_runtime_gone = matches!(error, RuntimeError::Gone);
            Ran { is_runtime_gone, ..unstarted(failed_ending(retryable, chain(&error))) }
        }
    }
}

/// A run that never started.
pub fn unstarted(ending: Ending) -> Ran {
    Ran { ending, figures: None, phases: None, artifacts: Vec::new(), is_runtime_gone: false }
}

async fn follow(job: &Job, running: Running, wall: Duration, wanted: Artifacts, folder: &Path) -> Ran {
    let Running { stdout, stderr, stdin, artifacts, exit, stop } = running;
    // Jobs bring their input as a file; nobody would write to a pipe.
    drop(stdin);
    let output = Output { job, total_bytes: AtomicU64::new(0), over: Notify::new() };
    let drained =
        async { tokio::join!(drain(stdout, Stream::Stdout, &output), drain(stderr, Stream::Stderr, &output)) };
    let received = receive(artifacts, wanted, folder.to_owned());
    let (exited, exited_later) = oneshot::channel();
    let ended = async {
        let exit = wait(job, exit, stop.as_ref(), wall, &output.over).await;
        // The receiver below lives as long as this future.
        let _ = exited.send(());
        (exit, Instant::now())
    };
    let rest = within(DRAIN_MAX, exited_later, async { tokio::join!(drained, received) });
    let ((exit, end), rest) = tokio::join!(ended, rest);
    conclude(exit, end.elapsed(), rest, output.is_over())
}

/// Waits for `work`, but no longer than `time` after `started` fired.
async fn within<T>(time: Duration, started: oneshot::Receiver<()>, work: impl Future<Output = T>) -> Option<T> {
    let late = async {
        // The sender fires or is dropped with the run; both start the clock.
        let _ = started.await;
        tokio::time::sleep(time).await;
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = late => None,
    }
}

/// What both outputs share.
struct Output<'a> {
    job: &'a Job,
    total_bytes: AtomicU64,
    over: Notify,
}

impl Output<'_> {
    fn wrote(&self, stream: Stream, bytes: &[u8]) {
        self.total_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.job.wrote(stream, bytes);
        if self.is_over() {
            self.over.notify_one();
        }
    }

    fn is_over(&self) -> bool {
        self.total_bytes.load(Ordering::Relaxed) > self.job.record.spec.limits.output_total_bytes
    }
}

/// Reads an output to its end.
async fn drain(mut pipe: pipe::Receiver, stream: Stream, output: &Output<'_>) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES.0);
    while pipe.read_buf(&mut buffer).await? > 0 {
        output.wrote(stream, &buffer);
        if buffer.len() == buffer.capacity() && buffer.capacity() < BUFFER_BYTES.1 {
            buffer = Vec::with_capacity(BUFFER_BYTES.1);
        }
        buffer.clear();
    }
    Ok(())
}

type Received = (Vec<Artifact>, Option<String>);
/// How both outputs and the artifacts came out.
type Rest = ((std::io::Result<()>, std::io::Result<()>), Received);

/// Takes the artifacts, and says what went wrong with them.
async fn receive(pipe: Option<pipe::Receiver>, wanted: Artifacts, folder: PathBuf) -> Received {
    let Some(pipe) = pipe else { return (Vec::new(), None) };
    // The tar comes after the command ended; a thread is taken only then.
    if let Err(error) = pipe.readable().await {
        return (Vec::new(), Some(error.to_string()));
    }
    let work = move || {
        let tar = File::from(pipe.into_blocking_fd().map_err(|error| error.to_string())?);
        let (artifacts, outcome) = artifacts::receive(tar, &wanted, &folder);
        Ok::<_, String>((artifacts, outcome.err().map(|error| chain(&error))))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(received)) => received,
        Ok(Err(problem)) => (Vec::new(), Some(problem)),
        Err(panicked) => (Vec::new(), Some(panicked.to_string())),
    }
}

/// Why there is no exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoExit {
    Gone,
    Late,
}

/// Waits for the exit, and asks for it where the service has to.
async fn wait(
    job: &Job,
    mut exit: Pending<'static, Result<Exit, RuntimeError>>,
    stop: &(dyn Fn(StopReason) + Send + Sync),
    wall: Duration,
    over: &Notify,
) -> Result<Exit, NoExit> {
    let reason = tokio::select! {
        biased;
        exit = &mut exit => return exit.map_err(|_| NoExit::Gone),
        () = job.stop.cancelled() => StopReason::Cancelled,
        () = over.notified() => StopReason::OutputLimit,
        () = tokio::time::sleep(wall) => StopReason::WallLimit,
    };
    stop(reason);
    match tokio::time::timeout(END_MAX, exit).await {
        Ok(exit) => exit.map_err(|_| NoExit::Gone),
        Err(_) => Err(NoExit::Late),
    }
}

fn conclude(exit: Result<Exit, NoExit>, drain: Duration, rest: Option<Rest>, is_over: bool) -> Ran {
    let exit = match exit {
        Ok(exit) => exit,
        Err(NoExit::Late) => return unstarted(failed_ending(true, "the sandbox did not end when it was told to")),
        Err(NoExit::Gone) => {
            let ending = failed_ending(true, "the launcher ended while the job ran");
            return Ran { is_runtime_gone: true, ..unstarted(ending) };
        }
    };
    let phases = Some(phases(&exit.phases, drain));
    let figures = Some(figures(&exit.figures));
    let Some(((stdout, stderr), (mut artifacts, problem))) = rest else {
        let ending = failed_ending(true, "the output did not end with the sandbox");
        return Ran { figures, phases, ..unstarted(ending) };
    };
    artifacts.extend(exit.left_out.into_iter().map(|file| Artifact {
        path: file.path,
        size_bytes: file.size_bytes,
        sha256: None,
        left_out: Some(file.reason),
    }));
    let ending = match stdout.and(stderr) {
        Err(error) => failed_ending(true, format!("the output could not be read: {error}")),
        // Who writes too much has ended by that, even if the command was quicker than the order to stop.
        Ok(()) if is_over && matches!(exit.ending, spec::Ending::Exited(_) | spec::Ending::Signaled(_)) => {
            ending(spec::Ending::OutputLimit, exit.detail)
        }
        Ok(()) => ending(exit.ending, exit.detail),
    };
    Ran { figures, phases, artifacts, ..unstarted(with_detail(ending, problem)) }
}

fn with_detail(mut ending: Ending, more: Option<String>) -> Ending {
    ending.detail = match (ending.detail, more) {
        (Some(detail), Some(more)) => Some(format!("{detail}\n{more}")),
        (detail, more) => detail.or(more),
    };
    ending
}

fn ending(ending: spec::Ending, detail: String) -> Ending {
    let detail = Some(detail).filter(|detail| !detail.is_empty());
    let plain = |kind| plain_ending(kind, detail.clone());
    match ending {
        spec::Ending::Exited(code) => Ending { exit_code: Some(code), ..plain(EndingKind::Exited) },
        spec::Ending::Signaled(signal) => Ending { signal: Some(signal), ..plain(EndingKind::Signaled) },
        spec::Ending::CpuLimit => plain(EndingKind::CpuLimit),
        spec::Ending::WallLimit => plain(EndingKind::WallLimit),
        spec::Ending::OutOfMemory => plain(EndingKind::OutOfMemory),
        spec::Ending::PidsLimit => plain(EndingKind::PidsLimit),
        spec::Ending::OutputLimit => plain(EndingKind::OutputLimit),
        spec::Ending::DiskLimit => plain(EndingKind::DiskLimit),
        spec::Ending::Cancelled => plain(EndingKind::Cancelled),
        spec::Ending::Failed { reason, retryable } => with_detail(failed_ending(retryable, reason), detail),
    }
}

fn figures(figures: &spec::Figures) -> Figures {
    Figures {
        wall_us: figures.wall_us,
        cpu_user_us: figures.cpu_user_us,
        cpu_system_us: figures.cpu_system_us,
        memory_peak_bytes: figures.memory_peak_bytes,
        oom_kills: figures.oom_kills,
        pids_refused: figures.pids_refused,
        throttled_us: figures.throttled_us,
    }
}

fn phases(phases: &spec::Phases, drain: Duration) -> Phases {
    Phases {
        warm: phases.warm,
        clone_us: phases.clone_us,
        cgroup_us: phases.cgroup_us,
        network_us: phases.network_us,
        mounts_us: phases.mounts_us,
        credentials_us: phases.credentials_us,
        seccomp_us: phases.seccomp_us,
        exec_us: phases.exec_us,
        drain_us: u64::try_from(drain.as_micros()).unwrap_or(u64::MAX),
    }
}
