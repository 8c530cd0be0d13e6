//! What the programs know of overlay networks: the VXLAN device, the networks on it, and which node has what.

use crate::NetworkId;

/// The one value of `OVERLAY`. Zero: this node has no overlay device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayConfig {
    /// Index of the VXLAN device.
    pub ifindex: u32,
    /// UDP port of VXLAN, host order.
    pub port: u16,
    /// MAC of the device: what the host stack takes as its own.
    pub mac: [u8; 6],
}

/// [`OverlayNetwork::flags`]: broadcast and multicast are replicated (`REPLICAS`).
pub const OVERLAY_FLOOD: u32 = 1;

/// Value of `OVERLAY_NETWORKS`, keyed by network (u32, host order).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayNetwork {
    /// VXLAN network identifier (24 bits, RFC 7348, section 5).
    pub vni: u32,
    /// `OVERLAY_*`.
    pub flags: u32,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// How many entries `REPLICAS` has of other nodes.
    pub replicas: u32,
    /// How many it has of endpoints of this node, from [`LOCAL_REPLICAS`] on.
    pub locals: u32,
    /// The node's own IPv6 address on it; zero: none.
    pub node6: [u8; 16],
    /// The gateway's IPv6 address; zero: none.
    pub gateway6: [u8; 16],
    /// The node's own IPv4 address on it; zero: none.
    pub node4: [u8; 4],
    /// The gateway's IPv4 address; zero: none.
    pub gateway4: [u8; 4],
}

/// [`Peer::flags`]: on a segment that this node is on too, reached by the host's route without VXLAN.
pub const PEER_DIRECT: u32 = 1;

/// Value of `PEERS` (a longest-prefix map keyed by [`crate::CidrKey`]): the node that has these addresses of a network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address on the underlay, IPv4 written as IPv6 (`mapped4`).
    pub remote: [u8; 16],
    /// `PEER_*`.
    pub flags: u32,
}

/// Value of `VTEPS`: the way there takes whatever a network takes. Any other value is the largest IP packet, in bytes, that the way
/// to that node takes; none is as small as this one.
pub const VTEP_UNLIMITED: u32 = 1;

/// Number of the network in which nodes probe the ways between each other. No other network gets it.
pub const PROBE_NETWORK: NetworkId = NetworkId::MAX;

/// First index of the copies for endpoints of this node: an endpoint that comes or goes moves no peer.
pub const LOCAL_REPLICAS: u32 = 1 << 31;

/// Key of `REPLICAS`: one copy of what a network floods.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaKey {
    /// Network.
    pub network: NetworkId,
    /// From 0 to [`OverlayNetwork::replicas`]: peers; from [`LOCAL_REPLICAS`] on, [`OverlayNetwork::locals`] of them: local endpoints.
    pub index: u32,
}

/// Value of `REPLICAS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// A peer's address on the underlay, IPv4 written as IPv6; zero for a local endpoint.
    pub remote: [u8; 16],
    /// Host-side veth of a local endpoint; zero for a peer.
    pub ifindex: u32,
}

/// Key of `GUARDED`: where sandboxes may not go, whatever the way (the node's store). What has no entry with its port at the address
/// zero has none at all.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuardedKey {
    /// Address, IPv4 written as IPv6.
    pub address: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = {
    assert!(size_of::<OverlayConfig>() == 12);
    assert!(size_of::<OverlayNetwork>() == 60);
    assert!(size_of::<Peer>() == 20);
    assert!(size_of::<ReplicaKey>() == 8);
    assert!(size_of::<Replica>() == 20);
    assert!(size_of::<GuardedKey>() == 20);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), Copy, no padding (asserted above), any bit pattern is valid.
    unsafe impl aya::Pod for super::OverlayConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::OverlayNetwork {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Peer {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ReplicaKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Replica {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::GuardedKey {}
}
