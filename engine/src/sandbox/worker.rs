//! A worker: a throw-away sandbox in which our own code reads what an image brought. It sees one folder or a few
//! layers, is root over the ids of image files only, has no network, and is gone when its task is done.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, set_name};
use serde::{Deserialize, Serialize};

use crate::builder::gather::gather;
use crate::image::layer::{self, Ahead};
use crate::image::tree::{self, PlaceOrder, StepTerms, Wanted};
use crate::isolation::seccomp::Filter;
use crate::isolation::{capabilities, mounts, network, overlay, users};
use crate::sandbox::descriptors;
use crate::sandbox::handshake::{Looked, UnpackedLayer, send};
use crate::sandbox::init::{die_with_launcher, join_groups};
use crate::spec::LayerId;
use crate::sys::{self, SysError, failed, in_one_line};

/// What a worker is given at birth.
pub(crate) struct Birth<'a> {
    pub(crate) control: OwnedFd,
    pub(crate) user_namespace: OwnedFd,
    pub(crate) groups: Vec<OwnedFd>,
    pub(crate) job: Job,
    /// Those that the job needs, in the order that it says.
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) cpu_seconds: u64,
    pub(crate) filter: &'a Filter,
}

/// What a worker does.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// Empties a folder. Descriptor: the folder.
    Empty,
    /// Counts what is in a folder. Descriptor: the folder.
    Measure,
    /// Unpacks a layer. Descriptors: the empty folder, the archive.
    Unpack,
    /// Writes what layers come to as a tar. Descriptors: the folder of layers, where to write to.
    Export { layers: Vec<LayerId> },
    /// Writes how two lists of layers differ. Descriptors: the folder of layers, where to write to.
    Compare { before: Vec<LayerId>, after: Vec<LayerId> },
    /// Unpacks a layer and compares it with the one that is there. Descriptors: the empty folder, the archive, the
    /// folder of layers.
    Check { layer: LayerId },
    /// Writes a part of what layers come to. Descriptors: the folder of layers, where to write to.
    Select { layers: Vec<LayerId>, wanted: Wanted },
    /// Makes a layer of what a step changed. Descriptors: what was changed, where the tar goes.
    Seal { terms: StepTerms },
    /// Puts files on top of layers and makes a layer of that. Descriptors: the folder of layers, the draft, the files as
    /// a tar, where the tar of the layer goes.
    Place { base: Vec<LayerId>, order: PlaceOrder },
}

/// What a worker did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Done {
    Emptied,
    Unpacked(UnpackedLayer),
    Looked(Looked),
}

/// The answer of a worker, or a sentence why it could not do it.
pub(crate) type Outcome = Result<Done, String>;

/// What a worker has left when everything else is taken from it.
enum Tools {
    Empty { root: OwnedFd },
    Measure { root: OwnedFd },
    Unpack { root: OwnedFd, archive: OwnedFd },
    Export { tree: OwnedFd, output: OwnedFd },
    Compare { before: OwnedFd, after: OwnedFd, output: OwnedFd },
    Check { root: OwnedFd, archive: OwnedFd, tree: OwnedFd },
    Select { tree: OwnedFd, output: OwnedFd, wanted: Wanted },
    Seal { upper: OwnedFd, output: OwnedFd, terms: StepTerms },
    Place { merged: OwnedFd, upper: OwnedFd, files: OwnedFd, output: OwnedFd, order: PlaceOrder },
}

/// Lives the whole life of a worker. Never returns: the process must not fall back into the launcher's code.
pub(crate) fn live(birth: Birth<'_>) -> ! {
    // Without an answer the launcher sees the end of the conversation, and says so.
    let code = match answer(birth) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    sys::exit_now(code)
}

fn answer(birth: Birth<'_>) -> Result<(), SysError> {
    let Birth { control, user_namespace, groups, job, descriptors, cpu_seconds, filter } = birth;
    let count = descriptors.len();
    let all = [control, user_namespace].into_iter().chain(descriptors).chain(groups).collect();
    let mut kept = descriptors::keep_only(all)?.into_iter();
    let (Some(control), Some(user_namespace)) = (kept.next(), kept.next()) else { return Ok(()) };
    let descriptors = kept.by_ref().take(count).collect();
    let groups: Vec<OwnedFd> = kept.collect();
    let outcome = begin(&groups)
        .and_then(|()| see_only(&job, descriptors))
        .and_then(|tools| confine(&job, tools, &user_namespace, cpu_seconds));
    drop((user_namespace, groups));
    let outcome: Outcome = match outcome {
        Ok(tools) => start_and_perform(tools, filter),
        Err(error) => Err(in_one_line(&error)),
    };
    send(&control, &outcome, &[]).map_err(failed("answer", "the launcher"))
}

