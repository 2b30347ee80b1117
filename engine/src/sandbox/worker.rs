//! A worker: a throw-away sandbox in which our own code reads what an image brought. It sees one folder and one
//! archive, is root over the ids of image files only, has no network, and is gone when its task is done.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, set_name};

use crate::image::layer;
use crate::isolation::seccomp::Filter;
use crate::isolation::{capabilities, mounts, network, users};
use crate::sandbox::descriptors;
use crate::sandbox::handshake::{UnpackedLayer, send};
use crate::sandbox::init::{die_with_launcher, join_groups};
use crate::spec::LayerId;
use crate::sys::{SysError, failed, in_one_line};

/// What a worker is given at birth.
pub(crate) struct Birth<'a> {
    pub(crate) control: OwnedFd,
    pub(crate) folder: OwnedFd,
    pub(crate) user_namespace: OwnedFd,
    pub(crate) groups: Vec<OwnedFd>,
    /// What to unpack into the folder; without it, the folder is emptied.
    pub(crate) archive: Option<OwnedFd>,
    pub(crate) filter: &'a Filter,
}

/// The answer of a worker: what it unpacked, or nothing for an emptied folder; or a sentence why not.
pub(crate) type Outcome = Result<Option<UnpackedLayer>, String>;

/// Lives the whole life of a worker. Never returns: the process must not fall back into the launcher's code.
pub(crate) fn live(birth: Birth<'_>) -> ! {
    // Without an answer the launcher sees the end of the conversation, and says so.
    let code = match answer(birth) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    std::process::exit(code)
}

fn answer(birth: Birth<'_>) -> Result<(), SysError> {
    let has_archive = birth.archive.is_some();
    let mut all = vec![birth.control, birth.folder, birth.user_namespace];
    all.extend(birth.archive);
    all.extend(birth.groups);
    let mut kept = descriptors::keep_only(all)?.into_iter();
    let (Some(control), Some(folder), Some(user_namespace)) = (kept.next(), kept.next(), kept.next()) else {
        return Ok(());
    };
    let archive = if has_archive { kept.next() } else { None };
    let groups = kept.collect();
    let confined = confine(folder, user_namespace, groups).map_err(|error| in_one_line(&error));
    let confined = confined.and_then(|root| birth.filter.install().map(|()| root).map_err(|error| in_one_line(&error)));
    let outcome: Outcome = confined.and_then(|root| perform(archive, &root));
    send(&control, &outcome, &[]).map_err(failed("answer", "the launcher"))
}

/// Takes everything from this process but its folder; returns that as its root.
fn confine(folder: OwnedFd, user_namespace: OwnedFd, groups: Vec<OwnedFd>) -> Result<OwnedFd, SysError> {
    die_with_launcher()?;
    let _ = set_name(c"ampoule-worker");
    join_groups(&groups)?;
    network::enter_empty()?;
    mounts::enter_folder(folder.as_fd())?;
    setns(&user_namespace, CloneFlags::CLONE_NEWUSER).map_err(failed("join", "the user namespace of images"))?;
    users::become_ids(0, 0, &[])?;
    let needed = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::SETFCAP;
    capabilities::keep_only(needed)?;
    die_with_launcher()?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("hide", "the memory of a worker"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).map_err(failed("open", "the folder to work in"))
}

fn perform(archive: Option<OwnedFd>, root: &OwnedFd) -> Outcome {
    let Some(archive) = archive else {
        let emptied = layer::remove_all_in(root.as_fd()).map_err(failed("empty", "the folder"));
        return emptied.map(|()| None).map_err(|error| in_one_line(&error));
    };
    let unpacked = layer::unpack(File::from(archive), root.as_fd(), layer::UnpackLimits::default());
    let unpacked = unpacked.map_err(|error| in_one_line(&error))?;
    let layer = LayerId::parse(&unpacked.diff_id).map_err(|error| in_one_line(&error))?;
    Ok(Some(UnpackedLayer { layer, tar_bytes: unpacked.tar_bytes, entries: unpacked.entries }))
}
