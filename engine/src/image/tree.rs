//! What an image comes to when its layers lie over each other, read inside a throw-away sandbox: written as one flat
//! tar, compared with another tree, or with what an archive unpacks to. Nothing here writes to a tree.
//!
//! Trees are walked in the order of their names' bytes, so that the same tree always gives the same answer. What is
//! held in memory is bounded by the longest chain of folders, not by the tree.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

pub use crate::spec::{PlaceOrder, StepTerms, Wanted};
pub(crate) use compare::{check, write_changes};
pub(crate) use export::{Export, export};
pub(crate) use measure::measure;
pub(crate) use seal::seal;

mod compare;
mod export;
mod measure;
mod seal;
pub(crate) mod walk;

/// Longest change on its way, in bytes: two paths, two link targets and the attributes that are told.
const CHANGE_BYTES_MAX: usize = 128 * 1024;
/// Most extended attributes of one file that are told.
const ATTRIBUTES_MAX: usize = 32;
/// Longest value of an extended attribute that is told as it is; of a longer one it is the digest.
const ATTRIBUTE_BYTES_MAX: usize = 128;

/// How much was written of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// How a tree differs from what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) differences: u64,
    /// The first few, as sentences.
    pub(crate) samples: Vec<String>,
}

/// What something in a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Pipe,
    /// The mark of a deleted file, in a single layer.
    Whiteout,
    /// A socket, or a device, which no layer has.
    Other,
}

/// All that is told of something in a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Bytes of a file's content.
    pub size: u64,
    /// The SHA-256 of a file's content as 64 digits; absent where both sides are one and the same file on disk.
    pub sha256: Option<String>,
    /// Where a symbolic link points.
    pub target: Option<Vec<u8>>,
    /// Its extended attributes: names, and values or their digests.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Something that is in one of two trees only, or in both and not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its path from the root, without a slash in front; empty for the root itself.
    pub path: Vec<u8>,
    /// What it was.
    pub before: Option<Facts>,
    /// What it is.
    pub after: Option<Facts>,
}

/// Why a tree was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call failed.
    #[error("could not {action} `{path}` of the image")]
    System {
        /// What was tried, as in `open`.
        action: &'static str,
        /// The path made printable.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A bound was passed.
    #[error("`{path}` of the image passes the limit of {bound} {what}")]
    Limit {
        /// The path made printable.
        path: String,
        /// The bound.
        bound: usize,
        /// What is bounded.
        what: &'static str,
    },
    /// Whoever wanted to know listens no more.
    #[error("could not write what was read")]
    Output(#[source] io::Error),
}

/// Reads what `Runtime::compare_trees` wrote. What wrote it is not trusted: every length is bounded.
pub struct Changes<R> {
    input: R,
}

impl<R: Read> Changes<R> {
    /// Reads from `input`.
    pub fn new(input: R) -> Changes<R> {
        Changes { input }
    }

    /// The next change; `None` at the end.
    ///
    /// # Errors
    /// An input that fails, ends early or makes no sense.
    pub fn next_change(&mut self) -> io::Result<Option<Change>> {
        let mut length = [0; 4];
        if self.input.read(&mut length[..1])? == 0 {
            return Ok(None);
        }
        self.input.read_exact(&mut length[1..])?;
        let length = u32::from_le_bytes(length) as usize;
        let senseless = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        if length > CHANGE_BYTES_MAX {
            return Err(senseless(format!("a change of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes)?;
        postcard::from_bytes(&bytes).map(Some).map_err(|error| senseless(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
