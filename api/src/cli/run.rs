//! `ampoule run`: a job from its request to its exit code, with its output as it comes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ampoule_client::types::{ArtifactsRequest, Ending, Job, JobRequest, JobState, LimitsRequest, Writable};
use ampoule_client::{Client, ClientError};
use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::amount::{self, Transfer, Variable};
use super::jobs::{Follower, gone_in_the_meantime};
use super::table::plain;
use super::{bundle, exit, keep};

pub(super) const EXAMPLES: &str = "\
Examples:
  ampoule run debian -- echo hello
  echo 'print(6*7)' | ampoule run --stdin python -- python3 -
  ampoule run --memory 64m --cpus 0.5 --timeout 10s debian -- sort data
  ampoule run --file ./project:/work --workdir /work \\
      --artifact '*.xml' --artifacts-to out debian --shell 'make test'
  ampoule run --json debian -- true | jq .figures";

/// Most bytes of standard input that are read; the service's own limit may be lower.
const STDIN_BYTES_MAX: u64 = 256 << 20;
/// Bytes of each output stream that are kept for a slow follower: as many as a service allows unless it is told
/// otherwise.
const FOLLOWED_BYTES: u64 = 64 << 20;
/// How a service names the bound of it.
const KEPT_FIELD: &str = "limits.output_bytes";
/// How long one request waits for the end of a job.
const WAIT_TIME: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(super) struct Arguments {
    /// Image to run in, by name or digest
    image: String,
    /// The command and its arguments; without one the image's own command runs
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
    /// A command line for /bin/sh, instead of CMD
    #[arg(long, value_name = "SCRIPT", conflicts_with = "command")]
    shell: Option<String>,
    /// Hand standard input, to its end, to the job
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Environment variable; without a value, the one that it has here
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = amount::variable)]
    env: Vec<Variable>,
    /// Copy a file or folder of this machine into a writable path
    #[arg(short, long, value_name = "SRC:DST", value_parser = amount::transfer)]
    file: Vec<Transfer>,
    /// Working directory
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// Whom the command runs as: uid, uid:gid, name or name:group
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// What the job reaches: none is loopback alone, default the world, where the service grants it
    #[arg(long, value_name = "NETWORK", value_parser = ["none", "default"])]
    network: Option<String>,
    /// A writable path, in memory, with its room
    #[arg(long, value_name = "PATH[:SIZE]", value_parser = amount::writable)]
    writable: Vec<Writable>,
    /// Keep the files that match, absolute or relative to the working directory
    #[arg(long, value_name = "GLOB")]
    artifact: Vec<String>,
    /// Download the kept files into a folder
    #[arg(long, value_name = "DIR", requires = "artifact")]
    artifacts_to: Option<PathBuf>,
    /// Label to find the job by
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = amount::label)]
    label: Vec<(String, String)>,
    /// Name for people
    #[arg(long)]
    name: Option<String>,
    /// Higher goes first, from -100 to 100
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Run again so often after a failure of the infrastructure
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Print the final job as one JSON document instead of its output
    #[arg(long)]
    json: bool,
    /// Print the job's id and leave it running
    #[arg(short, long, conflicts_with_all = ["json", "artifacts_to"])]
    detach: bool,
    // Last, since its heading would go on above what follows.
    #[command(flatten)]
    limits: LimitArguments,
}

/// Bounds of the job; what is left out is the service's default.
#[derive(Args)]
#[command(next_help_heading = "Limits")]
struct LimitArguments {
    /// Memory with everything that is written to writable paths, as in 64m
    #[arg(short, long, value_name = "SIZE", value_parser = amount::size)]
    memory: Option<u64>,
    /// Processors, as in 0.5
    #[arg(long, value_name = "N", value_parser = amount::processors)]
    cpus: Option<f64>,
    /// Processes and threads at once
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Time from start to end, as in 10s
    #[arg(short, long, value_name = "TIME", value_parser = amount::time)]
    timeout: Option<Duration>,
    /// Processor time of all processes together, as in 5s
    #[arg(long, value_name = "TIME", value_parser = amount::time)]
    cpu_time: Option<Duration>,
    /// Open files of one process
    #[arg(long, value_name = "N")]
    open_files: Option<u64>,
    /// Largest file that may be written, as in 10m
    #[arg(long, value_name = "SIZE", value_parser = amount::size)]
    file_size: Option<u64>,
    /// Output of both streams together before the job is stopped, as in 100m
    #[arg(long, value_name = "SIZE", value_parser = amount::size)]
    output: Option<u64>,
    /// Output of each stream that the service keeps, half from its start and half from its end, as in 1m
    /// [default: 64m when the output is shown here, so that nothing is lost on a slow terminal]
    #[arg(long, value_name = "SIZE", value_parser = amount::size)]
    keep: Option<u64>,
}

