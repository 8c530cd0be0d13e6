//! What comes in by the VXLAN device: from nodes only, for sandboxes of this node and for the node's own address.

use super::{QUIET, device, flood, is_gateway, is_own, is_routed, network, peer, tunnel};
use crate::{
    drop::{self, fold},
    flow, guard,
    maps::{VNIS, VTEPS},
    nat::{self, STACK},
    packet::{self, ICMPV6, Packet},
    redirect::{self, PACKET_HOST, Way},
    scratch::{Scratch, scratch},
};
use ebpf_common::{
    DropReason, HOOK_FROM_OVERLAY, IPV6, NetworkId, OverlayNetwork, TARGET_ROUTED, Target, is_link_local,
};

/// What comes in by the VXLAN device.
#[inline(always)]
pub(crate) fn from_overlay(packet: &Packet<'_>) -> i32 {
    // Whoever marked it did so on another node.
    packet.unmark();
    let Some(s) = scratch() else {
        return QUIET;
    };
    s.veth = 0;
    let step = arrive(packet, s);
    drop::finish(packet, HOOK_FROM_OVERLAY, s.veth, step)
}

/// Who sends it, and in which network.
#[inline(always)]
fn arrive(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    let Some((vni, remote)) = tunnel::unwrapped(packet) else {
        return fold(DropReason::UnknownPeer);
    };
    // SAFETY: only its presence counts.
    if unsafe { VTEPS.get(remote) }.is_none() {
        return fold(DropReason::UnknownPeer);
    }
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    let Some(&id) = (unsafe { VNIS.get(vni) }) else {
        return fold(DropReason::UnknownPeer);
    };
    let Some(known) = network(id) else {
        return fold(DropReason::UnknownPeer);
    };
    match read(packet, s) {
        0 => place(packet, id, known, s),
        reason => reason,
    }
}

/// Zero, or why the packet cannot be read.
#[inline(always)]
fn read(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    let ethernet = match packet.ethernet() {
        Ok(ethernet) => ethernet,
        Err(reason) => return fold(reason),
    };
    if packet.has_untagged() || ethernet.is_tagged() {
        return fold(DropReason::VlanTag);
    }
    s.is_group = ethernet.destination[0] & 1 != 0;
    let result = match ethernet.ethertype() {
        packet::IPV4 => s.read4(packet),
        packet::IPV6 => s.read6(packet),
        // No node asks another one for neighbours.
        _ => return fold(DropReason::Ethertype),
    };
    match result {
        Ok(()) if is_discovery(s) => fold(DropReason::SpoofedNeighbour),
        Ok(()) => 0,
        Err(reason) => fold(reason),
    }
}

/// Whether it is neighbour discovery, which stays on its node.
#[inline(always)]
pub(super) fn is_discovery(s: &Scratch) -> bool {
    s.key.protocol == ICMPV6 && s.key.family == IPV6 && matches!(s.transport.icmp, Some(133..=137))
}

/// Where it goes on this node.
#[inline(never)]
fn place(packet: &Packet<'_>, id: NetworkId, known: &OverlayNetwork, s: &mut Scratch) -> i32 {
    let family = s.key.family;
    // Another node would speak for somebody who is here.
    if is_own(known, family, &s.key.source) || nat::target(id, family, &s.key.source).is_some() {
        return fold(DropReason::SpoofedIp);
    }
    s.owner = nat::owner(family, &s.key.source).unwrap_or(0);
    if s.owner != 0 && s.owner != id {
        return fold(DropReason::Isolated);
    }
    if s.is_group || s.is_multicast() {
        return flood::receive(packet, id, known);
    }
    if let Some(target) = nat::target(id, family, &s.key.destination) {
        return enter(packet, id, target, s);
    }
    if is_own(known, family, &s.key.destination) || is_gateway(known, family, &s.key.destination) {
        return match guard::check(s, &s.key) {
            0 => to_stack(packet),
            reason => reason,
        };
    }
    // Of the node's own blocks: the host says so to the sender. What another node has is not sent on.
    let is_ours = s.owner == id && nat::owner(family, &s.key.destination) == Some(id);
    if is_ours && is_routed(known, family) && peer(id, family, &s.key.destination).is_none() {
        return to_stack(packet);
    }
    fold(DropReason::NoSuchAddress)
}

/// Whether its source is of no network, and not of a link.
#[inline(always)]
pub(super) fn is_outside(s: &Scratch) -> bool {
    s.owner == 0 && (s.is4() || !is_link_local(&s.key.source))
}

/// Into a sandbox of this node, or back to the stack that the flow left by.
#[inline(never)]
fn enter(packet: &Packet<'_>, id: NetworkId, target: &Target, s: &mut Scratch) -> i32 {
    s.veth = target.ifindex;
    let Some(endpoint) = nat::endpoint(target.ifindex) else {
        return fold(DropReason::UnknownEndpoint);
    };
    if is_outside(s) && target.flags & TARGET_ROUTED == 0 {
        return fold(DropReason::NotPublished);
    }
    if flow::way_back(&nat::flow_key(s, id), s.place.fragment, endpoint).is_some() {
        return to_stack(packet);
    }
    match redirect::send(packet, endpoint, &Way::Neighbour(target)) {
        Ok(action) => action,
        Err(reason) => fold(reason),
    }
}

/// Hands the packet to the host's stack, which takes it for its own by the device's MAC.
#[inline(never)]
fn to_stack(packet: &Packet<'_>) -> i32 {
    let Some(device) = device() else {
        return fold(DropReason::UnknownPeer);
    };
    if packet.store(0, &device.mac, 0).is_err() || packet.ctx().change_type(PACKET_HOST).is_err() {
        return fold(DropReason::Rewrite);
    }
    STACK
}
