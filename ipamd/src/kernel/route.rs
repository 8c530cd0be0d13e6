//! Routes inside a sandbox, and which route a packet takes.
//!
//! Invariant: a route that is there already stays as it is; the first network of a sandbox keeps the default route.

use super::{
    Result, Way, WayQuery,
    netlink::{Refusal, Reply, Request, RouteSocket, refused},
};
use ipamd_api::Route;
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Adds a route over a link.
pub(super) fn add(route: &Route, ifindex: u32, ifname: &str) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(&route.dst);
    message.header.destination_prefix_length = route.dst.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match (route.gw, &route.dst) {
        (None, IpNetwork::V4(_)) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    message.attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    message.attributes.push(RouteAttribute::Oif(ifindex));
    if let Some(gateway) = route.gw {
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let object = format!("{} to {ifname}", describe(route));
    Request::new(RouteNetlinkMessage::NewRoute(message), flags, "add route", object)
}

/// Which routes were added, of the replies to [`add`].
pub(super) fn added(routes: &[Route], ifname: &str, replies: Vec<Reply>) -> Result<Vec<Route>> {
    let outcomes = routes.iter().zip(replies);
    let kept = outcomes.filter_map(|(route, reply)| match reply.outcome {
        Ok(()) => Some(Ok(route.clone())),
        Err(Refusal { errno: libc::EEXIST, .. }) => None,
        Err(refusal) => {
            let object = format!("{} to {ifname}", describe(route));
            Some(Err(refused("add route", &object, refusal.into())))
        }
    });
    kept.collect()
}

/// A route as `ip route` writes it.
pub(crate) fn describe(route: &Route) -> String {
    let dst = if route.dst.prefix() == 0 { "default".to_owned() } else { route.dst.to_string() };
    route.gw.map_or_else(|| dst.clone(), |gateway| format!("{dst} via {gateway}"))
}

fn family(network: &IpNetwork) -> AddressFamily {
    if network.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Routes of the main table over a link, beside those the kernel made itself.
pub(super) fn list(socket: &mut RouteSocket, ifindex: u32, ifname: &str) -> Result<Vec<Route>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.table = RouteHeader::RT_TABLE_MAIN;
        filter.attributes.push(RouteAttribute::Oif(ifindex));
        let request = Request::new(RouteNetlinkMessage::GetRoute(filter), 0, "list the routes of", ifname)
            .tolerate(&[libc::ENODEV, libc::ENOENT, libc::EAFNOSUPPORT]);
        found.extend(socket.dump(&request)?.into_iter().filter_map(|m| read(m, ifindex)));
    }
    Ok(found)
}

fn read(message: RouteNetlinkMessage, ifindex: u32) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    let made_by_kernel = matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    if made_by_kernel || header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut dst, mut gw, mut over) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address),
            RouteAttribute::Gateway(address) => gw = ip(address),
            RouteAttribute::Oif(index) => over = Some(*index),
            _ => {}
        }
    }
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let dst = IpNetwork::new(dst.unwrap_or(any), header.destination_prefix_length).ok()?;
    (over == Some(ifindex)).then_some(Route { dst, gw })
}

/// The way of a packet, as `ip route get` tells it.
pub(super) fn way(socket: &mut RouteSocket, query: &WayQuery) -> Result<Way> {
    let mut message = RouteMessage::default();
    let bits = if query.destination.is_ipv4() { 32 } else { 128 };
    message.header.address_family =
        if query.destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(query.destination.into()));
    if let Some(source) = query.source {
        message.header.source_prefix_length = bits;
        message.attributes.push(RouteAttribute::Source(source.into()));
    }
    if let Some(ifindex) = query.came_by {
        message.attributes.push(RouteAttribute::Iif(ifindex));
    }
    let object = query.destination.to_string();
    let request = [Request::new(RouteNetlinkMessage::GetRoute(message), 0, "find the route to", &object)];
    let replies = socket.exchange(&request).map_err(|cause| refused("find the route to", &object, cause))?;
    let Some(reply) = replies.into_iter().next() else { return Ok(Way::None("no answer".to_owned())) };
    if let Err(refusal) = reply.outcome {
        return Ok(Way::None(refusal.to_string()));
    }
    let found = reply.answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(message) => Some(way_of(&message)),
        _ => None,
    });
    Ok(found.unwrap_or_else(|| Way::None("no route".to_owned())))
}

fn way_of(message: &RouteMessage) -> Way {
    let (mut ifindex, mut gateway) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = *index,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    match message.header.kind {
        RouteType::Local => Way::Local,
        RouteType::Unicast => Way::Out { ifindex, gateway },
        kind => Way::None(format!("{kind:?}").to_lowercase()),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
