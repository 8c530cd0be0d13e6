//! Wanted and observed state of links, as plain values.

use super::overlay_routes::OverlayRoute;
use ipamd_api::{Driver, EndpointId, MacAddr, Route, netns::SandboxIdentity};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// What a network wants on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkWiring {
    /// Driver; only `bridge` has something on the host.
    pub driver: Driver,
    /// Name of the bridge, `wf-<id>`.
    pub bridge: String,
    /// MAC of the bridge; it never changes.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Gateway addresses with the prefix length of their pools.
    pub gateways: Vec<IpNetwork>,
    /// Internal networks need no forwarding.
    pub internal: bool,
}

/// What an endpoint wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointWiring {
    /// Generation.
    pub id: EndpointId,
    /// Driver.
    pub driver: Driver,
    /// Host-side name (`bridge`).
    pub host_ifname: String,
    /// Name inside the sandbox.
    pub ifname: String,
    /// Bridge the host side is a port of (`bridge`); [`OVERLAY_DEVICE`](super::OVERLAY_DEVICE), without which it is of no use
    /// (`overlay`).
    pub bridge: String,
    /// What the host side is, where it is in no bridge (`overlay`).
    pub routed: Option<RoutedEnd>,
    /// Parent interface (`macvlan`).
    pub parent: Option<String>,
    /// MAC of the container's interface.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses with the prefix length of their pools.
    pub addresses: Vec<IpNetwork>,
    /// Routes beside the connected ones, the default routes among them.
    pub routes: Vec<Route>,
    /// ifalias of the host side, e.g. `weft blue 4f3c…/eth0`: for people, and for a start that has lost every record.
    pub alias: String,
}

/// A host side that is in no bridge: the host routes each of the endpoint's addresses to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedEnd {
    /// MAC of the host side: the gateway's, so that what sandboxes send to the gateway is addressed to the host's stack.
    pub mac: MacAddr,
    /// The gateways, one of a family: with which the host speaks to the endpoint, and by which it tells it of errors.
    pub sources: Vec<IpAddr>,
    /// Whether the host forwards what comes out of the sandbox.
    pub forward: bool,
}

impl RoutedEnd {
    /// The source for a destination.
    pub fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        self.sources.iter().copied().find(|source| source.is_ipv4() == destination.is_ipv4())
    }
}

/// What all overlay networks together want on the host: one VXLAN device, addresses on it, and routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayWiring {
    /// UDP port.
    pub port: u16,
    /// MAC of the device; it follows the node's address on the underlay.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether IPv6 is forwarded between it and endpoints.
    pub forward_ipv6: bool,
    /// Gateways, /32 and /128, and the node's own addresses with the length of their pool (by it the kernel finds the one to speak
    /// with where nobody says so, as for a masquerade). The probe address is /128: nothing speaks with it by itself.
    pub addresses: Vec<IpNetwork>,
    /// Routes, each destination once.
    pub routes: Vec<OverlayRoute>,
}

/// What is there of all that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OverlayObserved {
    /// The VXLAN device.
    pub device: Option<LinkObserved>,
    /// Whether it takes port, peer and network of each packet from the programs, as it must, and on which UDP port.
    pub external_port: Option<u16>,
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
    /// Weft's routes, in order.
    pub routes: Vec<OverlayRoute>,
}

/// The links that [`Kernel::create`](super::Kernel::create) made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// Host side; `None` for drivers without one.
    pub host_ifindex: Option<u32>,
    /// Inside the sandbox; `None` for drivers that make no link.
    pub sandbox_ifindex: Option<u32>,
    /// The bridge that the host side is a port of, or the overlay's device; `None` for drivers without one.
    pub bridge_ifindex: Option<u32>,
}

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkObserved {
    /// Index in its namespace.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Name of the bridge or other master it belongs to.
    pub master: Option<String>,
}

/// What is at the path of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxObserved {
    /// The sandbox of the record.
    Same,
    /// Another one: same path, another cookie.
    Replaced,
    /// Nothing, or no namespace.
    Gone,
}

/// What is there of an endpoint. Inner parts are `None` where the sandbox could not be looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointObserved {
    /// The sandbox.
    pub sandbox: SandboxObserved,
    /// Host side.
    pub host: Option<LinkObserved>,
    /// Container side.
    pub inside: Option<LinkObserved>,
    /// Addresses of the container side, link-local ones left out.
    pub addresses: Vec<IpNetwork>,
    /// Routes over the container side beside the connected and link-local ones.
    pub routes: Vec<Route>,
    /// What there is beside the link on the host.
    pub beside: Beside,
}

/// What there is beside the host side's link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beside {
    /// Whether the bridge has the static FDB entry.
    pub fdb: bool,
    /// Addresses with a permanent neighbour, on the bridge or on the routed end.
    pub neighbours: Vec<IpAddr>,
    /// Addresses that the host routes to the end, with the source that it should take.
    pub routes: Vec<IpAddr>,
    /// Whether the settings of a routed end (forwarding, router advertisements) are as they should be.
    pub settled: bool,
}

/// What the kernel tells of an endpoint whose record is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointTraced {
    /// Generation, from the name of the host end.
    pub id: EndpointId,
    /// ifalias of the host end, see [`EndpointWiring::alias`].
    pub alias: Option<String>,
    /// Bridge that the host end is a port of.
    pub bridge: Option<String>,
    /// Host end.
    pub host_ifindex: u32,
    /// Container end, in its sandbox.
    pub sandbox_ifindex: Option<u32>,
    /// Name of the container end; `None` where its sandbox was not found.
    pub ifname: Option<String>,
    /// MAC of the container end.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses, from the permanent neighbours, else from inside.
    pub addresses: Vec<IpAddr>,
    /// Routes of the container end beside the connected ones.
    pub routes: Vec<Route>,
    /// The sandbox, if it has a path.
    pub sandbox: Option<SandboxIdentity>,
}

/// What is there of the host side of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSideObserved {
    /// Host side.
    pub link: Option<LinkObserved>,
    /// What there is beside it.
    pub beside: Beside,
}

/// What is there of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkObserved {
    /// The bridge.
    pub bridge: Option<LinkObserved>,
    /// Its addresses, link-local ones left out.
    pub addresses: Vec<IpNetwork>,
}

/// Two witnesses of a sandbox's life; design section 4: one alone frees nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witnesses {
    /// What is at its path.
    pub path: SandboxObserved,
    /// Whether the host-side link of this generation exists: it dies with the sandbox. `None`: the driver has none.
    pub host_link: Option<bool>,
}
