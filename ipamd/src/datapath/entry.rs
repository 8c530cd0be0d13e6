//! What the datapath is asked for, in terms of endpoints and networks rather than of map layouts.

use ipamd_api::{EndpointId, Hooks, MacAddr};
use std::net::{Ipv4Addr, Ipv6Addr};

/// An endpoint as the programs should know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Generation.
    pub id: EndpointId,
    /// Host-side veth.
    pub host_ifindex: u32,
    /// Its name.
    pub host_ifname: String,
    /// How to attach.
    pub hooks: Hooks,
    /// Network number.
    pub network: u32,
    /// Whether the network is internal.
    pub internal: bool,
    /// IPv4 address and gateway.
    pub ipv4: Option<(Ipv4Addr, Ipv4Addr)>,
    /// IPv6 address and gateway.
    pub ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// MAC of the container's interface.
    pub mac: MacAddr,
    /// MAC of the bridge.
    pub gateway_mac: MacAddr,
    /// Qdiscs that others put on the veth.
    pub shaping: Shaping,
    /// Index of the network's bridge; 0 when it is not known, and then everything outside is left to the host stack. Of an overlay
    /// network the VXLAN device, or 0: the host's routing sees its packets come in by the host-side veth, but looks up IPv6
    /// routes for programs only from a device with `forwarding` of its own, which the veth cannot be given at a bearable price.
    pub bridge_ifindex: u32,
    /// Whether its network is an overlay.
    pub overlay: bool,
    /// How it and the outside see each other.
    pub outside: Outside,
    /// Whether it serves published ports.
    pub published: bool,
    /// Where it may ask for names.
    pub dns: DnsMode,
}

impl EndpointEntry {
    /// Index of the device that routes are looked up from; 0: not known.
    pub(super) fn routed_from(&self) -> u32 {
        if self.overlay && self.bridge_ifindex == 0 { self.host_ifindex } else { self.bridge_ifindex }
    }
}

/// With which address an endpoint reaches the outside, and whether the outside reaches it by its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Outside {
    /// With the uplink's address; only published ports are reachable.
    #[default]
    Masquerade,
    /// With its own; only published ports are reachable.
    Plain,
    /// With its own; its addresses are reachable.
    Routed,
}

/// Where a container's questions for names are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DnsMode {
    /// Nowhere: nothing of Weft looks at them.
    #[default]
    Off,
    /// At the address of its gateway.
    Gateway,
    /// Whomever it asks, at port 53.
    Intercept,
}

/// Which directions someone shapes with a qdisc on the host-side veth. Directions as the container sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shaping {
    /// To the container: a root qdisc other than noqueue.
    pub ingress: bool,
    /// From the container: an `ingress` qdisc that is not Weft's clsact.
    pub egress: bool,
}
