//! What the maps hold, in terms of endpoints and networks rather than of map layouts.

use super::{DnsMode, EndpointEntry, Outside};
use ipamd_api::{EndpointId, MacAddr};
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Endpoints, addresses and pools as the maps hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// `ENDPOINTS`, by index of the host-side veth.
    pub endpoints: BTreeMap<u32, ObservedEndpoint>,
    /// `ADDRESSES`, by network and address.
    pub addresses: BTreeMap<(u32, IpAddr), ObservedTarget>,
    /// `POOLS4` and `POOLS6`: which network owns a prefix.
    pub pools: BTreeMap<IpNetwork, u32>,
}

/// The entries of one endpoint; what is missing is not in its map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedOne {
    /// Its entry in `ENDPOINTS`.
    pub endpoint: Option<ObservedEndpoint>,
    /// Its entries in `ADDRESSES`.
    pub addresses: BTreeMap<IpAddr, ObservedTarget>,
}

/// An entry of `ENDPOINTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedEndpoint {
    /// Generation; `None` when the number is none.
    pub id: Option<EndpointId>,
    /// Network number.
    pub network: u32,
    /// Whether the network is internal.
    pub internal: bool,
    /// Whether what it sends is delivered by the stack, through someone's qdisc.
    pub shaped_egress: bool,
    /// How it and the outside see each other.
    pub outside: Outside,
    /// Whether it serves published ports.
    pub published: bool,
    /// Index of its bridge; of the host-side veth if it is on an overlay network.
    pub bridge_ifindex: u32,
    /// Whether its network is an overlay.
    pub overlay: bool,
    /// Where it may ask for names.
    pub dns: DnsMode,
    /// IPv4 address and gateway.
    pub ipv4: Option<(Ipv4Addr, Ipv4Addr)>,
    /// IPv6 address and gateway.
    pub ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// MAC of the container's interface.
    pub mac: MacAddr,
    /// MAC of the bridge.
    pub gateway_mac: MacAddr,
}

/// An entry of `ADDRESSES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedTarget {
    /// Host-side veth.
    pub host_ifindex: u32,
    /// MAC of the container's interface.
    pub mac: MacAddr,
    /// Whether what it receives goes through someone's qdisc.
    pub shaped_ingress: bool,
    /// Whether the outside reaches it by its own address.
    pub routed: bool,
}

impl From<&EndpointEntry> for ObservedEndpoint {
    /// What the maps should hold of an endpoint.
    fn from(e: &EndpointEntry) -> Self {
        Self {
            id: Some(e.id),
            network: e.network,
            internal: e.internal,
            shaped_egress: e.shaping.egress,
            outside: e.outside,
            published: e.published,
            bridge_ifindex: e.routed_from(),
            overlay: e.overlay,
            dns: e.dns,
            ipv4: e.ipv4,
            ipv6: e.ipv6,
            mac: e.mac,
            gateway_mac: e.gateway_mac,
        }
    }
}
