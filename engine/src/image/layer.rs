//! Unpacks the tar of one layer into an empty folder, in the form that overlayfs takes as a lower layer. Meant to run
//! inside a throw-away sandbox, as root of a user namespace of its own; it does not make one.
//!
//! Every path is resolved by the kernel beneath the folder's descriptor and through no symbolic link. What a layer
//! deletes becomes a character device 0:0 where the file was; a folder that hides those below it gets the attribute
//! `user.overlay.opaque`. Both can be made without privileges, and the second needs the mount option `userxattr`.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::archive::{self, ArchiveError, Entry, Head, Kind, PathError, Place, Timestamp};
use super::compression::{Bounds, Decompressed};
use super::digest::{Hasher, Hashing};
pub use crate::spec::Skipped;
pub(crate) use ahead::Ahead;
use folder::{Attributes, Folder, MadeFolder, Open};
pub(in crate::image) use folder::{OPAQUE_XATTR, OVERLAY_XATTR_PREFIX};
pub(crate) use place::place;
pub use remove::{remove_all_in, remove_tree};

mod ahead;
mod folder;
mod place;
mod remove;

/// Highest owner and group that a file may have: what a sandbox's user namespace maps.
pub const ID_MAX: u32 = 65_535;
/// Names that begin so are not files but marks.
pub(in crate::image) const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The mark of a folder that hides what lower layers hold in it.
pub(in crate::image) const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// Names that AUFS kept its own data under; they mean nothing to others.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Most memory for the times of folders, which can only be set last.
const FOLDER_TIMES_BYTES_MAX: usize = 256 << 20;
/// The bit by which a folder gives its group to what is made in it.
const SETGID: u32 = 0o2000;
/// The bits of a mode that a file has as soon as it is made.
const PLAIN_MODE: u32 = 0o777;
/// Bytes of content moved at a time.
const CONTENT_BUFFER_BYTES: usize = 256 * 1024;

/// What a layer may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes and ratio.
    pub bounds: Bounds,
    /// Most entries.
    pub entries_max: u64,
}

impl Default for UnpackLimits {
    /// 16 GiB, 1000 to 1 past 64 MiB, two million entries.
    fn default() -> UnpackLimits {
        UnpackLimits { bounds: Bounds::default(), entries_max: archive::Limits::default().entries_max }
    }
}

/// A layer that was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The SHA-256 of the whole uncompressed stream, to its last byte: the layer's diff id, as 64 digits.
    pub diff_id: String,
    /// Length of that stream in bytes.
    pub tar_bytes: u64,
    /// Entries that it holds.
    pub entries: u64,
    /// What was left out.
    pub skipped: Skipped,
}

