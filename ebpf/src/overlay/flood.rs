//! Broadcast and multicast of a network that floods: a copy for each node of the network, which makes one for each of its endpoints.
//!
//! Nothing comes back to its sender, and what another node has sent is not sent on to a third one. Copies are marked as
//! [`crate::packet::Packet::mark_delivered`] says, so no program decides on them again.

use super::{QUIET, device, length, network, tunnel};
use crate::{maps::REPLICAS, packet::Packet, scratch::Scratch};
use aya_ebpf::helpers::generated::{bpf_clone_redirect, bpf_loop};
use core::{ffi::c_void, ptr};
use ebpf_common::{Endpoint, LOCAL_REPLICAS, NetworkId, OVERLAY_FLOOD, OverlayNetwork, Replica, ReplicaKey};

/// What the loops work on.
struct Copies<'a, 'b> {
    packet: &'a Packet<'b>,
    network: NetworkId,
    vni: u32,
    /// The VXLAN device.
    device: u32,
}

/// What an endpoint sends to everybody.
#[inline(never)]
pub(crate) fn spread(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch) -> i32 {
    let Some(known) = network(endpoint.network) else {
        return QUIET;
    };
    // Nobody answers a group that something is too long.
    if known.flags & OVERLAY_FLOOD == 0 || length(packet, s) > known.mtu {
        return QUIET;
    }
    let device = device().map_or(0, |d| d.ifindex);
    to_locals(packet, endpoint.network, known);
    if device != 0 {
        let mut copies = Copies { packet, network: endpoint.network, vni: known.vni, device };
        let step: extern "C" fn(u64, *mut Copies<'_, '_>) -> i64 = to_peer;
        // SAFETY: the callback takes what is passed, which outlives the call.
        unsafe { bpf_loop(known.replicas, step as *mut c_void, ptr::from_mut(&mut copies).cast(), 0) };
    }
    QUIET
}

/// What another node sends to everybody.
#[inline(never)]
pub(super) fn receive(packet: &Packet<'_>, id: NetworkId, known: &OverlayNetwork) -> i32 {
    if known.flags & OVERLAY_FLOOD != 0 {
        to_locals(packet, id, known);
    }
    QUIET
}

/// A copy for each endpoint of this node, but the sender.
#[inline(always)]
fn to_locals(packet: &Packet<'_>, network: NetworkId, known: &OverlayNetwork) {
    packet.mark_delivered();
    let mut copies = Copies { packet, network, vni: 0, device: 0 };
    let step: extern "C" fn(u64, *mut Copies<'_, '_>) -> i64 = to_local;
    // SAFETY: the callback takes what is passed, which outlives the call.
    unsafe { bpf_loop(known.locals, step as *mut c_void, ptr::from_mut(&mut copies).cast(), 0) };
}

#[inline(never)]
extern "C" fn to_local(index: u64, copies: *mut Copies<'_, '_>) -> i64 {
    // SAFETY: the loop passes a value that lives until it ends.
    let copies = unsafe { &*copies };
    if let Some(replica) = replica(copies.network, LOCAL_REPLICAS.wrapping_add(index as u32))
        && replica.ifindex != 0
        && replica.ifindex != copies.packet.ifindex()
    {
        clone_to(copies.packet, replica.ifindex);
    }
    0
}

#[inline(never)]
extern "C" fn to_peer(index: u64, copies: *mut Copies<'_, '_>) -> i64 {
    // SAFETY: the loop passes a value that lives until it ends.
    let copies = unsafe { &*copies };
    if let Some(replica) = replica(copies.network, index as u32)
        && tunnel::wrap(copies.packet, copies.vni, &replica.remote).is_ok()
    {
        clone_to(copies.packet, copies.device);
    }
    0
}

#[inline(always)]
fn replica(network: NetworkId, index: u32) -> Option<&'static Replica> {
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    unsafe { REPLICAS.get(ReplicaKey { network, index }) }
}

/// Sends a copy out of a device. What does not get there is lost, as it may be on any link.
#[inline(always)]
fn clone_to(packet: &Packet<'_>, ifindex: u32) {
    // SAFETY: the context is the one that the kernel gave.
    let _ = unsafe { bpf_clone_redirect(packet.ctx().skb.skb, ifindex, 0) };
}
