//! The source check: a container speaks with its own MAC and its own addresses, or with none where protocols need that.

use crate::packet::{Arp, Fragment, ICMPV6, Ipv4, Ipv6, Transport, UDP};
use ebpf_common::{DropReason, ENDPOINT_IPV4, ENDPOINT_IPV6, Endpoint};

/// Multicast listener query, report and done, and the report of version 2 (RFC 2710, RFC 3810).
const LISTENER: [u8; 4] = [130, 131, 132, 143];
/// Router and neighbour solicitation (RFC 4861).
const SOLICITATION: [u8; 2] = [133, 135];

/// ARP must speak for the endpoint itself; a probe (RFC 5227) speaks for nobody.
#[inline(always)]
pub(crate) fn arp(arp: &Arp, endpoint: &Endpoint) -> Result<(), DropReason> {
    let own = endpoint.flags & ENDPOINT_IPV4 != 0 && arp.sender == endpoint.ipv4;
    let probe = arp.sender == [0; 4] && arp.is_request();
    if arp.sender_mac == endpoint.mac && (own || probe) { Ok(()) } else { Err(DropReason::SpoofedNeighbour) }
}

/// An IPv4 packet comes from the endpoint's address; a DHCP client has none yet (RFC 2131).
#[inline(always)]
pub(crate) fn ipv4(ip: &Ipv4, transport: &Transport, endpoint: &Endpoint) -> Result<(), DropReason> {
    if endpoint.flags & ENDPOINT_IPV4 != 0 && ip.source == endpoint.ipv4 {
        return Ok(());
    }
    let from_client = transport.ports.is_some_and(|p| p.source == [0, 68] && p.destination == [0, 67]);
    if ip.source == [0; 4] && ip.protocol == UDP && ip.fragment == Fragment::Whole && from_client {
        return Ok(());
    }
    Err(DropReason::SpoofedIp)
}

/// An IPv6 packet comes from the endpoint's address, its link-local one, or from none for what a link needs before there is one.
#[inline(always)]
pub(crate) fn ipv6(ip: &Ipv6, transport: &Transport, endpoint: &Endpoint) -> Result<(), DropReason> {
    if endpoint.flags & ENDPOINT_IPV6 != 0 && ip.source == endpoint.ipv6 {
        return Ok(());
    }
    if ip.source == endpoint.link_local {
        return Ok(());
    }
    let on_link = ip.protocol == ICMPV6
        && transport.icmp.is_some_and(|t| LISTENER.contains(&t) || SOLICITATION.contains(&t));
    if ip.source == [0; 16] && ip.destination[0] == 0xff && on_link {
        return Ok(());
    }
    Err(DropReason::SpoofedIp)
}
