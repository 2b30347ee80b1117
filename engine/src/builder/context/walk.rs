//! A folder to entries, depth first, by descriptors. What a link points to is never looked at.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};

use super::{ContextError, Entry, Keeper, Kind, Limits, check, shown, system};
use crate::builder::ignore::{Ignore, Matched};

/// Permission bits with setuid, setgid and sticky.
const MODE_BITS: u32 = 0o7777;

/// A folder under way.
struct Open {
    descriptor: OwnedFd,
    /// Its path with a slash behind it; empty for the root.
    prefix: Vec<u8>,
    /// Names in it that are still to be looked at.
    names: Vec<Vec<u8>>,
    matched: Matched,
    /// The folder itself, when it is left out: it is kept with the first thing that is kept in it.
    pending: Option<Entry>,
}

struct Walker<'a> {
    ignored: &'a Ignore,
    limits: Limits,
    keeper: Keeper,
    stack: Vec<Open>,
}

/// Lists all that is below `root` and not left out.
///
/// # Errors
/// Something that cannot be read, or a bound.
pub(super) fn walk(root: &OwnedFd, ignored: &Ignore, limits: Limits) -> Result<BTreeMap<Vec<u8>, Entry>, ContextError> {
    let mut walker = Walker { ignored, limits, keeper: Keeper::new(limits), stack: Vec::new() };
    // A descriptor of its own: reading moves its position.
    walker.enter(open(root.as_fd(), b".", b".")?, Vec::new(), Matched::default(), None)?;
    while let Some(folder) = walker.stack.last_mut() {
        match folder.names.pop() {
            Some(name) => walker.visit(&name)?,
            None => drop(walker.stack.pop()),
        }
    }
    Ok(walker.keeper.entries)
}

impl Walker<'_> {
    /// Notes an open folder, so that its names are visited.
    fn enter(
        &mut self,
        descriptor: OwnedFd,
        prefix: Vec<u8>,
        matched: Matched,
        pending: Option<Entry>,
    ) -> Result<(), ContextError> {
        let names = self.names(descriptor.as_fd(), &prefix)?;
        self.stack.push(Open { descriptor, prefix, names, matched, pending });
        check(self.stack.len() as u64, self.limits.depth_max as u64, "folders in each other")
    }

    fn names(&self, folder: BorrowedFd, prefix: &[u8]) -> Result<Vec<Vec<u8>>, ContextError> {
        let failed = |error: rustix::io::Errno| system("list the folder", shown(prefix), error.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
                check(names.len() as u64, self.limits.seen_max as u64, "entries in one folder")?;
            }
        }
        Ok(names)
    }

    fn visit(&mut self, name: &[u8]) -> Result<(), ContextError> {
        self.keeper.count.see()?;
        let Some(folder) = self.stack.last() else { return Ok(()) };
        let path = [folder.prefix.as_slice(), name].concat();
        let text = String::from_utf8_lossy(&path);
        let (is_excluded, matched) = self.ignored.excludes_below(&text, &folder.matched);
        if is_excluded && !self.ignored.may_take_back_in(&text) {
            return Ok(());
        }
        let entry = look(folder.descriptor.as_fd(), name, &path)?;
        let opened = match entry.kind {
            Kind::Folder => Some(open(folder.descriptor.as_fd(), name, &path)?),
            _ => None,
        };
        if !is_excluded {
            self.keep_pending()?;
            self.keeper.keep(path.clone(), entry.clone())?;
        }
        match opened {
            Some(opened) => self.enter(opened, [&path, &b"/"[..]].concat(), matched, is_excluded.then_some(entry)),
            None => Ok(()),
        }
    }

    /// Keeps the folders above, of which something is kept now.
    fn keep_pending(&mut self) -> Result<(), ContextError> {
        for folder in &mut self.stack {
            if let Some(entry) = folder.pending.take() {
                let path = folder.prefix.strip_suffix(b"/").unwrap_or(&folder.prefix).to_vec();
                self.keeper.keep(path, entry)?;
            }
        }
        Ok(())
    }
}

fn open(parent: BorrowedFd, name: &[u8], path: &[u8]) -> Result<OwnedFd, ContextError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(parent, name, flags, Mode::empty()).map_err(|error| system("open the folder", shown(path), error.into()))
}

fn look(folder: BorrowedFd, name: &[u8], path: &[u8]) -> Result<Entry, ContextError> {
    let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| system("look at", shown(path), error.into()))?;
    let mode = found.st_mode & MODE_BITS;
    let entry = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => Entry::new(Kind::File, mode, u64::try_from(found.st_size).unwrap_or(0)),
        FileType::Directory => Entry::new(Kind::Folder, mode, 0),
        FileType::Symlink => {
            let target = readlinkat(folder, name, Vec::new())
                .map_err(|error| system("read the link", shown(path), error.into()))?;
            // The mode of a link means nothing, and file systems differ in it.
            Entry::new(Kind::Link { target: target.into_bytes() }, 0o777, 0)
        }
        _ => Entry::new(Kind::Special, mode, 0),
    };
    Ok(Entry { mtime: found.st_mtime, ..entry })
}
