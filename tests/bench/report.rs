//! The result as a table in Markdown and as JSON, with the machine that it was measured on.

use std::fmt::Write;
use std::fs;

use crate::measure::Series;
use crate::memory::Memory;

/// All that was measured.
pub(crate) struct Report {
    /// The peers.
    pub(crate) series: Vec<Series>,
    /// Memory, when it was measured.
    pub(crate) memory: Option<Memory>,
    /// Rounds.
    pub(crate) rounds: u32,
}

impl Report {
    fn find(&self, name: &str, clients: u32) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name && series.clients == clients)
    }

    /// For people.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("# Ampoule beside its peers\n\n");
        let _ = writeln!(text, "{}\n", machine());
        let _ = writeln!(
            text,
            "{} interleaved rounds; the same static busybox and the same command for all.\n",
            self.rounds
        );
        text.push_str("| what | clients | p50 ms | p99 ms | jobs/s | isolation |\n|---|---|---|---|---|---|\n");
        for series in &self.series {
            let _ = writeln!(
                text,
                "| {} | {} | {:.3} | {:.3} | {:.1} | {} |",
                series.name,
                series.clients,
                series.quantile_ms(0.5),
                series.quantile_ms(0.99),
                series.jobs_per_second(),
                series.isolation
            );
        }
        text.push_str("\n## Ratios\n\n");
        for line in self.ratios() {
            let _ = writeln!(text, "- {line}");
        }
        if let Some(memory) = &self.memory {
            text.push_str("\n## Memory\n\n");
            let kib = |bytes: u64| bytes / 1024;
            let _ = writeln!(text, "- service at rest: {} KiB", kib(memory.service_bytes));
            let _ = writeln!(text, "- launcher and zygotes at rest: {} KiB", kib(memory.launcher_bytes));
            let _ =
                writeln!(text, "- each live idle sandbox, kernel objects included: {} KiB", kib(memory.sandbox_bytes));
        }
        text
    }

    fn ratios(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(warm) = self.find("ampoule HTTP, warm", 1) else { return lines };
        if let Some(bare) = self.find("bare vfork+exec+wait", 1) {
            let above = warm.quantile_ms(0.5) - bare.quantile_ms(0.5);
            lines.push(format!("a warm job over HTTP takes bare vfork+exec+wait plus {above:.3} ms at p50"));
        }
        for name in ["crun", "runc", "bubblewrap", "docker API", "docker CLI", "podman"] {
            if let Some(peer) = self.find(name, 1) {
                let times = peer.quantile_ms(0.5) / warm.quantile_ms(0.5);
                lines.push(format!("{times:.1} times faster than {name} at p50"));
            }
        }
        let many = self.find("ampoule HTTP, 8 connections", 8);
        for name in ["crun", "runc", "bubblewrap", "docker API", "podman"] {
            if let (Some(many), Some(peer)) = (many, self.find(name, 8)) {
                let times = many.jobs_per_second() / peer.jobs_per_second();
                lines.push(format!("{times:.1} times the throughput of {name}, both with 8 clients"));
            }
        }
        lines
    }

    /// For programs.
    pub(crate) fn json(&self) -> String {
        let series: Vec<_> = self
            .series
            .iter()
            .map(|series| {
                serde_json::json!({
                    "name": series.name, "clients": series.clients, "jobs": series.times_us.len(),
                    "p50_ms": series.quantile_ms(0.5), "p99_ms": series.quantile_ms(0.99),
                    "jobs_per_second": series.jobs_per_second(),
                })
            })
            .collect();
        let memory = self.memory.as_ref().map(|memory| {
            serde_json::json!({
                "service_bytes": memory.service_bytes, "launcher_bytes": memory.launcher_bytes,
                "sandbox_bytes": memory.sandbox_bytes,
            })
        });
        serde_json::json!({ "machine": machine(), "rounds": self.rounds, "series": series, "memory": memory })
            .to_string()
    }
}

/// Processor, kernel, memory and versions, in one line.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split(':').nth(1).unwrap_or_default().trim().to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{processors} processors ({}), {} of memory, Linux {}, cgroup {}",
        field(&read("/proc/cpuinfo"), "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        if ampoule_tests::host::has_only_cgroup_v2() { "v2" } else { "v1" },
    )
}

/// The one in the middle; NaN of none.
pub(crate) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
