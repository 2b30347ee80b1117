//! `ampoule build`: reads a Dockerfile with its context, and has the service build it; or, with `--check` and without the
//! service, plans the build and says what is wrong or could be better.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ampoule_engine::builder::check::{Report, Told, check, render_error};
use ampoule_engine::builder::context::{Context, Limits};
use ampoule_engine::builder::dockerfile::{self, FILE_BYTES_MAX};
use ampoule_engine::builder::ignore::{self, Ignore};
use ampoule_engine::builder::plan::{NamedContext, Options, Plan, Platform, plan};
use ampoule_engine::builder::source::{Complaint, Position, Source};
use ampoule_engine::image::reference::Reference;
use ampoule_plugins::{BuildDecision, Policies};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;

use super::{exit, policies};
use crate::review;

mod output;
pub(super) mod progress;
mod prove;
mod secret;
pub(super) mod send;
mod unpack;
mod verdicts;

use output::Output;
use progress::{Progress, harmless};

pub(super) const EXAMPLES: &str = "\
Examples:
  ampoule build -t app .
  ampoule build -t app:test -f docker/Dockerfile --target test --build-arg VERSION=2 .
  ampoule build -t app --secret id=token,src=token.txt --secret id=key,env=API_KEY .
  ampoule build -t registry.example/app:1 --pull --push .
  ampoule build --target files -o out .
  ampoule build -o type=oci,dest=app.tar .
  ampoule builds logs -f $(ampoule build --detach -t app .)
  ampoule build --check .
  ampoule build --check -f docker/Dockerfile --target test --build-arg VERSION=2 .
  ampoule build --check --json . | jq .plan.stages
  ampoule build --check --policies policies/builds.toml .

Exit codes:
  0    the image is built; with --check: it can be planned, and none of Docker's checks has anything to say
  1    a step failed, it cannot be planned, or a policy refuses it; with --check also: there are warnings;
       advice and warnings of policies alone are none of these
  130  it was cancelled
  125  it was not understood what was asked for, or the service could not do it";

/// Prefix of a context that is an image.
const IMAGE_CONTEXT: &str = "docker-image://";

#[derive(Args)]
pub(super) struct Arguments {
    /// Folder whose files the build may use
    #[arg(default_value = ".")]
    context: PathBuf,
    /// The Dockerfile; `-` reads it from standard input [default: Dockerfile in the context]
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Name for the image; may be given several times
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// Plan and check only, without the service
    #[arg(long)]
    pub(super) check: bool,
    /// Run every step, also those that were run before
    #[arg(long)]
    no_cache: bool,
    /// Ask the registries for the base images again
    #[arg(long)]
    pull: bool,
    /// Build twice, the second time every step anew, and fail with the first difference
    #[arg(long, conflicts_with_all = ["detach", "check"])]
    prove_reproducible: bool,
    /// Push the image to where its names say
    #[arg(long, conflicts_with = "detach")]
    push: bool,
    /// Where the result goes: type=image, registry, oci, docker, tar or local, with dest=PATH; a folder; `-` for a tar
    #[arg(short, long = "output", value_name = "TYPE", value_parser = Output::parse, conflicts_with = "detach")]
    outputs: Vec<Output>,
    /// Label for the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// Write the image's digest to this file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    progress: Progress,
    /// Print the image's digest only, as --progress=quiet does
    #[arg(short, long)]
    quiet: bool,
    /// Print the build's id and leave it alone; `ampoule builds` lists and follows it
    #[arg(short, long, conflicts_with = "iidfile")]
    detach: bool,
    /// The stage to build [default: the last one]
    #[arg(long)]
    target: Option<String>,
    /// Value of an argument; without `=` it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<String>,
    /// What `RUN --mount=type=secret` may show: id=ID with src=FILE or env=NAME; may be given several times
    #[arg(long = "secret", value_name = "id=ID[,src=FILE|,env=NAME]")]
    secrets: Vec<String>,
    /// The platform to build for, as in linux/arm64 [default: this machine's]
    #[arg(long)]
    platform: Option<String>,
    /// Another context under a name: a folder, or docker-image://IMAGE
    #[arg(long = "build-context", value_name = "NAME=PATH")]
    contexts: Vec<String>,
    /// A policies.toml whose policies about builds are asked as well
    #[arg(long, value_name = "FILE")]
    policies: Option<PathBuf>,
    /// Print one JSON document with findings and plan
    #[arg(long)]
    json: bool,
}

/// All that is said with `--json`.
#[derive(Serialize)]
struct Document<'a> {
    dockerfile: &'a str,
    error: Option<Wrong>,
    findings: Vec<Told>,
    plan: Option<&'a Plan>,
    /// What the policies came to; nothing when none were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<&'a BuildDecision>,
}

