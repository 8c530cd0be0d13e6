//! The devices of the node with their addresses and the routes that matter, in one look.
//!
//! Only reads, and decides nothing: see [`crate::uplinks`]. The three lists are taken one after another, so an address may name a
//! device that is not among the links; [`super::HostWatch`] tells of whatever changed meanwhile.

use super::{
    Result, link,
    netlink::{Request, RouteSocket},
    overlay_routes::{self, ip},
};
use ipamd_api::EndpointId;
use ipnetwork::IpNetwork;
use netlink_packet_core::NlasIterator;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::LinkLayerType,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteVia},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the node has, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostDevices {
    /// All devices of ipamd's namespace, Weft's among them.
    pub links: Vec<HostLink>,
    /// All addresses, in the kernel's order: of one device, the first is the one the kernel prefers.
    pub addresses: Vec<HostAddress>,
    /// Default routes, and others that name a source address; one for each next hop.
    pub routes: Vec<HostRoute>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLink {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Index of the bridge, bond, VRF it belongs to.
    pub master: Option<u32>,
    /// What its packets begin with.
    pub layer: LinkLayer,
    /// Kind as `ip -details link` prints it (`bridge`, `veth`, `vxlan`, `wireguard`); `None`: hardware, mostly.
    pub kind: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// What a packet of a device begins with, as a program on it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tun, WireGuard, PPP, IP tunnels. These are the types of `dev_is_mac_header_xmit` (`linux/if_arp.h`).
    Ip,
    /// The loopback device.
    Loopback,
    /// No IP packet, or behind a header that Weft does not know (CAN, InfiniBand, monitors).
    Other,
}

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostAddress {
    /// The device.
    pub ifindex: u32,
    /// The address with the prefix length of its subnet.
    pub address: IpNetwork,
    /// How far it is valid.
    pub scope: Scope,
    /// Can be used: duplicate address detection is over (or optimistic), and found no other holder.
    pub usable: bool,
    /// Not to be used for new connections (RFC 4862); IPv6.
    pub deprecated: bool,
    /// Made for privacy, and gone in a day (RFC 8981); IPv6.
    pub temporary: bool,
    /// Not the first one of its subnet; IPv4.
    pub secondary: bool,
}

/// How far an address is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everywhere, or within the site.
    Global,
    /// On the link.
    Link,
    /// On the host.
    Host,
}

/// A route over a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRoute {
    /// The device.
    pub ifindex: u32,
    /// Where to; prefix length 0 is the default route.
    pub destination: IpNetwork,
    /// Next hop, if it is of the destination's family.
    pub gateway: Option<IpAddr>,
    /// Source address that the route asks for.
    pub source: Option<IpAddr>,
    /// Metric; the lowest wins.
    pub metric: u32,
    /// MTU that the route asks for, bytes.
    pub mtu: Option<u32>,
    /// In the table `main`, not in one that only policy routing uses.
    pub main: bool,
}

/// Whether a device is Weft's own, by its name: a network's bridge, an overlay device, the host end of an endpoint.
pub fn is_weft_device(name: &str) -> bool {
    name.starts_with("wf-") || EndpointId::of_host_ifname(name).is_some()
}

/// See [`Kernel::host_devices`](super::Kernel::host_devices).
pub(super) fn look(socket: &mut RouteSocket) -> Result<HostDevices> {
    let links = link::list(socket)?.into_iter().map(host_link).collect();
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let request = Request::new(request, 0, "list", "addresses");
    let addresses = socket.dump_as(&request, |_| true, read_address)?;
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let request = Request::new(RouteNetlinkMessage::GetRoute(filter), 0, "list", "routes").tolerate(&[
            libc::EAFNOSUPPORT,
            libc::ENOENT,
            libc::EOPNOTSUPP,
        ]);
        routes.extend(socket.dump_as(&request, route_matters, read_route)?.into_iter().flatten());
    }
    Ok(HostDevices { links, addresses, routes })
}

fn host_link(link: link::Link) -> HostLink {
    HostLink {
        ifindex: link.index,
        name: link.name,
        up: link.up,
        master: link.master,
        layer: layer(link.layer),
        kind: link.kind.map(|kind| kind.to_string()),
        mtu: link.mtu,
    }
}

fn layer(kind: LinkLayerType) -> LinkLayer {
    match kind {
        LinkLayerType::Ether => LinkLayer::Ethernet,
        LinkLayerType::Loopback => LinkLayer::Loopback,
        LinkLayerType::None
        | LinkLayerType::Ppp
        | LinkLayerType::Rawip
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre => LinkLayer::Ip,
        _ => LinkLayer::Other,
    }
}

