//! Checks of the control groups: where they are, and whether limits can be put in force and read back. On version 1
//! by the launcher's own means; on version 2 by hand at the top, since the launcher's means may move processes.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Absence, Check, Look, Need, Seen, failed};
use crate::isolation::cgroup::{CgroupError, Hierarchy, Version};
use crate::spec::Limits;

/// What the trial group is called, with the id of the process that tries.
const TRIAL_NAME: &str = "ampoule-doctor";
/// Limits that no group has by default.
const TRIAL_LIMITS: Limits = Limits {
    memory_bytes: 16 << 20,
    cpu_milli: 500,
    pids: 64,
    cpu_time_ms: 1000,
    wall_time_ms: 1000,
    open_files: 64,
    file_bytes: 1 << 20,
};
/// The same on version 2: controller, file and text.
const TRIAL_VALUES: [(&str, &str, &str); 3] =
    [("memory", "memory.max", "16777216"), ("pids", "pids.max", "64"), ("cpu", "cpu.max", "50000 100000")];

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "control groups: memory, pids, cpu",
        need: Need::Every,
        lost: "the memory, the processes and the processor share of jobs could not be limited",
        mend: "mount the control groups (systemd does), or start ampoule outside of the container",
        look: Look::Here(|_| Ok(format!("version {}", number(discover()?.version())))),
    },
    Check {
        name: "limits in control groups",
        need: Need::Every,
        lost: "no limit of memory, processes or processor share would hold",
        mend: "start ampoule as root with /sys/fs/cgroup writable (docker: --cgroupns=private --privileged; \
               a systemd unit: Delegate=yes)",
        look: Look::InChild(|_| {
            let hierarchy = discover()?;
            match hierarchy.version() {
                Version::V1 => limits_v1(&hierarchy),
                Version::V2 => limits_v2(),
            }
        }),
    },
];

fn number(version: Version) -> u8 {
    match version {
        Version::V1 => 1,
        Version::V2 => 2,
    }
}

fn discover() -> Result<Hierarchy, Absence> {
    Hierarchy::discover().map_err(absence)
}

/// The error in the words of a check, with its hint as the remedy and its cause at the end.
fn absence(error: CgroupError) -> Absence {
    match error {
        CgroupError::Missing { controller, problem, hint } => {
            Absence::new(format!("`{controller}` cannot be used: {problem}")).mended_by(hint)
        }
        error => match std::error::Error::source(&error) {
            Some(source) => Absence::new(format!("{error}: {source}")),
            None => Absence::new(error.to_string()),
        },
    }
}

fn trial_name() -> String {
    format!("{TRIAL_NAME}-{}", std::process::id())
}

fn limits_v1(hierarchy: &Hierarchy) -> Seen {
    let root = hierarchy.root(&trial_name()).map_err(absence)?;
    let mut group = root.group("trial").map_err(absence)?;
    group.limit(&TRIAL_LIMITS).map_err(absence)?;
    group.begin().map_err(absence)?;
    group.usage().map_err(absence)?;
    group.remove().map_err(absence)?;
    root.remove().map_err(absence)?;
    Ok("set and read back in a trial group".to_owned())
}

fn limits_v2() -> Seen {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(failed("read /proc/self/mountinfo"))?;
    let top = unified_mount(&mounts).ok_or_else(|| Absence::new("no version 2 is mounted"))?;
    // A group with processes cannot hand its controllers down, the true root excepted, which has no type.
    let is_bounded = top.join("cgroup.type").exists();
    let processes = fs::read_to_string(top.join("cgroup.procs")).map_err(failed("list the processes at the top"))?;
    if is_bounded && !processes.is_empty() {
        return Ok("offered; not tried, since processes of this container would have to move for it".to_owned());
    }
    let trial = Trial::make(&top)?;
    for (_, file, text) in TRIAL_VALUES {
        trial.set(file, text)?;
    }
    trial.check_swap()?;
    Ok("set and read back in a trial group".to_owned())
}

/// Where version 2 is mounted, from the text of mountinfo.
fn unified_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        if !kind.starts_with("cgroup2 ") {
            return None;
        }
        place.split(' ').nth(4).map(PathBuf::from)
    })
}

/// A group of version 2 made for the trial; what was changed for it is changed back at the end.
struct Trial {
    folder: PathBuf,
    control: PathBuf,
    handed_down: Vec<&'static str>,
}

impl Trial {
    fn make(top: &Path) -> Result<Trial, Absence> {
        let control = top.join("cgroup.subtree_control");
        let mut trial = Trial { folder: top.join(trial_name()), control, handed_down: Vec::new() };
        let given = fs::read_to_string(&trial.control).map_err(failed("read which controllers are handed down"))?;
        for (controller, ..) in TRIAL_VALUES {
            if !given.split_whitespace().any(|name| name == controller) {
                let action = format_args!("hand `{controller}` down from {}", top.display());
                fs::write(&trial.control, format!("+{controller}")).map_err(failed(action))?;
                trial.handed_down.push(controller);
            }
        }
        fs::create_dir(&trial.folder).map_err(failed(format_args!("make a group in {}", top.display())))?;
        Ok(trial)
    }

    /// Writes a control file and sees that the kernel kept what was written.
    fn set(&self, file: &str, text: &str) -> Result<(), Absence> {
        let path = self.folder.join(file);
        fs::write(&path, text).map_err(failed(format_args!("write {file}")))?;
        let kept = fs::read_to_string(&path).map_err(failed(format_args!("read {file}")))?;
        if kept.trim() == text {
            return Ok(());
        }
        Err(Absence::new(format!("{file} was set to {text} and reads {}", kept.trim())))
    }

    /// Swap that is not counted is no matter where there is none.
    fn check_swap(&self) -> Result<(), Absence> {
        let has_swap = fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
        if !has_swap || self.folder.join("memory.swap.max").exists() {
            return Ok(());
        }
        Err(Absence::new("this machine swaps, and its kernel does not count swap per group")
            .mended_by("boot with swapaccount=1, or turn swap off: swapoff -a"))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // What cannot be taken back is named by the next trial that meets it.
        let _ = fs::remove_dir(&self.folder);
        for controller in &self.handed_down {
            let _ = fs::write(&self.control, format!("-{controller}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_found_among_the_mounts() {
        let mounts = "26 1 0:21 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      35 26 0:32 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(unified_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(unified_mount(""), None);
    }

    #[test]
    fn a_missing_controller_is_told_with_its_own_remedy() {
        let error = CgroupError::Missing { controller: "pids", problem: "it is not there".into(), hint: "boot".into() };
        let absence = absence(error);
        assert_eq!(
            (absence.found.as_str(), absence.mend.as_deref()),
            ("`pids` cannot be used: it is not there", Some("boot"))
        );
    }
}
