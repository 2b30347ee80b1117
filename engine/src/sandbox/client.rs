//! The service's side of the launcher: requests go out with their pipes, answers find who waits for them. A command
//! for which the launcher lent a sandbox goes straight to that one.

mod lent;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use lent::{LentSandbox, Pick, Run, Shelf, expect_exit};

use crate::runtime::{
    Census, Checked, Exported, Input, Mounts, Pending, Running, RunningStep, Runtime, RuntimeError, Stdin, Unpacked,
};
use crate::sandbox::handshake::{Look, Looked, Reply, Request, UnpackedLayer, message_buffer, receive, send};
use crate::sandbox::launcher::LauncherHandle;
use crate::spec::{CacheFolder, Exit, LayerId, PlaceOrder, SandboxSpec, StepMount, StepTerms, StopReason, Wanted};
use crate::sys;

/// How long the launcher may take to end everything when the service leaves.
const LEAVE_TIME: Duration = Duration::from_secs(10);
/// A token under which nobody waits.
const NOBODY: u64 = 0;

/// The real runtime.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    next_token: AtomicU64,
    shelf: Shelf,
    /// Commands in lent sandboxes, now and since the start.
    direct: AtomicU64,
    direct_all: AtomicU64,
    /// What messages of pid 1 are read into.
    buffer: Mutex<Vec<u8>>,
    /// Where work goes on that nobody waits for.
    tasks: Handle,
    census: Mutex<Census>,
    gone: watch::Sender<bool>,
    process: Mutex<Child>,
}

/// Who waits for an answer.
enum Waiting {
    Exit(oneshot::Sender<Exit>),
    Unpack(oneshot::Sender<Result<UnpackedLayer, String>>),
    Remove(oneshot::Sender<Result<(), String>>),
    Look(oneshot::Sender<Result<Looked, String>>),
}

