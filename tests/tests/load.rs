//! Many jobs: at once, and one after another without anything growing.

use std::sync::atomic::{AtomicU32, Ordering};

use ampoule_client::types::{EndingKind, Job, JobRequest, LimitsRequest};
use ampoule_tests::service::{command, kind, shell, stdout};
use ampoule_tests::{Options, Service, host};

/// Jobs at once.
const AT_ONCE: usize = 200;
/// Jobs in a row, and before anything is measured: pools and caches are full then.
const IN_A_ROW: u32 = 10_000;
const WARM_UP: u32 = 1_000;
/// Connections that send them.
const CONNECTIONS: usize = 4;
/// Most places for sandboxes: three for each that may be alive, which are 4 with jobs, 4 made ahead and 5 workers.
const PLACES_MAX: usize = 3 * (4 + 4 + 5);
/// Most descriptors that the launcher holds for one control group of a place: its files, and the place's namespaces.
const DESCRIPTORS_PER_CGROUP: usize = 12;

#[test]
fn two_hundred_jobs_at_once_each_get_their_own_answer() {
    let service = Service::start();
    let limits = LimitsRequest { memory_bytes: Some(32 << 20), ..LimitsRequest::default() };
    std::thread::scope(|scope| {
        for number in 0..AT_ONCE {
            let (service, limits) = (&service, limits.clone());
            scope.spawn(move || {
                let line = format!("echo {number}; sleep 0.2; echo {number} >&2; exit {}", number % 100);
                let job = service.run(&JobRequest { limits, ..shell(&line) });
                assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, format!("{number}\n").as_str()));
                assert_eq!(job.ending.and_then(|ending| ending.exit_code), Some((number % 100) as i32));
            });
        }
    });
}

/// What must not grow.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    service_descriptors: usize,
    launcher_descriptors: usize,
    launcher_mounts: usize,
    cgroups: usize,
    processes: usize,
    service_memory_bytes: u64,
    launcher_memory_bytes: u64,
}

fn footprint(service: &Service) -> Footprint {
    let (pid, launcher) = (service.pid().as_raw(), service.launcher().as_raw());
    Footprint {
        service_descriptors: host::descriptors(pid),
        launcher_descriptors: host::descriptors(launcher),
        launcher_mounts: host::mounts_of(launcher),
        cgroups: host::cgroups_of_instance(&service.state()).len(),
        processes: host::descendants(pid).len(),
        service_memory_bytes: host::memory_bytes(pid),
        launcher_memory_bytes: host::memory_bytes(launcher),
    }
}

fn run_in_a_row(service: &Service, count: u32) {
    let next = AtomicU32::new(0);
    let body = serde_json::to_vec(&command(&["true"])).expect("it is JSON");
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut connection = service.connect();
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    let headers = [("content-type", "application/json")];
                    let answer = connection.send("POST", "/v1/jobs?wait=60", &headers, &body).expect("it answers");
                    let job: Job = answer.json();
                    let code = job.ending.as_ref().and_then(|ending| ending.exit_code);
                    assert_eq!(code, Some(0), "{:?} {:?}", job.ending, job.figures);
                }
            });
        }
    });
}

#[test]
fn ten_thousand_jobs_in_a_row_leave_no_trace() {
    const MIB: u64 = 1 << 20;
    let arguments = ["--concurrency", "4", "--warm", "4"].map(str::to_owned).to_vec();
    let service = Service::with(Options { arguments, ..Options::default() });
    run_in_a_row(&service, WARM_UP);
    let before = footprint(&service);
    run_in_a_row(&service, IN_A_ROW);
    let after = footprint(&service);
    eprintln!("before {before:?}\nafter  {after:?}");
    // Jobs that are just being taken down, and sandboxes that are just being made ahead, may differ by a few.
    assert!(after.service_descriptors <= before.service_descriptors + 16, "{before:?} {after:?}");
    // Places are made when a crowd needs them, up to a bound, and kept with their control groups and descriptors.
    let most_cgroups = (PLACES_MAX + 1) * host::cgroup_hierarchies().len();
    assert!(after.cgroups <= most_cgroups, "more than {most_cgroups}: {before:?} {after:?}");
    let new_cgroups = after.cgroups.saturating_sub(before.cgroups);
    let most_descriptors = before.launcher_descriptors + 16 + new_cgroups * DESCRIPTORS_PER_CGROUP;
    assert!(after.launcher_descriptors <= most_descriptors, "{before:?} {after:?}");
    assert!(after.launcher_mounts <= before.launcher_mounts + 8, "{before:?} {after:?}");
    assert!(after.processes <= before.processes + 8, "{before:?} {after:?}");
    assert!(after.service_memory_bytes <= before.service_memory_bytes + 16 * MIB, "{before:?} {after:?}");
    assert!(after.launcher_memory_bytes <= before.launcher_memory_bytes + 2 * MIB, "{before:?} {after:?}");
}
