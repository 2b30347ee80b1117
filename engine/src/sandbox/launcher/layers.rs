//! Unpacked layers: they appear whole under their digest, and go, through workers.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, Uid, chownat, fsync, mkdirat, openat, renameat_with, unlinkat};

use crate::isolation::users;
use crate::sandbox::handshake::{Reply, UnpackedLayer, pair, receive};
use crate::sandbox::launcher::events::Source;
use crate::sandbox::launcher::lifecycle::Launcher;
use crate::sandbox::place::Place;
use crate::sandbox::worker::{self, Birth, Outcome};
use crate::spec::{LayerId, Limits};
use crate::sys::{self, Fork, SysError, failed, in_one_line};

/// What a worker may use. The page cache of what it writes counts, and is given back under pressure.
const WORKER_LIMITS: Limits = Limits {
    memory_bytes: 512 * 1024 * 1024,
    cpu_milli: 4000,
    pids: 4,
    cpu_time_ms: 3_600_000,
    wall_time_ms: 3_600_000,
    open_files: 1024,
    file_bytes: u64::MAX,
};
/// Start of the name of a layer that is not whole yet.
const UNFINISHED: &str = ".unfinished-";
/// Start of the name of a folder that is to vanish.
const TRASH: &str = ".trash-";

/// A worker at its task.
pub(crate) struct Worker {
    pub(super) process: OwnedFd,
    control: OwnedFd,
    place: Place,
    folder: String,
    task: Task,
}

/// What the worker is for, and whom to tell.
enum Task {
    Unpack {
        token: u64,
    },
    /// Nobody waits for the removal of what a former launcher left.
    Remove {
        token: Option<u64>,
    },
}

