//! Routes of overlay networks in the host's main table: wanted beside what is there, and what to change.
//!
//! Invariants: they bear a route protocol number of Weft's own, and nothing else is touched; a destination that somebody else
//! routes already is an error that names it. Host routes to endpoints bear the number too, go with their links, and are left out here
//! (see `endpoint`).

use super::{
    Result,
    devices::mtu_of,
    netlink::{Request, RouteSocket},
};
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType,
    },
};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// `rtm_protocol` of every route that Weft makes on the host ("W"); the kernel and the usual routing daemons use other numbers
/// (`linux/rtnetlink.h`, `/etc/iproute2/rt_protos`).
pub(super) const PROTOCOL: u8 = 0x57;

/// A route of overlay networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OverlayRoute {
    /// Where to.
    pub destination: IpNetwork,
    /// Which way.
    pub way: RouteWay,
    /// Source address that the host takes.
    pub source: Option<IpAddr>,
    /// Largest packet, where it is not that of the device.
    pub mtu: Option<u32>,
}

/// The way of an [`OverlayRoute`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteWay {
    /// Over the VXLAN device, whose programs know the peer.
    Device,
    /// By a peer that shares a segment of the underlay.
    Peer {
        /// Its address.
        gateway: IpAddr,
        /// Index of the device on that segment.
        ifindex: u32,
    },
    /// Nowhere: senders are told so at once.
    Unreachable,
}

impl fmt::Display for OverlayRoute {
    /// As `ip route` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.way {
            RouteWay::Device => write!(f, "{} dev {}", self.destination, super::OVERLAY_DEVICE)?,
            RouteWay::Peer { gateway, .. } => write!(f, "{} via {gateway}", self.destination)?,
            RouteWay::Unreachable => write!(f, "unreachable {}", self.destination)?,
        }
        self.source.map_or(Ok(()), |source| write!(f, " src {source}"))?;
        self.mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
    }
}

/// What has to change: what goes, and what comes instead, destination by destination.
pub(super) fn changes(wanted: &[OverlayRoute], there: &[OverlayRoute], device: u32) -> Vec<Request> {
    let wanted_at: BTreeMap<IpNetwork, &OverlayRoute> = wanted.iter().map(|r| (r.destination, r)).collect();
    let mut kept = BTreeMap::new();
    let mut requests = Vec::new();
    for route in there {
        let stays = wanted_at.get(&route.destination).is_some_and(|w| *w == route);
        if !stays || kept.insert(route.destination, ()).is_some() {
            requests.push((route.destination, remove(route, device)));
        }
    }
    for route in wanted_at.values().filter(|r| !kept.contains_key(&r.destination)) {
        requests.push((route.destination, add(route, device)));
    }
    // Stable: of one destination, what goes goes first, and nothing comes between it and what comes.
    requests.sort_by_key(|(destination, _)| *destination);
    requests.into_iter().map(|(_, request)| request).collect()
}

fn message(route: &OverlayRoute, device: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let v4 = route.destination.is_ipv4();
    message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = route.destination.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    match route.way {
        RouteWay::Device => {
            if v4 {
                message.header.scope = RouteScope::Link;
            }
            message.attributes.push(RouteAttribute::Oif(device));
        }
        RouteWay::Peer { gateway, ifindex } => {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
            message.attributes.push(RouteAttribute::Oif(ifindex));
        }
        RouteWay::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    message
}

fn add(route: &OverlayRoute, device: u32) -> Request {
    let mut message = message(route, device);
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new(RouteNetlinkMessage::NewRoute(message), flags, "add route", route.to_string())
}

fn remove(route: &OverlayRoute, device: u32) -> Request {
    let message = RouteNetlinkMessage::DelRoute(message(route, device));
    Request::new(message, 0, "remove route", route.to_string()).tolerate(&[libc::ESRCH, libc::ENODEV])
}

/// Weft's routes of the main table, in order, but those to endpoints. `device`: the VXLAN device, if there is one.
pub(super) fn list(socket: &mut RouteSocket, device: Option<u32>) -> Result<Vec<OverlayRoute>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.protocol = RouteProtocol::from(PROTOCOL);
        let request = Request::new(RouteNetlinkMessage::GetRoute(filter), 0, "list", "routes of Weft")
            .tolerate(&[libc::EAFNOSUPPORT, libc::ENOENT, libc::EOPNOTSUPP]);
        found.extend(socket.dump(&request)?.into_iter().filter_map(|m| read(m, device)));
    }
    found.sort_unstable();
    Ok(found)
}

fn read(message: RouteNetlinkMessage, device: Option<u32>) -> Option<OverlayRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    if header.protocol != RouteProtocol::from(PROTOCOL) || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut destination: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let (mut oif, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => mtu = mtu_of(metrics),
            _ => {}
        }
    }
    let way = match (header.kind, gateway, oif) {
        (RouteType::Unreachable, _, _) => RouteWay::Unreachable,
        (RouteType::Unicast, Some(gateway), Some(ifindex)) => RouteWay::Peer { gateway, ifindex },
        (RouteType::Unicast, None, over) if over.is_some() && over == device => RouteWay::Device,
        _ => return None,
    };
    let destination = IpNetwork::new(destination, header.destination_prefix_length).ok()?;
    Some(OverlayRoute { destination, way, source, mtu })
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, way: RouteWay) -> OverlayRoute {
        OverlayRoute { destination: destination.parse().unwrap(), way, source: None, mtu: None }
    }

    /// What the requests say they do.
    fn words(requests: &[Request]) -> Vec<String> {
        requests.iter().map(Request::words).collect()
    }

    #[test]
    fn only_what_differs_is_changed_and_a_gap_is_short() {
        let peer = |last: u8| RouteWay::Peer { gateway: Ipv4Addr::new(192, 0, 2, last).into(), ifindex: 2 };
        let there = [
            route("10.1.0.0/16", RouteWay::Device),
            route("10.1.0.64/26", peer(7)),
            route("10.1.0.128/26", RouteWay::Unreachable),
            route("10.2.0.0/16", RouteWay::Device),
        ];
        assert_eq!(words(&changes(&there, &there, 9)), [""; 0]);
        let wanted = [
            route("10.1.0.0/16", RouteWay::Device),
            route("10.1.0.64/26", peer(8)),
            route("10.1.0.192/26", RouteWay::Unreachable),
            OverlayRoute { mtu: Some(1400), ..there[3] },
        ];
        assert_eq!(
            words(&changes(&wanted, &there, 9)),
            [
                "remove route 10.1.0.64/26 via 192.0.2.7",
                "add route 10.1.0.64/26 via 192.0.2.8",
                "remove route unreachable 10.1.0.128/26",
                "add route unreachable 10.1.0.192/26",
                "remove route 10.2.0.0/16 dev wf-vxlan",
                "add route 10.2.0.0/16 dev wf-vxlan mtu 1400",
            ]
        );
        assert_eq!(changes(&[], &there, 9).len(), 4);
    }

    #[test]
    fn one_destination_is_routed_once() {
        let twice = [route("10.1.0.0/16", RouteWay::Device), route("10.1.0.0/16", RouteWay::Device)];
        assert_eq!(words(&changes(&twice[..1], &twice, 9)), ["remove route 10.1.0.0/16 dev wf-vxlan"]);
    }
}
