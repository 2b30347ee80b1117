//! Version 2: one hierarchy, where a controller must be handed down from group to group, and where a group that hands
//! one down may hold no processes itself (the hierarchy's true root may).

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{getpid, getppid};

use super::counters::{Counter, Counters, Totals};
use super::error::{CgroupError, failed};
use super::folders::{Folders, processes};
use super::mounts::{self, Mount};

/// The controllers that are needed; processor time is counted without one.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// The group that this process and the service move into, where they stand in the way of handing controllers down.
pub(super) const OWN_GROUP: &str = "launcher";

/// How the names of all root folders begin.
const NAME_PREFIX: &str = "ampoule-";

/// Where version 2 is mounted and where in it this process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    /// The topmost group that can be seen.
    top: PathBuf,
    /// The group of this process: `top` or below.
    own: PathBuf,
}

/// Finds the tree; `None` when it is not mounted.
pub(super) fn locate(mounts: &[Mount], membership: &str) -> Option<Tree> {
    let mount = mounts.iter().find(|mount| mount.unified)?;
    let group = mounts::group(membership, None)?;
    Some(Tree { top: mount.point.clone(), own: mount.folder(&group) })
}

/// Checks that the top of the tree has every controller that is needed.
pub(super) fn check(tree: &Tree, mounts: &[Mount]) -> Result<(), CgroupError> {
    let path = tree.top.join("cgroup.controllers");
    let offered = fs::read_to_string(&path).map_err(failed("read", &path))?;
    if let Some(controller) = lacking(&offered).next() {
        let hint = if mounts.iter().any(|mount| mount.options.iter().any(|option| option == controller)) {
            "boot with systemd.unified_cgroup_hierarchy=1, so that all controllers are in version 2".to_owned()
        } else {
            format!("boot with cgroup_enable={controller}; in a container, have its runtime delegate the controller")
        };
        let problem = format!("`{}` does not offer it", path.display());
        return Err(CgroupError::Missing { controller, problem, hint });
    }
    let writable = mounts.iter().any(|mount| mount.unified && mount.point == tree.top && mount.writable);
    if !writable {
        let hint = format!("mount `{}` writable; in a container, give it its own writable groups", tree.top.display());
        return Err(CgroupError::Missing {
            controller: "memory",
            problem: "version 2 is mounted read-only".into(),
            hint,
        });
    }
    Ok(())
}

/// Makes the group `name` with all controllers handed down to what will be below it, and returns its folder.
///
/// It goes below the own group when nobody but this process and its parent, the service, are in there: the two move
/// to a group of their own, which is what a service manager's delegation is for (`Delegate=yes`). When others are in
/// there, say the shell of a login, they are left alone and the group goes to the nearest group above that holds no
/// processes. Only when there is nothing above, as in a container, everybody moves.
pub(super) fn prepare(tree: &Tree, name: &str) -> Result<PathBuf, CgroupError> {
    let home = find_home(tree, &|folder| processes(folder), &|folder| folder.join("cgroup.type").exists())?;
    let folder = home.folder.join(name);
    for above in ancestors(&tree.top, &home.folder) {
        hand_down(above)?;
    }
    Folders::unified(folder.clone()).create()?;
    if !home.movers.is_empty() {
        let own_group = folder.join(OWN_GROUP);
        Folders::unified(own_group.clone()).create()?;
        for mover in home.movers {
            let door = own_group.join("cgroup.procs");
            fs::write(&door, mover.to_string()).map_err(failed("move this process by", &door))?;
        }
    }
    hand_down(&home.folder)?;
    hand_down(&folder)?;
    Ok(folder)
}

/// Where our group goes, and which processes have to leave that place.
#[derive(Debug, PartialEq, Eq)]
struct Home {
    folder: PathBuf,
    movers: Vec<i32>,
}

/// Decides it; `processes` lists a group, `is_bounded` says whether a group is not the hierarchy's true root.
fn find_home(
    tree: &Tree,
    processes: &dyn Fn(&Path) -> Result<Vec<i32>, CgroupError>,
    is_bounded: &dyn Fn(&Path) -> bool,
) -> Result<Home, CgroupError> {
    let ours = [Some(getpid()), getppid()].map(|id| id.map_or(0, |id| id.as_raw_nonzero().get()));
    let start = outside_of_last_life(&tree.own).unwrap_or(&tree.own);
    for folder in start.ancestors().take_while(|folder| *folder != tree.top) {
        let inside = processes(folder)?;
        if inside.iter().all(|process| ours.contains(process)) {
            return Ok(Home { folder: folder.to_owned(), movers: inside });
        }
    }
    let movers = if is_bounded(&tree.top) { processes(&tree.top)? } else { Vec::new() };
    Ok(Home { folder: tree.top.clone(), movers })
}

