//! The system calls that neither nix nor rustix offers: one safe function each, and the only unsafe code of the engine.
#![expect(
    unsafe_code,
    reason = "these calls have no safe wrapper in nix or rustix; everything else builds on this file"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::path::Arg;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `CLONE_INTO_CGROUP` of linux/sched.h; the constant of the libc crate overflows to 0.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of `fork_into` the caller is on.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one: the child's number as seen from here, and its descriptor.
    Parent {
        /// Process number in the caller's pid namespace.
        pid: i32,
        /// Process descriptor, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Forks with `clone3`, into new namespaces and, where `cgroup` is given, into that version 2 control group.
/// The child has a copy of the caller's memory. To be called by processes of one thread only: the caller's
/// locks are copied as they are.
pub(crate) fn fork_into(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero bytes are a valid clone_args, a plain structure of integers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = exit_signal;
    if let Some(group) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: clone3(2) reads `arguments`, whose size is passed, and writes the descriptor to `pidfd`, which outlives
    // the call. Without CLONE_VM and with no stack given, the child goes on from here on a copy of this stack, as
    // after fork(2).
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => {
            // SAFETY: a successful clone3 with CLONE_PIDFD stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent { pid: i32::try_from(pid).unwrap_or(i32::MAX), pidfd })
        }
    }
}

/// Tries of a path that the kernel is not sure of.
const TRIES_MAX: usize = 1000;

/// Opens a path as if `root` were the root of the file system: no link, and no `..`, leads out of it. Where something is
/// renamed or mounted anywhere meanwhile, the kernel does not dare to follow a `..`, and is asked again.
///
/// # Errors
/// What openat2(2) says.
pub(crate) fn open_in_root<P: Arg + Copy>(
    root: BorrowedFd<'_>,
    path: P,
    flags: OFlags,
    more: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = more | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = || openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    let mut opened = open();
    for _ in 1..TRIES_MAX {
        if !matches!(opened, Err(rustix::io::Errno::AGAIN)) {
            break;
        }
        opened = open();
    }
    opened
}

/// Ends this process without the handlers that a program runs at its end: a copy of another process has none of its
/// own, and to run them costs it more page faults than all its work.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Attributes for `mount_setattr`: what is switched on, and the user namespace whose id map the mount shall have.
#[derive(Clone, Copy, Default)]
pub(crate) struct MountAttributes<'a> {
    /// `MOUNT_ATTR_*` bits to set.
    pub(crate) set: u64,
    /// Maps the owners of the files; the mount must not be attached yet.
    pub(crate) id_map: Option<BorrowedFd<'a>>,
}

/// Changes the attributes of the mount that `tree` names, without its children.
pub(crate) fn mount_setattr(tree: BorrowedFd<'_>, attributes: MountAttributes<'_>) -> io::Result<()> {
    let attribute = libc::mount_attr {
        attr_set: attributes.set | attributes.id_map.map_or(0, |_| libc::MOUNT_ATTR_IDMAP),
        attr_clr: 0,
        propagation: 0,
        userns_fd: attributes.id_map.map_or(0, |namespace| namespace.as_raw_fd() as u64),
    };
    // SAFETY: mount_setattr(2) reads an empty C string and `attribute`, whose size is passed; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attribute,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from `first` on. Whoever holds an `OwnedFd` of that range must not use or drop it any
/// more: only for processes that are about to forget everything but their lowest descriptors.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range(2) takes integers only. The descriptors that vanish belong to values which the caller,
    // by this function's contract, has forgotten.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `place` another name of `descriptor`, whatever `place` was before; `close_on_exec` holds for the new name.
/// Whoever owned `place` before must have forgotten it.
pub(crate) fn duplicate_onto(descriptor: BorrowedFd<'_>, place: RawFd, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: dup3(2) takes integers only; that nobody owns `place` any more is this function's contract.
    let result = unsafe { libc::dup3(descriptor.as_raw_fd(), place, flags) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes over the descriptor with this number, which the parent process left open for this one.
pub(crate) fn inherited_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) with F_GETFD takes integers only.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as was just checked, and the caller says that it was handed over at exec.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets the loopback interface of the caller's network namespace up, through any socket of that namespace.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(*b"lo\0") {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call; the name ends with a NUL.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Registers a descriptor with the tokio runtime of the caller, for what it is waited for.
pub(crate) fn wait_on(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `register_with_interest` asks that the value names the same open descriptor until it is dropped; an `OwnedFd` does.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(io::Error::from)
}

/// A system call that failed, with what it was about.
#[derive(Debug, thiserror::Error)]
#[error("could not {call} {subject}")]
pub struct SysError {
    /// What was tried, as in `mount` or `open`.
    pub call: &'static str,
    /// What it was tried on.
    pub subject: String,
    /// What the kernel said.
    pub source: io::Error,
}

/// Names what failed: for `map_err` behind a call.
pub(crate) fn failed<E: Into<io::Error>>(call: &'static str, subject: impl Into<String>) -> impl FnOnce(E) -> SysError {
    move |source| SysError { call, subject: subject.into(), source: source.into() }
}

/// An error with its causes in one line, for messages that leave the process as text.
pub(crate) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
