//! The files of an image archive, whether it is a tar or a folder, put aside in the store's own folder with their
//! digests known. Names are looked up in a table; none is ever resolved on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};

use super::blobs::{ArrivalError, Arrived, Incoming};
use super::refusal::ImportError;
use crate::image::archive::{self, Kind, Limits, Reader};
use crate::image::compression::{Bounds, Decompressed};
use crate::image::digest::Digest;

/// Most files of an archive that is not a root file system.
const MEMBERS_MAX: usize = 20_000;
/// Most symbolic links that lead from one to the next.
const LINK_HOPS_MAX: usize = 8;

/// The files of an image archive.
pub(super) struct Members {
    files: BTreeMap<String, Arrived>,
    links: BTreeMap<String, String>,
    incoming: Incoming,
}

/// What an archive holds, told by the names in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A root file system.
    Root,
    /// Images, as `docker save` or as an OCI layout.
    Images,
}

/// Folders of which every root file system has one.
const ROOT_FOLDERS: [&str; 15] =
    ["bin", "dev", "etc", "home", "lib", "lib64", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"];

/// Tells what an archive holds. Reads only as far as it takes.
pub(super) fn shape(archive: File) -> Result<Shape, ImportError> {
    let mut reader = reader(archive)?;
    let mut has_manifest = false;
    while let Some(entry) = reader.next_entry()? {
        let parts = entry.head().components().map_err(ImportError::Path)?;
        let parts: Vec<_> = parts.iter().map(|part| String::from_utf8_lossy(part)).collect();
        match &parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..] {
            ["oci-layout"] => return Ok(Shape::Images),
            ["blobs", "sha256", hex] if Digest::from_hex(hex).is_some() => return Ok(Shape::Images),
            ["manifest.json"] => has_manifest = true,
            [first, ..] if is_named_by_digest(first) => return Ok(Shape::Images),
            [first, ..] if ROOT_FOLDERS.contains(first) => return Ok(Shape::Root),
            _ => {}
        }
    }
    match (reader.entries(), has_manifest) {
        (0, _) => Err(ImportError::NotAnImage("the archive is empty")),
        (_, true) => Ok(Shape::Images),
        (_, false) => Ok(Shape::Root),
    }
}

/// As `docker save` and its like name layers and configs: `HEX`, `HEX.tar`, `HEX.json`, `sha256:HEX`.
fn is_named_by_digest(name: &str) -> bool {
    named_digest(name).is_some()
}

