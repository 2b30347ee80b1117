//! Sandboxes that the launcher lent: the service gives them their command itself, and hears from pid 1 how it ended.
//!
//! What it does not hear, the launcher tells: whoever loses sight of a command asks the launcher to follow it.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::{Shared, Waiting, lock};
use crate::isolation::cgroup::Meter;
use crate::runtime::RuntimeError;
use crate::sandbox::handshake::{InitReply, InitRequest, Lent, Request, Start, receive_now, send};
use crate::sandbox::verdict::{self, Evidence};
use crate::spec::{Exit, LayerId, Limits, Phases, SandboxSpec, StopReason};
use crate::sys;

/// After this time the launcher is told of a command: most end before, and need nobody to follow them.
const FOLLOW_AFTER: Duration = Duration::from_millis(5);

/// A sandbox that waits for a command, on this side.
pub(super) struct LentSandbox {
    lent: Lent,
    control: AsyncFd<OwnedFd>,
    meter: Meter,
}

impl LentSandbox {
    /// Takes in what the launcher lent; `None` when something of it is missing.
    pub(super) fn receive(lent: Lent, descriptors: Vec<OwnedFd>) -> Option<LentSandbox> {
        let mut descriptors = descriptors.into_iter();
        let control = sys::wait_on(descriptors.next()?, Interest::READABLE).ok()?;
        let meter = Meter::from_parts(lent.meter, descriptors.collect())?;
        Some(LentSandbox { lent, control, meter })
    }

    /// The number by which the launcher knows it.
    pub(super) fn number(&self) -> u64 {
        self.lent.number
    }

    /// Whether a command with these limits can run in it as it stands.
    fn has_limits(&self, limits: &Limits) -> bool {
        let own = &self.lent.limits;
        (own.memory_bytes, own.pids, own.cpu_milli) == (limits.memory_bytes, limits.pids, limits.cpu_milli)
    }

    /// Gives it its command. It cannot be used for anything else after that, whether this succeeds or not.
    ///
    /// # Errors
    /// Pid 1 cannot be reached; the command has not been started.
    pub(super) fn start(
        &self,
        spec: &SandboxSpec,
        has_files: bool,
        has_artifacts: bool,
        descriptors: &[BorrowedFd<'_>],
    ) -> std::io::Result<()> {
        let start = Start::new(spec.command.clone(), &spec.limits, has_files, has_artifacts);
        send(self.control.get_ref(), &InitRequest::Start(Box::new(start)), descriptors)
    }
}

/// The lent sandboxes that have no command yet.
#[derive(Default)]
pub(super) struct Shelf(Mutex<VecDeque<LentSandbox>>);

/// What there is for a command.
pub(super) enum Pick {
    /// One that can run it.
    Ready(LentSandbox),
    /// One of its frame, whose limits only the launcher can change.
    Unlike(LentSandbox),
    Nothing,
}

impl Shelf {
    pub(super) fn put(&self, sandbox: LentSandbox) {
        lock(&self.0).push_back(sandbox);
    }

    /// Takes the oldest one that fits best.
    pub(super) fn pick(&self, spec: &SandboxSpec) -> Pick {
        let mut all = lock(&self.0);
        let of_frame = |sandbox: &LentSandbox| sandbox.lent.frame == spec.frame;
        let ready = all.iter().position(|sandbox| of_frame(sandbox) && sandbox.has_limits(&spec.limits));
        if let Some(sandbox) = ready.and_then(|place| all.remove(place)) {
            return Pick::Ready(sandbox);
        }
        let unlike = all.iter().position(of_frame);
        unlike.and_then(|place| all.remove(place)).map_or(Pick::Nothing, Pick::Unlike)
    }

    /// Takes this one, if it is still there.
    pub(super) fn take(&self, number: u64) -> Option<LentSandbox> {
        let mut all = lock(&self.0);
        let place = all.iter().position(|sandbox| sandbox.lent.number == number)?;
        all.remove(place)
    }