/// What was locked is a plain table that no panic leaves half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Takes over the conversation with a launcher. To be called within the tokio runtime.
    ///
    /// # Errors
    /// `System`, when the socket cannot be waited on.
    pub fn connect(handle: LauncherHandle) -> Result<Client, RuntimeError> {
        let LauncherHandle { socket, process } = handle;
        let system = |source| RuntimeError::System { action: "wait on the launcher's socket", source };
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| system(error.into()))?;
        let socket = sys::wait_on(socket, Interest::READABLE | Interest::WRITABLE).map_err(system)?;
        let shared = Arc::new(Shared {
            socket,
            waiting: Mutex::default(),
            next_token: AtomicU64::new(1),
            shelf: Shelf::default(),
            direct: AtomicU64::new(0),
            direct_all: AtomicU64::new(0),
            buffer: Mutex::new(message_buffer()),
            tasks: Handle::current(),
            census: Mutex::default(),
            gone: watch::Sender::new(false),
            process: Mutex::new(process),
        });
        tokio::spawn(Arc::clone(&shared).hear());
        Ok(Client { shared })
    }

    /// Resolves when the launcher is gone. Nothing can run any more then.
    pub async fn gone(&self) {
        let mut gone = self.shared.gone.subscribe();
        // The sender lives as long as this client.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Leaves: the launcher ends every sandbox, removes what it made, and ends. Returns when it has.
    ///
    /// # Errors
    /// `System` when it did not end in time.
    pub async fn leave(&self) -> Result<(), RuntimeError> {
        // A launcher that is gone has hung up itself.
        let _ = rustix::net::shutdown(self.shared.socket.get_ref(), rustix::net::Shutdown::Both);
        let ended = async {
            while !matches!(lock(&self.shared.process).try_wait(), Ok(Some(_)) | Err(_)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let late =
            |_| RuntimeError::System { action: "see the launcher end", source: std::io::ErrorKind::TimedOut.into() };
        tokio::time::timeout(LEAVE_TIME, ended).await.map_err(late)
    }
}

impl Client {
    async fn look(&self, look: Look, descriptor: OwnedFd) -> Result<Looked, RuntimeError> {
        let (sender, answer) = oneshot::channel();
        let token = self.shared.token(Waiting::Look(sender))?;
        self.shared.ask(token, &Request::Look { token, look }, &[descriptor.as_fd()]).await?;
        // Ours is closed, so that the other end of a pipe sees when the worker is gone.
        drop(descriptor);
        answer.await.map_err(|_| RuntimeError::Gone)?.map_err(RuntimeError::Layer)
    }
}

fn senseless() -> RuntimeError {
    RuntimeError::Layer("the launcher answered something else".to_owned())
}

impl Shared {
    async fn hear(self: Arc<Self>) {
        let mut buffer = message_buffer();
        while let Ok(Some((reply, descriptors))) =
            self.socket.async_io(Interest::READABLE, |socket| receive::<Reply>(socket, &mut buffer)).await
        {
            self.deliver(reply, descriptors);
        }
        // Whoever waits sees that its sender is gone.
        lock(&self.waiting).clear();
        self.gone.send_replace(true);
    }

    fn deliver(self: &Arc<Self>, reply: Reply, descriptors: Vec<OwnedFd>) {
        // Whoever stopped waiting does not want to know.
        match reply {
            Reply::Exit { token, exit } => {
                if let Some(Waiting::Exit(sender)) = lock(&self.waiting).remove(&token) {
                    let _ = sender.send(exit);
                }
            }
            Reply::Unpacked { token, result } => {
                if let Some(Waiting::Unpack(sender)) = lock(&self.waiting).remove(&token) {
                    let _ = sender.send(result);
                }
            }
            Reply::Removed { token, result } => {
                if let Some(Waiting::Remove(sender)) = lock(&self.waiting).remove(&token) {
                    let _ = sender.send(result);
                }
            }
            Reply::Looked { token, result } => {
                if let Some(Waiting::Look(sender)) = lock(&self.waiting).remove(&token) {
                    let _ = sender.send(result);
                }
            }
            Reply::Lent(lent) => {
                let number = lent.number;
                match LentSandbox::receive(*lent, descriptors) {
                    Some(sandbox) => self.shelf.put(sandbox),
                    None => self.post(Request::Done { number, was_used: false }),
                }
            }
            Reply::Recall { number } => {
                // One that has a command by now is told of when that ends.
                if self.shelf.take(number).is_some() {
                    self.post(Request::Done { number, was_used: false });
                }
            }
            Reply::Census { live, warm, warm_hits, cold_starts } => {
                *lock(&self.census) = Census { live, warm, warm_hits, cold_starts };
            }
            // It was the first word, and is never said again.
            Reply::Started(_) => {}
        }
    }

    fn token(&self, waiting: Waiting) -> Result<u64, RuntimeError> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting).insert(token, waiting);
        // Looked at after the entry is in the table: `hear` clears the table before or after, never between.
        if *self.gone.borrow() {
            lock(&self.waiting).remove(&token);
            return Err(RuntimeError::Gone);
        }
        Ok(token)
    }

    /// Sends what nobody waits for. A launcher that is gone need not hear it.
    fn post(self: &Arc<Self>, request: Request) {
        let sent = send(self.socket.get_ref(), &request, &[]);
        if sent.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            let shared = Arc::clone(self);
            self.tasks.spawn(async move { shared.ask(NOBODY, &request, &[]).await });
        }
    }

    async fn ask(&self, token: u64, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), RuntimeError> {
        let sent = match send(self.socket.get_ref(), request, descriptors) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.socket.async_io(Interest::WRITABLE, |socket| send(socket, request, descriptors)).await
            }
            other => other,
        };
        sent.map_err(|source| {
            lock(&self.waiting).remove(&token);
            match source.kind() {
                std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => RuntimeError::Gone,
                _ => RuntimeError::System { action: "ask the launcher", source },
            }
        })
    }
}

/// What comes with a command besides its streams.
#[derive(Clone, Copy)]
struct Brings {
    files: bool,
    artifacts: bool,
}

/// How a command that was started ends, and how it is stopped.
type Started = (Pending<'static, Result<Exit, RuntimeError>>, Box<dyn Fn(StopReason) + Send + Sync>);

impl Shared {
    /// Starts a command in a lent sandbox, or through the launcher when there is none that it can run in.
    async fn start(
        self: &Arc<Self>,
        spec: SandboxSpec,
        brings: Brings,
        (token, exit): (u64, oneshot::Receiver<Exit>),
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Started, RuntimeError> {
        let lent = loop {
            match self.shelf.pick(&spec) {
                Pick::Ready(sandbox) => {
                    if sandbox.start(&spec, brings.files, brings.artifacts, descriptors).is_ok() {
                        self.direct_all.fetch_add(1, Ordering::Relaxed);
                        let run = Run::new(self, sandbox, token, &spec.limits, exit);
                        let ties = run.ties();
                        return Ok((Box::pin(run.end()), Box::new(move |reason| ties.stop(reason))));
                    }
                    // It died while it waited; the next one may not have.
                    self.post(Request::Done { number: sandbox.number(), was_used: false });
                }
                Pick::Unlike(sandbox) => break Some(sandbox.number()),
                Pick::Nothing => break None,
            }
        };
        let (has_files, has_artifacts) = (brings.files, brings.artifacts);
        let request = Request::Launch { token, spec: Box::new(spec), has_files, has_artifacts, lent };
        self.ask(token, &request, descriptors).await?;
        let shared = Arc::clone(self);
        let stop = Box::new(move |reason: StopReason| shared.post(Request::Stop { token, reason }));
        Ok((Box::pin(async { exit.await.map_err(|_| RuntimeError::Gone) }), stop))
    }
}

/// The two ends of a pipe: one for the command, one for the service.
fn command_writes() -> Result<(OwnedFd, pipe::Receiver), RuntimeError> {
    let system = |source| RuntimeError::System { action: "make a pipe", source };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| system(error.into()))?;
    Ok((writer, pipe::Receiver::from_owned_fd(reader).map_err(system)?))
}

fn command_reads() -> Result<(OwnedFd, pipe::Sender), RuntimeError> {
    let system = |source| RuntimeError::System { action: "make a pipe", source };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| system(error.into()))?;
    Ok((reader, pipe::Sender::from_owned_fd(writer).map_err(system)?))
}

