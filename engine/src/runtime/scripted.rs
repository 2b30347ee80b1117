//! A runtime that plays given endings: for tests of the service that need what no kernel gives on demand.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::{Census, Input, Pending, Running, Runtime, RuntimeError, Stdin, Unpacked};
use crate::spec::{Ending, Exit, Figures, LayerId, Phases, SandboxSpec, StopReason};

/// One run as it will be played.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Written to standard output before the end.
    pub stdout: Vec<u8>,
    /// Written to standard error before the end.
    pub stderr: Vec<u8>,
    /// How long the command seems to run.
    pub lasts: Duration,
    /// How it ends, unless it is stopped first.
    pub ending: Ending,
}

/// Plays its scenes in order, one a launch, the last one again and again; remembers what it was asked to run.
#[derive(Debug)]
pub struct Scripted {
    scenes: Mutex<VecDeque<Scene>>,
    asked: Mutex<Vec<SandboxSpec>>,
}

impl Scripted {
    /// A runtime that plays these scenes.
    pub fn new(scenes: impl IntoIterator<Item = Scene>) -> Scripted {
        Scripted { scenes: Mutex::new(scenes.into_iter().collect()), asked: Mutex::default() }
    }

    /// All specs that were launched so far.
    pub fn asked(&self) -> Vec<SandboxSpec> {
        self.asked.lock().expect("no test panics while it holds this").clone()
    }

    fn next_scene(&self) -> Scene {
        let mut scenes = self.scenes.lock().expect("no test panics while it holds this");
        let last = scenes.len() <= 1;
        let scene = if last { scenes.front().cloned() } else { scenes.pop_front() };
        scene.expect("a scripted runtime has at least one scene")
    }
}

impl Runtime for Scripted {
    fn launch(&self, spec: SandboxSpec, input: Input) -> Pending<'_, Result<Running, RuntimeError>> {
        Box::pin(async move {
            spec.check()?;
            self.asked.lock().expect("no test panics while it holds this").push(spec);
            play(self.next_scene(), &input)
        })
    }

    fn unpack_layer(&self, _archive: File) -> Pending<'_, Result<Unpacked, RuntimeError>> {
        Box::pin(async { Err(RuntimeError::Layer("a scripted runtime unpacks nothing".to_owned())) })
    }

    fn remove_layer(&self, _layer: LayerId) -> Pending<'_, Result<(), RuntimeError>> {
        Box::pin(async { Ok(()) })
    }

    fn census(&self) -> Census {
        Census::default()
    }
}

fn play(scene: Scene, input: &Input) -> Result<Running, RuntimeError> {
    let (mut stdout_writer, stdout) = async_pipe()?;
    let (mut stderr_writer, stderr) = async_pipe()?;
    let stdin = match input.stdin {
        Stdin::Pipe => Some(async_pipe()?.0),
        Stdin::Empty | Stdin::File(_) => None,
    };
    let (exit_sender, exit) = oneshot::channel();
    let (stop_sender, mut stops) = mpsc::unbounded_channel::<StopReason>();
    tokio::spawn(async move {
        // A reader that went away is the test's affair.
        let _ = stdout_writer.write_all(&scene.stdout).await;
        let _ = stderr_writer.write_all(&scene.stderr).await;
        let ending = tokio::select! {
            () = tokio::time::sleep(scene.lasts) => scene.ending,
            Some(reason) = stops.recv() => match reason {
                StopReason::Cancelled => Ending::Cancelled,
                StopReason::OutputLimit => Ending::OutputLimit,
                StopReason::WallLimit => Ending::WallLimit,
            },
        };
        drop((stdout_writer, stderr_writer));
        let _ = exit_sender.send(Exit {
            ending,
            detail: String::new(),
            figures: Figures::default(),
            phases: Phases::default(),
            left_out: Vec::new(),
        });
    });
    let stop = Box::new(move |reason| {
        // A run that is over cannot be stopped.
        let _ = stop_sender.send(reason);
    });
    let exit = Box::pin(async { exit.await.map_err(|_| RuntimeError::Gone) });
    Ok(Running { stdout, stderr, stdin, artifacts: None, exit, stop })
}

fn async_pipe() -> Result<(pipe::Sender, pipe::Receiver), RuntimeError> {
    let system = |source| RuntimeError::System { action: "make a pipe", source };
    let (reader, writer) = std::io::pipe().map_err(system)?;
    let receiver = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(system)?;
    let sender = pipe::Sender::from_owned_fd(OwnedFd::from(writer)).map_err(system)?;
    Ok((sender, receiver))
}
