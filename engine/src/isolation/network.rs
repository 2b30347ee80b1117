//! The network of a sandbox: a namespace of its own, with nothing but loopback or with a way out besides.
//!
//! ```text
//! sandbox: eth0 ═══ veth, isolated ─ bridge ─ forward, NAT: machine ─▶ the world      (launcher/egress.rs)
//! ```

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};

use crate::isolation::netlink::{Netlink, Veth};
use crate::sys::{self, SysError, failed};

/// What the interface of a sandbox is called inside.
const INTERFACE: &str = "eth0";
/// The calling process in its own pid namespace.
const PID_1: u32 = 1;

/// The way out of one sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Uplink {
    /// The bridge that it is plugged into: its index on the host.
    pub(crate) bridge: u32,
    /// What its end on the host is called.
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    /// Length of the network's prefix, in bits.
    pub(crate) prefix: u8,
    pub(crate) gateway: Ipv4Addr,
    /// Largest packet, in bytes.
    pub(crate) mtu: u32,
    /// What its `/etc/resolv.conf` says.
    pub(crate) resolver: String,
}

/// Moves the calling process, pid 1 of a sandbox, into a new network namespace.
///
/// # Errors
/// The call that the kernel refused.
pub(crate) fn enter(uplink: Option<&Uplink>) -> Result<(), SysError> {
    let host = uplink.map(|_| Netlink::open()).transpose().map_err(failed("open", "a netlink socket"))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(failed("make", "a network namespace"))?;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(failed("open", "a socket for loopback"))?;
    sys::loopback_up(socket.as_fd()).map_err(failed("set up", "loopback"))?;
    match (uplink, host) {
        (Some(uplink), Some(host)) => connect(uplink, &host),
        _ => Ok(()),
    }
}

/// Ties the namespace of the calling process to the bridge.
fn connect(uplink: &Uplink, host: &Netlink) -> Result<(), SysError> {
    let (name, mtu) = (uplink.name.as_str(), uplink.mtu);
    let veth = Veth { name, peer: INTERFACE, peer_pid: PID_1, bridge: uplink.bridge, mtu };
    host.add_veth(&veth).map_err(failed("make", "the interface of a sandbox"))?;
    host.isolate(name).map_err(failed("isolate", "the interface of a sandbox"))?;
    let inside = Netlink::open().map_err(failed("open", "a netlink socket"))?;
    let index = inside.index(INTERFACE).map_err(failed("find", INTERFACE))?;
    inside.add_address(index, uplink.address, uplink.prefix).map_err(failed("give an address to", INTERFACE))?;
    inside.set_up(index).map_err(failed("set up", INTERFACE))?;
    inside.add_default_route(uplink.gateway).map_err(failed("set", "the route of a sandbox"))
}
