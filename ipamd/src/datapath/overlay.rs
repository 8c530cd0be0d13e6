//! What the datapath is told of overlay networks, in terms of addresses and nodes rather than of map layouts.

use ipamd_api::MacAddr;
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// All that the programs know of overlay networks. Desired as a whole: what is not in here is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayView {
    /// The VXLAN device; `None` until there is one.
    pub device: Option<OverlayDevice>,
    /// Overlay networks, in order of number.
    pub networks: Vec<OverlayEntry>,
    /// Which node has which addresses, this one left out; in order, each prefix of a network once.
    pub peers: Vec<PeerEntry>,
    /// Addresses on the underlay from which VXLAN is taken, in order.
    pub vteps: Vec<IpAddr>,
    /// Devices of the underlay, by index, where packets leave and come in past the VXLAN device, with this node's address there; in
    /// order of index.
    pub underlays: Vec<(u32, Ipv4Addr)>,
    /// Largest packet, in bytes, of the ways to some of those that take less than the networks do; in order.
    pub clamps: Vec<(IpAddr, u32)>,
    /// Where sandboxes may not go by TCP: the endpoints of the store.
    pub guarded: Vec<SocketAddr>,
}

/// The VXLAN device of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayDevice {
    /// Its index.
    pub ifindex: u32,
    /// UDP port.
    pub port: u16,
    /// Its MAC.
    pub mac: MacAddr,
}

/// An overlay network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayEntry {
    /// Number of the network.
    pub network: u32,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// Whether broadcast and multicast are replicated.
    pub flood: bool,
    /// The node's own IPv4 address on it, and the gateway's.
    pub ipv4: Option<(Ipv4Addr, Ipv4Addr)>,
    /// The node's own IPv6 address on it, and the gateway's.
    pub ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// Addresses on the underlay of the nodes that get a copy of what it floods.
    pub flood_to: Vec<IpAddr>,
}

/// Addresses of a network that another node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerEntry {
    /// Number of the network.
    pub network: u32,
    /// A block, or one address of another node's block.
    pub destination: IpNetwork,
    /// The node's address on the underlay.
    pub remote: IpAddr,
    /// Reached without VXLAN, by a route of the host.
    pub direct: bool,
}
