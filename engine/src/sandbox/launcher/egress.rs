//! The way out for sandboxes that have one: a bridge, the rules about it, and the addresses on it.
//!
//! It is made when it is first asked for, and taken down with the launcher; the next one takes down what a killed one
//! left. From the bridge one reaches what the machine reaches, by its address (NAT), and neither the machine itself,
//! whichever of its addresses is tried, nor another sandbox, nor what the operator denies. Nobody reaches in.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::isolation::netlink::Netlink;
use crate::isolation::network::Uplink;
use crate::sys::{SysError, failed};

/// Where networks of sandboxes are taken from: a part of 10.0.0.0/8 that Docker and Podman leave alone.
const POOL: [u8; 2] = [10, 199];
/// Length of the prefix of one network, in bits: room for a thousand sandboxes.
const PREFIX: u8 = 22;
/// Connections of one sandbox at a time: the table of the kernel that holds them is the whole machine's.
const CONNECTIONS_MAX: u32 = 4096;
/// Largest packet where the machine does not say, in bytes.
const MTU: u32 = 1500;
/// Most bytes read of the machine's resolv.conf.
const RESOLVER_BYTES_MAX: u64 = 64 * 1024;
/// How long another launcher may take to choose its network.
const PATIENCE: Duration = Duration::from_secs(5);
/// How the names of the bridges begin.
const BRIDGE: &str = "amp-";
/// The table that keeps a machine from becoming a router; all launchers share it.
const GUARD: &str = "ampoule-guard";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Where programs are looked for that set rules.
const PROGRAM_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/bin"];
/// Where name servers are found: the machine's file, and what systemd-resolved forwards to when that names only itself.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What an operator says about the way out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EgressTerms {
    /// Addresses that are not reached.
    pub denied: Vec<Ipv4Net>,
    /// Name servers; none takes those of the machine.
    pub nameservers: Vec<Ipv4Addr>,
}

