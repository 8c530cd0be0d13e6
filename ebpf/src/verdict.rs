//! Deciding, in this order: who sends, may they, where to. IPv4 and IPv6 are apart as long as addresses are looked at.

use crate::{
    beyond,
    conntrack::{find, sender},
    dns,
    drop::{self, fold},
    flow, guard,
    maps::{POOLS4, POOLS6},
    nat::{self, STACK},
    neighbour,
    overlay::{self, QUIET},
    packet::{self, Arp, Fragment, ICMP, ICMPV6, Packet, UDP},
    redirect::{self, PACKET_HOST, Way},
    scratch::{Scratch, scratch},
    source,
};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    maps::lpm_trie::Key,
};
use ebpf_common::{
    CONN_FROM_POD, DropReason, ENDPOINT_OVERLAY, ENDPOINT_PUBLISHED, ENDPOINT_SHAPED_EGRESS, Endpoint,
    HOOK_FROM_POD, HOOK_TO_POD, SCTP, TCP, WAY_BRIDGED, WAY_ROUTED, is_link_local, is_syn,
};

/// To a neighbour, if nothing else says another way. Neither an action nor a folded reason.
pub(crate) const WITHIN: i32 = 1 << 20;
/// To somewhere that only [`beyond`] knows.
const BEYOND: i32 = 1 << 21;
/// To all of an overlay network.
const EVERYBODY: i32 = 1 << 22;
/// Neighbour discovery of an overlay network.
const DISCOVERY: i32 = 1 << 23;

/// A question for a name, perhaps.
const QUESTION: i32 = 1 << 25;

/// What a container sends.
#[inline(always)]
pub(crate) fn from_pod(packet: &Packet<'_>) -> i32 {
    let ifindex = packet.ifindex();
    let Some(endpoint) = nat::endpoint(ifindex) else {
        return drop::finish(packet, HOOK_FROM_POD, ifindex, fold(DropReason::UnknownEndpoint));
    };
    let Some(s) = scratch() else {
        return TC_ACT_SHOT;
    };
    // A sandbox may be a host of its own, with its own marks.
    packet.unmark();
    // An answer in its place has another length.
    let length = packet.len();
    let mut step = first(packet, endpoint, s);
    if step == QUESTION {
        step = question(packet, endpoint, s);
    }
    if step == BEYOND {
        step = beyond::send(packet, endpoint, s);
    }
    if is_overlay(endpoint) {
        step = on_overlay(packet, endpoint, s, step);
    } else if step == WITHIN {
        step = within(packet, endpoint, s);
    }
    if !drop::is_drop(step) {
        drop::sent(ifindex, length);
    }
    drop::finish(packet, HOOK_FROM_POD, ifindex, step)
}

/// The rest of the way of an endpoint that has no bridge.
#[inline(always)]
fn on_overlay(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch, step: i32) -> i32 {
    let step = match step {
        WITHIN => overlay::within(packet, endpoint, s),
        DISCOVERY => overlay::discovery(packet, endpoint, s),
        EVERYBODY => overlay::spread(packet, endpoint, s),
        other => other,
    };
    // The frame may be addressed to a neighbour; the stack is to take it for its own.
    if step == STACK && packet.ctx().change_type(PACKET_HOST).is_err() {
        return fold(DropReason::Rewrite);
    }
    step
}

/// What is sent to a container. Whoever is no endpoint is none of Weft's business here.
#[inline(always)]
pub(crate) fn to_pod(packet: &Packet<'_>) -> i32 {
    let ifindex = packet.ifindex();
    let Some(endpoint) = nat::endpoint(ifindex) else {
        return TC_ACT_UNSPEC;
    };
    if is_echo(packet, endpoint) {
        return TC_ACT_SHOT;
    }
    let step = way_in(packet, endpoint);
    if !drop::is_drop(step) {
        drop::received(ifindex, packet.len());
    }
    drop::finish(packet, HOOK_TO_POD, ifindex, step)
}

