//! Layers laid over each other: which of an image's layers are seen at all, and overlays of many of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::{mounts, users};
use crate::sys::{MountAttributes, SysError, failed, mount_setattr};

/// The attribute of a layer's root that hides all layers below it. overlayfs itself looks for it in folders only.
const OPAQUE_XATTR: &str = "user.overlay.opaque";

/// How many of the lowest layers are hidden by one above them, whose root says so.
pub(super) fn hidden(trees: &[OwnedFd]) -> usize {
    trees.iter().rposition(is_opaque).unwrap_or(0)
}

fn is_opaque(root: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::openat(root, ".", flags, Mode::empty()) else { return false };
    let mut value = [0; 1];
    matches!(rustix::fs::fgetxattr(&folder, OPAQUE_XATTR, &mut value[..]), Ok(1)) && value == *b"y"
}

/// An overlay of these folders, highest first, that is attached nowhere yet. Each folder is an option of its own, so
/// that no number of them is too long.
///
/// # Errors
/// The call that the kernel refused; `InvalidInput` from one that is too old to take folders one by one.
pub(super) fn mount(folders: &[String]) -> Result<OwnedFd, SysError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open", "overlay"))?;
    fsconfig_set_flag(&context, "userxattr").map_err(failed("set overlay option", "userxattr"))?;
    for folder in folders {
        fsconfig_set_string(&context, "lowerdir+", folder.as_str())
            .map_err(failed("add to the overlay", folder.as_str()))?;
    }
    fsconfig_create(&context).map_err(failed("make", "an overlay of the layers"))?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount", "the layers of the image"))
}

/// A writable overlay of these folders, highest first, and of `upper` and `work` in the folder `draft`, attached nowhere
/// yet. What it makes by itself, as the marks of deleted files, belongs to `owner`: the caller's own id has no place in the
/// draft. One that is volatile is of no use after a crash.
///
/// # Errors
/// The call that the kernel refused.
pub(super) fn mount_writable(
    folders: &[String],
    draft: &str,
    owner: u32,
    is_volatile: bool,
) -> Result<OwnedFd, SysError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open", "overlay"))?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(&context, key, value).map_err(failed("set overlay option", format!("{key}={value}")))
    };
    fsconfig_set_flag(&context, "userxattr").map_err(failed("set overlay option", "userxattr"))?;
    if is_volatile {
        // Whoever makes a layer of it brings all to disk at once; until then nobody needs it after a crash.
        fsconfig_set_flag(&context, "volatile").map_err(failed("set overlay option", "volatile"))?;
    }
    let one_by_one = folders.iter().try_for_each(|folder| set("lowerdir+", folder));
    match one_by_one {
        // Kernels before 6.8 take them in one option only.
        Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => set("lowerdir", &folders.join(":"))?,
        other => other?,
    }
    set("upperdir", &format!("{draft}/{}", mounts::UPPER))?;
    set("workdir", &format!("{draft}/{}", mounts::WORK))?;
    users::with_file_ids(owner, || fsconfig_create(&context).map_err(failed("make", "a writable overlay")))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount", "a writable overlay"))
}

/// Moves the calling process into a mount namespace that holds these layers, lowest first, a draft, and nothing else
/// of the host. Returns what they come to, to be changed through its descriptor, and what of it is in the draft.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn enter_writers_tree(
    layers: BorrowedFd<'_>,
    names: &[&str],
    draft: BorrowedFd<'_>,
) -> Result<(OwnedFd, OwnedFd), SysError> {
    // Cloned first: the kernel clones only what is in the caller's own namespace.
    let mut trees = names.iter().map(|name| mounts::clone_layer(layers, name)).collect::<Result<Vec<_>, _>>()?;
    let draft = mounts::clone_draft(draft, None)?;
    let _root = mounts::enter_small_root()?;
    trees.drain(..hidden(&trees));
    for folder in [mounts::DRAFT, "/l", "/l/nothing"] {
        mounts::make_folder(folder)?;
    }
    mounts::attach(&draft, mounts::DRAFT)?;
    let mut folders = Vec::with_capacity(trees.len());
    for (number, tree) in trees.iter().enumerate().rev() {
        let path = format!("/l/{number}");
        mounts::make_folder(&path)?;
        mounts::attach(tree, &path)?;
        folders.push(path);
    }
    if folders.is_empty() {
        folders.push("/l/nothing".to_owned());
    }
    let merged = mount_writable(&folders, mounts::DRAFT, users::IMAGE_FIRST_ID, true)?;
    let upper = format!("{}/{}", mounts::DRAFT, mounts::UPPER);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::open(upper.as_str(), flags, Mode::empty()).map_err(failed("open", upper))?;
    Ok((merged, upper))
}

/// Moves the calling process into a mount namespace that holds these layers and nothing else of the host, and
/// returns what each of the lists comes to, lowest layer first, to be read through its descriptor.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn enter_readers_tree(layers: BorrowedFd<'_>, lists: &[Vec<&str>]) -> Result<Vec<OwnedFd>, SysError> {
    let clone_all =
        |names: &Vec<&str>| names.iter().map(|name| mounts::clone_layer(layers, name)).collect::<Result<Vec<_>, _>>();
    // Cloned first: the kernel clones only what is in the caller's own namespace.
    let lists = lists.iter().map(clone_all).collect::<Result<Vec<_>, _>>()?;
    let root = mounts::enter_small_root()?;
    let mut merged = Vec::with_capacity(lists.len());
    for (list, mut trees) in lists.into_iter().enumerate() {
        trees.drain(..hidden(&trees));
        merged.push(merge(&format!("/{list}"), trees)?);
    }
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, id_map: None };
    mount_setattr(root.as_fd(), attributes).map_err(failed("make read-only", "the root of a reader"))?;
    Ok(merged)
}

/// A single layer is what it is; overlayfs takes two or more.
fn merge(folder: &str, mut trees: Vec<OwnedFd>) -> Result<OwnedFd, SysError> {
    if trees.len() == 1 {
        return Ok(trees.remove(0));
    }
    mounts::make_folder(folder)?;
    let mut folders = Vec::with_capacity(trees.len());
    for (number, tree) in trees.iter().enumerate() {
        let path = format!("{folder}/{number}");
        mounts::make_folder(&path)?;
        mounts::attach(tree, &path)?;
        folders.push(path);
    }
    folders.reverse();
    match mount(&folders) {
        Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => mounts::mount_by_options(&folders, folder),
        mounted => mounted,
    }
}