    /// Drops all that stand on a layer which the launcher is about to remove.
    pub(super) fn let_go_of(&self, layer: &LayerId) {
        lock(&self.0).retain(|sandbox| !sandbox.lent.frame.layers.contains(layer));
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

/// What a run and whoever may stop it know in common.
pub(super) struct Ties {
    shared: Arc<Shared>,
    number: u64,
    token: u64,
    cpu_time_ms: u64,
    cpu_milli: u32,
    is_followed: AtomicBool,
    stop: Mutex<Option<StopReason>>,
}

impl Ties {
    /// Asks the launcher, once, to follow the command.
    fn follow(&self) {
        if !self.is_followed.swap(true, Ordering::Relaxed) {
            let Ties { number, token, cpu_time_ms, cpu_milli, .. } = *self;
            self.shared.post(Request::Follow { number, token, cpu_time_ms, cpu_milli });
        }
    }

    /// Asks for the end of the command, through the launcher, which kills what does not follow.
    pub(super) fn stop(&self, reason: StopReason) {
        lock(&self.stop).get_or_insert(reason);
        self.follow();
        self.shared.post(Request::Stop { token: self.token, reason });
    }
}

/// A command in a lent sandbox.
pub(super) struct Run {
    ties: Arc<Ties>,
    sandbox: LentSandbox,
    exit: oneshot::Receiver<Exit>,
    began: Instant,
    is_over: bool,
}

impl Run {
    /// A command that was just started; `exit` receives what the launcher says of it.
    pub(super) fn new(
        shared: &Arc<Shared>,
        sandbox: LentSandbox,
        token: u64,
        limits: &Limits,
        exit: oneshot::Receiver<Exit>,
    ) -> Run {
        shared.direct.fetch_add(1, Ordering::Relaxed);
        let ties = Ties {
            shared: Arc::clone(shared),
            number: sandbox.number(),
            token,
            cpu_time_ms: limits.cpu_time_ms,
            cpu_milli: limits.cpu_milli,
            is_followed: AtomicBool::new(false),
            stop: Mutex::default(),
        };
        Run { ties: Arc::new(ties), sandbox, exit, began: Instant::now(), is_over: false }
    }

    /// For whoever wants to stop it.
    pub(super) fn ties(&self) -> Arc<Ties> {
        Arc::clone(&self.ties)
    }

    /// Waits for the end.
    pub(super) async fn end(mut self) -> Result<Exit, RuntimeError> {
        let heard = match tokio::time::timeout(FOLLOW_AFTER, self.hear()).await {
            Ok(heard) => heard,
            Err(_) => {
                self.ties.follow();
                self.hear().await
            }
        };
        let Some(word) = heard else {
            // Pid 1 died without a word: the launcher has seen why.
            self.ties.follow();
            let exit = (&mut self.exit).await.map_err(|_| RuntimeError::Gone)?;
            self.is_over = true;
            self.ties.shared.post(Request::Done { number: self.ties.number, was_used: true });
            return Ok(exit);
        };
        Ok(self.conclude(word))
    }

    /// Pid 1's last word, or `None` when it has none.
    async fn hear(&self) -> Option<InitReply> {
        let buffer = &self.ties.shared.buffer;
        let receive = |control: &OwnedFd| receive_now::<InitReply>(control, &mut lock(buffer));
        let heard = self.sandbox.control.async_io(Interest::READABLE, receive).await;
        heard.ok().flatten().map(|(word, _)| word)
    }

    fn conclude(&mut self, word: InitReply) -> Exit {
        let mut phases = Phases { warm: true, ..Phases::default() };
        let word = match word {
            InitReply::Finished(finished) => {
                phases.exec_us = finished.exec_us;
                Ok(finished)
            }
            InitReply::Failed { reason, retryable } => Err((reason, retryable)),
            InitReply::Ready { .. } => Err(("the sandbox spoke out of turn".to_owned(), true)),
        };
        let evidence = Evidence { word: Some(word), stop: *lock(&self.ties.stop), ..Evidence::default() };
        let exit = verdict::conclude(evidence, self.sandbox.meter.usage(), phases, self.began.elapsed());
        self.is_over = true;
        let Ties { shared, number, token, .. } = &*self.ties;
        lock(&shared.waiting).remove(token);
        let (shared, number) = (Arc::clone(shared), *number);
        // Behind whoever waits for the end: the launcher has time.
        let tasks = shared.tasks.clone();
        tasks.spawn(async move { shared.post(Request::Done { number, was_used: true }) });
        exit
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.ties.shared.direct.fetch_sub(1, Ordering::Relaxed);
        if !self.is_over {
            // Nobody listens any more; the launcher sees to its end.
            self.ties.follow();
            self.ties.shared.post(Request::Forget { number: self.ties.number });
            lock(&self.ties.shared.waiting).remove(&self.ties.token);
        }
    }
}

/// Registers somebody who waits for an exit.
pub(super) fn expect_exit(shared: &Shared) -> Result<(u64, oneshot::Receiver<Exit>), RuntimeError> {
    let (sender, exit) = oneshot::channel();
    Ok((shared.token(Waiting::Exit(sender))?, exit))
}
