//! One endpoint as the journal keeps it: enough to unwire and free it without any other source.

use ipamd_api::{
    AttachmentKey, DnsMode, Driver, EndpointId, EndpointOptions, EndpointView, HeldAddress, Hooks, MacAddr,
    Phase, PortMapping, Route, netns::SandboxIdentity,
};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, time::Duration};

/// Version of the record's shape; a newer one is refused.
pub const RECORD_VERSION: u32 = 1;

/// What a record needs to know of its network, so that it stands alone when the store is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPart {
    /// Number.
    pub id: u32,
    /// Name.
    pub name: String,
    /// Driver.
    pub driver: Driver,
    /// How programs are attached to this endpoint.
    pub hooks: Hooks,
    /// Whether nothing outside is reachable.
    pub internal: bool,
    /// Whether packets to the outside leave with the uplink's address.
    #[serde(default = "yes")]
    pub masquerade: bool,
    /// Whether its addresses are reachable from outside.
    #[serde(default)]
    pub routed: bool,
    /// Index of the bridge, or of the overlay's device; 0: not known.
    #[serde(default)]
    pub bridge_ifindex: u32,
    /// MAC of the bridge; of an overlay's endpoint, that of its host end.
    pub gateway_mac: MacAddr,
    /// The node's own addresses on an overlay network, so that they are known even where everything else is lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_addresses: Vec<IpAddr>,
    /// Where its names are answered.
    #[serde(default)]
    pub dns_mode: DnsMode,
    /// Parent of a macvlan network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

impl NetworkPart {
    /// Where names are answered: see [`ipamd_api::Network::dns`].
    pub fn dns(&self) -> DnsMode {
        self.driver.dns(self.dns_mode)
    }
}

fn yes() -> bool {
    true
}

/// Ports that an endpoint publishes. Short on purpose: a record has to fit into a pinned map, with many of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldPorts {
    /// The mapping, its host port decided.
    pub mapping: PortMapping,
    /// Whether Weft chose the host port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chosen: bool,
}

impl HeldPorts {
    /// The mapping as it was asked for.
    pub fn asked(&self) -> PortMapping {
        let host_port = if self.chosen { 0 } else { self.mapping.host_port };
        PortMapping { host_port, ..self.mapping.clone() }
    }
}

/// A journal record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Generation.
    pub endpoint: EndpointId,
    /// Key.
    pub attachment: AttachmentKey,
    /// Network.
    pub network: NetworkPart,
    /// Who made it.
    pub runtime: String,
    /// Boot it belongs to.
    pub boot_id: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Sandbox.
    pub sandbox: SandboxIdentity,
    /// Addresses it holds.
    pub addresses: Vec<HeldAddress>,
    /// MAC of the container's interface; `None` for drivers without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Routes that were added, beside the connected ones.
    pub routes: Vec<Route>,
    /// Host-side link, once made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ifindex: Option<u32>,
    /// Container-side link, once made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_ifindex: Option<u32>,
    /// What was asked for.
    pub options: EndpointOptions,
    /// Ports that this endpoint publishes, every one decided. Those asked for that another endpoint of the same container publishes
    /// are not in here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<HeldPorts>,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Phase `freed`: when, as CLOCK_BOOTTIME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freed_at: Option<Duration>,
}

impl From<&Record> for EndpointView {
    fn from(r: &Record) -> Self {
        Self {
            endpoint: r.endpoint,
            attachment: r.attachment.clone(),
            network: r.network.name.clone(),
            runtime: r.runtime.clone(),
            phase: r.phase,
            addresses: r.addresses.clone(),
            mac: r.mac,
            mtu: r.mtu,
            routes: r.routes.clone(),
            sandbox: r.sandbox.clone(),
            host_ifname: r.network.driver.has_host_link().then(|| r.endpoint.host_ifname()),
            host_ifindex: r.host_ifindex,
            sandbox_ifindex: r.sandbox_ifindex,
            options: r.options.clone(),
            created_at: r.created_at,
            boot_id: r.boot_id.clone(),
        }
    }
}
