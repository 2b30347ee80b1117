//! The points in the root of a sandbox that something is mounted on. Those that the image lacks are made on a layer of
//! their own below what is changed, so that nothing of them is left.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, fstat, mkdirat, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;

use super::mounts::{self, RootError};
use super::users;
use crate::sys::{self, SysError, failed};

/// Most links that are followed on the way to a point: what the kernel follows.
const LINKS_MAX: usize = 40;
/// Where the layer of missing points is attached.
pub(super) const MADE: &str = "/s";

/// A path that something is mounted on.
#[derive(Clone, Copy)]
pub(super) struct Point<'a> {
    pub(super) path: &'a str,
    /// Whether it has to be a folder, not a file.
    pub(super) is_folder: bool,
}

/// Paths that are not there, without links in them, and whether each is to be a folder.
pub(super) type Missing = BTreeMap<Vec<u8>, bool>;

/// The points that the image lacks.
///
/// # Errors
/// A point that is something else, and what the kernel refuses.
pub(super) fn missing<'a>(root: BorrowedFd<'_>, points: impl Iterator<Item = Point<'a>>) -> Result<Missing, RootError> {
    let mut missing = Missing::new();
    for name in ["proc", "dev"] {
        // These have to be real folders: a link is covered by one.
        if mounts::open_below(root, name, ResolveFlags::NO_SYMLINKS).is_err() {
            missing.insert(name.as_bytes().to_vec(), true);
        }
    }
    for point in points {
        match resolve(root, point.path) {
            Ok(Resolved::Missing(path)) => drop(missing.insert(path, point.is_folder)),
            Ok(Resolved::There(kind)) => point.check(kind)?,
            Err(Errno::NOTDIR) => return Err(point.refuse("lies below something that is no folder")),
            Err(error) => return Err(failed("look for", point.path)(error).into()),
        }
    }
    Ok(missing)
}

/// What a path comes to.
#[derive(Debug, PartialEq, Eq)]
enum Resolved {
    There(FileType),
    /// The path without links, of which at least the last part is not there.
    Missing(Vec<u8>),
}

/// Follows a path from the root, link by link, never out of it.
fn resolve(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<Resolved> {
    let mut rest: Vec<Vec<u8>> = parts(path.as_bytes());
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == b".." {
            done.pop();
            continue;
        }
        done.push(name);
        let here = done.join(&b'/');
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let found = match sys::open_in_root(root, here.as_slice(), flags, ResolveFlags::NO_SYMLINKS) {
            Err(Errno::NOENT) if rest.iter().any(|name| name == b"..") => return Err(Errno::NOENT),
            Err(Errno::NOENT) => {
                done.extend(rest.into_iter().rev());
                return Ok(Resolved::Missing(done.join(&b'/')));
            }
            found => found?,
        };
        match FileType::from_raw_mode(fstat(&found)?.st_mode) {
            FileType::Directory => {}
            FileType::Symlink if links == LINKS_MAX => return Err(Errno::LOOP),
            FileType::Symlink => {
                links += 1;
                let target = readlinkat(&found, "", Vec::new())?.into_bytes();
                done.pop();
                if target.starts_with(b"/") {
                    done.clear();
                }
                rest.extend(parts(&target));
            }
            kind if rest.is_empty() => return Ok(Resolved::There(kind)),
            _ => return Err(Errno::NOTDIR),
        }
    }
    Ok(Resolved::There(FileType::Directory))
}

/// The parts of a path, last first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let mut parts: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    parts.reverse();
    parts
}

impl Point<'_> {
    fn refuse(&self, problem: &str) -> RootError {
        RootError::Mount { target: self.path.to_owned(), problem: format!("that {problem}") }
    }

    fn check(&self, kind: FileType) -> Result<(), RootError> {
        match (self.is_folder, kind) {
            (true, FileType::Directory) => Ok(()),
            (true, _) => Err(self.refuse("is not a folder in the image")),
            (false, FileType::Directory) => Err(self.refuse("is a folder, and what is mounted is a file")),
            (false, _) => Ok(()),
        }
    }

    /// Opens the point, following links below the root only. One that is missing is below another mount, where it is
    /// made for `owner`.
    ///
    /// # Errors
    /// A point that is something else, or cannot be made, and what the kernel refuses.
    pub(super) fn open(&self, root: BorrowedFd<'_>, owner: (u32, u32)) -> Result<OwnedFd, RootError> {
        let opened = match sys::open_in_root(root, self.path, OFlags::PATH, ResolveFlags::empty()) {
            // What lies below may take no file of the caller's own id.
            Err(Errno::NOENT) => match users::with_file_ids(owner.0, || self.make(root, owner)) {
                Err(error) if error.source.raw_os_error() == Some(libc::EROFS) => {
                    let problem =
                        "is not there, and what it lies in is read-only\nhint: make it there, or mount that with rw";
                    return Err(self.refuse(problem));
                }
                made => made?,
            },
            opened => opened.map_err(failed("open", self.path))?,
        };
        let stat = fstat(&opened).map_err(failed("look at", self.path))?;
        let top = fstat(root).map_err(failed("look at", "/"))?;
        if (stat.st_dev, stat.st_ino) == (top.st_dev, top.st_ino) {
            return Err(self.refuse("is a link to the root, where nothing can be mounted"));
        }
        self.check(FileType::from_raw_mode(stat.st_mode))?;
        Ok(opened)
    }

    fn make(&self, root: BorrowedFd<'_>, owner: (u32, u32)) -> Result<OwnedFd, SysError> {
        let mut folder = mounts::open_below(root, "/", ResolveFlags::empty()).map_err(failed("open", "/"))?;
        let names: Vec<&str> = self.path.split('/').filter(|name| !name.is_empty()).collect();
        for (number, name) in names.iter().enumerate() {
            let is_folder = self.is_folder || number + 1 < names.len();
            match make_one(folder.as_fd(), name.as_bytes(), is_folder) {
                Ok(()) => give(&folder, name.as_bytes(), owner).map_err(failed("give away", self.path))?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("make", self.path)(error)),
            }
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            folder = openat2(&folder, *name, flags, Mode::empty(), resolve).map_err(failed("open", self.path))?;
        }
        Ok(folder)
    }
}

