//! Checks of the seven namespaces of a sandbox, each made in a child.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Child;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{AddressFamily, SocketType, socket};

use super::{ANSWER_BYTES_MAX, Absence, Check, Ground, Look, Need, Seen, end, failed, start_attempt, wait_bounded};
use crate::isolation::users;
use crate::sys;

/// First id of a range that stands for the ones given to sandboxes, and how many ids it has.
const TRIAL_IDS: (u32, u32) = (users::FIRST_ID, users::RANGE_IDS);
/// Sandboxes that each quota of namespaces should allow at least.
const SANDBOXES_MIN: u64 = 256;
/// What a holder says when its namespace is there.
const READY: u8 = b'\n';
/// The inner attempt that keeps a user namespace alive until its standard input ends.
const HOLD_USER: &str = "hold a user namespace";
/// The inner attempt that is pid 1 and mounts `/proc`.
const BE_FIRST: &str = "be process 1";

const MEND: &str = "boot a kernel built with all of CONFIG_NAMESPACES, and start ampoule as root";

/// A check for one namespace that is simply left for a new one.
macro_rules! namespace {
    ($name:literal, $flag:ident, $lost:literal) => {
        Check {
            name: concat!($name, " namespace"),
            need: Need::Every,
            lost: $lost,
            mend: MEND,
            look: Look::InChild(|_: &Ground| {
                unshare(CloneFlags::$flag).map_err(failed("make one"))?;
                Ok("made one".to_owned())
            }),
        }
    };
}

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "user namespace with an id range",
        need: Need::Every,
        lost: "root inside a sandbox would be root outside",
        mend: "sysctl -w user.max_user_namespaces=65536 and start ampoule as root; \
               the kernel needs CONFIG_USER_NS=y",
        look: Look::InChild(|ground| {
            user_namespace(ground)?;
            Ok(format!("mapped {} ids from {}", TRIAL_IDS.1, TRIAL_IDS.0))
        }),
    },
    namespace!("mount", CLONE_NEWNS, "jobs would see and hold the machine's own mounts"),
    namespace!("ipc", CLONE_NEWIPC, "jobs could reach shared memory and message queues of others"),
    namespace!("uts", CLONE_NEWUTS, "jobs would see the machine's host name"),
    Check {
        name: "network namespace with a loopback device",
        need: Need::Every,
        lost: "jobs could reach the machine's network",
        mend: MEND,
        look: Look::InChild(network_namespace),
    },
    namespace!("cgroup", CLONE_NEWCGROUP, "jobs would see where in the machine's control groups they are"),
    Check {
        name: "pid namespace with a fresh /proc",
        need: Need::Every,
        lost: "jobs could see the machine's processes, and leave processes behind",
        mend: "start ampoule as root, outside of containers that mask /proc (docker: --security-opt systempaths=unconfined)",
        look: Look::InChild(pid_namespace),
    },
    Check {
        name: "quotas of namespaces",
        need: Need::Every,
        lost: "the kernel refuses new sandboxes when a quota is used up",
        mend: "start ampoule where /proc/sys/user can be read",
        look: Look::Here(quotas),
    },
];

/// A user namespace with a mapped range, kept alive by a child until this is dropped.
pub(super) struct UserNamespace {
    holder: Child,
    /// The namespace, as the kernel wants it for an idmapped mount.
    pub(super) file: File,
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        end(&mut self.holder);
    }
}

/// Makes a user namespace in a child and maps a range of ids into it from here.
pub(super) fn user_namespace(ground: &Ground) -> Result<UserNamespace, Absence> {
    let mut holder = start_attempt(HOLD_USER, ground)?;
    let mapped = map_ids(&mut holder);
    match mapped {
        Ok(file) => Ok(UserNamespace { holder, file }),
        Err(absence) => {
            end(&mut holder);
            Err(absence)
        }
    }
}