/// May the container send that, and what kind of destination does it have.
#[inline(always)]
fn first(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if packet.has_untagged() {
        return fold(DropReason::VlanTag);
    }
    let ethernet = match packet.ethernet() {
        Ok(ethernet) => ethernet,
        Err(reason) => return fold(reason),
    };
    if ethernet.is_tagged() {
        return fold(DropReason::VlanTag);
    }
    if ethernet.source != endpoint.mac {
        return fold(DropReason::SpoofedMac);
    }
    s.is_group = ethernet.destination[0] & 1 != 0;
    match ethernet.ethertype() {
        packet::IPV4 => first4(packet, endpoint, s),
        packet::IPV6 => first6(packet, endpoint, s),
        packet::ARP => arp(packet, endpoint),
        _ => fold(DropReason::Ethertype),
    }
}

#[inline(never)]
fn arp(packet: &Packet<'_>, endpoint: &Endpoint) -> i32 {
    match Arp::of(packet).and_then(|arp| source::arp(&arp, endpoint).map(|()| arp)) {
        Ok(arp) if is_overlay(endpoint) => overlay::arp(packet, &arp, endpoint),
        Ok(_) => STACK,
        Err(reason) => fold(reason),
    }
}

#[inline(never)]
fn first4(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if let Err(reason) = s.read4(packet).and_then(|()| source::ipv4(&s.ip4, &s.transport, endpoint)) {
        return fold(reason);
    }
    match guard::check_sent(s) {
        0 => {}
        reason => return reason,
    }
    let destination = s.ip4.destination;
    // Multicast, and above it the broadcast address; whoever talks to itself this way gets what a bridge port gives: nothing.
    if destination[0] >= 224 || destination == endpoint.ipv4 || (s.is_group && is_overlay(endpoint)) {
        return by_link(endpoint, s);
    }
    s.is_gateway = destination == endpoint.gateway4;
    s.owner = POOLS4.get(Key::new(32, destination)).map_or(0, |p| p.network);
    second(endpoint, s)
}

#[inline(never)]
fn first6(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if let Err(reason) = s.read6(packet).and_then(|()| check6(packet, endpoint, s)) {
        return fold(reason);
    }
    match guard::check_sent(s) {
        0 => {}
        reason => return reason,
    }
    let destination = s.ip6.destination;
    if is_overlay(endpoint) && s.ip6.protocol == ICMPV6 && matches!(s.transport.icmp, Some(133..=137)) {
        return DISCOVERY;
    }
    if destination[0] == 0xff
        && s.ip6.protocol == ICMPV6
        && s.transport.icmp == Some(neighbour::NEIGHBOUR_SOLICITATION)
    {
        return solicitation(packet, endpoint, s);
    }
    if destination[0] == 0xff || is_link_local(&destination) || destination == endpoint.ipv6 {
        return by_link(endpoint, s);
    }
    s.is_gateway = destination == endpoint.gateway6;
    s.owner = POOLS6.get(Key::new(128, destination)).map_or(0, |p| p.network);
    second(endpoint, s)
}

/// Whether an endpoint's network is an overlay.
#[inline(always)]
fn is_overlay(endpoint: &Endpoint) -> bool {
    endpoint.flags & ENDPOINT_OVERLAY != 0
}

/// For the link itself, not for an address of a pool: the bridge knows, if there is one.
#[inline(always)]
fn by_link(endpoint: &Endpoint, s: &Scratch) -> i32 {
    match is_overlay(endpoint) {
        true if s.is_group || s.is_multicast() => EVERYBODY,
        true => QUIET,
        false => STACK,
    }
}

