//! What a sandbox sees of the file system: the tree of a zygote, and the root of one sandbox made from it.
//!
//! ```text
//! zygote, a small tmpfs:                      sandbox, on a copy of the zygote's mounts:
//!   /layers/N  the unpacked layers, read-only   /m/N  /layers/N with the owners of this sandbox
//!   /dev       device nodes                     /s    the mount points that the image lacks
//!                                               /r    the root: an overlay of /s and all /m/N
//! ```
//!
//! No two sandboxes share an inode that they can open: the overlay gives files of a common layer inodes of their
//! own, so that locks and the like are no channel between them; `/dev` is made for each.
//!
//! Paths of the image are resolved below its root only, and `/proc` and `/dev` are mounted last, on real folders.

use std::ffi::CString;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, makedev, mkdirat, mknodat, open, statat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_bind, mount_change, mount_move,
    move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use crate::isolation::binds::{self, Bind, Sources};
use crate::isolation::overlay;
use crate::isolation::points::{self, Point};
use crate::isolation::users::{IMAGE_FIRST_ID, Identity};
use crate::spec::{FileOwner, Frame, WritablePath};
use crate::sys::{self, MountAttributes, SysError, failed};

/// Files of `/proc` that tell of the host or let a job act on it; hidden behind `/dev/null`. The list of the OCI
/// runtime specification's default, and `interrupts`, by which one sandbox can watch another's timing.
const HIDDEN_FILES: [&str; 9] = [
    "kcore",
    "keys",
    "latency_stats",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "interrupts",
    "softirqs",
    "sysrq-trigger",
];
/// Folders of `/proc` that are hidden behind an empty one.
const HIDDEN_FOLDERS: [&str; 3] = ["acpi", "asound", "scsi"];
/// Device nodes of every sandbox: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Links that programs expect in `/dev`.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// Folders of every `/dev`.
const DEVICE_FOLDERS: [&str; 2] = ["shm", "pts"];
/// Room in `/dev/shm`, in bytes: Docker's default, which test suites with many processes are used to.
const SHARED_MEMORY_BYTES: u64 = 64 * 1024 * 1024;
/// Most folders of an overlay that are mounted by one call with options, which is quicker for few; of more, each is
/// an option of its own, since together they have to fit a page.
const FOLDERS_IN_OPTIONS_MAX: usize = 16;
/// The folder of a draft that takes what is changed.
pub(crate) const UPPER: &str = "upper";
/// The folder of a draft that overlayfs works in.
pub(crate) const WORK: &str = "work";
/// Where a draft is mounted.
pub(super) const DRAFT: &str = "/u";
/// Room for it, in bytes.
const RESOLVER_BYTES: u64 = 64 * 1024;
/// Where the file is made that says which name servers there are.
const RESOLVER_FOLDER: &str = "/n";
/// Where a sandbox finds it.
const RESOLVER: &str = "/etc/resolv.conf";
/// Where a step finds a script that it runs, below `/dev`.
const SCRIPTS: &str = "pipes";
/// Room for the scripts of a step, in bytes.
const SCRIPTS_BYTES: u64 = 4 * 1024 * 1024;
/// User and group that own the zygote's own tree.
const HOST_ROOT: (u32, u32) = (0, 0);
/// What every mount of a layer forbids.
const LAYER_ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Moves the calling process into a mount namespace that holds the zygote's tree and nothing of the host.
/// `layers` is the folder of unpacked layers, `names` those of this zygote, lowest first.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn enter_zygote_tree(layers: BorrowedFd<'_>, names: &[&str]) -> Result<(), SysError> {
    // Cloned first: the kernel clones only what is in the caller's own namespace.
    let trees = names.iter().map(|name| clone_layer(layers, name)).collect::<Result<Vec<_>, _>>()?;
    let root = enter_small_root()?;
    for folder in ["/layers", "/m", points::MADE, "/r", "/dev", RESOLVER_FOLDER, DRAFT, binds::WORKSHOP] {
        make_folder(folder)?;
    }
    // A layer that hides all below it leaves them out.
    for (number, tree) in trees.iter().enumerate().skip(overlay::hidden(&trees)) {
        let target = format!("/layers/{number}");
        make_folder(&target)?;
        make_folder(&format!("/m/{number}"))?;
        attach(tree, &target)?;
    }
    attach(&devices(HOST_ROOT, &DEVICE_FOLDERS)?, "/dev")?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, id_map: None };
    sys::mount_setattr(root.as_fd(), attributes).map_err(failed("make read-only", "the zygote's root"))
}

