//! Building itself: the context goes to the service, and what it tells is shown.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use ampoule_client::client::{Content, Transfer};
use ampoule_client::types::{BuildEvent, BuildPlace, BuildRequest, BuildResult, Problem};
use ampoule_client::{Client, ClientError};
use ampoule_engine::builder::context::{Context, Kind};
use ampoule_engine::builder::source::{Source, Span};
use anyhow::{Context as _, Result, bail};

use super::super::amount::shown_size;
use super::super::{exit, table};
use super::output::{self, Output};
use super::progress::{Display, Progress, harmless};
use super::{Arguments, build_arg, dockerfile_path, prove, read_context, read_dockerfile, secret};

/// The code of a problem that is the Dockerfile's, not ours.
const BUILD_FAILED: &str = "build-failed";
/// The code of a problem that is a policy's.
const DENIED: &str = "denied-by-policy";
/// The code of a build that somebody stopped.
const CANCELLED: &str = "build-cancelled";

/// Builds.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    if !arguments.contexts.is_empty() || arguments.platform.is_some() || arguments.policies.is_some() || arguments.json
    {
        bail!(
            "--build-context, --platform, --policies and --json are for --check so far\nhint: the service asks the policies \
             that it was started with"
        );
    }
    let mut outputs = arguments.outputs.clone();
    outputs.extend(arguments.push.then_some(Output::Image { push: true }));
    output::check(&outputs, &arguments.tags)?;
    let source = read_dockerfile(arguments)?;
    let (context, ignored) = read_context(arguments)?;
    let request = BuildRequest { dockerignore_text: Some(ignored), ..request(arguments, &source, &context)? };
    if arguments.prove_reproducible {
        prove::check(&request)?;
    }
    if arguments.detach {
        writeln!(io::stdout(), "{}", client.detach_build(&request, pack(&context)?).await?.id)?;
        return Ok(ExitCode::SUCCESS);
    }
    let progress = if arguments.quiet { Progress::Quiet } else { arguments.progress };
    let build = async |request: &BuildRequest| {
        let told = follow(client.build_image(request, pack(&context)?).await?, progress, Some(&source)).await?;
        told.context("the service hung up before the end\nhint: its log says why")
    };
    let result = match build(&request).await? {
        Ok(result) => result,
        Err(code) => return Ok(code),
    };
    if arguments.prove_reproducible {
        let is_same = match build(&prove::again(&request)).await? {
            Ok(second) => prove::compare(client, &result, &second).await?,
            Err(code) => return Ok(code),
        };
        if !is_same {
            return Ok(ExitCode::from(exit::CHECK_FAILED));
        }
    }
    if let Some(path) = &arguments.iidfile {
        fs::write(path, &result.image.digest).with_context(|| format!("could not write {}", path.display()))?;
    }
    for output in &outputs {
        output::bring(client, output, &result, &arguments.tags).await?;
    }
    // What goes to standard output is the result then, and nothing else.
    if !outputs.iter().any(Output::is_stdout) {
        built(&result, progress)?;
    }
    Ok(ExitCode::SUCCESS)
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
        dockerignore_text: None,
        tags: arguments.tags.clone(),
        target: arguments.target.clone(),
        build_args: arguments.build_args.iter().filter_map(|text| build_arg(text)).collect(),
        labels: labels.collect(),
        no_cache: arguments.no_cache,
        pull: arguments.pull,
        detach: arguments.detach,
        source_date_epoch: epoch.transpose().context("SOURCE_DATE_EPOCH is no number of seconds")?,
        secrets: secret::read_all(&arguments.secrets)?,
    })
}

/// The context as a tar, in a file without a name.
fn pack(context: &Context) -> Result<Content> {
    let mut tar =
        tar::Builder::new(io::BufWriter::new(tempfile::tempfile().context("could not make a temporary file")?));
    for (path, _) in context.entries() {
        context.append(&mut tar, path, Path::new(OsStr::from_bytes(path)))?;
    }
    let mut file = tar.into_inner()?.into_inner()?;
    file.rewind()?;
    let length = Some(file.metadata()?.len());
    Ok(Content::Reader { reader: Box::new(tokio::fs::File::from_std(file)), length })
}

/// Shows what a build tells, to its end: the image, or the exit code of one that failed; nothing when the end is not told.
pub(in crate::cli) async fn follow(
    mut building: Transfer<BuildEvent>,
    progress: Progress,
    source: Option<&Source>,
) -> Result<Option<Result<BuildResult, ExitCode>>> {
    let mut display = Display::new(progress);
    while let Some(event) = building.next().await? {
        display.show(&event)?;
        match event {
            BuildEvent::Built(result) => return Ok(Some(Ok(result))),
            BuildEvent::Failed { problem, place } => return Ok(Some(Err(failed(problem, place, source)?))),
            _ => {}
        }
    }
    Ok(None)
}

/// Tells of the image that was built, as it was asked to.
pub(in crate::cli) fn built(result: &BuildResult, progress: Progress) -> Result<()> {
    let mut stdout = io::stdout();
    match progress {
        // The last event said it.
        Progress::Json => {}
        Progress::Quiet => writeln!(stdout, "{}", result.image.digest)?,
        Progress::Auto | Progress::Tty | Progress::Plain => {
            let name = result.image.reference.as_deref().unwrap_or("(without a name)");
            let size = shown_size(result.image.size_bytes);
            writeln!(stdout, "{}  {}  {size}", table::plain(name), result.image.digest)?;
        }
    }
    Ok(())
}

fn failed(problem: Box<Problem>, place: Option<BuildPlace>, source: Option<&Source>) -> Result<ExitCode> {
    if problem.code == CANCELLED {
        writeln!(io::stderr(), "error: {}", harmless(&problem.detail))?;
        return Ok(ExitCode::from(exit::CANCELLED));
    }
    if ![BUILD_FAILED, DENIED].contains(&problem.code.as_str()) {
        return Err(ClientError::Refused { problem, retry_after: None }.into());
    }
    let mut text = String::from("error: ");
    if let Some(policy) = &problem.policy {
        text.push_str(&format!("the policy `{policy}` refuses this: "));
    }
    let shown = place.and_then(|place| excerpt(place, source?));
    // The place comes with its line, below.
    let at = place.filter(|_| shown.is_some()).map(|place| format!(":{}:{}: ", place.line, place.column));
    let said = at.and_then(|at| problem.detail.split_once(&at)).map_or(problem.detail.as_str(), |(_, said)| said);
    text.push_str(&format!("{said}\n"));
    if let Some(hint) = &problem.hint {
        text.push_str(&format!("hint: {hint}\n"));
    }
    text.extend(shown);
    io::stderr().write_all(harmless(&text).as_bytes())?;
    Ok(ExitCode::from(exit::CHECK_FAILED))
}

/// The line of a place, as `--check` shows it.
fn excerpt(place: BuildPlace, source: &Source) -> Option<String> {
    let line = source.line_span(place.line)?;
    let bytes_of = |text: &str, letters: usize| text.chars().take(letters).map(char::len_utf8).sum::<usize>();
    let start = line.start + bytes_of(&source.text()[line.start..], place.column.saturating_sub(1));
    let end = match place.length {
        Some(length) => start + bytes_of(&source.text()[start..], length),
        None => line.end,
    };
    Some(source.excerpt(Span { start, end }))
}
