//! Steps of builds: commands whose root can be written to, and files that are put on top of layers. What changes is
//! kept in a draft, beside the layers and out of sight, until a worker has made a layer of it. A draft that nobody can
//! finish is thrown away, here or at the next start.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::fs::{Mode, OFlags, mkdirat, openat};

use crate::image::tree::{PlaceOrder, StepTerms};
use crate::isolation::{binds, mounts};
use crate::sandbox::handshake::{Reply, pair};
use crate::sandbox::init::{self, Birth, StepBirth, Terms};
use crate::sandbox::launcher::events::Source;
use crate::sandbox::launcher::layers::{given, open_own};
use crate::sandbox::launcher::lifecycle::{Launcher, StartFailure};
use crate::sandbox::launcher::live::{Launch, Sandbox};
use crate::sandbox::launcher::work::{Order, Task};
use crate::sandbox::worker::{Done, Job, Outcome};
use crate::sandbox::zygote::BIRTH_FLAGS;
use crate::spec::{Ending, LayerId, SandboxSpec, StepMount};
use crate::sys::{self, Fork, SysError, failed, in_one_line};

/// A step that is to be run.
pub(super) struct StepLaunch {
    pub(super) token: u64,
    pub(super) layer: u64,
    pub(super) spec: SandboxSpec,
    pub(super) has_files: bool,
    pub(super) terms: StepTerms,
    pub(super) mounts: Vec<StepMount>,
    pub(super) has_secrets: bool,
    /// Standard streams, files where announced, secrets where announced, and where the tar of the layer goes.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// What a step changes.
pub(super) struct Draft {
    /// Its folder among the layers.
    folder: String,
    /// Who waits for the layer.
    token: u64,
    terms: StepTerms,
    output: OwnedFd,
    /// Whether the command ended so that a layer is wanted.
    pub(super) is_good: bool,
}

impl Launcher {
    /// Runs a command of a build.
    pub(super) fn step(&mut self, mut step: StepLaunch) -> Result<(), SysError> {
        self.last_dispatch = Instant::now();
        let (token, layer) = (step.token, step.layer);
        let started = match step.descriptors.pop() {
            Some(output) => self.start_step(step, output),
            None => Err(StartFailure::Lost),
        };
        let Err(failure) = started else { return Ok(()) };
        self.numbers.remove(&token);
        let reason = in_one_line(&failure);
        self.tell_unstarted(token, Ending::Failed { reason: reason.clone(), retryable: failure.is_retryable() })?;
        self.reply(&Reply::Unpacked { token: layer, result: Err(reason) })
    }

    fn start_step(&mut self, step: StepLaunch, output: OwnedFd) -> Result<(), StartFailure> {
        let StepLaunch { token, layer, spec, has_files, terms, mounts, has_secrets, mut descriptors } = step;
        let secrets = if has_secrets { descriptors.pop() } else { None };
        let mounts = self.mounts_of_step(mounts, secrets)?;
        let mut place = self.take_place(false)?;
        place.group.limit(&spec.limits)?;
        place.group.begin()?;
        let uplink = self.uplink_for(&spec.frame)?;
        let address = uplink.as_ref().map(|uplink| uplink.address);
        let (folder, opened) = self.make_draft(mounts.drafts())?;
        let layers = self.layers.try_clone().map_err(failed("pass on", "the folder of layers"))?;
        let (control, theirs) = pair().map_err(failed("open", "a sandbox's socket"))?;
        // It makes its mount namespace itself: mounts can be cloned only in the namespace that they are in.
        let flags = (BIRTH_FLAGS & !libc::CLONE_NEWNS) as u64;
        let fork = sys::fork_into(flags, libc::SIGCHLD as u64, place.group.birth_descriptor());
        let (pid, process) = match fork.map_err(failed("fork", "a step"))? {
            Fork::Parent { pid, pidfd } => (pid, pidfd),
            Fork::Child => {
                let copy = |descriptor: &OwnedFd| descriptor.try_clone();
                let groups = place.group.join_descriptors().iter().map(copy).collect::<Result<Vec<_>, _>>();
                let (Ok(groups), Ok(user_namespace), Ok(id_map)) =
                    (groups, place.user_namespace.try_clone(), place.id_map.try_clone())
                else {
                    sys::exit_now(1)
                };
                let born = Terms { first_id: place.first_id, in_background: false, uplink, filter: &self.job_filter };
                let step = Some(StepBirth { layers, draft: opened, mounts });
                let frame = spec.frame;
                init::live(Birth { terms: born, frame, control: theirs, user_namespace, id_map, groups, step })
            }
        };
        let number = self.number();
        self.poller.add(&control, Source::Sandbox(number))?;
        let mut sandbox = Sandbox::unborn(spec.frame.clone(), spec.limits.clone(), place, NO_ZYGOTE, control);
        sandbox.address = address;
        sandbox.draft = Some(Draft { folder, token: layer, terms, output, is_good: false });
        sandbox.command(Launch { token, spec, has_files, has_artifacts: false, descriptors, lent: None })?;
        self.numbers.insert(token, number);
        self.sandboxes.insert(number, sandbox);
        Ok(self.born(number, pid, process, 0)?)
    }