fn read_address(message: RouteNetlinkMessage) -> Option<HostAddress> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let header = &message.header;
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    let (mut own, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // Of a point-to-point address `Address` is the peer; IPv6 has only `Address` as a rule.
            AddressAttribute::Local(ip) => own = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = own.or(peer)?;
    let undecided = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    let second = flags.contains(AddressFlags::Secondary);
    Some(HostAddress {
        ifindex: header.index,
        address: IpNetwork::new(ip, header.prefix_len).ok()?,
        scope: scope(header.scope),
        usable: !undecided && !flags.contains(AddressFlags::Dadfailed),
        deprecated: flags.contains(AddressFlags::Deprecated),
        // One bit, two meanings (IFA_F_SECONDARY, IFA_F_TEMPORARY in `linux/if_addr.h`).
        temporary: second && ip.is_ipv6(),
        secondary: second && ip.is_ipv4(),
    })
}

fn scope(scope: AddressScope) -> Scope {
    match u8::from(scope) {
        ..=252 => Scope::Global,
        253 => Scope::Link,
        254.. => Scope::Host,
    }
}

/// Whether a route can matter, from the bytes of its message: there may be a million others. The kernel's own are routes to
/// connected subnets, which say no more than the addresses do. Weft's own lead to its own devices or to peers, and one comes with each
/// endpoint of an overlay network.
pub(super) fn route_matters(payload: &[u8]) -> bool {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type; flags.
    let Some((&[_, prefix, _, _, _, protocol, _, kind, ..], attributes)) = payload.split_first_chunk::<12>()
    else {
        return false;
    };
    let names_source = || NlasIterator::new(attributes).flatten().any(|a| a.kind() == libc::RTA_PREFSRC);
    let others = protocol != libc::RTPROT_KERNEL && protocol != overlay_routes::PROTOCOL;
    kind == libc::RTN_UNICAST && (prefix == 0 || (others && names_source()))
}

/// One for each next hop.
fn read_route(message: RouteNetlinkMessage) -> Option<Vec<HostRoute>> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut destination, mut source, mut metric, mut table) = (any, None, 0, u32::from(header.table));
    let (mut hops, mut mtu) = (Vec::new(), None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(ifindex) => hops.push((*ifindex, gateway(&message.attributes))),
            RouteAttribute::MultiPath(each) => {
                hops.extend(each.iter().map(|hop| (hop.interface_index, gateway(&hop.attributes))));
            }
            RouteAttribute::Metrics(metrics) => mtu = mtu_of(metrics),
            _ => {}
        }
    }
    let destination = IpNetwork::new(destination, header.destination_prefix_length).ok()?;
    let main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    let route = |(ifindex, gateway): (u32, Option<IpAddr>)| {
        let gateway = gateway.filter(|g| g.is_ipv4() == destination.is_ipv4());
        HostRoute { ifindex, destination, gateway, source, metric, mtu, main }
    };
    Some(hops.into_iter().map(route).collect())
}

/// The MTU among the metrics of a route.
pub(super) fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_devices_are_known_by_name() {
        for own in ["wf-1", "wf-vxlan", "wf0123456789ab"] {
            assert!(is_weft_device(own), "{own}");
        }
        for other in ["wf", "wfoo0", "wf0123456789a", "wf0123456789abc", "eth0", "docker0"] {
            assert!(!is_weft_device(other), "{other}");
        }
    }

    /// A `struct rtmsg` with attributes of these types, each of four bytes.
    fn message(prefix: u8, protocol: u8, kind: u8, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2, prefix, 0, 0, 254, protocol, 0, kind, 0, 0, 0, 0];
        for attribute in attributes {
            bytes.extend([8, 0, *attribute, 0, 10, 0, 0, 1]);
        }
        bytes
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_that_decide_nothing_are_not_read() {
        let cases = [
            ("default", message(0, 3, 1, &[4, 5]), true),
            ("default that the kernel made", message(0, 2, 1, &[4]), true),
            ("with a source", message(24, 4, 1, &[1, 4, 7]), true),
            ("without", message(24, 4, 1, &[1, 4]), false),
            ("connected", message(24, 2, 1, &[1, 4, 7]), false),
            ("of Weft", message(32, 87, 1, &[1, 4, 7]), false),
            ("local", message(32, 2, 2, &[1, 4, 7]), false),
            ("unreachable default", message(0, 4, 7, &[]), false),
            ("cut short", vec![2, 0, 0, 0, 254, 3, 0, 1], false),
        ];
        for (what, bytes, matters) in cases {
            assert_eq!(route_matters(&bytes), matters, "{what}");
        }
    }
}
