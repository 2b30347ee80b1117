//! What control groups promise, on the kernel's own ones: needs root and sh, tail, head, dd and sleep. The same tests
//! run on version 1 and on version 2.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ampoule_engine::isolation::cgroup::{CgroupError, Group, Hierarchy, Root, Usage, Version};
use ampoule_engine::spec::{Limits, MEMORY_BYTES_MIN};

const MIB: u64 = 1024 * 1024;
/// How long a test waits for something that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A root folder of its own for each test; at the end it must have left nothing.
struct Fixture {
    root: Option<Root>,
    version: Version,
    name: String,
}

impl Fixture {
    fn new() -> Fixture {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("ampoule-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let hierarchy = Hierarchy::discover().unwrap_or_else(|error| panic!("no control groups: {error}"));
        let root = hierarchy.root(&name).unwrap_or_else(|error| panic!("no root folder, is this run as root? {error}"));
        Fixture { root: Some(root), version: hierarchy.version(), name }
    }

    fn root(&self) -> &Root {
        self.root.as_ref().unwrap()
    }

    fn group(&self) -> Group {
        self.root().group("job").unwrap()
    }

    fn limited(&self, limits: Limits) -> Group {
        let mut group = self.group();
        group.limit(&limits).unwrap();
        group
    }

    /// A value as the kernel has it now, in the file of either version.
    fn value(&self, v1: &str, v2: &str) -> String {
        fs::read_to_string(self.file(v1, v2)).unwrap().trim().to_owned()
    }

    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        let file = if self.version == Version::V1 { v1 } else { v2 };
        let folders = folders_named(Path::new("/sys/fs/cgroup"), &self.name);
        let found = folders.iter().map(|folder| folder.join("job").join(file)).find(|path| path.exists());
        found.unwrap_or_else(|| panic!("no {file} in the job folder of {folders:?}"))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let root = self.root.take().unwrap();
        let left = root.sweep();
        let removed = root.remove();
        if !std::thread::panicking() {
            assert_eq!(left.unwrap(), 0, "the test left groups");
            removed.unwrap();
            let mut folders = folders_named(Path::new("/sys/fs/cgroup"), &self.name);
            // On version 2 the test itself may have had to move into its folder.
            folders.retain(|folder| !folder.join("launcher").exists());
            assert_eq!(folders, Vec::<PathBuf>::new());
        }
    }
}

fn folders_named(below: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // Other tests' folders come and go while this one looks.
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() == name {
                found.push(entry.path())
            } else {
                found.extend(folders_named(&entry.path(), name))
            }
        }
    }
    found
}

fn limits() -> Limits {
    Limits {
        memory_bytes: 64 * MIB,
        cpu_milli: 1000,
        pids: 32,
        cpu_time_ms: 1000,
        wall_time_ms: 1000,
        open_files: 64,
        file_bytes: MIB,
    }
}

/// Starts a shell that joins the group, through the descriptors that the group hands out, and runs `script`.
fn start(group: &Group, script: &str) -> Child {
    let us = std::process::id();
    let mut doors: Vec<_> =
        group.join_descriptors().iter().map(|door| format!("/proc/{us}/fd/{}", door.as_raw_fd())).collect();
    doors.extend(group.birth_descriptor().map(|folder| format!("/proc/{us}/fd/{}/cgroup.procs", folder.as_raw_fd())));
    let join: String = doors.iter().map(|door| format!("echo 0 > {door} || exit 99\n")).collect();
    Command::new("sh").args(["-c", &format!("{join}{script}")]).stderr(Stdio::null()).spawn().unwrap()
}