impl Launcher {
    /// Removes what a former launcher left unfinished.
    pub(crate) fn sweep_layers(&mut self) -> Result<(), SysError> {
        let entries = Dir::read_from(&self.layers).map_err(failed("read", "the folder of layers"))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(UNFINISHED) || name.starts_with(TRASH) {
                self.start_worker(name, None, Task::Remove { token: None })?;
            }
        }
        Ok(())
    }

    /// Starts a worker that unpacks this archive.
    pub(super) fn unpack(&mut self, token: u64, archive: Option<OwnedFd>) -> Result<(), SysError> {
        let started = match archive {
            Some(archive) => self.start_unpacking(token, archive),
            None => Err(failed("unpack", "a layer without its archive")(std::io::Error::from(
                std::io::ErrorKind::InvalidInput,
            ))),
        };
        match started {
            Ok(()) => Ok(()),
            Err(error) => self.reply(&Reply::Unpacked { token, result: Err(in_one_line(&error)) }),
        }
    }

    fn start_unpacking(&mut self, token: u64, archive: OwnedFd) -> Result<(), SysError> {
        let folder = format!("{UNFINISHED}{}-{}", std::process::id(), self.number());
        mkdirat(&self.layers, &folder, Mode::from_raw_mode(0o755)).map_err(failed("make folder", folder.as_str()))?;
        self.start_worker(folder, Some(archive), Task::Unpack { token })
    }

    /// Puts a layer out of sight and starts a worker that removes it.
    pub(super) fn remove_layer(&mut self, token: u64, layer: &LayerId) -> Result<(), SysError> {
        match self.start_removing(token, layer) {
            Ok(true) => Ok(()),
            Ok(false) => self.reply(&Reply::Removed { token, result: Ok(()) }),
            Err(error) => self.reply(&Reply::Removed { token, result: Err(in_one_line(&error)) }),
        }
    }

    /// False when there is no such layer.
    fn start_removing(&mut self, token: u64, layer: &LayerId) -> Result<bool, SysError> {
        if self.is_in_use(layer) {
            return Err(failed("remove layer", layer.hex())(std::io::Error::other("a job runs on it")));
        }
        self.let_go_of(layer)?;
        let trash = format!("{TRASH}{}-{}", std::process::id(), self.number());
        match rustix::fs::renameat(&self.layers, layer.hex(), &self.layers, &trash) {
            Ok(()) => self.start_worker(trash, None, Task::Remove { token: Some(token) }).map(|()| true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(failed("remove layer", layer.hex())(error)),
        }
    }

    fn start_worker(&mut self, folder: String, archive: Option<OwnedFd>, task: Task) -> Result<(), SysError> {
        let (uid, gid) = (Uid::from_raw(users::IMAGE_FIRST_ID), Gid::from_raw(users::IMAGE_FIRST_ID));
        chownat(&self.layers, &folder, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("give away folder", folder.as_str()))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened =
            openat(&self.layers, &folder, flags, Mode::empty()).map_err(failed("open folder", folder.as_str()))?;
        let as_system =
            |error: &dyn std::error::Error| failed("start", "a worker")(std::io::Error::other(in_one_line(error)));
        let mut place = self.places.take().map_err(|error| as_system(&error))?;
        place.group.limit(&WORKER_LIMITS).map_err(|error| as_system(&error))?;
        let (control, theirs) = pair().map_err(failed("open", "a worker's socket"))?;
        let user_namespace = self.image_namespace.try_clone().map_err(failed("pass on", "the ids of images"))?;
        let flags = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        let fork = sys::fork_into(flags as u64, libc::SIGCHLD as u64, place.group.birth_descriptor());
        match fork.map_err(failed("fork", "a worker"))? {
            Fork::Child => {
                let groups =
                    place.group.join_descriptors().iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
                let Ok(groups) = groups else { std::process::exit(1) };
                let filter = &self.worker_filter;
                worker::live(Birth { control: theirs, folder: opened, user_namespace, groups, archive, filter })
            }
            Fork::Parent { pidfd: process, .. } => {
                let number = self.number();
                self.poller.add(&process, Source::Worker(number))?;
                self.workers.insert(number, Worker { process, control, place, folder, task });
                Ok(())
            }
        }
    }

    /// Takes in what a worker that has ended left behind, and tells who waits for it.
    pub(super) fn finish_worker(&mut self, worker: Worker) -> Result<(), SysError> {
        let Worker { control, place, folder, task, .. } = worker;
        let outcome: Outcome = match receive::<Outcome>(&control, &mut self.buffer) {
            Ok(Some((outcome, _))) => outcome,
            _ => Err(died_of(&place)),
        };
        self.places.give_back(place);
        match (task, outcome) {
            (Task::Unpack { token }, outcome) => {
                let result = outcome.and_then(|unpacked| {
                    let unpacked = unpacked.ok_or_else(|| "the worker unpacked nothing".to_owned())?;
                    self.keep_layer(&folder, unpacked).map_err(|error| in_one_line(&error))
                });
                if result.is_err() {
                    self.start_worker(folder, None, Task::Remove { token: None })?;
                }
                self.reply(&Reply::Unpacked { token, result })
            }
            (Task::Remove { token }, outcome) => {
                let removed = outcome.and_then(|_| {
                    unlinkat(&self.layers, &folder, AtFlags::REMOVEDIR)
                        .map_err(|error| in_one_line(&failed("remove folder", folder.as_str())(error)))
                });
                match token {
                    Some(token) => self.reply(&Reply::Removed { token, result: removed }),
                    // It stays, out of sight, until the next start tries again.
                    None => Ok(()),
                }
            }
        }
    }

    /// Gives a whole layer its name. One that is there already is as good.
    fn keep_layer(&mut self, folder: &str, unpacked: UnpackedLayer) -> Result<UnpackedLayer, SysError> {
        let name = unpacked.layer.hex();
        let no_replace = rustix::fs::RenameFlags::NOREPLACE;
        match renameat_with(&self.layers, folder, &self.layers, name, no_replace) {
            Ok(()) => fsync(self.layers.as_fd()).map_err(failed("write out", "the folder of layers"))?,
            Err(rustix::io::Errno::EXIST) => {
                self.start_worker(folder.to_owned(), None, Task::Remove { token: None })?
            }
            Err(error) => return Err(failed("name layer", name)(error)),
        }
        Ok(unpacked)
    }
}

/// Why a worker ended without an answer.
fn died_of(place: &Place) -> String {
    match place.group.usage() {
        Ok(usage) if usage.oom_kills > 0 => {
            format!("the worker needed more than {} bytes of memory", WORKER_LIMITS.memory_bytes)
        }
        _ => "the worker ended without an answer".to_owned(),
    }
}
