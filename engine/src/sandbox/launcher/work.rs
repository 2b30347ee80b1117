//! Workers: how many there are at a time, who waits for one, and how long one may take.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::sandbox::handshake::{Reply, pair, receive};
use crate::sandbox::launcher::events::Source;
use crate::sandbox::launcher::lifecycle::Launcher;
use crate::sandbox::launcher::live::kill_process;
use crate::sandbox::place::Place;
use crate::sandbox::worker::{self, Birth, Done, Job, Outcome};
use crate::spec::{LayerId, Limits};
use crate::sys::{self, Fork, SysError, failed, in_one_line};

/// Most workers at a time that read layers or archives; those that only remove come on top.
const WORKERS_MAX: usize = 8;
/// Most requests that wait for a worker.
const WAITING_MAX: usize = 512;
/// What a worker may use. The page cache of what it writes counts, and is given back under pressure.
const WORKER_LIMITS: Limits = Limits {
    memory_bytes: 512 * 1024 * 1024,
    cpu_milli: 4000,
    pids: 4,
    cpu_time_ms: 0,
    wall_time_ms: 0,
    open_files: 1024,
    file_bytes: u64::MAX,
};

/// How long a worker may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WorkTimes {
    /// Processor time in seconds.
    pub cpu_seconds: u64,
    /// Time on the clock in seconds; an archive that is still being downloaded is waited for so long.
    pub wall_seconds: u64,
}

impl Default for WorkTimes {
    /// Ten minutes of work and an hour on the clock: the largest layer takes two, and a slow registry needs patience.
    fn default() -> WorkTimes {
        WorkTimes { cpu_seconds: 600, wall_seconds: 3600 }
    }
}

/// A worker at its task.
pub(crate) struct Worker {
    pub(super) process: OwnedFd,
    control: OwnedFd,
    place: Place,
    task: Task,
    ends: Instant,
    is_late: bool,
}

/// What a worker is for, and whom to tell.
pub(super) enum Task {
    Unpack {
        token: u64,
        folder: String,
    },
    /// Nobody waits for the removal of what a former launcher left.
    Remove {
        token: Option<u64>,
        folder: String,
    },
    Look {
        token: u64,
    },
    Check {
        token: u64,
        folder: String,
        layer: LayerId,
        mends: bool,
    },
    /// Turns what a build changed, in a draft, into a layer.
    Seal {
        token: u64,
        folder: String,
    },
}

/// A worker that is to be started.
pub(super) struct Order {
    pub(super) task: Task,
    pub(super) job: Job,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// What the launcher knows of work besides the workers themselves.
#[derive(Default)]
pub(crate) struct Work {
    pub(super) times: WorkTimes,
    waiting: VecDeque<Order>,
}

impl Work {
    pub(crate) fn new(times: WorkTimes) -> Work {
        Work { times, waiting: VecDeque::new() }
    }
}

impl Task {
    fn only_removes(&self) -> bool {
        matches!(self, Task::Remove { .. })
    }
}

impl Launcher {
    /// Starts a worker, or has its order wait for one to end.
    pub(super) fn order(&mut self, order: Order) -> Result<(), SysError> {
        let at_work = self.workers.values().filter(|worker| !worker.task.only_removes()).count();
        if order.task.only_removes() || at_work < WORKERS_MAX {
            return self.start_order(order);
        }
        if self.work.waiting.len() >= WAITING_MAX {
            return self.conclude_work(order.task, Err(format!("{WAITING_MAX} others wait for a worker already")));
        }
        self.work.waiting.push_back(order);
        Ok(())
    }

    /// An order that cannot be carried out is answered like work that failed.
    fn start_order(&mut self, order: Order) -> Result<(), SysError> {
        let Order { task, job, descriptors } = order;
        match self.start_worker(job, descriptors) {
            Ok((process, control, place)) => {
                let number = self.number();
                self.poller.add(&process, Source::Worker(number))?;
                let ends = Instant::now() + Duration::from_secs(self.work.times.wall_seconds);
                self.workers.insert(number, Worker { process, control, place, task, ends, is_late: false });
                Ok(())
            }
            Err(error) => self.conclude_work(task, Err(in_one_line(&error))),
        }
    }

