//! Jobs that are there: listing, following, stopping and forgetting them.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use ampoule_client::client::{Events, JobQuery};
use ampoule_client::types::{Ending, EndingKind, Event, JobState, JobSummary, LogChunk, Stream};
use ampoule_client::{Client, ClientError};
use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::failure::ClosedPipe;
use super::table;

/// Length of a whole id.
pub(super) const ID_LENGTH: usize = 36;
/// Jobs of one page.
const PAGE: u32 = 500;
/// Pages that are searched for an abbreviated id, or listed.
const PAGES_MAX: u32 = 40;
/// How often a broken stream of events is taken up again without a single event in between.
const RECONNECTS_MAX: u32 = 5;
/// How long the first of these waits; each waits twice as long as the one before.
const RECONNECT_DELAY: Duration = Duration::from_millis(200);
/// Letters of a command that a table shows.
const COMMAND_LETTERS: usize = 40;

/// Which job is meant.
#[derive(Args)]
pub(super) struct JobId {
    /// Id of the job, or the part of it that no other job has
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(super) id: String,
}

/// One of a job's two outputs, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Streams {
    /// Standard output only
    Stdout,
    /// Standard error only
    Stderr,
    /// Both, each to the stream of the same name
    Both,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  ampoule ps\n  ampoule ps --all --label suite=nightly\n  ampoule ps --state queued --quiet | xargs ampoule cancel"
)]
pub(super) struct PsArguments {
    /// Also jobs that ended
    #[arg(short, long)]
    all: bool,
    /// Only jobs in this state
    #[arg(short, long, value_enum)]
    state: Option<StateArgument>,
    /// Only jobs with this label
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Option<String>,
    /// Print one JSON document
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

/// The states of a job, as they are typed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateArgument {
    /// Waiting for its turn
    Queued,
    /// In its sandbox
    Running,
    /// Over
    Ended,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  ampoule logs -f 0192f0c1\n  ampoule logs --stream stderr 0192f0c1 > errors.txt")]
pub(super) struct LogsArguments {
    #[command(flatten)]
    job: JobId,
    /// Go on until the job ended
    #[arg(short, long)]
    follow: bool,
    /// Which output
    #[arg(short, long, value_enum, default_value = "both", hide_possible_values = false)]
    stream: Streams,
}

#[derive(Args)]
pub(super) struct IdsArguments {
    /// Ids of jobs, or the parts of them that no other job has
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Lists jobs, newest first.
pub(super) async fn ps(client: &Client, arguments: &PsArguments) -> Result<ExitCode> {
    let states: &[Option<&str>] = match arguments.state {
        Some(StateArgument::Queued) => &[Some("queued")],
        Some(StateArgument::Running) => &[Some("running")],
        Some(StateArgument::Ended) => &[Some("ended")],
        None if arguments.all => &[None],
        None => &[Some("running"), Some("queued")],
    };
    let mut jobs = Vec::new();
    for state in states {
        let query = JobQuery { state: state.map(str::to_owned), label: arguments.label.clone(), ..JobQuery::default() };
        jobs.extend(list(client, query).await?);
    }
    if arguments.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&jobs)?)?;
    } else if arguments.quiet {
        let mut stdout = io::stdout().lock();
        jobs.iter().try_for_each(|job| writeln!(stdout, "{}", job.id))?;
    } else {
        let now = Timestamp::now();
        let rows: Vec<Vec<String>> = jobs.iter().map(|job| row(job, now)).collect();
        table::print(&["ID", "STATE", "IMAGE", "COMMAND", "CREATED", "TOOK"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All pages of a list, up to a bound that is told when it is reached.
async fn list(client: &Client, query: JobQuery) -> Result<Vec<JobSummary>> {
    let mut jobs = Vec::new();
    let mut query = JobQuery { limit: Some(PAGE), ..query };
    for _ in 0..PAGES_MAX {
        let page = client.jobs(&query).await?;
        jobs.extend(page.jobs);
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return Ok(jobs),
        }
    }
    writeln!(io::stderr(), "ampoule: only the newest {} jobs were looked at", jobs.len())?;
    Ok(jobs)
}

fn row(job: &JobSummary, now: Timestamp) -> Vec<String> {
    let state = match &job.ending {
        Some(ending) => short_ending(ending),
        None => job.state.as_str().to_owned(),
    };
    let command = job.argv.join(" ");
    let command = match command.char_indices().nth(COMMAND_LETTERS) {
        Some((end, _)) => format!("{}…", &command[..end]),
        None => command,
    };
    let created = format!("{} ago", coarse(job.times.created, now));
    let took = match (job.times.started, job.times.ended) {
        (Some(started), ended) => fine(started, ended.unwrap_or(now)),
        (None, _) => "-".to_owned(),
    };
    vec![job.id.clone(), state, job.image.clone(), command, created, took]
}

/// An ending in a word or two.
pub(super) fn short_ending(ending: &Ending) -> String {
    match (ending.kind, ending.exit_code, ending.signal) {
        (EndingKind::Exited, Some(code), _) => format!("exited {code}"),
        (EndingKind::Signaled, _, Some(signal)) => format!("signal {signal}"),
        (kind, ..) => kind.as_str().to_owned(),
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// A time to its second, for what was long ago to its minute.
pub(super) fn coarse(from: Timestamp, to: Timestamp) -> String {
    let seconds = between(from, to).as_secs();
    let rounded = if seconds >= 3600 { seconds - seconds % 60 } else { seconds };
    humantime::format_duration(Duration::from_secs(rounded)).to_string()
}

/// A time to its millisecond.
pub(super) fn fine(from: Timestamp, to: Timestamp) -> String {
    let milliseconds = u64::try_from(between(from, to).as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(milliseconds)).to_string()
}

/// The whole id of the job that is meant: any part from the start or the end that no other job has.
pub(super) async fn find(client: &Client, id: &str) -> Result<String> {
    if id.len() >= ID_LENGTH {
        return Ok(id.to_owned());
    }
    let matches: Vec<String> = list(client, JobQuery::default())
        .await?
        .into_iter()
        .map(|job| job.id)
        .filter(|whole| is_meant(whole, id))
        .collect();
    match matches.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(anyhow!("there is no job `{id}`\nhint: see `ampoule ps --all`")),
        several => Err(anyhow!("{} jobs are meant by `{id}`\nhint: give more of the id", several.len())),
    }
}

pub(super) fn is_meant(whole: &str, part: &str) -> bool {
    whole.starts_with(part) || whole.ends_with(part)
}

/// Whether a job cannot be stopped since it ended while it was being asked.
pub(super) fn gone_in_the_meantime(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 409)
}

/// Writes what a job wrote, so far or to its end.
pub(super) async fn logs(client: &Client, arguments: &LogsArguments) -> Result<ExitCode> {
    let id = find(client, &arguments.job.id).await?;
    if arguments.follow {
        Follower { streams: arguments.stream, ..Follower::new(client, &id) }.until_end().await?;
        return Ok(ExitCode::SUCCESS);
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        if wants(arguments.stream, stream) {
            let mut download = client.log(&id, stream, false).await?;
            while let Some(bytes) = download.chunk().await? {
                write_to(stream, &bytes)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops jobs. One that ended already is no failure.
pub(super) async fn cancel(client: &Client, arguments: &IdsArguments) -> Result<ExitCode> {
    for id in &arguments.ids {
        let id = find(client, id).await?;
        match client.cancel(&id).await {
            Ok(job) if job.state != JobState::Ended => writeln!(io::stdout(), "{id} is being stopped")?,
            Ok(_) => writeln!(io::stdout(), "{id} has ended")?,
            Err(error) if gone_in_the_meantime(&error) => writeln!(io::stdout(), "{id} had ended")?,
            Err(error) => return Err(error).with_context(|| format!("could not cancel {id}")),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Forgets jobs that ended.
pub(super) async fn rm(client: &Client, arguments: &IdsArguments) -> Result<ExitCode> {
    for id in &arguments.ids {
        let id = find(client, id).await?;
        client.delete_job(&id).await.with_context(|| format!("could not remove {id}"))?;
        writeln!(io::stdout(), "{id}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Brings a job's output to ours, across broken connections, until the job ended.
pub(super) struct Follower<'a> {
    client: &'a Client,
    id: &'a str,
    streams: Streams,
    events: Option<Events>,
    last: Option<String>,
    reconnects: u32,
}

impl<'a> Follower<'a> {
    /// Follows both streams from their start.
    pub(super) fn new(client: &'a Client, id: &'a str) -> Follower<'a> {
        Follower { client, id, streams: Streams::Both, events: None, last: None, reconnects: 0 }
    }

    /// Returns how the job ended, after all of its output was written. May be dropped and called again: it goes on.
    pub(super) async fn until_end(&mut self) -> Result<Ending> {
        loop {
            match self.event().await {
                Ok(Some(Event::Ended { ending })) => return Ok(ending),
                Ok(Some(event)) => self.show(event)?,
                Ok(None) => self.take_up_again(None).await?,
                Err(error @ (ClientError::Connection(_) | ClientError::Silent { .. })) => {
                    self.take_up_again(Some(error)).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next event; `None` when the stream was closed too early.
    async fn event(&mut self) -> Result<Option<Event>, ClientError> {
        let events = match &mut self.events {
            Some(events) => events,
            none => none.insert(self.client.events(self.id, self.last.as_deref()).await?),
        };
        let Some((id, event)) = events.next().await? else { return Ok(None) };
        self.last = id.or(self.last.take());
        self.reconnects = 0;
        Ok(Some(event))
    }

    async fn take_up_again(&mut self, error: Option<ClientError>) -> Result<()> {
        self.events = None;
        if self.reconnects == RECONNECTS_MAX {
            return Err(error.map_or_else(|| anyhow!("the service closed the stream of events"), Into::into));
        }
        tokio::time::sleep(RECONNECT_DELAY * 2_u32.pow(self.reconnects)).await;
        self.reconnects += 1;
        Ok(())
    }

    fn show(&self, event: Event) -> Result<()> {
        match event {
            Event::Log(LogChunk { stream, base64, .. }) if wants(self.streams, stream) => {
                write_to(stream, &BASE64.decode(base64).context("the service sent output that is not base64")?)
            }
            Event::Gap { stream, gap } if wants(self.streams, stream) => {
                Ok(writeln!(io::stderr(), "ampoule: {} bytes were not kept here", gap.bytes)?)
            }
            _ => Ok(()),
        }
    }
}

fn wants(streams: Streams, stream: Stream) -> bool {
    match stream {
        Stream::Stdout => streams != Streams::Stderr,
        Stream::Stderr => streams != Streams::Stdout,
    }
}

/// Writes bytes as they are, at once.
fn write_to(stream: Stream, bytes: &[u8]) -> Result<()> {
    let written = match stream {
        Stream::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        Stream::Stderr => io::stderr().write_all(bytes),
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClosedPipe.into()),
        written => Ok(written?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_meant_by_their_start_or_their_end() {
        let id = "0192f0c1-7b1a-7000-8000-0123456789ab";
        for (part, expected) in [("0192f0c1", true), ("456789ab", true), ("7b1a", false), (id, true)] {
            assert_eq!(is_meant(id, part), expected, "{part}");
        }
    }

    #[test]
    fn long_times_lose_their_seconds() {
        let start = Timestamp::UNIX_EPOCH;
        let after = |milliseconds| Timestamp::from_millisecond(milliseconds).expect("a time");
        assert_eq!(coarse(start, after(59_999)), "59s");
        assert_eq!(coarse(start, after(3_659_000)), "1h");
        assert_eq!(fine(start, after(1_003)), "1s 3ms");
        assert_eq!(coarse(after(5), start), "0s");
    }
}
