//! Building itself: the context goes to the service, and what it tells is shown as lines that a pipe can take.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use ampoule_client::client::{Content, Transfer};
use ampoule_client::types::{BuildEvent, BuildRequest, BuildResult, BuildStep, Problem};
use ampoule_client::{Client, ClientError};
use ampoule_engine::builder::context::{Context, Kind};
use ampoule_engine::builder::source::Source;
use anyhow::{Context as _, Result, bail};

use super::super::amount::shown_size;
use super::super::{exit, table};
use super::{Arguments, build_arg, dockerfile_path, harmless, read_context, read_dockerfile, secret};

/// The code of a problem that is the Dockerfile's, not ours.
const BUILD_FAILED: &str = "build-failed";
/// The code of a problem that is a policy's.
const DENIED: &str = "denied-by-policy";

/// Builds.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    if !arguments.contexts.is_empty() || arguments.platform.is_some() || arguments.policies.is_some() || arguments.json
    {
        bail!(
            "--build-context, --platform, --policies and --json are for --check so far\nhint: the service asks the policies \
             that it was started with"
        );
    }
    let source = read_dockerfile(arguments)?;
    let context = read_context(arguments)?;
    let request = request(arguments, &source, &context)?;
    let file = pack(&context)?;
    let length = file.metadata()?.len();
    let reader = Box::new(tokio::fs::File::from_std(file));
    let building = client.build_image(&request, Content::Reader { reader, length: Some(length) }).await?;
    follow(building, arguments, &source).await
}

fn request(arguments: &Arguments, source: &Source, context: &Context) -> Result<BuildRequest> {
    // A Dockerfile that the service finds in the context need not be sent twice.
    let path = dockerfile_path(arguments);
    let within = path.as_deref().and_then(|path| path.strip_prefix(&arguments.context).ok()).and_then(Path::to_str);
    let within = within.filter(|path| context.entry(path.as_bytes()).is_some_and(|entry| entry.kind == Kind::File));
    let labels = arguments.labels.iter().map(|label| {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        (name.to_owned(), value.to_owned())
    });
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().map(|text| text.parse());
    Ok(BuildRequest {
        dockerfile: within.map_or_else(|| Some(source.name().to_owned()), |path| Some(path.to_owned())),
        dockerfile_text: within.is_none().then(|| source.text().to_owned()),
        tags: arguments.tags.clone(),
        target: arguments.target.clone(),
        build_args: arguments.build_args.iter().filter_map(|text| build_arg(text)).collect(),
        labels: labels.collect(),
        no_cache: arguments.no_cache,
        source_date_epoch: epoch.transpose().context("SOURCE_DATE_EPOCH is no number of seconds")?,
        secrets: secret::read_all(&arguments.secrets)?,
    })
}

/// The context as a tar, in a file without a name.
fn pack(context: &Context) -> Result<File> {
    let mut tar =
        tar::Builder::new(io::BufWriter::new(tempfile::tempfile().context("could not make a temporary file")?));
    for (path, _) in context.entries() {
        context.append(&mut tar, path, Path::new(OsStr::from_bytes(path)))?;
    }
    let mut file = tar.into_inner()?.into_inner()?;
    file.rewind()?;
    Ok(file)
}

async fn follow(mut building: Transfer<BuildEvent>, arguments: &Arguments, source: &Source) -> Result<ExitCode> {
    let (mut steps, mut warnings) = (HashMap::new(), HashSet::new());
    while let Some(event) = building.next().await? {
        match event {
            BuildEvent::Built(result) => return built(&result, arguments),
            BuildEvent::Failed { problem, line } => return failed(problem, line, source),
            BuildEvent::Planned { steps: planned } => {
                steps.extend(planned.into_iter().map(|step| (step.step, step)));
            }
            // What is true of several steps is said once.
            BuildEvent::Warning { message, .. } if !warnings.insert(message.clone()) => {}
            event => show(&event, &steps, arguments.quiet)?,
        }
    }
    bail!("the service hung up before the end\nhint: its log says why")
}

fn built(result: &BuildResult, arguments: &Arguments) -> Result<ExitCode> {
    if let Some(path) = &arguments.iidfile {
        fs::write(path, &result.image.digest).with_context(|| format!("could not write {}", path.display()))?;
    }
    if arguments.quiet {
        writeln!(io::stdout(), "{}", result.image.digest)?;
    } else {
        let name = result.image.reference.as_deref().unwrap_or("(without a name)");
        let size = shown_size(result.image.size_bytes);
        writeln!(io::stdout(), "{}  {}  {size}", table::plain(name), result.image.digest)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn failed(problem: Box<Problem>, line: Option<usize>, source: &Source) -> Result<ExitCode> {
    if ![BUILD_FAILED, DENIED].contains(&problem.code.as_str()) {
        return Err(ClientError::Refused { problem, retry_after: None }.into());
    }
    let mut text = String::from("error: ");
    if let Some(policy) = &problem.policy {
        text.push_str(&format!("the policy `{policy}` refuses this: "));
    }
    text.push_str(&format!("{}\n", problem.detail));
    if let Some(hint) = &problem.hint {
        text.push_str(&format!("hint: {hint}\n"));
    }
    if let Some(span) = line.and_then(|line| source.line_span(line)) {
        text.push_str(&source.excerpt(span));
    }
    io::stderr().write_all(harmless(&text).as_bytes())?;
    Ok(ExitCode::from(exit::CHECK_FAILED))
}

fn show(event: &BuildEvent, steps: &HashMap<usize, BuildStep>, is_quiet: bool) -> Result<()> {
    if is_quiet {
        return Ok(());
    }
    let head = |step: &usize| {
        steps.get(step).map_or_else(String::new, |it| {
            format!("[{} {}/{}] {}", it.stage, it.of_stage, it.stage_steps, it.text.lines().next().unwrap_or_default())
        })
    };
    let text = match event {
        BuildEvent::Pulling { reference } => format!("pulling {reference}\n"),
        BuildEvent::Warning { message, .. } => format!("warning: {message}\n"),
        BuildEvent::Started { step } => format!("#{} {}\n", step + 1, head(step)),
        BuildEvent::Cached { step } => format!("#{} {}\n#{} CACHED\n", step + 1, head(step), step + 1),
        BuildEvent::Output { step, text, .. } => text.lines().map(|line| format!("#{} {line}\n", step + 1)).collect(),
        BuildEvent::Done { step, wall_ms } => {
            format!("#{} DONE {}.{:03}s\n", step + 1, wall_ms / 1000, wall_ms % 1000)
        }
        BuildEvent::Planned { .. } | BuildEvent::Built(_) | BuildEvent::Failed { .. } => String::new(),
    };
    io::stderr().write_all(harmless(&text).as_bytes())?;
    Ok(())
}
