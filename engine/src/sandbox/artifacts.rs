//! Brings files out of a sandbox: a tar of what the globs match, written by pid 1 with the command's rights.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::spec::{Artifacts, LeftOut};

/// Most files and folders that are looked at: what one job can make in its writable paths is far below.
const ENTRIES_MAX: usize = 1_000_000;
/// Most omissions that are told.
const LEFT_OUT_MAX: usize = 20;

/// Writes the matching regular files of the writable paths to `pipe`. Links are not followed: what is collected is what
/// the job wrote. Returns what was left out, and what went wrong, for people.
pub(crate) fn collect(wanted: &Artifacts, writable: &[String], pipe: File) -> (Vec<LeftOut>, String) {
    let mut collection = Collection { wanted, tar: tar::Builder::new(pipe), files: 0, bytes: 0, left_out: Vec::new() };
    let walked = compile(&wanted.globs).map_err(io::Error::other).and_then(|globs| collection.walk(&globs, writable));
    let finished = walked.and_then(|()| collection.tar.finish());
    let problem = finished.err().map(|error| format!("collecting artifacts stopped: {error}"));
    (collection.left_out, problem.unwrap_or_default())
}

/// Compiles glob patterns in which `*` and `?` stay within a folder and `**` does not.
///
/// # Errors
/// The pattern that is none.
pub fn compile(globs: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(GlobBuilder::new(glob).literal_separator(true).build()?);
    }
    set.build()
}

struct Collection<'a> {
    wanted: &'a Artifacts,
    tar: tar::Builder<File>,
    files: u64,
    bytes: u64,
    left_out: Vec<LeftOut>,
}

impl Collection<'_> {
    fn walk(&mut self, globs: &GlobSet, writable: &[String]) -> io::Result<()> {
        let mut open: Vec<PathBuf> = writable.iter().map(PathBuf::from).collect();
        let mut seen = 0;
        while let Some(folder) = open.pop() {
            // A folder that the command made unreadable for itself is not collected.
            let Ok(entries) = folder.read_dir() else { continue };
            let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
            paths.sort();
            seen += paths.len();
            if seen > ENTRIES_MAX {
                return Err(io::Error::other(format!("more than {ENTRIES_MAX} files and folders")));
            }
            for path in paths {
                match path.symlink_metadata() {
                    // A writable path below this one has a start of its own.
                    Ok(metadata) if metadata.is_dir() && !writable.iter().any(|other| Path::new(other) == path) => {
                        open.push(path);
                    }
                    Ok(metadata) if metadata.is_file() && globs.is_match(&path) => self.add(&path, &metadata)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        let limit = if metadata.len() > self.wanted.file_bytes_max {
            Some(format!("{} bytes, at most {} a file", metadata.len(), self.wanted.file_bytes_max))
        } else if self.bytes + metadata.len() > self.wanted.total_bytes_max {
            Some(format!("more than {} bytes together", self.wanted.total_bytes_max))
        } else if self.files == self.wanted.files_max {
            Some(format!("more than {} files", self.wanted.files_max))
        } else {
            None
        };
        if let Some(reason) = limit {
            self.leave_out(path, metadata, reason);
            return Ok(());
        }
        let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        match opened {
            Ok(file) => self.write(path, metadata, file),
            Err(error) => {
                self.leave_out(path, metadata, error.to_string());
                Ok(())
            }
        }
    }

    fn leave_out(&mut self, path: &Path, metadata: &Metadata, reason: String) {
        if self.left_out.len() < LEFT_OUT_MAX {
            let path = path.display().to_string();
            self.left_out.push(LeftOut { path, size_bytes: metadata.len(), reason });
        }
    }

    fn write(&mut self, path: &Path, metadata: &Metadata, file: File) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(metadata.len());
        header.set_mode(metadata.mode() & 0o777);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_entry_type(tar::EntryType::Regular);
        // Padded, so that a file which shrank under us cannot shift what follows.
        let exact = file.chain(io::repeat(0)).take(metadata.len());
        self.tar.append_data(&mut header, path.strip_prefix("/").unwrap_or(path), exact)?;
        self.files += 1;
        self.bytes += metadata.len();
        Ok(())
    }
}
