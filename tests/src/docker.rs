//! Docker: a daemon of our own on a folder and a socket that vanish, called over its HTTP API or by its command line.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Other;
use crate::http::Connection;
use crate::patience;

/// How long the daemon may take to answer.
const START_TIME: Duration = Duration::from_secs(60);

/// The daemon; stopped when dropped.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    _other: Other,
}

impl Daemon {
    /// Starts one on this folder.
    ///
    /// # Errors
    /// It is not installed, or does not answer; the message shows its log.
    pub fn start(folder: &Path) -> Result<Daemon> {
        fs::create_dir_all(folder)?;
        let log = File::create(folder.join("log"))?;
        let child = Command::new("dockerd")
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .arg("-H")
            .arg(format!("unix://{}", folder.join("docker.sock").display()))
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("dockerd is installed by `make setup`")?;
        let daemon = Daemon { _other: Other::is(child.id()), child, folder: folder.to_path_buf() };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + patience(START_TIME);
        while Instant::now() < deadline {
            let answer = Connection::open(&self.socket()).and_then(|mut socket| socket.send("GET", "/_ping", &[], b""));
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("dockerd does not answer\n{}", fs::read_to_string(self.folder.join("log")).unwrap_or_default())
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    /// Its process; what it started descends from it.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Its command line, with the arguments that come before all others.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.socket().display())).stdin(Stdio::null());
        // Logins of whoever runs this are none of its business.
        command.env("DOCKER_CONFIG", self.folder.join("config"));
        command
    }

    /// Runs its command line to the end, and returns what that wrote.
    ///
    /// # Errors
    /// It is not installed, or fails; the message has what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).output().context("docker is installed by `make setup`")?;
        ensure!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).ok();
        self.child.wait().ok();
    }
}