/// Runs a job and returns its exit code.
pub(super) async fn run(client: &Client, mut arguments: Arguments) -> Result<ExitCode> {
    let files = std::mem::take(&mut arguments.file);
    let mut request = request(&arguments)?;
    if arguments.stdin {
        give_stdin(&mut request)?;
    }
    let mut interrupts = Interrupts::listen()?;
    if !files.is_empty() {
        request.files_upload = Some(client.upload(bundle::files(files)).await.context("could not send the files")?.id);
    }
    if arguments.detach {
        let job = client.submit(&request, None).await?;
        writeln!(io::stdout(), "{}", job.id)?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.json {
        run_for_document(client, &request, &arguments, &mut interrupts).await
    } else {
        run_for_output(client, &request, &arguments, &mut interrupts).await
    }
}

async fn run_for_output(
    client: &Client,
    request: &JobRequest,
    arguments: &Arguments,
    interrupts: &mut Interrupts,
) -> Result<ExitCode> {
    let id = submit_to_follow(client, request).await?.id;
    let mut follower = Follower::new(client, &id);
    let ending = loop {
        tokio::select! {
            ended = follower.until_end() => match ended {
                Err(error) if super::failure::is_closed_pipe(&error) => {
                    client.cancel(&id).await?;
                    return Err(error);
                }
                ended => break ended.with_context(|| format!("lost sight of the job {id}"))?,
            },
            () = interrupts.next() => match interrupts.count {
                1 => cancel(client, &id).await?,
                _ => return Ok(left_behind(&id)),
            },
        }
    };
    if let Some(folder) = &arguments.artifacts_to {
        keep::artifacts(client, &client.job(&id, None).await?, folder).await?;
    }
    tell(&ending, &id)?;
    Ok(ExitCode::from(exit::code(&ending)))
}

/// Hands in a job whose output will be followed. The service keeps as much of it as it usually may, for a follower that
/// is slower than the job; one that may keep less is asked for what it keeps by default.
async fn submit_to_follow(client: &Client, request: &JobRequest) -> Result<Job, ClientError> {
    if request.limits.output_bytes.is_some() {
        return client.submit(request, None).await;
    }
    let mut patient = request.clone();
    patient.limits.output_bytes = Some(FOLLOWED_BYTES);
    match client.submit(&patient, None).await {
        Err(error) if error.problem().is_some_and(|problem| problem.field.as_deref() == Some(KEPT_FIELD)) => {
            client.submit(request, None).await
        }
        submitted => submitted,
    }
}

async fn run_for_document(
    client: &Client,
    request: &JobRequest,
    arguments: &Arguments,
    interrupts: &mut Interrupts,
) -> Result<ExitCode> {
    let id = client.submit(request, None).await?.id;
    let job = loop {
        tokio::select! {
            job = client.job(&id, Some(WAIT_TIME)) => {
                let job = job.with_context(|| format!("lost sight of the job {id}"))?;
                if job.state == JobState::Ended {
                    break job;
                }
            }
            () = interrupts.next() => match interrupts.count {
                1 => cancel(client, &id).await?,
                _ => return Ok(left_behind(&id)),
            },
        }
    };
    if let Some(folder) = &arguments.artifacts_to {
        keep::artifacts(client, &job, folder).await?;
    }
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&job)?)?;
    let ending = ending_of(&job)?;
    Ok(ExitCode::from(exit::code(ending)))
}

fn ending_of(job: &Job) -> Result<&Ending> {
    job.ending.as_ref().ok_or_else(|| anyhow!("the job {} ended without an ending", job.id))
}

/// Says how a job ended, when it did not end by itself.
fn tell(ending: &Ending, id: &str) -> io::Result<()> {
    match exit::sentence(ending) {
        Some(sentence) => writeln!(io::stderr(), "ampoule: {} (job {id})", plain(&sentence)),
        None => Ok(()),
    }
}

