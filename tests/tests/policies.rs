//! Policies decide which jobs run, and a policy that misbehaves lets nothing through.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ampoule_client::types::{EndingKind, Job, JobRequest, JobState, LimitsRequest, Outcome, PolicyList, Problem};
use ampoule_tests::service::{command, kind, stdout};
use ampoule_tests::{Options, Service, ampoule_program};

/// A service with one policy of this repository.
fn service(name: &str, file: &str, settings: &str) -> Service {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("policies").join(file);
    assert!(file.exists(), "{} is not built\nhint: make policies", file.display());
    let policies = format!(
        "[[policy]]\nname = \"{name}\"\nfile = \"{}\"\nmode = \"enforce\"\non-failure = \"deny\"\n\n\
         [policy.settings]\n{settings}\n",
        file.display()
    );
    Service::with(Options { policies: Some(policies), ..Options::default() })
}

fn baseline(settings: &str) -> Service {
    service("job-baseline", "job-baseline/job-baseline.wasm", settings)
}

fn refused(service: &Service, request: &JobRequest) -> Problem {
    let answer = service.post("/v1/jobs?wait=30", request).expect_status(403);
    answer.json()
}

#[test]
fn a_refused_job_never_runs_and_names_policy_reason_and_hint() {
    let service = baseline("images = [\"allowed-*\"]");
    let problem = refused(&service, &command(&["true"]));
    assert_eq!((problem.code.as_str(), problem.policy.as_deref()), ("denied-by-policy", Some("job-baseline")));
    assert!(problem.policy_code.is_some() && problem.detail.contains("busybox"), "{problem:?}");
    let job = service.job(&problem.job_id.expect("a refused job is kept"));
    assert_eq!((job.state, kind(&job)), (JobState::Ended, EndingKind::Denied));
    assert_eq!(job.ending.as_ref().and_then(|ending| ending.policy.as_deref()), Some("job-baseline"));
    assert!(job.times.started.is_none());
    let decision = job.decision.expect("it is stored with the job");
    assert_eq!(decision.outcome, Outcome::Denied);
    assert!(
        decision.verdicts[0].digest.starts_with("sha256:") || decision.verdicts[0].digest.len() == 64,
        "{decision:?}"
    );
}

#[test]
fn an_admitted_job_carries_the_decision_and_what_was_changed() {
    let settings = "images = [\"*\"]\n[policy.settings.defaults]\npids = 7\n";
    let service = baseline(settings);
    let job = service.run(&command(&["inside", "children", "20"]));
    assert_eq!(kind(&job), EndingKind::PidsLimit, "{:?}", job.ending);
    assert_eq!(job.spec.as_ref().map(|spec| spec.limits.pids), Some(7));
    let decision = job.decision.expect("it is stored with the job");
    assert_eq!(decision.outcome, Outcome::Admitted);
    assert_eq!(decision.verdicts[0].verdict, "change");
    assert!(!decision.verdicts[0].changed.is_empty(), "{decision:?}");
}

#[test]
fn what_a_client_asks_for_above_a_ceiling_of_the_policy_is_refused() {
    let service = baseline("images = [\"*\"]\n[policy.settings.ceilings]\npids = 10\n");
    let limits = LimitsRequest { pids: Some(11), ..LimitsRequest::default() };
    let problem = refused(&service, &JobRequest { limits, ..command(&["true"]) });
    assert_eq!(problem.policy.as_deref(), Some("job-baseline"), "{problem:?}");
}

#[test]
fn a_forbidden_variable_refuses_the_job() {
    let service = baseline("images = [\"*\"]\nforbidden-env = [\"LD_PRELOAD\"]\n");
    let env = [("LD_PRELOAD".to_owned(), "/tmp/x.so".to_owned())].into();
    let problem = refused(&service, &JobRequest { env, ..command(&["true"]) });
    assert!(problem.detail.contains("LD_PRELOAD"), "{problem:?}");
    assert_eq!(stdout(&service.run(&command(&["echo", "fine"]))), "fine\n");
}

