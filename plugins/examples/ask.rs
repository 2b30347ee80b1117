//! Measures what asking policies costs: `cargo run --release -p ampoule-plugins --example ask -- policies.toml JOB.json`.
#![expect(clippy::print_stdout, reason = "a program that prints what it measured")]

use std::path::Path;
use std::time::{Duration, Instant};

use ampoule_plugins::{Admission, Outcome, Policies};

/// Calls that are measured.
const CALLS: usize = 20_000;
/// Calls before, until caches and pool are warm.
const WARM_UP_CALLS: usize = 2_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [policies, job] = &arguments[..] else { return Err("usage: ask policies.toml JOB.json".into()) };
    let cache = std::env::temp_dir().join(format!("ampoule-ask-{}", std::process::id()));
    let start = Instant::now();
    let policies = Policies::load(Path::new(policies), &cache)?;
    println!("loaded in {:?}", start.elapsed());
    let job: Admission = serde_json::from_slice(&std::fs::read(job)?)?;

    (0..WARM_UP_CALLS).for_each(|_| _ = policies.admit(job.clone()));
    let mut times: Vec<Duration> = (0..CALLS).map(|_| time(&policies, &job)).collect();
    times.sort();
    let decision = policies.admit(job);
    let outcome = if matches!(decision.outcome, Outcome::Admitted(_)) { "admitted" } else { "refused" };
    println!("{outcome}; p50 {:?}, p99 {:?}, of {CALLS} calls", times[CALLS / 2], times[CALLS / 100 * 99]);
    for verdict in decision.verdicts {
        println!("{}: {:?} with {} fuel", verdict.policy, verdict.verdict, verdict.fuel);
    }
    std::fs::remove_dir_all(cache)?;
    Ok(())
}

fn time(policies: &Policies, job: &Admission) -> Duration {
    let job = job.clone();
    let start = Instant::now();
    let decision = policies.admit(job);
    let took = start.elapsed();
    drop(decision);
    took
}