fn run(group: &Group, script: &str) -> ExitStatus {
    start(group, script).wait().unwrap()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Holds 20 MB for a moment.
const EAT: &str = "head -c 20000000 /dev/zero | tail -c 20000000 > /dev/null";
/// Takes some 0.1 s of processor time.
const BURN: &str = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";

#[test]
fn a_new_group_is_not_without_limits() {
    let fixture = Fixture::new();
    let group = fixture.group();
    assert_eq!(fixture.value("memory.limit_in_bytes", "memory.max"), MEMORY_BYTES_MIN.to_string());
    assert_eq!(fixture.value("pids.max", "pids.max"), "2");
    assert_eq!(fixture.value("cpu.cfs_quota_us", "cpu.max").split(' ').next(), Some("100000"));
    group.remove().unwrap();
}

#[test]
fn limits_are_in_force_as_asked_when_raised_and_when_lowered() {
    let fixture = Fixture::new();
    let mut group = fixture.group();
    for (memory_mib, pids, cpu_milli) in [(64, 32, 1000), (256, 8, 2500), (16, 512, 10)] {
        // Not a whole number of pages: the kernel rounds down.
        group.limit(&Limits { memory_bytes: memory_mib * MIB + 1000, pids, cpu_milli, ..limits() }).unwrap();
        let bytes = (memory_mib * MIB).to_string();
        assert_eq!(fixture.value("memory.limit_in_bytes", "memory.max"), bytes);
        assert_eq!(fixture.value("pids.max", "pids.max"), pids.to_string());
        let quota_us = cpu_milli * 100;
        match fixture.version {
            Version::V1 => {
                assert_eq!(fixture.value("memory.memsw.limit_in_bytes", ""), bytes);
                assert_eq!(fixture.value("cpu.cfs_quota_us", ""), quota_us.to_string());
                assert_eq!(fixture.value("cpu.cfs_period_us", ""), "100000");
            }
            Version::V2 => {
                assert_eq!(fixture.value("", "memory.swap.max"), "0");
                assert_eq!(fixture.value("", "memory.oom.group"), "1");
                assert_eq!(fixture.value("", "cpu.max"), format!("{quota_us} 100000"));
            }
        }
    }
    group.remove().unwrap();
}

#[test]
fn a_limit_that_is_in_force_is_not_written_again() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(limits());
    fs::write(fixture.file("pids.max", "pids.max"), "7").unwrap();
    group.limit(&Limits { cpu_milli: 500, ..limits() }).unwrap();
    assert_eq!(fixture.value("pids.max", "pids.max"), "7");
    group.limit(&Limits { pids: 33, ..limits() }).unwrap();
    assert_eq!(fixture.value("pids.max", "pids.max"), "33");
    group.remove().unwrap();
}

#[test]
fn a_limit_that_cannot_be_applied_is_an_error() {
    let fixture = Fixture::new();
    let mut group = fixture.group();
    let error = group.limit(&Limits { pids: u32::MAX, ..limits() }).unwrap_err();
    assert!(matches!(error, CgroupError::Refused { .. }), "{error:?}");
    assert!(error.to_string().ends_with("pids.max` to 4294967295"), "{error}");
    group.remove().unwrap();
}

#[test]
fn usage_is_counted_from_begin() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(limits());
    run(&group, BURN);
    assert!(group.usage().unwrap().cpu_total_us > 0);
    group.begin().unwrap();
    assert_eq!(group.cpu_time_us().unwrap(), 0);
    let usage = group.usage().unwrap();
    assert_eq!(usage, Usage { memory_peak_bytes: usage.memory_peak_bytes, ..Usage::default() });
    run(&group, BURN);
    let usage = group.usage().unwrap();
    assert!(usage.cpu_total_us > 10_000, "{usage:?}");
    assert_eq!(usage.cpu_user_us + usage.cpu_system_us, usage.cpu_total_us);
    assert_eq!(usage.cpu_total_us, group.cpu_time_us().unwrap());
    assert_eq!((usage.oom_kills, usage.pids_refused), (0, 0));
    group.remove().unwrap();
}

#[test]
fn the_highest_memory_use_is_known_after_the_end() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(limits());
    group.begin().unwrap();
    assert!(run(&group, EAT).success());
    let peak = group.usage().unwrap().memory_peak_bytes;
    assert!((20_000_000..64 * MIB).contains(&peak), "{peak}");
    group.remove().unwrap();
}

#[test]
fn a_process_that_the_kernel_kills_for_memory_is_counted() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(Limits { memory_bytes: 16 * MIB, ..limits() });
    group.begin().unwrap();
    let status = run(&group, "exec tail /dev/zero");
    assert_eq!(status.signal(), Some(9));
    let usage = group.usage().unwrap();
    assert!(usage.oom_kills >= 1, "{usage:?}");
    assert!(usage.memory_peak_bytes > 8 * MIB && usage.memory_peak_bytes <= 16 * MIB, "{usage:?}");
    group.remove().unwrap();
}

#[test]
fn a_refused_process_is_counted() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(Limits { pids: 4, ..limits() });
    group.begin().unwrap();
    run(&group, "for i in 1 2 3 4 5 6; do sleep 60 & done");
    assert!(group.usage().unwrap().pids_refused >= 1);
    assert!(!group.is_empty().unwrap());
    group.kill().unwrap();
    group.remove().unwrap();
}

#[test]
fn the_time_that_a_processor_share_holds_back_is_counted() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(Limits { cpu_milli: 50, ..limits() });
    group.begin().unwrap();
    let mut child = start(&group, "while :; do :; done");
    until("it was throttled", || group.usage().unwrap().throttled_us > 50_000);
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
}

