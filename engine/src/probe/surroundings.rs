//! Checks of what surrounds the program: folders, users, id ranges and settings of the machine.

use std::fs;
use std::ops::Range;
use std::path::Path;

use rustix::fs::{StatVfs, StatVfsMountFlags, statvfs};
use rustix::process::{Resource, getrlimit};

use super::{Absence, Check, Ground, Look, Need, Seen, failed};
use crate::isolation::users;
use crate::sandbox::launcher::egress;

/// Free space below which images soon do not fit, in bytes.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Open files that a few hundred jobs at once take.
const OPEN_FILES_MIN: u64 = 4096;
/// The service's user when none is named.
const USER_DEFAULT: &str = "ampoule";
/// Ids that sandboxes are given: room for 4,096 sandboxes at once.
const SANDBOX_IDS: Range<u64> = users::FIRST_ID as u64..(users::FIRST_ID as u64 + 4096 * users::RANGE_IDS as u64);

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "state folder",
        need: Need::Every,
        lost: "images, layers and jobs have no place, or programs in images cannot be executed",
        mend: "choose a folder on a writable file system that is mounted without noexec: ampoule serve --state FOLDER",
        look: Look::Here(state_folder),
    },
    Check {
        name: "free space for state",
        need: Need::Better,
        lost: "images and the output of jobs may soon not fit",
        mend: "free some space, or choose another folder with ampoule serve --state FOLDER",
        look: Look::Here(free_space),
    },
    Check {
        name: "socket folder",
        need: Need::Every,
        lost: "clients cannot reach the service",
        mend: "choose a socket in a writable folder: ampoule serve --socket PATH",
        look: Look::Here(socket_folder),
    },
    Check {
        name: "service user",
        need: Need::Better,
        lost: "the service runs with nobody's ids, which other programs of this machine may share",
        mend: "make /etc/passwd readable",
        look: Look::Here(service_user),
    },
    Check {
        name: "id range for sandboxes",
        need: Need::Better,
        lost: "a user of this machine has an id that also stands for a user inside a sandbox",
        mend: "give the named user or range other ids, below 1073741824 or above 1342177280",
        look: Look::Here(id_range),
    },
    Check {
        name: "open files",
        need: Need::Better,
        lost: "fewer jobs can run at once",
        mend: "ulimit -n 65536 before ampoule is started; in a systemd unit LimitNOFILE=65536",
        look: Look::Here(open_files),
    },
    Check {
        name: "network of sandboxes",
        need: Need::Better,
        lost: "RUN in builds fails unless it says --network=none, and no job can have a network",
        mend: "install nft (Debian: apt-get install nftables), or set network.egress = false",
        look: Look::Here(network_rules),
    },
    Check {
        name: "core dumps stay in the sandbox",
        need: Need::Better,
        lost: "the kernel starts a program of the machine, as root, with the memory of each crashed job as its input",
        mend: "sysctl -w kernel.core_pattern=core",
        look: Look::Here(core_pattern),
    },
];

fn network_rules(_: &Ground) -> Seen {
    let found = egress::find_program("nft").ok_or_else(|| Absence::new("there is no `nft`"))?;
    Ok(found.display().to_string())
}

/// The folder itself, or the nearest one above it that exists.
pub(super) fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

fn file_system(folder: &Path) -> Result<StatVfs, Absence> {
    statvfs(folder).map_err(failed(format_args!("look at the file system of {}", folder.display())))
}

fn state_folder(ground: &Ground) -> Seen {
    let folder = nearest(&ground.state);
    let flags = file_system(folder)?.f_flag;
    for (flag, name) in [(StatVfsMountFlags::RDONLY, "read-only"), (StatVfsMountFlags::NOEXEC, "noexec")] {
        if flags.contains(flag) {
            return Err(Absence::new(format!("{} is on a file system mounted {name}", folder.display())));
        }
    }
    if folder == ground.state {
        Ok(format!("{} is there", ground.state.display()))
    } else {
        Ok(format!("{} will be made in {}", ground.state.display(), folder.display()))
    }
}

fn free_space(ground: &Ground) -> Seen {
    let folder = nearest(&ground.state);
    let stat = file_system(folder)?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} MiB free in {}", free_bytes >> 20, folder.display());
    if free_bytes < FREE_BYTES_MIN { Err(Absence::new(found)) } else { Ok(found) }
}

fn socket_folder(ground: &Ground) -> Seen {
    let folder = nearest(ground.socket.parent().unwrap_or(Path::new("/")));
    if file_system(folder)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Absence::new(format!("{} is read-only", folder.display())));
    }
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK)
        .map_err(failed(format_args!("write to {}", folder.display())))?;
    Ok(format!("{} can be made", ground.socket.display()))
}

