//! A tar to entries, and entries to a tar. Names that come in are checked like those of any hostile archive.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Context, ContextError, Count, Entry, Kind, Limits, check, read};
use crate::builder::ignore::Ignore;
use crate::image::archive::{self, Reader};

/// Permission bits with setuid, setgid and sticky.
const MODE_BITS: u32 = 0o7777;
/// Mode of folders that the tar implies.
const FOLDER_MODE: u32 = 0o755;

/// Lists all that is in a tar and not left out. What comes twice is what came last.
///
/// # Errors
/// A tar that is none, a name that leads out, or a bound.
pub(super) fn list(
    input: impl Read,
    spool: Option<&File>,
    ignored: &Ignore,
    limits: Limits,
) -> Result<BTreeMap<Vec<u8>, Entry>, ContextError> {
    let bounds = archive::Limits { entries_max: limits.seen_max as u64, bytes_max: limits.bytes_max };
    let mut reader = Reader::new(input, bounds);
    let mut count = Count::new(limits);
    let mut offset = 0;
    let mut all: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
    while let Some(entry) = reader.next_entry()? {
        count.see()?;
        let names = entry.head().components()?;
        check(names.len() as u64, limits.depth_max as u64, "folders in each other")?;
        let path = names.join(&b'/');
        if path.is_empty() {
            continue;
        }
        let head = entry.head().clone();
        let mode = head.mode & MODE_BITS;
        let kept = match head.kind {
            archive::Kind::File => {
                let kept = Entry { offset, ..Entry::new(Kind::File, mode, head.size) };
                if !ignored.excludes(&String::from_utf8_lossy(&path)) {
                    let mut spooled = Spooled { entry, spool };
                    let digest = read(&mut spooled, head.size, &path)?;
                    let _ = kept.digest.set(digest);
                    offset += head.size;
                }
                kept
            }
            archive::Kind::Directory => Entry::new(Kind::Folder, mode, 0),
            archive::Kind::Symlink { target } => Entry::new(Kind::Link { target }, 0o777, 0),
            archive::Kind::HardLink { target } => {
                let target = archive::split_path(&target)?.join(&b'/');
                // A file that was left out was not read, so its other name is left out too.
                match all.get(&target) {
                    Some(first) if first.digest.get().is_some() => first.clone(),
                    _ => continue,
                }
            }
            archive::Kind::Fifo | archive::Kind::Device => Entry::new(Kind::Special, mode, 0),
        };
        count.keep(kept.size)?;
        all.insert(path, Entry { mtime: head.mtime.seconds, ..kept });
    }
    Ok(filter(all, ignored))
}

/// A file that is kept while it is read.
struct Spooled<'a, R> {
    entry: archive::Entry<'a, R>,
    spool: Option<&'a File>,
}

impl<R: Read> Read for Spooled<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.entry.read(buffer)?;
        if let Some(mut spool) = self.spool {
            spool.write_all(&buffer[..count])?;
        }
        Ok(count)
    }
}

impl Context {
    /// Appends one entry to a tar, under a name. Pipes, sockets and devices are left out.
    ///
    /// # Errors
    /// A file that is not there any more, or becomes another one while it is read; an archive that takes no more.
    pub fn append<W: Write>(
        &self,
        archive: &mut ::tar::Builder<W>,
        path: &[u8],
        name: &Path,
    ) -> Result<(), AppendError> {
        let Some(entry) = self.entries.get(path) else { return Ok(()) };
        let mut header = ::tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(entry.mode);
        header.set_mtime(u64::try_from(entry.mtime).unwrap_or(0));
        header.set_size(0);
        match &entry.kind {
            Kind::Folder => {
                header.set_entry_type(::tar::EntryType::Directory);
                archive.append_data(&mut header, name, io::empty())
            }
            Kind::Link { target } => {
                header.set_entry_type(::tar::EntryType::Symlink);
                header.set_mode(0o777);
                archive.append_link(&mut header, name, Path::new(OsStr::from_bytes(target)))
            }
            Kind::File => {
                header.set_size(entry.size);
                let content = self.content(path)?;
                archive.append_data(&mut header, name, Exact { inner: content, left: entry.size })
            }
            Kind::Special => Ok(()),
        }
        .map_err(AppendError::Write)
    }
}

/// Why an entry could not be appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Its file cannot be opened.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Its file changed, or the archive takes no more.
    #[error("could not pass files on")]
    Write(#[source] io::Error),
}

/// A file of a known length; one that changes while it is read is an error.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a file of the context changed while it was read",
            ));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// What is not left out, with the folders above it.
pub(super) fn filter(all: BTreeMap<Vec<u8>, Entry>, ignored: &Ignore) -> BTreeMap<Vec<u8>, Entry> {
    let is_kept = |path: &Vec<u8>| !ignored.excludes(&String::from_utf8_lossy(path));
    let mut kept: BTreeSet<Vec<u8>> = BTreeSet::new();
    for path in all.keys().filter(|path| is_kept(path)) {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(index, _)| index);
        kept.extend(slashes.map(|slash| path[..slash].to_vec()));
        kept.insert(path.clone());
    }
    let mut all = all;
    kept.into_iter()
        .map(|path| {
            let entry = all.remove(&path).unwrap_or_else(|| Entry::new(Kind::Folder, FOLDER_MODE, 0));
            (path, entry)
        })
        .collect()
}
