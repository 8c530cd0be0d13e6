//! The kernel's network devices as ipamd uses them: namespaces, links, addresses, routes, neighbours, sysctls.
//!
//! Owns no state: what is wanted comes in as a [`NetworkWiring`] or an [`EndpointWiring`], what is there comes out as an
//! [`EndpointObserved`]. Every call is idempotent, blocks the calling thread, and may come from any thread. Nothing shells out.

mod addr;
mod bridge;
mod devices;
mod endpoint;
#[cfg(any(test, feature = "contract"))]
pub mod fake;
mod host;
mod host_route;
mod host_routes;
mod host_watch;
mod ipsec;
mod link;
mod listener;
mod neighbour;
mod neighbour_table;
mod netlink;
mod netns;
mod offload;
mod overlay_routes;
mod port_holder;
mod processes;
mod qdisc;
mod route;
mod sockets;
mod sysctl;
mod trace;
mod vxlan;
mod watch;
mod wiring;

pub use devices::{HostAddress, HostDevices, HostLink, HostRoute, LinkLayer, Scope, is_weft_device};
pub use host::{KernelOptions, NetlinkKernel};
pub use host_routes::host_prefixes;
pub use host_watch::{HostChanged, HostWatch};
pub use listener::WatchStopper;
pub use neighbour_table::NeighbourTable;
pub use overlay_routes::{OverlayRoute, RouteWay};
pub use port_holder::{Family, PortHolder, SocketState, conflicts};
pub(crate) use route::describe as describe_route;
pub use sysctl::Ipv6Forwarding;
pub use vxlan::OVERLAY_DEVICE;
pub use watch::{LinkEvent, LinkWatch};
pub use wiring::*;

use ipamd_api::{
    EndpointId, Protocol,
    netns::{Netns, NetnsError, SandboxIdentity},
};
use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive, path::Path, sync::Mutex};

/// An open sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// Who it is.
    pub identity: SandboxIdentity,
    /// The open namespace; `None` only from a fake kernel.
    pub netns: Option<Netns>,
    /// A socket inside, made when the sandbox was opened; [`Kernel::activate`] uses it up.
    inside: Mutex<Option<netlink::RouteSocket>>,
}

impl Sandbox {
    /// A sandbox that nothing can be wired in; for a fake kernel.
    pub fn without_netns(identity: SandboxIdentity) -> Self {
        Self { identity, netns: None, inside: Mutex::new(None) }
    }
}

/// A packet whose way is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayQuery {
    /// Where to.
    pub destination: IpAddr,
    /// Where from, if that is decided.
    pub source: Option<IpAddr>,
    /// The device by which it came; `None`: it begins there.
    pub came_by: Option<u32>,
}

/// The way that a routing table knows for a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It is for whoever asks.
    Local,
    /// Out by a device.
    Out {
        /// The device.
        ifindex: u32,
        /// The next host, unless the destination is on the link.
        gateway: Option<IpAddr>,
    },
    /// There is none; in the kernel's words.
    None(String),
}

/// What the kernel refused, and to whom.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The sandbox already has an interface of this name.
    #[error("interface {ifname} exists already in {sandbox}")]
    InterfaceExists {
        /// Name of the interface.
        ifname: String,
        /// Path of the sandbox.
        sandbox: String,
    },
    /// The parent of a macvlan network is missing.
    #[error("parent interface {0} does not exist on this host")]
    ParentNotFound(String),
    /// The bridge of the network, or the overlay's device, is missing: somebody removed it.
    #[error("device {0} does not exist; it is made again by the next sweep, or by `netctl gc`")]
    BridgeMissing(String),
    /// The sandbox cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Anything else: what was to be done, to what, and what the kernel said.
    #[error("{action} {object}: {cause}")]
    Refused {
        /// `add address`, `create veth`, ...
        action: &'static str,
        /// The object's name.
        object: String,
        /// The error of the kernel.
        cause: std::io::Error,
    },
}

/// Result of a kernel call.
pub type Result<T> = std::result::Result<T, KernelError>;

/// The edge to the kernel. [`fake`](self) for tests of others, netlink for real.
pub trait Kernel: Send + Sync {
    /// Opens the sandbox at `path`; it must be a network namespace and not ipamd's own.
    fn open_sandbox(&self, path: &Path) -> Result<Sandbox>;

    /// Makes the bridge (fixed MAC, gateway addresses, forwarding, no redirects) as wanted; changes only what differs. Returns
    /// its ifindex, which differs from before if somebody removed the bridge; `None` for drivers without one.
    fn ensure_network(&self, wanted: &NetworkWiring) -> Result<Option<u32>>;

    /// Index of a bridge, if it is there: for a start that adopts endpoints. ([`Self::ensure_network`] and [`Self::create`] tell
    /// it as well, at no further cost.)
    fn bridge_ifindex(&self, bridge: &str) -> Option<u32>;

