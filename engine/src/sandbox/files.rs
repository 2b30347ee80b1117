//! Puts a job's input files into its sandbox: pid 1 unpacks a tar with the command's rights, into what it may write.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::image::archive::{ArchiveError, Entry, Kind, Limits, Reader};
use crate::image::compression::{Bounds, Decompressed};

/// Why input files could not be put into the sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("the input files are not a tar that can be read")]
    Archive(#[from] ArchiveError),
    #[error("could not read the input files")]
    Read(#[source] io::Error),
    #[error("could not put input file {path} into the sandbox: {problem}")]
    Write { path: String, problem: String },
    #[error("input file {path} is a {kind}, which no job can be given")]
    Kind { path: String, kind: &'static str },
}

/// Unpacks the archive; names are absolute or relative to `folder`. Nothing here guards paths: this process can
/// reach no more than the command that it starts next.
///
/// # Errors
/// The first entry that cannot be made, and why.
pub(crate) fn unpack(archive: File, folder: &str) -> Result<(), FilesError> {
    let input = Decompressed::new(archive, Bounds::default()).map_err(FilesError::Read)?;
    let mut reader = Reader::new(input, Limits::default());
    while let Some(entry) = reader.next_entry()? {
        let name = Path::new(OsStr::from_bytes(&entry.head().path));
        let path = Path::new(folder).join(name);
        put(entry, &path)?;
    }
    Ok(())
}

fn put<R: io::Read>(mut entry: Entry<'_, R>, path: &Path) -> Result<(), FilesError> {
    let refuse = |error: io::Error| FilesError::Write { path: path.display().to_string(), problem: explain(&error) };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(refuse)?;
    }
    let kind = match &entry.head().kind {
        Kind::Directory => return fs::create_dir_all(path).map_err(refuse),
        Kind::File => return write_file(&mut entry, path).map_err(refuse),
        Kind::Symlink { target } => return symlink(OsStr::from_bytes(target), path).map_err(refuse),
        Kind::HardLink { .. } => "hard link",
        Kind::Fifo | Kind::Device => "device or pipe",
    };
    Err(FilesError::Kind { path: path.display().to_string(), kind })
}

fn write_file<R: io::Read>(entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
    let mode = Permissions::from_mode(entry.head().mode & 0o777);
    let seconds = u64::try_from(entry.head().mtime.seconds).unwrap_or(0);
    let mut file = File::create(path)?;
    io::copy(entry, &mut file)?;
    file.set_permissions(mode)?;
    file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// What the kernel said, and how it is mended where the job's owner can.
fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("{error}\nhint: files can be put below writable paths only; declare one")
        }
        io::ErrorKind::StorageFull => format!("{error}\nhint: give the writable path a larger size"),
        _ => error.to_string(),
    }
}
