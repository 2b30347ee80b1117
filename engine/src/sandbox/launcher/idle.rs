//! What a launcher does while nobody waits: it takes dead sandboxes down and makes new ones ahead.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::sandbox::launcher::lending::is_lent;
use crate::sandbox::launcher::lifecycle::Launcher;
use crate::sandbox::launcher::live::{Holder, Sandbox, end_process};
use crate::sandbox::place::Place;
use crate::spec::{Frame, LayerId};
use crate::sys::{SysError, in_one_line};

/// Most sandboxes that are gone but not taken down.
const TEARDOWNS_MAX: usize = 64;
/// How long no command must have started or ended before work is done that can wait.
pub(super) const QUIET: Duration = Duration::from_millis(2);

/// What is left of a sandbox when its end has been told.
pub(super) struct Teardown {
    place: Place,
    address: Option<Ipv4Addr>,
    held: Vec<OwnedFd>,
}

impl Launcher {
    /// Puts what is left of a dead sandbox aside for when there is nothing else to do.
    pub(super) fn bury(&mut self, number: u64) -> Result<(), SysError> {
        let Some(Sandbox { place, address, held, draft, .. }) = self.sandboxes.remove(&number) else { return Ok(()) };
        self.teardowns.push_back(Teardown { place, address, held });
        if self.teardowns.len() > TEARDOWNS_MAX {
            self.tear_one_down();
        }
        draft.map_or(Ok(()), |draft| self.conclude_draft(draft))
    }

    /// Takes one dead sandbox down; says whether there was one.
    pub(super) fn tear_one_down(&mut self) -> bool {
        let Some(Teardown { place, address, held }) = self.teardowns.pop_front() else { return false };
        drop(held);
        self.places.give_back(place);
        if let Some(address) = address {
            self.egress.give_back(address);
        }
        true
    }

    /// Makes places that have rested free again; when the next one will have.
    pub(super) fn renew_places(&mut self) -> Option<Instant> {
        if let Err(error) = self.places.renew_one(Instant::now()) {
            let source = std::io::Error::other(in_one_line(&error));
            super::report(&SysError { call: "reset", subject: "a sandbox's place".to_owned(), source });
        }
        self.places.next_rested()
    }

    /// Starts one sandbox that is missing by the plan, or ends one that is too many; says whether it did.
    pub(super) fn adjust_pool(&mut self) -> bool {
        let missing = self.demand.plan().find_map(|(hot, share)| {
            (self.idle_of(&hot.frame) < share).then(|| (hot.frame.clone(), hot.limits.clone()))
        });
        if let Some((frame, limits)) = missing {
            if self.make(&frame, &limits, true).is_err() {
                self.demand.forget(&frame);
            }
            return true;
        }
        let extra = self.sandboxes.iter().find(|(_, sandbox)| {
            let share = self.demand.plan().find(|(hot, _)| hot.frame == sandbox.frame).map_or(0, |(_, share)| share);
            (sandbox.is_idle() || is_lent(sandbox)) && self.idle_of(&sandbox.frame) > share
        });
        let Some((number, is_lent)) = extra.map(|(number, sandbox)| (*number, is_lent(sandbox))) else { return false };
        if is_lent { self.recall(number).is_ok() } else { self.discard(number).is_ok() }
    }

    fn idle_of(&self, frame: &Frame) -> usize {
        let is_wanted = |sandbox: &&Sandbox| sandbox.is_unused() && sandbox.holder != Holder::Recalled;
        self.sandboxes.values().filter(is_wanted).filter(|sandbox| sandbox.frame == *frame).count()
    }

    /// Ends a sandbox that has no command, at once.
    pub(super) fn discard(&mut self, number: u64) -> Result<(), SysError> {
        let Some(sandbox) = self.sandboxes.get(&number) else { return Ok(()) };
        if let Some(process) = &sandbox.process {
            end_process(process.as_fd())?;
        }
        self.bury(number)
    }

    /// Whether work that can wait may be done: no command was started or ended for a while, or most sandboxes that
    /// were made ahead are used up.
    pub(super) fn is_quiet(&self) -> bool {
        self.last_dispatch.elapsed() >= QUIET || self.is_short()
    }

    fn is_short(&self) -> bool {
        let planned: usize = self.demand.plan().map(|(_, share)| share).sum();
        self.sandboxes.values().filter(|sandbox| sandbox.is_unused()).count() < planned.div_ceil(2)
    }

    /// Sandboxes with a command, and without one, that are not lent.
    pub(super) fn count(&self) -> (u64, u64) {
        let own = || self.sandboxes.values().filter(|sandbox| sandbox.holder == Holder::Launcher);
        let live = own().filter(|sandbox| sandbox.run.is_some()).count();
        (live as u64, own().filter(|sandbox| sandbox.is_unused()).count() as u64)
    }

    /// Whether a command runs on this layer, as far as it is known here.
    pub(super) fn is_in_use(&self, layer: &LayerId) -> bool {
        self.sandboxes.values().any(|sandbox| sandbox.run.is_some() && sandbox.frame.layers.contains(layer))
    }

    /// Ends everything idle that stands on this layer; what is lent of it too, which the service has let go of.
    pub(super) fn let_go_of(&mut self, layer: &LayerId) -> Result<(), SysError> {
        self.demand.forget_where(|frame| frame.layers.contains(layer));
        let on_it = |sandbox: &Sandbox| sandbox.is_unused() && sandbox.frame.layers.contains(layer);
        let idle: Vec<u64> =
            self.sandboxes.iter().filter(|(_, sandbox)| on_it(sandbox)).map(|(number, _)| *number).collect();
        for number in idle {
            // For one that was just being lent.
            self.recall(number)?;
            self.discard(number)?;
        }
        let zygotes: Vec<u64> = self
            .zygotes
            .iter()
            .filter(|(_, zygote)| zygote.layers.contains(layer))
            .map(|(number, _)| *number)
            .collect();
        for number in zygotes {
            self.dismiss_zygote(number)?;
        }
        Ok(())
    }
}
