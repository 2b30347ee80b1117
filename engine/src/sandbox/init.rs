//! Pid 1 of a sandbox: prepares it, gives up every privilege, then waits for the one command that it will run.
//!
//! ```text
//! born ─▶ low priority when made ahead ─▶ control groups ─▶ network ─▶ mounts ─▶ host name
//!      ─▶ user namespace, ids, capabilities ─▶ descriptors ─▶ seccomp ─▶ Ready ─▶ Start ─▶ exec.rs
//! ```
//!
//! The user namespace comes after all others, so that the host's owns them: a command that regained capabilities
//! could still not mount or touch its network. Nothing here runs again after `Start`: a sandbox is used once.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Signal as DeathSignal, set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::thread::{CapabilitySet, set_name};

use crate::isolation::binds::{self, BindBirth};
use crate::isolation::mounts::RootError;
use crate::isolation::network::Uplink;
use crate::isolation::seccomp::Filter;
use crate::isolation::users::{self, Identity};
use crate::isolation::{capabilities, mounts, network};
use crate::sandbox::handshake::{InitReply, InitRequest, Start, message_buffer, receive, send};
use crate::sandbox::{descriptors, exec};
use crate::spec::{Frame, LayerId, Phases};
use crate::sys::{self, SysError, failed, in_one_line};

/// Niceness of a sandbox that is made ahead: it must not slow down the jobs that run.
const BACKGROUND_NICENESS: i32 = 15;

/// What pid 1 is given at birth.
pub(crate) struct Birth<'a> {
    pub(crate) terms: Terms<'a>,
    pub(crate) frame: Frame,
    /// The other end is the launcher's.
    pub(crate) control: OwnedFd,
    pub(crate) user_namespace: OwnedFd,
    pub(crate) id_map: OwnedFd,
    /// Version 1 only: one open `tasks` file a hierarchy.
    pub(crate) groups: Vec<OwnedFd>,
    /// For a step of a build, which has no zygote.
    pub(crate) step: Option<StepBirth>,
}

/// What a step of a build is given besides.
pub(crate) struct StepBirth {
    /// The folder of layers.
    pub(crate) layers: OwnedFd,
    /// The folder that takes what is changed.
    pub(crate) draft: OwnedFd,
    /// What is mounted in the root.
    pub(crate) mounts: BindBirth,
}

impl StepBirth {
    /// Its descriptors, and how it is put together again of those that take their places.
    fn take_apart(self) -> (Vec<OwnedFd>, impl FnOnce(&mut dyn Iterator<Item = OwnedFd>) -> Option<StepBirth>) {
        let BindBirth { mounts, caches, secrets } = self.mounts;
        let (count, has_secrets) = (caches.len(), secrets.is_some());
        let descriptors = [self.layers, self.draft].into_iter().chain(caches).chain(secrets).collect();
        let join = move |kept: &mut dyn Iterator<Item = OwnedFd>| {
            let (layers, draft) = (kept.next()?, kept.next()?);
            let caches = kept.take(count).collect();
            let secrets = if has_secrets { kept.next() } else { None };
            Some(StepBirth { layers, draft, mounts: BindBirth { mounts, caches, secrets } })
        };
        (descriptors, join)
    }
}

/// The plain part of it.
pub(crate) struct Terms<'a> {
    pub(crate) first_id: u32,
    pub(crate) in_background: bool,
    pub(crate) uplink: Option<Uplink>,
    pub(crate) filter: &'a Filter,
}

/// Lives the whole life of pid 1. Never returns: the process must not fall back into its parent's code.
pub(crate) fn live(birth: Birth<'_>) -> ! {
    // Without an answer the launcher sees the end of the conversation, and says so.
    let code = match answer(birth) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    sys::exit_now(code)
}

fn answer(birth: Birth<'_>) -> Result<(), SysError> {
    let mut all = vec![birth.control, birth.user_namespace, birth.id_map];
    let is_step = birth.step.is_some();
    let (of_step, join_step) = birth.step.map(StepBirth::take_apart).unzip();
    all.extend(of_step.into_iter().flatten());
    all.extend(birth.groups);
    let mut kept = descriptors::keep_only(all)?.into_iter();
    let (Some(control), Some(user_namespace), Some(id_map)) = (kept.next(), kept.next(), kept.next()) else {
        return Ok(());
    };
    let children = watch_children()?;
    let step = join_step.and_then(|join| join(&mut kept));
    let kept = Kept { user_namespace, id_map, groups: kept.collect(), step };
    match prepare(&birth.frame, &birth.terms, kept) {
        Ok((identity, phases)) => {
            send(&control, &InitReply::Ready { phases }, &[]).map_err(failed("answer", "the launcher"))?;
            let writable = birth.frame.writable.into_iter().map(|writable| writable.path);
            // Of a step, all can be full.
            let writable = writable.chain(is_step.then(|| "/".to_owned())).collect();
            Prepared { control, children, identity, writable }.serve()
        }
        Err(error) => {
            let retryable = !matches!(error, PrepareError::Root(RootError::User(_) | RootError::Mount { .. }));
            let failure = InitReply::Failed { reason: in_one_line(&error), retryable };
            send(&control, &failure, &[]).map_err(failed("answer", "the launcher"))
        }
    }
}

