//! The devices of the host: what comes in from outside (`from_netdev`), and what leaves (`to_netdev`).
//!
//! What is nobody's flow and dials no published port goes on untouched: most of what passes here is the host's own.

use crate::{
    clock::{REFRESH_NS, now},
    conntrack::{HIT, SIDE_HOST, SIDE_OUTSIDE, SIDE_POD, SIDE_PODS, find, is_alive, track, track_quoted},
    drop::{self, fold},
    guard,
    maps::HOST_FLOWS,
    nat::{self, GONE, STACK},
    overlay,
    packet::{self, Packet, UDP},
    port, publish,
    scratch::{Scratch, scratch},
};
use ebpf_common::{
    CONN_FROM_POD, CONN_HOST, CONN_LOCAL, CONN_ORIGINAL, CONN_PUBLISHED, CONN_STACK, DropReason,
    ENDPOINT_INTERNAL, ENDPOINT_MASQUERADE, Endpoint, HOOK_FROM_NETDEV, HOOK_TO_NETDEV, TARGET_ROUTED, TCP,
    TCP_ACK, TCP_RST, TCP_SYN, UPLINK_IPV4, UPLINK_IPV6, is_syn, wide4,
};

/// What comes in by a device of the host.
#[inline(always)]
pub(crate) fn from_netdev(packet: &Packet<'_>) -> i32 {
    // Whoever marked it did so on another node, or in a sandbox.
    packet.unmark();
    let Some(s) = scratch() else {
        return STACK;
    };
    let action = match read(packet, s) {
        true => come_in(packet, s),
        false => STACK,
    };
    drop::finish(packet, HOOK_FROM_NETDEV, s.veth, action)
}

/// What leaves by a device of the host.
#[inline(always)]
pub(crate) fn to_netdev(packet: &Packet<'_>) -> i32 {
    if packet.is_delivered() {
        return STACK;
    }
    let Some(s) = scratch() else {
        return STACK;
    };
    let action = match read(packet, s) {
        true => go_out(packet, s),
        false => STACK,
    };
    drop::finish(packet, HOOK_TO_NETDEV, s.veth, action)
}

/// Reads a packet that Weft may have to do with. What cannot be read is the stack's to judge, and so is what has a VLAN tag: its
/// own device sees it again without.
#[inline(always)]
fn read(packet: &Packet<'_>, s: &mut Scratch) -> bool {
    s.veth = 0;
    if packet.has_untagged() {
        return false;
    }
    match packet.protocol() {
        packet::IPV4 => read4(packet, s),
        packet::IPV6 => read6(packet, s),
        _ => false,
    }
}

#[inline(always)]
fn read4(packet: &Packet<'_>, s: &mut Scratch) -> bool {
    s.read4(packet).is_ok() && s.ip4.destination[0] < 224
}

#[inline(always)]
fn read6(packet: &Packet<'_>, s: &mut Scratch) -> bool {
    s.read6(packet).is_ok() && s.ip6.destination[0] < 0xfe
}

#[inline(never)]
fn come_in(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    let unknown = nat::defragment(s);
    if unknown != 0 {
        // What may be the host's own waits in its reassembly.
        return if nat::owner(s.key.family, &s.key.destination).is_some() { unknown } else { STACK };
    }
    // Most of what a node with overlay networks gets. No flow's answers come to a port that the host listens on (`port`).
    if guard::is_tunnel(s) {
        return overlay::arrive_tunnelled(packet, s);
    }
    let mut is_gone = false;
    if s.is_error() {
        if nat::read_quote(packet, s) && track_quoted(s, SIDE_OUTSIDE, 0) == HIT {
            return nat::or_drop(arrive(packet, s));
        }
    } else if track(s, SIDE_OUTSIDE, 0, packet.len()) == HIT {
        match arrive(packet, s) {
            // Its port may lead to another endpoint by now.
            GONE => is_gone = true,
            action => return action,
        }
    }
    let node = publish::is_node(s.key.family, &s.key.destination);
    if publish::may_open(s)
        && let Some(frontend) = publish::frontend(&s.key, node)
        && !(s.key.protocol == UDP && port::is_host_flow(&s.key))
        && !is_martian(s)
    {
        if !publish::is_admitted(&s.key) || !publish::is_allowed(frontend.allow, &s.key) {
            return fold(DropReason::NotAllowed);
        }
        s.to = s.key.by_words();
        s.to.destination = frontend.backend;
        s.to.destination_port = frontend.port_behind(s.key.destination_port);
        s.endpoint = frontend.endpoint;
        s.opener = 0;
        s.flags = CONN_ORIGINAL | CONN_PUBLISHED;
        return match port::open(packet, s) {
            0 => nat::or_drop(arrive(packet, s)),
            reason => reason,
        };
    }
    match node {
        _ if is_gone => fold(DropReason::UnknownEndpoint),
        true => match guard::check(s, &s.key) {
            0 => STACK,
            // A sandbox of another node, without VXLAN.
            reason if nat::owner(s.key.family, &s.key.source).is_some() => reason,
            _ => STACK,
        },
        false => match stray(packet, s) {
            0 => nat::or_drop(arrive(packet, s)),
            other => other,
        },
    }
}

