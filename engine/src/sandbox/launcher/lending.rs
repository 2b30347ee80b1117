//! Sandboxes that the service holds: lent when they are ready, so that a command reaches pid 1 without a detour.
//!
//! ```text
//! Lent ─▶ Done                        its command ended, or it is not wanted: ended, then taken down
//!   ├───▶ Follow ─▶ Done              its command takes longer: the launcher holds its processor time meanwhile
//!   │        ├────▶ died ─▶ Done     without a last word that the service heard: the launcher tells the exit
//!   │        └────▶ Forget           nobody waits for the command any more: the launcher sees to its end
//!   ├───▶ Launch { lent }             given back to be used here, with other limits
//!   └◀──▶ Recall                      wanted back; the answer is Done, unless it has a command
//! ```
//!
//! The service gains nothing by it: pid 1 gave everything up before, runs one command, and could be asked for the
//! same one through the launcher.

use std::os::fd::AsFd;
use std::time::Instant;

use crate::sandbox::handshake::{Lent, Reply, send};
use crate::sandbox::launcher::events::Source;
use crate::sandbox::launcher::lifecycle::Launcher;
use crate::sandbox::launcher::live::{Holder, Run, Sandbox, kill_process};
use crate::spec::{Ending, Frame, Phases};
use crate::sys::{SysError, failed};

impl Launcher {
    /// Lends a sandbox that is ready. One that cannot be lent stays here, and serves all the same.
    pub(super) fn lend(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Ok(()) };
        // What is wrong with the counters is told to whoever gets the sandbox.
        let begun = sandbox.place.group.begin();
        let (Ok(()), Some((meter, counters))) = (begun, sandbox.place.group.meter()) else { return Ok(()) };
        let lent = Lent { number, frame: sandbox.frame.clone(), limits: sandbox.limits.clone(), meter };
        let mut descriptors = vec![sandbox.control.as_fd()];
        descriptors.extend(counters);
        self.poller.remove(&sandbox.control);
        let sent = send(&self.service, &Reply::Lent(Box::new(lent)), &descriptors);
        sandbox.holder = Holder::Service;
        match sent {
            // The service is gone, which the loop hears next.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(failed("lend", "a sandbox")),
        }
    }

    /// Takes a lent sandbox back to be used here; `None` when that one is not to be had, or is of another frame.
    pub(super) fn take_back(&mut self, number: u64, frame: &Frame) -> Option<u64> {
        let sandbox = self.sandboxes.get_mut(&number).filter(|sandbox| sandbox.holder != Holder::Launcher)?;
        let is_usable = sandbox.is_unused()
            && sandbox.frame == *frame
            && self.poller.add(&sandbox.control, Source::Sandbox(number)).is_ok();
        if is_usable {
            sandbox.holder = Holder::Launcher;
            return Some(number);
        }
        // What cannot be killed here is dead.
        let _ = self.done(number, false);
        None
    }

    /// A lent sandbox runs a command: its processor time is held here, and its death is told as its exit.
    pub(super) fn follow(&mut self, number: u64, token: u64, cpu_time_ms: u64, cpu_milli: u32) -> Result<(), SysError> {
        self.last_dispatch = Instant::now();
        let lent = |sandbox: &&mut Sandbox| sandbox.holder != Holder::Launcher && sandbox.run.is_none();
        let Some(sandbox) = self.sandboxes.get_mut(&number).filter(lent) else {
            let reason = "the sandbox died before its command".to_owned();
            return self.tell_unstarted(token, Ending::Failed { reason, retryable: true });
        };
        sandbox.run = Some(Run::new(token, cpu_time_ms, cpu_milli));
        sandbox.phases = Phases { warm: true, ..Phases::default() };
        let is_dead = sandbox.process.is_none();
        self.numbers.insert(token, number);
        if is_dead { self.tell_end(number) } else { Ok(()) }
    }

    /// The service needs a lent sandbox no more.
    pub(super) fn done(&mut self, number: u64, was_used: bool) -> Result<(), SysError> {
        let lent = |sandbox: &&mut Sandbox| sandbox.holder != Holder::Launcher;
        let Some(sandbox) = self.sandboxes.get_mut(&number).filter(lent) else { return Ok(()) };
        if was_used {
            self.last_dispatch = Instant::now();
            self.demand.note(&sandbox.frame, &sandbox.limits);
        }
        if let Some(run) = sandbox.run.take() {
            self.numbers.remove(&run.token);
        }
        sandbox.holder = Holder::Launcher;
        sandbox.is_spent = true;
        match &sandbox.process {
            // Pid 1 ends by itself when it has run a command; whoever lent it out does not rely on that.
            Some(process) => kill_process(process.as_fd()),
            None => self.bury(number),
        }
    }

    /// The service looks at a lent sandbox no more, whose command goes on: what comes is the launcher's alone.
    pub(super) fn forget(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Ok(()) };
        sandbox.holder = Holder::Launcher;
        if sandbox.process.is_none() && sandbox.is_spent { self.bury(number) } else { Ok(()) }
    }

    /// Asks for one lent sandbox, whichever, unless one was asked for already: its place is needed.
    pub(super) fn recall_any(&mut self) -> Result<(), SysError> {
        if self.sandboxes.values().any(|sandbox| sandbox.holder == Holder::Recalled && !sandbox.is_spent) {
            return Ok(());
        }
        let lent = self.sandboxes.iter().find(|(_, sandbox)| is_lent(sandbox)).map(|(number, _)| *number);
        lent.map_or(Ok(()), |number| self.recall(number))
    }

    /// Asks for a lent sandbox, once.
    pub(super) fn recall(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get_mut(&number).filter(|sandbox| is_lent(sandbox)) else { return Ok(()) };
        sandbox.holder = Holder::Recalled;
        self.reply(&Reply::Recall { number })
    }
}

/// Whether it is with the service, and as far as is known here without a command.
pub(super) fn is_lent(sandbox: &Sandbox) -> bool {
    sandbox.is_unused() && sandbox.holder == Holder::Service
}