/// As `enter_zygote_tree`, for one sandbox of a build, with the draft that takes what it changes.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn enter_step_tree(
    layers: BorrowedFd<'_>,
    names: &[&str],
    draft: BorrowedFd<'_>,
    id_map: BorrowedFd<'_>,
) -> Result<(), SysError> {
    let draft = clone_draft(draft, Some(id_map))?;
    enter_zygote_tree(layers, names)?;
    attach(&draft, DRAFT)
}

/// A copy of a draft's mount, attached nowhere yet.
///
/// # Errors
/// The call that the kernel refused.
pub(super) fn clone_draft(draft: BorrowedFd<'_>, id_map: Option<BorrowedFd<'_>>) -> Result<OwnedFd, SysError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(draft, "", flags).map_err(failed("clone", "the draft"))?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, id_map };
    sys::mount_setattr(tree.as_fd(), attributes).map_err(failed("map the owners of", "the draft"))?;
    Ok(tree)
}

/// Moves the calling process into a mount namespace that holds nothing but a small tmpfs, which is returned.
///
/// # Errors
/// The call that the kernel refused.
pub(super) fn enter_small_root() -> Result<OwnedFd, SysError> {
    enter_private_namespace()?;
    let root = tmpfs(&[("size", "1m"), ("nr_inodes", "1k"), ("mode", "0755")], MountAttrFlags::empty())?;
    become_root(&root)?;
    Ok(root)
}

/// Moves the calling process into a mount namespace whose root is `folder`, with nothing else of the host.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn enter_folder(folder: BorrowedFd<'_>) -> Result<(), SysError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(folder, "", flags).map_err(failed("clone", "the folder to work in"))?;
    enter_private_namespace()?;
    become_root(&tree)
}

fn enter_private_namespace() -> Result<(), SysError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make", "a mount namespace"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("make private", "the mounts"))
}

/// Makes a detached mount the root of the namespace and lets go of everything else.
fn become_root(tree: &OwnedFd) -> Result<(), SysError> {
    attach(tree, "/")?;
    fchdir(tree).map_err(failed("enter", "the new root"))?;
    pivot_root(".", ".").map_err(failed("pivot to", "the new root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("let go of", "the old root"))?;
    chdir("/").map_err(failed("enter", "/"))
}

/// A read-only copy of a layer's mount, attached nowhere yet.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn clone_layer(layers: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, SysError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(layers, name, flags).map_err(failed("clone layer", name))?;
    let attributes = MountAttributes { set: LAYER_ATTRIBUTES, id_map: None };
    sys::mount_setattr(tree.as_fd(), attributes).map_err(failed("make read-only layer", name))?;
    Ok(tree)
}

/// A `/dev` of its own: a tmpfs that nobody can write to.
fn devices(owner: (u32, u32), folders: &[&str]) -> Result<OwnedFd, SysError> {
    let (uid, gid) = (owner.0.to_string(), owner.1.to_string());
    let options = [("size", "64k"), ("nr_inodes", "64"), ("mode", "0755"), ("uid", &uid), ("gid", &gid)];
    let tree = tmpfs(&options, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(&tree, name, FileType::CharacterDevice, mode, makedev(major, minor))
            .map_err(failed("make device", name))?;
    }
    for (name, target) in DEVICE_LINKS {
        symlinkat(target, &tree, name).map_err(failed("make link", name))?;
    }
    for name in folders {
        mkdirat(&tree, *name, Mode::from_raw_mode(0o755)).map_err(failed("make folder", *name))?;
    }
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, id_map: None };
    sys::mount_setattr(tree.as_fd(), attributes).map_err(failed("make read-only", "/dev"))?;
    Ok(tree)
}

