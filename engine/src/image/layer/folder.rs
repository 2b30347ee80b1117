//! A folder held by its descriptor, and what can be made in it. Names are single names; the kernel follows no link
//! and leaves no folder on the way to what is opened here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::remove;
use crate::image::archive::{Head, Timestamp, Xattr};

/// Prefix of the attributes by which overlayfs keeps its own data in a layer.
pub(in crate::image) const OVERLAY_XATTR_PREFIX: &[u8] = b"user.overlay.";
/// The attribute of a folder that hides those of the same name in lower layers.
pub(in crate::image) const OPAQUE_XATTR: &str = "user.overlay.opaque";
/// Mode of a folder that an archive leaves out.
const IMPLIED_FOLDER_MODE: u32 = 0o755;
/// What of a mode is given to a file when it is made; the rest is set when it has its owner.
const PERMISSION_BITS: u32 = 0o777;
/// How a folder is opened for its attributes.
const FOLDER_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How the kernel resolves every path here.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A folder that entries are made in.
pub(super) struct Folder<'root>(Descriptor<'root>);

enum Descriptor<'root> {
    Borrowed(BorrowedFd<'root>),
    Owned(OwnedFd),
}

/// A folder that was just made or found.
pub(super) struct MadeFolder {
    pub(super) folder: Folder<'static>,
    /// Something else had its name, and is gone.
    pub(super) has_replaced: bool,
    /// It was not there before.
    pub(super) is_new: bool,
}

/// Why a folder on the way could not be opened or made.
pub(super) enum OpenError {
    /// Something else has its name.
    NotAFolder,
    /// The kernel says no.
    System(io::Error),
}