#[test]
fn killing_leaves_nothing_of_a_group_that_keeps_forking() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(limits());
    assert!(group.is_empty().unwrap());
    let mut child = start(&group, "while :; do (while :; do sleep 0.01 & sleep 0.01; done) & sleep 0.01; done");
    until("it forked", || fixture.value("pids.current", "pids.current").parse::<u32>().unwrap() > 10);
    group.kill().unwrap();
    assert!(group.is_empty().unwrap());
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    group.remove().unwrap();
}

#[test]
fn a_process_without_processor_time_left_dies_at_once() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(Limits { cpu_milli: 10, ..limits() });
    group.begin().unwrap();
    let mut child = start(&group, "while :; do :; done");
    until("it was throttled", || group.usage().unwrap().throttled_us > 0);
    group.kill().unwrap();
    child.wait().unwrap();

    group.limit(&Limits { cpu_milli: 10, ..limits() }).unwrap();
    assert!(fixture.value("cpu.cfs_quota_us", "cpu.max").starts_with("1000"));
    group.lift_cpu_limit().unwrap();
    let unlimited = fixture.value("cpu.cfs_quota_us", "cpu.max");
    assert!(["-1", "max 100000"].contains(&unlimited.as_str()), "{unlimited}");
    group.remove().unwrap();
}

#[test]
fn limits_hold_again_after_a_kill() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(limits());
    let mut child = start(&group, "sleep 60");
    until("it joined", || !group.is_empty().unwrap());
    fs::write(fixture.file("pids.max", "pids.max"), "0").unwrap();
    group.kill().unwrap();
    child.wait().unwrap();
    group.limit(&limits()).unwrap();
    assert_eq!(fixture.value("pids.max", "pids.max"), "32");
    group.remove().unwrap();
}

#[test]
fn a_sweep_kills_and_removes_what_a_former_launcher_left() {
    let fixture = Fixture::new();
    let mut children = Vec::new();
    for name in ["one", "two"] {
        let group = fixture.root().group(name).unwrap();
        children.push(start(&group, "sleep 60"));
        until("it joined", || !group.is_empty().unwrap());
        // As after kill -9 of the launcher: nobody cleans up.
        std::mem::forget(group);
    }
    assert_eq!(fixture.root().sweep().unwrap(), 2);
    for mut child in children {
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    assert_eq!(fixture.root().sweep().unwrap(), 0);
}

#[test]
fn a_group_is_used_again_only_with_nothing_of_the_last_job_in_it() {
    let fixture = Fixture::new();
    let mut group = fixture.limited(limits());
    group.begin().unwrap();
    assert!(run(&group, EAT).success());
    let Some(mut group) = group.recycle().unwrap() else {
        assert_eq!(fixture.version, Version::V2, "a clean group of version 1 is used again");
        return;
    };
    group.begin().unwrap();
    let usage = group.usage().unwrap();
    assert!(usage.memory_peak_bytes <= MIB, "{usage:?}");
    assert_eq!(usage, Usage { memory_peak_bytes: usage.memory_peak_bytes, ..Usage::default() });

    let folder = tempfile::tempdir().unwrap();
    let script = format!("dd if=/dev/zero of={}/cached bs=1M count=8", folder.path().display());
    assert!(run(&group, &script).success());
    assert!(group.recycle().unwrap().is_none(), "8 MiB of file cache are charged to it");
    fixture.root().group("job").unwrap().remove().unwrap();
}

#[test]
fn a_group_whose_processes_were_not_waited_for_is_not_used_again() {
    let fixture = Fixture::new();
    let group = fixture.limited(limits());
    let mut child = start(&group, "exit 0");
    let process = format!("/proc/{}/stat", child.id());
    until("it ended", || fs::read_to_string(&process).unwrap().contains(") Z "));
    assert!(group.is_empty().unwrap());
    assert!(group.recycle().unwrap().is_none());
    child.wait().unwrap();
}

#[test]
fn a_name_is_given_once() {
    let fixture = Fixture::new();
    let group = fixture.group();
    assert!(matches!(fixture.root().group("job"), Err(CgroupError::File { .. })));
    group.remove().unwrap();
}

#[test]
fn a_dropped_group_is_gone() {
    let fixture = Fixture::new();
    drop(fixture.limited(limits()));
    fixture.group().remove().unwrap();
}

#[test]
fn a_group_in_use_is_not_removed() {
    let fixture = Fixture::new();
    let group = fixture.limited(limits());
    let mut child = start(&group, "sleep 60");
    until("it joined", || !group.is_empty().unwrap());
    assert!(matches!(group.remove(), Err(CgroupError::File { action: "remove", .. })));
    assert_eq!(fixture.root().sweep().unwrap(), 1);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}
