//! The cases that lie beside a policy, as data, asked of the real component.

use std::path::Path;

use ampoule_plugins::{Decision, Outcome};
use serde_json::{Map, Value, json};

use crate::service::{Service, admitted, built, job, policies_folder};

/// Lays the fields of `over` over those of `under`.
fn overlay(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                overlay(under.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// Whether every field of `part` is in `whole`.
fn contains(whole: &Value, part: &Value) -> bool {
    let mut overlaid = whole.clone();
    overlay(&mut overlaid, part);
    overlaid == *whole
}

fn read(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn toml(settings: &Value) -> String {
    match settings {
        Value::Object(table) => {
            let pairs: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {}", toml(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        plain => plain.to_string(),
    }
}

fn decide(policy: &Path, input: &Value) -> Decision {
    let service = Service::new();
    let settings = toml(&input["settings"]);
    let bindings = format!("[[policy]]\nname = \"case\"\nfile = {policy:?}\nsettings = {settings}\n");
    let mut asked = json!(job());
    overlay(&mut asked, &input["job"]);
    service.load(&bindings).expect("the policy is bound").admit(serde_json::from_value(asked).expect("the job is one"))
}

/// What a decision came to, in the words of a `verdict.json`.
fn written(decision: &Decision, expected: &Value) -> Value {
    let verdict = &decision.verdicts[0];
    let mut written = Map::from_iter([("verdict".to_owned(), json!(verdict.verdict))]);
    if !verdict.changed.is_empty() {
        written.insert("changed".to_owned(), json!(verdict.changed));
    }
    if let Outcome::Denied(denial) = &decision.outcome {
        let denial = json!({ "code": denial.code, "reason": denial.reason, "hint": denial.hint });
        overlay_into(&mut written, &denial);
    }
    if let Some(part) = expected.get("job") {
        let left = json!(admitted(decision));
        written.insert("job".to_owned(), if contains(&left, part) { part.clone() } else { left });
    }
    Value::Object(written)
}

fn overlay_into(under: &mut Map<String, Value>, over: &Value) {
    let mut whole = Value::Object(std::mem::take(under));
    overlay(&mut whole, over);
    if let Value::Object(whole) = whole {
        *under = whole;
    }
}

#[test]
fn every_case_of_job_baseline_comes_to_its_verdict() {
    let policy = built("job-baseline/job-baseline.wasm");
    let folder = policies_folder().join("job-baseline/cases");
    let mut cases = 0;
    for entry in folder.read_dir().expect("the cases can be listed") {
        let case = entry.expect("a case can be listed").path();
        if !case.is_dir() {
            continue;
        }
        let expected = read(&case.join("verdict.json"));
        let decision = decide(&policy, &read(&case.join("input.json")));
        assert_eq!(written(&decision, &expected), expected, "{}", case.display());
        cases += 1;
    }
    assert!(cases >= 8, "only {cases} cases were found in {}", folder.display());
}

#[test]
fn the_default_policies_admit_an_ordinary_job_as_it_is() {
    built("job-baseline/job-baseline.wasm");
    let service = Service::new();
    let policies = ampoule_plugins::Policies::load(&policies_folder().join("policies.toml"), &service.cache())
        .expect("the default policies are bound");
    let decision = policies.admit(job());
    assert_eq!(admitted(&decision), &job());
    assert_eq!(decision.warnings, []);
    assert_eq!(decision.verdicts.len(), policies.list().len());
}

#[test]
fn equal_questions_take_equal_fuel_and_the_decision_names_the_policy_by_digest() {
    let service = Service::new();
    let policies = service
        .load(&format!(
            "[[policy]]\nname = \"baseline\"\nfile = {:?}\nsettings = {{ images = [\"*\"] }}\n",
            built("job-baseline/job-baseline.wasm")
        ))
        .expect("the policy is bound");
    let [first, second] = [policies.admit(job()), policies.admit(job())];
    assert!(first.verdicts[0].fuel > 0);
    assert_eq!(first.verdicts[0].fuel, second.verdicts[0].fuel);
    assert_eq!(first.verdicts[0].digest, policies.list()[0].digest);
    assert!(first.verdicts[0].digest.starts_with("sha256:"));
}

#[test]
fn settings_that_make_no_sense_are_found_when_the_policy_is_bound() {
    let service = Service::new();
    let refused = |settings: &str| {
        crate::service::failure(service.load(&format!(
            "[[policy]]\nname = \"baseline\"\nfile = {:?}\n[policy.settings]\n{settings}\n",
            built("job-baseline/job-baseline.wasm")
        )))
    };
    assert!(refused("").contains("missing field `images`"), "{}", refused(""));
    assert!(refused("images = []").contains("`images` is empty"));
    assert!(refused("images = [\"*\"]\nimage = 3").contains("unknown field `image`"));
    assert!(refused("images = [\"*\"]\nceilings.pids = 0").contains("`ceilings.pids` must be above 0"));
    let contradiction = refused("images = [\"*\"]\nceilings.pids = 3\ndefaults.pids = 4");
    assert!(contradiction.contains("policy `baseline`") && contradiction.contains("`defaults.pids` of 4 is above"));
}
