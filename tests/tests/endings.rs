//! A job says why it ended, and each cause is told apart from every other.

use std::time::{Duration, Instant};

use ampoule_client::types::{EndingKind, Job, JobRequest, JobState, LimitsRequest, Writable};
use ampoule_tests::service::{command, kind, shell, stderr, stdout};
use ampoule_tests::{Service, patience, slowness};
use nix::sys::signal::Signal;

const MIB: u64 = 1024 * 1024;

fn limited(request: JobRequest, limits: LimitsRequest) -> JobRequest {
    JobRequest { limits, ..request }
}

fn exit_code(job: &Job) -> Option<i32> {
    job.ending.as_ref().and_then(|ending| ending.exit_code)
}

#[track_caller]
fn check_kind(job: &Job, expected: EndingKind) {
    assert_eq!(kind(job), expected, "{:?}\n{:?}", job.ending, job.stderr);
}

#[test]
fn a_service_that_is_slow_to_look_finds_the_figures_of_its_job_and_no_others() {
    let service = Service::start();
    // Slow machines get longer pauses, so that each thing below has happened when the next begins.
    let unit = Duration::from_millis(250) * slowness();
    let line = format!("head -c 16777216 /dev/zero > /tmp/x; sleep {}", 2.0 * unit.as_secs_f64());
    service.run(&shell("true"));
    std::thread::sleep(unit);
    std::thread::scope(|scope| {
        let job = scope.spawn(|| service.run(&shell(&line)));
        std::thread::sleep(unit);
        // The sandbox ends, and its place is cleaned up for the next, while the service cannot look.
        let stopped = |signal| nix::sys::signal::kill(service.pid(), signal).expect("it is ours");
        stopped(Signal::SIGSTOP);
        std::thread::sleep(6 * unit);
        stopped(Signal::SIGCONT);
        let job = job.join().expect("it answers");
        assert_eq!(kind(&job), EndingKind::Exited, "{:?}", job.ending);
        let peak = job.figures.expect("it ran").memory_peak_bytes;
        assert!(peak >= 16 << 20, "{peak}");
    });
}

#[test]
fn a_job_that_returns_says_its_exit_code() {
    let service = Service::start();
    for code in [0, 1, 3, 126, 137, 255] {
        let job = service.run(&shell(&format!("exit {code}")));
        check_kind(&job, EndingKind::Exited);
        assert_eq!(exit_code(&job), Some(code));
    }
}

#[test]
fn a_job_that_dies_of_a_signal_names_it() {
    let service = Service::start();
    for (name, number) in [("SEGV", 11), ("KILL", 9), ("ABRT", 6), ("TERM", 15)] {
        let job = service.run(&shell(&format!("kill -{name} $$; sleep 5")));
        check_kind(&job, EndingKind::Signaled);
        assert_eq!(job.ending.and_then(|ending| ending.signal), Some(number), "{name}");
    }
}

#[test]
fn a_program_that_is_missing_or_not_executable_ends_like_in_a_shell() {
    let service = Service::start();
    let missing = service.run(&command(&["/bin/no-such-program"]));
    check_kind(&missing, EndingKind::Exited);
    assert_eq!(exit_code(&missing), Some(127));
    assert!(missing.ending.and_then(|ending| ending.detail).is_some_and(|detail| detail.contains("no-such-program")));

    let not_executable = service.run(&command(&["/bin/not-executable"]));
    check_kind(&not_executable, EndingKind::Exited);
    assert_eq!(exit_code(&not_executable), Some(126));
}

#[test]
fn a_job_out_of_memory_says_so() {
    let service = Service::start();
    let limits = LimitsRequest { memory_bytes: Some(32 * MIB), ..LimitsRequest::default() };
    let job = service.run(&limited(command(&["inside", "eat", "268435456"]), limits));
    check_kind(&job, EndingKind::OutOfMemory);
    assert!(job.figures.is_some_and(|figures| figures.oom_kills > 0), "{:?}", job.figures);
}

#[test]
fn a_child_out_of_memory_is_told_even_when_its_parent_reports_an_exit_code() {
    let service = Service::start();
    let limits = LimitsRequest { memory_bytes: Some(32 * MIB), ..LimitsRequest::default() };
    let job = service.run(&limited(shell("inside eat 268435456; exit 9"), limits));
    check_kind(&job, EndingKind::OutOfMemory);
}

#[test]
fn a_writable_path_counts_towards_the_memory_limit() {
    let service = Service::start();
    let request = JobRequest {
        writable: vec![Writable { path: "/work".to_owned(), size_bytes: 256 * MIB, inodes: None }],
        limits: LimitsRequest { memory_bytes: Some(32 * MIB), ..LimitsRequest::default() },
        ..shell("dd if=/dev/zero of=/work/zeros bs=1M count=200")
    };
    check_kind(&service.run(&request), EndingKind::OutOfMemory);
}

