//! One sandbox, as the launcher holds it: what it stands in, its pid 1, and the command that it was given.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::sandbox::handshake::{InitRequest, Start, send};
use crate::sandbox::launcher::steps::Draft;
use crate::sandbox::place::Place;
use crate::sandbox::verdict::Evidence;
use crate::spec::{Frame, Limits, Phases, SandboxSpec, StopReason};
use crate::sys::{SysError, failed};

/// How long pid 1 may take to bring a stopped command to its end before all is killed.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Least time between two looks at the processor time of a sandbox.
const CPU_LOOK_MIN: Duration = Duration::from_millis(5);

/// A command and what goes with it.
pub(super) struct Launch {
    pub(super) token: u64,
    pub(super) spec: SandboxSpec,
    pub(super) has_files: bool,
    pub(super) has_artifacts: bool,
    pub(super) descriptors: Vec<OwnedFd>,
    /// A sandbox that was lent and is given back, to be used.
    pub(super) lent: Option<u64>,
}

/// Who hears pid 1 of a sandbox, and decides what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Launcher,
    /// It is lent.
    Service,
    /// It is lent, and was asked for.
    Recalled,
}

/// A sandbox that is being prepared, waits for its command, or runs it.
pub(super) struct Sandbox {
    pub(super) frame: Frame,
    /// Those that are in force.
    pub(super) limits: Limits,
    pub(super) holder: Holder,
    pub(super) place: Place,
    /// Its address on the bridge, when it has a way out.
    pub(super) address: Option<Ipv4Addr>,
    pub(super) zygote: u64,
    pub(super) control: OwnedFd,
    /// Once the zygote has made it, and until it is dead.
    pub(super) process: Option<OwnedFd>,
    pub(super) pid: i32,
    pub(super) undelivered: Option<Launch>,
    pub(super) phases: Phases,
    pub(super) is_prepared: bool,
    /// Its end has been told; only its process is left, for a moment.
    pub(super) is_spent: bool,
    /// Kept past the end, so that taking the namespaces down is not waited for.
    pub(super) held: Vec<OwnedFd>,
    pub(super) run: Option<Run>,
    /// What it changes of its root, when it is a step of a build.
    pub(super) draft: Option<Draft>,
}

/// A command in its sandbox.
pub(super) struct Run {
    pub(super) token: u64,
    pub(super) evidence: Evidence,
    pub(super) began: Instant,
    pub(super) cpu_time: Duration,
    pub(super) cpu_cores: f64,
    pub(super) look_at: Instant,
    pub(super) kill_at: Option<Instant>,
}

impl Run {
    /// A run that begins now, with so much processor time.
    pub(super) fn new(token: u64, cpu_time_ms: u64, cpu_milli: u32) -> Run {
        let cpu_time = Duration::from_millis(cpu_time_ms);
        let cpu_cores = f64::from(cpu_milli.max(1)) / 1000.0;
        let began = Instant::now();
        let look_at = began + cpu_time.div_f64(cpu_cores).max(CPU_LOOK_MIN);
        Run { token, evidence: Evidence::default(), began, cpu_time, cpu_cores, look_at, kill_at: None }
    }
}

impl Sandbox {
    /// One whose pid 1 is still to be made, and that has nothing to do yet.
    pub(super) fn unborn(frame: Frame, limits: Limits, place: Place, zygote: u64, control: OwnedFd) -> Sandbox {
        Sandbox {
            frame,
            limits,
            holder: Holder::Launcher,
            place,
            address: None,
            zygote,
            control,
            process: None,
            pid: 0,
            undelivered: None,
            phases: Phases::default(),
            is_prepared: false,
            is_spent: false,
            held: Vec::new(),
            run: None,
            draft: None,
        }
    }

    /// Asks pid 1 to end its command; what does not follow is killed after a grace.
    pub(super) fn stop(&mut self, reason: StopReason) {
        let Some(run) = &mut self.run else { return };
        if run.evidence.word.is_some() || run.evidence.stop.is_some() {
            return;
        }
        run.evidence.stop = Some(reason);
        // Until it has its command, pid 1 does not act on this; the lack of a grace ends it then.
        let asked = self.is_prepared && send(&self.control, &InitRequest::Stop, &[]).is_ok();
        run.kill_at = Some(Instant::now() + if asked { STOP_GRACE } else { Duration::ZERO });
    }