/// Asks for the end of a job that is no longer wanted; its ending is still awaited.
async fn cancel(client: &Client, id: &str) -> Result<()> {
    // The screen shows ^C; a second line says what it did.
    writeln!(io::stderr(), "\nampoule: cancelling; once more leaves the job {id} behind")?;
    match client.cancel(id).await {
        Err(error) if !gone_in_the_meantime(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn left_behind(id: &str) -> ExitCode {
    // Nobody can be told that standard error is gone.
    let _ = writeln!(io::stderr(), "ampoule: the job {id} may still run; see `ampoule inspect {id}`");
    ExitCode::from(exit::CANCELLED)
}

fn request(arguments: &Arguments) -> Result<JobRequest> {
    let limits = &arguments.limits;
    let artifacts = (!arguments.artifact.is_empty())
        .then(|| ArtifactsRequest { globs: arguments.artifact.clone(), ..ArtifactsRequest::default() });
    Ok(JobRequest {
        image: arguments.image.clone(),
        argv: arguments.command.clone(),
        shell: arguments.shell.clone(),
        env: environment(&arguments.env)?,
        cwd: arguments.workdir.clone(),
        user: arguments.user.clone(),
        limits: LimitsRequest {
            memory_bytes: limits.memory,
            cpus: limits.cpus,
            pids: limits.pids,
            cpu_time_ms: limits.cpu_time.map(milliseconds),
            wall_time_ms: limits.timeout.map(milliseconds),
            open_files: limits.open_files,
            file_bytes: limits.file_size,
            output_total_bytes: limits.output,
            output_bytes: limits.keep,
        },
        network: arguments.network.clone(),
        writable: arguments.writable.clone(),
        artifacts,
        labels: arguments.label.iter().cloned().collect(),
        priority: arguments.priority,
        retries: arguments.retries,
        name: arguments.name.clone(),
        ..JobRequest::default()
    })
}

/// At least one millisecond: a time that was asked for is never taken for none.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Variables without a value take the one that they have here; those that have none here are left out, as docker does.
fn environment(variables: &[Variable]) -> Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::new();
    for Variable { name, value } in variables {
        let value = match (value, std::env::var_os(name)) {
            (Some(value), _) => value.clone(),
            (None, Some(own)) => {
                own.into_string().map_err(|_| anyhow!("the value of `{name}` here is not UTF-8, and cannot be sent"))?
            }
            (None, None) => continue,
        };
        environment.insert(name.clone(), value);
    }
    Ok(environment)
}

fn give_stdin(request: &mut JobRequest) -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes).context("could not read standard input")?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        return Err(anyhow!("standard input is longer than {}", amount::shown_size(STDIN_BYTES_MAX)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => request.stdin = Some(text),
        Err(other) => request.stdin_base64 = Some(BASE64.encode(other.as_bytes())),
    }
    Ok(())
}

/// The wishes of whoever started us to stop.
struct Interrupts {
    signals: [Signal; 3],
    count: u32,
}

impl Interrupts {
    fn listen() -> io::Result<Interrupts> {
        let signals =
            [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
        Ok(Interrupts { signals, count: 0 })
    }

    /// Returns at the next one, and counts it.
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn asked(line: &[&str]) -> Result<JobRequest> {
        let line = Line::try_parse_from([&["run"], line].concat())?;
        request(&line.arguments)
    }

    #[test]
    fn options_stand_before_the_command_and_the_rest_is_its_own() {
        let job = asked(&["debian", "--memory", "64m", "-t", "1m", "--", "ls", "--memory", "-l"]).expect("a job");
        assert_eq!(job.argv, ["ls", "--memory", "-l"]);
        assert_eq!((job.limits.memory_bytes, job.limits.wall_time_ms), (Some(64 << 20), Some(60_000)));
        let job = asked(&["--cpus", "0.5", "debian", "ls", "-l", "--", "x"]).expect("a job");
        assert_eq!(job.argv, ["ls", "-l", "--", "x"]);
    }

    #[test]
    fn what_is_not_said_is_left_to_the_service() {
        assert_eq!(
            asked(&["debian"]).expect("a job"),
            JobRequest { image: "debian".to_owned(), ..JobRequest::default() }
        );
    }

    #[test]
    fn a_variable_without_a_value_takes_the_one_here() {
        let job = asked(&["-e", "A=b", "-e", "PATH", "-e", "AMPOULE_NO_SUCH", "debian"]).expect("a job");
        let names: Vec<&str> = job.env.keys().map(String::as_str).collect();
        assert_eq!(names, ["A", "PATH"]);
        assert_eq!(job.env["PATH"], std::env::var("PATH").expect("a path"));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(asked(&["debian", "--shell", "true", "--", "true"]).is_err());
        assert!(asked(&["debian", "--artifacts-to", "out", "--", "true"]).is_err());
        assert!(asked(&["debian", "--memory", "lots", "--", "true"]).is_err());
        assert!(asked(&[]).is_err());
    }

    #[test]
    fn the_shortest_time_is_a_millisecond() {
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::MAX), u64::MAX);
    }
}
