//! Folders that commands of builds keep for later ones: `RUN --mount=type=cache`. The files are the runtime's, in a folder
//! that the service cannot enter; here is what each is for, who uses it, and which go when all of them take too much.
//!
//! One small record a folder, written by rename. A record without a folder, and a folder without a record, go at the
//! next start, so that it does not matter when somebody is killed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::blobs::write_atomically;
use super::{StoreError, in_one_line, system};
use crate::image::digest::Digest;
use crate::runtime::{Runtime, RuntimeError};
use crate::spec::{CacheFolder, FileOwner, LayerId, LayersPart};

/// The folder of records, in that of the store.
const RECORDS: &str = "oci/.caches";
/// The folders themselves, beside it.
const FOLDERS: &str = "caches";
/// Longest record, in bytes.
const RECORD_BYTES_MAX: u64 = 16 * 1024;
/// Most folders of one cache, for commands that want it for themselves at the same time.
const TWINS_MAX: u16 = 64;

/// How a cache is used while others want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSharing {
    /// Together.
    Shared,
    /// In a folder of its own, a new one when all are in use.
    Private,
    /// One after the other.
    Locked,
}

/// A cache that a command wants.
#[derive(Clone, Debug)]
pub struct WantedCache {
    /// Its name, whatever that is: no path is made of it.
    pub id: String,
    /// Mode and owner of its root when it is made. Another one is another cache.
    pub owner: FileOwner,
    /// What lies under it. Something else is another cache.
    pub below: Option<LayersPart>,
    /// How it is shared.
    pub sharing: CacheSharing,
}

impl WantedCache {
    /// What tells it from others.
    pub fn key(&self) -> Digest {
        let FileOwner { mode, uid, gid } = self.owner;
        let mut text = format!("cache 1\n{mode:o} {uid} {gid}\n");
        if let Some(below) = &self.below {
            for layer in &below.layers {
                text.push_str(layer.hex());
                text.push('\n');
            }
            text.push_str(&format!("{}\n{}", below.source.len(), below.source));
        }
        Digest::of(format!("{text}\n{}", self.id).as_bytes())
    }
}

/// What is kept of a cache on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    id: String,
    created_ms: u64,
    used_ms: u64,
    /// Unknown while it is in use, and after a crash.
    bytes: Option<u64>,
}

/// A cache, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// Its name, as in the Dockerfile.
    pub id: String,
    /// Its folder.
    pub folder: CacheFolder,
    /// What it takes on disk; unknown as long as it is used for the first time.
    pub bytes: Option<u64>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was used last.
    pub used_ms: u64,
    /// Whether a command uses it now.
    pub in_use: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Users {
    Nobody,
    Several(usize),
    One,
    /// It is being removed.
    Leaving,
}

struct Entry {
    record: Record,
    users: Users,
}

/// All caches.
pub struct Caches {
    records: PathBuf,
    runtime: Arc<dyn Runtime>,
    bytes_max: u64,
    entries: Mutex<BTreeMap<CacheFolder, Entry>>,
    /// Told when a folder is let go of.
    freed: Notify,
}

/// The right to use a folder, until it is dropped.
pub struct CacheUse {
    caches: Arc<Caches>,
    folder: CacheFolder,
}

