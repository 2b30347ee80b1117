//! A job that was acknowledged is never lost, however the service or its launcher is killed; and whatever of them
//! lived is gone.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

use ampoule_client::types::{EndingKind, Job, JobRequest, JobState};
use ampoule_tests::http::Connection;
use ampoule_tests::service::{command, kind, shell, stdout};
use ampoule_tests::{Service, host, patience};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;

/// How often the service or its launcher is killed.
const KILLS: u32 = 50;
/// Clients that submit while that happens.
const CLIENTS: u32 = 4;
/// The code with which the service ends when its launcher is gone, so that its supervisor starts both again.
const LAUNCHER_GONE: i32 = 70;

/// Numbers below a bound, different in every run; the seed is shown when a test fails.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish() | 1;
        eprintln!("seed {seed}");
        Random(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a client knows of a job: its output, when it was told its end.
type Ledger = BTreeMap<String, Option<String>>;

/// Submits jobs until nobody answers any more; gives what was acknowledged.
fn submit_until_killed(socket: &std::path::Path, client: u32) -> Ledger {
    let mut ledger = Ledger::new();
    let Ok(mut connection) = Connection::open(socket) else { return ledger };
    for number in 0..10_000 {
        let retries = Some(if number % 2 == 0 { 3 } else { 0 });
        let request = JobRequest { retries, ..shell(&format!("sleep 0.0{}; echo {client}-{number}", number % 5)) };
        let body = serde_json::to_vec(&request).expect("it is JSON");
        let target = if number % 3 == 0 { "/v1/jobs?wait=20" } else { "/v1/jobs" };
        let Ok(answer) = connection.send("POST", target, &[("content-type", "application/json")], &body) else { break };
        if answer.status == 429 || answer.status == 503 {
            continue;
        }
        assert!((200..300).contains(&answer.status), "{}", answer.text());
        let job: Job = answer.json();
        let told = (job.state == JobState::Ended && kind(&job) == EndingKind::Exited).then(|| stdout(&job).to_owned());
        ledger.insert(job.id, told);
    }
    ledger
}

#[test]
fn no_acknowledged_job_is_lost_when_service_or_launcher_are_killed_again_and_again() {
    let mut random = Random::new();
    let mut service = Service::start();
    let mut ledger = Ledger::new();
    for round in 0..KILLS {
        let socket = service.socket();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let socket = socket.clone();
                std::thread::spawn(move || submit_until_killed(&socket, client))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(random.below(200)));
        if round % 2 == 0 {
            service.kill(Signal::SIGKILL);
        } else {
            kill(service.launcher(), Signal::SIGKILL).expect("it is root's, and so are we");
            let status = service.wait_for_end();
            assert!(
                matches!(status, WaitStatus::Exited(_, LAUNCHER_GONE)),
                "round {round}: {status:?}\n{}",
                service.log()
            );
        }
        for client in clients {
            ledger.extend(client.join().expect("a client does not fail"));
        }
        check_no_process_is_left(&service, round);
        service.spawn();
    }
    check_ledger(&service, &ledger);
}

fn check_no_process_is_left(service: &Service, round: u32) {
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    loop {
        let left = service.processes_left();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "round {round}: {left:?}\n{}", service.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn check_ledger(service: &Service, ledger: &Ledger) {
    assert!(ledger.len() > KILLS as usize, "only {} jobs were taken", ledger.len());
    let mut lost = 0;
    for (id, told) in ledger {
        let job: Job = service.get(&format!("/v1/jobs/{id}?wait=60")).json();
        assert_eq!(job.state, JobState::Ended, "{job:#?}");
        let ending = job.ending.as_ref().expect("it ended");
        match (ending.kind, told) {
            (EndingKind::Exited, Some(output)) => assert_eq!(stdout(&job), output, "{job:#?}"),
            (EndingKind::Exited, None) => assert_eq!(ending.exit_code, Some(0), "{job:#?}"),
            // What a client was told does not change any more, and with tries left a lost job is run again.
            (EndingKind::Failed, None) => {
                assert!(ending.retryable, "{job:#?}");
                assert!(job.retries == 0 || job.attempt > job.retries, "{job:#?}");
                lost += 1;
            }
            _ => panic!("told {told:?}: {job:#?}"),
        }
    }
    eprintln!("{} jobs, {lost} of them ended as failures of the infrastructure", ledger.len());
}

#[test]
fn a_job_that_ran_when_the_service_was_killed_is_a_retryable_failure() {
    let mut service = Service::start();
    let job = service.submit(&command(&["sleep", "1000"]));
    service.wait_for(&job.id, |job| job.state == JobState::Running);
    service.kill(Signal::SIGKILL);
    check_no_process_is_left(&service, 0);
    service.spawn();
    let job = service.wait(&job.id);
    assert_eq!(kind(&job), EndingKind::Failed);
    assert!(job.ending.is_some_and(|ending| ending.retryable));
}

#[test]
fn a_job_with_tries_left_is_run_again_after_the_service_was_killed() {
    let mut service = Service::start();
    let job = service.submit(&JobRequest { retries: Some(1), ..shell("sleep 1; echo done") });
    service.wait_for(&job.id, |job| job.state == JobState::Running);
    service.kill(Signal::SIGKILL);
    service.spawn();
    let job = service.wait(&job.id);
    assert_eq!((kind(&job), stdout(&job), job.attempt), (EndingKind::Exited, "done\n", 2));
}

#[test]
fn the_launchers_end_ends_the_service_and_every_sandbox() {
    let mut service = Service::start();
    let job = service.submit(&command(&["inside", "ignore-term"]));
    service.wait_for(&job.id, |job| job.state == JobState::Running);
    kill(service.launcher(), Signal::SIGKILL).expect("it is root's, and so are we");
    let status = service.wait_for_end();
    assert!(matches!(status, WaitStatus::Exited(_, LAUNCHER_GONE)), "{status:?}\n{}", service.log());
    check_no_process_is_left(&service, 0);
    service.spawn();
    assert_eq!(kind(&service.wait(&job.id)), EndingKind::Failed);
}

#[test]
fn what_a_killed_instance_left_is_swept_at_the_next_start() {
    let mut service = Service::start();
    let job = service.submit(&command(&["sleep", "1000"]));
    service.wait_for(&job.id, |job| job.state == JobState::Running);
    kill(service.launcher(), Signal::SIGKILL).expect("it is root's, and so are we");
    service.wait_for_end();
    let before = host::cgroups_of_instance(&service.state());
    service.spawn();
    service.stop();
    let after = host::cgroups_of_instance(&service.state());
    assert!(after.len() <= before.len(), "{after:#?}");
}

#[test]
fn images_and_results_are_there_after_a_restart() {
    let mut service = Service::start();
    let job = service.run(&shell("echo kept; echo apart >&2"));
    service.stop();
    service.spawn();
    assert_eq!(service.job(&job.id), job);
    assert_eq!(stdout(&service.run(&shell("echo again"))), "again\n");
}
