//! Giving privileges up, for good.

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

use crate::sys::{SysError, failed};

/// More capabilities than any kernel has: where the walk through the bounding set ends at the latest.
const CAPABILITIES_MAX: u32 = 64;

/// Keeps `kept` as the only capabilities, also for whatever is executed later, and locks the door behind it.
/// To be called after the last change of user namespace: joining one fills all sets again.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn keep_only(kept: CapabilitySet) -> Result<(), SysError> {
    bound_to(kept)?;
    clear_ambient_capability_set().map_err(failed("clear", "the ambient capabilities"))?;
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(locked).map_err(failed("lock", "the secure bits"))?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("set", "the capabilities"))
}

/// What root of a build's sandbox may do to what belongs to it. Its mounts, its network and its host name do not: their
/// namespaces belong to the host's user namespace.
const BUILDER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE);

/// Keeps what root of a build needs, which is lost with the user 0 and cannot be gained. To be called as user 0, after
/// the last change of user namespace.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn become_builder() -> Result<(), SysError> {
    bound_to(BUILDER)?;
    clear_ambient_capability_set().map_err(failed("clear", "the ambient capabilities"))?;
    let locked = CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(locked).map_err(failed("lock", "the secure bits"))?;
    let sets = CapabilitySets { effective: BUILDER, permitted: BUILDER, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("set", "the capabilities"))
}

/// Keeps all but `kept` from ever being gained through exec. Needs `CAP_SETPCAP`.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn bound_to(kept: CapabilitySet) -> Result<(), SysError> {
    for number in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The first number that this kernel does not know.
            Err(rustix::io::Errno::INVAL) => break,
            other => other.map_err(failed("drop from the bounding set capability", number.to_string()))?,
        }
    }
    Ok(())
}