    /// Removes the bridge. Success when there is none.
    fn remove_network(&self, wanted: &NetworkWiring) -> Result<()>;

    /// Makes the VXLAN device of all overlay networks with its addresses, and Weft's routes, as wanted; changes only what differs,
    /// and no route of others. Returns its ifindex, which differs from before where it had to be made anew.
    fn ensure_overlay(&self, wanted: &OverlayWiring) -> Result<u32>;

    /// Removes the VXLAN device and Weft's routes. `false` when there was no device.
    fn remove_overlay(&self) -> Result<bool>;

    /// Whether the VXLAN device leaves checksums to the network card. `None`: there is no device.
    fn overlay_offload(&self) -> Result<Option<bool>>;

    /// Lets it leave them, or has them filled in before. It stays so until the device is made anew.
    fn set_overlay_offload(&self, on: bool) -> Result<()>;

    /// Whether the host has IPsec policies, which see only what passes its stack.
    fn has_ipsec(&self) -> bool;

    /// How full the tables of neighbours are, where the kernel shows it.
    fn neighbour_tables(&self) -> Vec<NeighbourTable>;

    /// What is there of the VXLAN device and of Weft's routes.
    fn observe_overlay(&self) -> Result<OverlayObserved>;

    /// Creates the endpoint's links: for bridge and overlay networks the pair, container end inside the sandbox, host end in the
    /// bridge (or in none) but down, so that programs can be attached before a packet flows; for macvlan the device. Undoes itself on
    /// failure.
    fn create(&self, wanted: &EndpointWiring, sandbox: &Sandbox) -> Result<Created>;

    /// Sets addresses, routes, static FDB entries or host routes, and permanent neighbours, and brings everything up. Returns the routes
    /// that were added (a default route is left out when the sandbox already has one of another network).
    fn activate(
        &self,
        wanted: &EndpointWiring,
        sandbox: &Sandbox,
        created: &Created,
    ) -> Result<Vec<ipamd_api::Route>>;

    /// Removes the endpoint's links, FDB entries and neighbours. Success when they are gone already. `sandbox`: where
    /// the container's end is, for drivers without a host end; it is only touched while its cookie still matches.
    fn remove(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<()>;

    /// Removes several endpoints, as [`Self::remove`] does each; one result for each, in order.
    fn remove_many(&self, endpoints: &[(EndpointWiring, SandboxIdentity)]) -> Vec<Result<()>> {
        endpoints.iter().map(|(wanted, sandbox)| self.remove(wanted, sandbox)).collect()
    }

    /// What is there of the endpoint.
    fn observe(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<EndpointObserved>;

    /// What is there of its host side alone; the sandbox is not looked into.
    fn observe_host_side(&self, wanted: &EndpointWiring) -> Result<HostSideObserved>;

    /// What is there of the network.
    fn observe_network(&self, wanted: &NetworkWiring) -> Result<NetworkObserved>;

    /// Re-applies the host side of the endpoint (bridge port, flags, FDB or host routes, neighbours, up); never touches the sandbox.
    fn repair_host_side(&self, wanted: &EndpointWiring) -> Result<()>;

    /// Host-side veths of endpoints that exist, by generation, with their ifindex.
    fn endpoint_links(&self) -> Result<Vec<(EndpointId, u32)>>;

    /// What the kernel alone tells of endpoints whose records are lost (a scan of all namespaces: not on a hot path). Those
    /// that are gone are left out.
    fn trace(&self, endpoints: &[EndpointId]) -> Result<Vec<EndpointTraced>>;

    /// Witnesses of whether a sandbox still exists. The wiring says whether there is a host end to ask for.
    fn witnesses(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<Witnesses>;

    /// Whether any process is in the sandbox's namespace (a scan of /proc: not on a hot path).
    fn has_processes(&self, sandbox: &SandboxIdentity) -> Result<bool>;

    /// Which links others shape with qdiscs, by ifindex; a link that is not here is not shaped. One list for all links: take it once
    /// for many.
    fn shaping(&self) -> Result<BTreeMap<u32, crate::datapath::Shaping>>;

    /// Devices, addresses and routes of the host, as [`crate::uplinks`] takes them.
    fn host_devices(&self) -> Result<HostDevices>;

    /// The way of a packet by the host's routing, or by a sandbox's. A sandbox that is gone has none.
    fn way_to(&self, sandbox: Option<&SandboxIdentity>, query: &WayQuery) -> Result<Way>;

    /// Puts back the settings of devices that are not Weft's. For uninstalling; success when nothing was changed.
    fn undo_settings(&self) -> Result<()>;

    /// Sockets of the host's namespace that have a local port of this range: TCP sockets that listen (or are bound, from Linux
    /// 6.8), all UDP sockets, SCTP sockets that listen. Cheap when there is none; else all processes are searched for the
    /// holders' names. [`conflicts`] tells which of them matter.
    fn port_holders(&self, protocol: Protocol, ports: &RangeInclusive<u16>) -> Result<Vec<PortHolder>>;
}
