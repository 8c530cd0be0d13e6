//! What an endpoint sends beyond the plain way to a neighbour: answers of published ports, frontends, the outside.

use crate::{
    conntrack::{HIT, SIDE_POD, track, track_quoted},
    dns,
    drop::fold,
    guard,
    nat::{self, GONE, STACK},
    packet::Packet,
    port, publish,
    scratch::Scratch,
    verdict::WITHIN,
};
use ebpf_common::{
    CIDR_STACK, CONN_FROM_POD, CONN_HAIRPIN, CONN_LOCAL, CONN_ORIGINAL, CONN_PUBLISHED, CONN_RESOLVER,
    CONN_STACK, DropReason, ENDPOINT_INTERNAL, ENDPOINT_SHAPED_EGRESS, Endpoint, wide4,
};

/// No frontend.
const NONE: i32 = 1 << 18;

/// Decides on a packet of `endpoint` and carries it out; [`WITHIN`]: it goes to a neighbour like any other.
#[inline(never)]
pub(crate) fn send(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    let within = s.owner == endpoint.network && !s.is_gateway;
    let unknown = nat::defragment(s);
    if unknown != 0 {
        return match s.owner {
            _ if within => WITHIN,
            _ if s.is_gateway || nat::is_stack_flow(s, endpoint) => STACK,
            0 if endpoint.flags & ENDPOINT_INTERNAL != 0 => fold(DropReason::Internal),
            0 => unknown,
            _ => fold(DropReason::Isolated),
        };
    }
    let mut is_gone = false;
    if s.is_error() {
        s.hides_source = true;
        if nat::read_quote(packet, s) && track_quoted(s, SIDE_POD, endpoint.id) == HIT {
            return nat::or_drop(go_on(packet, endpoint, s));
        }
    } else {
        if track(s, SIDE_POD, endpoint.id, packet.len()) == HIT {
            match go_on(packet, endpoint, s) {
                // The port that it dialled may lead to another endpoint by now.
                GONE => is_gone = true,
                action => return action,
            }
        }
        if dns::is_intercepted(packet, endpoint, s) {
            return dns::intercept(packet, endpoint, s);
        }
        if !within && publish::may_open(s) && !dns::is_resolver(endpoint, s) {
            match dial(packet, endpoint, s) {
                NONE => {}
                0 => return nat::or_drop(go_on(packet, endpoint, s)),
                reason => return reason,
            }
        }
    }
    match s.owner {
        _ if is_gone => fold(DropReason::UnknownEndpoint),
        _ if within => WITHIN,
        _ if s.is_gateway => STACK,
        0 => match outside(packet, endpoint, s) {
            0 => nat::send_out(packet, s),
            other => other,
        },
        _ => fold(DropReason::Isolated),
    }
}

/// A packet of a flow that is known. [`GONE`] if the endpoint at its other end is.
#[inline(never)]
fn go_on(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if s.flags & CONN_STACK != 0 {
        return STACK;
    }
    if s.flags & CONN_RESOLVER != 0 {
        return dns::to_gateway(packet, endpoint, s);
    }
    let original = s.flags & CONN_ORIGINAL != 0;
    if s.flags & CONN_LOCAL != 0 {
        let who = if original { s.endpoint } else { s.opener };
        return nat::deliver(packet, s, who);
    }
    // The shaper's qdisc stands behind this hook; `to_netdev` translates what it lets through.
    if endpoint.flags & ENDPOINT_SHAPED_EGRESS != 0 || endpoint.bridge == 0 {
        return STACK;
    }
    // Routing sees the endpoint's own address, as a router in front of a translator would; of an answer the address that was
    // dialled, so that it leaves by the way on which that address is at home.
    let source = if original { s.key.source } else { s.to.source };
    leave(packet, endpoint, s, &source)
}

#[inline(always)]
fn leave(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch, source: &[u8; 16]) -> i32 {
    match nat::find_route(packet, s, source, endpoint.bridge) {
        0 => {}
        reason => return reason,
    }
    if s.route.ifindex == 0 { STACK } else { nat::send_out(packet, s) }
}

/// Begins a flow to a published port of this node, straight to the endpoint that serves it. Zero, a folded reason, or [`NONE`] if
/// there is no such port.
#[inline(never)]
fn dial(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    let node = s.is_gateway || publish::is_node(s.key.family, &s.key.destination);
    let Some(port) = publish::frontend(&s.key, node) else {
        return NONE;
    };
    if endpoint.flags & ENDPOINT_INTERNAL != 0 && port.network != endpoint.network {
        return NONE;
    }
    let own = port.endpoint == endpoint.id;
    if !own && !publish::is_allowed(port.allow, &s.key) {
        return fold(DropReason::NotAllowed);
    }
    s.to = s.key.by_words();
    s.to.destination = port.backend;
    s.to.destination_port = port.port_behind(s.key.destination_port);
    s.endpoint = port.endpoint;
    s.opener = endpoint.id;
    s.flags = CONN_ORIGINAL | CONN_FROM_POD | CONN_PUBLISHED | CONN_LOCAL;
    if own {
        // It would answer itself otherwise, without asking anybody.
        s.to.source = if s.is4() { wide4(endpoint.gateway4) } else { endpoint.gateway6 };
        s.flags |= CONN_HAIRPIN;
    }
    // Whatever the address that was dialled.
    match guard::check(s, &s.to) {
        0 => port::open(packet, s),
        reason => reason,
    }
}

/// A packet that begins a flow to the outside, or belongs to one that is not Weft's. Zero: it leaves by the route that was found; else
/// an action or a folded reason.
#[inline(never)]
fn outside(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if nat::is_stack_flow(s, endpoint) {
        return STACK;
    }
    let cidr = nat::cidr(s, endpoint.network);
    if cidr & CIDR_STACK != 0 {
        return STACK;
    }
    // The node's other addresses than the gateway are outside as well.
    if endpoint.flags & ENDPOINT_INTERNAL != 0 {
        return fold(DropReason::Internal);
    }
    if publish::is_node(s.key.family, &s.key.destination) || endpoint.bridge == 0 || nat::config().is_none() {
        return STACK;
    }
    if !nat::may_begin(s) {
        return fold(DropReason::NoFlow);
    }
    if endpoint.flags & ENDPOINT_SHAPED_EGRESS != 0 {
        return STACK;
    }
    match nat::find_own_route(packet, s, endpoint) {
        0 => {}
        reason => return reason,
    }
    let out = s.route.ifindex;
    if out == 0 {
        return STACK;
    }
    nat::begin(packet, s, endpoint, out, CONN_FROM_POD | nat::masquerade(endpoint, cidr))
}