/// Why a sandbox has no way out.
#[derive(Debug, thiserror::Error)]
pub(super) enum EgressError {
    #[error("sandboxes have no network here but loopback: `network.egress` is off")]
    Off,
    #[error("the network of sandboxes needs `{0}`, which is not installed")]
    NoProgram(&'static str),
    #[error("could not set the rules of the network: {program}: {problem}")]
    Rules { program: &'static str, problem: String },
    #[error("all networks of 10.199.0.0/16 are in use on this machine")]
    NoNetwork,
    #[error("all addresses of the network of sandboxes are in use")]
    NoAddress,
    #[error(transparent)]
    System(#[from] SysError),
}

#[derive(Default)]
pub(super) struct Egress {
    terms: Option<EgressTerms>,
    /// Eight digits that no other launcher of this machine has.
    instance: String,
    bridge: Option<Bridge>,
}

struct Bridge {
    index: u32,
    network: Ipv4Net,
    mtu: u32,
    /// The one that was not used for the longest time comes first.
    free: VecDeque<Ipv4Addr>,
}

impl Egress {
    /// Takes down what an earlier launcher of this name left.
    pub(super) fn new(terms: Option<EgressTerms>, instance_name: &str) -> Result<Egress, SysError> {
        let instance = instance_name.trim_start_matches("ampoule-").to_owned();
        let egress = Egress { terms, instance, bridge: None };
        egress.take_down()?;
        Ok(egress)
    }

    fn bridge_name(&self) -> String {
        format!("{BRIDGE}{}", self.instance)
    }

    fn table_name(&self) -> String {
        format!("ampoule-{}", self.instance)
    }

    /// A way out for one sandbox.
    pub(super) fn uplink(&mut self) -> Result<Uplink, EgressError> {
        let terms = self.terms.as_ref().ok_or(EgressError::Off)?;
        let nameservers = if terms.nameservers.is_empty() { machine_nameservers() } else { terms.nameservers.clone() };
        if self.bridge.is_none() {
            match self.set_up(&terms.denied, &nameservers) {
                Ok(bridge) => self.bridge = Some(bridge),
                Err(error) => {
                    self.take_down()?;
                    return Err(error);
                }
            }
        }
        let Some(bridge) = &mut self.bridge else { return Err(EgressError::NoNetwork) };
        let address = bridge.free.pop_front().ok_or(EgressError::NoAddress)?;
        let number = u32::from(address) - u32::from(bridge.network.network());
        Ok(Uplink {
            bridge: bridge.index,
            name: format!("amp{}-{number:03x}", self.instance),
            address,
            prefix: PREFIX,
            gateway: gateway(bridge.network),
            mtu: bridge.mtu,
            resolver: resolver(&nameservers),
        })
    }

    /// Takes an address back whose sandbox is gone.
    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        if let Some(bridge) = &mut self.bridge {
            bridge.free.push_back(address);
        }
    }

    fn set_up(&self, denied: &[Ipv4Net], nameservers: &[Ipv4Addr]) -> Result<Bridge, EgressError> {
        let _turn = turn()?;
        let routes = std::fs::read_to_string("/proc/net/route").map_err(failed("read", "the routes of the machine"))?;
        let routes = read_routes(&routes);
        let network = choose(&routes, &self.instance).ok_or(EgressError::NoNetwork)?;
        let uplink = routes.iter().find(|route| route.network.prefix_len() == 0).map(|route| route.interface.as_str());
        let mtu = uplink.and_then(mtu_of).unwrap_or(MTU);
        let name = self.bridge_name();
        let netlink = Netlink::open().map_err(failed("open", "a netlink socket"))?;
        netlink.add_bridge(&name, mtu).map_err(failed("make bridge", name.as_str()))?;
        let index = netlink.index(&name).map_err(failed("find bridge", name.as_str()))?;
        // Sources that are not of the network are dropped; IPv6 does not exist here.
        set(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1")?;
        set(&format!("/proc/sys/net/ipv4/conf/{name}/send_redirects"), "0")?;
        if Path::new("/proc/sys/net/ipv6").exists() {
            set(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        }
        run("nft", &["-f", "-"], &rules(&self.table_name(), &name, network, denied, nameservers))?;
        for rule in forward_rules(&name) {
            // A machine without this program has no rules of it that could be in the way.
            let _ = run("iptables", &[&["-w", "-I", "FORWARD"], &rule[..]].concat(), "");
        }
        netlink.add_address(index, gateway(network), PREFIX).map_err(failed("give an address to", name))?;
        begin_forwarding()?;
        let free = network.hosts().filter(|address| *address != gateway(network)).collect();
        Ok(Bridge { index, network, mtu, free })
    }

    /// Takes the bridge and its rules down, if there are any.
    pub(super) fn take_down(&self) -> Result<(), SysError> {
        let name = self.bridge_name();
        let netlink = Netlink::open().map_err(failed("open", "a netlink socket"))?;
        let index = match netlink.index(&name) {
            Err(Errno::NODEV) => return Ok(()),
            found => found.map_err(failed("find bridge", name.as_str()))?,
        };
        let _turn = turn()?;
        let table = self.table_name();
        // What is not there, since setting up did not come so far, need not be removed.
        let _ = run("nft", &["delete", "table", "inet", &table], "");
        for rule in forward_rules(&name) {
            let _ = run("iptables", &[&["-w", "-D", "FORWARD"], &rule[..]].concat(), "");
        }
        netlink.remove(index).map_err(failed("remove bridge", name))?;
        end_forwarding()
    }
}

/// Has the machine forward packets. If it did not before, nothing else is forwarded for that: what comes in by one of
/// its network cards and would go out by one.
fn begin_forwarding() -> Result<(), EgressError> {
    let is_router = std::fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() != "0");
    if is_router {
        return Ok(());
    }
    let cards = interfaces("device").join("\", \"");
    let rule = if cards.is_empty() {
        String::new()
    } else {
        format!("iifname {{ \"{cards}\" }} oifname {{ \"{cards}\" }} drop")
    };
    let chain = "type filter hook forward priority filter - 5;";
    run("nft", &["-f", "-"], &format!("table inet {GUARD} {{\nchain forward {{\n{chain}\n{rule}\n}}\n}}\n"))?;
    Ok(set(FORWARDING, "1")?)
}

/// Has the machine forward no packets any more, if it did so for launchers alone, and none is left.
fn end_forwarding() -> Result<(), SysError> {
    let bridges = interfaces("bridge");
    let is_last = !bridges.iter().any(|name| name.starts_with(BRIDGE));
    // Without a guard the machine forwarded before.
    if !is_last || run("nft", &["delete", "table", "inet", GUARD], "").is_err() {
        return Ok(());
    }
    // Another bridge is of somebody who counts on the machine's forwarding by now.
    if bridges.is_empty() { set(FORWARDING, "0") } else { Ok(()) }
}

/// The names of the interfaces that have this in their folder of sysfs.
fn interfaces(entry: &str) -> Vec<String> {
    let folders = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let has = folders.filter(|folder| folder.path().join(entry).exists());
    has.map(|folder| folder.file_name().to_string_lossy().into_owned()).collect()
}

/// What else lets the packets of the bridge pass: Docker and some firewalls drop what is forwarded, by default.
fn forward_rules(bridge: &str) -> [Vec<&str>; 2] {
    let answers = vec!["-o", bridge, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"];
    [vec!["-i", bridge, "-j", "ACCEPT"], answers]
}

/// Networks are chosen by one launcher at a time.
fn turn() -> Result<UnixListener, SysError> {
    let name = SocketAddr::from_abstract_name("ampoule-egress").map_err(failed("name", "the turn of a launcher"))?;
    let began = Instant::now();
    loop {
        match UnixListener::bind_addr(&name) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            bound => return bound.map_err(failed("wait for", "other launchers")),
        }
    }
}

struct Route {
    interface: String,
    network: Ipv4Net,
}

/// Reads what proc(5) says of `/proc/net/route`: addresses are hexadecimal, their bytes in the order of the network.
fn read_routes(text: &str) -> Vec<Route> {
    let read = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let interface = fields.next()?.to_owned();
        let address = |field: &str| Some(Ipv4Addr::from(u32::from_str_radix(field, 16).ok()?.to_ne_bytes()));
        let (network, mask) = (address(fields.next()?)?, address(fields.nth(5)?)?);
        Some(Route { interface, network: Ipv4Net::with_netmask(network, mask).ok()? })
    };
    text.lines().skip(1).filter_map(read).collect()
}

/// A network that no route of the machine leads into; launchers with other names try in another order.
fn choose(routes: &[Route], instance: &str) -> Option<Ipv4Net> {
    let first = u8::from_str_radix(instance.get(..2).unwrap_or("0"), 16).unwrap_or(0);
    let mut networks = (0..64_u8).filter_map(|number| {
        let third = first.wrapping_add(number).wrapping_mul(4);
        Ipv4Net::new(Ipv4Addr::new(POOL[0], POOL[1], third, 0), PREFIX).ok()
    });
    let meets = |one: &Ipv4Net, other: &Ipv4Net| one.contains(other) || other.contains(one);
    let is_free = |network: &Ipv4Net| {
        !routes.iter().any(|route| route.network.prefix_len() > 0 && meets(&route.network, network))
    };
    networks.find(is_free)
}

fn gateway(network: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()) + 1)
}

