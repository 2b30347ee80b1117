//! Checks of the kernel itself: its age, its architecture and single calls.

use std::collections::BTreeMap;
use std::fs;

use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::{Absence, Check, Ground, Look, Need, Seen, failed};
use crate::sys::{self, Fork};

/// What ends the wait for a process that was started.
const SIGCHLD: u64 = nix::libc::SIGCHLD as u64;
/// The oldest kernel with everything that is needed: idmapped lower layers of an overlay came with 5.19, Debian 12
/// and its like have 6.1, and nothing older is tested.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// An error number that the kernel itself never gives for `getcwd`, so that only the filter can be its source.
const UNLIKELY_ERRNO: Errno = Errno::ENOANO;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "kernel 6.1 or newer",
        need: Need::Every,
        lost: "older kernels lack calls that every launch makes, and none of them is tested",
        mend: "install a newer kernel and reboot (Debian, Ubuntu: apt install linux-image-amd64 / linux-image-generic)",
        look: Look::Here(kernel_age),
    },
    Check {
        name: "x86_64",
        need: Need::Every,
        lost: "the system call filter is written for x86_64 only",
        mend: "use a machine with an x86_64 processor",
        look: Look::Here(architecture),
    },
    Check {
        name: "clone3",
        need: Need::Every,
        lost: "no process can be started with a descriptor and in its namespaces from the first moment",
        mend: "allow clone3 in the system call filter of the container or unit that ampoule runs in",
        look: Look::InChild(clone3),
    },
    Check {
        name: "pidfd_open",
        need: Need::Every,
        lost: "processes could only be named by numbers that are used again, and the wrong one could be killed",
        mend: "allow pidfd_open in the system call filter of the container or unit that ampoule runs in",
        look: Look::Here(pidfd),
    },
    Check {
        name: "openat2",
        need: Need::Every,
        lost: "paths inside an image could not be opened without the risk of leaving it",
        mend: "allow openat2 in the system call filter of the container or unit that ampoule runs in",
        look: Look::Here(openat2_beneath),
    },
    Check {
        name: "no outer system call filter",
        need: Need::Better,
        lost: "an outer filter may refuse clone3, mount or the new mount calls, and a launch fails with its error",
        mend: "run ampoule outside of the container, or with --security-opt seccomp=unconfined; \
               a systemd unit: no SystemCallFilter=",
        look: Look::Here(outer_filter),
    },
    Check {
        name: "seccomp filter",
        need: Need::Every,
        lost: "system calls of jobs could not be filtered",
        mend: "use a kernel built with CONFIG_SECCOMP_FILTER=y",
        look: Look::InChild(seccomp_filter),
    },
];

fn kernel_age(_: &Ground) -> Seen {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    match version(&release) {
        Some(found) if found >= KERNEL_MIN => Ok(release.into_owned()),
        _ => Err(Absence::new(release)),
    }
}

/// The first two numbers of a kernel release such as `6.1.0-56-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn architecture(_: &Ground) -> Seen {
    let name = rustix::system::uname();
    let machine = name.machine().to_string_lossy();
    if machine == "x86_64" { Ok(machine.into_owned()) } else { Err(Absence::new(machine)) }
}

fn clone3(_: &Ground) -> Seen {
    match sys::fork_into(0, SIGCHLD, None).map_err(failed("start a process with it"))? {
        Fork::Child => sys::exit_now(0),
        Fork::Parent { pid, pidfd: _ } => waitpid(Pid::from_raw(pid), None).map_err(failed("wait for the process"))?,
    };
    Ok("started a process and waited for it".to_owned())
}

fn pidfd(_: &Ground) -> Seen {
    pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed("open a descriptor of this process"))?;
    Ok("works".to_owned())
}

fn openat2_beneath(_: &Ground) -> Seen {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS)
        .map_err(failed("open / with it"))?;
    Ok("works".to_owned())
}

fn outer_filter(_: &Ground) -> Seen {
    let status = fs::read_to_string("/proc/self/status").map_err(failed("read /proc/self/status"))?;
    match status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim) {
        Some("0") => Ok("none".to_owned()),
        Some(mode) => Err(Absence::new(format!("this process runs under seccomp mode {mode}"))),
        None => Err(Absence::new("/proc/self/status has no Seccomp line")),
    }
}

/// Installs a filter that refuses one harmless call, and sees it refused.
fn seccomp_filter(_: &Ground) -> Seen {
    rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    let refused = BTreeMap::from([(nix::libc::SYS_getcwd, vec![])]);
    let errno = SeccompAction::Errno(UNLIKELY_ERRNO as u32);
    let filter = SeccompFilter::new(refused, SeccompAction::Allow, errno, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(failed("compile a filter"))?;
    seccompiler::apply_filter(&filter).map_err(failed("install a filter"))?;
    match nix::unistd::getcwd() {
        Err(UNLIKELY_ERRNO) => Ok("installed in a child, and it refuses".to_owned()),
        other => Err(Absence::new(format!("installed, but the refused call returned {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        for (release, expected) in [
            ("6.1.0-56-cloud-amd64", Some((6, 1))),
            ("6.18.44-fc-v657", Some((6, 18))),
            ("5.10.0", Some((5, 10))),
            ("7.0-rc1", Some((7, 0))),
            ("six", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
