//! How much a folder takes on disk, while others may write to it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, statat};
use rustix::io::Errno;

use super::walk::{open_folder, open_root, system};
use super::{TreeError, Written};
use crate::image::archive::{DEPTH_MAX, printable};

/// Unit in which the kernel counts what a file takes, in bytes.
const BLOCK_BYTES: u64 = 512;

/// Counts everything below a folder. A file with several names counts with each.
///
/// # Errors
/// A folder that cannot be read, or one below too many others.
pub(crate) fn measure(folder: BorrowedFd<'_>) -> Result<Written, TreeError> {
    let list = |folder| Dir::new(folder).map_err(system("list", b"/"));
    let mut measured = Written::default();
    let mut open = vec![list(open_root(folder)?)?];
    while let Some(folder) = open.last_mut() {
        let Some(entry) = folder.read() else {
            open.pop();
            continue;
        };
        let entry = entry.map_err(system("list", b"/"))?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let parent = folder.fd().map_err(system("list", name))?;
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // It went in the meantime.
            Err(Errno::NOENT) => continue,
            stat => stat.map_err(system("look at", name))?,
        };
        measured.entries += 1;
        measured.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            continue;
        }
        match open_folder(parent.as_fd(), name, name) {
            Ok(inner) => open.push(list(inner)?),
            Err(TreeError::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if open.len() > DEPTH_MAX {
            return Err(TreeError::Limit { path: printable(name), bound: DEPTH_MAX, what: "names in a path" });
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn all_files_are_counted_and_no_link_is_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("a/b")).expect("it is ours");
        fs::write(folder.path().join("a/b/file"), vec![1; 100_000]).expect("it is ours");
        std::os::unix::fs::symlink("/", folder.path().join("link")).expect("it is ours");
        let root = File::open(folder.path()).expect("it is there");
        let measured = measure(root.as_fd()).expect("it can be read");
        assert_eq!(measured.entries, 4);
        assert!((100_000..200_000).contains(&measured.bytes), "{measured:?}");
    }

    #[test]
    fn what_is_too_deep_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("d/".repeat(DEPTH_MAX + 1))).expect("it is ours");
        let root = File::open(folder.path()).expect("it is there");
        assert!(matches!(measure(root.as_fd()), Err(TreeError::Limit { .. })));
    }
}
