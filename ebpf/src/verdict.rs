//! Deciding, in this order: who sends, may they, where to. IPv4 and IPv6 are apart.

use crate::{
    drop, flow,
    maps::{ADDRESSES, ENDPOINTS, POOLS4, POOLS6},
    neighbour,
    packet::{self, Arp, Fragment, ICMP, ICMPV6, Ipv4, Ipv6, Packet, Transport},
    redirect::{self, Way},
    source,
};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    maps::lpm_trie::Key,
};
use ebpf_common::{
    AddressKey, DropReason, ENDPOINT_INTERNAL, ENDPOINT_SHAPED_EGRESS, Endpoint, FlowKey, NetworkId,
    WAY_BRIDGED, WAY_ROUTED,
};

/// What a container sends.
#[inline(always)]
pub(crate) fn from_pod(packet: &Packet<'_>) -> i32 {
    let ifindex = packet.ifindex();
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    let Some(endpoint) = (unsafe { ENDPOINTS.get(ifindex) }) else {
        return drop::drop(ifindex, DropReason::UnknownEndpoint);
    };
    let sent = way_out(packet, endpoint).and_then(|way| redirect::send(packet, endpoint, &way));
    match sent {
        Ok(action) => {
            drop::sent(ifindex, packet.len());
            action
        }
        Err(reason) => drop::drop(ifindex, reason),
    }
}

/// What is sent to a container. Whoever is no endpoint is none of Weft's business here.
#[inline(always)]
pub(crate) fn to_pod(packet: &Packet<'_>) -> i32 {
    let ifindex = packet.ifindex();
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    let Some(endpoint) = (unsafe { ENDPOINTS.get(ifindex) }) else {
        return TC_ACT_UNSPEC;
    };
    if is_echo(packet, endpoint) {
        return TC_ACT_SHOT;
    }
    if let Err(reason) = way_in(packet, endpoint) {
        return drop::drop(ifindex, reason);
    }
    drop::received(ifindex, packet.len());
    TC_ACT_UNSPEC
}

#[inline(always)]
fn way_out<'a>(packet: &Packet<'_>, endpoint: &'a Endpoint) -> Result<Way<'a>, DropReason> {
    if packet.has_untagged() {
        return Err(DropReason::VlanTag);
    }
    let ethernet = packet.ethernet()?;
    if ethernet.is_tagged() {
        return Err(DropReason::VlanTag);
    }
    if ethernet.source != endpoint.mac {
        return Err(DropReason::SpoofedMac);
    }
    match ethernet.ethertype() {
        packet::IPV4 => way_out4(packet, endpoint),
        packet::IPV6 => way_out6(packet, endpoint),
        packet::ARP => source::arp(&Arp::of(packet)?, endpoint).map(|()| Way::Stack),
        _ => Err(DropReason::Ethertype),
    }
}

#[inline(always)]
fn way_out4<'a>(packet: &Packet<'_>, endpoint: &'a Endpoint) -> Result<Way<'a>, DropReason> {
    let ip = Ipv4::of(packet)?;
    let transport = Transport::of(packet, ip.protocol, ip.payload, ip.length, ip.fragment)?;
    source::ipv4(&ip, &transport, endpoint)?;
    // Multicast, and above it the broadcast address; whoever talks to itself this way gets what a bridge port gives: nothing.
    if ip.destination[0] >= 224 || ip.destination == endpoint.gateway4 || ip.destination == endpoint.ipv4 {
        return Ok(Way::Stack);
    }
    let owner = POOLS4.get(Key::new(32, ip.destination)).map(|p| p.network);
    if !is_within(owner, endpoint)? {
        return Ok(Way::Stack);
    }
    let key = flow::key4(endpoint.network, ip.source, ip.destination, ip.protocol, &transport);
    Ok(way_within(key, ip.fragment, AddressKey::ipv4(endpoint.network, ip.destination), endpoint))
}

#[inline(always)]
fn way_out6<'a>(packet: &Packet<'_>, endpoint: &'a Endpoint) -> Result<Way<'a>, DropReason> {
    let ip = Ipv6::of(packet)?;
    let transport = Transport::of(packet, ip.protocol, ip.payload, ip.length, ip.fragment)?;
    source::ipv6(&ip, &transport, endpoint)?;
    if ip.protocol == ICMPV6
        && let Some(icmp) = transport.icmp
    {
        neighbour::check(packet, &ip, icmp, endpoint)?;
    }
    let [first, second, ..] = ip.destination;
    let link_local = first == 0xfe && second & 0xc0 == 0x80;
    let own = ip.destination == endpoint.gateway6 || ip.destination == endpoint.ipv6;
    if first == 0xff || link_local || own {
        return Ok(Way::Stack);
    }
    let owner = POOLS6.get(Key::new(128, ip.destination)).map(|p| p.network);
    if !is_within(owner, endpoint)? {
        return Ok(Way::Stack);
    }
    let key = flow::key6(endpoint.network, ip.source, ip.destination, ip.protocol, &transport);
    Ok(way_within(key, ip.fragment, AddressKey::ipv6(endpoint.network, ip.destination), endpoint))
}