/// The digest that a name says its file has.
pub(super) fn named_digest(name: &str) -> Option<Digest> {
    let name = name.strip_prefix("sha256:").unwrap_or(name);
    let stem = [".tar", ".json", ".tar.gz"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    Digest::from_hex(stem)
}

fn reader<R: Read>(archive: R) -> Result<Reader<Decompressed<R>>, ImportError> {
    let plain = Decompressed::new(archive, Bounds::default()).map_err(ImportError::Read)?;
    Ok(Reader::new(plain, Limits::default()))
}

impl Members {
    /// Puts the files of a tar aside.
    pub(super) fn from_archive(incoming: Incoming, archive: File) -> Result<Members, ImportError> {
        Members::from_reader(incoming, archive, |_| Ok(()))
    }

    /// Puts the files of a tar aside as they come. One that turns out to be a root file system is refused before its
    /// files take room.
    pub(super) fn of_images(incoming: Incoming, archive: impl Read) -> Result<Members, ImportError> {
        let mut is_of_images = false;
        Members::from_reader(incoming, archive, |name| {
            let first = name.split('/').next().unwrap_or_default();
            is_of_images |= matches!(first, "blobs" | "oci-layout" | "index.json" | "manifest.json" | "repositories")
                || is_named_by_digest(first);
            if is_of_images || !ROOT_FOLDERS.contains(&first) { Ok(()) } else { Err(ImportError::RootFileSystem) }
        })
    }

    fn from_reader(
        incoming: Incoming,
        archive: impl Read,
        mut check: impl FnMut(&str) -> Result<(), ImportError>,
    ) -> Result<Members, ImportError> {
        let mut members = Members { files: BTreeMap::new(), links: BTreeMap::new(), incoming };
        let mut reader = reader(archive)?;
        while let Some(mut entry) = reader.next_entry()? {
            let head = entry.head().clone();
            // Whoever wrote the archive named its members in JSON; what is no text is not one of them.
            let Some(name) = text(&head.components().map_err(ImportError::Path)?) else { continue };
            check(&name)?;
            match head.kind {
                Kind::File => {
                    let arrived = members.incoming.receive(&mut entry, Bounds::default().bytes_max);
                    members.add(name, arrived)?;
                }
                Kind::Symlink { target } => members.link(&name, &target),
                Kind::HardLink { target } => {
                    let target = text(&archive::split_path(&target).map_err(ImportError::Path)?);
                    if let Some(file) = target.and_then(|target| members.files.get(&target).cloned()) {
                        members.files.insert(name, file);
                    }
                }
                Kind::Directory | Kind::Fifo | Kind::Device => {}
            }
        }
        // What comes after the last entry is read as well: a compressed stream proves itself at its end.
        reader.drain()?;
        Ok(members)
    }

    /// Copies the files of an OCI layout that is a folder.
    pub(super) fn from_folder(incoming: Incoming, folder: &Path) -> Result<Members, ImportError> {
        let unreadable = |source: io::Error| ImportError::Folder { path: folder.to_owned(), source };
        let root = File::open(folder).map_err(unreadable)?;
        let mut members = Members { files: BTreeMap::new(), links: BTreeMap::new(), incoming };
        let blobs = match open_beneath(&root, "blobs/sha256", OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            opened => blob_names(&opened.map_err(unreadable)?).map_err(unreadable)?,
        };
        let top = ["oci-layout", "index.json"].map(str::to_owned);
        for name in top.into_iter().chain(blobs) {
            let mut file = match open_beneath(&root, &name, OFlags::empty()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => File::from(opened.map_err(unreadable)?),
            };
            let arrived = members.incoming.receive(&mut file, Bounds::default().bytes_max);
            members.add(name, arrived)?;
        }
        Ok(members)
    }

    fn add(&mut self, name: String, arrived: Result<Arrived, ArrivalError>) -> Result<(), ImportError> {
        let arrived = arrived.map_err(|error| ImportError::arrival(&name, error))?;
        let stated = name.strip_prefix("blobs/sha256/").and_then(Digest::from_hex);
        if let Some(stated) = stated.filter(|stated| *stated != arrived.digest) {
            return Err(ImportError::member(&name, format!("its content is {}, not {stated}", arrived.digest)));
        }
        self.files.insert(name, arrived);
        if self.files.len() > MEMBERS_MAX {
            return Err(ImportError::NotAnImage("the archive has more than 20000 files and is no root file system"));
        }
        Ok(())
    }

    fn link(&mut self, name: &str, target: &[u8]) {
        let Ok(target) = std::str::from_utf8(target) else { return };
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut parts: Vec<&str> = if target.starts_with('/') { Vec::new() } else { folder.split('/').collect() };
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if self.links.len() < MEMBERS_MAX {
            self.links.insert(name.to_owned(), parts.join("/"));
        }
    }

    /// The file of this name, or the one that a link of this name leads to.
    pub(super) fn get(&self, name: &str) -> Option<&Arrived> {
        let mut name = name;
        for _ in 0..LINK_HOPS_MAX {
            match (self.files.get(name), self.links.get(name)) {
                (Some(file), _) => return Some(file),
                (None, Some(target)) => name = target,
                (None, None) => return None,
            }
        }
        None
    }

    /// A file that the archive has to have.
    pub(super) fn need(&self, name: &str) -> Result<&Arrived, ImportError> {
        self.get(name).ok_or_else(|| ImportError::member(name, "the archive does not hold it"))
    }

    /// The bytes of a file that the archive has to have.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, ImportError> {
        let file = self.need(name)?;
        if file.size > bytes_max {
            return Err(ImportError::member(name, format!("it is larger than {bytes_max} bytes")));
        }
        let mut bytes = Vec::new();
        let read = File::open(&file.path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes));
        read.map_err(ImportError::Read)?;
        Ok(bytes)
    }

    /// Where more files can be put.
    pub(super) fn incoming(&self) -> &Incoming {
        &self.incoming
    }
}

fn text(parts: &[&[u8]]) -> Option<String> {
    String::from_utf8(parts.join(&b'/')).ok()
}

fn open_beneath(root: &File, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // Without NONBLOCK a pipe of that name would hold us up for ever.
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat2(root, name, flags, Mode::empty(), resolve)?)
}

fn blob_names(folder: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if let Some(digest) = entry.file_name().to_str().ok().and_then(Digest::from_hex) {
            names.push(format!("blobs/sha256/{}", digest.hex()));
        }
    }
    names.sort();
    Ok(names)
}
