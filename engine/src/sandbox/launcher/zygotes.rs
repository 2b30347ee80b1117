//! The zygotes of a launcher: one for each image in demand.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::sandbox::handshake::{ZygoteReply, pair};
use crate::sandbox::launcher::events::Source;
use crate::sandbox::launcher::lifecycle::{Launcher, StartFailure};
use crate::sandbox::launcher::live::end_process;
use crate::sandbox::zygote;
use crate::spec::LayerId;
use crate::sys::{self, Fork, SysError, failed};

/// Most images with a zygote; the one that was not used for longest makes room.
const ZYGOTES_MAX: usize = 16;

/// A zygote that lives.
pub(super) struct Zygote {
    pub(super) layers: Vec<LayerId>,
    pub(super) control: OwnedFd,
    pub(super) pidfd: OwnedFd,
    pub(super) used: Instant,
}

impl Launcher {
    /// The zygote of these layers, made if there is none.
    pub(super) fn zygote_for(&mut self, layers: &[LayerId]) -> Result<u64, StartFailure> {
        if let Some((number, zygote)) = self.zygotes.iter_mut().find(|(_, zygote)| zygote.layers == layers) {
            zygote.used = Instant::now();
            return Ok(*number);
        }
        if self.zygotes.len() >= ZYGOTES_MAX {
            let oldest = self.zygotes.iter().min_by_key(|(_, zygote)| zygote.used).map(|(number, _)| *number);
            if let Some(number) = oldest {
                self.dismiss_zygote(number)?;
            }
        }
        self.fork_zygote(layers.to_vec())
    }

    fn fork_zygote(&mut self, layers: Vec<LayerId>) -> Result<u64, StartFailure> {
        let (control, theirs) = pair().map_err(failed("open", "a zygote's socket"))?;
        let folder = self.layers.try_clone().map_err(failed("pass on", "the folder of layers"))?;
        match sys::fork_into(0, libc::SIGCHLD as u64, None).map_err(failed("fork", "a zygote"))? {
            Fork::Child => zygote::live(theirs, folder, &layers, &self.job_filter),
            Fork::Parent { pidfd, .. } => {
                let number = self.number();
                self.poller.add(&control, Source::Zygote(number))?;
                self.zygotes.insert(number, Zygote { layers, control, pidfd, used: Instant::now() });
                Ok(number)
            }
        }
    }

    /// Lets a zygote go; sandboxes that it made live on, those it has not made yet fail.
    pub(super) fn dismiss_zygote(&mut self, number: u64) -> Result<(), SysError> {
        let Some(zygote) = self.zygotes.remove(&number) else { return Ok(()) };
        end_process(zygote.pidfd.as_fd())?;
        for number in self.unborn_of(number) {
            self.refuse(number, "the zygote of the image is gone".to_owned())?;
        }
        Ok(())
    }

    /// What a zygote says; `descriptor` is that of the process it made.
    pub(super) fn hear_zygote(
        &mut self,
        zygote: u64,
        reply: ZygoteReply,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), SysError> {
        match (reply, descriptor) {
            (ZygoteReply::Ready, _) => Ok(()),
            (ZygoteReply::NotReady { reason }, _) => {
                for number in self.unborn_of(zygote) {
                    self.refuse(number, reason.clone())?;
                }
                Ok(())
            }
            (ZygoteReply::Cloned { number, pid, clone_us }, Some(process)) => self.born(number, pid, process, clone_us),
            (ZygoteReply::Cloned { number, .. }, None) => {
                self.refuse(number, "a sandbox came without its descriptor".to_owned())
            }
            (ZygoteReply::Failed { number, reason }, _) => self.refuse(number, reason),
        }
    }

    fn unborn_of(&self, zygote: u64) -> Vec<u64> {
        let of_it = self.sandboxes.iter().filter(|(_, sandbox)| sandbox.zygote == zygote && sandbox.pid == 0);
        of_it.map(|(number, _)| *number).collect()
    }

    pub(super) fn control_of_zygote(&self, number: u64) -> Option<BorrowedFd<'_>> {
        self.zygotes.get(&number).map(|zygote| zygote.control.as_fd())
    }
}
