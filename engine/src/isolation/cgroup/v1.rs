//! Version 1: each controller has a hierarchy of its own, or shares one with others.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::counters::{Counter, Counters, Totals};
use super::error::{CgroupError, failed};
use super::folders::Folders;
use super::mounts::{self, Mount};

/// The controllers that are needed.
pub(super) const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "cpuacct"];

/// The folders of this process's own group in the hierarchies of version 1.
pub(super) fn locate(mounts: &[Mount], membership: &str) -> Result<Folders, CgroupError> {
    let [memory, pids, cpu, cpuacct] = CONTROLLERS.map(|controller| folder_of(mounts, membership, controller));
    Ok(Folders { memory: memory?, pids: pids?, cpu: cpu?, cpuacct: cpuacct? })
}

fn folder_of(mounts: &[Mount], membership: &str, controller: &'static str) -> Result<PathBuf, CgroupError> {
    let missing = |problem: &str, hint: String| CgroupError::Missing { controller, problem: problem.to_owned(), hint };
    let has_it = |mount: &&Mount| !mount.unified && mount.options.iter().any(|option| option == controller);
    let Some(mount) = mounts.iter().find(has_it) else {
        let hint = format!(
            "mount it: mkdir -p /sys/fs/cgroup/{controller} && mount -t cgroup -o {controller} cgroup \
             /sys/fs/cgroup/{controller} (if that fails, boot with cgroup_enable={controller}); or boot with \
             systemd.unified_cgroup_hierarchy=1, so that all controllers are in version 2"
        );
        return Err(missing("no hierarchy with it is mounted", hint));
    };
    if !mount.writable {
        let hint =
            format!("mount `{}` writable; in a container, give it its own writable groups", mount.point.display());
        return Err(missing("its hierarchy is mounted read-only", hint));
    }
    let Some(group) = mounts::group(membership, Some(controller)) else {
        let hint = "start in the process id and mount namespace of the host".to_owned();
        return Err(missing("/proc/self/cgroup does not say which group this process is in", hint));
    };
    Ok(mount.folder(&group))
}

/// Opens the files that a new process writes "0" to, one in each hierarchy. Through `tasks` a single thread joins at
/// once; `cgroup.procs` waits for every processor to pass a quiet state, 5 to 22 ms on an idle machine.
pub(super) fn open_join_files(folders: &Folders) -> Result<Vec<OwnedFd>, CgroupError> {
    let open = |folder: &std::path::Path| {
        let path = folder.join("tasks");
        File::options().write(true).open(&path).map(OwnedFd::from).map_err(failed("open for writing", &path))
    };
    folders.distinct().map(open).collect()
}

/// The counters of a group of version 1.
#[derive(Debug)]
pub(super) struct V1Counters {
    usage: Counter,
    usage_user: Counter,
    usage_system: Counter,
    cpu_stat: Counter,
    memory_peak: Counter,
    oom_control: Counter,
    pids_events: Counter,
    /// The peak's other descriptor, which can be written to; a meter has none.
    memory_peak_reset: Option<Counter>,
}

impl V1Counters {
    /// Opens the counters of the group in `folders`.
    pub(super) fn open(folders: &Folders) -> Result<V1Counters, CgroupError> {
        Ok(V1Counters {
            usage: Counter::open(&folders.cpuacct, "cpuacct.usage")?,
            usage_user: Counter::open(&folders.cpuacct, "cpuacct.usage_user")?,
            usage_system: Counter::open(&folders.cpuacct, "cpuacct.usage_sys")?,
            cpu_stat: Counter::open(&folders.cpu, "cpu.stat")?,
            memory_peak: Counter::open(&folders.memory, "memory.max_usage_in_bytes")?,
            memory_peak_reset: Some(Counter::open_writable(&folders.memory, "memory.max_usage_in_bytes")?),
            oom_control: Counter::open(&folders.memory, "memory.oom_control")?,
            pids_events: Counter::open(&folders.pids, "pids.events")?,
        })
    }

