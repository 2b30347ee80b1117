//! Picks a part of a tree for COPY, inside a throw-away sandbox: paths and patterns, relative to the root of a stage or an
//! image. Links in a source's own path are followed within that root; those below it are copied as they are.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use super::glob;
use super::ignore::Ignore;
use crate::image::archive::printable;
use crate::image::tree::walk::{self, Held};
use crate::image::tree::{Export, NodeKind, TreeError, Wanted, Written};
use crate::sys;

/// Most paths that the patterns of one instruction may stand for.
const ROOTS_MAX: usize = 100_000;

/// Why nothing was picked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatherError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("`{0}` is not there\nhint: paths are relative to the root of the stage or image that is copied from")]
    Missing(String),
    #[error("the pattern `{pattern}` {problem}")]
    Pattern { pattern: String, problem: String },
    #[error("`{0}` stands for more than {ROOTS_MAX} paths")]
    TooMany(String),
}

/// Writes what is wanted of a tree to `output`, in the form that `PlaceOrder` describes.
///
/// # Errors
/// A source that is not there, a pattern that is none, a tree that cannot be read, an output that takes no more.
pub(crate) fn gather(tree: BorrowedFd<'_>, wanted: &Wanted, output: impl Write) -> Result<Written, GatherError> {
    let exclude = Ignore::parse(&wanted.exclude.join("\n"))
        .map_err(|error| GatherError::Pattern { pattern: wanted.exclude.join(", "), problem: error.to_string() })?;
    let mut export = Export::new(output, false);
    for source in &wanted.sources {
        let cleaned = glob::clean(&format!("/{source}"));
        let is_pattern = glob::is_pattern(&cleaned);
        let roots = roots(tree, cleaned.trim_matches('/'))?;
        if roots.is_empty() {
            return Err(GatherError::Missing(source.clone()));
        }
        for root in roots {
            let found = write(&mut export, tree, &root, wanted, &exclude)?;
            if !found && !is_pattern {
                return Err(GatherError::Missing(source.clone()));
            }
        }
    }
    Ok(export.finish()?)
}

/// Writes one source; false when it is not there.
fn write<W: Write>(
    export: &mut Export<W>,
    tree: BorrowedFd<'_>,
    root: &[u8],
    wanted: &Wanted,
    exclude: &Ignore,
) -> Result<bool, GatherError> {
    let below = if wanted.parents { [b"d/", root].concat() } else { b"d".to_vec() };
    match open(tree, root, OFlags::DIRECTORY) {
        Ok(folder) => {
            let prefix = [below.as_slice(), b"/"].concat();
            export.folder_entry(&folder, &prefix)?;
            let is_wanted = |path: &[u8]| {
                let relative = String::from_utf8_lossy(path.strip_prefix(prefix.as_slice()).unwrap_or(path));
                !exclude.excludes(&relative)
            };
            export.walk(folder, prefix.clone(), &is_wanted)?;
            return Ok(true);
        }
        Err(Errno::NOTDIR) => {}
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(walk::system("open", root)(io::Error::from(error)).into()),
    }
    let name = root.rsplit(|&byte| byte == b'/').next().unwrap_or(root);
    if exclude.excludes(&String::from_utf8_lossy(name)) {
        return Ok(true);
    }
    let target = if wanted.parents { below } else { [b"f/", name].concat() };
    let node = match open(tree, root, OFlags::PATH) {
        Ok(file) => walk::look_at(file.as_fd(), root)?,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(walk::system("open", root)(io::Error::from(error)).into()),
    };
    if node.kind == NodeKind::File {
        let file =
            open(tree, root, OFlags::NONBLOCK).map_err(|error| walk::system("open", root)(io::Error::from(error)))?;
        export.single_file(&file, &target, &node)?;
    }
    Ok(true)
}

fn open(tree: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    sys::open_in_root(tree, path, flags | OFlags::RDONLY, ResolveFlags::empty())
}

/// The paths that a source stands for.
fn roots(tree: BorrowedFd<'_>, pattern: &str) -> Result<Vec<Vec<u8>>, GatherError> {
    if !glob::is_pattern(pattern) {
        return Ok(vec![pattern.as_bytes().to_vec()]);
    }
    let refuse = |problem: &str| GatherError::Pattern { pattern: pattern.to_owned(), problem: problem.to_owned() };
    glob::check(pattern).map_err(refuse)?;
    let mut found: Vec<Vec<u8>> = vec![Vec::new()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for folder in found {
            let join = |name: &[u8]| {
                if folder.is_empty() { name.to_vec() } else { [folder.as_slice(), b"/", name].concat() }
            };
            if !glob::is_pattern(part) {
                next.push(join(part.as_bytes()));
                continue;
            }
            // What is no folder, or is not there, has nothing that could fit.
            let Ok(opened) = open(tree, &folder, OFlags::DIRECTORY) else { continue };
            let names = Held::default().names(&opened, &folder)?;
            next.extend(
                names.iter().filter(|name| glob::matches(part, &String::from_utf8_lossy(name))).map(|name| join(name)),
            );
            if next.len() > ROOTS_MAX {
                return Err(GatherError::TooMany(printable(pattern.as_bytes())));
            }
        }
        found = next;
    }
    Ok(found)
}