impl CacheUse {
    /// The folder.
    pub fn folder(&self) -> &CacheFolder {
        &self.folder
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Caches {
    /// Reads what a former life kept, which may take `bytes_max` together, and has the rest removed. To be called within
    /// the tokio runtime.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub async fn open(state: &Path, runtime: Arc<dyn Runtime>, bytes_max: u64) -> Result<Arc<Caches>, StoreError> {
        let records = state.join(RECORDS);
        fs::create_dir_all(&records).map_err(system("make", &records))?;
        let folders = list(&state.join(FOLDERS))?;
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(&records).map_err(system("list", &records))? {
            let path = entry.map_err(system("list", &records))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let folder = name.and_then(|name| CacheFolder::parse(name).ok()).filter(|name| folders.contains(name));
            match (folder, read(&path)) {
                (Some(folder), Some(record)) => {
                    entries.insert(folder, Entry { record, users: Users::Nobody });
                }
                _ => fs::remove_file(&path).map_err(system("remove", &path))?,
            }
        }
        let unknown: Vec<CacheFolder> = folders.into_iter().filter(|folder| !entries.contains_key(folder)).collect();
        let unmeasured: Vec<CacheFolder> = entries
            .iter()
            .filter(|(_, entry)| entry.record.bytes.is_none())
            .map(|(folder, _)| folder.clone())
            .collect();
        let caches =
            Arc::new(Caches { records, runtime, bytes_max, entries: Mutex::new(entries), freed: Notify::new() });
        for folder in unknown {
            caches.remove_folder(&folder).await;
        }
        for folder in unmeasured {
            tokio::spawn(Arc::clone(&caches).tidy(folder));
        }
        Ok(caches)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<CacheFolder, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All caches, by their folders.
    pub fn list(&self) -> Vec<CacheInfo> {
        let entries = self.entries();
        let there = entries.iter().filter(|(_, entry)| entry.users != Users::Leaving);
        there.map(|(folder, entry)| info(folder, entry)).collect()
    }

    /// Most bytes that all of them may take.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Takes a folder for use, and waits until that is possible.
    ///
    /// # Errors
    /// A record that cannot be written, or more folders of one cache than there may be.
    pub async fn take(self: &Arc<Self>, wanted: &WantedCache) -> Result<CacheUse, StoreError> {
        let key = wanted.key();
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Interest is registered before the look, so that no word is lost between.
            freed.as_mut().enable();
            let (caches, at, terms) = (Arc::clone(self), key.clone(), wanted.clone());
            let taken = tokio::task::spawn_blocking(move || caches.try_take(&at, &terms)).await;
            let taken = taken.map_err(io::Error::other).map_err(system("take a cache in", &self.records))??;
            if let Some(taken) = taken {
                return Ok(taken);
            }
            freed.await;
        }
    }

    fn try_take(self: &Arc<Self>, key: &Digest, wanted: &WantedCache) -> Result<Option<CacheUse>, StoreError> {
        let mut entries = self.entries();
        let users = |entries: &BTreeMap<CacheFolder, Entry>, folder: &CacheFolder| {
            entries.get(folder).map_or(Users::Nobody, |entry| entry.users)
        };
        // Layers cannot be mounted under one folder twice at a time.
        let is_shared = wanted.sharing == CacheSharing::Shared && wanted.below.is_none();
        let (folder, becomes) = if wanted.sharing == CacheSharing::Private {
            let free = (0..TWINS_MAX).map(|number| name(key, number));
            let mut free = free.filter(|folder| users(&entries, folder) == Users::Nobody);
            (free.next().ok_or_else(|| too_many(&self.records))?, Users::One)
        } else {
            let folder = name(key, 0);
            match users(&entries, &folder) {
                Users::Nobody if is_shared => (folder, Users::Several(1)),
                Users::Several(count) if is_shared => (folder, Users::Several(count + 1)),
                Users::Nobody => (folder, Users::One),
                Users::Several(_) | Users::One | Users::Leaving => return Ok(None),
            }
        };
        let before = entries.get(&folder).map(|entry| &entry.record);
        let created_ms = before.map_or_else(now_ms, |record| record.created_ms);
        let record = Record { id: wanted.id.clone(), created_ms, used_ms: now_ms(), bytes: None };
        // On disk before the folder is: whoever is killed then leaves a record that is forgotten.
        self.write(&folder, &record)?;
        let bytes = before.and_then(|record| record.bytes);
        entries.insert(folder.clone(), Entry { record: Record { bytes, ..record }, users: becomes });
        Ok(Some(CacheUse { caches: Arc::clone(self), folder }))
    }

    fn write(&self, folder: &CacheFolder, record: &Record) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(record).map_err(io::Error::from).map_err(system("write", &self.records))?;
        write_atomically(&self.records, folder.name(), &bytes)
    }

