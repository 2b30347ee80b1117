//! The command line: the same program as a client of its own HTTP API, and as the service itself.
//!
//! What it does stands in the modules of the commands; here is what can be typed, and what is returned.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, Flags};

mod amount;
mod build;
mod builder;
mod builds;
mod bundle;
mod connect;
mod doctor;
mod exit;
mod failure;
mod images;
mod inspect;
mod jobs;
mod keep;
mod logins;
mod policies;
mod run;
mod table;
mod tokens;
mod transfers;
mod trees;

/// How the exit codes of `run` are explained, in the help of every command that has them.
const EXIT_CODES: &str = "\
Exit codes of `run`:
  0-255  what the command returned, when it ended by itself
  123    a limit of processes, output or disk ended it
  124    its time, its processor time or its deadline was over
  125    ampoule could not run it: no service, no such image, refused by a policy, a failure
  126    the command cannot be executed
  127    there is no such command in the image
  128+N  signal N ended it
  130    it was cancelled (Ctrl-C)
  137    it reached its memory limit, or was killed
All other commands return 0, or 125 when they could not do what was asked;
`doctor` returns 1 when no job can run, `build --check` when there are warnings.";

const EXAMPLES: &str = "\
Examples:
  sudo ampoule doctor                              what this machine lacks
  sudo ampoule serve                               start the service
  ampoule image import rootfs.tar --name debian    bring an image in
  ampoule run debian -- echo hello                 run a job, see its output
  ampoule run debian --memory 64m --timeout 10s --shell 'ulimit -a'
  ampoule ps --all                                 which jobs there were";

/// Runs untrusted commands in sealed containers, in milliseconds.
#[derive(Parser)]
#[command(name = "ampoule", version, disable_help_subcommand = true)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Cli {
    #[command(flatten)]
    reach: connect::Reach,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the service
    #[command(
        after_help = "Examples:\n  sudo ampoule serve\n  sudo ampoule serve --policies policies/policies.toml --concurrency 8\n  \
        sudo ampoule serve --listen 0.0.0.0:7070 --tls-certificate chain.pem --tls-key key.pem"
    )]
    Serve(Box<Flags>),
    /// Say what this machine has, and lacks, of all that jobs need
    Doctor(doctor::Arguments),
    /// Pull, push and import images, list and remove them
    #[command(subcommand)]
    Image(images::Command),
    /// Build an image from a Dockerfile, or only check it
    #[command(after_help = build::EXAMPLES)]
    Build(Box<build::Arguments>),
    /// Show and remove what builds keep for the next ones
    #[command(subcommand)]
    Builder(builder::Command),
    /// List, follow and stop builds
    #[command(subcommand)]
    Builds(builds::Command),
    /// Run a command in a new sandbox and return its exit code
    #[command(after_help = run::EXAMPLES, after_long_help = format!("{}\n\n{EXIT_CODES}", run::EXAMPLES))]
    Run(Box<run::Arguments>),
    /// List jobs
    Ps(jobs::PsArguments),
    /// Show what a job wrote
    Logs(jobs::LogsArguments),
    /// Show all that is known of a job: its ending, its figures, what the policies said
    Inspect(inspect::Arguments),
    /// Stop jobs that wait or run
    Cancel(jobs::IdsArguments),
    /// Forget jobs that ended, with their output and artifacts
    Rm(jobs::IdsArguments),
    /// Make, list and revoke the tokens that TCP clients need
    #[command(subcommand)]
    Token(tokens::Command),
    /// List the policies of the service, or check a policy file
    #[command(subcommand)]
    Policy(policies::Command),
    /// Write completions for a shell to standard output
    #[command(after_help = "Example:\n  ampoule completions bash > /etc/bash_completion.d/ampoule")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Show the versions of this program and of the service
    Version,
    /// Try one thing in this process and report; `doctor` starts it
    #[command(name = doctor::ATTEMPT_COMMAND, hide = true)]
    Attempt(doctor::AttemptArguments),
}

/// Reads the arguments of this process and does what they say. To be called before any other thread exists.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match cli.command {
        Command::Serve(flags) => serve(&flags),
        Command::Attempt(arguments) => doctor::attempt(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Completions { shell } => completions(shell),
        Command::Build(arguments) if arguments.check => build::run(&arguments),
        Command::Policy(policies::Command::Check(arguments)) => policies::check(&arguments),
        command => talk(command, &cli.reach),
    };
    match done {
        Ok(code) => code,
        Err(error) if failure::is_closed_pipe(&error) => ExitCode::from(exit::CLOSED_PIPE),
        Err(error) => {
            failure::print(&error);
            ExitCode::from(exit::OWN_FAILURE)
        }
    }
}

/// Shows help, versions and mistakes of typing; the latter are a failure of our own, so that no job's code is
/// mistaken for it.
fn usage(error: &clap::Error) -> ExitCode {
    // Nobody can be told that the terminal is gone.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(exit::OWN_FAILURE) } else { ExitCode::SUCCESS }
}

fn serve(flags: &Flags) -> Result<ExitCode> {
    Ok(crate::serve::serve(Config::load(flags)?))
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ampoule", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Does what needs the service.
fn talk(command: Command, reach: &connect::Reach) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = connect::client(reach)?;
        match command {
            Command::Image(command) => images::run(&client, command).await,
            Command::Build(arguments) => build::send::run(&client, &arguments).await,
            Command::Builder(command) => builder::run(&client, command).await,
            Command::Builds(command) => builds::run(&client, command).await,
            Command::Run(arguments) => run::run(&client, *arguments).await,
            Command::Ps(arguments) => jobs::ps(&client, &arguments).await,
            Command::Logs(arguments) => jobs::logs(&client, &arguments).await,
            Command::Inspect(arguments) => inspect::run(&client, &arguments).await,
            Command::Cancel(arguments) => jobs::cancel(&client, &arguments).await,
            Command::Rm(arguments) => jobs::rm(&client, &arguments).await,
            Command::Token(command) => tokens::run(&client, command).await,
            Command::Policy(policies::Command::Ls { json }) => policies::list(&client, json).await,
            Command::Version => version(&client).await,
            Command::Serve(_)
            | Command::Doctor(_)
            | Command::Completions { .. }
            | Command::Attempt(_)
            | Command::Policy(policies::Command::Check(_)) => unreachable!("these are done without the service"),
        }
    })
}

async fn version(client: &ampoule_client::Client) -> Result<ExitCode> {
    writeln!(io::stdout(), "ampoule {}", env!("CARGO_PKG_VERSION"))?;
    let service = client.version().await?;
    writeln!(io::stdout(), "service {} (api {}) at {}", service.version, service.api, client.endpoint())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Width that the help is wrapped to in snapshots.
    const WIDTH: usize = 100;

    #[test]
    fn the_commands_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_is_as_it_was_read_and_approved() {
        let mut program = Cli::command().term_width(WIDTH);
        program.build();
        snapshot_help(&mut program);
    }

    /// The pages of a command and of all below it. What the environment of the test holds is not shown.
    fn snapshot_help(command: &mut clap::Command) {
        let name = command.get_bin_name().unwrap_or("ampoule").replace(' ', "-");
        let help = command.clone().mut_args(|argument| argument.hide_env_values(true)).render_long_help();
        insta::with_settings!({ omit_expression => true, snapshot_path => "cli/snapshots" }, { insta::assert_snapshot!(name, help) });
        for inner in command.get_subcommands_mut().filter(|inner| !inner.is_hide_set()) {
            snapshot_help(inner);
        }
    }
}
