//! What a step of a build changed, as overlayfs keeps it, to a layer: what only overlayfs has use for goes, times become
//! those that a layer has, and all of it is written as the tar of a layer. The folder is then what that tar unpacks to.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Timespec, Timestamps};

use super::export::Export;
use super::walk::{self, Held, Node, system};
use super::{NodeKind, StepTerms, TreeError, Written};
use crate::image::digest::Hasher;
use crate::image::layer::{OPAQUE_XATTR, OVERLAY_XATTR_PREFIX};

/// Mode and owner of a root that nobody changed.
const UNTOUCHED: (u32, u32, u32) = (0o755, 0, 0);
/// A layer that was made.
pub(crate) struct Sealed {
    /// The SHA-256 of its tar, as 64 digits.
    pub(crate) diff_id: String,
    pub(crate) written: Written,
}

/// Makes a layer of a folder that was the upper one of an overlay, and writes its tar to `output`. All of it is on disk
/// when this returns.
///
/// # Errors
/// A folder that cannot be read or changed, one that passes a bound, and an output that takes no more.
pub(crate) fn seal(upper: BorrowedFd<'_>, output: impl Write, terms: StepTerms) -> Result<Sealed, TreeError> {
    tidy(upper, terms)?;
    let mut output = HashedWriter { inner: output, hasher: Hasher::default() };
    let mut export = Export::new(&mut output, true);
    let root = walk::open_root(upper)?;
    let node = walk::look_at(root.as_fd(), b"/")?;
    if (node.mode, node.uid, node.gid) != UNTOUCHED {
        export.folder_entry(&root, b"./")?;
    }
    export.walk(root, Vec::new(), &|_| true)?;
    let written = export.finish()?;
    rustix::fs::syncfs(upper).map_err(system("bring to disk", b"/"))?;
    Ok(Sealed { diff_id: output.hasher.finish().hex().to_owned(), written })
}

struct HashedWriter<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for HashedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A folder that the walk is in.
struct Level {
    folder: OwnedFd,
    names: std::vec::IntoIter<Vec<u8>>,
    path_length: usize,
}

/// Takes away what a layer does not have.
fn tidy(upper: BorrowedFd<'_>, terms: StepTerms) -> Result<(), TreeError> {
    let mut held = Held::default();
    let mut path = Vec::new();
    let root = walk::open_root(upper)?;
    let names = held.names(&root, b"/")?.into_iter();
    let mut levels = vec![Level { folder: root, names, path_length: 0 }];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path_length);
        let Some(name) = level.names.next() else {
            // Whatever went from it has changed its time, so that it comes last.
            tidy_folder(&level.folder, &path, terms)?;
            levels.pop();
            held.leave_folder();
            continue;
        };
        held.let_go_of_name(&name);
        path.extend_from_slice(&name);
        let node = walk::look(level.folder.as_fd(), &name, &path)?;
        if node.kind == NodeKind::Folder {
            let folder = walk::open_folder(level.folder.as_fd(), &name, &path)?;
            let names = held.names(&folder, &path)?.into_iter();
            path.push(b'/');
            levels.push(Level { folder, names, path_length: path.len() });
        } else {
            tidy_entry(level.folder.as_fd(), &name, &path, &node, terms)?;
        }
    }
    Ok(())
}

fn tidy_folder(folder: &OwnedFd, path: &[u8], terms: StepTerms) -> Result<(), TreeError> {
    strip(folder.as_fd(), path)?;
    let node = walk::look_at(folder.as_fd(), path)?;
    match settled(&node, terms) {
        Some(times) => rustix::fs::futimens(folder, &times).map_err(system("set the time of", path)),
        None => Ok(()),
    }
}

fn tidy_entry(
    parent: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    node: &Node,
    terms: StepTerms,
) -> Result<(), TreeError> {
    match node.kind {
        NodeKind::Whiteout => return Ok(()),
        // A socket means nothing without the program that listened.
        NodeKind::Other => {
            return rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(system("remove", path));
        }
        NodeKind::File => strip(walk::open_file(parent, name, path)?.as_fd(), path)?,
        _ => {}
    }
    match settled(node, terms) {
        Some(times) => rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(system("set the time of", path)),
        None => Ok(()),
    }
}

/// Removes what overlayfs noted for itself.
fn strip(file: BorrowedFd<'_>, path: &[u8]) -> Result<(), TreeError> {
    for xattr in walk::xattrs(file, path, true)? {
        // A layer keeps the mark of a folder that hides those below it.
        let is_kept = xattr.name == OPAQUE_XATTR.as_bytes() && xattr.value == b"y";
        if xattr.name.starts_with(OVERLAY_XATTR_PREFIX) && !is_kept {
            rustix::fs::fremovexattr(file, xattr.name.as_slice()).map_err(system("clean", path))?;
        }
    }
    Ok(())
}

/// The time that a layer tells, in whole seconds, when it is not the one that something has.
fn settled(node: &Node, terms: StepTerms) -> Option<Timestamps> {
    let seconds = terms.epoch.map_or(node.mtime.seconds, |epoch| node.mtime.seconds.min(epoch));
    if (seconds, 0) == (node.mtime.seconds, node.mtime.nanos) {
        return None;
    }
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Some(Timestamps { last_access: time, last_modification: time })
}
