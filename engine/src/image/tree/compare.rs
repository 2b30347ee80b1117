//! Two trees side by side: both are walked at once in the order of names, and what differs is told as it is found.

use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::walk::{self, Held, Node, system};
use super::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX, CHANGE_BYTES_MAX, Change, Facts, Found, NodeKind, TreeError, Written,
};
use crate::image::archive::printable;
use crate::image::digest::{Digest, Hasher};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 * 1024;
/// Most differences of a layer that are told as sentences.
const SAMPLES_MAX: usize = 20;

/// Writes how the tree `after` differs from `before`, in the form that `Changes` reads.
///
/// # Errors
/// A tree that cannot be read or passes a bound, and an output that takes no more.
pub(crate) fn write_changes(
    before: BorrowedFd<'_>,
    after: BorrowedFd<'_>,
    output: impl Write,
) -> Result<Written, TreeError> {
    let mut output = BufWriter::new(output);
    let mut written = Written::default();
    let tell = |change: Change| {
        let bytes = postcard::to_stdvec(&change).map_err(|error| TreeError::Output(std::io::Error::other(error)))?;
        // What is told of a file is bounded in every part, so this one is never too long.
        debug_assert!(bytes.len() <= CHANGE_BYTES_MAX, "{} bytes", bytes.len());
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        output.write_all(&length).and_then(|()| output.write_all(&bytes)).map_err(TreeError::Output)?;
        written.entries += 1;
        written.bytes += bytes.len() as u64 + 4;
        Ok(())
    };
    Comparison::new(false, tell).walk(before, after)?;
    output.flush().map_err(TreeError::Output)?;
    Ok(written)
}

/// Compares the tree of a layer with what it should be, the marks for layers below included.
///
/// # Errors
/// A tree that cannot be read or passes a bound.
pub(crate) fn check(expected: BorrowedFd<'_>, found: BorrowedFd<'_>) -> Result<Found, TreeError> {
    let mut differences = Found::default();
    let tell = |change: Change| {
        differences.differences += 1;
        if differences.samples.len() < SAMPLES_MAX {
            differences.samples.push(sentence(&change));
        }
        Ok(())
    };
    Comparison::new(true, tell).walk(expected, found)?;
    Ok(differences)
}

/// What is wrong with a file of a layer, in words.
fn sentence(change: &Change) -> String {
    let path = if change.path.is_empty() { "/".to_owned() } else { printable(&change.path) };
    let (expected, found) = match (&change.before, &change.after) {
        (Some(expected), Some(found)) => (expected, found),
        (Some(_), None) => return format!("`{path}` is missing"),
        _ => return format!("`{path}` does not belong there"),
    };
    let mut wrong = Vec::new();
    if expected.kind != found.kind {
        wrong.push(format!("it is a {}, not a {}", name(found.kind), name(expected.kind)));
    }
    if expected.mode != found.mode {
        wrong.push(format!("its mode is {:o}, not {:o}", found.mode, expected.mode));
    }
    if (expected.uid, expected.gid) != (found.uid, found.gid) {
        let (owner, owner_expected) = ((found.uid, found.gid), (expected.uid, expected.gid));
        wrong.push(format!("it belongs to {}:{}, not {}:{}", owner.0, owner.1, owner_expected.0, owner_expected.1));
    }
    if expected.size != found.size {
        wrong.push(format!("it has {} bytes, not {}", found.size, expected.size));
    } else if expected.sha256 != found.sha256 {
        wrong.push("it has another content".to_owned());
    }
    if expected.target != found.target {
        wrong.push("it points elsewhere".to_owned());
    }
    if expected.attributes != found.attributes {
        wrong.push("its extended attributes are others".to_owned());
    }
    format!("`{path}`: {}", wrong.join(", "))
}

fn name(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "file",
        NodeKind::Folder => "folder",
        NodeKind::Symlink => "symbolic link",
        NodeKind::Pipe => "pipe",
        NodeKind::Whiteout => "mark of a deleted file",
        NodeKind::Other => "socket or device",
    }
}

struct Comparison<F> {
    /// Whether the marks of a single layer count as files.
    marks: bool,
    tell: F,
    held: Held,
    buffer: Vec<u8>,
}

/// A folder that the walk is in, on one side or on both.
struct Level {
    before: Option<OwnedFd>,
    after: Option<OwnedFd>,
    names: std::vec::IntoIter<Vec<u8>>,
    /// How much of the path leads to it, slash included.
    path_length: usize,
    /// How many folders were opened for it.
    opened: usize,
}

/// Something in a folder, on one side.
struct Side<'folder> {
    parent: BorrowedFd<'folder>,
    node: Node,
}

/// Extended attributes, by name.
type NamedValues = Vec<(Vec<u8>, Vec<u8>)>;

impl<F: FnMut(Change) -> Result<(), TreeError>> Comparison<F> {
    fn new(marks: bool, tell: F) -> Comparison<F> {
        Comparison { marks, tell, held: Held::default(), buffer: vec![0; BUFFER_BYTES] }
    }

