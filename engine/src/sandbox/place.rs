//! Places for sandboxes: an id range, the user namespace and the id map made for it, and a control group each.
//! A place serves one sandbox after another; what must not be shared between two of them is not part of it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::isolation::cgroup::{self, CgroupError, Group};
use crate::isolation::users;
use crate::sys::SysError;

/// A place that is taken, or free.
pub(crate) struct Place {
    index: u32,
    /// First id of its range, as the host sees it.
    pub(crate) first_id: u32,
    /// Ids 0 to 65535 are this range.
    pub(crate) user_namespace: OwnedFd,
    /// Turns owners of image files into ids of this range.
    pub(crate) id_map: OwnedFd,
    pub(crate) group: Group,
}

/// How long a place rests after its sandbox is gone. The kernel takes network namespaces and the like down later, and
/// until then their memory is charged to the control group, which would have to be made anew.
const REST: Duration = Duration::from_millis(40);

/// All places of a launcher.
pub(crate) struct Places {
    root: cgroup::Root,
    free: Vec<Place>,
    /// Given back, and when, oldest first.
    resting: VecDeque<(Instant, Place)>,
    /// Indexes that were given back without a place that could be used again.
    unused: Vec<u32>,
    made: u32,
    most: u32,
}

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("all {0} sandboxes are taken")]
    Full(u32),
    #[error("could not make the ids of a sandbox")]
    Users(#[from] SysError),
    #[error("could not make the control group of a sandbox")]
    Group(#[from] CgroupError),
}

impl Places {
    /// No place yet, and at most `most` at a time.
    pub(crate) fn new(root: cgroup::Root, most: u32) -> Places {
        Places { root, free: Vec::new(), resting: VecDeque::new(), unused: Vec::new(), made: 0, most }
    }

    /// A free place, or a new one.
    ///
    /// # Errors
    /// `Full` when all are taken, else what the kernel refused.
    pub(crate) fn take(&mut self) -> Result<Place, PlaceError> {
        if let Some(place) = self.free.pop() {
            return Ok(place);
        }
        let index = match self.unused.pop() {
            Some(index) => index,
            None if self.made == self.most && !self.resting.is_empty() => {
                self.renew()?;
                return self.free.pop().ok_or(PlaceError::Full(self.most));
            }
            None if self.made == self.most => return Err(PlaceError::Full(self.most)),
            None => {
                self.made += 1;
                self.made - 1
            }
        };
        let place = self.make(index);
        if place.is_err() {
            self.unused.push(index);
        }
        place
    }

    fn make(&self, index: u32) -> Result<Place, PlaceError> {
        let first_id = users::first_id_of_place(index);
        let user_namespace = users::namespace(0, first_id)?;
        let id_map = users::namespace(users::IMAGE_FIRST_ID, first_id)?;
        let group = self.root.group(&format!("s{index}"))?;
        Ok(Place { index, first_id, user_namespace, id_map, group })
    }

    /// Takes a place back whose sandbox is gone.
    pub(crate) fn give_back(&mut self, place: Place) {
        self.resting.push_back((Instant::now(), place));
    }

    /// When the next place has rested.
    pub(crate) fn next_rested(&self) -> Option<Instant> {
        self.resting.front().map(|(since, _)| *since + REST)
    }

    /// Makes a place that has rested free again. Its control group is used again where that leaves no trace.
    ///
    /// # Errors
    /// What kept its control group from being reset; the index is not used again then.
    pub(crate) fn renew_one(&mut self, now: Instant) -> Result<(), PlaceError> {
        match self.next_rested() {
            Some(due) if due <= now => self.renew(),
            _ => Ok(()),
        }
    }

    fn renew(&mut self) -> Result<(), PlaceError> {
        let Some((_, place)) = self.resting.pop_front() else { return Ok(()) };
        let Place { index, first_id, user_namespace, id_map, group } = place;
        let group = match group.recycle()? {
            Some(group) => group,
            None => match self.root.group(&format!("s{index}")) {
                Ok(group) => group,
                Err(error) => {
                    self.unused.push(index);
                    return Err(error.into());
                }
            },
        };
        self.free.push(Place { index, first_id, user_namespace, id_map, group });
        Ok(())
    }

    /// Removes all control groups; every sandbox must be gone.
    ///
    /// # Errors
    /// The folder that could not be removed.
    pub(crate) fn remove(self) -> Result<(), CgroupError> {
        drop((self.free, self.resting));
        self.root.sweep()?;
        self.root.remove()
    }
}
