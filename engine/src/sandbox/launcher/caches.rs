//! Folders that builds keep for the next ones. Each appears whole under its name, belongs to the ids of image files, and
//! goes through the trash of layers: whoever is killed in between leaves nothing that the next start does not remove.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Uid, chmodat, chownat, fsync, openat, renameat, renameat_with,
};

use crate::isolation::binds::BindBirth;
use crate::isolation::{mounts, users};
use crate::sandbox::handshake::Reply;
use crate::sandbox::launcher::lifecycle::Launcher;
use crate::sandbox::launcher::steps::make_upper;
use crate::sandbox::launcher::work::{Order, Task};
use crate::sandbox::worker::Job;
use crate::spec::{CacheFolder, FileOwner, MountContent, StepMount};
use crate::sys::{SysError, failed, in_one_line};

impl Launcher {
    /// What a step needs for its mounts: the folders of its caches, made where they are not there, and its secrets.
    pub(super) fn mounts_of_step(
        &mut self,
        mounts: Vec<StepMount>,
        secrets: Option<OwnedFd>,
    ) -> Result<BindBirth, SysError> {
        let refused = |error| failed("mount", "what the step wants")(std::io::Error::other(in_one_line(&error)));
        StepMount::check_all(&mounts).map_err(refused)?;
        let mut descriptors = Vec::new();
        for mount in &mounts {
            if let MountContent::Cache { folder, owner, .. } = &mount.content {
                descriptors.push(self.open_cache(folder, *owner)?);
            }
        }
        Ok(BindBirth { mounts, caches: descriptors, secrets })
    }

    fn open_cache(&mut self, folder: &CacheFolder, owner: FileOwner) -> Result<OwnedFd, SysError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.caches, folder.name(), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => self.make_cache(folder, owner),
            opened => opened.map_err(failed("open cache", folder.name())),
        }
    }

    fn make_cache(&mut self, folder: &CacheFolder, owner: FileOwner) -> Result<OwnedFd, SysError> {
        let (unfinished, opened) = self.make_unfinished()?;
        let made = make_upper(&opened).and_then(|()| give(&opened, owner)).and_then(|()| {
            let (from, to) = (&self.layers, &self.caches);
            renameat_with(from, &unfinished, to, folder.name(), RenameFlags::NOREPLACE)
                .map_err(failed("name cache", folder.name()))?;
            fsync(to.as_fd()).map_err(failed("write out", "the folder of caches"))
        });
        match made {
            Ok(()) => Ok(opened),
            Err(error) => {
                self.throw_away(unfinished)?;
                Err(error)
            }
        }
    }

    /// Starts a worker that counts what a cache takes; one that is not there takes nothing.
    pub(super) fn measure_cache(&mut self, token: u64, folder: &CacheFolder) -> Result<(), SysError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.caches, folder.name(), flags, Mode::empty()) {
            Ok(opened) => {
                self.order(Order { task: Task::Look { token }, job: Job::Measure, descriptors: vec![opened] })
            }
            Err(error) => {
                let error = failed("open cache", folder.name())(error);
                self.reply(&Reply::Looked { token, result: Err(in_one_line(&error)) })
            }
        }
    }

    /// Puts a cache out of sight and starts a worker that removes it. One that is not there is no error.
    pub(super) fn remove_cache(&mut self, token: u64, folder: &CacheFolder) -> Result<(), SysError> {
        let trash = self.name_trash();
        let hidden = match renameat(&self.caches, folder.name(), &self.layers, &trash) {
            Err(rustix::io::Errno::NOENT) => return self.reply(&Reply::Removed { token, result: Ok(()) }),
            hidden => hidden.map_err(failed("remove cache", folder.name())).and_then(|()| self.open_own(&trash)),
        };
        match hidden {
            Ok(opened) => {
                let task = Task::Remove { token: Some(token), folder: trash };
                self.order(Order { task, job: Job::Empty, descriptors: vec![opened] })
            }
            Err(error) => self.reply(&Reply::Removed { token, result: Err(in_one_line(&error)) }),
        }
    }
}

/// Gives the files' folder of a new cache the mode and the owner that were asked for.
fn give(cache: &OwnedFd, owner: FileOwner) -> Result<(), SysError> {
    let FileOwner { mode, uid, gid } = owner;
    let (uid, gid) = (users::IMAGE_FIRST_ID + uid, users::IMAGE_FIRST_ID + gid);
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(cache, mounts::UPPER, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("give away", "a cache"))?;
    chmodat(cache, mounts::UPPER, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(failed("set mode of", "a cache"))
}
