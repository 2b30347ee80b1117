//! Puts limits on a group. The values are written by cgroups-rs, which hides some failures; so each one is read back
//! here and compared.

use std::fs;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::error::Error as WriteError;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use nix::unistd::{SysconfVar, sysconf};

use super::Version;
use super::error::{CgroupError, failed};
use super::folders::Folders;
use crate::spec::Limits;

/// The period that a processor share is measured over, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// Quota in microseconds of a period for a thousandth of a processor.
const QUOTA_US_PER_MILLI: u64 = CPU_PERIOD_US / 1000;

/// The values that this module has set and read back; `None` is as the kernel made the group: without a limit.
#[derive(Clone, Copy, Debug, Default)]
struct InForce {
    memory_bytes: Option<u64>,
    pids: Option<u32>,
    cpu_milli: Option<u32>,
}

/// Writes the limits of one group and knows which are in force.
#[derive(Debug)]
pub(super) struct Limiter {
    version: Version,
    folders: Folders,
    memory: MemController,
    pids: PidController,
    cpu: CpuController,
    swap_accounting: bool,
    page_bytes: u64,
    in_force: InForce,
}

impl Limiter {
    /// For a new group: sets what is the same for all jobs, which is the processor share's period and, on version 2,
    /// no swap and that running out of memory kills the whole group.
    pub(super) fn new(version: Version, folders: &Folders) -> Result<Limiter, CgroupError> {
        let is_v2 = version == Version::V2;
        let swap = folders.memory.join(swap_file(version));
        let limiter = Limiter {
            version,
            memory: MemController::new(folders.memory.clone(), PathBuf::new(), is_v2),
            pids: PidController::new(folders.pids.clone(), PathBuf::new(), is_v2),
            cpu: CpuController::new(folders.cpu.clone(), PathBuf::new(), is_v2),
            folders: folders.clone(),
            swap_accounting: swap.exists(),
            page_bytes: page_bytes(),
            in_force: InForce::default(),
        };
        if is_v2 {
            let group_kill = folders.memory.join("memory.oom.group");
            fs::write(&group_kill, "1").map_err(failed("write", &group_kill))?;
            confirm(&group_kill, "1")?;
            if limiter.swap_accounting {
                put(&swap, 0, |none| limiter.memory.set_memswap_limit(none))?;
            }
        } else {
            put(&folders.cpu.join("cpu.cfs_period_us"), CPU_PERIOD_US, |period| limiter.cpu.set_cfs_period(period))?;
        }
        Ok(limiter)
    }

    /// Puts in force what differs from what is. After an error the group must not be used.
    pub(super) fn limit(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        if self.in_force.memory_bytes != Some(limits.memory_bytes) {
            self.limit_memory(limits.memory_bytes)?;
            self.in_force.memory_bytes = Some(limits.memory_bytes);
        }
        if self.in_force.pids != Some(limits.pids) {
            let most = MaxValue::Value(limits.pids.into());
            put(&self.folders.pids.join("pids.max"), most, |most| self.pids.set_pid_max(most))?;
            self.in_force.pids = Some(limits.pids);
        }
        if self.in_force.cpu_milli != Some(limits.cpu_milli) {
            self.limit_cpu(limits.cpu_milli)?;
            self.in_force.cpu_milli = Some(limits.cpu_milli);
        }
        Ok(())
    }

    /// Forgets what is in force, so that everything is written again.
    pub(super) fn forget_pids(&mut self) {
        self.in_force.pids = None;
    }

    /// Sets the memory limit, whole pages of it, and on version 1 the same limit for memory and swap together.
    fn limit_memory(&self, bytes: u64) -> Result<(), CgroupError> {
        // The kernel counts in pages, below 2^63 bytes, and rounds down.
        let bytes = (bytes.min(i64::MAX as u64) / self.page_bytes * self.page_bytes) as i64;
        let file = if self.version == Version::V2 { "memory.max" } else { "memory.limit_in_bytes" };
        let memory = || put(&self.folders.memory.join(file), bytes, |bytes| self.memory.set_limit(bytes));
        if self.version == Version::V2 || !self.swap_accounting {
            return memory();
        }
        let swap = self.folders.memory.join(swap_file(Version::V1));
        let both = || put(&swap, bytes, |bytes| self.memory.set_memswap_limit(bytes));
        // The kernel refuses, at any moment, a sum that is below the limit of memory alone.
        if self.in_force.memory_bytes.is_some_and(|now| (now as i64) < bytes) {
            both().and_then(|()| memory())
        } else {
            memory().and_then(|()| both())
        }
    }

    fn limit_cpu(&self, milli: u32) -> Result<(), CgroupError> {
        let quota_us = u64::from(milli) * QUOTA_US_PER_MILLI;
        let quota = quota_us as i64;
        if self.version == Version::V1 {
            return put(&self.folders.cpu.join("cpu.cfs_quota_us"), quota, |quota| self.cpu.set_cfs_quota(quota));
        }
        put(&self.folders.cpu.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"), |_| {
            self.cpu.set_cfs_quota_and_period(Some(quota), Some(CPU_PERIOD_US))
        })
    }
}

/// The file that limits swap: on version 1 together with memory, on version 2 alone.
pub(super) fn swap_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.memsw.limit_in_bytes",
        Version::V2 => "memory.swap.max",
    }
}

/// What the kernel counts memory in. It is always told; 4096 is what every machine we run on has.
fn page_bytes() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |bytes| bytes as u64)
}

/// Has a value written to `file`, and reads it back.
fn put<V: ToString>(file: &Path, value: V, write: impl FnOnce(V) -> Result<(), WriteError>) -> Result<(), CgroupError> {
    let wanted = value.to_string();
    match write(value) {
        Ok(()) => confirm(file, &wanted),
        Err(source) => Err(CgroupError::Refused { path: file.to_owned(), value: wanted, source }),
    }
}

fn confirm(file: &Path, wanted: &str) -> Result<(), CgroupError> {
    let found = fs::read_to_string(file).map_err(failed("read back", file))?;
    if found.trim_end() == wanted {
        return Ok(());
    }
    Err(CgroupError::NotApplied {
        path: file.to_owned(),
        wanted: wanted.to_owned(),
        found: found.trim_end().to_owned(),
    })
}
