//! Images in: the same archives loaded by Ampoule, by dockerd and by skopeo (which does not unpack), in turn, and the
//! first job after that beside a later one. One image is a real Debian with python3, one has very many small files.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_client::types::JobRequest;
use ampoule_tests::{Options, Service, ampoule_program, archive, host, service, test_data};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::docker::Daemon;

/// How often memory is looked at while an image is loaded.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Files of the image of many small ones, folders of them, and bytes of the largest.
const SMALL_FILES: (usize, usize, usize) = (24_000, 1_200, 6_000);

/// An archive as `docker save` writes it.
struct Sample {
    name: &'static str,
    file: PathBuf,
    bytes: u64,
}

/// What loading one archive took, in seconds, one number a round.
struct Row {
    sample: &'static str,
    bytes: u64,
    ampoule: Vec<f64>,
    docker: Vec<f64>,
    skopeo: Vec<f64>,
    first_job: Vec<f64>,
    later_job: Vec<f64>,
    peak_bytes: u64,
}

/// Measures, and returns the report as Markdown.
pub(crate) fn run(folder: &Path, rounds: u32) -> Result<String> {
    let samples = [debian(folder)?, small_files(folder)?];
    let daemon = Daemon::start(&folder.join("docker"))?;
    let mut rows = Vec::new();
    for sample in &samples {
        let mut row = Row {
            sample: sample.name,
            bytes: sample.bytes,
            ampoule: Vec::new(),
            docker: Vec::new(),
            skopeo: Vec::new(),
            first_job: Vec::new(),
            later_job: Vec::new(),
            peak_bytes: 0,
        };
        for round in 1..=rounds {
            load_by_ampoule(sample, &mut row).with_context(|| format!("ampoule in round {round}"))?;
            row.docker.push(load_by_docker(sample, &daemon).with_context(|| format!("docker in round {round}"))?);
            row.skopeo.push(copy_by_skopeo(sample, folder).with_context(|| format!("skopeo in round {round}"))?);
            eprintln!("round {round}: {}", sample.name);
        }
        rows.push(row);
    }
    Ok(report(rows, rounds))
}

fn debian(folder: &Path) -> Result<Sample> {
    let layer = fs::read(test_data().join("debian.tar")).context("no debian.tar\nhint: make setup")?;
    saved(folder, "debian with python3", "debian", &[layer, archive::busybox()])
}

fn small_files(folder: &Path) -> Result<Sample> {
    let (files, folders, bytes_max) = SMALL_FILES;
    let content: Vec<u8> = (0..bytes_max).map(|at| (at * 7 % 251) as u8).collect();
    let mut layer = archive::Archive::default().folder("app", 0o755, 0).folder("app/node_modules", 0o755, 0);
    for number in 0..folders {
        layer = layer.folder(&format!("app/node_modules/p{number}"), 0o755, 0);
    }
    for number in 0..files {
        let path = format!("app/node_modules/p{}/f{number}.js", number % folders);
        layer = layer.file(&path, 0o644, 0, &content[..number * 131 % bytes_max]);
    }
    saved(folder, "24,000 small files", "small", &[archive::busybox(), layer.finish()])
}

/// Writes layers as an image that everybody loads; packed as registries have them.
fn saved(folder: &Path, name: &'static str, short: &str, layers: &[Vec<u8>]) -> Result<Sample> {
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": { "Env": ["PATH=/bin:/usr/bin"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect::<Vec<_>>() },
    });
    let files: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [format!("bench/{short}:1")], "Layers": files }]);
    let mut saved = archive::Archive::default().file("config.json", 0o644, 0, config.to_string().as_bytes());
    let mut bytes = 0;
    for (file, layer) in files.iter().zip(layers) {
        bytes += layer.len() as u64;
        saved = saved.file(file, 0o644, 0, &archive::gzip(layer));
    }
    let saved = saved.file("manifest.json", 0o644, 0, manifest.to_string().as_bytes()).finish();
    let file = folder.join(format!("{short}.tar"));
    fs::write(&file, saved)?;
    Ok(Sample { name, file, bytes })
}

/// Loads into a service of its own, and runs two jobs on what came.
fn load_by_ampoule(sample: &Sample, row: &mut Row) -> Result<()> {
    let instance = Service::with(Options { without_image: true, ..Options::default() });
    let address = format!("unix://{}", instance.socket().display());
    let started = Instant::now();
    let mut child = Command::new(ampoule_program())
        .args(["--host", &address, "image", "import"])
        .arg(&sample.file)
        .args(["--name", "bench"])
        .stdout(Stdio::null())
        .spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let service = instance.pid().as_raw();
        let all = host::descendants(service);
        let used = host::memory_bytes(service) + all.iter().map(|process| host::memory_bytes(process.pid)).sum::<u64>();
        row.peak_bytes = row.peak_bytes.max(used);
        thread::sleep(LOOK_EVERY);
    };
    row.ampoule.push(started.elapsed().as_secs_f64());
    ensure!(status.success(), "ampoule image import: {status}");
    let job = JobRequest { image: "bench".to_owned(), ..service::command(&["/bin/true"]) };
    for times in [&mut row.first_job, &mut row.later_job] {
        let started = Instant::now();
        instance.run(&job);
        times.push(started.elapsed().as_secs_f64());
    }
    Ok(())
}

fn load_by_docker(sample: &Sample, daemon: &Daemon) -> Result<f64> {
    let address = format!("unix://{}", daemon.socket().display());
    let docker = |arguments: &[&str]| -> Result<()> {
        let status = Command::new("docker").args(["-H", &address]).args(arguments).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "docker {arguments:?}: {status}");
        Ok(())
    };
    let started = Instant::now();
    docker(&["load", "-i", &sample.file.to_string_lossy()])?;
    let seconds = started.elapsed().as_secs_f64();
    // The next round is to do it all again.
    docker(&["image", "prune", "--all", "--force"])?;
    Ok(seconds)
}

fn copy_by_skopeo(sample: &Sample, folder: &Path) -> Result<f64> {
    let target = folder.join("skopeo");
    let started = Instant::now();
    let status = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy"])
        .arg(format!("docker-archive:{}", sample.file.display()))
        .arg(format!("oci:{}:bench", target.display()))
        .status()?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(status.success(), "skopeo copy: {status}");
    fs::remove_dir_all(&target)?;
    Ok(seconds)
}

fn report(rows: Vec<Row>, rounds: u32) -> String {
    let mut text = format!("# Images loaded, side by side\n\n{rounds} interleaved rounds; medians, in seconds.\n\n");
    text += "| image | unpacked | ampoule | docker load | ratio | skopeo copy (no unpacking) | first job | later job | peak memory |\n";
    text += "|---|---|---|---|---|---|---|---|---|\n";
    for row in rows {
        let [ampoule, docker, skopeo, first, later] =
            [row.ampoule, row.docker, row.skopeo, row.first_job, row.later_job].map(median);
        let _ = writeln!(
            text,
            "| {} | {} MB | {ampoule:.2} | {docker:.2} | {:.1}x | {skopeo:.2} | {first:.3} | {later:.3} | {} MB |",
            row.sample,
            row.bytes / 1_000_000,
            docker / ampoule,
            row.peak_bytes / 1_000_000,
        );
    }
    text
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
