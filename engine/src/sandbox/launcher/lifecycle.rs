//! The life of a sandbox, from the launcher's side.
//!
//! ```text
//!            make                 Ready             dispatch
//! (zygote) ────────▶ Preparing ──────────▶ Warm ──────────────▶ Running ─▶ gone: conclude, then tear down
//!                        └───────────── dispatch, when none is warm ──▶┘
//! ```
//!
//! A command may be sent to a sandbox that is still being prepared: it waits in its socket.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::isolation::seccomp::Filter;
use crate::sandbox::handshake::{
    InitReply, InitRequest, Reply, Start, ZygoteReply, ZygoteRequest, message_buffer, pair, send,
};
use crate::sandbox::launcher::events::{Poller, Source};
use crate::sandbox::launcher::layers::Worker;
use crate::sandbox::place::{Place, PlaceError, Places};
use crate::sandbox::pool::Demand;
use crate::sandbox::verdict::{Evidence, decide};
use crate::sandbox::zygote;
use crate::spec::{Ending, Exit, Figures, Frame, LayerId, Limits, Phases, SandboxSpec, StopReason};
use crate::sys::{self, Fork, SysError, failed, in_one_line};

/// Most images with a zygote; the one that was not used for longest makes room.
const ZYGOTES_MAX: usize = 16;
/// How long pid 1 may take to bring a stopped command to its end before all is killed.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Least time between two looks at the processor time of a sandbox.
const CPU_LOOK_MIN: Duration = Duration::from_millis(5);
/// Most sandboxes that are gone but not torn down.
const TEARDOWNS_MAX: usize = 64;
/// How long nothing must have been dispatched before work is done that can wait.
pub(super) const QUIET: Duration = Duration::from_millis(2);

/// Everything the launcher knows.
pub(crate) struct Launcher {
    pub(crate) service: OwnedFd,
    pub(super) poller: Poller,
    pub(super) layers: OwnedFd,
    pub(super) image_namespace: OwnedFd,
    pub(super) places: Places,
    job_filter: Filter,
    pub(super) worker_filter: Filter,
    zygotes: HashMap<u64, Zygote>,
    sandboxes: HashMap<u64, Sandbox>,
    numbers: HashMap<u64, u64>,
    pub(super) workers: HashMap<u64, Worker>,
    demand: Demand,
    teardowns: VecDeque<Teardown>,
    next_number: u64,
    last_dispatch: Instant,
    pub(super) warm_hits: u64,
    pub(super) cold_starts: u64,
    pub(super) census_told: (u64, u64, u64, u64),
    /// Nothing is left to do until somebody speaks.
    pub(super) is_settled: bool,
    pub(super) buffer: Vec<u8>,
}

struct Zygote {
    layers: Vec<LayerId>,
    control: OwnedFd,
    pidfd: OwnedFd,
    used: Instant,
}

struct Sandbox {
    frame: Frame,
    place: Place,
    zygote: u64,
    control: OwnedFd,
    /// Once the zygote has made it.
    process: Option<OwnedFd>,
    pid: i32,
    /// Lets pid 1 say whom the kernel shall kill first when memory ends.
    badness: Option<OwnedFd>,
    undelivered: Option<Launch>,
    phases: Phases,
    is_prepared: bool,
    /// Kept past the end, so that taking the namespaces down is not waited for.
    held: Vec<OwnedFd>,
    run: Option<Run>,
}

/// A command in its sandbox.
struct Run {
    token: u64,
    evidence: Evidence,
    cpu_time: Duration,
    cpu_cores: f64,
    look_at: Instant,
    kill_at: Option<Instant>,
}

/// What is left of a sandbox when its end has been told.
struct Teardown {
    place: Place,
    _held: Vec<OwnedFd>,
}

