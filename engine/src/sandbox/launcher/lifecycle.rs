//! The life of a sandbox, from the launcher's side.
//!
//! ```text
//!            make                 Ready             lend
//! (zygote) ────────▶ Preparing ──────────▶ Warm ─────────▶ Lent ─▶ used by the service, or given back (lending.rs)
//!                        │                  └─ dispatch ─▶ Running ─▶ gone: conclude, then tear down
//!                        └──── dispatch, when none is warm ──▶┘
//! ```
//!
//! A command may be sent to a sandbox that is still being prepared: it waits in its socket.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::isolation::cgroup::CgroupError;
use crate::isolation::network::Uplink;
use crate::isolation::seccomp::Filter;
use crate::sandbox::handshake::{InitReply, Reply, ZygoteRequest, message_buffer, pair, send};
use crate::sandbox::launcher::egress::{Egress, EgressError};
use crate::sandbox::launcher::events::{Poller, Source};
use crate::sandbox::launcher::idle::Teardown;
use crate::sandbox::launcher::live::{Holder, Launch, Sandbox, end_process, hold_namespaces, reap_process};
use crate::sandbox::launcher::work::{Work, Worker};
use crate::sandbox::launcher::zygotes::Zygote;
use crate::sandbox::place::{Place, PlaceError, Places};
use crate::sandbox::pool::Demand;
use crate::sandbox::verdict::{self, Evidence, decide};
use crate::spec::{Ending, Exit, Figures, Frame, Limits, Network, Phases, StopReason};
use crate::sys::{SysError, failed, in_one_line};

/// Most commands that wait for a place: the service sends no more than there are places, so that few ever do.
const WAITING_MAX: usize = 4096;

/// Everything the launcher knows.
pub(crate) struct Launcher {
    pub(crate) service: OwnedFd,
    pub(super) poller: Poller,
    pub(super) layers: OwnedFd,
    pub(super) caches: OwnedFd,
    pub(super) image_namespace: OwnedFd,
    pub(super) places: Places,
    pub(super) egress: Egress,
    pub(super) job_filter: Filter,
    pub(super) worker_filter: Filter,
    pub(super) zygotes: HashMap<u64, Zygote>,
    pub(super) sandboxes: HashMap<u64, Sandbox>,
    pub(super) numbers: HashMap<u64, u64>,
    pub(super) workers: HashMap<u64, Worker>,
    pub(super) work: Work,
    pub(super) demand: Demand,
    pub(super) teardowns: VecDeque<Teardown>,
    /// Commands for which there is no place yet.
    pub(super) waiting: VecDeque<Launch>,
    next_number: u64,
    pub(super) last_dispatch: Instant,
    pub(super) warm_hits: u64,
    pub(super) cold_starts: u64,
    pub(super) census_told: (u64, u64, u64, u64),
    /// Nothing is left to do until somebody speaks.
    pub(super) is_settled: bool,
    pub(super) buffer: Vec<u8>,
}

impl Launcher {
    pub(crate) fn new(
        service: OwnedFd,
        (layers, caches): (OwnedFd, OwnedFd),
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
            caches,
            image_namespace,
            places,
            egress: Egress::default(),
            job_filter,
            worker_filter,
            zygotes: HashMap::new(),
            sandboxes: HashMap::new(),
            numbers: HashMap::new(),
            workers: HashMap::new(),
            work: Work::default(),
            demand: Demand::new(warm_sandboxes),
            teardowns: VecDeque::new(),
            waiting: VecDeque::new(),
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
        match send(&self.service, reply, &[]) {
            // The service is gone, which the loop hears next.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(failed("answer", "the service")),
        }
    }

    /// Gives a command its sandbox, or has it wait for a place. Whatever else is in the way becomes its ending.
    pub(super) fn dispatch(&mut self, launch: Launch) -> Result<(), SysError> {
        self.last_dispatch = Instant::now();
        self.demand.note(&launch.spec.frame, &launch.spec.limits);
        let has_place = launch.lent.is_some() || self.waiting.is_empty();
        if has_place { self.try_dispatch(launch).map(drop) } else { self.wait_for_place(launch) }
    }