#[test]
fn a_policy_that_traps_loops_eats_memory_or_answers_nonsense_refuses_the_job_and_is_named() {
    for deed in ["panic", "spin", "bomb", "recurse", "zero-limit", "bad-variable", "unknown-change", "huge-answer"] {
        let service = service("misbehaving", "testing/misbehaving/misbehaving.wasm", &format!("does = \"{deed}\""));
        let problem = refused(&service, &command(&["true"]));
        assert_eq!(problem.policy.as_deref(), Some("misbehaving"), "{deed}: {problem:?}");
        let job: Job = service.job(&problem.job_id.expect("a refused job is kept"));
        assert_eq!(job.decision.expect("it is stored").verdicts[0].verdict, "error", "{deed}");
    }
}

#[test]
fn the_policies_of_a_service_can_be_listed() {
    let service = baseline("images = [\"*\"]");
    let list: PolicyList = service.get("/v1/policies").json();
    assert_eq!(list.policies.len(), 1);
    let policy = &list.policies[0];
    assert_eq!((policy.name.as_str(), policy.mode.as_str()), ("job-baseline", "enforce"));
    assert!(policy.hooks.iter().any(|hook| hook.contains("admission")), "{policy:?}");
}

/// Runs `ampoule build --check` on this Dockerfile with policies that this text binds.
fn check_build(dockerfile: &str, bindings: &str, flags: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policies.toml");
    std::fs::write(&file, bindings).expect("policies.toml can be written");
    let context = folder.path().join("context");
    std::fs::create_dir(&context).expect("an empty context");
    let mut child = Command::new(ampoule_program())
        .args(["build", "--check", "-f", "-", "--policies"])
        .arg(&file)
        .args(flags)
        .arg(&context)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ampoule starts");
    child.stdin.take().expect("its input").write_all(dockerfile.as_bytes()).expect("it reads its input");
    child.wait_with_output().expect("it ends")
}

fn build_binding(policy: &str, keys: &str, settings: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("policies");
    let file = folder.join(policy).join(format!("{policy}.wasm"));
    assert!(file.exists(), "{} is not built\nhint: make policies", file.display());
    format!("[[policy]]\nname = \"{policy}\"\nfile = {file:?}\n{keys}\n[policy.settings]\n{settings}\n")
}

fn shown(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_build_that_a_policy_refuses_returns_one_and_shows_policy_line_and_hint() {
    let dockerfile = "FROM scratch AS one\nFROM debian:12\nCOPY --from=one / /\nUSER app\n";
    let bindings = build_binding("pinned-bases", "", "");
    let (code, text) = shown(&check_build(dockerfile, &bindings, &[]));
    assert_eq!(code, Some(1), "{text}");
    for part in ["DENIED: pinned-bases (base-not-pinned)", "docker.io/library/debian:12", "hint: ", "Dockerfile:2:1"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let (code, text) = shown(&check_build(dockerfile, &bindings.replace("file =", "mode = \"warn\"\nfile ="), &[]));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("would be refused") && text.contains("Dockerfile:2:1"), "{text}");
}

#[test]
fn the_decision_about_a_build_is_in_its_document_with_what_policies_changed() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let pin = format!("pin = true\ndigests = {{ \"docker.io/library/debian:12\" = \"{digest}\" }}");
    let bindings = [build_binding("pinned-bases", "", &pin), build_binding("no-root", "", "force-user = \"1000\"")];
    let (code, text) = shown(&check_build("FROM debian:12\n", &bindings.concat(), &["--json"]));
    assert_eq!(code, Some(0), "{text}");
    let document: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let decision = &document["policies"];
    assert!(decision["denial"].is_null(), "{decision}");
    assert_eq!(decision["changes"][0]["pin_digest"]["digest"], digest);
    assert_eq!(decision["changes"][1]["force_user"], "1000");
    assert_eq!(decision["verdicts"].as_array().map(Vec::len), Some(2));
}

#[test]
fn policies_that_cannot_be_bound_are_told_before_a_build_is_looked_at() {
    let output = check_build("FROM scratch\n", &build_binding("no-root", "", "force-user = \"root\""), &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("`no-root`") && text.contains("is root itself"), "{text}");
}

#[test]
fn the_policies_about_builds_that_are_shipped_can_be_bound_and_say_what_they_answer() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("policies/builds.toml");
    let output = Command::new(ampoule_program()).args(["policy", "check"]).arg(&file).output().expect("it runs");
    let (code, text) = shown(&output);
    assert_eq!(code, Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches(": answers build, settings (sha256:").count(), 4, "{text}");
}
