//! Images moved side by side: pulled (and unpacked, by those who do), pushed, saved and loaded, by Ampoule, docker and
//! skopeo in turn, with Debian's registry on this machine. Then the first job after a pull beside later ones, and the
//! memory that the processes take while they work.

mod contestant;
mod sample;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ampoule_tests::distribution::Distribution;
use ampoule_tests::host;
use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::report::{machine, median};
use contestant::{Ampoule, Contestant, Docker, Skopeo};
use sample::Sample;
pub(crate) use sample::Which;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How many times faster than docker a pull has to be.
const PULL_TIMES_MIN: f64 = 2.0;

/// What is measured, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Step {
    /// Brought from a registry
    Pull,
    /// Brought to a registry that has nothing of it
    Push,
    /// Written to an archive
    Save,
    /// Taken from an archive
    Load,
}

/// All that was measured of one image.
struct Results {
    sample: Sample,
    /// Seconds, one a round, by step and contestant.
    seconds: BTreeMap<(Step, &'static str), Vec<f64>>,
    first_job: Vec<f64>,
    later_jobs: Vec<f64>,
    /// Most bytes of memory at a time, by step and contestant.
    memory: BTreeMap<(Step, &'static str), u64>,
}

/// Measures, and returns the report as Markdown. Round 0 is not timed: files are read from the disk then, and memory is
/// looked at.
pub(crate) fn run(folder: &Path, rounds: RangeInclusive<u32>, which: &[Which], steps: &[Step]) -> Result<String> {
    let mut contestants: Vec<Box<dyn Contestant>> =
        vec![Box::<Ampoule>::default(), Box::new(Docker::start(folder)?), Box::new(Skopeo::new(folder))];
    let source = Distribution::open();
    let mut all = Vec::new();
    for &which in which {
        let sample = sample::sample(which)?;
        let from = format!("{}/bench/{}:1", source.host(), sample.name);
        sample.publish(&from)?;
        let mut results = Results {
            sample,
            seconds: BTreeMap::new(),
            first_job: Vec::new(),
            later_jobs: Vec::new(),
            memory: BTreeMap::new(),
        };
        for round in rounds.clone() {
            for contestant in &mut contestants {
                let name = contestant.name();
                play(contestant.as_mut(), &from, folder, steps, round == 0, &mut results)
                    .with_context(|| format!("{name} in round {round}"))?;
                eprintln!("round {round}: {} by {name}", results.sample.name);
            }
        }
        all.push(results);
    }
    Ok(report(&all, *rounds.end()))
}

/// Has a contestant do everything that is wanted once, and what comes before it.
fn play(
    contestant: &mut dyn Contestant,
    from: &str,
    folder: &Path,
    wanted: &[Step],
    looks_at_memory: bool,
    results: &mut Results,
) -> Result<()> {
    // Ampoule is the first, and writes what all load.
    let (own, archive) = (folder.join(format!("{}.tar", contestant.name())), folder.join("ampoule.tar"));
    for &step in Step::value_variants() {
        let is_first = contestant.name() == "ampoule";
        let is_needed = step == Step::Pull || (step == Step::Save && is_first && wanted.contains(&Step::Load));
        if !is_needed && !wanted.contains(&step) {
            continue;
        }
        let target = (step == Step::Push).then(Distribution::open);
        if matches!(step, Step::Pull | Step::Load) {
            contestant.clear()?;
        }
        let (name, processes) = (contestant.name(), contestant.processes());
        let mut work = || match step {
            Step::Pull => contestant.pull(from),
            Step::Push => {
                let to = target.as_ref().map(|target| format!("{}/bench/copy:1", target.host()));
                contestant.push(&to.unwrap_or_default())
            }
            Step::Save => {
                fs::remove_file(&own).or_else(missing_is_fine)?;
                contestant.save(&own)
            }
            Step::Load => contestant.load(&archive),
        };
        if looks_at_memory {
            let peak = watched(processes, work)?;
            results.memory.insert((step, name), peak);
        } else {
            results.seconds.entry((step, name)).or_default().push(work()?);
        }
        if step == Step::Pull
            && let Some((first, later)) = contestant.jobs()?
            && !looks_at_memory
        {
            results.first_job.push(first);
            results.later_jobs.extend(later);
        }
    }
    Ok(())
}

fn missing_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Does something, and returns the most memory that processes with such a name, and theirs, had at a time. Looking
/// takes time, so that what is watched is not timed.
fn watched(processes: &str, work: impl FnOnce() -> Result<f64>) -> Result<u64> {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let own = std::process::id().cast_signed();
            let mut peak = 0;
            while !is_done.load(Ordering::Relaxed) {
                let all = host::processes();
                let ours = all.iter().filter(|process| process.parent == own && process.name.starts_with(processes));
                peak = peak.max(ours.map(|process| host::memory_of_tree(process.pid)).sum());
                thread::sleep(LOOK_EVERY);
            }
            peak
        });
        let done = work();
        is_done.store(true, Ordering::Relaxed);
        let peak = watcher.join().expect("looking does not panic");
        done.map(|_| peak)
    })
}