fn begin(groups: &[OwnedFd]) -> Result<(), SysError> {
    die_with_launcher()?;
    let _ = set_name(c"ampoule-worker");
    join_groups(groups)?;
    network::enter(None)
}

/// Leaves the host's tree for what the job needs of it.
fn see_only(job: &Job, descriptors: Vec<OwnedFd>) -> Result<Tools, SysError> {
    let missing = || failed("start", "a worker without its descriptors")(rustix::io::Errno::INVAL);
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(missing);
    let names = |layers: &'_ [LayerId]| layers.iter().map(|layer| layer.hex().to_owned()).collect::<Vec<_>>();
    match job {
        Job::Empty => Ok(Tools::Empty { root: enter(&next()?)? }),
        Job::Measure => Ok(Tools::Measure { root: enter(&next()?)? }),
        Job::Unpack => Ok(Tools::Unpack { root: enter(&next()?)?, archive: next()? }),
        Job::Export { layers } => {
            let (folder, output) = (next()?, next()?);
            let mut trees = enter_trees(&folder, &[names(layers)])?.into_iter();
            Ok(Tools::Export { tree: trees.next().ok_or_else(missing)?, output })
        }
        Job::Select { layers, wanted } => {
            let (folder, output) = (next()?, next()?);
            let mut trees = enter_trees(&folder, &[names(layers)])?.into_iter();
            let wanted = wanted.clone();
            Ok(Tools::Select { tree: trees.next().ok_or_else(missing)?, output, wanted })
        }
        Job::Seal { terms } => Ok(Tools::Seal { upper: enter(&next()?)?, output: next()?, terms: *terms }),
        Job::Place { base, order } => {
            let (folder, draft, files, output) = (next()?, next()?, next()?, next()?);
            let base = names(base);
            let base: Vec<&str> = base.iter().map(String::as_str).collect();
            let (merged, upper) = overlay::enter_writers_tree(folder.as_fd(), &base, draft.as_fd())?;
            Ok(Tools::Place { merged, upper, files, output, order: order.clone() })
        }
        Job::Compare { before, after } => {
            let (folder, output) = (next()?, next()?);
            let mut trees = enter_trees(&folder, &[names(before), names(after)])?.into_iter();
            let (before, after) = (trees.next().ok_or_else(missing)?, trees.next().ok_or_else(missing)?);
            Ok(Tools::Compare { before, after, output })
        }
        Job::Check { layer } => {
            let (folder, archive, layers) = (next()?, next()?, next()?);
            let tree = mounts::clone_layer(layers.as_fd(), layer.hex())?;
            Ok(Tools::Check { root: enter(&folder)?, archive, tree })
        }
    }
}

fn enter(folder: &OwnedFd) -> Result<OwnedFd, SysError> {
    mounts::enter_folder(folder.as_fd())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).map_err(failed("open", "the folder to work in"))
}

fn enter_trees(folder: &OwnedFd, lists: &[Vec<String>]) -> Result<Vec<OwnedFd>, SysError> {
    let lists: Vec<Vec<&str>> = lists.iter().map(|list| list.iter().map(String::as_str).collect()).collect();
    overlay::enter_readers_tree(folder.as_fd(), &lists)
}

