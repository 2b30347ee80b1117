//! Who is who: id ranges of sandboxes, user namespaces for them, and the users that an image knows.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::Signal;
use rustix::fs::{Gid, Uid};
use rustix::fs::{OFlags, ResolveFlags};
use rustix::process::{Pid, Signal as DeathSignal, WaitId, WaitIdOptions, getppid, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::isolation::capabilities;
use crate::sys::{self, Fork, SysError, failed};

/// First id of the first range. High, so that no user of the host has it; `doctor` looks whether that is so.
pub const FIRST_ID: u32 = 0x4000_0000;
/// Ids in one range: what a Linux system expects to have.
pub const RANGE_IDS: u32 = 0x1_0000;
/// The range that owns the files of unpacked layers on disk; no job ever runs in it.
pub const IMAGE_FIRST_ID: u32 = FIRST_ID;
/// Most bytes that are read of an image's passwd or group file.
const ACCOUNTS_BYTES_MAX: u64 = 1024 * 1024;
/// Most groups that a user is put into.
const GROUPS_MAX: usize = 64;

/// First id of the range of a sandbox place. Two places never share an id.
pub(crate) fn first_id_of_place(place: u32) -> u32 {
    IMAGE_FIRST_ID + (place + 1) * RANGE_IDS
}

/// A user namespace in which `inside` and the following ids are `outside` and the following.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn namespace(inside: u32, outside: u32) -> Result<OwnedFd, SysError> {
    let clone_newuser = nix::sched::CloneFlags::CLONE_NEWUSER.bits() as u64;
    let parent = rustix::process::getpid();
    let fork = sys::fork_into(clone_newuser, Signal::SIGCHLD as u64, None);
    match fork.map_err(failed("make", "a user namespace"))? {
        Fork::Child => hold_until_killed(parent),
        Fork::Parent { pid, pidfd } => {
            let namespace = map_and_open(pid, inside, outside);
            rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL)
                .map_err(failed("end", "the holder of a user namespace"))?;
            rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
                .map_err(failed("reap", "the holder of a user namespace"))?;
            namespace
        }
    }
}

/// Is the process that a new namespace needs until its parent holds the descriptor; outlives neither.
fn hold_until_killed(parent: Pid) -> ! {
    let tied = set_parent_process_death_signal(Some(DeathSignal::KILL));
    // The parent may have died before it was tied; and its sockets must not be held open here.
    if tied.is_err() || getppid() != Some(parent) || sys::close_from(0).is_err() {
        sys::exit_now(1);
    }
    loop {
        nix::unistd::pause();
    }
}

fn map_and_open(pid: i32, inside: u32, outside: u32) -> Result<OwnedFd, SysError> {
    let map = format!("{inside} {outside} {RANGE_IDS}");
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, &map).map_err(failed("write", path))?;
    }
    let path = format!("/proc/{pid}/ns/user");
    File::open(&path).map(OwnedFd::from).map_err(failed("open", path))
}

/// Makes the calling thread this user and these groups, with no way back.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn become_ids(uid: u32, gid: u32, groups: &[u32]) -> Result<(), SysError> {
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&groups).map_err(failed("set", "the groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(failed("become group", gid.as_raw().to_string()))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("become user", uid.as_raw().to_string()))
}

/// Does something as if files belonged to `id`, with all capabilities of the caller, who is root and of one thread.
///
/// # Errors
/// The call that the kernel refused, and what `action` fails with.
pub(crate) fn with_file_ids<T>(id: u32, action: impl FnOnce() -> Result<T, SysError>) -> Result<T, SysError> {
    let all = rustix::thread::capabilities(None).map_err(failed("read", "the capabilities"))?;
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(id));
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(id));
    // The kernel takes some capabilities together with the id 0.
    let done = rustix::thread::set_capabilities(None, all).map_err(failed("keep", "the capabilities"));
    let done = done.and_then(|()| action());
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(0));
    rustix::thread::set_capabilities(None, all).map_err(failed("keep", "the capabilities"))?;
    done
}

/// Drops all privileges of a process that was started as root: it is this user from now on, has no capability
/// and can gain none. To be called before the first thread is started.
///
/// # Errors
/// The call that the kernel refused.
pub fn become_user(uid: u32, gid: u32) -> Result<(), SysError> {
    capabilities::bound_to(CapabilitySet::empty())?;
    become_ids(uid, gid, &[])?;
    rustix::thread::set_no_new_privs(true).map_err(failed("set", "no_new_privs"))?;
    Ok(())
}

/// A user of an image, as the kernel and the environment need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id inside the sandbox.
    pub(crate) uid: u32,
    /// Primary group inside the sandbox.
    pub(crate) gid: u32,
    /// All further groups.
    pub(crate) groups: Vec<u32>,
    /// Home folder, where the image names one.
    pub(crate) home: Option<String>,
}

