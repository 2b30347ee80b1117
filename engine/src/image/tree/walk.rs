//! Steps through a tree by descriptors: no path is followed, no link is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{NodeKind, TreeError};
use crate::image::archive::{DEPTH_MAX, Timestamp, Xattr, printable};
use crate::image::layer::{OVERLAY_XATTR_PREFIX, is_kept};

/// Most memory for the names of the folders that a walk is in, in bytes.
const NAMES_BYTES_MAX: usize = 256 << 20;
/// How the kernel resolves names here.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Longest list of attribute names, and longest value: what the kernel knows.
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// What the kernel says of something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) links: u64,
    /// Whether it takes less room than it has bytes.
    pub(crate) has_holes: bool,
}

/// Names the failure of a call on a path.
pub(crate) fn system<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl FnOnce(E) -> TreeError {
    let path = printable(path);
    move |source| TreeError::System { action, path, source: source.into() }
}

/// Opens the root of a tree for reading.
pub(crate) fn open_root(tree: BorrowedFd<'_>) -> Result<OwnedFd, TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(tree, ".", flags, Mode::empty()).map_err(system("open", b"/"))
}

/// Opens a folder in a folder; `path` is for messages.
pub(crate) fn open_folder(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<OwnedFd, TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), RESOLVE).map_err(system("open", path))
}

/// Opens a file in a folder; `path` is for messages.
pub(crate) fn open_file(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<OwnedFd, TreeError> {
    // Nothing but a regular file is opened; should it have become a pipe, this does not wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), RESOLVE).map_err(system("open", path))
}

/// Looks at something in a folder.
pub(crate) fn look(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Node, TreeError> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(system("look at", path))?;
    Ok(node(&stat))
}

/// Looks at an open folder.
pub(crate) fn look_at(folder: BorrowedFd<'_>, path: &[u8]) -> Result<Node, TreeError> {
    rustix::fs::fstat(folder).map(|stat| node(&stat)).map_err(system("look at", path))
}

fn node(stat: &rustix::fs::Stat) -> Node {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => NodeKind::File,
        FileType::Directory => NodeKind::Folder,
        FileType::Symlink => NodeKind::Symlink,
        FileType::Fifo => NodeKind::Pipe,
        FileType::CharacterDevice if stat.st_rdev == 0 => NodeKind::Whiteout,
        _ => NodeKind::Other,
    };
    let size = if kind == NodeKind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
    Node {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size,
        mtime: Timestamp { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
        device: stat.st_dev,
        inode: stat.st_ino,
        links: stat.st_nlink,
        has_holes: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size,
    }
}

/// Where a symbolic link points.
pub(crate) fn target(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Vec<u8>, TreeError> {
    let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(system("read link", path))?;
    Ok(target.into_bytes())
}

/// The extended attributes that an image keeps, by name; with `marks` also those that overlayfs reads in a layer.
pub(crate) fn xattrs(file: BorrowedFd<'_>, path: &[u8], marks: bool) -> Result<Vec<Xattr>, TreeError> {
    let mut list = vec![0; 1024];
    let length = match rustix::fs::flistxattr(file, &mut list[..]) {
        Err(Errno::RANGE) => {
            list.resize(XATTR_BYTES_MAX, 0);
            rustix::fs::flistxattr(file, &mut list[..])
        }
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        listed => listed,
    };
    list.truncate(length.map_err(system("list the extended attributes of", path))?);
    let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<&[u8]> =
        names.filter(|name| is_kept(name) || (marks && name.starts_with(OVERLAY_XATTR_PREFIX))).collect();
    names.sort_unstable();
    names.into_iter().map(|name| xattr(file, name, path)).collect()
}

fn xattr(file: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Xattr, TreeError> {
    let mut value = vec![0; 256];
    let length = match rustix::fs::fgetxattr(file, name, &mut value[..]) {
        Err(Errno::RANGE) => {
            value.resize(XATTR_BYTES_MAX, 0);
            rustix::fs::fgetxattr(file, name, &mut value[..])
        }
        read => read,
    };
    value.truncate(length.map_err(system("read an extended attribute of", path))?);
    Ok(Xattr { name: name.to_vec(), value })
}

/// How much a walk holds at a moment.
#[derive(Debug, Default)]
pub(crate) struct Held {
    names_bytes: usize,
    folders: usize,
}

impl Held {
    /// The names in a folder, in the order of their bytes, counted until they are let go of.
    pub(crate) fn names(&mut self, folder: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, TreeError> {
        self.folders += 1;
        if self.folders > 2 * DEPTH_MAX {
            return Err(TreeError::Limit { path: printable(path), bound: DEPTH_MAX, what: "names in a path" });
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(folder.as_fd()).map_err(system("list", path))? {
            let entry = entry.map_err(system("list", path))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            self.names_bytes += cost(name);
            if self.names_bytes > NAMES_BYTES_MAX {
                let what = "bytes of names in its folders";
                return Err(TreeError::Limit { path: printable(path), bound: NAMES_BYTES_MAX, what });
            }
            names.push(name.to_vec());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Counts a name no more.
    pub(crate) fn let_go_of_name(&mut self, name: &[u8]) {
        self.names_bytes = self.names_bytes.saturating_sub(cost(name));
    }

    /// Counts a folder no more.
    pub(crate) fn leave_folder(&mut self) {
        self.folders = self.folders.saturating_sub(1);
    }
}

fn cost(name: &[u8]) -> usize {
    name.len() + size_of::<Vec<u8>>()
}
