//! What is mounted in the root of a step of a build besides tmpfs: parts of layers, caches, secrets.
//!
//! ```text
//! /b          a small tmpfs
//! /b/N/K      the layers of the mount N, with the owners of this sandbox
//! /b/N/c      the folder of a cache that lies on layers
//! /b/N/r      what they come to: an overlay, so that no two sandboxes share an inode of a layer
//! /b/secrets  the secrets, a file each
//! ```
//!
//! Sources are resolved below their own root, as targets are below that of the sandbox: no link leads out of either.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, fstat, openat};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::mounts::{self, RootError};
use super::overlay;
use crate::spec::{FileOwner, LayerId, LayersPart, MountContent, StepMount};
use crate::sys::{self, MountAttributes, SysError, failed};

/// Where all of it is put together.
pub(super) const WORKSHOP: &str = "/b";
/// The secrets in there.
const SECRETS: &str = "/b/secrets";
/// Room for the folders in there: one for each layer of each mount, and a few.
const WORKSHOP_OPTIONS: [(&str, &str); 3] = [("size", "4m"), ("nr_inodes", "16k"), ("mode", "0755")];
/// Bytes of secrets' tmpfs that are not secrets: each file is rounded up to pages.
const SECRET_ROUNDING_BYTES: u64 = 64 * 1024;
/// What every mount forbids.
const NO_RIGHTS: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// What a step of a build is given for its mounts.
pub(crate) struct BindBirth {
    pub(crate) mounts: Vec<StepMount>,
    /// The folders of the caches among them, in their order.
    pub(crate) caches: Vec<OwnedFd>,
    /// The values of the secrets among them, one behind the other.
    pub(crate) secrets: Option<OwnedFd>,
}

impl BindBirth {
    /// How many drafts are needed for what is written and thrown away.
    pub(crate) fn drafts(&self) -> usize {
        self.mounts.iter().filter(|mount| takes_draft(mount)).count()
    }
}

/// The folder of a draft that takes what is written to a mount.
pub(crate) fn draft_name(number: usize) -> String {
    format!("mount-{number}")
}

fn takes_draft(mount: &StepMount) -> bool {
    !mount.read_only && matches!(mount.content, MountContent::Layers(_))
}

/// Copies of all the mounts that are needed, attached nowhere yet.
pub(crate) struct Sources<'a> {
    sources: Vec<Source<'a>>,
    secrets: Option<&'a OwnedFd>,
}

struct Source<'a> {
    mount: &'a StepMount,
    layers: Vec<OwnedFd>,
    cache: Option<OwnedFd>,
}

/// Copies what is to be mounted, while the host's tree can still be seen: the kernel copies only what is in the caller's
/// own namespace.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn collect<'a>(
    birth: &'a BindBirth,
    layers: BorrowedFd<'_>,
    id_map: BorrowedFd<'_>,
) -> Result<Sources<'a>, SysError> {
    let clone_all = |part: Option<&LayersPart>| -> Result<Vec<OwnedFd>, SysError> {
        part.into_iter().flat_map(|part| &part.layers).map(|layer| clone_mapped(layers, layer, id_map)).collect()
    };
    let mut caches = birth.caches.iter();
    let mut sources = Vec::with_capacity(birth.mounts.len());
    for mount in &birth.mounts {
        let (below, cache) = match &mount.content {
            MountContent::Layers(part) => (Some(part), None),
            MountContent::Cache { below, .. } => {
                let folder = caches.next().ok_or(rustix::io::Errno::INVAL).map_err(failed("find", "a cache"))?;
                (below.as_ref(), Some(clone_cache(folder, below.is_some(), id_map)?))
            }
            MountContent::Secret { .. } => (None, None),
        };
        sources.push(Source { mount, layers: clone_all(below)?, cache });
    }
    Ok(Sources { sources, secrets: birth.secrets.as_ref() })
}

fn clone_mapped(layers: BorrowedFd<'_>, layer: &LayerId, id_map: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    let tree = mounts::clone_layer(layers, layer.hex())?;
    let attributes = MountAttributes { set: 0, id_map: Some(id_map) };
    sys::mount_setattr(tree.as_fd(), attributes).map_err(failed("map the owners of layer", layer.hex()))?;
    Ok(tree)
}