fn standard_input(stdin: Stdin) -> Result<(OwnedFd, Option<pipe::Sender>), RuntimeError> {
    match stdin {
        Stdin::Empty => {
            let null = File::open("/dev/null");
            let null = null.map_err(|source| RuntimeError::System { action: "open /dev/null", source })?;
            Ok((OwnedFd::from(null), None))
        }
        Stdin::File(file) => Ok((OwnedFd::from(file), None)),
        Stdin::Pipe => command_reads().map(|(reader, sender)| (reader, Some(sender))),
    }
}

/// The layer that a worker made.
async fn layer_of(answer: oneshot::Receiver<Result<UnpackedLayer, String>>) -> Result<Unpacked, RuntimeError> {
    let made = answer.await.map_err(|_| RuntimeError::Gone)?.map_err(RuntimeError::Layer)?;
    let UnpackedLayer { layer, tar_bytes, entries, skipped } = made;
    Ok(Unpacked { layer, tar_bytes, entries, skipped })
}

impl Runtime for Client {
    fn launch(&self, spec: SandboxSpec, input: Input) -> Pending<'_, Result<Running, RuntimeError>> {
        Box::pin(async move {
            spec.check()?;
            let (stdin_reader, stdin) = standard_input(input.stdin)?;
            let (stdout_writer, stdout) = command_writes()?;
            let (stderr_writer, stderr) = command_writes()?;
            let collection = if spec.command.artifacts.globs.is_empty() { None } else { Some(command_writes()?) };
            let (token, exit) = expect_exit(&self.shared)?;
            let brings = Brings { files: input.files.is_some(), artifacts: collection.is_some() };
            let mut descriptors = vec![stdin_reader.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()];
            descriptors.extend(input.files.as_ref().map(AsFd::as_fd));
            descriptors.extend(collection.as_ref().map(|(writer, _)| writer.as_fd()));
            let (exit, stop) = self.shared.start(spec, brings, (token, exit), &descriptors).await?;
            let artifacts = collection.map(|(_, reader)| reader);
            Ok(Running { stdout, stderr, stdin, artifacts, exit, stop })
        })
    }

    fn run_step(
        &self,
        spec: SandboxSpec,
        input: Input,
        mounts: Mounts,
        terms: StepTerms,
    ) -> Pending<'_, Result<RunningStep, RuntimeError>> {
        Box::pin(async move {
            spec.check()?;
            StepMount::check_all(&mounts.mounts)?;
            let (stdin_reader, stdin) = standard_input(input.stdin)?;
            let (stdout_writer, stdout) = command_writes()?;
            let (stderr_writer, stderr) = command_writes()?;
            let (tar_writer, tar) = command_writes()?;
            let (token, exit) = expect_exit(&self.shared)?;
            let (sender, sealed) = oneshot::channel();
            let layer = self.shared.token(Waiting::Unpack(sender))?;
            let mut descriptors = vec![stdin_reader.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()];
            descriptors.extend(input.files.as_ref().map(AsFd::as_fd));
            descriptors.extend(mounts.secrets.as_ref().map(AsFd::as_fd));
            descriptors.push(tar_writer.as_fd());
            let (has_files, has_secrets) = (input.files.is_some(), mounts.secrets.is_some());
            let (spec, mounted) = (Box::new(spec), mounts.mounts);
            let request = Request::Step { token, layer, spec, has_files, terms, mounts: mounted, has_secrets };
            self.shared.ask(token, &request, &descriptors).await?;
            let shared = Arc::clone(&self.shared);
            let stop = Box::new(move |reason: StopReason| shared.post(Request::Stop { token, reason }));
            let exit: Pending<'static, _> = Box::pin(async { exit.await.map_err(|_| RuntimeError::Gone) });
            let running = Running { stdout, stderr, stdin, artifacts: None, exit, stop };
            Ok(RunningStep { running, tar, layer: Box::pin(layer_of(sealed)) })
        })
    }

    fn place_files(
        &self,
        base: Vec<LayerId>,
        order: PlaceOrder,
        files: OwnedFd,
        output: OwnedFd,
    ) -> Pending<'_, Result<Unpacked, RuntimeError>> {
        Box::pin(async move {
            let (sender, answer) = oneshot::channel();
            let token = self.shared.token(Waiting::Unpack(sender))?;
            let request = Request::Place { token, base, order: Box::new(order) };
            self.shared.ask(token, &request, &[files.as_fd(), output.as_fd()]).await?;
            // The other ends of these pipes have to see when the worker is gone.
            drop((files, output));
            layer_of(answer).await
        })
    }

    fn select_files(
        &self,
        layers: Vec<LayerId>,
        wanted: Wanted,
        output: OwnedFd,
    ) -> Pending<'_, Result<(), RuntimeError>> {
        Box::pin(async move { self.look(Look::Select { layers, wanted }, output).await.map(drop) })
    }

    fn unpack_layer(&self, archive: File) -> Pending<'_, Result<Unpacked, RuntimeError>> {
        Box::pin(async move {
            let (sender, answer) = oneshot::channel();
            let token = self.shared.token(Waiting::Unpack(sender))?;
            self.shared.ask(token, &Request::Unpack { token }, &[archive.as_fd()]).await?;
            // It may be a pipe: whoever writes to it has to see when the worker, its only reader then, is gone.
            drop(archive);
            layer_of(answer).await
        })
    }

    fn export_tree(&self, layers: Vec<LayerId>, output: OwnedFd) -> Pending<'_, Result<Exported, RuntimeError>> {
        Box::pin(async move {
            match self.look(Look::Export { layers }, output).await? {
                Looked::Written { entries, bytes } => Ok(Exported { entries, bytes }),
                Looked::Checked { .. } => Err(senseless()),
            }
        })
    }

    fn compare_trees(
        &self,
        before: Vec<LayerId>,
        after: Vec<LayerId>,
        output: OwnedFd,
    ) -> Pending<'_, Result<(), RuntimeError>> {
        Box::pin(async move { self.look(Look::Compare { before, after }, output).await.map(drop) })
    }

    fn check_layer(&self, layer: LayerId, archive: File, mends: bool) -> Pending<'_, Result<Checked, RuntimeError>> {
        Box::pin(async move {
            match self.look(Look::Check { layer, mends }, archive.into()).await? {
                Looked::Checked { differences, samples, is_mended, .. } => {
                    Ok(Checked { differences, samples, is_mended })
                }
                Looked::Written { .. } => Err(senseless()),
            }
        })
    }

    fn remove_layer(&self, layer: LayerId) -> Pending<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.shared.shelf.let_go_of(&layer);
            let (sender, answer) = oneshot::channel();
            let token = self.shared.token(Waiting::Remove(sender))?;
            self.shared.ask(token, &Request::Remove { token, layer }, &[]).await?;
            answer.await.map_err(|_| RuntimeError::Gone)?.map_err(RuntimeError::Layer)
        })
    }

    fn measure_cache(&self, folder: CacheFolder) -> Pending<'_, Result<u64, RuntimeError>> {
        Box::pin(async move {
            let (sender, answer) = oneshot::channel();
            let token = self.shared.token(Waiting::Look(sender))?;
            self.shared.ask(token, &Request::MeasureCache { token, folder }, &[]).await?;
            match answer.await.map_err(|_| RuntimeError::Gone)?.map_err(RuntimeError::Layer)? {
                Looked::Written { bytes, .. } => Ok(bytes),
                Looked::Checked { .. } => Err(senseless()),
            }
        })
    }

    fn remove_cache(&self, folder: CacheFolder) -> Pending<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let (sender, answer) = oneshot::channel();
            let token = self.shared.token(Waiting::Remove(sender))?;
            self.shared.ask(token, &Request::RemoveCache { token, folder }, &[]).await?;
            answer.await.map_err(|_| RuntimeError::Gone)?.map_err(RuntimeError::Layer)
        })
    }

    fn census(&self) -> Census {
        let told = *lock(&self.shared.census);
        let direct = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Census {
            live: told.live + direct(&self.shared.direct),
            warm: told.warm + self.shared.shelf.len() as u64,
            warm_hits: told.warm_hits + direct(&self.shared.direct_all),
            ..told
        }
    }
}
