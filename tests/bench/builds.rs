//! Images built side by side: by Ampoule, docker and buildah in turn, each by its command line, from the call to its end.
//! All start from the same static busybox, which each has already.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use ampoule_tests::docker::Daemon;
use ampoule_tests::{Service, ampoule_program, archive};
use anyhow::{Context, Result, ensure};

use crate::report::{machine, median};

/// Steps of the usual file.
const STEPS: usize = 20;
/// After which of them the source files are copied.
const COPIED_AFTER: usize = 14;
/// Files of the large context.
const FILES: usize = 20_000;
/// Files of a megabyte of the heavy context; ten of them are used.
const HEAVY_FILES: usize = 1000;
/// Builds that are started together: as many as the service takes at a time.
const TOGETHER: usize = 4;
const MEGABYTE: usize = 1_000_000;

/// What is measured, in this order: later ones build on what earlier ones left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    Cold,
    Cached,
    OneFileChanged,
    ManyFiles,
    ManyFilesUnchanged,
    Heavy,
    Together,
}

const CASES: [(Case, &str); 7] = [
    (Case::Cold, "20 steps, nothing known"),
    (Case::Cached, "20 steps, all known"),
    (Case::OneFileChanged, "20 steps, one source file changed before the 16th"),
    (Case::ManyFiles, "COPY of 20,000 files, nothing known"),
    (Case::ManyFilesUnchanged, "COPY of 20,000 files, unchanged"),
    (Case::Heavy, "a context of 1 GB, of which 10 MB are copied"),
    (Case::Together, "four builds of five steps at once, nothing known"),
];

/// Somebody who builds: a command line that lacks flags and the context.
struct Builder {
    name: &'static str,
    command: Box<dyn Fn() -> Command>,
}

/// Measures, and returns the report as Markdown.
pub(crate) fn run(folder: &Path, rounds: u32) -> Result<String> {
    let service = Service::start();
    let daemon = Daemon::start(&folder.join("docker"))?;
    let builders = builders(folder, &service, &daemon)?;
    let mut seconds: BTreeMap<(Case, &str), Vec<f64>> = BTreeMap::new();
    let contexts = Contexts::make(folder)?;
    for round in 0..rounds {
        for (case, words) in CASES {
            for builder in &builders {
                let took =
                    play(case, builder, &contexts, round).with_context(|| format!("{}: {words}", builder.name))?;
                seconds.entry((case, builder.name)).or_default().push(took);
                eprintln!("round {round}: {words} by {}: {took:.3} s", builder.name);
            }
        }
    }
    Ok(report(&builders, &seconds, rounds))
}

fn builders(folder: &Path, service: &Service, daemon: &Daemon) -> Result<Vec<Builder>> {
    let base = folder.join("busybox.tar");
    fs::write(&base, archive::busybox())?;
    daemon.run(&["import", &base.display().to_string(), "busybox"])?;
    let stores =
        [format!("--root={}", folder.join("buildah").display()), format!("--runroot={}", folder.join("run").display())];
    let address = format!("unix://{}", service.socket().display());
    let by_ampoule = move || {
        let mut command = Command::new(ampoule_program());
        command.args(["--host", &address, "build", "--quiet"]);
        command
    };
    let docker = daemon.socket().display().to_string();
    let by_docker = move || {
        let mut command = Command::new("docker");
        command.args(["--host", &format!("unix://{docker}"), "build", "--quiet"]);
        command
    };
    let mut builders = vec![
        Builder { name: "ampoule", command: Box::new(by_ampoule) },
        Builder { name: "docker", command: Box::new(by_docker) },
    ];
    if Command::new("buildah").arg("--version").output().is_ok() {
        let made = folder.join("Dockerfile.base");
        fs::write(&made, "FROM scratch\nADD busybox.tar /\n")?;
        let mut command = Command::new("buildah");
        command.args(&stores).args(["bud", "--quiet", "--tag", "busybox", "--file"]).arg(made).arg(folder);
        wait(spawn(&mut command)?)?;
        let by_buildah = move || {
            let mut command = Command::new("buildah");
            command.args(&stores).args(["bud", "--quiet", "--layers", "--pull-never"]);
            command
        };
        builders.push(Builder { name: "buildah", command: Box::new(by_buildah) });
    }
    Ok(builders)
}

