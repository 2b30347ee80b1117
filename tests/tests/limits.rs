//! What a job may use is enforced by the kernel: read back from outside while it runs, and met from inside.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ampoule_client::types::{EndingKind, Job, JobRequest, JobState, LimitsRequest, Writable};
use ampoule_tests::service::{command, kind, shell, stdout};
use ampoule_tests::{Service, host, patience};

const MIB: u64 = 1024 * 1024;

/// A job that sleeps, and the host's number of the process that sleeps in it.
fn sleeping(service: &Service, limits: LimitsRequest) -> (Job, i32) {
    let job = service.submit(&JobRequest { limits, ..command(&["sleep", "1000"]) });
    service.wait_for(&job.id, |job| job.state == JobState::Running);
    let deadline = std::time::Instant::now() + patience(Duration::from_secs(20));
    loop {
        let below = host::descendants(service.pid().as_raw());
        if let Some(process) = below.iter().find(|process| process.name == "sleep") {
            return (job, process.pid);
        }
        assert!(std::time::Instant::now() < deadline, "no sleeping process: {below:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn cancel(service: &Service, job: &Job) {
    service.post(&format!("/v1/jobs/{}/cancel", job.id), &serde_json::json!({}));
    service.wait(&job.id);
}

fn read(group: Option<PathBuf>, file: &str) -> String {
    let path = group.expect("the process is in a control group").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

#[test]
fn the_control_groups_hold_the_limits_that_were_asked_for() {
    let service = Service::start();
    let limits =
        LimitsRequest { memory_bytes: Some(48 * MIB), pids: Some(23), cpus: Some(0.5), ..LimitsRequest::default() };
    let (job, pid) = sleeping(&service, limits);
    let (memory, pids, cpu) =
        (host::cgroup_of(pid, "memory"), host::cgroup_of(pid, "pids"), host::cgroup_of(pid, "cpu"));
    if host::has_only_cgroup_v2() {
        assert_eq!(read(memory.clone(), "memory.max"), (48 * MIB).to_string());
        assert_eq!(read(memory, "memory.swap.max"), "0");
        let quota = read(cpu, "cpu.max");
        let (quota, period) = quota.split_once(' ').expect("two numbers");
        assert_eq!(2 * quota.parse::<u64>().expect("a number"), period.parse::<u64>().expect("a number"));
    } else {
        assert_eq!(read(memory.clone(), "memory.limit_in_bytes"), (48 * MIB).to_string());
        assert_eq!(read(memory, "memory.memsw.limit_in_bytes"), (48 * MIB).to_string());
        let number = |file| read(cpu.clone(), file).parse::<u64>().expect("a number");
        assert_eq!(2 * number("cpu.cfs_quota_us"), number("cpu.cfs_period_us"));
    }
    assert_eq!(read(pids, "pids.max"), "23");
    cancel(&service, &job);
}

#[test]
fn half_a_processor_is_half_a_processor() {
    let service = Service::start();
    let limits = LimitsRequest { cpus: Some(0.25), ..LimitsRequest::default() };
    let job = service.run(&JobRequest { limits, ..command(&["inside", "spin", "3"]) });
    let figures = job.figures.expect("an ended job has figures");
    let cpu_us = figures.cpu_user_us + figures.cpu_system_us;
    assert!(cpu_us * 100 <= figures.wall_us * 45, "more than a quarter: {figures:?}");
    assert!(figures.throttled_us > 0, "{figures:?}");
}

#[test]
fn memory_up_to_the_limit_can_be_used() {
    let service = Service::start();
    let limits = LimitsRequest { memory_bytes: Some(64 * MIB), ..LimitsRequest::default() };
    let job = service.run(&JobRequest { limits, ..command(&["inside", "eat", "50331648"]) });
    assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, "ate 50331648\n"));
}

#[test]
fn as_many_processes_as_the_limit_says_can_live() {
    let service = Service::start();
    let limits = LimitsRequest { pids: Some(32), ..LimitsRequest::default() };
    // The sandbox's own first process and the command itself are counted.
    let job = service.run(&JobRequest { limits, ..command(&["inside", "children", "30"]) });
    assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, "children 30\n"));
}

#[test]
fn a_process_has_the_descriptors_and_the_file_size_that_were_asked_for_and_leaves_no_core() {
    let service = Service::start();
    let limits = LimitsRequest { open_files: Some(40), file_bytes: Some(MIB), ..LimitsRequest::default() };
    let line = "ulimit -n; ulimit -f; ulimit -c; dd if=/dev/zero of=/tmp/zeros bs=1M count=3; wc -c </tmp/zeros";
    let job = service.run(&JobRequest { limits, ..shell(line) });
    // busybox counts file sizes in blocks of 512 bytes.
    assert_eq!(stdout(&job), "40\n2048\n0\n1048576\n");
}

#[test]
fn a_writable_path_is_limited_in_bytes_and_in_inodes() {
    let service = Service::start();
    let request = JobRequest {
        writable: vec![Writable { path: "/tmp".to_owned(), size_bytes: MIB, inodes: Some(100) }],
        ..shell(
            "inside files 1000; rm -f /tmp/*; dd if=/dev/zero of=/tmp/zeros bs=64k count=100; wc -c </tmp/zeros; exit 0",
        )
    };
    let job = service.run(&request);
    let output = stdout(&job);
    let (files, bytes) = output.split_once('\n').expect("two lines");
    assert!(files.ends_with("ENOSPC"), "{files}");
    let count: u64 = files.split(' ').nth(1).and_then(|count| count.parse().ok()).expect("a count");
    assert!((90..=100).contains(&count), "{files}");
    assert_eq!(bytes.trim(), MIB.to_string());
}

#[test]
fn writable_paths_can_neither_hold_devices_nor_give_rights() {
    let service = Service::start();
    let request = JobRequest {
        writable: vec![Writable { path: "/work".to_owned(), size_bytes: MIB, inodes: None }],
        ..shell("cat /proc/self/mountinfo")
    };
    let job = service.run(&request);
    let mounts: Vec<&str> = stdout(&job).lines().collect();
    for path in ["/tmp", "/work", "/dev/shm"] {
        let line = mounts.iter().find(|line| line.split(' ').nth(4) == Some(path));
        let options =
            line.unwrap_or_else(|| panic!("{path} is not mounted: {mounts:#?}")).split(' ').nth(5).unwrap_or("");
        assert!(options.contains("nosuid") && options.contains("nodev"), "{path}: {options}");
    }
}

#[test]
fn a_limit_above_the_services_ceiling_is_refused_with_its_field() {
    let service = Service::start();
    let limits = LimitsRequest { pids: Some(4_000_000), ..LimitsRequest::default() };
    let answer = service.post("/v1/jobs", &JobRequest { limits, ..command(&["true"]) });
    assert!((400..500).contains(&answer.status), "{}", answer.text());
    let problem: ampoule_client::types::Problem = answer.json();
    assert_eq!(problem.field.as_deref(), Some("limits.pids"), "{problem:?}");
}

#[test]
fn a_limit_that_cannot_be_applied_is_an_error_and_not_forgotten() {
    let service = Service::start();
    // Less than what the kernel can give a process: it is refused before anything runs, not rounded up.
    let limits = LimitsRequest { memory_bytes: Some(4096), ..LimitsRequest::default() };
    let answer = service.post("/v1/jobs", &JobRequest { limits, ..command(&["true"]) });
    assert!((400..500).contains(&answer.status), "{}", answer.text());
}
