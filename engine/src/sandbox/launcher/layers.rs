//! Unpacked layers: they appear whole under their digest, are read, and go, through workers.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, RenameFlags, Uid, chownat, fsync, mkdirat, openat, renameat_with, unlinkat,
};

use crate::isolation::users;
use crate::sandbox::handshake::{Look, Looked, Reply};
use crate::sandbox::launcher::lifecycle::Launcher;
use crate::sandbox::launcher::work::{Order, Task};
use crate::sandbox::worker::{Done, Job, Outcome};
use crate::spec::LayerId;
use crate::sys::{SysError, failed, in_one_line};

/// Start of the name of a layer that is not whole yet.
const UNFINISHED: &str = ".unfinished-";
/// Start of the name of a folder that is to vanish.
const TRASH: &str = ".trash-";

impl Launcher {
    /// Removes what a former launcher left unfinished.
    pub(crate) fn sweep_layers(&mut self) -> Result<(), SysError> {
        let entries = Dir::read_from(&self.layers).map_err(failed("read", "the folder of layers"))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(UNFINISHED) || name.starts_with(TRASH) {
                self.throw_away(name)?;
            }
        }
        Ok(())
    }

    /// Removes a folder that nobody knows of. One that cannot be removed stays out of sight until the next start.
    pub(super) fn throw_away(&mut self, folder: String) -> Result<(), SysError> {
        match self.open_own(&folder) {
            Ok(opened) => {
                let task = Task::Remove { token: None, folder };
                self.order(Order { task, job: Job::Empty, descriptors: vec![opened] })
            }
            Err(_) => Ok(()),
        }
    }

    /// Starts a worker that unpacks this archive.
    pub(super) fn unpack(&mut self, token: u64, archive: Option<OwnedFd>) -> Result<(), SysError> {
        let order = given(archive).and_then(|archive| {
            let (folder, opened) = self.make_unfinished()?;
            let task = Task::Unpack { token, folder };
            Ok(Order { task, job: Job::Unpack, descriptors: vec![opened, archive] })
        });
        match order {
            Ok(order) => self.order(order),
            Err(error) => self.reply(&Reply::Unpacked { token, result: Err(in_one_line(&error)) }),
        }
    }

    /// Starts a worker that reads layers.
    pub(super) fn look(&mut self, token: u64, look: Look, descriptor: Option<OwnedFd>) -> Result<(), SysError> {
        let order = self.look_order(token, look, descriptor);
        match order {
            Ok(order) => self.order(order),
            Err(error) => self.reply(&Reply::Looked { token, result: Err(in_one_line(&error)) }),
        }
    }

    fn look_order(&mut self, token: u64, look: Look, descriptor: Option<OwnedFd>) -> Result<Order, SysError> {
        let descriptor = given(descriptor)?;
        let layers = self.layers.try_clone().map_err(failed("pass on", "the folder of layers"))?;
        let task = Task::Look { token };
        match look {
            Look::Export { layers: names } => {
                Ok(Order { task, job: Job::Export { layers: names }, descriptors: vec![layers, descriptor] })
            }
            Look::Compare { before, after } => {
                Ok(Order { task, job: Job::Compare { before, after }, descriptors: vec![layers, descriptor] })
            }
            Look::Select { layers: names, wanted } => {
                Ok(Order { task, job: Job::Select { layers: names, wanted }, descriptors: vec![layers, descriptor] })
            }
            Look::Check { layer, mends } => {
                let (folder, opened) = self.make_unfinished()?;
                let task = Task::Check { token, folder, layer: layer.clone(), mends };
                Ok(Order { task, job: Job::Check { layer }, descriptors: vec![opened, descriptor, layers] })
            }
        }
    }

    pub(super) fn make_unfinished(&mut self) -> Result<(String, OwnedFd), SysError> {
        let folder = format!("{UNFINISHED}{}-{}", std::process::id(), self.number());
        mkdirat(&self.layers, &folder, Mode::from_raw_mode(0o755)).map_err(failed("make folder", folder.as_str()))?;
        let opened = self.open_own(&folder)?;
        Ok((folder, opened))
    }

    /// Gives a folder to the ids of image files, and opens it.
    pub(super) fn open_own(&self, folder: &str) -> Result<OwnedFd, SysError> {
        open_own(&self.layers, folder)
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
        let Some(folder) = self.hide_layer(layer)? else { return Ok(false) };
        let opened = self.open_own(&folder)?;
        let task = Task::Remove { token: Some(token), folder };
        self.order(Order { task, job: Job::Empty, descriptors: vec![opened] }).map(|()| true)
    }

    /// Puts a layer out of sight, under the name that is returned; `None` when there is no such layer.
    fn hide_layer(&mut self, layer: &LayerId) -> Result<Option<String>, SysError> {
        if self.is_in_use(layer) {
            return Err(failed("remove layer", layer.hex())(std::io::Error::other("a job runs on it")));
        }
        self.let_go_of(layer)?;
        let trash = self.name_trash();
        match rustix::fs::renameat(&self.layers, layer.hex(), &self.layers, &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("remove layer", layer.hex())(error)),
        }
    }

    /// A name for a folder that is to vanish.
    pub(super) fn name_trash(&mut self) -> String {
        format!("{TRASH}{}-{}", std::process::id(), self.number())
    }

    pub(super) fn conclude_unpacking(&mut self, token: u64, folder: String, outcome: Outcome) -> Result<(), SysError> {
        let result = match outcome {
            Ok(Done::Unpacked(unpacked)) => {
                self.keep_layer(&folder, unpacked.layer.hex()).map(|()| unpacked).map_err(|error| in_one_line(&error))
            }
            Ok(_) => Err("the worker unpacked nothing".to_owned()),
            Err(sentence) => Err(sentence),
        };
        if result.is_err() {
            self.throw_away(folder)?;
        }
        self.reply(&Reply::Unpacked { token, result })
    }

    pub(super) fn conclude_removal(
        &mut self,
        token: Option<u64>,
        folder: &str,
        emptied: Result<(), String>,
    ) -> Result<(), SysError> {
        let removed = emptied.and_then(|()| {
            unlinkat(&self.layers, folder, AtFlags::REMOVEDIR)
                .map_err(|error| in_one_line(&failed("remove folder", folder)(error)))
        });
        match token {
            Some(token) => self.reply(&Reply::Removed { token, result: removed }),
            // It stays, out of sight, until the next start tries again.
            None => Ok(()),
        }
    }

    /// Gives a whole layer its name. One that is there already is as good.
    pub(super) fn keep_layer(&mut self, folder: &str, name: &str) -> Result<(), SysError> {
        match renameat_with(&self.layers, folder, &self.layers, name, RenameFlags::NOREPLACE) {
            Ok(()) => fsync(self.layers.as_fd()).map_err(failed("write out", "the folder of layers")),
            // What is within a draft goes with the draft.
            Err(rustix::io::Errno::EXIST) if folder.contains('/') => Ok(()),
            Err(rustix::io::Errno::EXIST) => self.throw_away(folder.to_owned()),
            Err(error) => Err(failed("name layer", name)(error)),
        }
    }

    /// Puts what an archive unpacked to in the place of a layer that differs from it, when that is wanted.
    pub(super) fn mend(&mut self, folder: &str, layer: &LayerId, mends: bool, found: Looked) -> Result<Looked, String> {
        let Looked::Checked { archive, differences, mut samples, .. } = found else { return Ok(found) };
        if archive != *layer {
            return Err(format!("its archive has decayed: it unpacks to the layer {}", archive.hex()));
        }
        let mut is_mended = false;
        if differences > 0 && mends {
            let replaced = self.hide_layer(layer).and_then(|hidden| {
                if let Some(hidden) = hidden {
                    self.throw_away(hidden)?;
                }
                self.keep_layer(folder, layer.hex())
            });
            match replaced {
                Ok(()) => is_mended = true,
                Err(error) => samples.push(format!("it was not replaced: {}", in_one_line(&error))),
            }
        }
        Ok(Looked::Checked { archive, differences, samples, is_mended })
    }
}

/// Gives a folder in `parent` to the ids of image files, and opens it.
pub(super) fn open_own(parent: &OwnedFd, folder: &str) -> Result<OwnedFd, SysError> {
    let (uid, gid) = (Uid::from_raw(users::IMAGE_FIRST_ID), Gid::from_raw(users::IMAGE_FIRST_ID));
    chownat(parent, folder, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("give away folder", folder))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, folder, flags, Mode::empty()).map_err(failed("open folder", folder))
}

pub(super) fn given(descriptor: Option<OwnedFd>) -> Result<OwnedFd, SysError> {
    descriptor.ok_or_else(|| failed("work", "without a descriptor")(rustix::io::Errno::INVAL))
}