    fn walk(&mut self, before: BorrowedFd<'_>, after: BorrowedFd<'_>) -> Result<(), TreeError> {
        let (before, after) = (walk::open_root(before)?, walk::open_root(after)?);
        self.compare_roots(&before, &after)?;
        let mut path = Vec::new();
        let mut levels = vec![self.level(Some(before), Some(after), &path)?];
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_length);
            let Some(name) = level.names.next() else {
                (0..level.opened).for_each(|_| self.held.leave_folder());
                levels.pop();
                continue;
            };
            self.held.let_go_of_name(&name);
            path.extend_from_slice(&name);
            let before = self.side(level.before.as_ref(), &name, &path)?;
            let after = self.side(level.after.as_ref(), &name, &path)?;
            self.compare(before.as_ref(), after.as_ref(), &name, &path)?;
            let open = |side: Option<Side<'_>>| {
                let folder = side.filter(|side| side.node.kind == NodeKind::Folder);
                folder.map(|side| walk::open_folder(side.parent, &name, &path)).transpose()
            };
            let (before, after) = (open(before)?, open(after)?);
            if before.is_some() || after.is_some() {
                path.push(b'/');
                levels.push(self.level(before, after, &path)?);
            }
        }
        Ok(())
    }

    fn level(&mut self, before: Option<OwnedFd>, after: Option<OwnedFd>, path: &[u8]) -> Result<Level, TreeError> {
        let mut names = Vec::new();
        let mut opened = 0;
        for folder in [&before, &after].into_iter().flatten() {
            names.extend(self.held.names(folder, path)?);
            opened += 1;
        }
        names.sort_unstable();
        let held = &mut self.held;
        names.dedup_by(|name, other| {
            let is_same = name == other;
            if is_same {
                held.let_go_of_name(name);
            }
            is_same
        });
        Ok(Level { before, after, names: names.into_iter(), path_length: path.len(), opened })
    }

    fn side<'folder>(
        &self,
        folder: Option<&'folder OwnedFd>,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Side<'folder>>, TreeError> {
        let Some(folder) = folder else { return Ok(None) };
        let node = match walk::look(folder.as_fd(), name, path) {
            Err(TreeError::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            looked => looked?,
        };
        let counts = self.marks || !matches!(node.kind, NodeKind::Whiteout | NodeKind::Other);
        Ok(counts.then(|| Side { parent: folder.as_fd(), node }))
    }

    fn compare_roots(&mut self, before: &OwnedFd, after: &OwnedFd) -> Result<(), TreeError> {
        let mut facts = |folder: &OwnedFd| {
            let node = walk::look_at(folder.as_fd(), b"/")?;
            self.facts(&Side { parent: folder.as_fd(), node }, b".", b"/", true)
        };
        let (before, after) = (facts(before)?, facts(after)?);
        if before == after {
            return Ok(());
        }
        (self.tell)(Change { path: Vec::new(), before: Some(before), after: Some(after) })
    }

    fn compare(
        &mut self,
        before: Option<&Side<'_>>,
        after: Option<&Side<'_>>,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), TreeError> {
        // Layers are on one file system, and overlayfs shows a file by its own number: the same number is the same file.
        let is_same = match (before, after) {
            (Some(before), Some(after)) => {
                let id = |node: &Node| (node.kind, node.inode, node.size, node.mtime, node.mode, node.uid, node.gid);
                id(&before.node) == id(&after.node) && before.node.kind != NodeKind::Folder
            }
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return Ok(());
        }
        let before = before.map(|side| self.facts(side, name, path, true)).transpose()?;
        let after = after.map(|side| self.facts(side, name, path, true)).transpose()?;
        if before == after { Ok(()) } else { (self.tell)(Change { path: path.to_vec(), before, after }) }
    }

    fn facts(&mut self, side: &Side<'_>, name: &[u8], path: &[u8], hashes: bool) -> Result<Facts, TreeError> {
        let Node { kind, mode, uid, gid, size, .. } = side.node;
        let mut facts = Facts { kind, mode, uid, gid, size, sha256: None, target: None, attributes: Vec::new() };
        match kind {
            NodeKind::File => {
                let file = walk::open_file(side.parent, name, path)?;
                facts.sha256 = if hashes { Some(self.sha256(&file, path)?) } else { None };
                facts.attributes = self.attributes(&file, path)?;
            }
            NodeKind::Folder => {
                let folder = walk::open_folder(side.parent, name, path)?;
                facts.attributes = self.attributes(&folder, path)?;
            }
            NodeKind::Symlink => facts.target = Some(walk::target(side.parent, name, path)?),
            NodeKind::Pipe | NodeKind::Whiteout | NodeKind::Other => {}
        }
        Ok(facts)
    }

    fn attributes(&self, file: &OwnedFd, path: &[u8]) -> Result<NamedValues, TreeError> {
        let xattrs = walk::xattrs(file.as_fd(), path, self.marks)?;
        let told = |value: Vec<u8>| {
            if value.len() > ATTRIBUTE_BYTES_MAX { Digest::of(&value).to_string().into_bytes() } else { value }
        };
        Ok(xattrs.into_iter().take(ATTRIBUTES_MAX).map(|xattr| (xattr.name, told(xattr.value))).collect())
    }

    fn sha256(&mut self, file: &OwnedFd, path: &[u8]) -> Result<String, TreeError> {
        let mut hasher = Hasher::default();
        loop {
            match rustix::io::read(file, &mut self.buffer[..]).map_err(system("read", path))? {
                0 => return Ok(hasher.finish().hex().to_owned()),
                count => hasher.update(&self.buffer[..count]),
            }
        }
    }
}
