//! A tree as one flat tar: POSIX headers, and extended ones where those are too small.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::walk::{self, Held, Node, system};
use super::{NodeKind, TreeError, Written};
use crate::image::archive::{Timestamp, Xattr, printable};
use crate::image::layer::{OPAQUE_MARK, OPAQUE_XATTR, OVERLAY_XATTR_PREFIX, WHITEOUT_PREFIX};

/// Bytes of a tar block.
const BLOCK_BYTES: u64 = 512;
/// Bytes written at a time.
const BUFFER_BYTES: usize = 256 * 1024;
/// Most memory for the names of files that have several, in bytes.
const LINKS_BYTES_MAX: usize = 128 << 20;
/// Most parts of a file with holes; one with more is written with its zeros.
const EXTENTS_MAX: usize = 64 * 1024;
/// Largest number that fits the size and the time of a header.
const OCTAL_MAX: u64 = 0o777_7777_7777;
/// Longest name that fits a header.
const NAME_BYTES_MAX: usize = 100;

/// Writes all that is in a tree to `output` as a tar.
///
/// # Errors
/// A tree that cannot be read or passes a bound, and an output that takes no more.
pub(crate) fn export(tree: BorrowedFd<'_>, output: impl Write) -> Result<Written, TreeError> {
    let root = walk::open_root(tree)?;
    let mut export = Export::new(output, false);
    export.folder_entry(&root, b"./")?;
    export.walk(root, Vec::new(), &|_| true)?;
    export.finish()
}

/// A tar of trees that is being written.
pub(crate) struct Export<W: Write> {
    /// Whether the marks of deleted files are told, in the form of layers.
    has_marks: bool,
    output: Tar<W>,
    held: Held,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    links_bytes: usize,
    entries: u64,
    buffer: Vec<u8>,
}

/// A folder that the walk is in.
struct Level {
    folder: OwnedFd,
    names: std::vec::IntoIter<Vec<u8>>,
    /// How much of the path leads to it, slash included.
    path_length: usize,
}

impl<W: Write> Export<W> {
    /// Nothing yet.
    pub(crate) fn new(output: W, has_marks: bool) -> Export<W> {
        Export {
            has_marks,
            output: Tar { inner: BufWriter::with_capacity(BUFFER_BYTES, output), bytes: 0 },
            held: Held::default(),
            links: HashMap::new(),
            links_bytes: 0,
            entries: 0,
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    /// Writes the end.
    pub(crate) fn finish(mut self) -> Result<Written, TreeError> {
        self.output.finish()?;
        Ok(Written { entries: self.entries, bytes: self.output.bytes })
    }

    /// Writes what is in a folder, under names that begin with `path`. Of what `is_wanted` denies, by its path, neither
    /// it nor what is in it is written.
    pub(crate) fn walk(
        &mut self,
        root: OwnedFd,
        mut path: Vec<u8>,
        is_wanted: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), TreeError> {
        let names = self.held.names(&root, b"/")?.into_iter();
        let mut levels = vec![Level { folder: root, names, path_length: path.len() }];
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_length);
            let Some(name) = level.names.next() else {
                levels.pop();
                self.held.leave_folder();
                continue;
            };
            self.held.let_go_of_name(&name);
            path.extend_from_slice(&name);
            if !is_wanted(&path) {
                continue;
            }
            let node = walk::look(level.folder.as_fd(), &name, &path)?;
            if node.kind == NodeKind::Folder {
                let folder = walk::open_folder(level.folder.as_fd(), &name, &path)?;
                path.push(b'/');
                self.folder_entry(&folder, &path)?;
                let names = self.held.names(&folder, &path)?.into_iter();
                levels.push(Level { folder, names, path_length: path.len() });
            } else {
                self.entry(level.folder.as_fd(), &name, &path, node)?;
            }
        }
        Ok(())
    }

    /// Writes a folder itself.
    pub(crate) fn folder_entry(&mut self, folder: &OwnedFd, path: &[u8]) -> Result<(), TreeError> {
        let node = walk::look_at(folder.as_fd(), path)?;
        let xattrs = walk::xattrs(folder.as_fd(), path, self.has_marks)?;
        let (marks, xattrs): (Vec<Xattr>, Vec<Xattr>) =
            xattrs.into_iter().partition(|xattr| xattr.name.starts_with(OVERLAY_XATTR_PREFIX));
        self.entries += 1;
        self.output.header(b'5', path, &node, b"", 0, xattr_records(&xattrs))?;
        let is_opaque = marks.iter().any(|mark| mark.name == OPAQUE_XATTR.as_bytes() && mark.value == b"y");
        if is_opaque { self.mark(&[path, OPAQUE_MARK].concat(), &node) } else { Ok(()) }
    }

