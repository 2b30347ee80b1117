//! An ordinary job for unit tests.

use crate::admission::{Admission, AdmissionImage, AdmissionLimits, RequestedLimits};

/// A job that no sensible policy refuses.
pub(crate) fn job() -> Admission {
    Admission {
        image: AdmissionImage {
            reference: "docker.io/library/busybox:latest".into(),
            digest: format!("sha256:{}", "0".repeat(64)),
            size_bytes: 1 << 20,
        },
        argv: vec!["/bin/echo".into(), "hello".into()],
        env: vec![("PATH".into(), "/bin".into())],
        cwd: "/".into(),
        user: "65534:65534".into(),
        limits: AdmissionLimits {
            memory_bytes: 256 << 20,
            cpu_milli: 1000,
            pids: 64,
            cpu_time_ms: 60_000,
            wall_time_ms: 60_000,
            open_files: 256,
            file_bytes: 64 << 20,
            output_bytes: 1 << 20,
            output_total_bytes: 16 << 20,
        },
        requested_limits: RequestedLimits::default(),
        network: "none".into(),
        writable: Vec::new(),
        artifacts: Vec::new(),
        files: Vec::new(),
        stdin_bytes: 0,
        labels: Vec::new(),
        priority: 0,
        token: "local".into(),
    }
}
