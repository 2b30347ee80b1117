//! The files of an image into a folder. What is in an image is hostile: every path is resolved beneath the folder and
//! through no link, nothing that an image may not give is made, and files belong to whoever unpacks.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ampoule_engine::image::archive::{Entry, Kind, Limits, Reader, Timestamp, split_path};
use anyhow::{Context as _, Result, bail};
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, linkat, mkdirat, openat, openat2, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

/// Bits of a mode that are taken over: nobody shall run as who unpacked.
const MODE_BITS: u32 = 0o777;
/// What the owner of a folder may at least do, so that it can be filled, and removed.
const FOLDER_BITS: u32 = 0o700;
/// Bytes read at a time.
const BUFFER_BYTES: usize = 128 * 1024;

/// Unpacks a tar into a folder, which is made when it is not there. Files of the same names are replaced; devices, pipes
/// and owners are left out. Returns how many entries were left out.
pub(super) fn unpack(tar: impl Read, folder: &Path) -> Result<u64> {
    std::fs::create_dir_all(folder).with_context(|| format!("could not make the folder {}", folder.display()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty());
    let root = Root(root.with_context(|| format!("could not open the folder {}", folder.display()))?);
    let mut reader = Reader::new(tar, Limits { bytes_max: u64::MAX, ..Limits::default() });
    let (mut left_out, mut folders) = (0, Vec::new());
    while let Some(entry) = reader.next_entry().context("could not read the files of the image")? {
        let names = entry.head().components()?;
        let path: PathBuf = names.iter().map(|name| OsStr::from_bytes(name)).collect();
        let (kind, mode, mtime) = (entry.head().kind.clone(), entry.head().mode & MODE_BITS, entry.head().mtime);
        let made = match kind {
            Kind::Directory => {
                folders.push((path.clone(), mode, mtime));
                root.folder(&path).map(drop)
            }
            Kind::File => root.file(&path, mode, mtime, entry),
            Kind::Symlink { target } => root.symlink(&path, OsStr::from_bytes(&target)),
            Kind::HardLink { target } => {
                let target: PathBuf = split_path(&target)?.into_iter().map(OsStr::from_bytes).collect();
                root.link(&path, &target)
            }
            Kind::Fifo | Kind::Device => {
                left_out += 1;
                Ok(())
            }
        };
        made.with_context(|| format!("could not make `{}` in {}", path.display(), folder.display()))?;
    }
    // Last, since a folder that may not be written to could not be filled, and filling it changes its time.
    for (path, mode, mtime) in folders.into_iter().rev().filter(|(path, ..)| !path.as_os_str().is_empty()) {
        root.finish(&path, mode | FOLDER_BITS, mtime)
            .with_context(|| format!("could not set the mode of `{}`", path.display()))?;
    }
    Ok(left_out)
}

/// The folder that everything is beneath.
struct Root(OwnedFd);

impl Root {
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// A folder, made with those above it where they are not there.
    fn folder(&self, path: &Path) -> Result<OwnedFd> {
        match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                let above = self.folder(path.parent().unwrap_or(Path::new("")))?;
                mkdirat(&above, name_of(path)?, Mode::from_raw_mode(FOLDER_BITS))?;
                Ok(self.open(path, OFlags::PATH | OFlags::DIRECTORY)?)
            }
            Err(Errno::NOTDIR | Errno::LOOP) => bail!("there is something else than a folder on its way"),
            opened => Ok(opened?),
        }
    }

    /// The folder that something new goes into, and its name there, which is free.
    fn place<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let (above, name) = (self.folder(path.parent().unwrap_or(Path::new("")))?, name_of(path)?);
        match unlinkat(&above, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((above, name)),
            Err(Errno::ISDIR) => bail!("there is a folder of that name"),
            Err(error) => Err(error.into()),
        }
    }

    fn file<R: Read>(&self, path: &Path, mode: u32, mtime: Timestamp, mut entry: Entry<'_, R>) -> Result<()> {
        let (above, name) = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&above, name, flags, Mode::from_raw_mode(0o600))?);
        // Holes stay holes.
        file.set_len(entry.head().size)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some(piece) = entry.read_piece(&mut buffer)? {
            file.write_all_at(&buffer[..piece.length], piece.offset)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(rustix::fs::futimens(&file, &times(mtime))?)
    }

    fn symlink(&self, path: &Path, target: &OsStr) -> Result<()> {
        let (above, name) = self.place(path)?;
        Ok(symlinkat(target, &above, name)?)
    }

    fn link(&self, path: &Path, target: &Path) -> Result<()> {
        let from = self.open(target.parent().unwrap_or(Path::new("")), OFlags::PATH | OFlags::DIRECTORY)?;
        let (above, name) = self.place(path)?;
        // The link itself where the target is one.
        Ok(linkat(&from, name_of(target)?, &above, name, AtFlags::empty())?)
    }

    fn finish(&self, path: &Path, mode: u32, mtime: Timestamp) -> Result<()> {
        let folder = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
        Ok(utimensat(folder.as_fd(), ".", &times(mtime), AtFlags::empty())?)
    }
}

