//! What `/metrics` tells: counters and histograms, made once, with labels of which there are only a few.

use std::time::Duration;

use ampoule_client::types::{Decision, EndingKind, Phases};
use ampoule_engine::runtime::Census;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// Buckets for what takes microseconds to a second, in seconds.
const SHORT: &[f64] =
    &[10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0];
/// Buckets for what takes milliseconds to an hour, in seconds.
const LONG: &[f64] = &[1e-3, 5e-3, 25e-3, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0];

/// All metrics of the service.
pub struct Metrics {
    registry: Registry,
    /// Requests by method, route and status.
    pub http_requests: IntCounterVec,
    http_seconds: HistogramVec,
    jobs_ended: IntCounterVec,
    jobs_retried: IntCounter,
    queue_refused: IntCounter,
    queue_jobs: IntGauge,
    running_jobs: IntGauge,
    job_seconds: Histogram,
    wait_seconds: Histogram,
    policy_seconds: HistogramVec,
    phases: [Histogram; 8],
    launches_warm: IntCounter,
    launches_cold: IntCounter,
    sandboxes_live: IntGauge,
    sandboxes_warm: IntGauge,
}

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Panics
    /// Never: names and labels are fixed, and `metrics_have_valid_names` makes all of them.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let phase_names = ["clone", "cgroup", "network", "mounts", "credentials", "seccomp", "exec", "drain"];
        let phase_seconds =
            histograms(&registry, "ampoule_launch_phase_seconds", "Time of each phase of a launch", SHORT, &["phase"]);
        let launches =
            counters(&registry, "ampoule_launches_total", "Launches, by whether a warm sandbox was there", &["kind"]);
        let jobs_ended = counters(&registry, "ampoule_jobs_ended_total", "Jobs that ended, by how", &["ending"]);
        for kind in EndingKind::ALL {
            jobs_ended.with_label_values(&[kind.as_str()]);
        }
        Metrics {
            http_requests: counters(
                &registry,
                "ampoule_http_requests_total",
                "Requests",
                &["method", "route", "status"],
            ),
            http_seconds: histograms(
                &registry,
                "ampoule_http_request_seconds",
                "Time to the start of an answer",
                SHORT,
                &["route"],
            ),
            jobs_ended,
            jobs_retried: counter(&registry, "ampoule_jobs_retried_total", "Runs that failed and were queued again"),
            queue_refused: counter(&registry, "ampoule_queue_refused_total", "Jobs that found the queue full"),
            queue_jobs: gauge(&registry, "ampoule_queue_jobs", "Jobs that wait"),
            running_jobs: gauge(&registry, "ampoule_running_jobs", "Jobs that run"),
            job_seconds: histogram(&registry, "ampoule_job_seconds", "Time from the start of a run to its end", LONG),
            wait_seconds: histogram(&registry, "ampoule_queue_seconds", "Time from taking a job to its start", LONG),
            policy_seconds: histograms(
                &registry,
                "ampoule_policy_seconds",
                "Time of a policy's answer",
                SHORT,
                &["policy"],
            ),
            phases: phase_names.map(|name| phase_seconds.with_label_values(&[name])),
            launches_warm: launches.with_label_values(&["warm"]),
            launches_cold: launches.with_label_values(&["cold"]),
            sandboxes_live: gauge(&registry, "ampoule_sandboxes_live", "Sandboxes with a command"),
            sandboxes_warm: gauge(&registry, "ampoule_sandboxes_warm", "Sandboxes made ahead"),
            registry,
        }
    }

    /// Counts a request.
    pub fn request(&self, method: &str, route: &str, status: u16, time: Duration) {
        let mut digits = [0; 5];
        let status = digits_of(status, &mut digits);
        self.http_requests.with_label_values(&[method, route, status]).inc();
        self.http_seconds.with_label_values(&[route]).observe(time.as_secs_f64());
    }

    /// Counts a job that ended.
    pub fn ended(&self, kind: EndingKind) {
        self.jobs_ended.with_label_values(&[kind.as_str()]).inc();
    }

    /// Counts a run that is tried again.
    pub fn retried(&self) {
        self.jobs_retried.inc();
    }

    /// Counts a job that found the queue full.
    pub fn refused_by_queue(&self) {
        self.queue_refused.inc();
    }

    /// Measures how long a job waited.
    pub fn started(&self, waited: Duration) {
        self.wait_seconds.observe(waited.as_secs_f64());
    }

    /// Measures a run.
    pub fn ran(&self, time: Duration, phases: Option<&Phases>) {
        self.job_seconds.observe(time.as_secs_f64());
        let Some(phases) = phases else { return };
        let kind = if phases.warm { &self.launches_warm } else { &self.launches_cold };
        kind.inc();
        let times = [
            phases.clone_us,
            phases.cgroup_us,
            phases.network_us,
            phases.mounts_us,
            phases.credentials_us,
            phases.seccomp_us,
            phases.exec_us,
            phases.drain_us,
        ];
        for (index, (histogram, micros)) in self.phases.iter().zip(times).enumerate() {
            // A warm sandbox has all but the last two behind itself.
            if !phases.warm || index >= 6 {
                histogram.observe(micros as f64 / 1e6);
            }
        }
    }

    /// Measures what the policies took.
    pub fn decided(&self, decision: &Decision) {
        for verdict in &decision.verdicts {
            self.policy_seconds.with_label_values(&[verdict.policy.as_str()]).observe(verdict.micros as f64 / 1e6);
        }
    }

    /// All of it in prometheus' text format, with what the queue and the runtime hold at this moment.
    pub fn text(&self, queued: usize, running: u32, census: Census) -> Vec<u8> {
        let clamp = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.queue_jobs.set(clamp(queued as u64));
        self.running_jobs.set(running.into());
        self.sandboxes_live.set(clamp(census.live));
        self.sandboxes_warm.set(clamp(census.warm));
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "could not write the metrics down");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

fn digits_of(number: u16, digits: &mut [u8; 5]) -> &str {
    let mut place = digits.len();
    let mut rest = number;
    loop {
        place -= 1;
        digits[place] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[place..]).unwrap_or("0")
}

const FIXED: &str = "names of metrics are fixed and different";

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: Result<M, prometheus::Error>) -> M {
    let metric = metric.expect(FIXED);
    registry.register(Box::new(metric.clone())).expect(FIXED);
    metric
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}

fn histograms(registry: &Registry, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
    register(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_valid_names() {
        let metrics = Metrics::new();
        metrics.request("GET", "/v1/jobs", 200, Duration::from_millis(1));
        let text = String::from_utf8(metrics.text(3, 2, Census::default())).expect("text");
        assert!(text.contains("ampoule_queue_jobs 3\n"), "{text}");
        assert!(text.contains("ampoule_jobs_ended_total{ending=\"out_of_memory\"} 0\n"), "{text}");
        assert!(text.contains("status=\"200\"} 1\n"), "{text}");
    }
}
