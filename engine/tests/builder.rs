//! Builds from the outside: each folder below `builder/cases` is a Dockerfile with what must come of it. A new case is a
//! new folder; `UPDATE_CASES=1` writes what comes of it now, to be read and approved.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use ampoule_engine::builder::check::{Report, check, render_error};
use ampoule_engine::builder::context::{Context, Limits};
use ampoule_engine::builder::dockerfile::{self, Dockerfile};
use ampoule_engine::builder::ignore::Ignore;
use ampoule_engine::builder::plan::{BaseFacts, ImageSource, NamedContext, Options, Plan, Platform, Stage, plan};
use ampoule_engine::builder::source::Source;
use ampoule_engine::image::digest::Digest;
use ampoule_engine::image::reference::Reference;
use serde::Deserialize;

#[path = "builder/ignore.rs"]
mod ignore;
#[path = "builder/keys.rs"]
mod keys;
#[path = "builder/malice.rs"]
mod malice;
#[path = "builder/oracle.rs"]
mod oracle;

/// Least number of cases, so that none can be lost unseen.
const CASES_MIN: usize = 60;

/// `options.json` of a case.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wishes {
    target: Option<String>,
    build_args: BTreeMap<String, String>,
    platform: Option<String>,
    /// Folders, or `docker-image://` and a name.
    contexts: BTreeMap<String, String>,
    all_stages: bool,
    bases: BTreeMap<String, Base>,
}

/// What a case knows of a base image.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Base {
    platform: Option<String>,
    env: BTreeMap<String, String>,
    working_dir: Option<String>,
    user: Option<String>,
    shell: Vec<String>,
    on_build: Vec<String>,
}

/// A platform that no machine changes.
fn platform(text: Option<&str>) -> Platform {
    Platform::parse(text.unwrap_or("linux/amd64")).expect("a platform")
}

fn options(wishes: Wishes) -> Options {
    let wanted = platform(wishes.platform.as_deref());
    let bases = wishes.bases.into_iter().map(|(name, base)| {
        let reference = Reference::parse(&name).expect("a reference").canonical();
        let facts = BaseFacts {
            digest: Digest::of(name.as_bytes()),
            platform: platform(base.platform.as_deref()),
            env: base.env.into_iter().collect(),
            working_dir: base.working_dir,
            user: base.user,
            shell: base.shell,
            on_build: base.on_build,
        };
        (ImageSource { reference, platform: wanted.clone() }, facts)
    });
    let contexts = wishes.contexts.into_iter().map(|(name, value)| {
        let context = match value.strip_prefix("docker-image://") {
            Some(image) => NamedContext::Image(Reference::parse(image).expect("a reference").canonical()),
            None => NamedContext::Folder(value),
        };
        (name, context)
    });
    Options {
        target: wishes.target,
        build_args: wishes.build_args,
        bases: bases.collect(),
        contexts: contexts.collect(),
        all_stages: wishes.all_stages,
        platform: wanted,
        build_platform: platform(None),
    }
}

/// The text of a Dockerfile with what it is read into.
fn parsed(text: &str) -> (Source, Dockerfile) {
    let source = Source::new("Dockerfile", text);
    let file = dockerfile::parse(&source).unwrap_or_else(|complaint| panic!("{}", render_error(&complaint, &source)));
    (source, file)
}

/// The plan of a text for amd64.
fn planned(text: &str) -> Plan {
    let (source, file) = parsed(text);
    let options = options(Wishes::default());
    plan(&source, &file, &options).unwrap_or_else(|complaint| panic!("{}", render_error(&complaint, &source)))
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/builder/cases");
    let entries = fs::read_dir(&folder).expect("the cases");
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.expect("a case").path()).collect();
    cases.sort();
    cases
}

/// What comes of a case, as text.
fn outcome(case: &Path) -> String {
    let read = |name: &str| fs::read_to_string(case.join(name)).ok();
    let source = Source::new("Dockerfile", read("Dockerfile").expect("a case has a Dockerfile"));
    let wishes = read("options.json").map(|text| serde_json::from_str(&text).expect("options.json"));
    let options = options(wishes.unwrap_or_default());
    let folder = case.join("context");
    let ignored = Ignore::parse(&fs::read_to_string(folder.join(".dockerignore")).unwrap_or_default());
    let ignored = ignored.expect("an ignore file");
    let context = folder.is_dir().then(|| Context::open(&folder, ignored, Limits::default()).expect("a context"));
    let made = dockerfile::parse(&source).and_then(|file| {
        assert_printing_and_reading_agree(&source, &file);
        let plan = plan(&source, &file, &options)?;
        let report = check(&file, &options, &plan, context.as_ref());
        Ok((plan, report))
    });
    match made {
        Ok((plan, report)) => format!("{}\n{}", plan_text(&plan), findings_text(&report, &source)),
        Err(complaint) => render_error(&complaint, &source),
    }
}

fn plan_text(plan: &Plan) -> String {
    let mut text = format!("target {} for {}\n", plan.target, plan.platform);
    for stage in &plan.stages {
        let Stage { index, name, position, base, platform, needs, .. } = stage;
        let name = name.as_deref().unwrap_or("-");
        let base = serde_json::to_string(base).expect("JSON");
        let _ = writeln!(text, "\nstage {index} {name} at {position} on {base} for {platform}, needs {needs:?}");
        for step in &stage.steps {
            let trigger = if step.is_trigger { " (trigger)" } else { "" };
            let _ = writeln!(text, "  {}{trigger} {}", step.position, step.text.replace('\n', "\\n"));
            let _ = writeln!(text, "    {}", serde_json::to_string(&step.action).expect("JSON"));
            for input in &step.inputs {
                let _ = writeln!(text, "    <- {}", serde_json::to_string(input).expect("JSON"));
            }
        }
    }
    text
}

fn findings_text(report: &Report, source: &Source) -> String {
    let mut text = String::new();
    for told in report.told(source) {
        let _ = writeln!(text, "{} {}: {}", told.position, told.rule, told.message);
    }
    text
}

/// The tree of a file without places, which printing moves.
fn without_places(file: &Dockerfile) -> serde_json::Value {
    fn strip(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                for name in ["span", "empty_continuation"] {
                    fields.remove(name);
                }
                fields.values_mut().for_each(strip);
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(file).expect("JSON");
    strip(&mut value);
    value
}

#[track_caller]
fn assert_printing_and_reading_agree(source: &Source, file: &Dockerfile) {
    let printed = file.to_string();
    let again = dockerfile::parse(&Source::new("printed", printed.as_str()));
    let again = again.unwrap_or_else(|complaint| panic!("{complaint}\n{}\nprinted:\n{printed}", source.text()));
    assert_eq!(without_places(&again), without_places(file), "{}\nprinted:\n{printed}", source.text());
}

#[test]
fn every_case_comes_out_as_it_was_read_and_approved() {
    let cases = cases();
    assert!(cases.len() >= CASES_MIN, "only {} cases", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let path = case.join("expected");
        let made = outcome(case);
        if std::env::var_os("UPDATE_CASES").is_some() {
            fs::write(&path, &made).expect("the expected outcome can be written");
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if made != expected {
            wrong.push(format!("{}:\n--- expected\n{expected}\n--- made\n{made}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}\nset UPDATE_CASES=1 to write what comes out now", wrong.join("\n\n"));
}
