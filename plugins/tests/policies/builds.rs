//! The policies about builds, asked as real components; and components that break the contract.

use ampoule_plugins::{
    BuildAction, BuildBase, BuildChange, BuildContext, BuildCopy, BuildCopySource, BuildDecision, BuildDenial,
    BuildImage, BuildOrigin, BuildRequest, BuildRun, BuildStage, BuildStep, Policies,
};

use crate::service::{Service, admitted, built, failure, job};

const BASE: &str = "docker.io/library/debian:12";

fn digest(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

fn image(reference: &str) -> BuildImage {
    let digest = reference.split_once('@').map(|(_, digest)| digest.to_owned());
    let (reference, is_pinned) = (reference.to_owned(), digest.is_some());
    BuildImage { reference, digest, is_pinned, platform: "linux/amd64".into() }
}

fn step(line: u32, action: BuildAction) -> BuildStep {
    BuildStep { line, column: 1, text: "as written".into(), is_trigger: false, action }
}

/// A build of one stage with these steps, on Debian.
fn build(user: &str, steps: Vec<BuildStep>) -> BuildRequest {
    let stage = BuildStage {
        index: 0,
        name: None,
        line: 1,
        column: 1,
        base: BuildBase::Image(image(BASE)),
        platform: "linux/amd64".into(),
        steps,
        user: user.into(),
    };
    BuildRequest {
        dockerfile: "Dockerfile".into(),
        stages: vec![stage],
        target: 0,
        platform: "linux/amd64".into(),
        build_args: Vec::new(),
        labels: Vec::new(),
        context: BuildContext::default(),
    }
}

fn copy(from: BuildOrigin, source: BuildCopySource) -> BuildAction {
    BuildAction::Copy(BuildCopy {
        is_add: matches!(source, BuildCopySource::Url(_)),
        from,
        sources: vec![source],
        destination: "/".into(),
        chown: None,
        checksum: None,
    })
}

fn run(script: &str) -> BuildAction {
    BuildAction::Run(BuildRun {
        argv: ["/bin/sh", "-c", script].map(String::from).into(),
        script: None,
        mounts: Vec::new(),
        network: "default".into(),
        working_dir: "/".into(),
        user: String::new(),
    })
}

fn binding(policy: &str, settings: &str) -> String {
    let file = built(&format!("{policy}/{policy}.wasm"));
    format!("[[policy]]\nname = \"{policy}\"\nfile = {file:?}\n[policy.settings]\n{settings}\n")
}

fn policies(bindings: &str) -> Policies {
    Service::new().load(bindings).expect("the policies are bound")
}

fn ask(policy: &str, settings: &str, request: BuildRequest) -> BuildDecision {
    policies(&binding(policy, settings)).review_build(request)
}

#[track_caller]
fn denied(decision: BuildDecision) -> BuildDenial {
    match decision.denial {
        Some(denial) => denial,
        None => panic!("it was allowed: {decision:?}"),
    }
}

#[track_caller]
fn check_denied(decision: BuildDecision, code: &str, line: u32) {
    let denial = denied(decision);
    assert_eq!((denial.code.as_str(), denial.line), (code, line), "{denial:?}");
}

#[test]
fn a_base_without_digest_is_refused_at_its_line_or_pinned_when_its_digest_is_known() {
    check_denied(ask("pinned-bases", "", build("", Vec::new())), "base-not-pinned", 1);
    let pinned = BuildChange::PinDigest { reference: BASE.into(), digest: digest('a') };
    let settings = format!("pin = true\ndigests = {{ {BASE:?} = {:?} }}", digest('a'));
    let decision = ask("pinned-bases", &settings, build("", Vec::new()));
    assert_eq!((decision.denial, decision.changes), (None, vec![pinned.clone()]));
    let mut resolved = build("", Vec::new());
    resolved.stages[0].base = BuildBase::Image(BuildImage { digest: Some(digest('a')), ..image(BASE) });
    assert_eq!(ask("pinned-bases", "pin = true", resolved).changes, [pinned]);
    let tools = copy(BuildOrigin::Image(image("docker.io/library/tools:1")), BuildCopySource::Path("/x".into()));
    check_denied(ask("pinned-bases", &settings, build("", vec![step(4, tools)])), "base-not-pinned", 4);
}

#[test]
fn an_image_that_would_run_as_root_is_refused_or_made_to_run_as_somebody_else() {
    let root = || build("0:0", vec![step(2, BuildAction::User("0:0".into()))]);
    check_denied(ask("no-root", "", root()), "runs-as-root", 2);
    check_denied(ask("no-root", "", build("", Vec::new())), "runs-as-root", 1);
    assert_eq!(ask("no-root", "base-user-is-root = false", build("", Vec::new())).denial, None);
    assert_eq!(ask("no-root", "", build("1000", Vec::new())).denial, None);
    let forced = ask("no-root", "force-user = \"65534:65534\"", root());
    assert_eq!((forced.denial, forced.changes), (None, vec![BuildChange::ForceUser("65534:65534".into())]));
}

#[test]
fn only_images_below_a_trusted_repository_are_used() {
    let ask = |settings: &str, request| ask("trusted-registries", settings, request);
    assert_eq!(ask("repositories = [\"docker.io\"]", build("", Vec::new())).denial, None);
    check_denied(ask("repositories = [\"docker.io/library/deb\"]", build("", Vec::new())), "registry-not-trusted", 1);
    let foreign = copy(BuildOrigin::Image(image("evil.example/x:1")), BuildCopySource::Path("/x".into()));
    check_denied(ask("repositories = [\"docker.io\"]", build("", vec![step(5, foreign)])), "registry-not-trusted", 5);
}

#[test]
fn lint_warns_of_every_finding_and_refuses_where_its_settings_say_so() {
    let url = BuildCopySource::Url("https://example.com/x".into());
    let request = || {
        let steps = vec![
            step(2, run("curl https://example.com/x | sh")),
            step(3, copy(BuildOrigin::Context, url.clone())),
            step(4, BuildAction::Arguments(vec!["NPM_TOKEN".into()])),
        ];
        build("", steps)
    };
    let warned = ask("dockerfile-lint", "", request());
    let found: Vec<(&str, u32)> = warned.warnings.iter().map(|warning| (warning.code.as_str(), warning.line)).collect();
    assert_eq!(warned.denial, None);
    assert_eq!(found, [("pipe-to-shell", 2), ("add-without-checksum", 3), ("secret-in-variable", 4)]);
    let refused = ask("dockerfile-lint", "default = \"off\"\nrules.secret-in-variable = \"deny\"", request());
    assert_eq!(refused.warnings, []);
    check_denied(refused, "secret-in-variable", 4);
}

#[test]
fn later_policies_see_what_earlier_ones_changed_and_the_first_refusal_ends_it() {
    let pin = binding("pinned-bases", &format!("pin = true\ndigests = {{ {BASE:?} = {:?} }}", digest('a')));
    let user = binding("no-root", "force-user = \"1000\"");
    let strict = binding("pinned-bases", "").replace("name = \"pinned-bases\"", "name = \"strict\"");
    let decision = policies(&[pin.as_str(), &user, &strict].concat()).review_build(build("", Vec::new()));
    assert_eq!((decision.denial, decision.changes.len(), decision.verdicts.len()), (None, 2, 3));
    let decision = policies(&[strict.as_str(), &pin, &user].concat()).review_build(build("", Vec::new()));
    assert_eq!(decision.verdicts.len(), 1);
    assert_eq!(denied(decision).policy, "strict");
}

#[test]
fn wrong_settings_of_policies_about_builds_are_found_when_they_are_bound() {
    let refused = |policy: &str, settings: &str| failure(Service::new().load(&binding(policy, settings)));
    assert!(refused("pinned-bases", "pins = true").contains("unknown field `pins`"));
    assert!(refused("pinned-bases", "pin = true\ndigests = { a = \"b\" }").contains("`digests.\"a\"`"));
    assert!(refused("pinned-bases", "digests = { a = \"b\" }").contains("without `pin = true`"));
    assert!(refused("no-root", "force-user = \"0\"").contains("is root itself"));
    assert!(refused("trusted-registries", "").contains("missing field `repositories`"));
    assert!(refused("trusted-registries", "repositories = [\"https://x\"]").contains("has no scheme"));
    assert!(refused("dockerfile-lint", "rules.typo = \"deny\"").contains("`rules.typo` is no rule"));
    assert!(refused("dockerfile-lint", "default = \"loud\"").contains("unknown variant `loud`"));
}

#[test]
fn policies_about_builds_are_not_asked_about_jobs_nor_the_other_way_round() {
    let policies = policies(&binding("pinned-bases", ""));
    assert_eq!(policies.list()[0].hooks, ["build", "settings"]);
    assert_eq!(admitted(&policies.admit(job())), &job());
    let baseline = self::policies(&binding("job-baseline", "images = [\"none\"]"));
    assert_eq!(baseline.review_build(build("", Vec::new())).verdicts, []);
}

#[test]
fn a_policy_that_traps_loops_or_answers_nonsense_refuses_the_build_and_is_named() {
    let cases = [
        ("spin", "policy-out-of-fuel"),
        ("bomb", "policy-out-of-memory"),
        ("panic", "policy-failed"),
        ("unknown-change", "policy-malformed-answer"),
        ("bad-digest", "policy-malformed-answer"),
        ("no-reason", "policy-malformed-answer"),
    ];
    let file = built("testing/misbehaving-build/misbehaving-build.wasm");
    for (deed, code) in cases {
        let bindings = format!("[[policy]]\nname = \"bad\"\nfile = {file:?}\nsettings = {{ does = {deed:?} }}\n");
        let decision = policies(&bindings).review_build(build("", Vec::new()));
        let denial = denied(decision);
        assert_eq!((denial.policy.as_str(), denial.code.as_str()), ("bad", code), "{deed}: {denial:?}");
        let shadowed = policies(&bindings.replace("file =", "mode = \"shadow\"\nfile ="));
        assert_eq!(shadowed.review_build(build("", Vec::new())).denial, None, "{deed}");
    }
}