fn service_user(ground: &Ground) -> Seen {
    let name = ground.user.as_deref().unwrap_or(USER_DEFAULT);
    let users = read("/etc/passwd")?;
    match users.lines().find_map(|line| id_of(line, name)) {
        Some(id) => Ok(format!("{name} is there, uid {id}")),
        None => Err(Absence::new(format!("there is no user {name}"))
            .mended_by(format!("useradd --system --no-create-home --shell /usr/sbin/nologin {name}"))),
    }
}

/// The id in a line of passwd or group when the line is that of `name`.
fn id_of(line: &str, name: &str) -> Option<u64> {
    let mut fields = line.split(':');
    if fields.next()? != name {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

fn id_range(_: &Ground) -> Seen {
    let mut taken = Vec::new();
    for file in ["/etc/passwd", "/etc/group"] {
        taken.extend(read(file)?.lines().filter_map(single_id).filter(overlaps).map(|owned| owned.said_in(file)));
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        // A machine without these files hands out no ranges.
        let text = fs::read_to_string(file).unwrap_or_default();
        taken.extend(text.lines().filter_map(sub_range).filter(overlaps).map(|owned| owned.said_in(file)));
    }
    if taken.is_empty() {
        Ok(format!("{} to {} belong to nobody", SANDBOX_IDS.start, SANDBOX_IDS.end - 1))
    } else {
        Err(Absence::new(taken.join(", ")))
    }
}

/// Ids that a line of a file gives to somebody.
#[derive(Debug, PartialEq, Eq)]
struct Owned {
    owner: String,
    ids: Range<u64>,
}

impl Owned {
    fn said_in(&self, file: &str) -> String {
        format!("{file} gives {} to {}", self.ids.start, self.owner)
    }
}

fn overlaps(owned: &Owned) -> bool {
    owned.ids.start < SANDBOX_IDS.end && SANDBOX_IDS.start < owned.ids.end
}

/// `name:x:ID:…`
fn single_id(line: &str) -> Option<Owned> {
    let mut fields = line.split(':');
    let owner = fields.next()?.to_owned();
    let id: u64 = fields.nth(1)?.parse().ok()?;
    Some(Owned { owner, ids: id..id + 1 })
}

/// `name:FIRST:COUNT`
fn sub_range(line: &str) -> Option<Owned> {
    let mut fields = line.split(':');
    let owner = fields.next()?.to_owned();
    let first: u64 = fields.next()?.parse().ok()?;
    let count: u64 = fields.next()?.trim().parse().ok()?;
    Some(Owned { owner, ids: first..first.saturating_add(count) })
}

fn open_files(_: &Ground) -> Seen {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let found = format!("a process may open {most}");
    if most < OPEN_FILES_MIN { Err(Absence::new(found)) } else { Ok(found) }
}

fn core_pattern(_: &Ground) -> Seen {
    let pattern = read("/proc/sys/kernel/core_pattern")?;
    let pattern = pattern.trim();
    if pattern.starts_with('|') {
        return Err(Absence::new(format!("kernel.core_pattern is a pipe to {}", pattern.trim_start_matches('|'))));
    }
    Ok(format!("kernel.core_pattern is `{pattern}`"))
}

fn read(path: &str) -> Result<String, Absence> {
    fs::read_to_string(path).map_err(failed(format_args!("read {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_reach_into_the_range_of_sandboxes_are_seen() {
        for (line, expected) in [
            ("anna:100000:65536", false),
            ("anna:1073741824:1", true),
            ("anna:1000000000:99999999", true),
            ("anna:1342177280:65536", false),
            ("anna:18446744073709551615:5", false),
        ] {
            let owned = sub_range(line).expect(line);
            assert_eq!(overlaps(&owned), expected, "{line}");
        }
        assert!(sub_range("anna:x:5").is_none());
        assert!(overlaps(&single_id("anna:x:1073741900:100::/:").expect("a user")));
    }

    #[test]
    fn a_user_is_found_by_the_whole_name_only() {
        assert_eq!(id_of("ampoule:x:998:998::/var/lib/ampoule:/usr/sbin/nologin", "ampoule"), Some(998));
        assert_eq!(id_of("ampoule2:x:998:998::/:", "ampoule"), None);
    }

    #[test]
    fn the_nearest_folder_of_a_missing_one_is_above_it() {
        assert_eq!(nearest(Path::new("/proc/no/such/folder")), Path::new("/proc"));
        assert_eq!(nearest(Path::new("relative/none")), Path::new("/"));
    }
}
