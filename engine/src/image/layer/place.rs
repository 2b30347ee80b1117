//! Puts files on top of layers, as COPY does: into a tree that may be changed, at a place that is named by a path of the
//! image. Links on the way to that place are followed within the root, those below it are not followed at all.

use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, mkdirat};
use rustix::io::Errno;

use super::CONTENT_BUFFER_BYTES;
use super::folder::{Folder, OpenError};
use super::is_kept;
use crate::image::archive::{self, ArchiveError, Entry, Head, Kind, Timestamp, printable};
use crate::image::tree::PlaceOrder;
use crate::sys;

/// Mode of a folder that nobody described.
const FOLDER_MODE: u32 = 0o755;
/// Most memory for the times of folders, which can only be set last.
const FOLDER_TIMES_BYTES_MAX: usize = 256 << 20;

/// Why files were not put where they belong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("could not read the files to copy")]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Path(#[from] archive::PathError),
    #[error("could not {action} `{path}`")]
    System { action: &'static str, path: String, source: io::Error },
    #[error("`{path}` {problem}")]
    Refused { path: String, problem: String },
}

/// Puts the files of a tar into `root`; see `PlaceOrder` for its form. `owner` is whom the order names.
///
/// # Errors
/// A tar that is none, something in the way, a file system that fails.
pub(crate) fn place(
    files: impl Read,
    root: BorrowedFd<'_>,
    order: &PlaceOrder,
    owner: Option<(u32, u32)>,
) -> Result<(), PlaceError> {
    rustix::process::umask(Mode::empty());
    let mut placer = Placer { root, order, owner, folder: None, times: Vec::new(), times_bytes: 0, buffer: Vec::new() };
    placer.buffer.resize(CONTENT_BUFFER_BYTES, 0);
    let mut reader = archive::Reader::new(files, archive::Limits::default());
    let mut count = 0_u64;
    while let Some(mut entry) = reader.next_entry()? {
        count += 1;
        placer.put(&mut entry)?;
    }
    reader.drain()?;
    if count == 0 {
        // A folder of which nothing is copied is made all the same.
        placer.open_folder(None)?;
    }
    placer.set_times()
}

/// The folder of the tar that holds what an archive held.
const UNPACKED: &[u8] = b"u";

struct Placer<'a> {
    root: BorrowedFd<'a>,
    order: &'a PlaceOrder,
    owner: Option<(u32, u32)>,
    /// The destination as a folder, once it is needed.
    folder: Option<Folder<'static>>,
    times: Vec<(Vec<u8>, Timestamp)>,
    times_bytes: usize,
    buffer: Vec<u8>,
}