/// A build that can be made, and what is said about it.
struct Checked {
    plan: Plan,
    report: Report,
    decision: Option<BuildDecision>,
}

impl Checked {
    fn is_good(&self) -> bool {
        let is_denied = self.decision.as_ref().is_some_and(|decision| decision.denial.is_some());
        self.report.warnings() == 0 && !self.report.is_error() && !is_denied
    }
}

/// What keeps a build from being planned.
#[derive(Serialize)]
struct Wrong {
    message: String,
    hint: Option<String>,
    position: Position,
    text: String,
}

/// Checks a build.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = options(arguments)?;
    let policies = arguments.policies.as_deref().map(policies::bind).transpose()?;
    let source = read_dockerfile(arguments)?;
    let (context, _) = read_context(arguments)?;
    let planned = dockerfile::parse(&source).and_then(|file| {
        let plan = plan(&source, &file, &options)?;
        let report = check(&file, &options, &plan, Some(&context));
        let ask = |policies: &Policies| {
            policies.review_build(review::request(source.name(), &plan, &options, Some(&context)))
        };
        let decision = policies.as_ref().map(ask);
        Ok(Checked { plan, report, decision })
    });
    if arguments.json {
        print_json(&source, planned.as_ref())?;
    } else {
        print_text(&source, planned.as_ref())?;
    }
    Ok(if planned.is_ok_and(|checked| checked.is_good()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::CHECK_FAILED)
    })
}

fn print_text(source: &Source, planned: Result<&Checked, &Complaint>) -> Result<()> {
    match planned {
        Ok(Checked { report, decision, .. }) => {
            io::stdout().write_all(harmless(&report.render(source)).as_bytes())?;
            if let Some(decision) = decision {
                io::stdout().write_all(harmless(&verdicts::render(decision, source)).as_bytes())?;
            }
            if report.is_error() {
                io::stderr().write_all(b"error: the Dockerfile's check directive makes these findings an error\n")?;
            }
        }
        Err(complaint) => io::stderr().write_all(harmless(&render_error(complaint, source)).as_bytes())?,
    }
    Ok(())
}

fn print_json(source: &Source, planned: Result<&Checked, &Complaint>) -> Result<()> {
    let document = match planned {
        Ok(Checked { plan, report, decision }) => Document {
            dockerfile: source.name(),
            error: None,
            findings: report.told(source),
            plan: Some(plan),
            policies: decision.as_ref(),
        },
        Err(complaint) => {
            let position = source.position(complaint.span.start);
            let (message, hint) = (complaint.message.clone(), complaint.hint.clone());
            let wrong = Wrong { message, hint, position, text: source.line(position.line).to_owned() };
            Document { dockerfile: source.name(), error: Some(wrong), findings: Vec::new(), plan: None, policies: None }
        }
    };
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
    Ok(())
}

/// What was asked for, read and checked.
fn options(arguments: &Arguments) -> Result<Options> {
    let platform = match &arguments.platform {
        Some(text) if text.contains(',') => bail!("one build is for one platform\nhint: build once for each of them"),
        Some(text) => Platform::parse(text)?,
        None => Platform::own(),
    };
    let mut contexts = BTreeMap::new();
    for text in &arguments.contexts {
        let (name, context) = named_context(text)?;
        contexts.insert(name, context);
    }
    Ok(Options {
        target: arguments.target.clone(),
        build_args: arguments.build_args.iter().filter_map(|text| build_arg(text)).collect(),
        platform,
        contexts,
        // As Docker does: without a target, every stage is checked.
        all_stages: arguments.target.is_none(),
        ..Options::default()
    })
}

fn build_arg(text: &str) -> Option<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => std::env::var(text).ok().map(|value| (text.to_owned(), value)),
    }
}

fn named_context(text: &str) -> Result<(String, NamedContext)> {
    let Some((name, value)) = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty()) else {
        bail!("`{text}` is no named context\nhint: as in --build-context lib=../lib");
    };
    if let Some(image) = value.strip_prefix(IMAGE_CONTEXT) {
        let reference = Reference::parse(image)?;
        return Ok((name.to_owned(), NamedContext::Image(reference.canonical())));
    }
    if value.contains("://") || value.starts_with("git@") {
        bail!("the context `{name}` is neither a folder nor an image\nhint: fetch it to a folder first");
    }
    if !Path::new(value).is_dir() {
        bail!("the context `{name}`: there is no folder `{value}`");
    }
    Ok((name.to_owned(), NamedContext::Folder(value.to_owned())))
}

/// The path of the Dockerfile; `None` for standard input.
fn dockerfile_path(arguments: &Arguments) -> Option<PathBuf> {
    match &arguments.file {
        Some(file) if file == Path::new("-") => None,
        Some(file) => Some(file.clone()),
        None => Some(arguments.context.join("Dockerfile")),
    }
}

