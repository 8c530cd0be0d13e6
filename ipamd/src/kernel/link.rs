//! Links: the messages that make, change and remove them, and what Weft reads of one.
//!
//! Only builds and reads messages; whoever sends them decides on order and rollback.

use super::{
    LinkObserved, Result,
    netlink::{Request, RouteSocket, refused},
};
use ipamd_api::{EndpointId, MacAddr};
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoBridgePort,
        InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask,
        LinkFlags, LinkInfo, LinkLayerType, LinkMessage, MacVlanMode,
    },
};
use rtnetlink::{LinkBridge, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVxlan};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `IFF_UP` of `lo`, in whatever namespace the socket is in.
pub(super) fn loopback_up() -> Request {
    let message = LinkUnspec::new_with_name("lo").up().build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "bring up", "lo")
}

/// Makes a veth pair, both ends down: the host end in its bridge (or, with a MAC of its own, in none), the other one inside the
/// sandbox. (The kernel refuses to bring an end up before the pair is whole, so this cannot be had in one message.)
pub(super) fn create_veth(wanted: &super::EndpointWiring, sandbox: BorrowedFd<'_>, bridge: u32) -> Request {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(wanted.ifname.clone())
        .address(wanted.mac.0.to_vec())
        .mtu(wanted.mtu)
        .setns_by_fd(sandbox.as_raw_fd())
        .build();
    let end = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
        .name(wanted.host_ifname.clone())
        .mtu(wanted.mtu);
    let end = match &wanted.routed {
        Some(routed) => end.address(routed.mac.0.to_vec()),
        None => end.controller(bridge),
    };
    let message = end.set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
    let object = format!("{} with {} in its sandbox", wanted.host_ifname, wanted.ifname);
    Request::new(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, "create veth", object)
}

/// Makes a macvlan device inside the sandbox.
pub(super) fn create_macvlan(
    wanted: &super::EndpointWiring,
    sandbox: BorrowedFd<'_>,
    parent: u32,
) -> Request {
    let message = LinkMacVlan::new(&wanted.ifname, parent, MacVlanMode::Bridge)
        .address(wanted.mac.0.to_vec())
        .mtu(wanted.mtu)
        .setns_by_fd(sandbox.as_raw_fd())
        .build();
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new(RouteNetlinkMessage::NewLink(message), flags, "create macvlan", &*wanted.ifname)
}

/// Makes the host end a silent, non-learning port. Silent: the host's stack has no address on it and sends nothing there.
/// Non-learning: what the programs redirect never passes the bridge, so learned entries would age and then flood. Hairpin: where
/// br_netfilter translates on the bridge, a container that is its own backend is reached by the port it came from; `to_pod`
/// stops what a container would hear of its own broadcasts.
pub(super) fn configure_port(host_ifname: &str, alias: &str) -> Request {
    let message = LinkUnspec::new_with_name(host_ifname)
        .alias(alias)
        .append_extra_attribute(no_link_local())
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(true),
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(true),
            InfoBridgePort::BroadcastFlood(true),
            InfoBridgePort::NeighSupress(false),
            InfoBridgePort::Isolated(false),
        ]))
        .build();
    // SETLINK would ignore the port's settings; NEWLINK without CREATE changes the link that is there.
    Request::new(RouteNetlinkMessage::NewLink(message), 0, "configure bridge port", host_ifname)
}

fn no_link_local() -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![without_link_local()])
}

fn without_link_local() -> AfSpecUnspec {
    AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])
}

/// Settings of IPv4 by their number (`IPV4_DEVCONF_*` in `linux/ip.h`), and what they are on a host end that is in no bridge: a
/// container answers no ARP of others and hears no redirects, and its packets may come back another way than they went.
const OF_ROUTED_END: [(u16, u32); 4] = [(3, 0), (4, 0), (6, 0), (8, 2)];

/// The one that depends: `forwarding`.
const FORWARDING: u16 = 1;

/// `IFLA_INET_CONF` (`linux/if_link.h`).
const INET_CONF: u16 = 1;

/// Below this MTU a device has no IPv6, nor settings of it (RFC 8200, section 5).
const MTU_IPV6: u32 = 1280;

