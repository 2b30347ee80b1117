//! How the service starts and stops.
//!
//! Start, as one thread: the state folder is made and locked, the sockets are bound, the launcher is started, all
//! privileges are dropped. Then threads: the former life is mended, and requests are served. Stop, on SIGTERM or
//! SIGINT: no more connections, running jobs may finish for a while, waiting ones stay stored. When the launcher is
//! gone nothing can run any more: what ran is stored as failed, and the process ends with `EXIT_GONE`.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ampoule_engine::image::store::UNPACKS_AT_ONCE;
use ampoule_engine::isolation::users::become_user;
use ampoule_engine::sandbox::client::Client;
use ampoule_engine::sandbox::launcher::{self, LauncherConfig, LauncherHandle, StartError};
use ampoule_plugins::Policies;
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::app::{App, OpenError};
use crate::config::Config;
use crate::jobs::Jobs;
use crate::listen::{self, Bound, ListenError, Serving};
use crate::problem::{chain, sentence};
use crate::router::{Entrance, router};
use crate::state::{State, StateError};
use crate::telemetry;

/// The exit code when the launcher is gone: whoever supervises the service starts it again.
pub const EXIT_GONE: u8 = 70;
/// How long interrupted jobs may take to end.
const INTERRUPT_TIME: Duration = Duration::from_secs(20);
/// How long answers may take to leave after the last job ended.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// How often it is looked whether something has ended.
const LOOK: Duration = Duration::from_millis(10);
/// Users that the service becomes when none is named: the first that exists.
const USERS: [&str; 2] = ["ampoule", "nobody"];