    /// The same counters from descriptors that another process opened, in the order of `readable`.
    pub(super) fn received(next: &mut dyn FnMut(&str) -> Option<Counter>) -> Option<V1Counters> {
        Some(V1Counters {
            usage: next("cpuacct.usage")?,
            usage_user: next("cpuacct.usage_user")?,
            usage_system: next("cpuacct.usage_sys")?,
            cpu_stat: next("cpu.stat")?,
            memory_peak: next("memory.max_usage_in_bytes")?,
            oom_control: next("memory.oom_control")?,
            pids_events: next("pids.events")?,
            memory_peak_reset: None,
        })
    }
}

impl Counters for V1Counters {
    fn totals(&self) -> Result<Totals, CgroupError> {
        Ok(Totals {
            cpu_ns: self.usage.number()?,
            user_ns: self.usage_user.number()?,
            system_ns: self.usage_system.number()?,
            // Not memory.failcnt: it stays 0 when memory and swap together are limited.
            oom_kills: self.oom_control.field("oom_kill")?,
            pids_refused: self.pids_events.field("max")?,
            throttled_us: self.cpu_stat.field("throttled_time")? / 1000,
        })
    }

    fn cpu_ns(&self) -> Result<u64, CgroupError> {
        self.usage.number()
    }

    fn memory_peak_bytes(&self) -> Result<u64, CgroupError> {
        self.memory_peak.number()
    }

    fn reset_peak(&self) -> Result<(), CgroupError> {
        self.memory_peak_reset.as_ref().map_or(Ok(()), Counter::reset)
    }

    fn readable(&self) -> Option<Vec<BorrowedFd<'_>>> {
        let all = [
            &self.usage,
            &self.usage_user,
            &self.usage_system,
            &self.cpu_stat,
            &self.memory_peak,
            &self.oom_control,
            &self.pids_events,
        ];
        Some(all.into_iter().map(Counter::as_fd).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SEPARATE: &str = "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu\n\
        33 31 0:30 / /cg/cpuacct rw - cgroup cgroup rw,cpuacct\n\
        35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory\n\
        39 31 0:36 / /cg/pids rw - cgroup cgroup rw,pids\n\
        41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n";
    const OWN: &str = "8:pids:/\n4:memory:/agent/one\n2:cpuacct:/\n1:cpu:/\n0::/\n";

    #[test]
    fn each_controller_is_found_on_its_own_mount() {
        let folders = locate(&mounts::mounts(SEPARATE), OWN).unwrap();
        assert_eq!(folders.memory, Path::new("/cg/memory/agent/one"));
        assert_eq!(folders.pids, Path::new("/cg/pids"));
        assert_eq!(folders.distinct().count(), 4);
    }

    #[test]
    fn controllers_mounted_together_share_a_folder() {
        let text = "1 1 0:1 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            2 1 0:2 / /cg/memory rw - cgroup cgroup rw,memory\n\
            3 1 0:3 /docker/a /cg/pids rw - cgroup cgroup rw,pids\n";
        let own = "3:pids:/docker/a\n2:memory:/\n1:cpu,cpuacct:/user.slice\n";
        let folders = locate(&mounts::mounts(text), own).unwrap();
        assert_eq!(folders.cpu, Path::new("/cg/cpu,cpuacct/user.slice"));
        assert_eq!(folders.pids, Path::new("/cg/pids"));
        assert_eq!(folders.distinct().count(), 3);
    }

    #[test]
    fn a_missing_or_read_only_controller_is_named_with_its_mend() {
        let without: String =
            SEPARATE.lines().filter(|line| !line.contains("pids")).map(|line| format!("{line}\n")).collect();
        let error = locate(&mounts::mounts(&without), OWN).unwrap_err().to_string();
        assert!(error.contains("`pids`") && error.contains("hint: mount it"), "{error}");
        let read_only = SEPARATE.replace("/cg/memory rw", "/cg/memory ro");
        let error = locate(&mounts::mounts(&read_only), OWN).unwrap_err().to_string();
        assert!(error.contains("`memory`") && error.contains("read-only"), "{error}");
    }
}
