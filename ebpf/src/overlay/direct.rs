//! Nodes on a segment that this one is on too: packets go as they are, by the host's routes, as between any two routers.
//!
//! What comes from there is not proven to: whoever is on the segment may use a sandbox's address as its source. That is what such
//! a network trades for the bytes of an outer header.

use super::{device, outgoing::remember, peer};
use crate::{
    drop::fold,
    flow,
    nat::{self, STACK},
    packet::Packet,
    route,
    scratch::Scratch,
};
use ebpf_common::{DropReason, ENDPOINT_OVERLAY, Endpoint, PEER_DIRECT, Target};

/// The route is not there yet. Neither an action nor a folded reason.
pub(super) const BY_TUNNEL: i32 = 1 << 19;

/// To a node on a common segment.
#[inline(never)]
pub(super) fn leave(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if endpoint.bridge == 0 {
        return STACK;
    }
    match nat::find_own_route(packet, s, endpoint) {
        0 => {}
        reason => return reason,
    }
    match s.route.ifindex {
        0 => STACK,
        out if device().is_some_and(|d| d.ifindex == out) => BY_TUNNEL,
        _ => nat::send_out(packet, s),
    }
}

/// Whether a packet of `endpoint` is for its own overlay network.
#[inline(always)]
pub(crate) fn is_within(endpoint: &Endpoint, s: &Scratch) -> bool {
    endpoint.flags & ENDPOINT_OVERLAY != 0
        && nat::owner(s.key.family, &s.key.destination) == Some(endpoint.network)
}

/// A packet of `endpoint` to its own overlay network that the stack sends out by a device of the host: right only for such a node.
#[inline(never)]
pub(crate) fn forwarded(endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    match peer(endpoint.network, s.key.family, &s.key.destination) {
        Some(peer) if peer.flags & PEER_DIRECT != 0 => {
            remember(s, endpoint.network);
            STACK
        }
        // The pool's route is missing: nothing of an overlay network leaves as it is.
        _ => fold(DropReason::NoSuchAddress),
    }
}

/// A packet that came by a device of the host, for an endpoint of this node: zero if it is not from a sandbox of such a node, else an
/// action or a folded reason.
#[inline(never)]
pub(crate) fn arrive(packet: &Packet<'_>, endpoint: &Endpoint, target: &Target, s: &Scratch) -> i32 {
    let family = s.key.family;
    let is_neighbour = endpoint.flags & ENDPOINT_OVERLAY != 0
        && nat::owner(family, &s.key.source) == Some(endpoint.network)
        && peer(endpoint.network, family, &s.key.source).is_some_and(|p| p.flags & PEER_DIRECT != 0);
    if !is_neighbour {
        return 0;
    }
    if flow::way_back(&nat::flow_key(s, endpoint.network), s.place.fragment, endpoint).is_some() {
        return STACK;
    }
    match route::into_pod(packet, target, endpoint) {
        Ok(action) => action,
        Err(reason) => fold(reason),
    }
}
