//! Running peers in turn and keeping every single time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Pause between two jobs of a paced series: a client that thinks, while sandboxes are made ahead.
const PACE: Duration = Duration::from_millis(5);

/// What runs one job, from the wish to the whole answer.
pub(crate) type Job = Box<dyn FnMut() -> Result<()>>;

/// One way of running a job.
pub(crate) struct Peer {
    /// Its name in the report.
    pub(crate) name: &'static str,
    /// How it isolates, in a few words.
    pub(crate) isolation: &'static str,
    /// Jobs a round with one client.
    pub(crate) jobs: u32,
    /// Clients at once; 1 measures latency, more throughput.
    pub(crate) clients: u32,
    /// Whether there is a pause between jobs.
    pub(crate) paced: bool,
    /// Makes a client.
    pub(crate) client: Box<dyn Fn() -> Result<Job> + Sync>,
    /// What has to live while it runs.
    pub(crate) keep: Option<Box<dyn std::any::Any + Sync>>,
}

/// How much is measured.
pub(crate) struct Plan {
    /// Rounds.
    pub(crate) rounds: u32,
    /// Divides the number of jobs.
    pub(crate) share: u32,
}

/// All times of one peer.
pub(crate) struct Series {
    /// The peer's name.
    pub(crate) name: &'static str,
    /// How it isolates.
    pub(crate) isolation: &'static str,
    /// Clients at once.
    pub(crate) clients: u32,
    /// Microseconds of each job, sorted.
    pub(crate) times_us: Vec<f64>,
    /// Jobs a second of each round, sorted.
    pub(crate) rates: Vec<f64>,
}

impl Series {
    /// The time that this share of the jobs did not exceed, in milliseconds.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        let last = self.times_us.len().saturating_sub(1);
        // The product is a small positive number, so nothing is cut off.
        let index = (share * last as f64).round() as usize;
        self.times_us.get(index).copied().unwrap_or(f64::NAN) / 1000.0
    }

    /// The median of the rounds' rates.
    pub(crate) fn jobs_per_second(&self) -> f64 {
        self.rates.get(self.rates.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Runs every peer in every round.
///
/// # Errors
/// A peer that fails a job: a benchmark of failures would be worthless.
pub(crate) fn run(peers: &[Peer], plan: &Plan) -> Result<Vec<Series>> {
    let mut all: Vec<Series> = peers.iter().map(empty_series).collect();
    for round in 1..=plan.rounds {
        for (peer, series) in peers.iter().zip(&mut all) {
            let jobs = (peer.jobs / plan.share).max(4);
            let (times, rate) = run_round(peer, jobs).with_context(|| format!("{} in round {round}", peer.name))?;
            eprintln!("round {round}: {:24} {rate:9.1} jobs/s", peer.name);
            series.times_us.extend(times);
            series.rates.push(rate);
        }
    }
    for series in &mut all {
        series.times_us.sort_by(f64::total_cmp);
        series.rates.sort_by(f64::total_cmp);
    }
    Ok(all)
}

fn empty_series(peer: &Peer) -> Series {
    Series {
        name: peer.name,
        isolation: peer.isolation,
        clients: peer.clients,
        times_us: Vec::new(),
        rates: Vec::new(),
    }
}

fn run_round(peer: &Peer, jobs: u32) -> Result<(Vec<f64>, f64)> {
    let next = AtomicU32::new(0);
    let warm_up = (jobs / 20).clamp(1, 20);
    let started = Instant::now();
    let results: Vec<Result<Vec<f64>>> = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..peer.clients).map(|_| scope.spawn(|| run_client(peer, &next, jobs, warm_up))).collect();
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
    });
    let mut times = Vec::new();
    for result in results {
        times.extend(result?);
    }
    Ok((times, f64::from(jobs) / started.elapsed().as_secs_f64()))
}

fn run_client(peer: &Peer, next: &AtomicU32, jobs: u32, warm_up: u32) -> Result<Vec<f64>> {
    let mut job = (peer.client)()?;
    let mut times = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= jobs {
            return Ok(times);
        }
        if peer.paced {
            std::thread::sleep(PACE);
        }
        let started = Instant::now();
        job()?;
        if number >= warm_up {
            times.push(started.elapsed().as_secs_f64() * 1e6);
        }
    }
}