/// A service that is started again from inside of `ampoule-…/launcher`, where its last life had moved its parent,
/// belongs beside that and not below it.
fn outside_of_last_life(own: &Path) -> Option<&Path> {
    let folder = own.parent().filter(|_| own.ends_with(OWN_GROUP))?;
    let is_ours = folder.file_name()?.to_str()?.starts_with(NAME_PREFIX);
    folder.parent().filter(|_| is_ours)
}

/// The groups from `top` down to the one above `folder`.
fn ancestors<'a>(top: &Path, folder: &'a Path) -> Vec<&'a Path> {
    let mut above: Vec<_> = folder.ancestors().skip(1).take_while(|above| above.starts_with(top)).collect();
    above.reverse();
    above
}

/// Lets the groups below `folder` use the controllers, where that is not so yet.
fn hand_down(folder: &Path) -> Result<(), CgroupError> {
    let control = folder.join("cgroup.subtree_control");
    let text = fs::read_to_string(&control).map_err(failed("read", &control))?;
    for controller in lacking(&text) {
        let refused = |error: std::io::Error| not_handed_down(controller, &control, &error.to_string());
        fs::write(&control, format!("+{controller}")).map_err(refused)?;
    }
    let text = fs::read_to_string(&control).map_err(failed("read back", &control))?;
    match lacking(&text).next() {
        Some(controller) => Err(not_handed_down(controller, &control, "the write had no effect")),
        None => Ok(()),
    }
}

fn not_handed_down(controller: &'static str, control: &Path, reason: &str) -> CgroupError {
    CgroupError::Missing {
        controller,
        problem: format!("`{}` does not take +{controller}: {reason}", control.display()),
        hint: "start it as a systemd service with `Delegate=yes`, or with `systemd-run --scope -p Delegate=yes`".into(),
    }
}

/// The controllers that are needed and are not in a list of the kernel's.
fn lacking(list: &str) -> impl Iterator<Item = &'static str> {
    CONTROLLERS.into_iter().filter(|name| !list.split_whitespace().any(|other| other == *name))
}

/// Opens a group's folder, for a process to be born in it by `CLONE_INTO_CGROUP`.
pub(super) fn open_birthplace(folder: &Path) -> Result<OwnedFd, CgroupError> {
    openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open", folder))
}

/// The counters of a group of version 2.
#[derive(Debug)]
pub(super) struct V2Counters {
    cpu_stat: Counter,
    memory_events: Counter,
    pids_events: Counter,
    memory_peak: Peak,
}

/// How the highest memory use is known.
#[derive(Debug)]
enum Peak {
    /// `memory.peak`, that begins again when written to, for this one descriptor (Linux 6.12 and later).
    Resettable(Counter),
    /// `memory.peak` since the group was made (5.19 and later).
    Whole(Counter),
    /// Before 5.19: the highest `memory.current` of the moments at which any counter of the group was read. It is a
    /// lower bound: what came and went between two reads is not in it.
    Sampled { current: Counter, highest: AtomicU64 },
}

impl Peak {
    fn open(folder: &Path) -> Result<Peak, CgroupError> {
        // Older kernels let it be opened for writing too, and refuse only the write.
        if let Some(counter) = Counter::open_writable(folder, "memory.peak").ok().filter(|peak| peak.reset().is_ok()) {
            return Ok(Peak::Resettable(counter));
        }
        if folder.join("memory.peak").exists() {
            return Ok(Peak::Whole(Counter::open(folder, "memory.peak")?));
        }
        Ok(Peak::Sampled { current: Counter::open(folder, "memory.current")?, highest: AtomicU64::new(0) })
    }

    fn sample(&self) -> Result<(), CgroupError> {
        if let Peak::Sampled { current, highest } = self {
            highest.fetch_max(current.number()?, Ordering::Relaxed);
        }
        Ok(())
    }