    /// Takes in the process that the zygote made, and sends it the command that waits for it.
    pub(super) fn born(&mut self, pid: i32, process: OwnedFd) -> Result<(), SysError> {
        self.pid = pid;
        self.process = Some(process);
        let path = format!("/proc/{pid}/oom_score_adj");
        let badness = File::options().write(true).open(&path).map_err(failed("open", path))?;
        send(&self.control, &InitRequest::Badness, &[badness.as_fd()]).map_err(failed("equip", "a sandbox"))?;
        self.deliver()
    }

    /// Whether it could take a command at once.
    pub(super) fn is_idle(&self) -> bool {
        self.is_unused() && self.is_prepared && self.process.is_some() && self.holder == Holder::Launcher
    }

    /// Whether it has had no command yet.
    pub(super) fn is_unused(&self) -> bool {
        self.run.is_none() && !self.is_spent
    }

    /// Gives the sandbox its command, now or as soon as it is born.
    pub(super) fn command(&mut self, launch: Launch) -> Result<(), SysError> {
        let limits = &launch.spec.limits;
        self.run = Some(Run::new(launch.token, limits.cpu_time_ms, limits.cpu_milli));
        self.undelivered = Some(launch);
        self.deliver()
    }

    /// Sends a command that waits to pid 1, which may still be at work on the sandbox.
    fn deliver(&mut self) -> Result<(), SysError> {
        if self.process.is_none() {
            return Ok(());
        }
        let Some(launch) = self.undelivered.take() else { return Ok(()) };
        let Launch { spec: SandboxSpec { command, limits, .. }, has_files, has_artifacts, descriptors, .. } = launch;
        let start = InitRequest::Start(Box::new(Start::new(command, &limits, has_files, has_artifacts)));
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        send(&self.control, &start, &descriptors).map_err(failed("command", "a sandbox"))
    }

    /// Ends the sandbox when its grace or its processor time is over; when it must be looked at next.
    pub(super) fn keep_time(&mut self, now: Instant) -> Result<Option<Instant>, SysError> {
        let Some(run) = &mut self.run else { return Ok(None) };
        if now >= run.look_at {
            let used = self.place.group.cpu_time_us().map(Duration::from_micros);
            // A counter that cannot be read must not let a job run on.
            let left = run.cpu_time.saturating_sub(used.unwrap_or(run.cpu_time));
            if left.is_zero() && !run.evidence.cpu_limit {
                run.evidence.cpu_limit = true;
                run.kill_at = Some(now);
            }
            run.look_at = now + left.div_f64(run.cpu_cores).max(CPU_LOOK_MIN);
        }
        let due = run.kill_at.is_some_and(|at| now >= at);
        if let (true, Some(process)) = (due, &self.process) {
            // A process whose share is used up does not die before its group gets time again. What cannot be
            // lifted only makes the end come later.
            let _ = self.place.group.lift_cpu_limit();
            kill_process(process.as_fd())?;
            run.kill_at = None;
        }
        Ok(Some(run.kill_at.map_or(run.look_at, |at| at.min(run.look_at))))
    }
}

/// Opens the namespaces of pid 1 that are slow to take down; one that cannot be opened is taken down at the exit.
pub(super) fn hold_namespaces(pid: i32) -> Vec<OwnedFd> {
    let open = |name: &str| std::fs::File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from);
    ["mnt", "ipc", "net"].into_iter().filter_map(|name| open(name).ok()).collect()
}

/// Ends a process and takes it in.
pub(super) fn end_process(process: BorrowedFd<'_>) -> Result<(), SysError> {
    kill_process(process)?;
    reap_process(process)
}

/// Takes in a process that is dead or about to die.
pub(super) fn reap_process(process: BorrowedFd<'_>) -> Result<(), SysError> {
    reap_status(process).map(drop)
}

/// Takes in a process that has ended, and says whether it was killed.
pub(super) fn reap_status(process: BorrowedFd<'_>) -> Result<bool, SysError> {
    let status = waitid(WaitId::PidFd(process), WaitIdOptions::EXITED);
    let status = status.map_err(failed("reap", "a process of a sandbox"))?;
    Ok(status.is_some_and(|status| status.terminating_signal() == Some(Signal::KILL.as_raw())))
}

pub(super) fn kill_process(process: BorrowedFd<'_>) -> Result<(), SysError> {
    match pidfd_send_signal(process, Signal::KILL) {
        // Dead already.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(failed("kill", "a sandbox")(error)),
    }
}
