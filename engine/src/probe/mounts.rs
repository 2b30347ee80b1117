//! Checks of everything that is mounted in a sandbox, tried on a stage in a mount namespace of the attempt's own.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsmount, fsopen, mount, move_mount, open_tree, unmount,
};
use rustix::process::pivot_root;

use super::namespaces::{UserNamespace, private_mounts, user_namespace};
use super::surroundings::nearest;
use super::{Absence, Check, Ground, Look, Need, Seen, failed};
use crate::sys;

/// Folders of which every machine has one; the stage hides it from the attempt only.
const STAGES: [&str; 4] = ["/tmp", "/run", "/mnt", "/dev"];
/// Room of the stage, in bytes and files: enough for a trial, small enough to be filled.
const STAGE_ROOM: &str = "size=64k,nr_inodes=64,mode=0700";
/// More bytes and more files than the stage has room for.
const TOO_MUCH: usize = 128 * 1024;
const TOO_MANY: u32 = 65;

const MEND_OUTER: &str = "start ampoule as root, outside of containers that refuse mounts \
                          (docker: --privileged, or --cap-add SYS_ADMIN --security-opt apparmor=unconfined)";
const MEND_STATE: &str = "put the state folder on ext4, xfs or btrfs: ampoule serve --state FOLDER";

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "tmpfs with limits",
        need: Need::Every,
        lost: "writable paths of jobs could fill the machine's memory",
        mend: MEND_OUTER,
        look: Look::InChild(tmpfs_limits),
    },
    Check {
        name: "device nodes",
        need: Need::Every,
        lost: "sandboxes would have no /dev/null",
        mend: MEND_OUTER,
        look: Look::InChild(device_nodes),
    },
    Check {
        name: "mounts by descriptor",
        need: Need::Every,
        lost: "the shared read-only root cannot be handed to sandboxes (fsopen, open_tree, move_mount)",
        mend: MEND_OUTER,
        look: Look::InChild(mounts_by_descriptor),
    },
    Check {
        name: "idmapped mount of the state folder",
        need: Need::Every,
        lost: "the owners of an image's files would not be its own inside a sandbox",
        mend: MEND_STATE,
        look: Look::InChild(idmapped_state),
    },
    Check {
        name: "overlay over an idmapped layer",
        need: Need::Every,
        lost: "images of several layers cannot be run",
        mend: "modprobe overlay; and put the state folder on ext4, xfs or btrfs: ampoule serve --state FOLDER",
        look: Look::InChild(overlay_over_idmapped),
    },
    Check {
        name: "pivot_root",
        need: Need::Every,
        lost: "sandboxes could not leave the machine's own file tree behind",
        mend: "boot from a real root file system: an initramfs cannot be pivoted away (switch_root first)",
        look: Look::InChild(pivot),
    },
];

/// A small tmpfs over a folder of the machine, in the attempt's own mount namespace; gone with the attempt.
struct Stage(PathBuf);

impl Stage {
    fn set_up() -> Result<Stage, Absence> {
        private_mounts()?;
        Stage::set_up_here()
    }

    /// For attempts that have private mounts already.
    fn set_up_here() -> Result<Stage, Absence> {
        let folder = STAGES.iter().map(Path::new).find(|folder| folder.is_dir());
        let folder = folder.ok_or_else(|| Absence::new("there is no folder to mount on"))?;
        mount_tmpfs(folder)?;
        Ok(Stage(folder.to_owned()))
    }

    fn folder(&self, name: &str) -> Result<PathBuf, Absence> {
        let path = self.0.join(name);
        fs::create_dir(&path).map_err(failed("make a folder on the stage"))?;
        Ok(path)
    }
}

fn mount_tmpfs(folder: &Path) -> Result<(), Absence> {
    let room = std::ffi::CString::new(STAGE_ROOM).map_err(failed("name the options of a tmpfs"))?;
    mount("tmpfs", folder, "tmpfs", MountFlags::NOSUID, room.as_c_str()).map_err(failed("mount a tmpfs"))
}

fn tmpfs_limits(_: &Ground) -> Seen {
    let stage = Stage::set_up()?;
    let file = stage.0.join("bytes");
    let written = File::create(&file).and_then(|mut file| file.write_all(&vec![0; TOO_MUCH]));
    full("bytes", written)?;
    fs::remove_file(&file).map_err(failed("remove a file"))?;
    let made = (0..TOO_MANY).try_for_each(|number| File::create(stage.0.join(number.to_string())).map(drop));
    full("files", made)?;
    Ok("limits of bytes and files hold".to_owned())
}