/// Whether a destination with this owner is in the endpoint's own network; else it is outside, and allowed.
#[inline(always)]
fn is_within(owner: Option<NetworkId>, endpoint: &Endpoint) -> Result<bool, DropReason> {
    match owner {
        Some(network) if network == endpoint.network => Ok(true),
        Some(_) => Err(DropReason::Isolated),
        None if endpoint.flags & ENDPOINT_INTERNAL != 0 => Err(DropReason::Internal),
        None => Ok(false),
    }
}

/// The way to an address of the endpoint's own network.
#[inline(always)]
fn way_within<'a>(key: FlowKey, fragment: Fragment, address: AddressKey, endpoint: &Endpoint) -> Way<'a> {
    match flow::way_back(key, fragment, endpoint) {
        Some(WAY_ROUTED) => return Way::Gateway,
        Some(_) => return Way::Stack,
        None => {}
    }
    // The shaper's qdisc stands behind this hook; the bridge delivers what it lets through.
    if endpoint.flags & ENDPOINT_SHAPED_EGRESS != 0 {
        return Way::Stack;
    }
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    match unsafe { ADDRESSES.get(address) } {
        Some(target) => Way::Neighbour(target),
        // Nobody has it on this node: the bridge may know more.
        None => Way::Stack,
    }
}

/// Whether the container would hear its own broadcast or multicast, which the bridge floods to every port in hairpin mode.
/// Not counted: nothing is lost by it, for the others get theirs.
#[inline(always)]
fn is_echo(packet: &Packet<'_>, endpoint: &Endpoint) -> bool {
    packet.ethernet().is_ok_and(|e| e.source == endpoint.mac && e.destination[0] & 1 != 0)
}

#[inline(always)]
fn way_in(packet: &Packet<'_>, endpoint: &Endpoint) -> Result<(), DropReason> {
    if packet.is_delivered() {
        return Ok(());
    }
    let Ok(ethernet) = packet.ethernet() else {
        return Ok(());
    };
    // What the host's IP layer sends or forwards has the gateway's MAC; what the bridge forwards keeps the neighbour's.
    let way = if ethernet.source == endpoint.gateway_mac { WAY_ROUTED } else { WAY_BRIDGED };
    let verdict = match ethernet.ethertype() {
        packet::IPV4 => way_in4(packet, way, endpoint),
        packet::IPV6 => way_in6(packet, way, endpoint),
        _ => Ok(()),
    };
    match verdict {
        // The host let it through: a packet that Weft cannot read is the receiver's to judge.
        Err(DropReason::Malformed | DropReason::ExtensionHeader) => Ok(()),
        other => other,
    }
}

#[inline(always)]
fn way_in4(packet: &Packet<'_>, way: u32, endpoint: &Endpoint) -> Result<(), DropReason> {
    let ip = Ipv4::of(packet)?;
    let transport = Transport::of(packet, ip.protocol, ip.payload, ip.length, ip.fragment)?;
    if way == WAY_ROUTED && ip.protocol == ICMP && transport.icmp == Some(5) {
        return Err(DropReason::Redirect);
    }
    if ip.source == endpoint.gateway4 {
        return Ok(());
    }
    let owner = POOLS4.get(Key::new(32, ip.source)).map(|p| p.network);
    if is_neighbour(owner, endpoint)? {
        let key = flow::key4(endpoint.network, ip.source, ip.destination, ip.protocol, &transport);
        flow::remember(key, way, endpoint);
    }
    Ok(())
}

#[inline(always)]
fn way_in6(packet: &Packet<'_>, way: u32, endpoint: &Endpoint) -> Result<(), DropReason> {
    let ip = Ipv6::of(packet)?;
    let transport = Transport::of(packet, ip.protocol, ip.payload, ip.length, ip.fragment)?;
    if way == WAY_ROUTED && ip.protocol == ICMPV6 && transport.icmp == Some(137) {
        return Err(DropReason::Redirect);
    }
    if ip.source == endpoint.gateway6 {
        return Ok(());
    }
    let owner = POOLS6.get(Key::new(128, ip.source)).map(|p| p.network);
    if is_neighbour(owner, endpoint)? {
        let key = flow::key6(endpoint.network, ip.source, ip.destination, ip.protocol, &transport);
        flow::remember(key, way, endpoint);
    }
    Ok(())
}

/// Whether a source with this owner is a neighbour, whose packets the host has forwarded. Sources of other networks do not
/// get in through the host either: their answers would be dropped, and what needs none would have crossed.
#[inline(always)]
fn is_neighbour(owner: Option<NetworkId>, endpoint: &Endpoint) -> Result<bool, DropReason> {
    match owner {
        Some(network) if network == endpoint.network => Ok(true),
        Some(_) => Err(DropReason::Isolated),
        None => Ok(false),
    }
}