/// Whether a source cannot be at home outside: a sandbox's address, the node's own, or none at all. Such a packet would get into
/// a sandbox past the stack's own check; the stack may judge it.
#[inline(never)]
fn is_martian(s: &Scratch) -> bool {
    let nobody = if s.is4() {
        matches!(s.ip4.source[0], 0 | 127 | 224..)
    } else {
        s.ip6.source[0] == 0xff || s.ip6.source[..15] == [0; 15]
    };
    nobody
        || nat::owner(s.key.family, &s.key.source).is_some()
        || publish::is_node(s.key.family, &s.key.source)
}

/// A packet of a flow: into the sandbox, or on to the stack if the flow goes by it. [`GONE`] if its endpoint is.
#[inline(always)]
fn arrive(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    if s.flags & (CONN_STACK | CONN_HOST) != 0 {
        return if is_alive(s.endpoint) { nat::rewrite_on(packet, s) } else { GONE };
    }
    nat::deliver(packet, s, s.endpoint)
}

/// A packet of no flow that is not for the node: a sandbox's own address is not for the outside, unless its network is routed. Zero: it
/// begins a flow to such a one; else an action or a folded reason.
#[inline(never)]
fn stray(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    let family = s.key.family;
    let found = nat::owner(family, &s.key.destination)
        .and_then(|network| nat::target(network, family, &s.key.destination));
    let Some(target) = found else {
        return STACK;
    };
    let Some(endpoint) = nat::endpoint(target.ifindex) else {
        return STACK;
    };
    s.veth = target.ifindex;
    match overlay::arrive_direct(packet, endpoint, target, s) {
        0 => {}
        other => return other,
    }
    if target.flags & TARGET_ROUTED == 0 {
        return fold(DropReason::NotPublished);
    }
    // What begins nothing may belong to a flow of the stack.
    if !nat::may_begin(s) || is_martian(s) || nat::config().is_none() {
        return STACK;
    }
    s.to = s.key.by_words();
    s.endpoint = endpoint.id;
    s.opener = 0;
    s.flags = CONN_ORIGINAL;
    port::open(packet, s)
}

#[inline(never)]
fn go_out(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    match guard::check_forwarded(packet, s) {
        0 => {}
        reason => return reason,
    }
    let is_error = s.is_error();
    // First, because most of what leaves is the host's.
    if !is_error && is_uplink_address(packet, s) {
        return of_host(packet, s);
    }
    let family = s.key.family;
    let sender = nat::owner(family, &s.key.source)
        .and_then(|network| nat::target(network, family, &s.key.source))
        .and_then(|target| nat::endpoint(target.ifindex).map(|endpoint| (target.ifindex, endpoint)));
    match sender {
        Some((veth, endpoint)) => {
            s.veth = veth;
            forwarded(packet, endpoint, s)
        }
        // About a packet that was translated on its way in: the sender knows it as it was before.
        None if is_error && nat::read_quote(packet, s) && track_quoted(s, SIDE_PODS, 0) == HIT => {
            nat::rewrite_on(packet, s)
        }
        None => STACK,
    }
}

