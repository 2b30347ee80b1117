//! The program as its users type it.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ampoule_tests::{Service, ampoule_program};

fn ampoule(service: &Service, arguments: &[&str]) -> Output {
    with_input(service, arguments, b"")
}

fn with_input(service: &Service, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(ampoule_program())
        .args(arguments)
        .env("AMPOULE_HOST", format!("unix://{}", service.socket().display()))
        .current_dir(service.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be run");
    child.stdin.take().expect("it is piped").write_all(input).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn run_shows_both_streams_and_returns_the_jobs_exit_code() {
    let service = Service::start();
    let output = ampoule(&service, &["run", "busybox", "--shell", "echo out; echo err >&2; exit 42"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(42), "out\n"));
    assert!(text(&output.stderr).starts_with("err\n"), "{}", text(&output.stderr));
}

#[test]
fn each_ending_has_the_exit_code_that_the_help_names() {
    let service = Service::start();
    let cases: [(&[&str], i32); 8] = [
        (&["run", "busybox", "--", "true"], 0),
        (&["run", "--pids", "8", "busybox", "--", "inside", "children", "50"], 123),
        (&["run", "--timeout", "300ms", "busybox", "--", "sleep", "100"], 124),
        (&["run", "no-such-image", "--", "true"], 125),
        (&["run", "busybox", "--", "/bin/not-executable"], 126),
        (&["run", "busybox", "--", "/bin/missing"], 127),
        (&["run", "busybox", "--shell", "kill -SEGV $$"], 139),
        (&["run", "--memory", "32m", "busybox", "--", "inside", "eat", "134217728"], 137),
    ];
    for (arguments, code) in cases {
        let output = ampoule(&service, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn input_environment_and_files_reach_the_job() {
    let service = Service::start();
    std::fs::write(service.folder().join("input.txt"), "from a file\n").expect("the folder can be written");
    let arguments = [
        "run",
        "--stdin",
        "--env",
        "GREETING=hi",
        "--file",
        "input.txt:/work/input.txt",
        "busybox",
        "--shell",
        "cat; echo $GREETING; cat /work/input.txt",
    ];
    let output = with_input(&service, &arguments, b"from stdin\n");
    assert_eq!(text(&output.stdout), "from stdin\nhi\nfrom a file\n", "{}", text(&output.stderr));
}

#[test]
fn a_job_can_be_left_running_followed_looked_at_and_stopped() {
    let service = Service::start();
    let id = text(&ampoule(&service, &["run", "--detach", "busybox", "--shell", "echo begun; sleep 1000"]).stdout);
    let id = id.trim();
    service.wait_for(id, |job| job.state == ampoule_client::types::JobState::Running);
    while ampoule(&service, &["logs", id]).stdout.is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(text(&ampoule(&service, &["ps"]).stdout).contains("running"));
    let cancelled = ampoule(&service, &["cancel", id]);
    assert!(cancelled.status.success(), "{}", text(&cancelled.stderr));
    let followed = ampoule(&service, &["logs", "-f", id]);
    assert_eq!(text(&followed.stdout), "begun\n");
    let inspected = text(&ampoule(&service, &["inspect", id]).stdout);
    assert!(inspected.contains("cancelled"), "{inspected}");
    assert!(text(&ampoule(&service, &["ps", "--all"]).stdout).contains("cancelled"));
}

#[test]
fn a_job_as_a_document_is_json() {
    let service = Service::start();
    let output = ampoule(&service, &["run", "--json", "busybox", "--", "echo", "hello"]);
    let job: ampoule_client::types::Job = serde_json::from_slice(&output.stdout).expect("it is a job");
    assert_eq!(job.stdout.and_then(|output| output.text).as_deref(), Some("hello\n"));
}

#[test]
fn doctor_finds_all_that_jobs_need_on_a_machine_where_they_run() {
    let service = Service::start();
    let output = ampoule(&service, &["doctor"]);
    assert_eq!(output.status.code(), Some(0), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn without_a_service_the_answer_says_what_to_do() {
    let output = Command::new(ampoule_program())
        .args(["--host", "unix:///nonexistent/ampoule.sock", "ps"])
        .output()
        .expect("the program can be run");
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("hint:"), "{}", text(&output.stderr));
}