    /// Removes all caches with this name, or all, but those that are used: what went, and what stays.
    pub async fn remove(&self, id: Option<&str>) -> (Vec<CacheInfo>, Vec<CacheInfo>) {
        let is_wanted = |entry: &Entry| id.is_none_or(|id| entry.record.id == id) && entry.users != Users::Leaving;
        let (mut leaving, mut kept) = (Vec::new(), Vec::new());
        for (folder, entry) in self.entries().iter_mut().filter(|(_, entry)| is_wanted(entry)) {
            if entry.users == Users::Nobody {
                leaving.push(info(folder, entry));
                entry.users = Users::Leaving;
            } else {
                kept.push(info(folder, entry));
            }
        }
        let mut gone = Vec::new();
        for info in leaving {
            if self.remove_folder(&info.folder).await { gone.push(info) } else { kept.push(info) }
        }
        (gone, kept)
    }

    /// Removes a folder that nobody uses, and its record; false when that failed.
    async fn remove_folder(&self, folder: &CacheFolder) -> bool {
        let removed = self.runtime.remove_cache(folder.clone()).await;
        let is_gone = removed.is_ok();
        match removed {
            Ok(()) => {
                // Without a folder it is forgotten at the next start at the latest.
                let _ = fs::remove_file(self.records.join(folder.name()));
                self.entries().remove(folder);
            }
            Err(RuntimeError::Gone) => {}
            Err(error) => {
                tracing::warn!(
                    folder = folder.name(),
                    error = in_one_line(&error),
                    "a cache of builds was not removed"
                );
                if let Some(entry) = self.entries().get_mut(folder) {
                    entry.users = Users::Nobody;
                }
            }
        }
        self.freed.notify_waiters();
        is_gone
    }

    /// Counts what a folder takes, and makes room where all of them take too much.
    async fn tidy(self: Arc<Self>, folder: CacheFolder) {
        let measured = self.runtime.measure_cache(folder.clone()).await;
        if matches!(measured, Err(RuntimeError::Gone)) {
            return;
        }
        if let Err(error) = &measured {
            let error = in_one_line(error);
            tracing::warn!(folder = folder.name(), error, "a cache of builds cannot be counted, and goes");
        }
        // One that cannot be counted takes more than there may be.
        let bytes = measured.unwrap_or(u64::MAX);
        let caches = Arc::clone(&self);
        let noted = tokio::task::spawn_blocking(move || caches.note_size(&folder, bytes)).await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(error = in_one_line(&error), "the record of a cache of builds was not written");
        }
        while let Some(oldest) = self.mark_oldest() {
            if !self.remove_folder(&oldest).await {
                return;
            }
            tracing::info!(folder = oldest.name(), "a cache of builds made room");
        }
    }

    fn note_size(&self, folder: &CacheFolder, bytes: u64) -> Result<(), StoreError> {
        // Held while it is written: whoever takes the folder writes the same file.
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(folder) else { return Ok(()) };
        entry.record.bytes = Some(bytes);
        // While it is used again, its record says that nobody knows.
        if entry.users == Users::Nobody { self.write(folder, &entry.record) } else { Ok(()) }
    }

    /// Marks the folder that was not used for the longest time as leaving, when all of them take too much.
    fn mark_oldest(&self) -> Option<CacheFolder> {
        let mut entries = self.entries();
        let bytes = |entry: &Entry| entry.record.bytes.unwrap_or(0);
        let there = entries.values().filter(|entry| entry.users != Users::Leaving);
        if there.map(bytes).fold(0, u64::saturating_add) <= self.bytes_max {
            return None;
        }
        let idle = entries.iter_mut().filter(|(_, entry)| entry.users == Users::Nobody && bytes(entry) > 0);
        // One that takes more than all may goes first: nothing else would help.
        let (folder, entry) = idle.min_by_key(|(_, entry)| (bytes(entry) <= self.bytes_max, entry.record.used_ms))?;
        entry.users = Users::Leaving;
        Some(folder.clone())
    }
}

impl Drop for CacheUse {
    fn drop(&mut self) {
        if let Some(entry) = self.caches.entries().get_mut(&self.folder) {
            entry.record.used_ms = now_ms();
            entry.users = match entry.users {
                Users::Several(count) if count > 1 => Users::Several(count - 1),
                _ => Users::Nobody,
            };
        }
        self.caches.freed.notify_waiters();
        // Without tokio, which is on its way out then, it is counted at the next start.
        if let Ok(tasks) = Handle::try_current() {
            tasks.spawn(Arc::clone(&self.caches).tidy(self.folder.clone()));
        }
    }
}

