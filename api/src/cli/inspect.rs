//! `ampoule inspect`: a job as people read it, one line a fact, in groups.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use ampoule_client::Client;
use ampoule_client::types::{Decision, Figures, Job, JobSpec, Outcome, Output, Phases};

use anyhow::Result;
use clap::Args;

use super::amount::shown_size;
use super::exit::sentence;
use super::jobs::{JobId, find, fine, short_ending};
use super::table::plain;

/// Width of the names of facts.
const NAME_WIDTH: usize = 16;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    job: JobId,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Tells all that is known of a job.
pub(super) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    let job = client.job(&find(client, &arguments.job.id).await?, None).await?;
    let text = if arguments.json { serde_json::to_string_pretty(&job)? + "\n" } else { told(&job) };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Everything of a job but its output.
fn told(job: &Job) -> String {
    let mut page = Page(String::new());
    page.fact("job", &job.id);
    page.optional("name", job.name.as_deref());
    page.fact("state", job.state.as_str());
    if let Some(ending) = &job.ending {
        page.fact("ending", &short_ending(ending));
        page.optional("because", sentence(ending).as_deref());
        page.fact("retryable", if ending.retryable { "yes" } else { "no" });
    }
    page.fact("image", &job.image);
    page.fact("created", &job.times.created.to_string());
    if let Some(started) = job.times.started {
        page.fact("waited", &fine(job.times.created, started));
        if let Some(ended) = job.times.ended {
            page.fact("took", &fine(started, ended));
        }
    }
    page.fact("attempt", &format!("{} (retries: {})", job.attempt, job.retries));
    page.fact("token", &job.token);
    for (key, value) in &job.labels {
        page.fact("label", &format!("{key}={value}"));
    }
    page.output("stdout", job.stdout.as_ref());
    page.output("stderr", job.stderr.as_ref());
    for artifact in &job.artifacts {
        let size = shown_size(artifact.size_bytes);
        let fate = artifact.left_out.as_ref().map_or(size, |why| format!("left out: {why}"));
        page.fact("artifact", &format!("{} ({fate})", artifact.path));
    }
    job.figures.iter().for_each(|figures| page.figures(figures));
    job.phases.iter().for_each(|phases| page.phases(phases));
    job.decision.iter().for_each(|decision| page.decision(decision));
    job.spec.iter().for_each(|spec| page.spec(spec));
    page.0
}

/// What was written so far.
struct Page(String);

impl Page {
    fn fact(&mut self, name: &str, value: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{name:NAME_WIDTH$}  {}", plain(value));
    }

    fn optional(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.fact(name, value);
        }
    }

    fn group(&mut self, title: &str) {
        let _ = writeln!(self.0, "\n{title}");
    }

    fn output(&mut self, name: &str, output: Option<&Output>) {
        let Some(output) = output else { return };
        let gap = output.gap.map_or(String::new(), |gap| format!(", {} of them not kept", gap.bytes));
        self.fact(name, &format!("{} bytes{gap}, sha256 {}", output.bytes, output.sha256));
    }

    fn figures(&mut self, figures: &Figures) {
        self.group("it used");
        self.fact("time", &milliseconds(figures.wall_us));
        let (user, system) = (milliseconds(figures.cpu_user_us), milliseconds(figures.cpu_system_us));
        self.fact(
            "processor time",
            &format!("{user} user, {system} system, held back {}", milliseconds(figures.throttled_us)),
        );
        self.fact(
            "memory",
            &format!("{} at most, {} killed for it", shown_size(figures.memory_peak_bytes), figures.oom_kills),
        );
        self.fact("processes", &format!("{} refused", figures.pids_refused));
    }

    fn phases(&mut self, phases: &Phases) {
        self.group(if phases.warm { "its launch (the sandbox was made ahead)" } else { "its launch" });
        for (name, micros) in [
            ("clone", phases.clone_us),
            ("cgroup", phases.cgroup_us),
            ("network", phases.network_us),
            ("mounts", phases.mounts_us),
            ("credentials", phases.credentials_us),
            ("seccomp", phases.seccomp_us),
            ("exec", phases.exec_us),
            ("drain", phases.drain_us),
        ] {
            self.fact(name, &milliseconds(micros));
        }
    }

    fn decision(&mut self, decision: &Decision) {
        self.group("the policies said");
        self.fact("outcome", if decision.outcome == Outcome::Admitted { "admitted" } else { "denied" });
        if let Some(denial) = &decision.denial {
            self.fact("denied by", &format!("{}: {} ({})", denial.policy, denial.reason, denial.code));
            self.optional("hint", denial.hint.as_deref());
        }
        for warning in &decision.warnings {
            self.fact("warning", &format!("{}: {} ({})", warning.policy, warning.message, warning.code));
        }
        for verdict in &decision.verdicts {
            let changed =
                if verdict.changed.is_empty() { String::new() } else { format!(" {}", verdict.changed.join(", ")) };
            let reason = verdict.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            let cost = format!("{}, {} µs, {} fuel", verdict.mode, verdict.micros, verdict.fuel);
            self.fact("verdict", &format!("{} {}{changed}{reason} ({cost})", verdict.policy, verdict.verdict));
        }
    }

    fn spec(&mut self, spec: &JobSpec) {
        self.group("what was executed");
        self.fact("image", &spec.image_digest);
        for argument in &spec.argv {
            self.fact("argument", argument);
        }
        for (name, value) in &spec.env {
            self.fact("variable", &format!("{name}={value}"));
        }
        self.fact("folder", &spec.cwd);
        self.fact("user", &spec.user);
        self.fact("network", &spec.network);
        for writable in &spec.writable {
            self.fact("writable", &format!("{} ({})", writable.path, shown_size(writable.size_bytes)));
        }
        self.fact("memory limit", &shown_size(spec.limits.memory_bytes));
        self.fact("processors", &spec.limits.cpus.to_string());
        self.fact("processes", &spec.limits.pids.to_string());
        self.fact("time limit", &milliseconds(spec.limits.wall_time_ms.saturating_mul(1000)));
        self.fact("processor time", &milliseconds(spec.limits.cpu_time_ms.saturating_mul(1000)));
        self.fact("standard input", &format!("{} bytes", spec.stdin_bytes));
        for file in &spec.files {
            self.fact("file", &format!("{} ({})", file.path, shown_size(file.size_bytes)));
        }
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}
