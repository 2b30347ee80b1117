//! Puts limits on a group. A new group gets its first ones by cgroups-rs, which hides some failures; later ones are
//! written to descriptors that stay open, 1 microsecond instead of 13. Either way each value is read back and compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
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
use crate::spec::{Limits, MEMORY_BYTES_MIN};

/// The period that a processor share is measured over, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// Quota in microseconds of a period for a thousandth of a processor.
const QUOTA_US_PER_MILLI: u64 = CPU_PERIOD_US / 1000;
/// Longest value that is read back, in bytes: two numbers.
const VALUE_BYTES_MAX: usize = 64;
/// No processor share, in the words of version 2.
const CPU_UNLIMITED_V2: &str = "max 100000";
/// What a new group has, so that a group is never without limits: the least memory and pids that a job may ask for.
const FIRST: InForce = InForce { memory_bytes: MEMORY_BYTES_MIN, pids: 2, cpu_milli: 1000 };

/// The values that were set and read back.
#[derive(Clone, Copy, Debug)]
struct InForce {
    memory_bytes: u64,
    pids: u32,
    cpu_milli: u32,
}

/// Writes the limits of one group and knows which are in force.
#[derive(Debug)]
pub(super) struct Limiter {
    version: Version,
    memory: Value,
    /// Version 1 with accounting of swap: the limit of memory and swap together.
    memory_and_swap: Option<Value>,
    pids: Value,
    cpu: Value,
    page_bytes: u64,
    in_force: InForce,
}

impl Limiter {
    /// For a new group: sets the first limits, and what is the same for all jobs, which is the processor share's
    /// period, no swap and, on version 2, that running out of memory kills the whole group.
    pub(super) fn new(version: Version, folders: &Folders) -> Result<Limiter, CgroupError> {
        let [memory, cpu] = match version {
            Version::V1 => ["memory.limit_in_bytes", "cpu.cfs_quota_us"],
            Version::V2 => ["memory.max", "cpu.max"],
        };
        let swap = folders.memory.join(swap_file(version));
        let swap = if swap.exists() { Some(Value::open(swap)?) } else { None };
        let limiter = Limiter {
            version,
            memory: Value::open(folders.memory.join(memory))?,
            memory_and_swap: None,
            pids: Value::open(folders.pids.join("pids.max"))?,
            cpu: Value::open(folders.cpu.join(cpu))?,
            page_bytes: page_bytes(),
            in_force: FIRST,
        };
        limiter.put_first(folders, swap.as_ref())?;
        Ok(Limiter { memory_and_swap: swap.filter(|_| version == Version::V1), ..limiter })
    }

    fn put_first(&self, folders: &Folders, swap: Option<&Value>) -> Result<(), CgroupError> {
        let is_v2 = self.version == Version::V2;
        let memory = MemController::new(folders.memory.clone(), PathBuf::new(), is_v2);
        let bytes = self.whole_pages(FIRST.memory_bytes) as i64;
        self.memory.put_by(bytes.to_string(), memory.set_limit(bytes))?;
        if let Some(swap) = swap {
            // Version 2 limits swap alone, version 1 together with memory.
            let bytes = if is_v2 { 0 } else { bytes };
            swap.put_by(bytes.to_string(), memory.set_memswap_limit(bytes))?;
        }
        let pids = PidController::new(folders.pids.clone(), PathBuf::new(), is_v2);
        self.pids.put_by(FIRST.pids.to_string(), pids.set_pid_max(MaxValue::Value(FIRST.pids.into())))?;
        let cpu = CpuController::new(folders.cpu.clone(), PathBuf::new(), is_v2);
        let quota_us = u64::from(FIRST.cpu_milli) * QUOTA_US_PER_MILLI;
        let set = cpu.set_cfs_quota_and_period(Some(quota_us as i64), Some(CPU_PERIOD_US));
        self.cpu.put_by(self.cpu_value(FIRST.cpu_milli), set)?;
        if is_v2 {
            Value::open(folders.memory.join("memory.oom.group"))?.put("1")
        } else {
            Value::open(folders.cpu.join("cpu.cfs_period_us"))?.confirm(&CPU_PERIOD_US.to_string())
        }
    }

