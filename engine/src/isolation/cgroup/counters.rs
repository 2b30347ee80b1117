//! Counters of a group, read again and again from descriptors that stay open. What the files say on each version is
//! in `v1` and `v2`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::{pread, pwrite};
use serde::{Deserialize, Serialize};

use super::error::{CgroupError, failed};

/// Largest counter file that is read, in bytes; the longest, `cpu.stat` and `memory.events`, have about 500.
const TEXT_BYTES_MAX: usize = 4096;

/// What a group has counted since it was made. All of it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Totals {
    /// Exact processor time, in nanoseconds.
    pub(super) cpu_ns: u64,
    /// Processor time seen in user mode; version 1 samples it with the clock tick, so it only serves as a proportion.
    pub(super) user_ns: u64,
    /// The same in the kernel.
    pub(super) system_ns: u64,
    pub(super) oom_kills: u64,
    pub(super) pids_refused: u64,
    pub(super) throttled_us: u64,
}

/// The counters of one group, on either version.
pub(super) trait Counters: std::fmt::Debug + Send + Sync {
    /// Everything that only grows.
    fn totals(&self) -> Result<Totals, CgroupError>;
    /// Exact processor time since the group was made, in nanoseconds; one read.
    fn cpu_ns(&self) -> Result<u64, CgroupError>;
    /// Highest memory use since the group was made or the peak was reset, in bytes.
    fn memory_peak_bytes(&self) -> Result<u64, CgroupError>;
    /// Lets the peak begin again at what is in use now, where the kernel can.
    fn reset_peak(&self) -> Result<(), CgroupError>;
    /// Descriptors of all counters in the order of `received`. None can be written to, but for a `memory.peak` that
    /// begins again for its own readers only. `None` where they do not say everything.
    fn readable(&self) -> Option<Vec<BorrowedFd<'_>>>;
}

/// One counter file, kept open.
#[derive(Debug)]
pub(super) struct Counter {
    descriptor: OwnedFd,
    path: PathBuf,
}

impl Counter {
    /// Opens `name` in `folder` for reading.
    pub(super) fn open(folder: &Path, name: &str) -> Result<Counter, CgroupError> {
        let path = folder.join(name);
        let file = File::open(&path).map_err(failed("open", &path))?;
        Ok(Counter { descriptor: file.into(), path })
    }

    /// Opens `name` in `folder` for reading and for being reset.
    pub(super) fn open_writable(folder: &Path, name: &str) -> Result<Counter, CgroupError> {
        let path = folder.join(name);
        let file = File::options().read(true).write(true).open(&path).map_err(failed("open for writing", &path))?;
        Ok(Counter { descriptor: file.into(), path })
    }

    /// A counter whose descriptor came from another process; `name` is for messages.
    pub(super) fn received(descriptor: OwnedFd, name: &str) -> Counter {
        Counter { descriptor, path: PathBuf::from(name) }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The file as one number.
    pub(super) fn number(&self) -> Result<u64, CgroupError> {
        self.with_text(|text| text.trim().parse().map_err(|_| self.unreadable("")))
    }

    /// The number of one line `FIELD NUMBER`.
    pub(super) fn field(&self, field: &'static str) -> Result<u64, CgroupError> {
        self.fields([field]).map(|[number]| number)
    }

    /// The numbers of several lines, in the order asked for, all from one read.
    pub(super) fn fields<const N: usize>(&self, names: [&'static str; N]) -> Result<[u64; N], CgroupError> {
        self.with_text(|text| {
            let mut numbers = [0; N];
            for (number, name) in numbers.iter_mut().zip(names) {
                *number = field_in(text, name).ok_or_else(|| self.unreadable(name))?;
            }
            Ok(numbers)
        })
    }

    /// Writes a zero, which is how a counter is asked to begin again.
    pub(super) fn reset(&self) -> Result<(), CgroupError> {
        pwrite(&self.descriptor, b"0", 0).map(drop).map_err(failed("reset", &self.path))
    }

    fn with_text<T>(&self, read: impl FnOnce(&str) -> Result<T, CgroupError>) -> Result<T, CgroupError> {
        let mut buffer = [0; TEXT_BYTES_MAX];
        let length = pread(&self.descriptor, &mut buffer, 0).map_err(failed("read", &self.path))?;
        let text = str::from_utf8(&buffer[..length]).map_err(|_| self.unreadable(""))?;
        read(text)
    }

    fn unreadable(&self, field: &'static str) -> CgroupError {
        CgroupError::Unreadable { path: self.path.clone(), field }
    }
}

/// The number of the line `FIELD NUMBER` in a file of such lines.
fn field_in(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(field_in(events, "oom"), Some(3));
        assert_eq!(field_in(events, "oom_kill"), Some(2));
        assert_eq!(field_in(events, "oom_group_kill"), Some(1));
        assert_eq!(field_in(events, "oom_"), None);
        assert_eq!(field_in("oom_kill many\n", "oom_kill"), None);
    }

    #[test]
    fn a_counter_reads_again_what_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cpu.stat");
        std::fs::write(&path, "usage_usec 10\nuser_usec 7\n").unwrap();
        let counter = Counter::open(folder.path(), "cpu.stat").unwrap();
        assert_eq!(counter.fields(["user_usec", "usage_usec"]).unwrap(), [7, 10]);
        std::fs::write(&path, "usage_usec 25\nuser_usec 9\n").unwrap();
        assert_eq!(counter.field("usage_usec").unwrap(), 25);
        let error = counter.field("system_usec").unwrap_err().to_string();
        assert!(error.ends_with("/cpu.stat` has no number `system_usec`"), "{error}");
    }
}
