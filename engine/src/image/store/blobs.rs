//! Content by digest: the folder `blobs/sha256` of the layout, and the place beside it where content arrives.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{StoreError, system};
use crate::image::digest::{Digest, Hasher};

/// Bytes copied at a time.
const COPY_BUFFER_BYTES: usize = 256 * 1024;

/// The blobs of a store.
pub(super) struct Blobs {
    folder: PathBuf,
    incoming: PathBuf,
    next_incoming: AtomicU64,
}

/// A folder for what arrives; gone with its content when dropped.
pub(super) struct Incoming {
    folder: PathBuf,
    files: Cell<u64>,
}

/// A file that arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    /// Its length in bytes.
    pub(super) size: u64,
}

/// Why something did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArrivalError {
    /// Its source failed.
    #[error("could not read what arrives")]
    Source(#[source] io::Error),
    /// It is larger than it may be.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Blobs {
    /// Opens the blobs of the layout in `folder`; removes what had not fully arrived when the last process ended.
    pub(super) fn open(folder: &Path) -> Result<Blobs, StoreError> {
        let incoming = folder.join(".incoming");
        match fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system("remove", &incoming)(error)),
            _ => {}
        }
        let folder = folder.join("blobs").join("sha256");
        for folder in [&folder, &incoming] {
            fs::create_dir_all(folder).map_err(system("make", folder))?;
        }
        Ok(Blobs { folder, incoming, next_incoming: AtomicU64::new(0) })
    }

    /// Where a blob is, or would be.
    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    /// A new folder for what arrives.
    pub(super) fn incoming(&self) -> Result<Incoming, StoreError> {
        let number = self.next_incoming.fetch_add(1, Ordering::Relaxed);
        let folder = self.incoming.join(number.to_string());
        fs::create_dir(&folder).map_err(system("make", &folder))?;
        Ok(Incoming { folder, files: Cell::new(0) })
    }

    /// Takes over a file that arrived, on disk before this returns. One that is there is replaced: what has just been
    /// verified is better than what may have decayed.
    pub(super) fn adopt(&self, arrived: &Arrived) -> Result<(), StoreError> {
        let path = self.path(&arrived.digest);
        let file = File::open(&arrived.path).map_err(system("open", &arrived.path))?;
        file.sync_all().map_err(system("write", &arrived.path))?;
        fs::rename(&arrived.path, &path).map_err(system("rename", &path))?;
        sync_folder(&self.folder)
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.path(digest);
        File::open(&path).map_err(system("open", &path))
    }

    /// The length of a blob in bytes; `None` when it is not there.
    pub(super) fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().map(|metadata| metadata.len())
    }

    /// Reads a blob of at most `bytes_max` and verifies it. The error goes on from "its manifest …".
    pub(super) fn read(&self, digest: &Digest, bytes_max: u64) -> Result<Vec<u8>, String> {
        let file = self.open_blob(digest).map_err(|_| format!("{digest} is missing"))?;
        let mut bytes = Vec::new();
        file.take(bytes_max + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("{digest} cannot be read: {error}"))?;
        if bytes.len() as u64 > bytes_max {
            return Err(format!("{digest} is larger than {bytes_max} bytes"));
        }
        if Digest::of(&bytes) != *digest {
            return Err(format!("{digest} has another content than its name says"));
        }
        Ok(bytes)
    }

    /// Removes a blob; returns how many bytes it had.
    pub(super) fn remove(&self, digest: &Digest) -> Result<u64, StoreError> {
        let path = self.path(digest);
        let bytes = self.size(digest).unwrap_or(0);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system("remove", &path)(error)),
            _ => Ok(bytes),
        }
    }

    /// Removes every blob that is not among `kept`; returns how many.
    pub(super) fn sweep(&self, kept: &HashSet<Digest>) -> Result<usize, StoreError> {
        let mut swept = 0;
        for entry in fs::read_dir(&self.folder).map_err(system("list", &self.folder))? {
            let entry = entry.map_err(system("list", &self.folder))?;
            let digest = entry.file_name().to_str().and_then(Digest::from_hex);
            if let Some(digest) = digest.filter(|digest| !kept.contains(digest)) {
                self.remove(&digest)?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

impl Incoming {
    /// A new file to write to.
    pub(super) fn draft(&self) -> Result<(PathBuf, File), StoreError> {
        self.files.set(self.files.get() + 1);
        let path = self.folder.join(self.files.get().to_string());
        let file = File::create_new(&path).map_err(system("make", &path))?;
        Ok((path, file))
    }

    /// Puts bytes aside that are in memory.
    pub(super) fn keep(&self, bytes: &[u8]) -> Result<Arrived, StoreError> {
        let (path, mut file) = self.draft()?;
        file.write_all(bytes).map_err(system("write", &path))?;
        Ok(Arrived { path, digest: Digest::of(bytes), size: bytes.len() as u64 })
    }

    /// Writes all that `source` gives, up to `bytes_max`, to a new file.
    pub(super) fn receive(&self, source: &mut dyn Read, bytes_max: u64) -> Result<Arrived, ArrivalError> {
        let (path, mut file) = self.draft()?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ArrivalError::Source(error)),
            };
            hasher.update(&buffer[..count]);
            if hasher.bytes() > bytes_max {
                return Err(ArrivalError::TooLarge(bytes_max));
            }
            file.write_all(&buffer[..count]).map_err(system("write", &path))?;
        }
        let size = hasher.bytes();
        Ok(Arrived { path, digest: hasher.finish(), size })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // What cannot be removed now goes when the store is opened next.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Writes a file so that it is there whole or not at all, and on disk.
pub(super) fn write_atomically(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let (path, draft) = (folder.join(name), folder.join(format!(".{name}.new")));
    let mut file = File::create(&draft).map_err(system("make", &draft))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).map_err(system("write", &draft));
    let renamed = written.and_then(|()| fs::rename(&draft, &path).map_err(system("rename", &path)));
    if let Err(error) = renamed {
        // What a full disk has of it would only take room.
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(system("write", folder))
}
