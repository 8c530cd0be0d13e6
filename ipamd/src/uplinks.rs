//! Pure: which devices of the host outside traffic may use, with which addresses, and which addresses are the node itself.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A device of the host that outside traffic may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Whether its packets have no link-layer header (tun, wireguard).
    pub l3: bool,
    /// Address that sources become.
    pub ipv4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// The host as the datapath must know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostView {
    /// Devices.
    pub uplinks: Vec<Uplink>,
    /// Addresses of the node, without 127.0.0.0/8, ::1 and link-local ones.
    pub addresses: BTreeSet<IpAddr>,
}
