//! The launcher: the one privileged process, of one thread, that makes sandboxes and sees them end.
//!
//! It is a program of its own, `ampoule-launcher`, beside that of the service: a small one, since every sandbox begins
//! as a copy of its memory. It is started before the service has a thread, from a read-only descriptor of its file, and
//! hears nobody but the service. It parses nothing that a user wrote: commands pass through as they are, paths of layers are made
//! from digests. When the service is gone it ends all sandboxes, removes their control groups, and ends too.

mod caches;
pub(crate) mod egress;
mod events;
mod idle;
mod layers;
mod lending;
mod lifecycle;
mod live;
mod steps;
mod work;
mod zygotes;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use egress::Egress;
pub use egress::EgressTerms;
use lifecycle::Launcher;
pub use work::WorkTimes;

use crate::isolation::cgroup::{self, CgroupError};
use crate::isolation::seccomp::{self, SeccompError};
use crate::isolation::users;
use crate::sandbox::handshake::{Reply, message_buffer, pair, receive, send};
use crate::sandbox::place::Places;
use crate::sys::{self, MountAttributes, SysError, failed, in_one_line};

/// The launcher's program, in the folder of the service's.
const NAME: &str = "ampoule-launcher";
/// How long a former launcher may take to end.
const FORMER_TIME: Duration = Duration::from_secs(30);
/// How often it is looked whether it has.
const FORMER_POLL: Duration = Duration::from_millis(2);
/// Folder of unpacked layers, below the state folder.
pub(crate) const LAYERS_FOLDER: &str = "layers";
/// Folder of what builds keep for the next ones, below the state folder.
pub(crate) const CACHES_FOLDER: &str = "caches";

/// What a launcher is told when it starts, and nobody can change later.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LauncherConfig {
    /// The state folder; it must belong to root or to the service's user, and be closed to all others.
    pub state: PathBuf,
    /// User id of the service.
    pub uid: u32,
    /// Group id of the service.
    pub gid: u32,
    /// Sandboxes that are made ahead, over all images.
    pub warm_sandboxes: u32,
    /// Sandboxes at a time, those made ahead included.
    pub sandboxes_max: u32,
    /// How long work on images may take.
    pub work_times: WorkTimes,
    /// How sandboxes reach the world, if any may.
    pub egress: Option<EgressTerms>,
}

/// A launcher that runs, from the service's side.
#[derive(Debug)]
pub struct LauncherHandle {
    pub(crate) socket: OwnedFd,
    pub(crate) process: Child,
}

/// Why there is no launcher.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The caller is not root.
    #[error("the launcher needs root\nhint: start the service as root; it gives its own privileges up at once")]
    NotRoot,
    /// The launcher's program is not where it belongs.
    #[error("there is no launcher at {}: {problem}\nhint: install `{NAME}` in the folder of `ampoule`", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be used.
        problem: std::io::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    System(#[from] SysError),
    /// The launcher came up and said why it cannot work.
    #[error("the launcher cannot work: {0}\nhint: `ampoule doctor` tells what is missing")]
    Refused(String),
    /// The launcher ended before its first word.
    #[error("the launcher ended before it was ready")]
    Died,
}

/// Starts the launcher. To be called as root and before the process has a second thread.
///
/// # Errors
/// Why it cannot start, or cannot work on this machine.
pub fn start(config: &LauncherConfig) -> Result<LauncherHandle, StartError> {
    if !rustix::process::geteuid().is_root() {
        return Err(StartError::NotRoot);
    }
    let (ours, theirs) = pair().map_err(failed("open", "the launcher's socket"))?;
    let program = find_program()?;
    let config =
        serde_json::to_string(config).map_err(std::io::Error::from).map_err(failed("write", "the launcher's terms"))?;
    let process = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(NAME)
        .arg(config)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .spawn()
        .map_err(failed("start", "the launcher"))?;
    match receive::<Reply>(&ours, &mut message_buffer()).map_err(failed("hear", "the launcher"))? {
        Some((Reply::Started(Ok(())), _)) => Ok(LauncherHandle { socket: ours, process }),
        Some((Reply::Started(Err(reason)), _)) => Err(StartError::Refused(reason)),
        _ => Err(StartError::Died),
    }
}

/// The launcher's program through a mount that cannot be written to: whatever reaches it from a sandbox (as in
/// `#!/proc/self/exe`) cannot change it.
fn find_program() -> Result<OwnedFd, StartError> {
    let own = std::env::current_exe().map_err(failed("find", "this program"))?;
    let path = own.with_file_name(NAME);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = match open_tree(CWD, &path, flags) {
        Ok(tree) => tree,
        Err(error) => return Err(StartError::Missing { path, problem: error.into() }),
    };
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, id_map: None };
    sys::mount_setattr(tree.as_fd(), attributes).map_err(failed("make read-only", "the launcher's program"))?;
    Ok(tree)
}

/// What the launcher's program does. Its terms are its one argument, the service's socket its standard input.
#[expect(clippy::print_stderr, reason = "whoever starts it by hand must learn why it does nothing")]
pub fn main() -> ! {
    let config = std::env::args_os().nth(1).and_then(|config| serde_json::from_slice(config.as_encoded_bytes()).ok());
    // Without the service's socket and terms there is nobody to work for.
    let (Some(config), Ok(socket)) = (config, sys::inherited_descriptor(0)) else {
        eprintln!("{NAME} is started by `ampoule serve`, and does nothing by itself");
        std::process::exit(1)
    };
    std::process::exit(serve(&config, &socket))
}

