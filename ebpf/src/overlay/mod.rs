//! Networks that span nodes: who answers for a neighbour, which node has an address, and the way there and back by VXLAN.
//!
//! One VXLAN device of the node carries every overlay network (`OVERLAY`). It knows nothing itself: what goes out by it
//! has a tunnel key that a program has set, and what comes in by it is believed only if it comes from a node (`VTEPS`). State grows
//! with blocks (`PEERS`), not with endpoints, because a neighbour's MAC is derived from its address and nobody has to learn it.
//! Within one network the TTL stays: a network is one link, however many nodes it spans.

mod answer;
mod arriving;
mod direct;
mod flood;
mod incoming;
mod leaving;
mod outgoing;
mod shortcut;
mod tunnel;

pub(crate) use answer::{arp, discovery};
pub(crate) use arriving::arrive as arrive_tunnelled;
pub(crate) use direct::{arrive as arrive_direct, forwarded, is_within};
pub(crate) use flood::spread;
pub(crate) use incoming::from_overlay;
pub(crate) use leaving::within;
pub(crate) use outgoing::to_overlay;
pub(crate) use tunnel::as_tunnelled;

use crate::{
    maps::{OVERLAY, OVERLAY_NETWORKS, PEERS, VTEPS},
    packet::Packet,
    route,
    scratch::{Scratch, narrow},
};
use aya_ebpf::{bindings::TC_ACT_SHOT, maps::lpm_trie::Key};
use ebpf_common::{
    CidrKey, IPV4, NetworkId, OverlayConfig, OverlayNetwork, Peer, VTEP_UNLIMITED, mac_of4, mac_of6, mapped4,
};

/// Nobody wants it and nobody misses it: dropped, but not counted as lost.
pub(crate) const QUIET: i32 = TC_ACT_SHOT;

/// The VXLAN device; none until ipamd has made it.
#[inline(always)]
fn device() -> Option<&'static OverlayConfig> {
    let config = OVERLAY.get(0)?;
    if config.ifindex == 0 { None } else { Some(config) }
}

/// An overlay network of this node.
#[inline(always)]
fn network(id: NetworkId) -> Option<&'static OverlayNetwork> {
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    unsafe { OVERLAY_NETWORKS.get(id) }
}

/// The node that has an address.
#[inline(never)]
fn peer(network: NetworkId, family: u8, address: &[u8; 16]) -> Option<&'static Peer> {
    let address = if family == IPV4 { mapped4(narrow(address)) } else { *address };
    PEERS.get(Key::new(CidrKey::ALL_BITS, CidrKey::new(network, address)))
}

/// The largest packet that the network takes, and the way to this node.
#[inline(always)]
fn most(network: &OverlayNetwork, remote: &[u8; 16]) -> u32 {
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    match unsafe { VTEPS.get(remote) } {
        Some(&limit) if limit > VTEP_UNLIMITED && limit < network.mtu => limit,
        _ => network.mtu,
    }
}

/// Bytes of the packet, or of each of the segments that it will be cut into.
#[inline(always)]
fn length(packet: &Packet<'_>, s: &Scratch) -> u32 {
    let length = if s.is4() {
        route::segment_length(packet, s.ip4.total, s.ip4.protocol, s.ip4.payload)
    } else {
        route::segment_length(packet, s.ip6.total, s.ip6.protocol, s.ip6.payload)
    };
    length.into()
}

/// Whether an address is this node's own on a network.
#[inline(always)]
fn is_own(network: &OverlayNetwork, family: u8, address: &[u8; 16]) -> bool {
    if family == IPV4 { is4(network.node4, address) } else { is6(&network.node6, address) }
}

/// Whether this node has an address on a network: then the host routes the pool to the VXLAN device, and not to the outside.
#[inline(always)]
fn is_routed(network: &OverlayNetwork, family: u8) -> bool {
    if family == IPV4 { network.node4 != [0; 4] } else { network.node6 != [0; 16] }
}

/// Whether an address is the gateway of a network, which every node is.
#[inline(always)]
fn is_gateway(network: &OverlayNetwork, family: u8, address: &[u8; 16]) -> bool {
    if family == IPV4 { is4(network.gateway4, address) } else { is6(&network.gateway6, address) }
}

/// Whether an address is this one; zero is none.
#[inline(always)]
fn is4(this: [u8; 4], address: &[u8; 16]) -> bool {
    this != [0; 4] && this == narrow(address)
}

#[inline(always)]
fn is6(this: &[u8; 16], address: &[u8; 16]) -> bool {
    *this != [0; 16] && this == address
}

/// The MAC of whoever has an address.
#[inline(always)]
fn derived_mac(family: u8, address: &[u8; 16]) -> [u8; 6] {
    if family == IPV4 { mac_of4(narrow(address)) } else { mac_of6(address) }
}
