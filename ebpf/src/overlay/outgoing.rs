//! What the host's stack sends by the VXLAN device: its own packets, and those that it forwards for sandboxes.
//!
//! The device itself drops whatever has no tunnel key.

use super::{QUIET, derived_mac, network, peer, tunnel};
use crate::{
    drop::{self, fold},
    flow,
    nat::{self, STACK},
    packet::{self, Packet},
    scratch::{Scratch, scratch},
};
use ebpf_common::{DropReason, HOOK_TO_OVERLAY, NetworkId, WAY_ROUTED, is_link_local};

/// What leaves by the VXLAN device.
#[inline(always)]
pub(crate) fn to_overlay(packet: &Packet<'_>) -> i32 {
    // `from_pod` has said where it goes.
    if packet.is_delivered() {
        return STACK;
    }
    let Some(s) = scratch() else {
        return QUIET;
    };
    s.veth = 0;
    let result = match packet.protocol() {
        packet::IPV4 => s.read4(packet),
        packet::IPV6 => s.read6(packet),
        _ => return QUIET,
    };
    let step = match result {
        Ok(()) => send(packet, s),
        Err(reason) => fold(reason),
    };
    drop::finish(packet, HOOK_TO_OVERLAY, s.veth, step)
}

#[inline(never)]
fn send(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    // The kernel speaks to every link of its own accord (listener reports, router solicitations).
    if s.is_multicast() || (!s.is4() && is_link_local(&s.key.destination)) {
        return QUIET;
    }
    let family = s.key.family;
    let Some(id) = nat::owner(family, &s.key.destination) else {
        return fold(DropReason::NoSuchAddress);
    };
    let Some(known) = network(id) else {
        return fold(DropReason::NoSuchAddress);
    };
    // A service must not lead from one network into another.
    if nat::owner(family, &s.key.source).is_some_and(|source| source != id) {
        return fold(DropReason::Isolated);
    }
    s.veth = nat::target(id, family, &s.key.source).map_or(0, |target| target.ifindex);
    let Some(peer) = peer(id, family, &s.key.destination) else {
        return fold(DropReason::NoSuchAddress);
    };
    remember(s, id);
    // Not the device's own MAC: a device drops what comes from the MAC that it has itself, and clones of a machine share one.
    let macs = [derived_mac(family, &s.key.destination), derived_mac(family, &s.key.source)];
    let wrapped = packet.store(0, &macs, 0).and_then(|()| tunnel::wrap(packet, known.vni, &peer.remote));
    if let Err(reason) = wrapped {
        return fold(reason);
    }
    // For `to_netdev` of the uplink: this is no sandbox's own VXLAN.
    packet.mark_delivered();
    STACK
}

/// Remembers that a sandbox's packet left by the stack: its answer must pass there too, for whoever translated the packet.
#[inline(never)]
pub(super) fn remember(s: &mut Scratch, id: NetworkId) {
    let Some(target) = nat::target(id, s.key.family, &s.key.source) else {
        return;
    };
    s.veth = target.ifindex;
    let Some(endpoint) = nat::endpoint(target.ifindex) else {
        return;
    };
    let mut key = nat::flow_key(s, id);
    flow::remember(&mut key, WAY_ROUTED, endpoint);
}