    fn bytes(&self) -> Result<u64, CgroupError> {
        self.sample()?;
        match self {
            Peak::Resettable(counter) | Peak::Whole(counter) => counter.number(),
            Peak::Sampled { highest, .. } => Ok(highest.load(Ordering::Relaxed)),
        }
    }

    fn reset(&self) -> Result<(), CgroupError> {
        match self {
            Peak::Resettable(counter) => counter.reset(),
            // The group is used once, so what it has above is only the making of its sandbox.
            Peak::Whole(_) => Ok(()),
            Peak::Sampled { highest, .. } => {
                highest.store(0, Ordering::Relaxed);
                self.sample()
            }
        }
    }
}

impl V2Counters {
    /// Opens the counters of the group in `folder`.
    pub(super) fn open(folder: &Path) -> Result<V2Counters, CgroupError> {
        Ok(V2Counters {
            cpu_stat: Counter::open(folder, "cpu.stat")?,
            memory_events: Counter::open(folder, "memory.events")?,
            pids_events: Counter::open(folder, "pids.events")?,
            memory_peak: Peak::open(folder)?,
        })
    }

    /// The same counters from descriptors that another process opened, in the order of `readable`.
    pub(super) fn received(next: &mut dyn FnMut(&str) -> Option<Counter>) -> Option<V2Counters> {
        Some(V2Counters {
            cpu_stat: next("cpu.stat")?,
            memory_events: next("memory.events")?,
            pids_events: next("pids.events")?,
            memory_peak: Peak::Whole(next("memory.peak")?),
        })
    }
}

impl Counters for V2Counters {
    fn totals(&self) -> Result<Totals, CgroupError> {
        self.memory_peak.sample()?;
        let [cpu_us, user_us, system_us, throttled_us] =
            self.cpu_stat.fields(["usage_usec", "user_usec", "system_usec", "throttled_usec"])?;
        Ok(Totals {
            cpu_ns: cpu_us * 1000,
            user_ns: user_us * 1000,
            system_ns: system_us * 1000,
            oom_kills: self.memory_events.field("oom_kill")?,
            pids_refused: self.pids_events.field("max")?,
            throttled_us,
        })
    }

    fn cpu_ns(&self) -> Result<u64, CgroupError> {
        self.memory_peak.sample()?;
        Ok(self.cpu_stat.field("usage_usec")? * 1000)
    }

    fn memory_peak_bytes(&self) -> Result<u64, CgroupError> {
        self.memory_peak.bytes()
    }

    fn reset_peak(&self) -> Result<(), CgroupError> {
        self.memory_peak.reset()
    }