    fn start_worker(&mut self, job: Job, descriptors: Vec<OwnedFd>) -> Result<(OwnedFd, OwnedFd, Place), SysError> {
        let as_system =
            |error: &dyn std::error::Error| failed("start", "a worker")(std::io::Error::other(in_one_line(error)));
        let mut place = self.places.take().map_err(|error| as_system(&error))?;
        place.group.limit(&WORKER_LIMITS).map_err(|error| as_system(&error))?;
        let (control, theirs) = pair().map_err(failed("open", "a worker's socket"))?;
        let user_namespace = self.image_namespace.try_clone().map_err(failed("pass on", "the ids of images"))?;
        let flags = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        let fork = sys::fork_into(flags as u64, libc::SIGCHLD as u64, place.group.birth_descriptor());
        match fork.map_err(failed("fork", "a worker"))? {
            Fork::Child => {
                let groups =
                    place.group.join_descriptors().iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
                let Ok(groups) = groups else { sys::exit_now(1) };
                let (cpu_seconds, filter) = (self.work.times.cpu_seconds, &self.worker_filter);
                let control = theirs;
                worker::live(Birth { control, user_namespace, groups, job, descriptors, cpu_seconds, filter })
            }
            Fork::Parent { pidfd, .. } => Ok((pidfd, control, place)),
        }
    }

    /// Takes in what a worker that has ended left behind, tells who waits for it, and starts the next.
    pub(super) fn finish_worker(&mut self, worker: Worker, is_killed: bool) -> Result<(), SysError> {
        let outcome: Outcome = match receive::<Outcome>(&worker.control, &mut self.buffer) {
            Ok(Some((outcome, _))) => outcome,
            _ => Err(self.died_of(&worker, is_killed)),
        };
        let Worker { place, task, .. } = worker;
        self.places.give_back(place);
        let has_room = !task.only_removes();
        self.conclude_work(task, outcome)?;
        match self.work.waiting.pop_front() {
            Some(next) if has_room => self.start_order(next),
            Some(next) => {
                self.work.waiting.push_front(next);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn conclude_work(&mut self, task: Task, outcome: Outcome) -> Result<(), SysError> {
        match task {
            Task::Unpack { token, folder } => self.conclude_unpacking(token, folder, outcome),
            Task::Remove { token, folder } => self.conclude_removal(token, &folder, outcome.map(drop)),
            Task::Seal { token, folder } => self.conclude_sealing(token, &folder, outcome),
            Task::Look { token } => self.reply(&Reply::Looked { token, result: outcome.and_then(looked) }),
            Task::Check { token, folder, layer, mends } => {
                let result = outcome.and_then(looked).and_then(|found| self.mend(&folder, &layer, mends, found));
                self.throw_away(folder)?;
                self.reply(&Reply::Looked { token, result })
            }
        }
    }

    /// Ends workers whose time is over; says when the next one's is.
    pub(super) fn keep_time_of_workers(&mut self, now: Instant) -> Result<Option<Instant>, SysError> {
        for worker in self.workers.values_mut().filter(|worker| worker.ends <= now && !worker.is_late) {
            worker.is_late = true;
            kill_process(worker.process.as_fd())?;
        }
        Ok(self.workers.values().filter(|worker| !worker.is_late).map(|worker| worker.ends).min())
    }

    /// Why a worker ended without an answer.
    fn died_of(&self, worker: &Worker, is_killed: bool) -> String {
        const HINT: &str = "hint: `ampoule serve --work-time` and `--work-cpu-time` allow more";
        let WorkTimes { cpu_seconds, wall_seconds } = self.work.times;
        if worker.is_late {
            return format!("the worker took longer than {wall_seconds} s\n{HINT}");
        }
        match worker.place.group.usage() {
            Ok(usage) if usage.oom_kills > 0 => {
                format!("the worker needed more than {} bytes of memory", WORKER_LIMITS.memory_bytes)
            }
            // The kernel ends it by its own reckoning of the time, in ticks, which is not quite the control group's.
            Ok(usage) if is_killed && usage.cpu_total_us >= cpu_seconds * 1_000_000 / 2 => {
                format!("the worker used up {cpu_seconds} s of processor time\n{HINT}")
            }
            _ => "the worker ended without an answer".to_owned(),
        }
    }
}

fn looked(done: Done) -> Result<crate::sandbox::handshake::Looked, String> {
    match done {
        Done::Looked(looked) => Ok(looked),
        Done::Emptied | Done::Unpacked(_) => Err("the worker did something else".to_owned()),
    }
}