impl<'root> Folder<'root> {
    pub(super) fn borrowed(descriptor: BorrowedFd<'root>) -> Folder<'root> {
        Folder(Descriptor::Borrowed(descriptor))
    }

    pub(super) fn owned(descriptor: OwnedFd) -> Folder<'static> {
        Folder(Descriptor::Owned(descriptor))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Descriptor::Borrowed(descriptor) => *descriptor,
            Descriptor::Owned(descriptor) => descriptor.as_fd(),
        }
    }

    /// What the attributes of a folder that was just made are set through.
    pub(super) fn open(&self) -> Open<'_> {
        Open(self.fd())
    }

    /// Opens a folder beneath this one that is there; no parts mean this one.
    pub(super) fn open_beneath(&self, parts: &[&[u8]]) -> io::Result<Folder<'static>> {
        let path = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = rustix::fs::openat2(self.fd(), path.as_slice(), flags, Mode::empty(), RESOLVE)?;
        Ok(Folder(Descriptor::Owned(descriptor)))
    }

    /// Opens the folder `name`, or makes it where nothing is or the layer only hides something.
    pub(super) fn open_or_make(&self, name: &[u8]) -> Result<Folder<'static>, OpenError> {
        match self.file_type(name).map_err(OpenError::System)? {
            Some(Occupant::Folder) => self.open_beneath(&[name]).map_err(OpenError::System),
            None | Some(Occupant::Whiteout) => {
                let made = self.make_folder(name, IMPLIED_FOLDER_MODE);
                let made = made.and_then(|made| made.folder.open().set_mode(IMPLIED_FOLDER_MODE).map(|()| made));
                made.map(|made| made.folder).map_err(OpenError::System)
            }
            Some(Occupant::File | Occupant::Other) => Err(OpenError::NotAFolder),
        }
    }

    /// The folder itself, opened so that its attributes can be set.
    pub(super) fn attributes(&self) -> io::Result<Attributes> {
        self.attributes_beneath(&[])
    }

    /// A folder beneath this one that is there, opened so that its attributes can be set.
    pub(super) fn attributes_beneath(&self, parts: &[&[u8]]) -> io::Result<Attributes> {
        let path = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
        let opened = rustix::fs::openat2(self.fd(), path.as_slice(), FOLDER_FLAGS, Mode::empty(), RESOLVE)?;
        Ok(Attributes(File::from(opened)))
    }

    /// Makes a folder, or keeps the one that is there; whatever else has its name goes.
    pub(super) fn make_folder(&self, name: &[u8], mode: u32) -> io::Result<MadeFolder> {
        let mode = Mode::from_raw_mode(mode & PERMISSION_BITS);
        match rustix::fs::mkdirat(self.fd(), name, mode) {
            Ok(()) => return Ok(MadeFolder { folder: self.open_made(name)?, has_replaced: false, is_new: true }),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        match self.file_type(name)? {
            Some(Occupant::Folder) => {
                Ok(MadeFolder { folder: self.open_made(name)?, has_replaced: false, is_new: false })
            }
            occupant => {
                remove::remove_name(self.fd(), name)?;
                rustix::fs::mkdirat(self.fd(), name, mode)?;
                let folder = self.open_made(name)?;
                if occupant == Some(Occupant::Whiteout) {
                    // The layer deletes the old folder and brings a new one: what the old one holds must not show.
                    folder.set_opaque()?;
                }
                Ok(MadeFolder { folder, has_replaced: true, is_new: true })
            }
        }
    }

    /// Opens a folder so that it serves both as a place for entries and for its own attributes.
    fn open_made(&self, name: &[u8]) -> io::Result<Folder<'static>> {
        let descriptor = rustix::fs::openat2(self.fd(), name, FOLDER_FLAGS, Mode::empty(), RESOLVE)?;
        Ok(Folder(Descriptor::Owned(descriptor)))
    }

    /// Makes an empty file; an error when the name is taken.
    pub(super) fn make_file(&self, name: &[u8], mode: u32) -> io::Result<Attributes> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & PERMISSION_BITS);
        Ok(Attributes(File::from(rustix::fs::openat2(self.fd(), name, flags, mode, RESOLVE)?)))
    }

    /// Makes a symbolic link; an error when the name is taken.
    pub(super) fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, self.fd(), name)?)
    }

    /// Makes a named pipe; an error when the name is taken.
    pub(super) fn make_fifo(&self, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::mkfifoat(self.fd(), name, Mode::from_raw_mode(0o600))?)
    }

    /// Gives the file `target_name` of the folder `target_parent` the name `name` in this one; an error when it is
    /// taken.
    pub(super) fn make_hard_link(&self, name: &[u8], target_parent: &Folder<'_>, target_name: &[u8]) -> io::Result<()> {
        // Without a flag that says otherwise the last name is not followed if it is a symbolic link.
        Ok(rustix::fs::linkat(target_parent.fd(), target_name, self.fd(), name, AtFlags::empty())?)
    }

    /// Removes whatever has this name.
    pub(super) fn remove(&self, name: &[u8]) -> io::Result<()> {
        remove::remove_name(self.fd(), name)
    }

    /// Marks a name as deleted, unless something of this layer has it; a folder of this layer hides the deleted one.
    pub(super) fn hide(&self, name: &[u8]) -> io::Result<()> {
        match self.file_type(name)? {
            None => Ok(rustix::fs::mknodat(self.fd(), name, FileType::CharacterDevice, Mode::empty(), 0)?),
            Some(Occupant::Folder) => self.open_beneath(&[name])?.set_opaque(),
            Some(_) => Ok(()),
        }
    }

    /// Brings the file system that the folder is on to disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(self.fd())?)
    }

    pub(super) fn set_opaque(&self) -> io::Result<()> {
        let folder = self.attributes()?.0;
        Ok(rustix::fs::fsetxattr(folder, OPAQUE_XATTR, b"y", XattrFlags::empty())?)
    }

    /// Removes what has this name, if something has.
    pub(super) fn remove_if_there(&self, name: &[u8]) -> io::Result<()> {
        match rustix::fs::unlinkat(self.fd(), name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Whether `name` is a folder.
    pub(super) fn holds_folder(&self, name: &[u8]) -> bool {
        matches!(self.file_type(name), Ok(Some(Occupant::Folder)))
    }

    /// Whether `name` is something that can have a second name.
    pub(super) fn holds_file(&self, name: &[u8]) -> bool {
        matches!(self.file_type(name), Ok(Some(Occupant::File)))
    }

    /// Sets owner and time of a symbolic link that was just made.
    pub(super) fn set_link_attributes(&self, name: &[u8], head: &Head, has_owner: bool) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(head.uid), Gid::from_raw(head.gid));
        if !has_owner {
            rustix::fs::chownat(self.fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(rustix::fs::utimensat(self.fd(), name, &timestamps(head.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets owner, mode and time of a pipe that was just made. Nobody else works in this tree, so the name still
    /// stands for the pipe; opening it to have a descriptor could block.
    pub(super) fn set_fifo_attributes(&self, name: &[u8], head: &Head) -> io::Result<()> {
        self.set_link_attributes(name, head, false)?;
        Ok(rustix::fs::chmodat(self.fd(), name, Mode::from_raw_mode(head.mode), AtFlags::empty())?)
    }

    fn file_type(&self, name: &[u8]) -> io::Result<Option<Occupant>> {
        let stat = match rustix::fs::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Occupant::Folder,
            FileType::CharacterDevice if stat.st_rdev == 0 => Occupant::Whiteout,
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => Occupant::File,
            _ => Occupant::Other,
        }))
    }
}

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupant {
    Folder,
    /// A file, symbolic link or pipe.
    File,
    /// The mark of a deleted file.
    Whiteout,
    Other,
}

/// An open file or folder whose attributes are set through its descriptor.
pub(super) struct Attributes(File);

impl Attributes {
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    pub(super) fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    pub(super) fn open(&self) -> Open<'_> {
        Open(self.0.as_fd())
    }

    pub(super) fn set_time(&self, time: Timestamp) -> io::Result<()> {
        self.open().set_time(time)
    }
}

/// What the attributes of an open file or folder are set through.
#[derive(Clone, Copy)]
pub(super) struct Open<'file>(BorrowedFd<'file>);

impl Open<'_> {
    pub(super) fn set_owner(self, uid: u32, gid: u32) -> io::Result<()> {
        Ok(rustix::fs::fchown(self.0, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
    }

    pub(super) fn set_mode(self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(self.0, Mode::from_raw_mode(mode))?)
    }

    pub(super) fn set_time(self, time: Timestamp) -> io::Result<()> {
        Ok(rustix::fs::futimens(self.0, &timestamps(time))?)
    }

    /// Sets an extended attribute; `false` when the file system does not know its kind.
    pub(super) fn set_xattr(self, xattr: &Xattr) -> io::Result<bool> {
        match rustix::fs::fsetxattr(self.0, xattr.name.as_slice(), &xattr.value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => Ok(false),
            set => Ok(set.map(|()| true)?),
        }
    }
}

fn timestamps(time: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) };
    Timestamps { last_access: time, last_modification: time }
}
