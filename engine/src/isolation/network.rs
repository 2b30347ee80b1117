//! The network of a sandbox: a namespace of its own with nothing but loopback.

use std::os::fd::AsFd;

use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::sys::{self, SysError, failed};

/// Moves the calling process into a new network namespace and sets its loopback up.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn enter_empty() -> Result<(), SysError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(failed("make", "a network namespace"))?;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(failed("open", "a socket for loopback"))?;
    sys::loopback_up(socket.as_fd()).map_err(failed("set up", "loopback"))
}