fn serve(config: &LauncherConfig, socket: &OwnedFd) -> i32 {
    let launcher = match Launcher::prepare(config, socket) {
        Ok(launcher) => launcher,
        Err(error) => {
            // The service is gone when it cannot hear this.
            let _ = send(socket, &Reply::Started(Err(in_one_line(&error))), &[]);
            return 1;
        }
    };
    match launcher.run() {
        Ok(()) => 0,
        Err(error) => {
            report(&error);
            1
        }
    }
}

/// The launcher has no log of its own; its standard error is the service's.
#[expect(clippy::print_stderr, reason = "the launcher has no other voice once the service cannot be reached")]
fn report(error: &SysError) {
    eprintln!("ampoule launcher: {}", in_one_line(error));
}

/// Why a launcher cannot work here.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error(transparent)]
    System(#[from] SysError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error("the state folder {path} {problem}")]
    State { path: PathBuf, problem: String },
}

impl Launcher {
    fn prepare(config: &LauncherConfig, socket: &OwnedFd) -> Result<Launcher, PrepareError> {
        let service = rustix::io::fcntl_dupfd_cloexec(socket, 3).map_err(failed("keep", "the service's socket"))?;
        // In a session of its own it is not reached by what a terminal sends to the service.
        let _ = nix::unistd::setsid();
        let _ = rustix::thread::set_name(c"ampoule-launch");
        rustix::process::umask(Mode::empty());
        check_state(config)?;
        let most = raise_descriptor_limit();
        let sandboxes_max = config.sandboxes_max.min(most / DESCRIPTORS_PER_SANDBOX / PLACES_PER_SANDBOX);
        let layers = open_kept(&config.state, LAYERS_FOLDER)?;
        let caches = open_kept(&config.state, CACHES_FOLDER)?;
        wait_for_former(&layers)?;
        let root = cgroup::Hierarchy::discover()?.root(&instance_name(&config.state))?;
        root.sweep()?;
        let image_namespace = users::namespace(0, users::IMAGE_FIRST_ID)?;
        let mut launcher = Launcher::new(
            service,
            (layers, caches),
            image_namespace,
            Places::new(root, sandboxes_max.max(1) * PLACES_PER_SANDBOX),
            seccomp::compile(seccomp::Profile::Job)?,
            seccomp::compile(seccomp::Profile::Worker)?,
            config.warm_sandboxes.min(sandboxes_max / 2) as usize,
        )?;
        launcher.egress = Egress::new(config.egress.clone(), &instance_name(&config.state))?;
        launcher.work = work::Work::new(config.work_times);
        launcher.sweep_layers()?;
        send(&launcher.service, &Reply::Started(Ok(())), &[]).map_err(failed("answer", "the service"))?;
        Ok(launcher)
    }
}

/// Places for each sandbox that may live: while one lives, the last one in its row is taken down, and rests.
const PLACES_PER_SANDBOX: u32 = 3;
/// Descriptors that a sandbox takes of the launcher at most: sockets, namespaces, control group files.
const DESCRIPTORS_PER_SANDBOX: u32 = 32;

/// The name of this instance's control groups: two services with different state folders do not meet.
pub(crate) fn instance_name(state: &Path) -> String {
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("ampoule-{hex}")
}

fn check_state(config: &LauncherConfig) -> Result<(), PrepareError> {
    use std::os::unix::fs::MetadataExt;
    let refuse = |problem: String| PrepareError::State { path: config.state.clone(), problem };
    let metadata =
        std::fs::symlink_metadata(&config.state).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if !metadata.is_dir() {
        return Err(refuse("is not a folder".to_owned()));
    }
    if metadata.uid() != 0 && metadata.uid() != config.uid {
        return Err(refuse(format!(
            "belongs to user {}, not to root or the service's user {}",
            metadata.uid(),
            config.uid
        )));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refuse(format!(
            "has mode {:o}; others must not enter\nhint: chmod 0700",
            metadata.mode() & 0o7777
        )));
    }
    Ok(())
}

/// A folder of the launcher's own in the state folder.
fn open_kept(state: &Path, name: &str) -> Result<OwnedFd, SysError> {
    let path = state.join(name);
    match rustix::fs::mkdir(&path, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(failed("make folder", path.display().to_string())(error)),
    }
    // The service reads the names, to know what there is, and cannot enter any.
    let names_only = Mode::RWXU | Mode::RGRP | Mode::ROTH;
    rustix::fs::chmod(&path, names_only).map_err(failed("open for listing", path.display().to_string()))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed("open", path.display().to_string()))?;
    let stat = rustix::fs::fstat(&folder).map_err(failed("look at", path.display().to_string()))?;
    if stat.st_uid != 0 {
        let foreign = std::io::Error::other(format!("it belongs to user {}", stat.st_uid));
        return Err(failed("trust", path.display().to_string())(foreign));
    }
    Ok(folder)
}

/// Waits for the end of a launcher that a killed service left, and of its sandboxes: each holds the folder of layers, and
/// takes down what a new one would make.
fn wait_for_former(layers: &OwnedFd) -> Result<(), SysError> {
    let began = Instant::now();
    loop {
        match rustix::fs::flock(layers, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < FORMER_TIME => std::thread::sleep(FORMER_POLL),
            locked => return locked.map_err(failed("wait for", "the launcher before this one")),
        }
    }
}

/// Takes as many descriptors as the machine allows, and says how many those are.
pub fn raise_descriptor_limit() -> u32 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // What cannot be raised stays as it is, and is what is returned.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.map_or(u32::MAX, |limit| u32::try_from(limit).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_state_folders_have_two_names() {
        assert_ne!(instance_name(Path::new("/a")), instance_name(Path::new("/b")));
        assert_eq!(instance_name(Path::new("/a")).len(), "ampoule-".len() + 8);
    }
}
