//! Control groups: what a sandbox may use at most, what it has used, and that all of it can be killed. The same words
//! for version 1 (and hybrid) and version 2. Blocking and for one thread: the launcher's.
//!
//! ```text
//! Hierarchy ─ root(name) ─▶ Root ─ group(name) ─▶ Group ─ limit · begin · usage · kill ─ recycle ─▶ Group, or gone
//! ```
//!
//! Processes never move between groups: on version 1 a child joins by writing "0" to each of `join_descriptors`, on
//! version 2 it is born in `birth_descriptor`.

mod counters;
mod error;
mod folders;
mod limits;
mod meter;
mod mounts;
mod v1;
mod v2;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use counters::{Counters, Totals};
pub use error::CgroupError;
use error::failed;
use folders::Folders;
use limits::Limiter;
pub use meter::{Meter, MeterTerms};
use serde::{Deserialize, Serialize};

use crate::spec::Limits;

/// Most memory, in bytes, that may still be charged to a group of version 1 that is used again. It is what the
/// kernel keeps in its per-processor stock and frees late; the next job has so much less, and sees it in its peak.
const RESIDUE_BYTES_MAX: u64 = 1024 * 1024;

/// The kernel's two kinds of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// A hierarchy for each controller. So is a hybrid, whose one hierarchy of version 2 has no controller.
    V1,
    /// One hierarchy with all controllers.
    V2,
}

/// Where this machine has its controllers, and where in them this process is.
#[derive(Debug)]
pub struct Hierarchy(Place);

#[derive(Debug)]
enum Place {
    V1(Folders),
    V2(v2::Tree),
}

impl Hierarchy {
    /// Finds memory, pids and cpu on version 1 (with cpuacct) or version 2. Changes nothing.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] names the controller that cannot be had, and how that is mended.
    pub fn discover() -> Result<Hierarchy, CgroupError> {
        let read = |path: &'static str| fs::read(path).map_err(failed("read", path.as_ref()));
        let mountinfo = read("/proc/self/mountinfo")?;
        let membership = read("/proc/self/cgroup")?;
        Hierarchy::locate(&String::from_utf8_lossy(&mountinfo), &String::from_utf8_lossy(&membership))
    }

    fn locate(mountinfo: &str, membership: &str) -> Result<Hierarchy, CgroupError> {
        let mounts = mounts::mounts(mountinfo);
        // A controller is in one version only, so the memory controller says which one is meant.
        let is_v1 = mounts.iter().any(|mount| !mount.unified && mount.options.iter().any(|name| name == "memory"));
        match v2::locate(&mounts, membership) {
            Some(tree) if !is_v1 => v2::check(&tree, &mounts).map(|()| Hierarchy(Place::V2(tree))),
            _ => v1::locate(&mounts, membership).map(|folders| Hierarchy(Place::V1(folders))),
        }
    }

    /// Which version it is.
    pub fn version(&self) -> Version {
        match self.0 {
            Place::V1(_) => Version::V1,
            Place::V2(_) => Version::V2,
        }
    }

    /// Makes the folder that all groups of this launcher go below, or takes it over from its last life. On version 2
    /// this hands the controllers down to it, and may move this process and the service, its parent, to a group
    /// below it, since a group with controllers below may hold no processes. The name begins with `ampoule-`.
    ///
    /// # Errors
    /// When the folder cannot be made, a controller cannot be handed down, or the machine swaps and cannot limit it.
    pub fn root(&self, name: &str) -> Result<Root, CgroupError> {
        let folders = match &self.0 {
            Place::V1(own) => own.child(name),
            Place::V2(tree) => Folders::unified(v2::prepare(tree, name)?),
        };
        let root = Root { version: self.version(), folders: Made(folders) };
        root.folders.0.create()?;
        root.check_swap()?;
        Ok(root)
    }
}

/// The folder that all groups of one launcher are below. Dropped, it is removed if nothing is below it.
#[derive(Debug)]
pub struct Root {
    version: Version,
    folders: Made,
}

impl Root {
    /// Kills whatever a former launcher left in groups below, and removes them; says how many there were. It goes
    /// through all of them before it fails.
    ///
    /// # Errors
    /// The first group that could not be emptied and removed within 0.4 seconds.
    pub fn sweep(&self) -> Result<usize, CgroupError> {
        let mut names = self.folders.0.children()?;
        names.remove(OsStr::new(v2::OWN_GROUP));
        let swept = names.iter().map(|name| {
            let group = self.folders.0.child(name);
            group.kill().and_then(|()| group.remove())
        });
        swept.collect::<Vec<_>>().into_iter().collect::<Result<Vec<()>, _>>().map(|swept| swept.len())
    }

