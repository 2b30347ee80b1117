//! What a forked process may keep of its parent's open descriptors.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::sys::{self, SysError, failed};

/// Where the first kept descriptor is put, right behind the standard streams.
const FIRST_KEPT: i32 = 3;
/// Above every descriptor that is put in its place: room to move them out of each other's way.
const OUT_OF_THE_WAY: i32 = 64;

/// Moves these descriptors right behind the standard streams, in their order, makes those three `/dev/null`, and
/// closes all others: one that stayed open could belong to another sandbox. To be called first in a forked process
/// that never drops what it inherited otherwise.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn keep_only(kept: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, SysError> {
    let mut high = Vec::with_capacity(kept.len() + FIRST_KEPT as usize);
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.map_err(failed("open", "/dev/null"))?;
    let nulls = std::iter::repeat_n(null.as_fd(), FIRST_KEPT as usize);
    // All are moved out of the way first: one may sit on another's place.
    for descriptor in nulls.chain(kept.iter().map(AsFd::as_fd)) {
        let moved = rustix::io::fcntl_dupfd_cloexec(descriptor, OUT_OF_THE_WAY);
        high.push(moved.map_err(failed("move", "a descriptor"))?);
    }
    std::mem::forget((null, kept));
    for (place, descriptor) in (0..).zip(&high) {
        place_at(descriptor, place)?;
    }
    let places = 0..high.len() as i32;
    std::mem::forget(high);
    sys::close_from(places.end as u32).map_err(failed("close", "all other descriptors"))?;
    let kept = places.skip(FIRST_KEPT as usize).map(sys::inherited_descriptor).collect::<Result<Vec<_>, _>>();
    kept.map_err(failed("keep", "descriptors"))
}

/// Makes `place` another name of `descriptor`; the three standard streams stay open across exec, others do not.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn place_at(descriptor: &OwnedFd, place: i32) -> Result<(), SysError> {
    if descriptor.as_raw_fd() == place {
        return Ok(());
    }
    let close_on_exec = place >= FIRST_KEPT;
    sys::duplicate_onto(descriptor.as_fd(), place, close_on_exec).map_err(failed("place", "a descriptor"))
}
