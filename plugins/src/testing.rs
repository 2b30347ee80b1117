//! An ordinary job and an ordinary build for unit tests.

use crate::admission::{Admission, AdmissionImage, AdmissionLimits, RequestedLimits};
use crate::build::{BuildAction, BuildStage, BuildStep};
use crate::build::{BuildBase, BuildContext, BuildCopy, BuildCopySource, BuildImage, BuildOrigin, BuildRequest};

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

/// A build of two stages: both start with the same image, the second copies from another that is pinned.
pub(crate) fn build() -> BuildRequest {
    let image = |reference: &str, digest: Option<String>| BuildImage {
        reference: reference.into(),
        is_pinned: digest.is_some(),
        digest,
        platform: "linux/amd64".into(),
    };
    let stage = |index, steps| BuildStage {
        index,
        name: None,
        line: 1 + index,
        column: 1,
        base: BuildBase::Image(image("docker.io/library/debian:12", None)),
        platform: "linux/amd64".into(),
        steps,
        user: String::new(),
    };
    let tools = format!("sha256:{}", "1".repeat(64));
    let copy = BuildCopy {
        is_add: false,
        from: BuildOrigin::Image(image(&format!("docker.io/library/tools@{tools}"), Some(tools))),
        sources: vec![BuildCopySource::Path("/bin/tool".into())],
        destination: "/bin/".into(),
        chown: None,
        checksum: None,
    };
    let (text, action) = ("COPY --from=tools /bin/tool /bin/".into(), BuildAction::Copy(copy));
    BuildRequest {
        dockerfile: "Dockerfile".into(),
        stages: vec![
            stage(0, Vec::new()),
            stage(1, vec![BuildStep { line: 3, column: 1, text, is_trigger: false, action }]),
        ],
        target: 1,
        platform: "linux/amd64".into(),
        build_args: vec!["VERSION".into()],
        labels: Vec::new(),
        context: BuildContext::default(),
    }
}