fn mtu_of(interface: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).ok()?.trim().parse().ok()
}

fn set(path: &str, value: &str) -> Result<(), SysError> {
    std::fs::write(path, value).map_err(failed("set", path))
}

/// The rules, as nft(8) reads them.
fn rules(table: &str, bridge: &str, network: Ipv4Net, denied: &[Ipv4Net], nameservers: &[Ipv4Addr]) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let each = |items: Vec<String>, rule: &str| match items.is_empty() {
        true => String::new(),
        false => format!("iifname \"{bridge}\" ip daddr {{ {} }} {rule}", list(items)),
    };
    let names =
        each(nameservers.iter().map(Ipv4Addr::to_string).collect(), "meta l4proto { tcp, udp } th dport 53 accept");
    let denied = each(Ipv4Net::aggregate(&denied.to_vec()).iter().map(Ipv4Net::to_string).collect(), "reject");
    format!(
        "table inet {table} {{
            set connections {{ type ipv4_addr; size 2048; flags dynamic; }}
            chain input {{
                type filter hook input priority filter - 5;
                iifname \"{bridge}\" reject
            }}
            chain forward {{
                type filter hook forward priority filter - 5;
                iifname \"{bridge}\" meta nfproto ipv6 reject
                iifname \"{bridge}\" ct state new add @connections {{ ip saddr ct count over {CONNECTIONS_MAX} }} reject
                {names}
                {denied}
                oifname \"{bridge}\" ct state established,related accept
                oifname \"{bridge}\" reject
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ip saddr {network} oifname != \"{bridge}\" masquerade
            }}
        }}\n"
    )
}