/// Expects that something failed since the stage was full.
fn full(what: &str, result: std::io::Result<()>) -> Result<(), Absence> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => Ok(()),
        Err(error) => Err(Absence::new(format!("could not write to a tmpfs: {error}"))),
        Ok(()) => Err(Absence::new(format!("a tmpfs took more {what} than it was given room for"))),
    }
}

fn device_nodes(_: &Ground) -> Seen {
    let stage = Stage::set_up()?;
    let path = stage.0.join("null");
    mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))
        .map_err(failed("make a device node"))?;
    File::options()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(b"nothing"))
        .map_err(failed("write to a device node"))?;
    Ok("made /dev/null and wrote to it".to_owned())
}

fn mounts_by_descriptor(_: &Ground) -> Seen {
    let stage = Stage::set_up()?;
    let (first, second) = (stage.folder("first")?, stage.folder("second")?);
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen a tmpfs"))?;
    fsconfig_create(context.as_fd()).map_err(failed("create it"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let made = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("fsmount it"))?;
    attach(&made, &first)?;
    let copy = copy_of(&first)?;
    sys::mount_setattr(copy.as_fd(), sys::MountAttributes { set: libc::MOUNT_ATTR_NOEXEC, id_map: None })
        .map_err(failed("change the attributes of a copy"))?;
    attach(&copy, &second)?;
    Ok("made, copied and attached".to_owned())
}

/// A detached copy of the mount that `folder` is on, from there on.
fn copy_of(folder: &Path) -> Result<OwnedFd, Absence> {
    open_tree(CWD, folder, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(failed(format_args!("copy the mount of {}", folder.display())))
}

fn attach(tree: &OwnedFd, folder: &Path) -> Result<(), Absence> {
    move_mount(tree.as_fd(), "", CWD, folder, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed("attach a mount"))
}

/// A detached copy of the state folder's mount whose owners are moved into `namespace`.
fn idmapped_copy(ground: &Ground, namespace: &UserNamespace) -> Result<OwnedFd, Absence> {
    let folder = nearest(&ground.state);
    let copy = copy_of(folder)?;
    let attributes = sys::MountAttributes { set: libc::MOUNT_ATTR_RDONLY, id_map: Some(namespace.file.as_fd()) };
    sys::mount_setattr(copy.as_fd(), attributes)
        .map_err(failed(format_args!("map the owners of {}", folder.display())))?;
    Ok(copy)
}

fn idmapped_state(ground: &Ground) -> Seen {
    let namespace = user_namespace(ground)?;
    let owner = fs::metadata(nearest(&ground.state)).map_err(failed("read the owner of the state folder"))?.uid();
    private_mounts()?;
    let copy = idmapped_copy(ground, &namespace)?;
    let mapped = rustix::fs::fstat(copy.as_fd()).map_err(failed("read the owner in the copy"))?.st_uid;
    Ok(format!("{} maps uid {owner} to {mapped}", nearest(&ground.state).display()))
}

fn overlay_over_idmapped(ground: &Ground) -> Seen {
    let namespace = user_namespace(ground)?;
    private_mounts()?;
    let copy = idmapped_copy(ground, &namespace)?;
    let stage = Stage::set_up_here()?;
    let (lower, upper, merged) = (stage.folder("lower")?, stage.folder("upper")?, stage.folder("merged")?);
    attach(&copy, &lower)?;
    // Two layers must not overlap, so the second is an empty folder of the stage.
    let layers = format!("lowerdir={}:{}", upper.display(), lower.display());
    let layers = std::ffi::CString::new(layers).map_err(failed("name the layers"))?;
    mount("overlay", &merged, "overlay", MountFlags::RDONLY, layers.as_c_str()).map_err(failed("mount an overlay"))?;
    Ok("mounted one of two layers".to_owned())
}

fn pivot(_: &Ground) -> Seen {
    let stage = Stage::set_up()?;
    std::env::set_current_dir(&stage.0).map_err(failed("enter the stage"))?;
    pivot_root(".", ".").map_err(failed("pivot to a new root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("let go of the old root"))?;
    Ok("left the machine's tree".to_owned())
}
