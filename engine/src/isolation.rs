//! What a sandbox is walled in with: users, mounts, network, limits, capabilities and the system-call filter.

pub(crate) mod binds;
pub(crate) mod capabilities;
pub mod cgroup;
pub(crate) mod mounts;
pub(crate) mod netlink;
pub(crate) mod network;
pub(crate) mod overlay;
mod points;
pub mod seccomp;
pub mod users;