/// The files of a cache; or all of its folder, when they lie on top of something.
fn clone_cache(folder: &OwnedFd, is_whole: bool, id_map: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    if is_whole {
        return mounts::clone_draft(folder.as_fd(), Some(id_map));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let files = openat(folder, mounts::UPPER, flags, Mode::empty()).map_err(failed("open", "a cache"))?;
    mounts::clone_draft(files.as_fd(), Some(id_map))
}

/// Something that only has to be attached.
pub(super) struct Bind<'a> {
    pub(super) target: &'a str,
    pub(super) tree: OwnedFd,
    pub(super) is_folder: bool,
}

/// Puts together what is mounted. The calling process has left the host's tree for that of its sandbox.
///
/// # Errors
/// The call that the kernel refused, or a source that is not there.
pub(super) fn assemble<'a>(sources: Sources<'a>, first_id: u32) -> Result<Vec<Bind<'a>>, RootError> {
    if sources.sources.is_empty() {
        return Ok(Vec::new());
    }
    let workshop = mounts::tmpfs(&WORKSHOP_OPTIONS, MountAttrFlags::empty())?;
    mounts::attach(&workshop, WORKSHOP)?;
    let mut vault = sources.secrets.map(|values| Vault::open(values, &sources.sources)).transpose()?;
    let mut drafts = 0;
    let mut binds = Vec::with_capacity(sources.sources.len());
    for (number, Source { mount, layers, cache }) in sources.sources.into_iter().enumerate() {
        let bench = Bench { path: format!("{WORKSHOP}/{number}"), first_id };
        mounts::make_folder(&bench.path)?;
        let (tree, is_folder) = match (&mount.content, cache) {
            (MountContent::Layers(part), _) => {
                let draft = format!("{}/{}", mounts::DRAFT, draft_name(drafts));
                drafts += usize::from(takes_draft(mount));
                bench.merge(layers, Some(draft.as_str()).filter(|_| takes_draft(mount)), true)?;
                bench.pick(&part.source, &mount.target)?
            }
            (MountContent::Cache { below: Some(part), .. }, Some(cache)) => {
                let folder = format!("{}/c", bench.path);
                mounts::make_folder(&folder)?;
                mounts::attach(&cache, &folder)?;
                bench.merge(layers, Some(&folder), false)?;
                bench.pick(&part.source, &mount.target)?
            }
            (MountContent::Cache { .. }, Some(cache)) => (cache, true),
            (MountContent::Secret { bytes, owner }, _) => {
                let vault = vault.as_mut().ok_or(rustix::io::Errno::INVAL).map_err(failed("find", "the secrets"))?;
                (vault.next(*bytes, *owner, first_id)?, false)
            }
            (MountContent::Cache { .. }, None) => {
                return Err(failed("find", "a cache")(rustix::io::Errno::INVAL).into());
            }
        };
        let read_only = if mount.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        let attributes = MountAttributes { set: NO_RIGHTS | read_only, id_map: None };
        sys::mount_setattr(tree.as_fd(), attributes).map_err(failed("restrict", mount.target.as_str()))?;
        binds.push(Bind { target: &mount.target, tree, is_folder });
    }
    Ok(binds)
}

/// Where one mount is put together.
struct Bench {
    path: String,
    first_id: u32,
}

impl Bench {
    /// Lays layers over each other, at `r`; what is written goes to the folder `upper`, if there is one.
    fn merge(&self, mut layers: Vec<OwnedFd>, upper: Option<&str>, is_volatile: bool) -> Result<(), SysError> {
        layers.drain(..overlay::hidden(&layers));
        let mut folders = Vec::with_capacity(layers.len() + 2);
        for (number, layer) in layers.iter().enumerate().rev() {
            let path = format!("{}/{number}", self.path);
            mounts::make_folder(&path)?;
            mounts::attach(layer, &path)?;
            folders.push(path);
        }
        // overlayfs takes two or more where nothing can be written.
        let empty = if layers.is_empty() { &["e", "f"][..] } else { &["e"][..] };
        for name in empty {
            let path = format!("{}/{name}", self.path);
            mounts::make_folder(&path)?;
            let (uid, gid) = (Uid::from_raw(self.first_id), Gid::from_raw(self.first_id));
            chownat(rustix::fs::CWD, &path, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("give away folder", path.as_str()))?;
            folders.push(path);
        }
        let target = self.merged();
        mounts::make_folder(&target)?;
        let merged = match upper {
            Some(upper) => overlay::mount_writable(&folders, upper, self.first_id, is_volatile),
            None => match overlay::mount(&folders) {
                Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => {
                    return mounts::mount_by_options(&folders, &target).map(drop);
                }
                mounted => mounted,
            },
        };
        mounts::attach(&merged?, &target)
    }

