//! RUN: a command in a sandbox whose root it may change.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::mounts::Equipment;
use super::stage::Tree;
use super::{Event, Problem, Site};
use crate::builder::dockerfile::mount::Mount;
use crate::builder::plan::{Network, RunAction, Script, Step};
use crate::image::store::{BuiltLayer, WorkshopError};
use crate::runtime::{Input, Running, RunningStep};
use crate::spec::{
    Artifacts, Command, DEFAULT_PATH, Ending, Frame, Network as Reach, SandboxSpec, StepTerms, StopReason, WritablePath,
};

/// Host name of a build's sandbox.
const HOST_NAME: &str = "build";
/// Room in `--mount=type=tmpfs` that names none, in bytes.
const TMPFS_BYTES: u64 = 64 * 1024 * 1024;
/// Most files in a `--mount=type=tmpfs`.
const TMPFS_INODES: u64 = 65_536;
/// Bytes of output read at a time.
const OUTPUT_BYTES: usize = 16 * 1024;
/// Most bytes of output of one step that are passed on; the rest is counted.
const OUTPUT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Stops a command that is not waited for any more.
struct Stopper(Option<Box<dyn Fn(StopReason) + Send + Sync>>);

impl Drop for Stopper {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            stop(StopReason::Cancelled);
        }
    }
}

impl Site {
    pub(super) async fn run(
        &self,
        number: usize,
        step: &Step,
        run: &RunAction,
        tree: &Tree,
    ) -> Result<BuiltLayer, Problem> {
        if run.network == Network::Default && self.build.network == Reach::None {
            let message = "RUN has no network on this service, only loopback; --network=none silences this warning";
            self.tell(Event::Warning { step: Some(number), message: message.to_owned() }).await;
        }
        let Equipment { mounts, environment, caches } = self.equip(run).await?;
        let spec = self.spec(number, run, environment, tree)?;
        let files = run.script.as_ref().map(archive_of).transpose();
        let files = files.map_err(|source| Problem::System { action: "write the script of a step", source })?;
        let input = Input { files, ..Input::default() };
        let terms = StepTerms { epoch: self.build.epoch };
        let started = self.workshop.runtime().run_step(spec, input, mounts, terms).await?;
        let RunningStep { running: Running { stdout, stderr, exit, stop, .. }, tar, layer } = started;
        let mut stopper = Stopper(Some(stop));
        // Goes on when nobody waits any more: caches are in use until the command is gone.
        let ending = tokio::spawn(async move {
            let ended = tokio::join!(exit, layer);
            drop(caches);
            ended
        });
        let (arrived, (), (), ended) = tokio::join!(
            self.workshop.receive(tar),
            self.pass_on(number, false, stdout),
            self.pass_on(number, true, stderr),
            ending
        );
        stopper.0 = None;
        let (exit, layer) = ended.map_err(|_| WorkshopError::GivenUp)?;
        let exit = exit?;
        if exit.ending != Ending::Exited(0) {
            return Err(Problem::Command { command: step.written.clone(), exit: Box::new(exit) });
        }
        Ok(self.workshop.keep(arrived?, layer?).await?)
    }

    fn spec(
        &self,
        number: usize,
        run: &RunAction,
        secrets: Vec<(String, String)>,
        tree: &Tree,
    ) -> Result<SandboxSpec, Problem> {
        let layers = tree.mounted();
        if layers.is_empty() {
            return Err(Problem::Unsupported("there is nothing to run in an image without files".to_owned()));
        }
        let is_kept = |(name, _): &&(String, String)| !secrets.iter().any(|(secret, _)| secret == name);
        let own = run.environment.iter().chain(&run.proxy).filter(is_kept).cloned();
        let mut env: Vec<(String, String)> = own.collect();
        env.extend(secrets);
        if !env.iter().any(|(name, _)| name == "PATH") {
            env.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
        }
        let writable = run.mounts.iter().filter_map(|mount| match &mount.mount {
            Mount::Tmpfs { target, size_bytes } => Some(WritablePath {
                path: target.trim_end_matches('/').to_owned(),
                size_bytes: size_bytes.unwrap_or(TMPFS_BYTES),
                inodes: TMPFS_INODES,
            }),
            _ => None,
        });
        let writable = writable.collect();
        let network = if run.network == Network::None { Reach::None } else { self.build.network };
        let user = if run.user.is_empty() { "0".to_owned() } else { run.user.clone() };
        let cwd = if run.working_dir.is_empty() { "/".to_owned() } else { run.working_dir.clone() };
        let cwd = if cwd.len() > 1 { cwd.trim_end_matches('/').to_owned() } else { cwd };
        Ok(SandboxSpec {
            id: format!("step-{number}"),
            frame: Frame { layers, writable, user, hostname: HOST_NAME.to_owned(), network },
            command: Command { argv: run.argv.clone(), env, cwd, artifacts: Artifacts::default() },
            limits: self.build.limits.clone(),
        })
    }

    /// Tells what a command writes, to its end.
    async fn pass_on(&self, step: usize, is_error: bool, mut output: pipe::Receiver) {
        let mut buffer = vec![0; OUTPUT_BYTES];
        let mut rest = Vec::new();
        let mut told = 0_u64;
        // An output that cannot be read any more is at its end.
        while let Ok(count @ 1..) = output.read(&mut buffer).await {
            let before = told;
            told += count as u64;
            if told > OUTPUT_BYTES_MAX {
                if before <= OUTPUT_BYTES_MAX {
                    let message = format!("the step wrote more than {OUTPUT_BYTES_MAX} bytes; the rest is not shown");
                    self.tell(Event::Warning { step: Some(step), message }).await;
                }
                continue;
            }
            rest.extend_from_slice(&buffer[..count]);
            let text = take_text(&mut rest);
            if !text.is_empty() {
                self.tell(Event::Output { step, is_error, text }).await;
            }
        }
        if !rest.is_empty() {
            let text = String::from_utf8_lossy(&rest).into_owned();
            self.tell(Event::Output { step, is_error, text }).await;
        }
    }
}

/// Takes what is whole text, and leaves the beginning of a character that is not all there.
fn take_text(bytes: &mut Vec<u8>) -> String {
    let end = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => bytes.len(),
    };
    let taken: Vec<u8> = bytes.drain(..end).collect();
    String::from_utf8_lossy(&taken).into_owned()
}

/// The script of a step as the archive that its sandbox unpacks.
fn archive_of(script: &Script) -> std::io::Result<File> {
    let descriptor = rustix::fs::memfd_create("script", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut archive = tar::Builder::new(File::from(descriptor));
    let mut header = tar::Header::new_gnu();
    header.set_size(script.content.len() as u64);
    header.set_mode(0o755);
    header.set_mtime(0);
    // The name is absolute, which `append_data` would not take.
    let path = script.path.as_bytes();
    let name = &mut header.as_old_mut().name;
    let length = path.len().min(name.len());
    name[..length].copy_from_slice(&path[..length]);
    header.set_cksum();
    archive.append(&header, script.content.as_bytes())?;
    let mut file = archive.into_inner()?;
    file.flush()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