/// Makes the host end of an endpoint one that the host routes to: in one message, since each file of `/proc/sys` that is written
/// costs a turn of the kernel's big network lock.
pub(super) fn configure_end(wanted: &super::EndpointWiring, end: &super::RoutedEnd) -> Request {
    let host_ifname = wanted.host_ifname.as_str();
    let settings = OF_ROUTED_END.into_iter().chain([(FORWARDING, u32::from(end.forward))]);
    let mut conf = Vec::new();
    for (number, value) in settings {
        conf.extend(8_u16.to_ne_bytes());
        conf.extend(number.to_ne_bytes());
        conf.extend(value.to_ne_bytes());
    }
    let inet = AfSpecInet::Other(DefaultNla::new(INET_CONF | NLA_F_NESTED, conf));
    let mut settings = vec![AfSpecUnspec::Inet(vec![inet])];
    settings.extend((wanted.mtu >= MTU_IPV6).then(without_link_local));
    let message = LinkUnspec::new_with_name(host_ifname)
        .alias(&wanted.alias)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(settings))
        .build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "configure", host_ifname)
}

/// Makes the VXLAN device. IPv6 peers may leave the outer UDP checksum out (RFC 6935): the inner ones are there.
pub(super) fn create_vxlan(name: &str, mac: MacAddr, port: u16) -> Request {
    let message = LinkMessageBuilder::<LinkVxlan>::new(name)
        .address(mac.0.to_vec())
        .append_info_data(InfoVxlan::CollectMetadata(true))
        .append_info_data(InfoVxlan::Learning(false))
        .append_info_data(InfoVxlan::Port(port))
        .append_info_data(InfoVxlan::UDPZeroCsumRX(true))
        .build();
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new(RouteNetlinkMessage::NewLink(message), flags, "create VXLAN device", name)
}

/// Lets the stack ask for no neighbours on it: `to_overlay` knows them all.
pub(super) fn configure_vxlan(name: &str) -> Request {
    let message = LinkUnspec::new_with_name(name).arp(false).append_extra_attribute(no_link_local()).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "configure VXLAN device", name)
}

/// Puts a link into a bridge.
pub(super) fn set_master(ifname: &str, bridge: u32) -> Request {
    let message = LinkUnspec::new_with_name(ifname).controller(bridge).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "put into its bridge", ifname)
}

/// Brings a link up.
pub(super) fn up(ifindex: u32, ifname: &str) -> Request {
    let message = LinkUnspec::new_with_index(ifindex).up().build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "bring up", ifname)
}

/// Changes the MTU.
pub(super) fn set_mtu(ifname: &str, mtu: u32) -> Request {
    let message = LinkUnspec::new_with_name(ifname).mtu(mtu).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "set the MTU of", ifname)
}

/// Changes the MAC.
pub(super) fn set_mac(ifname: &str, mac: MacAddr) -> Request {
    let message = LinkUnspec::new_with_name(ifname).address(mac.0.to_vec()).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "set the MAC of", ifname)
}

/// Puts a link into a group, for [`delete_group`].
pub(super) fn set_group(ifname: &str, group: u32) -> Request {
    let message = LinkUnspec::new_with_name(ifname).link_group(group).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "set the group of", ifname)
        .tolerate(&[libc::ENODEV])
}

/// Removes a link; success when it is gone already.
pub(super) fn delete(ifname: &str) -> Request {
    let message = LinkUnspec::new_with_name(ifname).build();
    Request::new(RouteNetlinkMessage::DelLink(message), 0, "remove link", ifname).tolerate(&[libc::ENODEV])
}

/// Removes a link by index.
pub(super) fn delete_index(ifindex: u32, ifname: &str) -> Request {
    let message = LinkUnspec::new_with_index(ifindex).build();
    Request::new(RouteNetlinkMessage::DelLink(message), 0, "remove link", ifname).tolerate(&[libc::ENODEV])
}

/// Removes all links of a group, in one pass of the kernel's slow teardown.
pub(super) fn delete_group(group: u32) -> Request {
    let message = LinkMessageBuilder::<LinkUnspec>::new().link_group(group).build();
    Request::new(RouteNetlinkMessage::DelLink(message), 0, "remove the links of group", group.to_string())
        .tolerate(&[libc::ENODEV])
}

/// Settings of a bridge that Weft cannot work with: spanning tree, VLANs, and snooping, which keeps neighbour discovery from
/// ports. A kernel without one of them shows nothing, or refuses even to switch it off: so only what is on is changed.
const UNWANTED: [InfoBridge; 3] = [
    InfoBridge::MulticastSnooping(true),
    InfoBridge::StpState(BridgeStpState::KernelStp),
    InfoBridge::VlanFiltering(true),
];