    /// A folder for what is changed: `upper` and `work`, as overlayfs wants them; and so many more of both, each pair in
    /// a folder, for what is written to mounts and thrown away.
    fn make_draft(&mut self, more: usize) -> Result<(String, OwnedFd), SysError> {
        let (folder, opened) = self.make_unfinished()?;
        make_upper(&opened)?;
        for number in 0..more {
            make_upper(&make_folder(&opened, &binds::draft_name(number))?)?;
        }
        Ok((folder, opened))
    }

    /// Has a worker make a layer of what a step changed; or forgets it.
    pub(super) fn conclude_draft(&mut self, draft: Draft) -> Result<(), SysError> {
        let Draft { folder, token, terms, output, is_good } = draft;
        if !is_good {
            self.throw_away(folder)?;
            return self.reply(&Reply::Unpacked { token, result: Err("the step failed".to_owned()) });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.layers, format!("{folder}/{}", mounts::UPPER), flags, Mode::empty()) {
            Ok(upper) => {
                let task = Task::Seal { token, folder };
                self.order(Order { task, job: Job::Seal { terms }, descriptors: vec![upper, output] })
            }
            Err(error) => {
                let reason = in_one_line(&failed("open", "what the step changed")(error));
                self.throw_away(folder)?;
                self.reply(&Reply::Unpacked { token, result: Err(reason) })
            }
        }
    }

    /// Starts a worker that puts files on top of layers.
    pub(super) fn place(
        &mut self,
        token: u64,
        base: Vec<LayerId>,
        order: PlaceOrder,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), SysError> {
        match self.place_order(token, base, order, descriptors) {
            Ok(order) => self.order(order),
            Err(error) => self.reply(&Reply::Unpacked { token, result: Err(in_one_line(&error)) }),
        }
    }

    fn place_order(
        &mut self,
        token: u64,
        base: Vec<LayerId>,
        order: PlaceOrder,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Order, SysError> {
        let mut descriptors = descriptors.into_iter();
        let (files, output) = (given(descriptors.next())?, given(descriptors.next())?);
        let layers = self.layers.try_clone().map_err(failed("pass on", "the folder of layers"))?;
        let (folder, opened) = self.make_draft(0)?;
        let task = Task::Seal { token, folder };
        Ok(Order { task, job: Job::Place { base, order }, descriptors: vec![layers, opened, files, output] })
    }

    /// Gives a layer that was made its name, and throws the rest of its draft away.
    pub(super) fn conclude_sealing(&mut self, token: u64, folder: &str, outcome: Outcome) -> Result<(), SysError> {
        let result = match outcome {
            Ok(Done::Unpacked(sealed)) => {
                let kept = self.keep_layer(&format!("{folder}/{}", mounts::UPPER), sealed.layer.hex());
                kept.map(|()| sealed).map_err(|error| in_one_line(&error))
            }
            Ok(_) => Err("the worker made no layer".to_owned()),
            Err(sentence) => Err(sentence),
        };
        self.throw_away(folder.to_owned())?;
        self.reply(&Reply::Unpacked { token, result })
    }
}

/// Makes `upper` and `work` in a folder, as overlayfs wants them.
pub(super) fn make_upper(folder: &OwnedFd) -> Result<(), SysError> {
    make_folder(folder, mounts::UPPER)?;
    make_folder(folder, mounts::WORK).map(drop)
}

/// Makes a folder that belongs to the ids of image files, and opens it.
fn make_folder(parent: &OwnedFd, name: &str) -> Result<OwnedFd, SysError> {
    mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(failed("make folder", name))?;
    open_own(parent, name)
}

/// Stands for the zygote of a sandbox that none made.
const NO_ZYGOTE: u64 = 0;
