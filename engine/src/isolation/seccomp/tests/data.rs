//! The profiles as data: complete, in order, explained, and refused when they are not.

use crate::isolation::seccomp::{Profile, compile, numbers::CALLS, profile::Rules};

#[test]
fn every_call_is_in_the_table_once_and_in_the_order_of_its_number() {
    assert!(CALLS.is_sorted_by(|(_, before), (_, after)| before < after));
    let mut names: Vec<_> = CALLS.iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), CALLS.len());
}

#[test]
fn a_job_s_profile_decides_every_call_that_has_a_name() {
    let data: serde_json::Value = serde_json::from_str(Profile::Job.source()).unwrap();
    let decided: Vec<&str> = data["calls"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    let missing: Vec<_> = CALLS.iter().filter(|(name, _)| !decided.contains(name)).collect();
    assert!(missing.is_empty(), "not decided: {missing:?}");
}

#[test]
fn both_profiles_compile() {
    for profile in [Profile::Job, Profile::Worker] {
        compile(profile).unwrap();
    }
}

#[test]
fn a_profile_that_breaks_the_rules_is_refused_with_the_reason() {
    check(r#"{"name": "reed", "verdict": "allow", "reason": "r"}"#, "there is no system call reed");
    check(
        r#"{"name": "read", "verdict": "maybe", "reason": "r"}"#,
        "there is no verdict, errno or argument value maybe",
    );
    check(r#"{"name": "read", "verdict": "allow", "reason": " "}"#, "read has no reason");
    check(r#"{"name": "read", "verdict": "allow", "reason": "r", "why": "w"}"#, "the data is not a profile");
    check(
        r#"{"name": "write", "verdict": "allow", "reason": "r"}, {"name": "read", "verdict": "allow", "reason": "r"}"#,
        "read is there twice, or not in its place in the alphabet",
    );
    check(
        r#"{"name": "read", "verdict": "allow", "reason": "r"}, {"name": "read", "verdict": "EPERM", "reason": "r"}"#,
        "read is there twice, or not in its place in the alphabet",
    );
    check_case(
        r#"{"when": [], "verdict": "EPERM"}"#,
        "a case of read has no test, or a test of it no value or no such argument",
    );
    check_case(
        r#"{"when": [{"arg": 6, "is": [0]}], "verdict": "EPERM"}"#,
        "a case of read has no test, or a test of it no value or no such argument",
    );
    check_case(
        r#"{"when": [{"arg": 0, "is": ["AF_MOON"]}], "verdict": "EPERM"}"#,
        "there is no verdict, errno or argument value AF_MOON",
    );
    check_case(
        r#"{"when": [{"arg": 0, "mask": [1], "is": [2]}], "verdict": "EPERM"}"#,
        "a test of read can never hold: its value lies outside its mask",
    );
}

fn check(calls: &str, problem: &str) {
    let json = format!(r#"{{"about": [], "unlisted": "EPERM", "calls": [{calls}]}}"#);
    assert_eq!(Rules::read(&json).unwrap_err().to_string(), problem);
}

fn check_case(case: &str, problem: &str) {
    check(&format!(r#"{{"name": "read", "verdict": "allow", "cases": [{case}], "reason": "r"}}"#), problem);
}