#[test]
fn a_fork_bomb_ends_at_the_pids_limit() {
    let service = Service::start();
    let limits = LimitsRequest { pids: Some(16), ..LimitsRequest::default() };
    let job = service.run(&limited(command(&["inside", "children", "200"]), limits));
    check_kind(&job, EndingKind::PidsLimit);
    assert!(job.figures.is_some_and(|figures| figures.pids_refused > 0), "{:?}", job.figures);
}

#[test]
fn threads_count_towards_the_pids_limit() {
    let service = Service::start();
    let limits = LimitsRequest { pids: Some(16), ..LimitsRequest::default() };
    let job = service.run(&limited(command(&["inside", "threads", "200"]), limits));
    check_kind(&job, EndingKind::PidsLimit);
}

#[test]
fn an_endless_job_ends_at_the_wall_limit_and_not_later() {
    let service = Service::start();
    let limits = LimitsRequest { wall_time_ms: Some(500), ..LimitsRequest::default() };
    let started = Instant::now();
    let job = service.run(&limited(command(&["sleep", "1000"]), limits));
    check_kind(&job, EndingKind::WallLimit);
    assert!(started.elapsed() < patience(Duration::from_secs(4)), "it took {:?}", started.elapsed());
}

#[test]
fn a_job_that_ignores_signals_ends_at_the_wall_limit_all_the_same() {
    let service = Service::start();
    let limits = LimitsRequest { wall_time_ms: Some(500), ..LimitsRequest::default() };
    let job = service.run(&limited(command(&["inside", "ignore-term"]), limits));
    check_kind(&job, EndingKind::WallLimit);
}

#[test]
fn a_spinning_job_ends_at_the_cpu_limit() {
    let service = Service::start();
    let limits = LimitsRequest { cpu_time_ms: Some(300), wall_time_ms: Some(30_000), ..LimitsRequest::default() };
    let job = service.run(&limited(command(&["inside", "spin", "1000"]), limits));
    check_kind(&job, EndingKind::CpuLimit);
}

#[test]
fn the_processor_time_of_all_processes_counts_together() {
    let service = Service::start();
    let limits = LimitsRequest { cpu_time_ms: Some(600), wall_time_ms: Some(30_000), ..LimitsRequest::default() };
    let line = "inside spin 1000 & inside spin 1000 & inside spin 1000 & wait";
    check_kind(&service.run(&limited(shell(line), limits)), EndingKind::CpuLimit);
}

#[test]
fn a_job_that_writes_more_than_it_may_ends_at_the_output_limit() {
    let service = Service::start();
    let limits = LimitsRequest { output_total_bytes: Some(2 * MIB), ..LimitsRequest::default() };
    let job = service.run(&limited(shell("cat /dev/zero"), limits));
    check_kind(&job, EndingKind::OutputLimit);
}

#[test]
fn a_job_that_fails_on_a_full_writable_path_says_so() {
    let service = Service::start();
    let request = JobRequest {
        writable: vec![Writable { path: "/work".to_owned(), size_bytes: MIB, inodes: None }],
        ..shell("dd if=/dev/zero of=/work/zeros bs=64k count=100")
    };
    check_kind(&service.run(&request), EndingKind::DiskLimit);
}

#[test]
fn a_cancelled_job_is_gone_at_once_and_says_so() {
    let service = Service::start();
    let job = service.submit(&command(&["inside", "ignore-term"]));
    service.wait_for(&job.id, |job| job.state == JobState::Running);
    let asked = Instant::now();
    let answer = service.post(&format!("/v1/jobs/{}/cancel", job.id), &serde_json::json!({}));
    assert!((200..300).contains(&answer.status), "{}", answer.text());
    let job = service.wait(&job.id);
    check_kind(&job, EndingKind::Cancelled);
    assert!(asked.elapsed() < patience(Duration::from_secs(2)), "it took {:?}", asked.elapsed());
}

#[test]
fn an_end_takes_every_process_of_the_job_along() {
    let service = Service::start();
    let started = Instant::now();
    let job = service.run(&command(&["inside", "orphan", "1000"]));
    check_kind(&job, EndingKind::Exited);
    assert_eq!(stdout(&job), "parent ends\n");
    assert!(started.elapsed() < patience(Duration::from_secs(5)), "it waited for an orphan: {:?}", started.elapsed());
}

#[test]
fn a_failed_job_keeps_what_it_wrote() {
    let service = Service::start();
    let job = service.run(&shell("echo out; echo err >&2; exit 7"));
    assert_eq!((exit_code(&job), stdout(&job), stderr(&job)), (Some(7), "out\n", "err\n"));
}

#[test]
fn the_figures_tell_time_and_memory() {
    let service = Service::start();
    let job = service.run(&shell("inside eat 20971520 && inside spin 1"));
    check_kind(&job, EndingKind::Exited);
    let figures = job.figures.expect("an ended job has figures");
    let cpu_us = figures.cpu_user_us + figures.cpu_system_us;
    assert!(figures.memory_peak_bytes >= 20 * MIB && figures.memory_peak_bytes < 64 * MIB, "{figures:?}");
    assert!(figures.wall_us >= 10_000 && cpu_us >= 10_000, "{figures:?}");
}
