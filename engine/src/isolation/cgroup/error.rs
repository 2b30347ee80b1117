//! What can go wrong with control groups, told apart as the launcher needs it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a control group could not be made, limited, read, emptied or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The machine, or the place where the launcher runs, does not let us use a controller.
    #[error("control group controller `{controller}` cannot be used: {problem}\nhint: {hint}")]
    Missing {
        /// The controller, as the kernel names it.
        controller: &'static str,
        /// What is in the way.
        problem: String,
        /// How it is mended.
        hint: String,
    },
    /// A file or folder of the control group file system refused what was asked of it.
    #[error("cannot {action} `{}`", path.display())]
    File {
        /// What was tried, as in `open`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A value was refused.
    #[error("cannot set `{}` to {value}", path.display())]
    Refused {
        /// The file that holds the value.
        path: PathBuf,
        /// The value.
        value: String,
        /// What the kernel said, or cgroups-rs of it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value was taken without an error and is not in force.
    #[error("`{}` is {found} after it was set to {wanted}", path.display())]
    NotApplied {
        /// The file that holds the value.
        path: PathBuf,
        /// What was written, rounded as the kernel rounds it.
        wanted: String,
        /// What was read back.
        found: String,
    },
    /// A counter does not look as the kernel documents it.
    #[error("`{}` has no number `{field}`", path.display())]
    Unreadable {
        /// The counter's file.
        path: PathBuf,
        /// The field that was looked for; empty where the file is one number.
        field: &'static str,
    },
    /// Processes outlived being killed: they hang in the kernel, or belong to a process id namespace out of sight.
    #[error("`{}` still has processes after they were killed: {processes:?}", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
        /// The process ids that were seen last, 0 for one that is out of sight.
        processes: Vec<i32>,
    },
}

/// Makes a failed system call on `path` an error, for `map_err`.
pub(super) fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> CgroupError {
    move |source| CgroupError::File { action, path: path.to_owned(), source: source.into() }
}
