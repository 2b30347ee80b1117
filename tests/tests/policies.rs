//! Policies decide which jobs run, and a policy that misbehaves lets nothing through.

use std::path::Path;

use ampoule_client::types::{EndingKind, Job, JobRequest, JobState, LimitsRequest, Outcome, PolicyList, Problem};
use ampoule_tests::service::{command, kind, stdout};
use ampoule_tests::{Options, Service};

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