/// Why a sandbox could not be prepared.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error(transparent)]
    System(#[from] SysError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("could not install the seccomp filter")]
    Seccomp(#[from] crate::isolation::seccomp::SeccompError),
}

/// A sandbox that waits for its command.
pub(crate) struct Prepared {
    pub(crate) control: OwnedFd,
    /// Readable when a child died.
    pub(crate) children: OwnedFd,
    pub(crate) identity: Identity,
    pub(crate) writable: Vec<String>,
}

/// Reads off how long a phase took and starts the next one.
struct Stopwatch(Instant);

impl Stopwatch {
    fn lap_us(&mut self) -> u64 {
        let lap = self.0.elapsed();
        self.0 = Instant::now();
        u64::try_from(lap.as_micros()).unwrap_or(u64::MAX)
    }
}

/// The descriptors of a sandbox under preparation, after all others were closed.
struct Kept {
    user_namespace: OwnedFd,
    id_map: OwnedFd,
    groups: Vec<OwnedFd>,
    step: Option<StepBirth>,
}

fn prepare(frame: &Frame, birth: &Terms<'_>, kept: Kept) -> Result<(Identity, Phases), PrepareError> {
    let mut watch = Stopwatch(Instant::now());
    let mut phases = Phases::default();
    die_with_launcher()?;
    let _ = set_name(c"ampoule-init");
    if birth.in_background {
        set_niceness(BACKGROUND_NICENESS)?;
    }
    join_groups(&kept.groups)?;
    phases.cgroup_us = watch.lap_us();
    network::enter(birth.uplink.as_ref())?;
    phases.network_us = watch.lap_us();
    let is_step = kept.step.is_some();
    let mut sources = None;
    if let Some(StepBirth { layers, draft, mounts: wanted }) = &kept.step {
        let names: Vec<&str> = frame.layers.iter().map(LayerId::hex).collect();
        sources = Some(binds::collect(wanted, layers.as_fd(), kept.id_map.as_fd())?);
        mounts::enter_step_tree(layers.as_fd(), &names, draft.as_fd(), kept.id_map.as_fd())?;
    }
    let resolver = birth.uplink.as_ref().map(|uplink| uplink.resolver.as_str());
    let identity = mounts::enter_sandbox_root(frame, resolver, kept.id_map.as_fd(), birth.first_id, sources)?;
    // The launcher's own is 0; a command expects the usual one.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    nix::unistd::sethostname(&frame.hostname).map_err(failed("set", "the host name"))?;
    phases.mounts_us = watch.lap_us();
    nix::unistd::setsid().map_err(failed("start", "a session"))?;
    if birth.in_background {
        set_niceness(0)?;
    }
    give_up_privileges(&kept.user_namespace, &identity, is_step)?;
    // Whatever was open is closed *before* this process waits: it could be a namespace of another sandbox.
    drop(kept);
    phases.credentials_us = watch.lap_us();
    birth.filter.install()?;
    phases.seccomp_us = watch.lap_us();
    Ok((identity, phases))
}

/// The kernel ends this process when the launcher dies. Changing ids clears it, so it is asked for twice.
pub(crate) fn die_with_launcher() -> Result<(), SysError> {
    set_parent_process_death_signal(Some(DeathSignal::KILL)).map_err(failed("tie", "pid 1 to the launcher"))
}

fn set_niceness(niceness: i32) -> Result<(), SysError> {
    rustix::process::setpriority_process(None, niceness).map_err(failed("set", "the niceness"))
}

/// Moves this process, of one thread, into its control groups. Through `tasks`, not `cgroup.procs`: the latter
/// waits for all processors (5 to 22 ms).
pub(crate) fn join_groups(groups: &[OwnedFd]) -> Result<(), SysError> {
    for group in groups {
        rustix::io::write(group, b"0").map_err(failed("join", "a control group"))?;
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(failed("make", "a control group namespace"))
}

fn give_up_privileges(user_namespace: &OwnedFd, identity: &Identity, is_step: bool) -> Result<(), SysError> {
    setns(user_namespace, CloneFlags::CLONE_NEWUSER).map_err(failed("join", "the user namespace"))?;
    users::become_ids(identity.uid, identity.gid, &identity.groups)?;
    if is_step && identity.uid == 0 {
        capabilities::become_builder()?;
    } else {
        capabilities::keep_only(CapabilitySet::empty())?;
    }
    die_with_launcher()?;
    // No process of the sandbox may look into this one, which shares pages with the launcher.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("hide", "the memory of pid 1"))
}

/// Dead children are read from a descriptor, so that one wait covers them and the launcher's words.
fn watch_children() -> Result<OwnedFd, SysError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().map_err(failed("block", "SIGCHLD"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&signals, flags).map(OwnedFd::from).map_err(failed("watch", "SIGCHLD"))
}

impl Prepared {
    /// Waits for the command, runs it, and says how it ended.
    fn serve(self) -> Result<(), SysError> {
        let mut buffer = message_buffer();
        let mut badness = None;
        loop {
            match receive(&self.control, &mut buffer).map_err(failed("hear", "the launcher"))? {
                Some((InitRequest::Badness, mut descriptors)) => badness = descriptors.pop(),
                Some((InitRequest::Start(start), descriptors)) => {
                    return self.run(&start, badness, descriptors);
                }
                // A stop before the start: there is nothing to stop, and the launcher ends the process itself.
                Some((InitRequest::Stop, _)) => {}
                // The launcher is gone: nobody will ever want this sandbox.
                None => return Ok(()),
            }
        }
    }

    fn run(&self, start: &Start, badness: Option<OwnedFd>, descriptors: Vec<OwnedFd>) -> Result<(), SysError> {
        let reply = match exec::run(self, start, badness, descriptors) {
            Ok(finished) => InitReply::Finished(finished),
            Err(error) => InitReply::Failed { reason: in_one_line(&error), retryable: error.is_retryable() },
        };
        send(&self.control, &reply, &[]).map_err(failed("answer", "the launcher"))
    }
}

/// A C string of text that may not contain NUL, which the spec's check has made sure of.
pub(crate) fn c_string(text: &str) -> Result<CString, SysError> {
    CString::new(text).map_err(std::io::Error::from).map_err(failed("pass to the kernel", text))
}