    /// Puts in force what differs from what is. After an error the group must not be used.
    pub(super) fn limit(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        if self.in_force.memory_bytes != limits.memory_bytes {
            self.limit_memory(limits.memory_bytes)?;
            self.in_force.memory_bytes = limits.memory_bytes;
        }
        if self.in_force.pids != limits.pids {
            self.pids.put(&limits.pids.to_string())?;
            self.in_force.pids = limits.pids;
        }
        if self.in_force.cpu_milli != limits.cpu_milli {
            self.cpu.put(&self.cpu_value(limits.cpu_milli))?;
            self.in_force.cpu_milli = limits.cpu_milli;
        }
        Ok(())
    }

    /// Takes the processor share off until the next `limit`.
    pub(super) fn lift_cpu(&mut self) -> Result<(), CgroupError> {
        self.in_force.cpu_milli = 0;
        self.cpu.put(match self.version {
            Version::V1 => "-1",
            Version::V2 => CPU_UNLIMITED_V2,
        })
    }

    /// Says that pids and processor share were changed from elsewhere, so that `limit` sets them again.
    pub(super) fn forget_pids_and_cpu(&mut self) {
        self.in_force.pids = 0;
        self.in_force.cpu_milli = 0;
    }

    /// Sets the memory limit, whole pages of it, and on version 1 the same limit for memory and swap together.
    fn limit_memory(&self, bytes: u64) -> Result<(), CgroupError> {
        let value = self.whole_pages(bytes).to_string();
        // The kernel refuses, at any moment, a sum that is below the limit of memory alone.
        match &self.memory_and_swap {
            None => self.memory.put(&value),
            Some(both) if bytes > self.in_force.memory_bytes => both.put(&value).and_then(|()| self.memory.put(&value)),
            Some(both) => self.memory.put(&value).and_then(|()| both.put(&value)),
        }
    }

    /// The kernel counts in pages, below 2^63 bytes, and rounds down.
    fn whole_pages(&self, bytes: u64) -> u64 {
        bytes.min(i64::MAX as u64) / self.page_bytes * self.page_bytes
    }

    fn cpu_value(&self, milli: u32) -> String {
        let quota_us = u64::from(milli) * QUOTA_US_PER_MILLI;
        match self.version {
            Version::V1 => quota_us.to_string(),
            Version::V2 => format!("{quota_us} {CPU_PERIOD_US}"),
        }
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

/// A file that holds one value, kept open.
#[derive(Debug)]
struct Value {
    file: File,
    path: PathBuf,
}

impl Value {
    fn open(path: PathBuf) -> Result<Value, CgroupError> {
        let file = File::options().read(true).write(true).open(&path).map_err(failed("open for writing", &path))?;
        Ok(Value { file, path })
    }

    /// Writes a value and reads it back.
    fn put(&self, value: &str) -> Result<(), CgroupError> {
        self.file.write_at(value.as_bytes(), 0).map_err(|error| refused(&self.path, value, error))?;
        self.confirm(value)
    }

    /// Takes note of what cgroups-rs says of writing `value`, and reads it back.
    fn put_by(&self, value: String, written: Result<(), WriteError>) -> Result<(), CgroupError> {
        written.map_err(|error| refused(&self.path, &value, error))?;
        self.confirm(&value)
    }

    fn confirm(&self, wanted: &str) -> Result<(), CgroupError> {
        let mut buffer = [0; VALUE_BYTES_MAX];
        let length = self.file.read_at(&mut buffer, 0).map_err(failed("read back", &self.path))?;
        let found = buffer[..length].trim_ascii_end();
        if found == wanted.as_bytes() {
            return Ok(());
        }
        let found = String::from_utf8_lossy(found).into_owned();
        Err(CgroupError::NotApplied { path: self.path.clone(), wanted: wanted.to_owned(), found })
    }
}

fn refused(path: &Path, value: &str, error: impl std::error::Error + Send + Sync + 'static) -> CgroupError {
    CgroupError::Refused { path: path.to_owned(), value: value.to_owned(), source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_was_not_taken_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.max");
        // cgroups-rs says that it wrote, and the kernel has nothing of it.
        std::fs::write(&path, "max\n").unwrap();
        let error = Value::open(path).unwrap().put_by("4096".into(), Ok(())).unwrap_err().to_string();
        assert!(error.ends_with("memory.max` is max after it was set to 4096"), "{error}");
    }
}