/// Takes everything else from this process.
fn confine(job: &Job, tools: Tools, user_namespace: &OwnedFd, cpu_seconds: u64) -> Result<Tools, SysError> {
    setns(user_namespace, CloneFlags::CLONE_NEWUSER).map_err(failed("join", "the user namespace of images"))?;
    users::become_ids(0, 0, &[])?;
    capabilities::keep_only(needed(job))?;
    die_with_launcher()?;
    // The kernel kills at the second of the two; a signal that can be handled would be lost on a pid 1.
    let limit = Rlimit { current: Some(cpu_seconds), maximum: Some(cpu_seconds) };
    setrlimit(Resource::Cpu, limit).map_err(failed("limit", "the processor time of a worker"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("hide", "the memory of a worker"))?;
    Ok(tools)
}

fn needed(job: &Job) -> CapabilitySet {
    match job {
        Job::Measure | Job::Export { .. } | Job::Compare { .. } | Job::Select { .. } => CapabilitySet::DAC_READ_SEARCH,
        Job::Empty | Job::Unpack | Job::Check { .. } | Job::Seal { .. } | Job::Place { .. } => {
            CapabilitySet::CHOWN
                | CapabilitySet::DAC_OVERRIDE
                | CapabilitySet::FOWNER
                | CapabilitySet::FSETID
                | CapabilitySet::SETFCAP
        }
    }
}

/// Starts the threads that will be needed, shuts the door behind them, and only then touches what is foreign.
fn start_and_perform(tools: Tools, filter: &Filter) -> Outcome {
    let ahead = match tools {
        Tools::Unpack { .. } | Tools::Check { .. } => Some(Ahead::start()),
        _ => None,
    };
    let ahead = ahead.transpose().map_err(|error| in_one_line(&failed("start", "a thread")(error)))?;
    filter.install_in_all_threads().map_err(|error| in_one_line(&error))?;
    perform(tools, ahead)
}

fn perform(tools: Tools, ahead: Option<Ahead>) -> Outcome {
    match (tools, ahead) {
        (Tools::Empty { root }, _) => {
            let emptied = layer::remove_all_in(root.as_fd()).map_err(failed("empty", "the folder"));
            emptied.map(|()| Done::Emptied).map_err(|error| in_one_line(&error))
        }
        (Tools::Measure { root }, _) => {
            let measured = tree::measure(root.as_fd()).map_err(|error| in_one_line(&error))?;
            Ok(Done::Looked(Looked::Written { entries: measured.entries, bytes: measured.bytes }))
        }
        (Tools::Unpack { root, archive }, Some(ahead)) => unpack(archive, ahead, &root).map(Done::Unpacked),
        (Tools::Export { tree, output }, _) => {
            let written = tree::export(tree.as_fd(), File::from(output)).map_err(|error| in_one_line(&error))?;
            Ok(Done::Looked(Looked::Written { entries: written.entries, bytes: written.bytes }))
        }
        (Tools::Compare { before, after, output }, _) => {
            let written = tree::write_changes(before.as_fd(), after.as_fd(), File::from(output));
            let written = written.map_err(|error| in_one_line(&error))?;
            Ok(Done::Looked(Looked::Written { entries: written.entries, bytes: written.bytes }))
        }
        (Tools::Select { tree, output, wanted }, _) => {
            let written = gather(tree.as_fd(), &wanted, File::from(output));
            let written = written.map_err(|error| in_one_line(&error))?;
            Ok(Done::Looked(Looked::Written { entries: written.entries, bytes: written.bytes }))
        }
        (Tools::Seal { upper, output, terms }, _) => seal(&upper, output, terms).map(Done::Unpacked),
        (Tools::Place { merged, upper, files, output, order }, _) => {
            let owner = order.owner.as_deref().map(|owner| owner_of(owner, &merged)).transpose()?;
            let placed = layer::place(File::from(files), merged.as_fd(), &order, owner);
            placed.map_err(|error| in_one_line(&error))?;
            drop(merged);
            seal(&upper, output, order.terms).map(Done::Unpacked)
        }
        (Tools::Check { root, archive, tree }, Some(ahead)) => {
            let unpacked = unpack(archive, ahead, &root)?;
            let found = tree::check(root.as_fd(), tree.as_fd()).map_err(|error| in_one_line(&error))?;
            Ok(Done::Looked(Looked::Checked {
                archive: unpacked.layer,
                differences: found.differences,
                samples: found.samples,
                is_mended: false,
            }))
        }
        (Tools::Unpack { .. } | Tools::Check { .. }, None) => Err("a worker has no threads".to_owned()),
    }
}

/// As Docker understands the owner of a copy: a bare number is user and group at once.
fn owner_of(owner: &str, root: &OwnedFd) -> Result<(u32, u32), String> {
    let identity = users::look_up(owner, root.as_fd()).map_err(|error| in_one_line(&error))?;
    let is_number = owner.parse::<u32>().is_ok();
    Ok((identity.uid, if is_number { identity.uid } else { identity.gid }))
}

fn seal(upper: &OwnedFd, output: OwnedFd, terms: StepTerms) -> Result<UnpackedLayer, String> {
    let sealed = tree::seal(upper.as_fd(), File::from(output), terms).map_err(|error| in_one_line(&error))?;
    let layer = LayerId::parse(&sealed.diff_id).map_err(|error| in_one_line(&error))?;
    let tree::Written { entries, bytes } = sealed.written;
    Ok(UnpackedLayer { layer, tar_bytes: bytes, entries, skipped: crate::spec::Skipped::default() })
}

fn unpack(archive: OwnedFd, ahead: Ahead, root: &OwnedFd) -> Result<UnpackedLayer, String> {
    let unpacked = layer::unpack_ahead(File::from(archive), ahead, root.as_fd(), layer::UnpackLimits::default());
    let unpacked = unpacked.map_err(|error| in_one_line(&error))?;
    let layer = LayerId::parse(&unpacked.diff_id).map_err(|error| in_one_line(&error))?;
    let layer::Unpacked { tar_bytes, entries, skipped, .. } = unpacked;
    Ok(UnpackedLayer { layer, tar_bytes, entries, skipped })
}