/// Who asks for a neighbour on this node asks it straight: on the bridge, br_netfilter hands the question to the host's FORWARD
/// chain, and one that drops would keep neighbours from finding each other. Questions for the own address (duplicate address
/// detection) and for those that nobody has here are for the bridge.
#[inline(always)]
fn solicitation(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    match packet.bytes(s.ip6.payload + 8) {
        Ok(target) if target != endpoint.ipv6 && s.ip6.destination == solicited_node(target) => {
            s.key.destination = target;
            WITHIN
        }
        Ok(_) => STACK,
        Err(reason) => fold(reason),
    }
}

/// The group in which the owner of an address is asked for it (RFC 4291, section 2.7.1).
#[inline(always)]
fn solicited_node(address: [u8; 16]) -> [u8; 16] {
    let [.., x, y, z] = address;
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]
}

#[inline(never)]
fn check6(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch) -> Result<(), DropReason> {
    source::ipv6(&s.ip6, &s.transport, endpoint)?;
    match s.transport.icmp {
        Some(icmp) if s.ip6.protocol == ICMPV6 => neighbour::check(packet, &s.ip6, icmp, endpoint),
        _ => Ok(()),
    }
}

/// What kind of destination it is, once the addresses are known.
#[inline(always)]
fn second(endpoint: &Endpoint, s: &Scratch) -> i32 {
    if dns::is_asked(endpoint, s) { QUESTION } else { third(endpoint, s) }
}

/// Answers a question, or says where it goes like any other packet.
#[inline(never)]
fn question(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch) -> i32 {
    match dns::ask(packet, endpoint, s) {
        dns::UNANSWERED => third(endpoint, s),
        done => done,
    }
}

#[inline(always)]
fn third(endpoint: &Endpoint, s: &Scratch) -> i32 {
    let serves = endpoint.flags & ENDPOINT_PUBLISHED != 0 || dns::may_be_led(endpoint, s);
    if s.is_gateway {
        // What has no ports dials no frontend, and answers none.
        let dials = matches!(s.place.protocol, TCP | UDP | SCTP);
        return if dials || serves { BEYOND } else { STACK };
    }
    if s.owner == endpoint.network && !serves { WITHIN } else { BEYOND }
}

/// To an address of the endpoint's own network: to the neighbour that has it, or by the way of the host that brought the flow.
#[inline(never)]
fn within(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch) -> i32 {
    let way = match (s.place.protocol, s.transport.icmp) {
        // The host would take one off the hop limit, which makes neighbour discovery void (RFC 4861, section 7.1).
        (ICMPV6, Some(133..=137)) => way_direct(endpoint, s),
        _ => way_within(endpoint, s),
    };
    match redirect::send(packet, endpoint, &way) {
        Ok(action) => action,
        Err(reason) => fold(reason),
    }
}

#[inline(always)]
fn way_within<'a>(endpoint: &'a Endpoint, s: &Scratch) -> Way<'a> {
    match way_by_host(endpoint, s) {
        Some(WAY_ROUTED) => Way::Gateway,
        Some(_) => Way::Stack,
        None => way_direct(endpoint, s),
    }
}

/// The way by which the host brought the flow that this packet answers, or one that it cannot be told from.
#[inline(always)]
pub(crate) fn way_by_host(endpoint: &Endpoint, s: &Scratch) -> Option<u32> {
    let key = nat::flow_key(s, endpoint.network);
    let back = flow::way_back(&key, s.place.fragment, endpoint);
    if back.is_none() && opens(s) { flow::way_taken(&key) } else { back }
}

/// Whether a flow may begin with this packet: a SYN without ACK, or a whole datagram of UDP, which knows no beginning.
#[inline(always)]
fn opens(s: &Scratch) -> bool {
    match s.place.protocol {
        _ if s.place.fragment != Fragment::Whole => false,
        UDP => true,
        TCP => is_syn(s.transport.tcp_flags),
        _ => false,
    }
}