impl Placer<'_> {
    fn put<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), PlaceError> {
        let mut head = entry.take_head();
        let path = head.path.clone();
        let parts = archive::split_path(&path)?;
        // What an archive holds keeps its owners and modes, as Docker has it.
        if parts.first() != Some(&UNPACKED) {
            (head.uid, head.gid) = self.owner.unwrap_or((head.uid, head.gid));
            if !matches!(head.kind, Kind::Symlink { .. } | Kind::HardLink { .. }) {
                head.mode = mode_of(self.order.mode.as_deref(), head.mode, head.kind == Kind::Directory);
            }
        }
        match (parts.split_first(), &head.kind) {
            (Some((&b"d", [])), Kind::Directory) => self.open_folder(Some(&head)),
            (Some((&(b"d" | UNPACKED), below)), _) if !below.is_empty() => {
                self.open_folder(None)?;
                let folder = self.again(&path)?;
                self.put_below(&folder, below, &head, entry)
            }
            (Some((&b"f", [name])), _) => self.put_single(name, &head, entry),
            _ => Err(refused(&path, "is not in the form that was agreed on")),
        }
    }

    /// Opens the destination as a folder, and makes it and what is above it where it is not there. `head` is the folder
    /// that is copied, whose attributes a new one takes.
    fn open_folder(&mut self, head: Option<&Head>) -> Result<(), PlaceError> {
        if self.folder.is_some() {
            return Ok(());
        }
        let destination = self.order.destination.clone();
        let (opened, is_new) = self.make_all(destination.as_bytes())?;
        let folder = Folder::owned(opened);
        if let (Some(head), true, false) = (head, is_new, self.order.is_folder) {
            let failed = |source| system("set the attributes of", destination.as_bytes(), source);
            let attributes = folder.attributes().map_err(failed)?;
            attributes.open().set_owner(head.uid, head.gid).map_err(failed)?;
            attributes.open().set_mode(head.mode).map_err(failed)?;
        }
        self.folder = Some(folder);
        Ok(())
    }

    /// The destination once more, so that it can be looked into while something is put there.
    fn again(&self, path: &[u8]) -> Result<Folder<'static>, PlaceError> {
        let folder = self.folder.as_ref().ok_or_else(|| refused(path, "has no folder to go to"))?;
        folder.open_beneath(&[]).map_err(|source| system("open the folder of", path, source))
    }

    /// Opens a folder by a path of the image, made where it is not there; says whether it is new.
    fn make_all(&self, path: &[u8]) -> Result<(OwnedFd, bool), PlaceError> {
        let parts = archive::split_path(path)?;
        let mut folder = open_in(self.root, b".").map_err(|error| system("open", b"/", error.into()))?;
        let mut is_new = false;
        for end in 1..=parts.len() {
            let way = parts[..end].join(&b'/');
            folder = match open_in(self.root, &way) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    is_new = true;
                    self.make_one(&folder, parts[end - 1], &way)?
                }
                Err(Errno::NOTDIR) => {
                    return Err(refused(&way, "is not a folder, and files are to be put into it"));
                }
                Err(error) => return Err(system("open", &way, error.into())),
            };
        }
        Ok((folder, is_new))
    }

    fn make_one(&self, parent: &OwnedFd, name: &[u8], way: &[u8]) -> Result<OwnedFd, PlaceError> {
        match mkdirat(parent, name, Mode::from_raw_mode(FOLDER_MODE)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(refused(way, "is a link that leads nowhere")),
            Err(error) => return Err(system("make the folder", way, error.into())),
        }
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|()| chmodat(parent, name, Mode::from_raw_mode(FOLDER_MODE), AtFlags::empty()))
            .map_err(|error| system("set the owner of", way, error.into()))?;
        open_in(self.root, way).map_err(|error| system("open", way, error.into()))
    }

    /// A single file: into a folder under its own name, or under the name that the destination has.
    fn put_single<R: Read>(&mut self, name: &[u8], head: &Head, entry: &mut Entry<'_, R>) -> Result<(), PlaceError> {
        let path = self.order.destination.as_bytes();
        let is_folder = self.order.is_folder || open_in(self.root, path.trim_ascii_start()).is_ok();
        if is_folder {
            self.open_folder(None)?;
            let folder = self.again(path)?;
            return self.put_named(&folder, name, head, entry);
        }
        let parts = archive::split_path(path)?;
        let Some((&own, above)) = parts.split_last() else { return Err(refused(path, "is no name for a file")) };
        let (parent, _) = self.make_all(&above.join(&b'/'))?;
        self.put_named(&Folder::owned(parent), own, head, entry)
    }

    fn put_below<R: Read>(
        &mut self,
        folder: &Folder<'_>,
        parts: &[&[u8]],
        head: &Head,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), PlaceError> {
        let Some((&name, above)) = parts.split_last() else { return Ok(()) };
        if above.is_empty() {
            return self.put_named(folder, name, head, entry);
        }
        let mut parent = folder.open_beneath(&[]).map_err(|source| system("open", &head.path, source))?;
        for part in above {
            let opened = parent.open_or_make(part);
            parent = opened.map_err(|error| match error {
                OpenError::NotAFolder => refused(&head.path, "stands below something that is no folder in the image"),
                OpenError::System(source) => system("open the folder of", &head.path, source),
            })?;
        }
        self.put_named(&parent, name, head, entry)
    }

    fn put_named<R: Read>(
        &mut self,
        parent: &Folder<'_>,
        name: &[u8],
        head: &Head,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), PlaceError> {
        let failed = |action| move |source| system(action, &head.path, source);
        if head.kind == Kind::Directory {
            let folder = parent.open_or_make(name).map_err(|error| match error {
                OpenError::NotAFolder => refused(&head.path, "is a folder, and what the image has there is none"),
                OpenError::System(source) => system("make the folder", &head.path, source),
            })?;
            self.set_attributes(&folder.attributes().map_err(failed("open"))?, head)?;
            return self.remember_time(head);
        }
        if parent.holds_folder(name) {
            return Err(refused(&head.path, "is no folder, and what the image has there is one"));
        }
        parent.remove_if_there(name).map_err(failed("replace"))?;
        match &head.kind {
            Kind::Symlink { target } => {
                parent.make_symlink(name, target).map_err(failed("make the link"))?;
                parent.set_link_attributes(name, head, false).map_err(failed("set the owner of"))
            }
            Kind::HardLink { target } => self.put_hard_link(parent, name, target, head),
            Kind::Fifo => {
                parent.make_fifo(name).map_err(failed("make the pipe"))?;
                parent.set_fifo_attributes(name, head).map_err(failed("set the owner of"))
            }
            _ => {
                let file = parent.make_file(name, 0o600).map_err(failed("make"))?;
                let mut end = 0;
                while let Some(piece) = entry.read_piece(&mut self.buffer)? {
                    file.write_at(&self.buffer[..piece.length], piece.offset).map_err(failed("write"))?;
                    end = piece.offset + piece.length as u64;
                }
                if end < head.size {
                    file.set_size(head.size).map_err(failed("set the size of"))?;
                }
                self.set_attributes(&file, head)?;
                file.set_time(head.mtime).map_err(failed("set the time of"))
            }
        }
    }

    /// Another name of a file that came before, in the same folder `d`.
    fn put_hard_link(&self, parent: &Folder<'_>, name: &[u8], target: &[u8], head: &Head) -> Result<(), PlaceError> {
        let parts = archive::split_path(target)?;
        let missing = || refused(&head.path, "is another name of a file that was not copied");
        let (Some(folder), Some((_, below))) = (&self.folder, parts.split_first()) else { return Err(missing()) };
        let (&target_name, above) = below.split_last().ok_or_else(missing)?;
        let target_parent = folder.open_beneath(above).map_err(|_| missing())?;
        if !target_parent.holds_file(target_name) {
            return Err(missing());
        }
        parent.make_hard_link(name, &target_parent, target_name).map_err(|source| system("link", &head.path, source))
    }

    /// Sets owner, extended attributes and mode, in the order in which none takes another back.
    fn set_attributes(&self, file: &super::folder::Attributes, head: &Head) -> Result<(), PlaceError> {
        let failed = |source| system("set the attributes of", &head.path, source);
        file.open().set_owner(head.uid, head.gid).map_err(failed)?;
        for xattr in head.xattrs.iter().filter(|xattr| is_kept(&xattr.name)) {
            file.open().set_xattr(xattr).map_err(failed)?;
        }
        file.open().set_mode(head.mode).map_err(failed)
    }

    fn remember_time(&mut self, head: &Head) -> Result<(), PlaceError> {
        self.times_bytes += head.path.len() + size_of::<(Vec<u8>, Timestamp)>();
        if self.times_bytes > FOLDER_TIMES_BYTES_MAX {
            return Err(refused(&head.path, "is one of too many folders"));
        }
        self.times.push((head.path.clone(), head.mtime));
        Ok(())
    }

    fn set_times(&mut self) -> Result<(), PlaceError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        for (path, time) in std::mem::take(&mut self.times) {
            let parts = archive::split_path(&path)?;
            // A later entry may have taken the folder's place; then there is nothing to do.
            if let Ok(attributes) = folder.attributes_beneath(parts.get(1..).unwrap_or_default()) {
                attributes.set_time(time).map_err(|source| system("set the time of", &path, source))?;
            }
        }
        Ok(())
    }
}

