//! What an endpoint sends within its overlay network: into a sandbox of this node, or to the node that has the destination.

use super::{derived_mac, device, direct, is_own, is_routed, length, most, network, peer, shortcut, tunnel};
use crate::{
    drop::fold,
    nat::{self, STACK},
    packet::Packet,
    redirect::{self, Way},
    scratch::Scratch,
    verdict,
};
use aya_ebpf::helpers::generated::bpf_redirect;
use ebpf_common::{DropReason, ENDPOINT_SHAPED_EGRESS, Endpoint, OverlayNetwork, PEER_DIRECT};

/// To an address of the network of `endpoint`.
///
/// What goes on to the stack is routed to the VXLAN device, where [`super::to_overlay`] sees it; a packet that is too long for it
/// is answered by the host, as a router would.
#[inline(never)]
pub(crate) fn within(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    // The shaper's qdisc stands behind this hook.
    if endpoint.flags & ENDPOINT_SHAPED_EGRESS != 0 || verdict::way_by_host(endpoint, s).is_some() {
        return STACK;
    }
    if let Some(target) = nat::target(endpoint.network, s.key.family, &s.key.destination) {
        return match redirect::send(packet, endpoint, &Way::Neighbour(target)) {
            Ok(action) => action,
            Err(reason) => fold(reason),
        };
    }
    let Some(known) = network(endpoint.network) else {
        return fold(DropReason::NoSuchAddress);
    };
    if is_own(known, s.key.family, &s.key.destination) {
        return STACK;
    }
    match peer(endpoint.network, s.key.family, &s.key.destination) {
        Some(peer) if peer.flags & PEER_DIRECT != 0 => match direct::leave(packet, endpoint, s) {
            direct::BY_TUNNEL => encapsulate(packet, endpoint, known, &peer.remote, s),
            other => other,
        },
        Some(peer) => encapsulate(packet, endpoint, known, &peer.remote, s),
        // Of the node's own blocks the host says that it is unreachable. Of others its route leads to the VXLAN device, which drops.
        None if is_routed(known, s.key.family) => STACK,
        None => fold(DropReason::NoSuchAddress),
    }
}

/// To a node by VXLAN.
#[inline(never)]
fn encapsulate(
    packet: &Packet<'_>,
    endpoint: &Endpoint,
    known: &OverlayNetwork,
    remote: &[u8; 16],
    s: &mut Scratch,
) -> i32 {
    let Some(device) = device() else {
        return STACK;
    };
    let length = length(packet, s);
    if length > most(known, remote) {
        return STACK;
    }
    match shortcut::leave(packet, device, endpoint, known.vni, remote, length, s) {
        shortcut::BY_DEVICE => {}
        other => return other,
    }
    // The receiver's node knows its MAC; this one is for those who watch the underlay.
    let mac = derived_mac(s.key.family, &s.key.destination);
    let wrapped = packet.store(0, &mac, 0).and_then(|()| tunnel::wrap(packet, known.vni, remote));
    if let Err(reason) = wrapped {
        return fold(reason);
    }
    packet.mark_delivered();
    // SAFETY: plain integers.
    unsafe { bpf_redirect(device.ifindex, 0) as i32 }
}
