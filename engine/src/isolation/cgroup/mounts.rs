//! Where the control group file systems are mounted, and where in them this process is: reads
//! `/proc/self/mountinfo` and `/proc/self/cgroup`. Pure; touches no file.

use std::path::{Component, Path, PathBuf};

/// One mounted control group hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// The group that is seen at the mount point; `/` unless a container shows only a part.
    pub(super) root: PathBuf,
    /// Whether this is the one hierarchy of version 2.
    pub(super) unified: bool,
    /// Whether it is mounted writable.
    pub(super) writable: bool,
    /// The mount options of the hierarchy, which on version 1 are its controllers.
    pub(super) options: Vec<String>,
}

impl Mount {
    /// The folder of the group that `/proc/self/cgroup` names `group`; the top of what is mounted when the group
    /// lies outside of it.
    pub(super) fn folder(&self, group: &Path) -> PathBuf {
        match group.strip_prefix(&self.root) {
            Ok(below) if below.components().all(|part| matches!(part, Component::Normal(_))) => self.point.join(below),
            _ => self.point.clone(),
        }
    }
}

/// The control group mounts of a `/proc/self/mountinfo`, in its order.
pub(super) fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

/// Reads `36 35 0:30 ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER_OPTIONS`.
fn mount(line: &str) -> Option<Mount> {
    let (place, system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point, flags) = (place.next()?, place.next()?, place.next()?);
    let mut system = system.split(' ');
    let (kind, options) = (system.next()?, system.nth(1)?);
    let unified = match kind {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    Some(Mount {
        point: unescape(point).into(),
        root: unescape(root).into(),
        unified,
        writable: flags.split(',').all(|flag| flag != "ro"),
        options: options.split(',').map(str::to_owned).collect(),
    })
}

/// Undoes the kernel's `\040` for a space, and the like.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.map_or('\\', char::from));
        rest = &rest[at + if code.is_some() { 4 } else { 1 }..];
    }
    plain + rest
}

/// The group of this process in the hierarchy of `controller`, from a `/proc/self/cgroup`; `None` asks for version 2.
pub(super) fn group(membership: &str, controller: Option<&str>) -> Option<PathBuf> {
    membership.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let is_asked = match controller {
            Some(name) => controllers.split(',').any(|other| other == name),
            None => controllers.is_empty(),
        };
        is_asked.then(|| path.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions_are_read() {
        let text = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified ro,relatime shared:5 - cgroup2 cgroup2 rw,nsdelegate\n\
            22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n\
            50 1 0:40 /docker/a\\040b /mnt/c\\134d rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = mounts(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].options, ["rw", "memory"]);
        assert!(found[0].writable && !found[0].unified);
        assert!(found[1].unified && !found[1].writable);
        assert_eq!(found[2].root, Path::new("/docker/a b"));
        assert_eq!(found[2].point, Path::new("/mnt/c\\d"));
    }

    #[test]
    fn a_group_is_found_below_its_mount() {
        let mount = |root: &str| mounts(&format!("1 1 0:1 {root} /cg rw - cgroup2 cgroup2 rw")).remove(0);
        assert_eq!(mount("/").folder(Path::new("/")), Path::new("/cg"));
        assert_eq!(mount("/").folder(Path::new("/a/b")), Path::new("/cg/a/b"));
        assert_eq!(mount("/a").folder(Path::new("/a/b")), Path::new("/cg/b"));
        assert_eq!(mount("/other").folder(Path::new("/a/b")), Path::new("/cg"));
        assert_eq!(mount("/").folder(Path::new("/../b")), Path::new("/cg"));
    }

    #[test]
    fn the_own_group_is_found_by_controller() {
        let text = "5:cpu,cpuacct:/one\n4:memory:/two:three\n1:name=systemd:/four\n0::/five\n";
        assert_eq!(group(text, Some("cpuacct")), Some("/one".into()));
        assert_eq!(group(text, Some("memory")), Some("/two:three".into()));
        assert_eq!(group(text, Some("pids")), None);
        assert_eq!(group(text, None), Some("/five".into()));
    }
}
