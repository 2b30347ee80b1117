//! What is wrong with a policy is found when it is bound, and compiled code is taken only from where it is safe.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

use ampoule_plugins::{Mode, OnFailure, Policies, check};

use crate::service::{Service, admitted, built, failure, job};

/// A component that exports `admit` in this version of the interface, with no parameters and no result.
fn stub(version: &str, start: &str) -> String {
    format!(
        r#"(component
            (core module $code (func (export "admit")) {start})
            (core instance $code (instantiate $code))
            (func $admit (canon lift (core func $code "admit")))
            (instance $hook (export "admit" (func $admit)))
            (export "ampoule:policy/admission@{version}" (instance $hook)))"#
    )
}

fn refused(text: &str, keys: &str) -> String {
    let service = Service::new();
    service.add_wat("p.wasm", text);
    failure(service.load(&format!("[[policy]]\nname = \"p\"\nfile = \"p.wasm\"\n{keys}\n")))
}

fn baseline() -> String {
    let file = built("job-baseline/job-baseline.wasm");
    format!("[[policy]]\nname = \"baseline\"\nfile = {file:?}\nmode = \"warn\"\nsettings = {{ images = [\"*\"] }}\n")
}

fn compiled(service: &Service) -> Vec<PathBuf> {
    let entries = service.cache().read_dir().expect("the cache can be listed");
    entries.map(|entry| entry.expect("an entry can be read").path()).collect()
}

#[test]
fn a_policy_of_another_major_version_is_refused_by_the_name_of_what_it_exports() {
    let message = refused(&stub("2.0.0", ""), "");
    assert!(message.contains("does not answer `admission`"), "{message}");
    assert!(message.contains("ampoule:policy/admission@2.0.0"), "{message}");
}

#[test]
fn a_policy_whose_types_differ_from_the_contract_is_refused_when_bound() {
    let message = refused(&stub("1.0.0", ""), "");
    assert!(message.contains("cannot be asked"), "{message}");
}

#[test]
fn a_policy_that_traps_when_it_starts_is_refused_when_bound() {
    let message = refused(&stub("1.0.0", "(func $boom unreachable) (start $boom)"), "");
    assert!(message.contains("trapped"), "{message}");
}

#[test]
fn a_policy_that_imports_more_than_it_is_given_is_refused() {
    let text = r#"(component (import "host:files/open@1.0.0" (instance (export "open" (func)))))"#;
    let message = refused(text, "");
    assert!(message.contains("host:files/open"), "{message}");
}

#[test]
fn what_is_no_policy_at_all_is_refused() {
    let service = Service::new();
    std::fs::write(service.folder.path().join("p.wasm"), "hello").expect("a file can be written");
    let bindings = "[[policy]]\nname = \"p\"\nfile = \"p.wasm\"\n";
    assert!(failure(service.load(bindings)).contains("is not a policy: it is no WebAssembly"));
    assert!(failure(service.load(&bindings.replace("p.wasm", "q.wasm"))).contains("cannot read"));
    assert!(refused("(module)", "").contains("neither a command nor a component"));
    assert!(refused("(component)", "").contains("it exports: nothing"));
}

#[test]
fn no_policies_admit_every_job_as_it_is() {
    assert_eq!(admitted(&Policies::empty().admit(job())), &job());
    let none = Service::new().load("").expect("an empty file binds nothing");
    assert!(none.list().is_empty());
    assert_eq!(admitted(&none.admit(job())), &job());
}

#[test]
fn the_list_says_what_is_bound_and_how() {
    let service = Service::new();
    let policies = service.load(&baseline()).expect("the policy is bound");
    let [summary] = &policies.list()[..] else { panic!("one policy is bound") };
    assert_eq!(summary.name, "baseline");
    assert_eq!(summary.hooks, ["admission", "settings"]);
    assert_eq!((summary.mode, summary.on_failure), (Mode::Warn, OnFailure::Deny));
    assert!(summary.digest.starts_with("sha256:") && summary.settings_digest.starts_with("sha256:"));
}

#[test]
fn a_policy_file_can_be_checked_by_itself() {
    let service = Service::new();
    let summary = check(&built("job-baseline/job-baseline.wasm"), &service.cache()).expect("it could be bound");
    assert_eq!((summary.name.as_str(), summary.hooks.len()), ("job-baseline", 2));
    service.add_wat("stub.wasm", &stub("2.0.0", ""));
    let error = check(&service.folder.path().join("stub.wasm"), &service.cache()).expect_err("it is of another major");
    assert!(error.to_string().contains("policy `stub`"), "{error}");
}

#[test]
fn compiled_code_is_kept_and_taken_from_the_cache() {
    let service = Service::new();
    service.load(&baseline()).expect("the policy is bound");
    let [file] = &compiled(&service)[..] else { panic!("one policy is compiled") };
    let written = file.metadata().and_then(|metadata| metadata.modified()).expect("its time can be read");
    service.load(&baseline()).expect("the policy is bound again");
    let [again] = &compiled(&service)[..] else { panic!("one policy is compiled") };
    assert_eq!(again.metadata().and_then(|metadata| metadata.modified()).expect("its time can be read"), written);
}

#[test]
fn compiled_code_that_was_tampered_with_is_compiled_anew() {
    let service = Service::new();
    service.load(&baseline()).expect("the policy is bound");
    let [file] = &compiled(&service)[..] else { panic!("one policy is compiled") };
    let whole = std::fs::read(file).expect("the code can be read");
    let mut tampered = whole.clone();
    let middle = tampered.len() / 2;
    tampered[middle] ^= 0xff;
    for broken in [tampered, whole[..middle].to_vec(), Vec::new()] {
        std::fs::write(file, broken).expect("the code can be replaced");
        admitted(&service.load(&baseline()).expect("the policy is bound").admit(job()));
        assert_eq!(std::fs::read(file).expect("the code can be read"), whole);
    }
}

#[test]
fn code_of_policies_that_are_no_longer_bound_is_removed() {
    let service = Service::new();
    service.load(&baseline()).expect("the policy is bound");
    let former = compiled(&service);
    let other = built("testing/misbehaving/misbehaving.wasm");
    let bindings = format!("[[policy]]\nname = \"o\"\nfile = {other:?}\nsettings = {{ does = \"nothing\" }}\n");
    service.load(&bindings).expect("the policy is bound");
    let now = compiled(&service);
    assert_eq!(now.len(), 1);
    assert_ne!(now, former);
}

#[test]
fn a_cache_that_others_could_write_is_refused() {
    let service = Service::new();
    std::fs::DirBuilder::new().mode(0o700).create(service.cache()).expect("the cache can be made");
    std::fs::set_permissions(service.cache(), std::fs::Permissions::from_mode(0o770)).expect("its mode can be set");
    let message = failure(service.load(&baseline()));
    assert!(message.contains("is not ours alone") && message.contains("0700"), "{message}");
}

#[test]
fn a_cache_behind_a_symbolic_link_is_refused() {
    let service = Service::new();
    let elsewhere = tempfile::tempdir().expect("a folder for the test");
    std::os::unix::fs::symlink(elsewhere.path(), service.cache()).expect("a link can be made");
    assert!(failure(service.load(&baseline())).contains("is not ours alone"));
}