fn read_dockerfile(arguments: &Arguments) -> Result<Source> {
    let (name, bytes) = match dockerfile_path(arguments) {
        None => ("Dockerfile".to_owned(), read_bounded(&mut io::stdin().lock(), FILE_BYTES_MAX)),
        Some(path) => {
            let opened = File::open(&path).with_context(|| {
                format!("could not read the Dockerfile {}\nhint: name it with -f, from here", path.display())
            });
            (path.display().to_string(), read_bounded(&mut opened?, FILE_BYTES_MAX))
        }
    };
    let bytes = bytes.with_context(|| format!("could not read {name}"))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source::new(name, text)),
        Err(error) => {
            let line =
                error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            Err(anyhow!("{name}:{}: this is no text in UTF-8\nhint: save the file in UTF-8", line + 1))
        }
    }
}

/// The context, and the text of the ignore file that was applied to it.
fn read_context(arguments: &Arguments) -> Result<(Context, String)> {
    let folder = &arguments.context;
    let text = folder.to_string_lossy();
    if text == "-" || text.contains("://") || text.starts_with("git@") {
        bail!("the context is not a folder\nhint: unpack or fetch it first; a Dockerfile alone is read with `-f -`");
    }
    let (ignored, patterns) = read_ignore(arguments)?;
    let context = Context::open(folder, ignored, Limits::default());
    Ok((context.with_context(|| format!("could not read the context {text}"))?, patterns))
}

/// `NAME.dockerignore` beside the Dockerfile, or else `.dockerignore` at the root of the context.
fn read_ignore(arguments: &Arguments) -> Result<(Ignore, String)> {
    let beside = dockerfile_path(arguments).map(|mut path| {
        path.as_mut_os_string().push(".dockerignore");
        path
    });
    for path in beside.into_iter().chain([arguments.context.join(".dockerignore")]) {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(error).with_context(|| format!("could not read {}", path.display())),
        };
        let bytes = read_bounded(&mut file, ignore::FILE_BYTES_MAX);
        let bytes = bytes.with_context(|| format!("could not read {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let ignored = Ignore::parse(&text).with_context(|| format!("could not use {}", path.display()))?;
        return Ok((ignored, text));
    }
    Ok((Ignore::default(), String::new()))
}

/// All bytes, and one more than are allowed: what is too long is told by whoever reads it.
fn read_bounded(input: &mut impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// Runs the command on a folder with these files.
    fn run_on(files: &[(&str, &str)], flags: &[&str]) -> Result<ExitCode> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("a file");
        }
        let path = folder.path().display().to_string();
        let typed = ["build"].iter().chain(flags).copied().chain([path.as_str()]);
        run(&Typed::try_parse_from(typed).expect("it can be typed").arguments)
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], flags: &[&str], expected: u8) {
        let code = run_on(files, flags).expect("it is checked");
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(expected)));
    }

    #[test]
    fn warnings_and_errors_return_one_and_advice_does_not() {
        check(&[("Dockerfile", "FROM debian\n")], &["--check"], 0);
        check(&[("Dockerfile", "FROM scratch AS X\n")], &["--check"], 1);
        check(&[("Dockerfile", "FORM scratch\n")], &["--check"], 1);
        check(&[("Dockerfile", "FORM scratch\n")], &["--check", "--json"], 1);
        check(&[("Dockerfile", "# check=error=true\nFROM debian\n")], &["--check"], 1);
        check(&[("Dockerfile", "FROM scratch\nARG V\nENV X=${V:?}\n")], &["--check", "--build-arg", "V=1"], 0);
    }

    #[test]
    fn the_ignore_file_beside_the_dockerfile_comes_first() {
        let files = [("Dockerfile", "FROM scratch\nCOPY a /\n"), (".dockerignore", "a\n"), ("a", "")];
        check(&files, &["--check"], 1);
        check(&[&files[..], &[("Dockerfile.dockerignore", "b\n")]].concat(), &["--check"], 0);
    }

    #[test]
    fn what_is_not_there_or_not_understood_is_told() {
        let refused =
            |files: &[(&str, &str)], flags: &[&str]| run_on(files, flags).expect_err("it is refused").to_string();
        assert!(refused(&[], &["--check"]).contains("could not read the Dockerfile"));
        let file = [("Dockerfile", "FROM scratch\n")];
        assert!(refused(&file, &["--check", "--platform", "a/b,c/d"]).contains("one platform"));
        assert!(refused(&file, &["--check", "--build-context", "x"]).contains("no named context"));
        assert!(refused(&file, &["--check", "--build-context", "x=https://x"]).contains("neither a folder nor"));
        let broken = [("Dockerfile", "FROM scratch\n"), (".dockerignore", "[\n")];
        assert!(refused(&broken, &["--check"]).contains(".dockerignore"));
    }
}