/// Why the service does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no such user.
    #[error("there is no user `{0}`\nhint: make it with `useradd --system`, or choose another --user")]
    NoUser(String),
    /// The state folder cannot be used.
    #[error("could not {action} the state folder {folder}")]
    Folder {
        /// What was tried.
        action: &'static str,
        /// The folder.
        folder: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The state folder is something else.
    #[error("{folder} is not a state folder of ampoule, and not empty\nhint: choose an empty folder with --state")]
    Foreign {
        /// The folder.
        folder: PathBuf,
    },
    /// Another service uses the state folder.
    #[error("another service uses {folder}\nhint: stop it, or choose another --state")]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// Nobody can be listened to.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The launcher does not start.
    #[error(transparent)]
    Launcher(#[from] StartError),
    /// Privileges could not be dropped.
    #[error("could not drop privileges")]
    Drop(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The policies cannot be loaded.
    #[error("could not load the policies of {file}")]
    Policies {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: ampoule_plugins::LoadError,
    },
    /// The state cannot be opened.
    #[error(transparent)]
    State(#[from] StateError),
    /// What the routes work with cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Something else of the system.
    #[error("could not {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn system<E: Into<Box<dyn std::error::Error + Send + Sync>>>(action: &'static str) -> impl FnOnce(E) -> ServeError {
    move |source| ServeError::System { action, source: source.into() }
}

/// Why the service stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    Asked,
    LauncherGone,
}

/// Runs the service until it is asked to stop. To be called before the process has a second thread.
pub fn serve(config: Config) -> ExitCode {
    telemetry::start(config.log_format);
    match prepare(&config).and_then(|prepared| start_threads(&config, prepared)) {
        Ok(Stopped::Asked) => ExitCode::SUCCESS,
        Ok(Stopped::LauncherGone) => ExitCode::from(EXIT_GONE),
        Err(error) => {
            let (cause, hint) = sentence(&error);
            tracing::error!(cause, hint, "the service does not run");
            ExitCode::FAILURE
        }
    }
}

/// What is made while there are privileges and only one thread.
struct Prepared {
    lock: File,
    bound: Bound,
    launcher: LauncherHandle,
}

fn prepare(config: &Config) -> Result<Prepared, ServeError> {
    let is_root = rustix::process::geteuid().is_root();
    let owner = if is_root { Some(service_user(config.user.as_deref())?) } else { None };
    let (uid, gid) = owner.unwrap_or((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    make_state_folder(&config.state, owner)?;
    let lock = lock_state_folder(&config.state, owner)?;
    // Each connection takes some, and each sandbox that the launcher lends.
    launcher::raise_descriptor_limit();
    let bound = listen::bind(&config.socket, config.tcp.as_ref(), owner)?;
    let launcher = launcher::start(&LauncherConfig {
        state: config.state.clone(),
        uid,
        gid,
        warm_sandboxes: config.warm,
        sandboxes_max: config.concurrency.saturating_add(config.warm).saturating_add(1 + UNPACKS_AT_ONCE),
        // The kernel counts processor time in whole seconds.
        work_times: launcher::WorkTimes {
            cpu_seconds: config.work_cpu_time.as_secs().max(1),
            wall_seconds: config.work_time.as_secs().max(1),
        },
        egress: config.network.egress.clone(),
    })?;
    if is_root {
        become_user(uid, gid).map_err(|error| ServeError::Drop(Box::new(error)))?;
    }
    Ok(Prepared { lock, bound, launcher })
}

/// User and group of the service: the one that is named, or the first of the usual ones.
fn service_user(name: Option<&str>) -> Result<(u32, u32), ServeError> {
    let look = |name: &str| nix::unistd::User::from_name(name).ok().flatten();
    let user = match name {
        Some(name) => look(name).ok_or_else(|| ServeError::NoUser(name.to_owned()))?,
        None => USERS.iter().find_map(|name| look(name)).ok_or_else(|| ServeError::NoUser(USERS.join("` or `")))?,
    };
    Ok((user.uid.as_raw(), user.gid.as_raw()))
}

/// Makes the folder, or takes over one that is empty or was ours before: closed to all but its owner.
fn make_state_folder(folder: &Path, owner: Option<(u32, u32)>) -> Result<(), ServeError> {
    let failed = |action| move |source| ServeError::Folder { action, folder: folder.to_owned(), source };
    if !folder.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make"))?;
    }
    let is_ours = folder.join("state.db").exists() || folder.join("lock").exists();
    let is_empty = std::fs::read_dir(folder).map_err(failed("read"))?.next().is_none();
    if !is_ours && !is_empty {
        return Err(ServeError::Foreign { folder: folder.to_owned() });
    }
    let metadata = std::fs::metadata(folder).map_err(failed("look at"))?;
    if let Some((uid, gid)) = owner.filter(|(uid, _)| *uid != metadata.uid()) {
        chown(folder, Some(uid), Some(gid)).map_err(failed("hand over"))?;
    }
    if metadata.mode() & 0o777 != 0o700 {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(failed("close"))?;
    }
    Ok(())
}

fn lock_state_folder(folder: &Path, owner: Option<(u32, u32)>) -> Result<File, ServeError> {
    let failed = |action| move |source| ServeError::Folder { action, folder: folder.to_owned(), source };
    let path = folder.join("lock");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(&path).map_err(failed("lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(ServeError::Locked { folder: folder.to_owned() }),
        Err(error) => return Err(failed("lock")(error.into())),
    }
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).map_err(failed("hand over"))?;
    }
    Ok(file)
}

fn start_threads(config: &Config, prepared: Prepared) -> Result<Stopped, ServeError> {
    let policies = match &config.policies {
        None => Policies::empty(),
        Some(file) => Policies::load(file, &config.state.join("policies-cache"))
            .map_err(|source| ServeError::Policies { file: file.clone(), source })?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads as usize)
        .thread_name("ampoule")
        .enable_all()
        .build()
        .map_err(system("start threads"))?;
    let stopped = runtime.block_on(run(config, prepared, Arc::new(policies)));
    // A request that is still at blocking work is not waited for.
    runtime.shutdown_timeout(ANSWER_TIME);
    stopped
}

async fn run(config: &Config, prepared: Prepared, policies: Arc<Policies>) -> Result<Stopped, ServeError> {
    let Prepared { lock, bound, launcher } = prepared;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("hear signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("hear signals"))?;
    let client = Client::connect(launcher).map_err(system("reach the launcher"))?;
    let state = State::open(&config.state)?;
    let draining = Arc::new(AtomicBool::new(false));
    let app = App::open(config, &state, Arc::new(client.clone()), policies, draining.clone()).await?;
    let (jobs, builds) = (app.system.jobs.clone(), app.builds.clone());
    let (unix_routes, tcp_routes) = (router(app.clone(), Entrance::Unix), router(app, Entrance::Tcp));
    let (serving, served) =
        listen::serve(bound, unix_routes, tcp_routes, config.connections_max).map_err(system("serve"))?;
    let served = tokio::spawn(served);
    jobs.dispatch();
    tracing::info!(socket = %config.socket.path.display(), tcp = ?config.tcp.as_ref().map(|tcp| tcp.listen), "listening");
    let stopped = tokio::select! {
        _ = terminate.recv() => Stopped::Asked,
        _ = interrupt.recv() => Stopped::Asked,
        () = client.gone() => Stopped::LauncherGone,
        ended = served => return Err(broken(ended)),
    };
    draining.store(true, Ordering::Relaxed);
    serving.stop_accepting();
    tokio::join!(stop(&jobs, stopped, config.drain), builds.leave());
    jobs.leave();
    finish_answers(&serving).await;
    if let Err(error) = client.leave().await {
        tracing::error!(error = chain(&error), "the launcher did not leave");
    }
    // It may stay when its folder is not ours; the next start removes it then.
    let _ = std::fs::remove_file(&config.socket.path);
    drop(lock);
    tracing::info!(reason = ?stopped, "stopped");
    Ok(stopped)
}

fn broken(ended: Result<std::io::Result<()>, tokio::task::JoinError>) -> ServeError {
    let source: Box<dyn std::error::Error + Send + Sync> = match ended {
        Ok(Ok(())) => "a listener ended".into(),
        Ok(Err(error)) => error.into(),
        Err(error) => error.into(),
    };
    ServeError::System { action: "serve on", source }
}

/// Lets running jobs finish for a while, and then stops them. With the launcher gone they end by themselves.
async fn stop(jobs: &Jobs, stopped: Stopped, drain: Duration) {
    jobs.close();
    let (waiting, running) = jobs.count();
    tracing::info!(reason = ?stopped, running, waiting, "stopping");
    let patience = if stopped == Stopped::Asked { drain } else { INTERRUPT_TIME };
    if !until(patience, || jobs.is_idle()).await {
        jobs.interrupt();
        let is_idle = until(INTERRUPT_TIME, || jobs.is_idle()).await;
        tracing::warn!(is_idle, "running jobs were stopped");
    }
}

/// Lets the last answers leave, and then ends all connections.
async fn finish_answers(serving: &Serving) {
    until(ANSWER_TIME, || serving.connections() == 0).await;
    serving.shutdown();
}

async fn until(time: Duration, is_so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + time;
    while !is_so() {
        if Instant::now() >= end {
            return false;
        }
        sleep(LOOK).await;
    }
    true
}
