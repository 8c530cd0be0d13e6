//! Neighbour discovery (RFC 4861): a container announces itself only, and is no router.

use crate::packet::{Fragment, Ipv6, Packet};
use ebpf_common::{DropReason, ENDPOINT_IPV6, Endpoint};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
pub(crate) const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Checks an ICMPv6 message of type `icmp` that `endpoint` sends.
#[inline(always)]
pub(crate) fn check(packet: &Packet<'_>, ip: &Ipv6, icmp: u8, endpoint: &Endpoint) -> Result<(), DropReason> {
    let options = match icmp {
        ROUTER_ADVERTISEMENT | REDIRECT => return Err(DropReason::SpoofedNeighbour),
        ROUTER_SOLICITATION => 8,
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => 24,
        _ => return Ok(()),
    };
    // Neighbour discovery is never fragmented (RFC 6980).
    if ip.length < options || ip.fragment != Fragment::Whole {
        return Err(DropReason::Malformed);
    }
    if icmp == NEIGHBOUR_ADVERTISEMENT {
        let target: [u8; 16] = packet.bytes(ip.payload + 8)?;
        let own = endpoint.flags & ENDPOINT_IPV6 != 0 && target == endpoint.ipv6;
        if !own && target != endpoint.link_local {
            return Err(DropReason::SpoofedNeighbour);
        }
    }
    // A later option can only lie about the endpoint's own address, so the first one is enough to look at.
    if ip.length >= options + 8 {
        let [kind, size, mac @ ..]: [u8; 8] = packet.bytes(ip.payload + options)?;
        if matches!(kind, 1 | 2) && (size != 1 || mac != endpoint.mac) {
            return Err(DropReason::SpoofedNeighbour);
        }
    }
    Ok(())
}