/// A command and what goes with it.
pub(super) struct Launch {
    pub(super) token: u64,
    pub(super) spec: SandboxSpec,
    pub(super) has_files: bool,
    pub(super) has_artifacts: bool,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Launcher {
    pub(crate) fn new(
        service: OwnedFd,
        layers: OwnedFd,
        image_namespace: OwnedFd,
        places: Places,
        job_filter: Filter,
        worker_filter: Filter,
        warm_sandboxes: usize,
    ) -> Result<Launcher, SysError> {
        let poller = Poller::new()?;
        poller.add(&service, Source::Service)?;
        Ok(Launcher {
            service,
            poller,
            layers,
            image_namespace,
            places,
            job_filter,
            worker_filter,
            zygotes: HashMap::new(),
            sandboxes: HashMap::new(),
            numbers: HashMap::new(),
            workers: HashMap::new(),
            demand: Demand::new(warm_sandboxes),
            teardowns: VecDeque::new(),
            next_number: 1,
            last_dispatch: Instant::now(),
            warm_hits: 0,
            cold_starts: 0,
            census_told: (0, 0, 0, 0),
            is_settled: false,
            buffer: message_buffer(),
        })
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn reply(&self, reply: &Reply) -> Result<(), SysError> {
        send(&self.service, reply, &[]).map_err(failed("answer", "the service"))
    }

    /// Gives a command its sandbox. Whatever is in the way becomes its ending.
    pub(super) fn dispatch(&mut self, launch: Launch) -> Result<(), SysError> {
        self.last_dispatch = Instant::now();
        self.demand.note(&launch.spec.frame, &launch.spec.limits);
        let token = launch.token;
        match self.start(launch) {
            Ok(()) => Ok(()),
            Err(failure) => {
                let ending = Ending::Failed { reason: in_one_line(&failure), retryable: failure.is_retryable() };
                self.tell_exit(token, ending, String::new(), Figures::default(), Phases::default())
            }
        }
    }

    fn start(&mut self, launch: Launch) -> Result<(), StartFailure> {
        let warm = self.find_warm(&launch.spec.frame);
        let number = match warm {
            Some(number) => number,
            None => self.make(&launch.spec.frame, &launch.spec.limits, false)?,
        };
        let sandbox = self.sandboxes.get_mut(&number).ok_or(StartFailure::Lost)?;
        if warm.is_some() {
            self.warm_hits += 1;
            sandbox.phases = Phases { warm: true, ..Phases::default() };
            sandbox.place.group.limit(&launch.spec.limits)?;
            sandbox.place.group.begin()?;
        } else {
            self.cold_starts += 1;
        }
        sandbox.command(launch)?;
        if let Some(run) = &sandbox.run {
            self.numbers.insert(run.token, number);
        }
        Ok(())
    }

    fn find_warm(&self, frame: &Frame) -> Option<u64> {
        let is_free = |sandbox: &Sandbox| sandbox.run.is_none() && sandbox.is_prepared && sandbox.frame == *frame;
        self.sandboxes.iter().find(|(_, sandbox)| is_free(sandbox)).map(|(number, _)| *number)
    }

    /// Asks the frame's zygote for a sandbox, which has these limits from its first moment on.
    fn make(&mut self, frame: &Frame, limits: &Limits, in_background: bool) -> Result<u64, StartFailure> {
        let zygote = self.zygote_for(&frame.layers)?;
        let mut place = self.take_place(in_background)?;
        place.group.limit(limits)?;
        place.group.begin()?;
        let (control, theirs) = pair().map_err(failed("open", "a sandbox's socket"))?;
        let number = self.number();
        self.poller.add(&control, Source::Sandbox(number))?;
        let version_2 = place.group.birth_descriptor().is_some();
        let first_id = place.first_id;
        let request = ZygoteRequest::Prepare { number, frame: frame.clone(), first_id, version_2, in_background };
        let mut descriptors = vec![theirs.as_fd(), place.user_namespace.as_fd(), place.id_map.as_fd()];
        descriptors.extend(place.group.join_descriptors().iter().map(AsFd::as_fd));
        descriptors.extend(place.group.birth_descriptor());
        let control_of_zygote = self.zygotes.get(&zygote).ok_or(StartFailure::Lost)?.control.as_fd();
        send(control_of_zygote, &request, &descriptors).map_err(failed("ask", "a zygote"))?;
        let sandbox = Sandbox {
            frame: frame.clone(),
            place,
            zygote,
            control,
            process: None,
            pid: 0,
            badness: None,
            undelivered: None,
            phases: Phases::default(),
            is_prepared: false,
            held: Vec::new(),
            run: None,
        };
        self.sandboxes.insert(number, sandbox);
        Ok(number)
    }

    /// A place; for a command also one that is still being torn down, or that of a warm sandbox of another frame.
    fn take_place(&mut self, in_background: bool) -> Result<Place, StartFailure> {
        loop {
            match self.places.take() {
                Err(PlaceError::Full(_)) if self.tear_one_down() => {}
                Err(PlaceError::Full(most)) if !in_background => {
                    let idle = self.sandboxes.iter().find(|(_, sandbox)| sandbox.run.is_none() && sandbox.is_prepared);
                    let number = idle.map(|(number, _)| *number).ok_or(PlaceError::Full(most))?;
                    self.discard(number)?;
                }
                other => return Ok(other?),
            }
        }
    }

    /// Ends a sandbox that has no command, at once.
    fn discard(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get(&number) else { return Ok(()) };
        if let Some(process) = &sandbox.process {
            kill_process(process.as_fd())?;
            waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED).map_err(failed("reap", "a sandbox"))?;
        }
        self.bury(number)
    }

    fn zygote_for(&mut self, layers: &[LayerId]) -> Result<u64, StartFailure> {
        if let Some((number, zygote)) = self.zygotes.iter_mut().find(|(_, zygote)| zygote.layers == layers) {
            zygote.used = Instant::now();
            return Ok(*number);
        }
        if self.zygotes.len() >= ZYGOTES_MAX {
            let oldest = self.zygotes.iter().min_by_key(|(_, zygote)| zygote.used).map(|(number, _)| *number);
            if let Some(number) = oldest {
                self.dismiss_zygote(number)?;
            }
        }
        self.fork_zygote(layers.to_vec())
    }

    fn fork_zygote(&mut self, layers: Vec<LayerId>) -> Result<u64, StartFailure> {
        let (control, theirs) = pair().map_err(failed("open", "a zygote's socket"))?;
        let folder = self.layers.try_clone().map_err(failed("pass on", "the folder of layers"))?;
        match sys::fork_into(0, libc::SIGCHLD as u64, None).map_err(failed("fork", "a zygote"))? {
            Fork::Child => zygote::live(theirs, folder, &layers, &self.job_filter),
            Fork::Parent { pidfd, .. } => {
                let number = self.number();
                self.poller.add(&control, Source::Zygote(number))?;
                self.zygotes.insert(number, Zygote { layers, control, pidfd, used: Instant::now() });
                Ok(number)
            }
        }
    }

    /// Lets a zygote go; sandboxes that it made live on, those it has not made yet fail.
    pub(super) fn dismiss_zygote(&mut self, number: u64) -> Result<(), SysError> {
        let Some(zygote) = self.zygotes.remove(&number) else { return Ok(()) };
        kill_process(zygote.pidfd.as_fd())?;
        waitid(WaitId::PidFd(zygote.pidfd.as_fd()), WaitIdOptions::EXITED).map_err(failed("reap", "a zygote"))?;
        let unborn: Vec<u64> = self
            .sandboxes
            .iter()
            .filter(|(_, sandbox)| sandbox.zygote == number && sandbox.process.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in unborn {
            self.refuse(number, "the zygote of the image is gone".to_owned())?;
        }
        Ok(())
    }

    /// What a zygote says; `descriptor` is that of the process it made.
    pub(super) fn hear_zygote(
        &mut self,
        zygote: u64,
        reply: ZygoteReply,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), SysError> {
        match (reply, descriptor) {
            (ZygoteReply::Ready, _) => Ok(()),
            (ZygoteReply::NotReady { reason }, _) => {
                let waiting: Vec<u64> = self.sandboxes_of(zygote);
                for number in waiting {
                    self.refuse(number, reason.clone())?;
                }
                Ok(())
            }
            (ZygoteReply::Cloned { number, pid, clone_us }, Some(process)) => self.born(number, pid, process, clone_us),
            (ZygoteReply::Cloned { number, .. }, None) => {
                self.refuse(number, "a sandbox came without its descriptor".to_owned())
            }
            (ZygoteReply::Failed { number, reason }, _) => self.refuse(number, reason),
        }
    }

    fn sandboxes_of(&self, zygote: u64) -> Vec<u64> {
        let of_it = self.sandboxes.iter().filter(|(_, sandbox)| sandbox.zygote == zygote && sandbox.process.is_none());
        of_it.map(|(number, _)| *number).collect()
    }

    fn born(&mut self, number: u64, pid: i32, process: OwnedFd, clone_us: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else {
            // It was given up in the meantime.
            kill_process(process.as_fd())?;
            waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED).map_err(failed("reap", "a sandbox"))?;
            return Ok(());
        };
        self.poller.add(&process, Source::Process(number))?;
        sandbox.pid = pid;
        if !sandbox.phases.warm {
            sandbox.phases.clone_us = clone_us;
        }
        sandbox.process = Some(process);
        let path = format!("/proc/{pid}/oom_score_adj");
        let badness = std::fs::File::options().write(true).open(&path).map_err(failed("open", path))?;
        sandbox.badness = Some(OwnedFd::from(badness));
        sandbox.deliver()
    }

    /// A sandbox that never came to be.
    fn refuse(&mut self, number: u64, reason: String) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Ok(()) };
        match &mut sandbox.run {
            Some(run) => run.evidence.word = Some(Err((reason, true))),
            None => self.demand.forget(&sandbox.frame.clone()),
        }
        self.conclude(number)
    }

    /// What pid 1 of a sandbox says.
    pub(super) fn hear_init(&mut self, number: u64, reply: InitReply) {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return };
        match (reply, &mut sandbox.run) {
            (InitReply::Ready { phases }, run) => {
                sandbox.is_prepared = true;
                sandbox.held = hold_namespaces(sandbox.pid);
                if run.is_some() {
                    sandbox.phases = Phases { clone_us: sandbox.phases.clone_us, ..phases };
                }
            }
            (InitReply::Failed { reason, retryable }, Some(run)) => run.evidence.word = Some(Err((reason, retryable))),
            (InitReply::Finished(finished), Some(run)) => {
                sandbox.phases.exec_us = finished.exec_us;
                run.evidence.word = Some(Ok(finished));
            }
            // A frame that cannot be prepared is not tried again before somebody asks for it.
            (InitReply::Failed { .. } | InitReply::Finished(_), None) => self.demand.forget(&sandbox.frame.clone()),
        }
    }

    pub(super) fn control_of(&self, number: u64) -> Option<BorrowedFd<'_>> {
        self.sandboxes.get(&number).map(|sandbox| sandbox.control.as_fd())
    }

    pub(super) fn control_of_zygote(&self, number: u64) -> Option<BorrowedFd<'_>> {
        self.zygotes.get(&number).map(|zygote| zygote.control.as_fd())
    }

    /// The sandbox's pid 1 is dead, and so is everything in it.
    pub(super) fn died(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get(&number) else { return Ok(()) };
        if let Some(process) = &sandbox.process {
            waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED).map_err(failed("reap", "a sandbox"))?;
        }
        self.conclude(number)
    }

    /// Tells how a sandbox ended, and puts what is left of it aside.
    fn conclude(&mut self, number: u64) -> Result<(), SysError> {
        if let Some(sandbox) = self.sandboxes.get_mut(&number)
            && let Some(mut run) = sandbox.run.take()
        {
            let phases = sandbox.phases;
            let mut figures = Figures::default();
            match sandbox.place.group.usage() {
                Ok(usage) => {
                    run.evidence.oom_kills = usage.oom_kills;
                    run.evidence.pids_refused = usage.pids_refused;
                    figures = Figures {
                        wall_us: 0,
                        cpu_user_us: usage.cpu_user_us,
                        cpu_system_us: usage.cpu_system_us,
                        memory_peak_bytes: usage.memory_peak_bytes,
                        oom_kills: usage.oom_kills,
                        pids_refused: usage.pids_refused,
                        throttled_us: usage.throttled_us,
                    };
                }
                Err(error) => run.evidence.word = Some(Err((in_one_line(&error), true))),
            }
            let mut detail = String::new();
            if let Some(Ok(finished)) = &run.evidence.word {
                figures.wall_us = finished.wall_us;
                detail.clone_from(&finished.detail);
            }
            self.numbers.remove(&run.token);
            self.tell_exit(run.token, decide(&run.evidence), detail, figures, phases)?;
        }
        self.bury(number)
    }

    fn tell_exit(
        &self,
        token: u64,
        ending: Ending,
        detail: String,
        figures: Figures,
        phases: Phases,
    ) -> Result<(), SysError> {
        self.reply(&Reply::Exit { token, exit: Exit { ending, detail, figures, phases } })
    }

    /// Puts what is left of a dead sandbox aside for when there is nothing else to do.
    fn bury(&mut self, number: u64) -> Result<(), SysError> {
        if let Some(Sandbox { place, held, .. }) = self.sandboxes.remove(&number) {
            self.teardowns.push_back(Teardown { place, _held: held });
        }
        if self.teardowns.len() > TEARDOWNS_MAX {
            self.tear_one_down();
        }
        Ok(())
    }

    /// Takes one dead sandbox down; says whether there was one.
    pub(super) fn tear_one_down(&mut self) -> bool {
        let Some(Teardown { place, _held: held }) = self.teardowns.pop_front() else { return false };
        drop(held);
        if let Err(error) = self.places.give_back(place) {
            super::report(&SysError {
                call: "reset",
                subject: "a sandbox's place".to_owned(),
                source: std::io::Error::other(in_one_line(&error)),
            });
        }
        true
    }

    /// Starts one sandbox that is missing by the plan, or ends one that is too many; says whether it did.
    pub(super) fn adjust_pool(&mut self) -> bool {
        let missing = self.demand.plan().find_map(|(hot, share)| {
            (self.idle_of(&hot.frame) < share).then(|| (hot.frame.clone(), hot.limits.clone()))
        });
        if let Some((frame, limits)) = missing {
            if self.make(&frame, &limits, true).is_err() {
                self.demand.forget(&frame);
            }
            return true;
        }
        let extra = self.sandboxes.iter().find(|(_, sandbox)| {
            let share = self.demand.plan().find(|(hot, _)| hot.frame == sandbox.frame).map_or(0, |(_, share)| share);
            sandbox.run.is_none() && sandbox.is_prepared && self.idle_of(&sandbox.frame) > share
        });
        let extra = extra.map(|(number, _)| *number);
        extra.is_some_and(|number| self.discard(number).is_ok())
    }

    fn idle_of(&self, frame: &Frame) -> usize {
        self.sandboxes.values().filter(|sandbox| sandbox.run.is_none() && sandbox.frame == *frame).count()
    }

    /// Asks pid 1 to end its command; what does not follow is killed after a grace.
    pub(super) fn stop(&mut self, token: u64, reason: StopReason) {
        let number = self.numbers.get(&token).copied();
        let Some(sandbox) = number.and_then(|number| self.sandboxes.get_mut(&number)) else { return };
        let Some(run) = &mut sandbox.run else { return };
        if run.evidence.word.is_some() || run.evidence.stop.is_some() {
            return;
        }
        run.evidence.stop = Some(reason);
        // Until it has its command, pid 1 does not act on this; the grace ends it then.
        let asked = sandbox.is_prepared && send(&sandbox.control, &InitRequest::Stop, &[]).is_ok();
        run.kill_at = Some(Instant::now() + if asked { STOP_GRACE } else { Duration::ZERO });
    }

    /// Does what is due by the clock, and says when the next thing is.
    pub(super) fn keep_time(&mut self) -> Result<Option<Instant>, SysError> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for sandbox in self.sandboxes.values_mut() {
            let Some(due) = sandbox.keep_time(now)? else { continue };
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        Ok(next)
    }

    /// Whether work that can wait may be done: no command runs, or none was started for a while.
    pub(super) fn is_quiet(&self) -> bool {
        self.numbers.is_empty() || self.last_dispatch.elapsed() >= QUIET
    }

    /// Sandboxes with a command, and without one.
    pub(super) fn count(&self) -> (u64, u64) {
        let live = self.numbers.len();
        (live as u64, (self.sandboxes.len() - live) as u64)
    }

    /// Whether a command runs on this layer.
    pub(super) fn is_in_use(&self, layer: &LayerId) -> bool {
        self.sandboxes.values().any(|sandbox| sandbox.run.is_some() && sandbox.frame.layers.contains(layer))
    }

    /// Ends everything idle that stands on this layer.
    pub(super) fn let_go_of(&mut self, layer: &LayerId) -> Result<(), SysError> {
        self.demand.forget_where(|frame| frame.layers.contains(layer));
        let on_it = |sandbox: &Sandbox| sandbox.run.is_none() && sandbox.frame.layers.contains(layer);
        let idle: Vec<u64> =
            self.sandboxes.iter().filter(|(_, sandbox)| on_it(sandbox)).map(|(number, _)| *number).collect();
        for number in idle {
            self.discard(number)?;
        }
        let zygotes: Vec<u64> = self
            .zygotes
            .iter()
            .filter(|(_, zygote)| zygote.layers.contains(layer))
            .map(|(number, _)| *number)
            .collect();
        for number in zygotes {
            self.dismiss_zygote(number)?;
        }
        Ok(())
    }

    /// Ends everything, and removes all control groups.
    pub(super) fn end_all(mut self) -> Result<(), SysError> {
        let zygotes: Vec<u64> = self.zygotes.keys().copied().collect();
        for number in zygotes {
            // The service is gone: nobody hears how its sandboxes ended.
            let _ = self.dismiss_zygote(number);
        }
        for sandbox in self.sandboxes.values() {
            if let Some(process) = &sandbox.process {
                kill_process(process.as_fd())?;
                waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED).map_err(failed("reap", "a sandbox"))?;
            }
        }
        for worker in self.workers.values() {
            kill_process(worker.process.as_fd())?;
            waitid(WaitId::PidFd(worker.process.as_fd()), WaitIdOptions::EXITED).map_err(failed("reap", "a worker"))?;
        }
        drop((self.sandboxes, self.workers, self.teardowns));
        self.places
            .remove()
            .map_err(|error| failed("remove", "control groups")(std::io::Error::other(in_one_line(&error))))
    }
}

