//! Network interfaces, by rtnetlink(7): the few kinds of request that a network of sandboxes needs.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, send, socket_with};

/// Largest answer: that to a refused request holds the request.
const ANSWER_BYTES_MAX: usize = 8192;
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// A conversation with the network namespace that the calling process was in when it began.
pub(crate) struct Netlink(OwnedFd);

/// An end of a pair of interfaces that are tied together, as veth(4) has it.
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    /// What the other end is called, in the namespace of the process `peer_pid`.
    pub(crate) peer: &'a str,
    pub(crate) peer_pid: u32,
    /// The bridge that it is plugged into.
    pub(crate) bridge: u32,
    /// Largest packet, in bytes.
    pub(crate) mtu: u32,
}

impl Netlink {
    pub(crate) fn open() -> Result<Netlink, Errno> {
        let family = rustix::net::AddressFamily::NETLINK;
        socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, None).map(Netlink)
    }

    /// The index of an interface.
    pub(crate) fn index(&self, name: &str) -> Result<u32, Errno> {
        netdevice::name_to_index(self.0.as_fd(), name)
    }

    pub(crate) fn add_bridge(&self, name: &str, mtu: u32) -> Result<(), Errno> {
        let mut link = up(LinkMessage::default());
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.ask(RouteNetlinkMessage::NewLink(link), NEW)
    }

    pub(crate) fn remove(&self, index: u32) -> Result<(), Errno> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.ask(RouteNetlinkMessage::DelLink(link), 0)
    }

    pub(crate) fn set_up(&self, index: u32) -> Result<(), Errno> {
        let mut link = up(LinkMessage::default());
        link.header.index = index;
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Adds a pair of interfaces; that which is here is up.
    pub(crate) fn add_veth(&self, veth: &Veth<'_>) -> Result<(), Errno> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(veth.peer.to_owned()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::NetNsPid(veth.peer_pid),
        ];
        let mut link = up(LinkMessage::default());
        link.attributes = vec![
            LinkAttribute::IfName(veth.name.to_owned()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Controller(veth.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.ask(RouteNetlinkMessage::NewLink(link), NEW)
    }

    /// Has a bridge pass nothing from this interface to others that are isolated.
    pub(crate) fn isolate(&self, name: &str) -> Result<(), Errno> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)])),
            ]),
        ];
        self.ask(RouteNetlinkMessage::NewLink(link), 0)
    }

    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        let address = IpAddr::V4(address);
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        self.ask(RouteNetlinkMessage::NewAddress(message), NEW)
    }

    pub(crate) fn add_default_route(&self, gateway: Ipv4Addr) -> Result<(), Errno> {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
        self.ask(RouteNetlinkMessage::NewRoute(route), NEW)
    }

    /// Sends one request and hears whether it was done.
    fn ask(&self, request: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.0, &bytes, SendFlags::empty())?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        let answer =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..length]).map_err(|_| Errno::BADMSG)?;
        match answer.payload {
            NetlinkPayload::Error(error) => {
                error.code.map_or(Ok(()), |code| Err(Errno::from_raw_os_error(-code.get())))
            }
            _ => Err(Errno::BADMSG),
        }
    }
}

fn up(mut link: LinkMessage) -> LinkMessage {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}
