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
pub(super) const OVERLAY_XATTR_PREFIX: &[u8] = b"user.overlay.";
/// The attribute of a folder that hides those of the same name in lower layers.
const OPAQUE_XATTR: &str = "user.overlay.opaque";
/// Mode of a folder that an archive leaves out.
const IMPLIED_FOLDER_MODE: u32 = 0o755;
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

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Descriptor::Borrowed(descriptor) => *descriptor,
            Descriptor::Owned(descriptor) => descriptor.as_fd(),
        }
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
            Some(Occupant::Folder) => {}
            None | Some(Occupant::Whiteout) => {
                self.make_folder(name)
                    .and_then(|folder| folder.set_mode(IMPLIED_FOLDER_MODE))
                    .map_err(OpenError::System)?;
            }
            Some(Occupant::File | Occupant::Other) => return Err(OpenError::NotAFolder),
        }
        self.open_beneath(&[name]).map_err(OpenError::System)
    }

    /// The folder itself, opened so that its attributes can be set.
    pub(super) fn attributes(&self) -> io::Result<Attributes> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Attributes(File::from(rustix::fs::openat2(self.fd(), ".", flags, Mode::empty(), RESOLVE)?)))
    }

    /// Makes a folder, or keeps the one that is there.
    pub(super) fn make_folder(&self, name: &[u8]) -> io::Result<Attributes> {
        let occupant = self.file_type(name)?;
        if !matches!(occupant, None | Some(Occupant::Folder)) {
            remove::remove_name(self.fd(), name)?;
        }
        if occupant != Some(Occupant::Folder) {
            rustix::fs::mkdirat(self.fd(), name, Mode::from_raw_mode(0o700))?;
        }
        let folder = self.open_beneath(&[name])?;
        if occupant == Some(Occupant::Whiteout) {
            // The layer deletes the old folder and brings a new one: the old one's content must not show through.
            folder.set_opaque()?;
        }
        folder.attributes()
    }

    /// Makes an empty file in place of whatever has its name.
    pub(super) fn make_file(&self, name: &[u8]) -> io::Result<Attributes> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat2(self.fd(), name, flags, Mode::from_raw_mode(0o600), RESOLVE);
        Ok(Attributes(File::from(self.replacing(name, open)?)))
    }

    pub(super) fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        self.replacing(name, || rustix::fs::symlinkat(target, self.fd(), name))
    }

    pub(super) fn make_fifo(&self, name: &[u8]) -> io::Result<()> {
        self.replacing(name, || rustix::fs::mkfifoat(self.fd(), name, Mode::from_raw_mode(0o600)))
    }

    /// Gives the file `target_name` of the folder `target_parent` the name `name` in this one.
    pub(super) fn make_hard_link(&self, name: &[u8], target_parent: &Folder<'_>, target_name: &[u8]) -> io::Result<()> {
        // Without a flag that says otherwise the last name is not followed if it is a symbolic link.
        self.replacing(name, || rustix::fs::linkat(target_parent.fd(), target_name, self.fd(), name, AtFlags::empty()))
    }

    /// Marks a name as deleted, unless something of this layer has it; a folder of this layer hides the deleted one.
    pub(super) fn hide(&self, name: &[u8]) -> io::Result<()> {
        match self.file_type(name)? {
            None => Ok(rustix::fs::mknodat(self.fd(), name, FileType::CharacterDevice, Mode::empty(), 0)?),
            Some(Occupant::Folder) => self.open_beneath(&[name])?.set_opaque(),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn set_opaque(&self) -> io::Result<()> {
        let folder = self.attributes()?.0;
        Ok(rustix::fs::fsetxattr(folder, OPAQUE_XATTR, b"y", XattrFlags::empty())?)
    }

    /// Whether `name` is something that can have a second name.
    pub(super) fn holds_file(&self, name: &[u8]) -> bool {
        matches!(self.file_type(name), Ok(Some(Occupant::File)))
    }

    /// Sets owner and time of a symbolic link that was just made.
    pub(super) fn set_link_attributes(&self, name: &[u8], head: &Head) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(head.uid), Gid::from_raw(head.gid));
        rustix::fs::chownat(self.fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(rustix::fs::utimensat(self.fd(), name, &timestamps(head.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets owner, mode and time of a pipe that was just made. Nobody else works in this tree, so the name still
    /// stands for the pipe; opening it to have a descriptor could block.
    pub(super) fn set_fifo_attributes(&self, name: &[u8], head: &Head) -> io::Result<()> {
        self.set_link_attributes(name, head)?;
        Ok(rustix::fs::chmodat(self.fd(), name, Mode::from_raw_mode(head.mode), AtFlags::empty())?)
    }

    /// Tries to make something; removes what has its name and tries again if it is taken.
    fn replacing<T>(&self, name: &[u8], make: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                remove::remove_name(self.fd(), name)?;
                Ok(make()?)
            }
            made => Ok(made?),
        }
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

    pub(super) fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        Ok(rustix::fs::fchown(&self.0, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
    }

    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.0, Mode::from_raw_mode(mode))?)
    }

    pub(super) fn set_time(&self, time: Timestamp) -> io::Result<()> {
        Ok(rustix::fs::futimens(&self.0, &timestamps(time))?)
    }

    /// Sets an extended attribute; `false` when the file system does not know its kind.
    pub(super) fn set_xattr(&self, xattr: &Xattr) -> io::Result<bool> {
        match rustix::fs::fsetxattr(&self.0, xattr.name.as_slice(), &xattr.value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => Ok(false),
            set => Ok(set.map(|()| true)?),
        }
    }
}

fn timestamps(time: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) };
    Timestamps { last_access: time, last_modification: time }
}