/// Where a program of the machine is that sets rules.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    PROGRAM_FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}

fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<(), EgressError> {
    let path = find_program(program).ok_or(EgressError::NoProgram(program))?;
    let started = Command::new(path)
        .args(arguments)
        .env_clear()
        .env("PATH", PROGRAM_FOLDERS.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(failed("start", program))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read to the end says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed("wait for", program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let problem = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it failed").to_owned();
    Err(EgressError::Rules { program, problem })
}

/// What `/etc/resolv.conf` of a sandbox says.
fn resolver(nameservers: &[Ipv4Addr]) -> String {
    let machine = read_bounded(RESOLVERS[0]);
    if nameservers.is_empty() {
        return "# no name server of the machine can be reached from here; see `network.nameservers`\n".to_owned();
    }
    let is_kept = |line: &&str| line.starts_with("search ") || line.starts_with("options ");
    let lines = nameservers.iter().map(|address| format!("nameserver {address}"));
    let lines = lines.chain(machine.lines().filter(is_kept).map(str::to_owned));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// The name servers of the machine that can be reached from elsewhere than the machine.
fn machine_nameservers() -> Vec<Ipv4Addr> {
    let of = |path: &&str| {
        let text = read_bounded(path);
        let addresses = text.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok());
        addresses.filter(|address: &Ipv4Addr| !address.is_loopback()).collect::<Vec<_>>()
    };
    RESOLVERS.iter().map(of).find(|found| !found.is_empty()).unwrap_or_default()
}

fn read_bounded(path: &str) -> String {
    let mut text = String::new();
    // Without the file there are no name servers, which is told.
    let _ = std::fs::File::open(path).and_then(|file| file.take(RESOLVER_BYTES_MAX).read_to_string(&mut text));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(lines: &[&str]) -> Vec<Route> {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT";
        read_routes(&[&[head], lines].concat().join("\n"))
    }

    #[test]
    fn a_network_is_taken_that_no_route_leads_into() {
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0";
        let chosen = |lines: &[&str]| choose(&routes(lines), "01aabbcc").map(|network| network.to_string());
        assert_eq!(chosen(&[default]).as_deref(), Some("10.199.4.0/22"));
        let taken = "amp-x\t0004C70A\t00000000\t0001\t0\t0\t0\t00FCFFFF\t0\t0\t0";
        assert_eq!(chosen(&[default, taken]).as_deref(), Some("10.199.8.0/22"));
        let all = "vpn\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0";
        assert_eq!(chosen(&[default, all]), None);
    }
}