    /// Makes a group. It has little memory, two pids and one processor until it is given other limits. Its name must not be in use; `launcher` always is.
    ///
    /// # Errors
    /// When it exists already, or any of its files cannot be opened or set; nothing of it is left then.
    pub fn group(&self, name: &str) -> Result<Group, CgroupError> {
        let folders = self.folders.0.child(name);
        if folders.exist() {
            let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(failed("make the folder", &folders.memory)(source));
        }
        let made = Made(folders);
        made.0.create()?;
        let limiter = Limiter::new(self.version, &made.0)?;
        let (counters, join, birth): (Box<dyn Counters>, _, _) = match self.version {
            Version::V1 => (Box::new(v1::V1Counters::open(&made.0)?), v1::open_join_files(&made.0)?, None),
            Version::V2 => {
                let folder = &made.0.memory;
                (Box::new(v2::V2Counters::open(folder)?), Vec::new(), Some(v2::open_birthplace(folder)?))
            }
        };
        Ok(Group { version: self.version, limiter, counters, join, birth, baseline: Totals::default(), folders: made })
    }

    /// Removes the folder. Its groups must be gone; it stays, without an error, when this process itself had to move
    /// into it.
    ///
    /// # Errors
    /// When a group is left below, or the kernel does not let go of the folder.
    pub fn remove(self) -> Result<(), CgroupError> {
        if self.folders.0.child(v2::OWN_GROUP).exist() { Ok(()) } else { self.folders.0.remove() }
    }

    /// Without accounting of swap it cannot be limited, which matters only where there is some.
    fn check_swap(&self) -> Result<(), CgroupError> {
        let swaps = "/proc/swaps";
        let is_accounted = self.folders.0.memory.join(limits::swap_file(self.version)).exists();
        // A kernel without swap has no such file; the first line is its heading.
        let has_swap = fs::read_to_string(swaps).is_ok_and(|text| text.lines().count() > 1);
        if is_accounted || !has_swap {
            return Ok(());
        }
        Err(CgroupError::Missing {
            controller: "memory",
            problem: "this machine swaps, and its kernel does not count swap per group".into(),
            hint: "boot with swapaccount=1, or turn swap off: swapoff -a".into(),
        })
    }
}

/// What a group has used since [`Group::begin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Exact processor time, in microseconds.
    pub cpu_total_us: u64,
    /// The part of it in user mode; on version 1 in proportion to samples of the clock tick.
    pub cpu_user_us: u64,
    /// The part of it in the kernel.
    pub cpu_system_us: u64,
    /// Highest memory use, in bytes. Kernels of version 2 before 6.12 count it since the group was made; before 5.19
    /// it is only the highest that was seen at any read of usage or processor time.
    pub memory_peak_bytes: u64,
    /// Processes that the kernel killed for memory.
    pub oom_kills: u64,
    /// How often a process was refused by the pids limit.
    pub pids_refused: u64,
    /// Time in which the processor share held processes back, in microseconds.
    pub throttled_us: u64,
}

/// Folders that are removed when dropped, as far as they are empty.
#[derive(Debug)]
struct Made(Folders);

impl Drop for Made {
    fn drop(&mut self) {
        self.0.remove_if_possible();
    }
}

/// The control group of one sandbox.
#[derive(Debug)]
pub struct Group {
    version: Version,
    limiter: Limiter,
    counters: Box<dyn Counters>,
    join: Vec<OwnedFd>,
    birth: Option<OwnedFd>,
    baseline: Totals,
    folders: Made,
}

impl Group {
    /// Puts limits in force: memory in whole pages, without swap; pids; processor share over periods of 100 ms. Only
    /// what differs from what is in force is written, and read back: a microsecond each, and none for the others.
    ///
    /// # Errors
    /// When a value is refused or does not hold. The group must not be used for a job then.
    pub fn limit(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        self.limiter.limit(limits)
    }

    /// Version 1: the files that a single-threaded child joins through, by writing "0" to each. Version 2: none.
    pub fn join_descriptors(&self) -> &[OwnedFd] {
        &self.join
    }