/// Makes the root of a sandbox, enters it, and says whom its command runs as. The calling process is pid 1 of
/// the sandbox with a copy of a zygote's mounts, still with the host's privileges.
///
/// # Errors
/// A sentence for the job's owner: what could not be made, or what in the frame does not fit the image.
pub(crate) fn enter_sandbox_root(
    frame: &Frame,
    resolver: Option<&str>,
    id_map: BorrowedFd<'_>,
    first_id: u32,
    step: Option<Sources<'_>>,
) -> Result<Identity, RootError> {
    let layers = lowest_seen(frame.layers.len())?..frame.layers.len();
    for number in layers.clone() {
        map_layer(number, id_map)?;
    }
    let is_step = step.is_some();
    let binds = step.map_or(Ok(Vec::new()), |sources| binds::assemble(sources, first_id))?;
    let writable = frame.writable.iter().map(Wanted::Writable);
    let mut wanted: Vec<Wanted<'_>> =
        writable.chain(binds.iter().map(Wanted::Bind)).chain(resolver.map(Wanted::Resolver)).collect();
    // What is below another one must be mounted after it.
    wanted.sort_by_key(|wanted| wanted.point().path.trim_end_matches('/').matches('/').count());
    let root = make_root(&wanted, layers, first_id, is_step)?;
    let identity = crate::isolation::users::look_up(&frame.user, root.as_fd())?;
    let owner = (first_id + identity.uid, first_id + identity.gid);
    for wanted in &wanted {
        match wanted {
            Wanted::Writable(path) => mount_writable(root.as_fd(), path, owner)?,
            Wanted::Bind(bind) => mount_bind_of_step(root.as_fd(), bind, first_id)?,
            Wanted::Resolver(text) => mount_resolver(root.as_fd(), text, first_id)?,
        }
    }
    mount_proc(root.as_fd())?;
    mount_dev(root.as_fd(), first_id, owner, is_step)?;
    hide_parts_of_proc()?;
    fchdir(&root).map_err(failed("enter", "the sandbox's root"))?;
    mount_move("/r", "/").map_err(failed("move", "the sandbox's root"))?;
    chroot(".").map_err(failed("change root to", "the sandbox's root"))?;
    chdir("/").map_err(failed("enter", "/"))?;
    Ok(identity)
}

/// Why a sandbox has no root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error(transparent)]
    System(#[from] SysError),
    #[error(transparent)]
    User(#[from] crate::isolation::users::UnknownUser),
    #[error("could not mount anything at {target}: {problem}")]
    Mount { target: String, problem: String },
}

/// Something that is mounted in a root besides what every sandbox has.
enum Wanted<'a> {
    Writable(&'a WritablePath),
    Bind(&'a Bind<'a>),
    /// The file that says which name servers there are.
    Resolver(&'a str),
}

impl Wanted<'_> {
    fn point(&self) -> Point<'_> {
        match self {
            Wanted::Writable(writable) => Point { path: &writable.path, is_folder: true },
            Wanted::Bind(bind) => Point { path: bind.target, is_folder: bind.is_folder },
            Wanted::Resolver(_) => Point { path: RESOLVER, is_folder: false },
        }
    }
}

/// The number of the lowest layer that the zygote's tree has: those that are hidden were left out.
fn lowest_seen(layers: usize) -> Result<usize, SysError> {
    for number in 0..layers {
        match statat(CWD, format!("/layers/{number}"), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(number),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("look for layer", number.to_string())(error)),
        }
    }
    Err(failed("find", "the layers of the image")(Errno::NOENT))
}

fn map_layer(number: usize, id_map: BorrowedFd<'_>) -> Result<(), SysError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let source = format!("/layers/{number}");
    let tree = open_tree(CWD, source.as_str(), flags).map_err(failed("clone", source))?;
    let attributes = MountAttributes { set: LAYER_ATTRIBUTES, id_map: Some(id_map) };
    sys::mount_setattr(tree.as_fd(), attributes).map_err(failed("map the owners of layer", number.to_string()))?;
    attach(&tree, &format!("/m/{number}"))
}

