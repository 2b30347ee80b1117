//! Who moves images: Ampoule, docker with a daemon of its own, and skopeo, which unpacks nothing. All are called by
//! their command lines, and timed from the call to its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ampoule_client::types::{EndingKind, JobRequest};
use ampoule_tests::docker::Daemon;
use ampoule_tests::{Options, Service, ampoule_program, service};
use anyhow::{Context, Result, ensure};

/// Jobs after the first.
const LATER_JOBS: usize = 9;

/// Somebody who can do all of it. Times are in seconds.
pub(crate) trait Contestant {
    /// Its name in the report.
    fn name(&self) -> &'static str;
    /// How the names of its processes begin.
    fn processes(&self) -> &'static str;
    /// Forgets everything, so that the next step finds nothing.
    fn clear(&mut self) -> Result<()>;
    /// Brings an image from a registry.
    fn pull(&mut self, from: &str) -> Result<f64>;
    /// Brings the image that was pulled to a registry.
    fn push(&mut self, to: &str) -> Result<f64>;
    /// Writes the image that was pulled to an archive.
    fn save(&mut self, file: &Path) -> Result<f64>;
    /// Takes an image from an archive that Ampoule wrote.
    fn load(&mut self, file: &Path) -> Result<f64>;
    /// Runs jobs on the image that was pulled: the time of the first and the times of later ones.
    fn jobs(&mut self) -> Result<Option<(f64, Vec<f64>)>> {
        Ok(None)
    }
}

fn timed(command: &mut Command) -> Result<f64> {
    // What others left to be written is not to be written now.
    nix::unistd::sync();
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(seconds)
}

/// A service with an empty store for each image. Nothing is deleted before the end, by anybody: ext4 passes over what was
/// deleted in the last minutes when it looks for a free inode, one by one, and whoever came next would pay for that.
#[derive(Default)]
pub(crate) struct Ampoule {
    service: Option<Service>,
    stopped: Vec<Service>,
    pulled: String,
}

impl Ampoule {
    fn service(&mut self) -> &Service {
        self.service.get_or_insert_with(|| Service::with(Options { without_image: true, ..Options::default() }))
    }

    fn image(&mut self) -> Command {
        let address = format!("unix://{}", self.service().socket().display());
        let mut command = Command::new(ampoule_program());
        command.args(["--host", &address, "image"]);
        command
    }
}

impl Contestant for Ampoule {
    fn name(&self) -> &'static str {
        "ampoule"
    }

    fn processes(&self) -> &'static str {
        "ampoule"
    }

    fn clear(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            // This checks that nothing is left on the host.
            service.stop();
            self.stopped.push(service);
        }
        self.service();
        Ok(())
    }

    fn pull(&mut self, from: &str) -> Result<f64> {
        from.clone_into(&mut self.pulled);
        timed(self.image().args(["pull", from]))
    }

    fn push(&mut self, to: &str) -> Result<f64> {
        let pulled = self.pulled.clone();
        timed(self.image().args(["push", &pulled, to]))
    }

    fn save(&mut self, file: &Path) -> Result<f64> {
        let pulled = self.pulled.clone();
        timed(self.image().args(["save", &pulled, "--output"]).arg(file))
    }

    fn load(&mut self, file: &Path) -> Result<f64> {
        timed(self.image().args(["load", "--input"]).arg(file))
    }

    fn jobs(&mut self) -> Result<Option<(f64, Vec<f64>)>> {
        let job = JobRequest { image: self.pulled.clone(), ..service::command(&["/bin/true"]) };
        let service = self.service();
        let run = || -> Result<f64> {
            let started = Instant::now();
            let job = service.run(&job);
            ensure!(service::kind(&job) == EndingKind::Exited, "{job:?}");
            Ok(started.elapsed().as_secs_f64())
        };
        let first = run()?;
        Ok(Some((first, (0..LATER_JOBS).map(|_| run()).collect::<Result<_>>()?)))
    }
}

/// A daemon with an empty store for each image.
pub(crate) struct Docker {
    daemon: Daemon,
    folder: PathBuf,
    cleared: u32,
    pulled: String,
}

impl Docker {
    pub(crate) fn start(folder: &Path) -> Result<Docker> {
        let folder = folder.join("docker");
        Ok(Docker { daemon: Daemon::start(&folder.join("0"))?, folder, cleared: 0, pulled: String::new() })
    }
}

impl Contestant for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn processes(&self) -> &'static str {
        "docker"
    }

    fn clear(&mut self) -> Result<()> {
        self.cleared += 1;
        self.daemon = Daemon::start(&self.folder.join(self.cleared.to_string()))?;
        Ok(())
    }

    fn pull(&mut self, from: &str) -> Result<f64> {
        from.clone_into(&mut self.pulled);
        timed(self.daemon.command().args(["pull", "--quiet", from]))
    }

    fn push(&mut self, to: &str) -> Result<f64> {
        self.daemon.run(&["tag", &self.pulled, to])?;
        timed(self.daemon.command().args(["push", "--quiet", to]))
    }

    fn save(&mut self, file: &Path) -> Result<f64> {
        timed(self.daemon.command().args(["save", &self.pulled, "--output"]).arg(file))
    }

    fn load(&mut self, file: &Path) -> Result<f64> {
        timed(self.daemon.command().args(["load", "--quiet", "--input"]).arg(file))
    }
}

/// Copies between registries, layouts and archives.
pub(crate) struct Skopeo {
    folder: PathBuf,
    cleared: u32,
}

impl Skopeo {
    pub(crate) fn new(folder: &Path) -> Skopeo {
        Skopeo { folder: folder.join("skopeo"), cleared: 0 }
    }

    fn copy(&self, from: &str, to: &str) -> Result<f64> {
        let arguments = ["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"];
        timed(Command::new("skopeo").args(arguments).args([from, to]))
    }

    fn own(&self) -> String {
        format!("oci:{}/{}:bench", self.folder.display(), self.cleared)
    }
}

impl Contestant for Skopeo {
    fn name(&self) -> &'static str {
        "skopeo"
    }

    fn processes(&self) -> &'static str {
        "skopeo"
    }

    fn clear(&mut self) -> Result<()> {
        self.cleared += 1;
        Ok(fs::create_dir_all(&self.folder)?)
    }

    fn pull(&mut self, from: &str) -> Result<f64> {
        self.copy(&format!("docker://{from}"), &self.own())
    }

    fn push(&mut self, to: &str) -> Result<f64> {
        self.copy(&self.own(), &format!("docker://{to}"))
    }

    fn save(&mut self, file: &Path) -> Result<f64> {
        self.copy(&self.own(), &format!("oci-archive:{}", file.display()))
    }

    fn load(&mut self, file: &Path) -> Result<f64> {
        self.copy(&format!("docker-archive:{}", file.display()), &self.own())
    }
}
