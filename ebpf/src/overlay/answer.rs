//! Who has an address: the program answers for everybody, so nothing is ever asked between nodes.
//!
//! The MAC is derived from the address that is asked for, so an answer is never out of date: whoever gets the address
//! has the same one, on whatever node. Every address of the network's pools has an answer, whether somebody has it or not, but
//! the asker's own: duplicate address detection, and probes of those that have no address yet, hear nothing.

use super::QUIET;
use crate::{
    drop::{self, fold},
    maps::{POOLS4, POOLS6},
    neighbour::NEIGHBOUR_SOLICITATION,
    packet::{Arp, Packet},
    redirect::PACKET_HOST,
    scratch::Scratch,
};
use aya_ebpf::{
    bindings::BPF_F_RECOMPUTE_CSUM,
    helpers::generated::{bpf_redirect_peer, bpf_skb_change_tail},
    maps::lpm_trie::Key,
};
use ebpf_common::{Advertisement, ArpReply, DropReason, Endpoint, mac_of4, mac_of6};

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// Offset of an ICMPv6 message that follows the IPv6 header at once.
const MESSAGE: u32 = ETHERNET + 40;
/// Bytes of the answer to a solicitation.
const ADVERTISEMENT: u32 = ETHERNET + size_of::<Advertisement>() as u32;

/// What `endpoint` says by ARP: a question is answered, anything else is for nobody.
#[inline(never)]
pub(crate) fn arp(packet: &Packet<'_>, arp: &Arp, endpoint: &Endpoint) -> i32 {
    let asked = arp.target;
    let owner = POOLS4.get(Key::new(32, asked)).map_or(0, |p| p.network);
    if !arp.is_request() || arp.sender == [0; 4] || asked == endpoint.ipv4 || owner != endpoint.network {
        return QUIET;
    }
    let mac = if asked == endpoint.gateway4 { endpoint.gateway_mac } else { mac_of4(asked) };
    let reply = ArpReply::new((mac, asked), (endpoint.mac, arp.sender));
    match packet.store(0, &reply, 0) {
        Ok(()) => back(packet),
        Err(reason) => fold(reason),
    }
}

/// What `endpoint` says by neighbour discovery, checked already: likewise.
#[inline(never)]
pub(crate) fn discovery(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch) -> i32 {
    let ip = &s.ip6;
    let asks = s.transport.icmp == Some(NEIGHBOUR_SOLICITATION);
    // Only such a question has not been routed (RFC 4861, section 7.1.1), and only of such a one is the length known.
    if !asks || ip.ttl != 255 || ip.payload != MESSAGE || ip.source == [0; 16] {
        return QUIET;
    }
    let asked = match packet.bytes::<16>(MESSAGE + 8) {
        Ok(asked) => asked,
        Err(reason) => return fold(reason),
    };
    let owner = POOLS6.get(Key::new(128, asked)).map_or(0, |p| p.network);
    if asked == endpoint.ipv6 || owner != endpoint.network {
        return QUIET;
    }
    let router = asked == endpoint.gateway6;
    let mac = if router { endpoint.gateway_mac } else { mac_of6(&asked) };
    let answer = Advertisement::new(&asked, &ip.source, mac, router);
    // SAFETY: the context is the one that the kernel gave.
    if unsafe { bpf_skb_change_tail(packet.ctx().skb.skb, ADVERTISEMENT, 0) } != 0 {
        return fold(DropReason::Rewrite);
    }
    let written = packet
        .store(0, &[endpoint.mac, mac], 0)
        .and_then(|()| packet.store(ETHERNET, &answer, BPF_F_RECOMPUTE_CSUM.into()));
    match written {
        Ok(()) => back(packet),
        Err(reason) => fold(reason),
    }
}

/// Sends the packet back to where it came from.
#[inline(always)]
fn back(packet: &Packet<'_>) -> i32 {
    if packet.ctx().change_type(PACKET_HOST).is_err() {
        return fold(DropReason::Rewrite);
    }
    let ifindex = packet.ifindex();
    drop::received(ifindex, packet.len());
    // SAFETY: plain integers.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}