/// The way to a neighbour that no flow decides.
#[inline(always)]
fn way_direct<'a>(endpoint: &Endpoint, s: &Scratch) -> Way<'a> {
    // The shaper's qdisc stands behind this hook; the bridge delivers what it lets through.
    if endpoint.flags & ENDPOINT_SHAPED_EGRESS != 0 {
        return Way::Stack;
    }
    match nat::target(endpoint.network, s.key.family, &s.key.destination) {
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
fn way_in(packet: &Packet<'_>, endpoint: &Endpoint) -> i32 {
    if packet.is_delivered() {
        return STACK;
    }
    let (Ok(ethernet), Some(s)) = (packet.ethernet(), scratch()) else {
        return STACK;
    };
    // What the host's IP layer sends or forwards has the gateway's MAC; what the bridge forwards keeps the neighbour's.
    let way = if is_of_gateway(packet, endpoint) { WAY_ROUTED } else { WAY_BRIDGED };
    match ethernet.ethertype() {
        packet::IPV4 => way_in4(packet, way, endpoint, s),
        packet::IPV6 => way_in6(packet, way, endpoint, s),
        _ => STACK,
    }
}

/// Whether the host's IP layer sends a packet. Asked again, and not of the way: the verifier of Linux 6.1 knows that number, takes
/// the case of a neighbour for both, and cuts out what follows for the gateway.
#[inline(always)]
fn is_of_gateway(packet: &Packet<'_>, endpoint: &Endpoint) -> bool {
    is_overlay(endpoint) || packet.ethernet().is_ok_and(|e| e.source == endpoint.gateway_mac)
}

#[inline(never)]
fn way_in4(packet: &Packet<'_>, way: u32, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    // The host let it through: a packet that Weft cannot read is the receiver's to judge.
    if s.read4(packet).is_err() {
        return STACK;
    }
    if s.ip4.protocol == ICMP && s.transport.icmp == Some(5) && is_of_gateway(packet, endpoint) {
        return fold(DropReason::Redirect);
    }
    if s.ip4.source == endpoint.gateway4 {
        return dns::restore(packet, endpoint, s);
    }
    s.owner = POOLS4.get(Key::new(32, s.ip4.source)).map_or(0, |p| p.network);
    brought(way, endpoint, s)
}

#[inline(never)]
fn way_in6(packet: &Packet<'_>, way: u32, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if s.read6(packet).is_err() {
        return STACK;
    }
    if s.ip6.protocol == ICMPV6 && s.transport.icmp == Some(137) && is_of_gateway(packet, endpoint) {
        return fold(DropReason::Redirect);
    }
    if s.ip6.source == endpoint.gateway6 {
        return dns::restore(packet, endpoint, s);
    }
    if is_link_local(&s.ip6.source) || s.ip6.source == [0; 16] {
        return STACK;
    }
    s.owner = POOLS6.get(Key::new(128, s.ip6.source)).map_or(0, |p| p.network);
    brought(way, endpoint, s)
}

/// Records what the host has brought. Sources of other networks do not get in through the host either: their answers would be
/// dropped, and what needs none would have crossed.
#[inline(never)]
fn brought(way: u32, endpoint: &Endpoint, s: &Scratch) -> i32 {
    match s.owner {
        // From outside: unless a flow of Weft's own is behind it, its answers must find the host's translation (a NodePort's).
        0 if is_tracked(s, endpoint) => return STACK,
        0 => {}
        network if network == endpoint.network => {}
        _ => return fold(DropReason::Isolated),
    }
    let mut key = nat::flow_key(s, endpoint.network);
    flow::remember(&mut key, way, endpoint);
    STACK
}

/// Whether the endpoint's answer to this packet belongs to a flow that Weft tracks.
#[inline(never)]
fn is_tracked(s: &Scratch, endpoint: &Endpoint) -> bool {
    find(&s.key.reversed())
        .is_some_and(|(conn, _)| conn.flags & CONN_FROM_POD != 0 && sender(conn) == endpoint.id)
}