    fn readable(&self) -> Option<Vec<BorrowedFd<'_>>> {
        let peak = match &self.memory_peak {
            Peak::Resettable(counter) | Peak::Whole(counter) => counter,
            Peak::Sampled { .. } => return None,
        };
        let all = [&self.cpu_stat, &self.memory_events, &self.pids_events, peak];
        Some(all.into_iter().map(Counter::as_fd).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Above what the kernel numbers processes with.
    const STRANGER: i32 = i32::MAX;

    fn own_pid() -> i32 {
        getpid().as_raw_nonzero().get()
    }

    fn home(own: &str, groups: &[(&str, &[i32])], root_is_real: bool) -> Home {
        let tree = Tree { top: "/cg".into(), own: own.into() };
        let groups: BTreeMap<&Path, &[i32]> = groups.iter().map(|(path, inside)| (Path::new(*path), *inside)).collect();
        let list = |folder: &Path| Ok(groups.get(folder).map_or(Vec::new(), |inside| inside.to_vec()));
        find_home(&tree, &list, &|folder| !(root_is_real && folder == Path::new("/cg"))).unwrap()
    }

    #[test]
    fn in_the_true_root_nobody_moves() {
        let found = home("/cg", &[("/cg", &[STRANGER, own_pid()])], true);
        assert_eq!(found, Home { folder: "/cg".into(), movers: vec![] });
    }

    #[test]
    fn in_a_delegated_group_of_ours_we_move_ourselves() {
        let found =
            home("/cg/system.slice/ampoule.service", &[("/cg/system.slice/ampoule.service", &[own_pid()])], true);
        assert_eq!(found, Home { folder: "/cg/system.slice/ampoule.service".into(), movers: vec![own_pid()] });
    }

    #[test]
    fn a_login_shell_is_left_alone() {
        let found = home("/cg/user.slice/session", &[("/cg/user.slice/session", &[STRANGER, own_pid()])], true);
        assert_eq!(found, Home { folder: "/cg/user.slice".into(), movers: vec![] });
    }

    #[test]
    fn at_the_top_of_a_container_everybody_moves() {
        let found = home("/cg", &[("/cg", &[STRANGER, own_pid()])], false);
        assert_eq!(found, Home { folder: "/cg".into(), movers: vec![STRANGER, own_pid()] });
    }

    #[test]
    fn a_second_life_goes_back_to_the_same_place() {
        let groups: &[(&str, &[i32])] = &[("/cg/ampoule-1/launcher", &[STRANGER, own_pid()])];
        assert_eq!(home("/cg/ampoule-1/launcher", groups, false), Home { folder: "/cg".into(), movers: vec![] });
        assert_eq!(outside_of_last_life(Path::new("/cg/other/launcher")), None);
    }

    #[test]
    fn controllers_are_handed_down_from_the_top() {
        let above = ancestors(Path::new("/cg"), Path::new("/cg/a/b"));
        assert_eq!(above, [Path::new("/cg"), Path::new("/cg/a")]);
        assert!(ancestors(Path::new("/cg"), Path::new("/cg")).is_empty());
        assert_eq!(lacking("cpuset cpu io memory").collect::<Vec<_>>(), ["pids"]);
    }

    #[test]
    fn a_tree_without_controllers_is_refused_with_a_hint() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("cgroup.controllers"), "cpuset hugetlb\n").unwrap();
        let mountinfo = format!(
            "1 1 0:1 / {} rw - cgroup2 cgroup2 rw\n2 1 0:2 / /cg/cpu rw - cgroup cgroup rw,cpu\n",
            top.path().display()
        );
        let mounts = mounts::mounts(&mountinfo);
        let tree = locate(&mounts, "0::/a\n").unwrap();
        assert_eq!(tree.own, top.path().join("a"));
        let error = check(&tree, &mounts).unwrap_err().to_string();
        assert!(error.contains("`memory`") && error.contains("hint: boot with cgroup_enable=memory"), "{error}");
        fs::write(top.path().join("cgroup.controllers"), "memory pids\n").unwrap();
        let error = check(&tree, &mounts).unwrap_err().to_string();
        assert!(error.contains("`cpu`") && error.contains("unified_cgroup_hierarchy"), "{error}");
    }

    /// The files of a kernel of version 2 in a folder, with the ones that differ between kernels as asked.
    fn group_files(memory: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let cpu = "usage_usec 5000\nuser_usec 4000\nsystem_usec 1000\nnice_usec 0\n\
            nr_periods 7\nnr_throttled 2\nthrottled_usec 12345\nnr_bursts 0\nburst_usec 0\n";
        let events = "low 0\nhigh 0\nmax 40\noom 3\noom_kill 2\noom_group_kill 1\n";
        let common = [("cpu.stat", cpu), ("memory.events", events), ("pids.events", "max 9\n")];
        for (name, text) in common.iter().chain(memory) {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn the_counters_of_version_2_are_read() {
        let folder = group_files(&[("memory.peak", "0\n")]);
        let counters = V2Counters::open(folder.path()).unwrap();
        fs::write(folder.path().join("memory.peak"), "4096\n").unwrap();
        let totals = counters.totals().unwrap();
        assert_eq!((totals.cpu_ns, totals.user_ns, totals.system_ns), (5_000_000, 4_000_000, 1_000_000));
        assert_eq!((totals.oom_kills, totals.pids_refused, totals.throttled_us), (2, 9, 12_345));
        assert_eq!(counters.cpu_ns().unwrap(), 5_000_000);
        assert_eq!(counters.memory_peak_bytes().unwrap(), 4096);
    }

    #[test]
    fn without_a_peak_the_highest_reading_counts() {
        let folder = group_files(&[("memory.current", "900\n")]);
        let counters = V2Counters::open(folder.path()).unwrap();
        counters.cpu_ns().unwrap();
        fs::write(folder.path().join("memory.current"), "300\n").unwrap();
        assert_eq!(counters.memory_peak_bytes().unwrap(), 900);
        counters.reset_peak().unwrap();
        assert_eq!(counters.memory_peak_bytes().unwrap(), 300);
    }
}
