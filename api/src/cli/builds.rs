//! `ampoule builds`: those that are under way or were.

use std::io::{self, Write};
use std::process::ExitCode;

use ampoule_client::Client;
use ampoule_client::client::BuildQuery;
use ampoule_client::types::{Build, BuildState};
use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use super::build::progress::Progress;
use super::build::send::{built, follow};
use super::{jobs, table};

/// Builds of one page.
const PAGE: u32 = 500;
/// Pages that are looked at.
const PAGES_MAX: u32 = 10;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List builds, newest first
    #[command(
        after_help = "Examples:\n  ampoule builds ls\n  ampoule builds ls --state running --quiet | xargs ampoule builds cancel"
    )]
    Ls(LsArguments),
    /// Show what a build told
    #[command(after_help = "Example:\n  ampoule builds logs -f $(ampoule build --detach -t app .)")]
    Logs(LogsArguments),
    /// Show all that is known of a build, as one JSON document
    Inspect(IdArguments),
    /// Stop builds that are under way
    Cancel(IdsArguments),
}

#[derive(Args)]
pub(super) struct LsArguments {
    /// Only builds in this state
    #[arg(short, long, value_enum)]
    state: Option<StateArgument>,
    /// Print one JSON document
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

/// The states of a build, as they are typed.
#[derive(Clone, Copy, ValueEnum)]
enum StateArgument {
    /// Under way
    Running,
    /// There is an image
    Built,
    /// There is none
    Failed,
    /// Somebody stopped it, or hung up
    Cancelled,
}

#[derive(Args)]
pub(super) struct LogsArguments {
    #[command(flatten)]
    build: IdArguments,
    /// Go on until the build ended, and return what `ampoule build` would have
    #[arg(short, long)]
    follow: bool,
    /// How it is shown
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    progress: Progress,
}

#[derive(Args)]
pub(super) struct IdArguments {
    /// Id of the build, or the part of it that no other build has
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
}

#[derive(Args)]
pub(super) struct IdsArguments {
    /// Ids of builds, or the parts of them that no other build has
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Does what was typed.
pub(super) async fn run(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Ls(arguments) => ls(client, &arguments).await?,
        Command::Logs(arguments) => return logs(client, &arguments).await,
        Command::Inspect(arguments) => {
            let build = client.build(&find(client, &arguments.id).await?).await?;
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&build)?)?;
        }
        Command::Cancel(arguments) => cancel(client, &arguments).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn ls(client: &Client, arguments: &LsArguments) -> Result<()> {
    let state = arguments.state.and_then(|state| Some(state.to_possible_value()?.get_name().to_owned()));
    let builds = list(client, state).await?;
    if arguments.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&builds)?)?;
    } else if arguments.quiet {
        let mut stdout = io::stdout().lock();
        builds.iter().try_for_each(|build| writeln!(stdout, "{}", build.id))?;
    } else {
        let now = Timestamp::now();
        let rows: Vec<Vec<String>> = builds.iter().map(|build| row(build, now)).collect();
        table::print(&["ID", "STATE", "TAGS", "DOCKERFILE", "CREATED", "TOOK"], &rows)?;
    }
    Ok(())
}

async fn list(client: &Client, state: Option<String>) -> Result<Vec<Build>> {
    let mut builds = Vec::new();
    let mut query = BuildQuery { state, limit: Some(PAGE), cursor: None };
    for _ in 0..PAGES_MAX {
        let page = client.builds(&query).await?;
        builds.extend(page.builds);
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    Ok(builds)
}

fn row(build: &Build, now: Timestamp) -> Vec<String> {
    let created = format!("{} ago", jobs::coarse(build.created, now));
    let took = jobs::fine(build.created, build.ended.unwrap_or(now));
    let (state, dockerfile) = (build.state.as_str().to_owned(), build.dockerfile.clone());
    vec![build.id.clone(), state, build.tags.join(" "), dockerfile, created, took]
}

/// The whole id of the build that is meant.
async fn find(client: &Client, id: &str) -> Result<String> {
    if id.len() >= jobs::ID_LENGTH {
        return Ok(id.to_owned());
    }
    let builds = list(client, None).await?.into_iter().map(|build| build.id);
    let meant: Vec<String> = builds.filter(|whole| jobs::is_meant(whole, id)).collect();
    match meant.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(anyhow!("there is no build `{id}`\nhint: see `ampoule builds ls`")),
        several => Err(anyhow!("{} builds are meant by `{id}`\nhint: give more of the id", several.len())),
    }
}

async fn logs(client: &Client, arguments: &LogsArguments) -> Result<ExitCode> {
    let id = find(client, &arguments.build.id).await?;
    let told = client.build_log(&id, arguments.follow).await?;
    match follow(told, arguments.progress, None).await? {
        Some(Ok(result)) => built(&result, arguments.progress)?,
        Some(Err(code)) => return Ok(code),
        None if arguments.follow => anyhow::bail!("the service hung up before the end\nhint: its log says why"),
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn cancel(client: &Client, arguments: &IdsArguments) -> Result<()> {
    for id in &arguments.ids {
        let id = find(client, id).await?;
        let build = client.cancel_build(&id).await.with_context(|| format!("could not cancel {id}"))?;
        let word = if build.state == BuildState::Running { "is being stopped" } else { "has ended" };
        writeln!(io::stdout(), "{id} {word}")?;
    }
    Ok(())
}
