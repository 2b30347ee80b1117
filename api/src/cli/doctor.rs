//! `ampoule doctor`: what this machine has and lacks, and how to mend it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use ampoule_engine::probe::{self, Finding, Ground, Presence, Report};
use anyhow::{Context as _, Result};
use clap::Args;

use crate::config::{Config, Flags};

/// The hidden command that makes one attempt in a process of its own.
pub(super) const ATTEMPT_COMMAND: &str = "__probe";

#[derive(Args)]
#[command(after_help = "Returns 0 when jobs can run, else 1.\n\nExamples:\n  sudo ampoule doctor\n  \
    sudo ampoule doctor --state /srv/ampoule --json | jq '.findings[] | select(.presence != \"present\")'")]
pub(super) struct Arguments {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Also explain what is present
    #[arg(long, conflicts_with = "json")]
    verbose: bool,
    #[command(flatten)]
    places: Places,
}

/// The places that a service would use.
#[derive(Args, Clone)]
struct Places {
    /// Configuration file of the service
    #[arg(long, env = "AMPOULE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// State folder of the service
    #[arg(long, env = "AMPOULE_STATE", value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Unix socket of the service
    #[arg(long, env = "AMPOULE_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// User that the service becomes
    #[arg(long, env = "AMPOULE_USER", value_name = "USER")]
    user: Option<String>,
}

#[derive(Args)]
pub(super) struct AttemptArguments {
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    program: PathBuf,
    name: String,
}

/// Looks at everything and tells it.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let report = probe::survey(&ground(&arguments.places)?);
    let text =
        if arguments.json { serde_json::to_string_pretty(&report)? + "\n" } else { told(&report, arguments.verbose) };
    io::stdout().write_all(text.as_bytes())?;
    Ok(if report.jobs_can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes one attempt in this process, which ends with it.
pub(super) fn attempt(arguments: &AttemptArguments) -> Result<ExitCode> {
    let ground = attempt_ground(arguments.state.clone(), arguments.socket.clone(), arguments.program.clone())?;
    let answer = probe::attempt(&arguments.name, &ground);
    io::stdout().write_all(answer.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The ground as the service's own settings give it.
fn ground(places: &Places) -> Result<Ground> {
    let flags = Flags {
        config: places.config.clone(),
        state: places.state.clone(),
        socket: places.socket.clone(),
        user: places.user.clone(),
        ..Flags::default()
    };
    let config = Config::load(&flags)?;
    let program = std::env::current_exe().context("could not find this program's own file")?;
    let ground = attempt_ground(config.state, config.socket.path, program)?;
    Ok(Ground { user: config.user, ..ground })
}

fn attempt_ground(state: PathBuf, socket: PathBuf, program: PathBuf) -> Result<Ground> {
    let text = |path: &PathBuf| {
        path.to_str().map(str::to_owned).with_context(|| format!("the path {} is not UTF-8", path.display()))
    };
    let arguments = [
        ATTEMPT_COMMAND.to_owned(),
        "--state".to_owned(),
        text(&state)?,
        "--socket".to_owned(),
        text(&socket)?,
        "--program".to_owned(),
        text(&program)?,
    ];
    Ok(Ground { state, socket, user: None, program, arguments: arguments.to_vec() })
}

fn told(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &told_finding(finding, verbose);
    }
    let count = |presence| report.findings.iter().filter(|finding| finding.presence == presence).count();
    let (missing, weaker) = (count(Presence::Missing), count(Presence::Weaker));
    text += &match (missing, weaker) {
        (0, 0) => "\njobs can run, with everything\n".to_owned(),
        (0, _) => format!("\njobs can run; {weaker} weaker than it could be, see above\n"),
        _ => format!("\nno job can run: {missing} missing, see above\n"),
    };
    text
}

fn told_finding(finding: &Finding, verbose: bool) -> String {
    let word = match finding.presence {
        Presence::Present => "ok     ",
        Presence::Weaker => "weaker ",
        Presence::Missing => "MISSING",
    };
    let mut text = format!("{word}  {:<40}  {}\n", finding.name, finding.found);
    if finding.presence != Presence::Present || verbose {
        text += &format!("           without it: {}\n", finding.lost);
    }
    if !finding.mend.is_empty() {
        text += &format!("           to mend it: {}\n", finding.mend);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(presence: Presence) -> Finding {
        let mend = if presence == Presence::Present { "" } else { "do that" };
        Finding { name: "thing", presence, found: "seen".to_owned(), lost: "much", mend: mend.to_owned() }
    }

    #[test]
    fn what_is_missing_is_told_with_its_loss_and_its_remedy() {
        let findings = vec![finding(Presence::Present), finding(Presence::Weaker), finding(Presence::Missing)];
        let text = told(&Report { jobs_can_run: false, findings }, false);
        assert_eq!(text.matches("without it: much").count(), 2);
        assert_eq!(text.matches("to mend it: do that").count(), 2);
        assert!(text.ends_with("no job can run: 1 missing, see above\n"), "{text}");
    }
}
