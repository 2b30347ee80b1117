//! Removes a folder with all that is in it, by descriptors: no path is followed, no depth makes it recurse, and it
//! never holds more than three descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Removes `name` in the folder `parent`, whatever it is. One that is not there is no error.
///
/// Folders within folders are moved up until all stand side by side, so that a tree of any depth is removed in a flat
/// loop. If it is interrupted, what is left is still beneath `name`.
///
/// # Errors
/// What the kernel refuses: a mount point in the tree, a file that the caller may not remove.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    remove_name(parent, name.as_bytes())
}

/// Removes all that is in a folder, as `remove_tree` does; the folder stays.
///
/// # Errors
/// As `remove_tree`.
pub fn remove_all_in(folder: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        let mut has_progressed = false;
        for name in names(folder)? {
            remove_name(folder, &name?)?;
            has_progressed = true;
        }
        if !has_progressed {
            return Ok(());
        }
    }
}

pub(super) fn remove_name(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    if remove_unless_filled(parent, name)? == Outcome::Removed {
        return Ok(());
    }
    let top = open_folder(parent, name)?;
    let mut moved_up = 0;
    loop {
        let mut has_progressed = false;
        for inner in names(top.as_fd())? {
            let inner = inner?;
            has_progressed = true;
            if remove_unless_filled(top.as_fd(), &inner)? == Outcome::Filled {
                flatten(top.as_fd(), &inner, &mut moved_up)?;
            }
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Folders were moved up while the list was read; the next round finds them.
            Err(Errno::NOTEMPTY | Errno::EXIST) if has_progressed => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes a folder directly in `top`; the filled folders inside it move up beside it.
fn flatten(top: BorrowedFd<'_>, name: &[u8], moved_up: &mut u64) -> io::Result<()> {
    let folder = open_folder(top, name)?;
    for inner in names(folder.as_fd())? {
        let inner = inner?;
        if remove_unless_filled(folder.as_fd(), &inner)? == Outcome::Filled {
            move_up(folder.as_fd(), &inner, top, moved_up)?;
        }
    }
    remove_unless_filled(top, name)?;
    Ok(())
}

fn move_up(from: BorrowedFd<'_>, name: &[u8], top: BorrowedFd<'_>, moved_up: &mut u64) -> io::Result<()> {
    loop {
        // Ends at the latest when every name of this form that `top` holds was tried.
        *moved_up += 1;
        let free_name = format!(".removed-{moved_up}");
        match rustix::fs::renameat_with(from, name, top, free_name, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            renamed => return Ok(renamed?),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Removed,
    /// A folder that is not empty.
    Filled,
}

fn remove_unless_filled(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Outcome> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(Outcome::Removed),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Outcome::Removed),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Outcome::Filled),
        Err(error) => Err(error.into()),
    }
}

fn open_folder(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn names(folder: BorrowedFd<'_>) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>>> {
    let entries = Dir::read_from(folder)?.map(|entry| Ok(entry?.file_name().to_bytes().to_vec()));
    Ok(entries.filter(|name| !matches!(name.as_deref(), Ok(b"." | b".."))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_goes_and_what_it_links_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir_all(tree.join(".removed-1/x/y")).unwrap();
        fs::create_dir_all(tree.join("a/.removed-2/.removed-1/z")).unwrap();
        fs::write(tree.join("a/b/c/file"), "x").unwrap();
        fs::create_dir_all(tree.join(std::ffi::OsStr::from_bytes(b"no text \xff")).join("x")).unwrap();
        symlink(&kept, tree.join("a/b/link")).unwrap();
        symlink("../..", tree.join("up")).unwrap();
        let parent = File::open(folder.path()).unwrap();
        remove_all_in(File::open(&tree).unwrap().as_fd()).unwrap();
        assert!(fs::read_dir(&tree).unwrap().next().is_none());
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        remove_tree(parent.as_fd(), "tree").unwrap();
        remove_tree(parent.as_fd(), "tree").unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
        symlink(&kept, &tree).unwrap();
        remove_tree(parent.as_fd(), "tree").unwrap();
        assert!(kept.join("file").exists());
    }

    #[test]
    fn depth_and_number_do_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let parent = File::open(folder.path()).unwrap();
        rustix::fs::mkdirat(&parent, "deep", Mode::RWXU).unwrap();
        let mut at = open_folder(parent.as_fd(), b"deep").unwrap();
        for level in 0..5000 {
            rustix::fs::mkdirat(&at, "folder", Mode::RWXU).unwrap();
            if level % 10 == 0 {
                rustix::fs::mkdirat(&at, "beside", Mode::RWXU).unwrap();
            }
            at = open_folder(at.as_fd(), b"folder").unwrap();
        }
        for number in 0..3000 {
            File::create(folder.path().join(format!("deep/{number}"))).unwrap();
        }
        remove_tree(parent.as_fd(), "deep").unwrap();
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }
}