    /// Version 2: the folder for `CLONE_INTO_CGROUP`. Version 1: none.
    pub fn birth_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.birth.as_ref().map(AsFd::as_fd)
    }

    /// From now on usage is counted from zero; the memory peak from what is in use now.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn begin(&mut self) -> Result<(), CgroupError> {
        self.baseline = self.counters.totals()?;
        self.counters.reset_peak()
    }

    /// What was used since `begin`. Reads open descriptors only, about 3 microseconds each.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        Ok(used(&self.baseline, &self.counters.totals()?, self.counters.memory_peak_bytes()?))
    }

    /// Processor time since `begin`, in microseconds; a single read.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn cpu_time_us(&self) -> Result<u64, CgroupError> {
        Ok(self.counters.cpu_ns()?.saturating_sub(self.baseline.cpu_ns) / 1000)
    }

    /// Whether no live process is in it. One that ended and was not waited for yet does not count.
    ///
    /// # Errors
    /// When the list of processes cannot be read.
    pub fn is_empty(&self) -> Result<bool, CgroupError> {
        self.folders.0.are_empty()
    }

    /// Takes the processor share off until the next `limit`; a microsecond. For whoever kills the processes by other
    /// means: dying needs processor time, and a process whose share is used up dies only in a later period.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn lift_cpu_limit(&mut self) -> Result<(), CgroupError> {
        self.limiter.lift_cpu()
    }

    /// Kills everything in it and returns when it is gone, usually after 150 microseconds and at most after 0.2
    /// seconds for each hierarchy. Takes the processor share off, and may refuse new processes, until the next
    /// `limit`. Read usage before: what is refused to forking processes meanwhile counts.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] when something does not go.
    pub fn kill(&mut self) -> Result<(), CgroupError> {
        self.limiter.forget_pids_and_cpu();
        self.folders.0.kill()
    }

    /// Gives the group back for another job, with its limits still in force, or removes it and returns `None`.
    /// All processes must have ended and been waited for, and all that pins their memory must be closed.
    ///
    /// Used again is a group of version 1 with at most 1 MiB still charged to it. More than that is nearly always
    /// file cache that the job was the first to read; emptying the group would drop it, and the next job would read
    /// the disk again, while with the group removed it stays and is charged to nobody. A group of version 2 is
    /// never used again: after `cgroup.kill` the kernel kills whatever is born in it (seen on 6.18), and before
    /// 6.12 its peak cannot be reset.
    ///
    /// # Errors
    /// When it holds processes, or cannot be removed.
    pub fn recycle(self) -> Result<Option<Group>, CgroupError> {
        let is_as_new =
            self.version == Version::V1 && self.residue_bytes()? <= RESIDUE_BYTES_MAX && self.processes_left()? == 0;
        if is_as_new { Ok(Some(self)) } else { self.remove().map(|()| None) }
    }

    /// Removes the group, which must be empty or about to be: waits up to 0.2 seconds for each hierarchy.
    ///
    /// # Errors
    /// When it still holds processes.
    pub fn remove(self) -> Result<(), CgroupError> {
        self.folders.0.remove()
    }

    fn residue_bytes(&self) -> Result<u64, CgroupError> {
        counters::Counter::open(&self.folders.0.memory, "memory.usage_in_bytes")?.number()
    }

    /// Processes that still count against the pids limit, the ones not waited for among them.
    fn processes_left(&self) -> Result<u64, CgroupError> {
        counters::Counter::open(&self.folders.0.pids, "pids.current")?.number()
    }
}

/// The difference of two readings.
fn used(before: &Totals, now: &Totals, memory_peak_bytes: u64) -> Usage {
    let cpu_total_us = now.cpu_ns.saturating_sub(before.cpu_ns) / 1000;
    let user = now.user_ns.saturating_sub(before.user_ns);
    let system = now.system_ns.saturating_sub(before.system_ns);
    // As the kernel does it for a process: the exact total, split like the samples; without any sample all is user.
    let share = u128::from(cpu_total_us) * u128::from(system);
    let cpu_system_us = share.checked_div(u128::from(user) + u128::from(system)).unwrap_or(0) as u64;
    Usage {
        cpu_total_us,
        cpu_user_us: cpu_total_us - cpu_system_us,
        cpu_system_us,
        memory_peak_bytes,
        oom_kills: now.oom_kills.saturating_sub(before.oom_kills),
        pids_refused: now.pids_refused.saturating_sub(before.pids_refused),
        throttled_us: now.throttled_us.saturating_sub(before.throttled_us),
    }
}
