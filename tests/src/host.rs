//! What an instance of the service takes of its host, looked at from outside: processes, mounts, control groups,
//! descriptors, memory. A test that leaves something of these behind has failed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// A process as `/proc` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id in the host's numbering.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// `R`, `S`, `Z`…
    pub state: char,
    /// Its short name.
    pub name: String,
}

/// Every process of the machine that can be seen.
pub fn processes() -> Vec<Process> {
    let folders = fs::read_dir("/proc").expect("/proc is mounted");
    folders.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything, so the last bracket is what ends it.
    let (head, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some(Process {
        pid,
        name: head.split_once('(')?.1.to_owned(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

/// The processes that descend from this one, at any depth.
pub fn descendants(ancestor: i32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

/// Daemons of the tests that are nothing of Ampoule's: what a service left is looked for among all else.
static OTHERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A process that is nobody's leftover, nor is what it started, as long as this is there.
#[derive(Debug)]
pub struct Other(i32);

impl Other {
    /// Says so of a child of this process.
    pub fn is(pid: u32) -> Other {
        let pid = pid.cast_signed();
        OTHERS.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Other(pid)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        OTHERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// The processes that descend from this one, others and what they started left out.
pub fn descendants_but_others(ancestor: i32) -> Vec<Process> {
    let others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let of_others: BTreeSet<i32> =
        others.iter().flat_map(|&other| descendants(other)).map(|process| process.pid).chain(others.clone()).collect();
    descendants(ancestor).into_iter().filter(|process| !of_others.contains(&process.pid)).collect()
}

/// The lines of this mount namespace's table that name a path below the folder.
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let folder = folder.to_string_lossy();
    table.lines().filter(|line| line.contains(&*folder)).map(str::to_owned).collect()
}

/// Where control groups are mounted: one folder a hierarchy, the version-2 one included.
pub fn cgroup_hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    table
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            kind.starts_with("cgroup").then(|| PathBuf::from(mount.split(' ').nth(4).unwrap_or_default()))
        })
        .collect()
}

/// Whether the only hierarchy is that of version 2.
pub fn has_only_cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What the names of the service with this state folder have in them.
fn instance(state: &Path) -> String {
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The network interfaces of the service with this state folder.
pub fn links_of_instance(state: &Path) -> Vec<String> {
    let instance = instance(state);
    let links = fs::read_dir("/sys/class/net").expect("/sys is mounted");
    let names = links.filter_map(|link| Some(link.ok()?.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name.contains(&instance)).collect()
}

/// The control groups of the service with this state folder, as paths in every hierarchy.
pub fn cgroups_of_instance(state: &Path) -> Vec<PathBuf> {
    let name = format!("ampoule-{}", instance(state));
    let mut found = Vec::new();
    for hierarchy in cgroup_hierarchies() {
        find_cgroups(&hierarchy, &name, 6, &mut found);
    }
    found.sort();
    found
}

/// Folders with this name, and all below them.
fn find_cgroups(folder: &Path, name: &str, depth: u32, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()).map(|entry| entry.path()) {
        if path.components().any(|part| part.as_os_str() == name) {
            found.push(path.clone());
        }
        if depth > 0 {
            find_cgroups(&path, name, depth - 1, found);
        }
    }
}

/// The control group of a process in the hierarchy with this controller (the version-2 one when there is no other).
pub fn cgroup_of(pid: i32, controller: &str) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (controllers, path) = (parts.nth(1)?, parts.next()?.trim_start_matches('/'));
        if controllers.split(',').any(|candidate| candidate == controller) {
            return Some(Path::new("/sys/fs/cgroup").join(controller).join(path));
        }
    }
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    has_only_cgroup_v2().then(|| Path::new("/sys/fs/cgroup").join(unified))
}

/// How many descriptors a process has open.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The mounts that a process sees.
pub fn mounts_of(pid: i32) -> usize {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).map_or(0, |table| table.lines().count())
}

/// A process's own share of memory (`Pss`), in bytes.
pub fn memory_bytes(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kibibytes = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().split(' ').next()?.parse().ok());
    kibibytes.unwrap_or(0u64) * 1024
}

/// What a process and all that descend from it take of memory, shared pages counted once, in bytes.
pub fn memory_of_tree(pid: i32) -> u64 {
    memory_bytes(pid) + descendants(pid).iter().map(|process| memory_bytes(process.pid)).sum::<u64>()
}

/// A field of `/proc/PID/status`, as in `CapEff`.
pub fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
}
