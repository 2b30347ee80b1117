//! The folders of one control group, one in each hierarchy: made, listed, emptied, removed. Nothing is ever moved to
//! another group to make room, since that would take it out of its limits.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use cgroups_rs::fs::Controller;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuacct::CpuAcctController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::{CgroupError, failed};

/// How long a retry waits each time, in microseconds: 0.2 s in all, since the launcher has only one thread. A killed
/// process is usually gone after 150.
const PAUSES_US: [u64; 12] = [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400];
/// Most processes of one folder that are signalled in one round, each with a descriptor open meanwhile.
const KILLED_AT_ONCE: usize = 512;

fn pauses() -> impl Iterator<Item = Duration> {
    PAUSES_US.into_iter().map(Duration::from_micros)
}

/// The folder of a group by controller. On version 2 all are the same one, on version 1 some may be.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    pub(super) memory: PathBuf,
    pub(super) pids: PathBuf,
    pub(super) cpu: PathBuf,
    pub(super) cpuacct: PathBuf,
}

impl Folders {
    /// The folders of version 2: one.
    pub(super) fn unified(folder: PathBuf) -> Folders {
        Folders { memory: folder.clone(), pids: folder.clone(), cpu: folder.clone(), cpuacct: folder }
    }

    /// The folders of a group below this one.
    pub(super) fn child(&self, name: impl AsRef<Path>) -> Folders {
        let name = name.as_ref();
        Folders {
            memory: self.memory.join(name),
            pids: self.pids.join(name),
            cpu: self.cpu.join(name),
            cpuacct: self.cpuacct.join(name),
        }
    }

    /// Every folder once, the one of memory first.
    pub(super) fn distinct(&self) -> impl Iterator<Item = &Path> {
        let all = [&self.memory, &self.pids, &self.cpu, &self.cpuacct];
        (0..all.len()).filter(move |&at| !all[..at].contains(&all[at])).map(move |at| all[at].as_path())
    }

    /// Whether any of them exists.
    pub(super) fn exist(&self) -> bool {
        self.distinct().any(Path::exists)
    }

    /// Makes those that are missing; when one cannot be made, those made before stay.
    pub(super) fn create(&self) -> Result<(), CgroupError> {
        let nowhere = PathBuf::new;
        let memory = MemController::new(self.memory.clone(), nowhere(), false);
        let pids = PidController::new(self.pids.clone(), nowhere(), false);
        let cpu = CpuController::new(self.cpu.clone(), nowhere(), false);
        let cpuacct = CpuAcctController::new(self.cpuacct.clone(), nowhere());
        let controllers: [&dyn Controller; 4] = [&memory, &pids, &cpu, &cpuacct];
        for controller in controllers.into_iter().filter(|controller| !controller.exists()) {
            controller
                .create()
                .map_err(|error| failed("make the folder", controller.path())(io::Error::other(error)))?;
        }
        Ok(())
    }

    /// The names of the groups below, in any of the hierarchies.
    pub(super) fn children(&self) -> Result<BTreeSet<OsString>, CgroupError> {
        let mut names = BTreeSet::new();
        for folder in self.distinct() {
            for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
                let entry = entry.map_err(failed("list", folder))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    names.insert(entry.file_name());
                }
            }
        }
        Ok(names)
    }

    /// Whether no live process is in there; one that ended and was not waited for yet is not counted.
    pub(super) fn are_empty(&self) -> Result<bool, CgroupError> {
        // Whoever joins, joins this folder first.
        processes(&self.memory).map(|found| found.is_empty())
    }

    /// Kills everything that is in any of them, and returns when it is gone. Takes the processor share off.
    pub(super) fn kill(&self) -> Result<(), CgroupError> {
        // Dying takes processor time too, and where the share is used up it would wait for the next period. Only one
        // of the files is there; where neither is, as in a half-made group, nothing is held back.
        let _ =
            fs::write(self.cpu.join("cpu.max"), "max").or_else(|_| fs::write(self.cpu.join("cpu.cfs_quota_us"), "-1"));
        self.distinct().try_for_each(|folder| kill(folder, &self.pids.join("pids.max")))
    }

    /// Removes them; they must be empty, but may have become so just now. None of them need exist.
    pub(super) fn remove(&self) -> Result<(), CgroupError> {
        self.distinct().try_for_each(remove)
    }

    /// Removes what can be removed at once, for those who cannot handle an error.
    pub(super) fn remove_if_possible(&self) {
        for folder in self.distinct() {
            // What stays is found by the sweep of the next start.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The live processes of a folder by id, 0 for one that is out of sight; none when the folder is gone.
pub(super) fn processes(folder: &Path) -> Result<Vec<i32>, CgroupError> {
    // Opened afresh each time: version 1 keeps serving the list of the first read on the same descriptor.
    let file = folder.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        // ENODEV: the folder was removed after it was opened.
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(source) => Err(failed("read", &file)(source)),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn kill(folder: &Path, door: &Path) -> Result<(), CgroupError> {
    let mut left = processes(folder)?;
    for (round, pause) in pauses().enumerate() {
        if left.is_empty() {
            return Ok(());
        }
        if round == 1 {
            // Something outlived the first signals, perhaps by forking: from now on nobody in there can. The file is
            // missing where a sweep meets a half-made group; the rounds go on without it.
            let _ = fs::write(door, "0");
        }
        signal_all(folder, &left)?;
        thread::sleep(pause);
        left = processes(folder)?;
    }
    if left.is_empty() { Ok(()) } else { Err(CgroupError::Busy { path: folder.to_owned(), processes: left }) }
}

/// Sends SIGKILL to everything in the folder: by `cgroup.kill` where the kernel has it, else to each of `seen`.
fn signal_all(folder: &Path, seen: &[i32]) -> Result<(), CgroupError> {
    if fs::write(folder.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    let held: Vec<_> = seen
        .iter()
        .take(KILLED_AT_ONCE)
        .filter_map(|&id| Some((id, pidfd_open(Pid::from_raw(id)?, PidfdFlags::empty()).ok()?)))
        .collect();
    // An id may have passed to a stranger between the list and the descriptor. Whoever is still listed now is who the
    // descriptor holds, or that one is dead.
    let still: BTreeSet<i32> = processes(folder)?.into_iter().collect();
    for (id, process) in held {
        if still.contains(&id) {
            // It may have ended by itself; whether all are gone is seen by the next list.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), CgroupError> {
    for pause in pauses() {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            // The kernel lets go of a group a moment after its last process was waited for.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(pause),
            Err(error) => return Err(failed("remove", folder)(error)),
        }
    }
    fs::remove_dir(folder).map_err(failed("remove", folder))
}
