//! Forwarding entries of a bridge, and neighbours on a bridge or on an end that is in none.
//!
//! Both are fixed, because packets that the programs redirect never refresh a learned one.

use super::{
    Result,
    netlink::{Request, RouteSocket},
};
use ipamd_api::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};
use std::net::IpAddr;

fn fdb(port: u32, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn neighbour(bridge: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = bridge;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

/// Sets the static forwarding entry of a port. `NOARP` is what the kernel calls static; `PERMANENT` would mean the bridge's
/// own address.
pub(super) fn set_fdb(port: u32, ifname: &str, mac: MacAddr) -> Request {
    let mut message = fdb(port, mac);
    message.header.state = NeighbourState::Noarp;
    let object = format!("{mac} of {ifname}");
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Request::new(RouteNetlinkMessage::NewNeighbour(message), flags, "set forwarding entry", object)
}

/// Sets a permanent neighbour on a bridge.
pub(super) fn set(bridge: u32, name: &str, address: IpAddr, mac: MacAddr) -> Request {
    let mut message = neighbour(bridge, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let object = format!("{address} on {name}");
    Request::new(RouteNetlinkMessage::NewNeighbour(message), flags, "set neighbour", object)
}

/// Removes a neighbour; success when it is gone already.
pub(super) fn delete(bridge: u32, name: &str, address: IpAddr) -> Request {
    let object = format!("{address} on {name}");
    let message = RouteNetlinkMessage::DelNeighbour(neighbour(bridge, address));
    Request::new(message, 0, "remove neighbour", object).tolerate(&[libc::ENOENT, libc::ENODEV, libc::EINVAL])
}

/// Whether the port has the static forwarding entry.
pub(super) fn has_fdb(socket: &mut RouteSocket, port: u32, mac: MacAddr) -> Result<bool> {
    let request = Request::new(
        RouteNetlinkMessage::GetNeighbour(fdb(port, mac)),
        0,
        "find forwarding entry",
        mac.to_string(),
    )
    .tolerate(&[libc::ENOENT, libc::ENODEV, libc::EINVAL, libc::EOPNOTSUPP]);
    let answers = socket.run(&[request])?.into_iter().flatten();
    Ok(of(answers).any(|m| m.header.ifindex == port && m.header.state == NeighbourState::Noarp))
}

/// Whether the bridge has the permanent neighbour.
pub(super) fn has(socket: &mut RouteSocket, bridge: u32, address: IpAddr, mac: MacAddr) -> Result<bool> {
    let message = RouteNetlinkMessage::GetNeighbour(neighbour(bridge, address));
    let request = Request::new(message, 0, "find neighbour", address.to_string())
        .tolerate(&[libc::ENOENT, libc::ENODEV]);
    let answers = socket.run(&[request])?.into_iter().flatten();
    let wanted = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
    Ok(of(answers).any(|m| m.header.state == NeighbourState::Permanent && m.attributes.contains(&wanted)))
}

/// The permanent neighbours of a link.
pub(super) fn permanent(socket: &mut RouteSocket, ifindex: u32) -> Result<Vec<(IpAddr, MacAddr)>> {
    let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let neighbours = of(socket.dump(&Request::new(message, 0, "list", "neighbours"))?.into_iter());
    let ours =
        neighbours.filter(|m| m.header.ifindex == ifindex && m.header.state == NeighbourState::Permanent);
    Ok(ours.filter_map(|m| Some((address_of(&m)?, mac_of(&m)?))).collect())
}

/// MAC of the static forwarding entry of a port, if it has one.
pub(super) fn fdb_of(socket: &mut RouteSocket, port: u32) -> Result<Option<MacAddr>> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    let request = Request::new(RouteNetlinkMessage::GetNeighbour(message), 0, "list", "forwarding entries");
    let entries = of(socket.dump(&request)?.into_iter());
    let own = entries.filter(|m| m.header.ifindex == port && m.header.state == NeighbourState::Noarp);
    Ok(own.filter_map(|m| mac_of(&m)).next())
}

/// Addresses of the permanent neighbours of a bridge that have this MAC.
pub(super) fn with_mac(socket: &mut RouteSocket, bridge: u32, mac: MacAddr) -> Result<Vec<IpAddr>> {
    let all = permanent(socket, bridge)?.into_iter();
    Ok(all.filter(|(_, theirs)| *theirs == mac).map(|(address, _)| address).collect())
}

fn address_of(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

fn mac_of(message: &NeighbourMessage) -> Option<MacAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(MacAddr),
        _ => None,
    })
}

fn of(answers: impl Iterator<Item = RouteNetlinkMessage>) -> impl Iterator<Item = NeighbourMessage> {
    answers.filter_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(message) => Some(message),
        _ => None,
    })
}
