//! Keys of the cache: everything that changes a result changes its key, and nothing else does.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ampoule_engine::builder::context::{Context, Limits};
use ampoule_engine::builder::ignore::Ignore;
use ampoule_engine::builder::plan::key::StageKeys;
use ampoule_engine::builder::plan::{Input, Plan};
use ampoule_engine::image::digest::Digest;

use super::planned;

/// The keys of a plan, with files from a folder, and images that are what their names say.
fn keys(plan: &Plan, folder: &Path) -> Vec<StageKeys> {
    let context = Context::open(folder, Ignore::default(), Limits::default()).expect("a context");
    let content = |input: &Input| -> Result<Digest, String> {
        match input {
            Input::Files { sources, exclude, .. } => {
                let exclude = Ignore::parse(&exclude.join("\n")).map_err(|error| error.to_string())?;
                let mut all = Vec::new();
                for source in sources {
                    let selection = context.select(source, &exclude).map_err(|error| error.to_string())?;
                    all.push(context.digest_of(&selection).map_err(|error| error.to_string())?.to_string());
                }
                Ok(Digest::of(all.join(" ").as_bytes()))
            }
            other => Ok(Digest::of(serde_json::to_string(other).expect("JSON").as_bytes())),
        }
    };
    plan.keys(content).expect("keys")
}

const FILE: &str =
    "FROM debian:13 AS a\nCOPY src /src\nRUN make\nFROM scratch\nARG V=1\nCOPY --from=a /out /out\nRUN x\n";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("src")).expect("a folder");
    fs::write(folder.path().join("src/one"), "1").expect("a file");
    fs::write(folder.path().join("other"), "1").expect("a file");
    folder
}

#[test]
fn the_same_build_has_the_same_keys_whatever_its_clock_says() {
    let (first, second) = (folder(), folder());
    let past = SystemTime::now() - Duration::from_secs(1_000_000);
    fs::File::open(second.path().join("src/one")).expect("a file").set_modified(past).expect("a time");
    fs::write(second.path().join("other"), "not copied").expect("a file");
    assert_eq!(keys(&planned(FILE), first.path()), keys(&planned(FILE), second.path()));
}

#[test]
fn what_is_copied_changes_the_keys_of_what_comes_after_it() {
    let folder = folder();
    let before = keys(&planned(FILE), folder.path());
    let change = |what: &dyn Fn(&Path)| {
        let folder = self::folder();
        what(folder.path());
        keys(&planned(FILE), folder.path())
    };
    let changes: [&dyn Fn(&Path); 4] = [
        &|folder| fs::write(folder.join("src/one"), "2").expect("a file"),
        &|folder| fs::write(folder.join("src/two"), "").expect("a file"),
        &|folder| fs::rename(folder.join("src/one"), folder.join("src/eno")).expect("a file"),
        &|folder| {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(folder.join("src/one"), fs::Permissions::from_mode(0o755)).expect("a mode");
        },
    ];
    for change_it in changes {
        let after = change(change_it);
        assert_eq!(before[0].base, after[0].base);
        for stage in 0..2 {
            // The argument of the second stage stands before the copy.
            let unchanged = stage;
            for (step, (old, new)) in before[stage].steps.iter().zip(&after[stage].steps).enumerate() {
                assert_eq!(old == new, step < unchanged, "stage {stage} step {step}");
            }
        }
    }
}

#[test]
fn images_of_mounts_are_among_those_that_are_needed() {
    let plan = planned(
        "FROM debian:13\nRUN --mount=from=debian:12,target=/b --mount=type=cache,from=alpine:3,target=/c \
        --mount=type=secret,id=busybox x\n",
    );
    let images: Vec<&str> = plan.images().into_iter().map(|image| image.reference.as_str()).collect();
    assert_eq!(images, ["docker.io/library/alpine:3", "docker.io/library/debian:12", "docker.io/library/debian:13"]);
}

#[test]
fn what_an_instruction_says_changes_its_key() {
    let folder = folder();
    let before = keys(&planned(FILE), folder.path());
    let changed = |from: &str, to: &str| keys(&planned(&FILE.replace(from, to)), folder.path());
    for (from, to) in [
        ("RUN x", "RUN y"),
        ("RUN x", "RUN --network=none x"),
        ("RUN x", "RUN --mount=type=cache,target=/c x"),
        ("RUN x", "RUN --mount=type=cache,target=/c,from=debian:12 x"),
        ("RUN x", "RUN --mount=type=secret,id=s x"),
        ("RUN x", "USER u\nRUN x"),
        ("RUN x", "WORKDIR /w\nRUN x"),
        ("RUN x", "SHELL [\"/bin/bash\", \"-c\"]\nRUN x"),
        ("ARG V=1", "ARG V=2"),
        ("ARG V=1", "ENV V=1"),
        ("COPY src", "COPY --chown=1 src"),
        ("COPY src", "COPY --chmod=700 src"),
        ("/src\n", "/crs\n"),
        ("debian:13", "debian:12"),
        ("FROM scratch", "FROM --platform=linux/arm64 scratch"),
        ("RUN make", "RUN <<E\nmake\nE"),
        ("RUN x", "HEALTHCHECK CMD y\nRUN x"),
        ("RUN x", "ONBUILD RUN y\nRUN x"),
    ] {
        assert_ne!(before[1].last(), changed(from, to)[1].last(), "{from} to {to}");
    }
    for (from, to) in [
        ("RUN x", "# remark\nRUN    x"),
        ("RUN make", "RUN \\\n  make"),
        (" AS a\n", " AS b\n"),
        ("FROM scratch", "FROM scratch AS unused\nRUN z\nFROM scratch"),
    ] {
        let text = FILE.replace(from, to);
        let text = if to.contains("AS b") { text.replace("--from=a", "--from=b") } else { text };
        let after = keys(&planned(&text), folder.path());
        assert_eq!(before.last().unwrap().last(), after.last().unwrap().last(), "{from} to {to}");
    }
}

#[test]
fn a_proxy_is_no_part_of_a_key() {
    let (source, file) = super::parsed(FILE);
    let folder = folder();
    let with = |value: &str| {
        let mut options = super::options(super::Wishes::default());
        options.build_args.insert("HTTP_PROXY".to_owned(), value.to_owned());
        let plan = ampoule_engine::builder::plan::plan(&source, &file, &options).expect("a plan");
        assert!(serde_json::to_string(&plan).expect("JSON").contains(value));
        keys(&plan, folder.path())
    };
    assert_eq!(with("http://one"), with("http://two"));
}

#[test]
fn a_plan_travels_as_json_without_loss() {
    let plan =
        planned("FROM debian:13\nCOPY --chmod=u+x a b /c/\nRUN --mount=type=cache,target=/c <<E\n#!/x\nE\nEXPOSE 80\n");
    let text = serde_json::to_string(&plan).expect("JSON");
    let again: Plan = serde_json::from_str(&text).expect("a plan");
    assert_eq!(again.stages, plan.stages);
}