    fn merged(&self) -> String {
        format!("{}/r", self.path)
    }

    /// A copy of the mount of what is at `source`, and whether that is a folder.
    fn pick(&self, source: &str, target: &str) -> Result<(OwnedFd, bool), RootError> {
        let refuse = |problem: &str| RootError::Mount {
            target: target.to_owned(),
            problem: format!("its source `{source}` {problem}"),
        };
        let root = mounts::open_folder(&self.merged())?;
        let found = match sys::open_in_root(root.as_fd(), source, OFlags::PATH, ResolveFlags::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Err(refuse("is not there")),
            Err(rustix::io::Errno::LOOP) => return Err(refuse("is a link that leads nowhere")),
            found => found.map_err(failed("open", source))?,
        };
        let stat = fstat(&found).map_err(failed("look at", source))?;
        let is_folder = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return Err(refuse("is neither a file nor a folder")),
        };
        Ok((clone_at(&found).map_err(failed("clone", source))?, is_folder))
    }
}

fn clone_at(found: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(found, "", flags)
}

/// The secrets of one sandbox, on a tmpfs that nobody else sees.
struct Vault {
    folder: OwnedFd,
    values: File,
    read: u64,
    count: usize,
}

impl Vault {
    fn open(values: &OwnedFd, sources: &[Source<'_>]) -> Result<Vault, SysError> {
        let bytes = sources.iter().map(|source| match source.mount.content {
            MountContent::Secret { bytes, .. } => bytes + SECRET_ROUNDING_BYTES,
            _ => 0,
        });
        let size = (SECRET_ROUNDING_BYTES + bytes.sum::<u64>()).to_string();
        let options = [("size", size.as_str()), ("nr_inodes", "64"), ("mode", "0700")];
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        mounts::make_folder(SECRETS)?;
        mounts::attach(&mounts::tmpfs(&options, attributes)?, SECRETS)?;
        let values = values.try_clone().map_err(failed("keep", "the secrets"))?;
        Ok(Vault { folder: mounts::open_folder(SECRETS)?, values: File::from(values), read: 0, count: 0 })
    }

    /// A file with the next value.
    fn next(&mut self, bytes: u64, owner: FileOwner, first_id: u32) -> Result<OwnedFd, SysError> {
        let mut value = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.values.read_exact_at(&mut value, self.read).map_err(failed("read", "a secret"))?;
        let name = self.count.to_string();
        (self.read, self.count) = (self.read + bytes, self.count + 1);
        let owner = FileOwner { uid: first_id + owner.uid, gid: first_id + owner.gid, ..owner };
        file(&self.folder, &name, &value, owner, "a secret")
    }
}

/// Makes a file, `what` for people, and returns a mount of it that is attached nowhere yet. The ids are the host's.
pub(super) fn file(
    folder: &OwnedFd,
    name: &str,
    content: &[u8],
    owner: FileOwner,
    what: &str,
) -> Result<OwnedFd, SysError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = openat(folder, name, flags, Mode::RUSR).map(File::from).map_err(failed("make", what))?;
    file.write_all(content).map_err(failed("write", what))?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    fchown(&file, Some(uid), Some(gid)).map_err(failed("give away", what))?;
    fchmod(&file, Mode::from_raw_mode(owner.mode)).map_err(failed("set mode of", what))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let written = openat(folder, name, flags, Mode::empty()).map_err(failed("open", what))?;
    clone_at(&written).map_err(failed("clone", what))
}