    /// Writes a mark that speaks of lower layers.
    fn mark(&mut self, path: &[u8], node: &Node) -> Result<(), TreeError> {
        let node = Node { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), ..*node };
        self.entries += 1;
        self.output.header(b'0', path, &node, b"", 0, Vec::new())
    }

    /// Writes something that is no folder.
    pub(crate) fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        node: Node,
    ) -> Result<(), TreeError> {
        match node.kind {
            NodeKind::Whiteout if self.has_marks => {
                let folder = &path[..path.len() - name.len()];
                return self.mark(&[folder, WHITEOUT_PREFIX, name].concat(), &node);
            }
            // A lone layer may still hold marks, which mean nothing without a layer below. Sockets mean nothing at all.
            NodeKind::Folder | NodeKind::Whiteout | NodeKind::Other => return Ok(()),
            NodeKind::File | NodeKind::Symlink | NodeKind::Pipe => {}
        }
        self.entries += 1;
        if node.links > 1 {
            if let Some(first) = self.links.get(&(node.device, node.inode)) {
                return self.output.header(b'1', path, &node, first, 0, Vec::new());
            }
            self.remember_link(path, &node)?;
        }
        match node.kind {
            NodeKind::Symlink => {
                let target = walk::target(parent, name, path)?;
                self.output.header(b'2', path, &node, &target, 0, Vec::new())
            }
            NodeKind::Pipe => self.output.header(b'6', path, &node, b"", 0, Vec::new()),
            _ => {
                let file = walk::open_file(parent, name, path)?;
                self.file(&file, path, &node)
            }
        }
    }

    fn remember_link(&mut self, path: &[u8], node: &Node) -> Result<(), TreeError> {
        self.links_bytes += path.len() + size_of::<((u64, u64), Vec<u8>)>();
        if self.links_bytes > LINKS_BYTES_MAX {
            let what = "bytes of names of files with several names";
            return Err(TreeError::Limit { path: printable(path), bound: LINKS_BYTES_MAX, what });
        }
        self.links.insert((node.device, node.inode), path.to_vec());
        Ok(())
    }

    /// Writes one file under a name.
    pub(crate) fn single_file(&mut self, file: &OwnedFd, path: &[u8], node: &Node) -> Result<(), TreeError> {
        self.entries += 1;
        self.file(file, path, node)
    }

    fn file(&mut self, file: &OwnedFd, path: &[u8], node: &Node) -> Result<(), TreeError> {
        let mut records = xattr_records(&walk::xattrs(file.as_fd(), path, false)?);
        let whole = vec![(0, node.size)];
        let extents = if node.has_holes { extents(file, node.size, path)? } else { None };
        let Some(extents) = extents else {
            self.output.header(b'0', path, node, b"", node.size, records)?;
            return self.content(file, &whole, path);
        };
        // The form that GNU tar writes today: a map in front of the data.
        let map = sparse_map(&extents, node.size);
        let stored = map.len() as u64 + extents.iter().map(|(_, length)| length).sum::<u64>();
        let text = |text: &str| text.as_bytes().to_vec();
        records.push((text("GNU.sparse.major"), text("1")));
        records.push((text("GNU.sparse.minor"), text("0")));
        records.push((text("GNU.sparse.name"), path.to_vec()));
        records.push((text("GNU.sparse.realsize"), text(&node.size.to_string())));
        self.output.header(b'0', b"GNUSparseFile.0/file", node, b"", stored, records)?;
        self.output.write(&map)?;
        self.content(file, &extents, path)
    }

    fn content(&mut self, file: &OwnedFd, extents: &[(u64, u64)], path: &[u8]) -> Result<(), TreeError> {
        let mut written = 0;
        for &(offset, length) in extents {
            let mut position = offset;
            while position < offset + length {
                let part = self.buffer.len().min(usize::try_from(offset + length - position).unwrap_or(usize::MAX));
                let read = rustix::io::pread(file, &mut self.buffer[..part], position).map_err(system("read", path))?;
                if read == 0 {
                    return Err(system("read", path)(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
                }
                self.output.write(&self.buffer[..read])?;
                position += read as u64;
            }
            written += length;
        }
        self.output.pad(written)
    }
}

/// Where a file has data, as offsets and lengths; `None` when it is not worth telling.
fn extents(file: &OwnedFd, size: u64, path: &[u8]) -> Result<Option<Vec<(u64, u64)>>, TreeError> {
    let mut extents = Vec::new();
    let mut position = 0;
    while position < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            found => found.map_err(system("look for holes in", path))?,
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).map_err(system("look for holes in", path))?;
        let end = hole.min(size);
        if data >= end {
            break;
        }
        extents.push((data, end - data));
        if extents.len() > EXTENTS_MAX {
            return Ok(None);
        }
        position = end;
    }
    let is_dense = extents == [(0, size)];
    Ok((!is_dense).then_some(extents))
}