/// Why a command did not get its sandbox.
#[derive(Debug, thiserror::Error)]
enum StartFailure {
    #[error(transparent)]
    System(#[from] SysError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("could not apply the limits")]
    Limits(#[from] crate::isolation::cgroup::CgroupError),
    #[error("the sandbox was lost while it was made")]
    Lost,
}

impl StartFailure {
    /// A limit that this machine cannot apply will not be applied the next time either.
    fn is_retryable(&self) -> bool {
        !matches!(self, StartFailure::Limits(_))
    }
}

impl Sandbox {
    /// Gives the sandbox its command, now or as soon as it is born.
    fn command(&mut self, launch: Launch) -> Result<(), SysError> {
        let limits = &launch.spec.limits;
        let cpu_time = Duration::from_millis(limits.cpu_time_ms);
        let cpu_cores = f64::from(limits.cpu_milli) / 1000.0;
        let look_at = Instant::now() + cpu_time.div_f64(cpu_cores).max(CPU_LOOK_MIN);
        let token = launch.token;
        self.run = Some(Run { token, evidence: Evidence::default(), cpu_time, cpu_cores, look_at, kill_at: None });
        self.undelivered = Some(launch);
        self.deliver()
    }

    /// Sends a command that waits to pid 1, which may still be at work on the sandbox.
    fn deliver(&mut self) -> Result<(), SysError> {
        let Some(badness) = &self.badness else { return Ok(()) };
        let Some(launch) = self.undelivered.take() else { return Ok(()) };
        let Launch { spec: SandboxSpec { command, limits, .. }, has_files, has_artifacts, descriptors, .. } = launch;
        let start = InitRequest::Start(Box::new(Start {
            argv: command.argv,
            env: command.env,
            cwd: command.cwd,
            artifacts: command.artifacts,
            wall_time_ms: limits.wall_time_ms,
            open_files: limits.open_files,
            file_bytes: limits.file_bytes,
            has_files,
            has_artifacts,
        }));
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(badness).chain(&descriptors).map(AsFd::as_fd).collect();
        send(&self.control, &start, &descriptors).map_err(failed("command", "a sandbox"))
    }

    /// Ends the sandbox when its grace or its processor time is over; when it must be looked at next.
    fn keep_time(&mut self, now: Instant) -> Result<Option<Instant>, SysError> {
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
            kill_process(process.as_fd())?;
            run.kill_at = None;
        }
        Ok(Some(run.kill_at.map_or(run.look_at, |at| at.min(run.look_at))))
    }
}

/// Opens the namespaces of pid 1 that are slow to take down; one that cannot be opened is taken down at the exit.
fn hold_namespaces(pid: i32) -> Vec<OwnedFd> {
    let open = |name: &str| std::fs::File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from);
    ["mnt", "ipc", "net"].into_iter().filter_map(|name| open(name).ok()).collect()
}

fn kill_process(process: BorrowedFd<'_>) -> Result<(), SysError> {
    match pidfd_send_signal(process, Signal::KILL) {
        // Dead already.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(failed("kill", "a sandbox")(error)),
    }
}