/// Makes a bridge. Its MTU is set afterwards: one that is set at creation does not count as set by hand, and the kernel
/// would change it with the ports.
pub(super) fn create_bridge(name: &str, mac: MacAddr) -> Request {
    let message = LinkBridge::new(name).address(mac.0.to_vec()).mcast_snooping(false).build();
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new(RouteNetlinkMessage::NewLink(message), flags, "create bridge", name)
}

/// Sets MAC and settings of a bridge that is there.
pub(super) fn configure_bridge(there: &Link, mac: MacAddr) -> Request {
    let mut builder = LinkBridge::new(&there.name).address(mac.0.to_vec());
    for setting in &there.bridge {
        builder = match setting {
            InfoBridge::MulticastSnooping(true) => builder.mcast_snooping(false),
            InfoBridge::VlanFiltering(true) => builder.vlan_filtering(false),
            InfoBridge::StpState(state) if *state != BridgeStpState::Disabled => {
                builder.stp_state(BridgeStpState::Disabled)
            }
            _ => builder,
        };
    }
    Request::new(RouteNetlinkMessage::NewLink(builder.build()), 0, "configure bridge", &*there.name)
}

/// Asks for one link.
pub(super) fn get(ifname: &str) -> Request {
    let message = LinkUnspec::new_with_name(ifname).append_extra_attribute(without_statistics()).build();
    Request::new(RouteNetlinkMessage::GetLink(message), 0, "find link", ifname)
}

fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// A link as read.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Option<MacAddr>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) layer: LinkLayerType,
    pub(super) master: Option<u32>,
    /// The other end of a veth, the parent of a macvlan.
    pub(super) link: Option<u32>,
    pub(super) kind: Option<InfoKind>,
    /// Number of the namespace that `link` is in, as the link's own namespace knows it.
    pub(super) link_netns: Option<i32>,
    pub(super) alias: Option<String>,
    /// It asks for no neighbours.
    pub(super) noarp: bool,
    pub(super) vxlan: Vec<InfoVxlan>,
    bridge: Vec<InfoBridge>,
}

impl Link {
    fn read(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            layer: message.header.link_layer_type,
            master: None,
            link: None,
            kind: None,
            link_netns: None,
            alias: None,
            noarp: message.header.flags.contains(LinkFlags::Noarp),
            vxlan: Vec::new(),
            bridge: Vec::new(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddr),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(master) => link.master = Some(master),
                LinkAttribute::Link(other) => link.link = Some(other),
                LinkAttribute::LinkNetNsId(number) => link.link_netns = Some(number),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind),
                            LinkInfo::Data(InfoData::Bridge(settings)) => link.bridge = settings,
                            LinkInfo::Data(InfoData::Vxlan(settings)) => link.vxlan = settings,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }

    /// Whether a bridge has no setting that Weft cannot work with.
    pub(super) fn is_plain_bridge(&self) -> bool {
        !self.bridge.iter().any(|setting| UNWANTED.contains(setting))
    }

    /// As it is told to others.
    pub(super) fn observed(&self, master: Option<String>) -> LinkObserved {
        LinkObserved {
            ifindex: self.index,
            name: self.name.clone(),
            mac: self.mac,
            mtu: self.mtu,
            up: self.up,
            master,
        }
    }
}

/// The link in an answer.
pub(super) fn of_answer(answers: Vec<RouteNetlinkMessage>) -> Option<Link> {
    answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::read(message)),
        _ => None,
    })
}

/// The link of this name, if there is one.
pub(super) fn find(socket: &mut RouteSocket, ifname: &str) -> Result<Option<Link>> {
    let answers = socket.run(&[get(ifname).tolerate(&[libc::ENODEV])])?;
    Ok(answers.into_iter().next().and_then(of_answer))
}

/// The link of this name; an error if there is none.
pub(super) fn require(socket: &mut RouteSocket, ifname: &str) -> Result<Link> {
    find(socket, ifname)?
        .ok_or_else(|| refused("find link", ifname, io::Error::from_raw_os_error(libc::ENODEV)))
}

/// All links of the namespace.
pub(super) fn list(socket: &mut RouteSocket) -> Result<Vec<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(without_statistics());
    let request = Request::new(RouteNetlinkMessage::GetLink(message), 0, "list", "links");
    socket.dump_as(
        &request,
        |_| true,
        |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::read(message)),
            _ => None,
        },
    )
}

/// Host ends of endpoints among links.
pub(super) fn endpoints(links: &[Link]) -> Vec<(EndpointId, u32)> {
    let veths = links.iter().filter(|l| l.kind == Some(InfoKind::Veth));
    veths.filter_map(|l| Some((EndpointId::of_host_ifname(&l.name)?, l.index))).collect()
}
