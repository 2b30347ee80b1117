//! Ampoule beside its peers, in one run: the same image, the same command, as much isolation as each can do.
//! Rounds are interleaved, so that a disturbance of the machine meets all of them. What comes out is a table, a
//! chart and a description of the machine, in `target/bench`.

mod builds;
mod chart;
mod docker;
mod images;
mod measure;
mod memory;
mod peers;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use measure::{Plan, Series};
use peers::PeerName;
use report::Report;

/// Rounds in which every peer takes part.
const ROUNDS: u32 = 3;

/// Ampoule beside its peers; tables and a chart are written to target/release/bench
#[derive(Parser)]
#[command(name = "ampoule-bench", subcommand_precedence_over_arg = true, args_conflicts_with_subcommands = false)]
struct Arguments {
    /// Measure less: to see that it works, not for figures
    #[arg(long, global = true)]
    quick: bool,
    /// The peers whose jobs are measured; all without one
    peers: Vec<PeerName>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// Build images, beside docker and buildah
    Builds {
        /// Rounds in which everybody takes part
        #[arg(long, default_value_t = ROUNDS, value_parser = clap::value_parser!(u32).range(1..=20))]
        rounds: u32,
    },
    /// Pull, push, save and load images, beside docker and skopeo
    Images {
        /// The images; all without one
        images: Vec<images::Which>,
        /// Measure only this, and what has to come before it; may be given several times
        #[arg(long = "step", value_name = "STEP")]
        steps: Vec<images::Step>,
        /// Rounds in which everybody takes part
        #[arg(long, default_value_t = ROUNDS, value_parser = clap::value_parser!(u32).range(1..=20))]
        rounds: u32,
    },
}

fn main() -> Result<()> {
    let Arguments { quick, peers, what } = Arguments::parse();
    hide_hybrid_cgroup()?;
    let folder = tempfile::Builder::new().prefix("ampoule-bench-").tempdir()?;
    match what {
        Some(What::Images { images, steps, rounds }) => {
            let which = if images.is_empty() { images::Which::value_variants() } else { &images };
            let steps = if steps.is_empty() { images::Step::value_variants() } else { &steps };
            let text = images::run(folder.path(), if quick { 1..=1 } else { 0..=rounds }, which, steps)?;
            unmount_below(folder.path())?;
            fs::write(output_folder()?.join("images.md"), &text)?;
            say(&text);
            Ok(())
        }
        Some(What::Builds { rounds }) => {
            let text = builds::run(folder.path(), if quick { 1 } else { rounds })?;
            unmount_below(folder.path())?;
            fs::write(output_folder()?.join("builds.md"), &text)?;
            say(&text);
            Ok(())
        }
        None => measure_jobs(folder.path(), &peers, quick),
    }
}

/// Runs jobs by all peers that are wanted, and reports.
fn measure_jobs(folder: &Path, wanted: &[PeerName], quick: bool) -> Result<()> {
    let root = unpack_image(folder)?;
    let mut peers = peers::all(folder, &root, wanted)?;

    let plan = Plan { rounds: if quick { 1 } else { ROUNDS }, share: if quick { 4 } else { 1 } };
    let series: Vec<Series> = measure::run(&peers, &plan)?;
    // The last first: a service that is stopped looks for what it left, and takes other daemons for its own.
    while let Some(peer) = peers.pop() {
        drop(peer);
    }
    unmount_below(folder)?;
    let memory = if wanted.is_empty() { Some(memory::measure()?) } else { None };
    let report = Report { series, memory, rounds: plan.rounds };
    let target = output_folder()?;
    fs::write(target.join("report.md"), report.markdown())?;
    fs::write(target.join("latency.svg"), chart::latency(&report))?;
    fs::write(target.join("report.json"), report.json())?;
    say(&format!("{}\nwritten to {}", report.markdown(), target.display()));
    Ok(())
}

/// crun and podman refuse a machine that has controllers on version 1 and an empty hierarchy of version 2 beside
/// them; in a mount namespace of our own that one can go.
fn hide_hybrid_cgroup() -> Result<()> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.join("cgroup.procs").exists() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("the benchmark needs root, for the peers")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    umount2(unified, MntFlags::MNT_DETACH).context("could not unmount the empty cgroup hierarchy")
}

/// podman keeps its store mounted over itself, and docker may have been interrupted.
fn unmount_below(folder: &Path) -> Result<()> {
    for line in ampoule_tests::host::mounts_below(folder).iter().rev() {
        if let Some(place) = line.split(' ').nth(4) {
            umount2(place, MntFlags::MNT_DETACH).with_context(|| format!("could not unmount {place}"))?;
        }
    }
    Ok(())
}

/// The image's root as a folder, for the peers that take one.
fn unpack_image(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    let mut archive = tar::Archive::new(std::io::Cursor::new(ampoule_tests::archive::busybox()));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(&root)?;
    Ok(root)
}

fn output_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let build = program.parent().and_then(Path::parent).context("the program lies in the build folder")?;
    let folder = build.join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[expect(clippy::print_stdout, reason = "this program exists to print a report")]
fn say(text: &str) {
    println!("{text}");
}
