//! The context of a build: what files there are, after `.dockerignore`, without reading any of them. A folder is walked
//! by descriptors and no link in it is followed; a tar is listed once. Contents are read when a digest is asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::ignore::Ignore;
use crate::image::archive::ArchiveError;
use crate::image::digest::{Digest, Hasher};

mod select;
mod tar;
mod walk;

pub use self::tar::AppendError;
pub use select::{Picked, SelectError, Selection};

/// Bytes read of a file at a time.
const BUFFER_BYTES: usize = 128 * 1024;

/// How much a context may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries, what is left out not counted.
    pub entries_max: usize,
    /// Most entries that are looked at, what is left out counted.
    pub seen_max: usize,
    /// Deepest folder.
    pub depth_max: usize,
    /// Most bytes in all files.
    pub bytes_max: u64,
}

impl Default for Limits {
    /// A million entries, 64 GiB.
    fn default() -> Limits {
        Limits { entries_max: 1_000_000, seen_max: 10_000_000, depth_max: 256, bytes_max: 64 << 30 }
    }
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, verbatim.
    Link {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A pipe, socket or device; it can be listed but is never copied.
    Special,
}

/// One entry of a context. Owners and times are not kept: nothing may depend on them.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of a file.
    pub size: u64,
    /// When it was changed last, in seconds since 1970. It goes into the image, and into no digest.
    pub mtime: i64,
    /// Where the content starts in the spool.
    offset: u64,
    digest: OnceLock<Digest>,
}

/// The files that a build may use, by their paths relative to the root, in the order of bytes.
#[derive(Debug)]
pub struct Context {
    root: Option<OwnedFd>,
    /// What the files of a tar hold, one behind the other.
    spool: Option<File>,
    entries: BTreeMap<Vec<u8>, Entry>,
    ignored: Ignore,
}

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The kernel refused.
    #[error("could not {call} `{path}` of the context")]
    System {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// It holds more than it may.
    #[error("the context has more than {bound} {what}\nhint: leave out what the build does not need, in .dockerignore")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// Its bound.
        bound: u64,
    },
    /// A file became another one while it was read.
    #[error("`{path}` of the context changed while it was read\nhint: build when nothing writes to the folder")]
    Changed {
        /// The file.
        path: String,
    },
    /// There is no such file.
    #[error("`{path}` is no file of the context")]
    NoFile {
        /// The path.
        path: String,
    },
    /// The tar is none.
    #[error("the context cannot be read as a tar")]
    Archive(#[from] ArchiveError),
    /// A path in the tar is not used.
    #[error("{0}")]
    Path(#[from] crate::image::archive::PathError),
}

impl Context {
    /// Walks a folder.
    ///
    /// # Errors
    /// A folder that cannot be read, or holds more than `limits` allow.
    pub fn open(folder: &Path, ignored: Ignore, limits: Limits) -> Result<Context, ContextError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty())
            .map_err(|error| system("open the folder", folder.display(), error.into()))?;
        let entries = walk::walk(&root, &ignored, limits)?;
        Ok(Context { root: Some(root), spool: None, entries, ignored })
    }

    /// Lists a tar, plain and not compressed. Digests are taken in passing, since it cannot be read twice.
    ///
    /// # Errors
    /// A tar that is none, or holds more than `limits` allow.
    pub fn read_tar(input: impl Read, ignored: Ignore, limits: Limits) -> Result<Context, ContextError> {
        let entries = tar::list(input, None, &ignored, limits)?;
        Ok(Context { root: None, spool: None, entries, ignored })
    }

    /// Reads a tar, plain and not compressed, and keeps what its files hold in `spool`, an empty file.
    ///
    /// # Errors
    /// A tar that is none, or holds more than `limits` allow, and a spool that takes no more.
    pub fn keep_tar(input: impl Read, spool: File, ignored: Ignore, limits: Limits) -> Result<Context, ContextError> {
        let entries = tar::list(input, Some(&spool), &ignored, limits)?;
        Ok(Context { root: None, spool: Some(spool), entries, ignored })
    }

    /// The same without what `ignored` leaves out.
    #[must_use]
    pub fn leaving_out(self, ignored: Ignore) -> Context {
        Context { entries: tar::filter(self.entries, &ignored), ignored, ..self }
    }

    /// A context without any file.
    pub fn empty() -> Context {
        Context { root: None, spool: None, entries: BTreeMap::new(), ignored: Ignore::default() }
    }

    /// All entries in the order of their paths.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_slice(), entry))
    }

    /// The entry at a path.
    pub fn entry(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// What was left out.
    pub fn ignored(&self) -> &Ignore {
        &self.ignored
    }

    /// The digest of a file's content; read once.
    ///
    /// # Errors
    /// A path that is no file, or one that is no longer what was listed.
    pub fn digest(&self, path: &[u8]) -> Result<Digest, ContextError> {
        let entry = self.entries.get(path).filter(|entry| entry.kind == Kind::File);
        let entry = entry.ok_or_else(|| ContextError::NoFile { path: shown(path) })?;
        if let Some(digest) = entry.digest.get() {
            return Ok(digest.clone());
        }
        let digest = read(&mut self.content(path)?, entry.size, path)?;
        Ok(entry.digest.get_or_init(|| digest).clone())
    }

    /// What a file holds.
    ///
    /// # Errors
    /// A path that is no file, a file that is no longer what was listed, and every file of a tar that was only listed.
    pub fn content(&self, path: &[u8]) -> Result<Content<'_>, ContextError> {
        match (&self.spool, self.entries.get(path)) {
            (Some(spool), Some(entry)) if entry.kind == Kind::File => {
                Ok(Content::Part { spool, offset: entry.offset, left: entry.size })
            }
            _ => self.open_file(path).map(Content::File),
        }
    }

    /// Opens a file of a folder: beneath the root, through no link.
    ///
    /// # Errors
    /// A file that is not there or is none, and every file of a tar.
    pub fn open_file(&self, path: &[u8]) -> Result<File, ContextError> {
        let Some(root) = &self.root else { return Err(ContextError::NoFile { path: shown(path) }) };
        // A pipe that took the file's place must not keep us waiting.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = openat2(root.as_fd(), path, flags, Mode::empty(), resolve);
        let file = File::from(opened.map_err(|error| system("open", shown(path), error.into()))?);
        let metadata = file.metadata().map_err(|error| system("look at", shown(path), error))?;
        if metadata.is_file() { Ok(file) } else { Err(ContextError::Changed { path: shown(path) }) }
    }
}

