//! Addresses of links.
//!
//! Invariant: an IPv6 address is added without duplicate address detection, or binding to it fails for 1.8 s. The allocator
//! already knows that it is unique.

use super::{
    Result,
    netlink::{Request, RouteSocket},
};
use ipamd_api::MacAddr;
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn message(address: IpNetwork, ifindex: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    message.header.prefix_len = address.prefix();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes.push(AddressAttribute::Local(address.ip()));
    message.attributes.push(AddressAttribute::Address(address.ip()));
    message
}

/// What an address is to its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The kernel routes its prefix to the link.
    Subnet,
    /// The link has routes of its own.
    WithoutRoute,
    /// This machine answers at it, and does not speak with it by itself: if it is IPv6, it is deprecated from the beginning (RFC 6724,
    /// section 5, rule 3). Of IPv4, the kernel takes the first one whose prefix has the destination.
    Passive,
}

/// Adds an address.
pub(super) fn add(address: IpNetwork, role: Role, ifindex: u32, ifname: &str) -> Request {
    let mut message = message(address, ifindex);
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, role == Role::WithoutRoute);
    match address {
        // RFC 3021: a /31 has no broadcast address, nor has a /32.
        IpNetwork::V4(v4) if v4.prefix() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNetwork::V4(_) => {}
        IpNetwork::V6(v6) => {
            flags |= AddressFlags::Nodad;
            if is_link_local(v6.ip()) {
                message.header.scope = AddressScope::Link;
            }
            if role == Role::Passive {
                let mut lifetimes = CacheInfo::default();
                lifetimes.ifa_valid = u32::MAX;
                message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
            }
        }
    }
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    let object = format!("{address} to {ifname}");
    let new = NLM_F_CREATE | NLM_F_EXCL;
    Request::new(RouteNetlinkMessage::NewAddress(message), new, "add address", object)
}

/// Removes an address; success when it is gone already.
pub(super) fn delete(address: IpNetwork, ifindex: u32, ifname: &str) -> Request {
    let object = format!("{address} from {ifname}");
    Request::new(RouteNetlinkMessage::DelAddress(message(address, ifindex)), 0, "remove address", object)
        .tolerate(&[libc::EADDRNOTAVAIL, libc::ENODEV])
}

/// The link-local address that the kernel derives from a MAC (RFC 4291, appendix A). Weft adds it itself, so that it needs
/// no detection either.
pub(super) fn link_local(mac: MacAddr) -> Option<IpNetwork> {
    let [a, b, c, d, e, f] = mac.0;
    let address = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    IpNetwork::new(address.into(), 64).ok()
}

/// Addresses of a link, link-local ones left out.
pub(super) fn list(socket: &mut RouteSocket, ifindex: u32, ifname: &str) -> Result<Vec<IpNetwork>> {
    let mut filter = AddressMessage::default();
    filter.header.index = ifindex;
    let request = Request::new(RouteNetlinkMessage::GetAddress(filter), 0, "list the addresses of", ifname)
        .tolerate(&[libc::ENODEV]);
    let mut found: Vec<_> = socket.dump(&request)?.into_iter().filter_map(|m| read(m, ifindex)).collect();
    found.sort_unstable();
    Ok(found)
}

fn read(message: RouteNetlinkMessage, ifindex: u32) -> Option<IpNetwork> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    if message.header.index != ifindex {
        return None;
    }
    // Of a point-to-point address `Address` is the peer; IPv6 has only `Address` as a rule.
    let of = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    let ip = of(true).or_else(|| of(false))?;
    let local = match ip {
        IpAddr::V4(v4) => is_link_local_v4(v4),
        IpAddr::V6(v6) => is_link_local(v6),
    };
    if local { None } else { IpNetwork::new(ip, message.header.prefix_len).ok() }
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.is_unicast_link_local()
}

fn is_link_local_v4(ip: Ipv4Addr) -> bool {
    ip.is_link_local()
}
