//! A policy that breaks the contract refuses the job, is named, and harms nothing else.

use std::time::{Duration, Instant};

use ampoule_plugins::{Decision, Policies, VerdictKind};

use crate::service::{Service, admitted, built, denial, failure, job};

fn bindings(does: &str, keys: &str) -> String {
    let file = built("testing/misbehaving/misbehaving.wasm");
    format!("[[policy]]\nname = \"bad\"\nfile = {file:?}\n{keys}\n[policy.settings]\ndoes = {does:?}\n")
}

fn policies(does: &str, keys: &str) -> Policies {
    Service::new().load(&bindings(does, keys)).expect("the policy is bound")
}

/// Checks that a deed refuses the job with this code, names the policy, and says this in the stored verdict.
fn check(does: &str, code: &str, said: &str) -> Decision {
    let decision = policies(does, "").admit(job());
    let refusal = denial(&decision);
    assert_eq!((refusal.policy.as_str(), refusal.code.as_str()), ("bad", code), "{does}: {refusal:?}");
    assert!(refusal.reason.contains("policy `bad` could not decide"), "{does}: {refusal:?}");
    let verdict = &decision.verdicts[0];
    assert_eq!(verdict.verdict, VerdictKind::Error);
    assert!(verdict.reason.contains(said), "{does}: {}", verdict.reason);
    decision
}

#[test]
fn an_endless_loop_ends_with_its_fuel_and_refuses_the_job() {
    let decision = check("spin", "policy-out-of-fuel", "used up its fuel of 50000000");
    assert_eq!(decision.verdicts[0].fuel, 50_000_000);
}

#[test]
fn an_endless_loop_with_fuel_to_spare_ends_at_its_deadline() {
    let limits = "limits = { fuel = 10_000_000_000, deadline-ms = 100 }";
    let start = Instant::now();
    let decision = policies("spin", limits).admit(job());
    assert_eq!(denial(&decision).code, "policy-deadline");
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

#[test]
fn a_memory_bomb_ends_at_its_limit_and_refuses_the_job() {
    check("bomb", "policy-out-of-memory", "asked for more memory than its 67108864 bytes");
}

#[test]
fn a_panic_refuses_the_job_and_its_message_is_kept() {
    check("panic", "policy-failed", "the user is `65534:65534`");
}

#[test]
fn endless_recursion_refuses_the_job() {
    let decision = policies("recurse", "").admit(job());
    // Which stack ends first, the guest's own or the engine's, is the guest's affair.
    let code = denial(&decision).code.as_str();
    assert!(matches!(code, "policy-stack-overflow" | "policy-failed"), "{decision:?}");
}

#[test]
fn an_answer_that_no_client_could_ask_for_refuses_the_job() {
    check("zero-limit", "policy-malformed-answer", "limits.memory_bytes: a limit must be above 0");
    check("bad-variable", "policy-malformed-answer", "env: `A=B` is not a name");
    check("unknown-change", "policy-malformed-answer", "knows no change `colour`");
    check("no-reason", "policy-malformed-answer", "the reason of the refusal");
}

#[test]
fn an_answer_of_many_megabytes_is_not_taken() {
    let decision = policies("huge-answer", "").admit(job());
    assert_eq!(denial(&decision).code, "policy-failed", "{decision:?}");
}

#[test]
fn a_policy_that_logs_without_end_is_cut_and_harms_nothing() {
    let limits = "limits = { fuel = 10_000_000_000, deadline-ms = 10000 }";
    admitted(&policies("chatter", limits).admit(job()));
}

#[test]
fn a_policy_cannot_remember_an_earlier_job() {
    let policies = policies("remember", "");
    for _ in 0..20 {
        admitted(&policies.admit(job()));
    }
}

#[test]
fn a_failing_policy_lets_the_job_pass_with_a_warning_where_its_binding_says_so() {
    let decision = policies("panic", "on-failure = \"allow\"").admit(job());
    admitted(&decision);
    assert_eq!(decision.warnings[0].code, "policy-failed");
    assert!(decision.warnings[0].message.contains("policy `bad`"));
}

#[test]
fn a_refusal_in_mode_warn_is_a_warning_and_in_mode_shadow_only_a_record() {
    let warned = policies("refuse", "mode = \"warn\"").admit(job());
    admitted(&warned);
    assert_eq!((warned.warnings[0].policy.as_str(), warned.warnings[0].code.as_str()), ("bad", "told-to"));
    let shadowed = policies("refuse", "mode = \"shadow\"").admit(job());
    admitted(&shadowed);
    assert!(shadowed.warnings.is_empty());
    assert_eq!(shadowed.verdicts[0].verdict, VerdictKind::Deny);
}

#[test]
fn the_first_refusal_ends_it() {
    let nothing = bindings("nothing", "").replace("\"bad\"", "\"first\"");
    let spin = bindings("spin", "").replace("\"bad\"", "\"never-asked\"");
    let three = format!("{nothing}\n{}\n{spin}", bindings("refuse", ""));
    let decision = Service::new().load(&three).expect("the policies are bound").admit(job());
    assert_eq!(denial(&decision).code, "told-to");
    let asked: Vec<&str> = decision.verdicts.iter().map(|verdict| verdict.policy.as_str()).collect();
    assert_eq!(asked, ["first", "bad"]);
}

#[test]
fn a_policy_that_spins_when_it_is_bound_stops_the_start() {
    let message = failure(Service::new().load(&bindings("spin-when-bound", "")));
    assert!(message.contains("policy `bad`") && message.contains("fuel"), "{message}");
}

#[test]
fn a_component_that_sleeps_is_stopped_at_once() {
    // Interpreters are built against one WASI 0.2 or another; all of them meet the same clock.
    for version in ["0.2.0", "0.2.6"] {
        let service = Service::new();
        service.add_wat("sleeper.wasm", &sleeper(version));
        let start = Instant::now();
        let message = failure(service.load("[[policy]]\nname = \"sleeper\"\nfile = \"sleeper.wasm\"\n"));
        assert!(message.contains("a policy cannot wait"), "{message}");
        assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
    }
}

/// A component that sleeps for an hour when it starts.
fn sleeper(version: &str) -> String {
    format!(
        r#"(component
            (import "wasi:io/poll@{version}" (instance $poll
                (export "pollable" (type $pollable (sub resource)))
                (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
            (alias export $poll "pollable" (type $pollable))
            (import "wasi:clocks/monotonic-clock@{version}" (instance $clock
                (alias outer 1 $pollable (type $outer))
                (export "pollable" (type $inner (eq $outer)))
                (export "subscribe-duration" (func (param "when" u64) (result (own $inner))))))
            (core func $subscribe (canon lower (func $clock "subscribe-duration")))
            (core func $block (canon lower (func $poll "[method]pollable.block")))
            (core module $code
                (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
                (import "host" "block" (func $block (param i32)))
                (func $sleep (call $block (call $subscribe (i64.const 3600000000000))))
                (start $sleep)
                (func (export "admit")))
            (core instance $code (instantiate $code (with "host" (instance
                (export "subscribe" (func $subscribe))
                (export "block" (func $block))))))
            (func $admit (canon lift (core func $code "admit")))
            (instance $hook (export "admit" (func $admit)))
            (export "ampoule:policy/admission@1.0.0" (instance $hook)))"#
    )
}

#[test]
fn many_threads_ask_at_once_and_each_gets_its_answer() {
    let policies = policies("nothing", "");
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| (0..25).for_each(|_| _ = admitted(&policies.admit(job()))));
        }
    });
}
