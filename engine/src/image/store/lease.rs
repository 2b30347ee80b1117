//! Leases: why an image may not go although it has no name, kept on disk so that a crash does not end them. A lease has
//! a name, a holder and often an end. Whoever took it gives it back; what a killed holder left is settled at the start.
//!
//! A job needs none of these: its own record in the database names its digest, is committed before the job is
//! acknowledged, and is turned into a hold again at the start, before anybody can remove anything.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::blobs::write_atomically;
use super::{ResolveError, Store, StoreError, system};
use crate::image::digest::Digest;

/// The folder of leases, in that of the store.
const FOLDER: &str = ".leases";
/// Most leases at once.
const LEASES_MAX: usize = 10_000;
/// Longest name and longest holder, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Longest record of a lease, in bytes.
const RECORD_BYTES_MAX: u64 = 4096;

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseKind {
    /// Somebody wants the image to stay: it ends when it is given back, or at its time.
    Pin,
    /// Work of this process: it does not outlive it, and a start ends it.
    Work,
}

/// Why an image may not go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Its name: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// What it is for.
    pub kind: LeaseKind,
    /// Who took it.
    pub holder: String,
    /// The image.
    pub digest: Digest,
    /// When it ends, in seconds since 1970.
    pub until_unix: Option<u64>,
}

/// Why a lease was not given.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The name leads to no image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The name cannot be used.
    #[error(
        "`{0}` is not the name of a lease\nhint: 1 to 128 letters, digits, `.`, `_` and `-`, not starting with `.`"
    )]
    Name(String),
    /// There are too many.
    #[error("there are {LEASES_MAX} leases already\nhint: give some back")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Lease {
    fn is_over(&self, now_unix: u64) -> bool {
        self.until_unix.is_some_and(|until| until <= now_unix)
    }
}

/// All leases. On disk before they count, and counted until they are off the disk.
pub(super) struct Standing {
    folder: PathBuf,
    leases: BTreeMap<String, Lease>,
}

impl Standing {
    /// Reads the leases of the store in `folder`, and ends those that nobody can give back any more.
    pub(super) fn open(folder: &Path) -> Result<Standing, StoreError> {
        let folder = folder.join(FOLDER);
        fs::create_dir_all(&folder).map_err(system("make", &folder))?;
        let mut leases = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(system("list", &folder))? {
            let path = entry.map_err(system("list", &folder))?.path();
            match read(&path) {
                Some(lease) if lease.kind == LeaseKind::Pin && !lease.is_over(now_unix()) => {
                    leases.insert(lease.name.clone(), lease);
                }
                // Written by rename: what is not whole is a draft of which nobody was told.
                _ => fs::remove_file(&path).map_err(system("remove", &path))?,
            }
        }
        Ok(Standing { folder, leases })
    }

    fn insert(&mut self, lease: Lease) -> Result<(), LeaseError> {
        self.leases.retain(|_, lease| !lease.is_over(now_unix()));
        if self.leases.len() >= LEASES_MAX && !self.leases.contains_key(&lease.name) {
            return Err(LeaseError::TooMany);
        }
        let bytes = serde_json::to_vec(&lease).map_err(|error| {
            LeaseError::Store(StoreError::System { action: "write", path: self.folder.clone(), source: error.into() })
        })?;
        write_atomically(&self.folder, &lease.name, &bytes)?;
        self.leases.insert(lease.name.clone(), lease);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<bool, StoreError> {
        if !self.leases.contains_key(name) {
            return Ok(false);
        }
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system("remove", &path)(error)),
            _ => {}
        }
        Ok(self.leases.remove(name).is_some())
    }

    /// The leases on an image.
    pub(super) fn on<'a>(&'a self, digest: &'a Digest) -> impl Iterator<Item = &'a Lease> {
        let now = now_unix();
        self.leases.values().filter(move |lease| lease.digest == *digest && !lease.is_over(now))
    }
}

impl Store {
    /// Takes a lease on the image that a name stands for; one of the same name is replaced. It is on disk when this
    /// returns. Blocks.
    ///
    /// # Errors
    /// A name that leads to no image, one that no lease can have, too many leases, a store that fails.
    pub fn lease(
        &self,
        name: &str,
        kind: LeaseKind,
        holder: &str,
        reference: &str,
        until_unix: Option<u64>,
    ) -> Result<Lease, LeaseError> {
        if !is_name(name) || holder.len() > NAME_BYTES_MAX {
            return Err(LeaseError::Name(crate::image::archive::printable(name.as_bytes())));
        }
        let mut changes = self.leases();
        let image = self.resolve(reference)?;
        let digest =
            Digest::parse(&image.digest).map_err(|_| ResolveError::NotFound { reference: reference.into() })?;
        let lease = Lease { name: name.to_owned(), kind, holder: holder.to_owned(), digest, until_unix };
        changes.standing.insert(lease.clone())?;
        Ok(lease)
    }

    /// Gives a lease back; says whether there was one. Blocks.
    ///
    /// # Errors
    /// A store that fails; the lease then stands.
    pub fn release(&self, name: &str) -> Result<bool, StoreError> {
        self.leases().standing.remove(name)
    }

    /// All leases that have not ended, by name.
    pub fn standing_leases(&self) -> Vec<Lease> {
        let now = now_unix();
        self.leases().standing.leases.values().filter(|lease| !lease.is_over(now)).cloned().collect()
    }

    pub(super) fn is_leased(&self, digest: &Digest) -> bool {
        self.leases().standing.on(digest).next().is_some()
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn read(path: &Path) -> Option<Lease> {
    let is_small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= RECORD_BYTES_MAX);
    let lease: Lease = serde_json::from_slice(&is_small.then(|| fs::read(path).ok())??).ok()?;
    let is_its_own = is_name(&lease.name) && path.file_name().is_some_and(|name| name == lease.name.as_str());
    is_its_own.then_some(lease)
}

fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