/// Why a layer was not unpacked. The folder holds a part of it and is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive cannot be read.
    #[error("could not read the layer")]
    Archive(#[from] ArchiveError),
    /// The first bytes of the archive could not be read.
    #[error("could not read the layer")]
    Open(#[source] io::Error),
    /// A path that leads out or is too long.
    #[error("{place} of the layer is refused")]
    Path {
        /// Where.
        place: Place,
        /// What is wrong.
        source: PathError,
    },
    /// Something that the rules do not allow.
    #[error("{place} of the layer is refused: {problem}")]
    Refused {
        /// Where.
        place: Place,
        /// What is wrong, with a hint if there is one.
        problem: String,
    },
    /// A system call failed.
    #[error("could not {action} {place} of the layer")]
    System {
        /// What was tried, as in `write`.
        action: &'static str,
        /// Where.
        place: Place,
        /// Why it failed.
        source: io::Error,
    },
    /// The file system could not be brought to disk.
    #[error("could not bring the layer to disk")]
    Sync(#[source] io::Error),
}

/// Unpacks `archive` (tar; plain, gzip or zstd, told by its first bytes) into the empty folder `root` and brings it to
/// disk.
///
/// # Errors
/// An archive that cannot be read or is refused, and a file system that fails; the error names the entry.
pub fn unpack(archive: impl Read, root: BorrowedFd<'_>, limits: UnpackLimits) -> Result<Unpacked, UnpackError> {
    let plain = Decompressed::new(archive, limits.bounds).map_err(UnpackError::Open)?;
    let layer = Layer::new(root, Maker::default());
    unpack_plain(Hashing::new(plain), layer, limits, |plain| Ok(plain.into_hasher()))
}

/// Unpacks as `unpack` does, with other threads that decompress and hash. For a process of its own: sets its umask.
pub(crate) fn unpack_ahead(
    archive: impl Read + Send + 'static,
    ahead: Ahead,
    root: BorrowedFd<'_>,
    limits: UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let is_root = rustix::process::geteuid().is_root() && rustix::process::getegid().is_root();
    let layer = Layer::new(root, Maker { gives_root: is_root, gives_mode: true });
    unpack_plain(ahead.read(archive, limits.bounds), layer, limits, |plain| plain.into_hasher())
}

fn unpack_plain<R: Read>(
    plain: R,
    mut layer: Layer<'_>,
    limits: UnpackLimits,
    hasher: impl FnOnce(R) -> io::Result<Hasher>,
) -> Result<Unpacked, UnpackError> {
    let limits = archive::Limits { entries_max: limits.entries_max, bytes_max: limits.bounds.bytes_max };
    let mut reader = archive::Reader::new(plain, limits);
    while let Some(mut entry) = reader.next_entry()? {
        layer.apply(&mut entry)?;
    }
    layer.set_folder_times()?;
    let entries = reader.entries();
    // The diff id covers what stands behind the end mark as well.
    let hasher = hasher(reader.drain()?).map_err(UnpackError::Open)?;
    layer.root.sync().map_err(UnpackError::Sync)?;
    let tar_bytes = hasher.bytes();
    Ok(Unpacked { diff_id: hasher.finish().hex().to_owned(), tar_bytes, entries, skipped: layer.skipped })
}

/// What a file has as soon as it is made, so that it need not be set.
#[derive(Clone, Copy, Debug, Default)]
struct Maker {
    /// It belongs to user and group 0: that is who makes it, and no folder has had a group for its files.
    gives_root: bool,
    /// It has the mode that it is made with: there is no umask, and no folder has had a group or an access list for its
    /// files.
    gives_mode: bool,
}

/// A layer while it is unpacked.
struct Layer<'root> {
    root: Folder<'root>,
    maker: Maker,
    /// The folder that was used last, by its path: most entries stand in the one of the entry before.
    last: Option<(Vec<u8>, Rc<Folder<'static>>)>,
    skipped: Skipped,
    folder_times: Vec<(Box<[u8]>, Timestamp)>,
    folder_times_bytes: usize,
    buffer: Vec<u8>,
}

impl<'root> Layer<'root> {
    fn new(root: BorrowedFd<'root>, maker: Maker) -> Layer<'root> {
        Layer {
            root: Folder::borrowed(root),
            maker,
            last: None,
            skipped: Skipped::default(),
            folder_times: Vec::new(),
            folder_times_bytes: 0,
            buffer: vec![0; CONTENT_BUFFER_BYTES],
        }
    }

    fn apply<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        let place = entry.place();
        let head = entry.take_head();
        let parts = head.components().map_err(|source| UnpackError::Path { place: place.clone(), source })?;
        if let Some(id) = [head.uid, head.gid].into_iter().find(|&id| id > ID_MAX) {
            let hint = format!("hint: an image is made with owners and groups of 0 to {ID_MAX}");
            return Err(refused(&place, format!("it belongs to the id {id}\n{hint}")));
        }
        let Some((&name, above)) = parts.split_last() else {
            return self.apply_root(&place, &head);
        };
        if parts[0].starts_with(AUFS_PREFIX) && parts[0] != OPAQUE_MARK {
            return Ok(());
        }
        if above.iter().any(|part| part.starts_with(WHITEOUT_PREFIX)) {
            return Err(refused(&place, "a name that begins with `.wh.` is a mark and cannot be a folder"));
        }
        let parent = self.parent(&place, above)?;
        match name.strip_prefix(WHITEOUT_PREFIX) {
            // On the root of a layer the mark says that nothing of the layers below is seen; who mounts them looks.
            Some(_) if name == OPAQUE_MARK => parent.set_opaque().map_err(|source| system("mark", &place, source)),
            Some(_) if name.starts_with(AUFS_PREFIX) => Ok(()),
            Some(hidden) => hide(&place, &parent, hidden),
            None => self.place_entry(&place, &parent, name, &head, entry),
        }
    }

    fn apply_root(&mut self, place: &Place, head: &Head) -> Result<(), UnpackError> {
        if head.kind != Kind::Directory {
            return Err(refused(place, "it takes the place of the root folder"));
        }
        let attributes = self.root.attributes().map_err(|source| system("open", place, source))?;
        self.set_attributes(place, attributes.open(), head, Maker::default())?;
        self.remember_time(place, head)
    }

    /// The folder that an entry goes into; folders that the archive does not name are made.
    fn parent(&mut self, place: &Place, above: &[&[u8]]) -> Result<Rc<Folder<'static>>, UnpackError> {
        let path = above.join(&b'/');
        if let Some((last, folder)) = &self.last
            && *last == path
        {
            return Ok(Rc::clone(folder));
        }
        let folder = Rc::new(self.open_parent(place, above)?);
        self.last = Some((path, Rc::clone(&folder)));
        Ok(folder)
    }

    fn open_parent(&self, place: &Place, above: &[&[u8]]) -> Result<Folder<'static>, UnpackError> {
        if let Ok(folder) = self.root.open_beneath(above) {
            return Ok(folder);
        }
        let mut folder = self.root.open_beneath(&[]).map_err(|source| system("open the root for", place, source))?;
        for (depth, name) in above.iter().enumerate() {
            folder = match folder.open_or_make(name) {
                Ok(folder) => folder,
                Err(folder::OpenError::NotAFolder) => {
                    let path = archive::printable(&above[..=depth].join(&b'/'));
                    let hint = "hint: an image names a file by its real path, not through a link";
                    return Err(refused(place, format!("`{path}` in its path is not a folder\n{hint}")));
                }
                Err(folder::OpenError::System(source)) => return Err(system("make the folders of", place, source)),
            };
        }
        Ok(folder)
    }

    fn place_entry<R: Read>(
        &mut self,
        place: &Place,
        parent: &Folder<'_>,
        name: &[u8],
        head: &Head,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        match &head.kind {
            Kind::Directory => self.place_folder(place, parent, name, head),
            Kind::File => {
                let file = self.replacing(parent, name, || parent.make_file(name, head.mode));
                let file = file.map_err(|source| system("make", place, source))?;
                self.write_content(place, &file, head, entry)?;
                self.set_attributes(place, file.open(), head, self.maker)?;
                file.set_time(head.mtime).map_err(|source| system("set the time of", place, source))
            }
            Kind::Symlink { target } => {
                let made = self.replacing(parent, name, || parent.make_symlink(name, target));
                let has_owner = self.maker.gives_root && (head.uid, head.gid) == (0, 0);
                made.and_then(|()| parent.set_link_attributes(name, head, has_owner))
                    .map_err(|source| system("make", place, source))?;
                self.skipped.xattrs += head.xattrs.len() as u64;
                Ok(())
            }
            Kind::Fifo => {
                let made = self.replacing(parent, name, || parent.make_fifo(name));
                made.and_then(|()| parent.set_fifo_attributes(name, head))
                    .map_err(|source| system("make", place, source))?;
                self.skipped.xattrs += head.xattrs.len() as u64;
                Ok(())
            }
            Kind::HardLink { target } => self.place_hard_link(place, parent, name, target),
            Kind::Device => {
                self.skipped.devices += 1;
                Ok(())
            }
        }
    }

    fn place_folder(
        &mut self,
        place: &Place,
        parent: &Folder<'_>,
        name: &[u8],
        head: &Head,
    ) -> Result<(), UnpackError> {
        let made = parent.make_folder(name, head.mode).map_err(|source| system("make", place, source))?;
        let MadeFolder { folder, has_replaced, is_new } = made;
        if has_replaced {
            self.last = None;
        }
        let maker = if is_new { self.maker } else { Maker::default() };
        self.set_attributes(place, folder.open(), head, maker)?;
        let is_acl = |xattr: &archive::Xattr| xattr.name == b"system.posix_acl_default";
        let gives_group = head.mode & SETGID != 0;
        self.maker.gives_root &= !gives_group;
        // A folder in such a folder has the bit as well.
        self.maker.gives_mode &= !gives_group && !head.xattrs.iter().any(is_acl);
        self.remember_time(place, head)
    }

    /// Makes something; removes what has its name and tries again if it is taken.
    fn replacing<T>(&mut self, parent: &Folder<'_>, name: &[u8], make: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The folder that was used last may be what goes.
                self.last = None;
                parent.remove(name)?;
                make()
            }
            made => made,
        }
    }

    /// Gives a file that was unpacked before another name. Its attributes stay those of the first name.
    fn place_hard_link(
        &mut self,
        place: &Place,
        parent: &Folder<'_>,
        name: &[u8],
        target: &[u8],
    ) -> Result<(), UnpackError> {
        let parts = archive::split_path(target).map_err(|source| UnpackError::Path { place: place.clone(), source })?;
        let no_such =
            || refused(place, format!("its target `{}` is no file that this layer holds", archive::printable(target)));
        let (&target_name, above) = parts.split_last().ok_or_else(no_such)?;
        let target_parent = self.root.open_beneath(above).map_err(|_| no_such())?;
        if !target_parent.holds_file(target_name) {
            return Err(no_such());
        }
        let linked = self.replacing(parent, name, || parent.make_hard_link(name, &target_parent, target_name));
        linked.map_err(|source| system("link", place, source))
    }

    fn write_content<R: Read>(
        &mut self,
        place: &Place,
        file: &Attributes,
        head: &Head,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let mut end = 0;
        while let Some(piece) = entry.read_piece(&mut self.buffer)? {
            let written = file.write_at(&self.buffer[..piece.length], piece.offset);
            written.map_err(|source| system("write", place, source))?;
            end = piece.offset + piece.length as u64;
        }
        if end < head.size {
            file.set_size(head.size).map_err(|source| system("set the size of", place, source))?;
        }
        Ok(())
    }

    /// Sets owner, extended attributes and mode, in the order in which none takes another back.
    fn set_attributes(&mut self, place: &Place, file: Open<'_>, head: &Head, maker: Maker) -> Result<(), UnpackError> {
        if !(maker.gives_root && (head.uid, head.gid) == (0, 0)) {
            file.set_owner(head.uid, head.gid).map_err(|source| system("set the owner of", place, source))?;
        }
        for xattr in &head.xattrs {
            let kept = is_kept(&xattr.name)
                && file.set_xattr(xattr).map_err(|source| system("set an extended attribute of", place, source))?;
            self.skipped.xattrs += u64::from(!kept);
        }
        // An access list changes the mode as well.
        if !maker.gives_mode || head.mode & !PLAIN_MODE != 0 || !head.xattrs.is_empty() {
            file.set_mode(head.mode).map_err(|source| system("set the mode of", place, source))?;
        }
        Ok(())
    }

    /// A folder's time changes with everything that is put into it.
    fn remember_time(&mut self, place: &Place, head: &Head) -> Result<(), UnpackError> {
        self.folder_times_bytes += size_of::<(Box<[u8]>, Timestamp)>() + head.path.len();
        if self.folder_times_bytes > FOLDER_TIMES_BYTES_MAX {
            return Err(refused(place, "the layer has too many folders"));
        }
        self.folder_times.push((head.path.as_slice().into(), head.mtime));
        Ok(())
    }

    fn set_folder_times(&mut self) -> Result<(), UnpackError> {
        for (path, time) in std::mem::take(&mut self.folder_times) {
            let place = Place { entry: 0, path: Some(archive::printable(&path)) };
            let parts =
                archive::split_path(&path).map_err(|source| UnpackError::Path { place: place.clone(), source })?;
            // A later entry may have taken the folder's place; then there is nothing to do.
            if let Ok(folder) = self.root.attributes_beneath(&parts) {
                folder.set_time(time).map_err(|source| system("set the time of", &place, source))?;
            }
        }
        Ok(())
    }
}

/// Hides what lower layers hold under a name. What this layer itself holds there stays: marks are for lower layers.
fn hide(place: &Place, parent: &Folder<'_>, hidden: &[u8]) -> Result<(), UnpackError> {
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(refused(place, "it is the mark of a deleted file that has no name"));
    }
    parent.hide(hidden).map_err(|source| system("mark", place, source))
}

/// Whether an extended attribute of an archive is given to the file. The rest belongs to the host: a layer must not
/// speak to overlayfs or to a security module.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    let is_users = name.starts_with(b"user.") && !name.starts_with(folder::OVERLAY_XATTR_PREFIX);
    is_users || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

fn refused(place: &Place, problem: impl Into<String>) -> UnpackError {
    UnpackError::Refused { place: place.clone(), problem: problem.into() }
}

fn system(action: &'static str, place: &Place, source: io::Error) -> UnpackError {
    UnpackError::System { action, place: place.clone(), source }
}

#[cfg(test)]
mod tests;