/// Opens a folder of the image; links lead where they lead within the root.
fn open_in(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    sys::open_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::empty())
}

/// The mode that something gets.
fn mode_of(wanted: Option<&str>, mode: u32, is_folder: bool) -> u32 {
    let Some(wanted) = wanted else { return mode };
    match u32::from_str_radix(wanted, 8) {
        Ok(bits) => bits,
        Err(_) => wanted.split(',').fold(mode, |mode, clause| change(clause, mode, is_folder)),
    }
}

/// One clause of a symbolic mode, as in `go-w+x`; its form was checked when it was read.
fn change(clause: &str, mode: u32, is_folder: bool) -> u32 {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let who = &clause[..clause.len() - actions.len()];
    let means = |class: char| who.is_empty() || who.contains([class, 'a']);
    let mut mode = mode;
    let mut rest = actions;
    while let Some(operator) = rest.chars().next() {
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |end| end + 1);
        let letters = &rest[1..end];
        rest = &rest[end..];
        for (class, shift) in [('u', 6), ('g', 3), ('o', 0)].into_iter().filter(|(class, _)| means(*class)) {
            let bits = bits_of(letters, mode, is_folder) << shift;
            let special = (if letters.contains('s') && class == 'u' { 0o4000 } else { 0 })
                | (if letters.contains('s') && class == 'g' { 0o2000 } else { 0 })
                | (if letters.contains('t') && class == 'o' { 0o1000 } else { 0 });
            mode = match operator {
                '+' => mode | bits | special,
                '-' => mode & !(bits | special),
                _ => (mode & !(0o7 << shift)) | bits | special,
            };
        }
    }
    mode
}

fn bits_of(letters: &str, mode: u32, is_folder: bool) -> u32 {
    letters.chars().fold(0, |bits, letter| {
        bits | match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            'X' if is_folder || mode & 0o111 != 0 => 1,
            'u' => mode >> 6 & 7,
            'g' => mode >> 3 & 7,
            'o' => mode & 7,
            _ => 0,
        }
    })
}

fn refused(path: &[u8], problem: impl Into<String>) -> PlaceError {
    PlaceError::Refused { path: printable(path), problem: problem.into() }
}

fn system(action: &'static str, path: &[u8], source: io::Error) -> PlaceError {
    PlaceError::System { action, path: printable(path), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_changed_as_chmod_changes_them() {
        let check = |wanted: &str, before: u32, is_folder: bool, after: u32| {
            assert_eq!(mode_of(Some(wanted), before, is_folder), after, "{wanted}");
        };
        check("755", 0o644, false, 0o755);
        check("u=rwX,go=rX", 0o600, false, 0o644);
        check("u=rwX,go=rX", 0o700, false, 0o755);
        check("u=rwX,go=rX", 0o600, true, 0o755);
        check("+x", 0o644, false, 0o755);
        check("go-w+x", 0o666, false, 0o655);
        check("u+s,g=u", 0o755, false, 0o4775);
        check("a-rwx", 0o777, false, 0o000);
    }
}