    /// Tries again for commands that wait for a place.
    pub(super) fn dispatch_waiting(&mut self) -> Result<(), SysError> {
        while let Some(launch) = self.waiting.pop_front() {
            if !self.try_dispatch(launch)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// False when the command has to wait, as the first in its row.
    fn try_dispatch(&mut self, launch: Launch) -> Result<bool, SysError> {
        let token = launch.token;
        let started = match self.sandbox_for(&launch) {
            // Sandboxes that were told to have ended are still on their way out.
            Err(StartFailure::Place(PlaceError::Full(_))) if self.waiting.len() < WAITING_MAX => {
                self.waiting.push_front(launch);
                return Ok(false);
            }
            Ok(number) => self.start(number, launch),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = started {
            self.numbers.remove(&token);
            let ending = Ending::Failed { reason: in_one_line(&failure), retryable: failure.is_retryable() };
            self.tell_unstarted(token, ending)?;
        }
        Ok(true)
    }

    fn wait_for_place(&mut self, launch: Launch) -> Result<(), SysError> {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(launch);
            return Ok(());
        }
        let reason = format!("{WAITING_MAX} commands wait for a sandbox");
        self.tell_unstarted(launch.token, Ending::Failed { reason, retryable: true })
    }

    pub(super) fn tell_unstarted(&self, token: u64, ending: Ending) -> Result<(), SysError> {
        let (figures, phases) = (Figures::default(), Phases::default());
        self.tell_exit(token, Exit { ending, detail: String::new(), figures, phases, left_out: Vec::new() })
    }

    /// A warm sandbox, with the limits of this command, or a new one.
    fn sandbox_for(&mut self, launch: &Launch) -> Result<u64, StartFailure> {
        let (frame, limits) = (&launch.spec.frame, &launch.spec.limits);
        let given_back = launch.lent.and_then(|number| self.take_back(number, frame));
        let Some(number) = given_back.or_else(|| self.find_warm(frame)) else {
            let number = self.make(frame, limits, false)?;
            self.cold_starts += 1;
            return Ok(number);
        };
        let sandbox = self.sandboxes.get_mut(&number).ok_or(StartFailure::Lost)?;
        sandbox.phases = Phases { warm: true, ..Phases::default() };
        sandbox.place.group.limit(limits)?;
        sandbox.limits = limits.clone();
        sandbox.place.group.begin()?;
        self.warm_hits += 1;
        Ok(number)
    }

    fn start(&mut self, number: u64, launch: Launch) -> Result<(), StartFailure> {
        self.numbers.insert(launch.token, number);
        let sandbox = self.sandboxes.get_mut(&number).ok_or(StartFailure::Lost)?;
        Ok(sandbox.command(launch)?)
    }

    fn find_warm(&self, frame: &Frame) -> Option<u64> {
        let is_free = |sandbox: &Sandbox| sandbox.is_idle() && sandbox.frame == *frame;
        self.sandboxes.iter().find(|(_, sandbox)| is_free(sandbox)).map(|(number, _)| *number)
    }

    /// Asks the frame's zygote for a sandbox, which has these limits from its first moment on.
    pub(super) fn make(&mut self, frame: &Frame, limits: &Limits, in_background: bool) -> Result<u64, StartFailure> {
        let zygote = self.zygote_for(&frame.layers)?;
        let mut place = self.take_place(in_background)?;
        place.group.limit(limits)?;
        place.group.begin()?;
        let uplink = self.uplink_for(frame)?;
        let address = uplink.as_ref().map(|uplink| uplink.address);
        let (control, theirs) = pair().map_err(failed("open", "a sandbox's socket"))?;
        let number = self.number();
        self.poller.add(&control, Source::Sandbox(number))?;
        let version_2 = place.group.birth_descriptor().is_some();
        let first_id = place.first_id;
        let request =
            ZygoteRequest::Prepare { number, frame: frame.clone(), first_id, version_2, in_background, uplink };
        let mut descriptors = vec![theirs.as_fd(), place.user_namespace.as_fd(), place.id_map.as_fd()];
        descriptors.extend(place.group.join_descriptors().iter().map(AsFd::as_fd));
        descriptors.extend(place.group.birth_descriptor());
        let control_of_zygote = self.zygotes.get(&zygote).ok_or(StartFailure::Lost)?.control.as_fd();
        send(control_of_zygote, &request, &descriptors).map_err(failed("ask", "a zygote"))?;
        let mut sandbox = Sandbox::unborn(frame.clone(), limits.clone(), place, zygote, control);
        sandbox.address = address;
        self.sandboxes.insert(number, sandbox);
        Ok(number)
    }

    /// A place; for a command also one that is still being torn down, or that of a warm sandbox of another frame.
    pub(super) fn take_place(&mut self, in_background: bool) -> Result<Place, StartFailure> {
        loop {
            match self.places.take() {
                Err(PlaceError::Full(_)) if self.tear_one_down() => {}
                Err(PlaceError::Full(most)) if !in_background => {
                    let idle = self.sandboxes.iter().find(|(_, sandbox)| sandbox.is_idle());
                    let Some(number) = idle.map(|(number, _)| *number) else {
                        self.recall_any()?;
                        return Err(PlaceError::Full(most).into());
                    };
                    self.discard(number)?;
                }
                other => return Ok(other?),
            }
        }
    }

    /// A way out for a sandbox that is to have one.
    pub(super) fn uplink_for(&mut self, frame: &Frame) -> Result<Option<Uplink>, EgressError> {
        match frame.network {
            Network::None => Ok(None),
            Network::Egress => self.egress.uplink().map(Some),
        }
    }

    /// A zygote made the process of a sandbox.
    pub(super) fn born(&mut self, number: u64, pid: i32, process: OwnedFd, clone_us: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else {
            // It was given up in the meantime.
            return end_process(process.as_fd());
        };
        self.poller.add(&process, Source::Process(number))?;
        if !sandbox.phases.warm {
            sandbox.phases.clone_us = clone_us;
        }
        match (sandbox.born(pid, process), &mut sandbox.run) {
            (Ok(()), _) => self.complete(number),
            (Err(error), Some(run)) => {
                // Its death, which comes now if it has not come already, concludes it.
                run.evidence.word = Some(Err((in_one_line(&error), true)));
                run.kill_at = Some(Instant::now());
                Ok(())
            }
            // One that nobody waits for is not worth keeping.
            (Err(_), None) => self.discard(number),
        }
    }

    /// Goes on with a sandbox that is both born and prepared; the one may be heard before the other.
    fn complete(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Ok(()) };
        if !sandbox.is_prepared || sandbox.process.is_none() {
            return Ok(());
        }
        // The mounts of a step have to be gone before what it changed can be a layer.
        if sandbox.draft.is_none() {
            sandbox.held = hold_namespaces(sandbox.pid);
        }
        if sandbox.run.is_some() { Ok(()) } else { self.lend(number) }
    }

    /// A sandbox that never came to be.
    pub(super) fn refuse(&mut self, number: u64, reason: String) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Ok(()) };
        match &mut sandbox.run {
            Some(run) => run.evidence.word = Some(Err((reason, true))),
            None => self.demand.forget(&sandbox.frame.clone()),
        }
        self.conclude(number)
    }

    /// What pid 1 of a sandbox says. After its last word nothing of the command is left, so that the end is told
    /// without waiting for pid 1 itself.
    pub(super) fn hear_init(&mut self, number: u64, reply: InitReply) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number).filter(|sandbox| !sandbox.is_spent) else { return Ok(()) };
        match (reply, &mut sandbox.run) {
            (InitReply::Ready { phases }, run) => {
                sandbox.is_prepared = true;
                if run.is_some() {
                    sandbox.phases = Phases { clone_us: sandbox.phases.clone_us, ..phases };
                }
                return self.complete(number);
            }
            (InitReply::Failed { reason, retryable }, Some(run)) => run.evidence.word = Some(Err((reason, retryable))),
            (InitReply::Finished(finished), Some(run)) => {
                sandbox.phases.exec_us = finished.exec_us;
                run.evidence.word = Some(Ok(finished));
            }
            // A frame that cannot be prepared is not tried again before somebody asks for it.
            (InitReply::Failed { .. } | InitReply::Finished(_), None) => self.demand.forget(&sandbox.frame.clone()),
        }
        self.tell_end(number)
    }

    /// The conversation with pid 1 of a sandbox, unless only the service may hear it.
    pub(super) fn control_of(&self, number: u64) -> Option<BorrowedFd<'_>> {
        let sandbox = self.sandboxes.get(&number).filter(|sandbox| sandbox.holder == Holder::Launcher);
        sandbox.map(|sandbox| sandbox.control.as_fd())
    }

    /// The sandbox's pid 1 is dead, and so is everything in it.
    pub(super) fn died(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Ok(()) };
        if let Some(process) = sandbox.process.take() {
            reap_process(process.as_fd())?;
        }
        // The service may have heard pid 1's last word, and still reads the counters: nothing is taken down before it
        // says so.
        let is_lent = sandbox.holder != Holder::Launcher;
        if is_lent { self.tell_end(number) } else { self.conclude(number) }
    }

    /// Tells how a dead sandbox ended, if that was not told before, and puts what is left of it aside.
    pub(super) fn conclude(&mut self, number: u64) -> Result<(), SysError> {
        self.tell_end(number)?;
        self.bury(number)
    }

    /// Tells how the command of a sandbox ended.
    pub(super) fn tell_end(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Ok(()) };
        sandbox.is_spent = true;
        let Some(run) = sandbox.run.take() else { return Ok(()) };
        let exit = verdict::conclude(run.evidence, sandbox.place.group.usage(), sandbox.phases, run.began.elapsed());
        self.numbers.remove(&run.token);
        if let Some(draft) = &mut sandbox.draft {
            draft.is_good = exit.ending == Ending::Exited(0);
        }
        self.tell_exit(run.token, exit)
    }

    fn tell_exit(&self, token: u64, exit: Exit) -> Result<(), SysError> {
        self.reply(&Reply::Exit { token, exit })
    }

    /// Asks for the end of a command.
    pub(super) fn stop(&mut self, token: u64, reason: StopReason) -> Result<(), SysError> {
        let waits = self.waiting.iter().position(|launch| launch.token == token);
        if let Some(index) = waits {
            self.waiting.remove(index);
            let evidence = Evidence { stop: Some(reason), ..Evidence::default() };
            return self.tell_unstarted(token, decide(&evidence));
        }
        let number = self.numbers.get(&token);
        if let Some(sandbox) = number.and_then(|number| self.sandboxes.get_mut(number)) {
            sandbox.stop(reason);
        }
        Ok(())
    }

    /// Does what is due by the clock, and says when the next thing is.
    pub(super) fn keep_time(&mut self) -> Result<Option<Instant>, SysError> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for sandbox in self.sandboxes.values_mut() {
            let Some(due) = sandbox.keep_time(now)? else { continue };
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        Ok([next, self.keep_time_of_workers(now)?].into_iter().flatten().min())
    }

    /// Ends everything, and removes all control groups.
    pub(super) fn end_all(mut self) -> Result<(), SysError> {
        let zygotes: Vec<u64> = self.zygotes.keys().copied().collect();
        for number in zygotes {
            // The service is gone: nobody hears how its sandboxes ended.
            let _ = self.dismiss_zygote(number);
        }
        let sandboxes = self.sandboxes.values().filter_map(|sandbox| sandbox.process.as_ref());
        for process in sandboxes.chain(self.workers.values().map(|worker| &worker.process)) {
            // One that cannot be ended here, dead already or not, is taken care of with its control group.
            let _ = end_process(process.as_fd());
        }
        drop((self.sandboxes, self.workers, self.teardowns));
        self.egress.take_down()?;
        self.places
            .remove()
            .map_err(|error| failed("remove", "control groups")(std::io::Error::other(in_one_line(&error))))
    }
}

/// Why a command did not get its sandbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartFailure {
    #[error(transparent)]
    System(#[from] SysError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Egress(#[from] EgressError),
    #[error("could not apply the limits")]
    Limits(#[from] CgroupError),
    #[error("the sandbox was lost while it was made")]
    Lost,
}

impl StartFailure {
    /// A limit that this machine cannot apply will not be applied the next time either.
    pub(super) fn is_retryable(&self) -> bool {
        !matches!(self, StartFailure::Limits(_))
    }
}