/// The map of a file with holes: a count and pairs, a line each, up to the end of a block. As GNU tar does, the last
/// pair is the end of the file.
fn sparse_map(extents: &[(u64, u64)], size: u64) -> Vec<u8> {
    let pairs: Vec<(u64, u64)> = extents.iter().copied().chain([(size, 0)]).collect();
    let mut map = format!("{}\n", pairs.len()).into_bytes();
    for (offset, length) in pairs {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    map
}

/// Records of an extended header: keys and values.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

fn xattr_records(xattrs: &[Xattr]) -> Records {
    xattrs.iter().map(|xattr| ([b"SCHILY.xattr.", &xattr.name[..]].concat(), xattr.value.clone())).collect()
}

/// A tar that is being written.
struct Tar<W: Write> {
    inner: BufWriter<W>,
    bytes: u64,
}

impl<W: Write> Tar<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.inner.write_all(bytes).map_err(TreeError::Output)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Fills the block that content of this length ended in.
    fn pad(&mut self, length: u64) -> Result<(), TreeError> {
        let padding = length.wrapping_neg() % BLOCK_BYTES;
        self.write(&[0; BLOCK_BYTES as usize][..padding as usize])
    }

    /// Writes the header of an entry, after an extended one with all that has no room in it.
    fn header(
        &mut self,
        flag: u8,
        path: &[u8],
        node: &Node,
        link: &[u8],
        size: u64,
        mut records: Records,
    ) -> Result<(), TreeError> {
        let text = |text: String| text.into_bytes();
        if path.len() > NAME_BYTES_MAX {
            records.push((b"path".to_vec(), path.to_vec()));
        }
        if link.len() > NAME_BYTES_MAX {
            records.push((b"linkpath".to_vec(), link.to_vec()));
        }
        if size > OCTAL_MAX {
            records.push((b"size".to_vec(), text(size.to_string())));
        }
        let seconds = u64::try_from(node.mtime.seconds).ok().filter(|&seconds| seconds <= OCTAL_MAX);
        if node.mtime.nanos != 0 || seconds.is_none() {
            records.push((b"mtime".to_vec(), text(timestamp(node))));
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(node.mode);
        header.set_uid(u64::from(node.uid));
        header.set_gid(u64::from(node.gid));
        header.set_mtime(seconds.unwrap_or(0));
        if !records.is_empty() {
            let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let mut extended = header.clone();
            extended.set_mode(0o644);
            self.block(extended, b'x', b"PaxHeaders/entry", b"", data.len() as u64)?;
            self.write(&data)?;
            self.pad(data.len() as u64)?;
        }
        self.block(header, flag, path, link, if size > OCTAL_MAX { 0 } else { size })
    }

    fn block(
        &mut self,
        mut header: tar::Header,
        flag: u8,
        path: &[u8],
        link: &[u8],
        size: u64,
    ) -> Result<(), TreeError> {
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_size(size);
        let fields = header.as_old_mut();
        for (field, bytes) in [(&mut fields.name, path), (&mut fields.linkname, link)] {
            let length = bytes.len().min(field.len());
            field[..length].copy_from_slice(&bytes[..length]);
        }
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn finish(&mut self) -> Result<(), TreeError> {
        self.write(&[0; 2 * BLOCK_BYTES as usize])?;
        self.inner.flush().map_err(TreeError::Output)
    }
}

/// Seconds since 1970 with their fraction.
fn timestamp(node: &Node) -> String {
    let (seconds, nanos) = (node.mtime.seconds, node.mtime.nanos);
    let (sign, seconds, nanos) = match (seconds < 0, nanos) {
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, nanos) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
        (false, nanos) => ("", seconds.unsigned_abs(), nanos),
    };
    if nanos == 0 { format!("{sign}{seconds}") } else { format!("{sign}{seconds}.{nanos:09}") }
}

/// One record: its own length in front, which counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}