/// Has a builder do a case once; in seconds.
fn play(case: Case, builder: &Builder, contexts: &Contexts, round: u32) -> Result<f64> {
    let build = |context: &Path, text: &str, tag: &str| {
        let file = contexts.folder.join(format!("{}-{tag}.Dockerfile", builder.name));
        fs::write(&file, text)?;
        spawn((builder.command)().args(["--tag", tag, "--file"]).arg(file).arg(context))
    };
    let one = |context: &Path, text: &str| timed(|| wait(build(context, text, "bench")?));
    let head = format!("FROM busybox\nENV ROUND={round}\n");
    let steps = |count: usize, text: &mut String| {
        for number in 0..count {
            let _ = writeln!(text, "RUN echo {number} >/step-{number}");
        }
    };
    let mut usual = head.clone();
    steps(COPIED_AFTER, &mut usual);
    usual += "COPY . /src\n";
    steps(STEPS - COPIED_AFTER - 1, &mut usual);
    match case {
        Case::Cold | Case::Cached => one(&contexts.small, &usual),
        Case::OneFileChanged => {
            fs::write(contexts.small.join("main.c"), format!("{} {round}", builder.name))?;
            let took = one(&contexts.small, &usual);
            fs::write(contexts.small.join("main.c"), "")?;
            took
        }
        Case::ManyFiles | Case::ManyFilesUnchanged => one(&contexts.many, &format!("{head}COPY . /src\n")),
        Case::Heavy => one(&contexts.heavy, &format!("{head}COPY used /src\n")),
        Case::Together => timed(|| {
            let start = |number: usize| {
                let mut text = format!("{head}ENV BUILD={number}\n");
                steps(5, &mut text);
                build(&contexts.small, &text, &format!("bench-{number}"))
            };
            let children: Vec<Child> = (0..TOGETHER).map(start).collect::<Result<_>>()?;
            children.into_iter().try_for_each(wait)
        }),
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    // What others left to be written is not to be written now.
    nix::unistd::sync();
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("{command:?}"))
}

fn wait(child: Child) -> Result<()> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The folders that are built from.
struct Contexts {
    folder: PathBuf,
    small: PathBuf,
    many: PathBuf,
    heavy: PathBuf,
}

impl Contexts {
    fn make(folder: &Path) -> Result<Contexts> {
        let [small, many, heavy] = ["small", "many", "heavy"].map(|name| folder.join(name));
        for folder in [&small, &heavy.join("used"), &heavy.join("unused")] {
            fs::create_dir_all(folder)?;
        }
        fs::write(small.join("main.c"), "")?;
        for number in 0..FILES {
            let folder = many.join(format!("folder-{}", number / 100));
            fs::create_dir_all(&folder)?;
            fs::write(folder.join(format!("file-{number}.js")), format!("module.exports = {number};\n"))?;
        }
        for number in 0..HEAVY_FILES {
            let folder = heavy.join(if number < 10 { "used" } else { "unused" });
            // No two files are alike, and none can be packed well.
            let mut state = number as u64 + 1;
            let content = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            });
            fs::write(folder.join(number.to_string()), content.take(MEGABYTE).collect::<Vec<u8>>())?;
        }
        Ok(Contexts { folder: folder.to_owned(), small, many, heavy })
    }
}

fn report(builders: &[Builder], seconds: &BTreeMap<(Case, &str), Vec<f64>>, rounds: u32) -> String {
    let mut text = format!("# Builds, side by side\n\n{}\n\n", machine());
    let _ = writeln!(
        text,
        "Medians of {rounds} interleaved rounds, in seconds, from the call of each command line to its end.\n"
    );
    let names: Vec<&str> = builders.iter().map(|builder| builder.name).collect();
    let peers = names.iter().skip(1).map(|name| format!(" {name} | {name} / ampoule |"));
    let _ = writeln!(text, "| | ampoule |{}", peers.collect::<String>());
    let _ = writeln!(text, "|---|---|{}", "---|---|".repeat(names.len() - 1));
    for (case, words) in CASES {
        let of = |name: &&str| median(seconds.get(&(case, *name)).cloned().unwrap_or_default());
        let own = of(&"ampoule");
        let _ = write!(text, "| {words} | {own:.3} |");
        for peer in names.iter().skip(1) {
            let _ = write!(text, " {:.3} | {:.1} |", of(peer), of(peer) / own);
        }
        text.push('\n');
    }
    text
}