fn report(all: &[Results], rounds: u32) -> String {
    let mut text = format!("# Images, side by side\n\n{}\n\n", machine());
    text += "Medians of ";
    let _ = writeln!(text, "{rounds} interleaved rounds, in seconds, from the call of each command line to its end.");
    text += "skopeo unpacks nothing; of ampoule, everything is on disk when it ends. All load what ampoule saved.\n\n";
    for results in all {
        let Sample { name, layers, packed_bytes, plain_bytes, entries, .. } = &results.sample;
        let _ = writeln!(
            text,
            "## {name}\n\n{layers} layers, {entries} entries, {} MB packed with gzip, {} MB plain.\n",
            packed_bytes / 1_000_000,
            plain_bytes / 1_000_000
        );
        text += "| | ampoule | docker | docker / ampoule | skopeo | skopeo / ampoule |\n|---|---|---|---|---|---|\n";
        for &step in Step::value_variants().iter().filter(|step| results.seconds.contains_key(&(**step, "ampoule"))) {
            let median_of = |name| median(results.seconds.get(&(step, name)).cloned().unwrap_or_default());
            let (ampoule, docker, skopeo) = (median_of("ampoule"), median_of("docker"), median_of("skopeo"));
            let _ = writeln!(
                text,
                "| {step:?} | {ampoule:.2} | {docker:.2} | {:.1} | {skopeo:.2} | {:.1} |",
                docker / ampoule,
                skopeo / ampoule
            );
        }
        if let Some(missed) = missed(results) {
            let _ = writeln!(text, "\n**{missed}, and {PULL_TIMES_MIN:.0} times is what it is to be.**");
        }
        let (first, later) = (median(results.first_job.clone()), median(results.later_jobs.clone()));
        let _ = writeln!(
            text,
            "\nThe first job after a pull takes {:.1} ms, a later one {:.1} ms.\n",
            first * 1000.0,
            later * 1000.0
        );
        if results.memory.is_empty() {
            continue;
        }
        text += "| memory of all processes, at most | ampoule | docker | skopeo |\n|---|---|---|---|\n";
        for &step in Step::value_variants() {
            let peak = |name| results.memory.get(&(step, name)).copied().unwrap_or_default() / 1_000_000;
            let _ =
                writeln!(text, "| {step:?} | {} MB | {} MB | {} MB |", peak("ampoule"), peak("docker"), peak("skopeo"));
        }
        text += "\n";
    }
    text
}

/// What was promised and not reached, in words.
fn missed(results: &Results) -> Option<String> {
    let median_of = |name| median(results.seconds.get(&(Step::Pull, name)).cloned().unwrap_or_default());
    let times = median_of("docker") / median_of("ampoule");
    (times < PULL_TIMES_MIN).then(|| format!("a pull of {} is only {times:.1} times faster", results.sample.name))
}
