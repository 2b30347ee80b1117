//! The first customer's day: a Python project goes up, its test-suite runs in a real Debian, the report comes back.

use std::io::Read;

use ampoule_client::types::{ArtifactsRequest, EndingKind, JobRequest, LimitsRequest, Upload};
use ampoule_tests::archive::{self, Archive};
use ampoule_tests::service::{kind, stderr, stdout};
use ampoule_tests::{Options, Service};

const MODULE: &[u8] = b"def add(a, b):\n    return a + b\n";
const TESTS: &[u8] = b"from calculator import add\n\n\
    def test_adds():\n    assert add(2, 3) == 5\n\n\
    def test_is_wrong():\n    assert add(2, 2) == 5\n\n\
    def test_root_is_read_only():\n    import pytest\n    with pytest.raises(OSError):\n        open('/owned', 'w')\n";

fn debian() -> Service {
    let service = Service::with(Options { without_image: true, ..Options::default() });
    let mut root = Vec::new();
    archive::debian().read_to_end(&mut root).expect("it can be read");
    service.import(&root, "debian:12");
    service
}

#[test]
fn a_python_project_is_tested_and_its_report_comes_back() {
    let service = debian();
    let project = Archive::default()
        .folder("tests", 0o755, 0)
        .file("calculator.py", 0o644, 0, MODULE)
        .file("tests/test_calculator.py", 0o644, 0, TESTS)
        .finish();
    let upload: Upload = service.send("PUT", "/v1/uploads", &[("content-type", "application/x-tar")], &project).json();
    let request = JobRequest {
        image: "debian:12".to_owned(),
        argv: ["python3", "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=junit.xml", "tests"]
            .map(str::to_owned)
            .to_vec(),
        files_upload: Some(upload.id),
        env: [("PYTHONPATH".to_owned(), ".".to_owned())].into(),
        user: Some("65534:65534".to_owned()),
        artifacts: Some(ArtifactsRequest { globs: vec!["junit.xml".to_owned()], ..ArtifactsRequest::default() }),
        limits: LimitsRequest { memory_bytes: Some(512 << 20), ..LimitsRequest::default() },
        ..JobRequest::default()
    };
    let job = service.run(&request);
    assert_eq!(kind(&job), EndingKind::Exited, "{:?} {}", job.ending, stderr(&job));
    assert_eq!(job.ending.as_ref().and_then(|ending| ending.exit_code), Some(1), "{}", stdout(&job));
    assert!(stdout(&job).contains("1 failed, 2 passed"), "{}", stdout(&job));
    let report = service.get(&format!("/v1/jobs/{}/artifacts/work/junit.xml", job.id)).text();
    assert!(report.contains(r#"tests="3""#) && report.contains(r#"failures="1""#), "{report}");
    assert!(report.contains("test_is_wrong"), "{report}");
}

#[test]
fn a_real_distribution_works_as_its_users_expect() {
    let service = debian();
    let run = |line: &str| {
        let request =
            JobRequest { image: "debian:12".to_owned(), shell: Some(line.to_owned()), ..JobRequest::default() };
        let job = service.run(&request);
        assert_eq!(job.ending.as_ref().and_then(|ending| ending.exit_code), Some(0), "{line}: {}", stderr(&job));
        stdout(&job).to_owned()
    };
    assert_eq!(run("perl -e 'print 6*7'"), "42");
    assert_eq!(
        run(
            "python3 -c 'import threading, subprocess; print(subprocess.check_output([\"echo\", \"hi\"]).decode(), end=\"\")'"
        ),
        "hi\n"
    );
    assert!(run("cat /etc/os-release").contains("bookworm"));
    assert!(run("dpkg -l | wc -l").trim().parse::<u32>().is_ok_and(|lines| lines > 50));
    assert_eq!(run("python3 -c 'import multiprocessing as m; p = m.Pool(2); print(sum(p.map(abs, [-1, -2])))'"), "3\n");
}