/// Why an image has no such user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnknownUser {
    #[error("the image has no user `{0}`\nhint: use a number, or a name from the image's /etc/passwd")]
    User(String),
    #[error("the image has no group `{0}`\nhint: use a number, or a name from the image's /etc/group")]
    Group(String),
    #[error("id {0} is outside of the sandbox's 0 to 65535")]
    Id(u32),
}

/// Looks `user` (`uid`, `uid:gid`, `name`, `name:group`) up in the files of the image whose root is given, as
/// Docker does: a bare number needs no entry, and has group 0 when there is none.
///
/// # Errors
/// `UnknownUser`, when a name is not there or an id is out of range. Files that cannot be read count as empty.
pub(crate) fn look_up(user: &str, root: BorrowedFd<'_>) -> Result<Identity, UnknownUser> {
    let accounts = read_accounts(root, "etc/passwd");
    let groups = read_accounts(root, "etc/group");
    let identity = identify(user, &accounts, &groups)?;
    match [identity.uid, identity.gid].into_iter().find(|id| *id >= RANGE_IDS) {
        Some(id) => Err(UnknownUser::Id(id)),
        None => Ok(identity),
    }
}

/// A file of the image, or nothing: an image need not have it, and it may be anything.
fn read_accounts(root: BorrowedFd<'_>, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(descriptor) = sys::open_in_root(root, path, flags, ResolveFlags::empty()) else { return String::new() };
    let file = File::from(descriptor);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    match file.take(ACCOUNTS_BYTES_MAX).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

/// The pure part of `look_up`, on the texts of passwd(5) and group(5).
fn identify(user: &str, accounts: &str, groups: &str) -> Result<Identity, UnknownUser> {
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let entry = accounts
        .lines()
        .map(fields)
        .find(|entry| entry.len() >= 6 && (entry[0] == user || (user.parse::<u32>().is_ok() && entry[2] == user)));
    let number = |text: &str| text.parse::<u32>().ok();
    let uid = entry.as_ref().and_then(|entry| number(&entry[2])).or_else(|| number(user));
    let uid = uid.ok_or_else(|| UnknownUser::User(user.to_owned()))?;
    let group_id = |name: &str| {
        let line = groups.lines().map(fields).find(|line| line.len() >= 3 && line[0] == name);
        line.and_then(|line| number(&line[2])).or_else(|| number(name))
    };
    let gid = match group {
        Some(name) => group_id(name).ok_or_else(|| UnknownUser::Group(name.to_owned()))?,
        None => entry.as_ref().and_then(|entry| number(&entry[3])).unwrap_or(0),
    };
    let is_member = |line: &Vec<String>| {
        let name = entry.as_ref().map_or(user, |entry| entry[0].as_str());
        line.len() >= 4 && line[3].split(',').any(|member| member == name)
    };
    let further = match group {
        // Whoever names a group wants that one only.
        Some(_) => Vec::new(),
        None => groups.lines().map(fields).filter(is_member).filter_map(|line| number(&line[2])).collect(),
    };
    let groups = further.into_iter().filter(|id| *id < RANGE_IDS).take(GROUPS_MAX).collect();
    let home = entry.map(|entry| entry[5].clone()).filter(|home| home.starts_with('/'));
    Ok(Identity { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/sh\nbuild:x:1000:1001:,,,:/home/build:/bin/sh\nbroken\n";
    const GROUPS: &str = "root:x:0:\nstaff:x:50:build\nbuild:x:1001:\nvideo:x:44:other,build\n";

    fn check(user: &str, expected: (u32, u32, &[u32], Option<&str>)) {
        let identity = identify(user, ACCOUNTS, GROUPS).expect("the user is known");
        let home = identity.home.as_deref();
        assert_eq!((identity.uid, identity.gid, identity.groups.as_slice(), home), expected, "{user}");
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        check("build", (1000, 1001, &[50, 44], Some("/home/build")));
        check("1000", (1000, 1001, &[50, 44], Some("/home/build")));
        check("build:staff", (1000, 50, &[], Some("/home/build")));
        check("7:8", (7, 8, &[], None));
        check("7", (7, 0, &[], None));
        check("0", (0, 0, &[], Some("/root")));
    }

    #[test]
    fn a_user_or_group_that_the_image_does_not_know_is_an_error() {
        assert!(identify("nobody", ACCOUNTS, GROUPS).is_err());
        assert!(identify("build:nogroup", ACCOUNTS, GROUPS).is_err());
        assert!(identify("-1", ACCOUNTS, GROUPS).is_err());
    }

    #[test]
    fn the_ranges_of_two_places_do_not_touch() {
        assert_eq!(first_id_of_place(0), IMAGE_FIRST_ID + RANGE_IDS);
        assert_eq!(first_id_of_place(1) - first_id_of_place(0), RANGE_IDS);
    }
}