fn name_of(path: &Path) -> Result<&OsStr> {
    path.file_name().context("it has no name")
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// A tar of entries: kind, name, target or content, mode.
    fn tar(entries: &[(tar::EntryType, &str, &str, u32)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, text, mode) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_mtime(1_700_000_000);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            let content = if kind.is_file() { text.as_bytes() } else { b"" };
            if !kind.is_file() {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).expect("writing to memory");
        }
        builder.into_inner().expect("writing to memory")
    }

    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};

    #[test]
    fn files_folders_and_links_are_made_and_what_runs_as_others_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let entries = [
            (Directory, "closed/", "", 0o555),
            (Regular, "closed/file", "text", 0o4755),
            (Symlink, "link", "/etc/shadow", 0o777),
            (Link, "twice", "closed/file", 0),
            (Fifo, "pipe", "", 0o644),
            (Regular, "a/b/c", "deep", 0o640),
        ];
        let out = folder.path().join("new/out");
        for _ in 0..2 {
            assert_eq!(unpack(&*tar(&entries), &out).expect("it is unpacked"), 1);
        }
        let about = |name: &str| std::fs::symlink_metadata(out.join(name)).expect("it is there");
        assert_eq!(about("closed/file").permissions().mode() & 0o7777, 0o755);
        assert_eq!(about("closed").permissions().mode() & 0o7777, 0o755);
        assert_eq!((about("closed").mtime(), about("a/b/c").mtime()), (1_700_000_000, 1_700_000_000));
        assert_eq!(about("closed/file").ino(), about("twice").ino());
        assert_eq!(std::fs::read_link(out.join("link")).expect("a link"), Path::new("/etc/shadow"));
        assert_eq!(std::fs::read(out.join("a/b/c")).expect("a file"), b"deep");
        assert!(!out.join("pipe").exists());
    }

    #[test]
    fn nothing_is_written_out_of_the_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let outside = folder.path().join("outside");
        std::fs::create_dir(&outside).expect("it is ours");
        std::fs::write(outside.join("kept"), "kept").expect("it is ours");
        let target = outside.to_string_lossy().into_owned();
        let attacks: [&[(tar::EntryType, &str, &str, u32)]; 6] = [
            &[(Regular, "../outside/new", "x", 0o644)],
            &[(Symlink, "way", &target, 0o777), (Regular, "way/new", "x", 0o644)],
            &[(Symlink, "way", "../outside", 0o777), (Directory, "way/new/", "", 0o755)],
            &[(Symlink, "way", &target, 0o777), (Link, "new", "way/kept", 0), (Regular, "new", "x", 0o644)],
            &[(Link, "new", "../outside/kept", 0)],
            &[(Symlink, "way", &target, 0o777), (Directory, "way/", "", 0o777)],
        ];
        for (number, attack) in attacks.iter().enumerate() {
            unpack(&*tar(attack), &folder.path().join(format!("out{number}"))).expect_err("it is refused");
        }
        let file = [(Symlink, "way", "../outside/kept", 0o777), (Regular, "way", "x", 0o644)];
        unpack(&*tar(&file), &folder.path().join("out")).expect("a link is replaced");
        assert_eq!(std::fs::read(outside.join("kept")).expect("it is ours"), b"kept");
        assert_eq!(std::fs::read_dir(&outside).expect("it is ours").count(), 1);
        assert_eq!(std::fs::metadata(&outside).expect("it is ours").permissions().mode() & 0o777, 0o755);
    }
}