/// Mounts the root at `/r`: an overlay, with the folders that the image lacks as its highest layer.
fn make_root(wanted: &[Wanted<'_>], layers: Range<usize>, first_id: u32, is_step: bool) -> Result<OwnedFd, RootError> {
    let layers: Vec<String> = layers.rev().map(|number| format!("/m/{number}")).collect();
    // A single layer shows what is missing as it is; several only show it merged.
    let image = match layers.as_slice() {
        [only] => open_folder(only)?,
        several => mount_overlay(several)?,
    };
    let missing = points::missing(image.as_fd(), wanted.iter().map(Wanted::point))?;
    if is_step {
        let mut below = layers;
        if !missing.is_empty() {
            points::make_missing(image.as_fd(), &missing, first_id)?;
            below.insert(0, points::MADE.to_owned());
        }
        attach(&overlay::mount_writable(&below, DRAFT, first_id, true)?, "/r")?;
        return Ok(open_folder("/r")?);
    }
    if missing.is_empty() && layers.len() > 1 {
        return Ok(image);
    }
    points::make_missing(image.as_fd(), &missing, first_id)?;
    let with_missing: Vec<String> = std::iter::once(points::MADE.to_owned()).chain(layers).collect();
    Ok(mount_overlay(&with_missing)?)
}

/// Mounts a read-only overlay of these folders, highest first, at `/r`.
fn mount_overlay(folders: &[String]) -> Result<OwnedFd, SysError> {
    if folders.len() > FOLDERS_IN_OPTIONS_MAX {
        match overlay::mount(folders) {
            // Kernels before 6.8 take them in one option only.
            Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => {}
            mounted => {
                attach(&mounted?, "/r")?;
                return open_folder("/r");
            }
        }
    }
    mount_by_options(folders, "/r")
}

/// Mounts a read-only overlay of these folders, highest first, at `target`, by one call.
///
/// # Errors
/// The call that the kernel refused.
pub(super) fn mount_by_options(folders: &[String], target: &str) -> Result<OwnedFd, SysError> {
    let options = format!("userxattr,lowerdir={}", folders.join(":"));
    let options = CString::new(options).map_err(|_| Errno::INVAL);
    let options = options.map_err(failed("write", "the options of the overlay"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount("overlay", target, "overlay", flags, options.as_c_str())
        .map_err(failed("mount", "the layers of the image"))?;
    open_folder(target)
}

fn mount_writable(root: BorrowedFd<'_>, writable: &WritablePath, owner: (u32, u32)) -> Result<(), RootError> {
    let target = Point { path: &writable.path, is_folder: true }.open(root, owner)?;
    let is_shared = matches!(writable.path.trim_end_matches('/'), "/tmp" | "/var/tmp");
    let tree = writable_tmpfs(writable.size_bytes, writable.inodes, if is_shared { "1777" } else { "0755" }, owner)?;
    Ok(attach_to(&tree, target.as_fd(), &writable.path)?)
}

fn mount_bind_of_step(root: BorrowedFd<'_>, bind: &Bind<'_>, first_id: u32) -> Result<(), RootError> {
    let target = Point { path: bind.target, is_folder: bind.is_folder }.open(root, (first_id, first_id))?;
    Ok(attach_to(&bind.tree, target.as_fd(), bind.target)?)
}

fn mount_resolver(root: BorrowedFd<'_>, text: &str, first_id: u32) -> Result<(), RootError> {
    let tree = writable_tmpfs(RESOLVER_BYTES, 8, "0755", (first_id, first_id))?;
    attach(&tree, RESOLVER_FOLDER)?;
    let folder = open_folder(RESOLVER_FOLDER)?;
    let owner = FileOwner { mode: 0o644, uid: first_id, gid: first_id };
    let file = binds::file(&folder, "resolv.conf", text.as_bytes(), owner, RESOLVER)?;
    let target = Point { path: RESOLVER, is_folder: false }.open(root, (first_id, first_id))?;
    Ok(attach_to(&file, target.as_fd(), RESOLVER)?)
}

fn mount_proc(root: BorrowedFd<'_>) -> Result<(), SysError> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open", "proc"))?;
    fsconfig_create(&context).map_err(failed("make", "proc"))?;
    // All of it is read-only: nothing of a sandbox has to be set through it, and remounting parts costs more.
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount", "proc"))?;
    let target = open_below(root, "proc", ResolveFlags::NO_SYMLINKS).map_err(failed("open", "/proc"))?;
    attach_to(&tree, target.as_fd(), "/proc")
}

fn mount_dev(root: BorrowedFd<'_>, first_id: u32, owner: (u32, u32), is_step: bool) -> Result<(), SysError> {
    let with_scripts = [DEVICE_FOLDERS[0], DEVICE_FOLDERS[1], SCRIPTS];
    let tree = devices((first_id, first_id), if is_step { &with_scripts } else { &DEVICE_FOLDERS })?;
    let target = open_below(root, "dev", ResolveFlags::NO_SYMLINKS).map_err(failed("open", "/dev"))?;
    attach_to(&tree, target.as_fd(), "/dev")?;
    let shared_memory = writable_tmpfs(SHARED_MEMORY_BYTES, 4096, "1777", owner)?;
    let target = open_below(root, "dev/shm", ResolveFlags::NO_SYMLINKS).map_err(failed("open", "/dev/shm"))?;
    attach_to(&shared_memory, target.as_fd(), "/dev/shm")?;
    if !is_step {
        return Ok(());
    }
    let scripts = writable_tmpfs(SCRIPTS_BYTES, 64, "0755", owner)?;
    let path = format!("dev/{SCRIPTS}");
    let target = open_below(root, &path, ResolveFlags::NO_SYMLINKS).map_err(failed("open", path.as_str()))?;
    attach_to(&scripts, target.as_fd(), &path)
}

fn hide_parts_of_proc() -> Result<(), SysError> {
    let hidden = HIDDEN_FILES.map(|name| (name, "/r/dev/null")).into_iter();
    // `pts` is empty: a sandbox has no terminal.
    for (name, cover) in hidden.chain(HIDDEN_FOLDERS.map(|name| (name, "/r/dev/pts"))) {
        // `/r/proc` and `/r/dev` are what was just mounted: no name of the image is on these paths.
        match mount_bind(cover, format!("/r/proc/{name}").as_str()) {
            // Not every kernel has them all.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("hide /proc entry", name)(error)),
        }
    }
    Ok(())
}

fn writable_tmpfs(size_bytes: u64, inodes: u64, mode: &str, owner: (u32, u32)) -> Result<OwnedFd, SysError> {
    let (size, inodes) = (size_bytes.to_string(), inodes.to_string());
    let (uid, gid) = (owner.0.to_string(), owner.1.to_string());
    let options = [("size", size.as_str()), ("nr_inodes", &inodes), ("mode", mode), ("uid", &uid), ("gid", &gid)];
    tmpfs(&options, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// A new tmpfs that is attached nowhere yet.
pub(super) fn tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, SysError> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open", "tmpfs"))?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value).map_err(failed("set tmpfs option", format!("{key}={value}")))?;
    }
    fsconfig_create(&context).map_err(failed("make", "tmpfs"))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount", "tmpfs"))
}

pub(super) fn attach(tree: &OwnedFd, path: &str) -> Result<(), SysError> {
    move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed("attach", path))
}

fn attach_to(tree: &OwnedFd, target: BorrowedFd<'_>, name: &str) -> Result<(), SysError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags).map_err(failed("attach", name))
}

pub(super) fn make_folder(path: &str) -> Result<(), SysError> {
    mkdirat(CWD, path, Mode::from_raw_mode(0o755)).map_err(failed("make folder", path))
}

pub(super) fn open_folder(path: &str) -> Result<OwnedFd, SysError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(Path::new(path), flags, Mode::empty()).map_err(failed("open", path))
}

/// Opens a folder of the sandbox's root; links that lead out of the root lead to its top instead.
pub(super) fn open_below(root: BorrowedFd<'_>, path: &str, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    sys::open_in_root(root, path, OFlags::PATH | OFlags::DIRECTORY, resolve)
}

const _: () = assert!(IMAGE_FIRST_ID > 0, "files of layers must not belong to the host's root");
