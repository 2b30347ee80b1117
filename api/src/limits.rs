//! The bounds of jobs: what the service gives, what a client may wish, and how high it can go.

use ampoule_plugins::{AdmissionLimits, RequestedLimits};

const MIB: u64 = 1024 * 1024;

/// A limit that is above its ceiling.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} is {value}, where this service allows {ceiling} at most")]
pub struct AboveCeiling {
    /// The limit, as in `limits.memory_bytes`.
    pub field: &'static str,
    /// What was wanted, in the field's unit.
    pub value: f64,
    /// What is allowed, in the field's unit.
    pub ceiling: f64,
}

/// What a job gets that does not ask.
pub fn defaults() -> AdmissionLimits {
    AdmissionLimits {
        memory_bytes: 256 * MIB,
        cpu_milli: 1000,
        pids: 128,
        cpu_time_ms: 60_000,
        wall_time_ms: 60_000,
        open_files: 1024,
        file_bytes: 256 * MIB,
        output_bytes: MIB,
        output_total_bytes: 64 * MIB,
    }
}

/// How high a job can go on a machine with so many processors.
pub fn ceilings(processors: u32) -> AdmissionLimits {
    AdmissionLimits {
        memory_bytes: 8 * 1024 * MIB,
        cpu_milli: processors.saturating_mul(1000),
        pids: 4096,
        cpu_time_ms: 4 * 3_600_000,
        wall_time_ms: 3_600_000,
        open_files: 65_536,
        file_bytes: 16 * 1024 * MIB,
        output_bytes: 64 * MIB,
        output_total_bytes: 1024 * MIB,
    }
}

/// Takes what was asked for, and the rest from `below`.
pub fn lay_over(asked: &RequestedLimits, below: &AdmissionLimits) -> AdmissionLimits {
    AdmissionLimits {
        memory_bytes: asked.memory_bytes.unwrap_or(below.memory_bytes),
        cpu_milli: asked.cpu_milli.unwrap_or(below.cpu_milli),
        pids: asked.pids.unwrap_or(below.pids),
        cpu_time_ms: asked.cpu_time_ms.unwrap_or(below.cpu_time_ms),
        wall_time_ms: asked.wall_time_ms.unwrap_or(below.wall_time_ms),
        open_files: asked.open_files.unwrap_or(below.open_files),
        file_bytes: asked.file_bytes.unwrap_or(below.file_bytes),
        output_bytes: asked.output_bytes.unwrap_or(below.output_bytes),
        output_total_bytes: asked.output_total_bytes.unwrap_or(below.output_total_bytes),
    }
}

/// Holds limits against their ceilings.
///
/// # Errors
/// The first one that is too high.
pub fn check(limits: &AdmissionLimits, ceiling: &AdmissionLimits) -> Result<(), AboveCeiling> {
    // Whole numbers up to 2^53 are exact here, which is beyond every ceiling.
    let pairs = [
        ("limits.memory_bytes", limits.memory_bytes as f64, ceiling.memory_bytes as f64),
        ("limits.cpus", f64::from(limits.cpu_milli) / 1000.0, f64::from(ceiling.cpu_milli) / 1000.0),
        ("limits.pids", limits.pids.into(), ceiling.pids.into()),
        ("limits.cpu_time_ms", limits.cpu_time_ms as f64, ceiling.cpu_time_ms as f64),
        ("limits.wall_time_ms", limits.wall_time_ms as f64, ceiling.wall_time_ms as f64),
        ("limits.open_files", limits.open_files as f64, ceiling.open_files as f64),
        ("limits.file_bytes", limits.file_bytes as f64, ceiling.file_bytes as f64),
        ("limits.output_bytes", limits.output_bytes as f64, ceiling.output_bytes as f64),
        ("limits.output_total_bytes", limits.output_total_bytes as f64, ceiling.output_total_bytes as f64),
    ];
    match pairs.into_iter().find(|(_, value, ceiling)| value > ceiling) {
        Some((field, value, ceiling)) => Err(AboveCeiling { field, value, ceiling }),
        None => Ok(()),
    }
}