fn name(key: &Digest, number: u16) -> CacheFolder {
    let key = LayerId::parse(key.hex()).expect("a digest has 64 digits");
    CacheFolder::new(&key, number)
}

fn too_many(folder: &Path) -> StoreError {
    let problem = format!("{TWINS_MAX} commands use this private cache already");
    system("take a cache in", folder)(io::Error::other(problem))
}

fn info(folder: &CacheFolder, entry: &Entry) -> CacheInfo {
    CacheInfo {
        id: entry.record.id.clone(),
        folder: folder.clone(),
        bytes: entry.record.bytes,
        created_ms: entry.record.created_ms,
        used_ms: entry.record.used_ms,
        in_use: matches!(entry.users, Users::One | Users::Several(_)),
    }
}

fn read(path: &Path) -> Option<Record> {
    let is_small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= RECORD_BYTES_MAX);
    serde_json::from_slice(&is_small.then(|| fs::read(path).ok())??).ok()
}

/// The folders of caches that there are; none where no launcher has made the folder of them.
fn list(folder: &Path) -> Result<Vec<CacheFolder>, StoreError> {
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(system("list", folder))?,
    };
    let mut folders = Vec::new();
    for entry in listed {
        let entry = entry.map_err(system("list", folder))?;
        folders.extend(entry.file_name().to_str().and_then(|name| CacheFolder::parse(name).ok()));
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::{Census, Input, Pending, Running, Unpacked};
    use crate::spec::SandboxSpec;

    /// A runtime whose caches take so many bytes each.
    struct Disk(PathBuf, u64);

    impl Runtime for Disk {
        fn launch(&self, _: SandboxSpec, _: Input) -> Pending<'_, Result<Running, RuntimeError>> {
            Box::pin(async { Err(RuntimeError::Gone) })
        }

        fn unpack_layer(&self, _: fs::File) -> Pending<'_, Result<Unpacked, RuntimeError>> {
            Box::pin(async { Err(RuntimeError::Gone) })
        }

        fn remove_layer(&self, _: LayerId) -> Pending<'_, Result<(), RuntimeError>> {
            Box::pin(async { Err(RuntimeError::Gone) })
        }

        fn measure_cache(&self, _: CacheFolder) -> Pending<'_, Result<u64, RuntimeError>> {
            Box::pin(async { Ok(self.1) })
        }

        fn remove_cache(&self, folder: CacheFolder) -> Pending<'_, Result<(), RuntimeError>> {
            let removed = fs::remove_dir(self.0.join(FOLDERS).join(folder.name()));
            Box::pin(async { removed.map_err(|error| RuntimeError::Layer(error.to_string())) })
        }

        fn census(&self) -> Census {
            Census::default()
        }
    }

    fn wanted(id: &str, sharing: CacheSharing) -> WantedCache {
        let owner = FileOwner { mode: 0o755, uid: 0, gid: 0 };
        WantedCache { id: id.to_owned(), owner, below: None, sharing }
    }

    async fn open(state: &Path, bytes: u64) -> Arc<Caches> {
        let runtime = Arc::new(Disk(state.to_owned(), bytes));
        Caches::open(state, runtime, 100).await.expect("the folder is ours")
    }

    /// Uses a cache as the launcher would: its folder is there afterwards.
    async fn touch(state: &Path, caches: &Arc<Caches>, id: &str) {
        let taken = caches.take(&wanted(id, CacheSharing::Shared)).await.expect("it is free");
        fs::create_dir_all(state.join(FOLDERS).join(taken.folder().name())).expect("the folder is ours");
    }

    async fn until(is_so: impl Fn() -> bool) {
        for _ in 0..500 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not come");
    }

    async fn must_wait(caches: &Arc<Caches>, wanted: &WantedCache) {
        let waiting = tokio::time::timeout(Duration::from_millis(50), caches.take(wanted)).await;
        assert!(waiting.is_err(), "it was given away twice");
    }

    #[tokio::test]
    async fn each_way_of_sharing_gives_what_it_says() {
        let state = tempfile::tempdir().expect("a folder");
        let caches = open(state.path(), 1).await;
        let (shared, private, locked) =
            (wanted("x", CacheSharing::Shared), wanted("x", CacheSharing::Private), wanted("x", CacheSharing::Locked));
        let (first, second) = (caches.take(&shared).await.unwrap(), caches.take(&shared).await.unwrap());
        assert_eq!(first.folder(), second.folder());
        let apart = caches.take(&private).await.unwrap();
        assert_ne!(first.folder(), apart.folder());
        must_wait(&caches, &locked).await;
        drop((first, second));
        let alone = caches.take(&locked).await.unwrap();
        must_wait(&caches, &locked).await;
        must_wait(&caches, &shared).await;
        let (held, next) = (Arc::clone(&caches), locked.clone());
        let next = tokio::spawn(async move { held.take(&next).await.map(|taken| taken.folder().clone()) });
        let folder = alone.folder().clone();
        drop(alone);
        assert_eq!(next.await.unwrap().unwrap(), folder);
    }

    #[test]
    fn caches_differ_by_all_that_makes_them_what_they_are() {
        let base = wanted("../../etc", CacheSharing::Shared);
        let mut others = vec![wanted("../../etd", CacheSharing::Shared)];
        others.push(WantedCache { owner: FileOwner { uid: 1, ..base.owner }, ..base.clone() });
        let below = |source: &str| Some(LayersPart { layers: Vec::new(), source: source.to_owned() });
        others.push(WantedCache { below: below("/"), ..base.clone() });
        others.push(WantedCache { below: below("/x"), ..base.clone() });
        let mut keys: Vec<String> = others.iter().chain([&base]).map(|it| it.key().hex().to_owned()).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 5);
        assert_eq!(name(&base.key(), 3).name(), format!("{}-3", base.key().hex()));
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first_and_what_is_used_stays() {
        let state = tempfile::tempdir().expect("a folder");
        let caches = open(state.path(), 40).await;
        touch(state.path(), &caches, "old").await;
        until(|| caches.list().iter().all(|cache| cache.bytes == Some(40))).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        touch(state.path(), &caches, "new").await;
        until(|| caches.list().iter().all(|cache| cache.bytes == Some(40))).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        let used = caches.take(&wanted("old", CacheSharing::Shared)).await.unwrap();
        touch(state.path(), &caches, "third").await;
        let ids = || caches.list().into_iter().map(|cache| cache.id).collect::<Vec<_>>();
        until(|| ids().len() == 2).await;
        assert!(ids().contains(&"old".to_owned()) && !ids().contains(&"new".to_owned()), "{:?}", ids());
        let (gone, kept) = caches.remove(None).await;
        assert_eq!((gone.len(), kept.len()), (1, 1));
        drop(used);
        assert_eq!(caches.remove(Some("nothing")).await.0.len(), 0);
        assert_eq!(caches.remove(Some("old")).await.0.len(), 1);
        assert!(caches.list().is_empty());
    }

    #[tokio::test]
    async fn a_start_forgets_what_is_not_whole_and_counts_the_rest() {
        let state = tempfile::tempdir().expect("a folder");
        let caches = open(state.path(), 1).await;
        touch(state.path(), &caches, "whole").await;
        drop(caches.take(&wanted("no folder", CacheSharing::Shared)).await.unwrap());
        let killed = caches.take(&wanted("whole", CacheSharing::Shared)).await.unwrap();
        std::mem::forget(killed);
        let stray = state.path().join(FOLDERS).join(format!("{}-0", "a".repeat(64)));
        fs::create_dir(&stray).expect("the folder is ours");
        let again = open(state.path(), 7).await;
        until(|| again.list().iter().all(|cache| cache.bytes == Some(7))).await;
        let ids: Vec<String> = again.list().into_iter().map(|cache| cache.id).collect();
        assert_eq!(ids, ["whole"]);
        assert!(!stray.exists());
    }
}