fn make_one(folder: BorrowedFd<'_>, name: &[u8], is_folder: bool) -> rustix::io::Result<()> {
    if is_folder {
        return mkdirat(folder, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

fn give(folder: impl AsFd, name: &[u8], (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
    chownat(folder, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
}

/// Makes the missing points on a tmpfs at `MADE`. A folder that the image has keeps its mode and owner, since the
/// highest layer decides what a merged folder looks like.
///
/// # Errors
/// The call that the kernel refused.
pub(super) fn make_missing(image: BorrowedFd<'_>, missing: &Missing, first_id: u32) -> Result<(), SysError> {
    let options = [("size", "256k"), ("nr_inodes", "1k"), ("mode", "0755")];
    let attributes = rustix::mount::MountAttrFlags::MOUNT_ATTR_NOSUID | rustix::mount::MountAttrFlags::MOUNT_ATTR_NODEV;
    let tree = mounts::tmpfs(&options, attributes)?;
    for (path, &is_folder) in missing {
        let name = || String::from_utf8_lossy(path).into_owned();
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        for end in ends.chain([path.len()]) {
            let part = &path[..end];
            let is_folder = is_folder || end < path.len();
            match make_one(tree.as_fd(), part, is_folder) {
                Ok(()) if is_folder => take_after(image, &tree, part, first_id)?,
                Ok(()) => give(&tree, part, (first_id, first_id)).map_err(failed("give away", name()))?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("make", name())(error)),
            }
        }
    }
    take_after(image, &tree, b".", first_id)?;
    mounts::attach(&tree, MADE)
}

/// Gives a folder the mode and owner that the image's has, or those of root in the sandbox.
fn take_after(image: BorrowedFd<'_>, tree: &OwnedFd, folder: &[u8], first_id: u32) -> Result<(), SysError> {
    let model = statat(image, folder, AtFlags::SYMLINK_NOFOLLOW).ok();
    let model = model.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    let (mode, uid, gid) =
        model.map_or((0o755, first_id, first_id), |stat| (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid));
    let name = || String::from_utf8_lossy(folder).into_owned();
    give(tree, folder, (uid, gid)).map_err(failed("give away folder", name()))?;
    chmodat(tree, folder, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(failed("set mode of", name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    #[test]
    fn a_missing_point_is_named_without_links_and_never_out_of_the_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |path: &str| folder.path().join(path);
        fs::create_dir_all(at("usr/lib")).expect("it is ours");
        fs::write(at("file"), "").expect("it is ours");
        for (target, link) in [("usr/lib", "lib"), ("/usr", "abs"), ("../../../..", "up"), ("loop", "loop")] {
            symlink(target, at(link)).expect("it is ours");
        }
        let root = File::open(folder.path()).expect("it is there");
        let resolved = |path: &str| resolve(root.as_fd(), path);
        let missing = |path: &str| Ok(Resolved::Missing(path.as_bytes().to_vec()));
        assert_eq!(resolved("/lib/x/y"), missing("usr/lib/x/y"));
        assert_eq!(resolved("/abs/lib/x"), missing("usr/lib/x"));
        assert_eq!(resolved("/up/x"), missing("x"));
        assert_eq!(resolved("/up/etc/passwd"), missing("etc/passwd"));
        assert_eq!(resolved("/lib"), Ok(Resolved::There(FileType::Directory)));
        assert_eq!(resolved("/file"), Ok(Resolved::There(FileType::RegularFile)));
        assert_eq!(resolved("/file/x"), Err(Errno::NOTDIR));
        assert_eq!(resolved("/loop"), Err(Errno::LOOP));
    }

    #[test]
    fn a_rename_elsewhere_keeps_no_link_from_being_followed() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("a/b")).expect("it is ours");
        // The kernel looks for renames at each step up: many of them make it see one.
        symlink("b/../".repeat(50), folder.path().join("a/up")).expect("it is ours");
        let elsewhere = tempfile::tempdir().expect("a folder");
        let (one, other) = (elsewhere.path().join("1"), elsewhere.path().join("2"));
        fs::create_dir(&one).expect("it is ours");
        let root = File::open(folder.path()).expect("it is there");
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    fs::rename(&one, &other).and_then(|()| fs::rename(&other, &one)).expect("it is ours");
                }
            });
            let opened = (0..20_000)
                .all(|_| sys::open_in_root(root.as_fd(), "a/up", OFlags::PATH, ResolveFlags::empty()).is_ok());
            is_done.store(true, Ordering::Relaxed);
            assert!(opened, "the kernel was not asked again");
        });
    }
}