fn map_ids(holder: &mut Child) -> Result<File, Absence> {
    await_ready(holder)?;
    let (first, count) = TRIAL_IDS;
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{map}", holder.id());
        fs::write(&path, format!("0 {first} {count}\n")).map_err(failed(format_args!("map an id range ({map})")))?;
    }
    File::open(format!("/proc/{}/ns/user", holder.id())).map_err(failed("open the namespace"))
}

fn await_ready(holder: &mut Child) -> Result<(), Absence> {
    let stdout = holder.stdout.as_mut().ok_or_else(|| Absence::new("the holder has no output"))?;
    let mut answer = Vec::new();
    stdout.take(1).read_to_end(&mut answer).map_err(failed("read from the holder"))?;
    if answer == [READY] {
        return Ok(());
    }
    stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(failed("read from the holder"))?;
    let seen: Seen = serde_json::from_slice(&answer)
        .unwrap_or_else(|_| Err(Absence::new("the process in the namespace died without an answer")));
    seen.map(drop)
}

/// The attempts that other attempts start; `None` for any other name.
pub(super) fn inner(name: &str) -> Option<Seen> {
    match name {
        HOLD_USER => Some(hold_user_namespace()),
        BE_FIRST => Some(be_first()),
        _ => None,
    }
}

fn hold_user_namespace() -> Seen {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(failed("make a user namespace"))?;
    let mut stdout = std::io::stdout();
    stdout.write_all(&[READY]).and_then(|()| stdout.flush()).map_err(failed("say that it is made"))?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map_err(failed("wait"))?;
    Ok("held".to_owned())
}

fn network_namespace(_: &Ground) -> Seen {
    unshare(CloneFlags::CLONE_NEWNET).map_err(failed("make one"))?;
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(failed("open a socket in it"))?;
    sys::loopback_up(socket.as_fd()).map_err(failed("switch its loopback device on"))?;
    Ok("made one, its loopback device is on".to_owned())
}

fn pid_namespace(ground: &Ground) -> Seen {
    private_mounts()?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(failed("make a pid namespace"))?;
    let mut first = start_attempt(BE_FIRST, ground)?;
    wait_bounded(&mut first)?;
    let mut answer = Vec::new();
    if let Some(stdout) = first.stdout.take() {
        stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(failed("read from process 1"))?;
    }
    serde_json::from_slice(&answer).unwrap_or_else(|_| Err(Absence::new("process 1 died without an answer")))
}

fn be_first() -> Seen {
    let pid = rustix::process::getpid();
    if !pid.is_init() {
        return Err(Absence::new(format!("the first process of a new pid namespace is {}", pid.as_raw_nonzero())));
    }
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).map_err(failed("mount /proc in a pid namespace"))?;
    Ok("made one and mounted its /proc".to_owned())
}

/// Leaves the mounts of the machine for copies that nothing else sees.
pub(super) fn private_mounts() -> Result<(), Absence> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("make the mounts private"))
}

fn quotas(_: &Ground) -> Seen {
    let mut least = u64::MAX;
    let mut short: Vec<String> = Vec::new();
    for kind in ["user", "pid", "mnt", "ipc", "uts", "net", "cgroup"] {
        let path = format!("/proc/sys/user/max_{kind}_namespaces");
        let text = fs::read_to_string(&path).map_err(failed(format_args!("read {path}")))?;
        let quota: u64 = text.trim().parse().map_err(failed(format_args!("understand {path}")))?;
        least = least.min(quota);
        if quota < SANDBOXES_MIN {
            short.push(format!("max_{kind}"));
        }
    }
    if short.is_empty() {
        return Ok(format!("at least {least} of each"));
    }
    let mend = short.iter().map(|quota| format!("sysctl -w user.{quota}_namespaces=65536")).collect::<Vec<_>>();
    Err(Absence::new(format!("too low: {}", short.join(", "))).mended_by(mend.join("; ")))
}