/// What a file of a context holds.
pub enum Content<'context> {
    /// A file.
    File(File),
    /// A part of the spool.
    Part {
        /// The spool.
        spool: &'context File,
        /// Where the next byte is.
        offset: u64,
        /// How many bytes are left.
        left: u64,
    },
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Content::File(file) => file.read(buffer),
            Content::Part { spool, offset, left } => {
                let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let count = std::os::unix::fs::FileExt::read_at(*spool, &mut buffer[..most], *offset)?;
                *offset += count as u64;
                *left -= count as u64;
                Ok(count)
            }
        }
    }
}

/// Reads a file of a known size.
fn read(input: &mut impl Read, size: u64, path: &[u8]) -> Result<Digest, ContextError> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(system("read", shown(path), error)),
        };
        hasher.update(&buffer[..count]);
        if hasher.bytes() > size {
            break;
        }
    }
    // A file that grows would otherwise be read for ever.
    if hasher.bytes() != size {
        return Err(ContextError::Changed { path: shown(path) });
    }
    Ok(hasher.finish())
}

fn system(call: &'static str, path: impl fmt::Display, source: io::Error) -> ContextError {
    ContextError::System { call, path: path.to_string(), source }
}

fn shown(path: &[u8]) -> String {
    crate::image::archive::printable(path)
}

/// Counts what a context holds while it is read.
struct Count {
    limits: Limits,
    seen: usize,
    entries: usize,
    bytes: u64,
}

impl Count {
    fn new(limits: Limits) -> Count {
        Count { limits, seen: 0, entries: 0, bytes: 0 }
    }

    fn see(&mut self) -> Result<(), ContextError> {
        self.seen += 1;
        check(self.seen as u64, self.limits.seen_max as u64, "entries, those left out counted")
    }

    fn keep(&mut self, size: u64) -> Result<(), ContextError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(size);
        check(self.entries as u64, self.limits.entries_max as u64, "entries")?;
        check(self.bytes, self.limits.bytes_max, "bytes")
    }
}

fn check(count: u64, bound: u64, what: &'static str) -> Result<(), ContextError> {
    if count > bound { Err(ContextError::Limit { what, bound }) } else { Ok(()) }
}

/// Collects entries; folders that are left out come back when something in them does.
struct Keeper {
    count: Count,
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Keeper {
    fn new(limits: Limits) -> Keeper {
        Keeper { count: Count::new(limits), entries: BTreeMap::new() }
    }

    fn keep(&mut self, path: Vec<u8>, entry: Entry) -> Result<(), ContextError> {
        self.count.keep(entry.size)?;
        self.entries.insert(path, entry);
        Ok(())
    }
}

impl Entry {
    fn new(kind: Kind, mode: u32, size: u64) -> Entry {
        Entry { kind, mode, size, mtime: 0, offset: 0, digest: OnceLock::new() }
    }
}
