//! Checks of the capabilities that the launcher needs; the service itself gives all of them up.

use rustix::thread::{CapabilitySet, capabilities};

use super::{Absence, Check, Ground, Look, Need, Seen, failed};

/// A check for one capability: they differ in nothing but the name, the reason and how much they matter.
macro_rules! capability {
    ($need:ident, $set:ident, $name:literal, $lost:literal) => {
        Check {
            name: concat!("capability ", $name),
            need: Need::$need,
            lost: $lost,
            mend: concat!(
                "start ampoule as root (sudo ampoule serve); in a container add --cap-add ",
                $name,
                "; in a systemd unit add CAP_",
                $name,
                " to CapabilityBoundingSet="
            ),
            look: Look::Here(|_: &Ground| held(CapabilitySet::$set)),
        }
    };
}

pub(super) const CHECKS: &[Check] = &[
    capability!(Every, SYS_ADMIN, "SYS_ADMIN", "no namespace can be made and nothing can be mounted"),
    capability!(Every, SETUID, "SETUID", "id ranges cannot be mapped, and the service cannot drop to its own user"),
    capability!(Every, SETGID, "SETGID", "id ranges cannot be mapped, and the service cannot drop its groups"),
    capability!(Every, SETPCAP, "SETPCAP", "capabilities cannot be taken from the bounding set of jobs"),
    capability!(Every, CHOWN, "CHOWN", "unpacked layers cannot get the owners that the image names"),
    capability!(
        Every,
        DAC_OVERRIDE,
        "DAC_OVERRIDE",
        "the launcher cannot reach folders that belong to the service's user"
    ),
    capability!(Every, FOWNER, "FOWNER", "unpacked layers cannot get the modes that the image names"),
    capability!(Every, KILL, "KILL", "processes of a job, which run as other users, cannot be killed"),
    capability!(Every, MKNOD, "MKNOD", "the minimal /dev of sandboxes cannot be made"),
    capability!(Every, NET_ADMIN, "NET_ADMIN", "the loopback device of sandboxes cannot be switched on"),
    capability!(Every, SYS_CHROOT, "SYS_CHROOT", "sandboxes cannot enter their root"),
    capability!(
        Better,
        SYS_RESOURCE,
        "SYS_RESOURCE",
        "limits of open files above those that ampoule was started with cannot be given to jobs"
    ),
];

fn held(wanted: CapabilitySet) -> Seen {
    let sets = capabilities(None).map_err(failed("read the capabilities of this process"))?;
    if sets.effective.contains(wanted) {
        Ok("held".to_owned())
    } else if sets.permitted.contains(wanted) {
        Err(Absence::new("permitted, but not effective"))
    } else {
        Err(Absence::new(format!("not held (running as uid {})", rustix::process::geteuid().as_raw())))
    }
}