/// A packet of an endpoint that the stack forwards.
#[inline(never)]
fn forwarded(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if overlay::is_within(endpoint, s) {
        return overlay::forwarded(endpoint, s);
    }
    if nat::config().is_none() {
        return STACK;
    }
    let unknown = nat::defragment(s);
    if unknown != 0 {
        return if nat::is_stack_flow(s, endpoint) { STACK } else { unknown };
    }
    let hit = if s.is_error() {
        s.hides_source = true;
        nat::read_quote(packet, s) && track_quoted(s, SIDE_POD, endpoint.id) == HIT
    } else {
        track(s, SIDE_POD, endpoint.id, packet.len()) == HIT
    };
    if hit {
        // A frontend's flow ends in a sandbox; what leaves here is something else with its key.
        return if s.flags & CONN_LOCAL == 0 { nat::rewrite_on(packet, s) } else { STACK };
    }
    if nat::is_stack_flow(s, endpoint) {
        return STACK;
    }
    let cidr = nat::cidr(s, endpoint.network);
    if endpoint.flags & ENDPOINT_INTERNAL != 0 {
        return fold(DropReason::Internal);
    }
    if !nat::may_begin(s) {
        return if endpoint.flags & ENDPOINT_MASQUERADE == 0 { STACK } else { fold(DropReason::NoFlow) };
    }
    let flags = CONN_FROM_POD | CONN_STACK | nat::masquerade(endpoint, cidr);
    match nat::begin(packet, s, endpoint, packet.ifindex(), flags) {
        0 => nat::rewrite_on(packet, s),
        other => other,
    }
}

/// A packet of the host, or of somebody that it translates for (Docker).
#[inline(never)]
fn of_host(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    // What is kept in mind is nobody else's, and was not when it began.
    if nat::defragment(s) != 0 || is_remembered(s) {
        return STACK;
    }
    if track(s, SIDE_HOST, 0, packet.len()) == HIT {
        return nat::rewrite_on(packet, s);
    }
    let flags = s.transport.tcp_flags;
    let opens = match s.key.protocol {
        TCP => is_syn(flags),
        UDP => true,
        _ => s.echo_request() == Some(true),
    };
    // The long connections of others are kept in mind as well: the host has no socket for them.
    if !opens && (s.key.protocol != TCP || flags & (TCP_SYN | TCP_ACK | TCP_RST) != TCP_ACK) {
        return STACK;
    }
    // An entry for packets from outside with the answer's key: a sandbox's flow has the port.
    if opens && find(&s.key.reversed()).is_some_and(|(conn, _)| conn.flags & CONN_FROM_POD == 0) {
        s.to = s.key.by_words();
        s.endpoint = 0;
        s.opener = 0;
        s.flags = CONN_ORIGINAL | CONN_HOST;
        return match port::open(packet, s) {
            0 => nat::rewrite_on(packet, s),
            reason => reason,
        };
    }
    remember(s);
    STACK
}

/// Whether the source is the address that sandboxes get on this device.
#[inline(always)]
fn is_uplink_address(packet: &Packet<'_>, s: &Scratch) -> bool {
    let Some(uplink) = nat::uplink(packet.ifindex()) else {
        return false;
    };
    if s.is4() {
        uplink.flags & UPLINK_IPV4 != 0 && wide4(uplink.ipv4) == s.key.source
    } else {
        uplink.flags & UPLINK_IPV6 != 0 && uplink.ipv6 == s.key.source
    }
}

/// Whether the answers' tuple is kept from sandboxes; then it is for longer.
#[inline(never)]
fn is_remembered(s: &Scratch) -> bool {
    let answer = s.key.reversed();
    let Some(seen) = HOST_FLOWS.get_ptr_mut(&answer) else {
        return false;
    };
    // SAFETY: an aligned u64; in an LRU it may be another flow's by now, which then lives a little longer.
    let seen = unsafe { &mut *seen };
    let now = now();
    let age = now.saturating_sub(*seen);
    if nat::config().is_none_or(|c| age >= c.host_flow_timeout) {
        return false;
    }
    if age > REFRESH_NS {
        *seen = now;
    }
    true
}

/// Keeps the answers' tuple from sandboxes.
#[inline(never)]
fn remember(s: &Scratch) {
    let answer = s.key.reversed();
    // An LRU: it refuses nothing for being full, and what it forgets may still be found as a socket.
    let _ = HOST_FLOWS.insert(&answer, now(), 0);
}
