//! The host's route to one address of an endpoint whose host end is in no bridge.
//!
//! It goes with the link that it leads over, and with the source address that it names.

use super::{
    Result,
    netlink::{Request, RouteSocket},
    overlay_routes::{PROTOCOL, ip},
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use std::net::IpAddr;

fn message(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, length) =
        if address.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message
}

/// Routes an address over a link. What else led there (an endpoint's end that is on its way out) leads there no more.
pub(super) fn set(address: IpAddr, source: Option<IpAddr>, ifindex: u32, ifname: &str) -> Request {
    let mut message = message(address);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = if address.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.attributes.push(RouteAttribute::Oif(ifindex));
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let object = format!("{address} over {ifname}");
    Request::new(RouteNetlinkMessage::NewRoute(message), flags, "set host route", object)
}

/// Whether the route to an address is the one that [`set`] makes.
pub(super) fn has(
    socket: &mut RouteSocket,
    address: IpAddr,
    source: Option<IpAddr>,
    ifindex: u32,
) -> Result<bool> {
    let mut query = message(address);
    query.header.flags = RouteFlags::FibMatch;
    let request = Request::new(RouteNetlinkMessage::GetRoute(query), 0, "find route", address.to_string())
        .tolerate(&[libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL]);
    let answers = socket.run(&[request])?.into_iter().flatten();
    let found = answers.filter_map(|m| if let RouteNetlinkMessage::NewRoute(m) = m { Some(m) } else { None });
    let full = if address.is_ipv4() { 32 } else { 128 };
    let is_ours = |m: RouteMessage| {
        let names = |wanted: &dyn Fn(&RouteAttribute) -> bool| m.attributes.iter().any(wanted);
        m.header.destination_prefix_length == full
            && names(&|a| matches!(a, RouteAttribute::Oif(index) if *index == ifindex))
            && source.is_none_or(|source| {
                names(&|a| matches!(a, RouteAttribute::PrefSource(s) if ip(s) == Some(source)))
            })
    };
    Ok(found.into_iter().any(is_ours))
}
